"""Is a candidate right on EvalPlus's inputs? The canonical solution answers here, the candidate in its own process.

Implements, in its own words, the rules of evalplus's `eval/__init__.py` and `eval/_special_oracle.py` and the inputs' forms
of `data/mbpp.py` (github.com/evalplus/evalplus, Apache-2.0). Differences, on purpose: every input reaches the candidate
as a fresh copy, so that a find_zero that alters its argument cannot pass; there is no time limit per input but the
sandbox's own for the program.
"""

from __future__ import annotations

import copy
import math
import reprlib
from collections.abc import Callable, Iterable
from typing import Any

from selectkd_eval.sandbox import verdict
from selectkd_eval.sandbox.channel import Closed, Malformed
from selectkd_eval.sandbox.proxies import Far, FromCandidate, Unjudgeable

BASE_PASSED = "base passed"
"""A detail starts with this when all of the original benchmark's inputs were right and an added one was not."""

_SAME_SET = {
    "similar_elements",
    "find_char_long",
    "common_in_nested_lists",
    "extract_singly",
    "larg_nnum",
    "intersection_array",
    "find_dissimilar",
    "Diff",
}
_NOT_NONE = {"check_str", "text_match_three", "text_starta_endb"}
_RELATIVE = 1e-7  # np.testing.assert_allclose's default, which EvalPlus sets


def base_passed(word: str, detail: str) -> bool:
    """Whether an outcome of a plus program is a pass on the base inputs."""
    return word == "pass" or detail.startswith(BASE_PASSED)


def judge(task: dict[str, Any], far: Far, note: Callable[[str], None]) -> tuple[str, str]:
    """(word, detail) over the base inputs, then the plus inputs; stops at the first that fails.

    `task` holds `task` (its id), `entry_point`, `canonical` (a module with the reference solution), `base` and `plus`
    (lists of argument lists as the file has them) and `atol`. `note` is told when the base inputs are done.
    """
    names: dict[str, Any] = {"__name__": "canonical"}
    exec(compile(task["canonical"], "<canonical>", "exec", dont_inherit=True), names)
    reference = names[task["entry_point"]]
    kind, function = far.ask("name", task["entry_point"])
    if kind != "value":
        return "error", f"NameError: name {task['entry_point']!r} is not defined"
    for part, before in (("base", ""), ("plus", f"{BASE_PASSED}; ")):
        oracle = Oracle(task["task"], task["entry_point"], task["atol"])
        for place, arguments in enumerate(arguments_of(task["task"], task[part])):
            word, detail = _one(oracle, reference, far, function, arguments)
            if word != "pass":
                return word, f"{before}{part} input {place}: {detail}"
        if part == "base":
            note(BASE_PASSED)
    return "pass", ""


def _one(oracle: Oracle, reference: Any, far: Far, function: Any, arguments: list[Any]) -> tuple[str, str]:
    """(word, detail) of one input."""
    expected = oracle.expected(reference, copy.deepcopy(arguments))
    try:
        found = far.ask("run", function, list(arguments), {})
        if oracle.accepts(found, expected, arguments):
            return "pass", ""
    except (Closed, Malformed, Unjudgeable, MemoryError):
        raise
    except BaseException as error:  # of the candidate, or of comparing what it returned
        if isinstance(error, FromCandidate):
            return verdict.word_of(error.failure)
        return "wrong", verdict.clean(f"{type(error).__name__} when its result was compared")
    return "wrong", verdict.clean(f"{_short(found)}, expected {_short(expected)}")


def _short(value: Any) -> str:
    """A few dozen characters of a plain value; nothing is asked of an object of the candidate."""
    if isinstance(value, int):
        return hex(value)[:40] if abs(value) >> 128 else repr(value)
    return reprlib.repr(value) if type(value) in (float, str, list, tuple, bool, type(None)) else type(value).__name__


class Oracle:
    """EvalPlus's comparison for one task and one run over inputs.

    Like its original it keeps a tolerance of 1e-6 for all later inputs once a float was expected where the task's own
    tolerance is 0.
    """

    def __init__(self, task: str, entry_point: str, atol: float) -> None:
        self.mbpp = task.startswith("Mbpp/")
        self.name, self.atol = entry_point, atol

    def expected(self, reference: Any, arguments: list[Any]) -> Any:
        """What the canonical solution returns, or only whether it returns anything."""
        result = reference(*arguments)
        return result is not None if self.mbpp and self.name in _NOT_NONE else result

    def accepts(self, found: Any, expected: Any, arguments: list[Any]) -> bool:
        """Whether a result is right; may raise what comparing raises, which fails the input too."""
        if not self.mbpp and self.name == "find_zero":
            return bool(abs(polynomial(arguments[0], found)) <= self.atol)
        exact = self._exact(found, expected, arguments)
        if self.atol == 0 and _is_floats(expected):
            self.atol = 1e-6
        if exact or self.atol == 0:
            return exact
        if type(found) is not type(expected):
            return False
        if isinstance(expected, (list, tuple)) and len(found) != len(expected):
            return False
        return close(found, expected, self.atol)

    def _exact(self, found: Any, expected: Any, arguments: list[Any]) -> bool:
        same = bool(found == expected)
        if not self.mbpp:
            return same
        if self.name == "are_equivalent":  # its reference is wrong: every result counts
            return True
        if self.name == "sum_div":
            return same or found == 0
        if self.name == "surface_Area":
            return same or abs(found - pyramid_surface(*arguments)) <= self.atol
        if self.name == "digit_distance_nums":
            return same or found == digit_distance(*arguments)
        if self.name in _SAME_SET:
            return set(found) == set(expected)
        if self.name in _NOT_NONE:
            return bool(found == expected) if isinstance(found, bool) else expected == (found is not None)
        return same


