"""What is a named method made of? Recipe = policy x terms x weighting, as data; this file resolves and explains names.

The rows are in `recipe_table`. The weighting is not part of a row: the paper's "+Ours" is the same recipe plus
`--verifier spec-k --k 5 --beta 0.01`, so every row goes with every verifier, and with every `--divergence` (SpecKD
alone brings its own gate).

The paper (section 5.1) defers its training settings to DistiLLM-2 (arXiv 2503.07067); what the two leave open
is a default in `verbs.TrainOptions`, never a constant here. Standard library only: `list recipes` does not
wait for torch.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import replace

from selectkd_eval.errors import InputError, choose
from selectkd_eval.objective import NORMALISERS, SELECTIONS, Term
from selectkd_eval.recipe_row import POLICIES, Policy, Recipe, Variant
from selectkd_eval.recipe_table import RECIPES

__all__ = [
    "OUT",
    "POLICIES",
    "RECIPES",
    "VERIFIER_LABELS",
    "Policy",
    "Recipe",
    "Variant",
    "explain",
    "method_labels",
    "recipe",
    "summary",
]

# What has no row, and why.
OUT: dict[str, str] = {
    "minillm": "MiniLLM (arXiv 2306.08543) is a policy gradient on whole responses: a token's weight depends on the "
    "rewards after it, so it is no sum of token terms; its single-step part is --recipe distillspec --divergence rkl",
    "dpkd": "DPKD (arXiv 2406.19774) compares pairs of whole responses through a log-sigmoid, which is no sum of token "
    "terms; --recipe distillm2 is the contrastive method that is",
    "promptkd": "PromptKD (arXiv 2402.12842) trains a prompt of the teacher's together with the student, so its "
    "teacher is not frozen",
}

_COUNTS = ("capacity", "top_k")
_SWITCHES = ("decreasing", "as_printed", "crossing")

VERIFIER_LABELS: dict[str, str] = {"none": "", "hellinger": "Hellinger", "top-k": "Top-k", "spec-k": "Spec-k"}


def recipe(name: str, variant: str = "", changes: Mapping[str, float] | None = None) -> Recipe:
    """The row of `name` with the variant's fields and then the given constants in place.

    Raises InputError for a name that is not there (with the nearest one, or the reason why the method is out), for a
    variant the recipe does not have, and for a constant that is not its own.
    """
    if name in OUT:
        raise InputError(f"there is no recipe {name!r}: {OUT[name]}")
    row = choose(name, RECIPES, "recipe")
    if variant:
        if not row.variants:
            raise InputError(f"the recipe {name!r} has no variants, but {variant!r} was asked for: leave --variant out")
        fields = dict(choose(variant, row.variants, f"variant of {name}").changes)
        # An empty mapping says that the variant uses none of the row's constants.
        own = fields.get("constants")
        fields["constants"] = row.constants if own is None else {**row.constants, **own} if own else {}
        row = replace(row, **fields)
    return _set(row, changes or {})


def _set(row: Recipe, changes: Mapping[str, float]) -> Recipe:
    for name, value in changes.items():
        if not row.constants:
            raise InputError(
                f"the recipe {row.name!r} has no constants of its own, but --set {name}={value:g} was given"
            )
        choose(name, row.constants, f"constant of {row.name}")
        if not 0 <= value < math.inf:
            raise InputError(f"a recipe's constant is a number from 0 up, but --set {name}={value:g} was given")
        if name in _COUNTS and value != int(value):
            raise InputError(f"{name} is a count, but --set {name}={value:g} was given: give a whole number")
        if name in _SWITCHES and value not in (0, 1):
            raise InputError(f"{name} is either 0 or 1, but --set {name}={value:g} was given")
    row = replace(row, constants={**row.constants, **changes})
    return replace(row, **row.follows(row.constants)) if row.follows else row


def method_labels(recipe: Recipe, divergence: str | None, verifier: str, variant: str = "") -> tuple[str, str]:
    """How tables call a student trained so, and the plain method it is compared with: ("KD + Spec-k",
    "KD").

    `divergence` is the command line's override, None without one. A recipe with a gate of its own (SpecKD) names
    only another gate, and without any gate it is the method it was made from.
    """
    swapped = f"-{divergence.upper()}" if divergence and divergence != recipe.divergence else ""
    suffix = swapped + (f" ({variant})" if variant else "")
    own = recipe.label + suffix
    # Variants of a gated recipe vary its gate, which the plain method does not have.
    plain = recipe.plain + swapped if recipe.plain else own
    if verifier == recipe.verifier:
        return own, plain
    gate = VERIFIER_LABELS[verifier]
    return (f"{own} + {gate}" if gate else plain), plain


def summary(name: str) -> str:
    """A recipe in one line: what is minimised on which text."""
    row = RECIPES[name]
    return f"{row.label}: {row.divergence} on {row.policy} text" + ("" if row.verifier == "none" else ", gated")


def explain(name: str) -> str:
    """A recipe in a page: text, objective, gate, constants, variants, deviations, source.

    For a method that is out, the reason. InputError for no such name.
    """
    if name in OUT:
        return f"{name}: not a recipe here\n{_paragraph('why', OUT[name])}"
    row = choose(name, RECIPES, "recipe")
    lines = [
        ("what", row.note),
        ("text", f"{row.policy}: {POLICIES[row.policy]}"),
        ("loss", f"sum_t V_t ({_sum(row.terms)})"),
        ("gate", _gate(row)),
        ("normaliser", f"{row.normaliser}: {NORMALISERS[row.normaliser]}"),
        ("temperature", _temperature(row)),
    ]
    if row.selection:
        lines.append(
            ("selection", f"{SELECTIONS[row.selection]}; share {row.share:g}" + " at first" * bool(row.controllers))
        )
    if row.policy != "dataset":
        lines.append(("generation", _sampling(row)))
    if row.controllers:
        lines.append(("controllers", ", ".join(row.controllers)))
    if row.constants:
        constants = ", ".join(f"{key}={value:g}" for key, value in row.constants.items())
        lines.append(("constants", f"{constants} (--set NAME=VALUE)"))
    lines += [("variant", f"{key}: {variant.note}") for key, variant in row.variants.items()]
    lines += [("deviation", sentence) for sentence in row.deviations]
    return "\n".join([summary(name), *(_paragraph(*line) for line in [*lines, ("source", row.source)])])


def _paragraph(head: str, text: str) -> str:
    return textwrap.fill(text, 110, initial_indent=f"  {head:<12}", subsequent_indent=" " * 14, break_on_hyphens=False)


def _sum(terms: tuple[Term, ...]) -> str:
    return " + ".join(_in_words(term) for term in terms)


_SEES = {"nll": "q_t, y_t", "tckd": "p_t, q_t, y_t", "nckd": "p_t, q_t, y_t"}


def _in_words(term: Term) -> str:
    arguments = ", ".join(
        [_SEES.get(term.divergence, "p_t, q_t"), *(f"{key}={value:g}" for key, value in term.parameters.items())]
    )
    factor = "" if term.coefficient == 1 else f"{term.coefficient:g} "
    where = ", ".join([f"{term.source} text"] * bool(term.source) + [f"{term.part} tokens"] * bool(term.part))
    return f"{factor}{term.divergence}({arguments})" + (f" on {where}" if where else "")


def _gate(row: Recipe) -> str:
    if row.verifier == "none":
        return "none (V_t = 1) unless --verifier says otherwise"
    return f"{row.verifier}, k={row.k}, beta={row.beta:g} unless --verifier, --k, --beta say otherwise"


def _temperature(row: Recipe) -> str:
    rule = f"{row.temperature:g}"
    if row.idts:
        rule += f" exp(-{row.idts:g} s_t), s_t = tanh(log(H_t / median H)), H_t = Hellinger(p_t, q_t)"
    return rule + (", the loss times its square" if row.tau_squared else ", the loss not multiplied by its square")


def _sampling(row: Recipe) -> str:
    limit = f", the {row.generation_top_k} likeliest tokens" if row.generation_top_k else ""
    return f"temperature {row.generation_temperature:g}, top-p {row.generation_top_p:g}{limit}"
