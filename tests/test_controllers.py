"""Schedules follow their papers' rules, stay in their bounds, and continue where they were saved."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selectkd_eval.controllers import CONTROLLERS, Anchor, Controller, Moment
from selectkd_eval.errors import InputError
from selectkd_eval.objective import LossSpec
from selectkd_eval.recipes import RECIPES, recipe

LOSSES = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=60)


def controller(name: str, method: str, **changes: float) -> Controller:
    return CONTROLLERS[name](recipe(method, changes=changes).constants)


def moments(steps: int, epochs: int = 1) -> list[Moment]:
    return [Moment(step, steps, (step - 1) * epochs // steps, float(epochs)) for step in range(1, steps + 1)]


def run(schedule: Controller, losses: Sequence[float], epochs: int = 1) -> list[dict[str, float]]:
    """The readings after each update."""
    seen = []
    for moment, loss in zip(moments(len(losses), epochs), losses, strict=True):
        schedule.apply(LossSpec(), moment, [])
        schedule.observe(loss, moment)
        seen.append(schedule.readings())
    return seen


def pair(p_teacher: float, q_teacher: float, p_student: float, q_student: float, tokens: int = 3) -> list[Anchor]:
    """One response of each source, whose per-token geometric means are the given probabilities."""
    return [
        Anchor("teacher", tokens * math.log(p_teacher), tokens * math.log(q_teacher), tokens),
        Anchor("student", tokens * math.log(p_student), tokens * math.log(q_student), tokens),
    ]


# AdaKD's LATF


def test_the_share_falls_with_the_loss_and_recovers_with_it() -> None:
    # Without smoothing Lbar is the loss itself; without warm-up the first loss is the reference.
    latf = controller("latf", "adakd", ema=0.0, warmup=0.0, epsilon=0.1, delta=0.5)
    shares = [row["share"] for row in run(latf, [10.0, 9.5, 8.9, 8.5, 7.9, 9.0, 10.0, 30.0, 90.0])]
    #                                   reference: 10  10   8.9  8.9  7.9  9.0  10    30    90
    assert shares == pytest.approx([1.0, 1.0, 0.5, 0.5, 0.25, 0.375, 0.5625, 0.84375, 1.0])


def test_the_smoothed_loss_starts_at_the_untrained_students() -> None:
    latf = controller("latf", "adakd", ema=0.9)
    run(latf, [4.0, 2.0])
    assert latf.state_dict()["smoothed"] == pytest.approx(0.9 * 4 + 0.1 * 2)


def test_nothing_is_left_out_during_the_warm_up() -> None:
    latf = controller("latf", "adakd", ema=0.0, warmup=0.5)
    shares = [row["share"] for row in run(latf, [10.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.2])]
    assert shares[:4] == [1.0] * 4  # the reference is the loss at update 4 of 8
    assert shares[4:] == pytest.approx([0.95**n for n in (1, 2, 3, 4)])


def test_the_share_reaches_the_objective_of_the_next_update() -> None:
    latf = controller("latf", "adakd", ema=0.0, warmup=0.0)
    spec = LossSpec(selection="hardest")
    run(latf, [10.0, 5.0])
    assert latf.apply(spec, Moment(3, 10, 0, 1.0), []) == replace(spec, share=0.95)


@given(LOSSES, st.floats(0, 0.5))
def test_the_share_stays_between_its_floor_and_one(losses: list[float], floor: float) -> None:
    latf = controller("latf", "adakd", ema=0.5, warmup=0.1, delta=0.4, floor=floor)
    assert all(max(floor, 1e-300) <= row["share"] <= 1 for row in run(latf, losses))


# TAID's t


def test_the_target_follows_algorithm_1() -> None:
    taid = controller("taid", "taid", t_start=0.4, t_end=1.0, alpha=0.5, beta=0.9)
    seen = [row["target"] for row in run(taid, [4.0, 2.0, 2.0, 2.0])]
    assert seen[0] == 0.4  # no loss before it
    momentum = 0.1 * (4 - 2) / 4
    second = 0.4 + 0.5 / (1 + math.exp(-momentum)) * 0.6
    assert seen[1] == pytest.approx(max(0.4 + 0.6 * 2 / 4, second))
    assert seen[1] == pytest.approx(0.7)  # the straight line is ahead
    assert seen[2] == pytest.approx(0.4 + 0.6 * 3 / 4)
    assert seen[3] == 1.0


def test_a_falling_loss_moves_the_target_ahead_of_the_line() -> None:
    falling = controller("taid", "taid", alpha=0.5, beta=0.0)
    rising = controller("taid", "taid", alpha=0.5, beta=0.0)
    ahead = run(falling, [1.0, 0.2] + [0.2] * 998)[1]["target"]
    behind = run(rising, [1.0, 5.0] + [5.0] * 998)[1]["target"]
    assert ahead == pytest.approx(0.4 + 0.5 / (1 + math.exp(-0.8)) * 0.6)
    assert behind == pytest.approx(0.4 + 0.5 / (1 + math.exp(4.0)) * 0.6)


def test_the_linear_variant_is_the_line() -> None:
    taid = CONTROLLERS["taid"](recipe("taid", "linear").constants)
    seen = [row["target"] for row in run(taid, [3.0, 1.0, 2.0, 0.1, 5.0])]
    assert seen == pytest.approx([0.4] + [0.4 + 0.6 * step / 5 for step in range(2, 6)])


@given(LOSSES)
def test_the_target_never_turns_back_and_ends_at_the_teacher(losses: list[float]) -> None:
    seen = [row["target"] for row in run(controller("taid", "taid"), losses)]
    assert all(0.4 <= t <= 1 for t in seen)
    assert seen == sorted(seen)
    assert len(losses) == 1 or seen[-1] == 1


# DistiLLM-2's contrast


def contrast(method: str = "distillm2", variant: str = "", **changes: float) -> tuple[Controller, LossSpec]:
    row = recipe(method, variant, changes)
    return CONTROLLERS["contrast"](row.constants), LossSpec(terms=row.terms)


def test_the_first_epoch_has_the_first_alpha() -> None:
    schedule, spec = contrast()
    for moment in moments(10, epochs=2)[:5]:
        terms = schedule.apply(spec, moment, pair(0.8, 0.1 * moment.step, 0.1, 0.4)).terms
        assert [term.parameters["alpha"] for term in terms] == [0.1, 0.1]


def test_alpha_makes_the_gap_that_is_learned_the_same_throughout() -> None:
    schedule, spec = contrast(alpha_low=0.0, alpha_high=1.0)
    first, second = moments(2, epochs=2)
    schedule.apply(spec, first, pair(0.8, 0.2, 0.1, 0.5))  # gaps 0.6 and 0.4
    terms = schedule.apply(spec, second, pair(0.9, 0.2, 0.1, 0.6)).terms  # 0.7 and 0.5: means 0.65 and 0.45
    for term, gap, mean in zip(terms, (0.7, 0.5), (0.65, 0.45), strict=True):
        alpha = float(term.parameters["alpha"])
        assert (1 - alpha) * gap == pytest.approx((1 - 0.1) * mean)


def test_easy_text_has_the_smallest_alpha_and_hard_text_the_largest() -> None:
    schedule, spec = contrast()
    moment = Moment(9, 10, 1, 2.0)
    schedule.apply(spec, moment, pair(0.8, 0.2, 0.1, 0.5))
    easy_and_hard = schedule.apply(spec, moment, pair(0.5, 0.49, 0.1, 0.9)).terms
    assert [term.parameters["alpha"] for term in easy_and_hard] == [0.01, 0.1]
    crossed = schedule.apply(spec, moment, pair(0.2, 0.5, 0.5, 0.2)).terms
    assert [term.parameters["alpha"] for term in crossed] == [0.01, 0.01]


def test_long_responses_do_not_underflow() -> None:
    schedule, spec = contrast()
    schedule.apply(spec, Moment(6, 10, 1, 2.0), pair(0.5, 0.1, 0.1, 0.5, tokens=5000))
    gap = schedule.state_dict()["gaps"]["teacher"][0]
    assert gap == pytest.approx(0.4)


def test_an_update_without_a_sources_text_leaves_its_alpha() -> None:
    schedule, spec = contrast()
    moment = Moment(6, 10, 1, 2.0)
    schedule.apply(spec, moment, pair(0.8, 0.2, 0.1, 0.5))
    easy = schedule.apply(spec, moment, pair(0.5, 0.49, 0.1, 0.11)).terms
    assert schedule.apply(spec, moment, []).terms == easy


def test_the_weight_goes_from_half_to_the_students_text() -> None:
    schedule, spec = contrast()
    weights = []
    for moment in moments(10, epochs=2):
        teacher, student = schedule.apply(spec, moment, pair(0.8, 0.2, 0.1, 0.5)).terms
        assert teacher.coefficient + student.coefficient == 1
        weights.append(student.coefficient)
    assert weights == pytest.approx([0.5] * 5 + [0.6, 0.7, 0.8, 0.9, 1.0])


def test_the_printed_weight_drops_the_first_term_for_the_whole_last_epoch() -> None:
    schedule, spec = contrast("distillm2", "as-printed")
    found = [schedule.apply(spec, moment, []).terms[1].coefficient for moment in moments(12, epochs=3)]
    assert found[:4] == pytest.approx([1 / 3 + 1 / 4, 1 / 3 + 2 / 4, 1, 1])
    assert found[4:8] == pytest.approx([2 / 3 + 1 / 4, 1, 1, 1])
    assert found[8:] == [1, 1, 1, 1]


def test_two_terms_over_pairs_are_the_papers_objective() -> None:
    """1/(2B) sum over pairs of (1 - beta_c) SKL + beta_c SRKL: per_seq_mean over the 2B texts divides by 2B already."""
    schedule, spec = contrast()
    terms = schedule.apply(spec, Moment(7, 10, 1, 2.0), pair(0.8, 0.2, 0.1, 0.5)).terms
    per_text = {"teacher": [3.0, 1.0], "student": [2.0, 6.0]}  # sequence means of SKL and of SRKL, two pairs
    ours = sum(term.coefficient * value for term in terms for value in per_text[term.source]) / 4
    papers = sum(0.3 * skl + 0.7 * srkl for skl, srkl in zip(*per_text.values(), strict=True)) / (2 * 2)
    assert ours == pytest.approx(papers)


@given(st.lists(st.tuples(*[st.floats(1e-6, 1.0)] * 4), min_size=1, max_size=30))
def test_alphas_and_weights_stay_in_their_bounds(probabilities: list[tuple[float, float, float, float]]) -> None:
    schedule, spec = contrast()
    for moment, four in zip(moments(len(probabilities), epochs=2), probabilities, strict=True):
        for term in schedule.apply(spec, moment, pair(*four)).terms:
            assert 0.01 <= term.parameters["alpha"] <= 0.1
            assert 0 <= term.coefficient <= 1
        assert 0.5 <= schedule.readings()["beta_c"] <= 1


# All of them


def trace(schedule: Controller, spec: LossSpec, when: Sequence[Moment]) -> list[Any]:
    seen: list[Any] = []
    for moment in when:
        level = 1 / (1 + moment.step)
        seen.append(schedule.apply(spec, moment, pair(0.9, level, 0.05, level)))
        schedule.observe(3 * level + 0.1 * (moment.step % 3), moment)
        schedule.validated(level)
        seen.append(schedule.readings())
    return seen


USED = [(name, row.name) for row in RECIPES.values() for name in row.controllers]


@pytest.mark.parametrize(("name", "method"), USED)
def test_a_saved_schedule_continues_as_if_it_had_not_stopped(name: str, method: str) -> None:
    row = recipe(method)
    spec, when = LossSpec(terms=row.terms, selection=row.selection), moments(40, epochs=4)
    unbroken, broken, resumed = (CONTROLLERS[name](row.constants) for _ in range(3))
    whole = trace(unbroken, spec, when)
    before = trace(broken, spec, when[:23])
    resumed.load_state_dict(json.loads(json.dumps(broken.state_dict())))
    assert resumed.readings() == broken.readings()
    assert before + trace(resumed, spec, when[23:]) == whole
    assert resumed.state_dict() == unbroken.state_dict()


@pytest.mark.parametrize(("name", "method"), USED)
def test_a_state_of_another_schedule_is_not_taken(name: str, method: str) -> None:
    with pytest.raises(ValueError, match="other fields"):
        CONTROLLERS[name](recipe(method).constants).load_state_dict({"phi": 0.3})


@pytest.mark.parametrize(
    ("name", "method", "constant"),
    [("latf", "adakd", "ema"), ("taid", "taid", "t_end"), ("contrast", "distillm2", "beta0")],
)
def test_a_constant_that_makes_no_schedule_is_refused(name: str, method: str, constant: str) -> None:
    with pytest.raises(InputError, match=f"{constant} lies in"):
        controller(name, method, **{constant: 1.5})


def test_every_controller_is_used_and_has_a_recipe() -> None:
    assert {name for name, _ in USED} == CONTROLLERS.keys()
