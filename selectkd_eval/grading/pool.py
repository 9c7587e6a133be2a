"""How does text that can hang or burst a computer algebra system get graded? In processes that may be killed.

Each worker is a fresh interpreter (never a fork of a process that holds torch) that has imported what one rule needs,
with a limit on its memory. It is given one pair at a time. The CPU time of a pair is judged by the worker's own
profiling timer, whose default action ends the process whatever Python is doing; the wall clock here is the guard. A
worker that ended is replaced, and only the pair that it held is called `timeout` or `memory`.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple

_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])
_START = "import sys; sys.path.append({root!r}); from selectkd_eval.grading.worker import serve; serve()"
_READY_SECONDS = 240.0  # a cold disk and a loaded machine: importing sympy takes 2 s on a warm one


class Allowance(NamedTuple):
    """What one pair may use. The CPU time is judged; the wall time only guards against a worker that stands still."""

    cpu_seconds: float = 5.0
    wall_seconds: float = 60.0
    memory_bytes: int = 2 << 30


class Reply(NamedTuple):
    """What became of one pair: right, wrong, no-answer, timeout or memory, and what the rule read as the answer."""

    word: str
    extracted: str | None


class _Worker:
    """One child process and the pair that it holds."""

    def __init__(self, rule: str, allowance: Allowance) -> None:
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `end`
        self.process = subprocess.Popen(
            # -P: a sympy.py in the current directory is nobody's sympy.
            [sys.executable, "-P", "-c", _START.format(root=_PACKAGE_ROOT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            bufsize=0,
            start_new_session=True,  # an interrupt at the terminal is the parent's to handle
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.to, self.out = self.process.stdin, self.process.stdout
        self.buffer = b""
        self.ready = False
        self.place: int | None = None
        self.served = 0
        self.deadline = time.monotonic() + _READY_SECONDS
        self._send({"rule": rule, "cpu_seconds": allowance.cpu_seconds, "memory_bytes": allowance.memory_bytes})

    def give(self, place: int, pair: tuple[str, str], seconds: float) -> None:
        self.place, self.deadline = place, time.monotonic() + seconds
        self._send(pair)

    def _send(self, value: object) -> None:
        data = memoryview(json.dumps(value).encode() + b"\n")
        try:
            while data:
                data = data[os.write(self.to.fileno(), data) :]
        except BrokenPipeError:
            pass  # it has ended: reading from it says so

    def receive(self) -> list[str] | None:
        """One answer, an empty list while it is incomplete, None at the worker's end."""
        data = os.read(self.out.fileno(), 1 << 16)
        if not data:
            return None
        self.buffer += data
        if not self.buffer.endswith(b"\n"):
            return []
        answer, self.buffer = json.loads(self.buffer), b""
        return answer

    def end(self) -> int:
        """Kill it if it lives; its return code (negative: a signal)."""
        self.to.close()
        self.out.close()
        if self.process.poll() is None:
            self.process.kill()
        code = self.process.wait()
        self.log.close()
        return code

    def complaint(self) -> str:
        self.log.seek(0)
        return self.log.read().decode(errors="replace")[-2000:]


class Pool:
    """Warm workers for one rule; they start with the first pair that needs one. Use from one thread at a time."""

    def __init__(self, rule: str, workers: int = 0, allowance: Allowance | None = None) -> None:
        self.rule = rule
        self.allowance = allowance or Allowance()
        self.size = workers or len(os.sched_getaffinity(0))
        self.workers: list[_Worker] = []
        self.restarts = 0

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every worker. The pool can be used again and starts new ones then."""
        while self.workers:
            self.workers.pop().end()

    def run(self, pairs: Sequence[tuple[str, str]]) -> list[Reply]:
        """The fate of every (answer, gold) pair, in order."""
        replies: list[Reply | None] = [None] * len(pairs)
        waiting = deque(range(len(pairs)))
        retried: set[int] = set()
        try:
            while waiting or any(worker.place is not None for worker in self.workers):
                while len(self.workers) < min(self.size, len(pairs)) and len(waiting) > self._idle():
                    self.workers.append(_Worker(self.rule, self.allowance))
                for worker in self.workers:
                    if worker.ready and worker.place is None and waiting:
                        place = waiting.popleft()
                        worker.give(place, pairs[place], self.allowance.wall_seconds)
                for worker in self._heard():
                    self._take(worker, replies, waiting, retried)
        except BaseException:
            self.close()  # a worker that still computes an answer nobody waits for must not be given the next pair
            raise
        return [reply for reply in replies if reply is not None]

    def _idle(self) -> int:
        return sum(worker.place is None for worker in self.workers)

    def _heard(self) -> list[_Worker]:
        """The workers that said something, ended, or are past their deadline; waits until there is one."""
        busy = [worker for worker in self.workers if worker.place is not None or not worker.ready]
        with selectors.DefaultSelector() as selector:
            for worker in busy:
                selector.register(worker.out, selectors.EVENT_READ, worker)
            rest = min(worker.deadline for worker in busy) - time.monotonic()
            heard = [key.data for key, _ in selector.select(max(0.0, rest))]
        now = time.monotonic()
        return heard or [worker for worker in busy if worker.deadline <= now]

    def _take(self, worker: _Worker, replies: list[Reply | None], waiting: deque[int], retried: set[int]) -> None:
        late = time.monotonic() >= worker.deadline
        answer = worker.receive() if not late else None
        if answer == []:
            return
        if not worker.ready:
            if answer is None:
                complaint = worker.complaint()
                self.workers.remove(worker)
                code = worker.end()
                raise RuntimeError(f"a worker of the grader {self.rule} did not start (exit {code}): {complaint}")
            worker.ready = True
            return
        place, worker.place = worker.place, None
        assert place is not None
        served, worker.served = worker.served, worker.served + 1
        if answer is not None and answer[0] != "memory":
            replies[place] = Reply(answer[0], answer[1])
            return
        self.workers.remove(worker)
        code = worker.end()
        self.restarts += 1
        word = "timeout" if late or code == -signal.SIGPROF else "memory"
        if word == "memory" and served and place not in retried:
            retried.add(place)  # what earlier pairs left in the caches may have filled it: once more, in a fresh one
            waiting.appendleft(place)
            return
        replies[place] = Reply(word, None)
