"""What is minimised, as data: a sum of divergence terms, a gate, a normaliser and a temperature rule.

    L = sum_s 1/Z  sum_t  V_t  sum_m  c_m D_m(p_t, q_t)          (the paper's Eq. 6 with more than one term)

A term may be limited to text of one source (DistiLLM-2: SKL on the teacher's text, SRKL on the student's) or to
one part of the tokens (ATKD: the easy and the hard half). A controller turns one specification into the next
one between updates (`controllers`); nothing here has state. Standard library only: recipes are listed without
waiting for torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from selectkd_eval.errors import InputError, choose

NORMALISERS: dict[str, str] = {
    "per_seq_mean": "1/S sum_s 1/|y_s| sum_t V_t D_t: rejected tokens still count in |y| (Algorithm 1)",
    "valid_tokens": "1/N sum_s sum_t V_t D_t: N = all response tokens of the update",
    "selected_tokens": "sum_s sum_t V_t D_t / sum V_t: at beta = 0 the mean over accepted tokens",
    "class_mean": "each part of the tokens (easy, hard) is averaged over its own tokens",
}

# Who wrote a response. `mixed`: student and teacher together (SKD).
SOURCES = ("dataset", "teacher", "student", "mixed")

Source = Literal["", "dataset", "teacher", "student", "mixed"]
Part = Literal["", "easy", "hard"]
Selection = Literal["", "hardest", "learnable"]
SpecMode = Literal["expected", "sampled"]

SELECTIONS: dict[str, str] = {
    "hardest": "the share of tokens at which p and q are farthest apart (Hellinger): AdaKD's I_t",
    "learnable": "the share of tokens with the largest FKL(p||q) - FKL(p||reference): AdaSPEC's filter",
}


@dataclass(frozen=True)
class Term:
    """One divergence of the sum: what it counts, on whose text (empty: everyone's), at which tokens (empty: all).

    `hard` are the tokens whose uncertainty ``1 - p[y_t]`` is at or above the update's median, `easy` the rest
    (ATKD, arXiv 2402.11890).
    """

    divergence: str
    parameters: Mapping[str, float | bool] = field(default_factory=dict)
    coefficient: float = 1.0
    source: Source = ""
    part: Part = ""


@dataclass(frozen=True)
class LossSpec:
    """Everything that defines the objective of one update.

    The terms see both distributions at ``temperature`` (times IDTS's factor per token where ``idts`` is above
    0: ``exp(-idts * s)``, AdaKD's Eq. 9-10) and are multiplied by its square where ``tau_squared`` says so, so
    that gradients keep their size (Hinton et al. 2015). Gates, selections and statistics always see temperature
    1, so that TAR and alpha stay comparable. NLL terms are not tempered. ``target`` is TAID's t: the terms'
    teacher is ``softmax((1 - t) sg[z_q] + t z_p)``, at 1 the teacher itself.

    ``share``: how many of the tokens a ``selection`` keeps; its weight (0 or 1) multiplies the gate's V_t.
    """

    terms: tuple[Term, ...] = (Term("fkl"),)
    verifier: str = "none"
    k: int = 5
    beta: float = 0.01
    spec_mode: SpecMode = "expected"
    normaliser: str = "per_seq_mean"
    temperature: float = 1.0
    tau_squared: bool = True
    selection: Selection = ""
    share: float = 1.0
    idts: float = 0.0
    idts_median: Literal["all", "selected"] = "all"
    target: float = 1.0

    def __post_init__(self) -> None:
        """Refuse, with one sentence, what no loss can be made of."""
        from selectkd_eval.divergences import DIVERGENCES  # torch: only where an objective is really built
        from selectkd_eval.verifiers import VERIFIERS, check_gate

        if not self.terms:
            raise InputError("an objective needs at least one term: name a divergence")
        for term in self.terms:
            choose(term.divergence, DIVERGENCES, "divergence")
        choose(self.verifier, VERIFIERS, "verifier")
        choose(self.normaliser, NORMALISERS, "normaliser")
        check_gate(self.k, self.beta)
        if not self.temperature > 0:
            raise InputError(f"the temperature must be above 0, but {self.temperature} was given")
        if not 0 < self.share <= 1:
            raise InputError(f"a selection keeps a share of the tokens in (0, 1], but {self.share} was given")
        if not 0 <= self.target <= 1:
            raise InputError(f"the target's share of the teacher lies in [0, 1], but {self.target} was given")

    @property
    def needs_teacher(self) -> bool:
        """Whether the loss can be computed from the student alone."""
        from selectkd_eval.divergences import DIVERGENCES
        from selectkd_eval.verifiers import VERIFIERS

        asked = any(DIVERGENCES[term.divergence].needs_teacher for term in self.terms)
        return asked or VERIFIERS[self.verifier].needs_teacher or bool(self.selection)

    @property
    def needs_reading(self) -> bool:
        """Whether something depends on all tokens of the update together: a quantile, a median, a class count."""
        split = any(term.part for term in self.terms)
        return split or bool(self.selection and self.share < 1) or self.idts > 0 or self.normaliser == "class_mean"

    def held_out(self) -> LossSpec:
        """The plain objective that validation compares, and the gate for its statistics: every term on every token, no
        selection, no schedule. Its loss is the unweighted one.
        """
        terms = tuple(replace(term, source="", part="") for term in self.terms)
        normaliser = "valid_tokens" if self.normaliser in ("class_mean", "selected_tokens") else self.normaliser
        plain = replace(self, terms=terms, selection="", idts=0.0, target=1.0, normaliser=normaliser)
        return replace(plain, spec_mode="expected")


def single(divergence: str, parameters: Mapping[str, float | bool] | None = None, **rest: object) -> LossSpec:
    """The objective of one divergence on every text and token."""
    return LossSpec(terms=(Term(divergence, parameters or {}),), **rest)  # type: ignore[arg-type]
