"""What does a model write? Batched decoding whose draws do not depend on the batch.

Every prompt has its own seed and its own stream of uniform numbers, one per token, turned into tokens by the
inverse of the cumulative distribution. So the text of a prompt is the same whatever stands beside it in the
batch, whatever --limit was given and wherever a run was resumed (up to rounding in the matrix products).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from selectkd_eval.prompts import prompt_ids

Finish = Literal["eos", "stop", "length"]


class Generation(NamedTuple):
    """Raw decoded text (leading space kept, special tokens gone), its token ids, and why it ended."""

    text: str
    tokens: list[int]
    finish: Finish


class Sampling(NamedTuple):
    """Decoding rule. Temperature 0 is greedy; ties go to the lowest token id."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0


def generate(model: Any, tokenizer: Any, prompts: Sequence[str], **rule: Any) -> list[Generation]:
    """All continuations in the order of the prompts; see `stream` for the keywords."""
    done = dict(stream(model, tokenizer, prompts, **rule))
    return [done[index] for index in range(len(prompts))]


def stream(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    sampling: Sampling = Sampling(),  # noqa: B008 - a NamedTuple is immutable
    seeds: Sequence[int] | None = None,
    batch_size: int = 64,
    stop: Sequence[str] = (),
) -> Iterator[tuple[int, Generation]]:
    """Yield (index, Generation) batch by batch, prompts of similar length together.

    `seeds` has one entry per prompt (needed when sampling). A text ends before the first of the `stop` strings.
    """
    ids = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        uniform = None
        if sampling.temperature > 0:
            uniform = torch.stack([_uniform((seeds or [0] * len(ids))[i], max_new_tokens) for i in chosen])
        outputs = _decode(model, tokenizer, [ids[i] for i in chosen], max_new_tokens, sampling, uniform, stop)
        yield from zip(chosen, outputs, strict=True)


@torch.inference_mode()
def _decode(
    model: Any,
    tokenizer: Any,
    ids: list[list[int]],
    max_new_tokens: int,
    sampling: Sampling,
    uniform: Tensor | None,
    stop: Sequence[str],
) -> list[Generation]:
    longest, device = max(map(len, ids)), model.device
    tokens = torch.full((len(ids), longest), tokenizer.pad_token_id, device=device)
    mask = torch.zeros((len(ids), longest), dtype=torch.long, device=device)
    for row, sequence in enumerate(ids):
        tokens[row, longest - len(sequence) :] = torch.tensor(sequence, device=device)
        mask[row, longest - len(sequence) :] = 1
    written: list[list[int]] = [[] for _ in ids]
    results: dict[int, Generation] = {}
    active = list(range(len(ids)))
    finished = _finisher(end_tokens(model, tokenizer), tokenizer, stop, max_new_tokens)
    cache = None
    position = (mask.cumsum(1) - 1).clamp(min=0)
    for step in range(max_new_tokens):
        out = model(tokens, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        draw = None if uniform is None else uniform[active, step].to(device)
        chosen = pick(out.logits[:, -1].float(), sampling, draw)
        for row, token in zip(active, chosen.tolist(), strict=True):
            written[row].append(token)
            if result := finished(written[row]):
                results[row] = result
        keep = [at for at, row in enumerate(active) if row not in results]
        if not keep:
            break
        if len(keep) < len(active):
            # Finished rows leave the batch: the longest answer would otherwise be paid for by every row.
            index = torch.tensor(keep, device=device)
            cache.batch_select_indices(index)
            mask, position, chosen = mask[index], position[index], chosen[index]
            active = [active[at] for at in keep]
        tokens, position = chosen[:, None], position[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)
    return [results[row] for row in range(len(ids))]


def pick(logits: Tensor, sampling: Sampling, uniform: Tensor | None) -> Tensor:
    """One token per row of logits (B, V): the argmax, or where the cumulative mass passes `uniform` (B,)."""
    if sampling.temperature <= 0 or uniform is None:
        return logits.argmax(dim=-1)
    probabilities, order = torch.softmax(logits / sampling.temperature, dim=-1).sort(
        dim=-1, descending=True, stable=True
    )
    if sampling.top_k:
        probabilities[:, sampling.top_k :] = 0
    if sampling.top_p < 1:
        # The nucleus is the smallest head of the list with at least top_p of what top_k left; it is never empty.
        share = probabilities / probabilities.sum(-1, keepdim=True)
        probabilities = probabilities.masked_fill(share.cumsum(-1) - share >= sampling.top_p, 0)
    mass = probabilities.double().cumsum(-1)
    place = torch.searchsorted(mass, uniform.double()[:, None] * mass[:, -1:], right=True)
    last = (probabilities > 0).sum(-1, keepdim=True) - 1  # a draw that rounds up to 1 must not leave the nucleus
    return order.gather(1, place.minimum(last))[:, 0]


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer: the tokenizer's, and those the model was published with (Gemma-2 ends its turns with
    another token than its texts).
    """
    configured = model.generation_config.eos_token_id if model.generation_config else None
    ids = configured if isinstance(configured, list | tuple) else [configured]
    return frozenset(int(token) for token in (*ids, tokenizer.eos_token_id) if token is not None)


def _finisher(
    ends: frozenset[int], tokenizer: Any, stop: Sequence[str], max_new_tokens: int
) -> Callable[[list[int]], Generation | None]:
    def finished(tokens: list[int]) -> Generation | None:
        if tokens[-1] in ends:
            return Generation(tokenizer.decode(tokens, skip_special_tokens=True), tokens, "eos")
        if stop:
            # A stop string can end only in the newest tokens; the full text is decoded once one is seen there.
            tail = tokenizer.decode(tokens[-16:])
            if any(word in tail for word in stop):
                text = tokenizer.decode(tokens, skip_special_tokens=True)
                cut = min(at for word in stop if (at := text.find(word)) >= 0)
                return Generation(text[:cut], tokens, "stop")
        if len(tokens) == max_new_tokens:
            return Generation(tokenizer.decode(tokens, skip_special_tokens=True), tokens, "length")
        return None

    return finished


def _uniform(seed: int, length: int) -> Tensor:
    return torch.rand(length, generator=torch.Generator().manual_seed(seed))
