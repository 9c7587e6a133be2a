"""Does this text fit there? Widths of text before anything is drawn, line breaks, and labels that keep their distance.

Estimates from the mean width of DejaVu Sans' letters are enough to choose between one line, two lines and a turned
label; what was chosen is checked on the drawn figure by the tests.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from scipy.optimize import isotonic_regression

from analysis.style import INK

_LETTER = 0.62  # of the font size: the mean advance of a letter, with a margin


def inches(text: str, size: float) -> float:
    """The width of the longest line of a text set at `size` points."""
    return max((len(line) for line in text.split("\n")), default=0) * _LETTER * size / 72


def letters(width: float, size: float) -> int:
    """How many letters of `size` points find room in `width` inches."""
    return max(1, int(72 * width / (_LETTER * size)))


def wrapped(text: str, width: float, size: float) -> str:
    """The text broken at spaces and hyphens into lines that fit in `width` inches, as far as its words allow."""
    lines = textwrap.wrap(text, letters(width, size), break_long_words=False)
    return "\n".join(lines) or text


def beside(texts: Sequence[str], places: Sequence[float], size: float) -> bool:
    """Whether texts centred at `places` (inches, ascending) leave each other room."""
    widths = [inches(text, size) for text in texts]
    pairs = zip(widths, widths[1:], places, places[1:], strict=False)
    return all((one + two) / 2 <= right - left for one, two, left, right in pairs)


def heading(axis: Axes, text: str, width: float, loc: Literal["left", "center", "right"] = "center") -> None:
    """A title above an axis of `width` inches, in lines that fit; smaller where one word does not."""
    size = next((size for size in (8.0, 7.0, 6.5) if inches(wrapped(text, width, size), size) <= width + 0.1), 6.0)
    axis.set_title(wrapped(text, width, size), loc=loc, fontsize=size)


def ticks(axis: Axes, places: Sequence[float], names: Sequence[str], unit: float, size: float = 7.5) -> None:
    """Names below an axis of which one step is `unit` inches: in lines where they fit, turned where they do not."""
    order = np.argsort(places)
    at, told = [places[i] for i in order], [names[i] for i in order]
    gap = unit * float(np.min(np.diff(at))) if len(at) > 1 else 10.0
    broken = [wrapped(name, 0.97 * gap, size) for name in told]
    if beside(broken, [unit * x for x in at], size) and max(text.count("\n") for text in broken) < 3:
        axis.set_xticks(at, broken, fontsize=size)
    elif 72 * gap * np.sin(np.radians(35)) > 1.15 * size:
        axis.set_xticks(at, told, rotation=35, ha="right", rotation_mode="anchor", fontsize=size)
    else:
        axis.set_xticks(at, told, rotation=90, fontsize=min(size, 6.5))
    axis.tick_params(axis="x", length=0)


def apart(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places at least `gap` apart, each as near to where it is wanted as the others allow (least squares), within
    `low` and `high` as far as they have room for all.
    """
    if not len(wanted):
        return []
    order = np.argsort(wanted, kind="stable")
    steps = gap * np.arange(len(wanted))
    # Without the steps, "at least a gap apart" is "not falling".
    free = isotonic_regression(np.asarray(wanted, dtype=float)[order] - steps).x
    top = max(low, high - float(steps[-1]))
    placed = np.empty(len(wanted))
    placed[order] = np.clip(free, low, top) + steps
    return [float(place) for place in placed]


def at_line_ends(axis: Axes, ends: Sequence[tuple[float, float, str, str]], size: float = 7.0) -> None:
    """Names at the right edge, each joined to the last point (x, y) of its line by a thin line of its colour.

    `ends` are (x, y, name, colour); the y axis is linear. The layout must not change the axis' height afterwards; its
    width may change.
    """
    low, high = axis.get_ylim()
    figure: Any = axis.figure
    figure.draw_without_rendering()
    height = 72 * axis.get_position().height * figure.get_size_inches()[1]  # points
    fraction = [(y - low) / (high - low) for _, y, _, _ in ends]
    gap = 1.3 * size / height
    for (x, y, name, colour), place in zip(ends, apart(fraction, gap, 0.0, 1.0), strict=True):
        axis.annotate(
            name,
            xy=(x, y),
            xytext=(1.05, place),
            textcoords="axes fraction",
            va="center",
            fontsize=size,
            color=INK,
            arrowprops={
                **{"arrowstyle": "-", "color": colour, "linewidth": 0.7},
                **{"shrinkA": 1, "shrinkB": 3, "relpos": (0, 0.5)},  # from the middle of the name's left edge
            },
            annotation_clip=False,
        )
    axis.set_ylim(low, high)
