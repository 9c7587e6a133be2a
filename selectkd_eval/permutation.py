"""Could the labels of two methods as well have been swapped? p-values of "no difference" on the same prompts.

What is exchanged is always the prompt: under the null hypothesis the two methods' results on it, with all its seeds,
samples and orders, could as well have had each other's names. Intervals are `stats`' matter; a p-value here and the
interval there answer the same question in different ways and may differ a little at the edge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike

from selectkd_eval.bootstrap import Floats, Ints

_WHOLE = 50_000  # largest sum of differences whose distribution is computed rather than drawn: half a second
_HELD = 1 << 20  # random words held at once
_EXACT = "sign flips, exact"
_NEAR = 1e-12  # rounding must not decide whether a statistic is as far out as the observed one


def sign_flip(differences: ArrayLike, *, resamples: int = 100_000, seed: int = 0) -> tuple[float, str]:
    """Two-sided p of "neither is better", from each prompt's difference, (N,), and the name of the test.

    Were the two exchangeable, every difference could as well have had the other sign. For whole and half numbers
    (counts of right answers, wins and ties) the distribution of the sum over all 2^N signs is computed in full; with
    differences of -1, 0 and 1 alone that is McNemar's exact test. Other differences are flipped at random,
    `resamples` times.
    """
    moved = np.asarray(differences, dtype=np.float64)
    sizes, total = np.abs(moved[moved != 0]), float(moved.sum())
    if not len(sizes):
        return 1.0, "no difference on any prompt"
    exact = _counted(sizes, total)
    if exact is not None:
        return exact
    kinds, counts = np.unique(sizes, return_counts=True)
    rng = np.random.default_rng(np.random.SeedSequence([seed, len(sizes)]))
    as_far = 0
    for sums in _signed_sums(kinds[None], counts, resamples, rng):
        as_far += int(np.count_nonzero(np.abs(sums[0]) >= abs(total) * (1 - _NEAR) - _NEAR))
    return (1 + as_far) / (1 + resamples), f"sign flips, {resamples:,} drawn"


def swap_test(
    num_a: ArrayLike,
    den_a: ArrayLike,
    num_b: ArrayLike,
    den_b: ArrayLike,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, str]:
    """Two-sided p of "no difference" between two ratios of sums, sum(num) / sum(den), and the name of the test.

    All four arrays are (N,), entry i of each belonging to the same prompt. The names a and b are swapped within
    prompts at random, and both ratios computed anew: the denominators are swapped too. Equal denominators leave a sum
    of differences, whose test is `sign_flip`. A swap that leaves one side without a denominator counts as far out.
    """
    a, b = _sides(num_a, den_a, num_b, den_b)
    if not a[1].sum() or not b[1].sum():
        return float("nan"), "no data"
    if (a[1] == b[1]).all():
        return sign_flip(a[0] - b[0], seed=seed)
    return _drawn_p(*_swapped(a, b, resamples, np.random.SeedSequence([seed, a.shape[1]])))


def ratio_swap_test(
    num_a: ArrayLike,
    den_a: ArrayLike,
    num_b: ArrayLike,
    den_b: ArrayLike,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, str]:
    """Two-sided p of "one is no multiple of the other": `swap_test` with the logarithm of the two ratios' quotient.

    Where both have the same numerators prompt by prompt (two drafts against one plain decoding), these cancel, and what
    is left of the denominators grows with their difference alone, whose test is `sign_flip`.
    """
    a, b = _sides(num_a, den_a, num_b, den_b)
    if not (a.sum(axis=1) > 0).all() or not (b.sum(axis=1) > 0).all():
        return float("nan"), "no data"
    for same, other in ((0, 1), (1, 0)):
        if (a[same] == b[same]).all():
            return sign_flip(a[other] - b[other], seed=seed)
    return _drawn_p(*_swapped(a, b, resamples, np.random.SeedSequence([seed, a.shape[1]]), _log_gap))


def mean_swap_test(
    tasks: Sequence[tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike]], *, resamples: int = 10_000, seed: int = 0
) -> tuple[float, str]:
    """The same of the mean over tasks of the two ratios' difference; a task is (num_a, den_a, num_b, den_b)."""
    observed, drawn = 0.0, np.zeros(resamples)
    for index, (num_a, den_a, num_b, den_b) in enumerate(tasks):
        a, b = _sides(num_a, den_a, num_b, den_b)
        if not a[1].sum() or not b[1].sum():
            return float("nan"), "no data"
        # A seed of its own per task: equal sizes must not make two tasks move together.
        gap, gaps = _swapped(a, b, resamples, np.random.SeedSequence([seed, index, a.shape[1]]))
        observed, drawn = observed + gap, drawn + gaps
    return _drawn_p(observed, drawn)


