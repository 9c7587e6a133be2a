"""How far could sums over prompts have fallen otherwise? Resampled prompts for statistics that are no plain ratio.

Kappa, alpha and a regression's coefficients are functions of a few sums over prompts. Prompts are drawn with
replacement, within their task; what belongs to a prompt (seeds, orders, repeats) moves with it. Prompts with the same
contribution are one kind, and how often a kind is drawn is exactly multinomial, so that 10,000 resamples of 2,000
prompts take a fraction of a second. Ratios of sums have their interval from `selectkd_eval.stats`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from selectkd_eval.stats import RESAMPLES, Estimate, Floats

_CELLS = 32_768  # weights held at once, resamples x prompts: their tables stay in a core's cache, 3 x the speed
_FEW = 10  # with this many prompts per kind, one binomial per kind is cheaper than one index per prompt


@dataclass(frozen=True)
class Resampling:
    """How many resamples are drawn, and from which seed."""

    resamples: int = RESAMPLES
    seed: int = 0


def resampled_sums(table: ArrayLike, how: Resampling, strata: ArrayLike | None = None) -> Floats:
    """Column sums of `table`, (N, d), one row per prompt, over resampled prompts: (resamples, d).

    `strata`, (N,), keeps the number of prompts of each task. The draws do not depend on the order of the prompts.
    """
    values = np.asarray(table, dtype=np.float64)
    kinds = [np.unique(values[here], axis=0, return_counts=True) for here in _strata(len(values), strata)]
    rng = _generator(how, len(values))
    out = np.zeros((how.resamples, values.shape[1]))
    for start, rows in _chunks(how.resamples, len(values)):
        for rows_of_kind, counts in kinds:
            out[start : start + rows] += _drawn(rng, rows, counts) @ rows_of_kind
    return out


def resampled_weights(n: int, how: Resampling, strata: ArrayLike | None = None, entries: int = 0) -> Iterator[Floats]:
    """How often each of n prompts is drawn, chunk by chunk: (rows, n), `resamples` rows in all.

    `entries` is how many numbers the caller makes of a row, where those are more than n: chunks are as much shorter.
    """
    groups = _strata(n, strata)
    rng = _generator(how, n)
    for _, rows in _chunks(how.resamples, max(n, entries)):
        weights = np.empty((rows, n))
        for here in groups:
            weights[:, here] = _drawn(rng, rows, np.ones(int(here.sum()), dtype=np.int64))
        yield weights


def percentile(value: float, draws: Floats, n: int, what: str = "bootstrap over prompts") -> Estimate:
    """A value with the middle 95 % of its resampled values; NaN limits where no resample has a value.

    Resamples without a value (a kappa of one word alone) are left out, and the method says how many.
    """
    kept = draws[np.isfinite(draws)]
    missing = f", undefined in {len(draws) - len(kept):,}" if len(kept) < len(draws) else ""
    method = f"{what}, {len(draws):,} resamples{missing}"
    if not len(kept) or not np.isfinite(value):
        return Estimate(value, float("nan"), float("nan"), n, method)
    low, high = np.percentile(kept, [2.5, 97.5])
    return Estimate(value, float(low), float(high), n, method)


def _strata(n: int, strata: ArrayLike | None) -> list[NDArray[np.bool_]]:
    labels = np.zeros(n, dtype=np.int64) if strata is None else np.unique(np.asarray(strata), return_inverse=True)[1]
    return [labels == label for label in range(labels.max(initial=-1) + 1)]


def _generator(how: Resampling, n: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([how.seed, n]))


def _chunks(resamples: int, n: int) -> Iterator[tuple[int, int]]:
    """(start, length) of the chunks, small enough that their weights stay in the processor's cache."""
    step = max(1, _CELLS // max(1, n))
    return ((start, min(step, resamples - start)) for start in range(0, resamples, step))


def _drawn(rng: np.random.Generator, rows: int, counts: NDArray[np.int64]) -> Floats:
    """How often each kind comes when as many prompts as there are, are drawn with replacement: (rows, kinds)."""
    kinds, n = len(counts), int(counts.sum())
    if kinds * _FEW <= n:
        return rng.multinomial(n, counts / n, size=rows).astype(np.float64)
    drawn = rng.integers(n, size=(rows, n), dtype=np.int32)
    if kinds < n:
        drawn = np.repeat(np.arange(kinds, dtype=np.int32), counts)[drawn]
    drawn += np.arange(rows, dtype=np.int32)[:, None] * kinds
    return np.bincount(drawn.ravel(), minlength=rows * kinds).reshape(rows, kinds).astype(np.float64)
