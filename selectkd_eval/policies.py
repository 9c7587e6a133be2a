"""Where does the training text come from, and is any of it in an evaluation set?

Two policies: the answers as they stand in the data (`dataset`), and answers written by the teacher
(`teacher`). Prompts whose hash is in an evaluation set are dropped and counted (the paper: "de-duplication
against our training sources by prompt hashing"), from the training text and from the validation text, which
chooses the student under early stopping; prompts of the validation set are dropped from the training text too.
Near-duplicates are not looked for.

It decides which text; it does not generate (that is the verb `answer`) and does not tokenise (`prompts`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selectkd_eval import records
from selectkd_eval.errors import InputError
from selectkd_eval.prompts import PromptSet, load_prompts
from selectkd_eval.recipes import Policy


@dataclass(frozen=True)
class TrainingText:
    """Prompts with answers, and what the record's header says about them."""

    text: PromptSet
    facts: dict[str, Any]


def training_text(
    policy: Policy,
    data: str,
    *,
    exclude: Sequence[str],
    held_out: PromptSet,
    limit: int | None,
    ask_teacher: Callable[[], Path],
) -> TrainingText:
    """The text a recipe trains on. `ask_teacher` writes (or finishes) an answer record of `data` and returns
    its path.

    Raises InputError when a prompt has no answer, or when nothing is left.
    """
    answers_by = _author(data)
    if policy == "teacher" and answers_by is None:
        data = str(ask_teacher())
        answers_by = _author(data)
    found = load_prompts(data, limit)
    kept, dropped = _drop_known(found, {**{name: load_prompts(name) for name in exclude}, "validation": held_out})
    missing = sum(prompt.answer is None for prompt in kept.prompts)
    if missing:
        raise InputError(
            f"{missing} of {len(kept.prompts)} prompts in {data} have no answer: add them, use --recipe seqkd, "
            f"or let the teacher write them first (selectkd-eval answer --model TEACHER --prompts {data})"
        )
    # An answer cut at its token limit would be trained with an end token that its author did not write.
    whole = [prompt for prompt in kept.prompts if prompt.meta.get("finish") != "length"]
    cut = len(kept.prompts) - len(whole)
    kept = replace(kept, prompts=whole)
    if not whole:
        raise InputError(
            f"nothing in {data} is left to train on: of {len(found.prompts)} prompts {sum(dropped.values())} are in "
            f"an evaluation or validation set, {cut} answers were cut at their token limit; give other text"
        )
    facts = {"policy": policy, "answers_by": answers_by, "dropped_duplicates": sum(dropped.values())}
    return TrainingText(kept, kept.facts() | facts | {"dropped": dropped, "dropped_cut_answers": cut})


def held_out_text(name: str, exclude: Sequence[str], limit: int | None) -> TrainingText:
    """The validation text without the prompts of evaluation sets. Raises InputError when an answer is missing or
    nothing is left.
    """
    found = load_prompts(name, limit)
    kept, dropped = _drop_known(found, {other: load_prompts(other) for other in exclude})
    if not kept.prompts or any(prompt.answer is None for prompt in kept.prompts):
        wrong = "prompts without an answer" if kept.prompts else f"nothing outside the sets {', '.join(exclude)}"
        raise InputError(f"the validation text {name} has {wrong}: give other prompts and answers, or --exclude less")
    return TrainingText(kept, kept.facts() | {"dropped_duplicates": sum(dropped.values())})


def _drop_known(found: PromptSet, known: dict[str, PromptSet]) -> tuple[PromptSet, dict[str, int]]:
    """The prompts that are in no known set, and how many each set took away (a prompt counts for the
    first).
    """
    owner: dict[str, str] = {}
    for known_as, held in known.items():
        for prompt in held.prompts:
            owner.setdefault(prompt.id, known_as)
    dropped = dict.fromkeys(known, 0)
    kept = []
    for prompt in found.prompts:
        if name := owner.get(prompt.id):
            dropped[name] += 1
        else:
            kept.append(prompt)
    return replace(found, prompts=kept), dropped


def _author(data: str) -> str | None:
    """The models that wrote the data, if all of it is answer records; otherwise None."""
    authors = []
    for part in data.split(","):
        path = Path(part.strip())
        if not path.is_file() or not records.is_record(path):
            return None
        authors.append(str(records.read(path, verb="answer").facts["model"]["name"]))
    return ", ".join(dict.fromkeys(authors))
