"""Records that must not become a number: killed, truncated, damaged, copied, or of other rules or prompts.

Each is refused or left out with the reason, by every reader, and a table is written from what is whole or not at all.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import record_factory as make
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rewriting import rewrite

from analysis.acceptance import tar_sets
from analysis.grid import Grid
from analysis.load import library
from analysis.protocols import one_protocol
from judges import compare
from selectkd_eval import passk_compare, records
from selectkd_eval.cli import main
from selectkd_eval.errors import InputError
from selectkd_eval.records import canonical, open_record, read, read_all, read_each, record_path
from selectkd_eval.verbs import AnswerOptions, PasskOptions

RUNS = {
    "passk": "--model embedded:student --tasks mini-gsm --limit 12 --batch-size 1",
    "answer": "--model embedded:student --prompts mini-stories:test --limit 12 --batch-size 1",
    "tar": "--teacher embedded:teacher --student embedded:student --data mini-gsm:validation --limit 12 --batch-size 1",
}


def run(words: str, out: Path) -> subprocess.Popen[bytes]:
    line = [sys.executable, "-m", "selectkd_eval", *words.split(), "--device", "cpu", "--threads", "1"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen([*line, "--out", str(out)], env=os.environ, **quiet)


def killed(words: str, out: Path, rows: int = 3) -> Path:
    """The record of a run that `kill -9` ended once it had written some rows."""
    with run(words, out) as process:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if any(path.read_bytes().count(b"\n") > rows for path in out.glob("*.jsonl")):
                break
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    (path,) = out.glob("*.jsonl")
    return path


@pytest.mark.parametrize("verb", [pytest.param(one, marks=[pytest.mark.slow] * (one != "tar")) for one in RUNS])
def test_a_killed_run_is_named_with_the_command_that_finishes_it(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = killed(f"{verb} {RUNS[verb]}", tmp_path)
    rows = len(read(path, unfinished_ok=True).rows)
    assert 0 < rows <= 12
    for words in (["table", "2"], ["figure", "passk"], ["report"]):
        out = tmp_path / "out" / ("page.html" if words == ["report"] else "")
        assert main([*words, "--records", str(tmp_path), "--out", str(out)]) == 2
        said = capsys.readouterr().err
        assert f"holds no finished record: {path} is unfinished ({rows} rows, no end line)" in said
        assert not (tmp_path / "out").exists()
    (finish,) = re.findall(r"finish it with `(.+)`", said)
    assert main(["show", str(path)]) == 0
    assert f"finish it with {finish}" in capsys.readouterr().out
    assert main(["list", "records", "--records", str(tmp_path)]) == 0
    assert finish in " ".join(capsys.readouterr().out.split())
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(finish.replace("-", "_", 1))], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert read(path).finished and len(list(tmp_path.glob("*.jsonl"))) == 1


def test_a_killed_run_beside_others_is_left_out_loudly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make.passk(tmp_path, make.card("Teacher"))
    record = make.passk(tmp_path, make.card("Start"))
    record.path.write_bytes(record.path.read_bytes()[:-9])
    found = library(tmp_path)
    said = capsys.readouterr().err
    assert f"left out: {record.path} is unfinished (60 rows, no end line): finish it with `selectkd-eval passk" in said
    assert [method.role for method in Grid(found, "passk", 50).methods] == ["model"]  # the teacher alone
    page = tmp_path / "page.html"
    assert main(["report", "--records", str(tmp_path), "--out", str(page), "--resamples", "50"]) == 0
    assert f"{record.path.name} is unfinished (60 rows" in page.read_text()
    assert "left out" in capsys.readouterr().err


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make.passk(tmp_path_factory.mktemp("whole"), make.card("KD", 0), n=8).path.read_bytes()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(data=st.data())
def test_no_part_of_a_record_is_another_number(tmp_path: Path, whole: bytes, data: st.DataObject) -> None:
    length = data.draw(st.integers(0, len(whole) - 1), label="bytes left")
    path = tmp_path / "passk-cut.jsonl"
    path.write_bytes(whole[:length])
    finished, unfinished = read_all(tmp_path)
    assert not finished and unfinished == [path]
    with pytest.raises(InputError):
        read(path)
    with pytest.raises(InputError, match=r"passk-cut\.jsonl"):
        library(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(data=st.data())
def test_no_changed_byte_is_another_number(tmp_path: Path, whole: bytes, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(whole) - 1), label="place")
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[place]), label="byte")
    spoilt = whole[:place] + bytes([byte]) + whole[place + 1 :]
    path = tmp_path / "passk-spoilt.jsonl"
    path.write_bytes(spoilt)
    before = tmp_path / "before"
    before.mkdir(exist_ok=True)
    (before / "x.jsonl").write_bytes(whole)
    sound = read(before / "x.jsonl")
    (before / "x.jsonl").unlink()
    try:
        found = read(path)
    except InputError as error:
        assert path.name in str(error)
    else:  # a change that JSON does not see (a name in the end line that nobody reads) changes nothing
        assert (found.header, found.rows) == (sound.header, sound.rows)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_lines_that_went_missing_or_changed_places_are_noticed(
    tmp_path: Path, whole: bytes, data: st.DataObject
) -> None:
    lines = whole.splitlines(keepends=True)
    gone = data.draw(st.integers(1, len(lines) - 2))
    path = tmp_path / "passk-gap.jsonl"
    path.write_bytes(b"".join(lines[:gone] + lines[gone + 1 :]))
    with pytest.raises(InputError, match=r"end in line 9 counts 8 measured rows, and 7 stand before it"):
        read(path)
    path.write_bytes(b"".join([lines[0], lines[gone], *lines[1:gone], *lines[gone + 1 :]]))
    if gone > 1:
        with pytest.raises(InputError, match="is not as it was written"):
            read(path)


def test_a_record_with_other_line_ends_is_the_same_record(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(whole.replace(b"\n", b"\r\n"))
    assert len(read(path).rows) == 8


def test_records_of_earlier_versions_without_a_checksum_are_read(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(re.sub(rb',"sha256":"[0-9a-f]{64}","type":"end"', b',"type":"end"', whole))
    assert b'"rows":8,"type":"end"' in path.read_bytes() and len(read(path).rows) == 8


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda lines: [*lines[:3], b"{broken\n", *lines[4:]], "line 4 of {path} is not a JSON object"),
        (lambda lines: [*lines[:3], b'{"key":"\xff"}\n', *lines[4:]], "line 4 of {path} is not UTF-8 text"),
        (lambda lines: [*lines[:3], b"\n", *lines[4:]], "line 4 of {path} is not a JSON object"),
        (lambda lines: [*lines[:3], b'{"key":[1]}\n', *lines[4:]], "line 4 of {path} has no key"),
        (lambda lines: [*lines, *lines], "line 11 of {path} has no key"),
        (lambda lines: [b"[" * 200_000 + b"\n", *lines[1:]], "line 1 of {path} is not a JSON object"),
        (lambda lines: [b"\xff\n", *lines[1:]], "{path} is not a record: its bytes are not UTF-8 text (line 1)"),
        (lambda lines: [lines[0].replace(b'"schema":1', b'"schema":7'), *lines[1:]], "{path} has schema 7 in line 1"),
        (lambda lines: lines[1:], "{path} has no header line (line 1)"),
    ],
    ids=["json", "utf-8", "empty", "key", "twice", "deep", "binary", "schema", "no header"],
)
def test_damage_is_refused_by_its_line_and_nothing_is_written(
    spoil, says: str, tmp_path: Path, whole: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    make.passk(tmp_path, make.card("Teacher"))
    path = tmp_path / "passk-spoilt.jsonl"
    path.write_bytes(b"".join(spoil(whole.splitlines(keepends=True))))
    for words in (["table", "2"], ["figure", "passk"], ["report"]):
        assert main([*words, "--records", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert says.format(path=path) in said and "(the other 1 can be read)" in said
        assert not (tmp_path / "out").exists()


def test_all_damaged_records_are_named_in_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = [make.passk(tmp_path, make.card("KD", seed)).path for seed in range(4)]
    found[1].write_bytes(found[1].read_bytes().replace(b'"correct":1', b'"correct":0', 1))
    found[2].write_bytes(found[2].read_bytes().replace(b'"key":', b'"kez":', 1))
    found[3].write_bytes(found[3].read_bytes()[:-1])
    assert main(["table", "2", "--records", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert f"2 of 4 records in {tmp_path} are refused, and the other 2 can be read" in said
    assert all(str(path) in said for path in found[1:3]) and not (tmp_path / "out").exists()
    finished, unfinished, refused = read_each(tmp_path)
    assert ([one.path for one in finished], unfinished, set(refused)) == ([found[0]], [found[3]], set(found[1:3]))
    assert main(["list", "records", "--records", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("refused: ") == 2


def test_damage_stops_the_command_that_would_go_on_with_the_record(tmp_path: Path) -> None:
    for content in (b"\xff\n", b'{"type":"header"}\n'):
        path = record_path("answer", AnswerOptions(out=tmp_path))
        path.write_bytes(content)
        with pytest.raises(InputError, match=re.escape(str(path))):
            open_record("answer", AnswerOptions(out=tmp_path), inputs={}, facts={})
        assert path.read_bytes() == content


def test_rows_behind_the_end_are_those_of_a_run_that_goes_on(tmp_path: Path) -> None:
    def opened() -> records.Writer:
        return open_record("answer", AnswerOptions(out=tmp_path), inputs={}, facts={})

    with opened() as record:
        record.write("a", value=1)
        record.write("b", error="timed out")
        record.finish()
    assert read(record.path).finished
    with opened() as record:
        assert record.complete
        record.write("b", value=2)
        assert not read(record.path, unfinished_ok=True).finished, "killed here, it is no finished record"
        record.finish()
        record.finish()
    assert record.path.read_text().count('"type":"end"') == 2
    assert [row["value"] for row in read(record.path).rows] == [1, 2]
    again = record.path.read_bytes()
    with opened() as record:
        record.finish()
    assert record.path.read_bytes() == again


def test_a_copied_file_counts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = make.card("KD", 0)
    made = [make.passk(tmp_path, student), make.winrate(tmp_path, student, make.card("Start"), n=30)]
    made += [make.tar(tmp_path, [student], [10], n=12), make.train(tmp_path, student), make.speedup(tmp_path, student)]
    alone = library(tmp_path)
    for record in made:
        (tmp_path / f"{record.verb}-copied.jsonl").write_bytes(record.path.read_bytes())
    capsys.readouterr()
    both = library(tmp_path)
    said = capsys.readouterr().err
    assert len(both.records) == len(made) == said.count("and counts once")
    for kind in ("passk", "winrate"):
        one, two = Grid(alone, kind, 50), Grid(both, kind, 50)
        (column,), (method,) = two.columns, two.methods
        assert two.terms(column, method).den.sum() == one.terms(column, method).den.sum() > 0
        assert any(f"{kind}-" in note and "counts once" in note for note in two.notes)


def test_one_command_run_into_two_directories_counts_once_and_other_values_are_told(tmp_path: Path) -> None:
    one = make.passk(tmp_path / "a", make.card("KD", 0))
    two = make.passk(tmp_path / "b", make.card("KD", 0))
    assert one.path.read_bytes() != two.path.read_bytes(), "--out stands in the header"
    (note,) = library(tmp_path).copies.values()
    assert "(the same rows)" in note
    rewrite(two.path, two.path.read_text().replace('"correct":1', '"correct":0', 1))
    (note,) = library(tmp_path).copies.values()
    assert "the same keys, but other values" in note
    make.passk(tmp_path / "c", make.card("KD", 1))
    assert len(library(tmp_path).records) == 2, "another student is no copy"


def test_two_protocols_are_refused_with_all_that_differs(tmp_path: Path) -> None:
    for protocol, ties in (("selectkd", "excluded"), ("distillm2", "half")):
        make.winrate(tmp_path, make.card("KD", 0), make.card("Start"), n=30, ties=ties, protocol=protocol)
    found = library(tmp_path)
    facts = [record.facts["protocol"] for record in found.of("winrate")]
    with pytest.raises(InputError, match="2 protocols do not share a table") as caught:
        one_protocol(found, "")
    differing = {name for name in facts[0] if facts[0][name] != facts[1].get(name)} - {"name", "sha256"}
    told = str(caught.value).partition("they differ in ")[2]
    assert differing and all(f"{name} " in told for name in differing)


def test_other_shots_are_another_column_and_never_paired(tmp_path: Path) -> None:
    make.passk(tmp_path, make.card("KD", 0))
    other = make.passk(tmp_path, make.card("KD + Spec-k", 0))
    rewrite(other.path, other.path.read_text().replace('"shots":0', '"shots":5'))
    grid = Grid(library(tmp_path), "passk", 50)
    assert sorted(grid.label(column) for column in grid.columns) == ["mini-gsm (shots 0)", "mini-gsm (shots 5)"]
    gate = next(method for method in grid.methods if method.base)
    (base,) = (method for method in grid.methods if method != gate)
    assert all(grid.delta(column, gate, base) is None for column in grid.columns)


def test_tar_of_another_k_or_text_is_another_set(tmp_path: Path) -> None:
    one = make.tar(tmp_path, [make.card("KD", 0)], [10], n=12)
    for place, (old, new) in enumerate([('"k":5', '"k":9'), (make.digest("v"), make.digest("w"))]):
        text = one.path.read_text()
        assert old in text
        rewrite(tmp_path / f"tar-{place}.jsonl", text.replace(old, new))
    assert len(tar_sets(library(tmp_path))) == 3


def other_prompts(directory: Path) -> None:
    make.passk(directory, make.card("KD", 0), n=12)
    other = make.passk(directory, make.card("KD + Spec-k", 0), n=12)
    text = other.path.read_text()
    for old, new in (("p3", "x3"), ("p7", "x7")):
        text = text.replace(f'"{old}"', f'"{new}"').replace(f"/{old}/", f"/{new}/")
    rewrite(other.path, text)


def test_other_prompts_in_a_column_are_not_paired_and_listed(tmp_path: Path) -> None:
    other_prompts(tmp_path)
    grid = Grid(library(tmp_path), "passk", 50)
    (column,) = grid.columns
    gate = next(method for method in grid.methods if method.base)
    assert grid.delta(column, gate, grid.base_of(column, gate)) is None
    (note,) = [note for note in grid.notes if note.startswith("No difference")]
    assert "2 only in the first, 2 only in the second, 10 in both" in note
    assert "only in the first: mini-gsm/x3, mini-gsm/x7" in note
    assert "only in the second: mini-gsm/p3, mini-gsm/p7" in note


def test_table_and_page_say_which_prompts_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other_prompts(tmp_path)
    words = ["--records", str(tmp_path), "--resamples", "50", "--out"]
    assert main(["table", "2", *words, str(tmp_path / "out")]) == 0
    assert "only in the first: mini-gsm/x3, mini-gsm/x7" in capsys.readouterr().out
    assert main(["report", *words, str(tmp_path / "page.html")]) == 0
    assert "only in the first: mini-gsm/x3, mini-gsm/x7" in (tmp_path / "page.html").read_text()


def test_the_same_ids_with_other_prompts_are_another_column(tmp_path: Path) -> None:
    one = make.passk(tmp_path, make.card("KD", 0))
    gate = make.passk(tmp_path, make.card("KD + Spec-k", 0))
    assert [row["key"] for row in one.rows] == [row["key"] for row in gate.rows]
    rewrite(gate.path, gate.path.read_text().replace(make.digest("mini-gsm"), make.digest("other questions")))
    grid = Grid(library(tmp_path), "passk", 50)
    assert len(grid.columns) == 2 and len({grid.label(column) for column in grid.columns}) == 2
    method = next(method for method in grid.methods if method.base)
    (base,) = (other for other in grid.methods if other != method)
    assert all(grid.delta(column, method, base) is None for column in grid.columns)


def test_judged_records_of_other_prompts_are_compared_with_the_list(tmp_path: Path) -> None:
    one = make.winrate(tmp_path, make.card("KD", 0), make.card("Start"), n=30)
    two = make.winrate(tmp_path, make.card("KD", 1), make.card("Start"), n=28)
    said = " ".join(" ".join(compare.lines(one, [two], 50)).split())
    only = sorted({row["prompt"] for row in one.rows} - {row["prompt"] for row in two.rows})
    assert "2 only here, 0 only there, 28 in both" in said and all(str(prompt)[:40] in said for prompt in only)


def test_the_command_of_a_record_has_what_was_asked(tmp_path: Path) -> None:
    options = PasskOptions(out=tmp_path / "a b", model="m", tasks=("gsm8k",), limit=3)
    with open_record("passk", options, inputs={}, facts={}) as record:
        record.write("a", value=1)
    said = records.unfinished(record.path)
    words = shlex.split(said.partition("`")[2].rpartition("`")[0])
    assert words[:2] == ["selectkd-eval", "passk"] and str(tmp_path / "a b") in words and "--limit" in words
    assert canonical(read(record.path, unfinished_ok=True).options) == canonical(records.all_options(options))


def test_runs_on_other_problems_are_compared_with_the_list(tmp_path: Path) -> None:
    other_prompts(tmp_path)
    one, two = sorted((record for record in library(tmp_path).of("passk")), key=lambda r: r.facts["model"]["method"])
    said = " ".join(" ".join(passk_compare.compare_lines(two.facts, two.rows, one.facts, one.rows)).split())
    assert "4 problems were answered in one record only and are left out" in said
    assert "2 only in this record, 2 only in the other, 10 in both" in said
    assert "only in this record: x3, x7; only in the other: p3, p7" in said
