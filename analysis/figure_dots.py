"""The same rates and differences as in the bars, as dots: an axis that need not start at 0, and a row per method.

Cleveland's dots carry their value by position, not by length, so that a narrow range may fill the axis; its label
says so. Every method has a row with its full name, which stays readable for many methods and in one column. Stands
for the paper's Figure 1 in the form `--style dots`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from analysis.fitting import heading, inches, wrapped
from analysis.load import Method
from analysis.rates import WORDS, Panel, as_data, in_words, judges
from analysis.style import INK, PALE, Drawing, Look, Settings, look, point, reach, width

REFERENCE = "the method without the gate (SFT-control for a method without one)"
_ROW = 0.185  # inches of a method
_LEAST = 1.75  # inches of a panel with its differences
_AROUND = 0.75  # of title and labels
_PAGE = 9.0  # of a page's height; rows draw closer together before a figure is longer


def rates(found: Sequence[Panel], kind: str, settings: Settings) -> Drawing:
    """Dots of pass@1 or of win rates, one pair of panels per column: rates, and paired differences beside them."""
    names = {rate.method: rate.name for panel in found for rate in panel.rates}
    methods = sorted(names, key=lambda method: method.order)
    labels = [wrapped(names[method], 1.35, 7) if settings.columns == 1 else names[method] for method in methods]
    room = width(settings) - max(inches(label, 7) for label in labels) - 0.15
    across = min(len(found), max(1, int(room / _LEAST)))
    down = -(-len(found) // across)
    places = _places(methods)
    tall = _row(down, 1.6 - places[-1]) * (1.6 - places[-1]) + _AROUND
    figure, axes = plt.subplots(
        down,
        2 * across,
        figsize=(width(settings), tall * down + 0.1),
        squeeze=False,
        sharey=True,
        width_ratios=(1.35, 1) * across,
    )
    looks = {method: filled(method) for method in methods}
    for index in range(down * across):
        row, column = divmod(index, across)
        pair = axes[row, 2 * column : 2 * column + 2]
        if index >= len(found):
            for axis in pair:
                axis.set_axis_off()
            continue
        _rates(pair[0], found[index], dict(zip(methods, places, strict=True)), looks)
        _differences(pair[1], found[index], dict(zip(methods, places, strict=True)), looks)
        heading(pair[0], found[index].heading, room / across, loc="left")
        # An axis that starts elsewhere than at 0 says so, here where its length means nothing.
        zoomed = "" if pair[0].get_xlim()[0] <= 0 else "\n(axis not from 0)"
        pair[0].set_xlabel(f"{WORDS[kind]} (%){zoomed}")
        pair[1].set_xlabel("difference\n(points)")
    axes[0, 0].set_yticks(places, labels, fontsize=7)
    axes[0, 0].set_ylim(places[-1] - 0.8, 0.8)
    caption = (
        f"{WORDS[kind].capitalize()} with 95 % intervals over prompts (training seeds pooled, small circles: the seeds "
        f"one by one), on axes that need not start at 0. Right of each: difference to {REFERENCE}, paired by prompt; "
        f"filled where its 95 % interval excludes 0, open where it does not.{judges(found)}"
    )
    return Drawing(kind, figure, caption, f"Dot chart. {in_words(found, kind)}", as_data(found))


def filled(method: Method) -> Look:
    """The look of a method with a marker that can be filled; its name stands beside it."""
    style = look(method)
    return style._replace(marker="X") if style.marker == "x" else style


def _row(down: int, rows: float) -> float:
    """Inches of a method's row: less where many stand below each other, but never less than its name needs."""
    return min(_ROW, max(0.125, (_PAGE / down - _AROUND) / rows))


def _places(methods: Sequence[Method]) -> list[float]:
    """y of every row, downwards; a gap before and after a family of several rows."""
    sizes = Counter(method.family for method in methods)
    found = [0.0]
    for before, method in pairwise(methods):
        apart = before.family != method.family and max(sizes[before.family], sizes[method.family]) > 1
        found.append(found[-1] - (1.35 if apart else 1.0))
    return found


def _rates(axis: Axes, panel: Panel, places: dict[Method, float], looks: dict[Method, Look]) -> None:
    for rate in panel.rates:
        y = places[rate.method]
        axis.errorbar(rate.value.value, y, xerr=reach(rate.value), **point(looks[rate.method], filled=True))
        if len(rate.seeds) > 1:
            values = [value for _, value in rate.seeds]
            below = [y - 0.4] * len(values)
            axis.scatter(values, below, s=5, facecolors="white", edgecolors=INK, linewidths=0.5, zorder=4)
    axis.margins(x=0.08)
    if axis.get_xlim()[0] < 0:
        axis.set_xlim(left=0)
    _rows(axis, places)
    if panel.column.kind == "winrate" and axis.get_xlim()[0] < 50 < axis.get_xlim()[1]:
        axis.axvline(50, color=INK, linewidth=0.7, linestyle=":")


def _differences(axis: Axes, panel: Panel, places: dict[Method, float], looks: dict[Method, Look]) -> None:
    for rate in panel.rates:
        if (found := rate.difference) is not None:
            style = point(looks[rate.method], filled=found.excludes(0))
            axis.errorbar(found.value, places[rate.method], xerr=reach(found), **style)
    axis.axvline(0, color=INK, linewidth=0.7)
    axis.margins(x=0.12)
    _rows(axis, places)


def _rows(axis: Axes, places: dict[Method, float]) -> None:
    """Lines along the rows, so that a point is read back to its name."""
    axis.tick_params(axis="y", length=0)
    axis.grid(False)
    axis.grid(axis="x")
    for place in places.values():
        axis.axhline(place, color=PALE, linewidth=0.4, zorder=0)
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=2))
