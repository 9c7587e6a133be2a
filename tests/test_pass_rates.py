"""pass@k over a problem's answers, and the size of difference that a run could settle."""

from __future__ import annotations

import numpy as np
import pytest
import record_factory as make
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from selectkd_eval import measures, pass_rates, stats


def rows(right: list[int], answers: int, task: str = "t") -> list[dict[str, object]]:
    """`right[i]` right answers of `answers` to problem i, each under its own seed."""
    return [
        make.answer_row(task, f"p{i}", "right" if place < c else "wrong", seed=place)
        for i, c in enumerate(right)
        for place in range(answers)
    ]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_pass_at_1_is_the_share_and_pass_at_n_that_any_is_right(right: list[int]) -> None:
    one, every = (pass_rates.pass_at(rows(right, 5), "t", k) for k in (1, 5))
    assert one.value == pytest.approx(np.mean(right) / 5)
    assert every.value == pytest.approx(np.mean([c > 0 for c in right]))
    values = [pass_rates.pass_at(rows(right, 5), "t", k).value for k in range(1, 6)]
    assert values == sorted(values), "more answers never do worse"


def test_pass_at_1_is_what_tables_print() -> None:
    some = rows([0, 3, 5], 5)
    assert pass_rates.pass_at(some, "t").value == measures.pass_at_1(some, "t").value


def test_tasks_are_kept_apart() -> None:
    both = rows([1], 2, "t") + rows([2], 2, "u")
    assert pass_rates.pass_at(both, "t", 2).prompts == ("t/p0",)


def test_a_failed_answer_shrinks_its_problem() -> None:
    some = rows([2, 2], 3)
    some[2] = {"key": "t/p0/2/0", "task": "t", "problem": "p0", "seed": 2, "sample": 0, "error": "refused"}
    found = pass_rates.pass_at(some, "t", 2)
    assert found.num.tolist() == [1.0, pytest.approx(1.0)], "2 of 2 right, and 2 of 3: no pair without a right one"
    assert pass_rates.pass_at(some, "t", 3).den.tolist() == [0.0, 1.0]


def test_pass_at_k_at_the_edge_is_wilsons() -> None:
    found = pass_rates.pass_at(rows([3] * 20, 3), "t", 2).estimate()
    assert (found.value, found.high, found.method) == (1.0, 1.0, "Wilson")


def test_more_answers_per_problem_settle_less() -> None:
    """What sampling adds to the variance goes down with the number of answers; what problems add stays."""
    rng = np.random.default_rng(3)
    chance = rng.beta(1, 1, 300)
    sizes = {}
    for answers in (1, 8):
        counts = [int(c) for c in rng.binomial(answers, chance)]
        sizes[answers] = pass_rates.detectable_alone(measures.pass_at_1(rows(counts, answers), "t"))
    spread = stats.detectable(np.sqrt(2 * chance.var() / 300))
    assert spread < sizes[8] < sizes[1]
    assert sizes[1] == pytest.approx(stats.detectable(np.sqrt(2 * 0.25 / 300)), rel=0.05)


@pytest.mark.parametrize("word", [0, 1])
def test_a_run_that_is_all_right_could_not_settle_everything(word: int) -> None:
    found = pass_rates.detectable_alone(measures.pass_at_1(rows([word] * 100, 1), "t"))
    p = 2 / 104
    assert found == pytest.approx(2.8016 * (2 * p * (1 - p) / 100) ** 0.5, rel=1e-4)
    assert np.isnan(pass_rates.detectable_alone(measures.terms([])))


def test_the_paired_interval_is_the_textbooks_for_many_problems() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.integers(0, 2, 900), rng.integers(0, 2, 900)
    found = pass_rates.compare(rows([int(x) for x in a], 1), rows([int(x) for x in b], 1), "t")
    assert found is not None
    half = 1.96 * scipy.stats.sem(a - b)
    assert found.delta.value == pytest.approx((a - b).mean())
    assert (found.delta.low, found.delta.high) == pytest.approx(
        ((a - b).mean() - half, (a - b).mean() + half), abs=0.004
    )


def test_runs_without_a_common_problem_are_not_compared() -> None:
    assert pass_rates.compare(rows([1], 1), [], "t") is None
