"""What a terminal is shown: nothing that it would obey, numbers under each other."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selectkd_eval.terminal import WIDTH, aligned, bullets, visible


@pytest.mark.parametrize(
    "text",
    [
        "\x1b[2J\x1b[H",
        "\x1b]0;title\x07",
        "\x9b31m",
        "a\rb",
        "a\x08b",
        "\x7f",
        "\u202egnp.exe",
        "\u2066",
        "\ufeff",
        "\U000e0041",
    ],
)
def test_what_a_terminal_obeys_is_spelled_out(text: str) -> None:
    shown = visible(text)
    assert "\\u" in shown
    assert all(unicodedata.category(c) not in ("Cc", "Cf") for c in shown)


@given(st.text(st.characters(codec=None)))
def test_nothing_but_line_and_tab_controls_anything(text: str) -> None:
    shown = visible(text)
    assert not any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" for c in shown)
    shown.encode()


@given(st.text(st.characters(codec="utf-8")))
def test_json_stays_the_same_json(text: str) -> None:
    line = json.dumps({"text": text}, ensure_ascii=False)
    assert json.loads(visible(line)) == {"text": text}


def test_ordinary_text_is_left_alone() -> None:
    for text in ("α ≤ 1 − TV, naïve 日本語 😀\n\tdef f():", "é", "\\u0041"):
        assert visible(text) == text


def test_columns_stand_under_each_other() -> None:
    assert aligned([["task", "n"], ["a", "1,319"], ["longer", "7"]]) == [
        "task        n",
        "a       1,319",
        "longer      7",
    ]


def test_sentences_are_wrapped_and_words_kept() -> None:
    lines = bullets(["word " * 60, "x" * 200])
    assert all(len(line) <= WIDTH for line in lines[:-1])
    assert lines[0].startswith("- word")
    assert lines[1].startswith("  word")
    assert "x" * 200 in lines[-1]
