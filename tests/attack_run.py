"""Runs the attacks through one `Sandbox` and writes down what became of them, and of everything they were after.

A process of its own, so that all that is left behind can be counted: it adopts orphans, has a temporary directory, a
terminal, a home with a key, open descriptors, secrets in its environment and listening sockets, all of them bait.
`python tests/attack_run.py RESULT.json --tier auto [--container]`. Says nothing about whether the fates are right.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import json
import os
import re
import secrets
import select
import shutil
import socket
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


from attacks import ATTACKS, FIVE, MINUS, PLUS, Attack  # noqa: E402
from lesser_machines import enter_container, without_landlock  # noqa: E402

from selectkd_eval.errors import SetupError  # noqa: E402
from selectkd_eval.sandbox.client import Sandbox  # noqa: E402
from selectkd_eval.sandbox.program import Limits, Program  # noqa: E402

LIMITS = Limits(cpu_seconds=0.4, wall_factor=3.0)
PUBLIC = [Path(place) for place in ("/tmp", "/var/tmp", "/dev/shm", "/run", "/run/lock", "/", "/etc")]


class Bait:
    """What the attacks are after, and whether they got it."""

    def __init__(self, base: Path) -> None:
        self.mark = "mark" + secrets.token_hex(6)
        self.secret = "canary-" + secrets.token_hex(6)
        self.home, self.temporary = base / "home", base / "temporary"
        for place in (self.home / ".ssh", self.home / "empty", self.temporary):
            place.mkdir(parents=True)
        self.key = self.home / ".ssh" / "id_rsa"
        self.key.write_text(self.secret)
        self.key.chmod(0o644)  # a jail that relies on the file's own mode would be no jail
        self.tcp, self.unix, self.abstract = (socket.socket(kind) for kind in (socket.AF_INET, 1, 1))
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.tcp.bind(("127.0.0.1", 0))
        self.udp.bind(("127.0.0.1", 0))
        with contextlib.chdir(self.home):  # a socket's path has room for a hundred letters
            self.unix.bind("socket")
        self.abstract.bind("\0" + self.mark + "bait")
        for server in (self.tcp, self.unix, self.abstract):
            server.listen(8)
        self.servers = {"tcp": self.tcp, "udp": self.udp, "unix": self.unix, "abstract": self.abstract}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.free = free.getsockname()[1]
        self.before = self.look()

    def places(self) -> dict[str, str]:
        """What stands for @NAME@ in an attack."""
        return {
            "HOME": str(self.home),
            "TEMPORARY": str(self.temporary),
            "REPOSITORY": str(ROOT),
            "PORT": str(self.tcp.getsockname()[1]),
            "UDP": str(self.udp.getsockname()[1]),
            "ABSTRACT": self.mark + "bait",
            "FREE": str(self.free),
            "MARK": self.mark,
            "TOKEN": self.mark[-10:],
        }

    def leave_open(self) -> None:
        """Descriptors and secrets that a careless start of a worker would hand on, and a terminal to type into."""
        for path in (self.key, self.home):
            os.set_inheritable(os.open(path, os.O_RDONLY), True)
        os.set_inheritable(self.tcp.fileno(), True)
        os.environ.update(OPENAI_API_KEY=self.secret, HF_TOKEN=self.secret, HOME=str(self.home))
        os.environ["TMPDIR"] = tempfile.tempdir = str(self.temporary)
        with contextlib.suppress(OSError):
            self.master, slave = os.openpty()
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)  # of this session, which the tests started for us
            os.dup2(slave, 0)
            os.close(slave)

    def look(self) -> dict[str, Any]:
        """Every file of home as it is now."""
        seen = {}
        for path in sorted(self.home.rglob("*")):
            stat = path.lstat()
            content = path.read_text() if path.is_file() else os.listxattr(path, follow_symlinks=False)
            seen[str(path)] = [stat.st_mode, stat.st_uid, stat.st_mtime_ns, stat.st_nlink, content]
        return seen

    def reached(self) -> list[str]:
        """What an attack changed or called up to now."""
        found = [name for name in self.servers if select.select([self.servers[name]], [], [], 0)[0]]
        return found + (["home"] if self.look() != self.before else [])

    def left(self, started: float) -> dict[str, list[str]]:
        """What lies, runs or listens after the sandbox was closed."""
        names = (self.mark, "planted")
        planted = [path for place in PUBLIC for path in _entries(place) if path.name.startswith(names)]
        library = [Path(entry) / f"{name}.py" for entry in sys.path for name in ("planted", "sitecustomize", self.mark)]
        listening = []
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.free), 0.5):
            listening.append(str(self.free))
        return {
            "processes": _offspring(),
            "files": [str(path) for path in self.temporary.iterdir()]
            + [str(path) for path in planted + library if path.exists() and path.stat().st_mtime > started],
            "shared": [
                line for line in _lines("/proc/sysvipc/shm") + _lines("/proc/sysvipc/msg") if " 4242 " in f" {line} "
            ],
            "listening": listening,
        }


def _entries(place: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return list(place.iterdir())
    return []


def _lines(path: str) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(path).read_text().splitlines()[1:]
    return []


def _offspring() -> list[str]:
    """Living processes below this one, orphans included, after a moment in which they may go."""
    for _ in range(100):
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        children = _lines_of_children()
        if not children:
            return []
        time.sleep(0.02)
    return children


def _lines_of_children() -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            stat = entry.read_text()
            if int(stat.rpartition(")")[2].split()[1]) == os.getpid():
                found.append(stat[:80])
    return found


def batch(attacks: list[Attack], places: dict[str, str]) -> Iterator[tuple[str, Program]]:
    """After every attack an honest program and one that is plainly wrong: (name or kind, program)."""
    for number, attack in enumerate(attacks):
        yield attack.name, attack.program(places)
        yield "honest", Program(f"honest-{number}", PLUS, FIVE)
        if number % 4 == 0:
            yield "false", Program(f"false-{number}", MINUS, FIVE)


def run(box: Sandbox, mode: Any, attacks: list[Attack], bait: Bait) -> dict[str, Any]:
    """Outcomes by name, the fates of the programs between, what broke the harness, and when bait was first touched."""
    result: dict[str, Any] = {"outcomes": {}, "honest": [], "false": [], "touched": [], "broken": {}}
    left = attacks = [attack for attack in attacks if attack.expected(mode)]
    while left:
        try:
            run_once(box, mode, left, bait, result)
        except SetupError as error:  # a worker died twice under one program: note it, and go on without it
            culprits = [attack.name for attack in left if repr(attack.name) in str(error)]
            if not culprits:
                raise
            result["broken"][culprits[0]] = str(error)
            print(error, file=sys.stderr)
        left = [attack for attack in left if attack.name not in {**result["outcomes"], **result["broken"]}]
    return result


def run_once(box: Sandbox, mode: Any, attacks: list[Attack], bait: Bait, result: dict[str, Any]) -> None:
    """One batch into `result`."""
    names, programs = zip(*batch(attacks, bait.places()), strict=True)
    recent: list[str] = []
    for place, outcome in box.run(programs, mode):
        if names[place] in ("honest", "false"):
            result[names[place]].append(outcome.word)
        else:
            result["outcomes"][names[place]] = outcome.as_dict()
            recent = [*recent[-3:], names[place]]
        if (reached := bait.reached()) and reached not in [row[0] for row in result["touched"]]:
            result["touched"].append([reached, recent])


def peak_megabytes() -> int:
    """Peak memory of this process alone: ru_maxrss would remember the process that started it."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) // 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("result", type=Path)
    parser.add_argument("--tier", default="auto")
    parser.add_argument("--modes", nargs="+", default=["isolated", "official"])
    parser.add_argument("--only", nargs="*", help="names of attacks; all of them otherwise")
    parser.add_argument("--container", action="store_true", help="inside what Docker refuses by default")
    parser.add_argument("--no-landlock", action="store_true", help="as on a kernel without it")
    asked = parser.parse_args()
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans come to us
    if asked.container:
        enter_container()
    if asked.no_landlock:
        without_landlock()
    attacks = [ATTACKS[name] for name in asked.only] if asked.only else list(ATTACKS.values())
    base = Path(tempfile.mkdtemp(prefix="attacks-"))
    base.chmod(0o755)
    started = time.time()
    try:
        bait = Bait(base)
        bait.leave_open()
        result: dict[str, Any] = {"modes": {}}
        with Sandbox(LIMITS, workers=2, tier=asked.tier) as box:
            result["facts"] = box.facts
            descriptors = len(_entries(Path("/proc/self/fd")))
            for mode in asked.modes:
                begun = time.monotonic()
                result["modes"][mode] = run(box, mode, attacks, bait)
                result["modes"][mode]["seconds"] = time.monotonic() - begun
            result["descriptors"] = len(_entries(Path("/proc/self/fd"))) - descriptors
        result["left"] = bait.left(started)
        result["megabytes"] = peak_megabytes()
        result["touched"] = bait.reached()
        text = json.dumps(result, ensure_ascii=False)  # as a record is written: no outcome may break it
        asked.result.write_bytes(text.encode())
    finally:
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    main()
