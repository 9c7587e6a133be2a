"""How does a forked process become one that can do nothing but compute?

`prepare` lays everything out in the fork-server, once; `Jail.lock` runs in each child and costs some thirty system
calls. The order matters: limits and the change of user while the process still may, the files' wall next, and last
the filter that refuses the calls used here. Does not fork, close descriptors, start a session or watch the clock.

CPU time: a kernel timer on the process's own CPU clock sends SIGKILL at the limit, exact to a clock tick also below
a second; the filter refuses the calls that could disarm it. RLIMIT_CPU, whole seconds, stands behind it. The judge
tells a limit from another SIGKILL by the CPU time that the reaped process has used.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import math
import os
import resource
import signal
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selectkd_eval.sandbox import identity, landlock, seccomp, syscalls
from selectkd_eval.sandbox.program import Limits

DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
_STACK_BYTES = 64 << 20
_DESCRIPTORS = 64
_THREADS = 512  # of all sandboxed programs together: a thread bomb stops here, an honest pool does not
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_PROCESS_CPU_CLOCK = 2
_LOADER_FILES = ("/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo", "/usr/lib/locale")


def exists(path: str | Path) -> bool:
    """Whether there is something that this user can get at; a directory that may not be entered holds nothing."""
    try:
        Path(path).stat()
    except OSError:
        return False
    return True


def python_paths() -> tuple[str, ...]:
    """What this interpreter reads while it runs: standard library, shared libraries, time zones. Only what exists."""
    base = Path(sys.base_prefix)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    wanted = [base / "lib" / version, base / "lib64" / version, base / "lib" / f"{version.replace('.', '')}.zip"]
    wanted += [base / "lib", *map(Path, ("/lib", "/lib64", "/usr/lib", "/usr/lib64", *_LOADER_FILES))]
    return tuple(dict.fromkeys(str(path) for path in wanted if exists(path)))


def _threads_of_user() -> int:
    """How many threads this user has now, as the kernel counts them for RLIMIT_NPROC; 0 where /proc does not tell."""
    total = 0
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile
            if entry.stat().st_uid == os.getuid():
                total += sum(1 for _ in (entry / "task").iterdir())
    return total


def _limit_values(limits: Limits, threads: int) -> dict[str, int]:
    cpu = math.ceil(limits.cpu_seconds) + 1
    return {
        "CPU": cpu,
        "AS": limits.memory_bytes,
        "FSIZE": limits.file_bytes,
        "NOFILE": _DESCRIPTORS,
        "CORE": 0,
        "STACK": _STACK_BYTES,
        "MSGQUEUE": 0,
        "MEMLOCK": 0,
        "NPROC": threads,
        "NICE": 0,
        "RTPRIO": 0,
    }


def _limit_calls(values: dict[str, int]) -> list[syscalls.Prepared]:
    calls = []
    for name, value in values.items():
        number = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(number)[1]
        least = value if hard == resource.RLIM_INFINITY else min(value, hard)  # a lower one from outside holds
        calls.append(syscalls.Prepared("prlimit64", 0, number, struct.pack("=QQ", least, least), None))
    return calls


def _timer_calls(seconds: float) -> list[syscalls.Prepared]:
    """SIGKILL after so much CPU time. A new process has no timers, so its first one has the number 0."""
    event = struct.pack("=Qii48x", 0, signal.SIGKILL, 0)  # SIGEV_SIGNAL
    whole = int(seconds)
    value = struct.pack("=4q", 0, 0, whole, max(1, int((seconds - whole) * 1e9)))
    number = ctypes.create_string_buffer(4)
    return [
        syscalls.Prepared("timer_create", _PROCESS_CPU_CLOCK, event, number),
        syscalls.Prepared("timer_settime", 0, 0, value, None),
    ]


class Jail:
    """What a child needs to lock itself up. Made by `prepare` in the fork-server; `lock` in each child."""

    def __init__(self, steps: list[syscalls.Prepared], rules: int | None, filter_: seccomp.Filter | None) -> None:
        self._steps = steps
        self._rules = rules
        self._filter = filter_
        self.fds: tuple[int, ...] = () if rules is None else (rules,)
        self.facts: dict[str, Any] = {}

    def lock(self) -> None:
        """Lock this process up for good. The caller has started a session and closed what the program must not have.

        Raises:
            OSError: what the kernel refused. The process must end then: it is half confined.
        """
        for step in self._steps:
            step.run()
        if self._rules is not None:
            os.close(self._rules)
        if self._filter is not None:
            self._filter.install()

    def close(self) -> None:
        """Close the descriptors, in the fork-server, when no further child is to be locked up by this jail."""
        if self._rules is not None:
            os.close(self._rules)
        self._rules, self.fds = None, ()


def _high(descriptor: int) -> int:
    """The same file under a number that no child's own descriptors need."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return moved


