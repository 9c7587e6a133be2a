"""Which of how many processes is this? As the launcher says, before torch's process group is up."""

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
