"""Which number of the objective moves during training, and by what rule?

Three schedules with a memory: AdaKD's share of tokens (LATF, arXiv 2510.11615 Eqs. 6-7), TAID's place of the
target between student and teacher (arXiv 2501.16937, Algorithm 1) and DistiLLM-2's skew and term weights (arXiv
2503.07067, Algorithm 1). A controller never touches the loss: before an update it turns one ``LossSpec`` into
another, after it it hears the update's loss. One update is one observation, however many forward passes it was
cut into.

Everything a controller sees is summed over all ranks first, so every rank comes to the same numbers without
talking. Its state is JSON, saved with each checkpoint. DistiLLM's replay threshold belongs to the policy that
draws the text, not to this file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Protocol

from selectkd_eval.errors import InputError
from selectkd_eval.objective import LossSpec, Term

_NEVER_ZERO = 1e-15  # TAID's own epsilon under a loss that has become 0


class Moment(NamedTuple):
    """When: update `step` of `steps` (from 1), in epoch `epoch` (from 0) of `epochs`."""

    step: int
    steps: int
    epoch: int
    epochs: float


class Anchor(NamedTuple):
    """One response of the update: its source and the sums of log p(y) and log q(y) over its `tokens` tokens."""

    source: str
    log_p: float
    log_q: float
    tokens: int


class Controller(Protocol):
    """What the trainer asks of a schedule; `needs_anchors` tells it to survey the update first."""

    needs_anchors: ClassVar[bool]

    def apply(self, spec: LossSpec, moment: Moment, anchors: Sequence[Anchor]) -> LossSpec:
        """This update's objective, called once before it; `anchors` of all ranks, empty unless needed."""

    def observe(self, loss: float, moment: Moment) -> None:
        """The update's loss over all ranks, called once after it."""

    def validated(self, loss: float) -> None:
        """A held-out loss."""

    def readings(self) -> dict[str, float]:
        """What the record's row says about the last update."""

    def state_dict(self) -> dict[str, Any]:
        """The memory, as JSON."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""


@dataclass
class _Schedule:
    """Memory as plain fields: what they hold is what is saved."""

    needs_anchors: ClassVar[bool] = False
    fractions: ClassVar[tuple[str, ...]] = ()  # the constants it reads; each lies in [0, 1]
    ascending: ClassVar[tuple[str, ...]] = ()  # two of them of which the first is not the larger

    def __post_init__(self) -> None:
        """InputError for a constant that makes no schedule."""
        for name in self.fractions:
            value = vars(self)["constants"][name]
            if not 0 <= value <= 1:
                raise InputError(f"the recipe's constant {name} lies in [0, 1], but --set {name}={value:g} was given")
        ends = [vars(self)["constants"][name] for name in self.ascending]
        if ends != sorted(ends):
            low, high = self.ascending
            raise InputError(
                f"{low} must not lie above {high}, but {low}={ends[0]:g} and {high}={ends[1]:g} were given by --set"
            )

    def observe(self, loss: float, moment: Moment) -> None:
        """Most schedules look at either losses or anchors."""

    def validated(self, loss: float) -> None:
        """No schedule here listens to held-out text."""

    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "constants"}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state.keys() != self.state_dict().keys():
            raise ValueError(f"{type(self).__name__} was saved with other fields: {', '.join(state)}")
        vars(self).update(state)


@dataclass
class TokenFocus(_Schedule):
    """AdaKD's LATF: the share r of the hardest tokens, steered by the smoothed loss (Eqs. 6-7).

    Lbar is an exponential average that starts at the first update's loss, the untrained student's. During the
    warm-up r = 1; at its end L_ref = Lbar. From then on r shrinks by ``delta`` when Lbar fell more than
    ``epsilon`` below L_ref, grows by it when Lbar rose as far above, and each change makes Lbar the new L_ref.
    ``floor`` bounds r from below (0 in the paper, which names no floor; 0.1 in the released code).
    """

    constants: Mapping[str, float]
    share: float = 1.0
    smoothed: float | None = None
    reference: float | None = None
    fractions = ("ema", "epsilon", "delta", "warmup", "floor")

    def apply(self, spec: LossSpec, moment: Moment, anchors: Sequence[Anchor]) -> LossSpec:
        """The selection keeps the share r."""
        return replace(spec, share=self.share)

    def observe(self, loss: float, moment: Moment) -> None:
        """Eq. 6, then Eq. 7 for the next update."""
        keep, c = self.constants["ema"], self.constants
        self.smoothed = loss if self.smoothed is None else keep * self.smoothed + (1 - keep) * loss
        if moment.step < c["warmup"] * moment.steps:
            return
        if self.reference is None:
            self.reference = self.smoothed
        elif self.smoothed < self.reference * (1 - c["epsilon"]):
            self.share, self.reference = max(c["floor"], self.share * (1 - c["delta"])), self.smoothed
        elif self.smoothed > self.reference * (1 + c["epsilon"]):
            self.share, self.reference = min(1.0, self.share * (1 + c["delta"])), self.smoothed

    def readings(self) -> dict[str, float]:
        return {"share": self.share}


@dataclass
class MovingTarget(_Schedule):
    """TAID's t: how far the target has moved from the student (0) to the teacher (1), Algorithm 1.

    After update n of N: ``m = beta m + (1 - beta) (L_{n-1} - L_n) / L_{n-1}`` and ``t = min(t_end, max(t_start +
    (t_end - t_start) n / N, t + alpha sigmoid(m) (1 - t)))``, so t never falls and is never behind the straight
    line. The first update has no loss before it and only sets L_0, as in the released code (the paper starts
    from L_0 = infinity, which leaves the change undefined).
    """

    constants: Mapping[str, float]
    t: float | None = None
    momentum: float = 0.0
    previous: float | None = None
    fractions = ("t_start", "t_end", "alpha", "beta")
    ascending = ("t_start", "t_end")

    def apply(self, spec: LossSpec, moment: Moment, anchors: Sequence[Anchor]) -> LossSpec:
        """The terms' teacher is ``softmax((1 - t) sg[z_q] + t z_p)``."""
        return replace(spec, target=self._now())

    def observe(self, loss: float, moment: Moment) -> None:
        """t for the next update."""
        c, t = self.constants, self._now()
        if self.previous is not None:
            change = (self.previous - loss) / (self.previous + _NEVER_ZERO)
            self.momentum = c["beta"] * self.momentum + (1 - c["beta"]) * change
            line = c["t_start"] + (c["t_end"] - c["t_start"]) * moment.step / moment.steps
            self.t = min(c["t_end"], max(line, t + c["alpha"] * _sigmoid(self.momentum) * (1 - t)))
        self.previous = loss

    def readings(self) -> dict[str, float]:
        return {"target": self._now()}

    def _now(self) -> float:
        return self.constants["t_start"] if self.t is None else self.t


