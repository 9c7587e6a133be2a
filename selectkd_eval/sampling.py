"""Which token follows? Temperature, top-k and top-p, in Hugging Face's order, and the draw itself.

One rule for everything that decodes: answers, training text and both models of speculative decoding, where the draft's
q must be warped exactly as the target's p.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Sampling(NamedTuple):
    """Decoding rule. Temperature 0 is greedy; ties go to the lowest token id."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0

    @property
    def greedy(self) -> bool:
        return self.temperature <= 0

    @property
    def cuts(self) -> bool:
        """Whether some tokens are left out."""
        return self.top_k > 0 or self.top_p < 1

    def probabilities(self, logits: Tensor) -> Tensor:
        """``(n, V)`` logits to the fp32 distributions that tokens are drawn from; temperature must be above 0."""
        p = torch.softmax(logits.float() / self.temperature, dim=-1)
        if not self.cuts:
            return p
        kept, order = self.sorted(logits)
        return torch.zeros_like(p).scatter_(-1, order, kept / kept.sum(-1, keepdim=True))

    def sorted(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities from the largest down, 0 where cut off and then not summing to 1, and their tokens."""
        probabilities, order = torch.softmax(logits.float() / self.temperature, dim=-1).sort(
            dim=-1, descending=True, stable=True
        )
        if self.top_k:
            probabilities[:, self.top_k :] = 0
        if self.top_p < 1:
            # The nucleus is the smallest head of the list with at least top_p of what top_k left; it is never empty.
            share = probabilities / probabilities.sum(-1, keepdim=True)
            probabilities = probabilities.masked_fill(share.cumsum(-1) - share >= self.top_p, 0)
        return probabilities, order


GREEDY = Sampling()


def pick(logits: Tensor, sampling: Sampling, uniform: Tensor | None) -> Tensor:
    """One token per row of logits (B, V): the argmax, or where the cumulative mass passes `uniform` (B,)."""
    if sampling.greedy or uniform is None:
        return logits.argmax(dim=-1)
    probabilities, order = sampling.sorted(logits)
    mass = probabilities.double().cumsum(-1)
    place = torch.searchsorted(mass, uniform.double()[:, None] * mass[:, -1:], right=True)
    last = (probabilities > 0).sum(-1, keepdim=True) - 1  # a draw that rounds up to 1 must not leave the nucleus
    return order.gather(1, place.minimum(last))[:, 0]


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """One token per row ``(n, 1)``: where the cumulative mass passes `uniform` ``(n,)``, fp64 in [0, 1).

    Rows need not sum to 1, but must not be all zero; a token of probability 0 is never drawn.
    """
    mass = probabilities.double().cumsum(-1)
    # The factor keeps the product below the whole mass, where rounding could pass the last possible token.
    return torch.searchsorted(mass, uniform[:, None] * (mass[:, -1:] * (1 - 2.0**-50)), right=True)


def uniforms(seed: int, length: int) -> Tensor:
    """The stream of one text: number t decides its token t, so a longer stream begins with a shorter one."""
    return torch.rand(length, generator=torch.Generator().manual_seed(seed))
