"""How does the client hold a worker? Started by exec, fed without blocking, gone when it should be.

A worker is `supervisor.main` in a bare interpreter of its own. Its two pipes are all that joins it to this process:
when this process dies in whatever way, the pipe ends and the worker ends itself and what it runs.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

from selectkd_eval.sandbox import wire

# Handlers that `random` and `threading` register run in every child and cost more than the fork itself. The fork-server
# has one thread and a fixed random stream, so there is nothing for them to repair.
_BOOT = (
    "import os, sys; os.register_at_fork = lambda **handlers: None; "
    "root, requests, replies = sys.argv[1:]; sys.path.append(root); "
    "from selectkd_eval.sandbox.supervisor import main; sys.path.remove(root); sys.argv[:] = ['']; "
    "main(int(requests), int(replies))"
)
_CHUNK = 1 << 16
_PROMPT = 0.5  # s in which a worker ends that has seen its pipe close
_PATIENCE = 5.0  # s for a worker to end by itself once its pipe is closed
ROOT = Path(__file__).resolve().parents[2]
"""The directory that holds the package: the worker looks there while it starts, and not afterwards."""


def interpreter() -> str:
    """The real path of this interpreter's binary: no version manager's shim, no virtual environment's link."""
    return os.path.realpath(sys.executable)


class Worker:
    """One worker process; `outstanding` are the places of the programs it has been sent, the running one first."""

    def __init__(self, prefix: list[str], config: dict[str, Any], environment: dict[str, str]) -> None:
        self.outstanding: deque[int] = deque()
        self.since = time.monotonic()  # of the last sign of life, or of the start of what it is working on
        self.frames = wire.Frames()
        self._unsent = bytearray()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed by stop)
        theirs, self.requests = os.pipe2(os.O_CLOEXEC)
        self.replies, answers = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.requests, False)
        command = [*prefix, interpreter(), "-s", "-S", "-P", "-c", _BOOT, str(ROOT), str(theirs), str(answers)]
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                env=environment,
                cwd="/",
                pass_fds=(theirs, answers),
                start_new_session=True,
            )
        except OSError:
            self._close_pipes()
            self._errors.close()
            raise
        finally:
            os.close(theirs)
            os.close(answers)
        self.send(config)

    def send(self, message: dict[str, Any]) -> None:
        """Queue a message; whatever the pipe takes goes out at once, the rest by `flush`."""
        self._unsent += wire.pack(message)
        self.flush()

    def submit(self, place: int, message: dict[str, Any]) -> None:
        """Queue a program whose outcome will come back under `place`."""
        if not self.outstanding:
            self.since = time.monotonic()
        self.outstanding.append(place)
        self.send(message)

    def flush(self) -> bool:
        """Write what the pipe takes; True when nothing is left to write (a dead worker takes nothing more)."""
        try:
            while self._unsent:
                del self._unsent[: os.write(self.requests, self._unsent[:_CHUNK])]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._unsent.clear()
        return not self._unsent

    def receive(self) -> list[dict[str, Any]] | None:
        """Read once (blocking unless the pipe is readable): the messages that arrived, or None when it has died."""
        data = os.read(self.replies, _CHUNK)
        self.since = time.monotonic()
        return self.frames.feed(data) if data else None

    def greeting(self, deadline: float) -> dict[str, Any] | None:
        """Its first message (`facts` or `refused`), or None when it died or said nothing by `deadline`."""
        poll = select.poll()
        poll.register(self.replies, select.POLLIN)
        poll.register(self.requests, 0 if self.flush() else select.POLLOUT)
        while (left := deadline - time.monotonic()) > 0:
            ready = dict(poll.poll(left * 1000))
            if not self.flush() or self.requests in ready:
                poll.modify(self.requests, 0)
            if self.replies in ready:
                messages = self.receive()
                if messages is None:
                    return None
                if messages:
                    return messages[0]
            elif self.requests in ready:
                return None
        return None

    def last_words(self) -> str:
        """What it wrote to stderr last: the ends of its tracebacks, if there were any."""
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").splitlines()
        return "; ".join(line for line in lines if line and not line.startswith((" ", "Traceback")))[-500:]

    def stop(self) -> None:
        """End the worker and everything in it; returns when it is gone. Right to call twice."""
        if self._errors.closed:
            return
        self._close_pipes()
        # A process forked off this one may hold the pipes open still; then the worker has to be told otherwise.
        for seconds, more in ((_PROMPT, self.process.terminate), (_PATIENCE, self.process.kill)):
            try:
                self.process.wait(seconds)
                break
            except subprocess.TimeoutExpired:
                more()
        self.process.wait()
        self._errors.close()

    def _close_pipes(self) -> None:
        os.close(self.requests)
        os.close(self.replies)
