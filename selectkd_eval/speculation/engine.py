"""What must an engine that drafts and verifies tell of one run? The shape that all of them share.

The reference engine (`draft_verify`), Hugging Face's assisted generation (`assisted`) and vLLM's server (`vllm_server`)
differ in how they count and what they can time; here is what the gate, the clock and the record may rely on. What an
engine does not know is None, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from selectkd_eval.errors import InputError
from selectkd_eval.sampling import Sampling
from selectkd_eval.speeds import Arm


@dataclass
class Decoded:
    """Tokens of one run, and what happened in each verification step (a target call that checked a proposal).

    ``drafted[s]`` tokens were proposed in step s and ``accepted[s]`` of them kept, so the step emitted
    ``accepted[s] + 1`` and tested ``min(accepted[s] + 1, drafted[s])``. Plain decoding has steps that drafted nothing.
    ``first`` is the number of tokens that no step emitted: 1 where the prefill gives the first token (reference
    engine, vLLM), 0 where the first step's proposal is verified together with the prompt (Hugging Face). So
    ``len(tokens) = first + steps + sum(accepted)``.

    ``overlap`` has ``sum_v min(p, q)`` of every tested position in order, None where the engine does not tell (greedy
    decoding too: there both are one token). Times are seconds of the stages of decoding after the first token or
    step; ``decode_tokens`` were emitted in ``decode_s``. On a GPU they are times of the device.
    """

    tokens: list[int]
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    overlap: list[float] | None = None
    first: int = 1
    prefill_s: float | None = None
    decode_s: float | None = None
    decode_tokens: int = 0
    draft_s: float | None = None
    verify_s: float | None = None
    accept_s: float | None = None
    crop_s: float | None = None

    @property
    def steps(self) -> int:
        """Verification steps; in plain decoding, target calls after the first token."""
        return len(self.drafted)

    @property
    def tested(self) -> int:
        """Draft tokens the accept rule looked at: those before the first rejection, and the rejected one."""
        return sum(min(k + 1, d) for k, d in zip(self.accepted, self.drafted, strict=True))


class Request(NamedTuple):
    """One text to write: the prompt's token ids, exactly how many tokens, and the seed of its draws."""

    ids: Sequence[int]
    new_tokens: int
    seed: int = 0


class Engine(Protocol):
    """Decoding at batch 1 under any arm. `facts` say in the record's header what it is. `batches`: a server, which
    decodes several texts at once and not in this process, whose CPU time then says nothing.
    """

    @property
    def name(self) -> str: ...
    @property
    def facts(self) -> Mapping[str, Any]: ...
    @property
    def batches(self) -> bool: ...

    def decode(self, request: Request, arm: Arm, sampling: Sampling) -> Decoded:
        """Exactly `request.new_tokens` tokens, end tokens ignored; `arm.gamma` 0 is plain decoding.

        Raises InputError for text that does not fit a model's positions.
        """
        ...

    def together(self, requests: Sequence[Request], arm: Arm, sampling: Sampling) -> list[Decoded]:
        """Several texts at once, all begun together; only where `batches`."""
        ...

    def close(self) -> None:
        """Give back whatever the engine holds: processes, ports."""
        ...


def check_request(prompt: Sequence[int], new_tokens: int) -> None:
    """Raise InputError when there is nothing to decode."""
    if not prompt or new_tokens < 1:
        raise InputError(f"decoding needs a prompt and at least 1 new token, got {len(prompt)} and {new_tokens}")


def check_length(model: Any, prompt: Sequence[int], new_tokens: int) -> None:
    """Raise InputError when there is nothing to decode or the model has too few positions for the text."""
    check_request(prompt, new_tokens)
    total = len(prompt) + new_tokens
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit and total > limit:
        raise InputError(
            f"a prompt of {len(prompt)} tokens and {new_tokens} new ones do not fit the model's {limit} "
            f"positions: lower --max-new-tokens or give shorter prompts"
        )
    rope = getattr(model.config, "rope_parameters", None) or {}
    turn = rope.get("original_max_position_embeddings") if rope.get("rope_type") == "longrope" else None
    if turn and len(prompt) <= turn < total:
        raise InputError(
            f"a prompt of {len(prompt)} tokens and {new_tokens} new ones pass position {turn}, where this model's "
            "rotary embedding changes and its cache no longer holds: lower --max-new-tokens or give other prompts"
        )
