"""How does every figure look? One style, and files that are the same bytes when drawn twice.

Colours are Okabe and Ito's, safe for colour-blind readers, but two of them are the same grey in print: every
method also has its own hatch, line and marker. Nothing here reads records.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.files import put
from analysis.load import Method
from selectkd_eval.records import canonical
from selectkd_eval.stats import Estimate

ONE_COLUMN, TWO_COLUMNS = 3.25, 6.75  # inches
INK, PALE = "#222222", "#dddddd"
FORMATS = ("png", "svg", "pdf")

_RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": PALE,
    "grid.linewidth": 0.5,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.5,
    "hatch.linewidth": 0.5,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.05,
    "figure.dpi": 300,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.dpi": 300,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "selectkd-eval",
}
ERROR: dict[str, Any] = {"ecolor": INK, "elinewidth": 0.9, "capsize": 2.2}


@dataclass(frozen=True)
class Settings:
    """How a figure is to be drawn: bootstrap resamples, columns of a page that it spans, rates as bars or dots, and the
    points within which two methods count as equivalent.
    """

    resamples: int = 10_000
    columns: Literal[1, 2] = 2
    style: Literal["bars", "dots"] = "bars"
    margin: float = 2.0


def width(settings: Settings) -> float:
    """Inches from edge to edge."""
    return ONE_COLUMN if settings.columns == 1 else TWO_COLUMNS


class Look(NamedTuple):
    """How a method is drawn in bars and lines."""

    colour: str
    hatch: str
    line: Any
    marker: str


_GATES = {
    "none": Look("#0072B2", "", "-", "o"),
    "hellinger": Look("#CC79A7", "xxxx", (0, (1, 1)), "D"),
    "top-k": Look("#E69F00", "////", "--", "s"),
    "spec-k": Look("#009E73", "....", "-.", "^"),
}
_UNTRAINED = {
    "teacher": Look("#444444", "", ":", "*"),
    "start": Look("#ffffff", "", ":", "x"),
    "model": Look("#F0E442", "", ":", "P"),
}
_CONTROL = Look("#999999", "", (0, (4, 1, 1, 1, 1, 1)), "v")
# For several methods side by side: Okabe and Ito's, then Tol's muted ones.
_FAMILIES = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#222222"),
    *("#882255", "#117733", "#999933", "#AA4499", "#332288", "#661100", "#6699CC"),
)
_MARKERS = ("o", "s", "^", "v", "D", "P", "X", "<", ">", "p", "h", "8", "d", "H")
_LINES = ("-", "--", "-.", ":")


def look(method: Method) -> Look:
    """Colour, hatch, line and marker of a method: the gate decides; the control is grey, and so are gates on it."""
    if method.role != "student":
        return _UNTRAINED[method.role]
    gate = _GATES.get(str(method.get("verifier") or "none"), _GATES["none"])
    if control(method):
        return gate._replace(colour=_CONTROL.colour) if method.base else _CONTROL
    return gate


def control(method: Method) -> bool:
    """Whether this is the control that learns from labelled text, or a gate on it."""
    return method.label.startswith("SFT")


def looks(methods: Sequence[Method]) -> dict[Method, Look]:
    """The looks of methods in one picture. Where several families stand side by side the colour tells them apart, and
    the line tells the gate; markers are each method's own, for print without colour. The control stays grey.
    """
    found = {method: look(method) for method in methods}
    shown = [method for method in methods if method.role == "student" and not control(method)]
    families = list(dict.fromkeys(method.family for method in shown))
    if len(families) > 1:
        for place, method in enumerate(shown):
            colour = _FAMILIES[families.index(method.family) % len(_FAMILIES)]
            found[method] = found[method]._replace(colour=colour, marker=_MARKERS[place % len(_MARKERS)])
    return found


def told_apart(methods: Sequence[Method]) -> dict[Method, Look]:
    """`looks` for points and lines, with no two alike: models that were not trained here differ too, and every marker
    can be filled.
    """
    found = looks(methods)
    taken: set[str] = set()
    markers: set[str] = set()
    # Students keep the colours that they have in every other figure.
    for method in sorted(methods, key=lambda method: (method.role != "student", method.role != "start")):
        style = found[method]
        colour, marker = ink(style), "X" if style.marker == "x" else style.marker
        if colour in taken:
            colour = next((other for other in _FAMILIES if other not in taken), colour)
        if marker in markers:
            marker = next((other for other in _MARKERS if other not in markers), marker)
        taken.add(colour)
        markers.add(marker)
        found[method] = style._replace(colour=colour, marker=marker)
    return found


def ink(style: Look) -> str:
    """The colour of a look's lines: what is too pale for a line on white is dark."""
    return INK if style.colour in ("#ffffff", "#F0E442") else style.colour


