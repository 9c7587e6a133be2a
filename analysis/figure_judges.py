"""Do judges agree on which method is better, and is any? The paper's Figure 5: one panel per judge, one scale.

The same methods on the same prompts under one protocol; with a single judge, one panel per prompt set. Whether methods
are equivalent is tested (`equivalence`), not read off overlapping bars. Judges of other prompts or against another
baseline are not in the figure.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from analysis.equivalence import Comparison, cohen_kappa, compare, kendall_w
from analysis.figure_bars import bar, places
from analysis.figure_dots import filled
from analysis.fitting import heading, ticks
from analysis.grid import Grid
from analysis.load import Library
from analysis.protocols import one_protocol
from analysis.rates import Panel, as_data, grid_of, in_words, panels, plain
from analysis.rates import judges as judged_by
from analysis.style import INK, Drawing, Settings, point, reach, width
from analysis.table_ir import number
from selectkd_eval.errors import InputError
from selectkd_eval.stats import Estimate

_OF_JUDGES = ("judge", "judge_kind", "judge_weights", "server", "tie_band")
_OF_PROMPTS = ("prompts", "sha256")
_NAMED = 3  # pairs of one verdict that the caption names; more are counted, and all are in the JSON
_LEAST = 0.21  # inches of a method's place


@dataclass(frozen=True)
class Shown:
    """The panels, what each is of, the pairs compared in each, and what is left out."""

    panels: list[Panel]
    names: list[str]
    pairs: list[list[Comparison]]
    by_judge: bool
    left_out: str


def judges(library: Library, settings: Settings) -> Drawing:
    """Win rates per judge on one scale, with equivalence within a judge and agreement between judges in the caption."""
    grid = grid_of(one_protocol(library, ""), "winrate", settings.resamples)
    shown = _shown(grid, settings)
    methods = shown.panels[0].methods
    xs = places(methods)
    extent = xs[-1] + 1.3
    across = max(1, min(len(shown.panels), int((width(settings) - 0.5) / (_LEAST * extent + 0.1))))
    down = -(-len(shown.panels) // across)
    across = -(-len(shown.panels) // down)  # rows of one length, as far as they go
    unit = ((width(settings) - 0.55) / across - 0.12) / extent
    figure, axes = plt.subplots(
        down, across, figsize=(width(settings), 2.3 * down + 0.1), squeeze=False, sharex=True, sharey=True
    )
    for index, axis in enumerate(axes.flat):
        if index >= len(shown.panels):
            axis.set_axis_off()
            continue
        _panel(axis, shown.panels[index], xs, unit, settings)
        heading(axis, shown.names[index], unit * extent)
    zoomed = settings.style == "dots" and axes[0, 0].get_ylim()[0] > 0
    for row in axes:
        row[0].set_ylabel("win rate (%)" + ("\naxis not from 0" if zoomed else ""))
    for place in range(across):
        lowest = max(row for row in range(down) if row * across + place < len(shown.panels))
        # A panel above an empty place keeps its own names.
        axes[lowest, place].tick_params(labelbottom=True)
        ticks(axes[lowest, place], xs, [rate.name for rate in shown.panels[0].rates], unit)
    agreement, numbers = _agreement(grid, shown, settings.resamples)
    data = as_data(shown.panels) | {"pairs": _pairs_data(shown), "agreement": numbers, "margin": settings.margin}
    words = f"{_equivalence(shown, settings.margin)}{agreement}{shown.left_out}"
    caption = (
        f"Win rates of the same methods by {'judge' if shown.by_judge else 'prompt set'}, on one scale, with 95 % "
        f"intervals over prompts; training seeds pooled. {words}{judged_by(shown.panels)}"
    )
    kind = "Bar" if settings.style == "bars" else "Dot"
    return Drawing("judges", figure, caption, f"{kind} chart. {in_words(shown.panels, 'winrate')} {words}", data)


def _shown(grid: Grid, settings: Settings) -> Shown:
    """The comparable panels: those of the prompts that most judges saw, or all prompt sets of a single judge."""
    every = panels(grid)
    groups: dict[Any, list[Panel]] = defaultdict(list)
    for panel in every:
        groups[_without(panel, _OF_JUDGES)].append(panel)
    if not groups:
        raise InputError(
            "the judges figure has nothing to draw: every verdict failed or is a tie; judge more, or by another judge"
        )
    most = max(groups.values(), key=len)
    by_judge = len(most) > 1
    if not by_judge:
        apart: dict[Any, list[Panel]] = defaultdict(list)
        for panel in every:
            apart[_without(panel, _OF_PROMPTS)].append(panel)
        most = max(apart.values(), key=len)
    common = [m for m in most[0].methods if all(m in panel.methods for panel in most)]
    if len(common) < 2:
        raise InputError(
            f"the judges figure needs two methods judged by all of the {len(most)} judges, and {len(common)} is: judge "
            f"the same students with each judge"
        )
    kept = [replace(p, rates=tuple(r for r in p.rates if r.method in common)) for p in most]
    names = _names([str(p.column.get("judge" if by_judge else "prompts")) for p in kept], kept)
    pairs = [_compared(grid, panel, settings) for panel in kept]
    left_out = ""
    if len(every) > len(most):
        left_out += f" Not shown: {len(every) - len(most)} further win rates on other prompts or another baseline."
    missing = {r.name for p in most for r in p.rates if r.method not in common}
    if missing:
        left_out += f" Not shown, as not judged by all: {', '.join(sorted(missing))}."
    return Shown(kept, names, pairs, by_judge, left_out)


def _without(panel: Panel, names: Sequence[str]) -> tuple[Any, ...]:
    """A column's key but for some of its parts, and for the label's own words."""
    return tuple(part for part in panel.column.key if part[0] not in names)


def _names(names: Sequence[str], kept: Sequence[Panel]) -> list[str]:
    """The judges' or prompt sets' names; two of one name have the whole column's."""
    twice = {name for name, count in Counter(names).items() if count > 1}
    return [
        panel.heading if name in twice else _likelihood(name, panel) for name, panel in zip(names, kept, strict=True)
    ]


