"""How do the tests hold what lies in the candidate's process? By stand-ins that ask over the channel.

A stand-in lends the tests attributes, items, calls, iteration, length, truth and text; no arithmetic, no ordering, no
`__contains__`, and never equality with plain data: those are decided here, by Python's own types. No expected value
is ever sent to be compared. What the other side replies is checked for its shape and otherwise believed as far as a
function's result is believed.
"""

from __future__ import annotations

import builtins
import functools
import time
import types
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from selectkd_eval.sandbox.channel import Channel, Malformed, RefusedError
from selectkd_eval.sandbox.codec import MINE, YOURS, decode, encode
from selectkd_eval.sandbox.remote import CALL, ITEM, ITER, LENGTH, NEXT
from selectkd_eval.sandbox.verdict import Failure

LONGEST = 1_000_000
"""Items that are taken from one iterator of the candidate."""

_ASKED = ("__name__", "__qualname__")
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial)


class FromCandidate:
    """Mixed into every exception that comes out of the candidate, so that it is never taken for one of the tests."""

    failure: Failure


class CandidateError(FromCandidate, Exception):
    """An exception of a type that only the candidate knows."""


class CandidateStop(FromCandidate, BaseException):
    """SystemExit, KeyboardInterrupt and the like: no test's `except Exception` catches them, and nothing obeys them."""


class Unjudgeable(BaseException):
    """The tests do something that cannot be done from another process."""


_RAISED: dict[str, type[BaseException]] = {
    name: type(name, (FromCandidate, kind), {})
    for name, kind in vars(builtins).items()
    if isinstance(kind, type)
    and issubclass(kind, Exception)
    and not issubclass(kind, (StopIteration, StopAsyncIteration, BaseExceptionGroup))
    and name == kind.__name__
}
_RAISED["Exception"] = CandidateError
_STOPS = ("SystemExit", "KeyboardInterrupt", "GeneratorExit", "BaseException", "BaseExceptionGroup")


