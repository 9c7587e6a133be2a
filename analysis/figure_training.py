"""How does training go? Loss, acceptance and gated share over the steps, from train records.

Lines are means over training seeds, bands reach from the smallest to the largest seed, nothing is smoothed.
"""

from __future__ import annotations

from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from analysis.load import Library, Method
from analysis.method_legend import lines, method_legend
from analysis.style import Drawing, Look, Settings, ink, looks, width
from analysis.table_ir import number
from analysis.training_curves import Series, held_out_loss, plain, series_of, trained_methods
from selectkd_eval.records import Record

_PANELS = (
    ("validation", "loss", "validation loss (unweighted)"),
    ("step", "loss", "training loss (each method's own)"),
    ("validation", "alpha", "held-out acceptance α = 1 − mean TV"),
    ("step", "bite", "share of the loss gated away"),
)


def training(library: Library, settings: Settings) -> Drawing:
    """Loss, acceptance and gated share over the steps, one line per method."""
    groups = trained_methods(library)
    styles, across = looks(list(groups)), settings.columns
    each = 1.85 if across == 2 else 1.35
    height = each * (4 / across) + 0.3 + 0.15 * lines(library, styles, width(settings))
    figure, axes = plt.subplots(4 // across, across, figsize=(width(settings), height), sharex=True, squeeze=False)
    data: dict[str, Any] = {}
    measured = held_out_loss(groups)
    for axis, (event, what, label) in zip(axes.flat, _PANELS, strict=True):
        for method, found in groups.items():
            series = series_of(found, event, what)
            # A loss against labels and a divergence from the teacher are not on one scale.
            other_scale = (event, what) == ("validation", "loss") and method.held_out != measured
            if series is None or (what == "bite" and not series.mean.any()) or other_scale:
                continue
            _line(axis, series, styles[method], markers=event == "validation")
            data[f"{library.label(method)}: {label}"] = plain(series)
        axis.set_title(label)
    for axis in axes[-1]:
        axis.set_xlabel("optimiser step")
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    method_legend(figure, library, styles, width(settings))
    seeds = sorted({len(found) for found in groups.values()})
    caption = (
        f"Training curves: mean over training seeds ({' or '.join(map(str, seeds))}), band from the smallest to the "
        "largest, not smoothed. Training losses of different objectives or gates are not comparable with each "
        f"other; the validation loss is one unweighted divergence ({measured[0] or 'unnamed'}) for all in its panel."
    )
    return Drawing("training", figure, caption, _training_alt(library, groups), data)


def _line(axis: Axes, series: Series, style: Look, markers: bool) -> None:
    axis.plot(
        series.steps,
        series.mean,
        color=ink(style),
        linestyle=style.line,
        marker=style.marker if markers else "",
        markevery=max(1, len(series.steps) // 12),
    )
    if series.seeds > 1:
        axis.fill_between(series.steps, series.low, series.high, color=ink(style), alpha=0.18, linewidth=0)


def _training_alt(library: Library, groups: dict[Method, list[Record]]) -> str:
    parts = []
    for method, found in groups.items():
        series = series_of(found, "validation", "loss")
        if series is not None and method.held_out == held_out_loss(groups):
            ends = f"{number(series.mean[0], 3)} at step {series.steps[0]:.0f} to {number(series.mean[-1], 3)}"
            parts.append(f"{library.label(method)} from {ends} at step {series.steps[-1]:.0f}")
    return f"Line charts over training steps. Validation loss: {'; '.join(parts)}."
