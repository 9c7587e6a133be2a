"""Training curves in trackers, read back by the trackers' own readers: every number at its step, and no run twice."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import record_factory
from record_factory import card

from analysis.export import run as export
from analysis.trackers import curve
from selectkd_eval import records
from selectkd_eval.verbs import ExportOptions


@pytest.fixture
def made(tmp_path: Path) -> list[records.Record]:
    return [
        record_factory.train(tmp_path / "records", card(method, 0), steps=12, every=4)
        for method in ("KD", "KD + Top-k")
    ]


def options(to: str, made: list[records.Record], out: Path) -> ExportOptions:
    return ExportOptions(to=to, records=made[0].path.parent, out=out, project="curves")


def test_training_and_validation_of_one_step_are_one_call(made: list[records.Record]) -> None:
    found = curve(made[1])
    assert list(found) == list(range(1, 13))
    rows = {(row["event"], row["step"]): row for row in made[1].rows}
    for step, values in found.items():
        assert values["train/loss"] == rows["step", step]["loss"]
        assert values["train/bite"] == rows["step", step]["bite"]
        assert ("validation/loss" in values) == (step % 4 == 0)
    assert found[8]["validation/tar"] == rows["validation", 8]["tar"]
    assert not {"train/step", "train/key", "train/event"} & found[8].keys()


def test_lists_have_their_places_in_the_name(made: list[records.Record]) -> None:
    row = {"key": "step/1", "event": "step", "step": 1, "loss_by_quarter": [0.1, None, 0.3], "flag": True, "word": "a"}
    record = records.Record(made[0].path, made[0].header, [row], True)
    assert curve(record) == {1: {"train/loss_by_quarter/1": 0.1, "train/loss_by_quarter/3": 0.3}}


def test_tensorboard_reads_what_was_trained(made: list[records.Record], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed (extra `tensorboard`)")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    export(options("tensorboard", made, tmp_path / "out"))
    folders = {path.name: path for path in (tmp_path / "out" / "curves").iterdir()}
    assert folders.keys() == {record.path.stem for record in made}
    for record in made:
        read = EventAccumulator(str(folders[record.path.stem]), size_guidance={"scalars": 0, "tensors": 0})
        read.Reload()
        found = curve(record)
        assert set(read.Tags()["scalars"]) == {name for values in found.values() for name in values}
        for name in read.Tags()["scalars"]:
            wanted = [(step, values[name]) for step, values in found.items() if name in values]
            seen = [(event.step, event.value) for event in read.Scalars(name)]
            assert [step for step, _ in seen] == [step for step, _ in wanted]
            assert [value for _, value in seen] == pytest.approx([value for _, value in wanted], rel=1e-6)
        (told,) = read.Tensors("config")
        config = json.loads(told.tensor_proto.string_val[0])
        assert config["record"] == record.path.name
        assert config["options"] == record.options


def test_tensorboards_files_are_the_same_when_written_again(made: list[records.Record], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed (extra `tensorboard`)")
    export(options("tensorboard", made, tmp_path / "out"))
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    export(options("tensorboard", made, tmp_path / "out"))
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    assert len(before) == len(made)


def wandb_file(content: bytes) -> Iterator[bytes]:
    """The messages of a .wandb file: LevelDB's log format, blocks of 32 KiB, after a header of seven bytes."""
    place, message = 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, size, kind = struct.unpack_from("<IHB", content, place)
        message += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole message, or the last part of one
            yield message
            message = b""


def test_wandb_offline_holds_every_step_and_nothing_is_sent_twice(
    made: list[records.Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed (extra `wandb`)")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    out = tmp_path / "out"
    export(options("wandb", made, out))
    stores = sorted(out.rglob("*.wandb"))
    assert len(stores) == len(made)
    seen = {}
    for path in stores:
        history, name = {}, ""
        for data in wandb_file(path.read_bytes()):
            one = wandb_internal_pb2.Record()
            one.ParseFromString(data)
            if one.WhichOneof("record_type") == "run":
                name = one.run.display_name
            if one.WhichOneof("record_type") == "history":
                values = {
                    "/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in one.history.item
                }
                history[values["_step"]] = {key: value for key, value in values.items() if not key.startswith("_")}
        seen[name] = history
    assert seen == {record.path.stem: curve(record) for record in made}
    capsys.readouterr()
    export(options("wandb", made, out))
    assert sorted(out.rglob("*.wandb")) == stores
    assert capsys.readouterr().out.count("sent to wandb before") == len(made)


def test_trackio_holds_every_step_and_nothing_is_sent_twice(
    made: list[records.Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="trackio is not installed (extra `trackio`)")
    from trackio.sqlite_storage import SQLiteStorage

    out = tmp_path / "out"
    for _ in range(2):
        export(options("trackio", made, out))
    assert set(SQLiteStorage.get_runs("curves")) == {record.path.stem for record in made}
    for record in made:
        logs = SQLiteStorage.get_logs("curves", record.path.stem)
        found = {log["step"]: {k: v for k, v in log.items() if "/" in k} for log in logs}
        assert found == curve(record)
    assert capsys.readouterr().out.count("sent to trackio before") == len(made)
