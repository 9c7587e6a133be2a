"""From rows to numbers: every statistic on rows small enough to check by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import record_factory as make
from hypothesis import given
from hypothesis import strategies as st

from selectkd_eval import measures, stats, win_rates
from selectkd_eval.errors import InputError


def answer(problem: str, correct: int, task: str = "t", **more: Any) -> dict[str, Any]:
    return {"task": task, "problem": problem, "correct": correct, **more}


def verdict(prompt: str, word: str, order: str = "candidate-first", seed: int = 0, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "order": order, "verdict": word, "seed": seed, **more}


def test_pass_at_1_pools_the_samples_of_a_problem() -> None:
    found = measures.pass_at_1([answer("a", 1), answer("a", 0), answer("b", 1)], "t")
    assert found.prompts == ("t/a", "t/b")
    assert found.num.tolist() == [1, 1]
    assert found.den.tolist() == [2, 1]
    assert found.value == pytest.approx(2 / 3)


def test_a_failed_answer_is_not_a_wrong_answer() -> None:
    rows = [answer("a", 1), {"task": "t", "problem": "b", "error": "out of memory"}]
    found = measures.pass_at_1(rows, "t")
    assert found.value == 1.0
    assert found.prompts == ("t/a", "t/b"), "its problem stays, so that methods can be paired"


def test_pass_at_1_keeps_tasks_apart() -> None:
    rows = [answer("a", 1, task="x"), answer("a", 0, task="y")]
    assert measures.pass_at_1(rows, "x").value == 1.0
    assert measures.pass_at_1(rows).value == 0.5


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("excluded", 2 / 3), ("half", 2.5 / 4), ("half-per-order", 2.5 / 4)],
)
def test_the_tie_rules_on_two_wins_a_loss_and_a_tie(rule: str, expected: float) -> None:
    rows = [verdict(p, w) for p, w in zip("abcd", ("candidate", "candidate", "baseline", "tie"), strict=True)]
    assert win_rates.win_rate_terms(rows, rule).value == pytest.approx(expected)


def test_the_mean_of_two_orders_is_distillm2s_arithmetic() -> None:
    """Counts that a user of DistiLLM-2 published: 69 wins and 15 ties of 218, then 49 and 8."""
    rows = []
    for order, wins, ties in (("candidate-first", 69, 15), ("baseline-first", 49, 8)):
        words = ["candidate"] * wins + ["tie"] * ties + ["baseline"] * (218 - wins - ties)
        rows += [verdict(f"p{i}", word, order) for i, word in enumerate(words)]
    assert win_rates.win_rate_terms(rows, "half-per-order").value == pytest.approx(0.2970183486238532)


def test_an_order_with_fewer_readable_verdicts_weighs_the_same() -> None:
    rows = [verdict(f"p{i}", "candidate") for i in range(8)]
    rows += [verdict("p0", "baseline", "baseline-first")]
    rows += [verdict(f"p{i}", "unreadable", "baseline-first") for i in range(1, 8)]
    assert win_rates.win_rate_terms(rows, "half-per-order").value == pytest.approx(0.5)
    assert win_rates.win_rate_terms(rows, "half").value == pytest.approx(8 / 9)


def test_agreement_counts_a_win_only_when_both_orders_say_so() -> None:
    rows = [verdict("a", "candidate"), verdict("a", "candidate", "baseline-first")]
    rows += [verdict("b", "candidate"), verdict("b", "baseline", "baseline-first")]
    found = win_rates.win_rate_terms(rows, "agreement")
    assert found.num.tolist() == [1.0, 0.5]
    assert found.den.tolist() == [1.0, 1.0]


def test_a_preference_is_a_share_of_a_win() -> None:
    assert win_rates.win_rate_terms([verdict("a", "candidate", preference=0.75)]).value == 0.75


def test_an_unknown_tie_rule_is_named_with_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'half'"):
        win_rates.win_rate_terms([], "halv")


def test_swapped_sides_mirror_the_win_rate() -> None:
    words = ["candidate", "baseline", "tie", "candidate", "unreadable", "candidate"]
    swap = {"candidate": "baseline", "baseline": "candidate"}
    rows = [verdict(f"p{i}", word) for i, word in enumerate(words)]
    mirrored = [{**row, "verdict": swap.get(row["verdict"], row["verdict"])} for row in rows]
    for rule in win_rates.TIES:
        one, other = (win_rates.win_rate_terms(side, rule).value for side in (rows, mirrored))
        assert one + other == pytest.approx(1.0)


def test_unreadable_and_failed_comparisons_bound_the_win_rate(tmp_path: Path) -> None:
    record = make.winrate(tmp_path, make.card("KD", 0), make.card("SFT-control", 0), n=10)
    record.rows[0]["verdict"] = "unreadable"
    low, high = win_rates.win_rate_bounds(record)
    assert low < win_rates.win_rate(record).value < high
    assert win_rates.verdict_counts(record.rows)["unreadable"] == 1


def test_a_prompt_that_only_tied_keeps_methods_pairable() -> None:
    a = win_rates.win_rate_terms([verdict("p", "candidate"), verdict("q", "tie")])
    b = win_rates.win_rate_terms([verdict("p", "baseline"), verdict("q", "candidate")])
    assert a.prompts == b.prompts
    assert measures.delta(a, b, 100)[0].value == pytest.approx(1.0 - 0.5)


@pytest.mark.parametrize("rule", sorted(win_rates.TIES))
def test_a_failed_comparison_is_in_no_sum_and_keeps_methods_pairable(rule: str) -> None:
    failed = {"prompt": "q", "seed": 0, "order": "candidate-first", "error": "no reply"}
    a = win_rates.win_rate_terms([verdict("p", "candidate"), failed, verdict("r", "candidate")], rule)
    b = win_rates.win_rate_terms([verdict("p", "baseline"), verdict("q", "candidate"), verdict("r", "baseline")], rule)
    assert a.den.tolist() == [1, 0, 1]
    assert measures.delta(a, b, 100)[0].value == pytest.approx(1 - 1 / 3)


def test_a_differences_n_counts_the_prompts_that_were_decided() -> None:
    a = win_rates.win_rate_terms([verdict("p", "candidate"), verdict("q", "tie"), verdict("r", "tie")])
    b = win_rates.win_rate_terms([verdict("p", "baseline"), verdict("q", "candidate"), verdict("r", "tie")])
    assert measures.delta(a, b, 100)[0].n == 2


def test_different_prompts_are_never_paired() -> None:
    a = measures.terms([("p", 1, 1), ("q", 1, 1)])
    b = measures.terms([("p", 1, 1), ("r", 1, 1), ("s", 0, 1)])
    with pytest.raises(InputError, match="1 only in the first, 2 only in the second, 1 in both"):
        measures.delta(a, b)


def test_a_method_against_itself_differs_by_exactly_nothing() -> None:
    a = measures.terms([(f"p{i}", i % 2, 1) for i in range(20)])
    found, p = measures.delta(a, a, 200)
    assert (found.value, found.low, found.high, p) == (0, 0, 0, 1.0)


def test_pooling_seeds_does_not_make_more_prompts() -> None:
    parts = [measures.pass_at_1([answer("a", 1), answer("b", s)], "t") for s in (0, 1, 1)]
    found = measures.pool(parts)
    assert found.den.tolist() == [3, 3]
    assert found.estimate(100).n == 2


def test_all_correct_gets_wilsons_interval() -> None:
    found = measures.pass_at_1([answer(str(i), 1) for i in range(30)], "t").estimate()
    assert found == stats.wilson(30, 30)


def test_nothing_measured_is_nan_and_never_0() -> None:
    assert math.isnan(measures.terms([]).estimate().value)


def test_tar_macro_is_the_mean_of_means_and_pooled_is_not() -> None:
    rows = [
        {"student": 0, "prompt": "a", "n_tokens": 10, "greedy": 5},
        {"student": 0, "prompt": "b", "n_tokens": 30, "greedy": 30},
        {"student": 1, "prompt": "a", "n_tokens": 10, "greedy": 0},
    ]
    assert measures.tar(rows, 0).value == pytest.approx(0.75)
    assert measures.tar(rows, 0, macro=False).value == pytest.approx(35 / 40)


def test_curves_are_sorted_by_step_and_skip_what_is_missing() -> None:
    rows = [
        {"event": "step", "step": 10, "loss": 1.0},
        {"event": "step", "step": 2, "loss": 3.0},
        {"event": "step", "step": 5, "loss": None},
        {"event": "validation", "step": 5, "loss": 9.0},
    ]
    steps, values = measures.curve(rows, "step", "loss")
    assert steps.tolist() == [2, 10]
    assert values.tolist() == [3, 1]


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=4), min_size=1, max_size=12))
def test_an_estimate_lies_inside_its_interval(outcomes: list[list[int]]) -> None:
    rows = [answer(f"p{i}", correct) for i, problem in enumerate(outcomes) for correct in problem]
    found = measures.pass_at_1(rows, "t").estimate(200)
    assert 0 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1


def test_the_mean_of_two_tasks_weighs_tasks_and_not_prompts() -> None:
    easy, hard = measures.terms([(f"e{i}", 1, 1) for i in range(30)]), measures.terms([("h", 0, 1), ("i", 0, 1)])
    found, p = stats.mean_of_ratios([(easy.num, easy.den), (hard.num, hard.den)], resamples=200)
    assert found.value == pytest.approx(0.5)
    assert math.isnan(p)


def test_the_difference_of_two_equal_means_is_exactly_nothing() -> None:
    groups = [(t.num, t.den) for t in (measures.terms([(str(i), i % 2, 1) for i in range(n)]) for n in (20, 20))]
    found, p = stats.mean_of_ratios(groups, groups, resamples=200)
    assert (found.value, found.low, found.high, p) == (0, 0, 0, 1.0)
