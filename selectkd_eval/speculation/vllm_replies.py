"""What does vLLM's reply say of one text? From the server's JSON to tokens, steps and seconds.

vLLM from 0.32 on tells per request how many tokens each verification step drafted and how many it kept. Two things it
does not tell are worked out here. Its last step may go past the end of the text: what did not fit is not counted, as
though no more had been drafted than could still be used, which is what the reference engine does. And a step of n-gram
lookup that found nothing to draft is no step for vLLM: the lookup is a function of the text, so it is repeated here,
and must agree with every step that vLLM does tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from selectkd_eval.errors import SetupError
from selectkd_eval.speculation.engine import Decoded

Lookup = Callable[[Sequence[int]], Sequence[int]]
_NEEDED = "give --server an address of vLLM 0.32 or newer, started with --per-request-spec-decode-metrics detailed"


class Told(NamedTuple):
    """A reply as it came: `steps` are (drafted, accepted), None where no speculation was reported."""

    tokens: list[int]
    steps: list[tuple[int, int]] | None
    prefill_s: float | None
    decode_s: float | None


def told(body: Any) -> Told:
    """A reply of /v1/completions, checked; SetupError when it is not vLLM's or lacks what is needed."""
    choices = body.get("choices") if isinstance(body, Mapping) else None
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], Mapping) else {}
    tokens = choice.get("token_ids")
    if not _whole(tokens):
        raise SetupError("the server's reply holds no token ids (return_token_ids), so it is not vLLM's: " + _NEEDED)
    metrics = body.get("metrics")
    metrics = metrics if isinstance(metrics, Mapping) else {}
    found = metrics.get("speculative_decoding")
    steps = None
    if isinstance(found, Mapping):
        # A text without a single verification step has no lists at all.
        drafted, accepted = (found.get(f"per_step_{what}") or [] for what in ("drafted", "accepted"))
        lists_fit = (
            _whole(drafted) and _whole(accepted) and len(drafted) == len(accepted) == found.get("num_spec_steps")
        )
        if not lists_fit or any(k > d for k, d in zip(accepted, drafted, strict=True)):
            raise SetupError("the server's reply does not tell what each verification step did: " + _NEEDED)
        steps = list(zip(drafted, accepted, strict=True))
    first, rest = metrics.get("time_to_first_token_ms"), metrics.get("generation_time_ms")
    return Told(tokens, steps, _seconds(first), _seconds(rest))


def decoded(reply: Told, prompt: Sequence[int], new_tokens: int, gamma: int, lookup: Lookup | None) -> Decoded:
    """What an engine tells of one text. `gamma` 0 is plain decoding; `lookup` is the n-gram proposer, if it drafts."""
    if len(reply.tokens) != new_tokens:
        raise SetupError(
            f"the server was asked for {new_tokens} tokens whatever they are (ignore_eos) and wrote "
            f"{len(reply.tokens)}: only vLLM is known to understand that"
        )
    if gamma == 0:
        if reply.steps:
            raise SetupError("the server of plain decoding speculates: give --server plain=URL one that does not")
        steps = [(0, 0)] * (new_tokens - 1)
    elif reply.steps is None:
        raise SetupError("the server's reply has no metrics.speculative_decoding: " + _NEEDED)
    elif any(d > gamma for d, _ in reply.steps):
        most = max(d for d, _ in reply.steps)
        raise SetupError(f"the server of gamma {gamma} drafts {most} tokens a step: give every --server its own gamma")
    else:
        steps = list(_walk(reply.steps, prompt, reply.tokens, lookup))
    return Decoded(
        reply.tokens,
        [d for d, _ in steps],
        [k for _, k in steps],
        first=1,
        prefill_s=reply.prefill_s,
        decode_s=reply.decode_s,
        decode_tokens=new_tokens - 1,
    )


def ngram_lookup(longest: int, shortest: int, gamma: int) -> Lookup:
    """vLLM's n-gram proposer: what followed the earliest occurrence of the longest ending that occurred before."""

    def propose(text: Sequence[int]) -> Sequence[int]:
        for n in range(min(longest, len(text) - 1), shortest - 1, -1):
            ending = list(text[-n:])
            for start in range(len(text) - n):
                if list(text[start : start + n]) == ending:
                    return text[start + n : start + n + gamma]
        return []

    return propose


def _walk(
    told_steps: Sequence[tuple[int, int]], prompt: Sequence[int], tokens: Sequence[int], lookup: Lookup | None
) -> Iterator[tuple[int, int]]:
    """Every step's (drafted, accepted), so that 1 + steps + accepted is the number of tokens."""
    waiting, written = iter(told_steps), 1  # the prefill wrote the first token
    while written < len(tokens):
        expected = None if lookup is None else len(lookup([*prompt, *tokens[:written]]))
        # A model stops drafting where its positions end, and then vLLM has no more steps to tell of.
        drafted, accepted = (0, 0) if expected == 0 else next(waiting, (0, 0))
        if expected is not None and drafted != expected:
            raise SetupError(
                f"vLLM's n-gram lookup drafted {drafted} tokens where {expected} are expected, so its steps cannot be "
                "counted: use the vLLM version that `make vllm-env` brings"
            )
        usable = len(tokens) - written - 1
        yield min(drafted, usable), min(accepted, usable)
        written += accepted + 1
    if next(waiting, None) is not None:
        raise SetupError("the server tells of more verification steps than the text has room for: " + _NEEDED)


def _whole(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _seconds(milliseconds: Any) -> float | None:
    return milliseconds / 1000 if isinstance(milliseconds, int | float) and milliseconds >= 0 else None
