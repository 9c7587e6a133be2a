"""Which tokens does a method choose, and how warm is each, once the whole update has been looked at?

AdaKD (arXiv 2510.11615) keeps the tokens with the largest Hellinger distance and gives each a temperature around the
median of those distances; AdaSPEC (arXiv 2510.19779) keeps the tokens whose divergence a reference model had already
lowered most; ATKD (arXiv 2402.11890) halves the tokens at the median of the teacher's uncertainty. All of these depend
on the other tokens of the update. So they are taken in three steps: `scores` per token (of every micro-batch and rank),
`read` over all of them together, `planned` per token again. Splitting an update into micro-batches or over ranks then
changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from selectkd_eval.divergences import fkl
from selectkd_eval.errors import InputError
from selectkd_eval.objective import LossSpec
from selectkd_eval.token_stats import TokenPlan
from selectkd_eval.verifiers import hellinger


class Scores(NamedTuple):
    """What a token is chosen by, ``(N,)`` each, None where the specification does not ask."""

    distance: Tensor | None = None  # Hellinger H(p, q)
    uncertainty: Tensor | None = None  # 1 - p[y]
    excess: Tensor | None = None  # FKL(p || q) - FKL(p || reference)


class Reading(NamedTuple):
    """What the whole update says."""

    threshold: float = -math.inf  # a selection keeps scores at or above it
    median_distance: float = 0.0
    median_uncertainty: float = 0.0
    easy: int = 0
    hard: int = 0


@torch.no_grad()
def scores(spec: LossSpec, log_p: Tensor | None, log_q: Tensor, targets: Tensor, log_r: Tensor | None = None) -> Scores:
    """The scores that the specification asks for, from log-probabilities ``(N, V)`` at temperature 1."""
    if log_p is None:
        raise InputError("choosing tokens asks a teacher, but no teacher was given; pass --teacher")
    excess = None
    if spec.selection == "learnable":
        if log_r is None:
            raise InputError("AdaSPEC's filter compares with a reference model, but none was given; pass --reference")
        width = min(log_p.shape[-1], log_r.shape[-1])
        excess = fkl(log_p, log_q) - fkl(log_p[..., :width], log_r[..., :width])
    uncertainty = None
    if any(term.part for term in spec.terms) or spec.normaliser == "class_mean":
        uncertainty = -torch.expm1(log_p.gather(-1, targets.unsqueeze(-1)).squeeze(-1))
    distance = hellinger(log_p, log_q) if spec.selection == "hardest" or spec.idts > 0 else None
    return Scores(distance, uncertainty, excess)


def read(spec: LossSpec, found: Scores) -> Reading:
    """Thresholds, medians and counts over all tokens of an update."""
    reading = Reading()
    chosen_by = found.distance if spec.selection == "hardest" else found.excess
    threshold = -math.inf
    if spec.selection and spec.share < 1 and chosen_by is not None:
        # The share is rounded up: an update never loses all its tokens. Ties at the threshold are all kept.
        keep = math.ceil(spec.share * chosen_by.numel())
        threshold = float(chosen_by.double().kthvalue(chosen_by.numel() - keep + 1).values)
        reading = reading._replace(threshold=threshold)
    if spec.idts > 0 and found.distance is not None:
        among = found.distance.double()
        if spec.idts_median == "selected":
            among = among[among >= threshold]
        reading = reading._replace(median_distance=_median(among))
    if found.uncertainty is not None:
        median = _median(found.uncertainty.double())
        hard = int((found.uncertainty.double() >= median).sum())
        reading = reading._replace(median_uncertainty=median, hard=hard, easy=found.uncertainty.numel() - hard)
    return reading


@torch.no_grad()
def planned(spec: LossSpec, reading: Reading, found: Scores) -> TokenPlan:
    """What the reading means for the tokens that these scores belong to."""
    selection = tau = hard = class_share = None
    chosen_by = found.distance if spec.selection == "hardest" else found.excess
    if spec.selection and spec.share < 1 and chosen_by is not None:
        selection = (chosen_by.double() >= reading.threshold).to(chosen_by.dtype)
    if spec.idts > 0 and found.distance is not None:
        tau = spec.temperature * torch.exp(-spec.idts * relative_difficulty(found.distance, reading.median_distance))
    if found.uncertainty is not None:
        hard = found.uncertainty.double() >= reading.median_uncertainty
        class_share = torch.where(hard, 1 / max(reading.hard, 1), 1 / max(reading.easy, 1))
    return TokenPlan(selection, tau, hard, class_share)


def relative_difficulty(distance: Tensor, median: float) -> Tensor:
    """``tanh(log(s / median)) = (s^2 - m^2) / (s^2 + m^2)`` in [-1, 1]; 0 where both are 0 (AdaKD, Eq. 9)."""
    squared, middle = distance**2, median**2
    total = squared + middle
    return torch.where(total > 0, (squared - middle) / total, 0.0)


def joined(parts: Sequence[Scores]) -> Scores:
    """The scores of several micro-batches as one."""
    columns = zip(*parts, strict=True)
    return Scores(*(None if column[0] is None else torch.cat(column) for column in columns))


def _median(values: Tensor) -> float:
    # Tensor.quantile stops at 16 million values.
    ordered, count = values.sort().values, values.numel()
    return float((ordered[(count - 1) // 2] + ordered[count // 2]) / 2) if count else 0.0
