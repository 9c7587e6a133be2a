"""How many of a draft's tokens does the target accept, and is the text still the target's own?

Draft-and-verify decoding (Leviathan et al., arXiv 2211.17192; the paper's Table 5) at batch 1 with both KV caches,
and plain decoding from the same code, so that the two differ by nothing but the draft. Greedy output equals plain
decoding token by token; sampled output has the target's distribution. The counters are exact: one entry per step.

The accept rule is deliberately all there is inside the loop. It times its stages but does not compare, average or
report, and it ignores end tokens: every run does the same work.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selectkd_eval.errors import InputError
from selectkd_eval.sampling import GREEDY, Sampling, draw, uniform_rows
from selectkd_eval.speculation.engine import Decoded, Request, check_length
from selectkd_eval.speculation.kv_cache import room_for
from selectkd_eval.speculation.stages import Stages
from selectkd_eval.speeds import Arm


class ReferenceEngine:
    """The engine of this project: batch 1, any two causal language models of transformers over the same tokens."""

    name = "reference"
    batches = False

    def __init__(self, target: Any, drafts: Sequence[Any], vocabulary: int) -> None:
        self.target, self.drafts, self.vocabulary = target, list(drafts), vocabulary
        self.facts = {
            "version": importlib.metadata.version("selectkd-eval"),
            "transformers": importlib.metadata.version("transformers"),
            "proposals": "sampled",
        }

    def decode(self, request: Request, arm: Arm, sampling: Sampling) -> Decoded:
        """Exactly `request.new_tokens` tokens; the draws depend on the request's seed alone.

        Raises InputError for gamma < 0, text longer than a model's positions, or a cache that cannot be rewound.
        """
        ids, new_tokens, seed = request
        same: dict[str, Any] = {"vocabulary": self.vocabulary, "sampling": sampling, "seed": seed}
        if arm.plain:
            return plain(self.target, ids, new_tokens, **same)
        return speculative(self.target, self.drafts[arm.draft], ids, new_tokens, arm.gamma, **same)

    def together(self, requests: Sequence[Request], arm: Arm, sampling: Sampling) -> list[Decoded]:
        """Refused: this engine decodes one text at a time."""
        raise InputError(
            f"the reference engine decodes one text at a time, not {len(requests)} together: use --engine vllm"
        )

    def close(self) -> None:
        """Nothing is held beyond the models."""


class Cached:
    """A model with its key-value cache at batch 1, and logits cut to the vocabulary both models share."""

    def __init__(self, model: Any, vocabulary: int, room: int = 0) -> None:
        self.model = model
        self.vocabulary = vocabulary
        self.cache = room_for(model, room)
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


class Proposal(NamedTuple):
    """Draft tokens ``(1, n)`` and, when sampled, the distributions ``(n, V)`` they were drawn from."""

    tokens: Tensor
    q: Tensor | None


class Verdict(NamedTuple):
    """How many draft tokens stay, those and the target's token after them ``(1, accepted + 1)``, and ``sum_v min(p,
    q)`` of every position that was tested (None in greedy decoding).
    """

    accepted: int
    kept: Tensor
    overlap: list[float] | None = None


def plain(
    target: Any,
    prompt: Sequence[int],
    new_tokens: int,
    *,
    vocabulary: int,
    sampling: Sampling = GREEDY,
    seed: int = 0,
) -> Decoded:
    """Autoregressive decoding of exactly ``new_tokens`` tokens: the baseline."""
    check_length(target, prompt, new_tokens)
    device, steps = target.device, new_tokens - 1
    with torch.inference_mode():
        noise = _noise(sampling, seed, (new_tokens, 1), device)
        stages = Stages(device)
        model = Cached(target, vocabulary, len(prompt) + new_tokens)
        token = _pick(model.feed(_row(prompt, device), keep=1), sampling, noise, 0)
        emitted = [token]
        stages.mark("prefill")
        for place in range(1, new_tokens):
            logits = model.feed(token, keep=1)
            stages.mark("verify")
            token = _pick(logits, sampling, noise, place)
            emitted.append(token)
            stages.mark("accept")
        tokens: list[int] = torch.cat(emitted, dim=1)[0].tolist()
        stages.mark("end")
    return stages.fill(Decoded(tokens, [0] * steps, [0] * steps, decode_tokens=steps))


def speculative(
    target: Any,
    draft: Any,
    prompt: Sequence[int],
    new_tokens: int,
    gamma: int,
    *,
    vocabulary: int,
    sampling: Sampling = GREEDY,
    seed: int = 0,
) -> Decoded:
    """Decoding of exactly ``new_tokens`` tokens in which ``draft`` proposes up to ``gamma`` per target call.

    Both models choose by the same ``sampling``. The last steps draft no more than can still be used, so
    ``drafted`` may sum to less than ``gamma * steps``. Raises InputError for gamma < 1, text longer than a
    model's positions, or a model whose cache cannot be taken back.
    """
    if gamma < 1:
        raise InputError(f"gamma is the number of tokens drafted per target call and must be at least 1, not {gamma}")
    check_length(target, prompt, new_tokens)
    check_length(draft, prompt, new_tokens)
    device, room = target.device, len(prompt) + new_tokens
    with torch.inference_mode():
        noise = _noise(sampling, seed, (new_tokens, 2 * gamma + 1), device)
        stages = Stages(device)
        verifier, proposer = Cached(target, vocabulary, room), Cached(draft, vocabulary, room)
        ids = _row(prompt, device)
        first = _pick(verifier.feed(ids, keep=1), sampling, noise, 0)
        proposer.feed(ids, keep=1)
        stages.mark("prefill")
        run = Decoded([], overlap=None if sampling.greedy else [], decode_tokens=new_tokens - 1)
        emitted = _loop(run, first, verifier, proposer, gamma, sampling, noise, stages)
        run.tokens = torch.cat(emitted, dim=1)[0].tolist()
        stages.mark("end")
    return stages.fill(run)


def _loop(
    run: Decoded,
    first: Tensor,
    target: Cached,
    draft: Cached,
    gamma: int,
    sampling: Sampling,
    noise: Tensor | None,
    stages: Stages,
) -> list[Tensor]:
    """Step until all tokens are there, and return them in pieces ``(1, n)``.

    They stay on the device; the host learns only how many were accepted. ``unseen`` are the emitted tokens that the
    draft's cache lacks: one, or two after a step in which everything was accepted, because the last draft token was
    never fed to the draft.
    """
    emitted, last, unseen = [first], first, first
    left, length = run.decode_tokens, target.length
    while left:
        count = min(gamma, left - 1)
        u = None if noise is None else noise[left]
        proposal = propose(draft, unseen, count, sampling, u)
        stages.mark("draft")
        logits = target.feed(torch.cat((last, proposal.tokens), dim=1) if count else last)
        stages.mark("verify")
        accepted, kept, overlap = accept(logits, proposal, sampling, u)
        stages.mark("accept")
        left -= accepted + 1
        length += accepted + 1
        run.drafted.append(count)
        run.accepted.append(accepted)
        emitted.append(kept)
        if overlap and run.overlap is not None:
            run.overlap += overlap
        last = kept[:, -1:]
        unseen = kept[:, -2:] if accepted == count else last
        target.rewind(length)
        draft.rewind(length)
        stages.mark("crop")
    return emitted


def propose(draft: Cached, ids: Tensor, count: int, sampling: Sampling, u: Tensor | None) -> Proposal:
    """``count`` draft tokens after the ids; when sampled, with the uniform numbers ``u[:count]``."""
    if not count:
        return Proposal(ids[:, :0], None)
    tokens, rows = [], []
    for place in range(count):
        logits = draft.feed(ids, keep=1)
        if sampling.greedy or u is None:
            ids = logits.argmax(-1, keepdim=True)
        else:
            q = sampling.probabilities(logits)
            ids = draw(q, u[place : place + 1])
            rows.append(q)
        tokens.append(ids)
    return Proposal(torch.cat(tokens, dim=1), torch.cat(rows) if rows else None)


def accept(logits: Tensor, proposal: Proposal, sampling: Sampling, u: Tensor | None) -> Verdict:
    """The target's verdict from its logits ``(n + 1, V)`` after the last token and after each of ``n`` drafted."""
    if sampling.greedy or u is None:
        return accept_greedy(logits, proposal.tokens)
    return accept_sampled(sampling.probabilities(logits), proposal, u)