def _sides(num_a: ArrayLike, den_a: ArrayLike, num_b: ArrayLike, den_b: ArrayLike) -> tuple[Floats, Floats]:
    """Numerators and denominators of each side, (2, N)."""
    return np.array([num_a, den_a], dtype=np.float64), np.array([num_b, den_b], dtype=np.float64)


def _drawn_p(observed: float, drawn: Floats) -> tuple[float, str]:
    """The p of a difference among those with swapped labels; one without a denominator is as far out as any."""
    as_far = int(np.count_nonzero(~(np.abs(drawn) < abs(observed) - _NEAR)))
    return (1 + as_far) / (1 + len(drawn)), f"label swaps within prompts, {len(drawn):,} drawn"


def _swapped(
    a: Floats,
    b: Floats,
    resamples: int,
    seed: np.random.SeedSequence,
    gap: Callable[[Floats, Floats], Floats] | None = None,
) -> tuple[float, Floats]:
    """The difference of two ratios (or another `gap` of them), and as many with labels swapped; `a` and `b` are (2, N):
    num, den per prompt.
    """
    gap = gap or _gap
    apart, both = a - b, (a + b).sum(axis=1, keepdims=True) / 2
    observed = float(gap(both, apart.sum(axis=1, keepdims=True) / 2)[0])
    # A prompt and its mirror image have the same two outcomes, so they are one kind; equal results never move.
    mirror = np.where(apart[0] == 0, np.sign(apart[1]), np.sign(apart[0]))
    kinds, counts = np.unique((apart * mirror)[:, mirror != 0], axis=1, return_counts=True)
    if not len(counts):
        return observed, np.full(resamples, observed)
    sums = _signed_sums(kinds / 2, counts, resamples, np.random.default_rng(seed))
    return observed, np.concatenate([gap(both, part) for part in sums])


def _gap(both: Floats, half: Floats) -> Floats:
    """The ratio of both + half less that of both - half; (2, m) sums of num and den to (m,)."""
    a, b = both + half, both - half
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(a[0] / a[1] - b[0] / b[1])


def _log_gap(both: Floats, half: Floats) -> Floats:
    """The logarithm of the ratio of both + half over that of both - half."""
    a, b = both + half, both - half
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log(a[0] / a[1]) - np.log(b[0] / b[1]))


def _signed_sums(kinds: Floats, counts: Ints, resamples: int, rng: np.random.Generator) -> Iterator[Floats]:
    """Sums over prompts of their kind's column, (d, kinds), each with a random sign: (d, rows) chunk by chunk.

    How many of a kind's prompts keep their sign is the number of ones among as many random bits.
    """
    words = -(-counts // 64)
    # The last word of a kind has only as many bits as prompts are left for it.
    masks = np.full(int(words.sum()), 2**64 - 1, dtype=np.uint64)
    masks[np.cumsum(words) - 1] >>= (-counts % 64).astype(np.uint64)
    steps, still = np.repeat(kinds, words, axis=1), kinds @ counts.astype(np.float64)
    rows = max(1, _HELD // len(masks))
    for start in range(0, resamples, rows):
        bits = rng.integers(0, 2**64, size=(len(masks), min(rows, resamples - start)), dtype=np.uint64)
        kept = np.bitwise_count(bits & masks[:, None]).astype(np.float64)
        yield 2 * (steps @ kept) - still[:, None]


def _counted(sizes: Floats, total: float) -> tuple[float, str] | None:
    """The exact test for differences that are whole or half numbers; None for others, or too many to count."""
    doubled = np.rint(2 * sizes)
    if not (2 * sizes == doubled).all() or doubled.max() > 2**40:
        return None
    whole = doubled.astype(np.int64)
    unit = int(np.gcd.reduce(whole))
    whole //= unit
    if whole.sum() > _WHOLE:
        return None
    return _exact_flips(whole, abs(round(2 * total)) // unit), "McNemar, exact" if whole.max() == 1 else _EXACT


def _exact_flips(sizes: Ints, total: int) -> float:
    """P(|sum of randomly signed sizes| >= total): a convolution of one binomial per distinct size."""
    law = np.ones(1)
    for size, count in zip(*np.unique(sizes, return_counts=True), strict=True):
        steps = np.zeros(2 * size * count + 1)
        steps[:: 2 * size] = _fair_binomial(int(count))
        law = np.convolve(law, steps)
    sums = np.arange(len(law)) - len(law) // 2
    return min(1.0, float(law[np.abs(sums) >= total].sum()))


def _fair_binomial(n: int) -> Floats:
    """Probabilities of 0 ... n heads, (n + 1,)."""
    counts = np.arange(n)
    logs = np.concatenate([[0.0], np.cumsum(np.log(n - counts) - np.log(counts + 1))]) - n * np.log(2)
    return np.asarray(np.exp(logs))
