"""How much of each held-out response is accepted? Validation keeps it response by response, not only as a mean.

With values per response a rise or a fall of TAR between two validations can be tested, and a mean has an interval; from
the means alone neither can be had. Sums over tokens are `token_stats`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from selectkd_eval.token_stats import Rows, Weighed
from selectkd_eval.verifiers import spec_k_acceptance

NAMES = ("tar_top_k", "tar_spec_k", "alpha")  # Greedy Top-k, Spec-k in expectation, 1 - TV


class Responses:
    """Mean acceptance of every response by both gates, and its mean alpha, in the order in which they were asked."""

    def __init__(self) -> None:
        self._found: list[Tensor] = []

    @torch.no_grad()
    def take(self, rows: Rows, k: int, weighed: Weighed) -> None:
        """Add the B responses of one micro-batch; N tokens as in `rows`, both gates asked."""
        assert weighed.top_k is not None and weighed.overlap is not None
        overlap = weighed.overlap.double()
        tokens = torch.stack([weighed.top_k.double(), spec_k_acceptance(overlap, k), overlap])
        means = tokens.new_zeros(len(NAMES), len(rows.lengths)).index_add_(1, rows.sequence, tokens * rows.share)
        self._found.append(torch.cat([means, rows.lengths.to(means).unsqueeze(0)]))

    def row(self) -> dict[str, list[float]]:
        """What a validation row holds: by name one number per response, and `n_tokens`; six digits say enough."""
        table = torch.cat(self._found, dim=1).tolist()
        found = {name: [round(value, 6) for value in values] for name, values in zip(NAMES, table, strict=False)}
        return {"n_tokens": [int(count) for count in table[-1]], **found}
