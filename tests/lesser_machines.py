"""Machines that offer less, imitated by filters on system calls for this process and all it starts.

Docker's default, as far as a sandbox inside feels it: no namespaces (unshare, setns and clone with a new one are
refused, clone3 does not exist), no mounts, no bpf, keys or rings, and as root only the capabilities that a container
keeps. And a kernel that was built without Landlock. Standard library only; x86-64 and aarch64.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable

X86, ARM = 0xC000003E, 0xC00000B7  # AUDIT_ARCH_*
NEW_NAMESPACES = 0x7E020000
_ERRNO, _ALLOW = 0x00050000, 0x7FFF0000
_LOAD, _EQUAL, _ANY_OF, _ANSWER = 0x20, 0x15, 0x45, 0x06
EPERM, ENOSYS = 1, 38
DENIED = (  # numbers on x86-64 and aarch64; 0 where there is none
    *((272, 97), (308, 268), (165, 40), (166, 39), (155, 41), (428, 428), (429, 429), (430, 430), (431, 431)),
    *((432, 432), (433, 433), (442, 442), (321, 280), (298, 241), (323, 282), (250, 219), (248, 217), (249, 218)),
    *((425, 425), (426, 426), (427, 427), (304, 265), (246, 104), (175, 105), (313, 273), (176, 106), (169, 142)),
    *((167, 224), (168, 225), (163, 89), (103, 116), (170, 161), (171, 162), (312, 272), (164, 170), (227, 112)),
)
CLONE, CLONE3 = (56, 220), 435
KEPT = (0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31)  # capabilities of a default container


def _step(code: int, k: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, k)


LANDLOCK = (444, 445, 446)


def _around(steps: list[bytes], column: int) -> bytes:
    """With the check of the architecture before the steps, and leave after them. The number is loaded."""
    first = [_step(_LOAD, 4), _step(_EQUAL, (X86, ARM)[column], 1, 0), _step(_ANSWER, _ERRNO | ENOSYS), _step(_LOAD, 0)]
    return b"".join([*first, *steps, _step(_ANSWER, _ALLOW)])


def _container(column: int) -> bytes:
    """Number by number, an equality and a refusal each; then clone by its flags."""
    steps = []
    for pair in DENIED:
        if pair[column]:
            steps += [_step(_EQUAL, pair[column], 0, 1), _step(_ANSWER, _ERRNO | EPERM)]
    steps += [_step(_EQUAL, CLONE3, 0, 1), _step(_ANSWER, _ERRNO | ENOSYS)]
    steps += [_step(_EQUAL, CLONE[column], 0, 3), _step(_LOAD, 16), _step(_ANY_OF, NEW_NAMESPACES, 0, 1)]
    return _around([*steps, _step(_ANSWER, _ERRNO | EPERM)], column)


def _no_landlock(column: int) -> bytes:
    steps = [part for number in LANDLOCK for part in (_step(_EQUAL, number, 0, 1), _step(_ANSWER, _ERRNO | ENOSYS))]
    return _around(steps, column)


def lay(program: Callable[[int], bytes]) -> ctypes.CDLL:
    """Install a filter; OSError where the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() and libc.prctl(38, 1, 0, 0, 0):  # PR_SET_NO_NEW_PRIVS, which a user needs for a filter
        raise OSError(ctypes.get_errno(), "no_new_privs")
    code = program(0 if os.uname().machine == "x86_64" else 1)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer)))
    if libc.prctl(22, 2, header, 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise OSError(ctypes.get_errno(), "seccomp")
    return libc


def without_landlock() -> None:
    """As on a kernel that does not have it."""
    lay(_no_landlock)


def enter_container() -> None:
    """As in a container of Docker's default profile; OSError where the kernel refuses."""
    libc = lay(_container)
    if os.geteuid() == 0:
        for capability in set(range(64)) - set(KEPT):
            libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; beyond the last one it fails, and that is all right
        kept = sum(1 << capability for capability in KEPT)
        sets = struct.pack("=6I", kept, kept, 0, 0, 0, 0)
        if libc.capset(struct.pack("=Ii", 0x20080522, 0), sets):
            raise OSError(ctypes.get_errno(), "capset")
