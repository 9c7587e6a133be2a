"""`train`: distil a student q from a teacher p, with or without selection. The paper's Algorithm 1 around a
Trainer.

Reads the options, gathers text (`policies`), builds the objective (`recipes`, `loss`) and hands both to
`trainer`. The record gets a row per update and per validation; the student, its checkpoints and
`selectkd.json` (which recipe, gate and seed made it) lie in a directory beside the record. A killed run
continues from its last whole checkpoint and ends with the weights it would have had.

It does not judge the student: that is what passk, winrate, tar, speedup and landscape are for.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import EarlyStoppingCallback, TrainingArguments, set_seed
from transformers.utils import logging as hf_logging

from selectkd_eval import environment, pair, prompts, records
from selectkd_eval.checkpoints import find_resume, require_space, require_writable, saving, write_card
from selectkd_eval.divergences import DIVERGENCES
from selectkd_eval.errors import InputError, choose
from selectkd_eval.loss import LossSpec
from selectkd_eval.pair import TRAINING_CARD, LoadedModel
from selectkd_eval.policies import TrainingText, held_out_text, training_text
from selectkd_eval.recipes import RECIPES, Recipe, method_labels
from selectkd_eval.stress import corruption
from selectkd_eval.trainer import Course, Example, Examples, SelectiveTrainer, collate
from selectkd_eval.verbs import VERBS, AnswerOptions, TrainOptions


class Materials(NamedTuple):
    """Everything a run needs, loaded and checked."""

    teacher: LoadedModel | None
    student: LoadedModel
    text: TrainingText
    held_out: TrainingText
    spec: LossSpec
    steps: int


def run(options: TrainOptions) -> int | None:
    """Train (or finish training) one student and print its record's path."""
    recipe = choose(options.recipe, RECIPES, "recipe")
    spec = loss_spec(recipe, options)
    _check(options)
    if options.save:
        require_writable(options.save)
    environment.set_threads(options.threads)
    materials = _gather(recipe, spec, options)
    save = options.save or records.record_path("train", options).with_suffix("")
    card = _training_card(recipe, materials, options)
    with _open_record(materials, card, save, options) as record:
        begun_in = (options.out / record.facts["save"]).resolve()
        if begun_in != save.resolve():
            raise InputError(f"{record.path} was begun with --save {begun_in}: give that again, or delete the record")
        student = save / TRAINING_CARD
        if record.complete and not student.exists():
            raise InputError(
                f"{record.path} is complete but its student is not in {save}: delete the record to train again"
            )
        if not record.complete:
            _train(materials, record, save, card, options)
            record.finish()
        if _rank() == 0:
            print(record.path)
    return None


def loss_spec(recipe: Recipe, options: TrainOptions) -> LossSpec:
    """The recipe's objective with the command line's overrides."""
    name = options.divergence or recipe.divergence
    divergence = choose(name, DIVERGENCES, "divergence")
    tunable = {"alpha": options.alpha, "beta_jsd": options.beta_jsd}
    return LossSpec(
        divergence=name,
        parameters={key: value for key, value in tunable.items() if key in divergence.parameters},
        verifier=options.verifier,
        k=options.k,
        beta=options.beta,
        spec_mode="sampled" if options.spec_sampled else "expected",
        normaliser=options.normaliser or recipe.normaliser,
        temperature=recipe.temperature if options.temperature is None else options.temperature,
    )


def _check(options: TrainOptions) -> None:
    if options.batch_size < 1 or options.accumulation < 1 or options.batch_size % options.accumulation:
        raise InputError(
            f"--batch-size {options.batch_size} cannot be cut into --accumulation {options.accumulation} equal passes: "
            "give a batch size that it divides"
        )
    if options.lr <= 0 or options.steps < 0 or (options.steps == 0 and options.epochs <= 0):
        raise InputError("training needs --lr above 0 and either --steps or --epochs above 0")
    if not 0 <= options.teacher_noise <= 1:
        raise InputError(f"--teacher-noise is a share of positions in [0, 1], but {options.teacher_noise} was given")
    if options.device.startswith("cuda:") and options.device != "cuda:0":
        raise InputError(
            f"train uses the first visible GPU: set CUDA_VISIBLE_DEVICES instead of --device {options.device}"
        )


