"""Models are found by name, described by their weights, and paired only when their tokens agree."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TinyPair, tiny_llama, tiny_tokenizer

from selectkd_eval.environment import fingerprint_dir
from selectkd_eval.errors import InputError
from selectkd_eval.pair import TRAINING_CARD, load_model, load_pair, load_tokenizer, locate
from selectkd_eval.records import open_record
from selectkd_eval.verbs import TrainOptions


def test_padded_heads_are_cut_to_the_common_vocabulary(tiny_pair: TinyPair, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_pair.teacher))
    tiny_llama(tokenizer, vocabulary=len(tokenizer) + 64).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load_pair(str(tmp_path), str(tiny_pair.student)).vocabulary == len(tokenizer)


def test_different_tokenizers_are_refused_with_the_reason(tiny_pair: TinyPair, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(["completely different words here", "nothing in common with it"])
    tiny_llama(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="different tokenizers"):
        load_pair(str(tiny_pair.teacher), str(tmp_path))


def test_the_fingerprint_follows_the_weights_not_the_notes(tiny_pair: TinyPair, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_pair.student, copy)
    before = fingerprint_dir(copy)
    (copy / TRAINING_CARD).write_text(json.dumps({"method": "KD + Top-k", "base_method": "KD", "seed": 2}))
    card = load_model(str(copy)).card
    assert card.fingerprint == before == fingerprint_dir(tiny_pair.student)
    assert (card.method, card.base_method, card.seed) == ("KD + Top-k", "KD", 2)
    assert fingerprint_dir(tiny_pair.teacher) != before


@pytest.mark.parametrize("name", ["embedded:nobody", "./nowhere", "/nowhere/at/all", "nobody/nothing"])
def test_a_model_that_is_not_there_is_one_sentence(name: str) -> None:
    with pytest.raises(InputError):
        load_model(name)


def test_a_directory_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no model \(no config.json\)"):
        load_model(str(tmp_path))


def test_a_directory_without_a_tokenizer_is_named(tiny_pair: TinyPair, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_pair.student, copy, ignore=shutil.ignore_patterns("tokenizer*", "special_tokens*"))
    with pytest.raises(InputError, match=r"holds no tokenizer \(no tokenizer.json\)"):
        load_model(str(copy))


def test_a_damaged_training_card_is_one_sentence(tiny_pair: TinyPair, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_pair.student, copy)
    for content in ("{", "[]", "\0"):
        (copy / TRAINING_CARD).write_text(content)
        with pytest.raises(InputError, match="is damaged: train it again"):
            load_model(str(copy))


def test_without_a_network_a_hub_name_fails_at_once(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if "proxy" not in name.lower() and "OFFLINE" not in name}
    env |= {"HF_ENDPOINT": "https://hub.invalid", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "selectkd_eval", "answer", "--model", "nobody", "--limit", "1"]
    done = subprocess.run([*command, "--out", str(tmp_path)], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("selectkd-eval: the model 'nobody' could not be loaded"), done.stderr
    assert done.stderr.count("\n") == 1, "no line per attempt"


def test_weights_that_were_cut_off_are_one_sentence(tiny_pair: TinyPair, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_pair.student, copy)
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(InputError, match="could not be loaded"):
        load_model(str(copy))


def test_a_train_record_names_the_student_beside_itself_wherever_one_stands(
    tiny_pair: TinyPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("here", "there"):
        options = TrainOptions(out=tmp_path / place)
        with open_record("train", options, inputs={}, facts={"save": "student"}) as record:
            record.finish()
        shutil.copytree(tiny_pair.student, tmp_path / place / "student")
    monkeypatch.chdir(tmp_path / "here")
    assert locate(f"../there/{record.path.name}").resolve() == (tmp_path / "there" / "student").resolve()
