"""Intervals against scipy, statsmodels and hand arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from selectkd_eval.stats import holm, paired_delta, ratio, wilson


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_statsmodels_wilson(case: tuple[int, int]) -> None:
    k, n = case
    estimate = wilson(k, n)
    assert (estimate.low, estimate.high) == pytest.approx(proportion_confint(k, n, method="wilson"), abs=1e-9)


@pytest.fixture
def clusters() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    difficulty = rng.beta(0.5, 0.5, 200)
    return rng.binomial(3, difficulty), np.full(200, 3)


def test_the_bootstrap_agrees_with_scipy(clusters: tuple[np.ndarray, np.ndarray]) -> None:
    num, den = clusters
    ours = ratio(num, den)
    theirs = scipy.stats.bootstrap(
        (num, den),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=10_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert ours.value == num.sum() / den.sum()
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.004)


def test_the_bootstrap_agrees_with_the_linearised_cluster_error(
    clusters: tuple[np.ndarray, np.ndarray],
) -> None:
    num, den = clusters
    estimate = ratio(num, den)
    influence = (num - estimate.value * den) / den.mean()
    error = influence.std(ddof=1) / np.sqrt(len(num))
    assert (estimate.high - estimate.low) / 2 == pytest.approx(1.96 * error, rel=0.05)


def test_seeds_of_a_prompt_are_not_independent() -> None:
    # Three identical seeds carry no more information than one: the interval must not shrink.
    rng = np.random.default_rng(0)
    once = rng.integers(0, 2, 300)
    one, three = ratio(once, np.ones(300)), ratio(3 * once, np.full(300, 3))
    assert (one.low, one.high) == pytest.approx((three.low, three.high))


def test_coverage_is_near_95_percent() -> None:
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(300):
        chance = rng.beta(2, 2, 150)
        estimate = ratio(rng.binomial(3, chance), np.full(150, 3), resamples=1000)
        hits += estimate.low <= 0.5 <= estimate.high
    assert 0.91 <= hits / 300 <= 0.985


def test_all_right_and_all_wrong_fall_back_to_wilson() -> None:
    zero = ratio(np.zeros(30), np.ones(30), proportion=True)
    assert (zero.value, zero.low, round(zero.high, 4), zero.method) == (0.0, 0.0, 0.1135, "Wilson")
    assert ratio(np.ones(30), np.ones(30), proportion=True).low == pytest.approx(1 - 0.1135, abs=1e-4)


def test_nothing_measured_is_not_zero() -> None:
    assert np.isnan(ratio([], []).value)
    assert np.isnan(ratio([0.0], [0.0]).value)


def test_strata_keep_their_sizes() -> None:
    # Two tasks without spread inside: only resampling across tasks could move the mean.
    num, strata = np.r_[np.zeros(50), np.ones(50)], np.r_[np.zeros(50), np.ones(50)]
    estimate = ratio(num, np.ones(100), strata=strata)
    assert (estimate.low, estimate.high) == (0.5, 0.5)


def test_pairing_removes_what_the_prompts_share() -> None:
    rng = np.random.default_rng(5)
    easy = rng.normal(size=400)
    a, b = easy + 0.1 + 0.05 * rng.normal(size=400), easy + 0.05 * rng.normal(size=400)
    delta, p = paired_delta(a, np.ones(400), b, np.ones(400))
    assert delta.value == pytest.approx(a.mean() - b.mean())
    assert delta.high - delta.low < 0.03 and delta.excludes(0) and p < 0.001
    same, p_same = paired_delta(a, np.ones(400), a, np.ones(400))
    assert (same.value, same.low, same.high, p_same) == (0.0, 0.0, 0.0, 1.0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_is_statsmodels_holm(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())


def test_holm_leaves_missing_comparisons_missing() -> None:
    adjusted = holm([0.01, float("nan"), 0.04])
    assert adjusted[0] == pytest.approx(0.02) and np.isnan(adjusted[1]) and adjusted[2] == pytest.approx(0.04)


def test_the_same_seed_gives_the_same_interval() -> None:
    num = np.random.default_rng(0).normal(size=50)
    one, again, other = (ratio(num, np.ones(50), seed=seed) for seed in (1, 1, 2))
    assert one == again != other


def test_an_interval_that_does_not_exist_excludes_nothing() -> None:
    assert not ratio([], []).excludes(0)
    assert not paired_delta([], [], [], [])[0].excludes(0)


def test_resamples_without_a_denominator_do_not_make_a_difference_surer() -> None:
    # Of 40 prompts a wins one, both win another, nobody the rest. The difference is 0 where the first is not drawn.
    num_a, num_b, den = np.zeros(40), np.zeros(40), np.zeros(40)
    den[:2], num_a[:2], num_b[1] = 1, 1, 1
    _, p = paired_delta(num_a, den, num_b, den)
    neither, first_absent = (38 / 40) ** 40, (39 / 40) ** 40
    assert p == pytest.approx(2 * (first_absent - neither) / (1 - neither), abs=0.03)