def _gather(recipe: Recipe, spec: LossSpec, options: TrainOptions) -> Materials:
    """Load the models and the text; the teacher only when the objective asks for it."""
    device = environment.device(options.device)
    student = pair.load_model(options.student, device)
    teacher = None
    if spec.needs_teacher:
        teacher = pair.load_model(options.teacher, device, torch.bfloat16 if options.bf16 else torch.float32)
        pair.common_vocabulary(teacher, student)
    held_out = held_out_text(options.validation, options.exclude, options.limit)
    text = training_text(
        recipe.policy,
        options.data,
        exclude=options.exclude,
        held_out=held_out.text,
        limit=options.limit,
        ask_teacher=partial(_ask_teacher, recipe, options),
    )
    updates = math.ceil(len(text.text.prompts) / (options.batch_size * _world_size()))
    return Materials(teacher, student, text, held_out, spec, options.steps or math.ceil(options.epochs * updates))


def _ask_teacher(recipe: Recipe, options: TrainOptions) -> Path:
    """Have the teacher answer the prompts, by the verb `answer`: its record can be read, resumed and used
    again.
    """
    if _world_size() > 1:
        raise InputError(
            f"several processes cannot write one answer record: let the teacher answer first (selectkd-eval answer "
            f"--model {options.teacher} --prompts {options.data}) and give its record as --data"
        )
    wanted = AnswerOptions(
        model=options.teacher,
        prompts=options.data,
        limit=options.limit,
        temperature=recipe.generation_temperature,
        top_p=recipe.generation_top_p,
        max_new_tokens=min(512, options.max_length),
        seeds=(options.seed,),
        out=options.out,
        device=options.device,
        threads=options.threads,
    )
    module, function = VERBS["answer"].function.split(":")
    with contextlib.redirect_stdout(sys.stderr):
        getattr(importlib.import_module(module), function)(wanted)
    return records.record_path("answer", wanted)


# Students that differ in one of these are different set-ups, whatever their seeds.
_OPTIMISER = ("lr", "schedule", "warmup", "max_length", "lora_rank")


def _training_card(recipe: Recipe, materials: Materials, options: TrainOptions) -> dict[str, Any]:
    """What the student's directory says about how it was made; tables group by it."""
    spec = materials.spec
    method, base = method_labels(recipe, spec.divergence, spec.verifier)
    return {
        "method": options.method or method,
        "base_method": base,
        "recipe": recipe.name,
        "divergence": spec.divergence,
        "parameters": dict(spec.parameters),
        "verifier": spec.verifier,
        "k": spec.k,
        "beta": spec.beta,
        "spec_mode": spec.spec_mode,
        "normaliser": spec.normaliser,
        "temperature": spec.temperature,
        "teacher_noise": options.teacher_noise,
        "seed": options.seed,
        "steps": materials.steps,
        "batch": options.batch_size * options.accumulation,
        **{name: getattr(options, name) for name in _OPTIMISER},
        "teacher": materials.teacher.card.fingerprint if materials.teacher else None,
        "start": materials.student.card.fingerprint,
        "data": materials.text.text.sha256,
        "record": records.record_path("train", options).name,
    }


def _open_record(materials: Materials, card: dict[str, Any], save: Path, options: TrainOptions) -> records.Writer:
    """The record. Under torchrun the first rank writes it; the others read what is done and write nowhere."""
    path = records.record_path("train", options)
    if _rank() == 0:
        facts = _facts(materials, card, save, options)
        return records.open_record("train", options, inputs=_inputs(materials), facts=facts)
    earlier = records.read(path, unfinished_ok=True) if path.exists() and path.stat().st_size else None
    nowhere = Path(os.devnull).open("wb")  # noqa: SIM115 - the Writer closes it
    done = {row["key"]: row for row in earlier.good} if earlier else {}
    facts = earlier.facts if earlier else _facts(materials, card, save, options)
    return records.Writer(path, nowhere, done, complete=bool(earlier and earlier.finished), facts=facts)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _inputs(materials: Materials) -> dict[str, str]:
    teacher = {"teacher": materials.teacher.card.fingerprint} if materials.teacher else {}
    return teacher | {
        "student": materials.student.card.fingerprint,
        "data": materials.text.text.sha256,
        "validation": materials.held_out.text.sha256,
    }


def _facts(materials: Materials, card: dict[str, Any], save: Path, options: TrainOptions) -> dict[str, Any]:
    return {
        "method": card["method"],
        "base_method": card["base_method"],
        "training": card,
        "teacher": materials.teacher.card.as_dict() if materials.teacher else None,
        "student": materials.student.card.as_dict(),
        "data": materials.text.facts,
        "validation": materials.held_out.facts,
        "steps": materials.steps,
        # Seen from the record, so that both can be moved together.
        "save": os.path.relpath(save, options.out),
    }


