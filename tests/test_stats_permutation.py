"""Swapped labels against enumeration, scipy and the rate of false alarms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from selectkd_eval.stats import mean_swap_test, paired_delta, sign_flip, swap_test

Arms = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def by_enumeration(num_a: np.ndarray, den_a: np.ndarray, num_b: np.ndarray, den_b: np.ndarray) -> float:
    """The p-value over all 2^N ways of swapping prompts, one by one; undefined ratios count as far out."""
    observed = abs(num_a.sum() / den_a.sum() - num_b.sum() / den_b.sum())
    as_far = 0
    for pattern in itertools.product((False, True), repeat=len(num_a)):
        swap = np.array(pattern)
        tops = np.where(swap, num_b, num_a).sum(), np.where(swap, num_a, num_b).sum()
        bottoms = np.where(swap, den_b, den_a).sum(), np.where(swap, den_a, den_b).sum()
        gap = abs(tops[0] / bottoms[0] - tops[1] / bottoms[1]) if all(bottoms) else math.inf
        as_far += gap >= observed - 1e-12
    return as_far / 2 ** len(num_a)


def arms(seed: int, n: int, shift: float = 0.0) -> Arms:
    """Wins and decided comparisons of two methods over the same prompts, three seeds each."""
    rng = np.random.default_rng(seed)
    chance = rng.beta(1, 1, n)
    den_a, den_b = rng.binomial(3, 0.85, n), rng.binomial(3, 0.85, n)
    num_a, num_b = rng.binomial(den_a, np.clip(chance + shift, 0, 1)), rng.binomial(den_b, chance)
    return tuple(values.astype(float) for values in (num_a, den_a, num_b, den_b))  # type: ignore[return-value]


outcomes = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))


@settings(max_examples=40, deadline=None)
@given(st.lists(outcomes, min_size=1, max_size=8))
def test_swapping_labels_is_the_count_over_all_swaps(prompts: list[tuple[int, int, int, int]]) -> None:
    wins_a, losses_a, wins_b, losses_b = np.array(prompts, dtype=float).T
    den_a, den_b = wins_a + losses_a, wins_b + losses_b
    p, name = swap_test(wins_a, den_a, wins_b, den_b, resamples=20_000)
    if not den_a.sum() or not den_b.sum():
        assert math.isnan(p) and name == "no data"
        return
    exact = by_enumeration(wins_a, den_a, wins_b, den_b)
    assert p == pytest.approx(exact, abs=6 * math.sqrt(exact * (1 - exact) / 20_000) + 1e-4)


def test_real_numbers_are_swapped_alike() -> None:
    rng = np.random.default_rng(1)
    num_a, den_a, num_b, den_b = rng.lognormal(size=(4, 10))
    exact = by_enumeration(num_a, den_a, num_b, den_b)
    p, _ = swap_test(num_a, den_a, num_b, den_b, resamples=50_000)
    assert p == pytest.approx(exact, abs=5 * math.sqrt(exact * (1 - exact) / 50_000))


def test_kinds_of_more_than_64_prompts_are_counted_in_full() -> None:
    # 130 prompts of one kind and 70 of another: with few kinds the enumeration is over two binomial numbers.
    num_a, den_a = np.r_[np.full(130, 2.0), np.full(70, 1.0)], np.r_[np.full(130, 3.0), np.full(70, 1.0)]
    num_b, den_b = np.r_[np.full(130, 2.0), np.full(70, 1.0)], np.r_[np.full(130, 2.0), np.full(70, 2.0)]
    observed = abs(num_a.sum() / den_a.sum() - num_b.sum() / den_b.sum())
    first, second = np.meshgrid(np.arange(131), np.arange(71), indexing="ij")
    bottom_a, bottom_b = 460 - first + second, 400 + first - second
    far = np.abs(330 / bottom_a - 330 / bottom_b) >= observed - 1e-12
    exact = (
        far * np.outer(scipy.stats.binom.pmf(range(131), 130, 0.5), scipy.stats.binom.pmf(range(71), 70, 0.5))
    ).sum()
    p, _ = swap_test(num_a, den_a, num_b, den_b, resamples=50_000)
    assert p == pytest.approx(exact, abs=5 * math.sqrt(exact * (1 - exact) / 50_000) + 1e-4)


def test_equal_denominators_leave_the_exact_test_of_the_differences() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.binomial(3, 0.5, 60), rng.binomial(3, 0.4, 60)
    assert swap_test(a, np.full(60, 3), b, np.full(60, 3)) == sign_flip(a - b)
    assert swap_test(a, np.full(60, 3), a, np.full(60, 3)) == (1.0, "no difference on any prompt")


def test_swapping_labels_is_scipys_permutation_test() -> None:
    num_a, den_a, num_b, den_b = arms(3, 300, 0.03)
    index = np.arange(300)

    def gap(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        # scipy swaps entries of two samples: entry i stands for prompt i of method a, entry 300 + i for it of b.
        top, bottom = np.r_[num_a, num_b], np.r_[den_a, den_b]
        return top[a].sum(axis) / bottom[a].sum(axis) - top[b].sum(axis) / bottom[b].sum(axis)

    theirs = scipy.stats.permutation_test(
        (index, index + 300),
        gap,
        permutation_type="samples",
        vectorized=True,
        n_resamples=10_000,
        batch=500,
        rng=np.random.default_rng(0),
    ).pvalue
    p, name = swap_test(num_a, den_a, num_b, den_b)
    # scipy doubles the smaller tail; near symmetry that is the two-sided count.
    assert p == pytest.approx(theirs, abs=0.025)
    assert name == "label swaps within prompts, 10,000 drawn"


def test_the_two_names_are_alike_and_the_seed_decides() -> None:
    num_a, den_a, num_b, den_b = arms(4, 200, 0.05)
    p, _ = swap_test(num_a, den_a, num_b, den_b)
    assert p == swap_test(num_a, den_a, num_b, den_b)[0] != swap_test(num_a, den_a, num_b, den_b, seed=1)[0]
    assert p == pytest.approx(swap_test(num_b, den_b, num_a, den_a)[0], abs=0.02)
    order = np.random.default_rng(0).permutation(200)
    assert p == swap_test(num_a[order], den_a[order], num_b[order], den_b[order])[0]


def test_no_difference_is_found_in_one_of_twenty_and_a_real_one_often() -> None:
    alarms = sum(swap_test(*arms(seed, 120), resamples=500)[0] <= 0.05 for seed in range(300))
    assert 0.02 <= alarms / 300 <= 0.085  # 300 simulations of 5 % spread by 1.3 points
    found = sum(swap_test(*arms(seed, 120, 0.2), resamples=500)[0] <= 0.05 for seed in range(60))
    assert found >= 50


def test_the_test_and_the_interval_agree_where_both_are_clear() -> None:
    for shift, clear in ((0.0, False), (0.15, True)):
        data = arms(7, 400, shift)
        delta, p = paired_delta(*data)
        assert delta.excludes(0) == (swap_test(*data)[0] < 0.05) == (p < 0.05) == clear


@given(st.lists(st.integers(-6, 6), min_size=1, max_size=9).filter(any))
def test_halves_are_flipped_exactly_too(doubled: list[int]) -> None:
    assert sign_flip(np.array(doubled) / 2) == sign_flip(doubled)


def test_a_mean_over_tasks_is_tested_by_every_swap_in_every_task() -> None:
    rng = np.random.default_rng(5)
    tasks = [tuple(rng.integers(0, 3, n) + np.array([0, 1, 0, 1])[:, None][i] for i in range(4)) for n in (4, 5)]

    def gaps(task: tuple[np.ndarray, ...]) -> list[float]:
        num_a, den_a, num_b, den_b = task
        out = []
        for bits in itertools.product([False, True], repeat=len(num_a)):
            swap = np.array(bits)
            a = np.where(swap, num_b, num_a).sum() / np.where(swap, den_b, den_a).sum()
            out.append(a - np.where(swap, num_a, num_b).sum() / np.where(swap, den_a, den_b).sum())
        return out

    law = [x + y for x in gaps(tasks[0]) for y in gaps(tasks[1])]
    observed = abs(gaps(tasks[0])[0] + gaps(tasks[1])[0])
    exact = np.mean([abs(value) >= observed - 1e-12 for value in law])
    p, name = mean_swap_test(tasks, resamples=40_000)
    assert p == pytest.approx(exact, abs=0.01)
    assert name == "label swaps within prompts, 40,000 drawn"


def test_one_task_alone_is_the_test_of_its_difference() -> None:
    rng = np.random.default_rng(6)
    four = tuple(rng.integers(low, 4, 60) for low in (0, 3, 0, 2))
    assert mean_swap_test([four])[0] == pytest.approx(swap_test(*four)[0], abs=0.02)
    assert np.isnan(mean_swap_test([(*four[:2], four[2], 0 * four[3])])[0])
