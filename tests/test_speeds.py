"""Ratios of seconds and acceptances from rows small enough to check by hand, and from made-up records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import record_factory as make
from hypothesis import given, settings
from hypothesis import strategies as st

from selectkd_eval import lossless, measures, speeds
from selectkd_eval.errors import InputError
from selectkd_eval.speeds import Arm

G3 = Arm(0, 3)


def run(draft: int, gamma: int, wall: float, **more: Any) -> dict[str, Any]:
    head = {"rep": 0, "place": 0, "draft": draft, "gamma": gamma, "batch": 1, "control": False}
    return {**head, "wall_s": wall, **more}


def timed(prompt: str, runs: list[dict[str, Any]], task: str = "t", length: int = 11, **more: Any) -> dict[str, Any]:
    row = {"key": f"time/{prompt}", "prompt": prompt, "cluster": prompt, "task": task, "length": length}
    return {**row, "runs": runs, **more}


def traced(*steps: tuple[int, int]) -> dict[str, Any]:
    """The counts of a run from (drafted, accepted) of its steps."""
    drafted, accepted = [d for d, _ in steps], [k for _, k in steps]
    counts = {"drafted": sum(drafted), "accepted": sum(accepted), "steps": len(steps)}
    counts |= {"tokens": len(steps) + sum(accepted), "tested": sum(min(k + 1, d) for d, k in steps)}
    return {**counts, "drafted_per_step": drafted, "accepted_per_step": accepted}


def test_a_speedup_is_a_ratio_of_summed_medians() -> None:
    a = [run(-1, 0, s) for s in (1.0, 1.1, 9.0)] + [run(0, 3, s) for s in (0.5, 0.6, 0.4)]
    b = [run(-1, 0, s) for s in (2.0, 2.0, 2.0)] + [run(0, 3, s) for s in (1.0, 1.0, 7.0)]
    rows = [timed("a", a), timed("b", b)]
    assert speeds.speedup(rows, G3).value == pytest.approx((1.1 + 2.0) / (0.5 + 1.0))
    assert speeds.arms(rows) == [G3]
    assert len(speeds.runs(rows)) == 12 and speeds.runs(rows)[0]["length"] == 11


def test_decoding_alone_is_timed_by_the_token_so_that_all_arms_count_as_many() -> None:
    """10 tokens after the first; an engine whose first step gave 4 of them timed the other 6."""
    plain = run(-1, 0, 3.0, decode_s=2.0, decode_tokens=10)
    rows = [timed("a", [plain, run(0, 3, 2.0, decode_s=0.6, decode_tokens=6)])]
    assert speeds.speedup(rows, G3, "decode").value == pytest.approx(2.0 / 1.0)
    assert speeds.seconds(rows[0], G3, "decode") == pytest.approx(1.0)
    with pytest.raises(InputError, match="clock"):
        speeds.speedup(rows, G3, "hours")


def test_what_an_engine_does_not_time_is_no_number() -> None:
    runs = [run(arm, gamma, 1.0, cpu_s=None, decode_s=None, decode_tokens=5) for arm, gamma in ((-1, 0), (0, 3))]
    rows = [timed("a", runs)]
    for clock in ("decode", "cpu_s"):
        assert speeds.speedup(rows, G3, clock).estimate() == measures.NOTHING
    assert speeds.acceptance(rows, G3, "overlap").estimate() == measures.NOTHING
    assert speeds.positions(rows, G3) == []


def test_a_text_timed_on_one_side_only_is_left_out() -> None:
    assert speeds.speedup([timed("a", [run(-1, 0, 1.0)])], G3).prompts == ()
    both = timed("b", [run(-1, 0, 1.0), run(0, 3, 0.5)])
    assert speeds.speedup([timed("a", [run(0, 3, 1.0)]), both], G3).prompts == ("b",)


def test_the_control_is_plain_decoding_over_itself_and_no_part_of_a_speedup() -> None:
    again = run(-1, 0, 1.25) | {"control": True}
    rows = [timed("a", [run(-1, 0, 1.0), again, run(0, 3, 0.5)])]
    assert speeds.control(rows).value == pytest.approx(0.8)
    assert speeds.speedup(rows, G3).value == 2


def test_the_turns_of_a_conversation_are_one_prompt_of_its_task() -> None:
    rows = [
        timed(name, [run(-1, 0, plain), run(0, 3, 1.0)], task) | {"cluster": cluster}
        for name, cluster, task, plain in (("a", "a", "x", 2.0), ("a#2", "a", "x", 3.0), ("b", "b", "y", 4.0))
    ]
    found = speeds.speedup(rows, G3)
    assert (found.prompts, found.num.tolist(), found.den.tolist()) == (("a", "b"), [5, 4], [2, 1])
    assert found.strata == ("x", "y")
    assert speeds.tasks(rows) == ["x", "y"]
    assert speeds.speedup(rows, G3, task="y").value == 4
    assert speeds.arms(rows, "z") == []


def test_every_batch_has_its_own_plain_decoding() -> None:
    wave = [run(-1, 0, 3.0) | {"batch": 4}, run(0, 3, 2.0) | {"batch": 4}]
    rows = [timed("a", [run(-1, 0, 1.0), run(0, 3, 0.5)]), timed("wave0", wave, key="batch4/wave0")]
    assert speeds.batches(rows) == [1, 4]
    assert [speeds.speedup(rows, arm).value for arm in speeds.arms(rows)] == [2, 1.5]


def test_each_acceptance_is_another_number() -> None:
    """Five drafted, two accepted, so three looked at; then two drafted and none accepted."""
    rows = [timed("a", [run(0, 5, 1.0, overlap=[0.5, 0.5, 0.25, 0.75], **traced((5, 2), (2, 0)))])]
    found = {what: speeds.acceptance(rows, Arm(0, 5), what).value for what in speeds.ACCEPTANCE}
    hand = {
        "alpha": 2 / 4,
        "block": 2 / 7,
        "tokens": 4 / 2,
        "accepted": 1,
        "drafted": 3.5,
        "share": 2 / 4,
        "overlap": 0.5,
    }
    assert found == pytest.approx(hand)
    with pytest.raises(InputError, match="acceptance"):
        speeds.acceptance(rows, Arm(0, 5), "rate")


def test_positions_by_hand() -> None:
    """Three steps of three and a last one that could draft but one, which bends no curve."""
    rows = [timed("a", [run(0, 3, 1.0, **traced((3, 3), (3, 1), (3, 0), (1, 1)))])]
    found = speeds.positions(rows, G3)
    assert [(p.drafted, p.tested, p.accepted) for p in found] == [(4, 4, 3), (3, 2, 1), (3, 1, 1)]
    assert [p.survival.value for p in found] == pytest.approx([3 / 4, 1 / 3, 1 / 3])
    assert [p.conditional.value for p in found] == pytest.approx([3 / 4, 1 / 2, 1])


steps = st.lists(st.integers(0, 4).flatmap(lambda d: st.tuples(st.just(d), st.integers(0, d))), min_size=1, max_size=9)


@settings(max_examples=50)
@given(st.lists(steps, min_size=1, max_size=5))
def test_positions_add_up_to_the_acceptances(texts: list[list[tuple[int, int]]]) -> None:
    rows = [timed(f"p{i}", [run(0, 4, 1.0, **traced(*trace))]) for i, trace in enumerate(texts)]
    found = speeds.positions(rows, Arm(0, 4), resamples=50)
    for what, part in (("block", "drafted"), ("alpha", "tested")):
        terms = speeds.acceptance(rows, Arm(0, 4), what)
        assert sum(p.accepted for p in found) == terms.num.sum()
        assert sum(getattr(p, part) for p in found) == terms.den.sum()
    assert all(p.accepted <= p.tested <= p.drafted for p in found)


def test_acceptance_is_resampled_by_prompt_but_where_every_token_was_accepted() -> None:
    def rows(rejected: list[int]) -> list[dict[str, Any]]:
        counts = [{"accepted": 40 - n, "tested": 40, "drafted": 40} for n in rejected]
        return [timed(f"p{i}", [run(0, 3, 1.0, **count)]) for i, count in enumerate(counts)]

    few = speeds.acceptance(rows([0] * 9 + [1] * 5 + [2] * 2), G3).estimate(2000)
    assert few.method.startswith("bootstrap") and few.high - few.low < 0.03
    everything = speeds.acceptance(rows([0] * 16), G3).estimate(2000)
    assert everything.method == "Wilson" and everything.low < 0.85


def test_the_text_read_again_is_a_mean_over_its_tokens() -> None:
    def row(prompt: str, same: list[int]) -> dict[str, Any]:
        return {"prompt": prompt, "cluster": prompt, "task": "t", "drafts": [{"draft": 0, "agreement": same}]}

    found = speeds.text([row("a", [1, 0]), row("b", [1, 1, 1])], 0)
    assert (found.num.tolist(), found.den.tolist()) == ([1, 3], [2, 3])
    assert speeds.text([row("a", [1, 0])], 1).prompts == ()
    with pytest.raises(InputError, match="quantity of the text"):
        speeds.text([], 0, "tar")


def test_a_record_of_an_earlier_version_is_refused() -> None:
    old = {"key": "p0/0/ar", "prompt": "p0", "rep": 0, "arm": "ar", "gamma": 0, "wall_s": 1.0}
    for ask in (speeds.arms, speeds.tasks, speeds.control, lambda rows: speeds.speedup(rows, G3)):
        with pytest.raises(InputError, match=r"earlier version.*run `speedup` again"):
            ask([old])


def test_a_failed_text_is_in_no_sum() -> None:
    failed = {"key": "time/b", "prompt": "b", "cluster": "b", "task": "t", "error": "too long"}
    good = timed("a", [run(-1, 0, 1.0), run(0, 3, 0.5)])
    assert speeds.speedup([failed, good], G3).prompts == ("a",)


# ---- comparisons ------------------------------------------------------------


def test_plain_decoding_cancels_within_one_record(tmp_path: Path) -> None:
    """Whatever plain decoding took, two drafts of one record differ by their own seconds alone."""
    rows = make.speedup(tmp_path, [make.card("SFT-control", 0), make.card("KD", 0)], n=30).rows
    a, b = Arm(1, 5), Arm(0, 5)
    slower = [
        {**row, "runs": [{**run, "wall_s": run["wall_s"] * (7 if run["gamma"] == 0 else 1)} for run in row["runs"]]}
        if "runs" in row
        else row
        for row in rows
    ]
    found, p = speeds.compared(rows, a, b, resamples=500)
    assert found.value == pytest.approx(speeds.speedup(rows, b).den.sum() / speeds.speedup(rows, a).den.sum())
    assert found.value == pytest.approx(speeds.speedup(rows, a).value / speeds.speedup(rows, b).value)
    again, same_p = speeds.compared(slower, a, b, resamples=500)
    assert (again.value, again.low, again.high, same_p) == pytest.approx((found.value, found.low, found.high, p))
    assert found.low > 1 and p < 0.01


def test_two_records_are_compared_by_the_ratio_of_their_speedups(tmp_path: Path) -> None:
    one = make.speedup(tmp_path / "a", make.card("KD", 0)).rows
    two = make.speedup(tmp_path / "b", make.card("SFT-control", 0), drift=1.1).rows
    found, p = speeds.compared(one, Arm(0, 5), Arm(0, 5), others=two, resamples=500)
    assert found.value == pytest.approx(speeds.speedup(one, Arm(0, 5)).value / speeds.speedup(two, Arm(0, 5)).value)
    assert found.low > 1 and p < 0.01
    other = make.speedup(tmp_path / "c", make.card("SFT-control", 0), n=10).rows
    with pytest.raises(InputError, match="same prompts"):
        speeds.compared(one, Arm(0, 5), Arm(0, 5), others=other)


def test_a_draft_against_itself_is_exactly_as_fast(tmp_path: Path) -> None:
    rows = make.speedup(tmp_path, make.card("KD", 0)).rows
    found, p = speeds.compared(rows, G3, G3, resamples=200)
    assert (found.value, found.low, found.high, p) == (1, 1, 1, 1)
    assert speeds.compared([], G3, G3)[0] == measures.NOTHING


def test_made_up_records_have_the_costs_they_were_made_with(tmp_path: Path) -> None:
    """A draft that is always right, of no cost, on a noiseless clock: gamma + 1 tokens for a call of that many rows."""
    made = {"skills": [2.0], "costs": [0.0], "noise": 0.0}
    rows = make.speedup(tmp_path, make.card("KD", 0), gammas=(1, 4), **made).rows
    assert speeds.control(rows).value == pytest.approx(1)
    assert speeds.text(rows, 0, "agreement").value > 0.97
    values = [speeds.speedup(rows, Arm(0, gamma), "decode").value for gamma in (1, 4)]
    assert np.allclose(values, [2 / 1.042, 5 / 1.132], rtol=0.06)


def test_a_record_that_failed_its_gate_has_no_speed(tmp_path: Path) -> None:
    for temperature in (0.0, 1.0):
        assert lossless.passed(make.speedup(tmp_path, make.card("KD", 0), temperature=temperature).rows)
    rows = make.speedup(tmp_path, make.card("KD", 1), violation=True).rows
    assert not lossless.passed(rows)
    assert speeds.arms(rows) == speeds.tasks(rows) == []
