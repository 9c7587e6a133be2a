"""What the sandbox's machinery does when something in it is killed, and for a user who is not root."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from selectkd_eval.errors import SetupError
from selectkd_eval.sandbox import bubblewrap, landlock
from selectkd_eval.sandbox.client import Sandbox
from selectkd_eval.sandbox.program import Limits, Program

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(sys.platform != "linux" or not landlock.abi(), reason="this kernel has no Landlock")
LIMITS = Limits(cpu_seconds=2)
HONEST = Program(id="honest", code="def f(): return 1", test="assert f() == 1")


def children(pid: int) -> list[int]:
    """The living descendants of a process."""
    try:
        text = "".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    except FileNotFoundError:
        return []
    return [pid for child in text.split() for pid in (int(child), *children(int(child)))]


@pytest.mark.parametrize("tier", ["auto", "landlock"])
def test_a_worker_that_dies_is_replaced_and_its_program_run_again(tier: str) -> None:
    with Sandbox(LIMITS, workers=1, tier=tier) as box:
        for killed, number in (("supervisor", 0), ("fork-server", 1)):
            found = []
            for place, outcome in box.run([HONEST] * 6, "isolated"):
                if not found:
                    worker = box._workers[0].process.pid
                    os.kill([worker, *children(worker)][number], signal.SIGKILL)
                found.append((place, outcome.word))
            assert sorted(found) == [(i, "pass") for i in range(6)], killed
        before = box._workers[0].process.pid
    assert not Path(f"/proc/{before}").exists()


def test_what_a_killed_worker_leaves_is_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Sandbox(LIMITS, workers=1, tier="landlock") as box:
        box._workers[0].process.kill()
        box._workers[0].process.wait()
        assert list(tmp_path.glob("selectkd-sandbox-*/worker-*/run-*"))
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_of_the_caller_does_not_keep_the_workers_alive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    box = Sandbox(LIMITS, workers=2, tier="landlock")
    with box:
        workers = [worker.process.pid for worker in box._workers]
        gate, ours = os.pipe()
        other = os.fork()  # as a loader of data would, with all descriptors of this process
        if other == 0:
            os.close(ours)
            box._launcher.close()  # not its own to remove
            os.read(gate, 1)
            os._exit(0)
        os.close(gate)
        assert [outcome.word for _, outcome in box.run([HONEST], "isolated")] == ["pass"]
        started = time.monotonic()
    took = time.monotonic() - started
    os.close(ours)
    os.waitpid(other, 0)
    assert took < 5, "not even one worker was waited for in vain"
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert not list(tmp_path.iterdir())


def test_a_worker_that_dies_twice_is_a_defect_and_no_verdict() -> None:
    with Sandbox(LIMITS, workers=1) as box:
        stop = threading.Event()

        def kill() -> None:
            while not stop.wait(0.02):
                for worker in box._workers:
                    if worker.outstanding:
                        worker.process.kill()

        thread = threading.Thread(target=kill)
        thread.start()
        try:
            with pytest.raises(SetupError, match=r"died twice under the program 'sleeper'.*not a verdict"):
                list(box.run([Program(id="sleeper", code="import time\ntime.sleep(1)", test="1")], "isolated"))
        finally:
            stop.set()
            thread.join()
        assert [outcome.word for _, outcome in box.run([HONEST], "isolated")] == ["pass"]


CLIENT = """
import sys
from selectkd_eval.sandbox.client import Sandbox
from selectkd_eval.sandbox.program import Limits, Program
with Sandbox(Limits(), workers=2, tier=sys.argv[1], packages=()) as box:
    print(box.facts["tier"], box._launcher.scratch, flush=True)
    sleeper = Program(id="s", code="print('x', flush=True)\\nimport time\\ntime.sleep(50)", test="1")
    for place, outcome in box.run([sleeper] * 2, "isolated"):
        print(outcome, flush=True)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT], ids=["killed", "ctrl-c"])
@pytest.mark.parametrize("tier", ["auto", "landlock", "bubblewrap"])
def test_nothing_outlives_its_client(tier: str, end: signal.Signals) -> None:
    if tier == "bubblewrap" and bubblewrap.find() is None:
        pytest.skip("bwrap is not installed here")
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, tier], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
    )
    assert client.stdout is not None
    real, scratch = client.stdout.readline().split()
    expected = 12 if real == "bubblewrap" else 8  # bwrap has two of its own per worker
    deadline = time.monotonic() + 20
    while len(below := children(client.pid)) < expected and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(below) == expected, "two workers: supervisor, fork-server, candidate and tester each"
    client.send_signal(end)
    client.wait(20)
    while any(Path(f"/proc/{pid}/stat").exists() for pid in below) and time.monotonic() < deadline + 20:
        time.sleep(0.02)
    assert not [pid for pid in below if Path(f"/proc/{pid}/stat").exists()]
    assert not Path(scratch).exists()
    client.stdout.close()


def test_a_sandbox_leaves_no_file_process_or_descriptor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = len(list(Path("/proc/self/fd").iterdir())), children(os.getpid())
    with Sandbox(LIMITS, workers=2, tier="landlock") as box:
        assert list(tmp_path.iterdir())
        list(box.run([HONEST] * 3, "isolated"))
    assert before == (len(list(Path("/proc/self/fd").iterdir())), children(os.getpid()))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user may enter."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


def plain_python() -> str:
    """An interpreter that every user may run and that is new enough, or a skip."""
    asked = "import sys; print(sys.version_info >= (3, 11))"
    for candidate in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        try:
            answer = subprocess.check_output([candidate, "-c", asked], text=True, user=65534, group=65534, cwd="/")
        except OSError:
            continue
        if answer.strip() == "True":
            return candidate
    pytest.skip("no interpreter of 3.11 or later that a plain user may run")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user; a plain user runs every other test")
@pytest.mark.parametrize("tier", ["auto", "landlock"])
def test_a_plain_user_has_the_same_sandbox(tier: str, open_directory: Path) -> None:
    python = plain_python()
    package = open_directory / "selectkd_eval"
    shutil.copytree(ROOT / "selectkd_eval" / "sandbox", package / "sandbox")
    for name in ("__init__.py", "errors.py", "environment.py"):
        shutil.copy(ROOT / "selectkd_eval" / name, package)
    code = CLIENT.replace("time.sleep(50)", "time.sleep(0)").replace('box.facts["tier"]', 'box.facts["uid"]')
    run = subprocess.run(
        [python, "-c", code, tier],
        capture_output=True,
        text=True,
        user=65534,
        group=65534,
        extra_groups=[],
        cwd=open_directory,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("65534 "), run.stdout
    assert run.stdout.count("word='pass'") == 2, run.stdout
