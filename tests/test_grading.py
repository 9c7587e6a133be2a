"""The GSM8K grader: hand cases that stock extractors get wrong, and OpenAI's 5,276 labelled solutions."""

from __future__ import annotations

import gzip
import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selectkd_eval.errors import InputError
from selectkd_eval.grading import GRADERS, extract_number, gsm8k_gold

PUBLISHED = {
    "6b_finetuning": 21.68,
    "6b_verification": 39.04,
    "175b_finetuning": 34.72,
    "175b_verification": 56.25,
}


@pytest.mark.parametrize(
    ("completion", "number"),
    [
        (" She makes <<9*2=18>>18 dollars.\n#### 18", "18"),
        ("The answer is $18.00.", "18"),
        ("18.0", "18"),
        (r"\boxed{18}. This took 2 steps.", "18"),
        (r"so $\boxed{\frac{1}{3}}$", "1/3"),
        (r"\boxed{10{,}000}", "10000"),
        ("18 dollars (9 eggs at $2)", "18"),
        ("The answer is (18).", "18"),
        ("The answer is １８.", "18"),
        ("٣٤", "34"),
        ("#### 70,000 dollars", "70000"),
        ("#### 1,234,567.50", "1234567.5"),
        ("#### -5", "-5"),
        ("It is -$5", "-5"),
        ("#### $-5.50", "-5.5"),
        ("−7", "-7"),
        ("10-5", "5"),
        ("Answer: 3*4 = 12 balls, in 2 bags", "12"),
        ("A: 18\n", "18"),
        ("#### 3\nno, I was wrong\n#### 4", "4"),
        ("#### none yet\nin 7 steps, the answer is 12", "12"),
        ("50% of them", "50"),
        ("3, 4 and 5.", "5"),
        ("I do not know.", None),
        ("", None),
        ("####", None),
        ("7/0", None),
        ("9" * 5000, None),
    ],
)
def test_final_number(completion: str, number: str | None) -> None:
    assert extract_number(completion) == number


def test_gold_is_the_number_after_the_marks() -> None:
    assert gsm8k_gold("16 - 3 = <<16-3=13>>13\n#### 1,300") == "1300"
    with pytest.raises(InputError, match="####"):
        gsm8k_gold("it is 13")


@given(st.text(alphabet=st.characters(codec="utf-8") | st.sampled_from("0123456789#.,$-/(){}\\boxed\n"), max_size=200))
def test_any_text_is_graded_without_an_error(text: str) -> None:
    number = extract_number(text)
    assert number is None or str(Fraction(number)) == str(Fraction(extract_number(f"#### {number}") or "nan"))


@given(
    st.integers(-(10**9), 10**9),
    st.sampled_from(
        ["#### {}", "The answer is {}.", r"\boxed{{{}}}", "so {} dollars (3 each)", "the rest: 4\n{:,} eggs"]
    ),
)
def test_every_way_of_writing_a_number_is_the_same_number(value: int, way: str) -> None:
    assert extract_number(way.format(value)) == str(value)


def test_agrees_with_openai_on_every_labelled_solution(shared_data: Path) -> None:
    """README beside the file: 21.68 / 39.04 / 34.72 / 56.25 % of 1,319 problems."""
    path = shared_data / "passk_validation" / "gsm8k_openai_example_model_solutions.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    grader = GRADERS["gsm8k-numeric"]
    assert len(rows) == 1319
    for model, published in PUBLISHED.items():
        verdicts = [
            grader.correct(row[model]["solution"], extract_number(row["ground_truth"]) or "none") for row in rows
        ]
        assert verdicts == [row[model]["is_correct"] for row in rows]
        assert round(100 * sum(verdicts) / len(rows), 2) == published


def test_every_real_gold_is_a_number(shared_data: Path) -> None:
    for name, count in (("gsm8k_test", 1319), ("gsm8k_train", 7473)):
        with gzip.open(shared_data / "tasks" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            answers = [json.loads(line)["answer"] for line in file]
        assert len(answers) == count
        assert all(extract_number(answer) == gsm8k_gold(answer) for answer in answers)
