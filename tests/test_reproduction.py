"""The state of reproduction: what records fill, whether it is the paper's, and what nobody has tried."""

from __future__ import annotations

from pathlib import Path

import paper_records
import pytest
import record_factory as make

from analysis import paper
from analysis.load import Library, library
from analysis.reproduction import FIGURES, NOT, PART, REPRODUCED, SMALLER, TABLES, State, state, states
from selectkd_eval.cli import main

ROOT = Path(__file__).resolve().parents[1]


def by_name(found: list[State]) -> dict[str, State]:
    return {one.item.name: one for one in found}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return library(make.everything(tmp_path_factory.mktemp("records"), seeds=(0, 1), n=20))


def test_without_records_nothing_is_called_attempted() -> None:
    found = states(Library([]), "runs")
    assert [one.item.name for one in found] == [
        *(f"Table {number}" for number in range(1, 7)),
        *("Figure 1", "Figure 2", "Figure 3a", "Figure 3b", "Figure 4a", "Figure 4b", "Figure 5"),
    ]
    assert {one.state for one in found if one.item.name != "Figure 2"} == {NOT}
    assert by_name(found)["Figure 2"].state == "not a measurement"
    assert all(one.machines == "—" for one in found)


def test_what_is_not_attempted_says_what_it_needs_and_how_it_would_be_made() -> None:
    for item in (*TABLES.values(), *FIGURES.values()):
        assert item.lacks
        scripts = [word for word in item.script.replace(";", " ").split() if word.startswith("reports/")]
        assert scripts or item.script.startswith("selectkd-eval ")
        assert all((ROOT / script).is_file() for script in scripts)


def test_embedded_models_are_at_smaller_scale(demo: Library) -> None:
    found = by_name(states(demo, "some where"))
    for name in ("Table 1", "Table 2", "Table 4", "Table 5", "Table 6", "Figure 1", "Figure 4a", "Figure 4b"):
        assert found[name].state == SMALLER, name
    assert found["Table 3"].state == NOT
    assert found["Figure 5"].state == NOT, "one judge says nothing of judges"
    told = found["Table 1"]
    assert "mini-stories n = 20" in told.measured and "2 training seeds" in told.measured
    assert "judge likelihood:embedded:judge" in told.measured
    assert told.command == "selectkd-eval table 1 --records 'some where' --paper"
    assert "cores" in told.machines


def test_the_papers_models_and_protocol_are_reproduced_as_far_as_they_go(tmp_path: Path) -> None:
    of = paper_records.Of(tmp_path)
    of.judged(of.student("KD"), "evol-instruct")
    found = by_name(states(library(tmp_path), tmp_path, drawn=["curves", "winrate"]))
    assert found["Table 1"].state == PART
    assert found["Table 1"].measured.startswith(
        "1 of 192 published numbers have a counterpart; Qwen2-7B-Instruct → Qwen2-1.5B"
    )
    assert found["Figure 3a"].state == SMALLER, "one method compares nothing"
    assert found["Figure 1"].state == SMALLER, "one loss compares nothing"
    assert found["Figure 3b"].state == found["Table 4"].state.replace(SMALLER, NOT) == NOT


def test_figures_of_the_papers_models_with_and_without_a_gate_are_reproduced_in_part(tmp_path: Path) -> None:
    of = paper_records.Of(tmp_path)
    for label in ("KD", "KD + Spec-k"):
        of.judged(of.student(label), "evol-instruct")
    found = by_name(states(library(tmp_path), tmp_path, drawn=["curves", "winrate"]))
    assert found["Figure 3a"].state == PART and "is not compared" in found["Figure 3a"].measured
    assert found["Figure 1"].state == SMALLER


def test_another_judge_is_not_the_papers(tmp_path: Path) -> None:
    of = paper_records.Of(tmp_path)
    of.judged(of.student("KD"), "evol-instruct", judge="another")
    assert by_name(states(library(tmp_path), tmp_path, drawn=[]))["Table 1"].state == SMALLER


def test_all_rows_are_reproduced_whole(tmp_path: Path) -> None:
    for row in paper.published(3):
        for task in paper.VISION:
            make.passk(tmp_path, paper_records.model(row["model"]), n=10, skill=0.5, task=task)
    found = by_name(states(library(tmp_path), tmp_path, drawn=[]))
    assert found["Table 3"].state == REPRODUCED
    assert found["Table 3"].measured.startswith("54 of 54 published numbers")
    assert found["Table 2"].state == NOT, "vision benchmarks are no table of text"


def test_the_text_is_the_same_twice_and_is_one_table(demo: Library) -> None:
    text = state(demo, "runs|x")
    assert text == state(library(demo.records[0].path.parent), "runs|x")
    rows = [line for line in text.splitlines() if line.startswith(("| Table", "| Figure"))]
    assert len(rows) == 13
    assert {line.replace(r"\|", "").count("|") for line in rows} == {6}
    assert text.startswith("# Reports\n") and "`reproduce/`" in text


def test_the_report_writes_the_state_beside_its_page_and_over_nobody_elses_readme(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make.passk(tmp_path / "records", make.card("KD", 0), n=10)
    words = ["report", "--records", str(tmp_path / "records"), "--resamples", "50"]
    for _ in range(2):
        assert main([*words, "--out", str(tmp_path / "page.html")]) == 0
        assert f"state of reproduction: {tmp_path / 'README.md'}" in capsys.readouterr().out
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| Table 2, pass@1 | at smaller scale |" in text
    (tmp_path / "README.md").write_text("mine", encoding="utf-8")
    assert main([*words, "--out", str(tmp_path / "page.html")]) == 0
    assert "is not one of ours; give --state" in capsys.readouterr().out
    assert (tmp_path / "README.md").read_text() == "mine"
    assert main([*words, "--out", str(tmp_path / "page.html"), "--state", str(tmp_path / "state.md")]) == 0
    assert (tmp_path / "state.md").read_text(encoding="utf-8") == text
