"""How does training go, and does acceptance rise with it? The paper's Figures 3a and 4a from train and tar records.

Lines are means over training seeds, bands reach from the smallest to the largest seed, nothing is smoothed. Figure
4a's two axes let one choose where the lines cross, so the same points also stand as a phase plot, loss against
acceptance.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.acceptance import TarSet, tar_sets
from analysis.load import Library, Method
from analysis.style import ERROR, TWO_COLUMNS, Drawing, Look, ink, looks
from analysis.table_ir import number
from selectkd_eval import measures
from selectkd_eval.errors import InputError
from selectkd_eval.records import Record
from selectkd_eval.stats import Floats

LOSS, RATE = "#0072B2", "#D55E00"
_PANELS = (
    ("validation", "loss", "validation loss (unweighted)"),
    ("step", "loss", "training loss (each method's own)"),
    ("validation", "alpha", "held-out acceptance α = 1 − mean TV"),
    ("step", "bite", "share of the loss gated away"),
)


class Series(NamedTuple):
    """One quantity of one method over steps: mean, smallest and largest seed, (S,) each."""

    steps: Floats
    mean: Floats
    low: Floats
    high: Floats
    seeds: int


def training(library: Library) -> Drawing:
    """Loss, acceptance and gated share over the steps, one line per method."""
    groups = _methods(library)
    styles, columns = looks(list(groups)), _columns(library, list(groups))
    height = 4.2 + 0.15 * max(0, -(-len(groups) // columns) - 3)  # below a long legend
    figure, axes = plt.subplots(2, 2, figsize=(TWO_COLUMNS, height), sharex=True)
    data: dict[str, Any] = {}
    measured = _measured(groups)
    for axis, (event, what, label) in zip(axes.flat, _PANELS, strict=True):
        for method, found in groups.items():
            series = _series(found, event, what)
            # A loss against labels and a divergence from the teacher are not on one scale.
            other_scale = (event, what) == ("validation", "loss") and method.held_out != measured
            if series is None or (what == "bite" and not series.mean.any()) or other_scale:
                continue
            _line(axis, series, styles[method], markers=event == "validation")
            data[f"{library.label(method)}: {label}"] = _plain(series)
        axis.set_title(label)
    for axis in axes[1]:
        axis.set_xlabel("optimiser step")
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    _legend(figure, library, styles)
    seeds = sorted({len(found) for found in groups.values()})
    caption = (
        f"Training curves: mean over training seeds ({' or '.join(map(str, seeds))}), band from the smallest to the "
        "largest, not smoothed. Training losses of different objectives or gates are not comparable with each "
        f"other; the validation loss is one unweighted divergence ({measured[0] or 'unnamed'}) for all in its panel."
    )
    return Drawing("training", figure, caption, _training_alt(library, groups), data)


def tar(library: Library, resamples: int) -> Drawing:
    """Validation loss against token acceptance: over the steps, as a phase plot, and over checkpoints."""
    groups = _methods(library) if library.of("train") else {}
    gated = [method for method in groups if _moving_tar(groups[method])]
    evaluated = tar_sets(library)
    if not gated and not evaluated:
        raise InputError("the tar figure needs train records with a verifier, or tar records: train or measure one")
    evaluated = evaluated[:2]
    count = 2 * bool(gated) + len(evaluated)
    rows, columns = (2, 2) if count == 4 else (1, count)
    size = (TWO_COLUMNS if count > 1 else 3.6, 2.55 * rows + 0.2)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    panels = list(axes.flat)
    everyone = {*groups, *(method for chosen in evaluated for method in chosen.methods)}
    styles = looks(sorted(everyone, key=lambda method: method.order))
    data: dict[str, Any] = {}
    words = []
    if gated:
        # The paper draws its non-greedy variant: Spec-k when there is one.
        shown = max(gated, key=lambda method: (method.get("verifier") == "spec-k", method.order))
        words.append(_dual(panels[0], groups[shown], library.label(shown), data))
        _phase(panels[1], library, groups, styles, data)
    for panel, chosen in zip(panels[-len(evaluated) :], evaluated, strict=False):
        words.append(_checkpoints(panel, library, chosen, styles, resamples, data))
    shown_methods = {m for m in groups if f"phase {library.label(m)}" in data}
    for chosen in evaluated:
        shown_methods |= {m for m in chosen.methods if f"{chosen.text} alpha {library.label(m)}" in data}
    if shown_methods:
        _legend(figure, library, {method: style for method, style in styles.items() if method in shown_methods})
    caption = (
        "Token acceptance. TAR is the mean over sequences of the share of accepted tokens (Eq. 13, by the acceptance "
        "indicator). Hollow triangles: steps at which TAR fell. TAR is a measure of agreement with the teacher, not "
        "of quality."
    )
    return Drawing("tar", figure, caption, " ".join(words), data)


def _methods(library: Library) -> dict[Method, list[Record]]:
    groups: dict[Method, list[Record]] = defaultdict(list)
    for record in library.of("train"):
        groups[library.trained(record)].append(record)
    if not groups:
        raise InputError("this figure needs train records: run `selectkd-eval train` first")
    return dict(sorted(groups.items(), key=lambda item: item[0].order))


def _measured(groups: dict[Method, list[Record]]) -> tuple[Any, ...]:
    """What the validation loss of most methods is: only those share a panel."""
    kinds = [method.held_out for method in groups]
    return max(kinds, key=lambda kind: (kinds.count(kind), kind[0] != "nll", str(kind)))


def _series(found: Sequence[Record], event: str, what: str) -> Series | None:
    """Seeds side by side on the steps they all have."""
    curves = [measures.curve(record.rows, event, what) for record in found]
    curves = [curve for curve in curves if len(curve[0])]
    if not curves:
        return None
    steps = curves[0][0]
    for other, _ in curves[1:]:
        steps = np.intersect1d(steps, other)
    values = np.stack([value[np.isin(at, steps)] for at, value in curves])
    if not len(steps):
        return None
    return Series(steps, values.mean(axis=0), values.min(axis=0), values.max(axis=0), len(curves))


def _moving_tar(found: Sequence[Record]) -> bool:
    """Whether the record's own TAR says anything: without a gate every token is accepted."""
    series = _series(found, "validation", "tar")
    return series is not None and len(series.steps) > 1 and bool(np.ptp(series.mean) > 0)


