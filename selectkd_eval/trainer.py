"""The training loop: transformers' Trainer with the selective loss, and a record of every update and validation.

What is ours and what is not. Epochs, optimizer, schedule, clipping, mixed precision, ranks, checkpoints and resume are
the Trainer's. It is handed one item per update, the texts of that update, and `training_step` makes of it what the
recipe says: the text policy may write other responses, the texts are cut into forward passes, a recipe that looks at
the whole update looks, the controllers set this update's objective, and the gradient is that of the whole update
however many passes and ranks it was spread over.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import astuple, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from selectkd_eval import diagnostics
from selectkd_eval.batches import Example, draws, micro_batches, rows_of_batch, tensors
from selectkd_eval.checkpoints import saving
from selectkd_eval.controllers import Moment
from selectkd_eval.errors import InputError
from selectkd_eval.heads import Head
from selectkd_eval.loss import gradient_repair
from selectkd_eval.method import STATE, Method
from selectkd_eval.ranks import rank
from selectkd_eval.records import Writer
from selectkd_eval.responses import Responses
from selectkd_eval.student import Question
from selectkd_eval.survey import Findings
from selectkd_eval.token_stats import TokenStats
from selectkd_eval.updates import UpdateLoader, Updates

KEPT_BYTES = 2**28  # the teacher's rows of the validation set are kept in memory up to this size


class SelectiveTrainer(Trainer):
    """A Trainer that minimises a method's objective and writes rows to `record`."""

    # The loss below is already divided by the whole update's count.
    loss_is_scaled_for_ga = True
    control: Any

    def __init__(self, *, method: Method, record: Writer, pad: int, **arguments: Any) -> None:
        super().__init__(**arguments)
        if self.is_deepspeed_enabled and (method.spec.normaliser == "selected_tokens" or method.passes > 1):
            raise InputError(
                "DeepSpeed steps on every backward pass and keeps the gradient out of reach: use --accumulation 1 and "
                "--normaliser per_seq_mean or valid_tokens, or DDP or FSDP"
            )
        self.method = method
        self.record = record
        self.pad = pad
        self._validation: list[Question] = []
        self._keep_rows = False
        self._per_epoch = 1
        self._update = TokenStats()  # of all ranks, of the last update
        self._seconds = 0.0
        self._watch = diagnostics.Watch()
        for printer in (PrinterCallback, ProgressCallback):
            self.remove_callback(printer)

    def get_train_dataloader(self) -> UpdateLoader:
        """One item per update, ordered by `updates`; the accelerator has nothing to add to it."""
        ranks = self.accelerator.num_processes
        order = Updates(
            len(self.train_dataset),
            self.args.per_device_train_batch_size * ranks,
            seed=self.args.seed,
            rank=self.accelerator.process_index,
            ranks=ranks,
        )
        self._per_epoch = len(order)
        return UpdateLoader(self.train_dataset, batch_sampler=order, collate_fn=list)

    def training_step(self, model: Any, inputs: list[Example], num_items_in_batch: Any = None) -> Tensor:
        """One whole update: text, survey, objective, and a forward and backward pass per micro-batch."""
        began, method, moment = time.perf_counter(), self.method, self._moment()
        examples = method.policy.update(inputs, moment)
        questions = [self._question(group, moment) for group in self._groups(examples)]
        denominator = self._denominator(questions)
        self._settle(model, questions, denominator, moment)
        model.train()
        stats = TokenStats()
        for question in questions:
            last = question is questions[-1]
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                # Data-parallel ranks average their gradients; each holds its share of a global sum.
                self.accelerator.backward(model(question=question) * self.accelerator.num_processes)
            stats = stats + question.stats
            question.forget()
        self._update = self._over_ranks(stats)
        repair = gradient_repair(method.spec, denominator, self._update)
        if repair != 1:
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(repair)
        loss = self._update.loss(method.spec.normaliser)
        for controller in method.controllers:
            controller.observe(loss, moment)
        if self.is_world_process_zero():
            self._watch.update(self._update, method.spec, moment.step)
        self._seconds = time.perf_counter() - began
        return torch.tensor(loss, device=self.args.device)

    def _moment(self) -> Moment:
        step, steps = self.state.global_step + 1, self.state.max_steps
        return Moment(step, steps, (step - 1) // self._per_epoch, steps / self._per_epoch)

    def _groups(self, examples: Sequence[Example]) -> list[list[Example]]:
        """The forward passes of this update. A rank with too few texts still meets the others in every pass, with a
        text that teaches nothing.
        """
        passes = self.method.passes
        if self.accelerator.num_processes == 1:
            return micro_batches(examples, min(passes, len(examples)))
        silent = self.train_dataset[0]
        silent = replace(silent, response=[False] * len(silent.ids), index=-1)
        return [group or [silent] for group in micro_batches(examples, passes)]

    def _question(self, group: Sequence[Example], moment: Moment | None) -> Question:
        """The micro-batch on the device."""
        method, device = self.method, self.args.device
        batch = tensors(group, self.pad, method.packed)
        coins = moment is not None and method.spec.spec_mode == "sampled"
        uniform = draws(self.args.seed, moment.step, batch).to(device) if moment is not None and coins else None
        batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        question = Question(batch, rows_of_batch(batch, uniform), method.spec, method.teacher)
        if moment is not None:
            question.where = f"step {moment.step}"
        return question

    def _denominator(self, questions: Sequence[Question]) -> float:
        """What normalises all passes on all ranks, as far as it is known before them."""
        lengths = [question.rows.lengths for question in questions]
        counts = TokenStats(
            sequences=float(sum(int((own > 0).sum()) for own in lengths)),
            tokens=float(sum(int(own.sum()) for own in lengths)),
        )
        # The total weight is known only after the forward passes: divide by the tokens now and repair the gradient.
        normaliser = self.method.spec.normaliser
        known = "valid_tokens" if normaliser == "selected_tokens" else normaliser
        return self._over_ranks(counts).denominator(known)

    def _settle(self, model: Any, questions: Sequence[Question], denominator: float, moment: Moment) -> None:
        """Give every pass this update's objective, after a look at all of them where the method needs one."""
        method = self.method
        if not method.surveys:
            spec = method.objective(moment, [])
            for question in questions:
                question.spec, question.denominator = spec, denominator
            return
        found: list[Findings] = []

        def look(question: Question, hidden: Tensor, head: Head) -> None:
            found.append(method.look(question, hidden, head))
            if len(found) == len(questions):
                spec, plans = method.decide(found, moment)
                for settled, plan in zip(questions, plans, strict=True):
                    settled.spec, settled.denominator = spec, denominator
                    settled.rows = replace(settled.rows, plan=plan.to(self.args.device))
                    settled.resolve = None

        for question in questions:
            question.resolve = partial(look, question)
        if method.passes == 1:
            return  # the one forward pass looks first and goes on
        model.eval()
        for question in questions:
            question.look_only = True
            with torch.no_grad():
                model(question=question)
            question.look_only = False

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validate once per step; a row written before an interruption is not measured again."""
        key = f"validation/{self.state.global_step}"
        row = self.record.done.get(key)
        if row is None:
            row = self._validate()
            self._write(key, event="validation", step=self.state.global_step, **row)
        metrics = {"eval_loss": float(row["loss"])}
        self.method.policy.validated(metrics["eval_loss"])
        for controller in self.method.controllers:
            controller.validated(metrics["eval_loss"])
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def _validate(self) -> dict[str, Any]:
        """The plain divergence on held-out text; TAR by the run's own gate and, for comparison, by both."""
        stats = TokenStats()
        responses = None if self.method.teacher is None else Responses()
        self.model.eval()
        for question in self._held_out():
            question.watch = responses
            with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.args.bf16):
                self.model(question=question)
            stats = stats + question.stats
            if not self._keep_rows:
                question.forget()
        loss = stats.loss(self.method.spec.held_out().normaliser, weighted=False)
        if not math.isfinite(loss):
            raise InputError(
                f"the validation loss is {loss} at step {self.state.global_step}: lower --lr, or use --divergence skl"
            )
        row: dict[str, Any] = {"loss": loss, "nll": stats.mean_nll, "tar": stats.tar, "tar_pooled": stats.tar_pooled}
        row["alpha"] = stats.alpha
        if responses is not None:
            row |= {"tar_top_k": stats.tar_top_k, "tar_spec_k": stats.tar_spec_k, "responses": responses.row()}
        return row

    def _held_out(self) -> list[Question]:
        """The held-out batches, of similar lengths, with the teacher's rows where they are small enough to keep.

        The teacher does not change, so asking it once is enough. Every rank measures the whole set: a shard padded with
        repeated texts would count those twice.
        """
        if not self._validation:
            examples = sorted(self.eval_dataset.examples, key=lambda example: len(example.ids))
            size = self.args.eval_batch_size
            for at in range(0, len(examples), size):
                question = self._question(examples[at : at + size], None)
                question.spec = self.method.spec.held_out()
                self._validation.append(question)
            width = 0 if self.method.teacher is None else 4 * self.method.teacher.width
            self._keep_rows = width * sum(int(q.rows.lengths.sum()) for q in self._validation) <= KEPT_BYTES
        return self._validation

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """The Trainer's checkpoint and the memory of policy and controllers; a full disk is one sentence."""
        with saving(Path(self.args.output_dir)):
            super()._save_checkpoint(model, trial)
            directory = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            self.method.remember(directory / STATE.format(rank=rank()))
        self.method.flush()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Turn the Trainer's log of an update into a row; its closing summary is not one."""
        super().log(logs, start_time)
        if "loss" not in logs:
            return
        step, stats, normaliser = self.state.global_step, self._update, self.method.spec.normaliser
        if not math.isfinite(logs["grad_norm"]):
            raise InputError(
                f"the gradient is not finite at step {step}: lower --lr, add --warmup, or leave out --bf16"
            )
        self._write(
            f"step/{step}",
            event="step",
            step=step,
            epoch=logs["epoch"],
            loss=stats.loss(normaliser),
            divergence=stats.loss(normaliser, weighted=False),
            lr=logs["learning_rate"],
            grad_norm=logs["grad_norm"],
            **diagnostics.columns(stats),
            **self.method.readings(),
            **diagnostics.costs(stats, self._seconds, self.args.device),
        )

    def _write(self, key: str, **row: Any) -> None:
        # A step run again after an interruption gives the same row: the one already written stands.
        if self.is_world_process_zero() and key not in self.record.done:
            self.record.write(key, **row)

    def _over_ranks(self, stats: TokenStats) -> TokenStats:
        if self.accelerator.num_processes == 1:
            return stats
        packed = torch.tensor(astuple(stats), dtype=torch.float64, device=self.args.device)
        return TokenStats(*self.accelerator.reduce(packed, reduction="sum").tolist())

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: the Trainer's estimate knows neither the teacher nor text written on the way."""
        return 0
