"""Are two answers equal by a library's rule? What runs inside a grading worker, where it may hang or burst.

Each loader imports its library and returns a function of (answer, gold) giving a word and what was read as the answer.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

BETWEEN = "\0"  # parts the alternatives that one answer may stand for; no answer holds a NUL any more
Compare = Callable[[str, str], tuple[str, str | None]]


def math_verify() -> Compare:
    """math-verify on an answer in LaTeX or a text that holds one. Its own timeouts are off: the worker is killed."""
    library = importlib.import_module("math_verify")

    @functools.lru_cache(maxsize=256)
    def parsed_gold(gold: str) -> list[Any]:
        return parsed(gold)

    def parsed(text: str) -> list[Any]:
        return [part for way in text.split(BETWEEN) for part in library.parse(way, parsing_timeout=None)]

    def compare(answer: str, gold: str) -> tuple[str, str | None]:
        found = parsed(answer)
        if not found:
            return "no-answer", None
        right = library.verify(parsed_gold(gold), found, timeout_seconds=None)
        text = next((part for part in found if isinstance(part, str)), None)
        return ("right" if right else "wrong"), text

    return compare


def minerva() -> Compare:
    """lm-eval's minerva_math exact_match on what its closing sentence holds and on the reference's box."""
    rules = minerva_math()

    def compare(answer: str, gold: str) -> tuple[str, str | None]:
        normal = rules.normalize_final_answer(answer)
        right = rules.is_equiv(normal, rules.normalize_final_answer(gold))
        return ("right" if right else "wrong"), normal

    return compare


def minerva_math_verify() -> Compare:
    """lm-eval's minerva_math math_verify on a whole completion and a whole solution, math-verify's timeouts on."""
    rules = minerva_math()

    def compare(answer: str, gold: str) -> tuple[str, str | None]:
        parsed = rules.parse(answer)
        if not parsed:
            return "no-answer", None
        right = rules.verify(gold=rules.parse(gold), target=parsed)
        text = next((part for part in parsed if isinstance(part, str)), None)
        return ("right" if right else "wrong"), text

    return compare


def minerva_math() -> ModuleType:
    """The module behind lm-eval's task, read from its file: importing lm_eval.tasks would cost seconds."""
    package = importlib.util.find_spec("lm_eval")
    assert package is not None
    assert package.origin is not None
    path = Path(package.origin).parent / "tasks" / "minerva_math" / "utils.py"
    spec = importlib.util.spec_from_file_location("minerva_math_rules", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RULES: dict[str, Callable[[], Compare]] = {
    "math-verify": math_verify,
    "minerva": minerva,
    "minerva-math-verify": minerva_math_verify,
}
