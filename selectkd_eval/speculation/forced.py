"""At which tokens of the target's own text would a draft have been right? One teacher-forced pass per model.

A drafted token that is accepted is the text itself, so whether the draft is right at a position depends on the text
before it and not on where a step begins. Given the emitted token x, the chance that a proposal there is accepted is

    greedy    [argmax q = argmax p]
    sampled   min(1, q(x) / p(x))            (P(accepted, x) = min(p(x), q(x)), and x has probability p(x))

So one pass over text that nobody drafted says how many target calls any draft length needs (`speed_model.replay`),
and carries the paper's token acceptance over to speed. Nothing here is timed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from selectkd_eval import records
from selectkd_eval.sampling import Sampling
from selectkd_eval.speculation.asking import Asked, Asking
from selectkd_eval.speculation.engine import Engine
from selectkd_eval.speculation.engines import Cast
from selectkd_eval.speculation.gate import ROWS, text_logits
from selectkd_eval.speeds import PLAIN

TOP = 5  # the paper's k (Eq. 9)


def force(record: records.Writer, engine: Engine, cast: Cast, asked: Sequence[Asked], how: Asking) -> None:
    """A row for every text: its own greedy answer, or above temperature 0 a sampled one."""
    if not cast.drafts:
        return
    for one in tqdm(asked, desc="read again", disable=None):
        if (key := f"text/{one.id}") in record.done:
            continue
        text = one.reference
        if not how.sampling.greedy:
            text = engine.decode(how.request(one.ids, one.length, one.id, "text"), PLAIN, how.sampling).tokens
        p = next_logits(cast.target.model, one.ids, text, cast.vocabulary)
        drafts = []
        for index, draft in enumerate(cast.drafts):
            q = next_logits(draft.model, one.ids, text, cast.vocabulary)
            parts = [
                agreement(
                    p[start : start + ROWS], q[start : start + ROWS], text[1:][start : start + ROWS], how.sampling
                )
                for start in range(0, max(1, len(p)), ROWS)
            ]
            drafts.append({"draft": index} | {name: [at for part in parts for at in part[name]] for name in parts[0]})
        record.write(key, **one.place, drafts=drafts)


@torch.inference_mode()
def next_logits(model: Any, ids: Sequence[int], text: Sequence[int], vocabulary: int) -> Tensor:
    """fp32 logits ``(len(text) - 1, vocabulary)`` that predict the text's tokens after its first."""
    return text_logits(model, ids, text, vocabulary)[1:]


def agreement(p: Tensor, q: Tensor, emitted: Sequence[int], sampling: Sampling) -> dict[str, list[float]]:
    """Per position, from logits ``(n, V)`` and the ``n`` tokens emitted there: does argmax q = argmax p, is argmax q
    among p's five likeliest, ``sum_v min(p, q)``, and the chance that a proposal there is accepted.
    """
    if not len(emitted):
        return {"agreement": [], "top5": [], "overlap": [], "chance": []}
    best = q.argmax(-1)
    same = (best == p.argmax(-1)).int()
    top = (p.topk(min(TOP, p.shape[-1]), dim=-1).indices == best[:, None]).any(-1).int()
    drawn = Sampling(1.0) if sampling.greedy else sampling
    p_drawn, q_drawn = drawn.probabilities(p), drawn.probabilities(q)
    overlap = torch.minimum(p_drawn, q_drawn).sum(-1).clamp_max(1)
    chance = same.float()
    if not sampling.greedy:
        x = torch.tensor(list(emitted), device=p.device)[:, None]
        chance = (q_drawn.gather(1, x) / p_drawn.gather(1, x))[:, 0].clamp_max(1)
    return {
        "agreement": same.tolist(),
        "top5": top.tolist(),
        "overlap": _rounded(overlap),
        "chance": _rounded(chance) if not sampling.greedy else same.tolist(),
    }


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 5) for value in values.tolist()]
