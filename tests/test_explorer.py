"""The explorer's data: every row of the records once, under its item, within its bytes, the same twice."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import record_factory as make
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.explorer import TEXT, Explorer, _chosen, explorer, unpack
from analysis.load import Library, library
from selectkd_eval.records import Record
from selectkd_eval.verbs import AnswerOptions, PasskOptions

KD, START = make.card("KD", 0), make.card("Start")


def answers(out: Path, model: dict[str, Any], n: int = 20, length: int = 40, name: str = "mini-stories") -> Record:
    """What a model wrote to the prompts that `make.winrate` judges."""
    rows = [
        {
            **{"key": f"s{prompt}/0", "prompt": f"s{prompt}", "seed": 0, "source": f"{name}:test", "finish": "eos"},
            **{"text": f"Write about {prompt}.", "answer": f"{model['method']} {prompt} " + "word " * (length // 5)},
        }
        for prompt in range(n)
    ]
    facts = {"model": model, "prompts": {"name": name, "sha256": make.digest(name), "n": n}}
    return make.write("answer", AnswerOptions(out=out, model=model["name"], prompts=name), facts, rows)


def made(found: Explorer | None) -> dict[str, Any]:
    assert found is not None
    return unpack(found.data)


@pytest.fixture
def judged(tmp_path: Path) -> Library:
    for model in (KD, START):
        answers(tmp_path, model)
        make.passk(tmp_path, model, n=15)
    make.winrate(tmp_path, KD, START, n=20)
    return library(tmp_path)


def test_every_row_of_the_records_is_there_once(judged: Library) -> None:
    found = explorer(judged, 10_000, 1_000_000)
    content = made(found)
    assert found is not None
    assert (found.items, found.of_items, found.texts, found.rows) == (35, 35, 35, 2 * 20 + 2 * 15 + 20)
    tasks = [content["tasks"][task] for task in content["items"]["task"]]
    assert tasks == ["mini-gsm"] * 15 + ["mini-stories"] * 20
    told = {}
    place = 0
    for name, task, count in zip(content["items"]["id"], tasks, content["answers"]["count"], strict=True):
        for row in range(place, place + count):
            model = content["models"][content["answers"]["model"][row]][0]
            told[task, name, model] = content["answers"]["text"][row], content["answers"]["right"][row]
        place += count
    for record in judged.of("passk"):
        label = "KD, seed 0" if record.facts["model"]["method"] == "KD" else "Student before"
        label = label if ("mini-gsm", "p0", label) in told else record.facts["model"]["name"]
        for row in record.rows:
            assert told["mini-gsm", row["problem"], label] == (row["completion"], row["correct"])


def test_a_verdict_names_the_judge_the_place_and_whom_the_candidate_was_set_against(judged: Library) -> None:
    content = made(explorer(judged, 10_000, 1_000_000))
    (record,) = judged.of("winrate")
    rows = {row["prompt"]: row for row in record.rows}
    place = 0
    for name, count in zip(content["items"]["id"], content["verdicts"]["count"], strict=True):
        for at in range(place, place + count):
            verdicts = content["verdicts"]
            assert content["words"][verdicts["word"][at]] == rows[name]["verdict"]
            assert content["words"][verdicts["order"][at]] == rows[name]["order"]
            assert content["records"][verdicts["record"][at]][1] == "likelihood:embedded:judge"
        place += count
    assert place == 20


def test_a_program_keeps_its_fate_and_what_it_printed(tmp_path: Path) -> None:
    rows = [
        make.program_row("mbpp", "1", "pass"),
        make.program_row("mbpp", "2", "timeout", other="pass", output="too slow", completion="def f(): loop"),
        {"key": "mbpp/3/0/0", "task": "mbpp", "problem": "3", "seed": 0, "sample": 0, "error": "the server is gone"},
    ]
    facts = make.passk_facts(KD, {"mbpp": make.task_facts("mbpp", "code")})
    make.write("passk", PasskOptions(out=tmp_path, model=KD["name"], tasks=("mbpp",)), facts, rows)
    content = made(explorer(library(tmp_path), 10, 100_000))
    words = [content["words"][word] for word in content["answers"]["word"]]
    assert words == ["pass", "timeout", "failed"]
    assert content["answers"]["right"] == [1, 0, -1]
    assert content["answers"]["output"][1] == "too slow"
    assert content["answers"]["other"][1] == "official: pass"
    assert content["answers"]["error"] == ["", "", "the server is gone"]


def test_text_that_nobody_judged_is_left_out_unless_there_is_nothing_else(tmp_path: Path) -> None:
    answers(tmp_path, KD, name="mini-gsm:train")
    only = explorer(library(tmp_path), 1_000, 100_000)
    assert only is not None
    assert only.items == 20
    make.passk(tmp_path, KD, n=5)
    assert made(explorer(library(tmp_path), 1_000, 100_000))["tasks"] == ["mini-gsm"]


@pytest.mark.parametrize("budget", [200_000, 60_000, 20_000, 6_000])
def test_texts_are_cut_to_the_budget_and_outcomes_are_not(tmp_path: Path, budget: int) -> None:
    rng = random.Random(0)
    rows = [
        make.answer_row("t", f"p{i:04}", rng.choice(["right", "wrong"]), completion=f"{rng.getrandbits(2000):x}")
        for i in range(300)
    ]
    make.write(
        "passk",
        PasskOptions(out=tmp_path, model=KD["name"], tasks=("t",)),
        make.passk_facts(KD, {"t": make.task_facts("t")}),
        rows,
    )
    found = explorer(library(tmp_path), 1_000, budget)
    content = made(found)
    assert found is not None
    assert len(found.data) <= budget
    assert content["answers"]["right"] == [row["correct"] for row in rows]
    whole = content["items"]["whole"]
    assert sum(whole) == found.texts
    assert found.cut == (found.texts < 300)
    assert found.texts < 300 or budget == 200_000
    for row, has, text in zip(rows, whole, content["answers"]["text"], strict=True):
        assert text == (row["completion"] if has else "")
    gaps = [place for place, has in enumerate(whole) if has]
    assert max((b - a for a, b in itertools.pairwise(gaps)), default=0) <= 300 // max(1, found.texts) + 1


def test_no_room_for_the_outcomes_is_no_explorer(judged: Library) -> None:
    assert explorer(judged, 10_000, 200) is None


def test_rows_are_capped_evenly(judged: Library) -> None:
    found = explorer(judged, 30, 1_000_000)
    assert found is not None
    assert found.rows <= 30
    assert 10 <= found.items < found.of_items == 35
    tasks = made(found)["items"]["task"]
    assert {0, 1} == set(tasks)


def test_a_megabyte_of_answer_is_cut_and_its_length_told(tmp_path: Path) -> None:
    make.write(
        "passk",
        PasskOptions(out=tmp_path, model=KD["name"], tasks=("t",)),
        make.passk_facts(KD, {"t": make.task_facts("t")}),
        [make.answer_row("t", "p", completion="x" * 1_000_000)],
    )
    content = made(explorer(library(tmp_path), 10, 100_000))
    assert content["answers"]["text"] == ["x" * TEXT]
    assert content["answers"]["cut"] == {"0": 1_000_000}


def test_the_same_records_give_the_same_bytes(judged: Library) -> None:
    again = library(judged.records[0].path.parent)
    first, second = (explorer(one, 10_000, 1_000_000) for one in (judged, again))
    assert first == second


def test_records_without_answers_have_no_explorer(tmp_path: Path) -> None:
    make.train(tmp_path, KD)
    assert explorer(library(tmp_path), 10, 100_000) is None


@given(of=st.integers(0, 300), share=st.floats(0, 1))
def test_an_even_choice_takes_exactly_as_many_as_asked_and_leaves_no_gap(of: int, share: float) -> None:
    count = int(share * of)
    places = [place for place in range(of) if _chosen(place, count, of)]
    assert len(places) == count
    if count > 1:
        gaps = [b - a for a, b in itertools.pairwise(places)]
        assert max(gaps) - min(gaps) <= 1


@settings(max_examples=40, deadline=None)
@given(text=st.text(max_size=300) | st.text(alphabet="\x00\x1b\u202e</script>", max_size=30))
def test_any_text_comes_back_as_it_was(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    out = tmp_path_factory.mktemp("any")
    row = make.answer_row("t", "p", completion=text)
    facts = make.passk_facts(KD, {"t": make.task_facts("t")})
    make.write("passk", PasskOptions(out=out, model=KD["name"], tasks=("t",)), facts, [row])
    content = made(explorer(library(out), 10, 100_000))
    assert content["answers"]["text"][0] == text
