"""How is a worker started inside bubblewrap, where that is what makes namespaces here (its own setuid or profile)?

Only the command line: the supervisor is run by `bwrap` and finds itself inside a jail of its own, in which the lock
of every child is the same as elsewhere.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

WORK = "/selectkd-work"
"""The directory to work in, inside; no path that a package or an interpreter could lie under."""
_WORK_BYTES = 64 << 20


def find() -> str | None:
    """The path of `bwrap`, or None."""
    return shutil.which("bwrap")


def command(program: str, read_only: Sequence[str], work_bytes: int = _WORK_BYTES) -> list[str]:
    """The words before the worker's own command: every namespace its own, `read_only` paths bound, `WORK` writable.

    Paths that do not exist are left out; links at the root (`/lib`) stay links. `--as-pid-1` is not used: bwrap's own
    process 1 reaps what the fork-server loses.
    """
    words = [program, "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--hostname", "jail"]
    words += ["--dev", "/dev"]
    for path in sorted(set(read_only)):
        if os.path.islink(path) and os.path.dirname(path) == "/":
            words += ["--symlink", os.readlink(path), path]
            path = os.path.realpath(path)
        words += ["--ro-bind-try", path, path]
    return [*words, "--size", str(work_bytes), "--tmpfs", WORK, "--remount-ro", "/", "--chdir", "/", "--"]
