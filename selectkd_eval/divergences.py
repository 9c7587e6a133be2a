"""How far is the student's next-token distribution q from the teacher's p?

The token-level divergences of the paper's section 3 (SelecTKD, arXiv 2510.24021: FKL and RKL Eqs. 1-2, SKL
Eq. 3, SRKL Eq. 4) and the ones its baselines use (NLL, generalised JSD, TVD). Every function maps
log-probabilities ``(..., V)`` to one non-negative number per position ``(...)``; masks, weights and
normalisers are ``loss.py``'s business.

Mixtures are formed with ``logaddexp``: ``log(alpha * p + ...)`` after ``exp`` is NaN as soon as both
probabilities underflow. A probability of exactly 0 (log-probability ``-inf``) contributes ``0 log 0 = 0``
with a zero gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from selectkd_eval.errors import InputError

# Stands in for log 0 where two impossible tokens would otherwise meet as (-inf) - (-inf); exp() of it is 0 in
# any dtype.
_LOG_ZERO = -1e30


def nll(log_q: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood ``-log q[y_t]``: the loss of SFT and SeqKD. ``targets``: token ids
    ``(...)``.
    """
    return -_working_precision(log_q).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def fkl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Forward KL ``sum_v p (log p - log q)`` in nats (Eqs. 1-2); gradient on the student's logits is ``q -
    p``.
    """
    return _kl(_working_precision(log_p), _working_precision(log_q))


def rkl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Reverse KL ``sum_v q (log q - log p)`` in nats (Eqs. 1-2)."""
    return _kl(_working_precision(log_q), _working_precision(log_p))


def skl(log_p: Tensor, log_q: Tensor, alpha: float = 0.1) -> Tensor:
    """Skew KL ``KL(p || alpha p + (1 - alpha) q)`` (Eq. 3), at most ``-log alpha``; alpha = 0 is the forward
    KL.
    """
    log_p, log_q = _working_precision(log_p), _working_precision(log_q)
    return _kl(log_p, _log_mixture(log_p, log_q, _fraction("alpha", alpha)))


def srkl(log_p: Tensor, log_q: Tensor, alpha: float = 0.1, detach_mixture: bool = False) -> Tensor:
    """Skew reverse KL ``KL(q || (1 - alpha) p + alpha q)`` (Eq. 4), at most ``-log alpha``.

    ``detach_mixture`` stops the gradient inside the mixture, as DistiLLM-2's released code does: the same
    value, another gradient. The paper's equation has no such stop, so the default is off.
    """
    log_p, log_q = _working_precision(log_p), _working_precision(log_q)
    in_mixture = log_q.detach() if detach_mixture else log_q
    return _kl(log_q, _log_mixture(in_mixture, log_p, _fraction("alpha", alpha)))


def jsd(log_p: Tensor, log_q: Tensor, beta_jsd: float = 0.5) -> Tensor:
    """Generalised Jensen-Shannon ``b KL(p || M) + (1 - b) KL(q || M)``, ``M = b p + (1 - b) q`` (GKD, arXiv
    2306.13649).

    At most the entropy of a ``b`` coin, hence log 2. It vanishes as ``b`` goes to 0 or 1 (where ``jsd / b``
    tends to the forward and ``jsd / (1 - b)`` to the reverse KL); no branch here replaces those limits by an
    unscaled KL.
    """
    log_p, log_q = _working_precision(log_p), _working_precision(log_q)
    b = _fraction("beta_jsd", beta_jsd)
    log_m = _log_mixture(log_p, log_q, b)
    return b * _kl(log_p, log_m) + (1 - b) * _kl(log_q, log_m)


def tvd(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Total variation ``1/2 sum_v |p - q|`` in [0, 1]; ``1 - tvd`` is the speculative acceptance rate
    alpha.
    """
    return 0.5 * (_working_precision(log_p).exp() - _working_precision(log_q).exp()).abs().sum(-1)


@dataclass(frozen=True)
class Divergence:
    """A row of the table: the function, what it needs, its tunable parameters with defaults, and its upper
    bound.
    """

    name: str
    function: Callable[..., Tensor]
    formula: str
    source: str
    parameters: Mapping[str, float | bool] = field(default_factory=dict)
    bound: Callable[[Mapping[str, float | bool]], float] | None = None
    needs_teacher: bool = True

    def __call__(self, log_p: Tensor | None, log_q: Tensor, targets: Tensor, **parameters: float | bool) -> Tensor:
        """Value per position ``(...)`` from log-probabilities ``(..., V)``; ``log_p`` may be None where
        unneeded.
        """
        if not self.needs_teacher:
            return self.function(log_q, targets)
        if log_p is None:
            raise InputError(
                f"the divergence {self.name!r} compares the student with a teacher, but there is none; "
                "pass --teacher, or use --divergence nll"
            )
        return self.function(log_p, log_q, **{**self.parameters, **parameters})


def _minus_log_alpha(parameters: Mapping[str, float | bool]) -> float:
    alpha = float(parameters["alpha"])
    return -math.log(alpha) if alpha > 0 else math.inf


def _coin_entropy(parameters: Mapping[str, float | bool]) -> float:
    b = float(parameters["beta_jsd"])
    return -sum(x * math.log(x) for x in (b, 1 - b) if x > 0)


DIVERGENCES: dict[str, Divergence] = {
    d.name: d
    for d in (
        Divergence("nll", nll, "-log q[y]", "maximum likelihood", needs_teacher=False),
        Divergence("fkl", fkl, "sum_v p (log p - log q)", "paper Eqs. 1-2"),
        Divergence("rkl", rkl, "sum_v q (log q - log p)", "paper Eqs. 1-2"),
        Divergence("skl", skl, "KL(p || alpha p + (1-alpha) q)", "paper Eq. 3", {"alpha": 0.1}, _minus_log_alpha),
        Divergence(
            "srkl",
            srkl,
            "KL(q || (1-alpha) p + alpha q)",
            "paper Eq. 4",
            {"alpha": 0.1, "detach_mixture": False},
            _minus_log_alpha,
        ),
        Divergence(
            "jsd",
            jsd,
            "b KL(p||M) + (1-b) KL(q||M), M = b p + (1-b) q",
            "GKD",
            {"beta_jsd": 0.5},
            _coin_entropy,
        ),
        Divergence("tvd", tvd, "1/2 sum_v |p - q|", "DistillSpec", bound=lambda _: 1.0),
    )
}


def _working_precision(log_x: Tensor) -> Tensor:
    """fp32, or fp64 where the caller already works in it: half precision loses the small differences a KL is
    made of.
    """
    return log_x if log_x.dtype in (torch.float32, torch.float64) else log_x.float()


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """``sum_v a (log a - log b)`` with ``0 log 0 = 0``; infinite where b is 0 and a is not."""
    a = log_a.exp()
    return (a * torch.where(a > 0, log_a - log_b, 0.0)).sum(-1)


def _log_mixture(log_a: Tensor, log_b: Tensor, weight: float) -> Tensor:
    """``log(weight * a + (1 - weight) * b)``, finite so that logaddexp's own gradient never meets inf -
    inf.
    """
    a, b = log_a.clamp_min(_LOG_ZERO), log_b.clamp_min(_LOG_ZERO)
    if weight == 0:
        return b
    if weight == 1:
        return a
    return torch.logaddexp(math.log(weight) + a, math.log1p(-weight) + b)


def _fraction(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise InputError(f"the divergence parameter {name} must lie in [0, 1], but {value} was given")
    return float(value)
