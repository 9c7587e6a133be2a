"""What is known of every response token, and what is reported of all of them together.

`Rows` is what the loss needs besides the two distributions: the token that was written, which sequence it
belongs to, whose text it is. `weigh` asks gate and statistics once, for the plain loss (`loss`) and the chunked
one (`chunked`) alike, so that the two cannot disagree. `TokenStats` holds plain sums and counts: micro-batches
and ranks add up, and every ratio (TAR, alpha, bite) is taken once, at the end.

Accepted here always means the verifier's acceptance (Eq. 13), never ``V_t == 1``: in closed-form Spec-k no weight
need be exactly 1.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selectkd_eval.objective import SOURCES, LossSpec
from selectkd_eval.verifiers import hellinger, spec_k_acceptance, top_k

QUARTERS = 4  # of a response, by the place of a token in it


class TokenPlan(NamedTuple):
    """What the whole update decided about N tokens of one micro-batch (`selection`)."""

    selection: Tensor | None = None  # (N,) 0 or 1: the recipe's own choice of tokens
    tau: Tensor | None = None  # (N,) temperature of the terms
    hard: Tensor | None = None  # (N,) true for ATKD's hard half
    class_share: Tensor | None = None  # (N,) 1 / tokens of the same part in the update

    def to(self, device: torch.device) -> TokenPlan:
        """The same plan on another device."""
        return TokenPlan(*(None if value is None else value.to(device) for value in self))


@dataclass(frozen=True)
class Rows:
    """N response tokens of B sequences. `lengths`: response tokens per sequence; a sequence may have none."""

    targets: Tensor  # (N,) token ids
    sequence: Tensor  # (N,) which sequence of the micro-batch, ascending
    lengths: Tensor  # (B,)
    source: Tensor | None = None  # (N,) index into SOURCES; None: text from the data
    uniform: Tensor | None = None  # (N,) in [0, 1): the draws of sampled Spec-k
    shifts: Tensor | None = None  # (N,) by how much the teacher's row is rolled (stress test)
    plan: TokenPlan | None = None

    @property
    def share(self) -> Tensor:
        """``1 / |y|`` of the sequence that each token belongs to, fp64 ``(N,)``."""
        return (1 / self.lengths.double())[self.sequence]

    @property
    def place(self) -> Tensor:
        """Relative place of each token in its response, 0 <= place < 1, ``(N,)``."""
        first = self.lengths.cumsum(0) - self.lengths
        at = torch.arange(self.targets.numel(), device=self.targets.device) - first[self.sequence]
        return at.double() * self.share

    def cut(self, start: int, stop: int) -> Rows:
        """The tokens from `start` to `stop`; sequences and their lengths stay whole."""
        part: dict[str, Any] = {
            name: None if (value := getattr(self, name)) is None else value[start:stop]
            for name in ("targets", "sequence", "source", "uniform", "shifts")
        }
        plan = self.plan and TokenPlan(*(None if value is None else value[start:stop] for value in self.plan))
        return replace(self, **part, plan=plan)

    def coefficients(self, spec: LossSpec) -> list[Tensor | float]:
        """``c_m`` of every term: a number, or ``(N,)`` where the term looks at source or part."""
        found: list[Tensor | float] = []
        for term in spec.terms:
            here: Tensor | None = None
            if term.source:
                code = SOURCES.index(term.source)
                own = torch.zeros_like(self.targets) if self.source is None else self.source
                here = own == code
            if term.part and self.plan is not None and self.plan.hard is not None:
                hard = self.plan.hard if term.part == "hard" else ~self.plan.hard
                here = hard if here is None else here & hard
            found.append(term.coefficient if here is None else term.coefficient * here.float())
        return found

    def normaliser_share(self, normaliser: str) -> Tensor | None:
        """The factor of each token before the sum is divided by the denominator; None is 1."""
        if normaliser == "per_seq_mean":
            return self.share
        return self.plan.class_share if normaliser == "class_mean" and self.plan is not None else None


class Weighed(NamedTuple):
    """Gate and statistics of C tokens, all ``(C,)``, without gradient. None where a teacher or a gate is missing."""

    weight: Tensor  # V_t times the recipe's own selection
    acceptance: Tensor | None
    overlap: Tensor | None  # sum_v min(p, q) = 1 - TV
    top_k: Tensor | None  # acceptance by rank, where asked
    entropy_p: Tensor | None
    entropy_q: Tensor
    nll: Tensor


@torch.no_grad()
def weigh(
    log_p: Tensor | None, log_q: Tensor, p: Tensor | None, q: Tensor, rows: Rows, spec: LossSpec, watch: bool = False
) -> Weighed:
    """The gate's answer and the statistics for log-probabilities ``(C, V)`` at temperature 1, p and q their
    exponentials.

    `watch` also asks the greedy gate where it is not the run's own. Log-probabilities may be very small but must be
    finite.
    """
    ones = torch.ones(log_q.shape[0], dtype=log_q.dtype, device=log_q.device)
    # Through the distance, so that two equal distributions overlap by exactly 1; a vector_norm takes twice as long.
    overlap = None if p is None else (1 - (p - q).abs_().sum(-1) / 2).clamp(0, 1)
    weight, acceptance, rank = ones, None, None
    if log_p is not None and (watch or spec.verifier == "top-k"):
        rank = top_k(log_p, log_q, spec.k).to(ones.dtype)
    if spec.verifier == "none":
        acceptance = ones
    elif spec.verifier == "hellinger":
        assert log_p is not None
        weight = hellinger(log_p, log_q)
    else:
        if spec.verifier == "top-k":
            acceptance = rank
        else:
            assert overlap is not None
            acceptance = spec_k_acceptance(overlap, spec.k)
            if spec.spec_mode == "sampled":
                assert rows.uniform is not None, "sampled Spec-k needs one uniform number per token"
                acceptance = (rows.uniform < acceptance).to(ones.dtype)
        assert acceptance is not None
        weight = spec.beta + (1 - spec.beta) * acceptance
    if rows.plan is not None and rows.plan.selection is not None:
        weight = weight * rows.plan.selection.to(weight.dtype)
    return Weighed(
        weight=weight,
        acceptance=acceptance,
        overlap=overlap,
        top_k=rank,
        entropy_p=None if p is None or log_p is None else -torch.linalg.vecdot(p, log_p),
        entropy_q=-torch.linalg.vecdot(q, log_q),
        nll=-log_q.gather(-1, rows.targets.unsqueeze(-1)).squeeze(-1),
    )


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
    weighted_per_class: float = 0.0  # sum of V_t D_t / tokens of the same part in the update
    weighted_accepted: float = 0.0  # sum of acceptance * V_t D_t
    weighted_quarter_1: float = 0.0  # sum of V_t D_t over the first quarter of the responses
    weighted_quarter_2: float = 0.0
    weighted_quarter_3: float = 0.0
    weighted_quarter_4: float = 0.0
    weight: float = 0.0  # sum of V_t
    judged: float = 0.0  # tokens whose verifier accepts or rejects (0 for the Hellinger score)
    accepted: float = 0.0  # sum of acceptance
    accepted_per_seq: float = 0.0  # sum over sequences of the mean acceptance
    watched: float = 0.0  # sequences at which both gates were asked
    top_k_per_seq: float = 0.0  # sum over those of the mean greedy acceptance
    spec_k_per_seq: float = 0.0  # ... and of the mean Spec-k acceptance
    compared: float = 0.0  # tokens at which a teacher was run
    overlap: float = 0.0  # sum of 1 - TV
    entropy_p: float = 0.0  # sum of the teacher's entropies
    entropy_q: float = 0.0  # sum of the student's entropies
    nll: float = 0.0  # sum of -log q[y]
    own_text: float = 0.0  # tokens of responses that the student wrote, alone or with the teacher

    def __add__(self, other: TokenStats) -> TokenStats:
        return TokenStats(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def tar(self) -> float | None:
        """Token Acceptance Rate, Eq. 13: the mean over sequences of the share of accepted tokens. None
        without a test.
        """
        return min(self.accepted_per_seq / self.sequences, 1.0) if self.judged else None

    @property
    def tar_pooled(self) -> float | None:
        """Accepted share of all tokens together."""
        return self.accepted / self.judged if self.judged else None

    @property
    def tar_top_k(self) -> float | None:
        """TAR by the greedy gate, where it was watched."""
        return min(self.top_k_per_seq / self.watched, 1.0) if self.watched else None

    @property
    def tar_spec_k(self) -> float | None:
        """TAR by Spec-k in expectation, where it was watched."""
        return min(self.spec_k_per_seq / self.watched, 1.0) if self.watched else None

    @property
    def alpha(self) -> float | None:
        """Mean ``1 - TV(p, q)``: the acceptance rate of speculative decoding on this text. None without a
        teacher.
        """
        return self.overlap / self.compared if self.compared else None

    @property
    def bite(self) -> float | None:
        """Share of the loss that gate and selection removed, ``1 - sum(V D) / sum(D)``. None where there was no
        loss to remove.
        """
        return 1 - self.weighted / self.divergence if self.divergence else None

    @property
    def mean_weight(self) -> float | None:
        """Mean ``V_t``: the factor by which Eq. 6, which divides by |y|, scales the learning rate."""
        return self.weight / self.tokens if self.tokens else None

    @property
    def mean_nll(self) -> float | None:
        """Mean ``-log q[y_t]`` in nats per token."""
        return self.nll / self.tokens if self.tokens else None

    @property
    def teacher_entropy(self) -> float | None:
        """Mean entropy of p in nats per token."""
        return self.entropy_p / self.compared if self.compared else None

    @property
    def student_entropy(self) -> float | None:
        """Mean entropy of q in nats per token."""
        return self.entropy_q / self.tokens if self.tokens else None

    @property
    def accepted_loss(self) -> float | None:
        """Share of the weighted loss that lies on accepted tokens; the rest is on rejected ones."""
        return self.weighted_accepted / self.weighted if self.judged and self.weighted else None

    @property
    def loss_by_quarter(self) -> list[float] | None:
        """Share of the weighted loss in each quarter of the responses, first to last."""
        sums = [getattr(self, f"weighted_quarter_{n}") for n in range(1, QUARTERS + 1)]
        return [value / self.weighted for value in sums] if self.weighted else None

    @property
    def own_text_share(self) -> float | None:
        """Share of the tokens that stand in text which the student wrote, alone or with the teacher."""
        return self.own_text / self.tokens if self.tokens else None

    def denominator(self, normaliser: str) -> float:
        """What the normaliser divides by for these tokens; never 0, so an update with nothing selected has
        loss 0.
        """
        value = {
            "per_seq_mean": self.sequences,
            "valid_tokens": self.tokens,
            "selected_tokens": self.weight,
            "class_mean": 1.0,
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
        if normaliser == "class_mean":
            return self.weighted_per_class
        return self.weighted / self.denominator(normaliser)


FIELDS = tuple(f.name for f in fields(TokenStats))


@torch.no_grad()
def summed(rows: Rows, spec: LossSpec, divergence: Tensor, weighed: Weighed) -> Tensor:
    """The sums of `TokenStats` for C tokens as one fp64 tensor in the order of FIELDS, still on the device.

    Sequences are not counted here (a chunk may hold part of one); `stats_of` does. fp64, because in fp32 a thousand
    thirds of a token add up to a TAR above 1.
    """
    d, w, s = divergence.double(), weighed.weight.double(), rows.share
    zero, count = d.new_zeros(()), d.new_tensor(float(d.numel()))
    vd = w * d
    quarter = (rows.place * QUARTERS).long().clamp(max=QUARTERS - 1)
    by_quarter = d.new_zeros(QUARTERS).index_add_(0, quarter, vd)
    sums = {
        "tokens": count,
        "divergence": d.sum(),
        "weighted": vd.sum(),
        "divergence_per_seq": (s * d).sum(),
        "weighted_per_seq": (s * vd).sum(),
        **{f"weighted_quarter_{n + 1}": by_quarter[n] for n in range(QUARTERS)},
        "weight": w.sum(),
        "entropy_q": weighed.entropy_q.double().sum(),
        "nll": weighed.nll.double().sum(),
    }
    if weighed.acceptance is not None:
        a = weighed.acceptance.double()
        sums |= {"judged": count, "accepted": a.sum(), "accepted_per_seq": (s * a).sum()}
        sums |= {"weighted_accepted": (a * vd).sum()}
    if weighed.overlap is not None and weighed.entropy_p is not None:
        overlap = weighed.overlap.double()
        sums |= {"compared": count, "overlap": overlap.sum(), "entropy_p": weighed.entropy_p.double().sum()}
        sums |= {"spec_k_per_seq": (s * spec_k_acceptance(overlap, spec.k)).sum()}
    if weighed.top_k is not None:
        sums |= {"top_k_per_seq": (s * weighed.top_k.double()).sum()}
    if (class_share := rows.normaliser_share("class_mean")) is not None:
        sums |= {"weighted_per_class": (class_share.double() * vd).sum()}
    if rows.source is not None:
        own = (rows.source == SOURCES.index("student")) | (rows.source == SOURCES.index("mixed"))
        sums |= {"own_text": own.double().sum()}
    return torch.stack([sums.get(name, zero) for name in FIELDS])


def stats_of(sums: Tensor, rows: Rows, watch: bool = False) -> TokenStats:
    """The statistics from the summed sums; the one transfer to the host, for a synchronisation per statistic would
    stall a GPU twenty times a step.
    """
    with_sequences = torch.cat([sums, (rows.lengths > 0).sum().to(sums).unsqueeze(0)]).tolist()
    found = dict(zip(FIELDS, with_sequences, strict=False))
    sequences = with_sequences[-1]
    return TokenStats(**found | {"sequences": sequences, "watched": sequences if watch else 0.0})
