"""The whole job, small: every verb runs on the embedded pair, the page stands, and a second run repeats nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from selectkd_eval.records import read_all

VERBS = {"train", "answer", "passk", "tar", "landscape", "winrate", "speedup"}


def demo(out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "selectkd_eval", "demo", "--quick", "--out", str(out)]
    env = dict(os.environ) | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_whole_job(tmp_path: Path) -> None:
    first = demo(tmp_path)
    assert first.returncode == 0, first.stderr
    finished, unfinished = read_all(tmp_path / "records")
    assert not unfinished
    assert {record.verb for record in finished} == VERBS
    assert not [row for record in finished for row in record.failed]
    assert "KD + Spec-k" in first.stdout
    assert "not a human or LLM preference" in first.stdout
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<img") == 10  # every figure but that of several teachers
    assert page.count("<table") == 7  # four results, two below Table 5, and where they come from
    assert {path.suffix for path in (tmp_path / "figures").iterdir()} == {".png", ".svg", ".pdf", ".json"}

    before = {path: path.read_bytes() for path in (tmp_path / "records").glob("*.jsonl")}
    again = demo(tmp_path)
    assert again.returncode == 0, again.stderr
    assert {path: path.read_bytes() for path in (tmp_path / "records").glob("*.jsonl")} == before
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page
