"""What would other prompts have given? Sums over resampled prompts, the engine behind every interval of `stats`.

Resampling N prompts with replacement and adding up what was measured on each has a law, and three ways of drawing from
it lie here; each gives exactly the law of drawing N indices, and the cheapest for the data is taken:

- blocks: counts (verdicts, right answers) lie on a small lattice, and the joint law of the sums over a block of b
  prompts is the b-fold convolution of the law of one prompt, by Fourier transform. N // b draws make a resample, with
  an index for each prompt that is left over.
- kinds: where few prompts differ from each other, how often each kind is drawn is multinomial.
- indices: times and other real numbers, and many methods at once, are counted prompt by prompt.

Only a chunk of resamples is held at any time. It knows no ratio of its own accord but `ratios`, and no file.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_HELD = 1 << 16  # draws or weights held at once: they stay in a core's cache
_CELLS = 1 << 20  # largest lattice of a block
_BUCKETS = 1 << 16  # of the guide into a block's law: one half-word of random bits
# What things cost, in draws from a block's law (4 ns): measured, and only ever a matter of speed.
_CELL, _LAW, _BINOMIAL, _INDEX = 8.0, 50_000.0, 20.0, 3.0
_BEYOND = 32.0  # exp(-32) is 1e-14, no more than the transform's rounding: what a law leaves out at either end
_NOISE = 1e-16  # probabilities below are the Fourier transform's rounding
_NORMAL = NormalDist()
_TAILS = (0.025, 0.975)


def ratios(num: Floats, den: Floats, strata: ArrayLike | None, resamples: int, seed: int) -> Floats:
    """sum(num) / sum(den) of every method under the same resampled prompts, (methods, resamples).

    `num` and `den` are (methods, N); `strata`, (N,), keeps each stratum's number of prompts. A resample without a
    denominator is NaN or infinite.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, num.shape[1]]))
    top, bottom = np.split(resampled_sums(np.concatenate([num, den]), strata, resamples, rng), 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(top / bottom)


def resampled_sums(table: Floats, strata: ArrayLike | None, resamples: int, rng: np.random.Generator) -> Floats:
    """Sums of the rows of `table`, (K, N), over N prompts drawn with replacement within strata, (K, resamples)."""
    total = np.zeros((len(table), resamples))
    for part in parts(table, strata):
        for at, sums in _streamed(part, resamples, rng):
            total[:, at : at + sums.shape[1]] += sums
    return total


def parts(table: Floats, strata: ArrayLike | None) -> list[Floats]:
    """The columns of `table`, (K, N), stratum by stratum, in the order of the labels."""
    if strata is None:
        return [table]
    labels = np.unique(np.asarray(strata), return_inverse=True)[1]
    return [table[:, labels == label] for label in range(labels.max(initial=-1) + 1)]


def merged_strata(labels: ArrayLike, smallest: int = 10) -> Ints:
    """Strata to resample within, (N,) of whole numbers, those with fewer than `smallest` prompts put together.

    A stratum of one prompt has no spread of its own and one of a few too little, so that the interval would be too
    narrow. Where those put together are still too few, the smallest of the others joins them.
    """
    names = [str(label) for label in np.asarray(labels).ravel()]
    sizes = Counter(names)
    # By size, then by name: the order of the prompts must not matter.
    ranked = sorted(sizes, key=lambda name: (sizes[name], name))
    merged, held = 0, 0
    for name in ranked:
        if sizes[name] >= smallest and (held == 0 or held >= smallest):
            break
        merged, held = merged + 1, held + sizes[name]
    codes = {name: max(0, rank - merged + 1) for rank, name in enumerate(ranked)}
    return np.array([codes[name] for name in names], dtype=np.int64)


def _streamed(part: Floats, resamples: int, rng: np.random.Generator) -> Iterator[tuple[int, Floats]]:
    """(start, sums) of one stratum, chunk by chunk, in the cheapest of the three ways."""
    n = part.shape[1]
    if not n:
        return iter(())
    lattice = _Lattice.of(part)
    block, cost = lattice.block(n, resamples) if lattice is not None else (0, np.inf)
    if lattice is not None and cost <= 2 * _BINOMIAL:
        return lattice.draws(block, resamples, rng)
    kinds, counts = np.unique(part, axis=1, return_counts=True)
    if lattice is not None and cost <= min(_BINOMIAL * len(counts), _INDEX * n):
        return lattice.draws(block, resamples, rng)
    if _BINOMIAL * len(counts) <= _INDEX * n:
        return _by_kinds(kinds, counts, resamples, rng)
    return _by_indices(part, resamples, rng)


def _chunks(resamples: int, each: int) -> Iterator[tuple[int, int]]:
    """(start, rows) of chunks that hold about _HELD numbers, when a resample needs `each`."""
    rows = -(-resamples // max(1, resamples * each // _HELD))
    for start in range(0, resamples, rows):
        yield start, min(rows, resamples - start)


def _by_kinds(kinds: Floats, counts: Ints, resamples: int, rng: np.random.Generator) -> Iterator[tuple[int, Floats]]:
    """Counts over kinds of prompt are multinomial."""
    n = int(counts.sum())
    for start, rows in _chunks(resamples, len(counts)):
        yield start, kinds @ rng.multinomial(n, counts / n, size=rows).T


def _by_indices(part: Floats, resamples: int, rng: np.random.Generator) -> Iterator[tuple[int, Floats]]:
    """How often each prompt's index is drawn, counted; one matrix product serves all rows."""
    part, n = part[:, np.lexsort(part)], part.shape[1]  # in an order of its own: that of the prompts must not matter
    for start, rows in _chunks(resamples, n):
        drawn = rng.integers(n, size=(rows, n)) + np.arange(rows)[:, None] * n
        weights = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        yield start, part @ weights.T.astype(np.float64)


@dataclass(frozen=True)
class _Lattice:
    """A table whose rows are low + unit x whole steps; rows that never move take no part in the lattice.

    steps (k, N) of the k rows that move, spans (k,) their largest steps, moves (K,) which rows they are.
    """

    steps: Ints
    spans: Ints
    moves: NDArray[np.bool_]
    low: Floats
    unit: Floats

    @classmethod
    def of(cls, table: Floats) -> _Lattice | None:
        """The lattice of whole and half numbers that the table lies on; None where it does not."""
        doubled = 2 * table
        if not table.shape[1] or not (np.abs(doubled) < 2**40).all() or not (doubled == np.rint(doubled)).all():
            return None
        whole = doubled.astype(np.int64)
        low = whole.min(axis=1)
        steps = whole - low[:, None]
        unit = np.gcd.reduce(steps, axis=1)
        moves = unit > 0
        steps = steps[moves] // unit[moves, None]
        return cls(steps, steps.max(axis=1, initial=0), moves, low / 2, unit[moves] / 2)

    def block(self, n: int, resamples: int) -> tuple[int, float]:
        """The cheapest number of prompts in a block, and its cost in draws per resample; infinite without one."""
        if np.log2(n * self.spans + 1.0).sum() >= 62:
            return 0, np.inf
        sizes = n // np.arange(1, n + 1)  # of sizes that need as many draws, those with the smallest rest
        cells = self._cells(sizes)
        cost = (_LAW + _CELL * cells) / resamples + n // sizes + n % sizes
        cost[cells > _CELLS] = np.inf
        best = int(cost.argmin())
        return int(sizes[best]), float(cost[best])

    def _cells(self, sizes: Ints) -> Floats:
        """About how many cells the lattice of each size of block has: its whole range, or where nearly all of it is."""
        cells = np.ones(sizes.shape)
        for span, spread in zip(self.spans, self.steps.std(axis=1), strict=True):
            cells *= np.minimum(sizes * span, 2 * np.sqrt(2 * _BEYOND * sizes) * spread + span) + 1.0
        return cells

    def draws(self, block: int, resamples: int, rng: np.random.Generator) -> Iterator[tuple[int, Floats]]:
        """Sums over N prompts, by blocks and then those left over; a draw's sums are packed into one whole number."""
        n = self.steps.shape[1]
        start = n * self.low[:, None]
        if not len(self.spans):
            yield 0, np.repeat(start, resamples, axis=1)
            return
        radix = tuple(int(size) for size in n * self.spans + 1)
        moving = np.flatnonzero(self.moves)
        many, rest = divmod(n, block)
        law = self._law(block, radix)
        single = np.sort(np.ravel_multi_index(tuple(self.steps), radix)).astype(law.packed.dtype)
        for at, rows in _chunks(resamples, many):
            packed = law.sums(rng, many, rows)
            if rest:
                packed += single.take(rng.integers(n, size=(rest, rows))).sum(axis=0, dtype=packed.dtype)
            sums = np.empty((len(start), rows))
            sums[:] = start
            for row, unit, size in reversed(list(zip(moving, self.unit, radix, strict=True))):
                packed, steps = np.divmod(packed, size)
                sums[row] += unit * steps
            yield at, sums

    def _law(self, block: int, radix: tuple[int, ...]) -> _Law:
        """The joint law of the steps' sums over `block` prompts, each drawn from all N alike."""
        shape = self.spans + 1
        at = np.ravel_multi_index(tuple(self.steps), tuple(shape))
        one = np.bincount(at, minlength=int(shape.prod())).reshape(shape) / len(at)
        axes = tuple(range(len(shape)))
        windows = [_window(one.sum(axis=tuple(set(axes) - {axis})), block) for axis in axes]
        # At least as large as one prompt's range, of which the transform would leave out the rest.
        grid = [_smooth(max(high - low + 1, int(size))) for (low, high), size in zip(windows, shape, strict=True)]
        power = _power(np.fft.rfftn(one, grid, axes=axes), block)
        chance = np.fft.irfftn(power, grid, axes=axes).ravel()
        cells = np.flatnonzero(chance > _NOISE)
        # On a grid smaller than the sums' range they wrap round; the window says which of them a cell stands for.
        packed = np.zeros(1, dtype=np.int64)
        for size, (low, _), most in zip(grid, windows, radix, strict=True):
            sums = low + (np.arange(size) - low) % size
            packed = np.add.outer(packed * most, np.minimum(sums, most - 1)).ravel()
        packed = packed[cells]
        small = np.prod(radix, dtype=float) < 2**31  # half the memory keeps the guide in the cache
        return _Law(chance[cells], packed.astype(np.int32) if small else packed.astype(np.int64))


def _window(chance: Floats, block: int) -> tuple[int, int]:
    """Smallest and largest sum over a block that need a cell: exp(-_BEYOND) lies beyond either, by Chernoff's bound.

    `chance` are one prompt's probabilities of 0, 1, ... steps. The bound holds for any tilt; the normal law's best
    tilts are tried.
    """
    steps = np.arange(len(chance))
    mean = float(chance @ steps)
    best = np.sqrt(2 * _BEYOND / block / max(float(chance @ (steps - mean) ** 2), 1e-12))
    tilts = np.minimum(best * np.array([0.6, 0.8, 1.0, 1.25, 1.6, 2.0]), 500 / len(steps))
    sides = np.stack([-tilts, tilts])
    far = (block * np.log(np.exp(sides[..., None] * (steps - mean)) @ chance) + _BEYOND) / tilts
    down, up = far.min(axis=1)
    low, high = math.floor(block * mean - down), math.ceil(block * mean + up)
    return max(0, low), min(block * (len(chance) - 1), high)


def _smooth(size: int) -> int:
    """The next size whose prime factors are all small, for the Fourier transform."""
    while True:
        rest = size
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 1


def _power(base: NDArray[np.complex128], exponent: int) -> NDArray[np.complex128]:
    """base ** exponent by squaring; numpy's own takes logarithms, which is slower and less exact."""
    found = None
    while True:
        if exponent & 1:
            found = base if found is None else found * base
        exponent >>= 1
        if not exponent:
            return base if found is None else found
        base = base * base


class _Law:
    """Draws from a law over packed sums by inverting its distribution function, with a guide table.

    16 random bits choose a bucket of the unit interval. Nearly every bucket lies within one cell, which is the answer;
    only in the others are more bits drawn and the cell searched for.
    """

    def __init__(self, chance: Floats, packed: NDArray[Any]) -> None:
        self.upto = np.cumsum(chance)
        self.upto /= self.upto[-1]
        self.packed = packed
        self.upto[-1] = 1.0
        ends = (self.upto * _BUCKETS).astype(np.int64)
        self.guide = np.repeat(packed, np.diff(ends, prepend=0))
        # Buckets within which cells end hold the first of these cells, negative and from -1.
        shared = ends[: np.searchsorted(ends, _BUCKETS)][
            ::-1
        ]  # of cells that end in one bucket, the first is written last and stays
        self.guide[shared] = -np.arange(len(shared), 0, -1)
        self.upto[-1] = np.inf  # a point may round up to 1 itself

    def sums(self, rng: np.random.Generator, many: int, rows: int) -> NDArray[np.int64]:
        """Sums of `many` independent draws, (rows,)."""
        words = rng.integers(0, 2**64, size=-(-many * rows // 4), dtype=np.uint64)
        bucket = words.view(np.uint16)[: many * rows]
        found = self.guide.take(bucket)  # half the time of an index in brackets
        unsure = np.flatnonzero(found < 0)
        point = (bucket.take(unsure) + rng.random(len(unsure))) / _BUCKETS
        found[unsure] = self.packed.take(self._cell(~found.take(unsure), point))
        return np.asarray(found.reshape(many, rows).sum(axis=0, dtype=found.dtype))

    def _cell(self, first: NDArray[Any], point: Floats) -> NDArray[Any]:
        """The cell of each point, from the first cell of its bucket. Most buckets are shared by two."""
        first += self.upto.take(first) <= point
        further = np.flatnonzero(self.upto.take(first) <= point)
        first[further] = np.searchsorted(self.upto, point[further], side="right")
        return first


def limits(draws: Floats, value: float, without: Sequence[Floats] | None = None) -> tuple[float, float]:
    """The 95 % limits from resampled values: percentiles, or BCa ones (Efron 1987) from the leave-one-out values.

    `without` holds per stratum, n_s values, the statistic without each prompt. Values that do not exist (no
    denominator) are left out. NaN twice where none exists.
    """
    kept = draws if np.isfinite(draws).all() else draws[np.isfinite(draws)]
    if not len(kept):
        return float("nan"), float("nan")
    low, high = np.quantile(kept, _TAILS if without is None else _bca_levels(kept, value, without))
    return float(low), float(high)


def _bca_levels(draws: Floats, value: float, without: Sequence[Floats]) -> tuple[float, float]:
    """The two percentiles that correct for bias and for an error that depends on the value."""
    near = 1e-12 * max(1.0, abs(value))  # rounding must not decide whether a resample equals the value
    share = (np.mean(draws < value - near) + np.mean(draws <= value + near)) / 2
    # The value beyond every resample would have its bias infinite.
    bias = _NORMAL.inv_cdf(float(np.clip(share, 0.5 / len(draws), 1 - 0.5 / len(draws))))
    skew = _acceleration(without)
    first, last = (bias + _NORMAL.inv_cdf(tail) for tail in _TAILS)
    return _NORMAL.cdf(bias + first / (1 - skew * first)), _NORMAL.cdf(bias + last / (1 - skew * last))


def _acceleration(without: Sequence[Floats]) -> float:
    """Efron's a from the jackknife, for one or several samples: sum U^3 / n^3 over 6 (sum U^2 / n^2)^1.5."""
    cubes = squares = 0.0
    for values in without:
        kept, n = values[np.isfinite(values)], values.size
        if len(kept) > 1:
            pull = (n - 1) * (kept.mean() - kept) / n
            cubes += float((pull**3).sum())
            squares += float((pull**2).sum())
    return cubes / (6 * squares**1.5) if squares > 0 else 0.0


def without_each(num: Floats, den: Floats) -> Floats:
    """sum(num) / sum(den) without each prompt in turn, (..., N); not finite where nothing remains."""
    with np.errstate(divide="ignore", invalid="ignore"):
        rest = den.sum(axis=-1, keepdims=True) - den
        return np.asarray((num.sum(axis=-1, keepdims=True) - num) / rest)
