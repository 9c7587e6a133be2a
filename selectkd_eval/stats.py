"""How sure are we? Intervals for every number that is printed.

The unit that is resampled is always the prompt (or problem): all seeds, samples and orders of one prompt move
together, because they are not independent. Pooling them as if they were covers 80 % where 95 % is claimed.
Every statistic here is a ratio of sums over prompts, num / den: a mean (den = counts), a win rate without ties
(num = wins, den = wins + losses), a speed-up (num and den are times). Methods compared share the resampled
prompts, so paired differences come for nothing.

It does not model training seeds: an interval holds for the students that were trained. Per-seed values are shown
beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 10_000
_CHUNK = 500  # resamples held at once: 500 x prompts weights
_Z = 1.959963984540054  # 97.5 % point of the normal distribution
_POWER = 0.8416212335729143  # 80 % point
_WHOLE = 50_000  # largest sum of differences whose distribution is computed rather than drawn: half a second
RARE = 10  # prompts on the rarer side below which resampling knows too little about it

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, the count of prompts behind it and the name of the method."""

    value: float
    low: float
    high: float
    n: int
    method: str

    def excludes(self, null: float) -> bool:
        """Whether the interval leaves `null` out; an interval that does not exist excludes nothing."""
        return self.low > null or self.high < null

    def scaled(self, factor: float) -> Estimate:
        """The same estimate in another unit, e.g. percent."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor, self.n, self.method)


def wilson(successes: float, n: int) -> Estimate:
    """Wilson's score interval for a proportion: honest at 0 and 1, where resampling gives a point."""
    if n == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), 0, "no data")
    p, z2 = successes / n, _Z * _Z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * np.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # At k = 0 and k = n the bound is exactly 0 or 1; the subtraction would leave a rounding error there.
    low = 0.0 if successes == 0 else float(centre - half)
    high = 1.0 if successes == n else float(centre + half)
    return Estimate(p, low, high, n, "Wilson")


def ratio(
    num: ArrayLike,
    den: ArrayLike,
    *,
    strata: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    proportion: bool = False,
) -> Estimate:
    """sum(num) / sum(den) with a percentile interval from resampling prompts.

    `num` and `den` have one entry per prompt, (N,). `strata`, (N,), keeps each task's number of prompts fixed.
    With `proportion`, shares at the edges fall back to Wilson on the N prompts: see `at_the_edge`.
    """
    num, den = _pair(num, den)
    if not len(num) or not den.sum():
        return Estimate(float("nan"), float("nan"), float("nan"), len(num), "no data")
    value = float(num.sum() / den.sum())
    if proportion and at_the_edge(num, den):
        return wilson(value * len(num), len(num))
    draws = _resampled_ratios(num[None], den[None], strata, resamples, seed)[0]
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return Estimate(value, float(low), float(high), len(num), f"bootstrap over prompts, {resamples:,} resamples")


def at_the_edge(num: ArrayLike, den: ArrayLike) -> bool:
    """Whether fewer than RARE prompts have any success, or any failure.

    At 0 and 1 the bootstrap gives an interval of no width. Near them it is too narrow still: with 3 right of 164, it
    covers 86 % where Wilson's interval covers 96 % (simulated; from 16 right on they agree). Wilson's takes a prompt's
    samples as one, which is on the safe side.
    """
    num, den = _pair(num, den)
    return bool(min(np.count_nonzero(num > 0), np.count_nonzero(num < den)) < RARE)