def _likelihood(name: str, panel: Panel) -> str:
    likely = panel.column.get("judge_kind") == "likelihood" and not name.startswith("likelihood")
    return f"{name} (likelihood judge)" if likely else name


def _compared(grid: Grid, panel: Panel, settings: Settings) -> list[Comparison]:
    """Every pair of students of a panel; the teacher and the untrained student are not among the candidates."""
    students = [rate for rate in panel.rates if rate.method.role == "student"]
    terms = {rate.name: grid.terms(panel.column, rate.method) for rate in students or panel.rates}
    return compare({name: own for name, own in terms.items() if own}, settings.margin, settings.resamples)


def _panel(axis: Axes, panel: Panel, xs: Sequence[float], unit: float, settings: Settings) -> None:
    for rate, x in zip(panel.rates, xs, strict=True):
        if settings.style == "dots":
            axis.errorbar(x, rate.value.value, yerr=reach(rate.value), **point(filled(rate.method), filled=True))
        else:
            bar(axis, x, rate, unit)
    if settings.style == "bars":
        axis.set_ylim(bottom=0)
        axis.axhline(50, color=INK, linewidth=0.7, linestyle=":")
    axis.set_xlim(-0.65, xs[-1] + 0.65)
    axis.tick_params(axis="x", length=0)


def _equivalence(shown: Shown, margin: float) -> str:
    """What the tests say, panel by panel."""
    parts = []
    for name, pairs in zip(shown.names, shown.pairs, strict=True):
        told = []
        for verdict in ("equivalent", "different", "not settled"):
            own = [f"{pair.first} and {pair.second}" for pair in pairs if pair.verdict == verdict]
            listed = f" ({', '.join(own)})" if len(own) <= _NAMED else ""
            if own:
                told.append(f"{verdict} {len(own)} of {len(pairs)}{listed}")
        parts.append(f"{name}: {'; '.join(told)}")
    return (
        f"Pairs of students are equivalent where the 90 % interval of their difference lies within ±{margin:g} points "
        f"(paired by prompt; two one-sided tests at 5 %), different where Holm's p < .05: {'. '.join(parts)}."
    )


def _agreement(grid: Grid, shown: Shown, resamples: int) -> tuple[str, dict[str, Any]]:
    """Kendall's W over rates, Cohen's kappa over shared verdicts; nothing for a single judge."""
    if not shown.by_judge:
        return "", {}
    w = kendall_w([[rate.value.value for rate in panel.rates] for panel in shown.panels])
    verdicts = [_verdicts(grid, panel) for panel in shown.panels]
    kappas: dict[str, Estimate] = {}
    for (i, one), (j, other) in combinations(enumerate(verdicts), 2):
        kappas[f"{shown.names[i]} and {shown.names[j]}"] = cohen_kappa(one, other, resamples)
    known = {name: kappa for name, kappa in kappas.items() if np.isfinite(kappa.value)}
    told = [
        f"{name} {number(kappa.value, 2)} [{number(kappa.low, 2)}, {number(kappa.high, 2)}], {kappa.n:,} comparisons"
        for name, kappa in known.items()
    ]
    if len(told) > _NAMED:
        values = [kappa.value for kappa in known.values()]
        told = [f"{number(min(values), 2)} to {number(max(values), 2)} over {len(told)} pairs of judges"]
    shared = f"Cohen's κ over verdicts: {'; '.join(told)}." if told else "The judges share no comparison."
    count = len(shown.panels[0].rates)
    text = f" Agreement: Kendall's W of {len(verdicts)} judges over {count} methods' rates {number(w, 2)}. {shared}"
    return text, {"kendall_w": w, "cohen_kappa": {name: plain(kappa) for name, kappa in kappas.items()}}


def _verdicts(grid: Grid, panel: Panel) -> dict[Any, tuple[str, str]]:
    """Every comparison that this judge saw, by student, prompt and repeat: its prompt and the verdict's word.

    Where a comparison is shown in both orders, they are two; where the order is drawn, judges may see different ones.
    """
    found = {}
    for rate in panel.rates:
        for one in grid.found[panel.column, rate.method]:
            student = (one.record.facts.get("candidate") or {}).get("fingerprint")
            rows = one.record.good
            keys = [(student, row["prompt"], row.get("seed"), row.get("sample")) for row in rows]
            both = len(set(keys)) < len(keys)
            for key, row in zip(keys, rows, strict=True):
                found[(*key, row.get("order") if both else "")] = (str(row["prompt"]), str(row["verdict"]))
    return found


def _pairs_data(shown: Shown) -> dict[str, Any]:
    return {
        name: [
            {
                **{"first": pair.first, "second": pair.second, "verdict": pair.verdict, **plain(pair.difference)},
                **{"low90": pair.low90, "high90": pair.high90, "p": pair.p, "p_holm": pair.p_holm},
            }
            for pair in pairs
        ]
        for name, pairs in zip(shown.names, shown.pairs, strict=True)
    }
