"""Which values can a rate over n prompts take at all, once it is rounded?

The lattice behind the rounding-grid check (GRIM: Brown and Heathers 2017), applied to judged win rates and pass@1. A
rule of counting gives a step: with both orders and half a win for a tie, a rate over n prompts is k / (4n). Where ties
are excluded the denominator is whatever was decided, and nearly every printable value can be reached. All of it is
whole-number arithmetic: a printed number stands for the closed interval of what rounds to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from typing import NamedTuple

import numpy as np

from selectkd_eval.errors import choose

# How far the fractions of every denominator are looked at: decimals, and the largest denominator.
FINE, WIDE = 4, 20_000


class Rule(NamedTuple):
    """How verdicts become a rate: k / (step x n), or W / (W + L <= step x n) where ties are excluded."""

    name: str
    words: str
    step: int
    open: bool = False


RULES = {
    "accuracy": Rule("accuracy", "no ties", 1),
    "half-ties": Rule("half-ties", "one order, half ties", 2),
    "both-orders": Rule("both-orders", "both orders, half ties", 4),
    "ties-excluded": Rule("ties-excluded", "one order, ties excluded", 1, open=True),
    "both-orders-excluded": Rule("both-orders-excluded", "both orders, ties excluded", 2, open=True),
}


class Grid(NamedTuple):
    """A rule with a number of prompts and of seeds: their mean, or with ties excluded their pool."""

    rule: Rule
    n: int
    seeds: int

    @property
    def most(self) -> int:
        """The denominator, or the largest one."""
        return self.rule.step * self.n * self.seeds

    @property
    def name(self) -> str:
        return f"W/(W+L ≤ {self.most})" if self.rule.open else f"k/{self.most}"

    @property
    def words(self) -> str:
        if self.seeds == 1:
            return self.rule.words
        return f"{self.rule.words}, {self.seeds} seeds"


def grids(protocol: str, sizes: Sequence[int], seeds: Sequence[int], judged: bool) -> list[Grid]:
    """The grids to try: every rule for judged columns, right or wrong for graded ones, unless one rule was named."""
    if protocol == "all":
        rules = [rule for rule in RULES.values() if judged or rule.name == "accuracy"]
    else:
        rules = [choose(protocol, RULES, "rule")]
    return [Grid(rule, n, count) for rule in rules for n in sizes for count in seeds]


def on_grid(value: Fraction, grid: Grid, digits: int, percent: bool = True) -> bool:
    """Can `value`, printed with `digits` decimals, be a rounded rate of this grid? A half may have gone either way."""
    scale = (100 if percent else 1) * 10**digits  # printed units in a rate of 1
    units = value * 10**digits
    if units.denominator != 1 or not 0 <= units <= scale:
        return False
    v, most = int(units), grid.most
    # k / d lies within half a unit of v: (2v - 1) d <= 2 scale k <= (2v + 1) d, for some k <= d.
    d = np.arange(1, most + 1, dtype=np.int64) if grid.rule.open else np.array([most], dtype=np.int64)
    low = np.maximum(-((-(2 * v - 1) * d) // (2 * scale)), 0)
    high = np.minimum((2 * v + 1) * d // (2 * scale), d)
    return bool((low <= high).any())


@cache
def reachable(grid: Grid, digits: int, percent: bool = True) -> float:
    """The share of all printable values from 0 to 1 (or 100 %) that lie on the grid; NaN where it is not counted."""
    scale = (100 if percent else 1) * 10**digits
    if not grid.rule.open and grid.most >= scale:
        return 1.0  # steps of a unit or less
    if not grid.rule.open:
        return len(np.unique(np.concatenate(_rounded(grid.most, scale)))) / (scale + 1)
    if digits > FINE or grid.most > WIDE:
        return float("nan")
    hit = np.zeros(scale + 1, dtype=bool)
    for d in range(1, grid.most + 1):
        for values in _rounded(d, scale):
            hit[values] = True
        if d % 50 == 0 and hit.all():
            break
    return float(hit.mean())


def _rounded(d: int, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """Every k / d in printed units, halves rounded down and up."""
    k = np.arange(d + 1, dtype=np.int64)
    return np.maximum(-((d - 2 * scale * k) // (2 * d)), 0), np.minimum((2 * scale * k + d) // (2 * d), scale)


def nearest(value: Fraction, grid: Grid, percent: bool = True) -> list[tuple[Fraction, int]]:
    """The grid's values just below and just above, with their counts; only for grids of one denominator."""
    scale = 100 if percent else 1
    below = int(value / scale * grid.most)
    return [(Fraction(k * scale, grid.most), k) for k in (below, below + 1) if 0 <= k <= grid.most]
