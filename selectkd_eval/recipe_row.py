"""What can a row of the recipe table say? The fields of a recipe, and the places a training text can come from.

A recipe is the paper's (SelecTKD, arXiv 2510.24021, section 3) base method: policy x terms, with a normaliser, a
temperature rule and the numbers of its own schedules. The rows stand in `recipe_table`; `recipes` resolves and
explains them; the policies are carried out by `policies` and `rollouts`, the schedules by `controllers`. Standard
library only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from selectkd_eval.objective import Selection, Term

Policy = Literal[
    "dataset", "teacher", "student", "mixed-examples", "mixed-steps", "replay", "interleaved", "pairs"
]  # fmt: skip

POLICIES: dict[str, str] = {
    "dataset": "the answers in --data (ground truth, or whatever an answer record holds)",
    "teacher": "answers written by the teacher; taken from --data if that is an answer record, else generated first",
    "student": "the student's own answers to the prompts in --data, written anew for every update",
    "mixed-examples": "each example: its answer in --data with probability base^(-i/N) at update i of N, else the "
    "student's own",
    "mixed-steps": "each update: the student's own answers with probability lambda, else the answers in --data",
    "replay": "each update: the student's new answers with probability phi (1 - i/N), older ones from a buffer with "
    "the rest of phi, else the answers in --data; phi grows by phi_step when the held-out loss rises by epsilon",
    "interleaved": "the student writes, and each token outside the teacher's top_k is replaced by a draw of the "
    "teacher's",
    "pairs": "two answers to each prompt, the teacher's and the current student's, written anew for every epoch",
}


@dataclass(frozen=True)
class Variant:
    """A named deviation: the fields that differ (`constants` are merged into the row's own)."""

    note: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Recipe:
    """One row. `label` is the method's name in tables, `source` where its definition stands.

    `constants` are the method's own numbers, for its policy, its controllers and, through `follows`, for its
    other fields: ``follows(constants)`` names the fields that a constant decides. `plain` is the label of the
    same method without the gate that the row brings along.
    """

    name: str
    label: str
    source: str
    note: str
    policy: Policy = "dataset"
    terms: tuple[Term, ...] = (Term("fkl"),)
    normaliser: str = "per_seq_mean"
    temperature: float = 1.0
    tau_squared: bool = True
    selection: Selection = ""
    share: float = 1.0
    idts: float = 0.0
    idts_median: Literal["all", "selected"] = "all"
    verifier: str = "none"
    k: int = 5
    beta: float = 0.01
    controllers: tuple[str, ...] = ()
    constants: Mapping[str, float] = field(default_factory=dict)
    follows: Callable[[Mapping[str, float]], Mapping[str, Any]] | None = None
    generation_temperature: float = 0.8  # DistiLLM-2's sampling of training text
    generation_top_p: float = 0.95
    generation_top_k: int = 0  # 0: no limit
    deviations: tuple[str, ...] = ()
    variants: Mapping[str, Variant] = field(default_factory=dict)
    plain: str = ""

    @property
    def divergence(self) -> str:
        """The divergences of the terms, each once, in their order."""
        return " + ".join(dict.fromkeys(term.divergence for term in self.terms))
