"""The filter, run by hand for both machines: who is allowed what, and the tables against the kernel's own headers."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selectkd_eval.sandbox import seccomp, syscalls

ALLOW, KILL, REFUSE, ABSENT = 0x7FFF0000, 0x80000000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
MACHINES = list(ARCHITECTURE)
PROGRAMS = {machine: seccomp.program(machine) for machine in MACHINES}
PID = 4711


def verdict(machine: str, number: int, *arguments: int, architecture: int | None = None) -> int:
    """What the filter answers: the kernel's machine for classic filters, for the instructions used here."""
    words = [number, ARCHITECTURE[machine] if architecture is None else architecture, 0, 0]
    for argument in (*arguments, *[0] * (6 - len(arguments))):
        words += [argument & 0xFFFFFFFF, argument >> 32 & 0xFFFFFFFF]
    at, held = 0, 0
    while True:
        code, if_true, if_false, operand = PROGRAMS[machine][at]
        operand = PID if operand == -1 else operand
        at += 1
        if code == 0x06:
            return operand
        if code == 0x20:
            held = words[operand // 4]
        elif code == 0x54:
            held &= operand
        else:
            at += if_true if (held == operand if code == 0x15 else held >= operand) else if_false


@pytest.mark.parametrize("machine", MACHINES)
def test_every_number_has_the_fate_of_its_name(machine: str) -> None:
    numbers = syscalls.table(machine)
    names = {number: name for name, number in numbers.items()}
    for number in range(600):
        name = names.get(number)
        if name in seccomp.CHECKED:
            continue  # below
        allowed = name is not None and name in seccomp.FREE
        expected = ALLOW if allowed else REFUSE if name and name not in seccomp.ABSENT else ABSENT
        assert verdict(machine, number) == expected, name


@pytest.mark.parametrize("machine", MACHINES)
@given(number=st.integers(0, 2**32 - 1), architecture=st.integers(0, 2**32 - 1))
def test_a_foreign_instruction_set_always_ends_the_process(machine: str, number: int, architecture: int) -> None:
    if architecture != ARCHITECTURE[machine]:
        assert verdict(machine, number, architecture=architecture) == KILL
    other = KILL if machine == "x86_64" else ABSENT
    assert verdict(machine, number | 0x40000000) == other


CLONE_OF_A_THREAD, CLONE_NEW = 0x3D0F00, 0x7E020080
CASES = [
    ("clone", (CLONE_OF_A_THREAD,), ALLOW),
    ("clone", (17,), REFUSE),  # fork
    ("clone", (0x4111,), REFUSE),  # vfork
    ("kill", (PID, 9), ALLOW),
    ("kill", (0, 9), REFUSE),
    ("kill", (2**32 - 1, 9), REFUSE),
    ("kill", (1, 9), REFUSE),
    ("tgkill", (PID, PID + 1, 6), ALLOW),
    ("tgkill", (PID + 1, PID, 6), REFUSE),
    ("tkill", (PID + 1, 9), REFUSE),
    ("prlimit64", (0, 7, 0, 4096), ALLOW),
    ("prlimit64", (PID, 7, 0, 4096), ALLOW),
    ("prlimit64", (PID + 1, 7, 0, 4096), REFUSE),
    ("prlimit64", (0, 7, 4096, 0), REFUSE),
    ("prlimit64", (0, 7, 1 << 32, 0), REFUSE),  # a pointer whose low half is zero
    ("sendto", (3, 0, 1, 0, 0, 0), ALLOW),
    ("sendto", (3, 0, 1, 0, 1 << 32, 16), REFUSE),
    ("socketpair", (1, 1 | os.O_CLOEXEC, 0, 0), ALLOW),
    ("socketpair", (1, 2, 0, 0), REFUSE),
    ("socketpair", (2, 1, 0, 0), REFUSE),
    ("openat", (0, 0, os.O_RDONLY | os.O_CLOEXEC), ALLOW),
    ("openat", (0, 0, os.O_WRONLY | os.O_TRUNC | os.O_CREAT), ALLOW),
    ("openat", (0, 0, os.O_RDONLY | os.O_TRUNC), REFUSE),
    ("openat", (0, 0, 3), REFUSE),
    ("fcntl", (3, 2, 1), ALLOW),
    ("fcntl", (3, 8, PID), REFUSE),  # F_SETOWN
    ("fcntl", (3, 15, PID), REFUSE),  # F_SETOWN_EX
    ("ioctl", (0, 0x5401), ALLOW),
    ("ioctl", (0, 0x5412), REFUSE),  # TIOCSTI
    ("prctl", (15, 4096), ALLOW),
    ("prctl", (1, 0), REFUSE),  # PR_SET_PDEATHSIG
    ("prctl", (22, 2), REFUSE),  # PR_SET_SECCOMP
]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("name", "arguments", "expected"), CASES)
def test_arguments_decide(machine: str, name: str, arguments: tuple[int, ...], expected: int) -> None:
    assert verdict(machine, syscalls.table(machine)[name], *arguments) == expected


@pytest.mark.parametrize("machine", MACHINES)
@given(flags=st.integers(0, 2**64 - 1))
def test_no_flags_make_a_process_or_a_namespace(machine: str, flags: int) -> None:
    allowed = verdict(machine, syscalls.table(machine)["clone"], flags) == ALLOW
    assert allowed == bool(flags & 0x10000 and not flags & CLONE_NEW)


@pytest.mark.parametrize("machine", MACHINES)
def test_jumps_stay_inside(machine: str) -> None:
    steps = PROGRAMS[machine]
    assert len(steps) <= 300
    for at, (code, if_true, if_false, _) in enumerate(steps):
        assert 0 <= if_true <= 255 and 0 <= if_false <= 255
        assert code in (0x06, 0x15, 0x20, 0x35, 0x54)
        assert code == 0x06 or at + 1 + max(if_true, if_false) < len(steps)
    assert steps[-1][0] == 0x06


def numbers_of(header: Path) -> dict[str, int]:
    if not header.exists():
        pytest.skip(f"no kernel headers here ({header})")
    found = re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)$", header.read_text(), re.MULTILINE)
    return {name: int(number) for name, number in found}


def test_the_table_of_x86_64_is_the_kernel_s() -> None:
    ours = syscalls.table("x86_64")
    header = numbers_of(Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"))
    assert {name: number for name, number in header.items() if number <= 469} == {
        name: ours[name] for name in ours if name in header
    }


def test_the_table_of_aarch64_is_the_generic_one() -> None:
    ours = syscalls.table("aarch64")
    header = numbers_of(Path("/usr/include/asm-generic/unistd.h"))
    header["newfstatat"] = header.pop("fstatat")
    for name in ("arch_specific_syscall", "syscalls", "sync_file_range2"):
        header.pop(name, None)
    generic = {name: number for name, number in header.items() if not 403 <= number < 424 and number <= 469}
    assert generic == {name: ours[name] for name in ours if name in generic}


def test_names_of_calls() -> None:
    if not syscalls.NUMBERS:
        pytest.skip(f"no table for {syscalls.MACHINE}")
    assert seccomp.call_name(syscalls.NUMBERS["openat"]) == "openat"
    assert seccomp.call_name(9999) == "call 9999"
    assert syscalls.table("sparc") == {}
    assert syscalls.call("getpid") == os.getpid()
    with pytest.raises(OSError, match="close"):
        syscalls.call("close", -1)
