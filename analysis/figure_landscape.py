"""Which student sits in the flatter place? The paper's Figure 4b, with everything on one scale.

Surfaces and contours of the same loss on the same tokens along the same directions, one colour norm, one height.
A picture's order can flip with the directions, so the radial profile over all direction seeds stands below, and
the surfaces shown are those of the seed nearest to the mean profile, never the prettiest. Records that do not
share teacher, tokens, loss, vocabulary, rule of directions, radius and grid are refused.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from mpl_toolkits.mplot3d.axes3d import Axes3D
from scipy.stats import t as student_t

from analysis.load import Library, Method
from analysis.style import TWO_COLUMNS, Drawing, Settings, look
from analysis.table_ir import number
from selectkd_eval import surfaces
from selectkd_eval.errors import InputError
from selectkd_eval.records import Record
from selectkd_eval.stats import Floats
from selectkd_eval.surfaces import Surface

_SHOWN = 4  # surfaces side by side; the profile shows every student
_FINE = 51  # points per axis after interpolation, for drawing only
_SHARED = ("tokens_sha256", "loss", "radius", "grid", "directions", "params_zeroed", "vocabulary")


class Plane(NamedTuple):
    """One student's surfaces, by direction seed."""

    method: Method
    seed: int | None
    surfaces: dict[int, Surface]


def landscape(library: Library, settings: Settings) -> Drawing:
    """Surfaces, contours and the radial profile of every student."""
    found = library.of("landscape")
    if not found:
        raise InputError("the landscape figure needs landscape records: run `selectkd-eval landscape` first")
    _comparable(found)
    planes = sorted(_planes(library, found), key=lambda plane: (plane.method.order, plane.seed or 0))
    shown = _first_of_each_method(planes)[:_SHOWN]
    seed = _typical_seed(planes)
    surfaces = [plane.surfaces[seed] for plane in shown]
    # Squares as wide as their column allows; the profile keeps its height.
    side = min(2.1, (TWO_COLUMNS - 0.9) / len(shown))
    heights = (1.1 * side, 0.95 * side + 0.3, 1.5)
    figure = plt.figure(figsize=(TWO_COLUMNS, sum(heights) + 0.3))
    grid = figure.add_gridspec(3, len(shown), height_ratios=heights)
    norm = _norm(surfaces)
    mappable = None
    for index, (plane, surface) in enumerate(zip(shown, surfaces, strict=True)):
        upper: Any = figure.add_subplot(grid[0, index], projection="3d", computed_zorder=False)
        _surface(upper, surface, norm)
        upper.set_title(_name(library, plane), pad=0)
        lower = figure.add_subplot(grid[1, index])
        mappable = _contours(lower, surface, norm, first=index == 0)
    axes = [axis for axis in figure.axes if not isinstance(axis, Axes3D)]
    bar = figure.colorbar(mappable, ax=axes, label="loss", aspect=18, pad=0.01, ticks=_levels(norm, 6))  # type: ignore[arg-type]
    bar.ax.set_yticklabels([f"{level:.2g}" for level in _levels(norm, 6)])
    bar.ax.minorticks_off()
    data = _profiles(figure.add_subplot(grid[2, :]), library, planes)
    facts = found[0].facts
    seeds = sorted({s for plane in planes for s in plane.surfaces})
    which = f"directions of seed {seed}" + (
        f", the nearest to the mean profile of {len(seeds)}" if len(seeds) > 1 else ""
    )
    caption = (
        f"Loss landscapes: {facts['loss']}, the same {facts['grid']} × {facts['grid']} points, teacher and tokens for "
        f"all, along filter-normalised directions, radius {facts['radius']:g} of the weights' row norms; {which}; one "
        "colour scale and height; surfaces interpolated between the measured points; star: the student. Below: mean "
        "rise by distance"
        + (", 95 % t band over direction seeds." if len(seeds) > 1 else " (one direction seed: no band).")
        + " Flat in random directions does not mean better."
    )
    return Drawing("landscape", figure, caption, _alt(library, planes, data), {"seed": seed, "profiles": data})


