"""Which positions does the teacher accept? The paper's section 4.1: propose and verify.

A verifier turns the two next-token distributions into an acceptance in [0, 1] per position; `token_stats.weigh`
turns that into the weight ``V_t = beta + (1 - beta) * acceptance`` that multiplies the loss (Eqs. 9 and 12).
beta = 0 is the hard mask of SpecKD, beta = 1 is plain distillation. The Hellinger score (Eq. 7) is a weight,
not a test: it has neither an acceptance nor a beta, and it gives *more* weight to disagreement. Weights never
carry a gradient (the paper's footnote 1).

Spec-k in closed form. One draw from q passes the test of Eq. 11 with probability ``sum_v min(p, q) = 1 -
TV``, the k draws are independent, and Eq. 12 asks only whether at least one passed. So ``P(accepted) = 1 -
TV**k``, exactly: the expected weight needs no draws and no noise, and a sampled gate needs one coin of that
probability instead of k draws over the vocabulary, with the same law as Algorithm 1's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from selectkd_eval.divergences import tvd
from selectkd_eval.errors import InputError


def top_k(log_p: Tensor, log_q: Tensor, k: int) -> Tensor:
    """Greedy Top-k (Eqs. 8-9): 1.0 where the student's argmax is among the teacher's k likeliest tokens, else
    0.0.

    ``(..., V), (..., V) -> (...)``. No sort: the proposal is in the top k when fewer than k tokens are
    *strictly* likelier, so a tie at the k-th place accepts. Ties in the student's argmax go to the lowest
    token id.
    """
    proposal = log_q.argmax(-1, keepdim=True)
    likelier = (log_p > log_p.gather(-1, proposal)).sum(-1)
    return (likelier < k).to(torch.float32)


def spec_k_expected(log_p: Tensor, log_q: Tensor, k: int) -> Tensor:
    """Spec-k (Eqs. 10-12) without noise: the probability ``1 - TV(p, q)**k`` that one of k draws is
    accepted.
    """
    return spec_k_acceptance(1 - tvd(log_p, log_q).clamp(0, 1), k)


def spec_k_acceptance(overlap: Tensor, k: int) -> Tensor:
    """The same from the overlap ``sum_v min(p, q) = 1 - TV`` of each position."""
    return 1 - (1 - overlap) ** k


def hellinger(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Hellinger distance ``sqrt(1 - BC)`` in [0, 1] (Eq. 7), from one pass: ``log BC = LSE((log p + log q) /
    2)``.
    """
    log_bc = torch.logsumexp((log_p + log_q) / 2, dim=-1)
    return (-torch.expm1(log_bc)).clamp(0, 1).sqrt()


@dataclass(frozen=True)
class Verifier:
    """A row of the table: what ``--verifier NAME`` means, and which of k and beta it listens to."""

    name: str
    formula: str
    source: str
    uses_k: bool = False
    uses_beta: bool = False
    needs_teacher: bool = True


VERIFIERS: dict[str, Verifier] = {
    v.name: v
    for v in (
        Verifier("none", "V_t = 1", "plain distillation", needs_teacher=False),
        Verifier("hellinger", "V_t = H(p_t, q_t)", "paper Eq. 7"),
        Verifier("top-k", "V_t = beta + (1-beta) 1[argmax q_t in Top_k(p_t)]", "paper Eqs. 8-9", True, True),
        Verifier(
            "spec-k",
            "V_t = beta + (1-beta) 1[some of k draws accepted]",
            "paper Eqs. 10-12",
            True,
            True,
        ),
    )
}


def check_gate(k: int, beta: float) -> None:
    """Refuse a gate that cannot be meant: k is a count of candidates, beta a share of the full weight."""
    if k < 1:
        raise InputError(f"k counts the verified candidates and must be at least 1, but {k} was given")
    if not 0 <= beta <= 1:
        raise InputError(f"beta is the weight of a rejected token and must lie in [0, 1], but {beta} was given")
