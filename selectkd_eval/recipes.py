"""What is a named method made of? Recipe = policy x divergence x weighting, as data.

A row says where the text comes from (policy), which divergence is minimised, how it is normalised and at
which temperature. The weighting is not part of a row: the paper's "+Ours" is the same recipe plus `--verifier
spec-k --k 5 --beta 0.01`, so every row goes with every verifier, and with every `--divergence`.

The paper (section 5.1) defers its training settings to DistiLLM-2 (arXiv 2503.07067); what the two leave open
is a default in `verbs.TrainOptions`, never a constant here. Standard library only: `list recipes` does not
wait for torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from selectkd_eval.errors import choose

Policy = Literal["dataset", "teacher"]

POLICIES: dict[str, str] = {
    "dataset": "the answers in --data (ground truth, or whatever an answer record holds)",
    "teacher": "answers written by the teacher; taken from --data if that is an answer record, else generated first",
}


@dataclass(frozen=True)
class Recipe:
    """One row. `label` is the method's name in tables, `source` where its definition stands."""

    name: str
    label: str
    policy: Policy
    divergence: str
    source: str
    note: str
    normaliser: str = "per_seq_mean"
    temperature: float = 1.0
    generation_temperature: float = 0.8  # DistiLLM-2's sampling of training text
    generation_top_p: float = 0.95


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "sft",
            "SFT-control",
            "dataset",
            "nll",
            "maximum likelihood",
            "Training on the text without a teacher: the control that says how much of a gain is only more training.",
        ),
        Recipe(
            "kd",
            "KD",
            "dataset",
            "fkl",
            "Hinton et al. 2015; paper Eqs. 1-2",
            "Word-level distillation: the forward KL to the teacher at every response token, and no cross-entropy term "
            "(DistiLLM's kd_ratio 1; MiniLLM's scripts mix half and half).",
        ),
        Recipe(
            "seqkd",
            "SeqKD",
            "teacher",
            "nll",
            "Kim & Rush 2016, arXiv 1606.07947",
            "Maximum likelihood on the teacher's own text, as DistiLLM-2 does. DistiLLM's scripts minimise "
            "the full forward KL on that text instead: that is `--recipe seqkd --divergence fkl`.",
        ),
    )
}

VERIFIER_LABELS: dict[str, str] = {"none": "", "hellinger": "Hellinger", "top-k": "Top-k", "spec-k": "Spec-k"}


def explain(name: str) -> str:
    """A recipe in a few lines: what it is first, then policy, loss, defaults and source. InputError for no
    such name.
    """
    recipe = choose(name, RECIPES, "recipe")
    return "\n".join(
        (
            f"{recipe.label}: {recipe.divergence} on {recipe.policy} text",
            f"  text        {POLICIES[recipe.policy]}",
            f"  loss        sum_t V_t * {recipe.divergence}(p_t, q_t); V_t from --verifier (none: V_t = 1)",
            f"  normaliser  {recipe.normaliser}, temperature {recipe.temperature:g}",
            f"  source      {recipe.source}",
            f"  note        {recipe.note}",
        )
    )


def method_labels(recipe: Recipe, divergence: str, verifier: str) -> tuple[str, str]:
    """How tables call a student trained so, and the plain method it is compared with: ("KD + Spec-k",
    "KD").
    """
    base = recipe.label if divergence == recipe.divergence else f"{recipe.label}-{divergence.upper()}"
    gate = VERIFIER_LABELS[verifier]
    return (f"{base} + {gate}" if gate else base), base
