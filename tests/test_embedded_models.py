"""The shipped models: their tokenizer takes any text, they know what their cards say, the build is repeatable."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from selectkd_eval.demo import build, corpus
from selectkd_eval.errors import InputError

NAMES = tuple(build.MODELS)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(corpus.WEIGHTS / "teacher")


def load(name: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(corpus.WEIGHTS / name).eval()


# --- tokenizer -------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_any_text_survives_encoding_and_decoding(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) == text


def test_every_number_up_to_sixty_is_one_token_wherever_it_stands(tokenizer: Any) -> None:
    for number in range(61):
        tokens = tokenizer.tokenize(f"<<{number}*{number}={number}>>{number} of {number}.\n#### {number}")
        assert tokens.count(str(number)) == 6


def test_every_word_of_both_families_is_one_token(tokenizer: Any) -> None:
    for set_name in ("mini-gsm:test", "mini-stories:test"):
        for row in corpus.examples(set_name)[:100]:
            pieces = tokenizer.tokenize(f"{row['prompt']} {row['answer']}")
            marks = ["Ġ", "Ċ", "?", "=", "*", "+", "-"]
            assert all(len(p) > 1 or p.isdigit() or p in [*marks, ".", ":", "Ġa"] for p in pieces), pieces


def test_the_tokenizer_adds_nothing_by_itself_and_padding_is_not_the_end(tokenizer: Any) -> None:
    assert tokenizer("").input_ids == []
    assert tokenizer("dog").input_ids == tokenizer("dog", add_special_tokens=False).input_ids
    assert tokenizer.eos_token == tokenizer.bos_token == corpus.END
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.chat_template is None


def test_all_models_share_the_tokenizer_that_this_code_builds(tokenizer: Any) -> None:
    built = json.loads(corpus.build_tokenizer().to_str())
    for name in NAMES:
        shipped = json.loads((corpus.WEIGHTS / name / "tokenizer.json").read_text(encoding="utf-8"))
        assert shipped["model"] == built["model"]
        assert shipped["pre_tokenizer"] == built["pre_tokenizer"]


# --- models ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_model_is_small_fp32_when_loaded_and_long_enough_for_gsm8k(name: str) -> None:
    size = (corpus.WEIGHTS / name / "model.safetensors").stat().st_size
    assert size <= (1.6e6 if name == "teacher" else 0.3e6)
    model = load(name)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config.max_position_embeddings >= 1024
    with torch.no_grad():
        assert model(torch.arange(1200)[None] % 500).logits.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_the_card_names_the_settings_and_the_corpus_that_the_code_still_makes(name: str) -> None:
    card = json.loads((corpus.WEIGHTS / name / "card.json").read_text(encoding="utf-8"))
    assert card == json.loads((corpus.WEIGHTS / "README.json").read_text(encoding="utf-8"))[name]
    settings_ = build.MODELS[name]
    assert (card["steps"], card["seed"], card["data"]) == (settings_.steps, settings_.seed, settings_.data)
    if name in ("student", "judge"):  # the teacher's corpus takes seconds to make
        assert card["corpus_sha256"] == corpus.corpus_sha256(build.training_rows(settings_))


def test_the_teacher_is_good_and_the_student_clearly_below() -> None:
    cards = {name: json.loads((corpus.WEIGHTS / name / "card.json").read_text()) for name in NAMES}
    assert all(cards[name]["n"] >= 500 for name in ("teacher", "student", "draft"))
    assert cards["teacher"]["mini-gsm:test pass@1"] >= 0.90
    assert cards["student"]["mini-gsm:test pass@1"] <= cards["teacher"]["mini-gsm:test pass@1"] - 0.2
    assert cards["judge"]["data"] != cards["teacher"]["data"]


def test_the_shipped_student_still_scores_what_its_card_says(tokenizer: Any) -> None:
    card = json.loads((corpus.WEIGHTS / "student" / "card.json").read_text())
    found = build.measure(load("student"), tokenizer, gsm=True, label="student")
    # fp16 weights on another processor may flip a rare tie
    assert found["mini-gsm:test pass@1"] == pytest.approx(card["mini-gsm:test pass@1"], abs=0.01)
    assert found["mini-stories:test cross-entropy"] == pytest.approx(card["mini-stories:test cross-entropy"], abs=0.01)


@torch.no_grad()
def test_the_teacher_is_uncertain_about_stories_and_not_about_arithmetic(tokenizer: Any) -> None:
    teacher, entropies = load("teacher"), {}
    for family in ("mini-gsm", "mini-stories"):
        encoded = build.encode(corpus.examples(f"{family}:test")[:64], tokenizer)
        ids, labels = next(build.batches(encoded, 64, 0, tokenizer.pad_token_id))
        log_p = teacher(ids[:, :-1]).logits[labels[:, 1:] != build.IGNORED].log_softmax(-1)
        entropies[family] = -(log_p.exp() * log_p).sum(-1).mean().item()
    assert entropies["mini-stories"] > 0.95
    assert entropies["mini-gsm"] < 0.25


# --- training --------------------------------------------------------------------------------------------


def test_labels_cover_the_answer_and_the_end_and_nothing_else(tokenizer: Any) -> None:
    rows = corpus.examples("mini-gsm:test")[:8]
    encoded = build.encode(rows, tokenizer)
    ids, labels = next(build.batches(encoded, 8, 0, tokenizer.pad_token_id))
    trained = {tokenizer.decode(line[line != build.IGNORED]) for line in labels}
    assert trained == {f" {row['answer']}{corpus.END}" for row in rows}
    assert ((ids == tokenizer.pad_token_id) <= (labels == build.IGNORED)).all()


def test_a_build_is_repeatable_resumes_and_notices_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(build.MODELS, "judge", replace(build.MODELS["judge"], stories=200, steps=4))

    def weights(directory: str, seed: int = 0) -> bytes:
        build.build(tmp_path / directory, seed=seed, only=["judge"])
        return (tmp_path / directory / "judge" / "model.safetensors").read_bytes()

    first = weights("one")
    finished = (tmp_path / "one" / "judge" / "card.json").stat().st_mtime_ns
    assert weights("one") == first
    assert (tmp_path / "one" / "judge" / "card.json").stat().st_mtime_ns == finished  # kept, not made again
    assert weights("two") == first
    assert weights("one", seed=1) != first


def test_an_unknown_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="teacher"):
        build.build(tmp_path, only=["techer"])
