"""What does the candidate's process do? It runs the code as a module, then answers calls until nobody asks.

Nothing here is trusted: the code it runs shares this interpreter and may change any of it. It therefore holds no
test, no expected value and no way to a verdict; all that it can do is answer, which is all that a candidate may do.
"""

from __future__ import annotations

import builtins
import sys
import types
from collections.abc import Callable
from typing import Any, NoReturn

from selectkd_eval.sandbox import verdict
from selectkd_eval.sandbox.channel import Channel, Closed, Malformed
from selectkd_eval.sandbox.codec import MINE, YOURS, decode, encode

MODULE = "candidate"
"""The candidate's `__name__`: not "__main__", so that a main block does not run."""

CALL, ITER, NEXT, LENGTH, ITEM = 1, 2, 4, 8, 16
"""What a handle can do, as flags that cross with its number."""

_ABILITIES = ((ITER, "__iter__"), (NEXT, "__next__"), (LENGTH, "__len__"), (ITEM, "__getitem__"))
_HEAD = 5  # bytes before the items of an encoded list
_FIXED = (int, str, float, bool, type(None), bytes, complex, range)


def new_module() -> types.ModuleType:
    """An empty module for candidate code, registered as dataclasses and typing want it."""
    module = types.ModuleType(MODULE)
    sys.modules[MODULE] = module
    return module


def serve(program: dict[str, Any], channel_fd: int) -> NoReturn:
    """Runs program["code"] and answers over the channel; ends the process when the tests have gone."""
    cap = int(program.get("message_bytes", 16 << 20))
    try:
        Candidate(Channel(channel_fd, cap)).run(program["code"])
    except Closed:
        verdict.leave()
    except BaseException:  # the candidate broke its own side
        verdict.leave(70)


class Candidate:
    """The module under test and the objects of it that have been given numbers."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.module = new_module()
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}  # id -> number; `objects` keeps each alive, so that ids stay true

    def run(self, code: str) -> NoReturn:
        """Executes the code and serves. Raises Closed at the end."""
        self.start(code)
        while True:
            self.answer(self.channel.receive())

    def start(self, code: str) -> None:
        """Executes the code and reports how that went, with the builtin names that it defines."""
        try:
            exec(compile(code, f"<{MODULE}>", "exec", dont_inherit=True), self.module.__dict__)
        except Closed:
            raise
        except BaseException as error:  # SystemExit, KeyboardInterrupt and whatever else a program raises
            self.reply(["raise", *described(error), ()])
        else:
            shadowing = [name for name in list(self.module.__dict__) if name in builtins.__dict__]
            self.reply(["ok", shadowing])

    def answer(self, raw: bytes) -> None:
        """Does what one request asks for and replies with the value or the exception."""
        try:
            operation, *rest = decode(raw, self.resolve)
            doing = _DOING.get(operation) or getattr(self, _OWN[operation])
            answer = ["ok", doing(*rest)]
            if operation == "call":
                answer.append(self.altered(rest[1:], raw))
        except (Closed, Malformed):
            raise
        except BaseException as error:  # as above
            answer = ["raise", *described(error), plain_arguments(error)]
        self.reply(answer)

    def reply(self, answer: list[Any]) -> None:
        """Sends an answer, or the reason why it cannot cross."""
        try:
            raw = encode(answer, self.channel.cap, self.number)
        except (Closed, Malformed):
            raise
        except BaseException as error:  # too long, too deep, or a subclass that fights its base
            raw = encode(["raise", *described(error), ()], self.channel.cap, self.number)
        verdict.flush()
        self.channel.send(raw)

    def number(self, thing: Any) -> tuple[int, int, int]:
        """A handle for an object of this side, or the handle that a function of the tests came with."""
        if type(thing) is Callback:
            return YOURS, CALL, thing.__dict__["number"]
        number = self.numbers.get(id(thing))
        if number is None:
            number = self.numbers[id(thing)] = len(self.objects)
            self.objects.append(thing)
        kind = type(thing)
        flags = CALL if callable(thing) else 0
        for flag, method in _ABILITIES:
            if hasattr(kind, method):
                flags |= flag
        return MINE, flags, number

    def resolve(self, whose: int, flags: int, number: int) -> Any:
        """The object behind a handle that arrived."""
        return self.objects[number] if whose == MINE else Callback(self, number)

    def name(self, name: str) -> tuple[str, Any]:
        """A name of the module: ("module", its name), ("value", it) or ("missing", None)."""
        if name not in self.module.__dict__:
            return "missing", None
        value = self.module.__dict__[name]
        if type(value) is types.ModuleType:
            return "module", str(value.__name__)
        return "value", value

    def imports(self, text: str) -> None:
        """The data set's import lines, which in one interpreter the candidate's functions would see too."""
        exec(compile(text, "<imports>", "exec", dont_inherit=True), self.module.__dict__)

    def altered(self, arguments: list[Any], raw: bytes) -> Any:
        """The arguments after the call where the candidate altered one in place, so that the tests see it; else None.
        Found by writing them again: they stand at the end of the request."""
        if as_sent(*arguments) or raw.endswith(encode(arguments, self.channel.cap, self.number)[_HEAD:]):
            return None
        return arguments

    def call(self, function: Any, positional: list[Any], named: dict[str, Any]) -> Any:
        return function(*positional, **named)


class Callback:
    """A function that the tests passed as an argument; calling it asks them."""

    def __init__(self, home: Candidate, number: int) -> None:
        self.home, self.number = home, number

    def __call__(self, *positional: Any, **named: Any) -> Any:
        home = self.home
        home.channel.send(
            encode(["back", self.number, list(positional), named], home.channel.cap, home.number),
        )
        while True:
            message = decode(raw := home.channel.receive(), home.resolve)
            if message[0] == "value":
                return message[1]
            if message[0] == "error":
                kind = getattr(builtins, message[1], RuntimeError)
                raise kind(message[2])
            home.answer(raw)  # the tests' function calls the candidate in its turn


def _next(iterator: Any) -> tuple[Any, ...]:
    """The next item as a tuple of one; empty at the end, so that StopIteration never crosses."""
    try:
        return (next(iterator),)
    except StopIteration:
        return ()


# Made once in the fork-server: what a child makes or touches, it pays for.
_OWN = {"name": "name", "imports": "imports", "call": "call", "run": "call"}
_DOING: dict[str, Callable[..., Any]] = {
    "attr": getattr,
    "set": setattr,
    "delete": delattr,
    "item": lambda thing, key: thing[key],
    "setitem": lambda thing, key, value: thing.__setitem__(key, value),
    "delitem": lambda thing, key: thing.__delitem__(key),
    "len": len,
    "bool": bool,
    "str": str,
    "repr": repr,
    "iter": iter,
    "next": _next,
    "same": lambda one, other: bool(one == other),
    "isinstance": isinstance,
}


def described(error: BaseException) -> list[Any]:
    """An exception in the words of `verdict.Failure`."""
    failure = verdict.Failure.of(error)
    return [failure.builtin, failure.shown, failure.text, failure.module, failure.number]


def plain_arguments(error: BaseException) -> tuple[Any, ...]:
    """The exception's own arguments where they are short and plain, for tests that look at them."""
    arguments = error.args
    plain = all(type(one) in (int, str, float, bool, type(None)) for one in arguments)
    return arguments if plain and sum(len(one) for one in arguments if type(one) is str) < 1000 else ()


def as_sent(positional: list[Any], named: dict[str, Any]) -> bool:
    """Whether no argument is of a kind that could be altered in place."""
    return all(type(one) in _FIXED for one in (*positional, *named.values()))
