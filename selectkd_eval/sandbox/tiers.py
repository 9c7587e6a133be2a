"""Which wall is real on this machine, and what to do where none is?

Client side: tries tiers by starting workers in them, and words the refusal. A tier that was named is never replaced
by another.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selectkd_eval.errors import InputError, SetupError
from selectkd_eval.sandbox import bubblewrap, confine, probes
from selectkd_eval.sandbox.program import Limits
from selectkd_eval.sandbox.slot import empty
from selectkd_eval.sandbox.workers import ROOT, Worker, interpreter

TIERS = {
    "auto": "the strongest of namespaces, bubblewrap and landlock that is real on this machine",
    "namespaces": "own user, mount, process, network and ipc namespaces, and the lock of landlock besides",
    "bubblewrap": "the same, made by the program bwrap",
    "landlock": "Landlock and seccomp alone: inside containers, and where namespaces are forbidden",
    "external": "you vouch that this whole process is jailed already: whatever lock works, nothing demanded",
}
_START_SECONDS = 60.0


@dataclass(frozen=True)
class Package:
    """A package that programs may import: its name, version, the directory it is found in, the paths it needs."""

    name: str
    version: str
    place: str
    paths: tuple[str, ...]


def find_package(name: str) -> Package:
    """Look a package up in this interpreter's environment; SetupError when it is not installed."""
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    origin = spec.origin if spec is not None else None
    if spec is None or origin is None or not os.path.exists(origin):
        raise SetupError(
            f"programs were to be offered the package {name!r}, which is not installed here: pip install {name}"
        )
    where = Path(origin).resolve()
    top = where.parent if spec.submodule_search_locations else where
    place = top.parent
    paths = {str(top)}
    version = "unknown"
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found = importlib.metadata.distribution(name)
        version = found.version
        tops = {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}
        paths |= {str(place / part) for part in tops if (place / part).exists()}
    return Package(name, version, str(place), tuple(sorted(paths)))


class Launcher:
    """Starts workers of one Sandbox in a given tier; `close` removes what they shared on disk."""

    def __init__(self, limits: Limits, packages: Sequence[str], hash_seed: int) -> None:
        self.limits = limits
        self.packages = [find_package(name) for name in packages]
        self.environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": "/nonexistent",
            "LANG": "C.UTF-8",
            "LC_ALL": "C.UTF-8",
            "PYTHONHASHSEED": str(hash_seed),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "LD_BIND_NOW": "1",  # else every child looks the same functions up anew
            "OPENBLAS_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
        }
        self._owner = os.getpid()
        try:
            self.scratch = Path(tempfile.gettempdir()) / f"selectkd-sandbox-{secrets.token_hex(8)}"
        except FileNotFoundError as error:
            raise SetupError(
                f"the sandbox needs a directory for temporary files ({error.strerror}): "
                "set TMPDIR to a directory that can be written"
            ) from None

    def close(self) -> None:
        """Remove the scratch directory and what a worker that was killed has left in it."""
        if os.getpid() != self._owner:  # a fork of this process, which must not take its parent's directory away
            return
        with contextlib.suppress(OSError):
            empty(str(self.scratch))
            self.scratch.rmdir()

    def start(self, tier: str, count: int) -> tuple[list[Worker], dict[str, Any]]:
        """`count` workers in `tier`, started in parallel, and what the first says of itself.

        Raises SetupError with the reason alone when one of them cannot start or a probe succeeds.
        """
        try:
            return self._start(tier, count)
        except OSError as error:  # no process, descriptor, memory or room on the disk left
            raise SetupError(f"its workers cannot be started: {error}") from error

    def _start(self, tier: str, count: int) -> tuple[list[Worker], dict[str, Any]]:
        prefix = self._prefix(tier)
        if tier in ("landlock", "external"):
            # The last worker to end has removed it, for the case that the client was killed. A program may run as
            # another user and must reach its directory inside.
            self.scratch.mkdir(mode=0o700, exist_ok=True)
            self.scratch.chmod(0o711)
        with _canaries() as canaries:
            config = {
                "tier": tier,
                "limits": self.limits.as_dict(),
                "packages": {package.name: package.place for package in self.packages},
                "package_paths": [path for package in self.packages for path in package.paths],
                "work": bubblewrap.WORK,
                "scratch": str(self.scratch),
                "client": 0 if tier == "bubblewrap" else os.getpid(),
                "uid": os.getuid(),
                "canaries": canaries,
            }
            workers: list[Worker] = []
            try:
                for _ in range(count):
                    workers.append(Worker(prefix, config, self.environment))
                deadline = time.monotonic() + _START_SECONDS
                greetings = [_greeted(worker, tier, deadline) for worker in workers]
            except BaseException:
                for worker in workers:
                    worker.stop()
                raise
        return workers, greetings[0]

    def _prefix(self, tier: str) -> list[str]:
        if tier != "bubblewrap":
            return []
        if (program := bubblewrap.find()) is None:
            raise SetupError("no program bwrap is on the PATH")
        own = [str(ROOT / "selectkd_eval" / part) for part in ("__init__.py", "errors.py", "sandbox")]
        offered = [path for package in self.packages for path in package.paths]
        return bubblewrap.command(program, [*confine.python_paths(), interpreter(), *own, *offered])


