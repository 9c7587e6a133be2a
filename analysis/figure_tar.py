"""Does the validation loss fall as the teacher accepts more? The paper's Figure 4a, from train and tar records.

Lines are means over training seeds, nothing is smoothed. Figure 4a's two axes let one choose where the lines cross, so
the same points also stand as a phase plot, loss against acceptance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from analysis.acceptance import TarSet, tar_sets
from analysis.figure_training import legend
from analysis.load import Library, Method
from analysis.style import ERROR, TWO_COLUMNS, Drawing, Look, Settings, ink, looks
from analysis.table_ir import number
from analysis.training_curves import held_out_loss, plain, series_of, trained_methods
from selectkd_eval.errors import InputError
from selectkd_eval.records import Record

LOSS, RATE = "#0072B2", "#D55E00"


def tar(library: Library, settings: Settings) -> Drawing:
    """Validation loss against token acceptance: over the steps, as a phase plot, and over checkpoints."""
    groups = trained_methods(library) if library.of("train") else {}
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
        words.append(_checkpoints(panel, library, chosen, styles, settings.resamples, data))
    shown_methods = {m for m in groups if f"phase {library.label(m)}" in data}
    for chosen in evaluated:
        shown_methods |= {m for m in chosen.methods if f"{chosen.text} alpha {library.label(m)}" in data}
    if shown_methods:
        legend(figure, library, {method: style for method, style in styles.items() if method in shown_methods})
    caption = (
        "Token acceptance. TAR is the mean over sequences of the share of accepted tokens (Eq. 13, by the acceptance "
        "indicator). Hollow triangles: steps at which TAR fell. TAR is a measure of agreement with the teacher, not "
        "of quality."
    )
    return Drawing("tar", figure, caption, " ".join(words), data)


def _moving_tar(found: Sequence[Record]) -> bool:
    """Whether the record's own TAR says anything: without a gate every token is accepted."""
    series = series_of(found, "validation", "tar")
    return series is not None and len(series.steps) > 1 and bool(np.ptp(series.mean) > 0)


def _dual(axis: Axes, found: Sequence[Record], label: str, data: dict[str, Any]) -> str:
    loss, rate = series_of(found, "validation", "loss"), series_of(found, "validation", "tar")
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
    data["loss and TAR"] = {"method": label, "loss": plain(loss), "tar": plain(rate), "falls": len(falls)}
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
    measured = held_out_loss(groups)
    for method, found in groups.items():
        if method.held_out != measured:
            continue
        loss, alpha = series_of(found, "validation", "loss"), series_of(found, "validation", "alpha")
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
