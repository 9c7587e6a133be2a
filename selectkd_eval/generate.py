"""What does a model write? Batched decoding whose draws do not depend on the batch.

Every prompt has its own seed and its own stream of uniform numbers, one per token, turned into tokens by the
inverse of the cumulative distribution. So the text of a prompt is the same whatever stands beside it in the
batch, whatever --limit was given and wherever a run was resumed (up to rounding in the matrix products).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from selectkd_eval.prompts import prompt_ids
from selectkd_eval.sampling import GREEDY, Sampling, pick, uniforms

Finish = Literal["eos", "stop", "length"]


class Generation(NamedTuple):
    """Raw decoded text (leading space kept, special tokens gone), its token ids, and why it ended."""

    text: str
    tokens: list[int]
    finish: Finish


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
    sampling: Sampling = GREEDY,
    seeds: Sequence[int] | None = None,
    batch_size: int = 64,
    stop: Sequence[str] = (),
) -> Iterator[tuple[int, Generation]]:
    """Yield (index, Generation) batch by batch, prompts of similar length together.

    `seeds` has one entry per prompt (needed when sampling). A text ends before the first of the `stop` strings.
    """
    yield from continue_ids(
        model,
        tokenizer,
        [prompt_ids(tokenizer, prompt) for prompt in prompts],
        limits=[max_new_tokens] * len(prompts),
        sampling=sampling,
        seeds=seeds,
        batch_size=batch_size,
        stop=stop,
    )


def continue_ids(
    model: Any,
    tokenizer: Any,
    ids: Sequence[Sequence[int]],
    *,
    limits: Sequence[int],
    sampling: Sampling = GREEDY,
    seeds: Sequence[int] | None = None,
    batch_size: int = 64,
    stop: Sequence[str] = (),
    vocabulary: int | None = None,
) -> Iterator[tuple[int, Generation]]:
    """As `stream`, from token ids. `limits` holds each row's largest number of new tokens, at least 1; tokens come from
    the first `vocabulary` entries of the model's head (all of them by default).
    """
    for chosen in by_length(ids, batch_size):
        uniform = None
        if sampling.temperature > 0:
            uniform = torch.stack([uniforms((seeds or [0] * len(ids))[i], max(limits)) for i in chosen])
        batch = Prefixes(model, [ids[i] for i in chosen], tokenizer.pad_token_id, vocabulary)
        finished = finisher(end_tokens(model, tokenizer), tokenizer, stop)
        outputs = _decode(batch, finished, [limits[i] for i in chosen], sampling, uniform)
        yield from zip(chosen, outputs, strict=True)


def by_length(ids: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """The rows' indices in batches of similar length, the shortest first."""
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


class Prefixes:
    """Texts under way and the model's key-value cache for them: padded on the left, rows may leave."""

    def __init__(self, model: Any, ids: Sequence[Sequence[int]], pad: int, vocabulary: int | None = None) -> None:
        longest, device = max(map(len, ids)), model.device
        self.model, self.vocabulary = model, vocabulary
        self.tokens = torch.full((len(ids), longest), pad, device=device)
        self.mask = torch.zeros((len(ids), longest), dtype=torch.long, device=device)
        for row, sequence in enumerate(ids):
            self.tokens[row, longest - len(sequence) :] = torch.tensor(list(sequence), device=device)
            self.mask[row, longest - len(sequence) :] = 1
        self.position = (self.mask.cumsum(1) - 1).clamp(min=0)
        self.cache: Any = None
        self._last_only = {"logits_to_keep": 1} if _slices_logits(model) else {}

    def logits(self) -> Tensor:
        """Next-token logits ``(B, V)`` in fp32 after all tokens so far; each token is fed to the model once."""
        out = self.model(
            self.tokens,
            attention_mask=self.mask,
            position_ids=self.position,
            past_key_values=self.cache,
            use_cache=True,
            **self._last_only,
        )
        self.cache = out.past_key_values
        return out.logits[:, -1, : self.vocabulary].float()

    def append(self, tokens: Tensor, keep: Sequence[int]) -> None:
        """Go on with one more token ``(B,)`` per row, in the rows `keep` alone: finished rows leave the batch, because
        the longest answer would otherwise be paid for by every row.
        """
        if len(keep) < len(tokens):
            index = torch.tensor(list(keep), device=tokens.device)
            self.cache.batch_select_indices(index)
            self.mask, self.position, tokens = self.mask[index], self.position[index], tokens[index]
        self.tokens, self.position = tokens[:, None], self.position[:, -1:] + 1
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)


# Not inference mode: a model that makes buffers as its text grows must still be trainable afterwards.
@torch.no_grad()
def _decode(
    batch: Prefixes,
    finished: Callable[[list[int], int], Generation | None],
    limits: Sequence[int],
    sampling: Sampling,
    uniform: Tensor | None,
) -> list[Generation]:
    written: list[list[int]] = [[] for _ in limits]
    results: dict[int, Generation] = {}
    active = list(range(len(limits)))
    for step in range(max(limits)):
        logits = batch.logits()
        chosen = pick(logits, sampling, None if uniform is None else uniform[active, step].to(logits.device))
        for row, token in zip(active, chosen.tolist(), strict=True):
            written[row].append(token)
            if result := finished(written[row], limits[row]):
                results[row] = result
        keep = [at for at, row in enumerate(active) if row not in results]
        if not keep:
            break
        batch.append(chosen, keep)
        active = [active[at] for at in keep]
    return [results[row] for row in range(len(limits))]


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer: the tokenizer's, and those the model was published with (Gemma-2 ends its turns with
    another token than its texts).
    """
    configured = model.generation_config.eos_token_id if model.generation_config else None
    ids = configured if isinstance(configured, list | tuple) else [configured]
    return frozenset(int(token) for token in (*ids, tokenizer.eos_token_id) if token is not None)


def finisher(
    ends: frozenset[int], tokenizer: Any, stop: Sequence[str] = ()
) -> Callable[[list[int], int], Generation | None]:
    """Tells of the tokens so far and their largest number whether the text has ended, and how."""

    def finished(tokens: list[int], limit: int) -> Generation | None:
        if tokens[-1] in ends:
            return Generation(tokenizer.decode(tokens, skip_special_tokens=True), tokens, "eos")
        if stop:
            # A stop string can end only in the newest tokens; the full text is decoded once one is seen there.
            tail = tokenizer.decode(tokens[-16:])
            if any(word in tail for word in stop):
                text = tokenizer.decode(tokens, skip_special_tokens=True)
                cut = min(at for word in stop if (at := text.find(word)) >= 0)
                return Generation(text[:cut], tokens, "stop")
        if len(tokens) == limit:
            return Generation(tokenizer.decode(tokens, skip_special_tokens=True), tokens, "length")
        return None

    return finished


def _slices_logits(model: Any) -> bool:
    """Whether the head can be run at the last position only: at 150,000 entries a prompt's logits fill a GPU."""
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(type(bare).forward).parameters
