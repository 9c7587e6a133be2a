"""Can this process shut itself into a machine of its own, and how? Files, processes, network and users of its own.

The new root is an empty tmpfs with read-only binds of a few paths, four devices and one writable directory of limited
size; there is no /proc, no route to anywhere and no other process in sight. Works for root and, where the system lets
users make user namespaces, for everybody. Does not fork the process that lives inside: a new pid namespace begins with
the caller's next child, which becomes its process 1 and takes all others with it when it ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from selectkd_eval.sandbox import identity, syscalls
from selectkd_eval.sandbox.confine import DEVICES, exists, python_paths

_NEWNS, _NEWCGROUP, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = (1 << b for b in (17, 25, 26, 27, 28, 29, 30))
_PRIVATE, _BIND, _RECURSIVE = 1 << 18, 1 << 12, 1 << 14  # mount(2)
_RDONLY, _NOSUID, _NODEV, _NOEXEC = 1, 2, 4, 8  # the same in mount(2) and mount_setattr(2)
_PR_SET_DUMPABLE = 4
_AT_FDCWD, _AT_RECURSIVE, _DETACH = -100, 0x8000, 2
_OLD = "/.outside"
_HOST_NAME = b"sandbox"
_WORK_FILES = 16_384  # a program that makes files without end fills its own directory only
# What forbids user namespaces, where it can be read, and the value that allows them.
_SWITCHES = (
    ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "0"),
    ("/proc/sys/kernel/unprivileged_userns_clone", "1"),
)


@contextlib.contextmanager
def _doing(what: str) -> Iterator[None]:
    """An OSError says in which step it happened."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{what}: {error.strerror}") from None


def _mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    with _doing(f"mounting {target}"):
        named = None if kind is None else kind.encode()
        syscalls.call("mount", os.fsencode(source), os.fsencode(target), named, flags, data.encode())


def _set_attributes(target: str, attributes: int, recursive: bool = True) -> None:
    """Add mount attributes; unlike a remount this reaches mounts below and cannot take away what holds already."""
    with _doing(f"protecting {target}"):
        packed = struct.pack("=4Q", attributes, 0, 0, 0)
        flags = _AT_RECURSIVE if recursive else 0
        syscalls.call("mount_setattr", _AT_FDCWD, os.fsencode(target), flags, packed, len(packed))


def _unshare(with_user: bool) -> None:
    wanted = _NEWNS | _NEWUTS | _NEWIPC | _NEWPID | _NEWNET | (_NEWUSER if with_user else 0)
    user, group = os.geteuid(), os.getegid()
    try:
        syscalls.call("unshare", wanted | _NEWCGROUP)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        syscalls.call("unshare", wanted)  # a kernel without cgroup namespaces
    if with_user:
        with _doing("setting up the user map"):
            syscalls.call("prctl", _PR_SET_DUMPABLE, 1, 0, 0, 0)  # otherwise root would own the files below
            Path("/proc/self/setgroups").write_bytes(b"deny")
            Path("/proc/self/uid_map").write_bytes(f"{user} {user} 1".encode())
            Path("/proc/self/gid_map").write_bytes(f"{group} {group} 1".encode())


def _bind(real: str, target: str, attributes: int) -> None:
    """Show the old root's `real` (no symbolic links in it) as `target`."""
    source = _OLD + real
    place = Path(target)
    place.parent.mkdir(parents=True, exist_ok=True)
    if Path(source).is_dir():
        place.mkdir(exist_ok=True)
    else:
        place.touch()
    _mount(source, target, None, _BIND | _RECURSIVE)
    _set_attributes(target, attributes)


def _build_root(read_only: Sequence[str], work: str, work_options: str) -> None:
    # Links are resolved while the old root is still the root; a link inside it could lead into the new one later.
    shown = {}
    for path in read_only:
        if exists(path):
            real = str(Path(path).resolve())
            shown[str(Path(path).absolute())] = shown[real] = real
    devices = [path for path in DEVICES if exists(path)]
    base = next(path for path in ("/tmp", "/mnt", "/usr") if exists(path))
    _mount("none", "/", None, _PRIVATE | _RECURSIVE)  # nothing of what follows is seen outside
    _mount("tmpfs", base, "tmpfs", _NOSUID | _NODEV, "size=1m,nr_inodes=4k,mode=755")
    os.chdir(base)
    Path(_OLD[1:]).mkdir()
    syscalls.call("pivot_root", b".", os.fsencode(_OLD[1:]))
    os.chdir("/")
    done: list[str] = []
    for path in sorted(shown):  # a directory before what lies in it, which needs no bind of its own then
        if not any(path == up or path.startswith(up.rstrip("/") + "/") for up in done):
            _bind(shown[path], path, _RDONLY | _NOSUID | _NODEV)
            done.append(path)
    for path in devices:
        _bind(path, path, _RDONLY | _NOSUID | _NOEXEC)
    Path(work).mkdir(parents=True, exist_ok=True)
    _mount("tmpfs", work, "tmpfs", _NOSUID | _NODEV | _NOEXEC, work_options)
    with _doing("leaving the old root"):
        syscalls.call("umount2", os.fsencode(_OLD), _DETACH)
    Path(_OLD).rmdir()
    _set_attributes("/", _RDONLY | _NOSUID | _NODEV, recursive=False)


