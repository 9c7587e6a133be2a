"""Outcomes, limits, tiers, refusals, and what the sandbox's machinery does when something in it is killed."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from selectkd_eval.errors import InputError, SetupError
from selectkd_eval.sandbox import bubblewrap, landlock, namespaces, probes, slot, tiers
from selectkd_eval.sandbox.client import Sandbox
from selectkd_eval.sandbox.ends import Capture, judge
from selectkd_eval.sandbox.program import Limits, Outcome, Program
from selectkd_eval.sandbox.wire import Frames, pack

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(sys.platform != "linux" or not landlock.abi(), reason="this kernel has no Landlock")
LIMITS = Limits(cpu_seconds=0.5, wall_factor=5, memory_bytes=400 << 20, output_bytes=1000)
MODES = ("isolated", "official")


@pytest.fixture(scope="module", params=["auto", "landlock"])
def box(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with Sandbox(LIMITS, workers=1, tier=request.param) as sandbox:
        yield sandbox


def one(box: Sandbox, code: str, test: str = "assert f() == 1", mode: Any = "isolated", **more: Any) -> Outcome:
    """The outcome of a single program."""
    ((place, outcome),) = box.run([Program(id="t/0", code=textwrap.dedent(code), test=test, **more)], mode)
    assert place == 0
    assert outcome.mode == mode
    return outcome


FATES = {
    "pass": ("def f(): return 1", "pass", ""),
    "wrong": ("def f(): return 2", "wrong", "assert f() == 1"),
    "error in the code": ("1 / 0", "error", "ZeroDivisionError"),
    "error in the call": ("def f(): return [][0]", "error", "IndexError"),
    "no such name": ("def g(): return 1", "error", "NameError"),
    "syntax": ("def f(: pass", "error", "SyntaxError"),
    "timeout": ("def f():\n while True: pass", "timeout", "0.5 s of CPU"),
    "memory": ("def f(): return len(bytearray(1 << 30))", "memory", ""),
    "segfault": ("import os, signal\ndef f(): os.kill(os.getpid(), signal.SIGSEGV)", "crash", "SIGSEGV"),
    "leaves": ("import os\ndef f(): os._exit(3)", "crash", "ended before its tests did (exit status 3)"),
    "kills itself": ("import os\ndef f(): os.kill(os.getpid(), 9)", "crash", "SIGKILL"),
    "forks": ("import os\ndef f(): return os.fork()", "forbidden", "PermissionError"),
    "opens": ("def f(): return open('/etc/passwd').read()", "forbidden", "PermissionError"),
    "module": ("import torch.nn\ndef f(): return 1", "import-missing", "torch"),
    "stdin": ("def f(): return input()", "error", "EOFError"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FATES)
def test_each_fate_has_its_word(box: Sandbox, name: str, mode: str) -> None:
    code, word, detail = FATES[name]
    if name == "opens" and box.facts["tier"] != "landlock":
        word, detail = "error", "FileNotFoundError"  # in its namespaces there is no such file
    outcome = one(box, code, mode=mode)
    assert outcome.word == word, outcome
    assert detail in outcome.detail, outcome
    assert outcome.again == (word == "timeout")
    assert outcome.passed == (word == "pass")


def test_limits_are_of_cpu_time_and_sleeping_is_only_guarded(box: Sandbox) -> None:
    sleeper = one(box, "import time\ndef f(): time.sleep(0.8); return 1")
    assert sleeper.word == "pass"
    assert sleeper.cpu_seconds < 0.3 < 0.8 < sleeper.wall_seconds
    forever = one(box, "import time\ndef f(): time.sleep(60)")
    assert (forever.word, forever.again) == ("timeout", True)
    assert 2.5 <= forever.wall_seconds < 9, "0.5 s of CPU times 5"
    threads = one(box, "import threading\ndef f():\n while True: sum(range(10**6))")
    assert threads.word == "timeout"
    assert 0.45 < threads.cpu_seconds < 0.9


def test_limits_of_memory_and_files(box: Sandbox) -> None:
    assert one(box, "def f(): return len([0] * 10**8) and 1").word == "memory"
    assert one(box, "def f(): return len(bytearray(50 << 20)) and 1").word == "pass"
    big = one(box, "def f():\n with open('a', 'wb') as file: file.write(bytes(2 << 20))\n return 1")
    assert big.word in ("error", "crash"), big
    assert one(box, "def f():\n with open('a', 'wb') as file: file.write(bytes(1000))\n return 1").passed


@pytest.mark.parametrize("mode", MODES)
def test_output_keeps_both_ends_and_counts_the_rest(box: Sandbox, mode: str) -> None:
    code = """
        import sys
        print("first")
        sys.stdout.write("x" * 3_000_000)
        print("last")
        print("complaint", file=sys.stderr)
        print("\\udc80\\0")
        def f(): return 1
    """
    outcome = one(box, code, mode=mode)
    assert outcome.passed
    assert outcome.output.startswith("first\nxxx")
    assert "xxxlast\n" in outcome.output
    assert outcome.output.endswith("[stderr]\ncomplaint\n")
    assert "[... 2998019 bytes left out ...]" in outcome.output  # 6 + 3e6 + 5 + 8 - 2 * 1000
    assert len(outcome.output) < 2200
    json.dumps(outcome.as_dict(), ensure_ascii=False).encode()


def test_a_program_finds_an_empty_directory_and_leaves_none(box: Sandbox) -> None:
    mess = """
        import os
        os.mkdir("deep"); os.chdir("deep")
        for i in range(300): os.mkdir("d" * 100); os.chdir("d" * 100)
        os.mkdir("shut", 0)
        os.symlink("/etc", "link")
        os.mkfifo("fifo")
        open(".moved-1", "w").close()
        def f(): return 1
    """
    look = "import os\ndef f(): return os.listdir('.') == [] and os.getcwd().count('run-')"
    for code in (mess, look):
        outcome = one(box, code)
        assert outcome.word in ("pass", "forbidden"), outcome  # a fifo is refused
    assert one(box, look).passed


def test_random_numbers_and_hashes_are_the_same_every_time(box: Sandbox) -> None:
    code = "import random\nprint(random.random(), hash('a'))\ndef f(): return 1"
    assert len({one(box, code, mode=mode).output for mode in MODES for _ in range(3)}) == 1


def test_packages_are_those_named(box: Sandbox) -> None:
    assert box.facts["packages"]["numpy"][0].isdigit()
    assert one(box, "import numpy as np\ndef f(): return int(np.array([1, 2]).sum() - 2)").passed
    assert one(box, "import pandas\ndef f(): return 1").detail == "pandas"
    assert one(box, "import sqlite3, zoneinfo\ndef f(): return 1").passed


def test_facts_say_what_the_walls_are(box: Sandbox) -> None:
    facts = json.loads(json.dumps(box.facts))
    assert facts["tier"] in ("namespaces", "bubblewrap", "landlock")
    assert facts["landlock_abi"] == landlock.abi()
    assert facts["kernel"] == os.uname().release
    assert facts["limits"] == LIMITS.as_dict()
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(facts["probes"]) == set(MODES)
    for answers in facts["probes"].values():
        assert answers == dict.fromkeys(probes.NAMES, "blocked")


def test_every_program_is_answered_whatever_the_order(box: Sandbox) -> None:
    programs = [Program(id=str(i), code=f"def f(): return {i}", test=f"assert f() == {i // 2 * 2}") for i in range(20)]
    for mode in MODES:
        words = dict(box.run(programs, mode))
        assert sorted(words) == list(range(20))
        assert [words[i].word for i in range(20)] == ["pass", "wrong"] * 10


def test_run_from_another_thread_and_stopping_early(box: Sandbox) -> None:
    programs = [Program(id=str(i), code="def f(): return 1", test="assert f() == 1") for i in range(8)]
    found: list[Outcome] = []
    thread = threading.Thread(target=lambda: found.extend(outcome for _, outcome in box.run(programs, "isolated")))
    thread.start()
    thread.join()
    assert [outcome.word for outcome in found] == ["pass"] * 8
    for _ in box.run(programs, "isolated"):
        break
    assert len(list(box.run(programs, "isolated"))) == 8


def test_a_second_thread_is_turned_away(box: Sandbox) -> None:
    running = box.run([Program(id="a", code="def f(): return 1", test="assert f() == 1")] * 3, "isolated")
    next(running)
    with pytest.raises(RuntimeError, match="running programs already"):
        next(box.run([], "isolated"))
    running.close()


def test_wrong_words_are_named(box: Sandbox) -> None:
    with pytest.raises(InputError, match="no sandbox mode 'fast'"):
        list(box.run([], "fast"))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no sandbox tier 'dock'"), Sandbox(tier="dock"):
        pass
    with pytest.raises(InputError, match="above 0"):
        Sandbox(Limits(cpu_seconds=0))
    with pytest.raises(InputError, match="-1 workers"):
        Sandbox(workers=-1)
    with pytest.raises(SetupError, match="pip install no_such_package"), Sandbox(packages=("no_such_package",)):
        pass


def children(pid: int) -> list[int]:
    """The living descendants of a process."""
    try:
        text = "".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    except FileNotFoundError:
        return []
    return [pid for child in text.split() for pid in (int(child), *children(int(child)))]


def scratches() -> set[Path]:
    return set(Path(tiers.tempfile.gettempdir()).glob("selectkd-*"))


@pytest.mark.parametrize("tier", ["auto", "landlock"])
def test_a_worker_that_dies_is_replaced_and_its_program_run_again(tier: str) -> None:
    programs = [Program(id=str(i), code="def f(): return 1", test="assert f() == 1") for i in range(6)]
    with Sandbox(LIMITS, workers=1, tier=tier) as box:
        for killed, number in (("supervisor", 0), ("fork-server", 1)):
            found = []
            for place, outcome in box.run(programs, "isolated"):
                if not found:
                    worker = box._workers[0].process.pid
                    os.kill([worker, *children(worker)][number], signal.SIGKILL)
                found.append((place, outcome.word))
            assert sorted(found) == [(i, "pass") for i in range(6)], killed
        before = box._workers[0].process.pid
    assert not Path(f"/proc/{before}").exists()


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
                list(box.run([Program(id="sleeper", code="import time\ntime.sleep(1)", test="")], "isolated"))
        finally:
            stop.set()
            thread.join()
        assert one(box, "def f(): return 1").passed


CLIENT = """
import sys
from selectkd_eval.sandbox.client import Sandbox
from selectkd_eval.sandbox.program import Limits, Program
with Sandbox(Limits(), workers=2, tier=sys.argv[1], packages=()) as box:
    print(box.facts["tier"], box._launcher.scratch, flush=True)
    sleeper = Program(id="s", code="print('x', flush=True)\\nimport time\\ntime.sleep(50)", test="")
    for place, outcome in box.run([sleeper] * 2, "isolated"):
        print(outcome, flush=True)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT], ids=["killed", "ctrl-c"])
