"""Recipes are data that name real things; training text is free of evaluation prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from selectkd_eval import records
from selectkd_eval.divergences import DIVERGENCES
from selectkd_eval.errors import InputError
from selectkd_eval.loss import NORMALISERS, LossSpec
from selectkd_eval.policies import TrainingText, training_text
from selectkd_eval.prompts import Prompt, PromptSet
from selectkd_eval.recipes import POLICIES, RECIPES, VERIFIER_LABELS, Recipe, explain, method_labels
from selectkd_eval.train import loss_spec
from selectkd_eval.verbs import AnswerOptions, TrainOptions
from selectkd_eval.verifiers import VERIFIERS


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_a_recipe_names_things_that_exist_and_explains_itself(recipe: Recipe) -> None:
    assert recipe.divergence in DIVERGENCES
    assert recipe.normaliser in NORMALISERS
    assert recipe.policy in POLICIES
    text = explain(recipe.name)
    assert recipe.source in text
    assert recipe.divergence in text.splitlines()[0]


def test_every_verifier_has_a_label() -> None:
    assert VERIFIER_LABELS.keys() == VERIFIERS.keys()


def test_a_misspelt_recipe_is_met_with_the_right_spelling() -> None:
    with pytest.raises(InputError, match="did you mean 'seqkd'"):
        explain("seqdk")


def test_labels_pair_a_gated_method_with_its_base() -> None:
    kd = RECIPES["kd"]
    assert method_labels(kd, "fkl", "none") == ("KD", "KD")
    assert method_labels(kd, "fkl", "spec-k") == ("KD + Spec-k", "KD")
    assert method_labels(kd, "skl", "top-k") == ("KD-SKL + Top-k", "KD-SKL")


def test_the_command_line_overrides_a_recipe() -> None:
    kd = RECIPES["kd"]
    assert loss_spec(kd, TrainOptions()) == LossSpec()
    options = TrainOptions(
        divergence="srkl", alpha=0.3, verifier="spec-k", k=7, beta=0.0, normaliser="selected_tokens", temperature=2.0
    )
    assert loss_spec(kd, options) == LossSpec(
        "srkl", {"alpha": 0.3}, "spec-k", 7, 0.0, normaliser="selected_tokens", temperature=2.0
    )


def write(path: Path, prompts: dict[str, str | None]) -> str:
    path.write_text("".join(json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in prompts.items()))
    return str(path)


def gather(
    data: str, exclude: tuple[str, ...] = (), held_out: tuple[str, ...] = (), policy: str = "dataset"
) -> TrainingText:
    def nobody() -> Path:
        raise AssertionError("the teacher was asked")

    validation = PromptSet("validation", [Prompt(text, "x") for text in held_out])
    return training_text(
        policy,  # type: ignore[arg-type]
        data,
        exclude=exclude,
        held_out=validation,
        limit=None,
        ask_teacher=nobody,
    )


def test_evaluation_and_validation_prompts_are_dropped_and_counted(tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", dict.fromkeys("abcde", "answer"))
    test = write(tmp_path / "test.jsonl", {" b ": None, "c": None, "z": None})
    found = gather(data, exclude=(test,), held_out=("c", "d"))
    assert [prompt.text for prompt in found.text.prompts] == ["a", "e"]
    assert found.facts["dropped"] == {test: 2, "validation": 1}
    assert found.facts["dropped_duplicates"] == 3
    assert found.facts["n"] == 2


def test_text_that_is_all_evaluation_text_is_refused(tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", {"a": "answer"})
    with pytest.raises(InputError, match=r"nothing in .* is left to train on"):
        gather(data, exclude=(data,))


def test_prompts_without_answers_are_refused(tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", {"a": "answer", "b": None})
    with pytest.raises(InputError, match=r"1 of 2 prompts .* have no answer"):
        gather(data)


def test_an_answer_record_is_teacher_text_already_and_its_cut_answers_are_left_out(tmp_path: Path) -> None:
    options = AnswerOptions(out=tmp_path)
    with records.open_record("answer", options, inputs={}, facts={"model": {"name": "the teacher"}}) as record:
        for text, finish in (("a", "eos"), ("b", "length")):
            row = {"prompt": text, "text": text, "answer": "words", "finish": finish, "n_tokens": 1, "seed": 0}
            record.write(f"{text}/0", **row)
        record.finish()
    found = gather(str(record.path), policy="teacher")
    assert [prompt.text for prompt in found.text.prompts] == ["a"]
    assert found.facts["answers_by"] == "the teacher"
    assert found.facts["dropped_cut_answers"] == 1
