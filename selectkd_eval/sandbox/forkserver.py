"""Who makes a process for a program, holds it to its limits and takes it away again?

The fork-server is forked from the supervisor before any program has arrived and never reads one: a child gets its
program from a memory file after the fork. So whatever a candidate digs out of the memory it inherited, there is no
test, no expected value and no earlier program in it. What a program's end means is not decided here (supervisor).
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.machinery
import io
import json
import marshal
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from selectkd_eval.sandbox import confine, official, remote, tester, warm
from selectkd_eval.sandbox.program import PLUS_SECONDS, TESTS_SECONDS, Limits
from selectkd_eval.sandbox.slot import Slot

_PRELOADED = """
abc ast bisect calendar cmath collections collections.abc contextlib copy dataclasses datetime decimal enum fractions
functools hashlib heapq inspect io itertools json keyword math numbers operator os random re statistics string struct
sys textwrap threading time traceback types typing
"""
"""Modules that a program finds already loaded; the rest of the standard library it imports itself, at its own cost."""

END = b"end"  # the supervisor's word that it has seen enough of the running program
FIRST_PLACE = 3  # the first descriptor after stdin, stdout, stderr: a channel or a verdict pipe
FIRST_FREE = 10  # descriptors below this are placed by hand in every child; the fork-server's own stay above
_TICK = 0.25  # s between looks at a running program's CPU clock
_BLIND_TICK = 0.002  # s between looks where the kernel has no pidfd


class OfferedPackages:
    """A finder for the packages a program may import beside the standard library, and for nothing else.

    They are looked up now: later nobody may list the directory they lie in.
    """

    def __init__(self, places: Mapping[str, str]) -> None:
        find = importlib.machinery.PathFinder.find_spec
        self.specs = {name: find(name, [place]) for name, place in places.items()}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        return self.specs.get(name) if path is None else None


def preload(packages: Mapping[str, str]) -> None:
    """Load what most programs import, and let the offered packages be found."""
    for name in _PRELOADED.split():
        importlib.import_module(name)
    import random

    warm.up()
    random.seed(0)  # every program starts from the same stream, so that the same program has the same fate
    sys.meta_path.append(OfferedPackages(packages))


@dataclass
class _Child:
    name: str  # candidate or tester
    pid: int
    pidfd: int
    cpu_limit: float
    killed: str = ""  # why it was killed by this process: cpu, wall, files, end
    status: int | None = None
    cpu: float = 0.0
    peak_bytes: int = 0

    def clock(self) -> float:
        """CPU seconds of the whole process so far, all threads; by the kernel's clock, which needs no /proc."""
        try:
            return time.clock_gettime((~self.pid << 3) | 2)
        except OSError:
            return 0.0

    def kill(self, reason: str) -> None:
        # By number and without a race: the process is our child and stays unreaped until `reap`.
        if self.status is None:
            self.killed = self.killed or reason
            for send in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    send(self.pid, signal.SIGKILL)

    def reap(self) -> bool:
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        if pid == 0:
            return False
        self.status = status
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            self.killed = ""  # it had ended, or was about to, when it was killed
        self.cpu = usage.ru_utime + usage.ru_stime
        self.peak_bytes = usage.ru_maxrss * 1024
        return True

    def as_dict(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "cpu": self.cpu,
            "cpu_limit": self.cpu_limit,
            "peak_bytes": self.peak_bytes,
            "killed": self.killed,
        }


class _Job(NamedTuple):
    """A process to be: its name in the report, whose limits it has, what it does, with which descriptors from 0 on."""

    name: str
    role: str
    work: Callable[[dict[str, Any]], Any]
    payload: int
    places: tuple[int, ...]


