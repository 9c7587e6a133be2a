"""Two runs against each other, and two gradings of one: counts by hand, tests against other libraries."""

from __future__ import annotations

from typing import Any

import pytest
import record_factory as make
import scipy.stats

from selectkd_eval import pass_rates
from selectkd_eval.passk_compare import changes, compare_lines
from selectkd_eval.terminal import WIDTH

MODEL = make.card("KD", 0)
OTHER = make.card("Start")


def run(words: str, task: str = "gsm8k", seed: int = 0) -> list[dict[str, Any]]:
    """One answer per letter: r is right, anything else wrong."""
    return [make.answer_row(task, f"p{i}", "right" if w == "r" else "wrong", seed) for i, w in enumerate(words)]


def facts(*tasks: str, model: dict[str, Any] = MODEL, **more: Any) -> dict[str, Any]:
    return make.passk_facts(model, {task: make.task_facts(task, **more) for task in tasks})


def said(*arguments: Any) -> str:
    return " ".join(" ".join(compare_lines(*arguments)).split())


def test_discordant_problems_and_mcnemars_test() -> None:
    a, b = run("rrrrrrrrwwwrrrr"), run("wwwwwwwrrwwrrrr")
    found = pass_rates.compare(a, b, "gsm8k")
    assert found is not None
    assert (found.better, found.worse, found.same, found.n) == (7, 1, 7, 15)
    assert (found.a, found.b) == (12 / 15, 6 / 15)
    assert found.delta.value == pytest.approx(6 / 15)
    assert found.p == pytest.approx(scipy.stats.binomtest(7, 8).pvalue)
    assert found.test == "McNemar, exact"
    text = said(facts("gsm8k"), a, facts("gsm8k", model=OTHER), b)
    assert "KD-0" in text
    assert "only this only other same" in text
    assert "gsm8k 80.00 40.00 +40.00 [" in text
    assert "15 7 1 7 0.070 0.070" in text
    assert "gsm8k: not told apart (Holm-adjusted p 0.070)" in text


def test_several_answers_per_problem_are_one_unit() -> None:
    a = run("rrww", seed=0) + run("rwww", seed=1)
    b = run("wrwr", seed=0) + run("wwwr", seed=1)
    found = pass_rates.compare(a, b, "gsm8k")
    assert found is not None
    assert (found.better, found.worse, found.same) == (1, 1, 2)
    assert found.delta.value == pytest.approx(3 / 8 - 3 / 8)
    assert not found.single
    # Differences of +2 and -2 of 2 answers: every sign pattern is as far from 0.
    assert found.p == 1.0


def test_unequal_numbers_of_answers_are_compared_by_share() -> None:
    a = run("rrr", seed=0)
    b = run("rww", seed=0) + run("rrw", seed=1) + run("rww", seed=2)
    found = pass_rates.compare(a, b, "gsm8k")
    assert found is not None
    assert (found.better, found.same) == (2, 1)
    assert found.delta.value == pytest.approx(1 - 4 / 9)
    assert found.p == pytest.approx(0.5), "3 and 2 thirds, both up: 2 of 4 sign patterns"


def test_holm_is_over_the_tasks() -> None:
    a = [*run("r" * 8, "math"), *run("r" * 8, "gsm8k")]
    b = [*run("w" * 7 + "r", "math"), *run("w" * 7 + "r", "gsm8k")]
    text = said(facts("math", "gsm8k"), a, facts("math", "gsm8k"), b)
    assert text.count("0.016 0.031") == 2, "2 x 0.5^7 = 0.0156, twice that after Holm"
    assert "math: this run is better (Holm-adjusted p 0.031)" in text


def test_problems_that_one_run_lacks_are_left_out_and_said() -> None:
    a, b = run("rrrr"), run("rw")
    b.append({"key": "gsm8k/p2/0/0", "task": "gsm8k", "problem": "p2", "seed": 0, "sample": 0, "error": "refused"})
    text = said(facts("gsm8k"), a, facts("gsm8k"), b)
    assert "gsm8k: 2 problems were answered in one record only and are left out" in text
    assert "100.00 50.00 +50.00" in text


def test_other_data_are_not_paired() -> None:
    text = said(facts("gsm8k"), run("rr"), facts("gsm8k", sha256="f" * 64), run("rr"))
    assert "gsm8k: not paired, for the two records were asked other problems (data" in text
    assert "ffffffffffff" in text
    assert "delta" not in text
    assert "math: not in the other record" in said(facts("math"), run("r", "math"), facts("gsm8k"), run("r"))


