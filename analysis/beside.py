"""Which published number may stand beside ours? Tables 1, 2, 3, 4 and 6 with `--paper`.

Two numbers are set beside each other only where benchmark and size, judge, protocol, baseline and tie rule, teacher,
student and method (with verifier, k and beta) are the same; whatever is not is said in a note, with what differs. What
the paper does not state (prompt wording, judge version, learning rate) cannot be compared. Its "+ Ours" is Spec-k with
k = 5 and beta = 0.01: its Table 4 has that row's average from Table 1. Table 5 has rules of its own, in `speed_table`.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from analysis import paper
from analysis.grid import Grid
from analysis.load import Method
from analysis.pairs import Block, Pair, Pairs, plain
from analysis.pass_columns import Column
from analysis.table_ir import Cell, number
from analysis.table_ir import Column as TableColumn
from selectkd_eval.prompt_sets import PROMPT_SETS
from selectkd_eval.tasks.table import TASKS

_SAME = {
    3: "benchmark and model have the same names; how they were measured it does not say",
    2: "task, its size, teacher, student and method are the same",
}
_JUDGED_SAME = "benchmark, its size, judge, protocol, baseline, tie rule, teacher, student and method are the same"
# A win-rate column's prompt set: the paper's name in its table, and who judged it.
_JUDGED = {
    "alpaca-eval": ("alpacaeval", "gpt-4o"),
    "evol-instruct": ("evol_instruct", "gpt-4o"),
    "ultrafeedback": ("ultrafeedback", "gpt-4o-mini"),
}
_PROTOCOL, _TIES = "selectkd", "excluded"
# One question stands in the file twice, and a prompt is judged once.
_REPEATED = {"evol-instruct": 1}
# Our task of a column of Table 2. Its MBPP is EvalPlus': nine of ten rates without a gate are multiples of 1/378.
_TASKS = {"gsm8k": "gsm8k", "math": "math", "humaneval": "humaneval", "mbpp-base": "mbpp"}
_DATED = re.compile(r"-20\d\d-\d\d-\d\d$")  # a snapshot of a served model
_OURS = {"verifier": "spec-k", "k": "5", "beta": "0.01"}
_TUNED = {"instruct", "inst", "chat", "it"}
_AVERAGE = "AVG"
_MEAN = {1: "avg", 2: "avg", 3: "average", 4: "avg_win_rate", 6: "avg_win_rate"}


def benchmark(column: Column) -> str:
    """The paper's name of a vision-language benchmark, or the task's own."""
    name = re.sub("[^a-z0-9]", "", str(column.get("task")).lower())
    return next((known for known in paper.VISION if known.replace("_", "") == name), str(column.get("task")))


def vision(column: Column) -> bool:
    """Whether a column is one of Table 3's benchmarks."""
    return column.kind == "passk" and benchmark(column) in paper.VISION


