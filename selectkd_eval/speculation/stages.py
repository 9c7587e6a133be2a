"""How long does a run spend in drafting, verifying, accepting and cropping?

Marks are set inside the decoding loop and read after it: a reading of the clock on the CPU, a CUDA event on a GPU,
which is recorded in the stream and makes nobody wait. What was between two marks is the stage of the second.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from selectkd_eval.speculation.engine import Decoded

STAGES = ("draft", "verify", "accept", "crop")


class Stages:
    """Marks of one run; the first is set when it is made."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.names: list[str] = ["start"]
        self.marks: list[Any] = []
        self._now = self._event if device.type == "cuda" else time.perf_counter
        self.marks.append(self._now())

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def mark(self, stage: str) -> None:
        """The stage ends here."""
        self.marks.append(self._now())
        self.names.append(stage)

    def fill(self, run: Decoded) -> Decoded:
        """Write ``prefill_s``, ``decode_s`` (everything after the prefill) and the stages' ``*_s`` into the run."""
        if self.device.type == "cuda":
            self.marks[-1].synchronize()
            gaps = [a.elapsed_time(b) / 1000 for a, b in zip(self.marks, self.marks[1:], strict=False)]
        else:
            gaps = [b - a for a, b in zip(self.marks, self.marks[1:], strict=False)]
        total = dict.fromkeys(("prefill", *STAGES, "end"), 0.0)
        for stage, gap in zip(self.names[1:], gaps, strict=True):
            total[stage] += gap
        run.prefill_s, run.decode_s = total["prefill"], sum(total.values()) - total["prefill"]
        run.draft_s, run.verify_s, run.accept_s, run.crop_s = (total[stage] for stage in STAGES)
        return run
