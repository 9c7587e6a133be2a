"""What is a grader? A named rule with a measured error rate, apart from any model: text in, verdict out."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Literal, NamedTuple, Protocol

GradeWord = Literal["right", "wrong", "no-answer", "timeout", "memory"]
"""no-answer: nothing that the rule takes for an answer. timeout, memory: the grader itself was stopped on this text;
such an answer counts as not right and is printed."""


class Grade(NamedTuple):
    """The verdict on one answer; `extracted` is what the rule took for the answer, None when there was none."""

    word: GradeWord
    extracted: str | None

    @property
    def correct(self) -> bool:
        return self.word == "right"


class Grading(Protocol):
    """An open grader: workers may stand behind it, so it is used as a context manager."""

    name: str
    version: str  # the rule's version and the library's, e.g. "1, math-verify 0.9.0"

    def gold(self, reference: str) -> str:
        """The data set's reference answer in the form that `grade` takes; an InputError where it has none."""

    def grade(self, pairs: Sequence[tuple[str, str]]) -> list[Grade]:
        """Verdicts on (completion, gold) pairs, in order."""

    def __enter__(self) -> Grading: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
