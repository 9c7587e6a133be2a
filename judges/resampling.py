"""How far could sums over prompts have fallen otherwise? Resampled prompts for statistics that are no plain ratio.

Kappa, alpha and a regression's coefficients are functions of a few sums over prompts. Prompts are drawn with
replacement, within their task; what belongs to a prompt (seeds, orders, repeats) moves with it. The drawing itself is
that of `selectkd_eval.bootstrap`; a regression needs to know how often each prompt was drawn, and gets that here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from selectkd_eval import bootstrap
from selectkd_eval.stats import RESAMPLES, Estimate, Floats

_CELLS = 32_768  # weights held at once, resamples x prompts: their tables stay in a core's cache, 3 x the speed


@dataclass(frozen=True)
class Resampling:
    """How many resamples are drawn, and from which seed."""

    resamples: int = RESAMPLES
    seed: int = 0

    def generator(self, n: int) -> np.random.Generator:
        """The generator for n prompts."""
        return np.random.default_rng(np.random.SeedSequence([self.seed, n]))


def resampled_sums(table: Floats, how: Resampling, tasks: ArrayLike | None = None) -> Floats:
    """Column sums of `table`, (N, d), one row per prompt, over resampled prompts: (resamples, d).

    `tasks`, (N,), names every prompt's task: each keeps its number of prompts, small ones put together.
    """
    strata = None if tasks is None else bootstrap.merged_strata(tasks)
    return bootstrap.resampled_sums(table.T, strata, how.resamples, how.generator(len(table))).T


def resampled_weights(n: int, how: Resampling, tasks: ArrayLike | None = None, entries: int = 0) -> Iterator[Floats]:
    """How often each of n prompts is drawn, chunk by chunk: (rows, n), `resamples` rows in all.

    `entries` is how many numbers the caller makes of a row, where those are more than n: chunks are as much shorter.
    """
    groups, rng = strata(n, tasks), how.generator(n)
    for start, rows in _chunks(how.resamples, max(n, entries)):
        weights = np.empty((min(rows, how.resamples - start), n))
        for here in groups:
            weights[:, here] = _drawn(rng, len(weights), len(here))
        yield weights


def weights_without_each(n: int, entries: int = 0) -> Iterator[Floats]:
    """Once each of n prompts but one, prompt by prompt, chunk by chunk: (rows, n), n rows in all."""
    for start, rows in _chunks(n, max(n, entries)):
        weights = np.ones((min(rows, n - start), n))
        weights[np.arange(len(weights)), start + np.arange(len(weights))] = 0
        yield weights


def strata(n: int, tasks: ArrayLike | None) -> list[NDArray[np.intp]]:
    """The prompts of each task, small tasks put together."""
    labels = np.zeros(n, dtype=np.int64) if tasks is None else bootstrap.merged_strata(tasks)
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def _chunks(total: int, entries: int) -> Iterator[tuple[int, int]]:
    rows = max(1, _CELLS // max(1, entries))
    return ((start, rows) for start in range(0, total, rows))


def _drawn(rng: np.random.Generator, rows: int, n: int) -> NDArray[np.int64]:
    """How often each of n prompts comes among n drawn with replacement: (rows, n)."""
    drawn = rng.integers(n, size=(rows, n), dtype=np.int32)
    drawn += np.arange(rows, dtype=np.int32)[:, None] * n
    return np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)


def percentile(value: float, draws: Floats, n: int, what: str = "bootstrap over prompts") -> Estimate:
    """A value with the middle 95 % of its resampled values; NaN limits where there is no value.

    Resamples without a value (a kappa of one word alone) are left out, and the method says how many.
    """
    kept = draws[np.isfinite(draws)]
    missing = f", undefined in {len(draws) - len(kept):,}" if len(kept) < len(draws) else ""
    method = f"{what}, {len(draws):,} resamples{missing}"
    if not len(kept) or not np.isfinite(value):
        return Estimate(value, float("nan"), float("nan"), n, method)
    low, high = np.percentile(kept, [2.5, 97.5])
    return Estimate(value, float(low), float(high), n, method)
