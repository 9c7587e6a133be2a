"""Which graders are there? Names, what each suits, how often each errs, and how one is opened.

A name is a rule: another rule would be another number. The error rates stand with the set and the count on which they
were measured; tests measure them again.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Literal, NamedTuple

from selectkd_eval.errors import SetupError, choose
from selectkd_eval.grading.grade import Grading

Suits = Literal["number", "symbolic"]
"""What a task's answers are: numbers with GSM8K's `####` reference, or LaTeX with MATH's `\\boxed{}` solution."""


class GraderRow(NamedTuple):
    """One grader for `list graders`."""

    suits: tuple[Suits, ...]
    description: str
    measured: str  # error rates with set and n
    needs: str  # the package behind the rule, empty for none
    open: Callable[[int], Grading]


def open_grader(name: str, workers: int = 0) -> Grading:
    """The grader of that name, to be used as a context manager; `workers` 0 means one process per core.

    No process starts before the first answer that needs one. An InputError names the nearest grader, a SetupError the
    package that is missing.
    """
    row = choose(name, GRADER_ROWS, "grader")
    if row.needs and importlib.util.find_spec(row.needs) is None:
        raise SetupError(
            f"the grader {name} needs the package {row.needs}, which is not installed here: "
            f"pip install 'selectkd-eval[bench]'"
        )
    return row.open(workers)


def _number(workers: int) -> Grading:
    from selectkd_eval.grading.number import NumberGrading

    return NumberGrading()


def _math_verify(workers: int) -> Grading:
    from selectkd_eval.grading.symbolic import MathVerify

    return MathVerify(workers)


GRADER_ROWS: dict[str, GraderRow] = {
    "gsm8k-numeric": GraderRow(
        ("number",),
        "the final number, exact: after ####, in the last box, after 'answer is', or the last one",
        "0 of 5276 labelled GSM8K solutions judged otherwise than OpenAI",
        "",
        _number,
    ),
    "math-verify": GraderRow(
        ("symbolic",),
        "the last \\boxed{} compared with the reference's last one by math-verify",
        "1 of 800 labelled MATH answers judged otherwise than Qwen, whose label (10{,}000 is not 10000) is wrong",
        "math_verify",
        _math_verify,
    ),
}
