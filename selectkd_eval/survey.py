"""What do the tokens of a micro-batch look like before anything is learned from them? Scores and anchors, in chunks.

Some recipes decide over the whole update: a quantile of distances (AdaKD), a median of uncertainties (ATKD), how likely
both models find each response (DistiLLM-2's skew). This looks at one micro-batch, chunk by chunk as the loss does, and
returns what `selection` and `controllers` then read over all micro-batches and ranks. It carries no gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from selectkd_eval.controllers import Anchor
from selectkd_eval.heads import Head
from selectkd_eval.loss import common_vocabulary, log_softmax, rolled
from selectkd_eval.objective import SOURCES, LossSpec
from selectkd_eval.selection import Scores, joined, scores
from selectkd_eval.token_stats import Rows

LOGITS = 2**24  # entries of one chunk's logits: 110 tokens of a vocabulary of 152,000


class Frozen(NamedTuple):
    """Hidden rows ``(N, H)`` of a model and the head that reads them."""

    hidden: Tensor
    head: Head


class Findings(NamedTuple):
    """Per token and per sequence of one micro-batch, on the host."""

    scores: Scores
    anchors: list[Anchor]


@torch.no_grad()
def survey(spec: LossSpec, rows: Rows, teacher: Frozen, student: Frozen, reference: Frozen | None = None) -> Findings:
    """Look at every response token once; `reference` is AdaSPEC's third model."""
    width = min(teacher.head.weight.shape[0], student.head.weight.shape[0])
    size = max(1, LOGITS // width)
    parts: list[Scores] = []
    log_y_p, log_y_q = [], []
    for start in range(0, rows.targets.numel(), size):
        piece = rows.cut(start, start + size)
        z_p, z_q = common_vocabulary(_logits(teacher, start, size), _logits(student, start, size))
        assert z_p is not None
        log_p, log_q = log_softmax(rolled(z_p, piece.shifts)), log_softmax(z_q)
        log_r = None if reference is None else log_softmax(_logits(reference, start, size)[..., : z_q.shape[-1]])
        target = piece.targets.unsqueeze(-1)
        parts.append(scores(spec, log_p, log_q, piece.targets, log_r))
        log_y_p.append(log_p.gather(-1, target).squeeze(-1))
        log_y_q.append(log_q.gather(-1, target).squeeze(-1))
    if not parts:
        return Findings(Scores(), [])
    return Findings(_on_host(joined(parts)), _anchors(rows, torch.cat(log_y_p), torch.cat(log_y_q)))


def _logits(model: Frozen, start: int, size: int) -> Tensor:
    return model.head.logits(model.hidden[start : start + size])


def _on_host(found: Scores) -> Scores:
    return Scores(*(None if column is None else column.cpu() for column in found))


def _anchors(rows: Rows, log_p: Tensor, log_q: Tensor) -> list[Anchor]:
    sums = log_p.new_zeros(2, rows.lengths.numel(), dtype=torch.float64)
    sums.index_add_(1, rows.sequence, torch.stack([log_p, log_q]).double())
    source = torch.zeros_like(rows.lengths)
    if rows.source is not None:
        source[rows.sequence] = rows.source
    columns = (source.tolist(), *sums.tolist(), rows.lengths.tolist())
    return [Anchor(SOURCES[s], p, q, n) for s, p, q, n in zip(*columns, strict=True) if n]