class Far:
    """The candidate's process as the tests see it."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.functions: list[Callable[..., Any]] = []  # of the tests, lent to the candidate as arguments

    def greet(self) -> set[str]:
        """Waits until the candidate's code has run; the builtin names it defines. Raises what the code raised."""
        (names,) = self.receive(1)
        if type(names) is not list or not all(type(name) is str for name in names):
            raise Malformed("a greeting that is none")
        return set(names)

    def ask(self, operation: str, *rest: Any) -> Any:
        """The answer to one question; raises what the candidate raised."""
        self.send([operation, *rest])
        return self.receive(1)[0]

    def run(self, function: Any, arguments: list[Any], seconds: float) -> Any:
        """A call whose arguments stay as they are here; raises Late after so many seconds."""
        self.channel.deadline = time.monotonic() + seconds
        result = self.ask("run", function, arguments, {})
        self.channel.deadline = 0.0
        return result

    def call(self, function: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """A call whose arguments are altered here as the candidate altered its copies."""
        arguments = [list(positional), named]
        self.send(["call", function, *arguments])
        value, after = self.receive(2)
        if after is not None:
            alter(arguments, after)
        return value

    def send(self, message: list[Any]) -> None:
        try:
            raw = encode(message, self.channel.cap, self.number)
        except RefusedError as error:
            raise Unjudgeable(str(error)) from None
        self.channel.send(raw)

    def receive(self, count: int) -> list[Any]:
        """The values of the next reply; serves the candidate's calls of lent functions meanwhile."""
        while True:
            message = decode(self.channel.receive(), self.resolve)
            if type(message) is not list or not message:
                raise Malformed("a reply that is none")
            word, *values = message
            if word == "ok" and len(values) == count:
                return values
            if word == "raise" and len(values) == 6:
                raise raised(*values)
            if word == "back" and len(values) == 3:
                self.lend(*values)
            else:
                raise Malformed("a reply that is none")

    def lend(self, number: Any, positional: Any, named: Any) -> None:
        """Runs a function of the tests that was passed to the candidate."""
        if type(number) is not int or not 0 <= number < len(self.functions) or type(positional) is not list:
            raise Malformed("a call of a function that was not lent")
        if type(named) is not dict or not all(type(name) is str for name in named):
            raise Malformed("a call of a function that was not lent")
        try:
            answer = ["value", self.functions[number](*positional, **named)]
        except Exception as error:
            failure = Failure.of(error)
            answer = ["error", failure.builtin, failure.text]
        self.send(answer)

    def number(self, thing: Any) -> tuple[int, int, int]:
        """What stands for an object that is no plain data."""
        if isinstance(thing, StandIn):
            return YOURS, 0, object.__getattribute__(thing, "_far_number")
        if type(thing) not in _FUNCTIONS:
            raise RefusedError(f"the tests pass a {type(thing).__name__}, which stays in their process")
        self.functions.append(thing)
        return MINE, CALL, len(self.functions) - 1

    def resolve(self, whose: int, flags: int, number: int) -> Any:
        """A stand-in for a handle that arrived, or the tests' own function coming back."""
        if whose == MINE:
            if number >= len(self.functions):
                raise Malformed("a function that was not lent")
            return self.functions[number]
        return stand_in(flags)(self, number)


def raised(builtin: Any, shown: Any, text: Any, module: Any, number: Any, arguments: Any) -> BaseException:
    """The exception that the tests see for one that the candidate raised: the builtin type of that name from a closed
    list, otherwise a generic one."""
    if not (type(builtin) is type(shown) is type(text) is type(module) is str and type(number) is int):
        raise Malformed("an exception that is none")
    kind = _RAISED.get(builtin, CandidateStop if builtin in _STOPS else CandidateError)
    try:
        error = kind(*arguments) if type(arguments) is tuple and arguments else kind(text)
    except Exception:  # arguments that this type does not take: they are the candidate's choice
        error = CandidateError(text)
    assert isinstance(error, FromCandidate)
    error.failure = Failure(builtin, shown, text, module, number)
    return error


class StandIn:
    """An object of the candidate: everything that every object has."""

    __slots__ = ("_far", "_far_number")

    def __init__(self, far: Far, number: int) -> None:
        object.__setattr__(self, "_far", far)
        object.__setattr__(self, "_far_number", number)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in _ASKED:  # numpy would follow an __array_interface__ anywhere
            raise AttributeError(name)
        return self._far.ask("attr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._far.ask("set", self, name, value)

    def __delattr__(self, name: str) -> None:
        self._far.ask("delete", self, name)

    def __eq__(self, other: object) -> bool:
        """Only two objects of the candidate can be equal."""
        if not isinstance(other, StandIn):
            return False
        return self._far_number == other._far_number or _exactly(bool, self._far.ask("same", self, other))

    def __hash__(self) -> int:
        return hash(self._far_number)

    def __bool__(self) -> bool:
        return _exactly(bool, self._far.ask("bool", self))

    def __str__(self) -> str:
        return _exactly(str, self._far.ask("str", self))

    def __repr__(self) -> str:
        return _exactly(str, self._far.ask("repr", self))

    def __instancecheck__(self, instance: object) -> bool:
        """`isinstance(x, C)` with the candidate's class C: its own objects only."""
        return isinstance(instance, StandIn) and _exactly(bool, self._far.ask("isinstance", instance, self))


class _Call:
    __slots__ = ()

    def __call__(self, /, *positional: Any, **named: Any) -> Any:
        return self._far.call(self, positional, named)  # type: ignore[attr-defined]


class _Iter:
    __slots__ = ()

    def __iter__(self) -> Iterator[Any]:
        return _items(self._far, self._far.ask("iter", self))  # type: ignore[attr-defined]


class _Next:
    __slots__ = ()

    def __next__(self) -> Any:
        for item in _exactly(tuple, self._far.ask("next", self)):  # type: ignore[attr-defined]
            return item
        raise StopIteration


class _Length:
    __slots__ = ()

    def __len__(self) -> int:
        return _exactly(int, self._far.ask("len", self))  # type: ignore[attr-defined]


class _Item:
    __slots__ = ()

    def __getitem__(self, key: Any) -> Any:
        return self._far.ask("item", self, key)  # type: ignore[attr-defined]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._far.ask("setitem", self, key, value)  # type: ignore[attr-defined]

    def __delitem__(self, key: Any) -> None:
        self._far.ask("delitem", self, key)  # type: ignore[attr-defined]


_PARTS = ((CALL, _Call), (ITER, _Iter), (NEXT, _Next), (LENGTH, _Length), (ITEM, _Item))
_CLASSES: dict[int, type[StandIn]] = {}


def stand_in(flags: int) -> type[StandIn]:
    """The class of objects with these abilities; one that has not `__len__` has not got it here either."""
    flags &= 31
    if flags not in _CLASSES:
        parts = tuple(part for flag, part in _PARTS if flags & flag)
        _CLASSES[flags] = type("StandIn", (*parts, StandIn), {"__slots__": ()})
    return _CLASSES[flags]


for _flags in (0, CALL, ITER, ITER | NEXT):  # the common ones, made once
    stand_in(_flags)


def _exactly(kind: Any, value: Any) -> Any:
    if type(value) is not kind:
        raise Malformed(f"an answer that is no {kind.__name__}")
    return value


def _items(far: Far, iterator: Any) -> Iterator[Any]:
    """Lazily, one question an item."""
    for _ in range(LONGEST):
        item = _exactly(tuple, far.ask("next", iterator))
        if not item:
            return
        yield item[0]
    raise CandidateError(f"an iterator of more than {LONGEST} items")


def alter(before: Any, after: Any) -> None:
    """Makes a mutable argument of the tests what the candidate made of its copy, keeping the identity of whatever kept
    its place and kind."""
    if type(before) is not type(after):
        return
    if isinstance(before, (list, tuple, deque)) and len(before) == len(after):
        for place, (old, new) in enumerate(zip(list(before), after, strict=True)):
            if _changeable(old, new):
                alter(old, new)
            elif not isinstance(before, tuple):
                before[place] = new
    elif isinstance(before, (list, bytearray)):
        before[:] = after
    elif isinstance(before, dict):
        kept = {key: old for key, old in before.items() if key in after and _changeable(old, after[key])}
        for key, old in kept.items():
            alter(old, after[key])
        before.clear()
        for key, value in {**after, **kept}.items():
            before[key] = value
    elif isinstance(before, (set, deque)) and before != after:
        before.clear()
        before.update(after) if isinstance(before, set) else before.extend(after)


def _changeable(old: Any, new: Any) -> bool:
    return type(old) is type(new) and isinstance(old, (list, tuple, dict, set, deque, bytearray))
