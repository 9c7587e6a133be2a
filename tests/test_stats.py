"""Intervals against scipy, statsmodels and hand arithmetic."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from selectkd_eval.stats import (
    detectable,
    holm,
    mean_of_ratios,
    paired_delta,
    paired_edge_limits,
    pass_at_k,
    ratio,
    sign_flip,
    standard_error,
    t_reach,
    wilson,
)


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


@settings(max_examples=20)  # the other library takes a tenth of a second for each
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_is_statsmodels_holm(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())


def test_t_reach_is_the_textbooks_table() -> None:
    assert t_reach(1.0, 2) == pytest.approx(4.302653)
    assert t_reach([1.0, 2.0], 9) == pytest.approx([2.262157, 4.524314])


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


def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer() -> None:
    for n, c, k in ((5, 2, 3), (6, 1, 2), (4, 4, 1), (7, 0, 3), (3, 2, 2)):
        answers = [1] * c + [0] * (n - c)
        subsets = list(itertools.combinations(answers, k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_chen_et_als_fraction(case: tuple[int, int, int]) -> None:
    n, c, k = case
    exact = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
    assert pass_at_k(n, c, k) == pytest.approx(float(exact), abs=1e-12)


@pytest.mark.parametrize("case", [(3, 1, 4), (3, 4, 1), (3, -1, 1), (3, 1, 0)])
def test_pass_at_k_of_too_few_answers_is_refused(case: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="not defined"):
        pass_at_k(*case)


@given(st.integers(0, 60), st.integers(0, 60))
def test_flipping_signs_of_single_answers_is_mcnemars_exact_test(better: int, worse: int) -> None:
    p, name = sign_flip([1] * better + [-1] * worse + [0] * 7)
    if better + worse:
        assert name == "McNemar, exact"
        assert p == pytest.approx(scipy.stats.binomtest(better, better + worse).pvalue)
        assert p == pytest.approx(mcnemar([[7, better], [worse, 0]], exact=True).pvalue)
    else:
        assert (p, name) == (1.0, "no difference on any prompt")


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9).filter(any))
def test_flipping_signs_is_the_count_over_all_sign_patterns(differences: list[int]) -> None:
    patterns = itertools.product((-1, 1), repeat=len(differences))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in patterns]
    p, name = sign_flip(differences)
    assert p == pytest.approx(sum(s >= abs(sum(differences)) for s in sums) / len(sums))
    assert name in ("McNemar, exact", "sign flips, exact")


def test_flips_that_cannot_be_counted_are_drawn_and_agree() -> None:
    whole = np.random.default_rng(2).integers(-3, 5, 40)
    exact, _ = sign_flip(whole)
    drawn, name = sign_flip(whole / 7)  # not whole numbers: the same test, drawn
    assert name == "sign flips, 100,000 drawn"
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 100_000))
    assert sign_flip(whole / 7) == (drawn, name)


def test_a_difference_of_the_detectable_size_is_found_in_80_percent() -> None:
    # Per-prompt differences of -1, 0, 1 with 15 % discordant; the shift is what `detectable` calls detectable.
    rng, n, discordant = np.random.default_rng(11), 500, 0.15
    shift = detectable(math.sqrt(discordant / n))
    up = (discordant + shift) / 2
    found = 0
    for _ in range(400):
        draws = rng.choice([1, -1, 0], n, p=[up, discordant - up, 1 - discordant])
        found += sign_flip(draws)[0] < 0.05
    # 400 draws of a chance of 0.8 spread by 0.02; the exact test spends a little less than its 5 %.
    assert 0.70 <= found / 400 <= 0.87


def test_the_standard_error_of_a_mean_is_the_textbooks() -> None:
    values = np.random.default_rng(4).normal(size=80)
    assert standard_error(values, np.ones(80)) == pytest.approx(scipy.stats.sem(values))
    assert np.isnan(standard_error([1.0], [1.0]))


@pytest.mark.parametrize(("chance", "samples"), [(0.02, 1), (0.06, 1), (0.95, 1), (0.5, 1), (0.3, 3)])
def test_intervals_of_few_problems_cover_at_the_edges_too(chance: float, samples: int) -> None:
    # 164 problems as in HumanEval. Without the guard the first covers 86 %. 400 simulations spread by 1.1 points.
    rng, hits = np.random.default_rng(13), 0
    for _ in range(400):
        rates = np.full(164, chance) if samples == 1 else rng.beta(chance, 1 - chance, 164)
        found = ratio(rng.binomial(samples, rates), np.full(164, samples), resamples=600, proportion=True)
        hits += found.low <= chance <= found.high
    assert 0.915 <= hits / 400 <= 0.99


def test_the_guard_counts_prompts_not_answers() -> None:
    right = np.r_[np.full(9, 3.0), np.zeros(91)]
    assert ratio(right, np.full(100, 3), proportion=True).method == "Wilson"
    assert ratio(np.r_[right[:99], 1.0], np.full(100, 3), proportion=True).method.startswith("bootstrap")
    assert ratio(right, np.full(100, 3)).method.startswith("bootstrap"), "a ratio of times has no edge"


def test_a_mean_over_tasks_at_the_edge_has_a_width() -> None:
    groups = [(np.zeros(30), np.ones(30)), (np.ones(30), np.ones(30))]
    found, _ = mean_of_ratios(groups, proportion=True)
    # Wilson's limits of 0 of 30 and of 30 of 30 are 0.1135 wide, each on one side only.
    assert (found.value, found.n) == (0.5, 60)
    assert (found.low, found.high) == pytest.approx((0.5 - 0.1135 / 2, 0.5 + 0.1135 / 2), abs=1e-4)
    assert mean_of_ratios(groups)[0].low == 0.5, "what resampling alone would say"


def test_a_mean_over_tasks_covers_with_one_at_the_edge() -> None:
    rng, hits = np.random.default_rng(17), 0
    for _ in range(300):
        groups = [(rng.binomial(1, chance, 164), np.ones(164)) for chance in (0.02, 0.03)]
        found, _ = mean_of_ratios(groups, resamples=500, proportion=True)
        hits += found.low <= 0.025 <= found.high
    assert 0.91 <= hits / 300 <= 0.99


def test_an_average_difference_is_as_unsure_as_its_tasks() -> None:
    """One task on which a single prompt of 30 differs: its limits are Wilson's, and the average has half of them."""
    rng = np.random.default_rng(0)
    same = (rng.random(30) < 0.5).astype(float)
    other = same.copy()
    other[0] = 1 - other[0]
    a, b = (rng.random(200) < 0.6).astype(float), (rng.random(200) < 0.5).astype(float)
    few, many = np.ones(30), np.ones(200)
    found, p = mean_of_ratios([(other, few), (a, many)], [(same, few), (b, many)], proportion=True)
    low, high = paired_edge_limits(other, few, same, few) or (0.0, 0.0)
    assert found.value == pytest.approx(((other - same).mean() + (a - b).mean()) / 2)
    assert found.low <= found.value - ((other - same).mean() - low) / 2
    assert found.high >= found.value + (high - (other - same).mean()) / 2
    assert 0 < p <= 1 and found.method == "the tasks' limits combined"
    plain, _ = mean_of_ratios([(other, few), (a, many)], [(same, few), (b, many)])
    assert plain.half_width < found.half_width
