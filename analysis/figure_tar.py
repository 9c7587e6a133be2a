"""Does the validation loss fall as the teacher accepts more? The paper's Figure 4a, from train and tar records.

Lines are means over training seeds, nothing is smoothed. Figure 4a's two axes let one choose where the lines cross, so
the same points also stand as a phase plot, loss against acceptance, coloured by the step; in one column of a page the
two lines stand one above the other. Below, what the kept checkpoints' acceptance is on a fixed text, with intervals
over prompts, by all three definitions. That the curve rises is Theorem 1's matter: see `figure_theorem`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.acceptance import WHAT, TarSet, tar_sets
from analysis.acceptance_runs import VALIDATION, gated, named, own
from analysis.load import Library, Method
from analysis.method_legend import lines, method_legend
from analysis.style import INK, Drawing, Look, Settings, ink, interval_line, looks, width
from analysis.table_ir import number
from analysis.tar_words import not_drawn
from analysis.training_curves import Series, held_out_loss, plain, series_of, trained_methods
from selectkd_eval.errors import InputError
from selectkd_eval.records import Record

LOSS, RATE = "#0072B2", "#D55E00"
TEXTS = 2
_KINDS = {"greedy": ("#E69F00", "s"), "spec": ("#009E73", "^"), "alpha": ("#444444", "o")}

Groups = dict[Method, list[Record]]


class Panels(NamedTuple):
    """The figure's axes: for the curves one with two scales or two, for the phase plot, and by text and definition."""

    figure: Figure
    top: Any
    curves: list[Axes]
    phase: Axes | None
    fixed: dict[str, dict[str, Axes]]


def tar(library: Library, settings: Settings) -> Drawing:
    """Validation loss against token acceptance: over the steps, as a phase plot, and over checkpoints."""
    groups = trained_methods(library) if library.of("train") else {}
    moving = [method for method in groups if _moving_tar(groups[method])]
    every = tar_sets(library)
    evaluated = every[:TEXTS]
    if not moving and not evaluated:
        raise InputError("the tar figure needs train records with a verifier, or tar records: train or measure one")
    everyone = {*groups, *(method for chosen in evaluated for method in chosen.methods)}
    styles = looks(sorted(everyone, key=lambda method: method.order))
    drawn = set(_compared(groups)) if moving else set()
    for chosen in evaluated:
        drawn |= set(chosen.methods) if _stepped(chosen) else set()
    named_styles = {method: style for method, style in styles.items() if method in drawn}
    panels = _panels(settings, bool(moving), evaluated, lines(library, named_styles, width(settings)))
    data: dict[str, Any] = {}
    words = []
    if panels.phase is not None:
        # The paper draws its non-greedy variant: Spec-k when there is one.
        shown = max(moving, key=lambda method: (method.get("verifier") == "spec-k", method.order))
        words.append(_curves(panels.curves, groups[shown], library.label(shown), data))
        _phase(panels.phase, library, _compared(groups), shown, styles, data)
    for chosen in evaluated:
        axes = panels.fixed.get(chosen.text, {})
        words.append(_checkpoints(axes, library, chosen, styles, settings.resamples, data))
    if named_styles:
        method_legend(panels.top, library, named_styles, width(settings))
    caption = (
        "Token acceptance. TAR is the mean over sequences of the share of accepted tokens (Eq. 13, by the acceptance "
        "indicator); Spec-k's is exact, 1 − TV^k; intervals are 95 % over prompts. Hollow triangles: evaluations at "
        "which TAR fell. TAR is a measure of agreement with the teacher, not of quality."
        + not_drawn(chosen.text for chosen in every if chosen.text not in panels.fixed)
    )
    return Drawing("tar", panels.figure, caption, " ".join(words), data)


def _compared(groups: Groups) -> Groups:
    """The methods whose validation loss is one divergence, and so on one scale."""
    measured = held_out_loss(groups)
    return {method: found for method, found in groups.items() if method.held_out == measured}


