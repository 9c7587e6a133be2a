"""Started by vLLM's own python: runs a module as a child and sees that nothing outlives whoever asked for it.

Whoever starts this file holds the other end of its standard input. When that end closes, which it does even at
`kill -9`, the whole process group is told to end and, after a grace, killed: vLLM's server has workers of its own, and
a server that is left behind keeps its memory. Only the standard library, for this file runs where nothing of this
project is installed.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

GRACE_S = 5.0  # vLLM needs about two seconds to give back its shared memory
PROCESSES = Path("/proc")


def main(words: list[str]) -> int:
    """Run `python -m WORDS`, and return its exit code once it has ended by itself."""
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)  # the group that is killed must be ours alone
    child = subprocess.Popen([sys.executable, "-m", *words], stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is sent to the group, and we stay to see it obeyed
    threading.Thread(target=_end_with_parent, daemon=True).start()
    code = child.wait()
    os.killpg(0, signal.SIGTERM)  # workers of a server that fell
    if not _alone():
        os.killpg(0, signal.SIGKILL)
    return code if code >= 0 else 128 - code


def _end_with_parent() -> None:
    """Wait until nobody holds the other end of our input any more, then end the group."""
    while os.read(sys.stdin.fileno(), 1024):
        continue
    os.killpg(0, signal.SIGTERM)
    _alone()
    os.killpg(0, signal.SIGKILL)


def _alone() -> bool:
    """Whether everybody else in the group has gone within the grace."""
    deadline = time.monotonic() + GRACE_S
    while (others := _others()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not others


def _others() -> bool:
    """Whether the group has living members beside us; True where the system does not tell."""
    if not PROCESSES.exists():
        return True
    return any(_in_group(entry) for entry in PROCESSES.glob("[0-9]*") if entry.name != str(os.getpid()))


def _in_group(process: Path) -> bool:
    try:
        state, _, group = (process / "stat").read_text().rsplit(")", 1)[1].split()[:3]
    except (OSError, ValueError):
        return False
    return int(group) == os.getpgrp() and state != "Z"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
