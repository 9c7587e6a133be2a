"""Two students on the same prompts: paired, tested, and refused where they cannot be paired."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from judges import compare
from selectkd_eval import records, win_rates
from selectkd_eval.cli import main
from selectkd_eval.records import Record
from selectkd_eval.verbs import WinrateOptions


def record(directory: Path, name: str, words: str, **facts: Any) -> Record:
    """A record whose prompts were won (w), lost (l) or tied (t) in this order."""
    verdicts = {"w": "candidate", "l": "baseline", "t": "tie"}
    every = {
        "judge": {"name": "gpt-4o", "kind": "server", "note": "n"},
        "protocol": {"name": "selectkd", "sha256": "p", "order": "random", "ties": "excluded"},
        "candidate": {"name": name, "method": name, "fingerprint": name, "seed": None, "training": {}},
        "baseline": {"name": "base", "method": "base", "fingerprint": "base"},
        "prompts": {"name": "set", "sha256": "0", "n": len(words)},
        **facts,
    }
    options = WinrateOptions(out=directory, candidate=name, judge="gpt-4o")
    with records.open_record("winrate", options, inputs={}, facts=every) as writer:
        for place, word in enumerate(words):
            order = "candidate-first" if place % 2 else "baseline-first"
            row = {"prompt": f"p{place}", "seed": 0, "order": order, "sample": 0, "verdict": verdicts[word]}
            writer.write(f"p{place}/0/{order}", **row, reason="", candidate_chars=5, baseline_chars=4)
        writer.finish()
        return records.read(writer.path)


def test_the_difference_is_that_of_the_rates_and_narrower_than_unpaired_ones(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(400)
    one = record(tmp_path, "one", "".join("w" if h < 0.55 + 0.1 * rng.random() else "l" for h in hard))
    two = record(tmp_path, "two", "".join("w" if h < 0.45 + 0.1 * rng.random() else "l" for h in hard))
    found = compare.pair(one, two, 2000)
    rates = [win_rates.win_rate(r) for r in (one, two)]
    assert found.delta.value == pytest.approx(rates[0].value - rates[1].value)
    unpaired = np.hypot(*(rate.estimate(2000).half_width for rate in rates))
    assert found.delta.half_width < 0.6 * unpaired
    assert found.better - found.worse == round(400 * found.delta.value)


def test_single_verdicts_without_ties_are_mcnemars_test(tmp_path: Path) -> None:
    one, two = record(tmp_path, "one", "w" * 12 + "l" * 3 + "w" * 25), record(tmp_path, "two", "l" * 12 + "w" * 28)
    found = compare.pair(one, two, 20_000)
    assert (found.better, found.worse) == (12, 3)
    assert found.p == pytest.approx(binomtest(3, 15).pvalue, abs=0.01)


def test_a_third_record_raises_holms_p(tmp_path: Path) -> None:
    words = "w" * 30 + "l" * 10
    this = record(tmp_path, "this", words)
    others = [record(tmp_path, name, "l" * n + words[n:]) for name, n in (("a", 12), ("b", 4))]
    text = "\n".join(compare.lines(this, others, 2000))
    assert "this one wins more" in text and "Holm: adjusted over these 2" in " ".join(text.split())
    assert text.startswith("this against others on the same prompts, paired:")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"judge": {"name": "qwen-plus", "kind": "server", "note": "n"}}, "another judge"),
        ({"protocol": {"name": "selectkd", "sha256": "q", "order": "random", "ties": "excluded"}}, "another protocol"),
        ({"baseline": {"name": "other", "fingerprint": "other"}}, "another baseline"),
    ],
)
def test_what_differs_besides_the_student_is_named_and_not_paired(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    this, other = record(tmp_path, "this", "wlwl"), record(tmp_path, "other", "wwll", **changes)
    assert compare.differences(this, this) == []
    text = "\n".join(compare.lines(this, [other], 100))
    assert f"other: not paired, for it has {says}" in text and "delta" not in text


def test_other_prompts_are_counted_and_not_paired(tmp_path: Path) -> None:
    text = "\n".join(compare.lines(record(tmp_path, "this", "wlwl"), [record(tmp_path, "other", "wl")], 100))
    assert "2 only here, 0 only there, 2 in both" in text


def test_two_records_of_one_model_are_told_apart_by_their_files(tmp_path: Path) -> None:
    this = record(tmp_path, "this", "wlwl")
    others = [record(tmp_path / place, "same", "wwll") for place in ("a", "b")]
    others[1] = replace(others[1], path=others[1].path.with_name("winrate-other.jsonl"))
    text = "\n".join(compare.lines(this, others, 100))
    assert f"same {others[0].path.stem}" in text and "same winrate-other" in text


def test_compare_is_read_before_anything_is_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["winrate", "--judge", "likelihood:embedded:judge", "--compare", str(tmp_path / "no.jsonl")]
    assert main([*arguments, "--out", str(tmp_path)]) == 2
    assert "cannot read the record" in capsys.readouterr().err
