"""`kill -9` in the middle of the gate and of the clock: the same command again ends with the same record."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import TinyPair

N, REPETITIONS = 4, 2
KILLED_IN = ('"key":"gate/', '"key":"time/')


def command(pair: TinyPair, out: Path) -> list[str]:
    models = ["--target", str(pair.teacher), "--draft", str(pair.student), "--prompts", str(pair.data)]
    size = ["--limit", str(N), "--repetitions", str(REPETITIONS), "--max-new-tokens", "40", "--ignore-end"]
    return [sys.executable, "-m", "selectkd_eval", "speedup", *models, *size, "--gamma", "2", "4", "--out", str(out)]


def start(line: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def written(out: Path, word: str) -> int:
    """Whole lines of the record so far with this in them."""
    found = next(out.glob("speedup-*.jsonl"), None)
    return sum(word in line for line in found.read_text().split("\n")[:-1]) if found else 0


def rows(out: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in next(out.glob("speedup-*.jsonl")).read_text().splitlines()]
    assert [line["type"] for line in lines if "type" in line] == ["header", "end"]
    keyed = [line for line in lines if "key" in line]
    assert len({row["key"] for row in keyed}) == len(keyed), "a row was written twice"
    return {row["key"]: row for row in keyed}


def counted(found: dict[str, Any]) -> dict[str, Any]:
    """Everything of a record but its clock: gate, acceptance, and which runs there are."""
    kept: dict[str, Any] = {}
    for key, row in found.items():
        if key.startswith(("gate/", "text/")):
            kept[key] = row
        elif key.startswith("time/"):
            names = (
                "rep",
                "place",
                "draft",
                "gamma",
                "control",
                "tokens",
                "steps",
                "drafted_per_step",
                "accepted_per_step",
            )
            kept[key] = [{name: run[name] for name in names} for run in row["runs"]]
        else:
            kept[key] = None
    return kept


@pytest.mark.slow
def test_kills_change_nothing_and_no_prompt_is_timed_half(tiny_pair: TinyPair, tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for word in KILLED_IN:
        before = written(killed, word)
        with start(command(tiny_pair, killed)) as run:
            deadline = time.monotonic() + 120
            while written(killed, word) <= before and time.monotonic() < deadline:
                assert run.poll() is None, "the run ended by itself"
                time.sleep(0.002)
            run.send_signal(signal.SIGKILL)
        assert run.returncode == -signal.SIGKILL
    assert start(command(tiny_pair, killed)).wait(120) == 0
    assert start(command(tiny_pair, whole)).wait(120) == 0
    found = rows(killed)
    assert counted(found) == counted(rows(whole))
    for key, row in found.items():
        if key.startswith("time/"):
            assert len(row["runs"]) == REPETITIONS * 4
