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
        kept, order = self._largest(p)
        if self.top_p < 1:
            kept = kept.masked_fill(kept.cumsum(-1) - kept >= self.top_p, 0)
        return torch.zeros_like(p).scatter_(-1, order, kept / kept.sum(-1, keepdim=True))

    def _largest(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """From the largest down, as many probabilities as the cuts can leave, and their tokens: the top k, summing to
        1, or a head with at least top_p.
        """
        if self.top_k:
            kept, order = p.topk(min(self.top_k, p.shape[-1]), dim=-1)
            return kept / kept.sum(-1, keepdim=True), order
        if p.device.type == "cpu" and p.shape[-1] > 4 * _HEAD:
            # A whole sort of 32,000 takes longer than many a draft's call, and the head nearly always suffices.
            kept, order = p.topk(_HEAD, dim=-1)
            if float(kept.sum(-1).min()) > self.top_p:
                return kept, order
        return p.sort(dim=-1, descending=True, stable=True)

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
_HEAD = 512


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
    """One token per row ``(n, 1)``: where the cumulative mass passes `uniform` ``(n,)``, numbers of `uniform_rows`.

    Rows need not sum to 1, but must not be all zero; a token of probability 0 is never drawn.
    """
    mass = probabilities.cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(mass, uniform[:, None] * mass[:, -1:], right=True)


def uniform_rows(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """fp64 numbers for `draw`, where the generator is: in [0, 1), and so far below 1 that their product with a whole
    mass stays below it, because rounding up would pass the last possible token.
    """
    numbers = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)
    return numbers.mul_(1 - 2.0**-50)


def uniforms(seed: int, length: int) -> Tensor:
    """The stream of one text: number t decides its token t, so a longer stream begins with a shorter one."""
    return torch.rand(length, generator=torch.Generator().manual_seed(seed))
