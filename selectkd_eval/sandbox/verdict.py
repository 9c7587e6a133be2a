"""Which word does an ending deserve, and how does it leave the process? Exceptions to words; one JSON line per verdict.

Endings without a line (signals, limits, a process that left by itself) are judged by whoever watches the process.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn

TEXT = 200
"""Characters kept of a message or of a test's line."""

_FORBIDDEN = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EROFS}


@dataclass(frozen=True)
class Failure:
    """An exception as plain data: the nearest builtin type's name, its own type's name, the first line of its text, the
    missing module's name (ModuleNotFoundError) and the error number (OSError)."""

    builtin: str
    shown: str
    text: str = ""
    module: str = ""
    number: int = 0

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Describes any exception, also one whose own methods lie or raise."""
        bases = type.__dict__["__mro__"].__get__(type(error))
        builtin = next(base.__name__ for base in bases if base.__module__ == "builtins")
        return cls(
            builtin,
            clean(type.__dict__["__name__"].__get__(type(error))),
            clean(_quietly(lambda: str(error), str)),
            clean(_quietly(lambda: error.name, str)) if isinstance(error, ModuleNotFoundError) else "",
            _quietly(lambda: error.errno, int) if isinstance(error, OSError) else 0,
        )

    def __str__(self) -> str:
        return f"{self.shown}: {self.text}" if self.text else self.shown


def _quietly(ask: Callable[[], Any], kind: Callable[[], Any]) -> Any:
    """What `ask` gives if it is exactly of that kind; a candidate's class may answer or raise anything."""
    try:
        value = ask()
    except BaseException:  # SystemExit out of __str__ included
        return kind()
    return value if type(value) is kind else kind()


def clean(text: str) -> str:
    """The first line of a text, printable, valid UTF-8 and at most `TEXT` characters long."""
    line = text[: 4 * TEXT].strip().partition("\n")[0][: TEXT + 1]
    line = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in line)
    return line if len(line) <= TEXT else line[: TEXT - 1] + "…"


def word_of(failure: Failure) -> tuple[str, str]:
    """(word, detail) for an exception out of the candidate. Its own failed assertion is an error like any other: only
    an assertion of the tests is `wrong`."""
    if failure.builtin == "ModuleNotFoundError":
        return "import-missing", clean(failure.module.partition(".")[0] or failure.text)
    if failure.builtin == "MemoryError":
        return "memory", ""
    if failure.builtin == "PermissionError" or failure.number in _FORBIDDEN:
        return "forbidden", clean(str(failure))
    return "error", clean(str(failure))


def failed_line(trace: TracebackType | None, sources: dict[str, str]) -> str:
    """The line of the tests at which an exception arose; empty when its innermost frame is not theirs."""
    name, number = "", 0
    while trace is not None:
        name, number = trace.tb_frame.f_code.co_filename, trace.tb_lineno
        trace = trace.tb_next
    lines = sources.get(name, "").split("\n")
    return clean(lines[number - 1]) if 0 < number <= len(lines) else ""


def write(fd: int, nonce: str, values: dict[str, str], put: Callable[[int, bytes], int] = os.write) -> None:
    """Puts one line on the private pipe; only a line with the nonce counts."""
    rest = json.dumps({"nonce": nonce, **values}).encode() + b"\n"
    while rest:
        rest = rest[put(fd, rest) :]


def leave(status: int = 0, end: Callable[[int], NoReturn] = os._exit) -> NoReturn:
    """Ends the process at once, with what was printed: no atexit, no waiting for threads, no destructor."""
    flush()
    end(status)


def flush() -> None:
    """Sends on what was printed."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:  # the candidate's own stream object, or a closed one
            continue
