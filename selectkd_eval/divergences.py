"""How far is the student's next-token distribution q from the teacher's p?

The token-level divergences of the paper's section 3 (SelecTKD, arXiv 2510.24021: FKL and RKL Eqs. 1-2, SKL
Eq. 3, SRKL Eq. 4) and the ones its baselines use (NLL, generalised JSD, TVD, ImitKD's imitation, ATKD's two
halves of the forward KL, AKL). Every function maps log-probabilities ``(..., V)`` to one non-negative number
per position ``(...)``; masks, weights and normalisers are ``loss.py``'s business, and the same rows'
closed-form gradients are ``gradients.py``'s.

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
LOG_ZERO = -1e30


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
    return _kl(log_p, log_mixture(log_p, log_q, fraction("alpha", alpha)))


def srkl(log_p: Tensor, log_q: Tensor, alpha: float = 0.1, detach_mixture: bool = False) -> Tensor:
    """Skew reverse KL ``KL(q || (1 - alpha) p + alpha q)`` (Eq. 4), at most ``-log alpha``.

    ``detach_mixture`` stops the gradient inside the mixture, as DistiLLM-2's released code does: the same
    value, another gradient. The paper's equation has no such stop, so the default is off.
    """
    log_p, log_q = _working_precision(log_p), _working_precision(log_q)
    in_mixture = log_q.detach() if detach_mixture else log_q
    return _kl(log_q, log_mixture(in_mixture, log_p, fraction("alpha", alpha)))


def jsd(log_p: Tensor, log_q: Tensor, beta_jsd: float = 0.5) -> Tensor:
    """Generalised Jensen-Shannon ``b KL(p || M) + (1 - b) KL(q || M)``, ``M = b p + (1 - b) q`` (GKD, arXiv
    2306.13649).

    At most the entropy of a ``b`` coin, hence log 2. It vanishes as ``b`` goes to 0 or 1 (where ``jsd / b``
    tends to the forward and ``jsd / (1 - b)`` to the reverse KL); no branch here replaces those limits by an
    unscaled KL.
    """
    log_p, log_q = _working_precision(log_p), _working_precision(log_q)
    b = fraction("beta_jsd", beta_jsd)
    log_m = log_mixture(log_p, log_q, b)
    return b * _kl(log_p, log_m) + (1 - b) * _kl(log_q, log_m)


def tvd(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Total variation ``1/2 sum_v |p - q|`` in [0, 1]; ``1 - tvd`` is the speculative acceptance rate
    alpha.
    """
    return 0.5 * (_working_precision(log_p).exp() - _working_precision(log_q).exp()).abs().sum(-1)


def imitation(log_p: Tensor, log_q: Tensor) -> Tensor:
    """ImitKD's loss ``-log q[argmax p]``: the teacher's likeliest token is the label (arXiv 2009.07253).

    Not a distance: for q = p it is ``-log max p``. Ties in the teacher's argmax go to the lowest token id.
    """
    return nll(log_q, log_p.argmax(-1))


def tckd(log_p: Tensor, log_q: Tensor, targets: Tensor) -> Tensor:
    """ATKD's target half (arXiv 2402.11890): the KL of the two coins {y_t, any other token}.

    ``fkl = tckd + (1 - p[y_t]) * nckd``. No upper bound. The probability of "any other" is summed from the
    others: ``1 - p[y_t]`` would be 0 as soon as ``p[y_t]`` rounds to 1.
    """
    coins = []
    for log_x in (_working_precision(log_p), _working_precision(log_q)):
        _, log_mass = others(log_x, targets)
        coins.append(torch.cat([log_x.gather(-1, targets.unsqueeze(-1)), log_mass], -1))
    return _kl(*coins)


def nckd(log_p: Tensor, log_q: Tensor, targets: Tensor) -> Tensor:
    """ATKD's non-target half (arXiv 2402.11890): KL of p and q renormalised over all tokens but y_t.

    Without the factor ``1 - p[y_t]`` it has inside the forward KL. No upper bound. Where the teacher rules out
    everything but y_t there is no distribution to match: value and gradient are 0.
    """
    others_p, log_mass = others(_working_precision(log_p), targets)
    others_q, _ = others(_working_precision(log_q), targets)
    return torch.where(log_mass.squeeze(-1) > LOG_ZERO, _kl(others_p, others_q), 0.0)


def akl(log_p: Tensor, log_q: Tensor, head: float = 0.5, crossing: bool = True) -> Tensor:
    """Adaptive KL ``w FKL + (1 - w) RKL``, w from `head_weight` without gradient (AKL, arXiv 2404.02657).

    No upper bound.
    """
    log_p, log_q = _working_precision(log_p), _working_precision(log_q)
    w = head_weight(log_p.exp(), log_q.detach().exp(), head, crossing)
    return w * _kl(log_p, log_q) + (1 - w) * _kl(log_q, log_p)


