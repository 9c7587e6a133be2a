"""Are two answers equal by a library's rule? What runs inside a grading worker, where it may hang or burst.

Each loader imports its library and returns a function of (answer, gold) giving a word and what was read as the answer.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

Compare = Callable[[str, str], tuple[str, str | None]]


def math_verify() -> Compare:
    """math-verify on an answer in LaTeX or a text that holds one. Its own timeouts are off: the worker is killed."""
    library = importlib.import_module("math_verify")

    def compare(answer: str, gold: str) -> tuple[str, str | None]:
        parsed = library.parse(answer, parsing_timeout=None)
        if not parsed:
            return "no-answer", None
        right = library.verify(library.parse(gold, parsing_timeout=None), parsed, timeout_seconds=None)
        text = next((str(part) for part in parsed if isinstance(part, str)), None)
        return ("right" if right else "wrong"), text

    return compare


RULES: dict[str, Callable[[], Compare]] = {"math-verify": math_verify}
