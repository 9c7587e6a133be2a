"""Does the gate help over all rows of a table together, where single rows settle nothing?

One test of the unweighted mean of all differences between a gate and its base, over every row and column that has
one. Rows measured on the same prompts are resampled together, the same prompts for all of them: they share prompts,
often the base too, and counted as independent they would look surer than they are. The paper has no such test; most of
its single differences are smaller than what its test sets settle.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from analysis.grid import Grid
from analysis.load import Method
from selectkd_eval import stats
from selectkd_eval.bootstrap import limits
from selectkd_eval.measures import Terms

Contrast = tuple[Terms, Terms]  # a method and its base, on the same prompts


class Overall(NamedTuple):
    """The mean of all differences as a share, its 95 % interval and p, and how many differences are in it."""

    value: float
    low: float
    high: float
    p: float
    differences: int


def contrasts(grids: Iterable[Grid], methods: Sequence[Method]) -> list[Contrast]:
    """Every gate among these methods with its base, column by column, where both met the same prompts."""
    found = []
    for grid in grids:
        for column in grid.columns:
            for method in methods:
                base = grid.base_of(column, method)
                a, b = grid.terms(column, method), grid.terms(column, base) if base else None
                if a and b and a.prompts == b.prompts and a.den.sum() and b.den.sum():
                    found.append((a, b))
    return found


def overall(found: Sequence[Contrast], resamples: int, seed: int = 0) -> Overall | None:
    """The mean of the differences with percentile limits; None of fewer than two.

    The two-sided p is twice the smaller share of resampled means on one side of 0, at least 1 / (resamples + 1).
    """
    if len(found) < 2:
        return None
    together: dict[tuple[str, ...], list[Contrast]] = defaultdict(list)
    for pair in found:
        together[pair[0].prompts].append(pair)
    draws = np.zeros(resamples)
    # Other prompts have a seed of their own: equal sizes must not make two sets move together.
    for index, prompts in enumerate(sorted(together)):
        pairs = together[prompts]
        num, den = (np.stack([getattr(side, what) for pair in pairs for side in pair]) for what in ("num", "den"))
        rates = stats.ratios(num, den, pairs[0][0].merged_strata, resamples, seed + 7919 * index)
        draws += (rates[0::2] - rates[1::2]).sum(axis=0) / len(found)
    if not np.isfinite(draws).any():
        return None
    value = float(np.mean([a.value - b.value for a, b in found]))
    low, high = limits(draws, value)
    return Overall(value, low, high, stats.two_sided(draws), len(found))