def _train(
    materials: Materials, record: records.Writer, save: Path, card: dict[str, Any], options: TrainOptions
) -> None:
    """Run the Trainer from the last whole checkpoint, if there is one, and save the student."""
    hf_logging.set_verbosity_error()
    set_seed(options.seed)
    tokenizer = materials.student.tokenizer
    require_space(materials.student.model, save, materials.steps, options)
    callbacks: list[Any] = [Course(card, options.keep_checkpoints)]
    if options.patience:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=options.patience))
    trainer = SelectiveTrainer(
        model=_trainable(materials.student.model, options),
        args=_arguments(save, materials.steps, options),
        teacher=materials.teacher.model if materials.teacher else None,
        spec=materials.spec,
        record=record,
        train_dataset=_examples(materials.text.text, materials, options, options.teacher_noise),
        eval_dataset=_examples(materials.held_out.text, materials, options, 0.0),
        data_collator=partial(collate, pad=tokenizer.pad_token_id),
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    resume = find_resume(save, card, record.done, tidy=_rank() == 0)
    if resume.result is not None:
        # Killed between the last update and the saving of the student: nothing is left to train.
        trainer._load_from_checkpoint(str(resume.result))
    else:
        if resume.last is None:
            trainer.evaluate()
        trainer.train(resume_from_checkpoint=str(resume.last) if resume.last else None)
    model = trainer.accelerator.unwrap_model(trainer.model)
    if options.lora_rank and not options.keep_adapter:
        model = model.merge_and_unload()
    if trainer.is_world_process_zero():
        with saving(save):
            model.save_pretrained(save)
            tokenizer.save_pretrained(save)
            write_card(save, card)


def _arguments(save: Path, steps: int, options: TrainOptions) -> TrainingArguments:
    """The Trainer's own settings. With early stopping every validation is a checkpoint, and the best one is
    the student.
    """
    eval_every = min(options.eval_every or steps, steps)
    early = options.patience > 0
    arguments = TrainingArguments(
        output_dir=str(save),
        per_device_train_batch_size=options.batch_size // options.accumulation,
        per_device_eval_batch_size=options.batch_size,
        gradient_accumulation_steps=options.accumulation,
        max_steps=steps,
        learning_rate=options.lr,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(options.schedule, options.schedule),
        warmup_steps=round(options.warmup * steps),
        weight_decay=options.weight_decay,
        max_grad_norm=options.clip,
        optim="adamw_torch",
        seed=options.seed,
        data_seed=options.seed,
        bf16=options.bf16,
        use_cpu=environment.device(options.device) == "cpu",
        eval_strategy="steps",
        eval_steps=eval_every,
        save_strategy="steps",
        save_steps=eval_every if early else max(options.save_every, 1),
        load_best_model_at_end=early,
        restore_callback_states_from_checkpoint=early,  # how many validations have passed without a better one
        metric_for_best_model="eval_loss" if early else None,
        greater_is_better=False if early else None,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # DataParallel would split a batch behind the loss's back; use torchrun for several GPUs
    return arguments


def _trainable(model: Any, options: TrainOptions) -> Any:
    """The student itself, or the student behind a LoRA adapter on all its linear layers."""
    if options.gradient_checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    if not options.lora_rank:
        return model
    peft = environment.require("peft", "--lora-rank", "train")
    return peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=options.lora_rank,
            lora_alpha=options.lora_alpha,
            lora_dropout=options.lora_dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )


def _examples(text: prompts.PromptSet, materials: Materials, options: TrainOptions, noise: float) -> Examples:
    """Tokenised text, no longer than either model allows; prompts that leave no room for an answer are refused
    rather than trained on silently.
    """
    tokenizer, models = materials.student.tokenizer, (materials.student, materials.teacher)
    positions = [getattr(m.model.config, "max_position_embeddings", None) for m in models if m is not None]
    longest = min([options.max_length, *filter(None, positions)])
    examples = []
    for prompt in text.prompts:
        ids, response = prompts.encode_example(tokenizer, prompt.text, prompt.answer or "", longest)
        if not any(response[1:]):
            raise InputError(
                f"prompt {prompt.id} of {text.name} fills all of {longest} tokens (--max-length, or what the models "
                "allow) and leaves no room for its answer: raise --max-length, or leave the prompt out"
            )
        shifts = corruption(options.seed, prompt.id, len(ids), noise, len(tokenizer)) if noise else None
        examples.append(Example(ids, response, prompt.id, shifts))
    return Examples(examples)
