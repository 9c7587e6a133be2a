"""As whom does the sandboxed code run? Without capabilities always, and as a stranger when it was started by root.

Root without capabilities still owns root's files, and the kernel counts no processes of root; so the real user is
changed even where the interpreter lies in a directory that only root may enter.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence
from pathlib import Path

from selectkd_eval.sandbox import syscalls

NOBODY = 65534
STRANGERS = 1 << 30  # users from here on have no name on any system
CHOWN, DAC_OVERRIDE, KILL, SETGID, SETUID, SETPCAP, SYS_ADMIN = 0, 1, 5, 6, 7, 8, 21  # linux/capability.h
HEADER = struct.pack("=Ii", 0x20080522, 0)
NO_CAPABILITIES = bytes(24)
_PR_CAPBSET_DROP, _PR_SET_SECUREBITS, _PR_CAP_AMBIENT, _CLEAR_ALL = 24, 28, 47, 4
# No capability comes from being root, from a change of user, or from the ambient set; locked.
_SECUREBITS = 0xEF


def capable(*wanted: int) -> bool:
    """Whether this process has all of the capabilities in force."""
    held = ctypes.create_string_buffer(24)
    try:
        syscalls.call("capget", HEADER, held)
    except OSError:
        return False
    low, _, _, high, _, _ = struct.unpack("=6I", held.raw)
    return all((low | high << 32) >> capability & 1 for capability in wanted)


def close_the_way_back() -> None:
    """No process from here on can gain a capability that it does not hold; those held stay. A no-op without SETPCAP."""
    if not capable(SETPCAP):
        return
    for capability in range(64):
        try:
            syscalls.call("prctl", _PR_CAPBSET_DROP, capability, 0, 0, 0)
        except OSError:  # the first number that this kernel does not have
            break
    syscalls.call("prctl", _PR_CAP_AMBIENT, _CLEAR_ALL, 0, 0, 0)
    syscalls.call("prctl", _PR_SET_SECUREBITS, _SECUREBITS, 0, 0, 0)


def drop_capabilities() -> None:
    """Give up every capability held. Raises OSError when the kernel refuses."""
    syscalls.call("capset", HEADER, NO_CAPABILITIES)


def open_to_all(paths: Sequence[str], way: bool = True) -> bool:
    """Whether a user without any rights of his own can read the paths and, with `way`, get there; missing ones pass."""
    for path in map(Path, paths):
        if not path.exists():
            continue
        real = path.resolve()
        wanted = 0o5 if real.is_dir() else 0o4
        if real.stat().st_mode & wanted != wanted or (way and any(not up.stat().st_mode & 0o1 for up in real.parents)):
            return False
    return True


def stranger() -> int | None:
    """The number of a user and group whom nothing belongs to, for what runs below this process; None without one.

    A number of its own, so that threads are counted for this sandbox alone; nobody's where the user namespace is small.
    """
    for number in (STRANGERS + os.getpid(), NOBODY):
        if _mapped("uid_map", number) and _mapped("gid_map", number):
            return number
    return None


def _mapped(name: str, number: int) -> bool:
    try:
        rows = [line.split() for line in Path("/proc/self", name).read_bytes().decode().splitlines()]
    except OSError:
        return False
    return any(int(first) <= number < int(first) + int(count) for first, _, count in rows)


def become(number: int) -> None:
    """Give up root's user and groups for those of this number. Raises OSError without SETUID and SETGID."""
    os.setgroups([])
    os.setresgid(number, number, number)
    os.setresuid(number, number, number)
