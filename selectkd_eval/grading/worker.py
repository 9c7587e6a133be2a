"""What does a grading process do? It reads pairs, compares them by one rule under limits, and writes verdicts.

Runs as a process of its own (`pool` starts it); a line of JSON per message. The rule's libraries may print: the
channel is therefore moved away from stdout before they are imported.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
from pathlib import Path

from selectkd_eval.grading.compare import RULES

_RECURSION = 3000  # deep enough for any answer; deeper nesting is refused by Python before the C stack ends


class _Memory(logging.Handler):
    """math-verify swallows a MemoryError and logs it; this keeps that it did."""

    seen = False

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and isinstance(record.exc_info[1], MemoryError):
            self.seen = True


def serve() -> None:
    """Answer pairs on stdin until it is closed. The first line names the rule and the limits."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    first = json.loads(sys.stdin.readline())
    compare = RULES[first["rule"]]()
    memory = _Memory()
    for name in ("math_verify.parser", "math_verify.grader"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [memory], False
        logger.setLevel(logging.DEBUG)
    sys.setrecursionlimit(_RECURSION)
    limit = first["memory_bytes"]
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    channel.write('["ready", null]\n')
    for line in sys.stdin:
        answer, gold = json.loads(line)
        memory.seen = False
        signal.setitimer(signal.ITIMER_PROF, first["cpu_seconds"])
        try:
            word, extracted = compare(answer, gold)
        except MemoryError:
            word, extracted = "memory", None
        signal.setitimer(signal.ITIMER_PROF, 0)
        if word != "right" and (memory.seen or _peak() > 0.9 * limit):
            word = "memory"
        channel.write(json.dumps([word, extracted]) + "\n")


def _peak() -> int:
    """The largest address space so far in bytes, or 0 where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0
    line = next((line for line in status.read_text().splitlines() if line.startswith("VmPeak:")), "")
    return int(line.split()[1]) * 1024 if line else 0
