"""Win rates in tables: never two protocols in one, and what three seeds and so many prompts can settle."""

from __future__ import annotations

from pathlib import Path

import pytest
import record_factory as make
from judge_server import serving
from judging import answer_record
from rewriting import rewrite

from analysis import figures, tables
from analysis.grid import Grid
from analysis.load import library
from analysis.protocols import one_protocol, protocols, under
from analysis.report import page
from selectkd_eval.cli import main
from selectkd_eval.errors import InputError
from selectkd_eval.verbs import FigureOptions


def judged(directory: Path, protocol: str, ties: str) -> None:
    for method in ("KD", "KD + Spec-k"):
        for seed in range(2):
            make.winrate(directory, make.card(method, seed), make.card("Start"), n=30, ties=ties, protocol=protocol)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("mixed")
    judged(directory, "selectkd", "excluded")
    judged(directory, "distillm2", "half")
    return directory


def test_two_protocols_never_share_a_table(mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["table", "1", "--records", str(mixed), "--out", str(tmp_path), "--resamples", "100"]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "win rates of 2 protocols do not share a table" in said and "(4 records)" in said and "--protocol" in said
    with pytest.raises(InputError, match="2 protocols"):
        tables.build(4, library(mixed), 100)
    assert main([*arguments, "--protocol", "distillm2"]) == 0
    assert "a tie counts half" in (printed := capsys.readouterr().out) and "ties excluded" not in printed
    assert main([*arguments, "--protocol", "distilm"]) == 2
    assert "no win rate follows the protocol 'distilm': there are distillm2" in capsys.readouterr().err


def test_two_protocols_never_share_a_figure(mixed: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 protocols"):
        figures.run(FigureOptions(what="winrate", records=mixed, out=tmp_path, resamples=100))


def test_the_page_has_one_table_for_each_protocol(mixed: Path) -> None:
    text = page(library(mixed), "t", 100)
    assert text.count("<caption><span><strong>Table 1. Win rates") == 2


def test_a_protocol_is_named_by_its_hash_where_names_are_alike(mixed: Path) -> None:
    found = protocols(library(mixed))
    assert [one.name for one in found] == ["distillm2", "selectkd"]
    for digits in (10, 12, len(found[0].sha256)):
        chosen = one_protocol(library(mixed), found[0].sha256[:digits])
        assert {record.facts["protocol"]["sha256"] for record in chosen.of("winrate")} == {found[0].sha256}
    with pytest.raises(InputError, match="no win rate follows"):
        one_protocol(library(mixed), "istillm")
    assert len(under(library(mixed), found[1]).of("winrate")) == 4


def test_seeds_have_a_wider_interval_and_a_column_says_what_it_settles(mixed: Path) -> None:
    table = tables.win_rate_table(under(library(mixed), protocols(library(mixed))[1]), 500)
    notes = "\n".join(table.notes)
    assert "prompts and seeds both resampled" in notes
    assert "Smallest difference that mini-stories vs" in notes


def test_records_of_a_served_judge_are_tabled_live_and_by_batch_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    base = answer_record(tmp_path, "base", {f"prompt {i}": ["y" * 6] for i in range(12)})
    with serving() as server:
        for name, n in (("one", 9), ("two", 7)):
            mine = answer_record(tmp_path, name, {f"prompt {i}": ["x" * (n if i % 3 else 3)] for i in range(12)})
            words = ["winrate", "--judge", "served", "--base-url", server.url, "--out", str(tmp_path)]
            assert main([*words, "--candidate", str(mine), "--baseline", str(base), "--name", name]) == 0
    (path,) = tmp_path.glob("winrate-two-*.jsonl")
    rewrite(path, path.read_text().replace('"kind":"server"', '"kind":"batch"', 1))
    places = ["--records", str(tmp_path), "--resamples", "50"]
    capsys.readouterr()
    assert main(["table", "1", *places, "--out", str(tmp_path / "tables")]) == 0
    assert capsys.readouterr().out.count("66.67") >= 2
    assert len(Grid(library(tmp_path), "winrate", 50).columns) == 1
    assert main(["figure", "winrate", *places, "--out", str(tmp_path / "figures")]) == 0
    assert main(["report", *places, "--out", str(tmp_path / "report.html")]) == 0
    assert main(["audit", str(next((tmp_path / "tables").glob("*.json")))]) == 0


def test_a_first_try_with_a_limit_is_not_counted_beside_the_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    base = answer_record(tmp_path, "base", {f"prompt {i}": ["y" * 6] for i in range(12)})
    mine = answer_record(tmp_path, "mine", {f"prompt {i}": ["x" * (3 if i < 4 else 9)] for i in range(12)})
    sides = ["--candidate", str(mine), "--baseline", str(base), "--out", str(tmp_path)]
    with serving() as server:
        words = ["winrate", "--judge", "served", "--base-url", server.url, *sides]
        assert main([*words, "--limit", "4", "--name", "try"]) == 0
        assert main(words) == 0
    grid = Grid(library(tmp_path), "winrate", 50)
    ((found,),) = grid.found.values()
    assert found.terms.value == 8 / 12 and len(found.record.rows) == 12
    capsys.readouterr()
    assert main(["table", "1", "--records", str(tmp_path), "--out", str(tmp_path / "t"), "--resamples", "50"]) == 0
    assert "is left out: all its verdicts are in winrate-" in capsys.readouterr().out
