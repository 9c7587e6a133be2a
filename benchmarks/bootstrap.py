"""How fast, and how right, are our intervals and tests beside scipy's? Same data and number of draws, one process.

805 prompts x 3 seeds (x 3 tasks), 10,000 resamples, statistic wins / (wins + losses); 811, a prime, has no even
blocks. CPU milliseconds, in turns, the best of several; scipy runs with the batch that suits it best of three.
Then how often nominal 95 % intervals cover the truth, where seeds differ by nothing, a little and much.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import scipy.stats

from selectkd_eval.stats import crossed, mean_of_ratios, paired_delta, ratio, ratios, swap_test

RESAMPLES = 10_000
Terms = tuple[np.ndarray, np.ndarray]
Limits = tuple[float, float]


def outcomes(seed: int, prompts: int = 805) -> np.ndarray:
    """1 won, 0 tied, -1 lost: (prompts, 3 seeds), where prompts differ in how winnable they are."""
    rng = np.random.default_rng(seed)
    shift = rng.normal(0, 0.8, (prompts, 1))
    noise = rng.logistic(size=(prompts, 3))
    return np.where(rng.random((prompts, 3)) < 0.1, 0, np.where(shift + noise > -0.2, 1, -1)).astype(np.int8)


def counted(rows: np.ndarray) -> Terms:
    """Wins and decided comparisons per prompt."""
    return (rows == 1).sum(axis=1).astype(float), (rows != 0).sum(axis=1).astype(float)


def share(wins: np.ndarray, decided: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.asarray(wins.sum(axis) / decided.sum(axis))


def rate(rows: np.ndarray, axis: int) -> np.ndarray:
    return np.asarray((rows == 1).sum(axis) / (rows != 0).sum(axis))


def scipys_average(tasks: Sequence[Terms], method: str, batch: int) -> Limits:
    """Paired within each task, so that a prompt's seeds stay together; the tasks' resamples are averaged."""
    found = [scipys(task, share, method, batch) for task in tasks]
    total = sum(one.bootstrap_distribution for one in found) / len(found)
    low, high = np.percentile(total, [2.5, 97.5])
    return float(low), float(high)


def scipys(data: Sequence[np.ndarray], statistic: Callable[..., np.ndarray], method: str, batch: int) -> object:
    """scipy.stats.bootstrap over prompts, paired."""
    return scipy.stats.bootstrap(
        data,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=batch,
        method=method,
        rng=np.random.default_rng(1),
    )


def scipys_rows(tasks: Sequence[np.ndarray], batch: int) -> Limits:
    """Rows taken as independent, three samples at once: what a first attempt with scipy looks like; too narrow."""
    interval = scipy.stats.bootstrap(
        [rows.ravel() for rows in tasks],
        lambda a, b, c, axis: (rate(a, axis) + rate(b, axis) + rate(c, axis)) / 3,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=batch,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def scipys_interval(
    data: Sequence[np.ndarray], statistic: Callable[..., np.ndarray], method: str, batch: int
) -> Limits:
    interval = scipys(data, statistic, method, batch).confidence_interval  # type: ignore[attr-defined]
    return float(interval.low), float(interval.high)


def scipys_swaps(a: Terms, b: Terms, batch: int) -> Limits:
    """scipy.stats.permutation_test, entries of two samples swapped within pairs: (p, p)."""
    top, bottom, n = np.r_[a[0], b[0]], np.r_[a[1], b[1]], len(a[0])

    def gap(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return np.asarray(top[x].sum(axis) / bottom[x].sum(axis) - top[y].sum(axis) / bottom[y].sum(axis))

    found = scipy.stats.permutation_test(
        (np.arange(n), np.arange(n) + n),
        gap,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=batch,
        rng=np.random.default_rng(1),
    )
    return float(found.pvalue), float(found.pvalue)


def limits(estimate: object) -> Limits:
    return estimate.low, estimate.high  # type: ignore[attr-defined]


def cases() -> dict[str, tuple[Callable[[], Limits], Callable[[int], Limits]]]:
    """name: ours, and scipy's with a batch size."""
    raw = [outcomes(seed) for seed in range(3)]
    tasks, others, primes = (
        [counted(outcomes(first + seed, n)) for seed in range(3)] for first, n in ((0, 805), (10, 805), (20, 811))
    )
    many = [counted(outcomes(30 + seed)) for seed in range(16)]
    num, den = (np.stack([terms[which] for terms in many]) for which in (0, 1))
    four = (*tasks[0], *others[0])

    def difference(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray, axis: int) -> np.ndarray:
        return share(a, b, axis) - share(c, d, axis)

    def jointly() -> Limits:
        return tuple(np.percentile(ratios(num, den, None, RESAMPLES, 0), [2.5, 97.5], axis=1)[:, 0].tolist())

    def one_by_one(batch: int) -> Limits:
        every = [scipys_interval(terms, share, "percentile", batch) for terms in many]
        return every[0]

    return {
        "AVG of 3 tasks, clustered": (
            lambda: limits(mean_of_ratios(tasks)[0]),
            lambda batch: scipys_average(tasks, "percentile", batch),
        ),
        "the same against pooled rows": (
            lambda: limits(mean_of_ratios(tasks)[0]),
            lambda batch: scipys_rows(raw, batch),
        ),
        "AVG of 3 tasks, 811 prompts": (
            lambda: limits(mean_of_ratios(primes)[0]),
            lambda batch: scipys_average(primes, "percentile", batch),
        ),
        "1 task": (
            lambda: limits(ratio(*tasks[0])),
            lambda batch: scipys_interval(tasks[0], share, "percentile", batch),
        ),
        "1 task, BCa": (
            lambda: limits(ratio(*tasks[0], method="bca")),
            lambda batch: scipys_interval(tasks[0], share, "BCa", batch),
        ),
        "paired difference": (
            lambda: limits(paired_delta(*four)[0]),
            lambda batch: scipys_interval(four, difference, "percentile", batch),
        ),
        "16 methods jointly, 1 task": (jointly, one_by_one),
        "label swaps (p, twice)": (
            lambda: (swap_test(*four)[0],) * 2,
            lambda batch: scipys_swaps(tasks[0], others[0], batch),
        ),
    }


