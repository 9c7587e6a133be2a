"""Thresholds, medians, temperatures and halves of a whole update, by hand, and the losses that they make."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from selectkd_eval import survey as survey_module
from selectkd_eval.controllers import Anchor
from selectkd_eval.errors import InputError
from selectkd_eval.heads import Head
from selectkd_eval.loss import rolled, token_loss
from selectkd_eval.materials import loss_spec
from selectkd_eval.objective import LossSpec, single
from selectkd_eval.recipes import recipe
from selectkd_eval.selection import Reading, Scores, joined, planned, read, scores
from selectkd_eval.survey import Frozen, survey
from selectkd_eval.token_stats import Rows, TokenPlan
from selectkd_eval.verbs import TrainOptions
from selectkd_eval.verifiers import hellinger

HARDEST = LossSpec(selection="hardest", share=0.4)
WARM = LossSpec(idts=0.5)
HALVES = LossSpec(normaliser="class_mean")
DISTANCES = torch.tensor([0.1, 0.5, 0.3, 0.9, 0.7], dtype=torch.float64)


def plan_of(spec: LossSpec, **columns: Tensor) -> TokenPlan:
    found = Scores(**columns)
    return planned(spec, read(spec, found), found)


def listed(column: Tensor | None) -> list[float]:
    assert column is not None
    return column.tolist()


def rows(targets: Tensor) -> Rows:
    """One sequence."""
    count = len(targets)
    return Rows(targets, torch.zeros(count, dtype=torch.long), torch.tensor([count]))


@pytest.mark.parametrize(
    ("share", "kept"),
    [
        (0.1, [0, 0, 0, 1, 0]),
        (0.4, [0, 0, 0, 1, 1]),
        (0.41, [0, 1, 0, 1, 1]),
        (0.8, [0, 1, 1, 1, 1]),
    ],
)
def test_the_hardest_tokens_are_the_farthest_and_their_share_is_rounded_up(share: float, kept: list[int]) -> None:
    assert listed(plan_of(replace(HARDEST, share=share), distance=DISTANCES).selection) == kept


def test_ties_at_the_threshold_are_all_kept_and_a_share_of_one_selects_nothing_away() -> None:
    tied = torch.tensor([0.5, 0.5, 0.1, 0.5])
    assert listed(plan_of(replace(HARDEST, share=0.25), distance=tied).selection) == [1, 1, 0, 1]
    assert plan_of(replace(HARDEST, share=1.0), distance=tied).selection is None


def test_medians_by_hand() -> None:
    assert read(WARM, Scores(distance=DISTANCES)).median_distance == 0.5
    assert read(WARM, Scores(distance=DISTANCES[:4])).median_distance == pytest.approx(0.4)
    chosen = replace(HARDEST, idts=0.5)
    assert read(chosen, Scores(distance=DISTANCES)).median_distance == 0.5
    of_chosen = read(replace(chosen, idts_median="selected"), Scores(distance=DISTANCES))
    assert of_chosen.median_distance == pytest.approx(0.8)
    assert of_chosen.threshold == pytest.approx(0.7)


def test_temperatures_fall_with_difficulty_as_equations_9_and_10_say() -> None:
    # With the median at 1/4: 0, half of it, the median, twice it, four times it.
    distance = torch.tensor([0.0, 0.125, 0.25, 0.5, 1.0], dtype=torch.float64)
    relative = [-1, -3 / 5, 0, 3 / 5, 15 / 17]
    assert relative[3] == pytest.approx(math.tanh(math.log(2)))
    for base in (1.0, 2.0):
        found = listed(plan_of(replace(WARM, temperature=base), distance=distance).tau)
        assert found == pytest.approx([base * math.exp(-0.5 * s) for s in relative])
    assert plan_of(LossSpec(), distance=distance) == TokenPlan()
    same = plan_of(WARM, distance=torch.zeros(3)).tau
    assert listed(same) == [1, 1, 1], "where both models agree everywhere nothing is easy or hard"


def test_the_hard_half_begins_at_the_median_and_each_half_is_averaged_over_itself() -> None:
    even = plan_of(HALVES, uncertainty=torch.tensor([0.1, 0.4, 0.8, 0.5]))
    assert (listed(even.hard), listed(even.class_share)) == ([False, False, True, True], [0.5] * 4)
    odd = plan_of(HALVES, uncertainty=torch.tensor([0.1, 0.4, 0.8]))
    assert (listed(odd.hard), listed(odd.class_share)) == ([False, True, True], [1.0, 0.5, 0.5])
    alike = plan_of(HALVES, uncertainty=torch.full((4,), 0.3))
    assert (listed(alike.hard), listed(alike.class_share)) == ([True] * 4, [0.25] * 4)


def log(*probabilities: list[float]) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def test_uncertainty_is_what_the_teacher_leaves_to_other_tokens() -> None:
    log_p = log([0.9, 0.1], [0.25, 0.75])
    found = scores(HALVES, log_p, log_p, torch.tensor([0, 0]))
    assert listed(found.uncertainty) == pytest.approx([0.1, 0.75])
    assert (found.distance, found.excess) == (None, None)


def test_learnable_tokens_are_those_the_reference_has_learned_and_the_student_not() -> None:
    log_p = log([0.5, 0.5], [0.5, 0.5], [0.5, 0.5])
    log_q = log([0.9, 0.1], [0.5, 0.5], [0.9, 0.1])
    log_r = log([0.5, 0.5], [0.9, 0.1], [0.9, 0.1])
    learnable = replace(HARDEST, selection="learnable")
    found = scores(learnable, log_p, log_q, torch.zeros(3, dtype=torch.long), log_r)
    away = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert listed(found.excess) == pytest.approx([away, -away, 0])
    for share, kept in ((0.3, [1, 0, 0]), (0.4, [1, 0, 1]), (0.7, [1, 1, 1])):
        spec = replace(learnable, share=share)
        assert listed(planned(spec, read(spec, found), found).selection) == kept


def test_what_no_choice_can_be_made_from_is_refused() -> None:
    log_p = log([0.5, 0.5])
    with pytest.raises(InputError, match="asks a teacher"):
        scores(HARDEST, None, log_p, torch.zeros(1, dtype=torch.long))
    with pytest.raises(InputError, match="--reference"):
        scores(replace(HARDEST, selection="learnable"), log_p, log_p, torch.zeros(1, dtype=torch.long))


def test_a_plan_does_not_depend_on_how_the_update_is_cut() -> None:
    spec = replace(HARDEST, idts=0.5, normaliser="class_mean")
    whole = Scores(distance=DISTANCES, uncertainty=DISTANCES.flip(0))
    parts = [Scores(DISTANCES[at], DISTANCES.flip(0)[at]) for at in (slice(0, 2), slice(2, 5))]
    reading = read(spec, joined(parts))
    assert reading == read(spec, whole) == Reading(0.7, 0.5, 0.5, easy=2, hard=3)
    together = [torch.cat(column) for column in zip(*(planned(spec, reading, p) for p in parts), strict=True)]
    for one, other in zip(together, planned(spec, reading, whole), strict=True):
        torch.testing.assert_close(one, other)


def logits(tokens: int = 7, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of teacher, student and reference, and targets."""
    draw = torch.Generator().manual_seed(seed)
    z = [2 * torch.randn(tokens, 5, generator=draw, dtype=torch.float64) for _ in range(3)]
    return z[0], z[1], z[2], torch.randint(5, (tokens,), generator=draw)