def _panels(settings: Settings, trained: bool, evaluated: Sequence[TarSet], legend_lines: int) -> Panels:
    """Rows of panels: parts of the figure where they have different columns, else one grid whose edges agree."""
    narrow = settings.columns == 1
    rows: list[list[str]] = [["loss"], ["rate"], ["phase"]] if narrow else [["loss", "phase"]]
    rows = rows if trained else []
    for chosen in evaluated[:1] if narrow else evaluated:
        kinds = ["all"] if not _stepped(chosen) else ["alpha"] if narrow else list(WHAT)
        rows.append([f"{chosen.text}/{kind}" for kind in kinds])
    heights = [1.85 if narrow else 2.3 for _ in rows]
    heights[0] += 0.1 + 0.15 * legend_lines
    figure = plt.figure(figsize=(width(settings), sum(heights)))
    top: Any = figure
    axes: dict[str, Axes] = {}
    if narrow:
        grid = figure.subplots(len(rows), 1, squeeze=False)
        axes |= {names[0]: axis for names, axis in zip(rows, grid[:, 0], strict=True)}
    else:
        parts = figure.subfigures(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
        top = parts[0]
        for part, names in zip(parts, rows, strict=True):
            axes |= dict(zip(names, part.subplots(1, len(names), squeeze=False)[0], strict=True))
    fixed: dict[str, dict[str, Axes]] = {}
    for name, axis in axes.items():
        text, _, what = name.rpartition("/")
        if text:
            fixed.setdefault(text, {})[what] = axis
    curves = [axes[name] for name in ("loss", "rate") if name in axes]
    return Panels(figure, top, curves, axes.get("phase"), fixed)


def _moving_tar(found: Sequence[Record]) -> bool:
    """Whether the record's own TAR says anything: without a gate every token is accepted."""
    series = series_of(found, "validation", "tar")
    return series is not None and len(series.steps) > 1 and bool(np.ptp(series.mean) > 0)


def _curves(axes: list[Axes], found: Sequence[Record], label: str, data: dict[str, Any]) -> str:
    """Loss and TAR over the steps, on two scales of one panel or in two panels; returns them in words."""
    loss, rate = series_of(found, "validation", "loss"), series_of(found, "validation", "tar")
    assert loss is not None and rate is not None
    first, second = (axes[0], axes[1]) if len(axes) == 2 else (axes[0], axes[0].twinx())
    _coloured(first, loss, "validation loss", LOSS, "o", "-")
    _coloured(second, rate, "held-out TAR", RATE, "s", "--")
    if len(axes) == 1:
        second.spines["right"].set_visible(True)
        second.spines["right"].set_color(RATE)
        second.grid(visible=False)
    else:
        second.spines["left"].set_color(RATE)
        first.sharex(second)
        first.tick_params(axis="x", labelbottom=False)
    first.spines["left"].set_color(LOSS)
    axes[-1].set_xlabel("optimiser step")
    axes[-1].xaxis.set_major_locator(MaxNLocator(5, integer=True))
    falls = np.flatnonzero(np.diff(rate.mean) < 0) + 1
    second.plot(rate.steps[falls], rate.mean[falls], "v", markersize=8, markerfacecolor="none", color=INK, zorder=4)
    times = f"{len(falls)} of {len(rate.steps) - 1}"
    first.set_title(f"{label}, {loss.seeds} seed{'s' if loss.seeds > 1 else ''}\nTAR fell at {times} evaluations")
    data["loss and TAR"] = {"method": label, "loss": plain(loss), "tar": plain(rate), "falls": len(falls)}
    return (
        f"Line chart of {label}: validation loss from {number(loss.mean[0], 3)} to {number(loss.mean[-1], 3)} while "
        f"held-out TAR goes from {number(rate.mean[0], 3)} to {number(rate.mean[-1], 3)}; TAR fell at {times} "
        "evaluations."
    )


def _coloured(axis: Axes, series: Series, label: str, colour: str, marker: str, line: str) -> None:
    """A line whose axis has its colour; the label says how it is dashed, for print without colour."""
    axis.plot(series.steps, series.mean, color=colour, linestyle=line, marker=marker)
    if series.seeds > 1:
        axis.fill_between(series.steps, series.low, series.high, color=colour, alpha=0.15, linewidth=0)
    axis.set_ylabel(f"{label}, {'solid' if line == '-' else 'dashed'}", color=colour)
    axis.tick_params(axis="y", colors=colour)


def _phase(
    axis: Axes,
    library: Library,
    compared: Groups,
    shown: Method,
    styles: dict[Method, Look],
    data: dict[str, Any],
) -> None:
    """Loss against acceptance, every method by one definition: the shown gate's, or alpha where that is not known."""
    wanted = VALIDATION[own(shown)] if gated(shown) else "alpha"
    everywhere = all(series_of(found, "validation", wanted) is not None for found in compared.values())
    what = wanted if everywhere else "alpha"
    points = None
    last = max((float(s.steps[-1]) for f in compared.values() if (s := series_of(f, "validation", "loss"))), default=1)
    for method, found in compared.items():
        loss, rate = series_of(found, "validation", "loss"), series_of(found, "validation", what)
        if loss is None or rate is None or len(loss.steps) != len(rate.steps):
            continue
        style = styles[method]
        axis.plot(rate.mean, loss.mean, color=ink(style), linestyle=style.line, linewidth=0.8, zorder=2)
        points = axis.scatter(
            rate.mean,
            loss.mean,
            c=loss.steps,
            cmap="viridis",
            vmin=0,
            vmax=last,
            marker=style.marker,
            s=18,
            edgecolors=ink(style),
            linewidths=0.6,
            zorder=3,
        )
        data[f"phase {library.label(method)}"] = {
            "acceptance": what,
            "rate": rate.mean.tolist(),
            "loss": loss.mean.tolist(),
            "steps": loss.steps.tolist(),
        }
    k = next((int(m.get("k")) for m in compared if m.get("k")), 5)
    name = {"tar_top_k": f"TAR, greedy Top-{k}", "tar_spec_k": f"TAR, Spec-{k}", "alpha": "α = 1 − mean TV"}[what]
    axis.set_xlabel(f"held-out {name}")
    axis.set_ylabel("validation loss")
    axis.set_title("phase plot: every method,\none definition")
    if points is not None:
        bar = axis.figure.colorbar(points, ax=axis, fraction=0.06, pad=0.02)
        bar.set_label("step", size=7)
        bar.ax.tick_params(labelsize=6.5)


def _stepped(chosen: TarSet) -> bool:
    return any(len(chosen.steps(method)) > 1 for method in chosen.methods)


def _checkpoints(
    axes: dict[str, Axes],
    library: Library,
    chosen: TarSet,
    styles: dict[Method, Look],
    resamples: int,
    data: dict[str, Any],
) -> str:
    """Acceptance on one fixed text: over checkpoints when there are steps, method by method otherwise."""
    methods = chosen.methods
    words = []
    for what in WHAT:
        for method in methods:
            data[f"{chosen.text} {what} {library.label(method)}"] = _estimates(chosen, method, what, resamples)
    for what, axis in axes.items():
        if what == "all":
            words += _side_by_side(axis, library, chosen, data)
            continue
        for method in methods:
            points = data[f"{chosen.text} {what} {library.label(method)}"]
            interval_line(axis, [p["step"] or 0 for p in points], [p["macro"] for p in points], styles[method])
        axis.set_title(f"{chosen.text}\n{'α = 1 − TV' if what == 'alpha' else f'TAR, {named(what, chosen.k)}'}")
        axis.set_xlabel("checkpoint step")
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    if "all" not in axes:
        for method in methods:
            points = data[f"{chosen.text} alpha {library.label(method)}"]
            words.append(f"{library.label(method)} " + ", ".join(number(point["macro"][0], 3) for point in points))
    return f"Token acceptance α on {chosen.text}: {'; '.join(words)}."


def _estimates(chosen: TarSet, method: Method, what: str, resamples: int) -> list[dict[str, Any]]:
    """A method's acceptance step by step, as a mean over sequences and pooled, each [value, low, high]."""
    at = sorted((at for at in chosen.points if at[0] == method), key=lambda at: (at[1] is None, at[1] or 0))
    found = []
    for point in at:
        row: dict[str, Any] = {"step": point[1]}
        for name, table in (("macro", chosen.points), ("pooled", chosen.pooled)):
            estimate = table[point][what].estimate(resamples)
            row[name] = [estimate.value, estimate.low, estimate.high]
        found.append(row)
    return found


def _side_by_side(axis: Axes, library: Library, chosen: TarSet, data: dict[str, Any]) -> list[str]:
    """Final students only: methods along the axis, a colour and a marker for each definition."""
    methods, words = chosen.methods, []
    for what, (colour, marker) in _KINDS.items():
        points = [data[f"{chosen.text} {what} {library.label(method)}"][-1] for method in methods]
        interval_line(axis, range(len(methods)), [p["macro"] for p in points], Look(colour, "", "", marker))
        axis.lines[-1].set_label(named(what, chosen.k))
        words.append(f"{named(what, chosen.k)} " + ", ".join(number(point["macro"][0], 3) for point in points))
    axis.set_ylabel("acceptance")
    axis.set_title(chosen.text)
    axis.legend(handles=axis.containers, labels=[named(what, chosen.k) for what in _KINDS], loc="best", fontsize=6.5)
    axis.set_xticks(range(len(methods)), [library.label(m).replace(" + ", "\n+ ") for m in methods], fontsize=6.5)
    axis.set_xlim(-0.5, len(methods) - 0.5)
    return words
