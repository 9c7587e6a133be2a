"""EvalPlus's judgements: its comparison, its inputs' forms, and candidates that are right on the base inputs only."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from selectkd_eval.sandbox import plus
from selectkd_eval.sandbox.client import Sandbox
from selectkd_eval.sandbox.program import Limits, Outcome, Program

NUMBERS = st.one_of(st.floats(width=16), st.integers(-3, 3), st.booleans(), st.sampled_from([1.0, 1.0 + 1e-7, 1e-6]))
NESTS = st.recursive(NUMBERS, lambda inner: st.lists(inner, max_size=3), max_leaves=6)


@given(NESTS, NESTS, st.sampled_from([1e-6, 1e-2]))
@example([1.0, 2.0], [1.0], 1e-6)
@example([[1.0], [2.0]], [1.0, 2.0], 1e-6)
@example([[1.0, 2.0], [1.0]], [[1.0, 2.0], [1.0]], 1e-6)
@example([math.inf, -math.inf], [math.inf, math.inf], 1e-6)
@example(math.nan, math.nan, 1e-6)
@example([], [[]], 1e-6)
@example(["a"], ["a"], 1e-6)
@example([None], [None], 1e-6)
@example([1 << 70], [1 << 70], 1e-6)
def test_close_is_numpys_allclose(found: Any, expected: Any, atol: float) -> None:
    def judged(ask: Any) -> object:
        try:
            with np.errstate(all="ignore"):
                return bool(ask())
        except (TypeError, ValueError):
            return "no numbers, or they do not fit"

    numpys = judged(lambda: np.allclose(found, expected, rtol=1e-7, atol=atol))
    assert judged(lambda: plus.close(found, expected, atol)) == numpys


def oracle(name: str, atol: float = 0, task: str = "Mbpp/1") -> plus.Oracle:
    return plus.Oracle(task, name, atol)


def test_rules_of_single_tasks() -> None:
    assert oracle("similar_elements").accepts([2, 1, 1], (1, 2), [])
    assert not oracle("similar_elements", task="HumanEval/1").accepts([2, 1], [1, 2], [])
    assert oracle("are_equivalent").accepts(None, True, [])
    assert oracle("sum_div").accepts(0, 7, []) and not oracle("sum_div").accepts(1, 7, [])
    assert oracle("check_str").accepts("a match", True, []) and not oracle("check_str").accepts(None, True, [])
    assert oracle("check_str").accepts(False, False, []) and not oracle("check_str").accepts(True, False, [])
    assert oracle("check_str").expected(lambda x: x, ["m"]) is True
    assert plus.pyramid_surface(3, 4) == 35 and oracle("surface_Area").accepts(35, 33, [3, 4])
    assert plus.digit_distance(1, 256) == 2 + 5 + 5
    assert oracle("digit_distance_nums").accepts(12, 0, [1, 256])


def test_a_zero_of_the_polynomial_counts_and_not_the_references() -> None:
    judge = oracle("find_zero", 1e-4, "HumanEval/32")
    coefficients = [-6, 11, -6, 1]  # (x - 1)(x - 2)(x - 3)
    assert all(judge.accepts(zero, 1.0, [coefficients]) for zero in (1.0, 2.0, 3.0 + 1e-9))
    assert not judge.accepts(1.5, 1.0, [coefficients])


def test_tolerance() -> None:
    assert oracle("f", 1e-6).accepts(0.1 + 0.2, 0.3, []) and not oracle("f", 1e-6).accepts(0.3001, 0.3, [])
    assert oracle("f").accepts([1.0 + 1e-8], [1.0], []), "a float expected: 1e-6 even where the task says 0"
    assert not oracle("f").accepts((1.0 + 1e-8,), [1.0], []), "another type"
    assert not oracle("f").accepts([1.0], [1.0, 1.0], []), "another length: no broadcasting"
    assert not oracle("f").accepts(5, 6, []) and oracle("f").accepts(5, 5.0, [])
    kept = oracle("f")
    assert kept.accepts(0.5, 0.5, []) and kept.atol == 1e-6


def test_inputs_get_their_forms() -> None:
    forms = [
        ("HumanEval/1", [[1, 2]], [[1, 2]]),
        ("Mbpp/3", [[1]], [[1]]),
        ("Mbpp/2", [[3, 4], [5]], [(3, 4), (5,)]),
        ("Mbpp/63", [[[1, 2], [3]]], [[(1, 2), (3,)]]),
        ("Mbpp/75", [[[1, 2]], 6], [[(1, 2)], 6]),
        ("Mbpp/106", [[5], [6]], [[5], (6,)]),
        ("Mbpp/115", [[[1, 2], [], {}]], [[{1, 2}, {}, {}]]),
        ("Mbpp/124", ["1.5", "2j"], [1.5, 2j]),
        ("Mbpp/252", ["(1+2j)"], [1 + 2j]),
        ("Mbpp/250", [[1], 2], [(1,), 2]),
        ("Mbpp/259", [[[1], [2]], [[3]]], [((1,), (2,)), ((3,),)]),
        ("Mbpp/278", [[4, [5]]], [(4, (5,))]),
        ("Mbpp/307", [[1], 2, 3], [(1,), 2, 3]),
        ("Mbpp/722", [{"a": [1, 2]}, 6], [{"a": (1, 2)}, 6]),
        ("Mbpp/580", [[1, [2, [3]]]], [(1, (2, (3,)))]),
    ]
    for task, row, wanted in forms:
        assert plus.arguments_of(task, [row]) == [wanted], task


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox(Limits(), workers=2) as box:
        yield box


def program(code: str, **task: Any) -> Program:
    double = {"task": "Mbpp/3", "entry_point": "f", "canonical": "def f(x): return x + x", "base": [[1]], "atol": 0}
    return Program("p", code, plus={**double, "plus": [["ab"], [[1]], [2.5]], **task})


def fate(box: Sandbox, code: str, **task: Any) -> Outcome:
    ((_, outcome),) = box.run([program(code, **task)], "isolated")
    return outcome


def test_base_and_plus_verdicts_can_both_be_told(box: Sandbox) -> None:
    cases = [
        ("def f(x): return 2 * x", "pass", True),
        ("def f(x): return 2", "wrong", True),
        ("def f(x): return 3", "wrong", False),
        ("def f(x): return x + 1", "error", True),  # 'ab' + 1
        ("def f(x): raise KeyError", "error", False),
        ("def g(x): return x", "error", False),
        ("import os\ndef f(x): return 2 if x == 1 else os._exit(0)", "crash", True),
        ("import os\ndef f(x): os._exit(0)", "crash", False),
        ("def f(x): return [0] * (1 << 40) if x != 1 else 2", "memory", True),
        ("class A:\n __eq__ = lambda s, o: True\ndef f(x): return A()", "wrong", False),
        ("def f(x):\n if isinstance(x, list): x.clear()\n return x + x", "wrong", True),
    ]
    for place, outcome in box.run([program(code) for code, *_ in cases], "isolated"):
        code, word, base = cases[place]
        assert (outcome.word, plus.base_passed(outcome.word, outcome.detail)) == (word, base), (code, outcome)


def test_an_altered_argument_fools_no_oracle(box: Sandbox) -> None:
    task = {"task": "HumanEval/32", "entry_point": "f", "canonical": "def f(xs): return 1.0", "atol": 1e-4}
    forged = "def find_zero(xs):\n xs[:] = [0, 0]\n return 9.0"
    honest = "def find_zero(xs): return 2.0"
    task |= {"entry_point": "find_zero", "canonical": "def find_zero(xs): return 2.0", "base": [[[-2, 1]]], "plus": []}
    assert fate(box, honest, **task).passed and fate(box, forged, **task).word == "wrong"


def test_a_result_too_long_to_cross_is_left_out_and_said(box: Sandbox) -> None:
    many = {"canonical": "def f(n): return [(0.5, n)] * n", "base": [[1]], "plus": [[5], [10**6]]}
    outcome = fate(box, "def f(n): return [(0.5, n)] * n", **many)
    assert outcome.passed and outcome.detail == "left out: plus input 1"
    assert fate(box, "def f(n): return [(0.5, n)] * min(n, 4)", **many).word == "wrong"


QUICK = 90  # every so many rows; all of them take minutes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["HumanEvalPlus_v0.1.10", "MbppPlus_v0.2.0"])
def test_canonical_solutions_pass(box: Sandbox, shared_data: Path, name: str) -> None:
    with gzip.open(shared_data / "tasks" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    special = {"HumanEval/32", "Mbpp/2", "Mbpp/124", "Mbpp/164", "Mbpp/252", "Mbpp/278", "Mbpp/558", "Mbpp/722"}
    programs = []
    for place, row in enumerate(rows):
        if place % QUICK == 7 or row["task_id"] in special:
            task = {"task": row["task_id"], "entry_point": row["entry_point"], "atol": row["atol"]}
            task |= {"base": row["base_input"], "plus": row["plus_input"]}
            whole = row["prompt"] + row["canonical_solution"]
            programs.append(Program(row["task_id"], whole, plus={**task, "canonical": whole}))
    assert len(programs) >= 3
    failed = {programs[place].id: outcome for place, outcome in box.run(programs, "isolated") if not outcome.passed}
    assert not failed
