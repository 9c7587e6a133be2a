"""How are a landscape's panels drawn? Surface, contours, radial profiles, paired differences and scalars of Figure 4b.

One colour norm and one height for every surface; profiles and dots are told apart by line, marker and label, not by
colour alone. What is drawn was chosen by `figure_landscape`, intervals come from `landscape_intervals`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from analysis.fitting import at_line_ends
from analysis.landscape_intervals import Profile, Scalar
from analysis.load import Method
from analysis.style import INK, Look, ink, point, reach
from selectkd_eval.stats import Estimate, Floats
from selectkd_eval.surfaces import Surface

FINE = 51  # points per axis after interpolation, for drawing only


class Page(NamedTuple):
    """A figure whose axes have places in inches from its upper left corner: mplot3d leaves other layouts guessing."""

    figure: Figure
    width: float
    height: float

    @staticmethod
    def of(width: float, height: float) -> Page:
        """An empty one."""
        figure = plt.figure(figsize=(width, height))
        figure.set_layout_engine("none")
        return Page(figure, width, height)

    def axes(self, left: float, top: float, width: float, height: float, **more: Any) -> Any:
        """Axes at a place."""
        bottom = self.height - top - height
        place = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(place, **more)

    def text(self, middle: float, bottom: float, words: str) -> None:
        """A title above a picture."""
        self.figure.text(middle / self.width, 1 - bottom / self.height, words, ha="center", va="bottom", fontsize=8)


def norm_of(surfaces: Sequence[Surface]) -> LogNorm:
    """One logarithmic scale from the lowest to the highest loss measured of all, off the grid too."""
    seen = [np.concatenate([surface.loss.ravel(), surface.held_out[:, 2]]) for surface in surfaces]
    low = max(min(float(np.nanmin(values)) for values in seen), 1e-6)
    high = max(float(np.nanmax(values)) for values in seen)
    return LogNorm(low, max(high, low * 1.01))


def levels(norm: LogNorm, count: int) -> Floats:
    """Contour levels, evenly spaced on the norm's scale."""
    return np.geomspace(float(norm.vmin or 1e-6), float(norm.vmax or 1), count)


def surface(axis: Any, fine: Surface, norm: LogNorm, *, small: bool) -> None:
    """Floor contour, surface, sparse wire: drawn in this order, since mplot3d cannot sort them."""
    low, high = float(norm.vmin or 0), float(norm.vmax or 1)
    floor = low - 0.6 * (high - low)
    x, y = np.meshgrid(fine.a, fine.b, indexing="ij")
    z = np.clip(fine.loss, low, high)
    shared: dict[str, Any] = {"cmap": "viridis", "norm": norm}
    below = axis.contourf(x, y, z, zdir="z", offset=floor, levels=levels(norm, 12), zorder=1, **shared)
    below.set_rasterized(True)
    axis.plot_surface(
        x,
        y,
        z,
        **shared,
        shade=False,
        linewidth=0,
        antialiased=False,
        rcount=FINE,
        ccount=FINE,
        zorder=2,
        rasterized=True,
    )
    wire = axis.plot_wireframe(x, y, z, rcount=11, ccount=11, color="black", linewidth=0.25, alpha=0.35, zorder=3)
    wire.set_rasterized(True)
    axis.set_zlim(floor, high)
    axis.view_init(24, -58)
    axis.set_box_aspect((1, 1, 0.85), zoom=1.2)
    for side in (axis.xaxis, axis.yaxis, axis.zaxis):
        side.set_pane_color((1, 1, 1, 1))
        side._axinfo["grid"].update(color="#e0e0e0", linewidth=0.4)  # mplot3d has no public setting for it
    axis.tick_params(pad=-3, labelsize=6)
    axis.zaxis.set_tick_params(pad=-1)  # its labels stand beside the axis, not below it
    axis.locator_params(nbins=3)
    if small:
        for name in "xy":
            edge = float(fine.a[-1])
            ticks = [tick for tick in getattr(axis, f"get_{name}ticks")() if 0 < abs(tick) <= edge]
            getattr(axis, f"set_{name}ticks")(ticks)
    axis.set_zticks([low, high], [f"{low:.2g}", f"{high:.2g}"])


