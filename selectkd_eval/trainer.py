"""The training loop: transformers' Trainer with the selective loss, and a record of every update and
validation.

What is ours and what is not. Batches, accumulation, optimizer, schedule, mixed precision, ranks, checkpoints
and resume are the Trainer's. Overridden are the loss, the count that normalises it over a whole update (not
over a micro-batch), the gradient repair for the one normaliser whose count is known only afterwards,
validation, and where the log goes: rows of a record.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from selectkd_eval.checkpoints import remove_old, saving, write_card
from selectkd_eval.errors import InputError
from selectkd_eval.loss import LossSpec, TokenStats, gradient_repair, require_finite, selective_loss
from selectkd_eval.records import Writer
from selectkd_eval.stress import corrupt

KEPT_BYTES = 2**28  # teacher logits of the validation set are kept in memory up to this size


class Example(NamedTuple):
    """One tokenised text: ids, which of them are the response, the prompt's hash, and the stress test's shifts."""

    ids: list[int]
    response: list[bool]
    prompt: str
    shifts: list[int] | None = None


class Examples(Dataset[Example]):
    """A list of examples as torch wants it."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


def collate(batch: Sequence[Example], pad: int) -> dict[str, Tensor]:
    """Right-padded tensors ``(B, T)``, and `key` ``(B,)``: 63 bits of each prompt's hash, from which its
    draws are seeded.
    """
    longest = max(len(example.ids) for example in batch)

    def padded(values: Sequence[int | bool], fill: int) -> list[int]:
        return [int(value) for value in values] + [fill] * (longest - len(values))

    tensors = {
        "input_ids": torch.tensor([padded(e.ids, pad) for e in batch]),
        "response_mask": torch.tensor([padded(e.response, 0) for e in batch], dtype=torch.bool),
        "key": torch.tensor([int(e.prompt, 16) >> 1 for e in batch]),
    }
    if any(e.shifts for e in batch):
        tensors["shifts"] = torch.tensor([padded(e.shifts or [], 0) for e in batch])
    return tensors


