"""How sure are we? Intervals for every number that is printed.

The unit that is resampled is always the prompt (or problem): all seeds, samples and orders of one prompt move
together, because they are not independent. Pooling them as if they were covers 80 % where 95 % is claimed.
Every statistic here is a ratio of sums over prompts, num / den: a mean (den = counts), a win rate without ties
(num = wins, den = wins + losses), a speed-up (num and den are times). Methods compared share the resampled
prompts, so paired differences come for nothing. How resamples are drawn is `bootstrap`'s matter, p-values from
swapped labels are `permutation`'s, standard errors `linearised`'s, where nearly all prompts agree `edges`'.

It does not model training seeds: an interval holds for the students that were trained (`crossed` says more).
Per-seed values are shown beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from selectkd_eval.bootstrap import Floats, limits, merged_strata, parts, ratios, resampled_sums, without_each
from selectkd_eval.edges import RARE, at_the_edge, edge_limits, paired_edge_limits, wilson_limits
from selectkd_eval.errors import choose
from selectkd_eval.linearised import Z, detectable, paired_error, standard_error
from selectkd_eval.permutation import mean_swap_test, ratio_swap_test, sign_flip, swap_test

# Callers ask one module; whose work a name is, its docstring says.
__all__ = [
    "RARE",
    "RESAMPLES",
    "Estimate",
    "Floats",
    "Z",
    "at_the_edge",
    "crossed",
    "detectable",
    "disagreement",
    "edge",
    "error_of",
    "holm",
    "mean_of_ratios",
    "mean_swap_test",
    "merged_strata",
    "paired_delta",
    "paired_edge_limits",
    "paired_error",
    "pass_at_k",
    "ratio",
    "ratio_of_ratios",
    "ratio_swap_test",
    "ratios",
    "sign_flip",
    "standard_error",
    "swap_test",
    "t_reach",
    "two_sided",
    "wilson",
]

RESAMPLES = 10_000
APART = 0.15  # the bootstrap and the linearised error differ by more: one of them is not to be trusted
INTERVALS = {"percentile": "bootstrap", "bca": "BCa bootstrap"}


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, the count of prompts behind it and the name of the method."""

    value: float
    low: float
    high: float
    n: int
    method: str

    @property
    def half_width(self) -> float:
        """Half of the interval's length."""
        return (self.high - self.low) / 2

    @property
    def spread(self) -> bool:
        """Whether there is an interval: prompts that are all alike, or a single one, resample to a point."""
        return self.high > self.low

    def excludes(self, null: float) -> bool:
        """Whether the interval leaves `null` out; an interval that does not exist excludes nothing."""
        return self.spread and (self.low > null or self.high < null)

    def scaled(self, factor: float) -> Estimate:
        """The same estimate in another unit, e.g. percent."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor, self.n, self.method)


def wilson(successes: float, n: int) -> Estimate:
    """Wilson's score interval for a proportion: honest at 0 and 1, where resampling gives a point."""
    if n == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), 0, "no data")
    low, high = wilson_limits(successes, n)
    return Estimate(successes / n, low, high, n, "Wilson")


def ratio(
    num: ArrayLike,
    den: ArrayLike,
    *,
    strata: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    proportion: bool = False,
    method: str = "percentile",
) -> Estimate:
    """sum(num) / sum(den) with an interval from resampling prompts, percentile or bca.

    `num` and `den` have one entry per prompt, (N,). `strata`, (N,), keeps each stratum's number of prompts: see
    `merged_strata`. With `proportion`, shares at the edges have Wilson's limits: see `edges`.
    """
    name = choose(method, INTERVALS, "interval")
    num, den = _pair(num, den)
    if not len(num) or not den.sum():
        return _nothing(len(num))
    value = float(num.sum() / den.sum())
    if proportion and at_the_edge(num, den):
        return edge(num, den)
    draws = ratios(num[None], den[None], strata, resamples, seed)[0]
    without = parts(without_each(num, den)[None], strata) if method == "bca" else None
    low, high = limits(draws, value, without)
    return Estimate(value, low, high, len(num), f"{name} over prompts, {resamples:,} resamples")


def edge(num: ArrayLike, den: ArrayLike) -> Estimate:
    """sum(num) / sum(den) of shares that are `at_the_edge`, on the prompts that have a denominator: see `edges`."""
    num, den = _pair(num, den)
    low, high = edge_limits(num, den)
    return Estimate(float(num.sum() / den.sum()), low, high, int(np.count_nonzero(den)), "Wilson")


