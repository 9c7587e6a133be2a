"""Which pass@1 numbers share a column, and which number stands when answers were graded twice."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import record_factory as make

from analysis import tables
from analysis.figures import draw
from analysis.load import Library, library
from analysis.report import page
from analysis.style import Settings
from selectkd_eval.records import Record
from selectkd_eval.verbs import RegradeOptions

Facts = dict[str, Any]


def facts(model: dict[str, Any], code: bool = True) -> Facts:
    tasks = {"math": make.task_facts("math", grader="math-verify")}
    tasks |= {"humaneval": make.task_facts("humaneval", "code")} if code else {}
    found = make.passk_facts(model, tasks)
    found["graders"] = {"math-verify": "1, math-verify 0.9.0"}
    found["generation"] |= {"chat": True, "system": ""}
    return found


def answers(right: int = 10, n: int = 20) -> list[dict[str, Any]]:
    rows = [make.answer_row("math", f"p{i}", "right" if i < right else "wrong") for i in range(n)]
    return rows + [make.program_row("humaneval", f"HumanEval/{i}", "pass" if i < right else "wrong") for i in range(n)]


def passk(out: Path, told: Facts, rows: list[dict[str, Any]] | None = None, seed: int = 0) -> Record:
    options = make.PasskOptions(out=out, tasks=("math", "humaneval"), model=told["model"]["name"], seed=seed)
    return make.write("passk", options, told, answers() if rows is None else rows)


def regrade(source: Record, rows: list[dict[str, Any]], told: Facts | None = None, **options: Any) -> Record:
    found = {**(told or source.facts), "source": {"record": source.path.name, "verb": source.verb}}
    return make.write("regrade", RegradeOptions(out=source.path.parent, record=source.path, **options), found, rows)


def labels(records: Library) -> list[str]:
    return [column.label for column in tables.build(2, records, 50).columns]


def value(records: Library, label: str) -> float:
    table = tables.build(2, records, 50)
    place = [column.label for column in table.columns].index(label)
    cell = table.blocks[0].rows[0].cells[place]
    assert cell.value is not None
    return cell.value.value


CHANGES: dict[str, tuple[str, Callable[[Facts], None]]] = {
    "digest": ("math", lambda f: f["tasks"]["math"].update(sha256="0" * 64)),
    "size": ("math", lambda f: f["tasks"]["math"].update(n=10)),
    "layout": ("math", lambda f: f["tasks"]["math"].update(layout="boxed")),
    "shots": ("math", lambda f: f["tasks"]["math"].update(shots=4)),
    "grader": ("math", lambda f: f["tasks"]["math"].update(grader="hendrycks")),
    "grader's version": ("math", lambda f: f["graders"].update({"math-verify": "1, math-verify 0.8.0"})),
    "temperature": ("math", lambda f: f["generation"]["decoding"]["math"].update(temperature=0.8)),
    "top-p": ("math", lambda f: f["generation"]["decoding"]["math"].update(top_p=0.9)),
    "answer length": ("math", lambda f: f["generation"]["decoding"]["math"].update(max_new_tokens=64)),
    "stop words": ("math", lambda f: f["generation"]["decoding"]["math"].update(stops=["\n"])),
    "verdict": ("humaneval", lambda f: f["sandbox"].update(verdict="official")),
    "CPU limit": ("humaneval", lambda f: f["sandbox"]["limits"].update(cpu_seconds=3.0)),
    "packages": ("humaneval", lambda f: f["sandbox"].update(packages={})),
}


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_decides_a_score_is_a_column_of_its_own(tmp_path: Path, what: str) -> None:
    task, change = CHANGES[what]
    passk(tmp_path, facts(make.card("KD", 0)))
    other = copy.deepcopy(facts(make.card("KD + Top-k", 0)))
    change(other)
    passk(tmp_path, other)
    found = library(tmp_path)
    twins = [label for label in labels(found) if label.startswith(f"{task} (")]
    assert len(twins) == 2, "told apart by what differs"
    assert len(set(twins)) == 2
    rest = "humaneval" if task == "math" else "math"
    assert rest in labels(found), "the other task is not touched"


@pytest.mark.parametrize("what", ["chat", "system"])
def test_another_way_to_ask_is_another_column_for_every_task(tmp_path: Path, what: str) -> None:
    passk(tmp_path, facts(make.card("KD", 0)))
    other = facts(make.card("KD + Top-k", 0))
    other["generation"][what] = {"chat": False, "system": "Think."}[what]
    passk(tmp_path, other)
    assert len(labels(library(tmp_path))) == 5


def test_long_settings_that_differ_have_labels_that_differ(tmp_path: Path) -> None:
    for method, ending in (("KD", "a"), ("KD + Top-k", "b")):
        told = facts(make.card(method, 0))
        told["generation"]["system"] = "Think step by step and then " + 40 * "x" + ending
        passk(tmp_path, told)
    assert len(set(labels(library(tmp_path)))) == 5


def test_engine_seeds_and_samples_do_not_part_columns(tmp_path: Path) -> None:
    passk(tmp_path, facts(make.card("KD", 0)))
    other = facts(make.card("KD + Top-k", 0))
    other["generation"] |= {"engine": "vllm", "seeds": "one per request"}
    other["k"] = [1, 10]
    passk(tmp_path, other, answers() + [row | {"seed": 1, "key": row["key"] + "'"} for row in answers()])
    assert labels(library(tmp_path)) == ["humaneval", "math", "AVG"]


def test_answers_graded_anew_by_the_same_rule_take_the_place_of_the_old(tmp_path: Path) -> None:
    source = passk(tmp_path, facts(make.card("KD", 0)))
    regrade(source, answers(right=15))
    found = library(tmp_path)
    assert labels(found) == ["humaneval", "math", "AVG"]
    assert value(found, "math") == pytest.approx(75.0), "not the mean of both gradings"
    notes = " ".join(tables.build(2, found, 50).notes)
    assert f"is {source.path.name} graded anew and takes its place" in notes


def test_answers_graded_by_another_rule_stand_beside_the_old(tmp_path: Path) -> None:
    source = passk(tmp_path, facts(make.card("KD", 0)))
    other = facts(make.card("KD", 0))
    other["tasks"]["math"]["grader"] = "hendrycks"
    regrade(source, answers(right=5), other, grader="hendrycks")
    found = library(tmp_path)
    assert [label.split(",")[0] for label in labels(found)] == [
        *("humaneval", "math (grader hendrycks", "math (grader math-verify", "AVG")
    ]
    assert value(found, "humaneval") == pytest.approx(25.0), "its programs were run again"


def test_of_two_regrades_and_a_regrade_of_a_regrade_one_number_stands(tmp_path: Path) -> None:
    source = passk(tmp_path, facts(make.card("KD", 0)))
    first = regrade(source, answers(right=12))
    regrade(source, answers(right=12), data=Path("elsewhere"))
    last = regrade(first, answers(right=16))
    found = library(tmp_path)
    standing = {m.record.path.name for m in found.measurements()}
    assert last.path.name in standing
    assert source.path.name not in standing
    assert first.path.name not in standing


def test_a_regrade_of_some_answers_is_left_out(tmp_path: Path) -> None:
    source = passk(tmp_path, facts(make.card("KD", 0)))
    regrade(source, answers(right=3, n=5), limit=5)
    found = library(tmp_path)
    assert value(found, "math") == pytest.approx(50.0)
    assert "graded 5 of 20 answers on math anew and is left out" in " ".join(tables.build(2, found, 50).notes)


def test_another_models_regrade_of_the_same_name_touches_nothing(tmp_path: Path) -> None:
    source = passk(tmp_path, facts(make.card("KD", 0)))
    regrade(source, answers(right=15), facts(make.card("KD + Top-k", 0)))
    values = {r.label: r.cells[1].value for r in tables.build(2, library(tmp_path), 50).blocks[0].rows}
    assert {label: round(v.value) for label, v in values.items() if v} == {"KD": 50, "KD + Top-k": 75}


def test_what_stands_behind_a_number_is_noted(tmp_path: Path) -> None:
    rows = answers()
    rows[0]["finish"] = "length"
    rows[1]["prompt_cut"] = True
    rows[25] = make.program_row("humaneval", "HumanEval/5", "timeout")
    rows[26]["other"] |= {"outcome": "wrong", "correct": 0}
    passk(tmp_path, facts(make.card("KD", 0)), rows)
    notes = tables.build(2, library(tmp_path), 50).notes
    assert "Behind math: KD 1 of 20 answers truncated, 1 of 20 prompts cut." in notes
    assert (
        "Behind humaneval: KD 1 of 20 timeouts, 1 verdicts are others in official mode, −5.00 points in all." in notes
    )


def test_a_regraded_record_alone_fills_table_figure_and_report(tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    source = passk(there, facts(make.card("KD", 0)))
    made = regrade(source, answers(right=15))
    here.mkdir()
    made.path.rename(here / made.path.name)
    found = library(here)
    assert value(found, "math") == pytest.approx(75.0)
    assert "Table 2" in page(found, "title", 50)
    assert draw("passk", found, Settings(50)).data["math"]["KD"]["value"] == pytest.approx(75.0)
