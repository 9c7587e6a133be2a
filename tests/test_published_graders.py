"""The rules behind published numbers, text by text against lm-eval's own functions, and their measured error rates."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled import labelled_math

from selectkd_eval.errors import InputError
from selectkd_eval.grading import GRADER_ROWS, open_grader
from selectkd_eval.grading import published as ours
from selectkd_eval.grading.compare import minerva_math

pytest.importorskip("lm_eval")

PARTS = [
    *(
        "\\frac",
        "\\dfrac",
        "\\sqrt",
        "\\boxed",
        "\\fbox",
        "\\boxed ",
        "{",
        "}",
        "$",
        "\\$",
        "\\text{ ",
        "\\left",
        "^\\circ",
    ),
    *("1", "2", "0.5", ".5", " ", "=", "x", "/", "\\\\", "\\!", "\\%", ",", "\n", "Final Answer: The final answer is"),
    *(" I hope it is correct.", ". I hope it is correct.", "#### ", "-", "."),
]
texts = st.lists(st.sampled_from(PARTS), max_size=14).map("".join)
# name: (right ones called wrong, wrong ones called right) of the 800; the one "wrong one" is a wrong label
MATH_ERRORS = {
    "math-verify": (0, 1),
    "minerva": (728, 0),
    "minerva-math-verify": (17, 1),
    "hendrycks": (728, 0),
    "hendrycks-boxed": (20, 0),
}
GSM8K_ERRORS = {"gsm8k-numeric": (0, 0), "gsm8k-strict": (2001, 0), "gsm8k-flexible": (0, 0)}


@cache
def hendrycks_math() -> ModuleType:
    from lm_eval.tasks.hendrycks_math import utils

    return utils


def lm_eval_gsm8k(name: str) -> tuple[object, dict[str, object]]:
    """lm-eval's filter and the arguments of its exact_match, from the shipped task file."""
    import lm_eval
    import yaml
    from lm_eval.filters.extraction import RegexFilter

    path = Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml"
    task = yaml.safe_load(path.read_text())
    step = next(row["filter"][0] for row in task["filter_list"] if row["name"] == name)
    metric = task["metric_list"][0]
    keys = ("regexes_to_ignore", "ignore_case", "ignore_punctuation")
    return (
        RegexFilter(**{key: value for key, value in step.items() if key != "function"}),
        {key: metric[key] for key in keys},
    )


def verdicts(name: str, completions: list[str], references: list[str]) -> list[bool]:
    with open_grader(name, 2) as grader:
        golds = [grader.gold(reference) for reference in references]
        return [grade.correct for grade in grader.grade(list(zip(completions, golds, strict=True)))]


@pytest.mark.parametrize(
    ("name", "ours_is"), [("strict-match", "gsm8k-strict"), ("flexible-extract", "gsm8k-flexible")]
)
def test_gsm8k_rules_are_lm_evals(name: str, ours_is: str) -> None:
    from lm_eval.api.metrics import exact_match_hf_evaluate

    chosen, arguments = lm_eval_gsm8k(name)
    alphabet = ["####", "#### ", "18", "1,800", "$", "-", ".", ",", " ", "\n", "The answer is ", "7", "eggs", "#"]
    draw = random.Random(0)
    completions = ["".join(draw.choices(alphabet, k=draw.randint(0, 9))) for _ in range(1500)]
    completions += ["#### 18", "#### $18", "#### 18.", "so 18.", "$18.00", "1,800 eggs", "#### 1,800\n#### 18", ""]
    references = [
        draw.choice(["9*2=18\n#### 18", "x\n#### 1,800", "#### -7", "a\n#### 1\n#### 18"]) for _ in completions
    ]
    answers = [resps[0] for resps in chosen.apply([[text] for text in completions], [{}] * len(completions))]
    theirs = [
        bool(exact_match_hf_evaluate([answer], [reference], **arguments)["exact_match"])
        for answer, reference in zip(answers, references, strict=True)
    ]
    assert verdicts(ours_is, completions, references) == theirs
    assert 0 < sum(theirs) < len(theirs)


@settings(max_examples=800, deadline=None)
@given(texts, texts)
def test_string_equality_is_hendrycks(answer: str, gold: str) -> None:
    theirs = hendrycks_math()
    for text in (answer, answer.replace(" ", ""), gold.replace("\\frac", "\\dfrac")):
        assert ours.hendrycks_equal(text, gold) == theirs.is_equiv(text, gold)


@settings(max_examples=500, deadline=None)
@given(texts)
def test_boxes_are_found_as_there(text: str) -> None:
    theirs = hendrycks_math()
    try:
        box = theirs.last_boxed_only_string(text)
        expected = None if box is None else theirs.remove_boxed(box)
    except AssertionError:
        expected = None  # there the run ends
    assert ours.hendrycks_box(text) == expected


@settings(max_examples=500, deadline=None)
@given(texts)
def test_minervas_sentence_is_found_as_there(text: str) -> None:
    expected = minerva_math().get_unnormalized_answer(text)
    assert (ours.minerva_answer(text) or "[invalidanswer]") == (expected or "[invalidanswer]")


