"""Which texts are decoded, and does every draft leave them as they are? The gate, turn by turn.

The first thing measured of every prompt is the target's own greedy answer: it says how many tokens every arm decodes,
it is what the drafts must not change, and it is what a conversation's next turn follows. Then every (draft, draft
length) decodes the same prompt; above temperature 0 it also samples, and the text is held against the target's
distribution. Only when every text has passed is anything timed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from tqdm import tqdm

from selectkd_eval import prompts, records
from selectkd_eval.errors import InputError
from selectkd_eval.prompts import Prompt
from selectkd_eval.sampling import GREEDY, Sampling
from selectkd_eval.speculation import gate
from selectkd_eval.speculation.engine import Engine, Request, check_length
from selectkd_eval.speculation.engines import Cast
from selectkd_eval.speeds import PLAIN, Arm


class Asked(NamedTuple):
    """One text to decode: `ids` before it, its own greedy `reference`, as long as every arm decodes.

    `cluster` is the prompt that intervals resample: a conversation's turns are one.
    """

    id: str
    cluster: str
    task: str
    ids: list[int]
    reference: list[int]

    @property
    def length(self) -> int:
        return len(self.reference)

    @property
    def place(self) -> dict[str, str]:
        """What every row of this text begins with."""
        return {"prompt": self.id, "cluster": self.cluster, "task": self.task}


class Asking(NamedTuple):
    """What the gate needs to know: which arms, how long, and how text is drawn."""

    arms: Sequence[Arm]
    new_tokens: int
    sampling: Sampling
    seed: int
    proposals: gate.Proposals

    def request(self, ids: Sequence[int], length: int, prompt: str, rep: int | str) -> Request:
        """The same draws for every arm of one repetition."""
        digest = hashlib.sha256(f"{self.seed}/{prompt}/{rep}".encode()).digest()
        return Request(ids, length, int.from_bytes(digest[:7], "big"))


def ask(record: records.Writer, engine: Engine, cast: Cast, chosen: Sequence[Prompt], how: Asking) -> Iterator[Asked]:
    """Every text in order, gated unless an earlier run did so; one that fits no model is a row with an error."""
    once: dict[str, Prompt] = {}
    for prompt in chosen:
        once.setdefault(prompt.id, prompt)  # one that stands there twice, with two answers, is decoded once
    for prompt in tqdm(once.values(), desc="lossless?", disable=None):
        messages: list[dict[str, str]] = []
        for turn, said in enumerate((prompt.text, *prompts.later_turns(prompt)), start=1):
            messages.append({"role": "user", "content": said})
            rendered = prompts.render_conversation(cast.target.tokenizer, messages)
            ids = prompts.rendered_ids(cast.target.tokenizer, rendered)
            name = prompt.id if turn == 1 else f"{prompt.id}#{turn}"
            place = {"prompt": name, "cluster": prompt.id, "task": prompt.source}
            if f"gate/{name}" not in record.done:
                if too_long := _too_long(cast, ids, how.new_tokens):
                    record.write(f"gate/{name}", **place, error=too_long)
                    break  # what follows in a conversation is longer still
                _gate(record, engine, cast, ids, place, how)
            row = record.done[f"gate/{name}"]
            asked = Asked(name, prompt.id, prompt.source, ids, list(row["reference"]))
            if not how.sampling.greedy and f"sampled/{name}" not in record.done:
                _sampled(record, engine, cast, asked, how)
            yield asked
            answer = cast.target.tokenizer.decode(asked.reference, skip_special_tokens=True)
            messages.append({"role": "assistant", "content": answer})


def answer_length(tokens: Sequence[int], ends: frozenset[int]) -> int:
    """Tokens up to and including the first end token, but at least 2: the first comes from the prefill."""
    first = next((place for place, token in enumerate(tokens, start=1) if token in ends), len(tokens))
    return max(first, 2)


def _gate(
    record: records.Writer, engine: Engine, cast: Cast, ids: list[int], place: dict[str, str], how: Asking
) -> None:
    """Plain greedy decoding of one prompt, and every arm against it."""
    name = place["prompt"]
    reference = engine.decode(how.request(ids, how.new_tokens, name, "gate"), PLAIN, GREEDY).tokens
    reference = reference[: answer_length(reference, cast.ends)]
    outcomes = []
    for arm in how.arms:
        found = engine.decode(how.request(ids, len(reference), name, "gate"), arm, GREEDY)
        outcome = gate.greedy_outcome(cast.target.model, cast.vocabulary, ids, reference, found.tokens)
        draft = cast.drafts[arm.draft].model if cast.drafts else None
        outcome |= gate.greedy_trace(draft, cast.vocabulary, ids, found)
        outcomes.append({"draft": arm.draft, "gamma": arm.gamma, **outcome})
    record.write(f"gate/{name}", **place, length=len(reference), reference=reference, outcomes=outcomes)


def _sampled(record: records.Writer, engine: Engine, cast: Cast, asked: Asked, how: Asking) -> None:
    """One sampled text per arm, plain decoding's too, against the target's distribution."""
    arms: list[dict[str, Any]] = []
    for arm in (PLAIN, *how.arms):
        request = how.request(asked.ids, asked.length, asked.id, f"sampled/{arm.draft}/{arm.gamma}")
        decoded = engine.decode(request, arm, how.sampling)
        draft = cast.drafts[arm.draft].model if cast.drafts and not arm.plain else None
        found = gate.sampled_evidence(
            cast.target.model,
            draft,
            cast.vocabulary,
            asked.ids,
            decoded,
            how.sampling,
            seed=request.seed,
            drafts=how.proposals,
        )
        arms.append({"draft": arm.draft, "gamma": arm.gamma, **found})
    record.write(f"sampled/{asked.id}", **asked.place, arms=arms)


def _too_long(cast: Cast, ids: Sequence[int], new_tokens: int) -> str:
    """Why a text does not fit the target or a draft; empty where it fits."""
    for loaded in (cast.target, *cast.drafts):
        try:
            check_length(loaded.model, ids, new_tokens)
        except InputError as error:
            return f"{loaded.card.name}: {error}"
    return ""