def _user_steps(directory: str, read: Sequence[str]) -> tuple[list[syscalls.Prepared], str]:
    """The calls that give up user and capabilities, and who the child is then."""
    no_capabilities = syscalls.Prepared("capset", identity.HEADER, identity.NO_CAPABILITIES)
    stranger = identity.stranger() if identity.capable(identity.SETUID, identity.SETGID) else None
    if stranger is None:
        return [no_capabilities], f"uid {os.geteuid()}, no capabilities"
    effective = 0
    # The fork-server must still be able to end the child and to empty its directory.
    if identity.capable(identity.CHOWN, identity.DAC_OVERRIDE, identity.KILL) and identity.open_to_all(
        [*read, str(Path(directory).parent)]
    ):
        with contextlib.suppress(OSError):  # a file system that knows no such user
            os.chown(directory, stranger, -1)
            effective = stranger
    steps = [
        syscalls.Prepared("setgroups", 0, None),
        syscalls.Prepared("setresgid", stranger, stranger, stranger),
        syscalls.Prepared("setresuid", stranger, effective, effective),
        no_capabilities,
    ]
    return steps, f"uid {stranger}" if effective else f"real uid {stranger}, effective 0, no capabilities"


def prepare(
    limits: Limits,
    directory: str,
    read: Sequence[str],
    strict: bool = True,
    list_only: Sequence[str] = (),
    abi: int = 0,
) -> Jail:
    """Lay out, before any fork, how children are locked up; call once per pair of limits and directory.

    As root this also closes every way by which this process's descendants could regain a capability, and gives
    `directory` to the children's user.

    Args:
        limits: memory, CPU and file limits; the wall clock and the output are the supervisor's.
        directory: the only place where a child may write, and where it starts; it exists already.
        read: files and directories (with all below) that a child may read; missing ones are skipped.
        strict: refuse unless Landlock and seccomp both work; otherwise take what works.
        list_only: directories that may be listed but not read.
        abi: use no newer Landlock than this; 0 for the kernel's.

    Raises:
        OSError: with `strict`, a wall that this kernel does not offer.
    """
    identity.close_the_way_back()
    user, who = _user_steps(directory, read)
    threads = _THREADS if os.geteuid() == 0 or os.getuid() >= identity.STRANGERS else _threads_of_user() + _THREADS
    values = _limit_values(limits, threads)
    rules, filter_ = None, None
    if landlock.abi() or strict:
        rules = _high(landlock.ruleset(read, [directory], list_only, DEVICES, abi))
    if seccomp.supported() or strict:
        filter_ = seccomp.Filter()
    steps = [
        syscalls.Prepared("chdir", os.fsencode(directory)),
        *_limit_calls(values),
        *_timer_calls(limits.cpu_seconds),
        *user,  # after this the parent-death signal and dumpability would be forgotten again
        syscalls.Prepared("prctl", _PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0),
        syscalls.Prepared("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0),
        syscalls.Prepared("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
    ]
    if rules is not None:
        steps.append(landlock.enforcement(rules))
    jail = Jail(steps, rules, filter_)
    jail.facts = {
        "landlock": min(landlock.abi(), abi or landlock.NEWEST, landlock.NEWEST) if rules is not None else 0,
        "seccomp": filter_ is not None,
        "user": who,
        "rlimits": values,
    }
    return jail
