"""What do the figures show? Plain sentences computed from the records, and only those the intervals support.

"Beats" needs a paired 95 % interval above 0; below 0 the sentence says "is worse than"; otherwise it says that the
difference is not settled. The same words whether selection wins or loses. The report opens with these lines and
the demo's summary on the terminal is made of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from analysis import landscape_words, speed_words, tar_words
from analysis.grid import Grid
from analysis.load import LIKELIHOOD_NOTE, Library, Method
from analysis.pass_columns import Column
from analysis.table_ir import number, signed, verdict
from selectkd_eval import stats, win_rates
from selectkd_eval.records import Record
from selectkd_eval.stats import Estimate


def summary_lines(records: Sequence[Record], resamples: int = stats.RESAMPLES) -> list[str]:
    """One sentence per finding, from whatever records there are."""
    library = Library(records)
    return findings(library, resamples)


def findings(library: Library, resamples: int) -> list[str]:
    """The sentences of a library, in the order of the paper's claims."""
    return [
        *_pass_lines(Grid(library, "passk", resamples)),
        *_win_lines(Grid(library, "winrate", resamples)),
        *tar_words.lines(library, resamples),
        *landscape_words.lines(library),
        *speed_words.lines(library, resamples),
    ]


def differences(library: Library, resamples: int) -> list[str]:
    """Only the sentences that compare two methods."""
    lines = _pass_lines(Grid(library, "passk", resamples))
    wins = Grid(library, "winrate", resamples)
    for column in wins.columns:
        here = [method for method in wins.methods if wins.terms(column, method) is not None]
        lines += _against_references(wins, column, here, "win rate")
    return lines + speed_words.differences(library, resamples)


def _pass_lines(grid: Grid) -> list[str]:
    lines = []
    for column in grid.columns:
        here = [method for method in grid.methods if grid.terms(column, method) is not None]
        teacher = next((method for method in here if method.role == "teacher"), None)
        for start in (method for method in here if method.role == "start" and teacher):
            assert teacher is not None
            lines += _compared(grid, column, teacher, start, "pass@1")
        lines += _against_references(grid, column, here, "pass@1")
    return lines


def _win_lines(grid: Grid) -> list[str]:
    lines: list[str] = []
    for column in grid.columns:
        here = [method for method in grid.methods if grid.terms(column, method) is not None]
        likelihood = column.get("judge_kind") == "likelihood"
        judge = "likelihood judge" if likelihood else f"judge {column.get('judge')}"
        if likelihood:
            # Said once; every number below still names its judge.
            name = str(column.get("judge")).removeprefix("likelihood:")
            lines.append(f"The judge on {grid.label(column)} is {name}: {LIKELIHOOD_NOTE}.")
        parts = []
        for method in here:
            value = grid.estimate(column, method)
            if value is None or math.isnan(value.value):
                continue
            word = verdict(value, 0.5, ("wins", "loses", "not settled"))
            parts.append(f"{grid.library.label(method)} {_percent(value)} of {value.n:,} prompts decided ({word})")
        rule = win_rates.TIES[str(column.get("ties"))]
        if parts:
            lines.append(f"Win rate on {grid.label(column)} ({judge}, {rule}): {'; '.join(parts)}.")
        lines += _against_references(grid, column, here, "win rate")
    return lines


def _against_references(grid: Grid, column: Column, here: Sequence[Method], word: str) -> list[str]:
    lines = []
    for method in here:
        other = grid.reference(column, method)
        if other is not None:
            lines += _compared(grid, column, method, other, word)
    return lines


def _compared(grid: Grid, column: Column, a: Method, b: Method, word: str) -> list[str]:
    found = grid.delta(column, a, b)
    left, right = grid.estimate(column, a), grid.estimate(column, b)
    if found is None or left is None or right is None or math.isnan(found[0].value):
        return []
    points = found[0].scaled(100)
    verb = verdict(points, 0.0, ("beats", "is worse than", "is not told apart from"))
    label, likelihood = grid.library.label, column.get("judge_kind") == "likelihood"
    seeds = len(grid.seeds(column, a))
    return [
        f"{label(a)} {verb} {label(b)} on {grid.label(column)}: {word} {number(100 * left.value, 1)} % against "
        f"{number(100 * right.value, 1)} %, {signed(points.value, 1)} points [{signed(points.low, 1)}, "
        f"{signed(points.high, 1)}], n = {points.n:,} prompts{f', {seeds} training seeds' if seeds > 1 else ''}"
        f"{' (likelihood judge)' if likelihood else ''}."
    ]


def _percent(estimate: Estimate) -> str:
    percent = estimate.scaled(100)
    return f"{number(percent.value, 1)} % [{number(percent.low, 1)}, {number(percent.high, 1)}]"
