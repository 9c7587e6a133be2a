"""`train`: distil a student q from a teacher p, with or without selection. The paper's Algorithm 1 around a
Trainer.

Reads the options, gathers text (`policies`), builds the objective (`recipes`, `loss`) and hands both to
`trainer`. The record gets a row per update and per validation; the student, its checkpoints and
`selectkd.json` (which recipe, gate and seed made it) lie in a directory beside the record. A killed run
continues from its last whole checkpoint and ends with the weights it would have had.

It does not judge the student: that is what passk, winrate, tar, speedup and landscape are for.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainingArguments, set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.utils import logging as hf_logging

from selectkd_eval import environment, materials, pair, records, refusals
from selectkd_eval.batches import Examples
from selectkd_eval.checkpoints import find_resume, require_space, require_writable, saving, write_card
from selectkd_eval.course import Course
from selectkd_eval.errors import InputError
from selectkd_eval.materials import Materials
from selectkd_eval.method import STATE
from selectkd_eval.pair import TRAINING_CARD
from selectkd_eval.ranks import launched, sharded
from selectkd_eval.recipes import method_labels
from selectkd_eval.student import teachable
from selectkd_eval.trainer import SelectiveTrainer
from selectkd_eval.verbs import TrainOptions


def run(options: TrainOptions) -> int | None:
    """Train (or finish training) one student and print its record's path."""
    recipe = materials.chosen_recipe(options)
    spec = materials.loss_spec(recipe, options)
    refusals.check(recipe, spec, options)
    if options.save:
        require_writable(options.save)
    environment.set_threads(options.threads)
    ready = materials.gather(recipe, spec, options)
    save = options.save or records.record_path("train", options).with_suffix("")
    card = _training_card(ready, options)
    with _open_record(ready, card, save, options) as record:
        begun_in = (options.out / record.facts["save"]).resolve()
        if begun_in != save.resolve():
            raise InputError(f"{record.path} was begun with --save {begun_in}: give that again, or delete the record")
        student = save / TRAINING_CARD
        if record.complete and not student.exists():
            raise InputError(
                f"{record.path} is complete but its student is not in {save}: delete the record to train again"
            )
        if not record.complete:
            _train(ready, record, save, card, options)
            record.finish()
        if launched().rank == 0:
            print(record.path)
    return None


# Students that differ in one of these are different set-ups, whatever their seeds.
_OPTIMISER = ("lr", "schedule", "warmup", "max_length", "lora_rank")


def _training_card(ready: Materials, options: TrainOptions) -> dict[str, Any]:
    """What the student's directory says about how it was made; tables group by it."""
    recipe, spec = ready.recipe, ready.spec
    method, base = method_labels(recipe, options.divergence, spec.verifier, options.variant)
    parameters = {name: value for term in spec.terms for name, value in term.parameters.items()}
    return {
        "method": options.method or method,
        "base_method": base,
        "recipe": recipe.name,
        "variant": options.variant,
        "constants": dict(recipe.constants),
        "policy": recipe.policy,
        "divergence": " + ".join(dict.fromkeys(term.divergence for term in spec.terms)),
        "parameters": parameters,
        "verifier": spec.verifier,
        "k": spec.k,
        "beta": spec.beta,
        "spec_mode": spec.spec_mode,
        "normaliser": spec.normaliser,
        "temperature": spec.temperature,
        "teacher_noise": options.teacher_noise,
        "seed": options.seed,
        "steps": ready.steps,
        "batch": options.batch_size * launched().ranks,
        **{name: getattr(options, name) for name in _OPTIMISER},
        "teacher": ready.teacher.card.fingerprint if ready.teacher else None,
        "teacher_name": ready.teacher.card.name if ready.teacher else "",
        "reference": ready.reference.card.fingerprint if ready.reference else None,
        "start": ready.student.card.fingerprint,
        "start_name": ready.student.card.name,
        "data": ready.text.text.sha256,
        "record": records.record_path("train", options).name,
    }


def _open_record(ready: Materials, card: dict[str, Any], save: Path, options: TrainOptions) -> records.Writer:
    """The record. Under a launcher the first rank writes it; the others read what is done and write nowhere."""
    path = records.record_path("train", options)
    if launched().rank == 0:
        facts = _facts(ready, card, save, options)
        return records.open_record("train", options, inputs=_inputs(ready), facts=facts)
    earlier = records.read(path, unfinished_ok=True) if path.exists() and path.stat().st_size else None
    nowhere = Path(os.devnull).open("wb")  # noqa: SIM115 - the Writer closes it
    done = {row["key"]: row for row in earlier.good} if earlier else {}
    facts = earlier.facts if earlier else _facts(ready, card, save, options)
    return records.Writer(path, nowhere, done, complete=bool(earlier and earlier.finished), facts=facts)


