"""Is one student's landscape told apart from another's? Means over directions and training seeds, with intervals.

The ordering of two students flips with the directions and with the radius, and students of one method differ as much as
methods do. So a method's value has an interval over its direction seeds, and over its training seeds too where there
are several; two methods are compared by the differences of students of one training seed along one pair of directions.

It reads no files and draws nothing. Where one direction seed was drawn, no interval here covers the choice of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from analysis.landscapes import Landscapes, Plane
from analysis.load import Library, Method
from selectkd_eval import flatness
from selectkd_eval.stats import Estimate, Floats, t_reach

# Order and names of the scalars in figure, words and `show`.
SCALARS = {
    "curvature": "curvature E[d'Hd]",
    "flatness r": "mean rise at r",
    "flatness 2r": "mean rise at 2r",
    "sharpness rho": "worst rise nearby",
    "hessian_1": "top Hessian eigenvalue",
    "normalised_hessian_1": "the same, row units",
}
_RAYS = "random directions"  # of scalars: many of one seed, where planes have a pair of each seed


class Profile(NamedTuple):
    """A quantity by distance from the student: `values` ``(S, D, R)`` over training seeds, direction seeds, rings."""

    distances: Floats
    values: Floats
    seeds: tuple[int | None, ...]
    directions: tuple[int, ...]

    @property
    def mean(self) -> Floats:
        """``(R,)``; NaN where a ring has a point missing in any plane."""
        return np.asarray(self.values.mean(axis=(0, 1)))

    def estimates(self) -> list[Estimate]:
        """The mean with its interval, ring by ring."""
        return [crossed_t(self.values[:, :, ring]) for ring in range(len(self.distances))]


def crossed_t(values: ArrayLike, drawn: str = "direction seeds") -> Estimate:
    """The mean of ``(S, D)`` values, training seeds by directions, with a t interval that covers both draws.

    Its variance is var(seed means) / S + var(direction means) / D: what neither seed nor direction explains is counted
    in both, which errs on the wide side. Degrees of freedom after Satterthwaite (1946). With one training seed it is
    the t interval over directions, with one direction that over training seeds; a single value has no interval.
    `drawn`: what the directions are, in words.
    """
    values = np.asarray(values, dtype=np.float64)
    sizes, value = values.shape, float(values.mean()) if values.size else float("nan")
    parts = [(float(values.mean(axis=1 - axis).var(ddof=1)) / n, n - 1) for axis, n in enumerate(sizes) if n > 1]
    words = covered(sizes[0], sizes[1], drawn)
    total = sum(variance for variance, _ in parts)
    if not np.isfinite(value) or total == 0:
        return Estimate(value, value, value, values.size, words)
    freedom = total**2 / sum(variance**2 / df for variance, df in parts)
    half = float(t_reach(np.sqrt(total), freedom))
    return Estimate(value, value - half, value + half, values.size, words)


def covered(seeds: int, directions: int, drawn: str = "direction seeds") -> str:
    """What an interval over so many training seeds and directions covers, in words."""
    several = [f"{n} {what}" for n, what in ((directions, drawn), (seeds, "training seeds")) if n > 1]
    return f"95 % t interval over {' and '.join(several)}" if several else f"one {drawn.removesuffix('s')}, no interval"


def profile(planes: Sequence[Plane], what: str = "loss") -> Profile | None:
    """How the loss rises (or a metric falls) with the distance, over students along the directions that all of them
    have; None where there is no common one. A metric's values are its own, not its change.
    """
    directions = sorted(set.intersection(*(set(plane.of(what)) for plane in planes)))
    if not directions:
        return None
    found = [[plane.of(what)[seed] for seed in directions] for plane in planes]
    distances = found[0][0].profile()[0]
    offset = 0.0 if what == "loss" else 1.0
    values = np.array([[one.profile()[1] + offset * one.centre for one in row] for row in found])
    return Profile(distances, values, tuple(plane.seed for plane in planes), tuple(directions))


def paired(a: Sequence[Plane], b: Sequence[Plane], what: str = "loss") -> Profile | None:
    """Students of one training seed, a minus b along the same directions; None where nothing is shared."""
    mine, theirs = ({plane.seed: plane for plane in planes} for planes in (a, b))
    seeds = sorted(mine.keys() & theirs.keys(), key=lambda seed: (seed is not None, seed or 0))
    if not seeds:
        return None
    both = profile([*(mine[seed] for seed in seeds), *(theirs[seed] for seed in seeds)], what)
    if both is None:
        return None
    return both._replace(values=both.values[: len(seeds)] - both.values[len(seeds) :], seeds=tuple(seeds))


def bases(library: Library, methods: Sequence[Method]) -> dict[Method, Method]:
    """Every method with a gate whose plain method stands beside it, and that one."""
    found = {method: library.base_of(method, methods) for method in methods if method.base}
    return {method: base for method, base in found.items() if base is not None}


class Scalar(NamedTuple):
    """One number of a method, and of its students by training seed."""

    estimate: Estimate
    students: tuple[float, ...]


def scalars(land: Landscapes, method: Method) -> dict[str, Scalar]:
    """Every scalar that was measured of all students of a method, in the order of `SCALARS`."""
    planes = land.students(method)
    found: dict[str, Scalar] = {}
    single = [flatness.scalars(land.rows, plane.index) for plane in planes]
    for name in SCALARS:
        if not all(name in values for values in single):
            continue
        matrix = _matrix(land, planes, name)
        values = tuple(values[name].value for values in single)
        if matrix is not None:
            found[name] = Scalar(crossed_t(matrix, _RAYS), tuple(float(value) for value in matrix.mean(axis=1)))
        elif len(values) > 1:
            found[name] = Scalar(crossed_t(np.array(values)[:, None]), values)
        else:
            found[name] = Scalar(single[0][name], values)
    return found


def paired_scalar(land: Landscapes, method: Method, base: Method, name: str) -> Estimate | None:
    """Method minus base of one scalar per direction, by training seed and direction; None where nothing is shared."""
    mine, theirs = ({plane.seed: plane for plane in land.students(each)} for each in (method, base))
    seeds = sorted(mine.keys() & theirs.keys(), key=lambda seed: (seed is not None, seed or 0))
    if not seeds or not same_rays(land):
        return None
    both = _matrix(land, [*(mine[seed] for seed in seeds), *(theirs[seed] for seed in seeds)], name)
    return None if both is None else crossed_t(both[: len(seeds)] - both[len(seeds) :], _RAYS)


def same_rays(land: Landscapes) -> bool:
    """Whether the scalars of all students were measured along the same directions at the same distances."""
    known: list[dict[str, Any]] = [flatness.settings(land.rows, plane.index) for plane in land.planes]
    known = [settings for settings in known if settings]
    return all(settings == known[0] for settings in known)


def _matrix(land: Landscapes, planes: Sequence[Plane], name: str) -> Floats | None:
    """A scalar's values ``(S, D)`` by student and direction; None where it has none per direction in common."""
    found = [flatness.by_direction(land.rows, plane.index).get(name, {}) for plane in planes]
    shared = sorted(set.intersection(*(set(values) for values in found)))
    return np.array([[values[n] for n in shared] for values in found]) if shared else None
