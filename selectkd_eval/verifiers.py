"""Which positions does the teacher accept? The paper's section 4.1: propose and verify.

A verifier turns the two next-token distributions into an acceptance in [0, 1] per position; ``token_weights``
turns that into the weight ``V_t = beta + (1 - beta) * acceptance`` that multiplies the loss (Eqs. 9 and 12).
beta = 0 is the hard mask of SpecKD, beta = 1 is plain distillation. The Hellinger score (Eq. 7) is a weight,
not a test: it has neither an acceptance nor a beta, and it gives *more* weight to disagreement. Weights never
carry a gradient (the paper's footnote 1).

Spec-k in closed form. One draw from q passes the test of Eq. 11 with probability ``sum_v min(p, q) = 1 -
TV``, the k draws are independent, and Eq. 12 asks only whether at least one passed. So ``P(accepted) = 1 -
TV**k``, exactly: the expected weight needs no draws and no noise. The draws are here too
(``spec_k_sampled``), for parity with Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from selectkd_eval.divergences import tvd
from selectkd_eval.errors import InputError

SpecMode = Literal["expected", "sampled"]


def none(log_p: Tensor | None, log_q: Tensor) -> Tensor:
    """No selection: 1.0 at every position, plain distillation."""
    return torch.ones(log_q.shape[:-1], dtype=torch.float32, device=log_q.device)


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
    return 1 - tvd(log_p, log_q).clamp(0, 1) ** k


def spec_k_sampled(
    log_p: Tensor, log_q: Tensor, k: int, generator: torch.Generator | Sequence[torch.Generator] | None
) -> Tensor:
    """Spec-k by real draws: 1.0 where at least one of k tokens ``v ~ q`` has ``r < min(1, p(v) / q(v))``,
    else 0.0.

    A sequence of generators holds one per leading index (one per sentence): then what a sentence draws does
    not depend on which others share its batch, and 8 micro-batches of 1 see the same gates as 1 of 8.
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        rows = [spec_k_sampled(p, q, k, g) for p, q, g in zip(log_p, log_q, generator, strict=True)]
        return torch.stack(rows)
    vocabulary = log_q.shape[-1]
    flat_p, flat_q = log_p.reshape(-1, vocabulary), log_q.reshape(-1, vocabulary)
    # A diverged student has NaN probabilities, on which multinomial dies; its loss is NaN too, which is
    # reported.
    draws = torch.multinomial(flat_q.exp().nan_to_num(1.0), k, replacement=True, generator=generator)
    ratio = (flat_p.gather(-1, draws) - flat_q.gather(-1, draws)).exp()
    r = torch.rand(draws.shape, generator=generator, device=draws.device, dtype=ratio.dtype)
    return (r < ratio).any(-1).to(torch.float32).reshape(log_q.shape[:-1])


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
    function: Callable[..., Tensor]
    formula: str
    source: str
    uses_k: bool = False
    uses_beta: bool = False
    needs_teacher: bool = True


VERIFIERS: dict[str, Verifier] = {
    v.name: v
    for v in (
        Verifier("none", none, "V_t = 1", "plain distillation", needs_teacher=False),
        Verifier("hellinger", hellinger, "V_t = H(p_t, q_t)", "paper Eq. 7"),
        Verifier("top-k", top_k, "V_t = beta + (1-beta) 1[argmax q_t in Top_k(p_t)]", "paper Eqs. 8-9", True, True),
        Verifier(
            "spec-k",
            spec_k_expected,
            "V_t = beta + (1-beta) 1[some of k draws accepted]",
            "paper Eqs. 10-12",
            True,
            True,
        ),
    )
}


@torch.no_grad()
def token_weights(
    name: str,
    log_p: Tensor | None,
    log_q: Tensor,
    *,
    k: int,
    beta: float,
    mode: SpecMode = "expected",
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Loss weight ``V_t`` and acceptance per position, both ``(...)``, for log-probabilities ``(..., V)``.

    The acceptance is None for the Hellinger score, which accepts nothing. Raises InputError for k < 1, beta
    outside [0, 1], or a verifier without a teacher to ask.
    """
    if name == "none":
        everywhere = none(log_p, log_q)
        return everywhere, everywhere
    check_gate(k, beta)
    if log_p is None:
        raise InputError(f"the verifier {name!r} asks a teacher, but no teacher was given; pass --teacher")
    if name == "hellinger":
        return hellinger(log_p, log_q), None
    if name == "top-k":
        acceptance = top_k(log_p, log_q, k)
    elif mode == "sampled":
        acceptance = spec_k_sampled(log_p, log_q, k, generator)
    else:
        acceptance = spec_k_expected(log_p, log_q, k)
    return beta + (1 - beta) * acceptance, acceptance


def check_gate(k: int, beta: float) -> None:
    """Refuse a gate that cannot be meant: k is a count of candidates, beta a share of the full weight."""
    if k < 1:
        raise InputError(f"k counts the verified candidates and must be at least 1, but {k} was given")
    if not 0 <= beta <= 1:
        raise InputError(f"beta is the weight of a rejected token and must lie in [0, 1], but {beta} was given")