class Beside:
    """The published columns of one table, and what stands in them beside each of our rows."""

    def __init__(self, table: int, grids: Sequence[Grid]) -> None:
        self.table = table
        self.rows = paper.published(table)
        # Tables 4 and 6 print the mean win rate alone.
        self.grids = [grid for grid in grids if grid.kind == "winrate" or table in (2, 3)]
        self._library = grids[0].library
        self._pairs = Pairs(self._library)
        self._missed: dict[str, dict[str, None]] = defaultdict(dict)
        self._found = False
        self._places: dict[str, list[tuple[Grid, Column]]] = defaultdict(list)
        for grid in self.grids:
            for column in grid.columns:
                name, why = _matched(table, column)
                if why:
                    self._miss(why, grid.label(column))
                else:
                    self._places[name].append((grid, column))
        self._columns = self._wanted()

    @property
    def columns(self) -> tuple[TableColumn, ...]:
        """Columns of words: they are printed digit by digit and take part in no ranking."""
        return tuple(TableColumn(label, paper.GROUP, better=None) for label in self._columns.values())

    @property
    def notes(self) -> list[str]:
        """What stands beside what, and what does not and why; to be read when every row has been asked for."""
        same = _SAME.get(self.table, _JUDGED_SAME)
        said = f"Published: Table {self.table} of arXiv 2510.24021. A number stands beside ours only where {same}."
        missed = "; ".join(f"{', '.join(what)} ({why})" for why, what in self._missed.items())
        none = f"No published number of Table {self.table} stands beside {missed}."
        return [said] * self._found + [none] * bool(missed)

    def cells(self, block: Block, method: Method) -> tuple[Cell, ...]:
        """A row's published numbers, a dash where there is none."""
        if not self._columns:
            return ()
        rows = self._rows(block.pair, method)
        cells = tuple(Cell(text=self._text(name, rows, block, method)) for name in self._columns)
        self._found = self._found or any(cell.text for cell in cells)
        return cells

    def _miss(self, why: str, what: str) -> None:
        self._missed[why][what] = None

    def _wanted(self) -> dict[str, str]:
        """The published columns, by the paper's names: those that we have, and the average where we have all of it."""
        found = {name: places[0][1].label for name, places in self._places.items()}
        wholes = _averaged(self.table)
        whole = any(set(found) >= set(names) for names in wholes)
        if self.table not in (4, 6):
            return found | ({_MEAN[self.table]: _AVERAGE} if whole else {})
        if found and not whole:
            self._miss(f"the paper's is that of {' and '.join(wholes[0])}", f"the mean over {' and '.join(found)}")
        return {_MEAN[self.table]: "Avg. win rate (%)"} if whole else {}

    def _text(self, name: str, rows: Sequence[paper.Row], block: Block, method: Method) -> str:
        """What the paper printed in one column, where ours of that row was measured in the same way."""
        if self.table == 2:
            rows = [row for row in rows if row["task"] == name]
        if not rows:
            return ""
        if name == _MEAN[self.table]:
            if not self._averaged(block, method):
                return ""
        elif not self._whole(name, method):
            return ""
        return rows[0]["pass_at_1"] if self.table == 2 else _with_delta(rows[0], name)

    def _averaged(self, block: Block, method: Method) -> bool:
        """Whether our average is over the paper's columns, each once and each whole, and over no other."""
        ours = [
            (grid, column)
            for grid in self.grids
            for column in grid.columns
            # Tables 4 and 6 have one average for all blocks.
            if self.table in (4, 6) or any((column, one) in grid.found for one in block.methods)
        ]
        names = [name for place in ours for name, places in self._places.items() if place in places]
        if len(names) != len(ours) or sorted(names) not in map(sorted, _averaged(self.table)):
            self._miss("our mean is over other columns than the paper's", _AVERAGE)
            return False
        return all(self._whole(name, method) for name in names)

    def _whole(self, name: str, method: Method) -> bool:
        """Whether a method was measured on all of a benchmark, in any of the columns that are that benchmark's."""
        for grid, column in self._places[name]:
            terms, size = grid.terms(column, method), _size(column)
            if terms is not None and size in (None, len(terms.prompts)):
                return True
            if terms is not None:
                what = f"{self._label(method)} on {grid.label(column)}"
                self._miss(f"the paper's is of {size:,}", f"{what}, {len(terms.prompts):,} prompts")
        return False

    def _label(self, method: Method) -> str:
        return self._library.label(method)

    def _rows(self, pair: Pair | None, method: Method) -> list[paper.Row]:
        """The published rows of the same models and the same method; a note where there are none."""
        why = _changed(method)
        if why:
            self._miss(why, self._label(method))
            return []
        if self.table == 3:
            name = paper.method_name(plain(method.label))
            found = [row for row in self.rows if paper.method_name(row["model"]) == name]
            return found or self._without("the paper has no model of this name", method)
        gates = self.table in (4, 6)
        # Tables 4 and 6 vary the gate for the first pair of Table 1.
        pairs = [paper.published(1)[0]["pair"]] if gates else list(dict.fromkeys(row["pair"] for row in self.rows))
        printed = self._same_pair(pair, method, pairs)
        if printed is None:
            return []
        if gates:
            found = [row for row in self.rows if paper.method_name(method.family) == "kd" and _same_gate(row, method)]
            return found or self._without("the paper has no KD with this verifier, k and β", method)
        wanted = _printed_name(method)
        if wanted is None:
            return self._without("the paper's + Ours is Spec-k with k = 5 and β = 0.01", method)
        here = [row for row in self.rows if row["pair"] == printed]
        found = [row for row in here if paper.method_name(row["method"]) == paper.method_name(wanted)]
        return found or self._without("the paper has no such row", method)

    def _without(self, why: str, method: Method) -> list[paper.Row]:
        self._miss(why, self._label(method))
        return []

    def _same_pair(self, pair: Pair | None, method: Method, printed: Iterable[str]) -> str | None:
        """The published pair of the same models; a note where there is none."""
        if pair is None or pair not in self._pairs.of(method):
            self._miss("its teacher and its student are not both known", self._label(method))
            return None
        ours = paper.model_name(pair.teacher), paper.model_name(pair.student)
        for text in printed:
            teacher = text.partition("->")[0].strip()
            if paper.pair_names(text) == ours and _tuned(teacher) == _tuned(pair.teacher):
                return text
        self._miss(f"the published rows are of {', '.join(printed)}", pair.title)
        return None


