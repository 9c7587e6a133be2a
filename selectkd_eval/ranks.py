"""Which of how many processes is this, and what do they share? As the launcher says, before torch's process group is
up.
"""

from __future__ import annotations

import os
from typing import NamedTuple


class Place(NamedTuple):
    """This process's number, and how many were launched together (accelerate, torchrun)."""

    rank: int
    ranks: int


def launched() -> Place:
    """What RANK and WORLD_SIZE say; alone without them."""
    return Place(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def sharded() -> bool:
    """Whether the launcher asks for a student whose weights are spread over the processes: FSDP, or DeepSpeed's third
    stage.
    """
    if launched().ranks == 1:
        return False
    zero = os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" or (
        zero and os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "") == "3"
    )
