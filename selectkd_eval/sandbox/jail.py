"""Where do a worker's programs live? The tier's walls, made once, with the fork-server behind them.

Called by the supervisor. namespaces: this process enters new user, mount, pid, net, ipc and uts namespaces and the
fork-server becomes their process 1. bubblewrap: this process was started by `bwrap` and stands inside already.
landlock and external: no namespaces; the lock that every child puts on itself is all there is.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import struct
import sys
import time
from typing import Any

from selectkd_eval.sandbox import confine, landlock, namespaces, seccomp, syscalls
from selectkd_eval.sandbox.forkserver import ForkServer, preload
from selectkd_eval.sandbox.program import Limits
from selectkd_eval.sandbox.slot import Slot, empty, make_directory

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
_REPORT = 1 << 16  # bytes, more than any message of the fork-server
_PATIENCE = 2.0  # s for the fork-server to leave by itself


class RefusedError(Exception):
    """This tier is not real on this machine; the text says what failed."""


class Jail:
    """One worker's walls, fork-server and work root. `open` may raise RefusedError; `close` is right at any moment."""

    control: socket.socket
    facts: dict[str, Any]

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.tier = config["tier"]
        self.limits = Limits(**config["limits"])
        self.read = (*confine.python_paths(), *config["package_paths"])
        self.scratch = ""
        self.pid = 0
        preload(config["packages"])

    def open(self, closing: list[int]) -> None:
        """Put up the walls and start the fork-server, which keeps none of the descriptors in `closing`."""
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        root = self._walls()
        prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
        self.control, inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                for option, value in (
                    (_PR_SET_PDEATHSIG, signal.SIGKILL),
                    (_PR_SET_CHILD_SUBREAPER, 1),
                    (_PR_SET_DUMPABLE, 0),
                ):
                    prctl(option, value, 0, 0, 0)
                self.control.close()
                for descriptor in closing:
                    if descriptor >= 0:
                        os.close(descriptor)
                status = self._serve(inner, root)
            except BaseException:  # a defect: to be read in the worker's last words
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(status)
        inner.close()
        _hold_filter_pages()
        if not (data := self.control.recv(_REPORT)):
            raise RuntimeError("the fork-server ended while it started; its own error stands above")
        hello = json.loads(data)
        if "refused" in hello:
            raise RefusedError(hello["refused"])
        self.facts = {
            "tier": self.tier,
            "kernel": os.uname().release,
            "machine": os.uname().machine,
            "python": "{}.{}.{}".format(*sys.version_info),
            "uid": self.config["uid"],
            "landlock_abi": landlock.abi(),
            "seccomp": seccomp.supported(),
            "limits": self.limits.as_dict(),
            "lock": hello,
        }

    def _walls(self) -> str:
        """Enter the namespaces where the tier has them; returns the directory to work in."""
        if self.tier == "namespaces":
            if reason := namespaces.available():
                raise RefusedError(reason)
            try:
                namespaces.enter(self.read, self.config["work"])
            except OSError as error:
                raise RefusedError(f"entering the namespaces failed: {error}") from None
        if self.tier in ("namespaces", "bubblewrap"):
            return str(self.config["work"])
        self.scratch = make_directory(self.config["scratch"], "worker-")
        return self.scratch

    def _serve(self, control: socket.socket, root: str) -> int:
        try:
            server = ForkServer(control, self.limits, Slot(root), self.read, strict=self.tier == "landlock")
        except OSError as error:
            control.send(json.dumps({"refused": str(error)}).encode())
            return 1
        server.control.send(json.dumps(server.jails["candidate"].facts).encode())
        server.serve()
        return 0

    def close(self) -> None:
        """End the fork-server and with it whatever it runs, and remove the work root."""
        if self.pid:
            self.control.close()
            deadline = time.monotonic() + _PATIENCE
            while os.waitpid(self.pid, os.WNOHANG)[0] == 0:
                if time.monotonic() > deadline:
                    os.kill(self.pid, signal.SIGKILL)
                    os.waitpid(self.pid, 0)
                    break
                time.sleep(0.001)
        if self.scratch:
            with contextlib.suppress(OSError):
                os.chmod(self.scratch, 0o700)
                empty(self.scratch)
                os.rmdir(self.scratch)
            with contextlib.suppress(OSError):  # the client's to remove, unless it was killed; the last worker can
                os.rmdir(self.config["scratch"])


def _hold_filter_pages() -> None:
    """Keep the kernel's pages for compiled filters: with the last filter they go, and every core is interrupted.

    So this process carries one that allows everything; otherwise each program would pay for new pages. Where there
    are no filters there is nothing to keep.
    """
    allow_all = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000), 8)
    with contextlib.suppress(OSError):
        syscalls.call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        syscalls.call("seccomp", 1, 0, struct.pack("@HP", 1, ctypes.addressof(allow_all)))
