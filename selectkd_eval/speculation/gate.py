"""What does one text tell of the engine that wrote it? Evidence for the gate, by teacher-forcing the models on it.

A greedy text is compared with plain decoding's, and where they differ every token must be the target's best up to
rounding. A sampled text is a draw from the target's distribution p, token by token, whatever the draft's q was; if the
engine also tells its steps, every tested position follows emitted text, so that one pass of both models gives p and q
there again. From them come sums that add up over texts:

    ranks      the token's place under p, made uniform by a random number: any wrong distribution shows
    rarest     the probability of all tokens as unlikely as the least likely one
    surprise   sum h(x) - E_p h with h = -log p, at most 6: a wrong temperature shows first
    likeness   sum s(x) - E_p s with s = (q - p) / (q + p): text that leans to the draft's, the common fault, shows most
    accepted   draft tokens kept - sum_x min(p, q), Leviathan's alpha, over tested positions
    given      draft tokens kept - min(1, q(x) / p(x)), their chance given the emitted token x

Under the null hypothesis the last four are martingales with known variance. Nothing is judged here: `lossless`
makes p-values of the sums. Whether the draft is any good is no matter of the gate.
"""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from selectkd_eval.errors import choose
from selectkd_eval.sampling import Sampling
from selectkd_eval.speculation.engine import Decoded
from selectkd_eval.speculation.rounding import TIE_ULPS, TYPICAL, At, Warped, slack_of, supports, ulp

BINS = 20
ROWS = 16  # positions looked at together: at 150,000 tokens a text's distributions and their cuts would fill gigabytes
SURPRISE = 6.0  # nats; the rare token beyond them would be all of the variance

Proposals = Literal["sampled", "greedy", "tempered"]


def greedy_outcome(
    target: Any, vocabulary: int, ids: Sequence[int], reference: Sequence[int], found: Sequence[int]
) -> dict[str, Any]:
    """Is the text `found` after the prompt `ids` the greedy text `reference`?

    `outcome` is identical, tie or violation; `gap_ulps` how far, at worst, a token lies below the target's best;
    `at` the place of the first difference, None where there is none. A text of another length is a violation.
    """
    found, reference = list(found), list(reference)
    if found == reference:
        return {"outcome": "identical", "gap_ulps": 0.0, "at": None}
    pairs = zip(found, reference, strict=False)
    at = next((place for place, (mine, theirs) in enumerate(pairs) if mine != theirs), min(len(found), len(reference)))
    gap = gap_in_ulps(target, ids, found, vocabulary) if found else 0.0
    tie = len(found) == len(reference) and gap <= TIE_ULPS[target.dtype]  # a gap that is no number is no tie
    return {"outcome": "tie" if tie else "violation", "gap_ulps": gap, "at": at}


@torch.inference_mode()
def gap_in_ulps(target: Any, ids: Sequence[int], text: Sequence[int], vocabulary: int) -> float:
    """How far, at worst, a token of ``text`` lies below the target's best choice after the same prefix.

    In units in the last place of the largest logit, in the target's own precision: 0 when every token is a
    greedy choice.
    """
    logits = text_logits(target, ids, text, vocabulary)
    best = logits.max(-1).values
    taken = logits.gather(-1, torch.tensor(list(text), device=logits.device)[:, None])[:, 0]
    return float(((best - taken) / ulp(best, target.dtype)).max())


@torch.inference_mode()
def greedy_trace(draft: Any | None, vocabulary: int, ids: Sequence[int], decoded: Decoded) -> dict[str, int | None]:
    """Are the counts of a greedy text true? A draft token is accepted just where the draft's best is the text's token.

    `miscounted` is 1 where tokens, steps and accepted tokens do not add up; `misplaced` counts tested positions that
    were otherwise, ties apart; None without a draft model.
    """
    misplaced = None
    where, kept = tested_positions(decoded)
    if draft is not None:
        misplaced = 0
        if where:
            text = decoded.tokens[: where[-1] + 1]
            q = text_logits(draft, ids, text, vocabulary)
            x = torch.tensor(text, device=q.device)[:, None]
            # The draft's best is what a cut to one token keeps; no distribution over the whole vocabulary is needed.
            kept_by = supports(q, Sampling(1.0, top_k=1), slack_of(q, draft.dtype))
            possible, sure = (table.gather(1, x)[where, 0] for table in kept_by)
            was = torch.tensor(kept, device=q.device)
            misplaced = int(((was & ~possible) | (~was & sure)).sum())
    return {"miscounted": int(not adds_up(decoded)), "misplaced": misplaced}


