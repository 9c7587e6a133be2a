"""Is a candidate right on EvalPlus's inputs? The canonical solution answers here, the candidate in its own process.

Implements, in its own words, the rules of evalplus's `eval/__init__.py` and `eval/_special_oracle.py` and the inputs'
forms of `data/mbpp.py` (github.com/evalplus/evalplus, Apache-2.0). Differences, on purpose: every input reaches the
candidate as a fresh copy, so that a find_zero that alters its argument cannot pass; the limit per input is three
times EvalPlus's in waiting time, CPU time being limited from outside.
"""

from __future__ import annotations

import copy
import math
import reprlib
import time
from collections.abc import Callable, Iterable
from typing import Any

from selectkd_eval.sandbox import verdict
from selectkd_eval.sandbox.channel import Closed, Late, Malformed, RefusedError
from selectkd_eval.sandbox.codec import encode
from selectkd_eval.sandbox.proxies import Far, FromCandidate, Unjudgeable

LEFT_OUT = "left out"
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
_LEAST_SECONDS = 4.0  # EvalPlus's limit for one input is this or
_TIMES_REFERENCE = 4.0  # so many times what the reference took, whichever is longer
_SLACK = 3.0  # that limit is CPU time in spirit; waiting takes longer where other programs run
_WORTH_A_LOOK = 1 << 16  # items from which on a result may be too long to cross
_RELATIVE = 1e-7  # np.testing.assert_allclose's default, which EvalPlus sets


def base_passed(word: str, detail: str) -> bool:
    """Whether an outcome of a plus program is a pass on the base inputs."""
    return word == "pass" or detail.startswith(BASE_PASSED)


def judge(task: dict[str, Any], far: Far, note: Callable[[str], None]) -> tuple[str, str]:
    """(word, detail) over the base inputs, then the plus inputs; stops at the first that fails.

    `task` holds `task` (its id), `entry_point`, `canonical` (a module with the reference solution), `base` and `plus`
    (lists of argument lists as the file has them) and `atol`. `note` is told when the base inputs are done. An input
    whose right answer cannot cross, being longer than a message may be, is left out, and the detail says so: five of
    MBPP+ 0.2.0 are (Mbpp/255, up to 1 GB).
    """
    names: dict[str, Any] = {"__name__": "canonical"}
    exec(compile(task["canonical"], "<canonical>", "exec", dont_inherit=True), names)
    reference = names[task["entry_point"]]
    kind, function = far.ask("name", task["entry_point"])
    if kind != "value":
        return "error", f"NameError: name {task['entry_point']!r} is not defined"
    left_out = []
    for part, before in (("base", ""), ("plus", f"{BASE_PASSED}; ")):
        oracle = Oracle(task["task"], task["entry_point"], task["atol"])
        for place, arguments in enumerate(arguments_of(task["task"], task[part])):
            word, detail = _one(oracle, reference, far, function, arguments)
            if word == LEFT_OUT:
                left_out.append(f"{part} input {place}")
            elif word != "pass":
                return word, f"{before}{part} input {place}: {detail}"
        if part == "base":
            note(BASE_PASSED)
    return "pass", f"left out: {', '.join(left_out)}" if left_out else ""


def _one(oracle: Oracle, reference: Any, far: Far, function: Any, arguments: list[Any]) -> tuple[str, str]:
    """(word, detail) of one input."""
    started = time.process_time()
    try:
        expected = oracle.expected(reference, copy.deepcopy(arguments))
        crosses = _crosses(expected, far.channel.cap)
    except MemoryError:
        crosses = False
    if not crosses:
        return LEFT_OUT, ""
    seconds = _SLACK * max(_LEAST_SECONDS, _TIMES_REFERENCE * (time.process_time() - started))
    try:
        found = far.run(function, arguments, seconds)
        right = oracle.accepts(found, expected, arguments)
    except Late:
        return "timeout", f"more than {seconds:.0f} s of waiting"
    except (Closed, Malformed, Unjudgeable, MemoryError):
        raise
    except BaseException as error:  # of the candidate, or of comparing what it returned
        if isinstance(error, FromCandidate):
            return verdict.word_of(error.failure)
        return "wrong", verdict.clean(f"{type(error).__name__} when its result was compared")
    return ("pass", "") if right else ("wrong", verdict.clean(f"{_short(found)}, expected {_short(expected)}"))


def _crosses(expected: Any, cap: int) -> bool:
    if not isinstance(expected, (list, tuple, set, dict, str)) or len(expected) < _WORTH_A_LOOK:
        return True
    try:
        return bool(encode([expected], cap, lambda thing: (0, 0, 0)))
    except RefusedError:
        return False


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
        rule = _RULES.get(self.name) if self.mbpp else None
        return bool(rule(same, found, expected, arguments, self.atol)) if rule else same


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


def _whether_any(same: bool, found: Any, expected: Any, arguments: list[Any], atol: float) -> bool:
    return same if isinstance(found, bool) else bool(expected == (found is not None))


_RULES: dict[str, Callable[[bool, Any, Any, list[Any], float], bool]] = {
    "are_equivalent": lambda same, found, expected, arguments, atol: True,  # its reference is wrong
    "sum_div": lambda same, found, expected, arguments, atol: same or found == 0,
    "surface_Area": lambda same, found, expected, arguments, atol: (
        same or abs(found - pyramid_surface(*arguments)) <= atol
    ),
    "digit_distance_nums": lambda same, found, expected, arguments, atol: same or found == digit_distance(*arguments),
    **dict.fromkeys(_SAME_SET, lambda same, found, expected, arguments, atol: set(found) == set(expected)),
    **dict.fromkeys(_NOT_NONE, _whether_any),
}


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

_Row = list[Any]


def _tuples(items: Iterable[Any]) -> list[Any]:
    return [tuple(one) for one in items]


def _tupled(value: Any) -> Any:
    return tuple(_tupled(one) for one in value) if isinstance(value, list) else value


_FORMS: tuple[tuple[tuple[int, ...], Callable[[_Row], Iterable[Any]]], ...] = (
    (
        (2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616, 630, 726, 740, 744, 809),
        _tuples,
    ),
    (
        (63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780),
        lambda row: [_tuples(argument) for argument in row],
    ),
    ((259, 401, 445), lambda row: [tuple(_tuples(argument)) for argument in row]),
    ((75, 413, 444, 753), lambda row: [_tuples(row[0]), *row[1:]]),
    ((250, 307, 405, 446, 617, 720, 763, 808), lambda row: [tuple(row[0]), *row[1:]]),
    ((106, 750), lambda row: [row[0], tuple(row[1])]),
    ((580, 615, 791), lambda row: map(_tupled, row)),
    ((115,), lambda row: [[set(one) if isinstance(one, list) and one else {} for one in row[0]]]),
    ((124,), lambda row: [float(row[0]), complex(row[1])]),
    ((252,), lambda row: [complex(row[0])]),
    ((278,), lambda row: [tuple(tuple(one) if isinstance(one, list) else one for one in row[0])]),
    ((722,), lambda row: [{key: tuple(value) for key, value in row[0].items()}, *row[1:]]),
)
_FORM = {number: form for numbers, form in _FORMS for number in numbers}


def arguments_of(task: str, inputs: Iterable[_Row]) -> list[_Row]:
    """JSON has neither tuples nor sets nor complex numbers: the inputs of a task in the forms its solutions expect."""
    form = _FORM.get(int(task.rpartition("/")[2])) if task.startswith("Mbpp/") else None
    return [list(form(row) if form else row) for row in inputs]
