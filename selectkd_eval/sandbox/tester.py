"""Does the candidate do what the tests say? The tests run here, the candidate in another process.

`isolated` mode: names that the tests do not define themselves stand for objects of the candidate, every value that
comes back is plain data, and the verdict leaves on a pipe that only this process has. What this process runs is
trusted: the data set's imports, setup and tests, and Python's own names. How a process that ends without a verdict is
judged is not decided here.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import re
import warnings
from types import CodeType
from typing import Any, NoReturn

from selectkd_eval.sandbox import plus, verdict
from selectkd_eval.sandbox.channel import Channel, Closed, Malformed
from selectkd_eval.sandbox.proxies import Far, FromCandidate, Unjudgeable

FALLBACK: dict[str, str] = {}
"""Gold solutions that `isolated` cannot judge: task id -> reason. Run those in `official` and say so."""

PARTS = ("imports", "setup", "test")
"""The data set's own texts, in the order in which they run."""

_IMPORT_LINE = re.compile(r"^(?:import|from)[ \t].*$", re.MULTILINE)


def run(program: dict[str, Any], channel_fd: int, verdict_fd: int, nonce: str) -> NoReturn:
    """Judges the candidate behind the channel, writes the verdict and ends the process. Without a candidate any more
    there is no verdict line."""
    far = Far(Channel(channel_fd, int(program.get("message_bytes", 16 << 20))))
    try:
        word, detail = judge(program, far, lambda note: verdict.write(verdict_fd, nonce, {"note": note}))
        verdict.write(verdict_fd, nonce, {"word": word, "detail": detail})
    except Closed:
        verdict.leave()
    except MemoryError:
        verdict.write(verdict_fd, nonce, {"word": "memory", "detail": "the tests, on what the candidate returned"})
    verdict.leave()


def judge(program: dict[str, Any], far: Far, note: Any) -> tuple[str, str]:
    """(word, detail) of one program. Raises Closed when the candidate ends before its tests do."""
    sources = {f"<{part}>": program.get(part) or "" for part in PARTS}
    try:
        announced = far.greet()
        if program.get("plus"):
            return plus.judge(program["plus"], far, note)
        check(program, sources, far, announced)
    except Closed:
        raise
    except Malformed as error:
        return "error", f"the candidate's process answered with {error}"
    except Unjudgeable as error:
        return "error", f"not to be judged in isolated mode: {error}"
    except BaseException as error:  # SystemExit of a test, CandidateStop, and whatever a test's line raised
        return ended(error, sources)
    return "pass", ""


def ended(error: BaseException, sources: dict[str, str]) -> tuple[str, str]:
    """(word, detail) for an exception that came out of the tests."""
    if isinstance(error, FromCandidate):
        failure = getattr(error, "failure", None)
        return verdict.word_of(failure) if failure else ("error", verdict.clean(str(error)))
    line = verdict.failed_line(error.__traceback__, sources)
    if isinstance(error, AssertionError):
        return "wrong", line
    word, detail = verdict.word_of(verdict.Failure.of(error))
    return word, f"{detail} in {line}" if line and word == "error" else detail


def compiled(program: dict[str, Any]) -> dict[str, CodeType]:
    """The data set's texts of a program as code, by part. One that does not compile is left out: its own judge says so.

    For whoever hands programs out: the same tests come with every sample of a problem.
    """
    parts = {part: _compiled(program.get(part) or "", f"<{part}>") for part in (*PARTS, "given")}
    return {part: code for part, code in parts.items() if code}


@functools.lru_cache(maxsize=1024)
def _compiled(text: str, name: str) -> CodeType | None:
    try:
        with warnings.catch_warnings():  # the data set's style is nobody's output
            warnings.simplefilter("ignore")
            return compile(text, name, "exec", dont_inherit=True) if text else None
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return None


def code_of(program: dict[str, Any], part: str) -> CodeType:
    """The code of one part, which may have come with the program (`compiled`) under "codes"."""
    return program.get("codes", {}).get(part) or compile(program[part], f"<{part}>", "exec", dont_inherit=True)


def check(program: dict[str, Any], sources: dict[str, str], far: Far, announced: set[str]) -> None:
    """Runs imports, setup and tests in this order, then check(candidate) where there is an entry point. Returns when
    everything held; raises otherwise."""
    names = Names(program, far, announced)
    lines = import_lines("\n".join(sources.values()))
    if lines:
        far.ask("imports", lines)
    for part in PARTS:
        if program.get(part):
            exec(code_of(program, part), names)
    if program.get("entry_point"):
        exec(f"check({program['entry_point']})", names)


def import_lines(text: str) -> str:
    """The imports at the tests' top level: the only part of them that the candidate's process gets."""
    if not _IMPORT_LINE.search(text):
        return ""
    found = [node for node in ast.parse(text).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    return "\n".join(map(ast.unparse, found))


class Names(dict[str, Any]):
    """The tests' global names. One that they do not define is, in this order: a helper of the data set's own prompt
    (`given`); a builtin; the tests' own import of a module that the candidate imported under that name; an object of
    the candidate.

    In one interpreter a candidate's `def set(...)` would replace the builtin that the tests count on. Here it does only
    where it must be what is tested: it is the entry point, or the tests call nothing but builtins (Mbpp/126 asks for
    a function `sum`).
    """

    def __init__(self, program: dict[str, Any], far: Far, announced: set[str]) -> None:
        super().__init__(__name__="tests", __builtins__=builtins)
        self._program, self._far = program, far
        self._announced = announced
        self._helpers: dict[str, Any] | None = None

    def __missing__(self, name: str) -> Any:
        program = self._program
        if program.get("given") and name != program.get("entry_point") and name in self._given():
            return self._given()[name]
        if name in builtins.__dict__ and not (name in self._announced and self._tested(name)):
            raise KeyError(name)
        kind, value = self._far.ask("name", name)
        if kind == "missing":
            raise KeyError(name)
        return _own_module(value) if kind == "module" else value

    def _given(self) -> dict[str, Any]:
        if self._helpers is None:
            self._helpers = {"__name__": "given"}
            exec(code_of(self._program, "given"), self._helpers)
        return self._helpers

    def _tested(self, name: str) -> bool:
        program = self._program
        if name == program.get("entry_point"):
            return True
        tree = ast.parse("\n".join(program.get(part) or "" for part in ("imports", "setup", "test")))
        asked = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        return all(one in builtins.__dict__ or one in self for one in asked)


def _own_module(name: Any) -> Any:
    """This process's own module of that name: a candidate must not lend the tests its `math`."""
    if type(name) is not str or not all(part.isidentifier() for part in name.split(".")):
        raise Malformed("a module that is none")
    return importlib.import_module(name)
