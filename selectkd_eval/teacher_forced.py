"""What do models say at every position of a fixed text? Held-out batches and their log-probabilities.

The measuring side's one way from text to ``log p`` and ``log q``: both models read the same tokens (teacher
forcing), only response positions are kept, and both heads are cut to the vocabulary they share and normalised
over it. Training has its own collator; here nothing is shuffled, cut to a budget or dropped, so that two
students always see the same tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selectkd_eval.errors import InputError
from selectkd_eval.prompts import PromptSet, encode_example

MAX_LENGTH = 1024


@dataclass(frozen=True)
class Example:
    """One held-out sequence: its key in a record, token ids, and which of them are the response."""

    key: str
    ids: tuple[int, ...]
    response: tuple[bool, ...]


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences on a device. ``row`` and ``position`` (both ``(N,)``) point at the logits that
    predict response tokens, sequence after sequence, and ``targets`` are those tokens.
    """

    keys: tuple[str, ...]
    ids: Tensor
    attention: Tensor
    row: Tensor
    position: Tensor
    targets: Tensor


def encode(tokenizer: Any, chosen: PromptSet, *models: Any) -> list[Example]:
    """Prompts and their answers as token ids, no longer than any of the models allows.

    Raises InputError when the set has prompts without answers or when no response token is left.
    """
    limits = [getattr(model.config, "max_position_embeddings", None) or MAX_LENGTH for model in models]
    examples = []
    seen: dict[str, int] = {}
    for prompt in chosen.prompts:
        if prompt.answer is None:
            raise InputError(
                f"{chosen.name} has prompts without answers, and held-out text needs both: give a set with answers, "
                f"or the record of an `answer` run"
            )
        ids, response = encode_example(tokenizer, prompt.text, prompt.answer, min([MAX_LENGTH, *limits]))
        if not any(response[1:]):
            continue
        repeated = seen.get(prompt.id, 0)
        seen[prompt.id] = repeated + 1
        key = prompt.id if not repeated else f"{prompt.id}.{repeated}"
        examples.append(Example(key, tuple(ids), tuple(response)))
    if not examples:
        raise InputError(f"{chosen.name} has no response token to measure on: give prompts with answers")
    return examples


def batches(examples: Sequence[Example], size: int, pad: int, device: str | torch.device) -> Iterator[Batch]:
    """Batches of similar lengths, always the same ones for the same examples."""
    ordered = sorted(examples, key=lambda example: (len(example.ids), example.key))
    for start in range(0, len(ordered), size):
        yield _batch(ordered[start : start + size], pad, device)


def digest(examples: Sequence[Example]) -> str:
    """sha256 of the token ids and response masks, independent of how they are batched."""
    result = hashlib.sha256()
    for example in examples:
        result.update(repr((example.ids, tuple(map(int, example.response)))).encode())
    return result.hexdigest()


@torch.inference_mode()
def log_probs(model: Any, batch: Batch, vocabulary: int) -> Tensor:
    """``(N, vocabulary)`` fp32 log-probabilities of the tokens that follow, at the batch's response
    positions.
    """
    used, place = batch.position.unique(return_inverse=True)
    logits = model(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False, logits_to_keep=used).logits
    return torch.log_softmax(logits[batch.row, place, :vocabulary].float(), dim=-1)


def per_sequence(values: Tensor, batch: Batch) -> Tensor:
    """Sums over each sequence's response positions: ``(N,)`` to ``(sequences,)``, in fp64."""
    sums = torch.zeros(len(batch.keys), dtype=torch.float64, device=values.device)
    return sums.index_add_(0, batch.row, values.double())


def _batch(examples: Sequence[Example], pad: int, device: str | torch.device) -> Batch:
    longest = max(len(example.ids) for example in examples)
    ids = torch.full((len(examples), longest), pad)
    attention = torch.zeros_like(ids)
    response = torch.zeros_like(ids, dtype=torch.bool)
    for index, example in enumerate(examples):
        length = len(example.ids)
        ids[index, :length] = torch.tensor(example.ids)
        attention[index, :length] = 1
        response[index, :length] = torch.tensor(example.response)
    row, position = response[:, 1:].nonzero(as_tuple=True)  # logits at t predict token t + 1
    targets = ids[row, position + 1]
    tensors = (tensor.to(device) for tensor in (ids, attention, row, position, targets))
    return Batch(tuple(example.key for example in examples), *tensors)
