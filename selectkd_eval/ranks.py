"""Which of how many processes is this, and what do they share?

`launched` and `sharded` ask the launcher, before torch's process group is up; the others ask the group.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch.distributed as dist

T = TypeVar("T")


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


def rank() -> int:
    """This process's number; 0 where there is but one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def from_all(mine: Sequence[T]) -> list[T]:
    """The ranks' lists one after the other, on every rank."""
    if world_size() == 1:
        return list(mine)
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, list(mine))
    return [item for part in parts for item in part]


def from_first(value: T) -> T:
    """The first rank's value, on every rank."""
    if world_size() == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0)
    result: T = box[0]
    return result
