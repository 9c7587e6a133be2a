"""Which models and which engine does this command measure? Loading the target and its drafts, opening the engine.

The target and, where they are models, the drafts are loaded here whatever decodes: the gate and the teacher-forced
pass read their logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from selectkd_eval import pair
from selectkd_eval.environment import fingerprint_dir
from selectkd_eval.errors import InputError
from selectkd_eval.generate import end_tokens
from selectkd_eval.pair import LoadedModel
from selectkd_eval.speculation.engine import Engine
from selectkd_eval.verbs import SpeedupOptions

NGRAM = {"name": "ngram", "method": "n-gram lookup", "fingerprint": "", "parameters": 0}


class Cast(NamedTuple):
    """The target p, the drafts q (none where the draft is no model of its own), and what they share.

    `cards` has one card per draft, also for those that are no models; `ends` are the target's end tokens.
    """

    target: LoadedModel
    drafts: list[LoadedModel]
    cards: list[dict[str, Any]]
    vocabulary: int
    ends: frozenset[int]


def load_cast(options: SpeedupOptions, device: str) -> Cast:
    """Load everything that `options` name; an InputError when a draft reads other tokens than the target."""
    dtype = getattr(torch, options.dtype)
    target = pair.load_model(options.target, device, dtype)
    drafts: list[LoadedModel] = []
    cards: list[dict[str, Any]] = []
    if options.proposer == "ngram":
        cards = [dict(NGRAM)]
    elif options.proposer == "eagle":
        cards = [_head_card(name) for name in options.draft]
    else:
        drafts = [pair.load_model(name, device, dtype) for name in options.draft]
        cards = [draft.card.as_dict() for draft in drafts]
    widths = [pair.common_vocabulary(target, draft) for draft in drafts]
    own = int(target.model.get_output_embeddings().weight.shape[0])
    ends = frozenset() if options.ignore_end else end_tokens(target.model, target.tokenizer)
    return Cast(target, drafts, cards, min(widths, default=own), ends)


def open_engine(options: SpeedupOptions, cast: Cast) -> Engine:
    """The engine that `options` name, ready to decode."""
    return _ENGINES[options.engine](options, cast)


def _reference(options: SpeedupOptions, cast: Cast) -> Engine:
    from selectkd_eval.speculation.draft_verify import ReferenceEngine

    return ReferenceEngine(cast.target.model, [draft.model for draft in cast.drafts], cast.vocabulary)


def _assisted(options: SpeedupOptions, cast: Cast) -> Engine:
    from selectkd_eval.speculation.assisted import AssistedEngine

    return AssistedEngine(cast.target.model, [draft.model for draft in cast.drafts], cast.vocabulary)


def _vllm(options: SpeedupOptions, cast: Cast) -> Engine:
    from selectkd_eval.speculation.vllm_server import open_vllm

    return open_vllm(options)


_ENGINES: dict[str, Callable[[SpeedupOptions, Cast], Engine]] = {
    "reference": _reference,
    "transformers": _assisted,
    "vllm": _vllm,
}


def _head_card(name: str) -> dict[str, Any]:
    """An EAGLE head is no language model by itself: its directory or hub name is all there is to say."""
    where = pair.locate(name)
    fingerprint = f"hub:{name}" if isinstance(where, str) else fingerprint_dir(where)
    return {"name": name, "method": name, "fingerprint": fingerprint, "parameters": 0}


def check(options: SpeedupOptions) -> None:
    """Refuse what no engine, or not the one asked for, can measure."""
    if not options.gamma or min(options.gamma) < 1:
        raise InputError(f"--gamma takes draft lengths of at least 1, not {list(options.gamma)}")
    for name, numbers in (("gamma", options.gamma), ("batch", options.batch)):
        if len(set(numbers)) < len(numbers):
            raise InputError(f"--{name} {' '.join(map(str, numbers))} names a number twice: give each once")
    if options.repetitions < 1:
        raise InputError(f"--repetitions must be at least 1, not {options.repetitions}")
    if options.max_new_tokens < 2:
        raise InputError(
            f"--max-new-tokens must be at least 2, the first comes from the prefill; not {options.max_new_tokens}"
        )
    # The first token comes from the prefill, and a call's last one is the target's own.
    if (longest := max(options.gamma)) > (most := options.max_new_tokens - 2):
        raise InputError(
            f"--gamma {longest} is more than the {most} tokens that a step can draft with --max-new-tokens "
            f"{options.max_new_tokens}: lower the one or raise the other"
        )
    if options.temperature < 0 or not 0 < options.top_p <= 1 or options.top_k < 0:
        given = f"--temperature {options.temperature:g} --top-p {options.top_p:g} --top-k {options.top_k}"
        raise InputError(f"sampling takes a temperature from 0 on, top-p in (0, 1] and top-k from 0 on, not {given}")
    if not options.batch or min(options.batch) < 1:
        raise InputError(f"--batch takes numbers of texts from 1 on, not {list(options.batch)}")
    if options.engine == "vllm":
        return
    if options.batch != (1,):
        raise InputError(
            f"--batch {' '.join(map(str, options.batch))} is asked of the {options.engine} engine, which decodes one "
            "text at a time: use --engine vllm, or leave --batch out"
        )
    if options.proposer != "draft-model" or options.server:
        raise InputError("--proposer and --server are vLLM's: add --engine vllm, or leave them out")