@torch.inference_mode()
def sampled_evidence(
    target: Any,
    draft: Any | None,
    vocabulary: int,
    ids: Sequence[int],
    decoded: Decoded,
    sampling: Sampling,
    *,
    seed: int,
    drafts: Proposals = "sampled",
) -> dict[str, Any]:
    """The sums of one sampled text, see above; None where there is nothing to take them from.

    `draft` None: the draft is no model (n-grams), or nothing was drafted. `drafts` says how draft tokens are chosen:
    sampled from q under the target's own temperature and cuts, greedy (vLLM's default at any temperature), or tempered
    (temperature without cuts). `edge` tokens lie where rounding decides what top-k or top-p keeps; they are left out.
    """
    text = list(decoded.tokens)
    rule = None if draft is None else choose(drafts, _RULES, "way to choose draft tokens")(sampling)
    p_logits = text_logits(target, ids, text, vocabulary)
    q_logits = None if draft is None else text_logits(draft, ids, text, vocabulary)
    # Apart from the engine's own stream of the same seed: numbers that chose the tokens would not be independent.
    uniform = np.random.default_rng([seed, 0x51]).random(len(text))
    tested = _Tested(*tested_positions(decoded), decoded.overlap)
    found: dict[str, Any] = {}
    for start in range(0, len(text), ROWS):
        rows = slice(start, start + ROWS)
        p = Warped(p_logits[rows], target.dtype, sampling)
        q = None if rule is None or q_logits is None else Warped(q_logits[rows], draft.dtype, rule)  # type: ignore[union-attr]
        part = _evidence(p, q, text[rows], uniform[rows], tested.within(start, start + ROWS))
        found = _joined(found, part) if found else part
    if found["overlap_off"] is not None and tested.overlap is not None:
        found["overlap_off"] += abs(len(tested.overlap) - len(tested.where))
    return {"miscounted": int(not adds_up(decoded)), **found}


class _Tested(NamedTuple):
    """Tested positions in order, whether the draft token was kept there, and the overlap that the engine told."""

    where: list[int]
    kept: list[bool]
    overlap: Sequence[float] | None

    def within(self, start: int, stop: int) -> _Tested:
        """Those in a stretch of the text, counted from its beginning."""
        first, last = bisect_left(self.where, start), bisect_left(self.where, stop)
        overlap = None if self.overlap is None else self.overlap[first:last]
        return _Tested([place - start for place in self.where[first:last]], self.kept[first:last], overlap)


def _evidence(p: Warped, q: Warped | None, text: Sequence[int], uniform: Any, tested: _Tested) -> dict[str, Any]:
    """The sums of one stretch of a sampled text."""
    x = p.at(text)
    usable = x.p > 0
    found: dict[str, Any] = {
        "tokens": int(usable.sum()),
        "edge": int((~usable & x.possible).sum()),
        "impossible": int((~x.possible).sum()),
        **_ranks(p, x, usable, text, uniform),
        "surprise": _under(p.table, -p.table.log().clamp_min(-SURPRISE), text, usable),
        **dict.fromkeys(("likeness", "accepted", "given", "misplaced", "overlap_off", "overlap_gap")),
    }
    if q is None:
        return found
    s = (q.table - p.table) / (q.table + p.table).clamp_min(torch.finfo(torch.float32).tiny)
    found["likeness"] = _under(p.table, s, text, usable)
    return found | _at_tested(p, q, text, usable, *tested)


_EXTREMES: dict[str, Any] = {"up": max, "down": max, "overlap_gap": max, "rarest": min}


def _joined(one: Any, other: Any, name: str = "") -> Any:
    """Two stretches' evidence as one's: everything is a sum but a term's bounds and what is named for an extreme."""
    if isinstance(one, dict):
        return {part: _joined(one[part], other[part], part) for part in one}
    if isinstance(one, list):
        return [a + b for a, b in zip(one, other, strict=True)]
    return None if one is None else _EXTREMES.get(name, operator.add)(one, other)


_RULES = {
    "sampled": lambda sampling: sampling,
    "greedy": lambda sampling: Sampling(sampling.temperature, top_k=1),
    "tempered": lambda sampling: Sampling(sampling.temperature),
}


def tested_positions(decoded: Decoded) -> tuple[list[int], list[bool]]:
    """Places in the text at which a draft token was tested, in order, and whether it was accepted there.

    An engine that drafts beyond the length asked for has tested positions of which the text shows nothing: they are
    left out, also the last one shown, whose token may have been accepted and the rest cut off.
    """
    at, where, kept = decoded.first, [], []
    for drafted, accepted in zip(decoded.drafted, decoded.accepted, strict=False):
        shown = min(drafted, len(decoded.tokens) - at - 1)
        for offset in range(min(accepted + 1, shown)):
            where.append(at + offset)
            kept.append(offset < accepted)
        at += accepted + 1
    return where, kept


def adds_up(decoded: Decoded) -> bool:
    """Whether the tokens are those before the first step, one per step, and the accepted ones."""
    steps = list(zip(decoded.drafted, decoded.accepted, strict=False))
    possible = len(decoded.drafted) == len(decoded.accepted) and all(0 <= kept <= drafted for drafted, kept in steps)
    return possible and len(decoded.tokens) == decoded.first + len(steps) + sum(decoded.accepted)


