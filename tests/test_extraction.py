"""Programs from answers: real gold solutions as chat models wrap them, and text that is anything but a program."""

from __future__ import annotations

import ast
import gzip
import json
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selectkd_eval.grading.extraction import extract_code

PROMPT = """from typing import List

def double(x: int) -> int:
    return 2 * x

def f(xs: List[int]) -> int:
    '''Sum.'''
"""
BODY = "    total = 0\n    for x in xs:\n        total += double(x)\n    return total\n"
# name: what a model writes around prompt p and solution s of the function e
CHATS: dict[str, Callable[[str, str, str], str]] = {
    "fence": lambda p, s, e: f"Here it is:\n\n```python\n{p}{s}```\n\nIt runs in O(n).",
    "example after": lambda p, s, e: f"Sure!\n```py\n{p}{s}\n```\nUse it:\n```python\nprint({e}(1))\n```",
    "shell before": lambda p, s, e: f"```bash\npip install numpy\n```\nthen\n```python\n{p}{s}\n```",
    "no language": lambda p, s, e: f"```\n{p}{s}\n```",
    "tildes": lambda p, s, e: f"~~~python\n{p}{s}\n~~~",
    "never closed": lambda p, s, e: f"The code:\n```python\n{p}{s}",
    "windows": lambda p, s, e: f"\ufeff```python\n{p}{s}\n```".replace("\n", "\r\n"),
    "body alone": lambda p, s, e: f"The body is:\n```python\n{s}\n```",
    "body at the margin": lambda p, s, e: f"The body is:\n```python\n{textwrap.dedent(s)}\n```",
    "prose around": lambda p, s, e: f"Here is the solution.\n\n{p}{s}\n\nThis works because it is right.",
    "code alone": lambda p, s, e: p + s,
    "tags": lambda p, s, e: f"[PYTHON]\n{p}{s}\n[/PYTHON]\nDone.",
    "done": lambda p, s, e: f"{p}{s}\n[DONE]\n\nYou are an expert",
    "turn ended": lambda p, s, e: f"```python\n{p}{s}\n```<|im_end|>\n<|im_start|>user\n```python\ndef {e}(): 0\n```",
    "thought": lambda p, s, e: f"<think>\n```python\ndef {e}(*a): return 0\n```\n</think>\n```python\n{p}{s}\n```",
    "stub before": lambda p, s, e: f"This\n```python\n{p}    pass\n```\nbecomes\n```python\n{p}{s}\n```",
    "demonstration": lambda p, s, e: f"```python\n{p}{s}\n\nassert {e} is None\nprint({e})\nn = input()\n```",
    "list item": lambda p, s, e: "1. So:\n" + "".join(f"   {row}\n" for row in f"```python\n{p}{s}\n```".split("\n")),
}


