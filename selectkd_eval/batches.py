"""How do texts become tensors? One update's examples, cut into micro-batches of similar length, padded or packed.

Micro-batches are cut by length after the whole update has been gathered: the update holds the same texts either way and
its gradient is the same sum, so sorting costs nothing and saves padding. Packed, the texts of a micro-batch stand one
after the other in a single row with positions that begin again at 0, which flash attention reads without any padding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from selectkd_eval.objective import SOURCES
from selectkd_eval.token_stats import Rows


@dataclass(frozen=True)
class Example:
    """One tokenised text: ids, which of them are the response, and the prompt's hash.

    `index`: its place in the training set, -1 for text written during training. `source`: who wrote the response.
    `shifts`: the stress test's, per position.
    """

    ids: list[int]
    response: list[bool]
    prompt: str
    index: int = -1
    source: str = "dataset"
    shifts: list[int] | None = None

    @property
    def prompt_ids(self) -> list[int]:
        """The tokens before the response."""
        return self.ids[: self.response.index(True)] if True in self.response else self.ids

    def answered(self, response: Sequence[int], source: str) -> Example:
        """The same prompt with another response."""
        before = self.prompt_ids
        mask = [False] * len(before) + [True] * len(response)
        return replace(self, ids=[*before, *response], response=mask, index=-1, source=source, shifts=None)


class Examples(Dataset[Example]):
    """A list of examples as torch wants it."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


def micro_batches(examples: Sequence[Example], passes: int) -> list[list[Example]]:
    """The examples of an update in `passes` groups of similar length, the longest first (memory runs out at once or not
    at all). Groups differ by at most one example.
    """
    ordered = sorted(examples, key=lambda example: (-len(example.ids), example.prompt, example.source))
    size, more = divmod(len(ordered), passes)
    groups, start = [], 0
    for group in range(passes):
        stop = start + size + (group < more)
        groups.append(ordered[start:stop])
        start = stop
    return groups


def tensors(examples: Sequence[Example], pad: int, packed: bool = False) -> dict[str, Tensor]:
    """One micro-batch: `input_ids`, `response_mask`, `segment` (number of the sequence) as ``(B, T)``, and per sequence
    ``(S,)``: `index`, `source` and `key` (63 bits of the prompt's hash).

    Padded on the right with one row per sequence, or packed: one row, with `position_ids`. The first token of a
    sequence is never a response: nothing stands before it to predict it.
    """
    numbered = list(enumerate(examples))
    lines = [numbered] if packed else [[pair] for pair in numbered]
    longest = max(sum(len(e.ids) for _, e in line) for line in lines)

    def column(values: Callable[[int, Example], Iterable[int]], fill: int) -> Tensor:
        filled = [[int(v) for n, e in line for v in values(n, e)] for line in lines]
        return torch.tensor([line + [fill] * (longest - len(line)) for line in filled])

    batch = {
        "input_ids": column(lambda _, e: e.ids, pad),
        "response_mask": column(lambda _, e: [False, *e.response[1:]], 0).bool(),
        "segment": column(lambda n, e: [n] * len(e.ids), 0),
        "index": torch.tensor([e.index for e in examples]),
        "source": torch.tensor([SOURCES.index(e.source) for e in examples]),
        "key": torch.tensor([int(e.prompt, 16) >> 1 for e in examples]),
    }
    if packed:
        batch["position_ids"] = column(lambda _, e: range(len(e.ids)), 0)
    if any(e.shifts for e in examples):
        batch["shifts"] = column(lambda _, e: e.shifts or [0] * len(e.ids), 0)
    return batch


def rows_of_batch(batch: Mapping[str, Tensor], uniform: Tensor | None = None) -> Rows:
    """What the loss knows of the N response tokens, in the order of ``response_mask[:, 1:].nonzero()``."""
    kept = batch["response_mask"][:, 1:]
    sequence = batch["segment"][:, 1:][kept]
    return Rows(
        targets=batch["input_ids"][:, 1:][kept],
        sequence=sequence,
        lengths=torch.bincount(sequence, minlength=len(batch["key"])),
        source=batch["source"][sequence],
        uniform=uniform,
        shifts=batch["shifts"][:, 1:][kept] if "shifts" in batch else None,
    )


def draws(seed: int, step: int, batch: Mapping[str, Tensor]) -> Tensor:
    """One uniform number per response token of a micro-batch, ``(N,)``: sampled Spec-k's coins.

    Every text has its own stream for every update, whatever stands beside it in the batch and on whichever rank.
    """
    counts = torch.bincount(batch["segment"][:, 1:][batch["response_mask"][:, 1:]], minlength=len(batch["key"]))
    keys = zip(batch["key"].tolist(), batch["source"].tolist(), counts.tolist(), strict=True)
    return torch.cat([stream(seed, step, key, source, count) for key, source, count in keys])


def stream(seed: int, step: int, key: int, source: int, count: int) -> Tensor:
    """`count` uniform numbers of one text in one update."""
    digest = hashlib.sha256(f"{seed} {step} {key} {source}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.rand(count, generator=generator, dtype=torch.float64)
