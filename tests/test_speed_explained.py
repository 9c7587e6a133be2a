"""A speed-up taken apart by hand, and predictions against made-up records whose costs and acceptance are known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import record_factory as make

from selectkd_eval import speed_explained, speed_model, speeds
from selectkd_eval.speeds import Arm

STAGES = ("draft_s", "verify_s", "accept_s", "crop_s")


def run(arm: Arm, seconds: tuple[float | None, ...], steps: list[tuple[int, int]]) -> dict[str, Any]:
    drafted, accepted = [d for d, _ in steps], [k for _, k in steps]
    tokens = len(steps) + sum(accepted)
    known = [value for value in seconds if value is not None]
    row: dict[str, Any] = {"rep": 0, "place": 0, **arm._asdict(), "control": False, "wall_s": 12.0, "cpu_s": 12.0}
    row |= {"decode_s": sum(known), "decode_tokens": tokens, **dict(zip(STAGES, seconds, strict=True))}
    row |= {"steps": len(steps), "tokens": tokens, "drafted": sum(drafted), "accepted": sum(accepted)}
    row |= {"tested": sum(min(k + 1, d) for d, k in steps)}
    return {**row, "drafted_per_step": drafted, "accepted_per_step": accepted, "overlap": None}


def one_text() -> list[dict[str, Any]]:
    """Ten tokens after the first: plain decoding takes 1 s for each. With two drafted at a time there are four calls;
    8 tokens drafted in 2.4 s, 4.8 s of verifying, 0.4 s of the rest.
    """
    plain = run(Arm(-1, 0), (0.0, 10.0, 0.0, 0.0), [(0, 0)] * 10)
    arm = run(Arm(0, 2), (2.4, 4.8, 0.3, 0.1), [(2, 2), (2, 2), (2, 0), (2, 2)])
    place = {"prompt": "a", "cluster": "a", "task": "t"}
    return [{"key": "time/a", **place, "length": 11, "runs": [plain, arm]}]


def test_one_text_by_hand() -> None:
    found = speed_explained.explain(one_text(), Arm(0, 2), resamples=50)
    assert (found.alpha.value, found.block, found.tokens.value, found.drafted) == (6 / 7, 6 / 8, 10 / 4, 8 / 4)
    assert (found.c, found.v, found.o) == pytest.approx((0.3, 1.2, 0.1))
    assert found.tokens_iid == pytest.approx(1 + 6 / 7 + 36 / 49)
    assert found.leviathan == pytest.approx(found.tokens_iid / 1.6)
    assert found.iid == pytest.approx(found.tokens_iid / 1.9)
    assert found.costed == pytest.approx(2.5 / 1.9) == found.measured.value
    assert found.acceptance_factor == pytest.approx(2.5 / found.tokens_iid)
    assert found.cost_factor == pytest.approx(1.6 / 1.9)
    assert found.rest == pytest.approx(1)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_leviathans_value_times_the_three_factors_is_what_the_clock_says(tmp_path: Path, temperature: float) -> None:
    cards = [make.card("SFT-control", 0), make.card("KD", 0)]
    rows = make.speedup(tmp_path, cards, temperature=temperature, noise=0.1, tasks=("x", "y")).rows
    for arm in speeds.arms(rows):
        for task in (None, "x"):
            found = speed_explained.explain(rows, arm, task, resamples=20)
            assert found.leviathan and found.cost_factor and found.rest
            product = found.leviathan * found.acceptance_factor * found.cost_factor * found.rest
            assert product == pytest.approx(speeds.speedup(rows, arm, "decode", task).value)
            assert 0.9 < found.rest < 1.1


def test_the_costs_are_those_the_record_was_made_with(tmp_path: Path) -> None:
    rows = make.speedup(tmp_path, make.card("KD", 0), costs=[0.25], noise=0.0).rows
    costs = speed_explained.in_place(rows, Arm(0, 5))
    assert costs is not None
    assert costs.c == pytest.approx(0.25, rel=0.02) and costs.o == pytest.approx(0.012, rel=0.02)
    drafted = speeds.acceptance(rows, Arm(0, 5), "drafted").value
    assert costs.v == pytest.approx(1 + 0.03 * drafted, rel=0.02)


def test_an_engine_without_timers_leaves_its_costs_unknown(tmp_path: Path) -> None:
    rows = make.speedup(tmp_path, make.card("KD", 0), engine="vllm", batches=(1, 4)).rows
    alone, together = (speed_explained.explain(rows, Arm(0, 3, batch), resamples=20) for batch in (1, 4))
    assert alone.measured.value > 1 and math.isnan(together.measured.value)
    for found in (alone, together):
        assert found.tokens.value > 2
        assert (found.c, found.leviathan, found.costed, found.cost_factor, found.rest) == (None,) * 5


def test_a_draft_that_was_never_timed_is_nothing() -> None:
    found = speed_explained.explain(one_text(), Arm(1, 2), resamples=20)
    assert math.isnan(found.alpha.value) and found.c is None and math.isnan(found.measured.value)
    assert speed_explained.predicted(one_text(), 1) == []


# ---- any draft length, from one text ------------------------------------------------------------


def test_a_text_read_once_and_the_cost_of_calls_foretell_every_draft_length(tmp_path: Path) -> None:
    """The clock without noise: predicted is measured, but that the cost of accepting is one median for all texts."""
    rows = make.speedup(tmp_path, make.card("KD", 0), n=20, gammas=(1, 2, 4, 7), noise=0.0).rows
    found = speed_explained.predicted(rows, 0, resamples=200)
    assert [one.gamma for one in found] == [1, 2, 3, 4, 5, 6, 7]
    for one in found:
        assert one.speedup and one.speedup.low <= one.speedup.value <= one.speedup.high
        assert (one.measured is None) == (one.gamma not in (1, 2, 4, 7)) == (one.ratio is None)
        if one.measured and one.ratio:
            assert one.tokens_per_call == pytest.approx(one.measured_tokens)
            assert one.speedup.value == pytest.approx(one.measured.value, rel=0.002)
            assert 0.998 < one.ratio.low <= one.ratio.value <= one.ratio.high < 1.002
    assert sum(one.best or 0 for one in found) == pytest.approx(1)
    fastest = max(found, key=lambda one: one.speedup.value if one.speedup else 0)
    assert [one.gamma for one in found if one.regret == 0] == [fastest.gamma]
    assert all((one.regret or 0) >= 0 for one in found)


def test_a_prediction_needs_no_speculative_run(tmp_path: Path) -> None:
    """Without the runs of the draft, all that changes is that accepting costs nothing."""
    rows = make.speedup(tmp_path, make.card("KD", 0), n=20).rows
    plain_alone = [
        {**row, "runs": [run for run in row["runs"] if run["gamma"] == 0]} if "runs" in row else row for row in rows
    ]
    before = speed_explained.predicted(plain_alone, 0, most=5, resamples=50)
    after = speed_explained.predicted(rows, 0, resamples=50)
    for one, two in zip(before, after, strict=True):
        assert one.speedup and two.speedup
        assert one.tokens_per_call == two.tokens_per_call
        assert 1 < one.speedup.value / two.speedup.value < 1.02
        assert one.measured is None and one.survival is None


def test_the_longest_run_foretells_the_shorter_ones(tmp_path: Path) -> None:
    rows = make.speedup(tmp_path, make.card("KD", 0), n=60, gammas=(1, 2, 3, 6)).rows
    found = speed_explained.predicted(rows, 0, resamples=20)
    for one in found:
        # The end of a text, where steps are cut short, is in the one and not in the other.
        assert one.survival == pytest.approx(one.tokens_per_call, rel=0.07)
    rates = [p.survival.value for p in speeds.positions(rows, Arm(0, 6), resamples=20)]
    assert [one.survival for one in found] == pytest.approx(speed_model.survival_tokens(rates)[1:])


def test_a_sampled_texts_expectation_is_what_runs_have_on_the_mean(tmp_path: Path) -> None:
    rows = make.speedup(tmp_path, make.card("KD", 0), n=60, temperature=1.0, repetitions=5).rows
    for one in speed_explained.predicted(rows, 0, resamples=50):
        if one.measured_tokens:
            assert one.tokens_per_call == pytest.approx(one.measured_tokens, rel=0.03)


def test_without_the_cost_of_calls_there_are_target_calls_and_no_speed(tmp_path: Path) -> None:
    rows = make.speedup(tmp_path, make.card("KD", 0), engine="vllm").rows
    for one in speed_explained.predicted(rows, 0, resamples=20):
        assert one.tokens_per_call > 1
        assert (one.speedup, one.ratio, one.best, one.regret) == (None,) * 4
    longer = speed_explained.predicted(make.speedup(tmp_path, make.card("KD", 0)).rows, 0, most=9, resamples=20)
    assert len(longer) == 9 and longer[0].speedup is None, "no call with 10 rows was timed"


def test_without_a_text_read_again_nothing_is_foretold(tmp_path: Path) -> None:
    assert speed_explained.predicted(make.speedup(tmp_path, make.card("KD", 0), text=False).rows, 0) == []
    failed = make.speedup(tmp_path, make.card("KD", 1), violation=True)
    assert speed_explained.predicted(failed.rows, 0) == []
