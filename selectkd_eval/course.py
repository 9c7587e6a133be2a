"""What happens beside the training loop: a progress bar, a last validation, and a mark on whole checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from selectkd_eval.checkpoints import remove_old, saving, write_card


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
