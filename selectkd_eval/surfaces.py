"""From landscape points to a surface: the measured loss, what lies between the points, and how far that is off.

The illustration of the paper's Figure 4b is drawn from here, by terminal, tables, figures and page alike. Between the
points a bicubic spline is laid; points measured off the grid and never used for the spline say how far it is off. A
point that was not measured, or whose loss is not finite, stays missing: no spline is drawn over it.

It reads no files, knows no model and draws nothing; whether two surfaces may be compared is not decided here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from scipy.interpolate import CloughTocher2DInterpolator, RectBivariateSpline

from selectkd_eval.errors import InputError
from selectkd_eval.stats import Floats

Row = Mapping[str, Any]
LEVELS = 2  # how often a cell may be halved
QUARTERS = 2**LEVELS  # refined points are named on the lattice with so many intervals per grid cell

NO_POINTS = np.empty((0, 3))


@dataclass(frozen=True)
class Surface:
    """Token-mean loss (or another quantity) on one plane.

    Axes `a` ``(A,)`` and `b` ``(B,)``, `loss` ``(A, B)``: NaN where nothing is known. `measured` ``(A, B)``: the other
    values of a refined surface are the coarser spline's. `held_out` ``(H, 3)``: a, b, loss of points off the grid that
    no spline has seen. `stride`: intervals per cell of the grid that was measured whole (1 without refinement).
    """

    a: Floats
    b: Floats
    loss: Floats
    measured: np.ndarray[Any, np.dtype[np.bool_]]
    held_out: Floats = field(default_factory=lambda: NO_POINTS)
    stride: int = 1

    @property
    def centre(self) -> float:
        """The loss of the model itself."""
        middle = (int(np.abs(self.a).argmin()), int(np.abs(self.b).argmin()))
        return float(self.loss[middle])

    @property
    def range(self) -> float:
        """Largest minus smallest measured value on the lattice; NaN where nothing was measured."""
        values = self.loss[self.measured]
        return float(values.max() - values.min()) if len(values) else float("nan")

    @property
    def n_measured(self) -> int:
        """Points that the interpolation rests on."""
        return int(self.measured.sum())

    @property
    def residual(self) -> float:
        """Largest |measured - interpolated| over the held-out points; NaN where there is none to compare."""
        errors = self.errors
        return float(errors.max()) if len(errors) else float("nan")

    @property
    def errors(self) -> Floats:
        """|measured - interpolated| at every held-out point that lies in a cell with known corners."""
        errors = np.abs(self.held_out[:, 2] - self.at(self.held_out[:, 0], self.held_out[:, 1]))
        return errors[np.isfinite(errors)]

    def profile(self) -> tuple[Floats, Floats]:
        """Mean rise over the centre, ring by ring out to the plane's edge: (distances, rises), (G // 2 + 1,) each.

        Measured points of the grid only. A ring is one grid step wide, so that each holds every angle; the distance is
        its points' mean. A ring with a point missing has no rise (NaN): the loss is missing where it is largest, and
        the rest's mean is not its.
        """
        a, b = self.a[:: self.stride], self.b[:: self.stride]
        loss = np.where(self.measured, self.loss, np.nan)[:: self.stride, :: self.stride]
        distance = np.hypot(a[:, None], b[None, :])
        rings = np.rint(distance / float(np.diff(a).mean())).astype(int)
        kept = [rings == ring for ring in range(len(a) // 2 + 1)]
        rises = [float((loss[points] - self.centre).mean()) for points in kept]
        return np.array([float(distance[points].mean()) for points in kept]), np.array(rises)

    def at(self, a: Floats, b: Floats) -> Floats:
        """The interpolated value at points ``(N,)``, ``(N,)``: bicubic, or cubic by triangles around missing points.

        NaN outside the plane and in cells of the grid with a missing corner.
        """
        a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
        if not len(a):
            return np.empty(0)
        values = self._spline(a, b)
        i, j = (_cell(axis, x) for axis, x in ((self.a, a), (self.b, b)))
        known = np.isfinite(self.loss)
        corners = known[:-1, :-1] & known[1:, :-1] & known[:-1, 1:] & known[1:, 1:]
        inside = (i >= 0) & (j >= 0)
        inside[inside] = corners[i[inside], j[inside]]
        return np.where(inside, values, np.nan)

    def fine(self, points: int = 51) -> Surface:
        """The surface on `points` x `points`, for drawing only, within the range of what was measured.

        A spline can dip below its data, and a picture must not show a loss that nobody measured.
        """
        a, b = (np.linspace(axis[0], axis[-1], points) for axis in (self.a, self.b))
        if len(a) == len(self.a) and np.allclose(a, self.a) and self.measured.all():
            return self
        grid = np.meshgrid(a, b, indexing="ij")
        loss = self.at(grid[0].ravel(), grid[1].ravel()).reshape(points, points)
        seen = np.concatenate([self.loss[self.measured], self.held_out[:, 2]])
        if len(seen):
            loss = np.clip(loss, seen.min(), seen.max())
        return Surface(a, b, loss, np.zeros(loss.shape, dtype=bool), self.held_out)

    def doubt(self) -> Floats:
        """How far the bicubic spline is from the biquadratic one, per cell ``(A - 1, B - 1)``: the largest of five
        midpoints; around missing points, from the bilinear patch. NaN in cells with a missing corner, or with an edge
        of such a cell.

        Where it is largest, further points tell most. On landscapes of this package's students the order of the cells
        is nearer to that of the true errors than by the distance to the bilinear patch, which points at steep corners
        where the spline is good.
        """
        middle_a, middle_b = ((axis[:-1] + axis[1:]) / 2 for axis in (self.a, self.b))
        z = self.loss
        along_a, along_b = (z[:-1] + z[1:]) / 2, (z[:, :-1] + z[:, 1:]) / 2
        centre = (along_a[:, :-1] + along_a[:, 1:]) / 2
        whole = bool(np.isfinite(z).all())
        lower = (
            RectBivariateSpline(self.a, self.b, z, kx=self._degrees[0] - 1, ky=self._degrees[1] - 1) if whole else None
        )
        d_a, d_b, d_c = (
            np.abs(self._lattice(x, y) - (straight if lower is None else lower(x, y)))
            for x, y, straight in (
                (middle_a, self.b, along_a),
                (self.a, middle_b, along_b),
                (middle_a, middle_b, centre),
            )
        )
        return np.asarray(np.max(np.stack([d_c, d_a[:, :-1], d_a[:, 1:], d_b[:-1], d_b[1:]]), axis=0))

    @property
    def _degrees(self) -> tuple[int, int]:
        return min(3, len(self.a) - 1), min(3, len(self.b) - 1)

    def _lattice(self, a: Floats, b: Floats) -> Floats:
        grid = np.meshgrid(a, b, indexing="ij")
        return self.at(grid[0].ravel(), grid[1].ravel()).reshape(len(a), len(b))

    @cached_property
    def _spline(self) -> Any:
        known = np.isfinite(self.loss)
        if known.all():
            return RectBivariateSpline(self.a, self.b, self.loss, kx=self._degrees[0], ky=self._degrees[1]).ev
        if known.sum() < 4:
            return lambda a, b: np.full(len(a), np.nan)
        a, b = np.meshgrid(self.a, self.b, indexing="ij")
        return CloughTocher2DInterpolator(np.stack([a[known], b[known]], axis=1), self.loss[known])


def surface(rows: Iterable[Row], student: int, seed: int, what: str = "loss") -> Surface:
    """The surface of one student along one pair of directions: `what` is loss, or a metric that was measured.

    Refined points lie on a lattice 2 or 4 times as fine; its unmeasured points take the value of the coarser spline.
    Raises InputError where no point of this student under this seed was measured.
    """
    mine = [row for row in rows if row.get("student") == student and row.get("seed") == seed]
    grid = [row for row in mine if row.get("kind", "grid") == "grid"]
    good = [row for row in grid if "error" not in row]
    if not good:
        raise InputError(f"no landscape point of student {student} under direction seed {seed}: measure it first")
    if f"{what}_sum" not in good[0]:
        raise InputError(f"{what} was not measured in this landscape: run it again with --metric {what}")
    found = _grid(grid, what)
    held = [
        (float(row["a"]), float(row["b"]), _mean(row, what))
        for row in mine
        if row.get("kind") == "held-out" and "error" not in row
    ]
    held_out = np.array(sorted(held), dtype=np.float64).reshape(-1, 3)
    found = Surface(found.a, found.b, found.loss, found.measured, held_out)
    refined = [row for row in mine if row.get("kind") == "refined" and "error" not in row]
    for level in sorted({int(row["level"]) for row in refined}):
        points = [(float(row["a"]), float(row["b"]), _mean(row, what)) for row in refined if row["level"] == level]
        found = halved(found, points)
    return found


def halved(coarse: Surface, points: Iterable[tuple[float, float, float]]) -> Surface:
    """The surface on a lattice twice as fine, with these further points (a, b, value) measured.

    A point that was not measured takes the coarser spline's value: it adds nothing, and the spline through the finer
    lattice is the coarser one plus what the further points say against it.
    """
    a, b = (np.sort(np.concatenate([axis, (axis[:-1] + axis[1:]) / 2])) for axis in (coarse.a, coarse.b))
    loss = coarse._lattice(a, b)
    loss[::2, ::2] = coarse.loss
    measured = np.zeros(loss.shape, dtype=bool)
    measured[::2, ::2] = coarse.measured
    for x, y, value in points:
        at = _nearest(a, x), _nearest(b, y)
        loss[at], measured[at] = value, True
    return Surface(a, b, loss, measured, coarse.held_out, coarse.stride * 2)


def _grid(rows: list[Row], what: str) -> Surface:
    a, b = (np.array(sorted({float(row[axis]) for row in rows})) for axis in ("a", "b"))
    loss = np.full((len(a), len(b)), np.nan)
    for row in rows:
        if "error" not in row:
            loss[np.searchsorted(a, float(row["a"])), np.searchsorted(b, float(row["b"]))] = _mean(row, what)
    return Surface(a, b, loss, np.isfinite(loss))


def _mean(row: Row, what: str) -> float:
    return float(row[f"{what}_sum"]) / float(row["n_tokens"])


def _nearest(axis: Floats, x: float) -> int:
    return int(np.abs(axis - x).argmin())


def _cell(axis: Floats, x: Floats) -> np.ndarray[Any, np.dtype[np.intp]]:
    """The interval of the axis that each point lies in; -1 outside."""
    index = np.clip(np.searchsorted(axis, x, side="right") - 1, 0, len(axis) - 2)
    slack = 1e-9 * (axis[-1] - axis[0])
    return np.where((x < axis[0] - slack) | (x > axis[-1] + slack), -1, index)
