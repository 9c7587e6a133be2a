"""The loss of the paper's Eq. 6 on full logits: masking, weighting and normalising in one place.

    per_seq_mean      1/S  sum_s 1/|y_s| sum_t V_t D_t    Algorithm 1: rejected tokens still count in |y|
    valid_tokens      1/N  sum_s sum_t V_t D_t            N = all response tokens of the whole update
    selected_tokens   sum_s sum_t V_t D_t / sum V_t       at beta = 0 the mean over accepted tokens
    class_mean        sum_c 1/N_c sum_{t in c} V_t D_t    c = the easy and the hard tokens of the update (ATKD)

This is the reference: plain tensor operations and autograd, every logit in memory. `chunked` computes the same from
hidden states without ever holding the logits, and is held to this file by tests. The denominator belongs to the whole
update, not to a micro-batch. The caller passes it where it is known beforehand (S, N) and repairs the gradient
afterwards where it is not (``gradient_repair``), so 8 micro-batches of 1 equal 1 of 8. Quantiles and medians of a whole
update (`selection`) come in as the rows' plan.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from selectkd_eval.divergences import DIVERGENCES
from selectkd_eval.errors import InputError
from selectkd_eval.objective import LossSpec
from selectkd_eval.responses import Responses
from selectkd_eval.selection import planned, read, scores
from selectkd_eval.token_stats import Rows, TokenStats, stats_of, summed, weigh

# Stands for log 0 of an impossible token, so that 0 * log 0 is 0 and no two infinities meet.
LOG_ZERO = -1e30


def selective_loss(
    logits_p: Tensor | None,
    logits_q: Tensor,
    input_ids: Tensor,
    response_mask: Tensor,
    spec: LossSpec,
    *,
    denominator: float | None = None,
    rows: Rows | None = None,
    watch: Responses | None = None,
) -> tuple[Tensor, TokenStats]:
    """The loss of Eq. 6 on one (micro-)batch of logits, normalised, and its statistics.

    ``logits_p``: teacher's ``(B, T, V_p)`` or None; ``logits_q``: student's ``(B, T, V_q)``; ``input_ids``:
    ``(B, T)``; ``response_mask``: ``(B, T)``, true on response *tokens*, end token included. The logits at
    position t - 1 predict token t, so the last prompt position trains the first response token. Different
    vocabulary sizes (padded heads) are cut to the common part before the softmax. ``denominator``: the
    normaliser's count for the whole update; by default this batch's own. ``rows``: what else is known of the
    response tokens; by default their ids and lengths. ``watch``: asks both gates and keeps each response's values.
    """
    if rows is None:
        rows = rows_of(input_ids, response_mask)
    kept = response_mask[:, 1:].bool()
    z_p = None if logits_p is None else logits_p.detach()[:, :-1][kept]
    return token_loss(z_p, logits_q[:, :-1][kept], rows, spec, denominator=denominator, watch=watch)


def rows_of(input_ids: Tensor, response_mask: Tensor) -> Rows:
    """The response tokens of a padded batch ``(B, T)``: one sequence per line, text from the data."""
    kept = response_mask[:, 1:].bool()
    return Rows(targets=input_ids[:, 1:][kept], sequence=kept.nonzero()[:, 0], lengths=kept.sum(1))


def token_loss(
    z_p: Tensor | None,
    z_q: Tensor,
    rows: Rows,
    spec: LossSpec,
    *,
    denominator: float | None = None,
    watch: Responses | None = None,
    z_r: Tensor | None = None,
) -> tuple[Tensor, TokenStats]:
    """The loss of N response tokens from their logits ``(N, V)`` of teacher and student, and the statistics.

    A specification that asks for quantiles or medians takes them from the rows' plan, or, where there is none, from
    these tokens as if they were the whole update (``z_r``: logits of AdaSPEC's reference model).
    """
    require_targets(rows, z_p, z_q)
    if z_p is None and spec.needs_teacher:
        raise InputError(f"the objective {described(spec)} asks a teacher, but no teacher was given; pass --teacher")
    z_p, z_q = common_vocabulary(z_p, z_q)
    z_p = None if z_p is None else rolled(_full_precision(z_p), rows.shifts)
    z_q = _full_precision(z_q)
    log_p, log_q = None if z_p is None else log_softmax(z_p), log_softmax(z_q)
    if spec.needs_reading and rows.plan is None:
        log_r = None if z_r is None else log_softmax(_full_precision(z_r[..., : z_q.shape[-1]]))
        found = scores(spec, log_p, log_q.detach(), rows.targets, log_r)
        rows = Rows(**{**vars(rows), "plan": planned(spec, read(spec, found), found)})
    with torch.no_grad():
        p, q = None if log_p is None else log_p.exp(), log_q.exp()
        weighed = weigh(log_p, log_q, p, q, rows, spec, watch is not None)
    divergence = _divergence(z_p, z_q, log_p, log_q, rows, spec)
    stats = stats_of(summed(rows, spec, divergence.detach(), weighed), rows, watch is not None)
    if watch is not None:
        watch.take(rows, spec.k, weighed)
    weighted = weighed.weight * divergence
    share = rows.normaliser_share(spec.normaliser)
    numerator = (weighted if share is None else weighted * share.to(weighted.dtype)).sum()
    return numerator / (denominator or stats.denominator(spec.normaliser)), stats


def _divergence(
    z_p: Tensor | None, z_q: Tensor, log_p: Tensor | None, log_q: Tensor, rows: Rows, spec: LossSpec
) -> Tensor:
    """``sum_m c_m D_m`` per token: terms at their temperature, against the teacher or TAID's moving target."""
    tau = temperatures(rows, spec)
    if tau is not None or (spec.target < 1 and z_p is not None):
        by = 1.0 if tau is None else tau.unsqueeze(-1)
        towards = None if z_p is None else torch.lerp(z_q.detach(), z_p, spec.target)
        tempered_p = None if towards is None else log_softmax(towards / by)
        tempered_q = log_softmax(z_q / by)
    else:
        tempered_p, tempered_q = log_p, log_q
    total = z_q.new_zeros(z_q.shape[0])
    for term, coefficient in zip(spec.terms, rows.coefficients(spec), strict=True):
        divergence = DIVERGENCES[term.divergence]
        if divergence.needs_teacher:
            value = divergence(tempered_p, tempered_q, rows.targets, **term.parameters)
            if tau is not None and spec.tau_squared:
                value = value * tau.to(value.dtype) ** 2
        else:
            value = divergence(None, log_q, rows.targets, **term.parameters)  # maximum likelihood is not tempered
        # A coefficient of 0 must silence even an infinite divergence.
        if isinstance(coefficient, Tensor):
            value = torch.where(coefficient != 0, value, 0.0)
        total = total + coefficient * value
    return total


def temperatures(rows: Rows, spec: LossSpec) -> Tensor | None:
    """The terms' temperature of each token ``(N,)``; None where all of them are 1."""
    if rows.plan is not None and rows.plan.tau is not None:
        return rows.plan.tau
    if spec.temperature == 1:
        return None
    return torch.full(rows.targets.shape, spec.temperature, device=rows.targets.device)


def gradient_repair(spec: LossSpec, used: float, stats: TokenStats) -> float:
    """Factor for accumulated gradients whose loss was divided by ``used`` instead of the update's true
    denominator.
    """
    return used / stats.denominator(spec.normaliser)


def common_vocabulary(z_p: Tensor | None, z_q: Tensor) -> tuple[Tensor | None, Tensor]:
    """Both heads cut, as views, to the entries they share; the softmax that follows renormalises.

    Qwen2-7B and 1.5B share a tokenizer but pad their heads to 152,064 and 151,936 rows.
    """
    if z_p is None or z_p.shape[-1] == z_q.shape[-1]:
        return z_p, z_q
    size = min(z_p.shape[-1], z_q.shape[-1])
    return z_p[..., :size], z_q[..., :size]


def log_softmax(logits: Tensor) -> Tensor:
    """Log-probabilities that are finite everywhere."""
    return logits.log_softmax(-1).clamp_min(LOG_ZERO)


def rolled(z_p: Tensor, shifts: Tensor | None) -> Tensor:
    """Teacher logits ``(N, V)`` with every row rolled by its shift (the stress test of `stress`)."""
    if shifts is None:
        return z_p
    entries = torch.arange(z_p.shape[-1], device=z_p.device)
    return z_p.gather(-1, (entries - shifts.unsqueeze(-1)) % z_p.shape[-1])


def require_finite(stats: TokenStats, where: str) -> None:
    """Stop at the first loss that is not a number: nothing trained after it would be worth the time."""
    total = stats.weighted + stats.divergence
    if not math.isfinite(total):
        raise InputError(
            f"the loss is {'not a number' if math.isnan(total) else 'infinite'} at {where}: "
            "lower --lr, add --warmup, use a bounded divergence (--divergence skl), or leave out --bf16"
        )


def described(spec: LossSpec) -> str:
    """Terms and gate in a few words, for errors."""
    terms = " + ".join(term.divergence for term in spec.terms)
    return terms if spec.verifier == "none" else f"{terms} with the verifier {spec.verifier}"


def require_targets(rows: Rows, *heads: Tensor | None) -> None:
    """Refuse a batch without response tokens, and token ids that the heads ``(..., V)`` do not share."""
    if rows.targets.numel() == 0:
        raise InputError("a batch has no response token to learn from; check that answers are not empty or cut off")
    width = min(head.shape[-1] for head in heads if head is not None)
    largest = int(rows.targets.max())
    if largest >= width:
        raise InputError(
            f"a response holds token id {largest}, outside the {width} entries both models share; "
            "give a pair with one tokenizer"
        )


def _full_precision(rows: Tensor) -> Tensor:
    return rows if rows.dtype == torch.float64 else rows.float()
