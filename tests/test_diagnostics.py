"""The columns of a step's row, and the two warnings: when they are given, and when not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from selectkd_eval.diagnostics import COLD_START, INERT_AFTER, Watch, columns, costs
from selectkd_eval.objective import LossSpec
from selectkd_eval.token_stats import TokenStats

GATED = LossSpec(verifier="spec-k", k=1)
# Two sequences of 4 tokens each: half of them accepted, 30 % of the loss removed.
HALF = TokenStats(
    sequences=2,
    tokens=8,
    divergence=10.0,
    weighted=7.0,
    divergence_per_seq=2.5,
    weighted_per_seq=1.75,
    weighted_accepted=6.3,
    weighted_quarter_1=3.5,
    weighted_quarter_2=2.1,
    weighted_quarter_3=0.7,
    weighted_quarter_4=0.7,
    weight=4.2,
    judged=8,
    accepted=4.0,
    accepted_per_seq=1.0,
    compared=8,
    overlap=6.0,
    entropy_p=16.0,
    entropy_q=24.0,
    nll=8.0,
    own_text=2,
)


def test_columns_by_hand() -> None:
    found = columns(HALF)
    assert found.pop("loss_by_quarter") == pytest.approx([0.5, 0.3, 0.1, 0.1])
    assert found == pytest.approx(
        {
            "tar": 0.5,
            "tar_pooled": 0.5,
            "alpha": 0.75,
            "bite": 0.3,
            "mean_weight": 0.525,
            "accepted_loss": 0.9,
            "teacher_entropy": 2.0,
            "student_entropy": 3.0,
            "own_text": 0.25,
            "tokens": 8,
        }
    )


def test_what_an_update_cannot_know_is_none() -> None:
    alone = replace(HALF, judged=0, compared=0)
    missing = {name for name, value in columns(alone).items() if value is None}
    assert missing == {"tar", "tar_pooled", "alpha", "accepted_loss", "teacher_entropy"}
    assert columns(replace(HALF, weighted=0.0, divergence=0.0))["loss_by_quarter"] is None


def test_costs_are_per_second_of_the_update() -> None:
    found = costs(HALF, 0.5, torch.device("cpu"))
    assert (found["seconds"], found["tokens_per_s"], found["rows_per_s"]) == (0.5, 16.0, 4.0)
    assert 0.01 < found["peak_gb"] < 1000


def watched(stats: TokenStats, spec: LossSpec = GATED, first: int = 1, last: int = INERT_AFTER + 5) -> list[str]:
    watch = Watch()
    for step in range(first, last + 1):
        watch.update(stats, spec, step)
    return watch.said


def test_a_cold_start_is_said_once_and_at_the_first_update_only(capsys: pytest.CaptureFixture[str]) -> None:
    cold = replace(HALF, accepted_per_seq=2 * (COLD_START - 0.01))
    [sentence] = watched(cold)
    assert "the first TAR is 0.29" in sentence
    assert capsys.readouterr().err == f"selectkd-eval: {sentence}\n"
    assert watched(replace(HALF, accepted_per_seq=2 * COLD_START)) == []
    assert watched(cold, first=2) == []


def test_a_gate_that_removes_nothing_is_said_once_after_twenty_updates() -> None:
    inert = replace(HALF, weighted=9.96)
    [sentence] = watched(inert)
    assert f"over the first {INERT_AFTER} updates the gate removed 0.40%" in sentence
    assert watched(inert, last=INERT_AFTER - 1) == []
    assert watched(replace(HALF, weighted=9.94)) == []


def test_one_update_with_something_removed_is_enough_to_be_quiet() -> None:
    watch, inert = Watch(), replace(HALF, weighted=10.0)
    for step in range(1, INERT_AFTER + 1):
        watch.update(HALF if step == 3 else inert, GATED, step)
    assert watch.said == []  # 3 of 200 nats: 1.5 %


def test_only_what_has_a_gate_is_warned_of() -> None:
    cold, inert = replace(HALF, accepted_per_seq=0.0), replace(HALF, weighted=10.0)
    assert watched(cold, LossSpec()) == watched(inert, LossSpec()) == []
    # The Hellinger score is no test: it has no TAR.
    assert watched(replace(cold, judged=0), LossSpec(verifier="hellinger")) == []
    # What a selection removes is not the gate's doing, nor is what it leaves.
    assert watched(inert, replace(GATED, selection="hardest", share=0.5)) == []
    assert watched(replace(HALF, divergence=0.0, weighted=0.0)) == [], "equal models: no loss to remove"
