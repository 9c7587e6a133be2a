"""Does acceptance rise as the paper's Theorem 1 says? ``-log(1 - TAR)`` over the cumulative learning rate, by run.

The bound asks that every run's line rise by at least kappa > 0 per unit of the clock (see `selectkd_eval.theorem`).
Falls are marked, filled where they are more than chance, and each panel's title says what that means for the theorem.
Each method is judged by the acceptance of its own gate; every other definition's fit is in the figure's JSON.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.acceptance import WHAT
from analysis.acceptance_runs import Judged, in_words, judged
from analysis.load import Library
from analysis.style import INK, Drawing, Look, Settings, ink, looks, width
from analysis.table_ir import interval, number
from analysis.tar_words import not_drawn
from selectkd_eval import theorem
from selectkd_eval.errors import InputError
from selectkd_eval.stats import Floats
from selectkd_eval.theorem import Fit

COLUMNS, TEXTS = 3, 2  # panels side by side, and texts below each other, at most


def theorem_1(library: Library, settings: Settings) -> Drawing:
    """Every run's ``-log(1 - TAR)`` with the typical rate, its falls and the largest valid kappa."""
    every = judged(library, settings.resamples)
    if not every:
        raise InputError(
            "the theorem figure needs TAR at two steps of one run: measure checkpoints with `selectkd-eval tar "
            "--student TRAIN-RECORD`, or train with validation, and give these records"
        )
    texts = list(dict.fromkeys(panel.text for panel in every))[:TEXTS]
    methods = sorted({panel.method for panel in every}, key=lambda method: method.order)
    columns = 1 if settings.columns == 1 else min(COLUMNS, len(methods))
    shown = [panel for panel in every if panel.text in texts and panel.method in methods[:COLUMNS]]
    rows = -(-len(shown) // columns)
    size = (width(settings), 2.2 * rows + (0.75 if columns == 1 else 0.3))
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for spare in list(axes.flat)[len(shown) :]:
        spare.set_visible(False)
    styles = looks(methods)
    for axis, panel in zip(axes.flat, shown, strict=False):
        _draw(axis, library, panel, styles[panel.method])
    figure.legend(handles=_handles(), loc="outside lower center", ncols=1 if columns == 1 else 4, fontsize=6.5)
    words = [_words(library, panel) for panel in every]
    caption = (
        "Theorem 1 (Eq. 14): −log(1 − TAR), Eq. 13, must rise by at least κ > 0 per unit of the cumulative learning "
        "rate; the largest valid κ is the smallest rise over any interval between two evaluations. "
        + (
            "Falls are tested by swapping two evaluations prompt by prompt, one-sided, Holm over a run's intervals. "
            if any(run.curves[panel.what].terms for panel in every for run in panel.runs)
            else "Without values per prompt falls are not tested. "
        )
        + f"Typical rate: Theil-Sen over all evaluations of a method's runs with TAR up to {theorem.SATURATED}, 95 % "
        "band of its slope. The bound's premises are not tested."
        + not_drawn(_key(library, panel) for panel in every if panel not in shown)
    )
    data = {_key(library, panel): _data(panel, settings.resamples) for panel in every}
    return Drawing("theorem", figure, caption, " ".join(words), data)


def _draw(axis: Axes, library: Library, panel: Judged, style: Look) -> None:
    colour = ink(style)
    for run, fit in zip(panel.runs, panel.fits, strict=True):
        clock, height = run.curves[panel.what].clock, _finite(theorem.remaining(run.curves[panel.what].tar))
        axis.plot(clock, height, color=colour, linestyle=style.line, marker=style.marker, linewidth=0.9, markersize=3)
        for drop in fit.drops:
            face = INK if drop.significant else "white"
            axis.plot(
                clock[drop.at],
                height[drop.at],
                "v",
                markersize=6.5,
                markerfacecolor=face,
                markeredgecolor=INK,
                zorder=4,
            )
    limits = axis.get_ylim()
    ends = np.array([min(run.curves[panel.what].clock[0] for run in panel.runs), *_last(panel)])
    if panel.rate is not None:
        _band(axis, panel, ends)
    _bound(axis, panel, ends)
    low, high = limits
    axis.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    by_rate = panel.runs[0].by_rate
    axis.set_xlabel("cumulative learning rate Σ η" if by_rate else "optimiser step (learning rates not known)")
    axis.set_ylabel(f"−log(1 − TAR), {panel.name}")
    kappa = panel.kappa_max
    axis.set_title(
        f"{library.label(panel.method)}, {panel.text}\n{_broken(in_words(panel.fits))}\n"
        f"largest valid κ = {_told(kappa)}{' ≤ 0' if kappa <= 0 else ''}",
        fontsize=7,
    )


def _broken(words: str) -> str:
    """A verdict over two lines where one would be wider than its panel."""
    return words.replace("; ", ";\n")


def _last(panel: Judged) -> list[float]:
    return [max(run.curves[panel.what].clock[-1] for run in panel.runs)]


def _band(axis: Axes, panel: Judged, ends: Floats) -> None:
    """Theil and Sen's line, and the lines of its slope's limits about the middle of the points."""
    assert panel.rate is not None
    clock = np.concatenate([run.curves[panel.what].clock for run in panel.runs])
    middle = float(np.median(clock))
    at = np.linspace(ends[0], ends[-1], 21)
    line = panel.intercept + panel.rate.value * at
    centre = panel.intercept + panel.rate.value * middle
    slopes = np.stack([centre + slope * (at - middle) for slope in (panel.rate.low, panel.rate.high)])
    axis.plot(at, line, color="#666666", linewidth=1, zorder=1.5)
    axis.fill_between(at, slopes.min(axis=0), slopes.max(axis=0), color="#bbbbbb", alpha=0.35, linewidth=0, zorder=1)


def _bound(axis: Axes, panel: Judged, ends: Floats) -> None:
    """What the largest valid kappa demands from the first evaluation on: a line that no run may fall below."""
    kappa = panel.kappa_max
    worst = next((place for place, fit in enumerate(panel.fits) if fit.kappa_max == kappa), 0)
    first = _finite(theorem.remaining(panel.runs[worst].curves[panel.what].tar))[0]
    if np.isfinite(kappa):
        axis.plot(ends, first + kappa * (ends - ends[0]), color=INK, linestyle=":", linewidth=1, zorder=1.7)


def _finite(height: Floats) -> Floats:
    """At TAR = 1 there is no height; the point is left out."""
    return np.where(np.isfinite(height), height, np.nan)


def _handles() -> list[Line2D]:
    marks: dict[str, Any] = {"linestyle": "", "marker": "v", "markersize": 6, "markeredgecolor": INK}
    return [
        Line2D([], [], color="#666666", linewidth=1, label="typical rate (Theil-Sen), 95 %"),
        Line2D([], [], color=INK, linestyle=":", linewidth=1, label="largest valid κ"),
        Line2D([], [], markerfacecolor=INK, label="TAR fell, Holm p < .05", **marks),
        Line2D([], [], markerfacecolor="white", label="fell, not significant or not tested", **marks),
    ]


def _words(library: Library, panel: Judged) -> str:
    unit = "cumulative learning rate" if panel.runs[0].by_rate else "optimiser steps"
    rate = "no typical rate"
    if panel.rate is not None:
        typical = f"{number(panel.rate.value, 1)} {interval(panel.rate, 1)}"
        rate = f"typical rate {typical} per unit of {unit} (n = {panel.rate.n} evaluations)"
    reasons = "; ".join(dict.fromkeys(fit.reason for fit in panel.fits if fit.reason))
    return (
        f"Theorem 1 for {library.label(panel.method)} on {panel.text} ({panel.name}): {in_words(panel.fits)}"
        f"{f', because {reasons}' if reasons else ''}; largest valid kappa {_told(panel.kappa_max)}, {rate}."
    )


def _told(kappa: float) -> str:
    return "–" if np.isnan(kappa) else number(kappa, 2)


def _key(library: Library, panel: Judged) -> str:
    return f"{panel.text}: {library.label(panel.method)}"


def _data(panel: Judged, resamples: int) -> dict[str, Any]:
    """The panel's curves and fits, and the fits of the other definitions."""
    found: dict[str, Any] = {"drawn": panel.what, "clock": "learning rate" if panel.runs[0].by_rate else "step"}
    found["rate"] = None if panel.rate is None else [panel.rate.value, panel.rate.low, panel.rate.high]
    found["verdict"] = in_words(panel.fits)
    for run, drawn in zip(panel.runs, panel.fits, strict=True):
        fits = {what: drawn if what == panel.what else run.fit(what, resamples) for what in WHAT if what in run.curves}
        name = f"seed {run.seed}"
        again = sum(other == name or other.startswith(f"{name} (") for other in found)  # a seed that was run twice
        found[f"{name} ({again + 1})" if again else name] = {
            "steps": run.steps.tolist(),
            "clock": run.curves[panel.what].clock.tolist(),
            **{what: {"tar": run.curves[what].tar.tolist(), **_fit(fit)} for what, fit in fits.items()},
        }
    return found


def _fit(fit: Fit) -> dict[str, Any]:
    return {
        "verdict": fit.verdict,
        "kappa_max": fit.kappa_max,
        "kappas": fit.kappas.tolist(),
        "violations": fit.violations,
        "worst": fit.worst,
        "gained_and_lost": fit.gained_and_lost,
        "isotonic": fit.isotonic,
        "drops": [[d.at, d.change.value, d.change.low, d.change.high, d.p, d.p_holm] for d in fit.drops],
        "rate": None if fit.rate is None else [fit.rate.value, fit.rate.low, fit.rate.high],
    }