def kl(a: Tensor, b: Tensor) -> float:
    return float((a * (a.log() - b.log())).sum())


def objective(name: str, variant: str = "", **options: Any) -> LossSpec:
    return loss_spec(recipe(name, variant), TrainOptions(**options))


@pytest.mark.parametrize("variant", ["", "code"])
def test_adakd_written_as_loops(variant: str) -> None:
    z_p, z_q, _, targets = logits()
    distance = hellinger(z_p.log_softmax(-1), z_q.log_softmax(-1))
    chosen = set(distance.argsort(descending=True)[:4].tolist())
    median = sorted(distance[i].item() for i in (chosen if variant else range(7)))
    middle = (median[1] + median[2]) / 2 if variant else median[3]
    total = 0.0
    for i in chosen:
        tau = math.exp(-0.5 * math.tanh(math.log(distance[i].item() / middle)))
        value = kl((z_q[i] / tau).softmax(-1), (z_p[i] / tau).softmax(-1))
        total += value * tau**2 if variant else value
    spec = replace(objective("adakd", variant), share=0.5)
    loss, stats = token_loss(z_p, z_q, rows(targets), spec)
    assert loss.item() == pytest.approx(total / 4)
    assert stats.weight == 4


@pytest.mark.parametrize(("variant", "divided_by"), [("", 3), ("code", 7)])
def test_adaspec_written_as_loops(variant: str, divided_by: int) -> None:
    z_p, z_q, z_r, targets = logits()
    p, q, r = (z.softmax(-1) for z in (z_p, z_q, z_r))
    excess = [(kl(p[i], q[i]) - kl(p[i], r[i]), kl(p[i], q[i])) for i in range(7)]
    kept = sorted(excess, reverse=True)[:3]  # 0.4 of 7, rounded up
    loss, _ = token_loss(z_p, z_q, rows(targets), objective("adaspec", variant), z_r=z_r)
    assert loss.item() == pytest.approx(sum(value for _, value in kept) / divided_by)


