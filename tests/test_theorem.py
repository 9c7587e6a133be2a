"""The fit of Theorem 1 finds the kappa, the violations and the verdict of curves that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from selectkd_eval import theorem
from selectkd_eval.errors import InputError
from selectkd_eval.measures import Terms

PROMPTS = tuple(f"p{n:03d}" for n in range(80))


def exponential(rate: float, clock: np.ndarray, first: float = 0.3) -> np.ndarray:
    """The curve on which the bound is tight: 1 - TAR falls by exp(-rate) per unit of the clock."""
    return 1 - (1 - first) * np.exp(-rate * clock)


def per_prompt(level: float, noise: np.ndarray, tokens: int = 50) -> Terms:
    return Terms(PROMPTS, tokens * (level + noise), np.full(len(PROMPTS), float(tokens)))


@pytest.mark.parametrize("rate", [0.7, 3.0])
def test_on_an_exponential_curve_kappa_is_its_rate(rate: float) -> None:
    clock = np.array([0.0, 0.1, 0.3, 0.4, 0.9])  # a schedule: the intervals are not alike
    found = theorem.fit(theorem.Curve(clock, exponential(rate, clock)))
    assert found.kappas == pytest.approx([rate] * 4)
    assert found.kappa_max == pytest.approx(rate)
    assert found.verdict == "holds on this run"
    assert (found.violations, found.drops, found.worst, found.gained_and_lost) == (0, (), 0, 0)
    assert str(found.gained_and_lost) == "0.0", "not -0.0, which a figure's JSON would hold"
    assert found.isotonic == 0
    assert found.rate is not None
    assert (found.rate.value, found.rate.low, found.rate.high) == pytest.approx((rate, rate, rate))
    assert found.intercept == pytest.approx(-math.log(0.7))


def test_the_compounded_bound_holds_up_to_kappa_max_and_not_above() -> None:
    """By hand: with 40 equal updates, (1 - TAR) may fall no slower than prod(1 - eta kappa)."""
    eta, steps = 0.001, 40
    tar = np.array([0.5, 0.52, 0.56])
    found = theorem.fit(theorem.Curve(np.array([0, eta * steps, 2 * eta * steps]), tar))
    for kappa, valid in ((found.kappa_max * 0.97, True), (found.kappa_max * 1.03, False)):
        left = 1 - tar
        assert bool((left[1:] <= left[:-1] * (1 - eta * kappa) ** steps).all()) is valid


def test_a_planted_drop_is_found_and_significant() -> None:
    clock, rng = np.arange(6.0), np.random.default_rng(0)
    levels = exponential(0.4, clock)
    levels[3] = levels[2] - 0.05
    own = rng.normal(0, 0.1, len(PROMPTS))  # what a prompt has of its own cancels in pairs
    terms = [per_prompt(level, own + rng.normal(0, 0.02, len(PROMPTS))) for level in levels]
    found = theorem.fit(theorem.curve(clock, terms), resamples=2000)
    (drop,) = found.drops
    assert (drop.at, drop.start, drop.end) == (3, 2.0, 3.0)
    assert drop.significant and drop.change.high < 0
    assert found.verdict == "violated"
    assert found.kappa_max < 0
    assert found.violations == pytest.approx(1 / 5)
    values = np.array([one.value for one in terms])
    assert found.worst == pytest.approx(values[3] - values[2])
    rises = [step for step in np.diff(values) if step > 0]
    assert found.gained_and_lost == pytest.approx((values[2] - values[3]) / sum(rises))
    assert found.isotonic == pytest.approx((values[2] - values[3]) / 2), "the closest rising curve meets it halfway"


def test_noise_alone_is_no_violation() -> None:
    """Forty runs that stand still: few may be called violated, 5 % on average, and each has drops."""
    violated = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        terms = [per_prompt(0.6, rng.normal(0, 0.1, len(PROMPTS))) for _ in range(6)]
        found = theorem.fit(theorem.curve(np.arange(6.0), terms), resamples=1000)
        assert found.drops
        assert found.kappa_max < 0
        assert found.verdict in ("violated", "not violated beyond chance")
        violated += found.verdict == "violated"
    assert violated <= 6, "P(more than 6 of 40 at 5 %) is below 1 %"


def test_holm_counts_all_the_intervals_of_a_run() -> None:
    rng = np.random.default_rng(3)
    levels = (0.5, 0.6, 0.59, 0.58, 0.7)
    terms = [per_prompt(level, rng.normal(0, 0.05, len(PROMPTS))) for level in levels]
    found = theorem.fit(theorem.curve(np.arange(5.0), terms), resamples=1000)
    assert len(found.drops) == 2
    assert min(drop.p_holm for drop in found.drops) == pytest.approx(min(1, 4 * min(drop.p for drop in found.drops)))


def test_at_one_any_kappa_is_possible_and_a_fall_from_one_leaves_none() -> None:
    clock = np.arange(4.0)
    assert theorem.kappas(clock, [0.5, 1, 1, 1]).tolist() == [math.inf] * 3
    assert theorem.kappas(clock, [0.5, 1, 0.5, 0.75]).tolist() == pytest.approx([math.inf, -math.inf, math.log(2)])
    rising = theorem.fit(theorem.Curve(clock, np.array([0.5, 0.75, 1, 1])))
    assert rising.verdict == "holds on this run"
    assert rising.kappa_max == pytest.approx(math.log(2))
    saturated = theorem.fit(theorem.Curve(clock, np.ones(4)))
    assert (saturated.verdict, saturated.rate) == ("cannot be told", None)
    assert "throughout" in saturated.reason
    assert theorem.kappas([0, 1], [1 - 1e-12, 1]).tolist() == [math.inf], "rounding of sums is not a rejected token"


def test_standing_still_below_one_allows_no_kappa_and_is_no_fall() -> None:
    found = theorem.fit(theorem.Curve(np.arange(3.0), np.array([0.5, 0.5, 0.6])))
    assert (found.kappa_max, found.violations, found.verdict) == (0, 0, "not violated beyond chance")


def test_a_fall_that_cannot_be_tested_is_told_so() -> None:
    found = theorem.fit(theorem.Curve(np.arange(3.0), np.array([0.5, 0.4, 0.6])))
    assert found.verdict == "cannot be told"
    assert "cannot be tested" in found.reason
    assert (found.kappa_max < 0, math.isnan(found.drops[0].p), found.significant) == (True, True, [])
    rising = theorem.fit(theorem.Curve(np.arange(3.0), np.array([0.4, 0.5, 0.6])))
    assert rising.verdict == "holds on this run", "a curve that never falls needs no test"


def test_one_evaluation_or_a_missing_one_says_nothing() -> None:
    for tar in ([0.5], [0.5, float("nan"), 0.6]):
        found = theorem.fit(theorem.Curve(np.arange(float(len(tar))), np.array(tar)))
        assert found.verdict == "cannot be told"
        assert math.isnan(found.kappa_max) and math.isnan(found.violations)
        assert found.reason


def test_the_slope_is_scipys_on_what_is_not_saturated() -> None:
    rng = np.random.default_rng(5)
    clock = np.sort(rng.uniform(0, 1, 12))
    tar = np.clip(exponential(2.5, clock) + rng.normal(0, 0.02, 12), 0, 1)
    tar[-2:] = 0.999
    found, intercept = theorem.slope(clock, tar)
    oracle = scipy_stats.theilslopes(-np.log(1 - tar[:-2]), clock[:-2], 0.95)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((oracle[0], oracle[2], oracle[3]))
    assert (found.n, intercept) == (10, pytest.approx(oracle[1]))
    pairs = [
        (b - a) / (t - s)
        for s, a in zip(clock[:-2], -np.log(1 - tar[:-2]), strict=True)
        for t, b in zip(clock[:-2], -np.log(1 - tar[:-2]), strict=True)
        if t > s
    ]
    assert found.value == pytest.approx(np.median(pairs)), "the median of all pairs' slopes"
    assert theorem.slope([0, 1, 2], [0.5, 0.6, 0.999]) == (None, pytest.approx(math.nan, nan_ok=True))


def test_a_clock_that_stands_and_other_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="clock"):
        theorem.kappas([0, 1, 1], [0.1, 0.2, 0.3])
    one = per_prompt(0.5, np.zeros(len(PROMPTS)))
    other = Terms(("q",), np.ones(1), np.ones(1))
    with pytest.raises(InputError, match="same prompts"):
        theorem.curve([0, 1], [one, other])