def test_hendrycks_on_real_solutions(shared_data: Path) -> None:
    """Every reference of MATH as an answer: as it is, its box alone, in dollar signs, and another problem's."""
    theirs = hendrycks_math()
    with gzip.open(shared_data / "tasks" / "math_test_5000.jsonl.gz", "rt", encoding="utf-8") as file:
        solutions = [json.loads(line)["solution"] for line in file]
    golds = [ours.hendrycks_gold(solution) for solution in solutions]
    assert golds == [theirs.remove_boxed(theirs.last_boxed_only_string(solution)) for solution in solutions]
    rule = ours.hendrycks()
    for place, (solution, gold) in enumerate(zip(solutions, golds, strict=True)):
        texts = (solution, gold, f"so ${gold.replace('frac', 'dfrac')}$", f"${golds[place - 1]}$")
        found = [grade.correct for grade in rule.grade([(text, gold) for text in texts])]
        assert found == [bool(theirs.process_results({"solution": solution}, [text])["exact_match"]) for text in texts]


def test_minerva_on_real_answers_in_its_own_words(shared_data: Path) -> None:
    theirs = minerva_math()
    rows = labelled_math(shared_data)[::5]
    completions = [
        f"Final Answer: The final answer is ${ours.hendrycks_box(text)}$. I hope it is correct." for text, _, _ in rows
    ]
    expected = [
        theirs.is_equiv(
            theirs.normalize_final_answer(theirs.get_unnormalized_answer(completion)),
            theirs.normalize_final_answer(theirs.remove_boxed(theirs.last_boxed_only_string(solution))),
        )
        for completion, (_, solution, _) in zip(completions, rows, strict=True)
    ]
    assert verdicts("minerva", completions, [solution for _, solution, _ in rows]) == expected
    assert 0 < sum(expected) < len(rows)


def test_minervas_math_verify_on_real_answers(shared_data: Path) -> None:
    theirs = minerva_math()
    rows = labelled_math(shared_data)[::8]
    expected = [bool(theirs.verify(theirs.parse(solution), theirs.parse(text))) for text, solution, _ in rows]
    found = verdicts("minerva-math-verify", [text for text, _, _ in rows], [solution for _, solution, _ in rows])
    assert found == expected


@pytest.mark.parametrize("name", MATH_ERRORS)
def test_error_rates_on_labelled_math(name: str, shared_data: Path) -> None:
    rows = labelled_math(shared_data)
    found = verdicts(name, [text for text, _, _ in rows], [solution for _, solution, _ in rows])
    labels = [label for _, _, label in rows]
    missed = sum(label and not word for word, label in zip(found, labels, strict=True))
    forged = sum(word and not label for word, label in zip(found, labels, strict=True))
    assert (missed, forged) == MATH_ERRORS[name]
    assert f": {missed + forged}" in GRADER_ROWS[name].measured


@pytest.mark.parametrize("name", GSM8K_ERRORS)
def test_error_rates_on_labelled_gsm8k(name: str, shared_data: Path) -> None:
    with gzip.open(shared_data / "tasks" / "gsm8k_test.jsonl.gz", "rt", encoding="utf-8") as file:
        answers = {row["question"]: row["answer"] for row in map(json.loads, file)}
    path = shared_data / "passk_validation" / "gsm8k_openai_example_model_solutions.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    items = [
        (row[model]["solution"], answers[row["question"]], row[model]["is_correct"])
        for row in rows
        for model in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    ]
    found = verdicts(name, [item[0] for item in items], [item[1] for item in items])
    missed = sum(item[2] and not word for word, item in zip(found, items, strict=True))
    forged = sum(word and not item[2] for word, item in zip(found, items, strict=True))
    assert len(items) == 5276
    assert (missed, forged) == GSM8K_ERRORS[name]
    assert f": {missed + forged}" in GRADER_ROWS[name].measured


@pytest.mark.parametrize("name", [name for name, row in GRADER_ROWS.items() if row.suits == ("symbolic",)])
def test_a_reference_without_a_box_is_refused(name: str) -> None:
    if name == "minerva-math-verify":
        pytest.skip("its reference is the whole solution, boxed or not")
    with open_grader(name) as grader, pytest.raises(InputError, match="boxed"):
        grader.gold("it is 10")


def test_a_broken_text_does_not_stop_the_rules() -> None:
    hazard = "Final Answer: The final answer is $9^{9^{9^9}}$. I hope it is correct."
    for name, row in GRADER_ROWS.items():
        if row.suits == ("symbolic",) and name not in (
            "minerva",
            "minerva-math-verify",
        ):  # those wait for lm-eval's 5 s
            assert not any(verdicts(name, ["\0", "$" * 9999, "{" * 9999, "\ud800"], [r"\boxed{5}"] * 4))
    assert verdicts("minerva", [hazard, "\0", "x" * 10**6], [r"\boxed{5}"] * 3) == [False] * 3


def test_naming_a_grader_loads_no_library() -> None:
    code = (
        "import sys; from selectkd_eval.grading import GRADER_ROWS, open_grader\n"
        "for name in GRADER_ROWS: open_grader(name)\n"
        "print(sorted({'torch', 'lm_eval', 'math_verify', 'sympy', 'datasets', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
