"""Which published number may stand beside ours? Tables 1, 2, 3, 4 and 6 with `--paper`.

Two numbers are set beside each other only where the benchmark with its size, the judge, the baseline, the tie rule,
teacher, student and method (with verifier, k and beta) are the same. Whatever is not is said in a note, with what
differs. The paper's "+ Ours" is Spec-k with k = 5 and beta = 0.01: its Table 4 has that row's average from Table 1.
Table 5 has rules of its own, in `speed_table`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from analysis import paper
from analysis.grid import Grid
from analysis.load import Method
from analysis.pairs import Pair, plain
from analysis.pass_columns import Column
from analysis.table_ir import Cell, number
from analysis.table_ir import Column as TableColumn
from selectkd_eval.prompt_sets import PROMPT_SETS
from selectkd_eval.tasks.table import TASKS

_NOTE = (
    "Published: Table {} of arXiv 2510.24021. A number stands beside ours only where benchmark, its size, judge, "
    "baseline, tie rule, teacher, student and method are the same."
)
# A win-rate column's prompt set: the paper's name in its table, and who judged it.
_JUDGED = {
    "alpaca-eval": ("alpacaeval", "gpt-4o"),
    "evol-instruct": ("evol_instruct", "gpt-4o"),
    "ultrafeedback": ("ultrafeedback", "gpt-4o-mini"),
}
_TASKS = ("gsm8k", "math", "humaneval", "mbpp")
_DATED = re.compile(r"-20\d\d-\d\d-\d\d$")  # a snapshot of a served model
_OURS = {"verifier": "spec-k", "k": 5, "beta": 0.01}
_AVERAGE = "AVG"


def benchmark(column: Column) -> str:
    """The paper's name of a vision-language benchmark, or the task's own."""
    name = re.sub("[^a-z0-9]", "", str(column.get("task")).lower())
    return next((known for known in paper.VISION if known.replace("_", "") == name), str(column.get("task")))


def vision(column: Column) -> bool:
    """Whether a column is one of Table 3's benchmarks."""
    return column.kind == "passk" and benchmark(column) in paper.VISION


class Beside:
    """The published columns of one table, and what stands in them beside each of our rows."""

    def __init__(self, number: int, grids: Sequence[Grid]) -> None:
        self.number = number
        self.rows = paper.published(number)
        self._missed: dict[str, None] = {}
        self._found = 0
        matched: dict[str, str] = {}
        for grid in grids:
            for column in grid.columns:
                name, why = _matched(number, grid, column)
                if why:
                    self._missed[f"{grid.label(column)}: {why}"] = None
                elif name:
                    matched[name] = grid.label(column)
        self._columns = self._wanted(matched)

    @property
    def columns(self) -> tuple[TableColumn, ...]:
        """Columns of words: they are printed digit by digit and take part in no ranking."""
        return tuple(TableColumn(label, paper.GROUP, better=None) for label in self._columns.values())

    @property
    def notes(self) -> list[str]:
        """What stands beside what, and what does not and why; to be read when every row has been asked for."""
        notes = [_NOTE.format(self.number)] if self._found else []
        if self._missed:
            notes.append(f"No published number of Table {self.number} stands beside {'; '.join(self._missed)}.")
        return notes

    def cells(self, pair: Pair | None, method: Method) -> tuple[Cell, ...]:
        """A row's published numbers, a dash where there is none."""
        if not self._columns:
            return ()
        find = {1: self._of_pair, 2: self._of_task, 3: self._of_model}.get(self.number, self._of_gate)
        cells = find(pair, method)
        self._found += any(cell.text for cell in cells)
        return cells

    def _wanted(self, matched: dict[str, str]) -> dict[str, str]:
        """The published columns, by the paper's names: those that we have, and the average where we have all of it."""
        if self.number in (4, 6):
            whole = len(matched) == len(_JUDGED)
            if matched and not whole:
                self._missed[f"an average of {len(matched)} of the paper's {len(_JUDGED)} benchmarks"] = None
            return {"avg_win_rate": "Avg. win rate (%)"} if whole else {}
        average = {1: ("avg", len(_JUDGED)), 2: ("avg", 2), 3: ("average", len(paper.VISION))}
        name, needed = average[self.number]
        return matched | ({name: _AVERAGE} if len(matched) >= needed else {})

    def _of_pair(self, pair: Pair | None, method: Method) -> tuple[Cell, ...]:
        row = self._row(pair, method, lambda row: row["method"])
        return tuple(Cell(text=_with_delta(row, name)) if row else Cell() for name in self._columns)

    def _of_task(self, pair: Pair | None, method: Method) -> tuple[Cell, ...]:
        cells = []
        for name in self._columns:
            here = [row for row in self.rows if row["task"] == name]
            row = self._row(pair, method, lambda row: row["method"], here)
            cells.append(Cell(text=row["pass_at_1"]) if row else Cell())
        return tuple(cells)

    def _of_model(self, _: Pair | None, method: Method) -> tuple[Cell, ...]:
        name = paper.method_name(plain(method.label))
        row = next((row for row in self.rows if paper.method_name(row["model"]) == name), None)
        if row is None:
            self._missed[f"{method.label}: the paper has no such model"] = None
        return tuple(Cell(text=row[name]) if row else Cell() for name in self._columns)

    def _of_gate(self, pair: Pair | None, method: Method) -> tuple[Cell, ...]:
        """Tables 4 and 6 vary the gate on KD, for the first pair of Table 1."""
        wanted = paper.published(1)[0]["pair"]
        row = None
        if self._same_pair(pair, [wanted]) and paper.method_name(method.family) == "kd":
            row = next((row for row in self.rows if _same_gate(row, method)), None)
            if row is None:
                self._missed[f"{method.label}: the paper has no such verifier, k and β"] = None
        return (Cell(text=row["avg_win_rate"]) if row else Cell(),)

    def _row(
        self,
        pair: Pair | None,
        method: Method,
        name_of: Callable[[paper.Row], str],
        rows: Sequence[paper.Row] | None = None,
    ) -> paper.Row | None:
        among = self.rows if rows is None else rows
        pairs = list(dict.fromkeys(row["pair"] for row in among))
        printed = self._same_pair(pair, pairs)
        wanted = _printed_name(method)
        if not printed:
            return None
        if wanted is None:
            self._missed[f"{method.label} (the paper's + Ours is Spec-k, k = 5, β = 0.01)"] = None
            return None
        for row in among:
            if row["pair"] == printed and paper.method_name(name_of(row)) == paper.method_name(wanted):
                return row
        return None

    def _same_pair(self, pair: Pair | None, printed: Sequence[str]) -> str | None:
        """The published pair of the same models; a note, once, where there is none."""
        if pair is None:
            return None
        ours = paper.model_name(pair.teacher), paper.model_name(pair.student)
        for text in printed:
            if paper.pair_names(text) == ours:
                return text
        self._missed[f"{pair.title}: the published rows are of {', '.join(printed)}"] = None
        return None


