"""Which texts does update u of epoch e learn from, on this rank?

The order of an epoch depends on the seed and the epoch alone, and an update is the same set of texts whatever the
number of ranks: each rank takes its share of it. The last update of an epoch holds what is left; nothing is repeated to
fill it, as a distributed sampler would, so a rank may have no text in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Sampler

from selectkd_eval.batches import Example


class Updates(Sampler[list[int]]):
    """The indices of each update's texts on one rank; `size` counts the texts of an update over all ranks."""

    def __init__(self, texts: int, size: int, *, seed: int, rank: int = 0, ranks: int = 1) -> None:
        self.texts = texts
        self.size = size
        self.seed = seed
        self.rank = rank
        self.ranks = ranks
        self.epoch = 0

    def __len__(self) -> int:
        return math.ceil(self.texts / self.size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.texts, generator=generator).tolist()
        for start in range(0, self.texts, self.size):
            yield order[start : start + self.size][self.rank :: self.ranks]

    def set_epoch(self, epoch: int) -> None:
        """Shuffle anew: the Trainer says where it is."""
        self.epoch = epoch


class UpdateLoader(DataLoader[Sequence[Example]]):
    """One item per update: the list of its examples on this rank."""

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to the order."""
        assert isinstance(self.batch_sampler, Updates)
        self.batch_sampler.set_epoch(epoch)
