"""Which method is better, by how much, and is that more than chance? Bars, and below them paired differences.

The bars start at 0. Their intervals overlap even where the paired difference excludes 0, so the differences have
their own panel: filled when the 95 % interval excludes 0, open when it contains it. Stands for the paper's
Figure 1, and for Tables 1 and 2 as pictures.
"""

from __future__ import annotations

import math
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analysis.grid import Grid
from analysis.load import LIKELIHOOD_NOTE, Library, Method
from analysis.pass_columns import Column
from analysis.style import ERROR, INK, TWO_COLUMNS, Drawing, Settings, look
from analysis.table_ir import number, signed
from selectkd_eval.errors import InputError
from selectkd_eval.stats import Estimate

CROWD = 10  # more bars than this in a panel do not have room for words

_WORDS = {"passk": ("pass@1", "pass@1 (%)"), "winrate": ("win rate", "win rate (%)")}


def rates(library: Library, kind: str, settings: Settings) -> Drawing:
    """Grouped bars of pass@1 or of win rates, one panel per column, with the paired differences below."""
    grid = Grid(library, kind, settings.resamples)  # type: ignore[arg-type]
    if not grid.columns:
        raise InputError(f"the {kind} figure needs {kind} records: run `selectkd-eval {kind}` first")
    count = len(grid.columns)
    present = [[m for m in grid.methods if grid.terms(column, m) is not None] for column in grid.columns]
    crowded = max(map(len, present)) > CROWD
    width = max(TWO_COLUMNS if count > 1 else 4.6, 0.2 * sum(map(len, present)) + 1.2 if crowded else 0)
    figure, axes = plt.subplots(
        2, count, figsize=(width, 3.9), squeeze=False, sharex="col", sharey="row", height_ratios=(2.2, 1)
    )
    drawn: set[Method] = set()
    data: dict[str, Any] = {}
    for index, column in enumerate(grid.columns):
        places = _places(present[index])
        drawn |= set(places)
        data[grid.label(column)] = _bars(axes[0, index], grid, column, places, turned=crowded)
        _differences(axes[1, index], grid, column, places, data[grid.label(column)], named=not crowded)
        judged = "\n(likelihood judge)" if column.get("judge_kind") == "likelihood" else ""
        axes[0, index].set_title(_two_lines(grid.label(column)) + judged)
        _family_ticks(axes[1, index], places, grid, turned=crowded)
    axes[0, 0].set_ylabel(_WORDS[kind][1])
    axes[1, 0].set_ylabel("paired\ndifference\n(points)")
    _gate_legend(figure, sorted(drawn, key=lambda method: method.order))
    caption = (
        f"{_WORDS[kind][0].capitalize()} with 95 % intervals over prompts (training seeds pooled, small circles: the "
        f"seeds one by one). Below: difference to {_against(crowded)}, paired by prompt; filled where its 95 % "
        f"interval excludes 0, open where it does not.{_judges(grid)}"
    )
    alt = _sentences(grid, _WORDS[kind][0])
    return Drawing(kind, figure, caption, alt, data)


def _against(crowded: bool) -> str:
    return "the method without the gate (SFT-control for a method without one)" if crowded else "the method named"


def _places(methods: list[Method]) -> dict[Method, float]:
    """x of every bar: families (a base and the gates on it) side by side, a gap between them."""
    places: dict[Method, float] = {}
    x, family = 0.0, None
    for method in methods:
        mine = method.base or method.label
        x += 0.0 if not places else 0.9 if mine == family else 1.35
        places[method], family = x, mine
    return places


def _bars(
    axis: Axes, grid: Grid, column: Column, places: dict[Method, float], *, turned: bool = False
) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for method, x in places.items():
        estimate = grid.estimate(column, method)
        if estimate is None or math.isnan(estimate.value):
            continue
        percent = estimate.scaled(100)
        _bar(axis, x, 0.8, percent, look(method), turned=turned)
        seeds = grid.seeds(column, method)
        if len(seeds) > 1:
            offsets = [x + 0.12 * (i - (len(seeds) - 1) / 2) for i in range(len(seeds))]
            axis.scatter(
                offsets, [100 * v for _, v in seeds], s=7, facecolors="white", edgecolors=INK, linewidths=0.5, zorder=4
            )
        data[grid.library.label(method)] = {**_plain(percent), "seeds": [[seed, 100 * v] for seed, v in seeds]}
    axis.set_ylim(bottom=0)
    axis.tick_params(axis="x", length=0)
    if column.kind == "winrate":
        axis.axhline(50, color=INK, linewidth=0.7, linestyle=":")
    return data