def milliseconds(function: Callable[[], Limits]) -> float:
    """CPU time of one call."""
    started = time.process_time()
    function()
    return 1000 * (time.process_time() - started)


def speed(turns: int = 4) -> None:
    """One line per case. Ours runs five times per turn: a call of 4 ms is easily disturbed."""
    print(f"{'':30}{'ours ms':>9}{'scipy ms':>10}{'ratio':>7}   ours              scipy")
    for name, (ours, peer) in cases().items():
        mine, theirs = [], []
        for _ in range(turns):
            mine += [milliseconds(ours) for _ in range(5)]
            theirs += [milliseconds(partial(peer, batch)) for batch in (50, 200, 500)]
        spans = "   ".join(f"{low:.4f} to {high:.4f}" for low, high in (ours(), peer(200)))
        print(f"{name:30}{min(mine):9.2f}{min(theirs):10.1f}{min(theirs) / min(mine):7.1f}   {spans}", flush=True)


def coverage(prompts: int = 218, simulations: int = 400) -> None:
    """Shares of nominal 95 % intervals that hold the truth; 400 simulations spread by 1.1 points."""
    print(f"\ncoverage in %, {prompts} prompts x 3 seeds{'':8}rows  prompts  BCa  crossed")
    for spread in (0.0, 0.08, 0.2):
        rng, hits = np.random.default_rng(5), Counter[str]()
        truth = share_won(spread)
        for _ in range(simulations):
            easy, skill = rng.normal(0, 1.5, (prompts, 1)), rng.normal(0, spread, (1, 3))
            won = (rng.logistic(size=(prompts, 3)) < easy + skill + 0.2).astype(float)
            decided = (rng.random((prompts, 3)) < 0.9).astype(float)
            cells = won * decided, decided
            sums = cells[0].sum(1), cells[1].sum(1)
            found = {
                "rows": ratio(cells[0].ravel(), cells[1].ravel(), resamples=1000),
                "prompts": ratio(*sums, resamples=1000),
                "BCa": ratio(*sums, resamples=1000, method="bca"),
                "crossed": crossed(*cells, resamples=1000),
            }
            hits.update(name for name, one in found.items() if one.low <= truth <= one.high)
        shares = [100 * hits[name] / simulations for name in ("rows", "prompts", "BCa", "crossed")]
        print(f"  seeds' logits spread by {spread:4.2f}{'':8}" + "".join(f"{one:8.1f}" for one in shares), flush=True)


def share_won(spread: float) -> float:
    """The true rate, by quadrature over the prompts' and the seeds' logits."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    logits = np.sqrt(1.5**2 + spread**2) * nodes + 0.2
    return float((weights / weights.sum()) @ (1 / (1 + np.exp(-logits))))


if __name__ == "__main__":
    speed()
    coverage()
