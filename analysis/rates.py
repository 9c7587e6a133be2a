"""What is there to draw of pass@1 or win rates? By panel every method's rate, its seeds and its paired difference.

Bars, dots and the judges' figure draw the same panels; caption, text alternative and JSON come from them too, so that
no two can disagree. Nothing is drawn here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from analysis.grid import Grid
from analysis.load import LIKELIHOOD_NOTE, Library, Method
from analysis.pass_columns import Column
from analysis.table_ir import number, signed
from selectkd_eval.errors import InputError
from selectkd_eval.stats import Estimate

WORDS = {"passk": "pass@1", "winrate": "win rate"}


@dataclass(frozen=True)
class Rate:
    """One method on one column: percent with its interval, the seeds one by one, and points against another method."""

    method: Method
    name: str
    value: Estimate
    seeds: tuple[tuple[int | None, float], ...]
    against: Method | None = None
    against_name: str = ""
    difference: Estimate | None = None


@dataclass(frozen=True)
class Panel:
    """One column: a task, or prompts judged by one judge."""

    title: str
    column: Column
    rates: tuple[Rate, ...]

    @property
    def heading(self) -> str:
        """The title as it stands above the panel: a picture can be cut out of its page."""
        return f"{self.title} (likelihood judge)" if self.column.get("judge_kind") == "likelihood" else self.title

    @property
    def methods(self) -> list[Method]:
        return [rate.method for rate in self.rates]


def grid_of(library: Library, kind: Literal["passk", "winrate"], resamples: int) -> Grid:
    """The numbers of one kind; InputError when there are none."""
    grid = Grid(library, kind, resamples)
    if not grid.columns:
        raise InputError(f"the {kind} figure needs {kind} records: run `selectkd-eval {kind}` first")
    return grid


def panels(grid: Grid) -> list[Panel]:
    """Every column of the grid that holds a number."""
    found = [Panel(grid.label(column), column, tuple(_rates(grid, column))) for column in grid.columns]
    return [panel for panel in found if panel.rates]


def _rates(grid: Grid, column: Column) -> list[Rate]:
    rates = []
    for method in grid.methods:
        estimate = grid.estimate(column, method)
        if estimate is None or math.isnan(estimate.value):
            continue
        seeds = tuple((seed, 100 * value) for seed, value in grid.seeds(column, method))
        rate = Rate(method, grid.library.label(method), estimate.scaled(100), seeds)
        other = grid.reference(column, method)
        found = grid.delta(column, method, other) if other else None
        if other and found and not math.isnan(found[0].value):
            name = grid.library.label(other)
            rate = Rate(rate.method, rate.name, rate.value, seeds, other, name, found[0].scaled(100))
        rates.append(rate)
    return rates


def plain(estimate: Estimate) -> dict[str, Any]:
    """An estimate as JSON has it."""
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}


def as_data(found: Sequence[Panel]) -> dict[str, Any]:
    """Everything that is drawn, by panel and method."""
    return {panel.title: {rate.name: _rate_data(rate) for rate in panel.rates} for panel in found}


def _rate_data(rate: Rate) -> dict[str, Any]:
    data = {**plain(rate.value), "seeds": [list(pair) for pair in rate.seeds]}
    if rate.difference is not None:
        data[f"difference to {rate.against_name}"] = plain(rate.difference)
    return data


def in_words(found: Sequence[Panel], kind: str) -> str:
    """Every rate and difference in one sentence."""
    parts = []
    for panel in found:
        values = [f"{rate.name} {number(rate.value.value, 1)} %{_against(rate)}" for rate in panel.rates]
        judged = " by a likelihood judge" if panel.column.get("judge_kind") == "likelihood" else ""
        parts.append(f"{WORDS[kind]}{judged} on {panel.title}: {', '.join(values)}")
    return f"{'; '.join(parts)}."


def _against(rate: Rate) -> str:
    if rate.difference is None:
        return ""
    return f" ({signed(rate.difference.value, 1)} against {rate.against_name})"


def judges(found: Sequence[Panel]) -> str:
    """Who judged, for the caption; a likelihood is called one."""
    cards = {(str(p.column.get("judge")), str(p.column.get("judge_kind"))) for p in found if p.column.kind == "winrate"}
    notes = [f"{name}{f' ({LIKELIHOOD_NOTE})' if kind == 'likelihood' else ''}" for name, kind in sorted(cards)]
    return f" Judge{'s' if len(notes) > 1 else ''}: {'; '.join(notes)}." if notes else ""