def text_logits(model: Any, ids: Sequence[int], text: Sequence[int], vocabulary: int) -> Tensor:
    """fp32 logits ``(len(text), vocabulary)`` after the prompt and every token of the text but its last."""
    row = torch.tensor([[*ids, *text]], device=model.device)
    logits: Tensor = model(input_ids=row, use_cache=False, logits_to_keep=len(text) + 1).logits[0, :-1, :vocabulary]
    return logits.float()


def _ranks(p: Warped, x: At, usable: Tensor, text: Sequence[int], uniform: Any) -> dict[str, Any]:
    """Histogram of the tokens' randomised places under p, likeliest first, and the least mass that a token and all less
    likely ones have together.
    """
    tokens = torch.tensor(list(text), device=p.table.device)[:, None]
    mine = x.p[:, None]
    before = (p.table > mine) | ((p.table == mine) & (torch.arange(p.table.shape[1], device=mine.device) < tokens))
    above = (p.table * before).sum(-1, dtype=torch.float64).cpu().numpy()
    below = (p.table * (p.table <= mine)).sum(-1, dtype=torch.float64)[usable]
    place = np.minimum(above + uniform * x.p.double().cpu().numpy(), 1)[usable.cpu().numpy()]
    counts = np.bincount(np.minimum((place * BINS).astype(int), BINS - 1), minlength=BINS)
    return {
        "ranks": counts.tolist(),
        "rarest": min(1.0, float(below.min())) if len(below) else 1.0,
    }


def _under(p: Tensor, score: Tensor, text: Sequence[int], usable: Tensor) -> dict[str, float]:
    """Sum over the tokens of a score (n, V) less its mean under p, with its variance under p and one term's bounds."""
    tokens = torch.tensor(list(text), device=p.device)[:, None]
    mean = (p * score).sum(-1, dtype=torch.float64)
    variance = ((p * score * score).sum(-1, dtype=torch.float64) - mean**2).clamp_min(0)
    terms = score.gather(1, tokens)[:, 0].double() - mean
    highest = score.masked_fill(p == 0, -torch.inf).max(-1).values - mean
    lowest = score.masked_fill(p == 0, torch.inf).min(-1).values - mean
    return {
        "sum": float(terms[usable].sum()),
        "var": float(variance[usable].sum()),
        "up": float(highest.max()),
        "down": float(-lowest.min()),
    }


def _at_tested(
    p: Warped,
    q: Warped,
    text: Sequence[int],
    usable: Tensor,
    where: list[int],
    kept: list[bool],
    overlap: Sequence[float] | None,
) -> dict[str, Any]:
    """The sums over tested positions, and the positions that no right accept rule could leave so."""
    use = torch.tensor([bool(usable[place]) for place in where], dtype=torch.bool)
    tested = torch.tensor(where, dtype=torch.long)
    at, was = tested[use], torch.tensor(kept, dtype=torch.bool)[use]
    p_x, q_x = (At(*(part.cpu()[at] for part in one.at(text))) for one in (p, q))
    slack = (p.slack + q.slack).clamp_max(80)[:, 0].cpu()
    alpha = torch.minimum(p.table, q.table).sum(-1, dtype=torch.float64).clamp_max(1).cpu()
    chance = (q_x.p.double() / p_x.p.double()).clamp_max(1)
    misplaced = (was & ~q_x.possible) | (~was & (q_x.low > p_x.high * slack[at].exp()))
    noise = {"noise": float((torch.expm1(slack[at] / TYPICAL) / 2).clamp_max(1).sum())}
    found: dict[str, Any] = {
        "accepted": _kept_against(was, alpha[at])
        | {"seen": int(was.sum()), "expected": float(alpha[at].sum()), **noise},
        "given": _kept_against(was, chance) | noise,
        "misplaced": int(misplaced.sum()),
    }
    if overlap is not None:
        bound = torch.expm1(slack) + (p.unsure + q.unsure).cpu() + 1e-4
        told = torch.tensor(list(overlap), dtype=torch.float64)
        same = min(len(told), len(tested))
        gap = (told[:same] - alpha[tested[:same]]).abs()
        off = int((gap > bound[tested[:same]]).sum())
        found |= {"overlap_off": off, "overlap_gap": float(gap.max()) if same else 0.0}
    return found


def _kept_against(was: Tensor, chance: Tensor) -> dict[str, float]:
    """Sum of (accepted - chance), its variance, and the bounds of one term."""
    return {
        "sum": float((was.double() - chance).sum()),
        "var": float((chance * (1 - chance)).sum()),
        "up": float((1 - chance).max()) if len(chance) else 0.0,
        "down": float(chance.max()) if len(chance) else 0.0,
    }
