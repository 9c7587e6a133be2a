"""Which wall stands where, and the refusal where none does: on machines whose system calls are denied beforehand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from selectkd_eval.sandbox import bubblewrap, landlock, namespaces, tiers
from selectkd_eval.sandbox.client import Sandbox
from selectkd_eval.sandbox.program import Limits, Program

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(sys.platform != "linux" or not landlock.abi(), reason="this kernel has no Landlock")
LIMITS = Limits(cpu_seconds=2)


def words(box: Sandbox, *codes: str) -> list[str]:
    """What becomes of modules whose function f is to return something true."""
    programs = [Program(id=str(i), code=code, test="assert f()") for i, code in enumerate(codes)]
    found = dict(box.run(programs, "isolated"))
    return [found[i].word for i in range(len(codes))]


# A client whose system calls are denied beforehand, as a container would: without unshare and mount there
# are no namespaces for us or for bwrap.
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
        codes = sys.argv[3:] or ["def f(): return 1"]
        programs = [Program(id=str(i), code=code, test="assert f() == 1") for i, code in enumerate(codes)]
        words = [outcome.word for _, outcome in sorted(box.run(programs, "isolated"))]
        print(box.facts["tier"], *words, list(box.facts["refused"]))
except SetupError as error:
    print(error)
"""


def denied(tier: str, calls: str, *codes: str, **environment: str) -> str:
    """What a client says on a machine that denies these system calls."""
    command = [sys.executable, "-c", DENIED, tier, calls, *codes]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | environment, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_without_namespaces_landlock_is_the_wall() -> None:
    assert denied("auto", "unshare,mount") == "landlock pass ['namespaces', 'bubblewrap']"


def test_a_named_tier_that_is_not_real_is_refused_and_not_replaced() -> None:
    said = denied("namespaces", "unshare")
    assert said.startswith("the sandbox was asked for as 'namespaces' and is not real on this machine (namespaces: ")
    assert "leave the choice of the tier to --sandbox auto" in said
    assert "docker run --network none --read-only --cap-drop ALL" in said


def test_without_any_wall_nothing_is_run() -> None:
    said = denied("auto", "unshare,mount,landlock_create_ruleset")
    for tier in ("namespaces: ", "bubblewrap: ", "landlock: "):
        assert tier in said
    assert "model-written code is not run without it" in said
    assert "docker run" in said
    assert "\n" not in said


def test_external_takes_the_users_word() -> None:
    assert denied("external", "unshare,mount,landlock_create_ruleset") == "external pass []"


@pytest.mark.parametrize("tier", ["namespaces", "external"])
def test_without_landlock_a_program_has_its_own_directory_only(tier: str) -> None:
    if tier == "namespaces" and namespaces.available():
        pytest.skip(f"no namespaces here: {namespaces.available()}")
    work = "import os, time\nup, own = os.path.split(os.getcwd())\ndef f():\n    {}\n    time.sleep(0.4)\n    return 1"
    codes = [
        work.format("os.rmdir('../' + own)"),
        work.format("os.rename('../' + own, '../moved')"),
        work.format("open('../left-behind', 'w')"),
        work.format("open('own', 'w').write('x')"),
        work.format("assert os.listdir(up) == [own] and not os.listdir()"),
    ]
    found = denied(tier, "landlock_create_ruleset", *codes)
    assert found == f"{tier} forbidden forbidden forbidden pass pass []"


@pytest.mark.skipif(bubblewrap.find() is None, reason="bwrap is not installed here")
def test_bubblewrap() -> None:
    with Sandbox(LIMITS, workers=1, tier="bubblewrap") as box:
        assert box.facts["tier"] == "bubblewrap"
        assert words(box, "import numpy\ndef f(): return 1") == ["pass"]
        assert words(box, "import os\ndef f(): return not os.path.exists('/home')") == ["pass"]


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


def test_namespaces_are_used_where_they_work() -> None:
    if namespaces.available() is not None:
        pytest.skip("this machine has no namespaces for us")
    with Sandbox(LIMITS, workers=1, packages=()) as box:
        assert box.facts["tier"] == "namespaces"
        assert words(box, "import os\ndef f(): return os.getppid() == 1") == ["pass"], "the fork-server is process 1"
        assert words(box, "import os\ndef f(): return not os.path.exists('/home')") == ["pass"]


FEW = """
import os, resource, sys, tempfile
from selectkd_eval.errors import SetupError
from selectkd_eval.sandbox.client import Sandbox
descriptors, tempfile.tempdir = int(sys.argv[1]), sys.argv[2] or None
tempfile._candidate_tempdir_list = lambda: ["/proc"]  # where nobody can make a file
resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
before = sorted(os.listdir("/proc/self/fd"))
try:
    with Sandbox(workers=1, tier="landlock", packages=()):
        print("started")
except SetupError as error:
    print(error)
assert sorted(os.listdir("/proc/self/fd")) == before
"""


@pytest.mark.parametrize(
    ("descriptors", "temporary", "says"),
    [
        (8, "here", "its workers cannot be started: [Errno 24] Too many open files"),
        (64, "here", "started"),
        (64, "", "set TMPDIR to a directory that can be written"),
        (64, "gone", "its workers cannot be started: [Errno 2] No such file or directory"),
    ],
)
def test_what_a_worker_needs_is_named(descriptors: int, temporary: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    place = str(tmp_path / temporary) if temporary else ""
    command = [sys.executable, "-c", FEW, str(descriptors), place]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert says in run.stdout, run.stderr
    assert run.returncode == 0, run.stderr