@pytest.mark.parametrize("tier", ["auto", "landlock"])
def test_nothing_outlives_its_client(tier: str, end: signal.Signals) -> None:
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, tier], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
    )
    assert client.stdout is not None
    scratch = client.stdout.readline().split()[1]
    deadline = time.monotonic() + 20
    while len(below := children(client.pid)) < 8 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(below) == 8, "two workers: supervisor, fork-server, candidate and tester each"
    client.send_signal(end)
    client.wait(20)
    while any(Path(f"/proc/{pid}/stat").exists() for pid in below) and time.monotonic() < deadline + 20:
        time.sleep(0.02)
    assert not [pid for pid in below if Path(f"/proc/{pid}/stat").exists()]
    assert not Path(scratch).exists()
    client.stdout.close()


def test_a_sandbox_leaves_no_file_process_or_descriptor() -> None:
    before = scratches(), len(os.listdir("/proc/self/fd")), children(os.getpid())
    with Sandbox(LIMITS, workers=2, tier="landlock") as box:
        one(box, "open('a', 'w').close()\ndef f(): return 1")
    after = scratches() - before[0], len(os.listdir("/proc/self/fd")), children(os.getpid())
    assert after == (set(), *before[1:])


# A client whose system calls are denied beforehand, as a container would: 1 denies unshare and new namespaces by clone,
# 2 the Landlock calls as well.
DENIED = """
import ctypes, struct, sys
from selectkd_eval.errors import SetupError
from selectkd_eval.sandbox import syscalls
from selectkd_eval.sandbox.client import Sandbox
from selectkd_eval.sandbox.program import Limits, Program
numbers = [syscalls.NUMBERS[name] for name in sys.argv[2].split(",")]
steps = [(0x20, 0, 0, 0)]
for left, number in enumerate(reversed(numbers)):
    steps.insert(1, (0x15, left + 1, 0, number))
steps += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050001)]
code = b"".join(struct.pack("=HBBI", *step) for step in steps)
buffer = ctypes.create_string_buffer(code, len(code))
syscalls.call("prctl", 38, 1, 0, 0, 0)
syscalls.call("seccomp", 1, 0, struct.pack("@HP", len(steps), ctypes.addressof(buffer)))
try:
    with Sandbox(Limits(), workers=1, tier=sys.argv[1], packages=()) as box:
        (_, outcome), = box.run([Program(id="a", code="def f(): return 1", test="assert f() == 1")], "isolated")
        print(box.facts["tier"], outcome.word, list(box.facts["refused"]))
except SetupError as error:
    print(error)
"""


