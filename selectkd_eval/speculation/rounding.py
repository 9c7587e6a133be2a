"""What does rounding leave of a distribution? Ties of logits, and cuts that nobody can be sure of.

Two right engines compute the same logits by other kernels, so the last bits differ: two logits may tie, and a token at
the edge of top-k or top-p is kept by one and cut off by the other. The gate blames no engine for either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from selectkd_eval.sampling import Sampling

# Two logits this many units in the last place apart are a tie. One row and gamma + 1 rows go through different matrix
# kernels: in half precision that is worth an ulp or two per logit and grows with depth; in fp32 the last bits of every
# layer add up. Of 4800 tokens of a random 32-layer model cached decoding changed 110 in bf16, by at most 4 ulp, and 15
# in fp16, by at most 2; in fp32 the logits of the five best moved by up to 68. A wrong cache misses by far more.
TIE_ULPS = {torch.float32: 128, torch.bfloat16: 8, torch.float16: 8}
HEADS = (512, 8192)  # largest scores that are looked at before all of them are
TYPICAL = 8  # what rounding usually makes of two logits' difference is this much less than the worst that was seen


class At(NamedTuple):
    """What a warped distribution says of given tokens, (n,) each.

    `p` their probabilities, `low` and `high` what rounding can make of them through the cut (0 where it can cut the
    token off); `possible`: not cut off beyond doubt; `sure`: kept beyond doubt.
    """

    p: Tensor
    low: Tensor
    high: Tensor
    possible: Tensor
    sure: Tensor


class Warped:
    """Distributions ``(n, V)`` after temperature, top-k and top-p, and how sure rounding leaves them.

    `slack` (n, 1) is the error, in nats, of a difference of two logits that one engine or another may make.
    """

    def __init__(self, logits: Tensor, dtype: torch.dtype, sampling: Sampling) -> None:
        self.table = sampling.probabilities(logits)
        self.slack = slack_of(logits, dtype) / sampling.temperature
        self.whole = torch.softmax(logits / sampling.temperature, dim=-1)
        self.possible, self.sure = supports(logits / sampling.temperature, sampling, self.slack)

    @property
    def unsure(self) -> Tensor:
        """Share of the kept mass (n,) that rounding can cut off."""
        kept = (self.whole * self.possible).sum(-1)
        return 1 - (self.whole * self.sure).sum(-1) / kept

    def at(self, text: Sequence[int]) -> At:
        """What the n distributions say of one token each."""
        x = torch.tensor(list(text), device=self.table.device)[:, None]

        def of(table: Tensor) -> Tensor:
            return table.gather(1, x)[:, 0]

        most, least = ((self.whole * kept).sum(-1) for kept in (self.possible, self.sure))
        possible, sure = of(self.possible) & (of(self.whole) > 0), of(self.sure)
        low = torch.where(sure, of(self.whole) / most, 0)
        high = torch.where(possible, (of(self.whole) / least).clamp_max(1), 0)
        return At(of(self.table), low, high, possible, sure)


def supports(scores: Tensor, sampling: Sampling, slack: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens that top-k and top-p may keep when rounding moves scores by `slack`, and those that they keep anyhow."""
    possible, sure = torch.ones_like(scores, dtype=torch.bool), torch.ones_like(scores, dtype=torch.bool)
    if not sampling.cuts:
        return possible, sure
    k, width = sampling.top_k, scores.shape[-1]
    if 0 < k < width:
        values = scores.topk(k + 1, dim=-1).values
        possible = scores >= values[:, k - 1 : k] - slack
        sure = scores > values[:, k : k + 1] + slack
    if sampling.top_p < 1:
        values, share = _head(scores, sampling, slack)
        mass = torch.nn.functional.pad(share.cumsum(-1), (1, values.shape[-1] - share.shape[-1]), value=1.0)
        mass[:, 0] = 0
        above, around = (
            mass.gather(1, torch.searchsorted(-values, -(scores + shift), right=False)) for shift in (slack, -slack)
        )
        possible = possible & (above < sampling.top_p + slack)
        sure = sure & (around - torch.softmax(scores, dim=-1) < sampling.top_p - slack)
    return possible, sure


def _head(scores: Tensor, sampling: Sampling, slack: Tensor) -> tuple[Tensor, Tensor]:
    """The largest scores from the top down, and the shares that top-p adds up: as many as decide about every token.

    Sorting 150,000 is what this costs; what lies below a head that holds more than top_p is cut off anyhow.
    """
    k, width = sampling.top_k, scores.shape[-1]
    if 0 < k < width:
        values = scores.topk(k + 1, dim=-1).values
        return values, torch.softmax(values[:, :k], dim=-1)
    for size in (*(head for head in HEADS if head < width), width):
        values = scores.topk(size, dim=-1).values
        share = torch.exp(values - scores.logsumexp(-1, keepdim=True))
        if bool((share.sum(-1, keepdim=True) >= sampling.top_p + slack + 2 * share[:, -1:]).all()):
            break
    return values, share


def slack_of(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """``(n, 1)``: how far two engines' differences of two logits of a row may lie apart by rounding."""
    return TIE_ULPS[dtype] * ulp(logits.abs().max(-1, keepdim=True).values, dtype)


def ulp(largest: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.finfo(dtype).eps * torch.exp2(largest.abs().clamp_min(1e-6).log2().floor())
