"""Which method is ahead during training, and does the order at the end hold? The paper's Figure 3a.

One line per method over optimiser steps (or tokens, where batches differ), from the number that says most about the
student: see `progress`. Names stand at the lines' ends, nothing is smoothed, and a budget that all share is marked
where they differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.fitting import at_line_ends, inches, wrapped
from analysis.load import Library, Method
from analysis.progress import BANDS, Line, Progress, progress
from analysis.style import ERROR, INK, Drawing, Look, Settings, ink, looks, width
from analysis.table_ir import number

_SHARE = 0.3  # of the width, at most, for names at the lines' ends


def curves(library: Library, settings: Settings) -> Drawing:
    """One number of every method over its training, with bands over seeds and names at the ends."""
    found = progress(library, settings.resamples)
    methods = sorted(found.lines, key=lambda method: method.order)
    names = {method: library.label(method, [*methods, *found.left_out]) for method in methods}
    styles = looks(methods)
    longest = max(inches(name, 7) for name in names.values())
    direct = longest < _SHARE * width(settings)
    columns = max(1, int(width(settings) / (0.4 + longest)))
    least = 2.3 if settings.columns == 1 else 3.0
    tall = max(least, 0.6 + 0.14 * len(methods)) if direct else least + 0.165 * -(-len(methods) // columns)
    figure, axis = plt.subplots(figsize=(width(settings), tall))
    for method in methods:
        line(axis, found.lines[method], styles[method])
    same = _budget(axis, found)
    axis.set_xlabel(found.unit)
    axis.set_ylabel(wrapped(found.what, 0.75 * least, 8))
    axis.xaxis.set_major_locator(MaxNLocator(5 if settings.columns == 1 else 8, integer="step" in found.unit))
    if direct:
        at_line_ends(axis, [(*_end(found.lines[m]), names[m], ink(styles[m])) for m in methods])
    else:
        handles = [Line2D([], [], color=ink(s), linestyle=s.line, marker=s.marker) for s in styles.values()]
        figure.legend(handles, list(names.values()), loc="outside lower center", ncols=columns)
    data = {names[method]: plain(found.lines[method]) for method in methods}
    others = [library.label(method, [*methods, *found.left_out]) for method in found.left_out]
    return Drawing("curves", figure, _caption(found, same, others), _words(found, names), data)


def line(axis: Axes, found: Line, style: Look) -> None:
    """One method: its mean with markers, a band over seeds, whiskers over prompts."""
    colour = ink(style)
    every = max(1, len(found.at) // 12)
    axis.plot(found.at, found.mean, color=colour, linestyle=style.line, marker=style.marker, markevery=every)
    if found.band in ("t", "range"):
        axis.fill_between(found.at, found.low, found.high, color=colour, alpha=0.18, linewidth=0)
    elif found.band == "prompts":
        reach = [np.maximum(0, found.mean - found.low), np.maximum(0, found.high - found.mean)]
        axis.errorbar(found.at, found.mean, yerr=reach, fmt="none", **ERROR | {"ecolor": colour, "elinewidth": 0.7})


def plain(found: Line) -> dict[str, Any]:
    """The numbers of a line as JSON has them; a band that does not exist is null."""
    low, high = ([None if np.isnan(v) else float(v) for v in side] for side in (found.low, found.high))
    numbers = {"at": found.at.tolist(), "mean": found.mean.tolist(), "low": low, "high": high}
    return {**numbers, "seeds": found.seeds, "band": BANDS.get(found.band)}


def _end(found: Line) -> tuple[float, float]:
    return float(found.at[-1]), float(found.mean[-1])


def _budget(axis: Axes, found: Progress) -> bool:
    """Marks the budget that all methods had where some went further; whether all went equally far."""
    ends = [line.at[-1] for line in found.lines.values()]
    if max(ends) <= 1.005 * min(ends):
        return True
    axis.axvline(min(ends), color=INK, linewidth=0.7, linestyle=":")
    return False


def _caption(found: Progress, same: bool, left_out: Sequence[str]) -> str:
    kinds = sorted({line.band for line in found.lines.values()})
    seeds = sorted({line.seeds for line in found.lines.values()})
    bands = "; ".join(f"{_drawn(kind)} {BANDS[kind]}" for kind in kinds if kind)
    budget = "All have the same budget." if same else "Dotted: the largest budget that all have."
    others = f" Without such a number, or of another teacher or text: {', '.join(left_out)}." if left_out else ""
    return (
        f"{found.what[:1].upper()}{found.what[1:]} during training, from {found.source}, a line per method: mean over "
        f"{' or '.join(map(str, seeds))} training seed{'' if seeds == [1] else 's'}"
        f"{f', {bands}' if bands else ''}; not smoothed. {budget}{others}"
    )


def _drawn(kind: str) -> str:
    return "whiskers" if kind == "prompts" else "band"


def _words(found: Progress, names: Mapping[Method, str]) -> str:
    digits = 1 if "%" in found.what else 3
    parts = [
        f"{name} from {number(own.mean[0], digits)} at {own.at[0]:.4g} to {number(own.mean[-1], digits)} at "
        f"{own.at[-1]:.4g}"
        for method, name in names.items()
        if (own := found.lines[method])
    ]
    return f"Line chart of {found.what} over {found.unit}s: {'; '.join(parts)}.".replace("(millions)s", "(millions)")