@pytest.mark.parametrize("gated", [False, True])
def test_atkd_written_as_loops(gated: bool) -> None:
    z_p, z_q, _, targets = logits()
    p, q = z_p.softmax(-1), z_q.softmax(-1)
    uncertainty = [1 - p[i, y].item() for i, y in enumerate(targets.tolist())]
    median = sorted(uncertainty)[3]
    easy: list[float] = []
    hard: list[float] = []
    for i, y in enumerate(targets.tolist()):
        others = [v for v in range(5) if v != y]
        rest = kl(p[i, others] / p[i, others].sum(), q[i, others] / q[i, others].sum())
        target = kl(*(torch.stack([d[i, y], 1 - d[i, y]]) for d in (p, q)))
        weight = 1.0
        if gated and bool((p[i] > p[i, q[i].argmax()]).any()):
            weight = 0.1
        (easy if uncertainty[i] < median else hard).append(
            weight * (rest if uncertainty[i] < median else target + rest)
        )
    assert (len(easy), len(hard)) == (3, 4)
    gate: dict[str, Any] = {"verifier": "top-k", "k": 1, "beta": 0.1} if gated else {}
    loss, stats = token_loss(z_p, z_q, rows(targets), objective("atkd", **gate))
    assert loss.item() == pytest.approx(0.2 * sum(easy) / 3 + 0.8 * sum(hard) / 4)
    assert stats.loss("class_mean") == pytest.approx(loss.item())


def frozen(z: Tensor, seed: int) -> Frozen:
    """Hidden rows and a head whose logits these are."""
    draw = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(z.shape[1], z.shape[1], generator=draw, dtype=torch.float64))
    return Frozen(z @ turn, Head(turn.T.contiguous().T))


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_a_survey_is_the_scores_and_likelihoods_of_all_logits(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey_module, "LOGITS", 5 * chunk)
    z_p, z_q, z_r, targets = logits()
    shifts = torch.tensor([0, 1, 0, 2, 0, 0, 3])
    three = Rows(
        targets,
        torch.tensor([0, 0, 0, 2, 2, 2, 2]),
        torch.tensor([3, 0, 4]),
        source=torch.tensor([1, 1, 1, 2, 2, 2, 2]),
        shifts=shifts,
    )
    spec = single("fkl", selection="learnable", share=0.5, normaliser="class_mean", idts=0.5)
    found = survey(spec, three, frozen(z_p, 1), frozen(z_q, 2), frozen(z_r, 3))
    log_p, log_q, log_r = rolled(z_p, shifts).log_softmax(-1), z_q.log_softmax(-1), z_r.log_softmax(-1)
    for one, other in zip(found.scores, scores(spec, log_p, log_q, targets, log_r), strict=True):
        torch.testing.assert_close(one, other)
    of_p, of_q = (x.gather(1, targets[:, None]).squeeze(1) for x in (log_p, log_q))
    expected = [Anchor("teacher", float(of_p[:3].sum()), float(of_q[:3].sum()), 3)]
    expected += [Anchor("student", float(of_p[3:].sum()), float(of_q[3:].sum()), 4)]
    assert [anchor.source for anchor in found.anchors] == ["teacher", "student"], "a text without a response is none"
    for anchor, wanted in zip(found.anchors, expected, strict=True):
        assert anchor[1:] == pytest.approx(wanted[1:])
