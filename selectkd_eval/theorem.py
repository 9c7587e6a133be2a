"""Does the paper's Theorem 1 hold on a run? From a curve of TAR, the largest kappa that its bound allows.

Theorem 1 (Eq. 14) promises for every update ``TAR[t+1] - TAR[t] >= eta kappa (1 - TAR[t])`` with one kappa > 0. TAR is
evaluated every few updates, and over an interval the bound compounds to ``1 - TAR <= (1 - TAR before) prod(1 - eta
kappa)``. So ``-log(1 - TAR)`` must rise by at least kappa per unit of cumulative learning rate S, and on each interval
no kappa above ``kappa_i = -d log(1 - TAR) / dS`` is possible. The least of them is the largest valid kappa; where it is
not above 0 the bound as stated is violated, and a test says whether by more than chance.

A typical rate is Theil and Sen's slope of ``-log(1 - TAR)`` on S. Never least squares on differences of TAR: they would
be divided by a small ``1 - TAR`` and the noise of the last evaluations would decide. The theorem's premises (a learning
rate small enough, smoothness) are not tested, nor is its proof read: only what it promises is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from selectkd_eval import stats
from selectkd_eval.measures import Terms, delta, same_prompts
from selectkd_eval.stats import Estimate, Floats

Verdict = Literal["holds on this run", "violated", "not violated beyond chance", "cannot be told"]
SATURATED = 0.995  # a TAR above this says little of the rate: its 1 - TAR is nearly all noise
LEVEL = 0.05
_ALL = 1e-9  # less than this rejected is nothing rejected: rounding of sums


class Curve(NamedTuple):
    """TAR at every evaluation of one run: `clock` (T,) ascending, the cumulative learning rate or the step; `tar` (T,).

    `terms` holds each evaluation's values per prompt, all on the same prompts, where the records have them.
    """

    clock: Floats
    tar: Floats
    terms: tuple[Terms, ...] | None = None


class Drop(NamedTuple):
    """An interval over which TAR fell: its two ends on the clock, the change, and its test.

    `change` has an interval, and `p` (one-sided: of no fall) and `p_holm` are numbers, only where values per prompt are
    known.
    """

    at: int  # index of the evaluation after the fall
    start: float
    end: float
    change: Estimate
    p: float = float("nan")
    p_holm: float = float("nan")

    @property
    def significant(self) -> bool:
        """Whether it is more than chance after Holm's adjustment over the run's intervals."""
        return self.p_holm < LEVEL


@dataclass(frozen=True)
class Fit:
    """What one run says of Theorem 1. Rates are per unit of the clock.

    `kappas` (T-1,): the largest kappa that each interval allows, +inf where nothing was left to accept, -inf where TAR
    fell from 1. `gained_and_lost`: the sum of drops over the sum of rises, 0 for a curve that never falls, NaN for one
    that never rises. `isotonic`: the largest distance to the closest curve that never falls.
    """

    verdict: Verdict
    kappas: Floats
    drops: tuple[Drop, ...] = ()
    gained_and_lost: float = float("nan")
    isotonic: float = float("nan")
    rate: Estimate | None = None
    intercept: float = float("nan")
    reason: str = field(default="")  # why it cannot be told

    @property
    def kappa_max(self) -> float:
        """The largest kappa for which the bound holds on every interval; NaN without one."""
        return float(self.kappas.min()) if len(self.kappas) else float("nan")

    @property
    def violations(self) -> float:
        """Share of the intervals over which TAR fell."""
        return len(self.drops) / len(self.kappas) if len(self.kappas) else float("nan")

    @property
    def worst(self) -> float:
        """The largest fall of TAR, as a negative number; 0 if there was none."""
        return min((drop.change.value for drop in self.drops), default=0.0)

    @property
    def significant(self) -> list[Drop]:
        """The drops that are more than chance."""
        return [drop for drop in self.drops if drop.significant]


def curve(clock: ArrayLike, terms: Sequence[Terms]) -> Curve:
    """A curve from values per prompt; InputError unless all evaluations are on the same prompts."""
    for other in terms[1:]:
        same_prompts(terms[0], other)
    return Curve(np.asarray(clock, dtype=np.float64), np.array([one.value for one in terms]), tuple(terms))


def remaining(tar: ArrayLike) -> Floats:
    """``-log(1 - TAR)``: the quantity that Theorem 1 makes rise; +inf at TAR = 1."""
    rejected = 1 - np.asarray(tar, dtype=np.float64)
    with np.errstate(divide="ignore"):
        return np.asarray(-np.log(np.where(rejected < _ALL, 0.0, rejected)))


def kappas(clock: ArrayLike, tar: ArrayLike) -> Floats:
    """The largest kappa of each interval, ``-d log(1 - TAR) / dS``, (T,) and (T,) to (T-1,).

    An upper limit, and close: ``-log(1 - eta kappa)`` exceeds ``eta kappa`` by a share of about ``eta kappa / 2``. From
    1 to 1 any kappa is possible. ValueError unless the clock moves on.
    """
    elapsed = np.diff(np.asarray(clock, dtype=np.float64))
    if not (elapsed > 0).all():
        raise ValueError("the clock must go on from each evaluation to the next")
    height = remaining(tar)
    with np.errstate(invalid="ignore"):
        rise = np.diff(height)
    return np.asarray(np.where(np.isinf(height[:-1]) & np.isinf(height[1:]), np.inf, rise) / elapsed)


def fit(found: Curve, resamples: int = stats.RESAMPLES, seed: int = 0) -> Fit:
    """Everything that a curve says of Theorem 1."""
    nothing = np.zeros(0)
    if len(found.clock) < 2:
        return Fit("cannot be told", nothing, reason="TAR was evaluated once")
    if not np.isfinite(found.tar).all():
        return Fit("cannot be told", nothing, reason="an evaluation has no TAR")
    rates = kappas(found.clock, found.tar)
    drops = _drops(found, resamples, seed)
    change = np.diff(found.tar)
    rises = float(change[change > 0].sum())
    lost = math.fsum(-drop.change.value for drop in drops)
    verdict, reason = _verdict(found, rates, drops)
    rate, intercept = slope(found.clock, found.tar)
    return Fit(
        verdict,
        rates,
        drops,
        lost / rises if rises else float("nan"),
        isotonic_deviation(found.tar),
        rate,
        intercept,
        reason,
    )


def slope(clock: ArrayLike, tar: ArrayLike) -> tuple[Estimate | None, float]:
    """Theil and Sen's slope of ``-log(1 - TAR)`` with Sen's 95 % interval, and the line's value at clock 0.

    Evaluations with TAR above SATURATED are left out; None and NaN with fewer than three left. The interval takes the
    evaluations for independent; those of one run are not quite.
    """
    from scipy.stats import theilslopes  # 0.6 s to import, and a terminal's summary needs none of it

    x, y = np.asarray(clock, dtype=np.float64), np.asarray(tar, dtype=np.float64)
    kept = y <= SATURATED
    if len(np.unique(x[kept])) < 3:
        return None, float("nan")
    found = theilslopes(remaining(y[kept]), x[kept], alpha=0.95, method="separate")
    value, low, high = (float(getattr(found, name)) for name in ("slope", "low_slope", "high_slope"))
    return Estimate(value, low, high, int(kept.sum()), "Theil-Sen slope over evaluations"), float(found.intercept)


def isotonic_deviation(tar: ArrayLike) -> float:
    """The largest distance of a curve to the closest (least squares) that never falls."""
    from scipy.optimize import isotonic_regression

    values = np.asarray(tar, dtype=np.float64)
    return float(np.abs(values - isotonic_regression(values).x).max())


def _drops(found: Curve, resamples: int, seed: int) -> tuple[Drop, ...]:
    """Every fall, tested on the prompts where their values are known.

    The interval resamples prompts; the test, one-sided, swaps the two evaluations prompt by prompt. Holm's adjustment
    is over all intervals, rises too: over the falls alone it would be too lenient, since where one evaluation happens
    to be high, the fall after it is both there and large. Simulated, 1,500 runs of 80 prompts that stand still: 4.7 %
    are called violated (p-values of the bootstrap: 6.3 %, and over the falls alone 7.1 %).
    """
    drops = []
    for at in np.flatnonzero(np.diff(found.tar) < 0) + 1:
        value = float(found.tar[at] - found.tar[at - 1])
        change, p = Estimate(value, float("nan"), float("nan"), 0, "no values per prompt"), float("nan")
        if found.terms is not None:
            change, two_sided = delta(found.terms[at], found.terms[at - 1], resamples, seed)
            p = two_sided / 2
        drops.append(Drop(int(at), float(found.clock[at - 1]), float(found.clock[at]), change, p))
    rises = [1.0] * (len(found.tar) - 1 - len(drops))
    adjusted = stats.holm([drop.p for drop in drops] + rises)
    return tuple(drop._replace(p_holm=p) for drop, p in zip(drops, adjusted, strict=False))


def _verdict(found: Curve, rates: Floats, drops: Sequence[Drop]) -> tuple[Verdict, str]:
    if np.isinf(remaining(found.tar)).all():
        return "cannot be told", "TAR is 1 throughout, so nothing was left to gain"
    if any(drop.significant for drop in drops):
        return "violated", ""
    if rates.min() > 0:
        return "holds on this run", ""
    if drops and found.terms is None:
        return "cannot be told", "TAR fell, and without values per prompt the fall cannot be tested"
    return "not violated beyond chance", ""
