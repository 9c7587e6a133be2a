"""What must not happen inside a timed stretch? Garbage collection, and work that a GPU still has from before."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def quiet(device: torch.device) -> Iterator[None]:
    """Neither of the two within this block."""
    gc.collect(0)
    enabled = gc.isenabled()
    gc.disable()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    try:
        yield
    finally:
        if enabled:
            gc.enable()
