"""Is the training well? The columns of a step's row, what it costs, and two warnings.

What users of other trainers ask for and lack: how much of the loss a gate removes (bite), where the rest of it lies (by
place in the response, on accepted or rejected tokens), how sure both models are, by what factor the gate scales the
learning rate. Two set-ups fail silently: a student so far from its teacher that the gate rejects nearly everything and
nothing is left to learn from, and a gate that removes nothing, so that the run is plain distillation.
"""

from __future__ import annotations

import resource
import sys
from typing import Any

import torch
from tqdm import tqdm

from selectkd_eval.objective import LossSpec
from selectkd_eval.token_stats import TokenStats

COLD_START = 0.3  # a first TAR below this
INERT = 0.005  # a bite below this ...
INERT_AFTER = 20  # ... over so many updates


def columns(stats: TokenStats) -> dict[str, Any]:
    """What a row says about the tokens of an update; None where a gate or a teacher is missing."""
    return {
        "tar": stats.tar,
        "tar_pooled": stats.tar_pooled,
        "alpha": stats.alpha,
        "bite": stats.bite,
        "mean_weight": stats.mean_weight,
        "accepted_loss": stats.accepted_loss,
        "loss_by_quarter": stats.loss_by_quarter,
        "teacher_entropy": stats.teacher_entropy,
        "student_entropy": stats.student_entropy,
        "own_text": stats.own_text_share,
        "tokens": int(stats.tokens),
    }


def costs(stats: TokenStats, seconds: float, device: torch.device) -> dict[str, Any]:
    """Response tokens and sequences per second of the update over all ranks, and this process's peak memory so far in
    GB (on a GPU the tensors', else all of the process).
    """
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "seconds": round(seconds, 4),
        "tokens_per_s": round(stats.tokens / seconds, 1),
        "rows_per_s": round(stats.sequences / seconds, 2),
        "peak_gb": round(peak / 1e9, 3),
    }


class Watch:
    """Looks at the first updates of a run and says once what it finds, on stderr."""

    def __init__(self) -> None:
        self.seen = TokenStats()
        self.said: list[str] = []

    def update(self, stats: TokenStats, spec: LossSpec, step: int) -> None:
        """Look at update `step` (from 1)."""
        if spec.verifier == "none" or step > INERT_AFTER:
            return
        self.seen = self.seen + stats
        if step == 1 and stats.tar is not None and stats.tar < COLD_START:
            self._say(
                f"the first TAR is {stats.tar:.2f}: the gate rejects most tokens, and a student that starts so "
                f"far from its teacher may never catch up; fine-tune it first (--recipe sft), or raise --k or --beta"
            )
        bite = self.seen.bite
        if step == INERT_AFTER and spec.selection == "" and bite is not None and bite < INERT:
            self._say(
                f"over the first {step} updates the gate removed {bite:.2%} of the loss: this is nearly plain "
                f"distillation; lower --k, or look for a text on which teacher and student differ"
            )

    def _say(self, sentence: str) -> None:
        self.said.append(sentence)
        tqdm.write(f"selectkd-eval: {sentence}", file=sys.stderr)
