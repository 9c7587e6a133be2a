"""mini-GSM: the arithmetic is right, the format is GSM8K's, and no held-out computation can be trained on."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest

from selectkd_eval.demo import corpus, mini_gsm
from selectkd_eval.errors import InputError

ANNOTATION = re.compile(r"<<(\d+)([+*-])(\d+)=(\d+)>>(\d+) ")
SETS = [f"mini-gsm:{name}" for name in corpus.SIZES["mini-gsm"]]


@pytest.mark.parametrize("set_name", SETS)
def test_every_answer_states_its_arithmetic_correctly_and_ends_as_gsm8k_ends(set_name: str) -> None:
    for row in corpus.examples(set_name):
        *lines, last = row["answer"].split("\n")
        assert len(lines) == row["meta"]["steps"]
        previous = None
        for line in lines:
            left, sign, right, result, shown = ANNOTATION.search(line).groups()  # type: ignore[union-attr]
            numbers = int(left), int(right)
            expected = {"+": sum(numbers), "-": numbers[0] - numbers[1], "*": numbers[0] * numbers[1]}[sign]
            assert expected == int(result) == int(shown)
            assert 1 <= expected <= mini_gsm.LARGEST
            assert previous in (None, int(left))  # each step starts from the last result
            previous = expected
        assert last == f"#### {previous}" == f"#### {row['meta']['result']}"


@pytest.mark.parametrize("set_name", SETS)
def test_the_question_states_every_operand(set_name: str) -> None:
    for row in corpus.examples(set_name):
        stated = sorted(re.findall(r"\d+", row["meta"]["question"]), key=int)
        operands = row["meta"]["key"].split("|")[1].split(",")
        assert stated == sorted(operands, key=int)
        assert row["prompt"] == f"Question: {row['meta']['question']}\nAnswer:"


def test_no_computation_is_in_two_splits_nor_in_the_training_stream() -> None:
    keys = {name: {row["meta"]["key"] for row in corpus.examples(name)} for name in SETS}
    trained = keys["mini-gsm:labelled"] | keys["mini-gsm:train"]
    trained |= {row["meta"]["key"] for row in corpus.training_corpus(5000, 0, "teacher")}
    assert not trained & keys["mini-gsm:test"]
    assert not trained & keys["mini-gsm:validation"]
    assert not keys["mini-gsm:test"] & keys["mini-gsm:validation"]


def test_the_split_depends_on_the_computation_alone() -> None:
    computation = mini_gsm.Computation(("add", "double"), (12, 5))
    assert computation.key == "add,double|12,5"
    assert computation.equations() == [(12, "+", 5, 17), (17, "*", 2, 34)]
    for name in SETS:
        for row in corpus.examples(name)[:100]:
            chain, operands = row["meta"]["key"].split("|")
            again = mini_gsm.Computation(tuple(chain.split(",")), tuple(map(int, operands.split(","))))
            assert again.split() == {"labelled": "train"}.get(name.split(":")[1], name.split(":")[1])


def test_the_test_set_is_large_and_covers_one_two_and_three_steps() -> None:
    rows = corpus.examples("mini-gsm:test")
    assert len(rows) >= 500
    for steps in (1, 2, 3):
        assert sum(row["meta"]["steps"] == steps for row in rows) >= 0.25 * len(rows)


def test_streams_are_pure_functions_of_split_and_seed() -> None:
    def first(split: str, seed: str) -> list[str]:
        return [problem.question for problem in itertools.islice(mini_gsm.problems(split, seed), 50)]

    assert first("train", "a") == first("train", "a")
    assert first("train", "a") != first("train", "b")
    assert len(set(first("train", "a"))) == 50


def test_one_question_has_several_phrasings_of_its_answer() -> None:
    leads = {
        line.split(" <<")[0].split()[0]
        for row in corpus.examples("mini-gsm:train")[:200]
        for line in row["answer"].split("\n")[:-1]
    }
    assert leads == {"Now", "So", "That", "This"}


def test_a_task_file_is_what_gsm8k_ships(tmp_path: Path) -> None:
    path = corpus.write_task_file("mini-gsm:test", tmp_path / "deep" / "test.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == len(corpus.examples("mini-gsm:test"))
    assert all(set(row) == {"question", "answer"} and "\n#### " in row["answer"] for row in rows)


def test_an_unknown_set_is_named_with_the_nearest_one() -> None:
    with pytest.raises(InputError, match="mini-gsm:test"):
        corpus.examples("mini-gsm:tset")