def accept_greedy(logits: Tensor, proposed: Tensor) -> Verdict:
    """The proposal stays as far as it agrees with the target's own choices."""
    chosen = logits.argmax(-1)[None]
    (own,), (theirs,) = chosen.tolist(), proposed.tolist()
    accepted, count = 0, len(theirs)
    while accepted < count and own[accepted] == theirs[accepted]:
        accepted += 1
    return Verdict(accepted, chosen[:, : accepted + 1])


def accept_sampled(p: Tensor, proposal: Proposal, u: Tensor) -> Verdict:
    """Leviathan's rule (their Algorithm 1), which leaves the target's distribution p whatever q is.

    A draw x ~ q is kept with probability ``min(1, p(x) / q(x))``. At the first refusal the token comes from
    ``norm(max(0, p - q))``; when nothing was refused, from the target's next row. `u` has a uniform number per draft
    token that chose it, then one per draft token that decides here, and last one for the token after them.
    """
    drawn, q = proposal
    if q is None:
        return Verdict(0, draw(p, u[-1:]), [])
    count, rows, ahead = len(q), drawn.T, p[:-1]
    residual = (ahead - q).clamp_min_(0)
    surplus = ahead.gather(1, rows) - u[-1 - count : -1, None] * q.gather(1, rows)
    told = torch.cat((surplus, residual.sum(-1, keepdim=True)))[:, 0].tolist()  # one wait for the device
    accepted, refused = 0, told[count:]
    while accepted < count and told[accepted] > 0:
        accepted += 1
    # p and q equal up to rounding leave no residual: then either of them is the distribution wanted.
    source = residual if accepted < count and refused[accepted] > 0 else p
    following = draw(source[accepted : accepted + 1], u[-1:])
    overlap = [min(max(1 - mass, 0.0), 1.0) for mass in refused[: accepted + 1]]
    return Verdict(accepted, torch.cat((drawn[:, :accepted], following), dim=1), overlap)


def _pick(logits: Tensor, sampling: Sampling, noise: Tensor | None, place: int) -> Tensor:
    """The next token ``(1, 1)`` after logits ``(1, V)``."""
    if noise is None:
        return logits.argmax(-1, keepdim=True)
    return draw(sampling.probabilities(logits), noise[place, -1:])


def _noise(sampling: Sampling, seed: int, shape: tuple[int, int], device: torch.device) -> Tensor | None:
    """All uniform numbers of a run, a row for every step that can be: plain decoding counts its tokens up, speculative
    decoding the tokens left down. None when greedy.
    """
    if sampling.greedy:
        return None
    generator = torch.Generator(device).manual_seed(seed)
    return uniform_rows(shape, generator)


def _row(prompt: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([list(prompt)], device=device)