def _matched(number: int, grid: Grid, column: Column) -> tuple[str, str]:
    """The paper's name of a column that is the same measurement; else why it is not one."""
    counts = sorted({len(t.prompts) for m in grid.methods if (t := grid.terms(column, m)) is not None})
    if column.kind == "winrate":
        return ("", "") if number == 2 else _judged(column, counts)
    if number == 3:
        return benchmark(column), ""
    if number != 2:
        return "", ""
    task = str(column.get("task"))
    if task not in _TASKS:
        return "", f"no task of the paper's ({', '.join(_TASKS)})"
    if counts != [TASKS[task].problems]:
        return "", f"{' or '.join(map(str, counts))} problems where the paper's has {TASKS[task].problems}"
    return (task, "") if not column.get("temperature") else ("", f"temperature {column.get('temperature')}, not greedy")


def _judged(column: Column, counts: Sequence[int]) -> tuple[str, str]:
    known = _JUDGED.get(str(column.get("prompts")))
    if known is None:
        return "", f"no prompt set of the paper's ({', '.join(_JUDGED)})"
    name, wanted = known
    prompts = PROMPT_SETS[str(column.get("prompts"))]
    judge = str(column.get("judge"))
    # Ours counts a prompt that stands in a set twice once.
    size = prompts.prompts
    differing = {
        f"judge {judge} where the paper's is {wanted}": _DATED.sub("", judge) != wanted,
        f"tie rule {column.get('ties')} where the paper's is excluded": column.get("ties") != "excluded",
        f"baseline {column.get('baseline')} where the paper's is {prompts.references}": paper.method_name(
            plain(str(column.get("baseline")))
        )
        != paper.method_name(prompts.references),
        f"{' or '.join(map(str, counts))} prompts where the set has {size}": any(n < size - 1 for n in counts),
    }
    return name, ", ".join(words for words, differs in differing.items() if differs)


def _printed_name(method: Method) -> str | None:
    """What the paper calls a method; None for a gate that is not its own."""
    if method.role in ("teacher", "start"):
        return {"teacher": "Teacher", "start": "Student before"}[method.role]
    if not method.base:
        return method.label
    same = all(method.get(name) == value for name, value in _OURS.items())
    return f"{method.base} + SelecTKD" if same else None


def _same_gate(row: paper.Row, method: Method) -> bool:
    """Verifier, k and beta of a row of Tables 4 and 6; what does not apply to a verifier is not compared."""
    if row["verifier"] != str(method.get("verifier") or "none"):
        return False
    gated = row["verifier"] in ("top-k", "spec-k")
    values = [(row[name], method.get(name)) for name in ("k", "beta")] if gated else []
    return all(theirs is not None and math.isclose(float(ours), float(theirs)) for ours, theirs in values)


def _with_delta(row: paper.Row, name: str) -> str:
    delta = row.get(f"delta_{name}")
    return f"{row[name]} (+{number(float(delta), 2)})" if delta else row[name]
