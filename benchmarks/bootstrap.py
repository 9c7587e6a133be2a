"""How fast is the joint prompt bootstrap beside scipy's? Same data, same number of resamples, one process.

805 prompts x 3 seeds, 10,000 resamples, statistic wins / (wins + losses). CPU seconds, best of three, in turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import scipy.stats

from selectkd_eval.stats import ratio

PROMPTS, SEEDS, RESAMPLES = 805, 3, 10_000


def data() -> tuple[np.ndarray, np.ndarray]:
    """Wins and decisive judgements per prompt."""
    rng = np.random.default_rng(0)
    outcomes = rng.choice([1, 0, -1], p=[0.5, 0.1, 0.4], size=(PROMPTS, SEEDS))
    return (outcomes == 1).sum(1), (outcomes != 0).sum(1)


def ours(wins: np.ndarray, decisive: np.ndarray) -> tuple[float, float]:
    """selectkd_eval.stats.ratio."""
    estimate = ratio(wins, decisive, resamples=RESAMPLES)
    return estimate.low, estimate.high


def scipys(wins: np.ndarray, decisive: np.ndarray) -> tuple[float, float]:
    """scipy.stats.bootstrap, paired, percentile, in batches so that it fits in memory."""
    interval = scipy.stats.bootstrap(
        (wins, decisive),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=500,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def seconds(function: Callable[[np.ndarray, np.ndarray], tuple[float, float]]) -> float:
    """CPU seconds of one call."""
    started = time.process_time()
    function(*data())
    return time.process_time() - started


if __name__ == "__main__":
    times = [(seconds(ours), seconds(scipys)) for _ in range(3)]
    mine, theirs = (min(column) for column in zip(*times, strict=True))
    print(f"interval  ours {ours(*data())}  scipy {scipys(*data())}")
    print(f"CPU s     ours {mine:.3f}  scipy {theirs:.3f}  scipy / ours {theirs / mine:.2f}")
