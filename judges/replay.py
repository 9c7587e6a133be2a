"""What do published judgements say? AlpacaEval's annotation files, read as verdicts, without asking anyone.

AlpacaEval writes a number per comparison: 1 for the baseline, 2 for the model, 1.5 or (older files) 0 for a draw,
null for a reply it could not parse, -1 for a call that failed; its weighted judge writes 1 + P(model). They become
words here, with the probability kept beside the word. `leaderboard_row` is AlpacaEval's own arithmetic, so that a
published row can be checked digit by digit. Length-controlled rates are not refitted.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from judges.protocols import Order
from judges.verdicts import Verdict
from selectkd_eval.environment import sha256_file
from selectkd_eval.errors import InputError
from selectkd_eval.prompts import prompt_id, read_json_rows

_NEEDED = ("instruction", "output_1", "output_2", "preference")


@dataclass(frozen=True)
class Judgement:
    """One published comparison; `preference` is AlpacaEval's number, or None."""

    prompt: str
    seed: int
    order: Order
    verdict: Verdict
    preference: float | None
    candidate_chars: int
    baseline_chars: int


@dataclass(frozen=True)
class Annotations:
    """A file of published judgements of one model against one baseline by one judge."""

    path: Path
    sha256: str
    candidate: str
    baseline: str
    annotator: str
    judgements: tuple[Judgement, ...]


def load(path: Path) -> Annotations:
    """Read an AlpacaEval annotations.json, gzipped or not; an InputError says what is wrong with it."""
    if not path.is_file():
        raise InputError(f"there is no annotation file {path}: give replay:PATH of an AlpacaEval annotations.json")
    rows = read_json_rows(path)
    if not rows:
        raise InputError(f"{path} holds no annotations: give an AlpacaEval annotations.json")
    for number, row in enumerate(rows, start=1):
        if absent := [name for name in _NEEDED if name not in row]:
            raise InputError(
                f"entry {number} of {path} has no {' or '.join(absent)}: an AlpacaEval annotations.json has "
                f"{', '.join(_NEEDED)} in every entry"
            )
    seen: Counter[str] = Counter()
    judgements = []
    for number, row in enumerate(rows, start=1):
        prompt = prompt_id(str(row["instruction"]))
        judgements.append(_judgement(row, prompt, seen[prompt], f"entry {number} of {path}"))
        seen[prompt] += 1
    return Annotations(
        path,
        sha256_file(path),
        candidate=_one(rows, "generator_2", path),
        baseline=_one(rows, "generator_1", path),
        annotator=_one(rows, "annotator", path),
        judgements=tuple(judgements),
    )


def verdict_of(preference: float | None) -> Verdict:
    """AlpacaEval's number as a word. Raises ValueError for a number that is none of its codes."""
    if preference is None or math.isnan(preference):
        return Verdict("unreadable", "no preference in the file")
    if preference == -1:
        return Verdict("failed", "the judge's call had failed")
    if preference in (0, 1.5):
        return Verdict("tie")
    if not 1 <= preference <= 2:
        raise ValueError(f"preference {preference} is not one of null, -1, 0 or 1 to 2")
    return Verdict("candidate" if preference > 1.5 else "baseline")


def is_weighted(preferences: Iterable[float | None]) -> bool:
    """Whether the judge gave probabilities, not only whole verdicts."""
    return any(p is not None and p not in (-1, 0, 1, 1.5, 2) for p in preferences)


def leaderboard_row(preferences: Sequence[float | None]) -> dict[str, float]:
    """AlpacaEval's published figures for one model, in percent, from its raw preference numbers.

    Rows without a verdict leave n. win_rate is the mean of preference - 1 with draws at 1/2; standard_error its
    standard error over rows (sample standard deviation); a draw is exactly 1.5 or 0; discrete_win_rate rounds
    every preference to a verdict first.
    """
    known = np.array([p for p in preferences if p is not None and p != -1 and not math.isnan(p)], dtype=np.float64)
    value = np.where(known == 0, 1.5, known) - 1
    n = len(value)
    draws = int((value == 0.5).sum())
    discrete = np.where(value == 0.5, 0.5, np.round(value))
    return {
        "win_rate": float(value.mean() * 100) if n else float("nan"),
        "standard_error": float(value.std(ddof=1) / math.sqrt(n) * 100) if n > 1 else float("nan"),
        "n_wins": int((value > 0.5).sum()),
        "n_wins_base": int((value < 0.5).sum()),
        "n_draws": draws,
        "n_total": n,
        "discrete_win_rate": float(discrete.mean() * 100) if n else float("nan"),
    }


def shown_order(instruction: str) -> Order:
    """The order in which AlpacaEval showed the two answers: its own seeded draw, the same for every model."""
    switched = random.Random(f"is_switched_outputs{instruction}0").choices([False, True])[0]
    return "candidate-first" if switched else "baseline-first"


def _judgement(row: Mapping[str, Any], prompt: str, seed: int, where: str) -> Judgement:
    preference = row["preference"]
    if isinstance(preference, bool) or not isinstance(preference, int | float | None):
        raise InputError(f"{where} has the preference {preference!r}, which is no number: restore the file")
    try:
        verdict = verdict_of(preference)
    except ValueError as error:
        raise InputError(f"{where}: {error}; restore the file") from None
    return Judgement(
        prompt,
        seed,
        shown_order(str(row["instruction"])),
        verdict,
        None if preference is None else float(preference),
        candidate_chars=len(str(row["output_2"] or "")),
        baseline_chars=len(str(row["output_1"] or "")),
    )


def _one(rows: Sequence[Mapping[str, Any]], name: str, path: Path) -> str:
    values = sorted({str(row.get(name) or "unnamed") for row in rows})
    if len(values) > 1:
        raise InputError(f"{path} mixes several {name} ({', '.join(values[:4])}): give one file per model and judge")
    return values[0]
