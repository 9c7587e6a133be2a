"""Every command of the demo is one that a user could type, and the arms differ only in what they are about."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from selectkd_eval.cli import parse
from selectkd_eval.demo.plan import ARMS, Plan
from selectkd_eval.verbs import DemoOptions


def test_the_words_of_every_command_parse_back_to_its_options() -> None:
    for quick in (False, True):
        plan = Plan(DemoOptions(quick=quick, out=Path("x")))
        for job in [*(job for stage in plan.stages() for job in stage.jobs), plan.report()]:
            assert parse(job.arguments) == job.options


def test_the_arms_share_student_seed_steps_and_the_distilled_ones_share_the_text() -> None:
    plan = Plan(DemoOptions())
    control, *distilled = [plan.train(arm, 1).options for arm in ARMS]
    for options in distilled:
        same = dataclasses.replace(
            options, name="", recipe="", data="", method="", save=None, verifier="none"
        ) == dataclasses.replace(control, name="", recipe="", data="", method="", save=None, verifier="none")
        assert same
    assert len({options.data for options in distilled}) == 1 != control.data


def test_the_noisy_teacher_is_noisy_for_every_distilled_arm_and_for_no_other() -> None:
    plan = Plan(DemoOptions(noisy_teacher=True))
    assert [plan.train(arm, 0).options.teacher_noise for arm in ARMS] == [0.0, 0.3, 0.3, 0.3]
    assert plan.records != Plan(DemoOptions()).records


def test_all_drafts_are_timed_in_one_command_the_undistilled_student_among_them() -> None:
    for quick in (False, True):
        plan = Plan(DemoOptions(quick=quick))
        greedy = next(plan.speedups()).options
        assert greedy.temperature == 0
        assert greedy.draft == (plan.model("draft"), plan.model("student"), *plan.first_students())
        assert len(set(greedy.draft)) == 2 + len(ARMS)
        assert (greedy.limit or 0) >= 3
