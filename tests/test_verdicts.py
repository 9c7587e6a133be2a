"""Reading a judge's reply: the last label wins, and what holds none says why."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judges.protocols import PROTOCOLS
from judges.verdicts import WORDS, read, strip_reasoning, without_judge

LABELS = PROTOCOLS["selectkd"].labels


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("A is better. [[A]]", "candidate"),
        ("[[B]]", "baseline"),
        ("Neither.\n[[C]]", "tie"),
        ("You might expect [[A]], but the facts are wrong: [[B]]", "baseline"),
        ("**[[ a ]]**", "candidate"),
        ("<think>[[B]] at first sight</think>[[A]]", "candidate"),
        ("at first sight [[B]]</think>\n[[A]]", "candidate"),
        ("see [[1]] and [[Wikipedia]]: [[A]]", "candidate"),
    ],
)
def test_the_last_offered_label_wins(text: str, word: str) -> None:
    assert read(text, "stop", LABELS, "candidate-first").word == word


@pytest.mark.parametrize(
    ("text", "finish", "reason"),
    [
        ("A is better", "stop", "no label"),
        ("[A]", "stop", "no label"),
        ("", "stop", "empty reply"),
        ("<think>[[A]] it seems", "stop", "empty reply"),
        ("[[D]]", "stop", "label D was not offered"),
        ("[[A]] no: [[D]]", "stop", "label D was not offered"),
        ("[[A]]", "length", "truncated"),
        ("[[A]]", "content_filter", "filtered"),
    ],
)
def test_a_reply_without_a_verdict_is_unreadable_and_says_why(text: str, finish: str, reason: str) -> None:
    verdict = read(text, finish, LABELS, "candidate-first")
    assert (verdict.word, verdict.reason) == ("unreadable", reason)


@given(st.text(), st.sampled_from(["stop", "length", "content_filter", None, "tool_calls"]))
def test_any_reply_gives_a_word_and_swapping_sides_mirrors_it(text: str, finish: str | None) -> None:
    mirror = {"candidate": "baseline", "baseline": "candidate"}
    one = read(text, finish, LABELS, "candidate-first").word
    two = read(text, finish, LABELS, "baseline-first").word
    assert one in WORDS and two == mirror.get(one, one)


@pytest.mark.parametrize(("label", "first", "second"), [("A", "candidate", "baseline"), ("B", "baseline", "candidate")])
def test_a_label_names_a_position_and_not_a_side(label: str, first: str, second: str) -> None:
    assert read(f"[[{label}]]", "stop", LABELS, "candidate-first").word == first
    assert read(f"[[{label}]]", "stop", LABELS, "baseline-first").word == second


@given(st.text(max_size=40))
def test_what_is_thought_does_not_count(thought: str) -> None:
    assert read(f"<think>{thought}</think>[[B]]", "stop", LABELS, "candidate-first").word == "baseline"
    assert strip_reasoning("<THINK>a</THINK> b") == "b"


@pytest.mark.parametrize(
    ("candidate", "baseline", "word"),
    [(" same\n", "same", "tie"), ("", "x", "baseline"), ("x", " ", "candidate"), ("", " ", "tie")],
)
def test_identical_answers_tie_and_an_empty_answer_loses(candidate: str, baseline: str, word: str) -> None:
    verdict = without_judge(candidate, baseline)
    assert verdict is not None and verdict.word == word and verdict.reason


def test_two_different_answers_need_a_judge() -> None:
    assert without_judge("a", "b") is None