def _differences(
    axis: Axes, grid: Grid, column: Column, places: dict[Method, float], data: dict[str, Any], *, named: bool = True
) -> None:
    for method, x in places.items():
        other = grid.reference(column, method)
        found = grid.delta(column, method, other) if other else None
        if other is None or found is None or math.isnan(found[0].value):
            continue
        points = found[0].scaled(100)
        style = look(method)
        face = style.colour if points.excludes(0) else "white"
        _point(axis, x, points, style.marker, face, style.colour)
        if named:
            axis.annotate(
                f"− {other.label}",
                (x, 0),
                (0, 2),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=6,
            )
        data[grid.library.label(method)][f"difference to {grid.library.label(other)}"] = _plain(points)
    axis.axhline(0, color=INK, linewidth=0.7)
    axis.margins(y=0.35)


def _bar(
    axis: Axes,
    x: float,
    width: float,
    estimate: Estimate,
    style: Any,
    turned: bool = False,
) -> None:
    errors = [[max(0.0, estimate.value - estimate.low)], [max(0.0, estimate.high - estimate.value)]]
    axis.bar(
        x,
        estimate.value,
        width,
        color=style.colour,
        hatch=style.hatch,
        edgecolor=INK,
        linewidth=0.6,
        yerr=errors,
        error_kw=ERROR,
    )
    axis.annotate(
        number(estimate.value, 1),
        (x, 0),
        (0, 3),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=6.5,
        rotation=90 if turned else 0,
        zorder=5,
        bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"},
    )


def _point(axis: Axes, x: float, estimate: Estimate, marker: str, face: str, edge: str) -> None:
    errors = [[max(0.0, estimate.value - estimate.low)], [max(0.0, estimate.high - estimate.value)]]
    axis.errorbar(
        x,
        estimate.value,
        yerr=errors,
        fmt=marker,
        markersize=4.5,
        markerfacecolor=face,
        markeredgecolor=edge,
        markeredgewidth=1.0,
        **ERROR,
    )


def _family_ticks(axis: Axes, places: dict[Method, float], grid: Grid, *, turned: bool = False) -> None:
    families: dict[str, list[float]] = {}
    for method, x in places.items():
        families.setdefault(method.base or grid.library.label(method), []).append(x)
    labels = [name.replace(" ", "\n", 1) for name in families]
    middles = [sum(xs) / len(xs) for xs in families.values()]
    if turned:
        axis.set_xticks(middles, list(families), rotation=35, ha="right", rotation_mode="anchor")
    else:
        axis.set_xticks(middles, labels)
    axis.tick_params(axis="x", length=0)


def _gate_legend(figure: Figure, methods: list[Method]) -> None:
    # Gates on the control have its colour, not the gates'.
    gated = [method for method in methods if method.base and not method.base.startswith("SFT")]
    if not gated:
        return
    seen: dict[Any, Patch] = {}
    bases = [
        method
        for method in methods
        if method.role == "student" and not method.base and not method.label.startswith("SFT")
    ]
    if bases:
        seen[look(bases[0])] = _patch(bases[0], "without gate")
    for method in gated:
        seen.setdefault(look(method), _patch(method, f"+ {method.label.split('+')[-1].strip()}"))
    figure.legend(handles=list(seen.values()), loc="outside upper center", ncols=4)


def _patch(method: Method, label: str) -> Patch:
    style = look(method)
    return Patch(facecolor=style.colour, hatch=style.hatch, edgecolor=INK, linewidth=0.6, label=label)


def _judges(grid: Grid) -> str:
    judges = sorted({(str(c.get("judge")), str(c.get("judge_kind"))) for c in grid.columns if c.kind == "winrate"})
    return "".join(f" Judge: {name}{f' ({LIKELIHOOD_NOTE})' if kind == 'likelihood' else ''}." for name, kind in judges)


def _sentences(grid: Grid, word: str) -> str:
    parts = []
    for column in grid.columns:
        values = []
        for method in grid.methods:
            estimate = grid.estimate(column, method)
            if estimate is not None and not math.isnan(estimate.value):
                values.append(f"{grid.library.label(method)} {number(100 * estimate.value, 1)} %")
            other = grid.reference(column, method)
            found = grid.delta(column, method, other) if other else None
            if other and found and not math.isnan(found[0].value):
                values[-1] += f" ({signed(100 * found[0].value, 1)} against {grid.library.label(other)})"
        judged = " by a likelihood judge" if column.get("judge_kind") == "likelihood" else ""
        parts.append(f"{word}{judged} on {grid.label(column)}: {', '.join(values)}")
    return "Bar chart. " + "; ".join(parts) + "."


def _two_lines(label: str) -> str:
    return label.replace(" vs ", "\nvs ") if len(label) > 24 else label


def _plain(estimate: Estimate) -> dict[str, Any]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}