@torch.no_grad()
def head_weight(p: Tensor, q: Tensor, head: float = 0.5, crossing: bool = True) -> Tensor:
    """AKL's weight of the forward KL: which share of ``sum_v |p - q|`` lies in the teacher's head, ``(...)`` in
    [0, 1].

    Probabilities ``(..., V)``. The head is the smallest set of the teacher's likeliest tokens whose
    probability reaches ``head`` (mu in arXiv 2404.02657). ``crossing=False`` leaves the token that
    crosses ``head`` to the tail, unless it is the likeliest of all, as the authors' code does. Equally likely
    tokens enter in the order of their ids. 1 where p = q, where both divergences are 0.
    """
    fraction("head", head)
    shape, p, q = p.shape[:-1], p.reshape(-1, p.shape[-1]), q.reshape(-1, q.shape[-1])
    gap = torch.linalg.vector_norm(p - q, 1, dim=-1)
    head_gap = torch.zeros_like(gap)
    rows, listed = torch.arange(len(p), device=p.device), 128
    while len(rows):  # nearly every head is short: a full sort of V tokens costs 40 times the list
        listed = min(listed, p.shape[-1])
        likeliest, tokens = _likeliest(p[rows], listed)
        before = torch.nn.functional.pad(likeliest.cumsum(-1), (1, -1))
        inside = before < head if crossing else before + likeliest <= head
        inside[:, 0] = True
        last = likeliest.gather(-1, inside.sum(-1, keepdim=True) - 1).squeeze(-1)
        known = (last > likeliest[:, -1]) | (listed == p.shape[-1])  # a tie could go on behind the list's end
        differences = (likeliest - q[rows].gather(-1, tokens)).abs()
        head_gap[rows] = torch.where(inside, differences, 0.0).sum(-1)
        rows, listed = rows[~known], 16 * listed
    return torch.where(gap > 0, head_gap / gap, 1.0).clamp(max=1).reshape(shape)


def _likeliest(p: Tensor, listed: int) -> tuple[Tensor, Tensor]:
    """The ``listed`` likeliest tokens per row, likeliest first, equals by id: probabilities and ids ``(N, listed)``."""
    tokens = p.topk(listed, sorted=False).indices.sort(-1).values
    likeliest, order = p.gather(-1, tokens).sort(stable=True, dim=-1, descending=True)
    return likeliest, tokens.gather(-1, order)


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
    needs_targets: bool = False

    def __call__(self, log_p: Tensor | None, log_q: Tensor, targets: Tensor, **parameters: float | bool) -> Tensor:
        """Value per position ``(...)`` from log-probabilities ``(..., V)``; ``log_p`` may be None where
        unneeded.
        """
        distributions = (self.teacher(log_p), log_q) if self.needs_teacher else (log_q,)
        further = (targets,) if self.needs_targets else ()
        return self.function(*distributions, *further, **{**self.parameters, **parameters})

    def teacher(self, log_p: Tensor | None) -> Tensor:
        """``log_p``, or `InputError` where this divergence has nothing to compare the student with."""
        if log_p is None:
            raise InputError(
                f"the divergence {self.name!r} compares the student with a teacher, but there is none; "
                "pass --teacher, or use --divergence nll"
            )
        return log_p


def _minus_log_alpha(parameters: Mapping[str, float | bool]) -> float:
    alpha = float(parameters["alpha"])
    return -math.log(alpha) if alpha > 0 else math.inf


def _coin_entropy(parameters: Mapping[str, float | bool]) -> float:
    b = float(parameters["beta_jsd"])
    return -sum(x * math.log(x) for x in (b, 1 - b) if x > 0)


DIVERGENCES: dict[str, Divergence] = {
    d.name: d
    for d in (
        Divergence("nll", nll, "-log q[y]", "maximum likelihood", needs_teacher=False, needs_targets=True),
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
        Divergence("imitation", imitation, "-log q[argmax p]", "ImitKD"),
        Divergence("tckd", tckd, "KL of the coins {y, not y}", "ATKD", needs_targets=True),
        Divergence("nckd", nckd, "KL of p and q renormalised without y", "ATKD", needs_targets=True),
        Divergence(
            "akl",
            akl,
            "w KL(p||q) + (1-w) KL(q||p), w = share of |p-q| in p's head",
            "AKL",
            {"head": 0.5, "crossing": True},
        ),
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


def others(log_x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The distribution over all tokens but the target: its log-probabilities ``(..., V)``, and the log of the mass
    it was renormalised from ``(..., 1)``.

    The target itself gets ``-inf``. Exact down to the smallest mass, since nothing is subtracted from 1.
    """
    rest = log_x.clamp_min(LOG_ZERO).scatter(-1, targets.unsqueeze(-1), -math.inf)
    return rest.log_softmax(-1), rest.logsumexp(-1, keepdim=True)


def log_mixture(log_a: Tensor, log_b: Tensor, weight: float) -> Tensor:
    """``log(weight * a + (1 - weight) * b)``, finite so that logaddexp's own gradient never meets inf -
    inf.
    """
    a, b = log_a.clamp_min(LOG_ZERO), log_b.clamp_min(LOG_ZERO)
    if weight == 0:
        return b
    if weight == 1:
        return a
    return torch.logaddexp(math.log(weight) + a, math.log1p(-weight) + b)


def fraction(name: str, value: float) -> float:
    """``value``, or `InputError` where it does not lie in [0, 1]."""
    if not 0 <= value <= 1:
        raise InputError(f"the divergence parameter {name} must lie in [0, 1], but {value} was given")
    return float(value)
