"""Reading a judge's reply: the last label wins, and what holds none says why."""

from __future__ import annotations

import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judges.protocols import BOTH_ORDERS, PROTOCOLS, Protocol
from judges.replies import Reply
from judges.verdicts import Word, first_share, ranking, read, strip_reasoning, verdict_in, without_judge
from selectkd_eval.win_rates import VERDICTS

LABELS = PROTOCOLS["selectkd"].labels
RANKING, TOKEN = PROTOCOLS["alpacaeval1"], PROTOCOLS["alpacaeval2"]
MIRROR = {"candidate": "baseline", "baseline": "candidate"}
FIRST = "{'model': 'model_1', 'rank': 1}"
SECOND = "{'model': 'model_2', 'rank': 2}"


def said(text: str, finish: str | None = "stop", logprobs: list[dict[str, float]] | None = None) -> Reply:
    """A reply, as the client hands it on."""
    return Reply(text, finish, logprobs=logprobs)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("A is better. [[A]]", "candidate"),
        ("[[B]]", "baseline"),
        ("Neither.\n[[C]]", "tie"),
        ("You might expect [[A]], but the facts are wrong: [[B]]", "baseline"),
        ("The answer says '[[B]]' itself, which proves nothing. [[A]]", "candidate"),
        ("**[[ a ]]**", "candidate"),
        ("[[**B**]]", "baseline"),
        (r"\boxed{[[A]]}", "candidate"),
        (r"\[\[B\]\]", "baseline"),
        ("［［Ａ］］", "candidate"),
        ("【【b】】", "baseline"),
        ("[\u200b[A]\u200b]", "candidate"),
        ("<think>[[B]] at first sight</think>[[A]]", "candidate"),
        ("at first sight [[B]]</think>\n[[A]]", "candidate"),
        ("<think>a <think>b [[B]]</think> c [[B]]</think>[[A]]", "candidate"),
        ("◁think▷[[B]]◁/think▷[[A]]", "candidate"),
        ("see [[1]] and [[Wikipedia]]: [[A]] [[2]]", "candidate"),
    ],
)
def test_the_last_offered_label_wins(text: str, word: str) -> None:
    assert read(text, "stop", LABELS, "candidate-first").word == word


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("A is better", "no label"),
        ("[A]", "no label"),
        ("[ [A]]", "no label"),
        ("", "empty reply"),
        ("<think>[[A]] it seems", "empty reply"),
        ("[[D]]", "label D was not offered"),
        ("[[A]] no: [[D]]", "label D was not offered"),
        ("[[A]] or rather [[tie]]", "label TIE was not offered"),
    ],
)
def test_a_reply_without_a_verdict_is_unreadable_and_says_why(text: str, reason: str) -> None:
    verdict = read(text, "stop", LABELS, "candidate-first")
    assert (verdict.word, verdict.reason) == ("unreadable", reason)


@pytest.mark.parametrize(("finish", "word"), [("length", "truncated"), ("content_filter", "filtered")])
def test_a_reply_that_was_cut_or_filtered_is_an_outcome_of_its_own(finish: str, word: str) -> None:
    for text in ("[[A]]", "", "<think>[[B]]"):
        verdict = read(text, finish, LABELS, "candidate-first")
        assert verdict.word == word and verdict.reason


replies = st.lists(
    st.one_of(st.text(max_size=5), st.sampled_from(["[[", "]]", "[[A]]", "[[b]]", "[[C]]", "[[Z]]", "<think>", FIRST])),
    max_size=8,
).map("".join)
finishes = st.sampled_from(["stop", "length", "content_filter", None, "tool_calls"])


@given(replies, finishes, st.sampled_from(list(PROTOCOLS.values())))
def test_any_reply_gives_a_word_and_swapping_sides_mirrors_it(text: str, finish: str | None, item: Protocol) -> None:
    one, two = (verdict_in(said(text, finish), item, order) for order in BOTH_ORDERS)
    assert one.word in VERDICTS and two.word == MIRROR.get(one.word, one.word)
    assert bool(one.reason) == (one.word not in ("candidate", "baseline", "tie"))


@given(st.text(), st.sampled_from("ABCDXYZ"), st.text(alphabet="abc .,\n", max_size=20))
def test_a_verdict_comes_from_an_offered_label_and_from_nothing_else(before: str, label: str, after: str) -> None:
    text = f"</think>{before}</think>[[{label}]]{after}"
    expected = {"A": "candidate", "B": "baseline", "C": "tie"}.get(label, "unreadable")
    assert read(text, "stop", LABELS, "candidate-first").word == expected


