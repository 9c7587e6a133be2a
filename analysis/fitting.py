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
_END = 7.0  # points: names at the ends of lines
END_LINE = 1.3 * _END / 72  # inches from one of them to the next


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


def apart(wanted: Sequence[float], heights: float | Sequence[float], low: float, high: float) -> list[float]:
    """Places of things so high that none lies on another, each as near to where it is wanted as the others allow (least
    squares), within `low` and `high` as far as they have room for all.
    """
    if not len(wanted):
        return []
    order = np.argsort(wanted, kind="stable")
    tall = np.broadcast_to(np.asarray(heights, dtype=float), len(wanted))[order]
    steps = np.concatenate([[0.0], np.cumsum((tall[:-1] + tall[1:]) / 2)])
    # Without the steps, "none on another" is "not falling".
    free = isotonic_regression(np.asarray(wanted, dtype=float)[order] - steps).x
    top = max(low, high - float(steps[-1]))
    placed = np.empty(len(wanted))
    placed[order] = np.clip(free, low, top) + steps
    return [float(place) for place in placed]


def at_line_ends(axis: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Names at the right edge, each joined to the last point (x, y) of its line by a thin line of its colour.

    `ends` are (x, y, name, colour), a name of one line or more; the y axis is linear. The layout must not change the
    axis' height afterwards; its width may change.
    """
    low, high = axis.get_ylim()
    figure: Any = axis.figure
    figure.draw_without_rendering()
    height = axis.get_position().height * figure.get_size_inches()[1]
    fraction = [(y - low) / (high - low) for _, y, _, _ in ends]
    tall = [END_LINE / height * (1 + name.count("\n")) for _, _, name, _ in ends]
    for (x, y, name, colour), place in zip(ends, apart(fraction, tall, 0.0, 1.0), strict=True):
        axis.annotate(
            name,
            xy=(x, y),
            xytext=(1.05, place),
            textcoords="axes fraction",
            va="center",
            fontsize=_END,
            linespacing=1.0,
            color=INK,
            arrowprops={
                **{"arrowstyle": "-", "color": colour, "linewidth": 0.7},
                **{"shrinkA": 1, "shrinkB": 3, "relpos": (0, 0.5)},  # from the middle of the name's left edge
            },
            annotation_clip=False,
        )
    axis.set_ylim(low, high)
