"""Records survive what happens to files: kills, torn lines, full disks, changed inputs, two writers."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selectkd_eval import records
from selectkd_eval.errors import InputError
from selectkd_eval.records import canonical, open_record, read, read_all, record_path, replay
from selectkd_eval.verbs import AnswerOptions, LandscapeOptions, PasskOptions


def options(tmp_path: Path, **changes: object) -> AnswerOptions:
    return dataclasses.replace(AnswerOptions(out=tmp_path), **changes)


def start(tmp_path: Path, digest: str = "a" * 64, **changes: object) -> records.Writer:
    return open_record("answer", options(tmp_path, **changes), inputs={"the model": digest}, facts={"n": 1})


def test_same_options_same_file_and_runtime_options_do_not_count(tmp_path: Path) -> None:
    path = record_path("answer", options(tmp_path))
    assert path == record_path("answer", options(tmp_path, device="cpu", threads=1, batch_size=3))
    assert path != record_path("answer", options(tmp_path, seed=1))
    assert path != record_path("answer", options(tmp_path, limit=3))


def test_a_record_is_read_back_with_the_last_row_of_each_key(tmp_path: Path) -> None:
    with start(tmp_path) as record:
        record.write("a", value=1)
        record.write("b", error="server said no")
        record.write("b", value=2)
        record.finish()
    found = read(record.path)
    assert [(row["key"], row["value"]) for row in found.rows] == [("a", 1), ("b", 2)]
    assert found.finished and found.verb == "answer" and not found.failed


def test_failures_are_tried_again_and_finished_rows_are_not(tmp_path: Path) -> None:
    with start(tmp_path) as record:
        record.write("good", value=1)
        record.write("bad", error="timed out")
    with start(tmp_path) as record:
        assert set(record.done) == {"good"}
        assert not record.complete


def test_an_unfinished_record_is_refused_by_readers(tmp_path: Path) -> None:
    with start(tmp_path) as record:
        record.write("a", value=1)
    with pytest.raises(InputError, match="unfinished"):
        read(record.path)
    assert read(record.path, unfinished_ok=True).rows[0]["value"] == 1
    finished, unfinished = read_all(tmp_path)
    assert (finished, unfinished) == ([], [record.path])


@given(cut=st.integers(min_value=1, max_value=200))
def test_a_torn_last_line_is_cut_off_and_the_rest_kept(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    tmp_path = tmp_path_factory.mktemp("torn")
    with start(tmp_path) as record:
        record.write("a", text="zwölf Boxkämpfer" * 4)
        record.write("b", text="ß" * 90)
    whole = record.path.read_bytes()
    record.path.write_bytes(whole[:-cut])
    last = json.loads(whole.decode().splitlines()[-1])
    with start(tmp_path) as again:
        assert "a" in again.done
        assert "b" not in again.done
        again.write("b", text=last["text"])
        again.finish()
    assert [row["key"] for row in read(record.path).rows] == ["a", "b"]


def test_damage_in_the_middle_is_one_clear_sentence(tmp_path: Path) -> None:
    with start(tmp_path) as record:
        record.write("a", value=1)
        record.finish()
    lines = record.path.read_text().splitlines(keepends=True)
    record.path.write_text(lines[0] + "{broken\n" + lines[2])
    with pytest.raises(InputError, match=r"line 2 .* not a JSON object"):
        read(record.path)


@pytest.mark.parametrize("text", ["", "[1, 2]\n", '{"a": 1}\n', '{"type":"header","schema":99,"verb":"tar"}\n'])
def test_what_is_no_record_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(InputError):
        read(path)


def test_changed_inputs_are_refused(tmp_path: Path) -> None:
    with start(tmp_path) as record:
        record.write("a", value=1)
    with pytest.raises(InputError, match="the model has changed"):
        start(tmp_path, digest="b" * 64)


def test_two_writers_are_refused(tmp_path: Path) -> None:
    with start(tmp_path), pytest.raises(InputError, match="another process"):
        start(tmp_path)


def test_not_a_number_is_stored_as_null(tmp_path: Path) -> None:
    assert canonical({"b": math.nan, "a": [math.inf, 1.5]}) == '{"a":[null,1.5],"b":null}'


@pytest.mark.parametrize("content", ["", '{"type":"hea'])
def test_a_run_killed_before_its_header_does_not_stop_the_reading_of_others(tmp_path: Path, content: str) -> None:
    with open_record("answer", AnswerOptions(out=tmp_path), inputs={}, facts={}) as record:
        record.finish()
    killed = tmp_path / "tar-0123456789.jsonl"
    killed.write_text(content)
    finished, unfinished = read_all(tmp_path)
    assert ([found.path for found in finished], unfinished) == ([record.path], [killed])
    with pytest.raises(InputError, match="run its command again"):
        read(killed)


def test_no_space_for_the_first_line_is_one_sentence(tmp_path: Path) -> None:
    code = f"""