def _comparable(found: Sequence[Record]) -> None:
    """Refuse to put surfaces on one scale that do not belong there."""
    for name in (*_SHARED, "teacher"):
        values: dict[str, list[str]] = defaultdict(list)
        for record in found:
            fact = record.facts.get(name)
            value = fact.get("fingerprint") if isinstance(fact, dict) else fact
            values[str(value)].append(record.path.name)
        if len(values) > 1:
            listed = "; ".join(f"{value[:60]} in {', '.join(names)}" for value, names in sorted(values.items()))
            raise InputError(
                f"these landscapes cannot be compared, their {name} differs ({listed}): "
                f"measure all students in one command, or keep other records in another directory"
            )


def _planes(library: Library, found: Sequence[Record]) -> list[Plane]:
    merged: dict[str, Plane] = {}
    for record in found:
        seeds = sorted({row["seed"] for row in record.good})
        for index, card in enumerate(record.facts["students"]):
            plane = Plane(library.method(card), card.get("seed"), {})
            plane = merged.setdefault(str(card.get("fingerprint")), plane)
            plane.surfaces.update({seed: surfaces.surface(record.rows, index, seed) for seed in seeds})
    return list(merged.values())


def _first_of_each_method(planes: Sequence[Plane]) -> list[Plane]:
    first: dict[Method, Plane] = {}
    for plane in planes:
        first.setdefault(plane.method, plane)
    return list(first.values()) if len(first) > 1 else list(planes)


def _typical_seed(planes: Sequence[Plane]) -> int:
    """The direction seed whose rise at the edge, over all students, is nearest to the mean over seeds.

    The edge is the farthest distance that was measured for every student under every seed.
    """
    shared = sorted(set.intersection(*(set(plane.surfaces) for plane in planes)))
    if not shared:
        raise InputError(
            "these landscapes share no direction seed, so no picture shows all of them: "
            "measure them with the same --seed and --directions"
        )
    rises = np.array([[plane.surfaces[seed].profile()[1] for plane in planes] for seed in shared])
    known = np.flatnonzero(np.isfinite(rises).all(axis=(0, 1)))
    if not len(known):
        raise InputError("these landscapes lack the loss of a student itself, so no rise can be drawn: measure again")
    edge = dict(zip(shared, rises[:, :, known[-1]].mean(axis=1), strict=True))
    middle = float(np.mean(list(edge.values())))
    return min(shared, key=lambda seed: (abs(float(edge[seed]) - middle), seed))


def _norm(surfaces: Sequence[Surface]) -> LogNorm:
    low = min(float(np.nanmin(surface.loss)) for surface in surfaces)
    high = max(float(np.nanmax(surface.loss)) for surface in surfaces)
    low = max(low, 1e-6)
    return LogNorm(low, max(high, low * 1.01))


def _fine(surface: Surface) -> Surface:
    """The surface on a finer grid, for drawing only."""
    return surface.fine(_FINE)


def _surface(axis: Any, surface: Surface, norm: LogNorm) -> None:
    """Floor contour, surface, sparse wire: drawn in this order, since mplot3d cannot sort them."""
    fine = _fine(surface)
    low, high = float(norm.vmin or 0), float(norm.vmax or 1)
    floor = low - 0.6 * (high - low)
    x, y = np.meshgrid(fine.a, fine.b, indexing="ij")
    z = np.clip(fine.loss, low, high)
    axis.contourf(x, y, z, zdir="z", offset=floor, levels=_levels(norm, 12), cmap="viridis", norm=norm, zorder=1)
    axis.plot_surface(
        x,
        y,
        z,
        cmap="viridis",
        norm=norm,
        shade=False,
        linewidth=0,
        antialiased=False,
        rcount=_FINE,
        ccount=_FINE,
        zorder=2,
        rasterized=True,
    )
    axis.plot_wireframe(x, y, z, rcount=11, ccount=11, color="black", linewidth=0.25, alpha=0.35, zorder=3)
    axis.set_zlim(floor, high)
    axis.view_init(24, -58)
    axis.set_box_aspect((1, 1, 0.85), zoom=1.2)
    for side in (axis.xaxis, axis.yaxis, axis.zaxis):
        side.set_pane_color((1, 1, 1, 1))
        side._axinfo["grid"].update(color="#e0e0e0", linewidth=0.4)  # mplot3d has no public setting for it
    axis.tick_params(pad=-3, labelsize=6)
    axis.zaxis.set_tick_params(pad=-1)  # its labels stand beside the axis, not below it
    axis.locator_params(nbins=3)
    axis.set_zticks([low, high], [f"{low:.2g}", f"{high:.2g}"])


