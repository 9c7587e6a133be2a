"""What is minimised, and what is reported beside it: the paper's Eq. 6 with masking, weighting and
normalising in one place.

``selective_loss`` aligns logits with the tokens they predict, keeps response positions only, asks the
divergence and the verifier, and divides by the normaliser's denominator. It returns the loss and
``TokenStats``: plain sums and counts, so that micro-batches and ranks add up and every ratio (TAR, alpha,
bite) is taken once, at the end.

Normalisers, with ``V_t`` the weight and ``D_t`` the divergence of response token t:

    per_seq_mean      1/S  sum_s 1/|y_s| sum_t V_t D_t    Algorithm 1: rejected tokens still count in |y|
    valid_tokens      1/N  sum_s sum_t V_t D_t            N = all response tokens of the whole update
    selected_tokens   sum_s sum_t V_t D_t / sum V_t       at beta = 0 the mean over accepted tokens

The denominator belongs to the whole update, not to a micro-batch. The caller passes it where it is known
beforehand (S, N) and repairs the gradient afterwards where it is not (``gradient_repair``), so 8
micro-batches of 1 equal 1 of 8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields

import torch
from torch import Tensor

from selectkd_eval.divergences import DIVERGENCES, tvd
from selectkd_eval.errors import InputError, choose
from selectkd_eval.verifiers import VERIFIERS, SpecMode, check_gate, token_weights

NORMALISERS = ("per_seq_mean", "valid_tokens", "selected_tokens")

Generators = torch.Generator | Sequence[torch.Generator] | None


@dataclass(frozen=True)
class LossSpec:
    """Everything that defines the objective: a divergence, a gate, a normaliser and a temperature.

    The divergence sees both distributions at ``temperature`` and is multiplied by its square, so that
    gradients keep their size (Hinton et al. 2015); the verifier and the statistics always see them at
    temperature 1, so that TAR and alpha stay comparable. NLL is not tempered. The paper states no
    temperature; the default is 1.
    """

    divergence: str = "fkl"
    parameters: Mapping[str, float | bool] = field(default_factory=dict)
    verifier: str = "none"
    k: int = 5
    beta: float = 0.01
    spec_mode: SpecMode = "expected"
    normaliser: str = "per_seq_mean"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Refuse, with one sentence, what no loss can be made of."""
        choose(self.divergence, DIVERGENCES, "divergence")
        choose(self.verifier, VERIFIERS, "verifier")
        choose(self.normaliser, dict.fromkeys(NORMALISERS), "normaliser")
        check_gate(self.k, self.beta)
        if not self.temperature > 0:
            raise InputError(f"the temperature must be above 0, but {self.temperature} was given")

    @property
    def needs_teacher(self) -> bool:
        """Whether the loss can be computed from the student alone."""
        return DIVERGENCES[self.divergence].needs_teacher or VERIFIERS[self.verifier].needs_teacher


