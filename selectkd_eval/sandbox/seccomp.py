"""Which system calls may a program in the sandbox make?

A list of allowed calls, compiled to a filter program of the kernel (classic BPF) without any library. Everything that
is not on the list is refused with EPERM, so that Python raises PermissionError and goes on; a call that the kernel
may learn one day is refused too, which a list of forbidden calls could not promise. Numbers beyond the table get
ENOSYS, so that a newer libc falls back to an older call. Another instruction set's calls (32-bit, x32) end the process.

Files are not decided here (a filter cannot see path names): that is `landlock`. What Landlock does not cover is
refused whole: chmod, chown, extended attributes, times of files, truncation by path.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from functools import cache
from typing import NamedTuple

from selectkd_eval.sandbox import syscalls

# What CPython, its standard library, threads and numpy use; nothing that names another process or makes a new one.
_USED = """
read write close lseek pread64 pwrite64 readv writev preadv pwritev preadv2 pwritev2 dup dup2 dup3 pipe pipe2
close_range fstat stat lstat newfstatat statx statfs fstatfs access faccessat faccessat2 readlink readlinkat
getdents getdents64 getcwd chdir fchdir rename renameat renameat2 mkdir mkdirat rmdir link linkat unlink unlinkat
symlink symlinkat creat ftruncate fallocate fadvise64 fsync fdatasync flock umask sendfile copy_file_range
poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2
recvfrom shutdown getsockname getpeername getsockopt
mmap munmap mprotect mremap msync madvise brk
rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack restart_syscall
pause alarm getitimer setitimer nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time times
futex set_robust_list rseq sched_yield sched_getaffinity sched_get_priority_max sched_get_priority_min getcpu
getpid gettid getppid getpgrp getpgid getsid getuid geteuid getgid getegid getresuid getresgid getgroups
getrlimit getrusage sysinfo uname getrandom wait4 waitid exit exit_group
"""
FREE = frozenset(_USED.split())
"""Calls that are allowed whatever their arguments."""

# libc tries these first and falls back when the kernel does not have them; EPERM would be taken for the answer.
ABSENT = frozenset(
    {"clone3", "openat2", "futex_waitv", "futex_wake", "futex_wait", "futex_requeue", "map_shadow_stack"}
)

_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_REFUSE, _NOT_THERE = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
_OWN_PID = -1  # stands for the process's own number, which is known only in the child

_CLONE_NEW = 0x7E020000 | 0x80  # every CLONE_NEW* flag
_CLONE_THREAD = 0x00010000
_WRITE_ONLY, _READ_WRITE, _TRUNCATE, _ACCESS_MODE = os.O_WRONLY, os.O_RDWR, os.O_TRUNC, os.O_ACCMODE


class Check(NamedTuple):
    """One argument, its low 32 bits masked, is one of `values`. `wide`: the upper 32 bits are zero as well."""

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF
    wide: bool = False


# A file opened for reading must not be emptied by the way: Landlock before its third version did not see that.
_OPEN_VALUES = (os.O_RDONLY, _WRITE_ONLY, _READ_WRITE, _TRUNCATE | _WRITE_ONLY, _TRUNCATE | _READ_WRITE)
_OPEN_MASK = _TRUNCATE | _ACCESS_MODE
CHECKED: dict[str, tuple[Check, ...]] = {
    "open": (Check(1, _OPEN_VALUES, _OPEN_MASK),),
    "openat": (Check(2, _OPEN_VALUES, _OPEN_MASK),),
    "clone": (Check(0, (_CLONE_THREAD,), _CLONE_THREAD | _CLONE_NEW),),
    "kill": (Check(0, (_OWN_PID,)),),
    "tkill": (Check(0, (_OWN_PID,)),),
    "tgkill": (Check(0, (_OWN_PID,)),),
    "prlimit64": (Check(0, (0, _OWN_PID)), Check(2, (0,), wide=True)),  # ask, never set
    # Duplicates, flags, locks of a file. Not F_SETOWN and F_SETSIG: they make the kernel send signals to others.
    "fcntl": (Check(1, (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032)),),
    # TCGETS, TCGETS2, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX: is it a terminal, how much is there to read.
    "ioctl": (Check(1, (0x5401, 0x802C542A, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),),
    # Get and set the thread's name, ask for dumpable, no_new_privs, seccomp, bounding set; names of memory areas.
    "prctl": (Check(0, (15, 16, 3, 39, 21, 23, 0x53564D41)),),
    # A nameless pair of stream sockets (asyncio wakes itself by one): connected, so that it can reach nobody else.
    "socketpair": (Check(0, (1,)), Check(1, (1,), 0xF)),
    "sendto": (Check(4, (0,), wide=True),),  # no address
}

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000
_LOAD, _RETURN, _AND, _IF_EQUAL, _IF_NOT_LESS = 0x20, 0x06, 0x54, 0x15, 0x35
_Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false (at most 255, forward), operand
_Fate = tuple[_Instruction, ...]
_Node = tuple[int, "int | _Fate", "int | _Fate"]  # a number; where to go for less, and for it or more


def _body(checks: tuple[Check, ...]) -> _Fate:
    """Instructions that allow the call if all checks hold and refuse it otherwise."""
    refuse: _Instruction = (_RETURN, 0, 0, _REFUSE)
    body: list[_Instruction] = [(_RETURN, 0, 0, _ALLOW)]
    for check in reversed(checks):
        at = 16 + 8 * check.argument  # little-endian: low word first
        test: list[_Instruction] = [(_LOAD, 0, 0, at)]
        if check.mask != 0xFFFFFFFF:
            test.append((_AND, 0, 0, check.mask))
        for place, value in enumerate(check.values):
            to_end = len(check.values) - place  # over the remaining comparisons and the refusal
            test.append((_IF_EQUAL, to_end, 0, value))
        test.append(refuse)
        if check.wide:
            test += [(_LOAD, 0, 0, at + 4), (_IF_EQUAL, 1, 0, 0), refuse]
        body = test + body
    return tuple(body)


def _fate(name: str | None) -> _Fate:
    if name in CHECKED:
        return _body(CHECKED[name])
    if name in FREE:
        return ((_RETURN, 0, 0, _ALLOW),)
    return ((_RETURN, 0, 0, _NOT_THERE if name is None or name in ABSENT else _REFUSE),)


def _grow(ranges: list[tuple[int, _Fate]], tree: list[_Node]) -> int | _Fate:
    """Add the nodes that search the ranges; returns where that search begins: a node's place, or a fate at once."""
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    place = len(tree)
    tree.append((0, 0, 0))
    tree[place] = (ranges[middle][0], _grow(ranges[:middle], tree), _grow(ranges[middle:], tree))
    return place