def _is_floats(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and all(isinstance(one, float) for one in value)
    return isinstance(value, float)


def polynomial(coefficients: list[float], x: float) -> float:
    """Σ c_i x^i (HumanEval/32: a zero is right when this vanishes there)."""
    return sum(one * math.pow(x, power) for power, one in enumerate(coefficients))


def pyramid_surface(base: float, height: float) -> int:
    """Mbpp/581 with `height` from apex to base instead of along the side."""
    return round(base**2 + 2 * base * math.sqrt((base / 2) ** 2 + height**2))


def digit_distance(one: int, other: int) -> int:
    """Mbpp/558 with the shorter number padded with zeros."""
    first, second = str(one), str(other)
    width = max(len(first), len(second))
    return sum(abs(int(a) - int(b)) for a, b in zip(first.zfill(width), second.zfill(width), strict=True))


# ---------------------------------------------------------------- numpy.allclose


def close(found: Any, expected: Any, atol: float) -> bool:
    """`numpy.allclose(found, expected, rtol=1e-7, atol=atol)` on numbers and regular nests of them, with broadcasting.
    Raises TypeError or ValueError where numpy would."""
    return _close(found, _shape(found), expected, _shape(expected), atol)


def _close(found: Any, shape: tuple[int, ...], expected: Any, other: tuple[int, ...], atol: float) -> bool:
    if not shape and not other:
        near = abs(found - expected) <= atol + _RELATIVE * abs(expected)
        return found == expected or (near and math.isfinite(abs(expected)))
    if len(shape) != len(other):  # the shallower one stands for each item of the deeper
        if len(shape) < len(other):
            return all(_close(found, shape, one, other[1:], atol) for one in expected)
        return all(_close(one, shape[1:], expected, other, atol) for one in found)
    if shape[0] != other[0] and 1 not in (shape[0], other[0]):
        raise ValueError(f"shapes {shape} and {other} do not fit")
    longest = 0 if 0 in (shape[0], other[0]) else max(shape[0], other[0])
    return all(_close(found[i % shape[0]], shape[1:], expected[i % other[0]], other[1:], atol) for i in range(longest))


def _shape(value: Any) -> tuple[int, ...]:
    """Lengths from the outside in; raises ValueError for a ragged nest and TypeError for what is no number."""
    if isinstance(value, (list, tuple)):
        inner = {_shape(one) for one in value}
        if len(inner) > 1:
            raise ValueError("a ragged nest of numbers")
        return (len(value), *(inner.pop() if inner else ()))
    if type(value) not in (int, float, bool, complex) or (type(value) is int and not -(1 << 63) <= value < 1 << 64):
        raise TypeError("no number")
    return ()


# ---------------------------------------------------------------- inputs as the MBPP+ file has them

_TUPLES = {2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616, 630, 726, 740, 744, 809}
_TUPLES_INSIDE = {63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780}
_TUPLES_OF_TUPLES = {259, 401, 445}
_FIRST_OF_TUPLES = {75, 413, 444, 753}
_FIRST = {250, 405, 446, 617, 720, 763, 808, 307}
_ALL_LISTS = {580, 615, 791}


def arguments_of(task: str, inputs: Iterable[list[Any]]) -> list[list[Any]]:
    """JSON has neither tuples nor sets nor complex numbers: the inputs of a task in the forms its solutions expect."""
    if not task.startswith("Mbpp/"):
        return [list(row) for row in inputs]
    number = int(task.rpartition("/")[2])
    return [list(_arguments(number, row)) for row in inputs]


def _arguments(number: int, row: list[Any]) -> Iterable[Any]:
    if not row:
        return row
    first, *rest = row
    if number in _TUPLES:
        return map(tuple, row)
    if number in _TUPLES_INSIDE:
        return ([tuple(one) for one in argument] for argument in row)
    if number in _TUPLES_OF_TUPLES:
        return (tuple(tuple(one) for one in argument) for argument in row)
    if number in _FIRST_OF_TUPLES:
        return [[tuple(one) for one in first], *rest]
    if number in _FIRST:
        return [tuple(first), *rest]
    if number in _ALL_LISTS:
        return map(_tupled, row)
    if number in (106, 750):
        return [first, tuple(rest[0])]
    if number == 115:
        return [[set(one) if isinstance(one, list) and one else {} for one in first]]
    if number == 124:
        return [float(first), complex(rest[0])]
    if number == 252:
        return [complex(first)]
    if number == 278:
        return [tuple(tuple(one) if isinstance(one, list) else one for one in first)]
    if number == 722:
        return [{key: tuple(value) for key, value in first.items()}, *rest]
    return row


def _tupled(value: Any) -> Any:
    return tuple(_tupled(one) for one in value) if isinstance(value, list) else value
