"""What does the end of a process mean? Verdict line, exit status, signal and CPU time become one word.

Pure functions and a byte counter, for the supervisor. All text that leaves here is short and valid UTF-8, whatever a
candidate wrote.
"""

from __future__ import annotations

import json
import os
import signal
from typing import Any, get_args

from selectkd_eval.sandbox.program import Limits, Word

_WORDS = frozenset(get_args(Word))
_DETAIL_CHARACTERS = 500
_CHUNK = 1 << 16
_CLOCK_SLACK = 0.02  # s; the kernel's timer and its account of CPU time differ by a tick


class Capture:
    """What came through one pipe: the first and the last `keep` bytes, and how many there were."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.total = 0
        self._head = bytearray()
        self._tail = bytearray()

    def drain(self, descriptor: int) -> bool:
        """Read once from a non-blocking pipe; False when there is nothing now, or nothing more to come."""
        try:
            data = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            return False
        self.total += len(data)
        room = self.keep - len(self._head)
        self._head += data[:room]
        if data[room:]:
            self._tail = (self._tail + data[room:])[-self.keep :]
        return bool(data)

    def start(self) -> bytes:
        """The first bytes."""
        return bytes(self._head)

    def text(self) -> str:
        """All of it when it was short, else both ends and the count of what lay between."""
        left_out = self.total - len(self._head) - len(self._tail)
        middle = f"\n[... {left_out} bytes left out ...]\n".encode() if left_out else b""
        return (bytes(self._head) + middle + bytes(self._tail)).decode("utf-8", "backslashreplace")


def joined(out: str, err: str) -> str:
    """stdout, and stderr below it under a line of its own when there is any."""
    if not err:
        return out
    return f"{out}{'' if not out or out.endswith(chr(10)) else chr(10)}[stderr]\n{err}"


_FULL = ("memory", "more files than a program may keep")


def verdict(lines: bytes, nonce: str) -> tuple[str, dict[str, Any] | None]:
    """(note, verdict): the first complete line with the nonce and a known word, and a note that came before it."""
    note = ""
    for line in lines.split(b"\n")[:-1]:
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(said, dict) or said.get("nonce") != nonce:
            continue
        if said.get("word") in _WORDS:
            return note, said
        note = str(said.get("note", note))
    return note, None


def judge(
    lines: bytes, nonce: str, ends: dict[str, dict[str, Any]], limits: Limits, full: bool = False
) -> tuple[str, str]:
    """(word, detail) of a program, from its verdict pipe and from how its processes ended.

    `full` says that it left more files than it may keep, which counts even when it was quicker than the guard.

    The candidate's CPU time is judged even when a verdict slipped in between two looks at its clock. A candidate
    that is gone counts by its own end, whatever the tests' process made of it.
    """
    note, said = verdict(lines, nonce)
    word, detail = _FULL if full else _judge(said, ends, limits)
    if note and word != "pass" and not detail.startswith(note):
        detail = f"{note}; {detail}" if detail else note
    return word, _clean(detail)


def _judge(said: dict[str, Any] | None, ends: dict[str, dict[str, Any]], limits: Limits) -> tuple[str, str]:
    candidate, tester = ends["candidate"], ends.get("tester")
    if candidate["killed"] == "cpu" or candidate["cpu"] > candidate["cpu_limit"]:
        return "timeout", _over(candidate)
    if said is not None and not (said["word"] == "crash" and tester and candidate["killed"] != "end"):
        return said["word"], str(said.get("detail", ""))
    by_guard = {
        "wall": ("timeout", f"more than {limits.cpu_seconds * limits.wall_factor:g} s of waiting"),
        "files": _FULL,
    }
    for end in (candidate, tester):
        if end and end["killed"] in by_guard:
            return by_guard[end["killed"]]
    # Whoever leaves in order does so because the other has gone. So the tests' process with status 0 says that a
    # candidate killed later was on its way out, and a candidate with status 0 that the tests' own end is the cause.
    gone = candidate["killed"] != "end" or (tester and tester["status"] == 0)
    if not tester or (gone and not (tester["status"] and candidate["status"] == 0)):
        return _ended(candidate, limits, "ended before its tests did")
    word, detail = _ended(tester, limits, "the tests' process ended without a verdict")
    return word, f"the tests took {detail}" if word == "timeout" else detail


def _over(end: dict[str, Any]) -> str:
    return f"more than {end['cpu_limit']:g} s of CPU time"


def _ended(end: dict[str, Any], limits: Limits, by_itself: str) -> tuple[str, str]:
    """The word for a process that ended by a signal, or by itself without a verdict."""
    status = end["status"]
    if not os.WIFSIGNALED(status):
        return "crash", f"{by_itself} (exit status {os.WEXITSTATUS(status)})"
    number = os.WTERMSIG(status)
    if number in (signal.SIGKILL, signal.SIGXCPU) and end["cpu"] >= end["cpu_limit"] - _CLOCK_SLACK:
        return "timeout", _over(end)
    if number == signal.SIGSYS:
        return "forbidden", "a system call of another architecture"
    if number == signal.SIGKILL and end["peak_bytes"] > limits.memory_bytes // 2:
        return "memory", "killed by the kernel for want of memory"
    try:
        return "crash", signal.Signals(number).name
    except ValueError:
        return "crash", f"signal {number}"


def _clean(detail: str) -> str:
    """Valid UTF-8 on one line, and not long."""
    return " ".join(detail.encode("utf-8", "backslashreplace").decode().split())[:_DETAIL_CHARACTERS]