def _inputs(ready: Materials) -> dict[str, str]:
    frozen = {"teacher": ready.teacher, "reference": ready.reference}
    return {name: model.card.fingerprint for name, model in frozen.items() if model is not None} | {
        "student": ready.student.card.fingerprint,
        "data": ready.text.text.sha256,
        "validation": ready.held_out.text.sha256,
    }


def _facts(ready: Materials, card: dict[str, Any], save: Path, options: TrainOptions) -> dict[str, Any]:
    return {
        "method": card["method"],
        "base_method": card["base_method"],
        "training": card,
        "teacher": ready.teacher.card.as_dict() if ready.teacher else None,
        "student": ready.student.card.as_dict(),
        "data": ready.text.facts,
        "validation": ready.held_out.facts,
        "steps": ready.steps,
        # Seen from the record, so that both can be moved together.
        "save": os.path.relpath(save, options.out),
    }


def _train(ready: Materials, record: records.Writer, save: Path, card: dict[str, Any], options: TrainOptions) -> None:
    """Run the Trainer from the last whole checkpoint, if there is one, and save the student."""
    hf_logging.set_verbosity_error()
    set_seed(options.seed)
    tokenizer = ready.student.tokenizer
    training = materials.examples(ready.text.text, ready, options, noise=options.teacher_noise)
    held_out = materials.examples(ready.held_out.text, ready, options, first=len(training))
    require_space(ready.student.model, save, ready.steps, options)
    resume = find_resume(save, card, record.done, tidy=launched().rank == 0)
    arguments = _arguments(save, ready.steps, options)
    arguments.eval_on_start = resume.last is None and resume.result is None
    student = _trainable(ready.student.model, options)
    method = materials.method(ready, student, training, held_out, options, sharded=sharded())
    callbacks: list[Any] = [Course(card, options.keep_checkpoints)]
    if options.patience:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=options.patience))
    trainer = SelectiveTrainer(
        model=teachable(student, chunk=options.chunk, full=options.head == "full"),
        args=arguments,
        method=method,
        record=record,
        pad=tokenizer.pad_token_id,
        train_dataset=Examples(training),
        eval_dataset=Examples(held_out),
        data_collator=list,
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    try:
        if resume.result is not None:
            # Killed between the last update and the saving of the student: nothing is left to train.
            trainer._load_from_checkpoint(str(resume.result))
        else:
            if resume.last is not None:
                method.recall(resume.last / STATE.format(rank=launched().rank))
            trainer.train(resume_from_checkpoint=str(resume.last) if resume.last else None)
        method.finish()
    finally:
        method.policy.close()
    _save(trainer, save, card, options)


def _save(trainer: SelectiveTrainer, save: Path, card: dict[str, Any], options: TrainOptions) -> None:
    """The student beside its record, adapter merged unless asked otherwise."""
    model = _whole(trainer, options)
    if model is None:
        return
    if options.lora_rank and not options.keep_adapter:
        model = model.merge_and_unload()
    with saving(save):
        model.save_pretrained(save)
        trainer.processing_class.save_pretrained(save)
        write_card(save, card)


def _whole(trainer: SelectiveTrainer, options: TrainOptions) -> Any:
    """The trained model on the first rank, None on the others. Weights that FSDP or DeepSpeed have spread over the
    ranks are gathered, which takes all of them, and put into a model as it was before.
    """
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        return trainer.accelerator.unwrap_model(trainer.model) if trainer.is_world_process_zero() else None
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not trainer.is_world_process_zero():
        return None
    unset_hf_deepspeed_config()  # or ZeRO-3 would spread this model, too, while it is loaded, and wait for the others
    model = _trainable(pair.load_model(options.student).model, options)
    model.load_state_dict(weights)
    return model


def _arguments(save: Path, steps: int, options: TrainOptions) -> TrainingArguments:
    """The Trainer's own settings. With early stopping every validation is a checkpoint, and the best one is
    the student.
    """
    eval_every = min(options.eval_every or steps, steps)
    early = options.patience > 0
    arguments = TrainingArguments(
        output_dir=str(save),
        per_device_train_batch_size=options.batch_size,  # an update is one item: the trainer cuts it itself
        per_device_eval_batch_size=max(1, options.batch_size // options.accumulation),
        max_steps=steps,
        learning_rate=options.lr,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(options.schedule, options.schedule),
        warmup_steps=round(options.warmup * steps),
        weight_decay=options.weight_decay,
        max_grad_norm=options.clip,
        optim="adamw_torch_fused",
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
    # transformers renames what peft still calls by its old name: nothing that a user could act on.
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*|.*gradient_checkpointing_enable.*", FutureWarning)
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
