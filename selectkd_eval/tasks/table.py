"""Which tasks are there? One row each: how many problems, whose wording, what grades them, where they come from.

A table of facts, light to import: `list tasks` prints it. `sources` reads the problems.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from selectkd_eval.errors import InputError, choose
from selectkd_eval.tasks import layouts
from selectkd_eval.tasks.task import Kind, Layout


@dataclass(frozen=True)
class Hub:
    """A data set of the Hugging Face hub; rows of every configuration and split follow one another."""

    path: str
    configurations: tuple[str | None, ...] = (None,)
    splits: tuple[str, ...] = ("test",)

    def __str__(self) -> str:
        names = [name for name in self.configurations if name]
        return self.path + (f" ({', '.join(names)})" if names else "")


@dataclass(frozen=True)
class TaskRow:
    """A task by name. `problems` is its size (in the newest version), `files` the accepted names of its own
    file without ending, `train` those of the file with solved examples; `versioned` says that a version follows the
    name (HumanEvalPlus_v0.1.10). `keep` is the inclusive range of MBPP's task_id that belongs to it.
    """

    about: str
    kind: Kind
    grader: str
    problems: int
    reader: str
    layouts: tuple[Layout, ...]
    plain: str
    chat: str
    files: tuple[str, ...]
    version: str
    max_new_tokens: int
    hub: Hub | None = None
    train: tuple[str, ...] = ()
    embedded: tuple[str, str] | None = None  # embedded sets of problems and of solved examples
    versioned: bool = False
    base_only: bool = False  # of EvalPlus's inputs, only those of the original tests
    keep: tuple[int, int] | None = None

    def layout(self, name: str, chat: bool) -> Layout:
        """The layout of that name; without one the task's own for chat or plain models."""
        return choose(name or (self.chat if chat else self.plain), {one.name: one for one in self.layouts}, "layout")


_SUBJECTS = (
    *("algebra", "counting_and_probability", "geometry", "intermediate_algebra"),
    *("number_theory", "prealgebra", "precalculus"),
)
_GSM8K = TaskRow(
    about="grade-school word problems (Cobbe et al. 2021)",
    kind="answer",
    grader="gsm8k-numeric",
    problems=1319,
    reader="gsm8k",
    layouts=(layouts.QUESTION_DRAWN, layouts.QUESTION_FIRST, *layouts.QUESTION_LAYOUTS),
    plain="qa",
    chat="qa",
    files=("gsm8k_test",),
    train=("gsm8k_train",),
    version="test split",
    max_new_tokens=512,
    hub=Hub("openai/gsm8k", ("main",)),
)
_MATH = TaskRow(
    about="competition mathematics (Hendrycks et al. 2021)",
    kind="answer",
    grader="math-verify",
    problems=5000,
    reader="math",
    layouts=layouts.MATH_LAYOUTS,
    plain="minerva",
    chat="boxed",
    files=("math_test_5000", "math_test"),
    version="test split",
    max_new_tokens=1024,
    hub=Hub("EleutherAI/hendrycks_math", _SUBJECTS),
)
_HUMANEVAL = TaskRow(
    about="functions to complete (Chen et al. 2021)",
    kind="code",
    grader="sandbox",
    problems=164,
    reader="humaneval",
    layouts=layouts.HUMANEVAL_LAYOUTS,
    plain="completion",
    chat="evalplus",
    files=("HumanEval", "humaneval", "humaneval_test"),
    version="test split",
    max_new_tokens=1024,
    hub=Hub("openai/openai_humaneval"),
)
_MBPP = TaskRow(
    about="short programs, the 500 test problems (Austin et al. 2021)",
    kind="code",
    grader="sandbox",
    problems=500,
    reader="mbpp",
    layouts=layouts.MBPP_LAYOUTS,
    plain="begin-done",
    chat="evalplus",
    files=("mbpp_full", "mbpp"),
    version="test split: task_id 11 to 510 of 974",
    max_new_tokens=1024,
    hub=Hub("google-research-datasets/mbpp", ("full",)),
    keep=(11, 510),
)
_EVERY_SPLIT = ("prompt", "test", "validation", "train")

TASKS: dict[str, TaskRow] = {
    "mini-gsm": replace(
        _GSM8K,
        about="embedded word problems in GSM8K's form, for the demo pair",
        problems=600,
        layouts=(layouts.QUESTION, *layouts.QUESTION_LAYOUTS),
        files=("mini-gsm_test",),
        train=("mini-gsm_train",),
        hub=None,
        embedded=("mini-gsm:test", "mini-gsm:labelled"),
    ),
    "gsm8k": _GSM8K,
    "math": _MATH,
    "math500": replace(
        _MATH,
        about="500 of MATH's test problems (Lightman et al. 2023); its file may hold only their math_idx",
        problems=500,
        files=("math500_test", "math500", "MATH-500"),
        version="500 of the test split",
        hub=Hub("HuggingFaceH4/MATH-500"),
    ),
    "humaneval": _HUMANEVAL,
    "humaneval-plus": replace(
        _HUMANEVAL,
        about="HumanEval with EvalPlus's tests (Liu et al. 2023)",
        reader="humaneval-plus",
        files=("HumanEvalPlus",),
        version="the hub's",
        hub=Hub("evalplus/humanevalplus"),
        versioned=True,
    ),
    "mbpp": _MBPP,
    "mbpp-full": replace(
        _MBPP,
        about="all of MBPP's splits, the 3 examples of layout begin-done among them",
        problems=974,
        version="every split: task_id 1 to 974",
        hub=Hub("google-research-datasets/mbpp", ("full",), _EVERY_SPLIT),
        keep=None,
    ),
    "mbpp-sanitized": replace(
        _MBPP,
        about="MBPP's problems verified by hand; 257 of them belong to the test split",
        problems=427,
        files=("mbpp_sanitized", "sanitized-mbpp"),
        version="sanitized, every split",
        hub=Hub("google-research-datasets/mbpp", ("sanitized",), _EVERY_SPLIT),
        keep=None,
    ),
    "mbpp-plus": replace(
        _MBPP,
        about="MBPP with EvalPlus's tests (Liu et al. 2023): 378 problems since v0.2.0, 399 before",
        problems=378,
        reader="mbpp-plus",
        files=("MbppPlus",),
        version="the hub's",
        hub=Hub("evalplus/mbppplus"),
        keep=None,
        versioned=True,
    ),
    "mbpp-base": replace(
        _MBPP,
        about="what EvalPlus reports as MBPP: the problems of mbpp-plus under MBPP's own inputs alone",
        problems=378,
        reader="mbpp-plus",
        files=("MbppPlus",),
        version="",
        hub=None,
        keep=None,
        versioned=True,
        base_only=True,
    ),
}


def find(name: str) -> tuple[TaskRow, str]:
    """A task's row and the version asked for (humaneval-plus@v0.1.10), empty for the newest; InputError otherwise."""
    stem, at, version = name.partition("@")
    row = choose(stem, TASKS, "task")
    if at and (not row.versioned or not version):
        known = ", ".join(name for name, one in TASKS.items() if one.versioned)
        raise InputError(f"{name} asks for a version, which only {known} have, as in humaneval-plus@v0.1.10: name it")
    return row, version
