"""A landscape that is killed, interrupted, shared or run again: no point is measured twice, the rows are the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import replace

import pytest
from conftest import tiny_llama
from landscape_runs import of_kind, only_record, options, saved

from analysis.landscapes import whole as whole_landscapes
from selectkd_eval import landscape, pair, records
from selectkd_eval.directions import fingerprint
from selectkd_eval.landscapes import students, walk
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


def test_a_whole_run_takes_over_what_shares_hold_and_refines_it(tiny_pair, tmp_path, capsys):
    given = options(tiny_pair, tmp_path / "whole", grid=7, radius=None, held_out=9, scalars=1, tolerance=1e-4)
    landscape.run(given)
    whole = of_kind(only_record(given.out).rows, "probe", "grid", "held-out", "refined", "scalar")
    beside = replace(given, out=tmp_path / "shares")
    landscape.run(replace(beside, share="1/2"))
    landscape.run(replace(beside, share="2/2"))
    path = records.record_path("landscape", replace(beside, share="2/2"))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-6]))  # killed: five rows are lost, and the end line
    landscape.run(replace(beside, radius=0.7))  # another landscape takes nothing over
    capsys.readouterr()
    landscape.run(beside)
    lost = {json.loads(line)["key"] for line in lines[-6:-1]}
    record = records.read(records.record_path("landscape", beside))
    assert {row["key"]: row for row in record.rows} == whole
    taken = [row for row in whole.values() if row["kind"] != "refined" and row["key"] not in lost]
    assert f" rows ({len(taken)} of them taken over from shares), " in capsys.readouterr().out
    path.unlink()  # half of the shares: the whole landscape stands without them
    assert [part.names for part in whole_landscapes([record, *shares_of(beside.out)])] == [[record.path.name]]


def shares_of(out):
    return [record for record in records.read_all(out)[0] if record.facts["share"]]


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


def test_students_that_do_not_fit_into_memory_are_let_go_and_give_the_same_rows(tiny_pair, tmp_path, monkeypatch):
    loaded = pair.load_model(str(tiny_pair.student))
    names = [str(tiny_pair.student)]
    names += [saved(tiny_llama(loaded.tokenizer, seed=n), loaded.tokenizer, tmp_path / f"s{n}") for n in (1, 2)]
    how = {"student": tuple(names), "radius": None, "held_out": 3, "scalars": 1, "directions": 2, "tolerance": 1e-4}
    given = options(tiny_pair, tmp_path / "kept", **how)
    landscape.run(given)
    alive: weakref.WeakSet = weakref.WeakSet()
    load, most = pair.load_model, []

    def counted(name, device):
        student = load(name, device)
        if name in names:
            alive.add(student.model)
            most.append(len(alive))
        return student

    monkeypatch.setattr(students, "_KEPT", 0)
    monkeypatch.setattr(walk, "_KEPT_PLANES", 0)
    monkeypatch.setattr(pair, "load_model", counted)
    landscape.run(replace(given, out=tmp_path / "let-go"))
    first, second = only_record(tmp_path / "kept"), only_record(tmp_path / "let-go")
    assert first.rows == second.rows and first.facts == second.facts
    assert {row["kind"] for row in first.rows} == {"probe", "grid", "held-out", "refined", "scalar"}
    assert len(most) >= 5 * 3 and max(most) == 1, "one by one, in every turn"


def test_the_same_command_gives_the_same_rows(tiny_pair, tmp_path):
    for name in ("a", "b"):
        landscape.run(options(tiny_pair, tmp_path / name, radius=None, held_out=3, scalars=1))
    first, second = (only_record(tmp_path / name) for name in ("a", "b"))
    assert first.rows == second.rows and first.facts == second.facts