def problems(shared_data: Path) -> list[tuple[str, str, str]]:
    with gzip.open(shared_data / "tasks" / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [(row["prompt"], row["canonical_solution"], row["entry_point"]) for row in rows]


def functions(code: str | None) -> dict[str, str]:
    """Every top-level definition of the program as a tree."""
    return {
        node.name: ast.dump(node)
        for node in ast.parse(code or "").body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }


def run(code: str | None) -> int:
    """f([1, 2]) of the program: 6 where `double` is there, 3 for a plain sum."""
    names: dict[str, Callable[[list[int]], int]] = {}
    exec(code or "", names)
    return names["f"]([1, 2])


@pytest.mark.parametrize("style", CHATS)
def test_gold_solutions_survive_every_wrapping(style: str, shared_data: Path) -> None:
    for prompt, solution, entry_point in problems(shared_data):
        text = CHATS[style](prompt, solution, entry_point)
        code = extract_code(text, prompt=prompt, entry_point=entry_point, chat=True)
        assert functions(code) == functions(prompt + solution), entry_point


def test_a_completion_is_taken_to_the_letter(shared_data: Path) -> None:
    for prompt, solution, entry_point in problems(shared_data):
        assert extract_code(solution, prompt=prompt, entry_point=entry_point) == prompt + solution
        fenced = extract_code(f"{solution}\n```\nThis sums.", prompt=prompt, entry_point=entry_point)
        assert fenced == prompt + solution.rstrip("\n") + solution[len(solution.rstrip("\n")) :]
        chatty = extract_code(f"```python\n{prompt}{solution}\n```", prompt=prompt, entry_point=entry_point)
        assert functions(chatty) == functions(prompt + solution)


def test_every_mbpp_solution_is_found_with_and_without_its_name(shared_data: Path) -> None:
    with gzip.open(shared_data / "tasks" / "mbpp_full.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    assert len(rows) == 974
    for row in rows:
        gold = functions(row["code"].replace("\r\n", "\n").replace("\r", "\n"))
        called = [node.id for node in ast.walk(ast.parse(row["test_list"][0])) if isinstance(node, ast.Name)]
        name = next(word for word in called if word in gold)
        for text in (
            f"```python\n{row['code']}\n```",
            f"{row['code']}\n[DONE]\n",
            f"So:\n\n{row['code']}\n\nIt works.",
        ):
            assert functions(extract_code(text, entry_point=name, chat=True)) == gold
            assert functions(extract_code(text, chat=True)) == gold


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        # what the answer leaves out comes from the prompt: an import, a helper
        (f"```python\ndef f(xs: List[int]) -> int:\n{BODY}```", 6),
        (f"```python\n{BODY}```", 6),
        ("```python\nfrom __future__ import annotations\ndef f(xs: List) -> int:\n    return double(sum(xs))\n```", 6),
        # or from another block of the answer, before the prompt's
        (
            "```python\ndef f(xs):\n    return double(sum(xs))\n```\n```python\ndef double(x):\n    return x\n```",
            3,
        ),
        ("```python\ndef f(xs):\n    return g(xs)\n```\n```python\ng = sum\nprint(g)\n```", 3),
        # sessions and inline fences
        ("```python\n>>> def f(xs):\n...     return sum(xs)\n...\n>>> f([1])\n1\n```", 3),
        ("Use ```def f(xs): return sum(xs)``` here.", 3),
        ("f = lambda xs: sum(xs)", 3),
        # prose inside the fence, a broken example after it
        ("```python\ndef f(xs):\n    return sum(xs)\n\nExample usage:\n>>> f([1, 2])\n```", 3),
        ("```python\ndef f(xs):\n\treturn sum(xs)\nif __name__ == '__main__':\n\tprint(f(input()))\n```", 3),
        ("```python\nimport math; y = 1\ndef f(xs): return sum(xs); print(1)\nassert f([]) == 1\n```", 3),
        # the first real definition counts
        (
            "```py\ndef f(xs):\n    ...\n```\n```py\ndef f(xs):\n    return 3\n```\n```py\ndef f(xs): return 4\n```",
            3,
        ),
    ],
)
def test_what_is_missing_is_put_back(answer: str, value: int) -> None:
    assert run(extract_code(answer, prompt=PROMPT, entry_point="f", chat=True)) == value


@pytest.mark.parametrize(
    "text", ["", " \n", "I cannot write this.", "<think>def f(): ...", "See `f` and [1].", "```\n```"]
)
def test_no_code_is_told(text: str) -> None:
    assert extract_code(text, prompt=PROMPT, entry_point="f", chat=True) is None


def test_an_empty_completion_is_no_code() -> None:
    assert extract_code("", prompt=PROMPT, entry_point="f") is None


def test_a_program_with_a_fault_is_kept_for_the_sandbox_to_judge() -> None:
    broken = "def f(xs):\n    return sum(xs\n"
    assert extract_code(f"```python\n{broken}```", entry_point="f", chat=True) == broken
    assert extract_code(f"```python\n{broken}", entry_point="f", chat=True) == broken
    assert extract_code("```python\ndef other(xs):\n    return 1\n```", entry_point="f", chat=True) is not None


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["```", "python\n", "\n", "def f(x):", "    return 1", ">>> ", "[BEGIN]", "~~~", "\0", "\r", "("]
        )
        | st.text(max_size=8),
        max_size=20,
    ).map("".join),
    st.booleans(),
)
def test_nothing_raises(text: str, chat: bool) -> None:
    code = extract_code(text, prompt=PROMPT, entry_point="f", chat=chat)
    assert code is None or code.strip()


@pytest.mark.parametrize(
    "unit",
    [
        "```",
        "```python\n",
        "def f():\n",
        "(",
        " ",
        "\n",
        "[PYTHON]",
        "<think>",
        "> ",
        "@a\n",
        ">>> f\n",
        "`a",
        "-",
        "</s> ",
    ],
)
def test_five_megabytes_take_seconds(unit: str) -> None:
    text = unit * (5_000_000 // len(unit))
    for chat in (True, False):
        extract_code("```python\ndef f(x):\n  return " + text, prompt=PROMPT, entry_point="f", chat=chat)
        extract_code(text, entry_point="f", chat=chat)
