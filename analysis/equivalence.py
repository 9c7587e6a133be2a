"""Are two methods equally good, and do judges agree? What stands in the caption of the paper's Figure 5.

Two bars whose intervals overlap are not thereby equal. Two one-sided tests (Schuirmann 1987) call two methods
equivalent when the 90 % interval of their paired difference lies within a margin that was named beforehand. They are
different when its p-value, adjusted by Holm over the pairs of a panel, is below .05; everything else is not settled.
Judges are compared by Kendall's W over their rates of the same methods, and by Cohen's kappa over verdicts on the same
comparisons. Nothing is drawn here.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from scipy.stats import rankdata

from selectkd_eval import measures, stats
from selectkd_eval.bootstrap import limits, resampled_sums
from selectkd_eval.measures import Terms
from selectkd_eval.stats import Estimate

Verdict = Literal["equivalent", "different", "not settled"]
_WORDS = ("candidate", "baseline", "tie")  # what a judge decides; no verdict is in no agreement


@dataclass(frozen=True)
class Comparison:
    """First minus second in points: its 95 % and 90 % limits, its p-value and that adjusted by Holm."""

    first: str
    second: str
    difference: Estimate
    low90: float
    high90: float
    p: float
    p_holm: float
    margin: float

    @property
    def verdict(self) -> Verdict:
        """Equivalence goes first: a difference that is there and smaller than the margin is within the margin."""
        if -self.margin < self.low90 and self.high90 < self.margin:
            return "equivalent"
        return "different" if self.p_holm < 0.05 else "not settled"


def compare(found: Mapping[str, Terms], margin: float, resamples: int) -> list[Comparison]:
    """Every pair of methods measured on the same prompts, in the order of their names; `margin` in points."""
    pairs, tried = list(combinations(found, 2)), []
    for first, second in pairs:
        a, b = found[first], found[second]
        difference, p = measures.delta(a, b, resamples)
        tried.append((difference.scaled(100), *_ninety(a, b, difference, resamples), p))
    adjusted = stats.holm([p for *_, p in tried])
    return [
        Comparison(*pair, difference, low, high, p, p_holm, margin)
        for pair, (difference, low, high, p), p_holm in zip(pairs, tried, adjusted, strict=True)
    ]


def _ninety(a: Terms, b: Terms, difference: Estimate, resamples: int) -> tuple[float, float]:
    """The 90 % limits in points from the resamples behind the 95 % ones; these themselves, which are wider, where few
    prompts differ and resampling sees too little of them.
    """
    if difference.method.startswith("Wilson"):
        return 100 * difference.low, 100 * difference.high
    num, den = np.stack([a.num, b.num]), np.stack([a.den, b.den])
    one, other = stats.ratios(num, den, a.merged_strata, resamples, 0)
    draws = one - other
    kept = draws[np.isfinite(draws)]
    if not len(kept):
        return float("nan"), float("nan")
    low, high = np.quantile(100 * kept, (0.05, 0.95))
    return float(low), float(high)


def kendall_w(rates: Sequence[Sequence[float]]) -> float:
    """Kendall's W of m judges (rows) over n methods (columns), corrected for ties; NaN for fewer than two of either.

    1 where all judges order the methods alike, 0 where their ranks cancel out (Kendall and Babington Smith 1939).
    """
    table = np.asarray(rates, dtype=float)
    if table.ndim != 2 or min(table.shape) < 2:
        return float("nan")
    judges, methods = table.shape
    ranks = rankdata(table, axis=1)
    spread = float(((ranks.sum(axis=0) - judges * (methods + 1) / 2) ** 2).sum())
    ties = sum(float((counts**3 - counts).sum()) for counts in (np.unique(row, return_counts=True)[1] for row in ranks))
    most = (judges**2 * (methods**3 - methods) - judges * ties) / 12
    return spread / most if most > 0 else float("nan")


def cohen_kappa(
    one: Mapping[Hashable, tuple[str, str]], other: Mapping[Hashable, tuple[str, str]], resamples: int, seed: int = 0
) -> Estimate:
    """Agreement beyond chance over the comparisons that both judges decided, with an interval over prompts.

    Each judge maps a comparison to (prompt, verdict). n counts the comparisons; NaN where they share none, or use one
    word alone.
    """
    shared = [key for key in one if key in other and one[key][1] in _WORDS and other[key][1] in _WORDS]
    prompts = {prompt: place for place, prompt in enumerate(sorted({one[key][0] for key in shared}))}
    table = np.zeros((len(_WORDS) ** 2, max(1, len(prompts))))
    for key in shared:
        cell = len(_WORDS) * _WORDS.index(one[key][1]) + _WORDS.index(other[key][1])
        table[cell, prompts[one[key][0]]] += 1
    value = float(_kappa(table.sum(axis=1, keepdims=True))[0])
    if not np.isfinite(value):
        return Estimate(float("nan"), float("nan"), float("nan"), len(shared), "no data")
    draws = _kappa(resampled_sums(table, None, resamples, np.random.default_rng(seed)))
    low, high = limits(draws, value)
    return Estimate(value, low, high, len(shared), f"bootstrap over prompts, {resamples:,} resamples")


def _kappa(sums: np.ndarray) -> np.ndarray:
    """Cohen's kappa of flattened squares of counts, (words squared, B)."""
    size = len(_WORDS)
    square = sums.reshape(size, size, -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = square / square.sum(axis=(0, 1))
        observed = sum(share[i, i] for i in range(size))
        chance = (share.sum(axis=0) * share.sum(axis=1)).sum(axis=0)
        return np.asarray((observed - chance) / (1 - chance))
