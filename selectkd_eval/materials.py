"""Everything a training needs, loaded and checked before the first update: models, text, objective.

The options of `train` meet the recipe here: what the command line overrides, what it may not, and which models the
result asks for. Nothing is trained here.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from selectkd_eval import environment, pair, prompts, records
from selectkd_eval.archive import Archive
from selectkd_eval.author import Author
from selectkd_eval.batches import Example, tensors
from selectkd_eval.controllers import CONTROLLERS
from selectkd_eval.divergences import DIVERGENCES
from selectkd_eval.errors import InputError, choose
from selectkd_eval.heads import explains_head, head_of, hidden_states
from selectkd_eval.method import Method
from selectkd_eval.objective import LossSpec, Term
from selectkd_eval.pair import LoadedModel
from selectkd_eval.policies import TrainingText, held_out_text, training_text
from selectkd_eval.ranks import launched
from selectkd_eval.recipes import Recipe
from selectkd_eval.recipes import recipe as named_recipe
from selectkd_eval.rollouts import text_policy
from selectkd_eval.sampling import Sampling
from selectkd_eval.stress import corruption
from selectkd_eval.teacher import Teacher
from selectkd_eval.verbs import VERBS, AnswerOptions, TrainOptions


@dataclass(frozen=True)
class Materials:
    """Models as loaded (the student not yet wrapped), text as read, and the objective of the first update."""

    recipe: Recipe
    spec: LossSpec
    student: LoadedModel
    teacher: LoadedModel | None
    reference: LoadedModel | None
    text: TrainingText
    held_out: TrainingText
    steps: int


def chosen_recipe(options: TrainOptions) -> Recipe:
    """The recipe in the variant and with the constants that the command line names."""
    constants = {}
    for setting in options.set:
        name, equals, value = setting.partition("=")
        try:
            constants[name] = float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise InputError(f"--set takes NAME=VALUE with a number, but {setting!r} was given")
    row = named_recipe(options.recipe, options.variant, constants)
    generation = {
        "generation_temperature": options.generation_temperature,
        "generation_top_p": options.generation_top_p,
    }
    return replace(row, **{name: value for name, value in generation.items() if value is not None})  # type: ignore[arg-type]


def loss_spec(recipe: Recipe, options: TrainOptions) -> LossSpec:
    """The recipe's objective with the command line's overrides."""
    return LossSpec(
        terms=_terms(recipe, options),
        verifier=options.verifier or recipe.verifier,
        k=options.k if options.k is not None else recipe.k,
        beta=options.beta if options.beta is not None else recipe.beta,
        spec_mode="sampled" if options.spec_sampled else "expected",
        normaliser=options.normaliser or recipe.normaliser,
        temperature=recipe.temperature if options.temperature is None else options.temperature,
        tau_squared=recipe.tau_squared,
        selection=recipe.selection,
        share=recipe.share,
        idts=recipe.idts,
        idts_median=recipe.idts_median,
    )


def _terms(recipe: Recipe, options: TrainOptions) -> tuple[Term, ...]:
    terms = recipe.terms
    if options.divergence is not None:
        if len(terms) > 1:
            raise InputError(
                f"--divergence replaces that of a recipe that has one, but {recipe.name} is made of "
                f"{' and '.join(dict.fromkeys(term.divergence for term in terms))}: leave it out, or name another"
            )
        wanted = choose(options.divergence, DIVERGENCES, "divergence")
        terms = (replace(terms[0], divergence=wanted.name, parameters=dict(wanted.parameters)),)
    for flag, name, value in (("--alpha", "alpha", options.alpha), ("--beta-jsd", "beta_jsd", options.beta_jsd)):
        if value is None:
            continue
        if not any(name in DIVERGENCES[term.divergence].parameters for term in terms):
            used = ", ".join(dict.fromkeys(term.divergence for term in terms))
            raise InputError(f"{flag} belongs to another divergence than {used} of {recipe.name}: leave it out")
        terms = tuple(
            replace(term, parameters={**term.parameters, name: value})
            if name in DIVERGENCES[term.divergence].parameters
            else term
            for term in terms
        )
    return terms


def gather(recipe: Recipe, spec: LossSpec, options: TrainOptions) -> Materials:
    """Load the models and the text; teacher and reference only when the recipe asks for them."""
    if options.teacher_noise and recipe.policy not in ("dataset", "teacher"):
        raise InputError(
            f"--teacher-noise corrupts fixed positions of fixed text, but {recipe.name} trains on text written during "
            "training: leave it out, or take a recipe on fixed text"
        )
    device = environment.device(options.device)
    frozen = torch.bfloat16 if options.bf16 else torch.float32
    student = pair.load_model(options.student, device, attention=options.attention)
    teacher = reference = None
    if spec.needs_teacher or recipe.policy == "interleaved":
        teacher = pair.load_model(options.teacher, device, frozen, attention=options.attention)
        pair.common_vocabulary(teacher, student)
    if spec.selection == "learnable":
        if not options.reference:
            raise InputError(
                f"{recipe.name} compares with a reference model, but none was given: train one first (--recipe kd from "
                "the same student) and give its record as --reference"
            )
        reference = pair.load_model(options.reference, device, frozen, attention=options.attention)
        pair.common_vocabulary(reference, student)
    held_out = held_out_text(options.validation, options.exclude, options.limit)
    text = training_text(
        "teacher" if recipe.policy in ("teacher", "pairs") else "dataset",
        options.data,
        exclude=options.exclude,
        held_out=held_out.text,
        limit=options.limit,
        ask_teacher=partial(_ask_teacher, recipe, options),
    )
    updates = math.ceil(len(text.text.prompts) / (options.batch_size * launched().ranks))
    steps = options.steps or math.ceil(options.epochs * updates)
    return Materials(recipe, spec, student, teacher, reference, text, held_out, steps)


def _ask_teacher(recipe: Recipe, options: TrainOptions) -> Path:
    """Have the teacher answer the prompts, by the verb `answer`: its record can be read, resumed and used
    again.
    """
    if launched().ranks > 1:
        raise InputError(
            f"several processes cannot write one answer record: let the teacher answer first (selectkd-eval answer "
            f"--model {options.teacher} --prompts {options.data}) and give its record as --data"
        )
    wanted = answer_options(recipe, options, model=options.teacher, name="")
    module, function = VERBS["answer"].function.split(":")
    with contextlib.redirect_stdout(sys.stderr):
        getattr(importlib.import_module(module), function)(wanted)
    return records.record_path("answer", wanted)


def answer_options(recipe: Recipe, options: TrainOptions, *, model: str, name: str) -> AnswerOptions:
    """How text written for this training is decoded, as options of the verb that writes answers."""
    return AnswerOptions(
        name=name,
        model=model,
        prompts=options.data,
        limit=options.limit,
        temperature=recipe.generation_temperature,
        top_p=recipe.generation_top_p,
        max_new_tokens=min(options.generation_max_new_tokens, options.max_length),
        batch_size=options.generation_batch_size,
        seeds=(options.seed,),
        out=options.out,
        device=options.device,
        threads=options.threads,
    )


def examples(
    text: prompts.PromptSet, materials: Materials, options: TrainOptions, *, noise: float = 0.0, first: int = 0
) -> list[Example]:
    """Tokenised text, no longer than any of the models allows, numbered from `first`; prompts that leave no room for an
    answer are refused rather than trained on silently.
    """
    tokenizer, longest = materials.student.tokenizer, longest_text(materials, options)
    source = "teacher" if materials.recipe.policy in ("teacher", "pairs") else "dataset"
    found = []
    for index, prompt in enumerate(text.prompts, start=first):
        ids, response = prompts.encode_example(tokenizer, prompt.text, prompt.answer or "", longest)
        if not any(response[1:]):
            raise InputError(
                f"prompt {prompt.id} of {text.name} fills all of {longest} tokens (--max-length, or what the models "
                "allow) and leaves no room for its answer: raise --max-length, or leave the prompt out"
            )
        shifts = corruption(options.seed, prompt.id, len(ids), noise, len(tokenizer)) if noise else None
        found.append(Example(ids, response, prompt.id, index, source, shifts))
    return found


def longest_text(materials: Materials, options: TrainOptions) -> int:
    """Prompt and response together, in tokens."""
    models = (materials.student, materials.teacher, materials.reference)
    positions = [getattr(m.model.config, "max_position_embeddings", None) for m in models if m is not None]
    return min([options.max_length, *filter(None, positions)])


def method(
    materials: Materials,
    model: Any,
    training: Sequence[Example],
    held_out: Sequence[Example],
    options: TrainOptions,
    sharded: bool = False,
) -> Method:
    """The recipe at work on these examples. `model`: the student as it is trained, adapter included."""
    recipe, spec = materials.recipe, materials.spec
    require_heads(materials, training, options)
    teacher = _frozen(materials.teacher if spec.needs_teacher else None, options)
    reference = _frozen(materials.reference, options)
    if options.teacher_cache is not None:
        _cache(recipe, [(teacher, materials.teacher), (reference, materials.reference)], training, held_out, options)
    record = records.record_path("train", options)
    archive = Archive(
        options=answer_options(recipe, options, model=options.student, name=record.stem.removeprefix("train-")),
        model=materials.student.card.as_dict(),
        prompts=materials.text.text,
        tokenizer=materials.student.tokenizer,
    )
    author = Author(
        student=model,
        tokenizer=materials.student.tokenizer,
        sampling=Sampling(recipe.generation_temperature, recipe.generation_top_p, recipe.generation_top_k),
        max_new_tokens=options.generation_max_new_tokens,
        longest=longest_text(materials, options),
        seed=options.seed,
        batch_size=options.generation_batch_size,
        vocabulary=_common_width(materials),
        teacher=materials.teacher.model if materials.teacher else None,
        bf16=options.bf16,
        sharded=sharded,
    )
    return Method(
        spec=spec,
        policy=text_policy(
            recipe.policy,
            recipe.constants,
            author,
            archive=archive,
            training=training,
            ready=[Path(path) for path in options.student_text],
        ),
        controllers=[CONTROLLERS[name](recipe.constants) for name in recipe.controllers],
        teacher=teacher,
        reference=reference,
        passes=options.accumulation,
        packed=options.pack,
    )


def _frozen(loaded: LoadedModel | None, options: TrainOptions) -> Teacher | None:
    return None if loaded is None else Teacher(loaded.model, autocast=options.bf16)


def _cache(
    recipe: Recipe,
    frozen: Sequence[tuple[Teacher | None, LoadedModel | None]],
    training: Sequence[Example],
    held_out: Sequence[Example],
    options: TrainOptions,
) -> None:
    """Let every frozen model keep its rows of the fixed text, and free the model where they are all there already."""
    assert options.teacher_cache is not None
    fixed = [*training, *held_out]
    for model, loaded in frozen:
        if model is not None and loaded is not None:
            # A hub model of unknown revision has no fingerprint of its own: then its name must tell it apart.
            fingerprint = f"{loaded.card.name} {loaded.card.fingerprint}"
            cache = model.keep_in(options.teacher_cache, fingerprint, fixed)
            if cache.complete and recipe.policy in ("dataset", "teacher"):
                model.drop_backbone()


def _common_width(materials: Materials) -> int:
    models = [m.model for m in (materials.student, materials.teacher) if m is not None]
    return min(int(model.get_output_embeddings().weight.shape[0]) for model in models)


def require_heads(materials: Materials, training: Sequence[Example], options: TrainOptions) -> None:
    """Check on real tokens that hidden states and head give each model's own logits, and that packed texts do not see
    each other: a loss of something else would be minimised without a sign of it.
    """
    loaded = [m for m in (materials.student, materials.teacher, materials.reference) if m is not None]
    few = [replace(example, index=-1, shifts=None) for example in sorted(training, key=lambda e: len(e.ids))[:2]]
    for one in loaded:
        device = one.model.device
        ids = torch.tensor([few[0].ids[:64]], device=device)
        head_of(one.model)  # says what is the matter with a head that is none
        if not explains_head(one.model, ids):
            raise InputError(
                f"the logits of {one.card.name} are not those of a linear head on its last hidden state, which the "
                "loss is computed from: this architecture cannot be trained here"
            )
        if options.pack and not _packs(one.model, few):
            raise InputError(
                f"{one.card.name} lets packed texts see each other with --attention {options.attention}: "
                "leave out --pack, or use --attention flash_attention_2"
            )


@torch.no_grad()
def _packs(model: Any, few: Sequence[Example]) -> bool:
    def states(group: Sequence[Example]) -> torch.Tensor:
        batch: Mapping[str, torch.Tensor] = tensors(group, 0, packed=True)
        ids, at = batch["input_ids"].to(model.device), batch["position_ids"].to(model.device)
        return hidden_states(model, input_ids=ids, position_ids=at)[0]

    together, apart = states(few), torch.cat([states([example]) for example in few])
    tolerance = 1e-3 if together.dtype == torch.float32 else 0.1
    return bool(torch.allclose(together, apart, atol=tolerance * float(apart.abs().max()), rtol=0))