def denied(tier: str, calls: str, **environment: str) -> str:
    """What a client says on a machine that denies these system calls."""
    command = [sys.executable, "-c", DENIED, tier, calls]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | environment, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_without_namespaces_landlock_is_the_wall() -> None:
    assert denied("auto", "unshare") == "landlock pass ['namespaces', 'bubblewrap']"


def test_a_named_tier_that_is_not_real_is_refused_and_not_replaced() -> None:
    said = denied("namespaces", "unshare")
    assert said.startswith("the sandbox was asked for as 'namespaces' and is not real on this machine (namespaces: ")
    assert "leave the choice of the tier to --sandbox auto" in said
    assert "docker run --network none --read-only --cap-drop ALL" in said


def test_without_any_wall_nothing_is_run() -> None:
    said = denied("auto", "unshare,landlock_create_ruleset")
    for tier in ("namespaces: ", "bubblewrap: ", "landlock: "):
        assert tier in said
    assert "model-written code is not run without it" in said
    assert "docker run" in said
    assert "\n" not in said


def test_external_takes_the_users_word() -> None:
    assert denied("external", "unshare,landlock_create_ruleset") == "external pass []"


@pytest.mark.skipif(bubblewrap.find() is None, reason="bwrap is not installed here")
def test_bubblewrap() -> None:
    with Sandbox(LIMITS, workers=1, tier="bubblewrap") as box:
        assert box.facts["tier"] == "bubblewrap"
        assert one(box, "import numpy\ndef f(): return 1").passed
        assert one(box, "import os\ndef f(): return len(os.listdir('/home'))").word in ("forbidden", "error")


