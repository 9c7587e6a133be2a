"""Which points of the planes are measured? The grid, points off it, further points where the interpolation is off.

All of it is a function of the options and of what was measured, never of the order or the device: so a killed run goes
on where it was, and shares of one landscape fit together without knowing of each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from selectkd_eval.errors import InputError
from selectkd_eval.surfaces import LEVELS, QUARTERS, Surface

REFINED = 0.25  # of the cells that may be halved at a level, those where the spline is most in doubt


class Point(NamedTuple):
    """One point of a plane: the key of its row without the student, its coordinates, and what else the row holds."""

    kind: str
    at: str
    a: float
    b: float
    place: dict[str, int]

    def key(self, student: int, seed: int) -> str:
        """The key of this point's row."""
        prefix = {"grid": "", "refined": "fine/", "held-out": "held/"}[self.kind]
        return f"{prefix}{student}/{seed}/{self.at}"

    def row(self, student: int, seed: int) -> dict[str, Any]:
        """What the row says beside the measurement."""
        return {"kind": self.kind, "student": student, "seed": seed, "a": self.a, "b": self.b, **self.place}


def coordinates(radius: float, grid: int) -> list[float]:
    """``grid`` points from -radius to radius; the middle one is exactly 0, so the model itself is on the
    grid.
    """
    half = (grid - 1) // 2
    return [radius * (i - half) / half for i in range(grid)]


def grid_points(radius: float, grid: int) -> list[Point]:
    """The grid, row by row."""
    axis = coordinates(radius, grid)
    return [Point("grid", f"{i}/{j}", a, b, {"i": i, "j": j}) for i, a in enumerate(axis) for j, b in enumerate(axis)]


def held_out_points(radius: float, count: int, seed: int) -> list[Point]:
    """Off-grid points, the same for every student: one in each of `count` strips of either axis (Latin hypercube)."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/held-out".encode()).digest()[:16], "big")
    generator = np.random.Generator(np.random.Philox(key=key))
    strips = np.stack([generator.permutation(count), generator.permutation(count)], axis=1)
    places = radius * (2 * (strips + generator.random((count, 2))) / max(count, 1) - 1)
    return [Point("held-out", str(n), float(a), float(b), {"n": n}) for n, (a, b) in enumerate(places)]


def refined_points(
    surfaces: Sequence[Surface], tolerance: float, radius: float, grid: int, level: int, within: Sequence[Point]
) -> list[Point]:
    """The further points of `level` (from 1) for one direction seed: none when the interpolation is good enough.

    Good enough: at the held-out points no student's surface is off by more than `tolerance` of its range. Otherwise the
    cells where some student's spline is most in doubt (`Surface.doubt`), in ranges, are halved for all students. From
    the second level on, only cells beside a point of the level before (`within`) may be.
    """
    off = [surface.residual / surface.range for surface in surfaces if surface.range > 0]
    if level > LEVELS or not off or not any(value > tolerance for value in off):
        return []
    doubt = np.max([np.nan_to_num(surface.doubt() / surface.range, nan=-1.0) for surface in surfaces], axis=0)
    step = QUARTERS // 2**level  # quarters of a grid cell between points of this level
    if level > 1:
        doubt = np.where(_beside(doubt.shape, within, step * 2), doubt, -1.0)
    order = np.argsort(-doubt, axis=None, kind="stable")
    able = int((doubt > 0).sum())
    cells = [divmod(int(cell), doubt.shape[1]) for cell in order[: max(1, round(REFINED * able))] if able]
    places = sorted({(2 * i + di, 2 * j + dj) for i, j in cells for di, dj in _MIDPOINTS})
    axis = coordinates(radius, QUARTERS * (grid - 1) + 1)
    return [
        Point("refined", f"{i}/{j}", axis[i], axis[j], {"I": i, "J": j, "level": level})
        for i, j in ((step * x, step * y) for x, y in places)
    ]


def share_of(share: str) -> tuple[int, int]:
    """``K/N`` as (K - 1, N), and (0, 1) where nothing was asked; InputError for anything else."""
    if not share:
        return 0, 1
    first, _, of = share.partition("/")
    if not (first.isdigit() and of.isdigit() and 1 <= int(first) <= int(of)):
        raise InputError(
            f"--share is {share!r}, not K/N with 1 <= K <= N: give 1/4, 2/4, 3/4 and 4/4 to four processes"
        )
    return int(first) - 1, int(of)


_MIDPOINTS = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))


def _beside(shape: tuple[int, ...], within: Sequence[Point], step: int) -> Any:
    """Cells of the lattice with `step` quarters per interval that touch one of the points."""
    beside = np.zeros(shape, dtype=bool)
    for point in within:
        i, j = point.place["I"] // step, point.place["J"] // step
        beside[max(i - 1, 0) : i + 1, max(j - 1, 0) : j + 1] = True
    return beside