import resource
from pathlib import Path
from selectkd_eval.errors import SetupError
from selectkd_eval.records import open_record
from selectkd_eval.verbs import AnswerOptions
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    open_record("answer", AnswerOptions(out=Path({str(tmp_path)!r})), inputs={{}}, facts={{}})
except SetupError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("no space left while writing") and done.stdout.count("\n") == 1
    with open_record("answer", AnswerOptions(out=tmp_path), inputs={}, facts={}) as record:
        record.finish()
    assert read(record.path).finished, "half a header is cut off and written again"


def test_no_space_is_one_sentence_and_loses_no_row(tmp_path: Path) -> None:
    # A limit on the size of files stands for a full disk: the kernel refuses the write in the same way.
    code = f"""
import dataclasses, resource, signal, sys
from pathlib import Path
from selectkd_eval.records import open_record
from selectkd_eval.verbs import AnswerOptions
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
from selectkd_eval.errors import SetupError
try:
    with open_record("answer", AnswerOptions(out=Path({str(tmp_path)!r})), inputs={{}}, facts={{}}) as record:
        for i in range(1000):
            record.write(str(i), text="x" * 100)
except SetupError as error:
    print(error)
    sys.exit(2)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "no space left" in done.stdout and "run the same command again" in done.stdout
    record = read(next(tmp_path.glob("*.jsonl")), unfinished_ok=True)
    assert len(record.rows) > 10


def test_a_killed_writer_leaves_every_finished_row(tmp_path: Path) -> None:
    code = f"""
import itertools
from pathlib import Path
from selectkd_eval.records import open_record
from selectkd_eval.verbs import AnswerOptions
with open_record("answer", AnswerOptions(out=Path({str(tmp_path)!r})), inputs={{}}, facts={{}}) as record:
    for i in itertools.count():
        record.write(str(i), text="x" * 1000)
        print(i, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        seen = [int(process.stdout.readline()) for _ in range(50)]
        os.kill(process.pid, signal.SIGKILL)
    record = read(next(tmp_path.glob("*.jsonl")), unfinished_ok=True)
    assert {str(i) for i in seen} <= {row["key"] for row in record.rows}


def test_like_replays_options_but_not_where_or_how_fast(tmp_path: Path) -> None:
    written = PasskOptions(out=tmp_path, tasks=("gsm8k",), data=Path("tasks"), batch_size=7, seeds=(1, 2))
    with open_record("passk", written, inputs={}, facts={}) as record:
        record.finish()
    again = replay(record.path, "passk", PasskOptions)
    assert (again.tasks, again.data, again.seeds) == (("gsm8k",), Path("tasks"), (1, 2))
    assert again.batch_size == PasskOptions().batch_size
    with pytest.raises(InputError, match="is the record of passk, and one of landscape is needed"):
        replay(record.path, "landscape", LandscapeOptions)


def test_an_unwritable_place_is_one_sentence(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(InputError, match="cannot write"):
        start(blocked / "below")
