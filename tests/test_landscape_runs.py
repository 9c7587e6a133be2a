"""A landscape that is killed, interrupted, shared or run again: no point is measured twice, the rows are the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from landscape_runs import of_kind, only_record, options

from selectkd_eval import landscape, pair, records
from selectkd_eval.directions import fingerprint
from selectkd_eval.landscapes import walk
from selectkd_eval.landscapes.loss import CommonLoss
from selectkd_eval.verbs import LandscapeOptions


def command(given: LandscapeOptions, *more: str) -> list[str]:
    words = ["landscape", "--teacher", given.teacher, "--student", *given.student, "--data", given.data]
    words += ["--sequences", str(given.sequences), "--grid", str(given.grid), "--scalars", str(given.scalars)]
    words += ["--held-out", str(given.held_out), "--threads", "1", "--device", "cpu", "--out", str(given.out), *more]
    return [sys.executable, "-m", "selectkd_eval", *words]


@pytest.mark.parametrize("rows", [60, 320], ids=["in the grid", "in the refinement"])
def test_a_run_killed_at_any_moment_goes_on_without_repeating_a_point(tiny_pair, tmp_path, monkeypatch, rows):
    given = options(tiny_pair, tmp_path / "killed", grid=15, radius=None, held_out=24, scalars=2, tolerance=1e-4)
    process = subprocess.Popen(
        command(given, "--tolerance", "1e-4"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ,
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if any(path.read_bytes().count(b"\n") > rows for path in given.out.glob("*.jsonl")):
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (path,) = given.out.glob("*.jsonl")
    before = path.read_text().splitlines()
    assert before[-1].find('"type":"end"') < 0, "killed in the middle"
    monkeypatch.setattr(walk, "automatic", None)  # the radius stands in the header: nothing is probed again
    landscape.run(given)
    monkeypatch.undo()
    keys = [json.loads(line)["key"] for line in path.read_text().splitlines()[1:-1]]
    assert len(keys) == len(set(keys))
    landscape.run(replace(given, out=tmp_path / "whole"))
    whole = {row["key"]: row for row in only_record(tmp_path / "whole").rows}
    assert {row["kind"] for row in whole.values()} == {"probe", "grid", "held-out", "refined", "scalar"}
    assert set(keys) == set(whole)
    for row in records.read(path).rows:
        if "loss_sum" in row:
            assert row["loss_sum"] == pytest.approx(whole[row["key"]]["loss_sum"], rel=1e-6)


def test_shares_together_are_the_whole_and_agree_on_the_radius(tiny_pair, tmp_path, monkeypatch, capsys):
    given = options(tiny_pair, tmp_path / "whole", radius=None, held_out=5, scalars=2, directions=2, rise=0.5)
    landscape.run(given)
    whole = only_record(tmp_path / "whole")
    shared: dict[str, dict] = {}
    for k in (1, 2, 3):
        landscape.run(replace(given, out=tmp_path / "shares", share=f"{k}/3"))
        monkeypatch.setattr(walk, "automatic", None)  # the first share has probed for all
    assert "nothing refined" in capsys.readouterr().out
    found = [records.read(path) for path in (tmp_path / "shares").glob("*.jsonl")]
    assert len(found) == 3
    for record in found:
        assert record.facts["radius"] == whole.facts["radius"]
        assert {k: v for k, v in record.facts.items() if k != "share"} == {
            k: v for k, v in whole.facts.items() if k != "share"
        }
        mine = of_kind(record.rows, "grid", "held-out", "scalar")
        assert not mine.keys() & shared.keys()
        shared |= mine
    expected = of_kind(whole.rows, "grid", "held-out", "scalar")
    assert shared == expected and len(of_kind(expected.values(), "scalar")) > 10


def test_shares_begun_at_once_find_the_same_radius_alone(tiny_pair, tmp_path):
    radii = set()
    for k in (1, 2):
        given = options(tiny_pair, tmp_path / str(k), radius=None, grid=3, share=f"{k}/2")
        landscape.run(given)
        radii.add(only_record(tmp_path / str(k)).facts["radius"])
    assert len(radii) == 1


def test_an_interrupt_leaves_the_model_as_it_was_and_the_rows_before_it(tiny_pair, tmp_path, monkeypatch):
    loaded: list[pair.LoadedModel] = []
    load, sums = pair.load_model, CommonLoss.sums

    def keep(*args, **kwargs):
        loaded.append(load(*args, **kwargs))
        return loaded[-1]

    def interrupted(self, model):
        interrupted.calls += 1
        if interrupted.calls == 12:
            raise KeyboardInterrupt
        return sums(self, model)

    interrupted.calls = 0
    monkeypatch.setattr(pair, "load_model", keep)
    monkeypatch.setattr(CommonLoss, "sums", interrupted)
    given = options(tiny_pair, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        landscape.run(given)
    student = loaded[-1].model
    original = load(str(tiny_pair.student)).model
    assert fingerprint(dict(student.named_parameters())) == fingerprint(dict(original.named_parameters()))
    (path,) = tmp_path.glob("*.jsonl")
    assert len(records.read(path, unfinished_ok=True).rows) == 11
    monkeypatch.setattr(CommonLoss, "sums", sums)
    landscape.run(given)
    assert len(only_record(tmp_path).rows) == 25


def test_the_same_command_gives_the_same_rows(tiny_pair, tmp_path):
    for name in ("a", "b"):
        landscape.run(options(tiny_pair, tmp_path / name, radius=None, held_out=3, scalars=1))
    first, second = (only_record(tmp_path / name) for name in ("a", "b"))
    assert first.rows == second.rows and first.facts == second.facts