def test_the_same_problems_with_other_examples_are_paired_with_a_caution() -> None:
    before = facts("gsm8k", shots=5, sha256="e" * 64, problems_sha256="d" * 64)
    before["generation"]["decoding"]["gsm8k"] = {"max_new_tokens": 256, "temperature": 0.0}
    text = said(facts("gsm8k", problems_sha256="d" * 64), run("rw"), before, run("rr"))
    assert "gsm8k: not only the model differs: layout" not in text
    assert "gsm8k: not only the model differs: shots 0 / 5; max new tokens 512 / 256" in text
    assert "not paired" in said(facts("gsm8k", problems_sha256="c" * 64), run("rw"), before, run("rr"))


def test_cautions_name_grader_mode_engine_and_prompts() -> None:
    before = facts("gsm8k", grader="lm-eval-flexible")
    before["generation"] |= {"engine": "vllm", "versions": {"torch": "2.9"}, "weights": "not a caution"}
    rows = run("rw")
    rows[0]["prompt_sha256"] = "other"
    text = said(facts("gsm8k"), run("rw"), before, rows)
    for words in ("grader gsm8k-numeric / lm-eval-flexible", "engine hf / vllm", "versions torch none / 2.9"):
        assert words in text
    assert "the rendered prompts of 1 of 2 problems" in text
    assert "weights" not in text
    code, official = (make.passk_facts(MODEL, {"mbpp": make.task_facts("mbpp", "code")}) for _ in range(2))
    official["sandbox"] = official["sandbox"] | {"verdict": "official", "limits": {"cpu_seconds": 3.0}}
    programs = [make.program_row("mbpp", "Mbpp/1")]
    text = said(code, programs, official, programs)
    assert "grader isolated / official; limit cpu_seconds 10.0 / 3.0" in text


def test_equal_settings_have_no_caution() -> None:
    assert "not only" not in said(facts("gsm8k"), run("rw"), facts("gsm8k", model=OTHER), run("rr"))


def test_the_comparison_fits_the_screen() -> None:
    tasks = ("humaneval-plus@v0.1.10", "mbpp-sanitized")
    a, b = ([row for t in tasks for row in run(w * 700, t)] for w in ("rrw", "rwr"))
    assert max(map(len, compare_lines(facts(*tasks), a, facts(*tasks), b))) <= WIDTH


def test_the_observed_differences_say_what_they_could_settle() -> None:
    a, b = run("rrrwwwrrrr" * 10), run("rrwrwwrrrr" * 10)
    found = pass_rates.compare(a, b, "gsm8k")
    assert found is not None
    # 20 of 100 differ by 1 with mean 0: the sum of squares is 20, over 99.
    assert found.detectable == pytest.approx(2.8016 * (20 / 99 / 100) ** 0.5, rel=1e-4)


def test_a_change_of_grader_is_explained_item_by_item() -> None:
    old = [make.answer_row("math", f"p{i}", "right" if i < 4 else "wrong") for i in range(8)]
    new = [dict(row) for row in old]
    for place in (5, 6):
        new[place] |= {"outcome": "right", "correct": 1}
    new[0] |= {"outcome": "no-answer", "correct": 0}
    new[7] |= {"outcome": "no-answer"}
    text = " ".join(" ".join(changes(old, new)).split())
    assert "math: 50.00 % before, 62.50 % now (+12.50 points); 3 of 8 verdicts changed" in text
    assert "math: 2 from wrong to right: p5/0/0, p6/0/0" in text
    assert "math: 1 from right to no-answer: p0/0/0" in text
    assert "math, without a change of score: 1 from wrong to no-answer: p7/0/0" in text


def test_changes_of_an_earlier_versions_rows_and_of_lists_that_differ() -> None:
    old = [{"key": f"g/p{i}/0/0", "task": "g", "problem": f"p{i}", "correct": 0} for i in range(14)]
    new = [make.answer_row("g", f"p{i}") for i in range(12)]
    text = " ".join(" ".join(changes(old, new)).split())
    assert "g: 12 from wrong to right: p0/0/0, " in text
    assert "and 2 more" in text
    assert "2 answers are in one of the two only and are not compared" in text


def test_nothing_changed_is_said() -> None:
    rows = run("rw")
    assert changes(rows, rows) == [
        "what changed:",
        "- gsm8k: 50.00 % before, 50.00 % now (+0.00 points); 0 of 2 verdicts changed",
    ]
