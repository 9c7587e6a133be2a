"""What a person sees when a pass@k run ends: every printed number is checked against rows small enough to count."""

from __future__ import annotations

import random
from typing import Any

import pytest
import record_factory as make

from selectkd_eval import passk_table
from selectkd_eval.grading.graders import GRADER_ROWS
from selectkd_eval.tasks.table import TASKS
from selectkd_eval.terminal import WIDTH

MODEL = make.card("KD", 0)


def facts(*tasks: str, code: bool = False, **more: Any) -> dict[str, Any]:
    kind = "code" if code else "answer"
    return make.passk_facts(MODEL, {task: make.task_facts(task, kind) for task in tasks}, **more)


def text(facts: dict[str, Any], rows: list[dict[str, Any]], ks: tuple[int, ...] = (1,)) -> str:
    """The lines as one, so that a sentence is found wherever it was wrapped."""
    return " ".join(" ".join(passk_table.lines(facts, rows, ks)).split())


def cells(facts: dict[str, Any], rows: list[dict[str, Any]], ks: tuple[int, ...] = (1,)) -> list[list[str]]:
    table = passk_table.lines(facts, rows, ks)
    return [line.split() for line in table[1 : table.index("")]]


def test_the_row_of_a_task_counts_what_is_in_its_rows() -> None:
    rows = [make.answer_row("gsm8k", f"p{i}", "right" if i < 25 else "wrong") for i in range(100)]
    rows[0]["finish"] = rows[99]["finish"] = "length"
    rows[50]["prompt_cut"] = True
    rows[98]["outcome"] = "timeout"
    [row] = cells(facts("gsm8k"), rows)
    task, value, low, high, *rest = row
    assert (task, value) == ("gsm8k", "25.00")
    assert float(low.strip("[,")) == pytest.approx(16.7, abs=0.8)
    assert float(high.strip("]")) == pytest.approx(33.6, abs=0.8)
    assert rest == ["100", "1", "2", "1", "1", "gsm8k-numeric", make.digest("gsm8k")[:12]]
    said = text(facts("gsm8k"), rows)
    assert "gsm8k: 2 of 100 answers were ended by the token limit; 1 of them count as right" in said
    assert "gsm8k: 1 prompts did not fit and lost their beginning" in said
    assert "gsm8k outcomes: 74 wrong, 25 right, 1 timeout" in said


