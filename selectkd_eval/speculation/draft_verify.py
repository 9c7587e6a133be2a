"""How many of a draft's tokens does the target accept, and is the text still the target's own?

Draft-and-verify decoding (Leviathan et al., arXiv 2211.17192; the paper's Table 5) at batch 1 with both KV
caches, and plain decoding from the same code, so that the two differ by nothing but the draft. Greedy output
equals plain decoding token by token; sampled output has the target's distribution. The counters are exact:
one entry per step, no estimate.

The accept rule is deliberately all there is inside the loop. It times itself but does not compare, average or
report (``speedup.py`` and ``measures.py`` do), and it ignores end tokens: every run does the same work.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from selectkd_eval.errors import InputError


@dataclass
class Decoded:
    """Tokens of one run, and what happened in each verification step (one target call after the prefill).

    ``drafted[s]`` tokens were proposed in step s and ``accepted[s]`` of them kept, so the step emitted
    ``accepted[s] + 1`` and tested ``min(accepted[s] + 1, drafted[s])``. ``alpha_sum`` sums ``sum_v min(p,
    q)`` over the tested positions and ``alpha_var`` sums ``a (1 - a)`` of the same numbers; in greedy
    decoding both distributions are one token, so the first is the number accepted and the second 0. Times are
    wall seconds; on a GPU ``draft_s`` is the time to launch, not to run.
    """

    tokens: list[int]
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    alpha_sum: float = 0.0
    alpha_var: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    draft_s: float = 0.0

    @property
    def steps(self) -> int:
        """Target calls after the prefill, which gives the first token: tokens - 1 = steps + accepted."""
        return len(self.drafted)

    @property
    def tested(self) -> int:
        """Draft tokens the accept rule looked at: those before the first rejection, and the rejected one."""
        return sum(min(k + 1, d) for k, d in zip(self.accepted, self.drafted, strict=True))


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen from logits: greedily at temperature 0, else by a draw from the generator."""

    temperature: float = 0.0
    generator: torch.Generator | None = None

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def probabilities(self, logits: Tensor) -> Tensor:
        """``(n, V)`` logits to fp32 probabilities at this temperature."""
        return torch.softmax(logits.float() / self.temperature, dim=-1)

    def draw(self, probabilities: Tensor) -> Tensor:
        """One token per row, ``(n, 1)``."""
        return torch.multinomial(probabilities, 1, generator=self.generator)

    def pick(self, logits: Tensor) -> Tensor:
        """The next token ``(1, 1)`` after logits ``(1, V)``."""
        return logits.argmax(-1, keepdim=True) if self.greedy else self.draw(self.probabilities(logits))


GREEDY = Sampling()


class Cached:
    """A model with its key-value cache at batch 1, and logits cut to the vocabulary both models share."""

    def __init__(self, model: Any, vocabulary: int) -> None:
        self.model = model
        self.vocabulary = vocabulary
        self.cache = DynamicCache()
        self.length = 0

    def feed(self, ids: Tensor, keep: int = 0) -> Tensor:
        """Logits ``(n, vocabulary)`` after the last ``keep`` of the ids ``(1, n)``; 0 keeps all."""
        output = self.model(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=keep)
        self.length += ids.shape[1]
        logits: Tensor = output.logits[0]
        return logits if logits.shape[-1] == self.vocabulary else logits[:, : self.vocabulary]

    def rewind(self, length: int) -> None:
        """Forget everything after the first ``length`` positions."""
        if self.length > length:
            self.cache.crop(length - self.length)  # transformers 5 takes the number to remove, as a negative
            self.length = length


def plain(
    target: Any, prompt: Sequence[int], *, new_tokens: int, vocabulary: int, sampling: Sampling = GREEDY
) -> Decoded:
    """Autoregressive decoding of exactly ``new_tokens`` tokens: the baseline."""
    _check(target, prompt, new_tokens)
    with torch.inference_mode():
        started = time.perf_counter()
        model = Cached(target, vocabulary)
        token = sampling.pick(model.feed(_row(prompt, target), keep=1))
        emitted = [token]
        token.item()  # on a GPU the prefill has ended only when its token is here
        prefilled = time.perf_counter()
        for _ in range(new_tokens - 1):
            token = sampling.pick(model.feed(token))
            emitted.append(token)
        tokens = torch.cat(emitted, dim=1)[0].tolist()
        ended = time.perf_counter()
    steps = new_tokens - 1
    return Decoded(tokens, [0] * steps, [0] * steps, prefill_s=prefilled - started, decode_s=ended - prefilled)