@given(st.text(alphabet="ABC[]ab\n* "))
def test_without_an_adjacent_pair_of_brackets_there_is_no_verdict(text: str) -> None:
    assert read(text.replace("[", "[ "), "stop", LABELS, "candidate-first").word == "unreadable"


@pytest.mark.parametrize(("label", "first", "second"), [("A", "candidate", "baseline"), ("B", "baseline", "candidate")])
def test_a_label_names_a_position_and_not_a_side(label: str, first: str, second: str) -> None:
    assert read(f"[[{label}]]", "stop", LABELS, "candidate-first").word == first
    assert read(f"[[{label}]]", "stop", LABELS, "baseline-first").word == second


@given(st.text(max_size=40))
def test_what_is_thought_does_not_count(thought: str) -> None:
    assert read(f"<think>{thought}</think>[[B]]", "stop", LABELS, "candidate-first").word == "baseline"
    assert strip_reasoning("<THINK>a</THINK> b") == "b"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (f"[{FIRST}, {SECOND}]", "candidate"),
        (f"[\n    {SECOND},\n    {FIRST}\n]", "candidate"),
        ("```json\n" + f"[{FIRST}, {SECOND}]".replace("'", '"') + "\n```", "candidate"),
        ("[{'rank': 2, 'model': 'model_1'}, {'rank': 1, 'model': 'model_2'}]", "baseline"),
        (f"[{FIRST}]", "unreadable"),
        (f"[{FIRST}, {SECOND.replace('2}', '1}')}]", "unreadable"),
        (f"[{FIRST}, {SECOND.replace('2}', '3}')}]", "unreadable"),
        ("model_1", "unreadable"),
        ("[[A]]", "unreadable"),
    ],
)
def test_a_ranking_must_rank_both_answers(text: str, word: str) -> None:
    assert verdict_in(said(text), RANKING, "candidate-first").word == word
    assert verdict_in(said(text), RANKING, "baseline-first").word == MIRROR.get(word, word)


def test_nothing_in_a_ranking_is_evaluated() -> None:
    assert ranking("[{'model': 'model_1', 'rank': __import__('os').getpid()}]") == {}
    assert ranking("{" * 100_000) == {}


def test_the_first_tokens_probability_is_the_preference() -> None:
    reply = said("M", "length", [{"m": math.log(0.2), "M": math.log(0.6), "The": math.log(0.2)}])
    first, second = (verdict_in(reply, TOKEN, order) for order in BOTH_ORDERS)
    # 0.2 / (0.2 + 0.6): the answer shown first, called m, is better with probability 1/4.
    assert first.word == "baseline" and first.preference == pytest.approx(0.25)
    assert second.word == "candidate" and second.preference == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("reply", "word"),
    [
        (said("m", "length"), "unreadable"),
        (said("m", "length", []), "unreadable"),
        (said("The", "length", [{"The": -0.1}]), "unreadable"),
        (said("", "content_filter", [{"m": -0.1}]), "filtered"),
        (said("m", "length", [{"m": -0.1}]), "candidate"),
        (said("m", "length", [{"m": -1.0, "M": -1.0}]), "tie"),
        (said("M", "length", [{"m": -5000.0, "M": 0.0}]), "baseline"),
    ],
)
def test_a_judge_of_probabilities_is_read_by_them_alone(reply: Reply, word: str) -> None:
    verdict = verdict_in(reply, TOKEN, "candidate-first")
    assert verdict.word == word and (verdict.preference is None) == (word in ("unreadable", "filtered"))


@given(st.floats(-2000, 0), st.floats(-2000, 0))
def test_the_shares_of_two_tokens_add_up_to_one(m: float, other: float) -> None:
    one, two = first_share({"m": m, "M": other}, "m", "M"), first_share({"m": m, "M": other}, "M", "m")
    assert one is not None and two is not None and one + two == pytest.approx(1)


@pytest.mark.parametrize(
    ("candidate", "baseline", "word"),
    [(" same\n", "same", "tie"), ("", "x", "baseline"), ("x", " ", "candidate"), ("", " ", "tie")],
)
def test_identical_answers_tie_and_an_empty_answer_loses(candidate: str, baseline: str, word: str) -> None:
    verdict = without_judge(candidate, baseline)
    assert verdict is not None and verdict.word == word and verdict.reason


def test_two_different_answers_need_a_judge() -> None:
    assert without_judge("a", "b") is None


def test_the_words_of_a_reader_are_those_that_a_win_rate_knows() -> None:
    assert get_args(Word) == VERDICTS