def contours(axis: Axes, fine: Surface, norm: LogNorm, *, left: bool | None, below: bool) -> Any:
    """Filled contours with labelled lines, a star at the student; returns what a colour bar needs. `left`, `below`:
    whether the axis' labels stand there, or at another picture; None: its name without numbers.
    """
    # Below the lowest level nothing would be filled.
    z = np.clip(fine.loss.T, norm.vmin, norm.vmax)
    filled = axis.contourf(fine.a, fine.b, z, levels=levels(norm, 24), cmap="viridis", norm=norm)
    filled.set_rasterized(True)
    lines = axis.contour(fine.a, fine.b, z, levels=levels(norm, 8)[1:-1], colors="white", linewidths=0.6)
    axis.clabel(lines, fontsize=6, fmt="%.2g")
    axis.plot(0, 0, "*", color="white", markeredgecolor="black", markeredgewidth=0.5, markersize=8)
    axis.set_aspect("equal")
    axis.grid(visible=False)
    axis.locator_params(nbins=3)
    axis.tick_params(labelleft=bool(left), labelbottom=below, labelsize=6.5)
    if below:
        axis.set_xlabel("direction 1")
    if left is not False:
        axis.set_ylabel("direction 2", labelpad=0)
    return filled


def profiles(
    axis: Axes,
    found: Mapping[Method, Profile],
    looks: Mapping[Method, Look],
    labels: Mapping[Method, str],
    *,
    zero: bool = False,
    floor: bool = False,
) -> None:
    """Mean with its band by distance, one line per method; thin lines are single training seeds.

    `zero`: differences, around a line at 0; `floor`: the axis begins at 0. Labels stand at the lines' ends, moved apart
    where lines end together.
    """
    ends: list[tuple[float, float, str, str]] = []
    for method, one in found.items():
        style, estimates = looks[method], one.estimates()
        mean, low, high = (np.array([getattr(e, part) for e in estimates]) for part in ("value", "low", "high"))
        axis.fill_between(one.distances, low, high, color=ink(style), alpha=0.16, linewidth=0)
        if len(one.seeds) > 1:
            for values in one.values.mean(axis=1):
                axis.plot(one.distances, values, color=ink(style), linestyle=style.line, linewidth=0.5, alpha=0.7)
        axis.plot(
            one.distances,
            mean,
            color=ink(style),
            linestyle=style.line,
            marker=style.marker,
            markerfacecolor=style.colour,
            markeredgecolor=ink(style),
        )
        if len(known := np.flatnonzero(np.isfinite(mean))):
            ends.append((float(one.distances[known[-1]]), float(mean[known[-1]]), labels[method], ink(style)))
    if zero:
        axis.axhline(0, color=INK, linewidth=0.6)
    if floor:
        axis.set_ylim(bottom=0)
    axis.set_xlim(left=0)
    axis.set_xlabel("distance from the student (row norms)")
    at_line_ends(axis, ends)


def dots(
    axis: Axes, found: Mapping[Method, Scalar], looks: Mapping[Method, Look], order: Sequence[Method], title: str
) -> None:
    """One scalar: a dot with its interval per method, small open dots for its students."""
    for place, method in enumerate(reversed(order)):
        if method not in found:
            continue
        scalar = found[method]
        _dot(axis, scalar.estimate, place, looks[method])
        if len(scalar.students) > 1:
            at = np.full(len(scalar.students), place - 0.28)
            axis.plot(scalar.students, at, "|", color=ink(looks[method]), markersize=4, markeredgewidth=0.7)
    axis.margins(x=0.12)
    axis.set_ylim(-0.6, len(order) - 0.4)
    axis.set_yticks(range(len(order)), [""] * len(order))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_title(title, fontsize=7)
    axis.grid(visible=True, axis="x")
    axis.grid(visible=False, axis="y")
    axis.locator_params(axis="x", nbins=3)
    axis.ticklabel_format(axis="x", useOffset=False)
    axis.tick_params(axis="x", labelsize=6.5)
    axis.tick_params(axis="y", length=0)


def _dot(axis: Axes, estimate: Estimate, place: float, style: Look) -> None:
    spread = reach(estimate) if estimate.spread else None
    axis.errorbar(estimate.value, place, xerr=spread, **point(style, filled=True))