def paired_delta(
    num_a: ArrayLike,
    den_a: ArrayLike,
    num_b: ArrayLike,
    den_b: ArrayLike,
    *,
    strata: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Estimate, float]:
    """Ratio a minus ratio b on the same prompts, with a two-sided bootstrap p-value of "no difference".

    All four arrays are (N,), entry i of each belonging to the same prompt. The p-value is twice the smaller share
    of resampled differences on one side of 0, and at least 1 / (resamples + 1).
    """
    num, den = np.stack([_pair(num_a, den_a), _pair(num_b, den_b)], axis=1)
    if num.shape[1] == 0 or not den.sum(axis=1).all():
        return Estimate(float("nan"), float("nan"), float("nan"), num.shape[1], "no data"), float("nan")
    values = num.sum(axis=1) / den.sum(axis=1)
    a, b = _resampled_ratios(num, den, strata, resamples, seed)
    draws = a - b
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    p = _two_sided(draws)
    method = f"paired bootstrap over prompts, {resamples:,} resamples"
    return Estimate(float(values[0] - values[1]), float(low), float(high), num.shape[1], method), p


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: family-wise error of all the comparisons of one table block.

    A missing p-value (NaN) stays missing and does not count towards the family.
    """
    p = np.asarray(p_values, dtype=np.float64)
    present = np.flatnonzero(~np.isnan(p))
    order = present[np.argsort(p[present], kind="stable")]
    adjusted = np.full(len(p), np.nan)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p[index]))
        adjusted[index] = running
    return [float(value) for value in adjusted]


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that one of k answers is right, from n answers of which c are: 1 - C(n-c, k) / C(n, k) (Chen et al. 2021).

    The product form needs no large binomials. ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {c} right among {n} answers is not defined")
    if k == 1:
        return c / n
    return 1.0 if n - c < k else float(1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def sign_flip(differences: ArrayLike, *, resamples: int = 100_000, seed: int = 0) -> tuple[float, str]:
    """Two-sided p of "neither is better", from each prompt's difference, (N,), and the name of the test.

    Were the two exchangeable, every difference could as well have had the other sign. For integers (counts of right
    answers) the distribution of the sum over all 2^N signs is computed in full; with differences of -1, 0 and 1 alone
    that is McNemar's exact test. Other differences are flipped at random, `resamples` times.
    """
    moved = np.asarray(differences, dtype=np.float64)
    sizes, total = np.abs(moved[moved != 0]), float(moved.sum())
    if not len(sizes):
        return 1.0, "no difference on any problem"
    if (sizes == np.rint(sizes)).all() and sizes.sum() <= _WHOLE:
        whole = sizes.astype(np.int64)
        unit = int(np.gcd.reduce(whole))
        name = "McNemar, exact" if whole.max() == unit else "sign flips, exact"
        return _exact_flips(whole // unit, abs(round(total)) // unit), name
    rng = np.random.default_rng(np.random.SeedSequence([seed, len(sizes)]))
    as_far = 0
    for start in range(0, resamples, _CHUNK):
        signs = rng.integers(0, 2, (min(_CHUNK, resamples - start), len(sizes))) * 2 - 1
        # Rounding must not decide whether a sum is as far out as the observed one.
        as_far += int(np.count_nonzero(np.abs(signs @ sizes) >= abs(total) * (1 - 1e-12) - 1e-12))
    return (1 + as_far) / (1 + resamples), f"sign flips, {resamples:,} drawn"


def _exact_flips(sizes: NDArray[np.int64], total: int) -> float:
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
    return np.exp(logs)


def standard_error(num: ArrayLike, den: ArrayLike) -> float:
    """Linearised standard error of sum(num) / sum(den) over prompts, entries (N,); NaN for fewer than 2 prompts."""
    num, den = _pair(num, den)
    if len(num) < 2 or not den.sum():
        return float("nan")
    influence = (num - num.sum() / den.sum() * den) / den.mean()
    return float(influence.std(ddof=1) / np.sqrt(len(num)))


def detectable(error: float) -> float:
    """The smallest true difference that a two-sided test at 5 % finds with 80 % power, for an estimate of this standard
    error (normal approximation).
    """
    return (_Z + _POWER) * error


def _two_sided(draws: Floats) -> float:
    """p of "no difference" from resampled differences; those without a denominator speak for neither side."""
    kept = draws[np.isfinite(draws)]
    side = min(float(np.mean(kept <= 0)), float(np.mean(kept >= 0)))
    return min(1.0, max(2 * side, 1 / (len(draws) + 1)))


def _pair(num: ArrayLike, den: ArrayLike) -> tuple[Floats, Floats]:
    return np.asarray(num, dtype=np.float64), np.asarray(den, dtype=np.float64)


def _resampled_ratios(num: Floats, den: Floats, strata: ArrayLike | None, resamples: int, seed: int) -> Floats:
    """(methods, resamples) ratios under the same prompt weights for every method."""
    columns, sizes = _grouped(np.concatenate([num, den]), strata)
    top, bottom = np.split(np.concatenate(columns, axis=1), 2)
    rng = np.random.default_rng(np.random.SeedSequence([seed, num.shape[1]]))
    out = np.empty((len(num), resamples))
    for start in range(0, resamples, _CHUNK):
        rows = min(_CHUNK, resamples - start)
        weights = np.concatenate([_drawn(rng, rows, size) for size in sizes], axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            out[:, start : start + rows] = (top @ weights.T) / (bottom @ weights.T)
    return out


def _grouped(table: Floats, strata: ArrayLike | None) -> tuple[list[Floats], list[NDArray[np.int64]]]:
    """Per stratum, the distinct columns of `table` and how many prompts have each.

    Verdicts and scores take few values, so thousands of prompts are often a dozen kinds of prompt. Times do not:
    then every prompt is its own kind.
    """
    n = table.shape[1]
    labels = np.zeros(n, dtype=np.int64) if strata is None else np.unique(np.asarray(strata), return_inverse=True)[1]
    columns, sizes = [], []
    for label in range(labels.max(initial=0) + 1):
        part = table[:, labels == label]
        kinds, counts = np.unique(part, axis=1, return_counts=True)
        few = 4 * kinds.shape[1] <= part.shape[1]
        columns.append(kinds if few else part)
        sizes.append(counts if few else np.ones(part.shape[1], dtype=np.int64))
    return columns, sizes


def _drawn(rng: np.random.Generator, rows: int, counts: NDArray[np.int64]) -> Floats:
    """How often each kind of prompt is drawn when as many prompts as there are, are drawn with replacement.

    Counts over kinds are exactly multinomial. With one prompt per kind, counting drawn indices is the same law
    and cheaper. (rows, kinds).
    """
    kinds, n = len(counts), int(counts.sum())
    if kinds < n:
        return rng.multinomial(n, counts / n, size=rows).astype(np.float64)
    drawn = rng.integers(n, size=(rows, n)) + np.arange(rows)[:, None] * n
    return np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def mean_of_ratios(
    groups: Sequence[tuple[ArrayLike, ArrayLike]],
    minus: Sequence[tuple[ArrayLike, ArrayLike]] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    proportion: bool = False,
) -> tuple[Estimate, float]:
    """Unweighted mean over tasks of sum(num) / sum(den), for an AVG column; each task keeps its prompts.

    `groups` holds (num, den) per task. With `minus`, on the same prompts task by task, the paired
    difference of the two means and its p-value; otherwise the p-value is NaN. With `proportion`, the mean of shares of
    which one is at the edge has its interval from the tasks' own, of which that one's is Wilson's.
    """
    if proportion and minus is None and any(at_the_edge(*pair) for pair in groups):
        return _mean_by_limits(groups, resamples, seed), float("nan")
    arms = 1 if minus is None else 2
    draws, values, n = np.zeros((arms, resamples)), np.zeros(arms), 0
    for index, pair in enumerate(groups):
        pairs = [_pair(*pair)] + ([] if minus is None else [_pair(*minus[index])])
        num, den = np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs])
        # A seed of its own per task: equal sizes must not make two tasks move together.
        draws += _resampled_ratios(num, den, None, resamples, seed + 7919 * index) / len(groups)
        values += num.sum(axis=1) / den.sum(axis=1) / len(groups)
        n += num.shape[1]
    value, sample = (values[0], draws[0]) if minus is None else (values[0] - values[1], draws[0] - draws[1])
    low, high = np.nanpercentile(sample, [2.5, 97.5])
    p = float("nan") if minus is None else _two_sided(sample)
    method = f"{'' if minus is None else 'paired '}bootstrap over prompts within tasks, {resamples:,} resamples"
    return Estimate(float(value), float(low), float(high), n, method), p


def _mean_by_limits(groups: Sequence[tuple[ArrayLike, ArrayLike]], resamples: int, seed: int) -> Estimate:
    """The mean over tasks with limits as far from it as the tasks' own, added in squares (Zou and Donner 2008)."""
    found = [ratio(num, den, resamples=resamples, seed=seed, proportion=True) for num, den in groups]
    value = float(np.mean([one.value for one in found]))
    below = float(np.sqrt(sum((one.value - one.low) ** 2 for one in found))) / len(found)
    above = float(np.sqrt(sum((one.high - one.value) ** 2 for one in found))) / len(found)
    return Estimate(value, value - below, value + above, sum(one.n for one in found), "the tasks' limits combined")
