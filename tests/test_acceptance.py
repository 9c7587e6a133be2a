"""Which students, runs and bins belong together, and what the sentences say of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import record_factory as make
from rewriting import rewrite

from analysis import tar_words
from analysis.acceptance import tar_sets
from analysis.acceptance_runs import HELD_OUT, Judged, cumulative_rate, in_words, judged, own, runs
from analysis.load import Library, Method, library
from selectkd_eval.records import Record
from selectkd_eval.theorem import Fit

RATES = [0.0, 0.5, 1.0, 0.75, 0.25]


def written(out: Path, sums: dict[int, list[tuple[float, int]]], **more: Any) -> Record:
    """A tar record of one gated student: per step, (accepted, tokens) of every prompt."""
    training = {"record": "", **more.pop("training", {})}
    card = make.card("KD + Spec-k", 0, **training) | more
    rows = []
    for place, (step, prompts) in enumerate(sums.items()):
        for prompt, (accepted, tokens) in enumerate(prompts):
            row = {"key": f"{place}/{prompt}", "student": place, "step": step, "prompt": str(prompt)}
            rows.append({**row, "n_tokens": tokens, "greedy": accepted, "spec": accepted, "alpha": accepted})
    facts = {
        "teacher": make.card("Teacher"),
        "students": [card] * len(sums),
        "prompts": {"name": "somewhere/held-out.jsonl", "sha256": make.digest("v"), "n": 2},
        "k": 5,
    }
    return make.write("tar", make.TarOptions(out=out), facts, rows)


def test_the_mean_over_sequences_is_not_the_mean_over_tokens(tmp_path: Path) -> None:
    written(tmp_path, {10: [(4, 4), (8, 16)]})
    (found,) = tar_sets(library(tmp_path))
    (at,) = found.points
    assert found.points[at]["greedy"].value == pytest.approx((4 / 4 + 8 / 16) / 2)
    assert found.pooled[at]["greedy"].value == pytest.approx((4 + 8) / (4 + 16))
    assert found.text == "held-out.jsonl", "the places of files are no part of a text's name"


def test_sets_of_one_text_are_told_apart_by_k(tmp_path: Path) -> None:
    for k in (3, 5):
        record = make.tar(tmp_path / str(k), [make.card("KD", 0)], [10], n=12)
        rewrite(record.path, record.path.read_text().replace('"k":5,"position', f'"k":{k},"position'))
    assert [chosen.text for chosen in tar_sets(library(tmp_path))] == [
        "mini-stories:validation (k = 3)",
        "mini-stories:validation (k = 5)",
    ]


def test_a_student_measured_twice_counts_once(tmp_path: Path) -> None:
    cards = [make.card("KD", 0), make.card("KD", 1)]
    make.tar(tmp_path / "a", cards, [10, 10], n=12)
    make.tar(tmp_path / "b", cards[:1], [10], n=12)
    (found,) = tar_sets(library(tmp_path))
    assert [one.card["seed"] for one in found.measured] == [0, 1]


def test_text_that_a_model_wrote_is_named_by_its_author(tmp_path: Path) -> None:
    record = written(tmp_path, {10: [(4, 4), (8, 16)]})
    author = '"facts":{"written_by":[{"fingerprint":"f","method":"KD","name":"students/kd"}],'
    rewrite(record.path, record.path.read_text().replace('"facts":{', author))
    (found,) = tar_sets(library(tmp_path))
    assert found.text == "text by KD (held-out.jsonl)"


def trained(out: Path, rates: list[float]) -> Record:
    card = make.card("KD + Spec-k", 0)
    rows = [{"key": f"step/{n}", "event": "step", "step": n, "lr": lr} for n, lr in enumerate(rates, start=1)]
    facts = {"method": "KD + Spec-k", "training": card["training"], "teacher": make.card("Teacher"), "save": "s"}
    return make.write("train", make.TrainOptions(out=out, seed=0), facts | {"student": make.card("Start")}, rows)


def test_the_clock_is_the_sum_of_the_learning_rates_so_far(tmp_path: Path) -> None:
    record = trained(tmp_path, RATES)
    assert cumulative_rate(record, np.array([0.0, 2, 5])) == pytest.approx([0, 0.5, 2.5])
    assert cumulative_rate(record, np.array([0.0, 2, 6])) is None, "an update is missing"
    assert cumulative_rate(record, np.array([0.0, 1])) is None, "a clock that stands is none"
    assert cumulative_rate(None, np.array([0.0, 1])) is None


def test_a_runs_checkpoints_are_on_its_own_training_records_clock(tmp_path: Path) -> None:
    record = trained(tmp_path, RATES)
    sums = {2: [(4, 10), (5, 10)], 5: [(6, 10), (8, 10)]}
    written(tmp_path, sums, training={"record": record.path.name})
    (run,) = runs(library(tmp_path))
    assert run.by_rate
    assert run.curves["spec"].clock == pytest.approx([0.5, 2.5])
    assert run.curves["spec"].tar == pytest.approx([0.45, 0.7])
    assert run.fit("spec", 100).kappa_max == pytest.approx((np.log(0.55) - np.log(0.3)) / 2)
    record.path.unlink()
    (run,) = runs(library(tmp_path))
    assert not run.by_rate
    assert run.curves["spec"].clock.tolist() == [2, 5]


def test_a_run_begins_with_the_student_it_started_from(tmp_path: Path) -> None:
    start = make.card("Start")
    students = [start] + [make.card("KD + Spec-k", seed, start=start["fingerprint"]) for seed in (0, 0, 1, 1)]
    make.tar(tmp_path, students, [None, 10, 20, 10, 20], n=12)
    found = runs(library(tmp_path))
    assert [(run.seed, run.steps.tolist()) for run in found] == [(0, [0, 10, 20]), (1, [0, 10, 20])]


def test_without_tar_records_the_validation_rows_speak_and_a_fall_cannot_be_tested(tmp_path: Path) -> None:
    for method in ("KD", "KD + Top-k"):
        make.train(tmp_path, make.card(method, 0))
    (one,) = judged(library(tmp_path), 100)
    assert one.method.label == "KD + Top-k", "the theorem speaks of gated methods"
    assert (one.text, one.what, own(one.method)) == (HELD_OUT, "greedy", "greedy")
    (fit,) = one.fits
    assert fit.drops, "the factory's noise makes TAR fall somewhere"
    assert fit.verdict == "cannot be told"
    (line,) = tar_words.lines(library(tmp_path), 100)
    assert "cannot be told" in line and "without values per prompt" in line


def validated(out: Path, seed: int, tars: dict[int, list[float]]) -> Record:
    """A gated run whose validations kept the acceptance of every response."""
    card = make.card("KD + Spec-k", seed)
    rows: list[dict[str, Any]] = [
        {"key": f"step/{n}", "event": "step", "step": n, "lr": 0.1} for n in range(1, max(tars) + 1)
    ]
    for step, each in tars.items():
        kept = {"n_tokens": [10] * len(each), "tar_top_k": each, "tar_spec_k": each, "alpha": each}
        means = {name: float(np.mean(each)) for name in ("tar_top_k", "tar_spec_k", "alpha", "tar")}
        row = {"event": "validation", "step": step, "loss": 1.0, "nll": 1.0, "responses": kept}
        rows.append({"key": f"validation/{step}", **row, **means})
    facts = {"method": "KD + Spec-k", "training": card["training"], "teacher": make.card("Teacher"), "save": "s"}
    return make.write("train", make.TrainOptions(out=out, seed=seed), facts | {"student": make.card("Start")}, rows)


def test_validation_rows_that_keep_every_response_let_a_fall_be_tested(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    low, high = draw.uniform(0.5, 0.6, 30).round(6).tolist(), draw.uniform(0.7, 0.8, 30).round(6).tolist()
    validated(tmp_path, 0, {10: low, 20: high, 30: [0.1 + tar for tar in high]})
    fallen = validated(tmp_path, 1, {10: low, 20: high, 30: low})
    (one,) = judged(library(tmp_path), 200)
    assert [fit.verdict for fit in one.fits] == ["holds on this run", "violated"]
    (drop,) = one.fits[1].drops
    assert drop.change.value == pytest.approx(np.mean(low) - np.mean(high))
    assert drop.change.low < drop.change.value < drop.change.high < 0 and drop.significant
    # Kept checkpoints of one seed do not silence the training rows of all.
    written(tmp_path, {10: [(4, 10), (5, 10)], 20: [(6, 10), (8, 10)]}, training={"record": fallen.path.name})
    assert [(panel.text, len(panel.runs)) for panel in judged(library(tmp_path), 200)] == [
        ("held-out.jsonl", 1),
        (HELD_OUT, 2),
    ]


def test_verdicts_of_several_runs_are_counted() -> None:
    none = np.zeros(0)
    fits = [Fit("holds on this run", none), Fit("cannot be told", none), Fit("holds on this run", none)]
    assert in_words(fits) == "holds in 2 of 3 runs; cannot be told in 1 of 3 runs"
    assert in_words(fits[:1]) == "holds on this run"


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_largest_valid_kappa_of_several_runs_is_the_least_that_is_known(order: tuple[int, ...]) -> None:
    fits = [
        Fit("holds on this run", np.array([3.0, 2.0])),
        Fit("cannot be told", np.zeros(0)),
        Fit("holds on this run", np.array([5.0])),
    ]
    method = Method("KD")
    found = Judged(method, "text", "alpha", [], [fits[place] for place in order], None, float("nan"), 0)
    assert found.kappa_max == 2.0
    assert np.isnan(found._replace(fits=[fits[1]]).kappa_max)


def test_what_a_figure_has_no_room_for_is_named_once() -> None:
    assert tar_words.not_drawn([]) == ""
    assert tar_words.not_drawn(["a", "b", "a"]) == " Not drawn, for want of room: a, b."


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Library:
    out = tmp_path_factory.mktemp("records")
    cards = [make.card(method, seed) for method in ("KD", "KD + Spec-k") for seed in (0, 1) for _ in range(2)]
    make.tar(out, cards, [10, 20] * 4, n=12)
    return library(out)


def test_bins_add_up_to_the_pooled_total_of_the_last_step(full: Library) -> None:
    (found,) = tar_sets(full)
    for by in ("by_entropy", "by_position"):
        part = found.breakdown(by)
        assert part is not None
        for method in found.methods:
            for what in ("greedy", "spec", "alpha"):
                whole = found.pooled[method, 20][what]
                bins = part.terms[method][what]
                assert all(terms.prompts == whole.prompts for terms in bins)
                assert sum(terms.num for terms in bins) == pytest.approx(whole.num)
                assert sum(terms.den for terms in bins) == pytest.approx(whole.den)


def test_bins_are_taken_together_by_their_edges(full: Library) -> None:
    (found,) = tar_sets(full)
    part = found.breakdown("by_entropy")
    assert part is not None
    method = found.methods[0]
    low, high = part.between(method, "alpha", None, 1.0), part.between(method, "alpha", 1.0, None)
    bins = part.terms[method]["alpha"]  # the edge 1.0 is the fourth of six
    assert low.den == pytest.approx(sum(terms.den for terms in bins[:4]))
    assert high.num == pytest.approx(sum(terms.num for terms in bins[4:]))


def test_records_without_a_breakdown_are_read_and_have_none(tmp_path: Path) -> None:
    written(tmp_path, {10: [(4, 4), (8, 16)], 20: [(4, 4), (10, 16)]})
    found = library(tmp_path)
    assert tar_sets(found)[0].breakdown("by_entropy") is None
    assert not [line for line in tar_words.lines(found, 100) if "entropy" in line]


def unsure(out: Path, gap: float, noise: float) -> list[str]:
    """Sentences about entropy where unsure tokens are accepted less often by `gap`."""
    record = make.tar(out, [make.card("KD", 0)], [10], n=30)
    rows = []
    for number, row in enumerate(record.rows):
        own = noise * (-1) ** number  # cancels over the prompts
        counts = [10.0, 0.0, 0.0, 0.0, 10.0, 0.0, 0.0]
        rates = [0.8 + own] * 4 + [0.8 - gap - own] * 3
        alpha = [n * rate for n, rate in zip(counts, rates, strict=True)]
        row = row | {"n_tokens": 20, "alpha": sum(alpha)}
        rows.append(row | {"by_entropy": {"n": counts, "greedy": alpha, "spec": alpha, "alpha": alpha}})
    again = make.write("tar", make.TarOptions(out=out / "again"), record.facts, rows)
    return [line for line in tar_words.lines(library(again.path.parent), 500) if "entropy" in line]


def test_doubt_of_the_teacher_is_told_only_where_it_shows(tmp_path: Path) -> None:
    (line,) = unsure(tmp_path / "a", gap=0.2, noise=0.05)
    assert "at least 1 nat (50 % of the tokens)" in line
    assert "KD 0.600 (−0.200 [" in line
    assert unsure(tmp_path / "b", gap=0.0, noise=0.05) == []
