"""Which student sits in the flatter place? The paper's Figure 4b, with everything on one scale.

Surfaces above, contours below: the same loss on the same tokens along the same directions, one colour norm, one height.
They illustrate. A picture's order can flip with the directions and with the distance, so what is to be concluded stands
in the panels below: radial profiles with bands, paired differences from the plain method, scalars with intervals. The
surfaces shown are those of the seeds nearest to the mean profile, never the prettiest. Records that do not belong on
one scale are refused (`landscapes`).
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from analysis import landscape_panels as panels
from analysis.landscape_evidence import Evidence, between
from analysis.landscape_intervals import covered
from analysis.landscape_panels import Page
from analysis.landscapes import Landscapes, Plane, landscapes
from analysis.load import Library, Method
from analysis.style import Drawing, Settings, told_apart, width
from analysis.table_ir import number
from selectkd_eval.errors import InputError
from selectkd_eval.stats import Floats
from selectkd_eval.surfaces import Surface

_LETTER = 0.066  # inches of a letter of a title
_SHOWN = 4  # surfaces side by side; the profiles show every method
# Inches: room left of and between pictures, for the colour bar, above a surface and below a contour; a surface's height
# in widths, and room for its ticks.
_LEFT, _GAP, _BAR, _TITLE, _FOOT, _TALL, _TICKS = 0.62, 0.26, 0.78, 0.2, 0.48, 0.86, 0.26


class Shown(NamedTuple):
    """The surfaces in the picture, all along the directions of one seed."""

    planes: list[Plane]
    direction: int

    @property
    def surfaces(self) -> list[Surface]:
        """As measured, one per plane."""
        return [plane.surfaces[self.direction] for plane in self.planes]


def landscape(library: Library, settings: Settings) -> Drawing:
    """Surfaces, contours, profiles, paired differences and scalars of every method."""
    land = landscapes(library)
    shown = typical(land)
    labels = {method: library.label(method) for method in land.methods}
    evidence = Evidence.of(library, land)
    # A line may break before "seed", not behind it.
    titles = [title(library, plane).replace(", seed ", ", seed\u00a0") for plane in shown.planes]
    pictures = Pictures.of(titles, settings)
    rows = evidence.rows(settings, labels)
    page = Page.of(width(settings), pictures.height + sum(row.height for row in rows))
    pictures.draw(page, shown)
    evidence.draw(page, pictures.height, rows, told_apart(land.methods), labels)
    data = {
        "seed": shown.direction,
        "training_seeds": [plane.seed for plane in shown.planes],
        "interpolation": [quality(surface) for surface in shown.surfaces],
        **evidence.data(land, labels),
    }
    caption = _caption(land, shown, evidence, labels)
    return Drawing("landscape", page.figure, caption, _alt(labels, data), data)


def typical(land: Landscapes) -> Shown:
    """One student per method (every student of a single method), along the direction seed and of the training seed
    whose profiles are nearest to the mean over all of them.
    """
    directions = land.directions
    if not directions:
        raise InputError(
            "these landscapes share no direction seed, so no picture shows all of them: "
            "measure them with the same --seed and --directions"
        )
    rises = np.array([[plane.surfaces[seed].profile()[1] for plane in land.planes] for seed in directions])
    if not np.isfinite(rises).all(axis=(0, 1))[1:].any():
        raise InputError("these landscapes lack the loss of a student itself, so no rise can be drawn: measure again")
    distance = _from_mean(rises.mean(axis=1))
    direction = min(directions, key=lambda seed: (distance[directions.index(seed)], seed))
    groups = [land.students(method) for method in land.methods]
    if len(groups) == 1:
        return Shown(groups[0][:_SHOWN], direction)
    shared = sorted(set.intersection(*({plane.seed for plane in group} for group in groups)), key=str)
    apart: dict[int, float] = {}
    for group in groups:
        along = np.array([plane.surfaces[direction].profile()[1] for plane in group])
        apart |= {plane.index: value for plane, value in zip(group, _from_mean(along), strict=True)}
    if shared:  # one training seed for all, so that the picture is of students that differ in the method alone
        chosen = min(
            shared,
            key=lambda seed: (sum(apart[p.index] for group in groups for p in group if p.seed == seed), str(seed)),
        )
        return Shown([next(p for p in group if p.seed == chosen) for group in groups][:_SHOWN], direction)
    return Shown([min(group, key=lambda p: (apart[p.index], p.index)) for group in groups][:_SHOWN], direction)


def _from_mean(rises: Floats) -> list[float]:
    """How far each of ``(N, R)`` profiles is from their mean: root mean square of the shares, ring by ring, so that the
    edge, where the loss is highest, does not decide alone.
    """
    mean = rises.mean(axis=0)
    known = np.isfinite(mean) & (mean != 0)
    shares = rises[:, known] / mean[known] - 1
    return [float(np.sqrt(value)) for value in (shares**2).mean(axis=1)] if known.any() else [0.0] * len(rises)


def quality(surface: Surface) -> dict[str, Any]:
    """What the picture between the points rests on, and how far it was off where that was measured."""
    errors = surface.errors
    known = len(errors) > 0 and surface.range > 0
    return {
        "points": surface.n_measured,
        "held_out": len(errors),
        "largest_error": surface.residual if known else None,
        "share_of_range": surface.residual / surface.range if known else None,
    }


class Pictures(NamedTuple):
    """Where surfaces and contours stand, in inches: in two columns a contour below its surface, in one beside it."""

    n: int
    stacked: bool
    side: float
    left: float
    bar: float
    titles: list[str]

    @staticmethod
    def of(titles: list[str], settings: Settings) -> Pictures:
        """The places for students of these names, in the middle of the page."""
        n = len(titles)
        if settings.columns == 1:
            wrapped = [textwrap.fill(title, 18) for title in titles]
            return Pictures(n, False, 0.88, 1.64, width(settings) - _BAR + 0.09, wrapped)
        across = width(settings) - _LEFT - _BAR
        side = min(2.1, across / n - _GAP)
        left = _LEFT + (across - n * (side + _GAP)) / 2
        wrapped = [textwrap.fill(title, int((side + _GAP) / _LETTER)) for title in titles]
        return Pictures(n, True, side, left, left + n * (side + _GAP) + 0.02, wrapped)

    @property
    def head(self) -> float:
        """Room above a surface."""
        return _TITLE + 0.13 * max(title.count("\n") for title in self.titles)

    @property
    def height(self) -> float:
        """Of all of them, axis labels included."""
        one = self.head + self.side * _TALL + _TICKS
        return one + self.side + _FOOT if self.stacked else self.n * one + _FOOT

    def draw(self, page: Page, shown: Shown) -> None:
        """Surfaces and contours, with one colour bar."""
        norm, top = panels.norm_of(shown.surfaces), 0.0
        mappable: Any = None
        for index, surface in enumerate(shown.surfaces):
            fine = surface.fine(panels.FINE)
            tall, side = self.side * _TALL, self.side
            if self.stacked:
                x, top, below = self.left + index * (side + _GAP), self.head, self.head + tall + _TICKS
                places = (x - 0.06, top, side + 0.12, tall), (x, below, side, side)
            else:
                top = self.head + index * (self.head + tall + _TICKS)
                places = (-0.1, top, side + 0.52, tall + 0.06), (self.left, top, side, side)
            upper = page.axes(*places[0], projection="3d", computed_zorder=False)
            panels.surface(upper, fine, norm, small=not self.stacked)
            page.text(places[0][0] + places[0][2] / 2, top - 0.04, self.titles[index])
            lower = page.axes(*places[1])
            last = self.stacked or index == self.n - 1
            left = index == 0 if self.stacked else None
            mappable = panels.contours(lower, fine, norm, left=left, below=last)
        reach = (
            (self.head + self.side * _TALL + _TICKS, self.side)
            if self.stacked
            else (self.head, top + self.side - self.head)
        )
        bar = page.figure.colorbar(mappable, cax=page.axes(self.bar, reach[0], 0.09, reach[1]), label="loss")
        ticks = panels.levels(norm, 6)
        bar.set_ticks(ticks.tolist(), labels=[f"{level:.2g}" for level in ticks])
        bar.ax.minorticks_off()


def title(library: Library, plane: Plane) -> str:
    """A student's name in the picture."""
    seed = "" if plane.seed is None else f", seed {plane.seed}"
    return f"{library.label(plane.method)}{seed}"


