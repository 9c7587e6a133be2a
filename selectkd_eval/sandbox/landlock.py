"""Which files may a process touch from now on? None but those named, on any kernel since 5.13, without privileges.

Landlock also refuses TCP (ABI 4), devices' ioctl (5), and signals and abstract unix sockets that leave the sandbox (6).
It does not cover changing into a directory, asking for a file's size or dates, or changing modes, owners, attributes
and times: the latter are `seccomp`'s.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Sequence

from selectkd_eval.sandbox import syscalls

NEWEST = 7
"""The newest ABI known here; a kernel that offers more is used as this one."""

_WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE = 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5
_MAKE_DIR, _MAKE_REG, _MAKE_SYM, _REFER, _TRUNCATE = 1 << 7, 1 << 8, 1 << 12, 1 << 13, 1 << 14
_ALL_RIGHTS = ((1 << 13) - 1, (1 << 14) - 1, (1 << 15) - 1, (1 << 15) - 1, (1 << 16) - 1)  # ABI 1, 2, 3, 4, 5 and later
_OF_A_FILE = _WRITE_FILE | _READ_FILE | _TRUNCATE
READ = _READ_FILE | _READ_DIR
LIST = _READ_DIR
# No sockets, pipes or devices with a name, and nothing may be executed.
WRITE = READ | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _MAKE_SYM | _REFER | _TRUNCATE
_TCP = 0b11  # bind and connect
_SCOPES = 0b11  # abstract unix sockets and signals
_NO_LOG = 1 << 0  # a hostile program must not be able to fill the audit log


def abi() -> int:
    """The kernel's Landlock version; 0 when it has none or does not run it."""
    try:
        return syscalls.call("landlock_create_ruleset", None, 0, 1)
    except OSError:
        return 0


def _add(ruleset: int, path: str, rights: int, handled: int) -> None:
    try:
        target = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return  # what is not there or cannot be reached needs no permission
    try:
        if not stat.S_ISDIR(os.fstat(target).st_mode):
            rights &= _OF_A_FILE
        if rights & handled:
            syscalls.call("landlock_add_rule", ruleset, 1, struct.pack("=Qi", rights & handled, target), 0)
    finally:
        os.close(target)


def ruleset(
    read: Sequence[str],
    write: Sequence[str],
    list_only: Sequence[str] = (),
    devices: Sequence[str] = (),
    version: int = 0,
) -> int:
    """A descriptor of rules, to be enforced by any process that inherits it. The caller closes it.

    Args:
        read: files, or directories with all below them, to be read; missing ones are skipped.
        write: directories whose contents may be read, made, changed and removed.
        list_only: directories that may be listed, with those below, their files not read.
        devices: files that may be read and written but not replaced, as /dev/null.
        version: use no more than this ABI; 0 for the kernel's.

    Raises:
        OSError: EOPNOTSUPP or ENOSYS where there is no Landlock.
    """
    offered = abi()
    version = min(offered, version or NEWEST, NEWEST)
    if version < 1:
        raise OSError(errno.EOPNOTSUPP, "landlock_create_ruleset: this kernel does not run Landlock")
    handled = _ALL_RIGHTS[min(version, 5) - 1]
    attributes = struct.pack("=Q", handled)
    if version >= 4:
        attributes += struct.pack("=Q", _TCP)
    if version >= 6:
        attributes += struct.pack("=Q", _SCOPES)
    rules = syscalls.call("landlock_create_ruleset", attributes, len(attributes), 0)
    try:
        for rights, paths in ((READ, read), (WRITE, write), (LIST, list_only), (_OF_A_FILE, devices)):
            for path in paths:
                _add(rules, path, rights, handled)
    except OSError:
        os.close(rules)
        raise
    os.set_inheritable(rules, False)
    return rules


def enforcement(rules: int) -> syscalls.Prepared:
    """The call that puts a thread under a ruleset for good; it needs no_new_privs and raises OSError when refused."""
    return syscalls.Prepared("landlock_restrict_self", rules, _NO_LOG if abi() >= 7 else 0)


def restrict(read: Sequence[str], write: Sequence[str], list_only: Sequence[str] = ()) -> None:
    """Make a ruleset and put this thread under it; arguments and errors as `ruleset`."""
    rules = ruleset(read, write, list_only)
    try:
        enforcement(rules).run()
    finally:
        os.close(rules)