def reach(estimate: Estimate) -> list[list[float]]:
    """Distances from the value to its limits, as matplotlib wants them."""
    return [[max(0.0, estimate.value - estimate.low)], [max(0.0, estimate.high - estimate.value)]]


def interval_line(
    axis: Axes, xs: Sequence[float], limits: Sequence[Sequence[float]], style: Look, linewidth: float = 0.9
) -> None:
    """Points with their intervals, joined by a line; `limits` holds (value, low, high) of each."""
    value, low, high = np.array(limits, dtype=float).reshape(-1, 3).T
    axis.errorbar(
        xs,
        value,
        yerr=[value - low, high - value],
        color=ink(style),
        marker=style.marker,
        markersize=3,
        linestyle=style.line,
        linewidth=linewidth,
        **ERROR | {"ecolor": ink(style), "capsize": 1.5, "elinewidth": 0.7},
    )


def point(style: Look, *, filled: bool) -> dict[str, Any]:
    """How a point with its interval is drawn."""
    return {
        "fmt": style.marker,
        "markersize": 4.5,
        "markerfacecolor": style.colour if filled else "white",
        "markeredgecolor": ink(style),
        "markeredgewidth": 1.0,
        **ERROR,
    }


@dataclass
class Drawing:
    """A figure, what it shows in words (for readers who cannot see it), and the numbers that were drawn."""

    name: str
    figure: Figure
    caption: str
    alt: str
    data: dict[str, Any] = field(default_factory=dict)


@contextmanager
def styled() -> Iterator[None]:
    """The style of this file, and nothing of the user's own settings."""
    with plt.rc_context():
        matplotlib.rcdefaults()
        plt.rcParams.update(_RC)
        yield


def settle(figure: Figure) -> None:
    """Run the layout once and keep it, rounded.

    The layout solver's last bits depend on memory addresses, and an SVG's clip paths are named by such bits.
    """
    for _ in range(2):  # the second pass sees the labels where the first has put them
        figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axis in figure.axes:
        left, bottom, width, height = axis.get_position(original=True).bounds
        axis.set_position((round(left, 5), round(bottom, 5), round(width, 5), round(height, 5)))


def encode(drawing: Drawing, form: str, dpi: int = 300) -> bytes:
    """The figure in one format, without dates: drawn twice, it is the same bytes."""
    undated = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    buffer = BytesIO()
    with styled():
        drawing.figure.savefig(buffer, format=form, dpi=dpi, metadata=undated[form])
    return buffer.getvalue()


def save(drawing: Drawing, out: Path) -> list[Path]:
    """The figure as PNG, SVG and PDF, and what was drawn as JSON."""
    content = {"caption": drawing.caption, "alt": drawing.alt, "data": drawing.data}
    text = json.dumps(json.loads(canonical(content)), indent=1, sort_keys=True, ensure_ascii=False)
    paths = [put(out / f"{drawing.name}.{form}", encode(drawing, form)) for form in FORMATS]
    return [*paths, put(out / f"{drawing.name}.json", text + "\n")]


def close(drawing: Drawing) -> None:
    """Free the figure's memory."""
    plt.close(drawing.figure)
