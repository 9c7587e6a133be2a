"""`kill -9` at ten moments: the record is that of an undisturbed run, and hardly a call is paid for twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from judge_server import JudgeServer, serving
from judging import answer_record

from selectkd_eval import records

N, WORKERS, KILLS = 120, 4, 10


def command(out: Path, server: JudgeServer, sides: list[str]) -> list[str]:
    words = ["winrate", "--judge", "served", "--base-url", server.url, "--out", str(out), "--concurrency", str(WORKERS)]
    return [sys.executable, "-m", "selectkd_eval", *words, "--protocol", "distillm2", "--resamples", "10", *sides]


def start(line: list[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OPENAI_API_KEY": "k"}
    return subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def rows(out: Path) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in records.read(next(out.glob("winrate-*.jsonl"))).rows}


def lines(out: Path) -> list[str]:
    """The rows, in an order of their own: replies come in any, and the end line's checksum knows which it was."""
    *rows, end = next(out.glob("winrate-*.jsonl")).read_text().splitlines()[1:]
    assert f'"rows":{len(rows)}' in end
    return sorted(rows)


@pytest.mark.slow
def test_ten_kills_change_nothing_and_cost_only_what_was_in_flight(tmp_path: Path) -> None:
    one = answer_record(tmp_path, "student", {f"prompt {i}": ["x" * (9 if i % 3 else 3)] for i in range(N)})
    two = answer_record(tmp_path, "base", {f"prompt {i}": ["y" * 6] for i in range(N)})
    sides = ["--candidate", str(one), "--baseline", str(two)]
    draw = random.Random(5)
    # Once before anything can have been asked, then anywhere: between two replies, in the middle of a write.
    moments = [0, *(draw.randrange(1, 18) for _ in range(KILLS - 1))]
    in_flight = 0
    with serving(delay_s=0.01) as server:
        for replies in moments:
            before = sum(server.answered.values())
            with start(command(tmp_path / "killed", server, sides)) as run:
                deadline = time.monotonic() + 60
                while sum(server.answered.values()) < before + replies and time.monotonic() < deadline:
                    assert run.poll() is None, "the run ended by itself"
                    time.sleep(0.001)
                time.sleep(draw.uniform(0, 0.01))
                run.send_signal(signal.SIGKILL)
            assert run.returncode == -signal.SIGKILL
            in_flight += WORKERS if replies else 0
        assert start(command(tmp_path / "killed", server, sides)).wait(60) == 0
        calls = sum(server.answered.values())
        assert len(server.answered) == 2 * N
        assert calls <= 2 * N + in_flight
        server.answered.clear()
        assert start(command(tmp_path / "undisturbed", server, sides)).wait(60) == 0
        assert sum(server.answered.values()) == 2 * N == len(server.answered)
    killed, undisturbed = rows(tmp_path / "killed"), rows(tmp_path / "undisturbed")
    assert killed == undisturbed and len(killed) == 2 * N
    # Not only after the last row of a key is taken: no row was written twice, and none in halves.
    assert lines(tmp_path / "killed") == lines(tmp_path / "undisturbed")