def speculative(
    target: Any,
    draft: Any,
    prompt: Sequence[int],
    *,
    gamma: int,
    new_tokens: int,
    vocabulary: int,
    sampling: Sampling = GREEDY,
) -> Decoded:
    """Decoding of exactly ``new_tokens`` tokens in which ``draft`` proposes up to ``gamma`` per target call.

    Both models choose by the same ``sampling``. The last steps draft no more than can still be used, so
    ``drafted`` may sum to less than ``gamma * steps``. Raises InputError for gamma < 1 or text longer than a
    model's positions.
    """
    if gamma < 1:
        raise InputError(f"gamma is the number of tokens drafted per target call and must be at least 1, not {gamma}")
    _check(target, prompt, new_tokens)
    _check(draft, prompt, new_tokens)
    with torch.inference_mode():
        started = time.perf_counter()
        verifier, proposer = Cached(target, vocabulary), Cached(draft, vocabulary)
        ids = _row(prompt, target)
        run = Decoded([int(sampling.pick(verifier.feed(ids, keep=1)))])
        proposer.feed(ids, keep=1)
        prefilled = time.perf_counter()
        _loop(run, verifier, proposer, gamma, new_tokens, sampling)
        run.prefill_s = prefilled - started
        run.decode_s = time.perf_counter() - prefilled
    return run


def _loop(run: Decoded, target: Cached, draft: Cached, gamma: int, new_tokens: int, sampling: Sampling) -> None:
    """Step until ``new_tokens`` are there.

    ``unseen`` are the emitted tokens that the draft's cache lacks: one, or two after a step in which
    everything was accepted, because the last draft token was never fed to the draft.
    """
    device = target.model.device
    unseen = run.tokens[-1:]
    while (left := new_tokens - len(run.tokens)) > 0:
        base = target.length + 1  # tokens so far; the target's cache lacks the last one
        count = min(gamma, left - 1)
        begun = time.perf_counter()
        proposal, q = _propose(draft, torch.tensor([unseen], device=device), count, sampling)
        run.draft_s += time.perf_counter() - begun
        logits = target.feed(torch.cat((torch.tensor([run.tokens[-1:]], device=device), proposal), dim=1))
        if sampling.greedy:
            kept = _accept_greedy(logits, proposal)
        else:
            kept = _accept_sampled(run, logits, proposal, q, sampling)
        run.tokens += kept
        run.drafted.append(count)
        run.accepted.append(len(kept) - 1)
        target.rewind(base + len(kept) - 1)
        draft.rewind(base + len(kept) - 1)
        unseen = run.tokens[draft.length - base - len(kept) :]


def _propose(draft: Cached, ids: Tensor, count: int, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """``count`` draft tokens ``(1, count)`` and, when sampled, the distributions ``(count, V)`` they were
    drawn from.
    """
    tokens, rows = [ids[:, :0]], []
    for _ in range(count):
        logits = draft.feed(ids, keep=1)
        if sampling.greedy:
            ids = logits.argmax(-1, keepdim=True)
        else:
            q = sampling.probabilities(logits)
            ids = sampling.draw(q)
            rows.append(q)
        tokens.append(ids)
    return torch.cat(tokens, dim=1), torch.cat(rows) if rows else None


def _accept_greedy(logits: Tensor, proposal: Tensor) -> list[int]:
    """The target's own choices, as far as the proposal agrees with them, and the one after that."""
    chosen: list[int] = logits.argmax(-1).tolist()
    proposed: list[int] = proposal[0].tolist()
    accepted = 0
    while accepted < len(proposed) and proposed[accepted] == chosen[accepted]:
        accepted += 1
    return chosen[: accepted + 1]


def _accept_sampled(run: Decoded, logits: Tensor, proposal: Tensor, q: Tensor | None, sampling: Sampling) -> list[int]:
    """Leviathan's rule (their Algorithm 1), which leaves the target's distribution p whatever q is.

    A draw x ~ q is kept with probability ``min(1, p(x) / q(x))``. At the first refusal the token comes from
    ``norm(max(0, p - q))``; when nothing was refused, from the target's next row.
    """
    p = sampling.probabilities(logits)
    accepted, source = 0, p[-1]
    if q is not None:
        drawn = proposal[0, :, None]
        r = torch.rand(drawn.shape, generator=sampling.generator, device=p.device)
        keep: list[bool] = (r * q.gather(1, drawn) < p[:-1].gather(1, drawn))[:, 0].tolist()
        accepted = keep.index(False) if False in keep else len(keep)
        tested = min(accepted + 1, len(keep))
        overlap = torch.minimum(p[:tested], q[:tested]).sum(-1).clamp_max(1)
        run.alpha_sum += float(overlap.sum())
        run.alpha_var += float((overlap * (1 - overlap)).sum())
        if accepted < len(keep):
            residual = (p[accepted] - q[accepted]).clamp_min(0)
            # p and q equal up to rounding leave no residual: then either of them is the distribution wanted.
            source = residual if float(residual.sum()) > 0 else p[accepted]
    return [*proposal[0, :accepted].tolist(), int(sampling.draw(source))]


def _row(prompt: Sequence[int], model: Any) -> Tensor:
    return torch.tensor([list(prompt)], device=model.device)


def _check(model: Any, prompt: Sequence[int], new_tokens: int) -> None:
    limit = getattr(model.config, "max_position_embeddings", None)
    if not prompt or new_tokens < 1:
        raise InputError(f"decoding needs a prompt and at least 1 new token, got {len(prompt)} and {new_tokens}")
    if limit and len(prompt) + new_tokens > limit:
        raise InputError(
            f"a prompt of {len(prompt)} tokens and {new_tokens} new ones do not fit the model's {limit} "
            f"positions: lower --max-new-tokens or give shorter prompts"
        )
