"""How many times as fast is one draft as another? The ratio of two ratios against enumeration, and its error rates."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selectkd_eval.stats import ratio_of_ratios, ratio_swap_test, sign_flip

Floats = np.ndarray
positive = st.floats(0.1, 10)


def by_enumeration(plain_a: Floats, a: Floats, plain_b: Floats, b: Floats) -> float:
    """The p-value over all 2^N ways of swapping prompts, one by one."""
    as_far, observed = 0, abs(math.log(plain_a.sum() / a.sum() / (plain_b.sum() / b.sum())))
    for pattern in itertools.product((False, True), repeat=len(a)):
        swap = np.array(pattern)
        one = np.where(swap, plain_b, plain_a).sum() / np.where(swap, b, a).sum()
        two = np.where(swap, plain_a, plain_b).sum() / np.where(swap, a, b).sum()
        as_far += abs(math.log(one / two)) >= observed - 1e-12
    return as_far / 2 ** len(a)


def times(rng: np.random.Generator, n: int, ratio: float = 1.0) -> tuple[Floats, Floats, Floats, Floats]:
    """Seconds of n prompts, long and short, in two runs of plain decoding and under two drafts of which the first is
    `ratio` times as fast; a draft does well on some prompts and badly on others.
    """
    length = rng.lognormal(0, 0.5, n)
    plain = length[:, None] * rng.lognormal(0, 0.03, (n, 2))
    drafts = length[:, None] / rng.uniform(1.0, 2.5, (n, 1)) * rng.lognormal(0, 0.2, (n, 2))
    return plain[:, 0], drafts[:, 0] / ratio, plain[:, 1], drafts[:, 1]


def test_the_ratio_by_hand() -> None:
    """4 s over 2 s is twice as fast, 4 s over 1 s four times: half."""
    found, _ = ratio_of_ratios([1, 3], [1, 1], [2, 2], [0.5, 0.5], resamples=100)
    assert found.value == pytest.approx(0.5)
    assert found.n == 2


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(positive, positive, positive, positive), min_size=1, max_size=8))
def test_swapping_labels_is_the_count_over_all_swaps(prompts: list[tuple[float, float, float, float]]) -> None:
    columns = np.array(prompts).T
    exact = by_enumeration(*columns)
    p, _ = ratio_swap_test(*columns, resamples=20_000)
    assert p == pytest.approx(exact, abs=6 * math.sqrt(exact * (1 - exact) / 20_000) + 1e-4)


def test_one_plain_decoding_under_both_leaves_sign_flips_of_the_drafts_seconds() -> None:
    plain, a, _, b = times(np.random.default_rng(2), 9, 1.1)
    p, name = ratio_swap_test(plain, a, plain, b)
    assert (p, name) == sign_flip(a - b)
    assert p == pytest.approx(by_enumeration(plain, a, plain, b), abs=0.01)


@settings(max_examples=25)
@given(st.integers(0, 1000), st.floats(0.5, 2))
def test_the_other_way_round_is_the_reciprocal(seed: int, ratio: float) -> None:
    plain_a, a, plain_b, b = times(np.random.default_rng(seed), 15, ratio)
    one, p = ratio_of_ratios(plain_a, a, plain_b, b, resamples=300)
    two, q = ratio_of_ratios(plain_b, b, plain_a, a, resamples=300)
    assert one.value == pytest.approx(1 / two.value)
    assert p == pytest.approx(q, abs=0.2)
    assert one.low <= one.value <= one.high
    assert one.low == pytest.approx(1 / two.high, rel=0.1)


def test_pairing_by_prompt_makes_it_narrower() -> None:
    plain_a, a, plain_b, b = times(np.random.default_rng(3), 60)
    paired, _ = ratio_of_ratios(plain_a, a, plain_b, b, resamples=2000)
    mixed = np.random.default_rng(4).permutation(60)
    unpaired, _ = ratio_of_ratios(plain_a, a, plain_b[mixed], b[mixed], resamples=2000)
    assert paired.half_width < 0.6 * unpaired.half_width


def test_its_interval_covers_and_its_test_seldom_sounds_a_false_alarm() -> None:
    """500 simulations spread by 1 point; 40 prompts, one draft 1.2 times as fast, then both alike."""
    rng, covered, alarms, runs = np.random.default_rng(5), 0, 0, 500
    for _ in range(runs):
        found, _ = ratio_of_ratios(*times(rng, 40, 1.2), resamples=400)
        # The true ratio of the sums: drafts have the same law but for the factor.
        covered += found.low <= 1.2 <= found.high
        alarms += ratio_swap_test(*times(rng, 40), resamples=400)[0] < 0.05
    assert 0.91 < covered / runs < 0.98
    assert 0.02 < alarms / runs < 0.08


def test_nothing_to_divide_by_is_no_number() -> None:
    for zero in range(4):
        parts = [np.ones(3)] * 4
        parts[zero] = np.zeros(3)
        found, p = ratio_of_ratios(*parts, resamples=50)
        assert math.isnan(found.value) and math.isnan(p) and found.method == "no data"
        assert ratio_swap_test(*parts)[1] == "no data"