def _line(axis: Axes, series: Series, style: Look, markers: bool) -> None:
    axis.plot(
        series.steps,
        series.mean,
        color=style.colour,
        linestyle=style.line,
        marker=style.marker if markers else "",
        markevery=max(1, len(series.steps) // 12),
    )
    if series.seeds > 1:
        axis.fill_between(series.steps, series.low, series.high, color=style.colour, alpha=0.18, linewidth=0)


def _dual(axis: Axes, found: Sequence[Record], label: str, data: dict[str, Any]) -> str:
    loss, rate = _series(found, "validation", "loss"), _series(found, "validation", "tar")
    assert loss is not None and rate is not None
    axis.plot(loss.steps, loss.mean, color=LOSS, marker="o")
    axis.set_ylabel("validation loss", color=LOSS)
    axis.tick_params(axis="y", colors=LOSS)
    axis.set_xlabel("optimiser step")
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    other = axis.twinx()
    other.plot(rate.steps, rate.mean, color=RATE, linestyle="--", marker="s")
    other.set_ylabel("held-out TAR", color=RATE)
    other.tick_params(axis="y", colors=RATE)
    other.spines["right"].set_visible(True)
    other.grid(visible=False)
    axis.spines["left"].set_color(LOSS)
    other.spines["right"].set_color(RATE)
    falls = np.flatnonzero(np.diff(rate.mean) < 0) + 1
    other.plot(rate.steps[falls], rate.mean[falls], "v", markersize=7, markerfacecolor="none", color=RATE)
    times = f"{len(falls)} of {len(rate.steps) - 1}"
    axis.set_title(f"{label}, {loss.seeds} seed{'s' if loss.seeds > 1 else ''}\nTAR fell at {times} evaluations")
    data["loss and TAR"] = {"method": label, "loss": _plain(loss), "tar": _plain(rate), "falls": len(falls)}
    return (
        f"Line chart of {label}: validation loss from {number(loss.mean[0], 3)} to {number(loss.mean[-1], 3)} while "
        f"held-out TAR goes from {number(rate.mean[0], 3)} to {number(rate.mean[-1], 3)}; TAR fell at {times} "
        "evaluations."
    )


def _phase(
    axis: Axes,
    library: Library,
    groups: dict[Method, list[Record]],
    styles: dict[Method, Look],
    data: dict[str, Any],
) -> None:
    """Every method on one definition of acceptance, alpha, since a method without a gate has no TAR of its own."""
    measured = _measured(groups)
    for method, found in groups.items():
        if method.held_out != measured:
            continue
        loss, alpha = _series(found, "validation", "loss"), _series(found, "validation", "alpha")
        if loss is None or alpha is None or len(loss.steps) != len(alpha.steps):
            continue
        style = styles[method]
        axis.plot(alpha.mean, loss.mean, color=style.colour, linestyle=style.line, marker=style.marker, markersize=3)
        axis.plot(
            alpha.mean[-1], loss.mean[-1], style.marker, color=style.colour, markeredgecolor="black", markersize=6
        )
        data[f"phase {library.label(method)}"] = {"alpha": alpha.mean.tolist(), "loss": loss.mean.tolist()}
    axis.set_xlabel("held-out α = 1 − mean TV")
    axis.set_ylabel("validation loss")
    axis.set_title("phase plot\nlarge: last evaluation")


def _checkpoints(
    axis: Axes,
    library: Library,
    chosen: TarSet,
    styles: dict[Method, Look],
    resamples: int,
    data: dict[str, Any],
) -> str:
    """TAR on one fixed set: over checkpoints when there are steps, method by method otherwise."""
    methods = chosen.methods
    stepped = any(len(chosen.steps(method)) > 1 for method in methods)
    kinds = {
        "greedy": (f"greedy Top-{chosen.k}", "#E69F00", "s", "--"),
        "spec": (f"Spec-{chosen.k}", "#009E73", "^", "-."),
    }
    kinds["alpha"] = ("α = 1 − TV", "#444444", "o", "-")
    words = []
    if stepped and len(methods) > 1:
        # One definition for all: alpha does not depend on k and does not saturate.
        for method in methods:
            style = styles[method]
            drawn = (ink(style), style.marker, style.line, library.label(method))
            words.append(_tar_line(axis, chosen, [method], "alpha", drawn, resamples, data))
        axis.set_ylabel("α = 1 − TV on held-out text")
    else:
        for what, (label, colour, marker, dashes) in kinds.items():
            drawn = (colour, marker, dashes if stepped else "", label)
            words.append(_tar_line(axis, chosen, methods, what, drawn, resamples, data))
        axis.set_ylabel("TAR on held-out text")
        axis.legend(loc="best", fontsize=6.5)
    axis.set_title(
        f"{library.label(methods[0]) if len(methods) == 1 else 'checkpoints' if stepped else 'students'}\n{chosen.text}"
    )
    if stepped:
        axis.set_xlabel("checkpoint step")
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    else:
        axis.set_xticks(range(len(methods)), [library.label(m).replace(" + ", "\n+ ") for m in methods], fontsize=6.5)
        axis.set_xlim(-0.5, len(methods) - 0.5)
    return f"Token acceptance on {chosen.text}: {'; '.join(words)}."


def _tar_line(
    axis: Axes,
    chosen: TarSet,
    methods: list[Method],
    what: str,
    drawn: tuple[str, str, Any, str],
    resamples: int,
    data: dict[str, Any],
) -> str:
    """One line of estimates: over a method's steps, or over methods; returns it in words."""
    colour, marker, line, label = drawn
    points = [at for at in chosen.points if at[0] in methods]
    points.sort(key=lambda at: (at[0].order, at[1] is None, at[1] or 0))
    estimates = [chosen.points[at][what].estimate(resamples) for at in points]
    over_steps = len(methods) == 1
    xs = [float(step or 0) if over_steps else float(methods.index(method)) for method, step in points]
    errors = [[e.value - e.low for e in estimates], [e.high - e.value for e in estimates]]
    values = [e.value for e in estimates]
    axis.errorbar(
        xs, values, yerr=errors, color=colour, marker=marker, linestyle=line, label=label, **ERROR | {"ecolor": colour}
    )
    data[f"{chosen.text} {what} {label}"] = [
        [method.label, step, e.value, e.low, e.high] for (method, step), e in zip(points, estimates, strict=True)
    ]
    return f"{label} " + ", ".join(number(value, 3) for value in values)


def _legend(figure: Any, library: Library, styles: dict[Method, Look]) -> None:
    handles = [
        Line2D([], [], color=ink(style), linestyle=style.line, marker=style.marker, label=library.label(method))
        for method, style in styles.items()
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.legend(handles=handles, loc="outside upper center", ncols=_columns(library, list(styles)))


def _columns(library: Library, methods: list[Method]) -> int:
    """Columns of the legend, by its longest name at about 0.055 inches a letter."""
    longest = max(len(library.label(method)) for method in methods)
    return max(1, min(5, len(methods), int(TWO_COLUMNS / (0.45 + 0.055 * longest))))


def _training_alt(library: Library, groups: dict[Method, list[Record]]) -> str:
    parts = []
    for method, found in groups.items():
        series = _series(found, "validation", "loss")
        if series is not None and method.held_out == _measured(groups):
            ends = f"{number(series.mean[0], 3)} at step {series.steps[0]:.0f} to {number(series.mean[-1], 3)}"
            parts.append(f"{library.label(method)} from {ends} at step {series.steps[-1]:.0f}")
    return f"Line charts over training steps. Validation loss: {'; '.join(parts)}."


def _plain(series: Series) -> dict[str, Any]:
    return {
        "steps": series.steps.tolist(),
        "mean": series.mean.tolist(),
        "low": series.low.tolist(),
        "high": series.high.tolist(),
        "seeds": series.seeds,
    }
