"""Recipes are data that name real things; training text is free of evaluation prompts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from selectkd_eval import records
from selectkd_eval.controllers import CONTROLLERS
from selectkd_eval.divergences import DIVERGENCES
from selectkd_eval.errors import InputError
from selectkd_eval.materials import loss_spec
from selectkd_eval.objective import LossSpec, Term, single
from selectkd_eval.policies import TrainingText, training_text
from selectkd_eval.prompts import Prompt, PromptSet
from selectkd_eval.recipes import (
    OUT,
    POLICIES,
    RECIPES,
    VERIFIER_LABELS,
    explain,
    method_labels,
    recipe,
    summary,
)
from selectkd_eval.rollouts import CONSTANTS
from selectkd_eval.verbs import AnswerOptions, TrainOptions
from selectkd_eval.verifiers import VERIFIERS

PAPERS = [
    *("sft", "kd", "seqkd", "imitkd", "gkd", "distillspec", "distillm", "skd", "distillm2", "speckd"),
    *("adakd", "adaspec", "atkd", "taid", "akl"),
]
RESOLVED = [(name, variant) for name, row in RECIPES.items() for variant in ("", *row.variants)]


def words(text: str) -> str:
    return " ".join(text.split())


def test_every_method_of_the_tables_has_a_row() -> None:
    assert list(RECIPES) == PAPERS
    assert len({row.label for row in RECIPES.values()}) == len(RECIPES)
    assert not OUT.keys() & RECIPES.keys()


@pytest.mark.parametrize(("name", "variant"), RESOLVED)
def test_a_recipe_and_each_of_its_variants_make_an_objective(name: str, variant: str) -> None:
    row = recipe(name, variant)
    spec = loss_spec(row, TrainOptions(recipe=name, variant=variant))
    assert spec.terms == row.terms
    assert (spec.verifier, spec.k, spec.beta) == (row.verifier, row.k, row.beta)
    for term in row.terms:
        assert term.parameters.keys() <= DIVERGENCES[term.divergence].parameters.keys()
        assert term.coefficient > 0
    assert row.policy in POLICIES
    assert not (spec.selection and spec.normaliser == "per_seq_mean")  # the selection's papers divide by what is kept


@pytest.mark.parametrize(("name", "variant"), RESOLVED)
def test_every_constant_has_a_reader_and_every_reader_its_constants(name: str, variant: str) -> None:
    row = recipe(name, variant)
    asked = set(CONSTANTS[row.policy])
    assert asked <= row.constants.keys()
    if not variant:
        assert {key: row.constants[key] for key in asked} == CONSTANTS[row.policy]
    for controller in row.controllers:
        schedule = CONTROLLERS[controller](row.constants)
        assert schedule.needs_anchors == (controller == "contrast")
    if row.follows:
        fields = row.follows(row.constants)
        assert all(getattr(row, field) == value for field, value in fields.items())
    if not (row.controllers or row.follows or asked):
        assert not row.constants


@pytest.mark.parametrize("name", [*RECIPES, *OUT])
def test_an_explanation_leaves_nothing_out(name: str) -> None:
    text = words(explain(name))
    if name in OUT:
        assert OUT[name] in text
        return
    row = RECIPES[name]
    assert explain(name).splitlines()[0] == summary(name)
    for constant, value in row.constants.items():
        assert f"{constant}={value:g}" in text
    for variant, meaning in row.variants.items():
        assert f"variant {variant}: {meaning.note}" in text
    named = [
        row.source,
        row.note,
        POLICIES[row.policy],
        row.normaliser,
        row.selection,
        *row.deviations,
        *row.controllers,
    ]
    for part in [*named, *(term.divergence for term in row.terms)]:
        assert part in text


def test_listing_recipes_does_not_wait_for_torch() -> None:
    code = (
        "import sys; from selectkd_eval.cli import main; main(['list', 'recipes']); "
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == [*RECIPES, *OUT]
    assert done.stderr.strip() == "False"


def test_every_verifier_has_a_label() -> None:
    assert VERIFIER_LABELS.keys() == VERIFIERS.keys()


def test_a_misspelt_name_is_met_with_the_right_spelling() -> None:
    with pytest.raises(InputError, match="did you mean 'seqkd'"):
        explain("seqdk")
    with pytest.raises(InputError, match="no recipe called 'seqdk'; did you mean 'seqkd'"):
        recipe("seqdk")
    with pytest.raises(InputError, match="no variant of gkd called 'trll'; did you mean 'trl'"):
        recipe("gkd", "trll")
    with pytest.raises(InputError, match="has no variants"):
        recipe("sft", "code")


def test_a_method_that_is_no_sum_of_token_terms_is_refused_with_the_reason() -> None:
    with pytest.raises(InputError, match=r"'minillm': MiniLLM .* policy gradient"):
        recipe("minillm")


def test_constants_are_set_by_name_and_only_the_recipes_own() -> None:
    assert recipe("gkd", changes={"lambda": 1.0}).constants == {"lambda": 1.0}
    assert recipe("adaspec", changes={"share": 0.2}).share == 0.2
    assert recipe("adakd", "code", {"c": 0.3}).idts == 0.3
    assert recipe("adakd", "code", {"c": 0.3}).constants["floor"] == 0.1
    assert RECIPES["adakd"].idts == 0.5
    assert [term.coefficient for term in recipe("atkd", changes={"alpha": 0.5}).terms] == [0.5, 0.5, 0.5]
    with pytest.raises(InputError, match="no constant of gkd called 'lamda'; did you mean 'lambda'"):
        recipe("gkd", changes={"lamda": 1.0})
    with pytest.raises(InputError, match="'kd' has no constants"):
        recipe("kd", changes={"lambda": 1.0})
    with pytest.raises(InputError, match="phi"):  # the pairs of this variant have no replay buffer
        recipe("distillm", "distillm2", {"phi": 0.5})
    for nonsense in (float("nan"), float("inf"), -0.5):
        with pytest.raises(InputError, match="from 0 up"):
            recipe("adakd", changes={"c": nonsense})
    with pytest.raises(InputError, match="ATKD's alpha"):
        recipe("atkd", changes={"alpha": 1.5})


def test_the_terms_of_two_sources_are_those_of_the_papers() -> None:
    assert RECIPES["imitkd"].terms == (Term("nll", source="dataset"), Term("imitation", source="student"))
    skl, srkl = RECIPES["distillm2"].terms
    assert (skl.divergence, skl.source, srkl.divergence, srkl.source) == ("skl", "teacher", "srkl", "student")
    # The released code adds the means of both halves; 1/S over all texts of the update is half of that.
    assert [term.coefficient for term in recipe("distillm2", "code").terms] == [2.0, 2.0]
    easy, target, rest = RECIPES["atkd"].terms
    assert (easy.divergence, easy.part, easy.coefficient) == ("nckd", "easy", 0.2)
    assert {target.divergence, rest.divergence} == {"tckd", "nckd"}
    assert (target.part, rest.part, target.coefficient, rest.coefficient) == ("hard", "hard", 0.8, 0.8)


def test_labels_pair_a_gated_method_with_its_base() -> None:
    kd = RECIPES["kd"]
    assert method_labels(kd, None, "none") == ("KD", "KD")
    assert method_labels(kd, "fkl", "none") == ("KD", "KD")
    assert method_labels(kd, None, "spec-k") == ("KD + Spec-k", "KD")
    assert method_labels(kd, "skl", "top-k") == ("KD-SKL + Top-k", "KD-SKL")
    assert method_labels(recipe("kd", "minillm"), None, "top-k", "minillm") == (
        "KD (minillm) + Top-k",
        "KD (minillm)",
    )


def test_a_recipe_with_its_own_gate_is_compared_with_the_method_without_it() -> None:
    speckd = RECIPES["speckd"]
    assert method_labels(speckd, None, "top-k") == ("SpecKD", "KD")
    assert method_labels(speckd, None, "spec-k") == ("SpecKD + Spec-k", "KD")
    assert method_labels(speckd, None, "none") == ("KD", "KD")
    assert method_labels(speckd, "skl", "top-k", "greedy") == ("SpecKD-SKL (greedy)", "KD-SKL")


def test_the_command_line_overrides_a_recipe() -> None:
    kd = RECIPES["kd"]
    assert loss_spec(kd, TrainOptions()) == LossSpec()
    options = TrainOptions(
        divergence="srkl", alpha=0.3, verifier="spec-k", k=7, beta=0.0, normaliser="selected_tokens", temperature=2.0
    )
    assert loss_spec(kd, options) == single(
        "srkl",
        {"alpha": 0.3, "detach_mixture": False},
        verifier="spec-k",
        k=7,
        beta=0.0,
        normaliser="selected_tokens",
        temperature=2.0,
    )


def test_another_divergence_keeps_the_factor_of_its_term() -> None:
    # Of pairs of texts, 1/S counts both halves: the factor 2 belongs to the pairs, not to the divergence.
    pairs = loss_spec(recipe("gkd", "distillm2"), TrainOptions(divergence="fkl"))
    assert pairs.terms == (Term("fkl", {}, coefficient=2.0),)


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
