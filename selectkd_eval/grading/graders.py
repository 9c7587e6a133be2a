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


def _published(rule: str) -> Callable[[int], Grading]:
    def open_rule(workers: int) -> Grading:
        from selectkd_eval.grading import published

        return published.RULES[rule](workers)

    return open_rule


_MATH = "of 800 labelled MATH answers of a chat model that boxes its answer, judged otherwise than Qwen:"
_GSM8K = "of 5276 labelled GSM8K solutions ('A: 18' at the end), judged otherwise than OpenAI:"

GRADER_ROWS: dict[str, GraderRow] = {
    "gsm8k-numeric": GraderRow(
        ("number",),
        "the final number, exact: after ####, in the last box, after 'answer is', or the last one",
        f"{_GSM8K} 0",
        "",
        _number,
    ),
    "math-verify": GraderRow(
        ("symbolic",),
        "the last \\boxed{} compared with the reference's last one by math-verify",
        f"{_MATH} 1, where the label is wrong (10{{,}}000 is 10000)",
        "math_verify",
        _math_verify,
    ),
    "gsm8k-strict": GraderRow(
        ("number",),
        "lm-eval gsm8k's strict-match: '#### 18' to the letter",
        f"{_GSM8K} 2001 (all right ones called wrong: none has ####)",
        "",
        _published("gsm8k-strict"),
    ),
    "gsm8k-flexible": GraderRow(
        ("number",),
        "lm-eval gsm8k's flexible-extract: the last thing that looks like a number",
        f"{_GSM8K} 0; wrong on '$18.00.', '18.0' and a number after the answer",
        "",
        _published("gsm8k-flexible"),
    ),
    "minerva": GraderRow(
        ("symbolic",),
        "lm-eval minerva_math's exact_match: its prompt's closing sentence, then sympy",
        f"{_MATH} 728 (all right ones called wrong: none has that sentence)",
        "lm_eval",
        _published("minerva"),
    ),
    "minerva-math-verify": GraderRow(
        ("symbolic",),
        "lm-eval minerva_math's math_verify: math-verify on the whole texts",
        f"{_MATH} 18 (17 right ones called wrong, 1 wrong label)",
        "lm_eval",
        _published("minerva-math-verify"),
    ),
    "hendrycks": GraderRow(
        ("symbolic",),
        "lm-eval hendrycks_math: what stands between the first and the last $, as a string",
        f"{_MATH} 728 (all right ones called wrong)",
        "",
        _published("hendrycks"),
    ),
    "hendrycks-boxed": GraderRow(
        ("symbolic",),
        "hendrycks_math's comparison of strings on the last \\boxed{}",
        f"{_MATH} 20 (all right ones called wrong: 10,000 is not 10000)",
        "",
        _published("hendrycks-boxed"),
    ),
}