def _caption(land: Landscapes, shown: Shown, evidence: Evidence, labels: dict[Method, str]) -> str:
    facts, directions = land.facts, land.directions
    rule = f" ({facts['radius_rule']})" if facts.get("radius_rule") else ""
    which = f"directions of seed {shown.direction}"
    if len(directions) > 1:
        which += f", the nearest to the mean profile of {len(directions)}"
    profiles = evidence.profiles["loss"].values()
    sizes = sorted({covered(len(one.seeds), len(one.directions)) for one in profiles})
    students = max(len(one.seeds) for one in profiles)
    band = "Bands: " + "; ".join(sizes) if any("over" in words for words in sizes) else "One direction seed: no band"
    thin = "; thin lines: single training seeds" if students > 1 else ""
    only = "" if students > 1 else "; one student each, so what another training seed would give is not in it"
    against = between(evidence.differences, labels)
    pairs = f" Beside it: {against}, paired by direction and training seed." if against else ""
    dots = f" Dots: {_scalar_words(evidence.names, facts)}." if evidence.names else ""
    return (
        f"Loss landscapes: {facts['loss']}, the same {facts['grid']} × {facts['grid']} points, teacher and tokens for "
        f"all, along filter-normalised directions, radius {facts['radius']:g} of the weights' row norms{rule}; "
        f"{which}; one colour scale and height; {_rests_on(shown.surfaces)}; star: the student. Below: mean rise by "
        f"distance. {band}{thin}{only}.{pairs}{dots} Flat in random directions does not mean better."
    )