@dataclass(frozen=True)
class TokenStats:
    """Sums over the response tokens seen; ``a + b`` is the statistics of both batches together. Divergences
    in nats.
    """

    sequences: float = 0.0
    tokens: float = 0.0
    divergence: float = 0.0  # sum of D_t
    weighted: float = 0.0  # sum of V_t D_t
    divergence_per_seq: float = 0.0  # sum over sequences of the mean D_t
    weighted_per_seq: float = 0.0  # sum over sequences of the mean V_t D_t
    weight: float = 0.0  # sum of V_t
    judged: float = 0.0  # tokens whose verifier accepts or rejects (0 for the Hellinger score)
    accepted: float = 0.0  # sum of acceptance
    accepted_per_seq: float = 0.0  # sum over sequences of the mean acceptance
    compared: float = 0.0  # tokens at which a teacher was run
    overlap: float = 0.0  # sum of 1 - TV
    nll: float = 0.0  # sum of -log q[y]

    def __add__(self, other: TokenStats) -> TokenStats:
        return TokenStats(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def tar(self) -> float | None:
        """Token Acceptance Rate, Eq. 13: the mean over sequences of the share of accepted tokens. None
        without a test.

        Counted by the acceptance itself, never by ``V_t == 1``: in closed-form Spec-k no weight need be
        exactly 1.
        """
        return min(self.accepted_per_seq / self.sequences, 1.0) if self.judged else None

    @property
    def tar_pooled(self) -> float | None:
        """Accepted share of all tokens together."""
        return self.accepted / self.judged if self.judged else None

    @property
    def alpha(self) -> float | None:
        """Mean ``1 - TV(p, q)``: the acceptance rate of speculative decoding on this text. None without a
        teacher.
        """
        return self.overlap / self.compared if self.compared else None

    @property
    def bite(self) -> float | None:
        """Share of the loss that the gate removed, ``1 - sum(V D) / sum(D)``. None where there was no loss to
        remove.
        """
        return 1 - self.weighted / self.divergence if self.divergence else None

    @property
    def mean_weight(self) -> float | None:
        """Mean ``V_t``."""
        return self.weight / self.tokens if self.tokens else None

    @property
    def mean_nll(self) -> float | None:
        """Mean ``-log q[y_t]`` in nats per token."""
        return self.nll / self.tokens if self.tokens else None

    def denominator(self, normaliser: str) -> float:
        """What the normaliser divides by for these tokens; never 0, so an update with nothing selected has
        loss 0.
        """
        value = {
            "per_seq_mean": self.sequences,
            "valid_tokens": self.tokens,
            "selected_tokens": self.weight,
        }[normaliser]
        return value or 1.0

    def loss(self, normaliser: str, weighted: bool = True) -> float:
        """The loss of these tokens; unweighted (V_t = 1) it is the plain divergence that validation
        compares.
        """
        if normaliser == "per_seq_mean":
            return (self.weighted_per_seq if weighted else self.divergence_per_seq) / self.denominator(normaliser)
        if not weighted:
            return self.divergence / self.denominator("valid_tokens")
        return self.weighted / self.denominator(normaliser)


def selective_loss(
    logits_p: Tensor | None,
    logits_q: Tensor,
    input_ids: Tensor,
    response_mask: Tensor,
    spec: LossSpec,
    *,
    generator: Generators = None,
    denominator: float | None = None,
) -> tuple[Tensor, TokenStats]:
    """The loss of Eq. 6 on one (micro-)batch, normalised, and its statistics.

    ``logits_p``: teacher's ``(B, T, V_p)`` or None; ``logits_q``: student's ``(B, T, V_q)``; ``input_ids``:
    ``(B, T)``; ``response_mask``: ``(B, T)``, true on response *tokens*, end token included. The logits at
    position t - 1 predict token t, so the last prompt position trains the first response token. Different
    vocabulary sizes (padded heads) are cut to the common part before the softmax. ``denominator``: the
    normaliser's count for the whole update; by default this batch's own. ``generator``: for sampled Spec-k,
    one for all or one per sequence.
    """
    targets, kept = input_ids[:, 1:], response_mask[:, 1:].bool()
    sequence = kept.nonzero()[:, 0]
    if sequence.numel() == 0:
        raise InputError("a batch has no response token to learn from; check that answers are not empty or cut off")
    logits_p, logits_q = common_vocabulary(logits_p, logits_q)
    targets = targets[kept]
    rows_q = _rows(logits_q, kept)
    rows_p = None if logits_p is None else _rows(logits_p.detach(), kept)
    log_q = rows_q.log_softmax(-1)
    log_p = None if rows_p is None else rows_p.log_softmax(-1)
    _check_targets(targets, rows_q.shape[-1])

    divergence = _tempered(rows_p, rows_q, targets, spec)
    if divergence is None:
        divergence = DIVERGENCES[spec.divergence](log_p, log_q, targets, **spec.parameters)
    weight, acceptance = _gate(log_p, log_q, kept, spec, generator)
    length = kept.sum(1).double()
    share = (1 / length)[sequence]  # 1 / |y| of the sequence each token belongs to
    weighted = weight * divergence
    with torch.no_grad():
        stats = _stats(
            log_p=log_p,
            log_q=log_q,
            targets=targets,
            divergence=divergence,
            weight=weight,
            acceptance=acceptance,
            share=share,
            kept=kept,
        )
    numerator = (weighted * share.to(weighted.dtype) if spec.normaliser == "per_seq_mean" else weighted).sum()
    return numerator / (denominator or stats.denominator(spec.normaliser)), stats


def gradient_repair(spec: LossSpec, used: float, stats: TokenStats) -> float:
    """Factor for accumulated gradients whose loss was divided by ``used`` instead of the update's true
    denominator.
    """
    return used / stats.denominator(spec.normaliser)


def common_vocabulary(logits_p: Tensor | None, logits_q: Tensor) -> tuple[Tensor | None, Tensor]:
    """Both heads cut, as views, to the entries they share; the softmax that follows renormalises.

    Qwen2-7B and 1.5B share a tokenizer but pad their heads to 152,064 and 151,936 rows.
    """
    if logits_p is None or logits_p.shape[-1] == logits_q.shape[-1]:
        return logits_p, logits_q
    size = min(logits_p.shape[-1], logits_q.shape[-1])
    return logits_p[..., :size], logits_q[..., :size]


def require_finite(stats: TokenStats, where: str) -> None:
    """Stop at the first loss that is not a number: nothing trained after it would be worth the time."""
    total = stats.weighted + stats.divergence
    if not math.isfinite(total):
        raise InputError(
            f"the loss is {'not a number' if math.isnan(total) else 'infinite'} at {where}: "
            "lower --lr, add --warmup, use a bounded divergence (--divergence skl), or leave out --bf16"
        )


def _rows(logits: Tensor, kept: Tensor) -> Tensor:
    """Logits ``(N, V)`` that predict the N response tokens, in fp32 (fp64 stays): prompt and padding cost
    nothing more.
    """
    rows = logits[:, :-1][kept]
    return rows if rows.dtype == torch.float64 else rows.float()


def _tempered(rows_p: Tensor | None, rows_q: Tensor, targets: Tensor, spec: LossSpec) -> Tensor | None:
    """The divergence at a temperature other than 1; None where the untempered log-probabilities serve."""
    divergence = DIVERGENCES[spec.divergence]
    tau = spec.temperature
    if tau == 1 or not divergence.needs_teacher or rows_p is None:
        return None
    log_p, log_q = (rows_p / tau).log_softmax(-1), (rows_q / tau).log_softmax(-1)
    return tau**2 * divergence(log_p, log_q, targets, **spec.parameters)


def _gate(
    log_p: Tensor | None, log_q: Tensor, kept: Tensor, spec: LossSpec, generator: Generators
) -> tuple[Tensor, Tensor | None]:
    """Weights and acceptances ``(N,)``; with one generator per sequence, each sentence draws from its own."""

    def ask(p: Tensor | None, q: Tensor, draw: Generators) -> tuple[Tensor, Tensor | None]:
        return token_weights(spec.verifier, p, q, k=spec.k, beta=spec.beta, mode=spec.spec_mode, generator=draw)

    own = not (generator is None or isinstance(generator, torch.Generator))
    if not own or log_p is None or spec.verifier != "spec-k" or spec.spec_mode != "sampled":
        return ask(log_p, log_q, generator)
    lengths = kept.sum(1).tolist()
    parts = zip(log_p.split(lengths), log_q.split(lengths), generator, strict=True)  # type: ignore[arg-type]
    weights, acceptances = zip(*(ask(p, q, draw) for p, q, draw in parts), strict=True)
    return torch.cat(weights), torch.cat(acceptances)


def _stats(
    *,
    log_p: Tensor | None,
    log_q: Tensor,
    targets: Tensor,
    divergence: Tensor,
    weight: Tensor,
    acceptance: Tensor | None,
    share: Tensor,
    kept: Tensor,
) -> TokenStats:
    # Summed in fp64: in fp32 a thousand thirds of a token add up to a TAR above 1.
    d, w, s = divergence.double(), weight.double(), share.double()
    a = torch.zeros_like(d) if acceptance is None else acceptance.double()
    tokens = d.new_tensor(float(targets.numel()))
    zero = d.new_zeros(())
    sums = {
        "sequences": kept.any(1).sum(),
        "tokens": tokens,
        "divergence": d.sum(),
        "weighted": (w * d).sum(),
        "divergence_per_seq": (s * d).sum(),
        "weighted_per_seq": (s * w * d).sum(),
        "weight": w.sum(),
        "judged": zero if acceptance is None else tokens,
        "accepted": a.sum(),
        "accepted_per_seq": (s * a).sum(),
        "compared": zero if log_p is None else tokens,
        "overlap": zero if log_p is None else (1 - tvd(log_p, log_q)).double().sum(),
        "nll": -log_q.gather(-1, targets.unsqueeze(-1)).double().sum(),
    }
    # One transfer for all of them: a synchronisation per statistic would stall a GPU thirteen times a step.
    packed = torch.stack([sums[f.name].to(torch.float64) for f in fields(TokenStats)])
    return TokenStats(*packed.tolist())


def _check_targets(targets: Tensor, vocabulary: int) -> None:
    largest = int(targets.max())
    if largest >= vocabulary:
        raise InputError(
            f"a response holds token id {largest}, outside the {vocabulary} entries both models share; "
            "give a pair with one tokenizer"
        )