def _search(ranges: list[tuple[int, _Fate]]) -> list[_Instruction]:
    """A balanced tree over the first numbers of the ranges, then the fates; the accumulator holds the call's number.

    The kernel translates a filter anew in each child, and that takes as long as the filter: so a fate stands once.
    """
    tree: list[_Node] = []
    _grow(ranges, tree)
    fates = sorted(dict.fromkeys(fate for _, fate in ranges), key=len)
    begins: dict[int | _Fate, int] = {place: place for place in range(len(tree))}
    after = len(tree)
    for fate in fates:
        begins[fate] = after
        after += len(fate)
    steps: list[_Instruction] = []
    for at, (first, below, above) in enumerate(tree):
        steps.append((_IF_NOT_LESS, begins[above] - at - 1, begins[below] - at - 1, first))
    return steps + [step for fate in fates for step in fate]


@cache
def program(machine: str) -> list[_Instruction]:
    """The filter for one machine; `_OWN_PID` still stands where the process's number belongs."""
    names = {number: name for name, number in syscalls.table(machine).items()}
    ranges: list[tuple[int, _Fate]] = []
    for number in range(max(names) + 2):  # the last stands for all that are still unknown
        fate = _fate(names.get(number))
        if not ranges or ranges[-1][1] != fate:
            ranges.append((number, fate))
    if machine == "x86_64":
        ranges.append((_X32_BIT, ((_RETURN, 0, 0, _KILL),)))
    head: list[_Instruction] = [
        (_LOAD, 0, 0, 4),
        (_IF_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
    ]
    return head + _search(ranges)


class Filter:
    """A compiled filter, ready to be installed by any process that is forked after it was made.

    Raises:
        OSError: ENOSYS for a machine without a table.
    """

    def __init__(self) -> None:
        if syscalls.MACHINE not in _ARCHITECTURES:
            raise OSError(errno.ENOSYS, f"no system call table for {syscalls.MACHINE}")
        steps = program(syscalls.MACHINE)
        packed = b"".join(struct.pack("=HBBI", *step[:3], step[3] & 0xFFFFFFFF) for step in steps)
        code = ctypes.create_string_buffer(packed, len(packed))
        self._words = memoryview(code).cast("B").cast("I")
        self._own_pid = [2 * place + 1 for place, step in enumerate(steps) if step[3] == _OWN_PID]
        header = struct.pack("@HP", len(steps), ctypes.addressof(code))
        self._set_filter = syscalls.Prepared("seccomp", 1, 0, header)  # SECCOMP_SET_MODE_FILTER

    def install(self) -> None:
        """Lay the filter on this thread for good. Needs no_new_privs. Raises OSError when the kernel refuses."""
        pid = os.getpid()
        for place in self._own_pid:
            self._words[place] = pid
        self._set_filter.run()


def install() -> None:
    """Compile and lay the filter on this thread; for a process that installs it once."""
    Filter().install()


def supported() -> bool:
    """Whether this machine has a table and its kernel filters calls and can end a process for a call."""
    if syscalls.MACHINE not in _ARCHITECTURES or ctypes.sizeof(ctypes.c_void_p) != 8:
        return False
    try:
        syscalls.call("seccomp", 2, 0, struct.pack("=I", _KILL))  # SECCOMP_GET_ACTION_AVAIL
    except OSError:
        return False
    return True


def call_name(number: int) -> str:
    """The name of a call of this machine, for messages; `call 999` where the table has none."""
    return next((name for name, value in syscalls.NUMBERS.items() if value == number), f"call {number}")