def test_pass_at_k_pools_seeds_and_samples() -> None:
    rows = []
    for problem, right in enumerate((0, 1, 2, 4)):
        for place in range(4):
            word = "right" if place < right else "wrong"
            rows.append(make.answer_row("gsm8k", f"p{problem}", word, seed=place // 2, sample=place % 2))
    first, second = cells(facts("gsm8k"), rows, (1, 2))
    assert first[:3] == ["gsm8k", "1:", f"{100 * 7 / 16:.2f}"]
    assert first[6:9] == ["2", "x", "2"], "two seeds of two samples"
    # 1 of 4 right: half of the pairs hold it; 2 of 4: 5 of 6 pairs.
    assert second[:2] == ["2:", f"{100 * (0 + 1 / 2 + 5 / 6 + 1) / 4:.2f}"]


def test_problems_with_too_few_answers_for_k_are_said() -> None:
    rows = [make.answer_row("gsm8k", p, seed=s) for p in "ab" for s in (0, 1)]
    rows[3] = {"key": "gsm8k/b/1/0", "task": "gsm8k", "problem": "b", "seed": 1, "sample": 0, "error": "refused"}
    said = text(facts("gsm8k"), rows, (2,))
    assert "gsm8k: 1 problems have fewer than 2 answers and are not in pass@2" in said
    assert "1 failed answers (no text" in said


def test_failed_answers_without_a_row_are_said_too() -> None:
    assert "7 failed answers" in text(facts("gsm8k", failed=7), [make.answer_row("gsm8k", "a")])
    assert "failed" not in text(facts("gsm8k", failed=0), [make.answer_row("gsm8k", "a")])


def test_a_task_without_an_answer_has_no_score() -> None:
    [row] = cells(facts("gsm8k", failed=3), [])
    assert row[:3] == ["gsm8k", "none", "0"]


def test_both_scores_are_printed_where_the_modes_differ() -> None:
    rows = [make.program_row("humaneval", f"HumanEval/{i}") for i in range(20)]
    rows[3] = make.program_row("humaneval", "HumanEval/3", "wrong", "pass")
    rows[4] = make.program_row("humaneval", "HumanEval/4", "error", "pass")
    rows[5] = make.program_row("humaneval", "HumanEval/5", "wrong", "error")
    rows[6] = make.program_row("humaneval", "HumanEval/6", "no-code", mode="isolated", extracted=None)
    del rows[6]["other"]
    rows[7] |= {"mode": "official", "fallback": True, "other": None}
    said = text(facts("humaneval", code=True), rows)
    assert "humaneval: isolated 80.00 %, official 90.00 %; 2 of 18 verdicts differ: " in said
    assert (
        "1 isolated error, official pass (HumanEval/4/0/0); 1 isolated wrong, official pass (HumanEval/3/0/0)" in said
    )
    assert "humaneval: no isolated verdict is possible on HumanEval/7; official ones stand for them" in said
    assert "humaneval outcomes: 16 pass, 2 wrong, 1 error, 1 no-code" in said


def test_modes_that_agree_are_said_to_agree() -> None:
    rows = [make.program_row("humaneval", f"HumanEval/{i}") for i in range(20)]
    assert "isolated and official verdicts agree on all 20 programs" in text(facts("humaneval", code=True), rows)


def test_an_official_run_reads_the_same_both_scores() -> None:
    row = make.program_row("humaneval", "HumanEval/0", "pass")
    row |= {"mode": "official", "other": {"mode": "isolated", "outcome": "wrong", "correct": 0, "detail": ""}}
    said = text(facts("humaneval", code=True), [row, make.program_row("humaneval", "HumanEval/1")])
    assert "isolated 50.00 %, official 100.00 %; 1 of 2 verdicts differ: 1 isolated wrong, official pass" in said


def test_the_mode_that_stands_in_is_named() -> None:
    row = make.program_row("mbpp-plus", "Mbpp/2") | {"mode": "isolated", "fallback": True, "other": None}
    said = text(facts("mbpp-plus", code=True), [row])
    assert "no official verdict is possible on Mbpp/2; isolated ones stand for them" in said


def test_chat_and_system_prompt_are_said() -> None:
    about = facts("gsm8k")
    about["generation"] |= {"chat": True, "system": "Be brief."}
    assert "as chat, with a system prompt, " in text(about, [])
    about["generation"] |= {"chat": False, "system": ""}
    assert "as plain text, " in text(about, [])
    assert "system prompt" not in text(about, [])


def test_two_problems_can_settle_no_difference() -> None:
    rows = [make.program_row("mbpp", f"Mbpp/{i}", "wrong") for i in range(2)]
    assert "--compare): mbpp none at all" in text(facts("mbpp", code=True), rows)


def test_at_most_ten_items_are_named() -> None:
    rows = [make.program_row("humaneval", f"HumanEval/{i}", "wrong", "pass") for i in range(14)]
    said = text(facts("humaneval", code=True), rows)
    assert "14 isolated wrong, official pass (HumanEval/0/0/0, " in said
    assert "HumanEval/9/0/0 and 4 more)" in said
    assert "HumanEval/10/0/0" not in said


def test_programs_near_the_limit_are_counted() -> None:
    rows = [make.program_row("mbpp", f"Mbpp/{i}", cpu_seconds=0.2) for i in range(20)]
    rows[1] |= {"cpu_seconds": 5.01, "again": True}
    rows[2] = make.program_row("mbpp", "Mbpp/2", "timeout", cpu_seconds=10.0, again=True)
    said = text(facts("mbpp", code=True), rows)
    assert "mbpp, CPU limit 10 s: timeouts: 1, other verdicts over half of it: 1, programs run a second time" in said
    assert "time, alone: 2 (Mbpp/2/0/0, Mbpp/1/0/0)" in said


def test_what_programs_lacked_is_named() -> None:
    rows = [make.program_row("mbpp", f"Mbpp/{i}", "import-missing", detail="nltk") for i in range(3)]
    rows += [make.program_row("mbpp", "Mbpp/9", "forbidden", detail="socket")]
    said = text(facts("mbpp", code=True), rows)
    assert "mbpp import-missing: nltk (3)" in said
    assert "mbpp forbidden: socket (1)" in said


def test_plus_tasks_show_the_base_score_too() -> None:
    rows = [
        make.program_row("humaneval-plus", f"HumanEval/{i}", "pass" if i < 25 else "wrong", base=base)
        for i in range(50)
        for base in [{"outcome": "pass", "correct": 1} if i < 30 else {"outcome": "wrong", "correct": 0}]
    ]
    said = text(facts("humaneval-plus", code=True), rows)
    assert "humaneval-plus: 60.00 % [" in said
    assert "on the base tests, 50.00 % [" in said
    assert "which 5 of 50 programs pass the base tests only to fail" in said


def test_the_breakdown_splits_the_rows() -> None:
    rows = [
        make.answer_row("math", f"p{i}", "right" if i % 2 else "wrong", strata={"level": f"Level {1 + i % 3}"})
        for i in range(90)
    ]
    lines = passk_table.lines(facts("math"), rows)
    table = [
        line.split() for line in lines[next(i for i, x in enumerate(lines) if x.startswith("math by level")) + 1 :]
    ]
    assert [row[:3] for row in table] == [["Level", str(level), "50.00"] for level in (1, 2, 3)]
    assert [row[-1] for row in table] == ["30"] * 3


def test_the_interval_is_told_in_words() -> None:
    row = make.answer_row("gsm8k", "a")
    assert "the choice of problems (greedy decoding), not another training" in text(facts("gsm8k"), [row])
    drawn = facts("gsm8k")
    drawn["generation"]["seeds"] = "one stream of random numbers per answer"
    said = text(drawn, [row, make.answer_row("gsm8k", "a", seed=1)])
    assert "they cover the choice of problems and the sampling of answers, not another training of the model" in said
    assert "sampling seeds: one stream of random numbers per answer" in said


def test_the_detectable_difference_of_164_problems_at_half_right() -> None:
    rows = [make.program_row("humaneval", f"HumanEval/{i}", "pass" if i % 2 else "wrong") for i in range(164)]
    # 2.8016 standard errors of a difference of two independent shares of 1/2.
    expected = 100 * 2.8016 * (2 * 0.25 / 163) ** 0.5
    assert f"--compare): humaneval {expected:.1f}" in text(facts("humaneval", code=True), rows)


def test_every_task_and_grader_fits_the_screen() -> None:
    rng, rows, tasks = random.Random(0), [], {}
    for place, name in enumerate(TASKS):
        version = f"{name}@v0.1.10" if TASKS[name].versioned else name
        kind = TASKS[name].kind
        tasks[version] = make.task_facts(version, kind, grader=list(GRADER_ROWS)[place % len(GRADER_ROWS)])
        for i in range(30):
            right = rng.random() < 0.5
            make_row = make.program_row if kind == "code" else make.answer_row
            word = ("pass" if kind == "code" else "right") if right else "wrong"
            rows += [make_row(version, f"a/rather-long-identifier-{i}", word, seed=s) for s in range(12)]
    for ks in ((1,), (1, 10)):
        shown = passk_table.lines(make.passk_facts(MODEL, tasks), rows, ks)
        assert max(map(len, shown)) <= WIDTH
        assert len({line[-12:] for line in shown[1 : 1 + len(tasks)]}) > 1, "the data digest is never cut off"


def test_what_a_model_or_a_file_said_reaches_the_terminal_spelled_out() -> None:
    rows = [make.program_row("mbpp", "Mbpp/\x1b[2J", "import-missing", detail="\x1b]0;owned\x07")]
    assert "\x1b" not in text(facts("mbpp", code=True), rows)


def test_the_running_score_is_short() -> None:
    rows = [make.answer_row("gsm8k", "a"), make.answer_row("gsm8k", "b", "wrong"), make.answer_row("math", "a")]
    rows.append({"key": "math/b/0/0", "task": "math", "error": "refused"})
    assert passk_table.running(rows) == "gsm8k 50.0 %, math 100.0 %"
    assert passk_table.running([]) == ""


def test_a_record_of_an_earlier_version_is_read() -> None:
    rows = [
        {
            **{"key": f"mini-gsm/{i}/0/0", "task": "mini-gsm", "problem": str(i), "seed": 0, "sample": 0},
            **{"completion": "#### 1", "extracted": "1", "gold": "1", "correct": 1, "finish": "eos", "n_tokens": 3},
        }
        for i in range(5)
    ]
    told = {"model": MODEL, "tasks": {"mini-gsm": {"n": 5, "sha256": "a" * 64, "shots": 0, "grader": "number"}}}
    [row] = cells(told, rows)
    assert row == ["mini-gsm", "100.00", "[56.6,", "100.0]", "5", "1", "0", "0", "0", "number", "a" * 12]