def _greeted(worker: Worker, tier: str, deadline: float) -> dict[str, Any]:
    greeting = worker.greeting(deadline)
    if greeting is None:
        raise SetupError(worker.last_words() or "its worker ended before it had started")
    if "refused" in greeting:
        raise SetupError(greeting["refused"])
    facts: dict[str, Any] = greeting["facts"]
    if tier != "external" and (failed := probes.failures(facts["probes"])):
        raise SetupError("; ".join(dict.fromkeys(failed)))
    return facts


@contextlib.contextmanager
def _canaries() -> Iterator[dict[str, Any]]:
    """Things outside the jail that a program must not reach; they exist while workers start."""
    token = secrets.token_hex(8)
    home = Path(os.path.expanduser("~")) / f".selectkd-probe-{token}"  # unlike Path.home, no error without a home
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(tempfile.NamedTemporaryFile("w", prefix="selectkd-canary-"))
        file.write(token)
        file.flush()
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind(f"\0selectkd-{token}")
        unix.listen()
        stack.callback(_remove, home)
        yield {
            "file": file.name,
            "home": str(home),
            "port": tcp.getsockname()[1],
            "abstract": f"selectkd-{token}",
        }


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def open_tier(launcher: Launcher, asked: str, count: int) -> tuple[list[Worker], dict[str, Any]]:
    """Workers in the tier asked for, or for `auto` in the first that is real; SetupError with the fix otherwise."""
    if asked not in TIERS:
        raise InputError(f"there is no sandbox tier {asked!r}; known: {', '.join(TIERS)}")
    if sys.platform != "linux":
        raise SetupError(
            f"the sandbox needs Linux and this is {platform.system()}: run inside a Linux container ({_DOCKER})"
        )
    reasons: dict[str, str] = {}
    for tier in [asked] if asked != "auto" else ["namespaces", "bubblewrap", "landlock"]:
        try:
            workers, facts = launcher.start(tier, count)
        except SetupError as error:
            reasons[tier] = str(error)
            continue
        return workers, {**facts, "asked": asked, "refused": reasons}
    said = "; ".join(f"{tier}: {reason.rstrip('.')}" for tier, reason in reasons.items())
    raise SetupError(
        f"the sandbox was asked for as {asked!r} and is not real on this machine ({said}); "
        f"model-written code is not run without it: {'; or '.join(remedies(asked))}"
    )


_DOCKER = "docker run --network none --read-only --cap-drop ALL, with --sandbox external inside"


def remedies(asked: str) -> list[str]:
    """What a user can change on this machine so that the sandbox becomes real, the likeliest first."""
    found = []
    if _sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1":
        found.append(
            "AppArmor forbids user namespaces here (Ubuntu 24.04): sudo sysctl -w "
            "kernel.apparmor_restrict_unprivileged_userns=0, or give this Python an AppArmor profile with `userns,`"
        )
    if _sysctl("kernel/unprivileged_userns_clone") == "0":
        found.append("allow user namespaces: sudo sysctl -w kernel.unprivileged_userns_clone=1")
    if _sysctl("user/max_user_namespaces") == "0":
        found.append("allow user namespaces: sudo sysctl -w user.max_user_namespaces=10000")
    if _release() < (5, 13):
        found.append(f"use a kernel of 5.13 or later, which has Landlock (this is {platform.release()})")
    if asked == "bubblewrap" and bubblewrap.find() is None:
        found.append("install bubblewrap (apt install bubblewrap)")
    if asked not in ("auto", "external"):
        found.append("leave the choice of the tier to --sandbox auto")
    found.append(f"run everything inside a closed container: {_DOCKER}")
    return found


def _sysctl(name: str) -> str:
    try:
        return (Path("/proc/sys") / name).read_text().strip()
    except OSError:
        return ""


def _release() -> tuple[int, ...]:
    numbers = platform.release().split("-")[0].split(".")[:2]
    return tuple(int(number) for number in numbers if number.isdigit())
