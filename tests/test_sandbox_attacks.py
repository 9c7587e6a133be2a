"""Nothing that a program tries gets out of the sandbox, none forges a verdict, and nothing is left behind.

Every attack runs on the tier that this machine offers and, with namespaces denied as Docker's default denies them, on
Landlock, in both modes; those on the walls also where namespaces are all there is. One process runs all of a situation
(`attack_run.py`); each test below looks at one fate.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from attacks import ATTACKS, names_in

from selectkd_eval.sandbox import landlock, namespaces

pytestmark = [
    pytest.mark.timeout(600),  # the first test of a situation waits for all its attacks
    pytest.mark.skipif(sys.platform != "linux" or not landlock.abi(), reason="this kernel has no Landlock"),
]
RUNNER = Path(__file__).with_name("attack_run.py")
BOTH = ("isolated", "official")
WALLS = names_in("files", "directory", "processes", "network", "kernel")


@dataclass(frozen=True)
class Situation:
    """What the runner is told, and what it then runs."""

    words: tuple[str, ...] = ()
    modes: tuple[str, ...] = BOTH
    names: tuple[str, ...] = tuple(ATTACKS)


SITUATIONS = {
    "offered": Situation(),
    "container": Situation(("--container",)),
    "no landlock": Situation(("--no-landlock", "--modes", "isolated", "--only", *WALLS), ("isolated",), tuple(WALLS)),
}
ATTACKED = [
    pytest.param(which, mode, name, id=f"{which}-{mode}-{name}")
    for which, situation in SITUATIONS.items()
    for mode in situation.modes
    for name in situation.names
    if ATTACKS[name].expected(mode)
]


def start(*words: str, **options: Any) -> subprocess.Popen[str]:
    """The runner, as leader of a session so that it can have a terminal."""
    command = [sys.executable, str(RUNNER), *words]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True, **options)


@pytest.fixture(scope="session")
def fates(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What became of the attacks in a situation; run once, whichever test process asks first."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    known: dict[str, dict[str, Any]] = {}

    def look(situation: str) -> dict[str, Any]:
        if situation == "no landlock" and (reason := namespaces.available()):
            pytest.skip(reason)
        if situation not in known:
            result = root / f"attacks-{situation}.json"
            with (root / f"attacks-{situation}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not result.exists():
                    runner = start(str(result), *SITUATIONS[situation].words)
                    said = runner.communicate()[1]
                    if runner.returncode:
                        result.write_text(json.dumps({"failed": said}))
            known[situation] = json.loads(result.read_text())
        assert "failed" not in known[situation], known[situation]["failed"]
        return known[situation]

    return look


@pytest.mark.parametrize(("situation", "mode", "name"), ATTACKED)
def test_the_attack_fails(fates: Any, situation: str, mode: str, name: str) -> None:
    run = fates(situation)["modes"][mode]
    assert name not in run["broken"], run["broken"][name]
    outcome = run["outcomes"][name]
    assert outcome["word"] in ATTACKS[name].expected(mode), outcome
    assert outcome["mode"] == mode
    assert len(outcome["detail"]) <= 1000
    assert "\n" not in outcome["detail"]
    assert len(outcome["output"]) <= 4 * 4 * 4096 + 200, "output is kept from both ends only"
    assert outcome["wall_seconds"] < 20


@pytest.mark.parametrize("situation", SITUATIONS)
def test_nothing_outside_was_touched_and_nothing_stays(fates: Any, situation: str) -> None:
    result = fates(situation)
    assert result["touched"] == []
    assert not any(run["touched"] for run in result["modes"].values())
    assert result["left"] == {"processes": [], "files": [], "shared": [], "listening": []}
    assert result["descriptors"] <= 0
    assert result["megabytes"] < 300, "what the programs printed and returned does not pile up in the caller"


@pytest.mark.parametrize("situation", SITUATIONS)
def test_programs_between_the_attacks_are_judged_as_ever(fates: Any, situation: str) -> None:
    for run in fates(situation)["modes"].values():
        assert len(run["honest"]) >= len(run["outcomes"])
        assert set(run["honest"]) == {"pass"}
        assert set(run["false"]) == {"wrong"}


def test_a_container_gets_landlock_and_is_told_why(fates: Any) -> None:
    facts = fates("container")["facts"]
    assert facts["tier"] == "landlock"
    assert "namespaces" in facts["refused"]


@pytest.mark.parametrize("situation", SITUATIONS)
def test_the_probes_are_in_the_facts(fates: Any, situation: str) -> None:
    probes = fates(situation)["facts"]["probes"]
    assert {result for mode in probes.values() for result in mode.values()} == {"blocked"}
    assert {"isolated", "official"} <= set(probes)


def test_namespaces_asked_for_in_a_container_are_refused(tmp_path: Path) -> None:
    runner = start(str(tmp_path / "result.json"), "--tier", "namespaces", "--container", "--only", "sleep")
    said = runner.communicate(timeout=60)[1]
    assert runner.returncode
    assert "SetupError" in said.splitlines()[-1]
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("situation", ["offered", "container"])
def test_a_killed_caller_takes_everything_along(tmp_path: Path, situation: str) -> None:
    slow = ["--only", "sleep", "infinite loop", "ignore and block every signal", "a thread that is left over"]
    with tempfile.TemporaryDirectory(prefix="killed-") as scratch:
        runner = start(str(tmp_path / "r"), *SITUATIONS[situation].words, *slow, env={**os.environ, "TMPDIR": scratch})
        try:
            wait_for(lambda: len(descendants(runner.pid)) >= 4 or runner.poll() is not None, "the workers to start")
            assert runner.poll() is None, runner.communicate()[1]
            time.sleep(0.3)
            below = descendants(runner.pid)
        finally:
            runner.kill()
            runner.communicate()
        wait_for(lambda: not below & set(everyone()), "all processes to end")
        runs = list(Path(scratch).rglob("selectkd-sandbox-*"))
        wait_for(lambda: not any(path.exists() for path in runs), "its directories to go")


def wait_for(done: Any, what: str) -> None:
    """Fails after a minute."""
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.02)


def everyone() -> dict[tuple[int, str], int]:
    """Every process that is not a zombie, by number and start time, and its parent."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] not in "ZX":
            found[int(entry.parent.name), fields[19]] = int(fields[1])
    return found


def descendants(pid: int) -> set[tuple[int, str]]:
    """Everything below a process."""
    alive = everyone()
    found: set[tuple[int, str]] = set()
    parents = {pid}
    while parents:
        below = {key for key, parent in alive.items() if parent in parents}
        found |= below
        parents = {number for number, _ in below}
    return found