def _averaged(table: int) -> tuple[tuple[str, ...], ...]:
    """Over which columns, by the paper's names, a printed average can be."""
    if table == 2:
        return ("gsm8k", "math"), ("humaneval", "mbpp")
    return (paper.VISION if table == 3 else tuple(name for name, _ in _JUDGED.values()),)


def _tuned(name: str) -> bool:
    """Whether a model was taught to follow instructions, by its name: a teacher's base model is another teacher."""
    return bool(_TUNED & set(plain(name).lower().split("-")))


def _size(column: Column) -> int | None:
    """How many prompts or problems the paper's benchmark has; None where it does not say."""
    if column.kind == "winrate":
        name = str(column.get("prompts"))
        return PROMPT_SETS[name].prompts - _REPEATED.get(name, 0)
    return TASKS[task].problems if (task := str(column.get("task"))) in _TASKS else None


def _matched(table: int, column: Column) -> tuple[str, str]:
    """The paper's name of a column that is the same measurement; else why it is not one."""
    if column.kind == "winrate":
        return _judged(column)
    if table == 3:
        return benchmark(column), ""
    task = str(column.get("task"))
    if task not in _TASKS:
        return "", f"the paper's tasks are {', '.join(_TASKS)}"
    warm = column.get("temperature")
    return ("", f"temperature {warm}, not greedy") if warm else (_TASKS[task], "")


def _judged(column: Column) -> tuple[str, str]:
    """The same of a win rate."""
    told = {name: str(column.get(name)) for name in ("prompts", "judge", "protocol", "ties", "baseline")}
    known = _JUDGED.get(told["prompts"])
    if known is None:
        return "", f"the paper's prompt sets are {', '.join(_JUDGED)}"
    name, judge = known
    references = PROMPT_SETS[told["prompts"]].references
    wanted = {"judge": judge, "protocol": _PROTOCOL, "ties": _TIES, "baseline": references}
    ours = {**told, "judge": _DATED.sub("", told["judge"]), "baseline": plain(told["baseline"])}
    words = {"ties": "tie rule"}
    return name, ", ".join(
        f"{words.get(what, what)} {told[what] or 'unnamed'} where the paper's is {theirs}"
        for what, theirs in wanted.items()
        if paper.method_name(ours[what]) != paper.method_name(theirs)
    )


def _changed(method: Method) -> str:
    """Why a student is of no published method, whatever it is called."""
    step, noise, variant = (method.get(name) for name in ("step", "teacher_noise", "variant"))
    if step is not None:
        return "a checkpoint on the way"
    if noise:
        return "its teacher's text was made worse"
    return f"variant {variant} of its method" if variant else ""


def _printed_name(method: Method) -> str | None:
    """What the paper calls a method; None for a gate that is not its own."""
    if method.role in ("teacher", "start"):
        return {"teacher": "Teacher", "start": "Student before"}[method.role]
    if method.get("verifier") in (None, "none"):
        return method.label
    return f"{method.family} + SelecTKD" if method.base and _same_gate(_OURS, method) else None


def _same_gate(row: paper.Row, method: Method) -> bool:
    """Verifier, k and beta of a row of Tables 4 and 6; what does not apply to a verifier is not compared."""
    if row["verifier"] != str(method.get("verifier") or ("none" if method.role == "student" else "")):
        return False
    gated = row["verifier"] in ("top-k", "spec-k")
    values = [(row[name], method.get(name)) for name in ("k", "beta")] if gated else []
    return all(theirs is not None and math.isclose(float(ours), float(theirs)) for ours, theirs in values)


def _with_delta(row: paper.Row, name: str) -> str:
    delta = row.get(f"delta_{name}")
    return f"{row[name]} (+{number(float(delta), 2)})" if delta else row[name]