def crossed(
    num: ArrayLike,
    den: ArrayLike,
    *,
    strata: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    proportion: bool = False,
) -> Estimate:
    """sum(num) / sum(den) with a percentile interval from resampling prompts and seeds, each on its own.

    `num` and `den` are (N, S), one column per training or answer seed. A cell counts the product of its prompt's and
    its seed's weight (Owen's pigeonhole bootstrap, 2007). That is the conservative interval: it counts the part of the
    spread that neither prompt nor seed explains about three times. Simulated, 218 prompts x 3 seeds: it covers 98 %
    where seeds do not differ and 95 % is claimed, and 95.5 % where their logits spread by 0.2, of which an interval
    over prompts covers 85 %. Where they differ more it covers less: S seeds resampled have only (S - 1) / S of their
    variance, 2/3 with three. Seeds alone are never resampled. One seed leaves `ratio`.
    """
    num, den = (values if values.ndim == 2 else values[:, None] for values in _pair(num, den))
    n, seeds = num.shape
    if seeds == 1 or not den.sum():
        sums = num.sum(axis=1), den.sum(axis=1)
        return ratio(*sums, strata=strata, resamples=resamples, seed=seed, proportion=proportion)
    value = float(num.sum() / den.sum())
    if proportion and at_the_edge(num.sum(axis=1), den.sum(axis=1)):
        return edge(num.sum(axis=1), den.sum(axis=1))
    rng = np.random.default_rng(np.random.SeedSequence([seed, n, seeds]))
    top, bottom = np.split(resampled_sums(np.concatenate([num, den], axis=1).T, strata, resamples, rng), 2)
    weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples).T
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = limits((top * weights).sum(axis=0) / (bottom * weights).sum(axis=0), value)
    return Estimate(value, low, high, n, f"bootstrap over prompts and {seeds} seeds, {resamples:,} resamples")


def paired_delta(
    num_a: ArrayLike,
    den_a: ArrayLike,
    num_b: ArrayLike,
    den_b: ArrayLike,
    *,
    strata: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    method: str = "percentile",
) -> tuple[Estimate, float]:
    """Ratio a minus ratio b on the same prompts, with a two-sided bootstrap p-value of "no difference".

    All four arrays are (N,), entry i of each belonging to the same prompt. The p-value is twice the smaller share
    of resampled differences on one side of 0, and at least 1 / (resamples + 1); `swap_test` has another.
    """
    name = choose(method, INTERVALS, "interval")
    num, den = np.stack([_pair(num_a, den_a), _pair(num_b, den_b)], axis=1)
    if num.shape[1] == 0 or not den.sum(axis=1).all():
        return _nothing(num.shape[1]), float("nan")
    values = num.sum(axis=1) / den.sum(axis=1)
    a, b = ratios(num, den, strata, resamples, seed)
    value, draws = float(values[0] - values[1]), a - b
    without = parts(-np.diff(without_each(num, den), axis=0), strata) if method == "bca" else None
    low, high = limits(draws, value, without)
    words = f"paired {name} over prompts, {resamples:,} resamples"
    return Estimate(value, low, high, num.shape[1], words), two_sided(draws)


def ratio_of_ratios(
    num_a: ArrayLike,
    den_a: ArrayLike,
    num_b: ArrayLike,
    den_b: ArrayLike,
    *,
    strata: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Estimate, float]:
    """Ratio a over ratio b on the same prompts (how many times the speed-up of b that of a is), with its p-value.

    All four arrays are (N,), entry i of each belonging to the same prompt; every resample draws the same prompts for
    all of them. The limits are percentiles, which are the same on the logarithmic scale, so that a over b and b over a
    have reciprocal ones. The p-value is that of `ratio_swap_test`.
    """
    num, den = np.stack([_pair(num_a, den_a), _pair(num_b, den_b)], axis=1)
    if not (num.sum(axis=1) > 0).all() or not (den.sum(axis=1) > 0).all():
        return _nothing(num.shape[1]), float("nan")
    values = num.sum(axis=1) / den.sum(axis=1)
    a, b = ratios(num, den, strata, resamples, seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = limits(a / b, float(values[0] / values[1]))
    p, _ = ratio_swap_test(num_a, den_a, num_b, den_b, resamples=resamples, seed=seed)
    words = f"paired bootstrap over prompts, {resamples:,} resamples"
    return Estimate(float(values[0] / values[1]), low, high, num.shape[1], words), p


def mean_of_ratios(
    groups: Sequence[tuple[ArrayLike, ArrayLike]],
    minus: Sequence[tuple[ArrayLike, ArrayLike]] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    proportion: bool = False,
    method: str = "percentile",
) -> tuple[Estimate, float]:
    """Unweighted mean over tasks of sum(num) / sum(den), for an AVG column; each task keeps its prompts.

    `groups` holds (num, den) per task. With `minus`, on the same prompts task by task, the paired difference of the two
    means and the p-value of `mean_swap_test`; otherwise the p-value is NaN. With `proportion`, where one share is at
    the edge (or few prompts of one difference differ), the interval comes from the tasks' own, that one's Wilson's.
    """
    name = choose(method, INTERVALS, "interval")
    if proportion and minus is None and any(at_the_edge(*pair) for pair in groups):
        own = [ratio(num, den, resamples=resamples, seed=seed, proportion=True) for num, den in groups]
        return _combined(own), float("nan")
    arms = 1 if minus is None else 2
    draws, values, n = np.zeros((arms, resamples)), np.zeros(arms), 0
    without: list[Floats] = []
    for index, pair in enumerate(groups):
        pairs = [_pair(*pair)] + ([] if minus is None else [_pair(*minus[index])])
        num, den = np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs])
        # A seed of its own per task: equal sizes must not make two tasks move together.
        draws += ratios(num, den, None, resamples, seed + 7919 * index) / len(groups)
        values += num.sum(axis=1) / den.sum(axis=1) / len(groups)
        # Leaving a prompt out moves its own task's ratio alone; what the others add is constant.
        if method == "bca":
            without.append(_a_minus_b(without_each(num, den) / len(groups)))
        n += num.shape[1]
    value, sample = float(_a_minus_b(values)), _a_minus_b(draws)
    low, high = limits(sample, value, without if method == "bca" else None)
    p = float("nan")
    if minus is not None:
        fours = [(*mine, *theirs) for mine, theirs in zip(groups, minus, strict=True)]
        p, _ = mean_swap_test(fours, resamples=resamples, seed=seed)
        if proportion and any(paired_edge_limits(*four) for four in fours):
            return _combined([_difference(four, resamples, seed) for four in fours]), p
    words = f"{'' if minus is None else 'paired '}{name} over prompts within tasks, {resamples:,} resamples"
    return Estimate(value, low, high, n, words), p


