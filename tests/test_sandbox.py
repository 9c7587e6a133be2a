"""Outcomes, limits, output, facts: what a caller of the sandbox counts on, on the machine's tier and on Landlock."""

from __future__ import annotations

import gzip
import json
import os
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from selectkd_eval.errors import InputError, SetupError
from selectkd_eval.sandbox import landlock, probes
from selectkd_eval.sandbox.client import Sandbox
from selectkd_eval.sandbox.program import Limits, Outcome, Program

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
    assert sleeper.cpu_seconds < 0.3
    assert sleeper.wall_seconds > 0.8
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


@pytest.mark.parametrize("mode", MODES)
def test_a_program_finds_a_command_line(box: Sandbox, mode: str) -> None:
    code = "import argparse, sys\nparser = argparse.ArgumentParser()\ndef f(): return len(sys.argv)"
    assert one(box, code, mode=mode).passed


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
    with pytest.raises(InputError, match="'t/7' has neither tests nor inputs"):
        list(box.run([Program(id="t/7", code="pass", test=" \n")], "isolated"))
    with pytest.raises(InputError, match="'t/9' has neither tests nor inputs"):
        list(box.run([Program(id="t/9", code="pass", plus={"base": [], "plus": []})], "isolated"))
    with pytest.raises(InputError, match="only `isolated` mode"):
        list(box.run([Program(id="t/8", code="pass", plus={"task": "HumanEval/1"})], "official"))
    with pytest.raises(InputError, match="above 0"):
        Sandbox(Limits(cpu_seconds=0))
    with pytest.raises(InputError, match="-1 workers"):
        Sandbox(workers=-1)
    with pytest.raises(SetupError, match="pip install no_such_package"), Sandbox(packages=("no_such_package",)):
        pass


def test_golds_pass_and_cost_little(shared_data: Path) -> None:
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