class ForkServer:
    """Serves one supervisor over a socket: an order with descriptors in, a report on how each process ended out.

    Must be made in the process that will serve. With `strict`, OSError when Landlock or seccomp is not there.
    """

    def __init__(self, control: socket.socket, limits: Limits, slot: Slot, read: Sequence[str], strict: bool) -> None:
        self.limits = limits
        self.role_limits = {
            "candidate": limits,
            "tests": replace(limits, cpu_seconds=max(TESTS_SECONDS, limits.cpu_seconds)),
            "many": replace(limits, cpu_seconds=max(PLUS_SECONDS, limits.cpu_seconds)),
        }
        self.jails: dict[str, confine.Jail] = {}
        self.slot = slot
        self.read = tuple(read)
        self.strict = strict
        _reserve_low()
        self.control = socket.socket(fileno=_high(control.detach()))
        self.null = _high(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
        self.pid = os.getpid()
        self._prepare()

    def _prepare(self) -> None:
        os.chdir(self.slot.path)
        for role, limits in self.role_limits.items():
            if role in self.jails:
                self.jails[role].close()
            self.jails[role] = confine.prepare(limits, self.slot.path, self.read, strict=self.strict)

    def serve(self) -> None:
        """Carry out orders until the supervisor is gone."""
        sys.stdin, sys.stdout, sys.stderr = io.TextIOWrapper(io.BytesIO()), _text(1), _text(2)
        gc.collect()
        gc.freeze()
        self.filling = warm.fill_holes()
        while True:
            data, descriptors, _, _ = socket.recv_fds(self.control, 4096, 8)
            if not data:
                return
            if data == END:  # of a program that had ended by itself in the meantime
                continue
            report = self._run(data.decode(), descriptors)
            report["full"] = self.slot.overfull()
            try:
                self.slot.empty()
            except OSError:
                self.slot.renew()
                self._prepare()
            self.control.send(json.dumps(report).encode())

    def _run(self, order: str, descriptors: list[int]) -> dict[str, Any]:
        started = time.monotonic()
        candidate, tests = ("many", "many") if order == "plus" else ("candidate", "tests")
        if order == "official":
            program, out, err, verdict = descriptors
            jobs = [_Job("candidate", candidate, _run_official, program, (self.null, out, err, verdict))]
        else:
            code, program, out, err, verdict = descriptors
            ends = [_high(end.detach()) for end in socket.socketpair()]
            descriptors += ends
            jobs = [
                _Job("candidate", candidate, _serve_candidate, code, (self.null, out, err, ends[0])),
                _Job("tester", tests, _run_tester, program, (self.null, out, err, ends[1], verdict)),
            ]
        # One fork right after the other: whatever this process touches between them, it has to copy twice.
        pids = [self._fork(job) for job in jobs]
        children = [
            _Child(job.name, pid, _pidfd(pid), self.role_limits[job.role].cpu_seconds)
            for job, pid in zip(jobs, pids, strict=True)
        ]
        for descriptor in descriptors:
            os.close(descriptor)
        self._watch(children, started)
        self._sweep()
        return {"ends": {child.name: child.as_dict() for child in children}, "wall": time.monotonic() - started}

    def _fork(self, job: _Job) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                self._become(job)
            except BaseException:  # nothing of a child may ever run on into the fork-server's loop
                os._exit(71)
            finally:
                os._exit(70)
        return pid

    def _become(self, job: _Job) -> None:
        """In the child: own session, the program read, own descriptors, the door locked; then the work."""
        os.setsid()
        # Written by the supervisor, so marshal, which touches less than any other reader.
        frame = marshal.loads(os.pread(job.payload, os.lseek(job.payload, 0, os.SEEK_END), 0))
        for place, descriptor in enumerate(job.places):
            os.dup2(descriptor, place)
        jail = self.jails[job.role]
        _close_but(len(job.places), jail.fds)
        jail.lock()
        if os.getppid() != self.pid:  # the fork-server died before its death could be a signal to us
            os._exit(72)
        job.work(frame)

    def _watch(self, children: list[_Child], started: float) -> None:
        """Until every child is reaped: kill what is over a limit, or everything once the supervisor says so."""
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        for child in children:
            if child.pidfd >= 0:
                poll.register(child.pidfd, select.POLLIN)
        living = list(children)
        looked = started
        while living:
            for descriptor, _ in poll.poll(self._patience(living) * 1000):
                if descriptor == self.control.fileno():
                    if not self.control.recv(64):
                        os._exit(0)  # the supervisor is gone; children die with this process
                    _kill(living, "end")
            for child in list(living):
                if child.reap():
                    living.remove(child)
                    if child.pidfd >= 0:
                        poll.unregister(child.pidfd)
                        os.close(child.pidfd)
                    if child.name == "tester":
                        _kill(living, "end")
            if living and time.monotonic() - looked > _TICK / 2:
                looked = time.monotonic()
                self._look(living, looked - started)

    def _look(self, living: list[_Child], elapsed: float) -> None:
        """Kill what is over a limit that the kernel does not hold, or holds less exactly."""
        for child in living:
            if child.clock() > child.cpu_limit:
                child.kill("cpu")
        # Time on the clock counts less while there is work done: a machine with too much to do is slow too.
        busy = sum(child.clock() for child in living)
        if elapsed > self.limits.wall_seconds(busy):
            _kill(living, "wall")
        if self.slot.overfull():
            _kill(living, "files")

    @staticmethod
    def _patience(living: list[_Child]) -> float:
        """Seconds until the next look; an end shows itself at once where there are pidfds."""
        return _BLIND_TICK if any(child.pidfd < 0 for child in living) else _TICK

    def _sweep(self) -> None:
        """Nothing of the program outlives it, not even where no filter kept it from forking (tier external)."""
        if self.pid == 1:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
        while True:
            try:
                if os.waitpid(-1, os.WNOHANG)[0]:
                    continue
            except ChildProcessError:
                return
            # Orphans are handed to this process (it is a subreaper); they are found where there is a /proc.
            try:
                with open(f"/proc/self/task/{self.pid}/children") as file:
                    orphans = [int(pid) for pid in file.read().split()]
            except OSError:
                return
            for pid in orphans:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.001)


def _serve_candidate(frame: dict[str, Any]) -> None:
    remote.serve(frame, FIRST_PLACE)


def _run_tester(frame: dict[str, Any]) -> None:
    tester.run(frame["program"], FIRST_PLACE, FIRST_PLACE + 1, frame["nonce"])


def _run_official(frame: dict[str, Any]) -> None:
    official.run(frame["program"], FIRST_PLACE, frame["nonce"])


def _reserve_low() -> None:
    """Fill the low descriptors, so that none received later has a number that a child places by hand."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    while null < FIRST_FREE - 1:
        null = os.dup(null)


def _text(descriptor: int) -> Any:
    """A text stream that takes any string: a candidate's print must not fail where a terminal's would not."""
    raw = io.FileIO(descriptor, "wb", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace")


def _kill(children: list[_Child], reason: str) -> None:
    for child in children:
        child.kill(reason)


def _high(descriptor: int) -> int:
    """The same open file under a number that children do not place by hand; the old number is closed."""
    if descriptor >= FIRST_FREE:
        return descriptor
    import fcntl

    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE)
    os.close(descriptor)
    return moved


def _pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # an old kernel, or a Python built with old headers
        return -1


def _close_but(first: int, kept: Iterable[int]) -> None:
    """Close every descriptor from `first` on, except those the lock still needs."""
    for descriptor in sorted(kept):
        os.closerange(first, descriptor)
        first = descriptor + 1
    os.closerange(first, 1 << 20)