def _a_minus_b(arms: Floats) -> Floats:
    """The first row less the second, where there is one."""
    return np.asarray(arms[0] if len(arms) == 1 else arms[0] - arms[1])


def _difference(four: tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike], resamples: int, seed: int) -> Estimate:
    """Share a minus share b of one task, with Wilson's limits where few prompts differ."""
    found, _ = paired_delta(*four, resamples=resamples, seed=seed)
    low, high = paired_edge_limits(*four) or (found.low, found.high)
    return Estimate(found.value, low, high, found.n, found.method)


def _combined(found: Sequence[Estimate]) -> Estimate:
    """The mean of independent numbers, with limits as far from it as theirs added in squares (Zou and Donner 2008)."""
    value = float(np.mean([one.value for one in found]))
    below = float(np.sqrt(sum((one.value - one.low) ** 2 for one in found))) / len(found)
    above = float(np.sqrt(sum((one.high - one.value) ** 2 for one in found))) / len(found)
    return Estimate(value, value - below, value + above, sum(one.n for one in found), "the tasks' limits combined")


def t_reach(error: ArrayLike, freedom: float) -> Floats:
    """Half of a 95 % t interval, from standard errors of any shape and the degrees of freedom behind them."""
    from scipy.stats import t as student_t  # half a second to import, and most intervals need none of it

    return np.asarray(float(student_t.ppf(0.975, freedom)) * np.asarray(error, dtype=np.float64))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: family-wise error of all the comparisons of one table block.

    A missing p-value (NaN) stays missing and does not count towards the family.
    """
    p = np.asarray(p_values, dtype=np.float64)
    present = np.flatnonzero(~np.isnan(p))
    order = present[np.argsort(p[present], kind="stable")]
    adjusted, running = np.full(len(p), np.nan), 0.0
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


def error_of(estimate: Estimate, error: float) -> float:
    """A standard error that is not 0 where nearly all prompts agree: `error`, or what Wilson's limits amount to."""
    return estimate.half_width / Z if estimate.method.startswith("Wilson") else error


def disagreement(estimate: Estimate, error: float) -> str:
    """A warning in one sentence where an interval over prompts and 1.96 standard errors differ by more than APART.

    `error` is `standard_error`'s or `paired_error`'s of the same numbers. Empty where they agree, and for
    other intervals (Wilson's, over seeds too), which differ by intent.
    """
    half, normal = estimate.half_width, Z * error
    comparable = "bootstrap over prompts" in estimate.method and " seeds" not in estimate.method
    if not comparable or not np.isfinite([half, normal]).all() or abs(half - normal) <= APART * normal:
        return ""
    return (
        f"the bootstrap interval is {half:.4g} wide to each side where {Z:.2f} standard errors are {normal:.4g}: with "
        f"{estimate.n} prompts, few of them may decide the number, so look at these before you trust either"
    )


def _nothing(n: int) -> Estimate:
    return Estimate(float("nan"), float("nan"), float("nan"), n, "no data")


def two_sided(draws: Floats) -> float:
    """p of "no difference" from resampled differences; those without a denominator speak for neither side."""
    kept = draws[np.isfinite(draws)]
    side = min(float(np.mean(kept <= 0)), float(np.mean(kept >= 0)))
    return min(1.0, max(2 * side, 1 / (len(draws) + 1)))


def _pair(num: ArrayLike, den: ArrayLike) -> tuple[Floats, Floats]:
    return np.asarray(num, dtype=np.float64), np.asarray(den, dtype=np.float64)
