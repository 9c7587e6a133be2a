"""MATH answers: what counts as equal, what may not hang or kill a run, and 800 labelled answers of a real model."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled import labelled_math

from selectkd_eval.errors import InputError
from selectkd_eval.grading import open_grader
from selectkd_eval.grading.boxes import boxed_gold, boxes, last_box, last_boxes
from selectkd_eval.grading.pool import Allowance, Pool
from selectkd_eval.grading.symbolic import MathVerify, plainly, tidy

pytest.importorskip("math_verify")

EQUAL = [
    *(("10{,}000", "10000"), ("10000", "10,000"), (r"32,\!348", r"\$32,348"), (r"\$12.50", "12.5"), ("0.70", ".7")),
    *((r"\frac{1}{2}", "0.5"), (r"\frac12", "1/2"), (r"\frac{1}{2}", r"\dfrac12"), (r"\frac \pi4", r"\pi/4")),
    *((r"2\frac{1}{2}", "2.5"), (r"\frac{5}{2}", "2 1/2"), (r"2\frac12", r"\frac52"), (r"-1\frac12", "-1.5")),
    *((r"12\text{ cm}", "12"), ("12", "12 cm"), ("118", "118 dollars"), (r"15\mbox{ cm}^2", "15"), ("12", "12 cm^2")),
    *((r"45^\circ", "45"), ("45", "45°"), ("45", r"45\text{ degrees}"), (r"8\sqrt{3}", r"8\sqrt{3} square inches")),
    *((r"50\%", "50"), ("50", r"50\%"), (r"25\%", r"25\%"), (r"50\%", "50 percent"), (r"25\%", "0.25")),
    *(("5", "x=5"), ("x=5", "5"), ("15,600", "n = 15,600"), ("y=2x+3", "2x+3"), ("5", "{5}"), ("5", "**5**")),
    *((r"\text{Evelyn}", "Evelyn"), (r"\text{Evelyn}", r"\textbf{Evelyn}"), (r"\text{June 20}", "June 20")),
    *(
        (r"\text{(C)}", "C"),
        (r"\text{(C)}", r"\textbf{(C)}"),
        (r"\text{odd}", "odd"),
        (r"\text{4:30 p.m.}", "4:30 p.m."),
    ),
    *(("2516_8", "2516_{8}"), ("2516_8", "2516"), ("204_5", "204_{5}")),
    *(("[2,5)", "[2, 5)"), (r"(-\infty,2)\cup(3,\infty)", r"(-\infty, 2) \cup (3, \infty)"), ("x>2", "2<x")),
    *((r"\left( 3, \frac{\pi}{2} \right)", r"(3,\pi/2)"), ("1,-2", "-2, 1"), ("1,-2", r"1\text{ and }-2")),
    *((r"1 \pm \sqrt{19}", r"1+\sqrt{19}, 1-\sqrt{19}"), ("6 - 5i", "-5i+6"), (r"3\sqrt{13}", r"\sqrt{117}")),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}"),
    *(("x^2+2x+1", "(x+1)^2"), (r"\frac{1}{\sqrt2}", r"\frac{\sqrt{2}}{2}"), (r"\frac{12}{5,\!525}", "12/5525")),
]
UNEQUAL = [
    *(("10,000", "1000"), ("1,2,3", "123"), ("1,2", "1.2"), (r"\frac13", "0.333"), (r"2\frac12", "1"), ("3", "-3")),
    *((r"50\%", "51"), (r"50\%", "0.05"), (r"12\text{ cm}", "13 cm"), (r"45^\circ", "46"), ("5", "x = 6")),
    *((r"\text{Evelyn}", "Debra"), (r"\text{(C)}", "D"), (r"\text{even}", "odd")),
    *(("2516_8", "2516_9"), ("2516_8", "2517_8"), ("-221_3", "-221_4"), (".0000672", ".0000673")),
    *(("[2,5)", "(2,5)"), ("[2,5)", "[2,5]"), ("x>2", r"x\ge 2"), ("(1,2)", "(2,1)"), ("1,-2", "1,2"), ("1,-2", "1")),
    *(("6-5i", "6+5i"), ("x^2+2x+1", "(x+2)^2"), (r"7\pi", "21.99"), ("p - q", "q-p"), ("y=2x+3", "y=3x+2")),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix}1&2\\3&5\end{pmatrix}"),
]
HAZARDS = [
    *(r"10^{10^{10}}", r"9^{9^{9^9}}", r"(2^{1000000})!", r"\sum_{k=1}^{10^9} \frac{1}{k}", "(" * 5000 + ")" * 5000),
    "+".join(f"x^{{{power}}}" for power in range(3000)),
]
HARMLESS = [
    "{" * 5000,
    "\0",
    "\ud800",
    "1" * 100_000,
    r"\boxed{" * 50_000 + "}" * 50_000,
    "$ " * 50_000,
    "x" * 2_000_000,
]


@pytest.fixture(scope="module")
def grader() -> Iterator[MathVerify]:
    with MathVerify(workers=2) as opened:
        yield opened


def test_spellings_of_one_answer(grader: MathVerify) -> None:
    grades = grader.grade([(rf"so it is $\boxed{{{answer}}}$.", gold) for gold, answer in EQUAL])
    assert [pair for pair, grade in zip(EQUAL, grades, strict=True) if not grade.correct] == []


def test_other_answers(grader: MathVerify) -> None:
    grades = grader.grade([(rf"so it is $\boxed{{{answer}}}$.", gold) for gold, answer in UNEQUAL])
    assert [(pair, grade) for pair, grade in zip(UNEQUAL, grades, strict=True) if grade.word != "wrong"] == []


@pytest.mark.parametrize(
    ("completion", "gold", "word", "extracted"),
    [
        (r"\boxed{4}, no: \boxed{5}", "5", "right", "5"),
        (r"$\boxed{-2}$ and $\boxed{1}$.", "-2,1", "right", "-2, 1"),
        (r"first \boxed{-2} is tried; then \boxed{1}", "1", "right", "1"),
        (r"\boxed{\boxed{5}}", "5", "right", "5"),
        (r"\boxed 5 it is", "5", "right", "5"),
        (r"\boxed{\{1,2\}}", "1,2", "right", r"\{1,2\}"),
        (r"\boxed{5} and then \boxed{6", "5", "right", "5"),
        (r"\boxed{}", "5", "no-answer", None),
        ("Final Answer: The final answer is $5$. I hope it is correct.", "5", "right", "5"),
        ("After all the answer is 7.", "5", "wrong", "7"),
        ("I cannot say.", "5", "no-answer", None),
        ("", "5", "no-answer", None),
    ],
)
def test_where_the_answer_is(grader: MathVerify, completion: str, gold: str, word: str, extracted: str | None) -> None:
    assert grader.grade([(completion, gold)]) == [(word, extracted)]


def test_verdicts_come_in_order_and_once_per_pair(grader: MathVerify) -> None:
    pairs = [(rf"\boxed{{x^{power}+x^{power}}}", f"2x^{other}") for power in range(2, 6) for other in range(2, 6)] * 3
    assert [grade.correct for grade in grader.grade(pairs)] == [a == b for a in range(4) for b in range(4)] * 3


def test_no_answer_hangs_or_kills_the_run() -> None:
    with MathVerify(2, Allowance(cpu_seconds=0.7)) as grader:
        texts = [rf"\boxed{{{answer}}}" for answer in (*HAZARDS, *HARMLESS, "2+3")]
        grades = grader.grade([(text, "5") for text in texts])
        assert [grade.word for grade in grades[:4]] == ["timeout"] * 4
        assert all(grade.word in ("timeout", "memory", "wrong", "no-answer") for grade in grades[:-1])
        assert grades[-1].word == "right"
        assert grader.pool.restarts >= 4


def test_memory_is_limited_for_the_pair_that_asks_for_it() -> None:
    with Pool("math-verify", 1, Allowance(cpu_seconds=20, memory_bytes=400 << 20)) as pool:
        words = [
            reply.word
            for reply in pool.run([("$$2+3$$", "$$5$$"), ("$$2^{3000000000}+1$$", "$$5$$"), ("$$7-2$$", "$$5$$")])
        ]
    assert words == ["right", "memory", "right"]


def test_a_killed_worker_costs_one_verdict(grader: MathVerify) -> None:
    grader.grade([(r"\boxed{y+y}", "2y")])
    for worker in grader.pool.workers:
        worker.process.kill()
    pairs = [(rf"\boxed{{z+{n}z}}", f"{n + 1}z") for n in range(2, 12)]
    words = [grade.word for grade in grader.grade(pairs)]
    assert words.count("right") >= len(pairs) - 2


def test_grading_works_in_a_thread_and_leaves_no_process() -> None:
    found = []

    def work() -> None:
        with MathVerify(1) as grader:
            found.extend(grader.grade([(r"\boxed{a+a}", "2a")]))
            found.append([worker.process.pid for worker in grader.pool.workers])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    grade, pids = found
    assert grade.correct
    assert len(pids) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_workers_end_when_the_run_is_killed() -> None:
    code = (
        "from selectkd_eval.grading.symbolic import MathVerify; import os, signal\n"
        "grader = MathVerify(1); grader.grade([(r'\\boxed{a+a}', '2a')])\n"
        "print(grader.pool.workers[0].process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    pid = int(done.stdout)
    for _ in range(100):
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    raise AssertionError("the worker outlived its run")


def test_nothing_starts_before_algebra_is_needed() -> None:
    with MathVerify() as grader:
        assert [grade.word for grade in grader.grade([(r"\boxed{5}", "5"), (r"\boxed{6}", "5"), ("", "5")])] == [
            "right",
            "wrong",
            "no-answer",
        ]
        assert grader.pool.workers == []


def test_gold_is_the_last_box() -> None:
    assert boxed_gold(r"it is $\boxed{10}$. - OR - again $\boxed{\frac{1}{2}}$.") == r"\frac{1}{2}"
    with pytest.raises(InputError, match="boxed"):
        boxed_gold("it is 10")


@given(st.lists(st.sampled_from(["\\boxed", "\\fbox", "{", "}", "\\{", " ", "5", "$", "and", "\n"]), max_size=60))
def test_boxes_are_found_in_any_text(parts: list[str]) -> None:
    text = "".join(parts)
    for box in boxes(text):
        assert box.content in text[box.start : box.end]
        assert text[box.start :].startswith(("\\boxed", "\\fbox"))
    assert (last_box(text) is None) == (last_boxes(text) == [])


@given(st.text(max_size=100), st.text(alphabet="0123456789.,%$\\ {}frac-+_/^textcm ", max_size=40))
@settings(max_examples=300)
def test_plain_cases_are_decided_without_an_error_and_alike_from_both_sides(text: str, answer: str) -> None:
    assert plainly(tidy(text), tidy(text)) is True
    assert plainly(tidy(text), tidy(answer)) == plainly(tidy(answer), tidy(text))


def test_agrees_with_the_labels(grader: MathVerify, shared_data: Path) -> None:
    """799 of 800; the other label says that 10000 is not 10{,}000."""
    rows = labelled_math(shared_data)
    grades = grader.grade([(text, grader.gold(solution)) for text, solution, _ in rows])
    assert len(rows) == 800
    differing = [
        (grader.gold(solution), grade.extracted)
        for grade, (_, solution, verdict) in zip(grades, rows, strict=True)
        if grade.correct != verdict
    ]
    assert differing == [("10{,}000", "10000")]


def test_what_is_decided_plainly_is_decided_as_math_verify_would(grader: MathVerify, shared_data: Path) -> None:
    """Percent signs aside: what math-verify makes of them depends on the version of its parser."""
    pairs = {
        (tidy(last_boxes(text)[-1]), tidy(boxed_gold(solution))) for text, solution, _ in labelled_math(shared_data)
    }
    plain = sorted(pair for pair in pairs if plainly(*pair) is not None and "%" not in "".join(pair))
    replies = grader.pool.run([(f"$${answer}$$", f"$${gold}$$") for answer, gold in plain])
    assert len(plain) > 90
    assert [(*pair, reply.word) for pair, reply in zip(plain, replies, strict=True)] == [
        (*pair, "right" if plainly(*pair) else "wrong") for pair in plain
    ]


def test_every_reference_has_a_gold_that_is_right_against_itself(shared_data: Path) -> None:
    with gzip.open(shared_data / "tasks" / "math_test_5000.jsonl.gz", "rt", encoding="utf-8") as file:
        solutions = [json.loads(line)["solution"] for line in file]
    with open_grader("math-verify") as grader:
        golds = [grader.gold(solution) for solution in solutions]
        assert len(golds) == 5000
        assert all(grade.correct for grade in grader.grade(list(zip(solutions, golds, strict=True))))


def test_algebra_finds_real_golds_equal_to_themselves(grader: MathVerify, shared_data: Path) -> None:
    """Not by spelling: each goes through math-verify, every eighth of the 5000."""
    with gzip.open(shared_data / "tasks" / "math_test_5000.jsonl.gz", "rt", encoding="utf-8") as file:
        golds = sorted({f"$${tidy(boxed_gold(json.loads(line)['solution']))}$$" for line in file})[::8]
    replies = grader.pool.run([(gold, gold) for gold in golds])
    assert [gold for gold, reply in zip(golds, replies, strict=True) if reply.word != "right"] == []
