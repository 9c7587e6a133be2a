"""Which draft makes the target faster, by how much, and is that what was to be expected?

Left, the speed-up of every draft at every length, end to end; beside it the paired ratio to a reference draft, filled
where its 95 % interval excludes 1: intervals of two speed-ups overlap even where the ratio does not contain 1. Right,
the speed-up that the target's own text and the cost of a call predict at every draft length, as a curve, with what
was measured on it. Stands for the paper's Table 5 as a picture; engines, targets and prompts that differ have rows of
their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis import speed
from analysis.fitting import inches, wrapped
from analysis.load import Library, Method
from analysis.speed import SpeedSet, Way
from analysis.style import INK, PALE, Drawing, Look, Settings, ink, reach, told_apart, width
from analysis.style import point as mark
from analysis.table_ir import number
from selectkd_eval.errors import InputError
from selectkd_eval.stats import Estimate

_ROW = 0.155  # inches of one draft at one length
_LEAST = 1.75  # inches of a curve's panel


@dataclass(frozen=True)
class Shown:
    """What is drawn of one draft used one way."""

    method: Method
    way: Way
    whole: Estimate
    decode: Estimate | None
    ratio: Estimate | None
    tasks: dict[str, float]
    doubt: str


@dataclass(frozen=True)
class Panel:
    """One set: its points from the top down, and by draft the speed-up predicted at every draft length."""

    chosen: SpeedSet
    points: list[Shown]
    curves: dict[Method, dict[int, Estimate]]

    @property
    def methods(self) -> list[Method]:
        return list(dict.fromkeys(point.method for point in self.points))

    @property
    def curved(self) -> bool:
        """Whether anything is known over the draft length: a prediction, or decode-only times of single texts."""
        return any(self.curves.values()) or any(point.decode and point.way.batch == 1 for point in self.points)


def speedups(library: Library, settings: Settings) -> Drawing:
    """Speed-up of every draft by draft length, its ratio to the reference draft, and the predicted curves."""
    if not library.of("speedup"):
        raise InputError("the speedup figure needs speedup records: run `selectkd-eval speedup` first")
    panels = [panel for chosen in speed.speed_sets(library) if (panel := _panel(chosen, settings.resamples)).points]
    if not panels:
        raise InputError("no speedup record's text passed under speculation, so there is no speed-up to draw")
    methods = sorted({method for panel in panels for method in panel.methods}, key=lambda method: method.order)
    looks = told_apart(methods)
    compared = any(point.ratio for panel in panels for point in panel.points)
    curved = any(panel.curved for panel in panels)
    figure, axes = _axes(panels, compared, curved, settings)
    for own, panel in zip(axes, panels, strict=True):
        _speeds(own["speeds"], panel, looks, library)
        if compared:
            _ratios(own["ratios"], panel, looks, library)
        if curved:
            _curves(own["curves"], panel, looks)
        if len(panels) > 1:
            told = _apart(panel, panels)
            own["speeds"].set_title(wrapped(told, 0.6 * width(settings), 6.5), loc="left", fontsize=6.5)
    handles = [
        Line2D([], [], color=ink(looks[m]), linestyle=looks[m].line, marker=looks[m].marker, label=library.label(m))
        for m in methods
    ]
    longest = max(inches(library.label(method), 7.5) for method in methods)
    figure.legend(handles=handles, loc="outside upper center", ncols=max(1, int(width(settings) / (0.5 + longest))))
    return Drawing("speedup", figure, *_words(library, panels, compared, curved))


def _axes(
    panels: Sequence[Panel], compared: bool, curved: bool, settings: Settings
) -> tuple[Figure, list[dict[str, Axes]]]:
    """Speeds, ratios and curves of every set side by side; in one column the curves stand below."""
    rows = [max(_LEAST, _ROW * len(panel.points) + 0.55) for panel in panels]
    below = curved and settings.columns == 1
    heights = [height for row in rows for height in ((row, _LEAST) if below else (row,))]
    widths = [1.5, *([1.05] if compared else []), *([2.1] if curved and not below else [])]
    figure = plt.figure(figsize=(width(settings), sum(heights) + 0.3))
    grid = figure.add_gridspec(len(heights), len(widths), height_ratios=heights, width_ratios=widths)
    found = []
    for index in range(len(panels)):
        row = 2 * index if below else index
        own = {"speeds": figure.add_subplot(grid[row, 0])}
        if compared:
            own["ratios"] = figure.add_subplot(grid[row, 1])
        if curved:
            own["curves"] = figure.add_subplot(grid[row + 1, :] if below else grid[row, -1])
        found.append(own)
    return figure, found


def _panel(chosen: SpeedSet, resamples: int) -> Panel:
    points, curves = [], {}
    for method, found in chosen.drafts.items():
        if speed.refused(found):
            continue
        for way in chosen.ways:
            whole, decode = (speed.speedup(found, way, clock) for clock in ("wall_s", "decode"))
            if not whole.den.sum():
                continue
            ratio = speed.compared(chosen, method, chosen.reference, way, resamples)
            tasks = {task: speed.speedup(found, way, "wall_s", task) for task in chosen.tasks}
            points.append(
                Shown(
                    method,
                    way,
                    whole.estimate(resamples),
                    decode.estimate(resamples) if decode.den.sum() else None,
                    ratio[0] if ratio else None,
                    {task: terms.value for task, terms in tasks.items() if terms.den.sum() and len(tasks) > 1},
                    speed.doubt(found, resamples, way.batch),
                )
            )
        curves[method] = speed.predictions(found, resamples)
    return Panel(chosen, points, curves)


def _places(points: Sequence[Shown]) -> list[float]:
    """y of every point, downwards, a gap between drafts."""
    places: list[float] = []
    for index, point in enumerate(points):
        step = 1.0 if index and point.method == points[index - 1].method else 1.45
        places.append((places[-1] if places else 0.0) - step)
    return places


def _speeds(axis: Axes, panel: Panel, looks: dict[Method, Look], library: Library) -> None:
    places = _places(panel.points)
    labels = []
    for index, (point, y) in enumerate(zip(panel.points, places, strict=True)):
        axis.scatter(
            list(point.tasks.values()),
            [y - 0.42] * len(point.tasks),
            s=5,
            facecolors="white",
            edgecolors=INK,
            linewidths=0.5,
            zorder=4,
        )
        _point(axis, point.whole, y, looks[point.method], filled=True)
        first = index == 0 or panel.points[index - 1].method != point.method
        name = f"{library.label(point.method)},  " if first else ""
        labels.append(f"{name}{point.way.words}{'?' if point.doubt else ''}")
    axis.axvline(1, color=INK, linewidth=0.7, linestyle=":")
    axis.set_yticks(places, labels, fontsize=6.5)
    _rows(axis, places)
    axis.set_xlabel(wrapped("speed-up, end to end (×)", _wide(axis), 8))


def _ratios(axis: Axes, panel: Panel, looks: dict[Method, Look], library: Library) -> None:
    if not any(point.ratio for point in panel.points):
        axis.set_axis_off()
        return
    places = _places(panel.points)
    for point, y in zip(panel.points, places, strict=True):
        if point.ratio is not None:
            _point(axis, point.ratio, y, looks[point.method], filled=point.ratio.excludes(1))
    axis.axvline(1, color=INK, linewidth=0.7, linestyle=":")
    axis.set_yticks(places, [])
    _rows(axis, places)
    axis.set_xlabel(f"ratio to\n{wrapped(f'{library.label(panel.chosen.reference)} (×)', _wide(axis), 8)}")


def _curves(axis: Axes, panel: Panel, looks: dict[Method, Look]) -> None:
    if not panel.curved:
        axis.set_axis_off()
        return
    methods = panel.methods
    for index, method in enumerate(methods):
        style, curve = looks[method], panel.curves[method]
        axis.plot(
            list(curve),
            [one.value for one in curve.values()],
            color=ink(style),
            linestyle=style.line,
            linewidth=1.0,
            zorder=2,
        )
        shift = 0.62 * (index - (len(methods) - 1) / 2) / max(len(methods), 1)
        for point in panel.points:
            if point.method == method and point.decode is not None and point.way.batch == 1:
                _point(axis, point.decode, point.way.gamma + shift, style, filled=True, upright=True)
    axis.axhline(1, color=INK, linewidth=0.7, linestyle=":")
    lengths = {gamma for curve in panel.curves.values() for gamma in curve}
    lengths |= {point.way.gamma for point in panel.points if point.way.batch == 1}
    axis.set_xlim(min(lengths) - 0.5, max(lengths) + 0.5)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set_xlabel("draft length γ")
    axis.set_ylabel("speed-up,\ndecode only (×)")


def _point(axis: Axes, estimate: Estimate, at: float, style: Look, *, filled: bool, upright: bool = False) -> None:
    x, y = (at, estimate.value) if upright else (estimate.value, at)
    # Over the curves intervals stand close: each has its point's colour.
    colours = {"ecolor": ink(style), "capsize": 1.6} if upright else {}
    drawn = mark(style, filled=filled) | {"markersize": 3.8, "markeredgewidth": 0.9, "zorder": 3} | colours
    axis.errorbar(x, y, **drawn | {"yerr" if upright else "xerr": reach(estimate)})


def _wide(axis: Axes) -> float:
    """Inches of an axis, or fewer, before the layout has given the rows' names their room."""
    figure: Any = axis.figure
    return 0.8 * axis.get_position().width * float(figure.get_size_inches()[0])