def _rests_on(surfaces: Sequence[Surface]) -> str:
    """The interpolation in words, at its worst over the surfaces shown."""
    found = [quality(surface) for surface in surfaces]
    points = sorted({one["points"] for one in found})
    counts = f"{points[0]}" if len(points) == 1 else f"{points[0]} to {points[-1]}"
    known = [one for one in found if one["largest_error"] is not None]
    if not known:
        return f"interpolated from {counts} points, how well was not measured"
    worst = max(known, key=lambda one: one["share_of_range"])
    return (
        f"interpolated from {counts} points, error at {worst['held_out']} held-out points at most "
        f"{100 * worst['share_of_range']:.2g} % of a surface's range ({worst['largest_error']:.2g} there)"
    )


def _scalar_words(names: Sequence[str], facts: dict[str, Any]) -> str:
    half = f"{facts['radius'] / 2:.3g}"
    words = {
        "curvature": "curvature E[d'Hd]",
        "flatness r": f"mean rise at r = {half}",
        "flatness 2r": "and at 2r",
        "sharpness rho": "highest rise that an ascent finds nearby, a lower bound",
        "hessian_1": "the Hessian's largest eigenvalue ± Lanczos' residual",
        "normalised_hessian_1": "the same in row units",
    }
    return (
        ", ".join(words[name] for name in names) + ", with 95 % t intervals where there are several directions or seeds"
    )


def _alt(labels: dict[Method, str], data: dict[str, Any]) -> str:
    parts = [
        f"{name}: loss {number(facts['centre'], 3)} at the student, rising by {number(facts['rise'][last], 3)} at "
        f"distance {number(facts['radii'][last], 2)}"
        for name, facts in data["profiles"].items()
        for last in [int(np.flatnonzero(np.isfinite(facts["rise"]))[-1])]
    ]
    return f"Loss surfaces and contours of {len(labels)} methods on one scale. {'; '.join(parts)}."
