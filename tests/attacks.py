"""All attacks on the sandbox, as data: programs in attack_programs/*.txt, and here those that are odd as text.

A containment attack defines `attempt()`, which answers "escaped" if what it tried worked; its test asserts just that,
so the outcome `pass` is an escape. A forging attack computes wrongly and tries to be told `pass`. Should the wall fail,
every attack is bounded and touches only what `attack_run.py` laid out for it: none harms the machine.

The format: `=== name`, lines of `key: value`, then `---` and the program; `--- test`, `--- setup` and so on begin the
data set's own parts, `--- attempt` the body of `attempt()`. The lines before a file's first `===` hold for all of it.
"""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass
from pathlib import Path

from selectkd_eval.sandbox.program import Program

FAILS = frozenset(["wrong", "error", "timeout", "memory", "crash", "forbidden", "import-missing"])
WORDS = {
    "denied": frozenset({"wrong", "error", "forbidden"}),  # `attempt` said so, or its exception went through
    "fails": FAILS,  # where only counts that the harness stands and is not fooled
    "any": FAILS | {"pass"},  # in one interpreter a determined program can forge, by design
    "not run": frozenset(),  # for time's sake
}
PROGRAMS = Path(__file__).with_name("attack_programs")
FILES = "files directory processes network kernel limits output early verdicts plus pipe values".split()  # noqa: SIM905
FIVE = "assert add(2, 3) == 5"
MINUS = "def add(a, b):\n    return a - b\n"
PLUS = "def add(a, b):\n    return a + b\n"
ATTEMPT = """import os
{before}
def attempt():
    try:
{body}
    except OSError as error:
        return f"denied: {{error}}"
    return "escaped" if globals().get("reached") else "denied"
"""


@dataclass(frozen=True)
class Attack:
    """`code` and `test` name the places of `attack_run.Bait.places` as @HOME@ and so on."""

    name: str
    code: str
    isolated: frozenset[str]
    official: frozenset[str]
    test: str = FIVE
    imports: str = ""
    setup: str = ""
    given: str = ""
    entry_point: str = ""
    plus: str = ""  # JSON

    def expected(self, mode: str) -> frozenset[str]:
        """The words that may stand for its end in this mode; none where it is not run."""
        return self.isolated if mode == "isolated" else self.official

    def program(self, places: dict[str, str]) -> Program:
        """With the places of this run filled in."""
        code, test = self.code, self.test
        for name, value in places.items():
            code, test = code.replace(f"@{name}@", value), test.replace(f"@{name}@", value)
        return Program(
            self.name,
            code,
            test=test,
            setup=self.setup,
            imports=self.imports,
            given=self.given,
            entry_point=self.entry_point,
            plus=json.loads(self.plus) if self.plus else None,
        )


def words(text: str) -> frozenset[str]:
    """A set's name, or the words themselves."""
    return WORDS[text] if text in WORDS else frozenset(text.split())


def keys(lines: list[str]) -> dict[str, str]:
    """The `key: value` lines among these."""
    pairs = (line.partition(": ") for line in lines if line.startswith(("ends:", "official:", "has:", "calls:")))
    return {key: value for key, _, value in pairs}


def read(path: Path) -> list[Attack]:
    """The attacks of one file."""
    head, *blocks = ("\n" + path.read_text()).split("\n=== ")
    return [one(block, keys(head.splitlines())) for block in blocks]


def one(block: str, common: dict[str, str]) -> Attack:
    """One attack from its block of text."""
    top, *sections = ("=== " + block).split("\n---")
    parts = {kind.strip() or "program": body + "\n" for kind, _, body in (part.partition("\n") for part in sections)}
    facts = common | keys(top.splitlines())
    code, test = parts.pop("program", ""), "" if "plus" in parts else FIVE
    if "attempt" in parts:
        code = ATTEMPT.format(before=code, body=textwrap.indent(parts.pop("attempt"), " " * 8))
        test = "assert attempt() == 'escaped'"
    if "has" in facts:
        code = (PROGRAMS / f"{facts['has']}.py").read_text() + code
    ends, official = facts["ends"], facts["official"]
    return Attack(
        top.splitlines()[0].removeprefix("=== "),
        code,
        words(ends),
        words(ends if official == "same" else official),
        parts.pop("test", test),
        entry_point=facts.get("calls", ""),
        **parts,
    )


# name: (code, ends)
ODD_TEXTS = {
    "NUL byte in the code": (PLUS + "\0", "error"),
    "NUL byte in a string of the code": ("x = 'a\0b'\n" + PLUS, "error"),
    "a byte order mark": ("\ufeff" + PLUS, "error"),
    "a byte order mark within": (PLUS + "\ufeffx = 1\n", "error"),
    "lines that end in CRLF": (PLUS.replace("\n", "\r\n"), "pass"),
    "lines that end in CR": (PLUS.replace("\n", "\r"), "pass"),
    "tabs": (PLUS.replace("    ", "\t"), "pass"),
    "tabs and spaces": ("def add(a, b):\n\tc = a + b\n        return c\n", "error"),
    "no newline at the end": (PLUS.rstrip("\n"), "pass"),
    "a comment at the end": (PLUS + "# and so on", "pass"),
    "a form feed": ("\f" + PLUS, "pass"),
    "a backslash at the end": ("def add(a, b):\n    return a - b \\", "fails"),
    "an open string": (PLUS + 'x = """', "error"),
    "an open bracket": (PLUS + "x = (", "error"),
    "a lone surrogate": (PLUS + "x = '\ud800'\n", "error"),
    "an odd encoding declared": ("# -*- coding: utf-7 -*-\n" + PLUS, "pass"),
    "letters beyond ASCII": ("def add(ａ, b):\n    é = '√ 😀'\n    return ａ + b\n", "pass"),
    "a future statement": ("from __future__ import annotations\n" + PLUS, "pass"),
    "five megabytes of comment": ("#" + "x" * 5_000_000 + "\n" + PLUS, "pass"),
    "five megabytes of string": ("x = '" + "x" * 5_000_000 + "'\n" + PLUS, "pass"),
    "five megabytes of brackets": ("x = " + "(" * 2_500_000 + ")" * 2_500_000 + "\n" + PLUS, "error memory crash"),
    "an expression a hundred thousand deep": ("x = " + "-" * 100_000 + "1\n" + PLUS, "fails"),
    "nothing at all": ("", "error"),
    "no function of that name": ("def sub(a, b):\n    return a - b\n", "error"),
    "a syntax error": ("def add(a, b)\n    return a + b\n", "error"),
}


def _all() -> dict[str, Attack]:
    found = [attack for name in FILES for attack in read(PROGRAMS / f"{name}.txt")]
    found += [Attack(name, code, words(ends), words(ends)) for name, (code, ends) in ODD_TEXTS.items()]
    table = {attack.name: attack for attack in found}
    assert len(table) == len(found), "two attacks of one name"
    return table


def names_in(*files: str) -> list[str]:
    """The names of the attacks in these files."""
    return [attack.name for file in files for attack in read(PROGRAMS / f"{file}.txt")]


ATTACKS = _all()
