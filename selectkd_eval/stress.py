"""What if the teacher is confidently wrong? Corrupting p at a known share of positions, to see whether a gate
notices.

At a chosen position the teacher becomes ``0.9 * one random token + 0.1 * p``. Which positions and which
tokens depends on the seed, the prompt and the position alone, so every arm and every resumed run meets the
same corruption. This is a stress test of ours, not an experiment of the paper; the share is a fact in the
record's header.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

WRONG = 0.9  # probability mass of the random token


def wrong_tokens(seed: int, prompt: str, length: int, share: float, vocabulary: int) -> list[int]:
    """For every position of a sequence the wrong token's id, or -1 where the teacher is left alone."""
    digest = hashlib.sha256(f"{seed} {prompt}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    # Two columns per position: a longer sequence only adds rows, so a position's fate never depends on the
    # length.
    draws = torch.rand(length, 2, generator=generator, dtype=torch.float64)
    tokens = (draws[:, 1] * vocabulary).long().clamp(max=vocabulary - 1)
    return torch.where(draws[:, 0] < share, tokens, -1).tolist()


def corrupt(logits_p: Tensor, wrong: Tensor) -> Tensor:
    """Log-probabilities ``(B, T, V)`` of the corrupted teacher; ``wrong`` ``(B, T)`` aligned with what logits
    predict.
    """
    log_p = logits_p.float().log_softmax(-1)
    chosen = wrong >= 0
    index = wrong.clamp(min=0).unsqueeze(-1)
    mixed = log_p + math.log1p(-WRONG)
    raised = torch.logaddexp(mixed.gather(-1, index), torch.full_like(index, math.log(WRONG), dtype=mixed.dtype))
    return torch.where(chosen.unsqueeze(-1), mixed.scatter(-1, index, raised), log_p)