def test_bubblewrap_that_is_missing_is_named() -> None:
    said = denied("bubblewrap", "unshare", PATH="/nowhere")
    assert "no program bwrap is on the PATH" in said
    assert "install bubblewrap" in said


def test_the_remedy_fits_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "_sysctl", lambda name: "1" if "apparmor" in name else "")
    assert "Ubuntu 24.04" in tiers.remedies("auto")[0]
    monkeypatch.setattr(tiers, "_sysctl", lambda name: "0")
    assert [text for text in tiers.remedies("auto") if "max_user_namespaces" in text]
    monkeypatch.setattr(tiers.platform, "release", lambda: "5.4.0-150-generic")
    assert [text for text in tiers.remedies("landlock") if "5.13" in text and "5.4.0" in text]


def plain_python() -> str | None:
    """An interpreter that every user may run, new enough for the sandbox."""
    for candidate in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        asked = [candidate, "-c", "import sys; print(sys.version_info >= (3, 11))"]
        run = subprocess.run(asked, capture_output=True, text=True, check=False, user=65534, group=65534, cwd="/") if (
            Path(candidate).exists()
        ) else None
        if run is not None and run.stdout.strip() == "True":
            return candidate
    return None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user; as a plain user every test is this one")
@pytest.mark.parametrize("tier", ["auto", "landlock"])
def test_a_plain_user_has_the_same_sandbox(tier: str, tmp_path: Path) -> None:
    try:
        python = plain_python()
    except PermissionError:
        python = "/usr/bin/python3" if sys.version_info >= (3, 11) and Path("/usr/bin/python3").exists() else None
    if python is None:
        pytest.skip("no interpreter of 3.11 or later that a plain user may run")
    package = tmp_path / "selectkd_eval"
    shutil.copytree(ROOT / "selectkd_eval" / "sandbox", package / "sandbox")
    for name in ("__init__.py", "errors.py", "environment.py"):
        shutil.copy(ROOT / "selectkd_eval" / name, package)
    for place in (tmp_path, *tmp_path.parents):
        if place.stat().st_mode & 0o001 == 0:
            pytest.skip("the temporary directory is closed to other users")
    code = CLIENT.replace("time.sleep(50)", "time.sleep(0)").replace("print(box.facts", "print(box.facts['uid'], box.facts")
    run = subprocess.run(
        [python, "-c", code, tier], capture_output=True, text=True, user=65534, group=65534, extra_groups=[], cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("65534 "), run.stdout
    assert run.stdout.count("word='pass'") == 2, run.stdout


def test_the_first_and_the_last_bytes(tmp_path: Path) -> None:
    capture = Capture(4)
    read, write = os.pipe2(os.O_NONBLOCK)
    for chunk in (b"ab", b"cdef", b"g" * 10, b"hi"):
        os.write(write, chunk)
        assert capture.drain(read)
    assert not capture.drain(read)
    os.close(write)
    assert not capture.drain(read)
    os.close(read)
    assert capture.start() == b"abcd"
    assert capture.text() == "abcd\n[... 10 bytes left out ...]\ngghi"


def end(status: int = 0, cpu: float = 0.1, killed: str = "", peak: int = 0) -> dict[str, Any]:
    return {"status": status, "cpu": cpu, "killed": killed, "peak_bytes": peak}


@pytest.mark.parametrize(
    ("lines", "ends", "word", "detail"),
    [
        (b'{"nonce": "n", "word": "pass", "detail": ""}\n', [end(9, killed="end"), end()], "pass", ""),
        (b'{"nonce": "x", "word": "pass", "detail": ""}\n', [end(), end()], "crash", "exit status 0"),
        (b'{"nonce": "n", "word": "pass", "detail": ""}', [end(), end()], "crash", "exit status 0"),
        (b'{"nonce": "n", "word": "won"}\n[]\nx\n', [end(256), end()], "crash", "exit status 1"),
        (b'{"nonce": "n", "word": "pass", "detail": ""}\n', [end(9, cpu=1.1, killed="end"), end()], "timeout", "1 s"),
        (b'{"nonce": "n", "word": "crash", "detail": ""}\n', [end(11), end()], "crash", "SIGSEGV"),
        (b"", [end(9, cpu=0.995), end()], "timeout", "1 s of CPU"),
        (b"", [end(9, peak=90), end()], "memory", "kernel"),
        (b"", [end(9, peak=10), end()], "crash", "SIGKILL"),
        (b"", [end(31), end()], "forbidden", "architecture"),
        (b"", [end(9, killed="wall"), end(9, killed="wall")], "timeout", "3 s of waiting"),
        (b"", [end(9, killed="files"), end(9, killed="files")], "memory", "files"),
        (b"", [end(9, killed="end"), end(9, killed="cpu")], "timeout", "tests"),
        (b'{"nonce": "n", "note": "base passed"}\n', [end(11), end()], "crash", "base passed; SIGSEGV"),
    ],
)
def test_ends_are_judged(lines: bytes, ends: list[dict[str, Any]], word: str, detail: str) -> None:
    limits = Limits(cpu_seconds=1, memory_bytes=100)
    found = judge(lines, "n", dict(zip(("candidate", "tester"), ends, strict=True)), limits)
    assert found[0] == word
    assert detail in found[1]


def test_messages_survive_any_cut() -> None:
    messages = [{"a": "\ud800é" * 10}, {}, {"b": list(range(50))}]
    data = b"".join(map(pack, messages))
    for size in (1, 3, 7, 1000):
        frames = Frames()
        found = [m for at in range(0, len(data), size) for m in frames.feed(data[at : at + size])]
        assert found == messages


def test_emptying_is_not_stopped_by_what_lies_there(tmp_path: Path) -> None:
    room = slot.Slot(str(tmp_path))
    outside = tmp_path / "outside"
    outside.write_text("kept")
    here = Path(room.path)
    os.symlink(outside, here / "link")
    os.symlink(tmp_path, here / "up")
    os.mkfifo(here / "fifo")
    for name in ("a", "b", ".moved-1"):
        (here / name / "x" / "y" / "z").mkdir(parents=True)
        (here / name / "x" / "y" / "z" / "file").write_text("")
    place = os.open(here, os.O_RDONLY)
    for _ in range(3000):  # far beyond the longest path and any recursion limit
        os.mkdir("deep", dir_fd=place)
        inner = os.open("deep", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
    os.close(place)
    (here / "shut").mkdir(0)
    room.empty()
    assert os.listdir(here) == []
    assert outside.read_text() == "kept"
    assert not room.overfull()
    for i in range(slot.MOST_FILES + 1):
        os.close(os.open(here / str(i), os.O_CREAT, 0))
    assert room.overfull()
    room.empty()


def test_golds_pass_and_cost_little(shared_data: Path) -> None:
    import gzip

    with gzip.open(shared_data / "tasks" / "HumanEval.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file][:40]
    programs = [
        Program(
            id=row["task_id"],
            code=row["prompt"] + row["canonical_solution"],
            test=row["test"],
            entry_point=row["entry_point"],
            given=row["prompt"],
        )
        for row in rows
    ]
    with Sandbox(Limits(), workers=2) as box:
        for mode in MODES:
            outcomes = dict(box.run(programs, mode))
            assert {outcome.word for outcome in outcomes.values()} == {"pass"}
            assert sum(outcome.cpu_seconds for outcome in outcomes.values()) / len(programs) < 0.1


def test_namespaces_are_used_where_they_work() -> None:
    if namespaces.available() is not None:
        pytest.skip("this machine has no namespaces for us")
    with Sandbox(LIMITS, workers=1, packages=()) as box:
        assert box.facts["tier"] == "namespaces"
        alone = "import os\ndef f(): return os.getppid()"
        assert one(box, alone).passed, "the fork-server is process 1"
        assert one(box, "import os\nassert not os.path.exists('/home')\ndef f(): return 1").passed
    assert ctypes.sizeof(ctypes.c_void_p) == 8
