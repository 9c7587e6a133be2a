"""`--paper`: a published number stands beside ours where protocol and models are the same, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import record_factory as make
from paper_records import SETS, Of, model

from analysis import paper, tables, writers
from analysis.load import library
from analysis.table_ir import Table

RESAMPLES = 20


def built(number: int, directory: Path) -> Table:
    return tables.build(number, library(directory), RESAMPLES, paper=True)


def published(table: Table) -> dict[str, list[str]]:
    """What stands under "Published", row by row."""
    places = [place for place, column in enumerate(table.columns) if column.group == paper.GROUP]
    return {row.label: [row.cells[at].text for at in places] for block in table.blocks for row in block.rows}


def heads(table: Table) -> list[str]:
    return [column.label for column in table.columns if column.group == paper.GROUP]


def notes(table: Table) -> str:
    return "\n".join(note for note in table.notes if "ublished" in note)


def test_the_same_protocol_models_and_method_have_the_published_number(tmp_path: Path) -> None:
    of = Of(tmp_path)
    for method in ("KD", "KD + Spec-k", "GKD", "GKD + Spec-k"):
        of.judged(of.student(method, verifier="spec-k" if "+" in method else "none"))
    for one in (of.teacher, of.start):
        of.judged(model(one))
    table = built(1, tmp_path)
    assert heads(table) == ["alpaca-eval vs text-davinci-003"]
    assert published(table) == {
        "Teacher": ["88.41"],
        "Student before": ["51.06"],
        "KD": ["57.49"],
        "KD + Spec-k": ["59.72 (+2.23)"],
        "GKD": ["66.07"],
        "GKD + Spec-k": ["66.95 (+0.88)"],
    }
    assert notes(table).startswith("Published: Table 1 of arXiv 2510.24021.")
    assert "No published number" not in notes(table)
    alone = tables.build(1, library(tmp_path), RESAMPLES)
    ours = [[row.cells[0].spans() for row in made.blocks[0].rows] for made in (alone, table)]
    assert ours[0] == ours[1], "our numbers, ranks and marks are the same with and without"


@pytest.mark.parametrize(
    ("pair", "said", "trained", "why"),
    [
        ({}, {"judge": "gpt-4o-mini"}, {}, "judge gpt-4o-mini where the paper's is gpt-4o"),
        ({}, {"judge": "gpt-4o-mini-2024-07-18"}, {}, "judge gpt-4o-mini-2024-07-18 where"),
        ({}, {"ties": "half"}, {}, "tie rule half where the paper's is excluded"),
        ({}, {"protocol": "distillm2"}, {}, "protocol distillm2 where the paper's is selectkd"),
        ({}, {"baseline": "gpt-3.5-turbo"}, {}, "baseline gpt-3.5-turbo where the paper's is text-davinci-003"),
        ({}, {"n": 300}, {}, "KD + Spec-k on alpaca-eval vs text-davinci-003, 300 prompts (the paper's is of 805)"),
        ({}, {"n": 804}, {}, "804 prompts (the paper's is of 805)"),
        ({"teacher": "Qwen/Qwen2-72B-Instruct"}, {}, {}, "Qwen2-72B-Instruct → Qwen2-1.5B (the published rows are of"),
        ({"teacher": "Qwen/Qwen2-7B"}, {}, {}, "Qwen2-7B → Qwen2-1.5B (the published rows are of"),
        ({"start": "Qwen/Qwen2-0.5B"}, {}, {}, "Qwen2-7B-Instruct → Qwen2-0.5B (the published rows are of"),
        ({}, {}, {"beta": 0.1}, "KD + Spec-k (the paper's + Ours is Spec-k with k = 5 and β = 0.01)"),
        ({}, {}, {"k": 10}, "KD + Spec-k (the paper's + Ours is Spec-k with k = 5 and β = 0.01)"),
        ({}, {}, {"step": 100}, "KD + Spec-k (a checkpoint on the way)"),
        ({}, {}, {"teacher_noise": 0.2}, "KD + Spec-k (its teacher's text was made worse)"),
    ],
    ids=lambda value: "-".join(map(str, (*value, *value.values()))) if isinstance(value, dict) else "",
)
def test_whatever_differs_has_no_published_number_and_a_note(
    tmp_path: Path, pair: dict[str, str], said: dict[str, Any], trained: dict[str, Any], why: str
) -> None:
    of = Of(tmp_path, **pair)
    of.judged(of.student("KD + Spec-k", **trained), **said)
    table = built(1, tmp_path)
    assert not any(text for texts in published(table).values() for text in texts)
    assert why in notes(table)
    assert "Published: Table 1" not in notes(table)


def test_a_gate_of_another_kind_is_not_the_papers(tmp_path: Path) -> None:
    of = Of(tmp_path)
    for method in ("KD", "KD + Top-k", "AdaKD"):
        of.judged(of.student(method))
    table = built(1, tmp_path)
    assert published(table) == {"KD": ["57.49"], "KD + Top-k": [""], "AdaKD": [""]}
    assert "AdaKD (the paper has no such row)" in notes(table)


def test_a_dated_snapshot_is_its_judge_and_a_published_instruct_student_is_its_student(tmp_path: Path) -> None:
    of = Of(tmp_path, start="/models/Qwen2-1.5B-Instruct")
    of.judged(of.student("KD"), judge="gpt-4o-2024-08-06")
    assert published(built(1, tmp_path)) == {"KD": ["57.49"]}


def test_an_average_stands_where_all_three_benchmarks_are_whole(tmp_path: Path) -> None:
    of = Of(tmp_path)
    whole, part, two = of.student("KD"), of.student("KD + Spec-k"), of.student("GKD")
    for name in SETS:
        of.judged(whole, name)
        of.judged(part, name, n=100 if name == "ultrafeedback" else None)
        if name != "evol-instruct":
            of.judged(two, name)
    table = built(1, tmp_path)
    assert heads(table)[-1] == "AVG"
    assert published(table) == {
        "KD": ["57.49", "28.23", "37.86", "41.19"],
        "KD + Spec-k": ["59.72 (+2.23)", "30.35 (+2.12)", "", ""],
        "GKD": ["66.07", "", "57.74", ""],
    }
    assert "100 prompts (the paper's is of 2,000)" in notes(table)
    for number in (4, 6):
        made = built(number, tmp_path)
        assert heads(made) == ["Avg. win rate (%)"]
        assert published(made) == {"KD": ["41.19"], "KD + Spec-k": [""], "GKD": [""]}
        assert "GKD (the paper has no KD with this verifier, k and β)" in notes(made)


def test_an_average_over_other_columns_is_not_the_papers(tmp_path: Path) -> None:
    of = Of(tmp_path)
    card = of.student("KD")
    for name in SETS:
        of.judged(card, name)
    of.judged(card, "alpaca-eval", judge="gpt-4")
    table = built(1, tmp_path)
    assert published(table) == {"KD": ["57.49", "28.23", "37.86", ""]}
    assert "our mean is over other columns" in notes(table)


def test_the_ablation_is_matched_by_verifier_k_and_beta_as_numbers(tmp_path: Path) -> None:
    of = Of(tmp_path)
    gates = [
        ("KD + Spec-k", {"k": 5.0, "beta": 0.010}),
        ("KD + Spec-k", {"k": 10, "beta": 0.01}),
        ("KD + Spec-k", {"k": 5, "beta": 0}),
        ("KD + Spec-k", {"k": 6, "beta": 0.01}),
        ("KD + Hellinger", {"verifier": "hellinger"}),
        ("KD + Top-k", {"k": 10, "beta": 0.01}),
    ]
    for seed, (method, training) in enumerate(gates):
        card = of.student(method, seed, **training)
        for name in SETS:
            of.judged(card, name)
    short, long = (sorted(texts[0] for texts in published(built(number, tmp_path)).values()) for number in (4, 6))
    assert short == ["", "", "41.70", "42.83", "43.13", "43.33"], "Table 4 has no Top-k with k = 10"
    assert long == ["", "41.70", "42.83", "42.95", "43.13", "43.33"]


def test_an_ablation_without_all_benchmarks_has_no_published_average(tmp_path: Path) -> None:
    of = Of(tmp_path)
    of.judged(of.student("KD"))
    table = built(4, tmp_path)
    assert heads(table) == []
    assert "the mean over alpacaeval (the paper's is that of alpacaeval and evol_instruct and ultrafeedback)" in notes(
        table
    )


def test_pass_rates_of_whole_benchmarks_stand_beside_table_2(tmp_path: Path) -> None:
    maths = Of(tmp_path, "Qwen/Qwen2-Math-7B-Instruct", "Qwen/Qwen2-Math-1.5B")
    code = Of(tmp_path, "Qwen/Qwen2.5-Coder-7B-Instruct", "Qwen/Qwen2.5-Coder-1.5B")
    for method in ("GKD", "GKD + Spec-k"):
        kept = {"verifier": "spec-k" if "+" in method else "none"}
        maths.solved(maths.student(method, **kept), "gsm8k", 1319)
        student = code.student(method, **kept)
        code.solved(student, "humaneval", 164)
        code.solved(student, "mbpp-base", 378)
    table = built(2, tmp_path)
    assert heads(table) == ["gsm8k", "humaneval", "mbpp-base", "AVG"]
    rows = {(row["pair"], row["method"], row["task"]): row["pass_at_1"] for row in paper.published(2)}
    theirs = "Qwen2.5-Coder-7B-Inst -> 1.5B"
    first, second = sorted(table.blocks, key=lambda block: "Coder" in block.title)
    assert [cell.text for cell in first.rows[0].cells[-4:]] == ["75.44", "", "", ""]
    assert [cell.text for cell in second.rows[1].cells[-4:]] == [
        "",
        *(rows[theirs, "GKD + SelecTKD", task] for task in ("humaneval", "mbpp", "avg")),
    ]


@pytest.mark.parametrize(
    ("task", "n", "why"),
    [
        ("gsm8k", 100, "100 prompts (the paper's is of 1,319)"),
        ("mbpp", 500, "mbpp (the paper's tasks are gsm8k, math, humaneval, mbpp-base)"),
        ("math500", 500, "math500 (the paper's tasks are"),
    ],
)
def test_part_of_a_task_or_another_task_has_no_published_rate(tmp_path: Path, task: str, n: int, why: str) -> None:
    of = Of(tmp_path, "Qwen/Qwen2-Math-7B-Instruct", "Qwen/Qwen2-Math-1.5B")
    of.solved(of.student("GKD"), task, n)
    table = built(2, tmp_path)
    assert not any(text for texts in published(table).values() for text in texts)
    assert why in notes(table)


def test_imported_vision_models_stand_beside_table_3_by_name(tmp_path: Path) -> None:
    tasks = ["MMBench_V11", "mmstar", "mmmu_val", "mathvista", "ocrbench", "ai2d", "hallusionbench", "mmvet"]
    for name in ("OpenGVLab/InternVL2-2B", "mine/VLM-2B"):
        for task in tasks:
            make.passk(tmp_path, model(name), n=20, task=task, skill=0.5)
    table = built(3, tmp_path)
    found = published(table)
    assert found["OpenGVLab/InternVL2-2B"] == ["69.6", "49.8", "36.3", "46.0", "78.1", "74.1", "38.0", "39.7", "54.0"]
    assert set(found["mine/VLM-2B"]) == {""}
    assert "mine/VLM-2B (the paper has no model of this name)" in notes(table)
    assert "how they were measured it does not say" in notes(table)


def test_the_embedded_demo_has_no_published_column(tmp_path: Path) -> None:
    lib = library(make.everything(tmp_path, seeds=(0,), n=10))
    for number in (1, 2, 4, 6):
        beside, alone = (tables.build(number, lib, RESAMPLES, paper=paper) for paper in (True, False))
        assert beside.columns == alone.columns
        assert json.loads(writers.twin(beside))["blocks"] == json.loads(writers.twin(alone))["blocks"]
        assert "No published number of Table" in notes(beside)