@dataclass
class Contrast(_Schedule):
    """DistiLLM-2's curriculum: the skew of each term and the weight between the two (Algorithm 1).

    Skew: ``alpha = 1 - (1 - alpha0) m / (p(y) - q(y))`` for the teacher's text and with ``q(y) - p(y)`` for the
    student's, m the running mean of that difference over the updates so far; clipped to [alpha_low, alpha_high];
    alpha0 throughout the first epoch. Probabilities of whole responses underflow, so p(y) is the geometric mean
    over tokens, as in the released code, and one alpha serves all responses of an update (the paper's
    mini-batch-wise allocation, appendix B.3). Where the difference has the other sign than its mean, no alpha
    solves the equation: p and q have crossed, the text is easy, and alpha is at its lower bound, which is also
    the formula's limit from the other side.

    Weight: ``1 - beta_c`` for terms on the teacher's text and ``beta_c`` on the student's, ``beta_c = clip(e/E +
    tau/T, beta0, 1)``. As printed, with e counted from 1 and T updates per epoch, a run of one epoch would never
    see its first term. Here e is the number of finished epochs and T all updates, so the sum is the share of
    training done; ``as_printed = 1`` gives the letter of Algorithm 1.
    """

    constants: Mapping[str, float]
    alphas: dict[str, float] | None = None
    gaps: dict[str, list[float]] | None = None
    weight: float | None = None
    needs_anchors = True
    fractions = ("alpha0", "alpha_low", "alpha_high", "beta0", "as_printed")
    ascending = ("alpha_low", "alpha_high")

    def apply(self, spec: LossSpec, moment: Moment, anchors: Sequence[Anchor]) -> LossSpec:
        """Terms of both sources with this update's alpha and weight."""
        alphas, gaps = dict(self.alphas or {}), {name: list(pair) for name, pair in (self.gaps or {}).items()}
        for source in ("teacher", "student"):
            gap = _gap(source, anchors)
            if gap is None:  # no such text in this update: nothing learned, nothing forgotten
                continue
            total, count = gaps.get(source, [0.0, 0.0])
            gaps[source] = [total + gap, count + 1]
            alphas[source] = self._skew(gap, (total + gap) / (count + 1), moment)
        self.alphas, self.gaps, self.weight = alphas, gaps, self._beta_c(moment)
        return replace(spec, terms=tuple(self._term(term) for term in spec.terms))

    def readings(self) -> dict[str, float]:
        named = {f"alpha_{source}": alpha for source, alpha in (self.alphas or {}).items()}
        return named if self.weight is None else {**named, "beta_c": self.weight}

    def _skew(self, gap: float, mean: float, moment: Moment) -> float:
        c = self.constants
        if moment.epoch == 0:
            return c["alpha0"]
        if gap * mean <= 0:
            return c["alpha_low"]
        return min(c["alpha_high"], max(c["alpha_low"], 1 - (1 - c["alpha0"]) * mean / gap))

    def _beta_c(self, moment: Moment) -> float:
        done = moment.step / moment.steps
        if self.constants["as_printed"]:
            per_epoch = moment.steps / moment.epochs
            done = (moment.epoch + 1) / moment.epochs + (moment.step - moment.epoch * per_epoch) / per_epoch
        return min(1.0, max(self.constants["beta0"], done))

    def _term(self, term: Term) -> Term:
        assert self.weight is not None and self.alphas is not None
        weight = {"teacher": 1 - self.weight, "student": self.weight}.get(term.source)
        if weight is None:
            return term
        alpha = self.alphas.get(term.source, self.constants["alpha0"])
        return replace(term, coefficient=weight, parameters={**term.parameters, "alpha": alpha})


CONTROLLERS: dict[str, Callable[[Mapping[str, float]], Controller]] = {
    "latf": TokenFocus,
    "taid": MovingTarget,
    "contrast": Contrast,
}


def _gap(source: str, anchors: Sequence[Anchor]) -> float | None:
    """Mean over the responses of one source of p - q (teacher's text) or q - p (student's), per-token geometric
    means.
    """
    sign = 1 if source == "teacher" else -1
    found = [a for a in anchors if a.source == source and a.tokens]
    if not found:
        return None
    return math.fsum(sign * (math.exp(a.log_p / a.tokens) - math.exp(a.log_q / a.tokens)) for a in found) / len(found)


def _sigmoid(x: float) -> float:
    """Without overflow at either end."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