class SelectiveTrainer(Trainer):
    """A Trainer that minimises `spec` against `teacher` and writes rows to `record`."""

    # The loss below is already divided by the whole update's count.
    loss_is_scaled_for_ga = True
    control: Any

    def __init__(self, *, teacher: Any, spec: LossSpec, record: Writer, **arguments: Any) -> None:
        super().__init__(**arguments)
        if self.is_deepspeed_enabled and spec.normaliser == "selected_tokens":
            raise InputError(
                "--normaliser selected_tokens scales the finished gradient, which DeepSpeed keeps out of reach: "
                "use per_seq_mean or valid_tokens, or DDP or FSDP"
            )
        self.teacher = None if teacher is None else teacher.to(self.args.device).eval().requires_grad_(False)
        self.spec = spec
        self.record = record
        self._validation: list[tuple[dict[str, Any], Tensor | None]] = []
        self._micro = TokenStats()  # of this rank, since the last update
        self._update = TokenStats()  # of all ranks, of the last update
        bare = self.accelerator.unwrap_model(self.model)
        self._slices = all(_slices_logits(m) for m in (bare, self.teacher) if m is not None)
        for printer in (PrinterCallback, ProgressCallback):
            self.remove_callback(printer)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], float]:
        """An update's micro-batches and the count that normalises all of them, over all ranks."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = TokenStats(
            sequences=sum(len(batch["input_ids"]) for batch in batches),
            tokens=sum(float(batch["response_mask"][:, 1:].sum()) for batch in batches),
        )
        # The total weight is known only after the forward passes: divide by the tokens now and repair the
        # gradient.
        known = "valid_tokens" if self.spec.normaliser == "selected_tokens" else self.spec.normaliser
        return batches, self._over_ranks(counts).denominator(known)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The selective loss of one micro-batch, divided by the update's count `num_items_in_batch`."""
        step = self.state.global_step + 1
        generator = None
        if self.spec.spec_mode == "sampled":
            generator = [_generator(self.args.seed, step, key, self.args.device) for key in inputs["key"].tolist()]
        loss, stats = selective_loss(
            *self.logits(model, inputs), self.spec, generator=generator, denominator=num_items_in_batch
        )
        require_finite(stats, f"step {step}")
        self._micro = self._micro + stats
        # Data-parallel ranks average their gradients; each holds its share of a global sum.
        return loss * self.accelerator.num_processes

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch, forward and backward; after the last of an update its gradients are made exact."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.gradient_state.sync_gradients:
            self._update, self._micro = self._over_ranks(self._micro), TokenStats()
            repair = gradient_repair(self.spec, float(num_items_in_batch), self._update)
            if repair != 1:
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter.grad.mul_(repair)
        return loss

    def logits(
        self, model: Any, inputs: dict[str, Any], known_p: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
        """Both forward passes: teacher's and student's logits, and the ids and response mask aligned with them.

        Where both models allow it, heads run only from the last position before the first response token on. `known_p`
        are the teacher's logits for these inputs from an earlier call.
        """
        response = inputs["response_mask"]
        start = max(int(response.any(0).nonzero()[0]) - 1, 0) if self._slices else 0
        # No attention mask: padding stands on the right, attention is causal, and padding carries no loss. Without a
        # mask the kernels take their fast causal path.
        forward = {"input_ids": inputs["input_ids"], "use_cache": False}
        if self._slices:
            forward["logits_to_keep"] = response.shape[1] - start
        logits_p = known_p
        if self.teacher is not None and logits_p is None:
            with torch.no_grad():
                logits_p = self.teacher(**forward).logits
                if "shifts" in inputs:
                    # The logits at t - 1 predict token t, so the shift of position t belongs one place earlier.
                    logits_p = corrupt(logits_p, torch.nn.functional.pad(inputs["shifts"][:, start + 1 :], (0, 1)))
        return logits_p, model(**forward).logits, inputs["input_ids"][:, start:], response[:, start:]

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validate once per step; a row written before an interruption is not measured again."""
        key = f"validation/{self.state.global_step}"
        row = self.record.done.get(key)
        if row is None:
            row = self._validate()
            self._write(key, event="validation", step=self.state.global_step, **row)
        metrics = {"eval_loss": float(row["loss"])}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def _validate(self) -> dict[str, Any]:
        """The plain (V_t = 1) divergence on held-out text; TAR by the run's own gate and, for comparison, by
        both.
        """
        expected = replace(self.spec, spec_mode="expected")
        gates = {self.spec.verifier: expected}
        if self.teacher is not None:
            gates |= {name: replace(expected, verifier=name) for name in ("top-k", "spec-k")}
        sums = dict.fromkeys(gates, TokenStats())
        self.model.eval()
        for inputs, logits_p in self._validation_batches():
            with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.args.bf16):
                logits = self.logits(self.model, inputs, logits_p)
            for name, spec in gates.items():
                sums[name] = sums[name] + selective_loss(*logits, spec)[1]
        own = sums[self.spec.verifier]
        loss = own.loss(self.spec.normaliser, weighted=False)
        if not math.isfinite(loss):
            raise InputError(
                f"the validation loss is {loss} at step {self.state.global_step}: lower --lr, or use --divergence skl"
            )
        row = {"loss": loss, "nll": own.mean_nll, "tar": own.tar, "tar_pooled": own.tar_pooled, "alpha": own.alpha}
        return row | {
            f"tar_{name.replace('-', '_')}": stats.tar for name, stats in sums.items() if name in ("top-k", "spec-k")
        }

    def _validation_batches(self) -> list[tuple[dict[str, Any], Tensor | None]]:
        """The held-out batches, of similar lengths, with the teacher's logits where they are small enough to keep.

        The teacher does not change, so asking it once is enough. Every rank measures the whole set: a shard padded with
        repeated texts would count those twice.
        """
        if not self._validation:
            examples = sorted(self.eval_dataset.examples, key=lambda example: len(example.ids))
            size = self.args.eval_batch_size
            batches = [
                self._prepare_inputs(self.data_collator(examples[at : at + size]))
                for at in range(0, len(examples), size)
            ]
            width = self.model.get_output_embeddings().weight.shape[0]
            keep = self.teacher is not None and 4 * width * sum(b["input_ids"].numel() for b in batches) <= KEPT_BYTES
            with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.args.bf16):
                self._validation = [(b, self.logits(self.model, b)[0] if keep else None) for b in batches]
        return self._validation

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """The Trainer's checkpoint; a full disk is one sentence."""
        with saving(Path(self.args.output_dir)):
            super()._save_checkpoint(model, trial)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Turn the Trainer's log of an update into a row; its closing summary is not one."""
        super().log(logs, start_time)
        if "loss" not in logs:
            return
        step, stats = self.state.global_step, self._update
        if not math.isfinite(logs["grad_norm"]):
            raise InputError(
                f"the gradient is not finite at step {step}: lower --lr, add --warmup, or leave out --bf16"
            )
        self._write(
            f"step/{step}",
            event="step",
            step=step,
            epoch=logs["epoch"],
            loss=stats.loss(self.spec.normaliser),
            divergence=stats.loss(self.spec.normaliser, weighted=False),
            lr=logs["learning_rate"],
            grad_norm=logs["grad_norm"],
            tar=stats.tar,
            tar_pooled=stats.tar_pooled,
            alpha=stats.alpha,
            bite=stats.bite,
            mean_weight=stats.mean_weight,
            tokens=int(stats.tokens),
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


class Course(TrainerCallback):
    """Validation after the last update, a finished mark in every checkpoint, and a progress bar on stderr."""

    def __init__(self, card: dict[str, Any], keep: int) -> None:
        self.card = card
        self.keep = keep
        self.bar: tqdm[Any] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the bar where training starts or goes on."""
        if state.is_world_process_zero:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.card["method"], disable=None)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Whatever the interval, the last update is validated."""
        if self.bar is not None:
            self.bar.update()
        if state.global_step >= state.max_steps:
            control.should_evaluate = True
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """The loss beside the bar."""
        if self.bar is not None and "loss" in logs:
            self.bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint as whole, then remove old ones: a run killed while saving leaves one without a card,
        which is never resumed.
        """
        if state.is_world_process_zero:
            save = Path(args.output_dir)
            with saving(save):
                write_card(save / f"checkpoint-{state.global_step}", self.card | {"step": state.global_step})
            remove_old(save, self.keep, state.best_model_checkpoint)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()


def _generator(seed: int, step: int, key: int, device: torch.device) -> torch.Generator:
    """Spec-k's own stream for one text in one update, whatever stands beside it in the batch."""
    digest = hashlib.sha256(f"{seed} {step} {key}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _slices_logits(model: Any) -> bool:
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(bare.forward).parameters