def _rows(axis: Axes, places: Sequence[float]) -> None:
    """Lines along the rows, so that a point is read back to its name."""
    axis.set_ylim(places[-1] - 0.8, places[0] + 0.8)
    axis.tick_params(axis="y", length=0)
    axis.grid(False)
    axis.grid(axis="x")
    for place in places:
        axis.axhline(place, color=PALE, linewidth=0.4, zorder=0)
    axis.xaxis.set_major_locator(MaxNLocator(4))


def _apart(panel: Panel, panels: Sequence[Panel]) -> str:
    return speed.differing([other.chosen for other in panels], panel.chosen)


def _words(library: Library, panels: Sequence[Panel], compared: bool, curved: bool) -> tuple[str, str, dict[str, Any]]:
    """Caption, text alternative and numbers of the figure."""
    said, doubts = [], []
    data: dict[str, Any] = {}
    for panel in panels:
        at = f", {_apart(panel, panels)}" if len(panels) > 1 else ""
        for point in panel.points:
            place = f"{library.label(point.method)}, {point.way.words}{at}"
            curve = panel.curves[point.method]
            foretold = curve.get(point.way.gamma) if point.way.batch == 1 else None
            ratio = (
                f" ({number(point.ratio.value, 2)} of {library.label(panel.chosen.reference)})" if point.ratio else ""
            )
            said.append(f"{place}: ×{number(point.whole.value, 2)}{ratio}")
            data[place] = {
                "speed": _plain(point.whole),
                "decode": _plain(point.decode),
                "ratio": _plain(point.ratio),
                "predicted": _plain(foretold),
                "tasks": point.tasks,
            }
        for method, curve in panel.curves.items():
            data[f"{library.label(method)}{at}: predicted by γ"] = [[gamma, one.value] for gamma, one in curve.items()]
        doubts += [f" {library.label(p.method)}{at} (?): {p.doubt}." for p in panel.points if p.doubt]
    unsettled = "".join(dict.fromkeys(doubts))
    circles = " (small circles: task by task)" if any(point.tasks for panel in panels for point in panel.points) else ""
    references = dict.fromkeys(library.label(panel.chosen.reference) for panel in panels)
    ratios = (
        f" Middle: paired ratio of that to the speed-up with {', '.join(references)}, filled where its interval "
        "excludes 1."
        if compared
        else ""
    )
    right = " Right: the same without the prompt's prefill, over the draft length." if curved else ""
    if any(curve for panel in panels for curve in panel.curves.values()):
        right += " Lines: predicted from the target's own text and the cost of a call, without drafting."
    caption = (
        f"Speculative decoding. Left: seconds of plain decoding over seconds with the draft, end to end, with 95 % "
        f"intervals over prompts{circles}.{ratios}{right} The text is that of plain decoding.{unsettled}"
    )
    return caption, f"Speed-up: {'; '.join(said)}.{unsettled}", data


def _plain(estimate: Estimate | None) -> dict[str, Any] | None:
    if estimate is None:
        return None
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}
