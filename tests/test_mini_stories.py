"""mini-stories: answers are about what was asked, instructions have many answers, held-out is never trained on."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from selectkd_eval.demo import corpus, mini_stories

SETS = [f"mini-stories:{name}" for name in corpus.SIZES["mini-stories"]]


@pytest.mark.parametrize("set_name", SETS)
def test_every_word_of_the_content_is_in_instruction_and_story(set_name: str) -> None:
    for row in corpus.examples(set_name):
        content = row["meta"]["key"].split(",")
        for word in content:
            assert f" {word}" in row["prompt"]
            assert f" {word}" in row["answer"]
        assert row["prompt"] == f"Instruction: {row['meta']['question']}\nStory:"


@pytest.mark.parametrize("set_name", SETS)
def test_stories_are_several_sentences_with_one_pronoun_throughout(set_name: str) -> None:
    for row in corpus.examples(set_name):
        words = row["answer"].replace(".", " .").split()
        assert 4 <= words.count(".") <= 5
        assert 25 <= len(words) <= 60
        assert not ({"She", "her"} & set(words) and {"He", "his"} & set(words))
        assert "{" not in row["answer"]


def test_no_content_is_in_two_splits_nor_in_the_training_streams() -> None:
    keys = {name: {row["meta"]["key"] for row in corpus.examples(name)} for name in SETS}
    trained = keys["mini-stories:labelled"] | keys["mini-stories:train"]
    for stream in ("teacher", "judge"):
        trained |= {row["meta"]["key"] for row in corpus.training_corpus(0, 3000, stream)}
    assert not trained & (keys["mini-stories:test"] | keys["mini-stories:validation"])
    assert not keys["mini-stories:test"] & keys["mini-stories:validation"]


def test_splits_partition_all_contents_in_the_stated_shares() -> None:
    shares = Counter(content.split() for content in mini_stories.all_contents())
    total = sum(shares.values())
    assert shares["train"] / total == pytest.approx(0.86, abs=0.02)
    assert shares["test"] / total == pytest.approx(0.10, abs=0.02)


def test_contents_do_not_repeat_within_a_set_and_run_out_at_the_end() -> None:
    everything = list(mini_stories.stories("validation", "all", repeat_content=False))
    expected = [c for c in mini_stories.all_contents() if c.split() == "validation"]
    assert Counter(story.content for story in everything) == Counter(expected)


def test_the_same_seed_tells_the_same_stories_and_another_seed_tells_others() -> None:
    def first(seed: str) -> list[str]:
        return [story.answer for story in itertools.islice(mini_stories.stories("train", seed), 30)]

    assert first("a") == first("a")
    assert not set(first("a")) & set(first("b"))


def test_the_judge_and_the_teacher_read_different_stories() -> None:
    def read(stream: str) -> set[str]:
        return {row["prompt"] + row["answer"] for row in corpus.training_corpus(0, 2000, stream)}

    assert not read("teacher") & read("judge")
