"""From an answer to its verdict: graders and the sandbox behind one function.

Generation and grading are apart: `passk` hands over texts as they are written, `regrade` texts that were stored years
ago, and both get the same row. An answer to a question is compared by its task's grader; an answer that is a program
is cut out of the text and run in both of the sandbox's modes, so that a record always says where they differ. No
model is known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, NamedTuple

from selectkd_eval.errors import InputError, choose
from selectkd_eval.grading.extraction import extract_code
from selectkd_eval.grading.grade import Grading
from selectkd_eval.grading.graders import GRADER_ROWS, open_grader
from selectkd_eval.sandbox.client import Sandbox
from selectkd_eval.sandbox.plus import base_passed
from selectkd_eval.sandbox.program import Limits, Mode, Outcome, Program
from selectkd_eval.sandbox.tester import FALLBACK
from selectkd_eval.tasks.table import find
from selectkd_eval.tasks.task import Problem, Task

OTHER: dict[Mode, Mode] = {"isolated": "official", "official": "isolated"}
SANDBOX = "sandbox"  # the grader of programs


def check_grader(names: Sequence[str], wanted: str) -> None:
    """An InputError when the grader asked for suits no task, or not all whose answers it would grade."""
    if not wanted:
        return
    suits = choose(wanted, GRADER_ROWS, "grader").suits
    own = {name: find(name)[0].grader for name in names if find(name)[0].kind == "answer"}
    if not own:
        raise InputError(
            f"--grader {wanted} grades no program, and {', '.join(names)} asks for nothing else: leave it out"
        )
    for name, grader in own.items():
        if not set(suits) & set(GRADER_ROWS[grader].suits):
            fit = ", ".join(one for one, row in GRADER_ROWS.items() if set(row.suits) & set(GRADER_ROWS[grader].suits))
            raise InputError(f"--grader {wanted} does not suit the answers of {name}: one of {fit} does")


class Item(NamedTuple):
    """A finished answer: what was asked, the raw completion, why it ended, and whether the layout's prefix opened it
    (not every server lets an answer be begun for the model).
    """

    task: Task
    problem: Problem
    completion: str
    finish: str
    opened: bool = True

    @property
    def text(self) -> str:
        """What the model said, with the words that the layout put into its mouth."""
        return self.task.layout.prefix + self.completion if self.opened else self.completion

    @property
    def continues(self) -> bool:
        """Whether the completion continues the prompt's code; one that a prefix should have led into does not, when
        the prefix was not there."""
        return self.task.layout.continues and (self.opened or not self.task.layout.prefix)


class Marker:
    """Graders and the sandbox that the tasks need, open for as long as the `with` block lasts.

    Entering starts the sandbox's self-test, so a machine that cannot confine programs is refused before any model is
    loaded (SetupError).
    """

    def __init__(
        self,
        kinds: set[str],
        *,
        verdict: Mode,
        tier: str,
        packages: Sequence[str],
        cpu_seconds: float,
        workers: int,
    ) -> None:
        self.verdict = verdict
        self.workers = workers
        self.limits = Limits(cpu_seconds=cpu_seconds)
        self._stack = ExitStack()
        self._box = Sandbox(self.limits, workers=workers, tier=tier, packages=packages) if "code" in kinds else None
        self._graders: dict[str, Grading] = {}

    def __enter__(self) -> Marker:
        with ExitStack() as stack:
            if self._box is not None:
                stack.enter_context(self._box)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def stop(self) -> None:
        """End every program and grader, from another thread; `mark`, if it is at work, fails there."""
        self._stack.close()

    def grader(self, name: str) -> Grading:
        """The grader of that name, opened once; InputError for an unknown name."""
        if name not in self._graders:
            self._graders[name] = self._stack.enter_context(open_grader(name, self.workers))
        return self._graders[name]

    def check(self, tasks: Sequence[Task]) -> None:
        """InputError for a task that cannot be judged in the mode asked for."""
        for task in tasks:
            if self.verdict == "official" and any("plus" in problem.program for problem in task.problems):
                raise InputError(
                    f"--verdict official puts tests and program into one interpreter, but {task.name} has no tests, "
                    f"only inputs whose outputs are compared: leave --verdict out for it"
                )

    def facts(self, tasks: Sequence[Task]) -> dict[str, Any]:
        """For a record's header: which rules graded, and what confined the programs."""
        names = sorted({task.grader for task in tasks if task.kind == "answer"})
        found: dict[str, Any] = {"graders": {name: self.grader(name).version for name in names}}
        if self._box is not None:
            found["sandbox"] = {"verdict": self.verdict, **self._box.facts}
        return found

    def mark(self, items: Sequence[Item]) -> list[dict[str, Any]]:
        """The verdict on each item, in order, as the fields of its row."""
        marked: dict[int, dict[str, Any]] = {}
        for name in {item.task.grader for item in items if item.task.kind == "answer"}:
            places = [i for i, item in enumerate(items) if item.task.kind == "answer" and item.task.grader == name]
            marked.update(zip(places, self._answers(name, [items[i] for i in places]), strict=True))
        places = [i for i, item in enumerate(items) if item.task.kind == "code"]
        marked.update(zip(places, self._programs([items[i] for i in places]), strict=True))
        return [
            {"kind": item.task.kind, "strata": item.problem.strata, **marked[place]} for place, item in enumerate(items)
        ]

    def _answers(self, name: str, items: Sequence[Item]) -> list[dict[str, Any]]:
        grades = self.grader(name).grade([(item.text, item.problem.gold) for item in items])
        rows = []
        for item, grade in zip(items, grades, strict=True):
            word = "truncated" if grade.word == "no-answer" and item.finish == "length" else grade.word
            rows.append(
                {
                    "outcome": word,
                    "correct": int(grade.correct),
                    "extracted": grade.extracted,
                    "gold": item.problem.gold,
                    "detail": "",
                }
            )
        return rows

    def _programs(self, items: Sequence[Item]) -> list[dict[str, Any]]:
        codes = [self._code(item) for item in items]
        runs = {
            mode: self._run([(p, item, code) for p, (item, code) in enumerate(zip(items, codes, strict=True))], mode)
            for mode in OTHER
        }
        return [self._program_row(item, code, runs, p) for p, (item, code) in enumerate(zip(items, codes, strict=True))]

    def _code(self, item: Item) -> str | None:
        fixed = item.problem.program
        return extract_code(
            item.completion if item.continues else item.text,
            prompt=fixed.get("prompt", ""),
            # MBPP's tests call the function by its name; what that name is stands in the problem, not in the program.
            entry_point=item.problem.fields.get("entry_point", ""),
            chat=not item.continues,
        )

    def _run(self, asked: Sequence[tuple[int, Item, str | None]], mode: Mode) -> dict[int, Outcome]:
        """The outcome of every program that can be judged in this mode, by place."""
        chosen = [
            (place, _program(item, code)) for place, item, code in asked if code is not None and _judged(item, mode)
        ]
        if not chosen:
            return {}
        assert self._box is not None
        found = self._box.run([program for _, program in chosen], mode)
        return {chosen[index][0]: outcome for index, outcome in found}

    def _program_row(
        self, item: Item, code: str | None, runs: dict[Mode, dict[int, Outcome]], place: int
    ) -> dict[str, Any]:
        if code is None:
            word = "truncated" if item.finish == "length" else "no-code"
            return {"outcome": word, "correct": 0, "extracted": None, "detail": "", "mode": self.verdict}
        fallback = place not in runs[self.verdict]
        mode = OTHER[self.verdict] if fallback else self.verdict
        judged, other = runs[mode][place], runs[OTHER[mode]].get(place)
        row: dict[str, Any] = {
            "outcome": "truncated" if _cut_short(item, judged) else judged.word,
            "correct": int(judged.passed),
            "extracted": code,
            "detail": judged.detail,
            "mode": mode,
            "fallback": fallback,
            "cpu_seconds": round(judged.cpu_seconds, 3),
            "again": judged.again,
            "output": judged.output,
        }
        if "plus" in item.problem.program:
            base = base_passed(judged.word, judged.detail)
            row["base"] = {"outcome": "pass" if base else judged.word, "correct": int(base)}
        if other is not None:
            row["other"] = {
                "mode": other.mode,
                "outcome": other.word,
                "correct": int(other.passed),
                "detail": other.detail,
            }
        return row


def _program(item: Item, code: str) -> Program:
    fixed = {name: value for name, value in item.problem.program.items() if name != "prompt"}
    return Program(id=item.problem.id, code=code, **fixed)


def _judged(item: Item, mode: Mode) -> bool:
    """Whether this mode can judge answers to the problem."""
    return item.problem.id not in FALLBACK if mode == "isolated" else "plus" not in item.problem.program


def _cut_short(item: Item, judged: Outcome) -> bool:
    """Whether the token limit ended the answer before its program was one."""
    return item.finish == "length" and judged.detail.startswith(("SyntaxError", "IndentationError"))
