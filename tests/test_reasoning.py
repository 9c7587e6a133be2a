"""Reasoning is told from the answer by its place at the head of a text, closed or not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selectkd_eval.reasoning import Parts, split

PLAIN = st.text().filter(lambda text: "<" not in text)


@pytest.mark.parametrize(
    ("text", "prompt", "answer", "reasoning"),
    [
        ("<think>hm</think>\n\nyes", "", "yes", "hm"),
        (" <Thinking>\nhm\n</Thinking> yes", "", "yes", "hm"),
        ("<think></think>yes", "", "yes", ""),
        ("<think>hm", "", "", "hm"),
        ("<think>a</think>b</think>c", "", "b</think>c", "a"),
        ("hm</think>yes", "user: hi\n<think>\n", "yes", "hm"),
        ("hm", "user: hi\n<think>\n", "", "hm"),
        ("yes", "user: hi <think></think>\n", "yes", ""),
        ("use <think> to think</think> so", "", "use <think> to think</think> so", ""),
        ("hm</think>yes", "", "hm</think>yes", ""),
        ("hm</think>yes", None, "yes", "hm"),
        ("use <think> to think</think> so", None, "use <think> to think</think> so", ""),
        ("plain", None, "plain", ""),
    ],
)
def test_a_block_at_the_head_is_reasoning(text: str, prompt: str | None, answer: str, reasoning: str) -> None:
    assert split(text, prompt) == Parts(answer, reasoning)


@given(PLAIN, PLAIN, st.sampled_from(["think", "Thinking", "thought", "reasoning"]))
def test_what_is_put_together_is_taken_apart(reasoning: str, answer: str, tag: str) -> None:
    for prompt in ("", None, "a question"):
        assert split(f"<{tag}>{reasoning}</{tag}>{answer}", prompt) == Parts(answer.lstrip(), reasoning.strip())
        assert split(answer, prompt) == Parts(answer, "")
