"""Which method is better, by how much, and is that more than chance? Bars, and below them paired differences.

The bars start at 0. Their intervals overlap even where the paired difference excludes 0, so the differences have
their own panel: filled when the 95 % interval excludes 0, open when it contains it. Stands for the paper's
Figure 1, and for Tables 1 and 2 as pictures. On an axis that need not start at 0 the same numbers are dots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analysis import figure_dots
from analysis.fitting import beside, heading, ticks
from analysis.load import Library, Method
from analysis.rates import WORDS, Panel, Rate, as_data, grid_of, in_words, judges, panels
from analysis.style import ERROR, INK, Drawing, Look, Settings, control, look, point, reach, width
from analysis.table_ir import number
from selectkd_eval.errors import InputError

_WIDE = 0.29  # inches of a bar's place in which a number lies flat
_NARROW = 0.2  # where it still stands upright; panels with narrower bars go below each other
_NEAR, _FAR = 0.9, 1.35  # from bar to bar within a family, and to the next family


class Sizes(NamedTuple):
    """Panels side by side, and inches of a bar's place."""

    across: int
    unit: float


def rates(library: Library, kind: Literal["passk", "winrate"], settings: Settings) -> Drawing:
    """Grouped bars of pass@1 or of win rates, one panel per column, with the paired differences below."""
    found = panels(grid_of(library, kind, settings.resamples))
    if not found:
        raise InputError(
            f"the {kind} figure has nothing to draw: every row of its records failed or ended in a tie; measure more"
        )
    if settings.style == "dots":
        return figure_dots.rates(found, kind, settings)
    sizes = _sizes(found, width(settings))
    down = -(-len(found) // sizes.across)
    tall = 3.4 if down == 1 and settings.columns == 2 else 2.9
    figure, axes = plt.subplots(
        2 * down,
        sizes.across,
        figsize=(width(settings), tall * down),
        squeeze=False,
        height_ratios=(2.2, 1) * down,
    )
    named = all(_named(panel, sizes.unit) for panel in found)
    for index, panel in enumerate(found):
        row, place = divmod(index, sizes.across)
        upper, lower = axes[2 * row, place], axes[2 * row + 1, place]
        _pair(upper, lower, panel, sizes, named=named)
        if place:
            upper.sharey(axes[2 * row, 0])
            lower.sharey(axes[2 * row + 1, 0])
        else:
            upper.set_ylabel(f"{WORDS[kind]} (%)")
            lower.set_ylabel("paired\ndifference\n(points)")
    for index in range(len(found), down * sizes.across):
        row, place = divmod(index, sizes.across)
        axes[2 * row, place].set_axis_off()
        axes[2 * row + 1, place].set_axis_off()
    drawn = sorted({method for panel in found for method in panel.methods}, key=lambda method: method.order)
    gate_legend(figure, drawn, settings)
    against = "the method named" if named else figure_dots.REFERENCE
    caption = (
        f"{WORDS[kind].capitalize()} with 95 % intervals over prompts (training seeds pooled, small circles: the "
        f"seeds one by one). Below: difference to {against}, paired by prompt; filled where its 95 % "
        f"interval excludes 0, open where it does not.{judges(found)}"
    )
    return Drawing(kind, figure, caption, f"Bar chart. {in_words(found, kind)}", as_data(found))


def places(methods: Sequence[Method]) -> list[float]:
    """x of every bar: families (a base and the gates on it) side by side, a gap between them."""
    found: list[float] = []
    family = None
    for method in methods:
        mine = method.base or method.label
        found.append(found[-1] + (_NEAR if mine == family else _FAR) if found else 0.0)
        family = mine
    return found


def _sizes(found: Sequence[Panel], inches: float) -> Sizes:
    """As many panels side by side as leave every bar enough room."""
    extent = max(places(panel.methods)[-1] + 1.3 for panel in found)
    for down in range(1, len(found) + 1):
        across = -(-len(found) // down)
        unit = ((inches - 0.75) / across - 0.12) / extent
        if unit >= _NARROW:
            break
    return Sizes(across, unit)


def _named(panel: Panel, unit: float) -> bool:
    """Whether every difference has room for the name of the method that it is held against."""
    differing = [(x, r) for x, r in zip(places(panel.methods), panel.rates, strict=True) if r.difference is not None]
    return beside([f"− {rate.against_name} " for _, rate in differing], [unit * x for x, _ in differing], 6)


def _pair(upper: Axes, lower: Axes, panel: Panel, sizes: Sizes, *, named: bool) -> None:
    xs = places(panel.methods)
    for rate, x in zip(panel.rates, xs, strict=True):
        bar(upper, x, rate, unit=sizes.unit)
        if rate.difference is not None:
            difference(lower, x, rate, named=named)
    if panel.column.kind == "winrate":
        upper.axhline(50, color=INK, linewidth=0.7, linestyle=":")
    lower.axhline(0, color=INK, linewidth=0.7)
    lower.margins(y=0.35)
    upper.set_ylim(bottom=0)
    upper.set_xticks([])
    for axis in (upper, lower):
        axis.set_xlim(-0.65, xs[-1] + 0.65)
    heading(upper, panel.heading, sizes.unit * (xs[-1] + 1.3))
    families: dict[str, list[float]] = {}
    for rate, x in zip(panel.rates, xs, strict=True):
        families.setdefault(rate.method.base or rate.name, []).append(x)
    ticks(lower, [sum(own) / len(own) for own in families.values()], list(families), sizes.unit)


def bar(axis: Axes, x: float, rate: Rate, unit: float) -> None:
    """A rate as a bar with its interval, its value at the foot and its seeds as circles; `unit` inches a step of x."""
    style = look(rate.method)
    axis.bar(
        x,
        rate.value.value,
        0.8,
        color=style.colour,
        hatch=style.hatch,
        edgecolor=INK,
        linewidth=0.6,
        yerr=reach(rate.value),
        error_kw=ERROR,
    )
    axis.annotate(
        number(rate.value.value, 1),
        (x, 0),
        (0, 3),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=6.5 if unit > 0.15 else 6,
        rotation=0 if unit >= _WIDE else 90,
        zorder=5,
        bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"},
    )
    if len(rate.seeds) > 1:
        step = min(0.12, 0.7 / len(rate.seeds))
        offsets = [x + step * (i - (len(rate.seeds) - 1) / 2) for i in range(len(rate.seeds))]
        values = [value for _, value in rate.seeds]
        size = 7 if unit > 0.15 else 3
        axis.scatter(offsets, values, s=size, facecolors="white", edgecolors=INK, linewidths=0.5, zorder=4)


def difference(axis: Axes, x: float, rate: Rate, *, named: bool) -> None:
    """A paired difference as a point, filled where its interval excludes 0."""
    assert rate.difference is not None
    style = look(rate.method)
    filled = rate.difference.excludes(0)
    axis.errorbar(x, rate.difference.value, yerr=reach(rate.difference), **point(style, filled=filled))
    if named:
        axis.annotate(
            f"− {rate.against_name}",
            (x, 0),
            (0, 2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=6,
        )


def gate_legend(figure: Figure, methods: Sequence[Method], settings: Settings) -> None:
    """What the hatches mean, where a gate is drawn."""
    # Gates on the control have its colour and the gates' hatches.
    gated = [method for method in methods if method.base and not control(method)]
    if not gated:
        return
    bases = [m for m in methods if m.role == "student" and not m.base and not control(m)]
    seen: dict[Look, Patch] = {}
    if bases:
        seen[look(bases[0])] = _patch(bases[0], "without gate")
    for method in gated:
        seen.setdefault(look(method), _patch(method, f"+ {method.label.split('+')[-1].strip()}"))
    columns = 4 if settings.columns == 2 else 3
    figure.legend(handles=list(seen.values()), loc="outside upper center", ncols=columns, columnspacing=1.2)


def _patch(method: Method, label: str) -> Patch:
    style = look(method)
    return Patch(facecolor=style.colour, hatch=style.hatch, edgecolor=INK, linewidth=0.6, label=label)
