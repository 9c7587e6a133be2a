"""From where can a killed training go on? Whole checkpoints, the card that marks them, and the space they
need.

The Trainer writes a checkpoint file by file. The training card (`selectkd.json`) is put in last and in one
move, so a directory without it was cut off and is never resumed. The same card in the student's directory
says how it was made.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from selectkd_eval import environment
from selectkd_eval.errors import SetupError
from selectkd_eval.pair import TRAINING_CARD
from selectkd_eval.verbs import TrainOptions


class Resume(NamedTuple):
    """`last`: the checkpoint to go on from; `result`: instead, the one to load because training had already
    stopped.
    """

    last: Path | None = None
    result: Path | None = None


def find_resume(checkpoints: Path, tidy: bool = True) -> Resume:
    """The newest whole checkpoint below a directory; `tidy` removes those that were cut off while being written."""
    found = sorted(checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    whole = [path for path in found if (path / TRAINING_CARD).exists()]
    if tidy:
        for path in found:
            if path not in whole:
                shutil.rmtree(path)
    if not whole:
        return Resume()
    state = json.loads((whole[-1] / "trainer_state.json").read_text())
    if not state["stateful_callbacks"]["TrainerControl"]["args"]["should_training_stop"]:
        return Resume(last=whole[-1])
    # With early stopping the result is the best checkpoint, not the last.
    best = state.get("best_model_checkpoint")
    return Resume(result=checkpoints / Path(best).name if best else whole[-1])


def write_card(directory: Path, card: dict[str, Any]) -> None:
    """Put the training card into a model's directory, whole or not at all."""
    unfinished = directory / f"{TRAINING_CARD}.part"
    unfinished.write_text(json.dumps(card, indent=1, sort_keys=True) + "\n")
    unfinished.replace(directory / TRAINING_CARD)


def require_space(model: Any, save: Path, options: TrainOptions) -> None:
    """Refuse before training, not at the first checkpoint: fp32 weights, and two moments per trained
    weight.
    """
    weights = 4 * sum(p.numel() for p in model.parameters())
    checkpoint = 0 if options.lora_rank else 3 * weights
    kept = options.keep_checkpoints or options.steps // max(options.save_every, 1)
    needed = weights + (kept + 1) * checkpoint
    free = environment.free_bytes(save)
    if free < needed:
        raise SetupError(
            f"the student and its checkpoints need about {needed / 1e9:.1f} GB, but {save} has {free / 1e9:.1f} GB: "
            "free some space, give another --save, or keep fewer checkpoints (--keep-checkpoints 1)"
        )
