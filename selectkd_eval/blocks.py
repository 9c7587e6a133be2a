"""From a few rows of logits to their loss, statistics and gradient: the elementwise part of `chunked`.

A function of tensors alone; how many rows it gets at a time is `chunked`'s choice. Semantics are not decided here:
gate and statistics are `token_stats.weigh`'s, values and gradients `gradients`', temperatures, coefficients and shares
the rows' and the specification's, as in the plain loss. It is not put through ``torch.compile``, which would halve its
time but took the parameters of an earlier call for those of a later one where a schedule moves them (torch 2.13).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from selectkd_eval.divergences import DIVERGENCES
from selectkd_eval.gradients import value_and_gradient
from selectkd_eval.heads import Head
from selectkd_eval.loss import LOG_ZERO, rolled
from selectkd_eval.objective import LossSpec, Term
from selectkd_eval.token_stats import Rows, Weighed, weigh


class Known(NamedTuple):
    """What is known of R tokens besides their logits. `share`: the normaliser's factor; None is 1."""

    rows: Rows
    coefficients: tuple[Tensor | float, ...]  # of every term, ``(R,)`` or a number
    tau: Tensor | None
    share: Tensor | None


class Distributions(NamedTuple):
    """Log-probabilities and probabilities ``(R, V)``; the teacher's are None where there is none."""

    log_p: Tensor | None
    log_q: Tensor
    p: Tensor | None
    q: Tensor


class Measured(NamedTuple):
    """``sum_m c_m D_m`` per token ``(R,)``; gate and statistics; the gradient on the student's products ``(R, V)``."""

    value: Tensor
    weighed: Weighed
    pull: Tensor | None


@torch.no_grad()
def measured(
    products_p: Tensor | None,
    products_q: Tensor,
    head_p: Head | None,
    head_q: Head,
    known: Known,
    spec: LossSpec,
    watch: bool,
    gradient: bool,
) -> Measured:
    """Loss, statistics and, as asked, the gradient of R tokens from the products ``W h`` ``(R, V)`` of both heads.

    The gradient carries everything that multiplies it: coefficients, temperature, gate, share and the head's slope.
    Products in full precision are overwritten.
    """
    log_p = None
    if products_p is not None and head_p is not None:
        log_p = _log_softmax_(rolled(_logits(products_p, head_p), known.rows.shifts), _closed(head_p))
    z_q = _logits(products_q, head_q)
    slope = head_q.slope(z_q)
    log_q = _log_softmax_(z_q, _closed(head_q))
    plain = Distributions(log_p, log_q, None if log_p is None else log_p.exp(), log_q.exp())
    weighed = weigh(*plain, known.rows, spec, watch)
    value, pulls = _terms(plain, known, spec, gradient)
    if not gradient:
        return Measured(value, weighed, None)
    weight = weighed.weight if known.share is None else weighed.weight * known.share
    pull = torch.zeros_like(log_q) if not pulls else _summed_(pulls, weight, slope)
    return Measured(value, weighed, pull)


def _terms(
    plain: Distributions, known: Known, spec: LossSpec, gradients: bool
) -> tuple[Tensor, list[tuple[Tensor, Tensor | float]]]:
    """``sum_m c_m D_m`` per token, and every term's gradient on the logits with the factor it counts by."""
    warm, tau = _tempered(plain, known, spec)
    total, pulls = plain.log_q.new_zeros(plain.log_q.shape[0]), []
    for term, coefficient in zip(spec.terms, known.coefficients, strict=True):
        chosen = coefficient.to(total.dtype) if isinstance(coefficient, Tensor) else None
        if chosen is not None and chosen.device.type == "cpu" and not chosen.any():
            continue  # elsewhere asking would stall the device
        tempered = DIVERGENCES[term.divergence].needs_teacher
        value, gradient = _value_and_gradient(term, warm if tempered else plain, known.rows.targets, gradients)
        if chosen is not None:  # a coefficient of 0 silences even an infinite divergence
            value.masked_fill_(chosen == 0, 0.0)
            if gradient is not None and gradient.shape[0] > 1:
                gradient.masked_fill_((chosen == 0).unsqueeze(-1), 0.0)
        factor = coefficient if chosen is None else chosen
        if tau is not None and tempered:
            total = total + factor * (value * tau**2 if spec.tau_squared else value)
            factor = factor * tau if spec.tau_squared else factor / tau
        else:
            total = total + factor * value
        if gradient is not None:
            pulls.append((gradient, factor))
    return total, pulls


def _tempered(plain: Distributions, known: Known, spec: LossSpec) -> tuple[Distributions, Tensor | None]:
    """The distributions that the terms see, and their temperatures. Softmax does not mind that it is given
    log-probabilities in the logits' place.
    """
    log_p, log_q, _, q = plain
    if log_p is None or (known.tau is None and spec.target == 1):
        return plain, None
    if spec.target < 1:
        log_p = torch.lerp(log_q, log_p, spec.target)
    tau = None
    if known.tau is not None:
        tau = known.tau.to(log_q.dtype)
        log_p, log_q = log_p / tau.unsqueeze(-1), _log_softmax_(log_q / tau.unsqueeze(-1))
        q = log_q.exp()
    log_p = _log_softmax_(log_p)
    return Distributions(log_p, log_q, log_p.exp(), q), tau


def _value_and_gradient(
    term: Term, given: Distributions, targets: Tensor, gradient: bool
) -> tuple[Tensor, Tensor | None]:
    log_p, log_q, p, q = given
    if gradient:
        return value_and_gradient(term.divergence, log_p, log_q, p, q, targets, term.parameters)
    return DIVERGENCES[term.divergence](log_p, log_q, targets, **term.parameters), None


def _summed_(pulls: list[tuple[Tensor, Tensor | float]], weight: Tensor, slope: Tensor | float) -> Tensor:
    """``slope * weight * sum_m factor_m G_m`` ``(R, V)``; the gradients are overwritten."""
    if isinstance(slope, float):
        weight = weight * slope
    (total, factor), *others = pulls
    total.mul_((weight * factor).unsqueeze(-1))
    for gradient, factor in others:
        total.addcmul_(gradient, (weight * factor).unsqueeze(-1))
    return total.mul_(slope) if isinstance(slope, Tensor) else total


def _logits(products: Tensor, head: Head) -> Tensor:
    """Logits in full precision, in place of products in full precision."""
    return head.finish_(products.to(torch.promote_types(products.dtype, torch.float32)))


def _closed(head: Head) -> bool:
    """Whether an entry may be closed altogether. Only a bias of minus infinity does that: products of numbers are
    numbers.
    """
    return head.bias is not None


def _log_softmax_(logits: Tensor, closed: bool = True) -> Tensor:
    """`loss.log_softmax` in place; where no entry is `closed`, all are finite as they are."""
    log_x = torch.log_softmax(logits, -1, out=logits)
    return log_x.clamp_min_(LOG_ZERO) if closed else log_x
