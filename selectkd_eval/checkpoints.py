"""From where can a killed training go on? Whole checkpoints, the card that marks them, and the space they
need.

The Trainer writes a checkpoint file by file. The training card (`selectkd.json`) is put in last and in one
move, and taken out first when an old checkpoint is removed, so a directory without it was cut off and is never
resumed. The card also says which run it belongs to: checkpoints of another recipe, seed or text are refused. The
same card in the student's directory says how it was made.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError

from selectkd_eval import environment
from selectkd_eval.errors import InputError, SetupError
from selectkd_eval.pair import TRAINING_CARD
from selectkd_eval.verbs import TrainOptions

# How a full disk, a full quota and a limit on the size of files show themselves; torch's own writer has no errno.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_SPACE_SIGNS = (*(f"os error {number}" for number in _NO_SPACE), "inline_container")


class Resume(NamedTuple):
    """`last`: the checkpoint to go on from; `result`: instead, the one to load because training had already
    stopped.
    """

    last: Path | None = None
    result: Path | None = None


def find_resume(save: Path, card: dict[str, Any], done: Container[str], tidy: bool = True) -> Resume:
    """The newest whole checkpoint in the directory of the run that `card` describes.

    `done`: the keys of its record. `tidy` removes checkpoints that were cut off while being written; one process does
    that. Raises InputError when the directory belongs to another run, or when updates that a checkpoint holds are
    missing from the record.
    """
    found = _by_step(save)
    whole = [path for path in found if (path / TRAINING_CARD).exists()]
    for path in (*whole, save):
        _require_same_run(path, card)
    if tidy:
        for path in found:
            if path not in whole:
                shutil.rmtree(path)
    if not whole:
        return Resume()
    missing = [step for step in range(1, _step(whole[-1]) + 1) if f"step/{step}" not in done]
    if tidy and missing:
        raise InputError(
            f"{save} holds a checkpoint of update {_step(whole[-1])}, but its record lacks {len(missing)} of the "
            f"updates up to there: put the record back, or delete {save} to train again"
        )
    state = json.loads((whole[-1] / "trainer_state.json").read_text())
    if not state["stateful_callbacks"]["TrainerControl"]["args"]["should_training_stop"]:
        return Resume(last=whole[-1])
    # With early stopping the result is the best checkpoint, not the last.
    best = state.get("best_model_checkpoint")
    return Resume(result=save / Path(best).name if best else whole[-1])


def remove_old(save: Path, keep: int, best: str | None) -> None:
    """Remove the oldest checkpoints beyond `keep` (0 keeps all), but never the newest or the best one.

    Called once the newest has its card: whenever a run is killed, a whole checkpoint is there.
    """
    found = _by_step(save)
    protected = {found[-1].name, Path(best).name if best else ""}
    excess = len(found) - max(keep, len(protected - {""})) if keep else 0
    for path in [path for path in found if path.name not in protected][: max(excess, 0)]:
        (path / TRAINING_CARD).unlink(missing_ok=True)
        shutil.rmtree(path)


@contextlib.contextmanager
def saving(save: Path) -> Iterator[None]:
    """Turn a disk that fills up while a model is written into one sentence."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        full = error.errno in _NO_SPACE if isinstance(error, OSError) else any(s in str(error) for s in _NO_SPACE_SIGNS)
        if not full:
            raise
        raise SetupError(
            f"no space left while saving in {save}: the record and the checkpoints before this one are safe; "
            "free some space and run the same command again"
        ) from None


def write_card(directory: Path, card: dict[str, Any]) -> None:
    """Put the training card into a model's directory, whole or not at all."""
    unfinished = directory / f"{TRAINING_CARD}.part"
    unfinished.write_text(json.dumps(card, indent=1, sort_keys=True) + "\n")
    unfinished.replace(directory / TRAINING_CARD)


def require_writable(save: Path) -> None:
    """Make the student's directory, or refuse before a record is begun that names it."""
    try:
        save.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(save, os.W_OK) else "it is not writable"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise InputError(f"cannot save the student in {save}: {reason}; give another --save")


def require_space(model: Any, save: Path, steps: int, options: TrainOptions) -> None:
    """Refuse before training, not at the first checkpoint: fp32 weights, and two moments per trained
    weight.
    """
    weights = 4 * sum(p.numel() for p in model.parameters())
    checkpoint = 0 if options.lora_rank else 3 * weights
    every = (options.eval_every or steps) if options.patience else max(options.save_every, 1)
    needed = weights + ((options.keep_checkpoints or steps // every) + 1) * checkpoint
    # What an earlier part of this run has written is part of what it needs.
    free = environment.free_bytes(save) + sum(file.stat().st_size for file in save.rglob("*") if file.is_file())
    if free < needed:
        raise SetupError(
            f"the student and its checkpoints need about {needed / 1e9:.1f} GB, but {save} has {free / 1e9:.1f} GB: "
            "free some space, give another --save, or keep fewer checkpoints (--keep-checkpoints 1)"
        )


def _by_step(save: Path) -> list[Path]:
    return sorted((path for path in save.glob("checkpoint-*") if path.is_dir()), key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _require_same_run(directory: Path, card: dict[str, Any]) -> None:
    if not (directory / TRAINING_CARD).exists():
        return
    there, here = json.loads((directory / TRAINING_CARD).read_text()), json.loads(json.dumps(card))
    different = sorted(key for key in here if here[key] != there.get(key))
    if different:
        raise InputError(
            f"{directory} belongs to another run ({', '.join(different)} differ): give another --save, or delete it"
        )
