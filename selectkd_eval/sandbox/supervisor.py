"""What became of this program? The worker's trusted process: it knows the programs and judges how they ended.

Started by exec with a bare interpreter (`main`), it makes the jail, forks the fork-server and then takes one program
after the other from the client's pipe: it hands code and tests to the children in memory files, drains their output,
reads the verdict from a pipe that no candidate holds, and otherwise decides by signals, exit status and CPU time.
Standard library only. It runs no code of a program, and compiles the data set's texts but never a candidate's.
"""

from __future__ import annotations

import contextlib
import json
import marshal
import os
import select
import signal
import socket
from typing import Any

from selectkd_eval.sandbox import probes, tester, wire
from selectkd_eval.sandbox.ends import Capture, joined, judge, verdict
from selectkd_eval.sandbox.forkserver import END
from selectkd_eval.sandbox.jail import Jail, RefusedError
from selectkd_eval.sandbox.program import Limits

_VERDICT_BYTES = 1 << 16
_CHUNK = 1 << 16


class Supervisor:
    """One worker: the client's two pipes on one side, the fork-server's socket on the other."""

    control: socket.socket  # to the fork-server
    client = -1  # pidfd, readable once the client is dead, where there is one

    def __init__(self, requests: int, replies: int, limits: Limits) -> None:
        self.requests = requests
        self.replies = replies
        self.limits = limits
        self.frames = wire.Frames()
        self.waiting: list[dict[str, Any]] = []

    def next_request(self) -> dict[str, Any] | None:
        """The client's next message; None when the client has closed its pipe or is dead."""
        poll = select.poll()
        poll.register(self.requests, select.POLLIN)
        if self.client >= 0:
            poll.register(self.client, select.POLLIN)
        while not self.waiting:
            ready = [descriptor for descriptor, _ in poll.poll()]
            if self.client in ready:
                return None
            data = os.read(self.requests, _CHUNK)
            if not data:
                return None
            self.waiting = self.frames.feed(data)
        return self.waiting.pop(0)

    def reply(self, message: dict[str, Any]) -> None:
        """Send one message; the client always reads, so this may block."""
        data = memoryview(wire.pack(message))
        while data:
            data = data[os.write(self.replies, data) :]

    def serve(self) -> None:
        """Run what the client sends until it closes its pipe."""
        while (request := self.next_request()) is not None:
            outcome = self.run(request["program"], request["mode"])
            self.reply({"place": request["place"], "outcome": outcome})

    def run(self, program: dict[str, Any], mode: str) -> dict[str, Any]:
        """One program from fork to outcome (a dict of `Outcome`'s fields)."""
        nonce = os.urandom(16).hex()
        size = {"message_bytes": self.limits.message_bytes}
        judged = {**program, **size, "codes": tester.compiled(program)}
        frames: list[dict[str, Any]] = [{"program": judged, "nonce": nonce}]
        if mode == "isolated":
            frames.insert(0, {"id": program["id"], "code": program["code"], **size})
        payloads = [_memory_file(frame) for frame in frames]
        order = "official" if mode == "official" else "plus" if program["plus"] else "tests"
        pipes = [os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) for _ in range(3)]
        for _, writing in pipes:
            os.set_blocking(writing, True)
        reading = [pipe[0] for pipe in pipes]
        try:
            socket.send_fds(self.control, [order.encode()], [*payloads, *(writing for _, writing in pipes)])
            for descriptor in (*payloads, *(writing for _, writing in pipes)):
                os.close(descriptor)
            out, err, said = self._follow(reading, nonce)
            report = self._report(reading, out, err, said)
        finally:
            for descriptor in reading:
                os.close(descriptor)
        word, detail = judge(said.start(), nonce, report["ends"], self.limits, report["full"])
        return {
            "word": word,
            "detail": detail,
            "mode": mode,
            "cpu_seconds": round(report["ends"]["candidate"]["cpu"], 6),
            "wall_seconds": round(report["wall"], 6),
            "output": joined(out.text(), err.text()),
        }

    def _follow(self, reading: list[int], nonce: str) -> tuple[Capture, Capture, Capture]:
        """Drain the three pipes until the fork-server's report is there to be read."""
        captures = (
            Capture(self.limits.output_bytes),
            Capture(self.limits.output_bytes),
            Capture(_VERDICT_BYTES),
        )
        by_descriptor = dict(zip(reading, captures, strict=True))
        poll = self._poll(reading)
        ended = False
        while True:
            for descriptor, event in poll.poll():
                if descriptor == self.control.fileno():
                    return captures
                if descriptor in (self.requests, self.client):
                    raise SystemExit(0)  # the client is gone; what runs dies with this process
                if event & select.POLLIN and by_descriptor[descriptor].drain(descriptor):
                    continue
                poll.unregister(descriptor)
            if not ended and verdict(captures[2].start(), nonce)[1] is not None:
                ended = True
                self.control.send(END)

    def _poll(self, reading: list[int]) -> select.poll:
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        poll.register(self.requests, 0)  # only its hanging up
        if self.client >= 0:
            poll.register(self.client, select.POLLIN)
        for descriptor in reading:
            poll.register(descriptor, select.POLLIN)
        return poll

    def _report(self, reading: list[int], *captures: Capture) -> dict[str, Any]:
        """The fork-server's report; then what the dead have left in their pipes."""
        data = self.control.recv(_CHUNK)
        if not data:
            raise RuntimeError("the fork-server ended")
        for descriptor, capture in zip(reading, captures, strict=False):
            while capture.drain(descriptor):
                pass
        return json.loads(data)


def _memory_file(content: dict[str, Any]) -> int:
    """A file in memory that a child reads after its fork: the fork-server passes it on unread."""
    descriptor = os.memfd_create("program")
    data = memoryview(marshal.dumps(content))
    while data:
        data = data[os.write(descriptor, data) :]
    return descriptor


def _leave(number: int, frame: object) -> None:
    """The client's wish where its pipe does not show it: some other process still holds the pipe open."""
    raise SystemExit(0)


def main(requests: int, replies: int) -> None:
    """Make the worker that the client's first message describes, test its walls, then serve until the client goes."""
    supervisor = Supervisor(requests, replies, Limits())
    config = supervisor.next_request()
    if config is None:
        return
    supervisor.limits = Limits(**config["limits"])
    if config["client"]:
        with contextlib.suppress(OSError, AttributeError):
            supervisor.client = os.pidfd_open(config["client"])
    jail = Jail(config)
    try:
        jail.open(closing=[requests, replies, supervisor.client])
        supervisor.control = jail.control
        signal.signal(signal.SIGTERM, _leave)
        found = probes.run(supervisor.run, config["canaries"])
        supervisor.reply({"facts": {**jail.facts, "probes": found}})
        supervisor.serve()
    except RefusedError as error:
        supervisor.reply({"refused": str(error)})
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        jail.close()
