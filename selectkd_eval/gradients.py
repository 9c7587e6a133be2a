"""What does each divergence pull the student's logits towards? Closed forms, without autograd.

For every row of ``divergences.DIVERGENCES``: the value per position and its derivative with respect to the
student's logits ``z_q`` (``log_q = log_softmax(z_q)``, temperature 1), from the log-probabilities and
probabilities that the caller holds anyway. Most rows have the form

    dD/dz_j = q_j (d_j - sum_v q_v d_v),      d_j = dD/dq_j up to a constant

with d = log(q/p) for the reverse KL, log(q/M) for SRKL with a detached mixture and for JSD, and so on; each
function below says its own. Nothing here knows of masks, weights, temperatures or the head's weight matrix.

Mixtures are formed from probabilities: ``log(alpha p + (1 - alpha) q)``, clamped at the smallest normal number,
half the time of ``logaddexp``. That is exact, though both probabilities underflow long before the
log-probabilities do: where the clamp acts, every term is multiplied by a probability below that number divided
by the weight (1e-26 in fp32 for the smallest weight that takes this way), and so vanishes. Zero probabilities
must come with finite log-probabilities (`divergences.LOG_ZERO`), because ``0 * inf`` is not 0.

Sums of products are written ``(a * b).sum(-1)``: ``vecdot`` and ``bmm`` are matrix products to autocast and to
TF32, which would round the factors. On a CPU the rows pass through in blocks that stay in the cache (1.3 to 3
times faster than at once for V = 151,936); elsewhere all rows go at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from selectkd_eval import divergences
from selectkd_eval.divergences import DIVERGENCES, LOG_ZERO, fraction, head_weight
from selectkd_eval.errors import choose

# Elements of a CPU block: half a megabyte per fp32 tensor, so that the handful in use fits the L2 cache.
_BLOCK = 1 << 17

# Below this weight of a mixture, its smallest normal number is no longer small against the weighted probability.
_SMALLEST_WEIGHT = 1e-12

# Below this mass of all tokens but the target (its log), fp32 probabilities no longer carry their proportions.
_FAINT = math.log(1e-28)


@torch.no_grad()
def value_and_gradient(
    name: str,
    log_p: Tensor | None,
    log_q: Tensor,
    p: Tensor | None,
    q: Tensor,
    targets: Tensor,
    parameters: Mapping[str, float | bool],
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The divergence ``name`` per row in nats ``(C,)``, and its derivative by the student's logits ``(C, V)``.

    ``log_p, log_q, p, q``: log-probabilities and their exponentials, ``(C, V)`` in fp32 or fp64, finite
    (``divergences.LOG_ZERO`` for log 0); those of the teacher may be None where the row needs none. ``targets``:
    token ids ``(C,)``. ``parameters`` override the row's defaults. No input is modified; ``out`` is a place for
    the gradient. Raises `InputError` for an unknown name, a missing teacher, a weight outside [0, 1].
    """
    row = choose(name, DIVERGENCES, "divergence")
    if row.needs_teacher:
        row.teacher(log_p)
    arguments = {**row.parameters, **parameters}
    gradient = torch.empty_like(q) if out is None else out
    value = q.new_empty(q.shape[0])
    step = max(1, _BLOCK // q.shape[-1] if q.device.type == "cpu" else q.shape[0])
    for start in range(0, q.shape[0], step):
        block = slice(start, start + step)
        given = [None if x is None else x[block] for x in (log_p, log_q, p, q, targets)]
        value[block] = GRADIENTS[name](*given, gradient[block], **arguments)
    return value, gradient


def _nll(log_p: Tensor | None, log_q: Tensor, p: Tensor | None, q: Tensor, targets: Tensor, out: Tensor) -> Tensor:
    """``q - 1[j = y]``."""
    out.copy_(q)
    tokens = targets.unsqueeze(-1)
    out.scatter_add_(-1, tokens, out.new_full(tokens.shape, -1.0))
    return -log_q.gather(-1, tokens).squeeze(-1)


def _imitation(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor, targets: Tensor, out: Tensor) -> Tensor:
    """``q - 1[j = argmax p]``."""
    return _nll(None, log_q, None, q, log_p.argmax(-1), out)


def _fkl(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor, targets: Tensor, out: Tensor) -> Tensor:
    """``q - p``."""
    value = _dot(p, torch.sub(log_p, log_q, out=out))
    torch.sub(q, p, out=out)
    return value.squeeze(-1)


def _rkl(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor, targets: Tensor, out: Tensor) -> Tensor:
    """``q (log q - log p - RKL)``."""
    value = _dot(q, torch.sub(log_q, log_p, out=out))
    out.sub_(value).mul_(q)
    return value.squeeze(-1)


def _skl(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor, targets: Tensor, out: Tensor, *, alpha: float) -> Tensor:
    """``(1 - alpha) (q sum_v q_v r_v - q r)``, ``r = p / m``."""
    if fraction("alpha", alpha) == 0:
        return _fkl(log_p, log_q, p, q, targets, out)
    torch.sub(log_p, _log_mixture(log_p, log_q, p, q, alpha, out), out=out)
    value = _dot(p, out)
    out.add_(log_q).exp_()  # q r, which stays below p / (1 - alpha) however small m is
    torch.addcmul(out, q, out.sum(-1, keepdim=True), value=-1, out=out).mul_(alpha - 1)
    return value.squeeze(-1)


def _srkl(
    log_p: Tensor,
    log_q: Tensor,
    p: Tensor,
    q: Tensor,
    targets: Tensor,
    out: Tensor,
    *,
    alpha: float,
    detach_mixture: bool,
) -> Tensor:
    """``q (d - sum_v q_v d_v)``, ``d = log(q / m) - alpha q / m``; a detached mixture drops the last term."""
    if fraction("alpha", alpha) == 0:
        return _rkl(log_p, log_q, p, q, targets, out)
    torch.sub(log_q, _log_mixture(log_q, log_p, q, p, alpha, out), out=out)
    value = centre = _dot(q, out)
    if not detach_mixture:
        out.sub_(torch.add(out, math.log(alpha)).exp_())
        centre = _dot(q, out)
    out.sub_(centre).mul_(q)
    return value.squeeze(-1)


def _jsd(
    log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor, targets: Tensor, out: Tensor, *, beta_jsd: float
) -> Tensor:
    """``(1 - b) q (log q - log M - KL(q || M))``; no smallest weight, since b and 1 - b multiply their terms."""
    b = fraction("beta_jsd", beta_jsd)
    log_m = _log_mixture(log_p, log_q, p, q, b, out)
    forward = _dot(p, log_p - log_m)
    reverse = _dot(q, torch.sub(log_q, log_m, out=out))
    out.sub_(reverse).mul_(q).mul_(1 - b)
    return (b * forward + (1 - b) * reverse).squeeze(-1)


def _tvd(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor, targets: Tensor, out: Tensor) -> Tensor:
    """``1/2 q (s - sum_v q_v s_v)``, ``s = sign(q - p)``: 0 where q = p, as autograd has it."""
    torch.sub(q, p, out=out)
    value = 0.5 * torch.linalg.vector_norm(out, 1, dim=-1)
    out.sign_().mul_(q)
    torch.addcmul(out, q, out.sum(-1, keepdim=True), value=-1, out=out).mul_(0.5)
    return value


def _tckd(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor, targets: Tensor, out: Tensor) -> Tensor:
    """``q_y - p_y`` for the target, and as much in the other direction shared by the others like q."""
    tokens = targets.unsqueeze(-1)
    log_rest_p = _others(log_p, p, tokens, out)
    log_rest_q = _others(log_q, q, tokens, out)
    rest_p, rest_q = log_rest_p.exp(), log_rest_q.exp()
    p_y, q_y = p.gather(-1, tokens), q.gather(-1, tokens)
    # Near certainty the difference survives in the rests alone.
    pull = torch.where(q_y < 0.5, p_y - q_y, rest_q - rest_p)
    out.mul_(pull).scatter_(-1, tokens, -pull)
    value = p_y * (log_p.gather(-1, tokens) - log_q.gather(-1, tokens)) + rest_p * (log_rest_p - log_rest_q)
    return value.squeeze(-1)


def _nckd(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor, targets: Tensor, out: Tensor) -> Tensor:
    """``q' - p'``, the distributions without the target; the target's own logit feels nothing."""
    tokens = targets.unsqueeze(-1)
    others_p = torch.empty_like(out)
    log_rest_p = _others(log_p, p, tokens, others_p)
    value = _dot(others_p, torch.sub(log_p, log_q, out=out))
    log_rest_q = _others(log_q, q, tokens, out)
    value = (value - (log_rest_p - log_rest_q)).squeeze(-1)
    out.sub_(others_p).masked_fill_(log_rest_p <= LOG_ZERO, 0.0)
    faint = (torch.minimum(log_rest_p, log_rest_q) < _FAINT).squeeze(-1)
    if faint.any():  # there the two large numbers subtracted above leave nothing
        value[faint] = divergences.nckd(log_p[faint], log_q[faint], targets[faint])
    return value


def _akl(
    log_p: Tensor,
    log_q: Tensor,
    p: Tensor,
    q: Tensor,
    targets: Tensor,
    out: Tensor,
    *,
    head: float,
    crossing: bool,
) -> Tensor:
    """``w (q - p) + (1 - w) q (log q - log p - RKL)``: the weight w is a constant."""
    w = head_weight(p, q, head, crossing).unsqueeze(-1)
    torch.sub(log_q, log_p, out=out)
    forward, reverse = -_dot(p, out), _dot(q, out)
    out.sub_(reverse).mul_(1 - w).add_(w).mul_(q)
    torch.addcmul(out, p, w, value=-1, out=out)
    return (w * forward + (1 - w) * reverse).squeeze(-1)


GRADIENTS: dict[str, Callable[..., Tensor]] = {
    "nll": _nll,
    "fkl": _fkl,
    "rkl": _rkl,
    "skl": _skl,
    "srkl": _srkl,
    "jsd": _jsd,
    "tvd": _tvd,
    "imitation": _imitation,
    "tckd": _tckd,
    "nckd": _nckd,
    "akl": _akl,
}


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """``sum_v a_v b_v`` per row, ``(C, 1)``."""
    return (a * b).sum(-1, keepdim=True)


def _log_mixture(log_a: Tensor, log_b: Tensor, a: Tensor, b: Tensor, weight: float, out: Tensor) -> Tensor:
    """``log(weight * a + (1 - weight) * b)`` in ``out``, exact wherever it is multiplied by a probability."""
    if 0 < weight < _SMALLEST_WEIGHT:
        return out.copy_(divergences.log_mixture(log_a, log_b, weight))
    tiny = torch.finfo(a.dtype).tiny
    return torch.mul(a, weight, out=out).add_(b, alpha=1 - weight).clamp_min_(tiny).log_()


def _others(log_x: Tensor, x: Tensor, tokens: Tensor, out: Tensor) -> Tensor:
    """x renormalised without the target in ``out`` (the target gets 0); returns the log of the others' mass ``(C,
    1)``.
    """
    out.copy_(x).scatter_(-1, tokens, 0.0)
    mass = out.sum(-1, keepdim=True)
    out.div_(mass)
    log_mass = mass.log()
    faint = (log_mass < _FAINT).squeeze(-1)
    if faint.any():
        log_rest, log_mass[faint] = divergences.others(log_x[faint], tokens[faint].squeeze(-1))
        out[faint] = log_rest.exp()
    return log_mass