def _levels(norm: LogNorm, count: int) -> Floats:
    return np.geomspace(float(norm.vmin or 1e-6), float(norm.vmax or 1), count)


def _contours(axis: Axes, surface: Surface, norm: LogNorm, first: bool) -> Any:
    fine = _fine(surface)
    filled = axis.contourf(fine.a, fine.b, fine.loss.T, levels=_levels(norm, 24), cmap="viridis", norm=norm)
    lines = axis.contour(fine.a, fine.b, fine.loss.T, levels=_levels(norm, 8)[1:-1], colors="white", linewidths=0.6)
    axis.clabel(lines, fontsize=5.5, fmt="%.2g")
    axis.plot(0, 0, "*", color="white", markeredgecolor="black", markeredgewidth=0.5, markersize=8)
    axis.set_aspect("equal")
    axis.grid(visible=False)
    axis.set_xlabel("direction 1")
    axis.locator_params(nbins=3)
    if first:
        axis.set_ylabel("direction 2")
    else:
        axis.tick_params(labelleft=False)
    return filled


def _profiles(axis: Axes, library: Library, planes: Sequence[Plane]) -> dict[str, Any]:
    """Mean rise by distance, per method over its direction and training seeds; the only panel to conclude from."""
    groups: dict[Method, list[Plane]] = defaultdict(list)
    for plane in planes:
        groups[plane.method].append(plane)
    data: dict[str, Any] = {}
    for method, members in groups.items():
        directions = sorted(set.intersection(*(set(plane.surfaces) for plane in members)))
        radii = members[0].surfaces[directions[0]].profile()[0]
        # Directions are the independent draws; training seeds along one direction are averaged first.
        rises = np.array([np.mean([p.surfaces[d].profile()[1] for p in members], axis=0) for d in directions])
        mean, style = rises.mean(axis=0), look(method)
        label = f"{library.label(method)} ({len(members)} student{'s' if len(members) > 1 else ''})"
        axis.plot(radii, mean, color=style.colour, linestyle=style.line, marker=style.marker, label=label)
        half = np.zeros_like(mean)
        if len(rises) > 1:
            half = student_t.ppf(0.975, len(rises) - 1) * rises.std(axis=0, ddof=1) / np.sqrt(len(rises))
            axis.fill_between(radii, mean - half, mean + half, color=style.colour, alpha=0.18, linewidth=0)
        data[library.label(method)] = {
            "radii": radii.tolist(),
            "rise": mean.tolist(),
            "half_width": half.tolist(),
            "directions": len(rises),
            "students": len(members),
            "centre": float(np.mean([p.surfaces[d].centre for p in members for d in directions])),
        }
    axis.set_ylim(bottom=0)
    axis.set_xlabel("distance from the student, in row norms")
    axis.set_ylabel("rise of the loss")
    axis.legend(loc="upper left")
    return data


def _name(library: Library, plane: Plane) -> str:
    seed = "" if plane.seed is None else f", seed {plane.seed}"
    return f"{library.label(plane.method)}{seed}"


def _alt(library: Library, planes: Sequence[Plane], data: dict[str, Any]) -> str:
    parts = [
        f"{name}: loss {number(facts['centre'], 3)} at the student, rising by {number(facts['rise'][last], 3)} at "
        f"distance {number(facts['radii'][last], 2)}"
        for name, facts in data.items()
        for last in [int(np.flatnonzero(np.isfinite(facts["rise"]))[-1])]
    ]
    return f"Loss surfaces and contours of {len(planes)} students on one scale. {'; '.join(parts)}."
