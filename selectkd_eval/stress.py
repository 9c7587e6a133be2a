"""What if the teacher is confidently wrong? Corrupting p at a known share of positions, to see whether a gate notices.

At a chosen position the teacher's distribution is rolled along the vocabulary: just as confident as before, about
other tokens. Adding mass on one random token instead would leave the true candidates among the teacher's first
k, and no rank test could notice. Which positions and how far depends on the seed, the prompt and the position alone,
so every arm and every resumed run meets the same corruption. This is a stress test of ours, not an experiment of
the paper; the share is a fact in the record's header. The rolling itself is `loss.rolled`.
"""

from __future__ import annotations

import hashlib

import torch


def corruption(seed: int, prompt: str, length: int, share: float, vocabulary: int) -> list[int]:
    """For every position of a sequence how far p is rolled, from 1 to V - 1, or 0 where it is left alone."""
    digest = hashlib.sha256(f"{seed} {prompt}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    # Two columns per position: a longer sequence only adds rows, so a position's fate never depends on the length.
    draws = torch.rand(length, 2, generator=generator, dtype=torch.float64)
    shifts = 1 + (draws[:, 1] * (vocabulary - 1)).long().clamp(max=vocabulary - 2)
    return torch.where(draws[:, 0] < share, shifts, 0).tolist()