def enter(read_only: Sequence[str], work: str, work_bytes: int = 64 << 20) -> None:
    """Move this process, which has one thread, into a machine of its own; its next child is process 1 there.

    At the end nobody inside has a capability. Root becomes a user who owns nothing, unless the paths can be read by
    root only: then, as for every other user, a user namespace is made and the user stays. The process is dumpable
    afterwards.

    Args:
        read_only: files and directories (with all below) to be seen inside; missing ones are left out.
        work: absolute path, inside, of an empty directory that may be written. Nothing of that name outside is touched.
        work_bytes: what may be kept there at a time.

    Raises:
        OSError: the step that was refused and why. The process must end then: it stands between two roots.
    """
    stranger = None
    if identity.capable(identity.SYS_ADMIN, identity.SETUID, identity.SETGID, identity.SETPCAP):
        # Inside, the way to a path is made of new directories; only what is bound must be open to others.
        stranger = identity.stranger() if identity.open_to_all(read_only, way=False) else None
    owner = "" if stranger is None else f",uid={stranger},gid={stranger}"
    _unshare(with_user=stranger is None)
    _build_root(read_only, work, f"size={work_bytes},nr_inodes={_WORK_FILES},mode=755{owner}")
    syscalls.call("sethostname", _HOST_NAME, len(_HOST_NAME))
    identity.close_the_way_back()
    if stranger is not None:
        identity.become(stranger)
    identity.drop_capabilities()


def _reason(error: str) -> str:
    """The error with what the user can do about it, as far as the machine tells."""
    for switch, allowed in _SWITCHES:
        with contextlib.suppress(OSError):
            value = Path(switch).read_bytes().strip().decode()
            if value != allowed:
                name = switch.removeprefix("/proc/sys/").replace("/", ".")
                return f"{error} ({name} is {value}; `sysctl {name}={allowed}` allows user namespaces)"
    with contextlib.suppress(OSError):
        if Path("/proc/sys/user/max_user_namespaces").read_bytes().strip() == b"0":
            return f"{error} (user.max_user_namespaces is 0)"
    if error.startswith("unshare") and (exists("/.dockerenv") or exists("/run/.containerenv")):
        return f"{error} (the default seccomp profile of containers forbids namespaces)"
    return error


def _trial(report: int, read_only: Sequence[str]) -> None:
    """Go all the way in, have a child there, and read and write where one must be able to. Never returns."""
    said = "the trial process ended before it was inside"
    try:
        enter(read_only, "/slot", 1 << 20)
        child = os.fork()
        if child == 0:
            Path("/slot/trial").write_bytes(Path(os.__file__).read_bytes()[:1])
            os._exit(0 if os.getpid() == 1 else 1)
        said = "" if os.waitpid(child, 0)[1] == 0 else "a process inside could not read Python's files or write its own"
    except OSError as error:
        said = error.strerror or str(error)
    except BaseException as error:  # the reason goes to the caller; nothing may run on in this copy of his process
        said = repr(error)
    finally:
        with contextlib.suppress(OSError):
            os.write(report, said.encode("utf-8", "replace")[:4000] or b"-")
        os._exit(0)


def available(read_only: Sequence[str] | None = None) -> str | None:
    """None if `enter` works here, tried in a forked child up to a process inside; otherwise the reason in one sentence.

    Args:
        read_only: the paths that will be shown; those that Python needs when None.
    """
    if not syscalls.NUMBERS or sys.platform != "linux":
        return f"no system call table for {syscalls.MACHINE}"
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        _trial(theirs, python_paths() if read_only is None else read_only)
    os.close(theirs)
    with os.fdopen(ours, "rb") as stream:
        said = stream.read().decode("utf-8", "replace")
    os.waitpid(child, 0)
    return None if said == "-" else _reason(said or "the trial process was killed")
