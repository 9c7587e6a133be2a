"""What does AlpacaEval's annotations.json say? Its numbers as verdicts, and its own arithmetic on them.

AlpacaEval writes a number per comparison: 1 for the baseline, 2 for the model, 1.5 or (older files) 0 for a draw,
null for a reply it could not parse, -1 for a call that failed; its weighted judge writes 1 + P(model). They become
words here, with the probability kept beside the word. `leaderboard_row` is AlpacaEval's own arithmetic, so that a
published row can be checked digit by digit. Where the file logs the judge's replies the preference is read from them
once more, with AlpacaEval's rules and order. Length-controlled rates are not refitted.
"""

from __future__ import annotations

import ast
import contextlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from judges.protocols import Order, seeded_order
from judges.replay.published import Published, Row, card, judge, only, protocol
from judges.tasks import row
from judges.verdicts import Verdict, first_share
from selectkd_eval import win_rates
from selectkd_eval.errors import InputError
from selectkd_eval.prompts import prompt_id

FORMAT = "alpaca_eval"
_NEEDED = ("instruction", "output_1", "output_2", "preference")
_UNSHUFFLED = ("lmsys_gpt4", "aviary_gpt4")  # the annotators that always show the baseline first
_LONGEST_REPLY = 20_000  # of a ranking of two models; nothing longer is parsed
_SAME = 1e-9  # the files round to ten decimals


def fits(entries: Sequence[Any]) -> bool:
    """Whether the entries look like annotations."""
    return all(isinstance(entry, dict) for entry in entries) and any(name in entries[0] for name in _NEEDED)


def load(entries: Sequence[Mapping[str, Any]], path: Path, sha256: str) -> Published:
    """The judgements of one annotations file; an InputError says what is wrong with it."""
    somewhere = {name for entry in entries for name in entry}
    for place, entry in enumerate(entries, start=1):
        # A row may lack its preference, as pandas leaves it; a file without any holds no judgements.
        absent = [name for name in _NEEDED if name not in entry and (name != "preference" or name not in somewhere)]
        if absent:
            raise InputError(
                f"entry {place} of {path} has no {' or '.join(absent)}: an AlpacaEval annotations.json has "
                f"{', '.join(_NEEDED)} in every entry"
            )
    annotator = only(entries, "annotator", path)
    numbers = [_number(entry.get("preference"), f"entry {n} of {path}") for n, entry in enumerate(entries, start=1)]
    weighted = is_weighted(numbers)
    seen: Counter[str] = Counter()
    rows = []
    for entry, number in zip(entries, numbers, strict=True):
        prompt = prompt_id(str(entry["instruction"]))
        order = "baseline-first" if annotator in _UNSHUFFLED else shown_order(str(entry["instruction"]))
        rows.append(_row(entry, number, prompt, seen[prompt], order, weighted))
        seen[prompt] += 1
    return Published(
        format=FORMAT,
        sha256=sha256,
        judge=judge(annotator),
        protocol=protocol(
            f"alpaca_eval:{annotator}", "seeded", "half", "AlpacaEval; the file does not hold the prompt"
        ),
        candidate=card(only(entries, "generator_2", path)),
        baseline=card(only(entries, "generator_1", path)),
        prompts={"name": path.name, "sha256": sha256},
        rows=rows,
        weighted=weighted,
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
    return any(p is not None and not math.isnan(p) and p not in (-1, 0, 1, 1.5, 2) for p in preferences)


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
    return seeded_order(instruction, 0)


def read_again(reply: Any, order: Order, *, weighted: bool) -> float | None:
    """The preference that AlpacaEval's rules read in a logged reply; None where they find none.

    `reply` is `raw_completion`: the text of a ranking, the arguments of a function call, or a chat completion with
    the log-probabilities of its last token. Raises ValueError for a reply of another kind.
    """
    if isinstance(reply, Mapping) and isinstance(reply.get("logprobs"), Mapping):
        shown = _weighed(reply["logprobs"])
        if shown is not None and not weighted:
            shown = 1.0 if shown < 1.5 else 2.0
    else:
        shown = _rank_of_first(reply)
    return None if shown is None else 3 - shown if order == "candidate-first" else shown


def lines(rows: Sequence[Row]) -> list[str]:
    """AlpacaEval's own figures for the rows of a record, for comparison with its leaderboard digit by digit."""
    raw: list[Any] = [-1.0 if row["verdict"] == "failed" else row["raw"] for row in rows]
    figures = leaderboard_row(raw)
    excluded = win_rates.win_rate_terms([{**row, "preference": None} for row in rows], "excluded").value
    decided = int(figures["n_wins"] + figures["n_wins_base"])
    shown = "–" if math.isnan(excluded) else f"{excluded * 100:.2f} %"
    out = [
        "  AlpacaEval   " + ", ".join(f"{name} {value!r}" for name, value in figures.items()),
        f"  ties out     {shown} of {decided} decided",
    ]
    if logged := [row for row in rows if "read_again" in row]:
        differences = [_difference(row["raw"], row["read_again"]) for row in logged]
        same = [difference for difference in differences if difference <= _SAME]
        out.append(
            f"  read again   {len(same)} of {len(logged)} logged replies give the published preference"
            + (f", within {max(same):.0e}" if same else "")
        )
    return out


def _number(value: Any, where: str) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        raise InputError(f"{where} has the preference {value!r}, which is no number: restore the file")
    try:
        verdict_of(value)
    except ValueError as error:
        raise InputError(f"{where}: {error}; restore the file") from None
    return None if value is None or math.isnan(value) else float(value)


def _row(entry: Mapping[str, Any], number: float | None, prompt: str, seed: int, order: Order, weighted: bool) -> Row:
    ours, theirs = (str(entry[side] or "") for side in ("output_2", "output_1"))
    verdict = verdict_of(number)
    more: dict[str, Any] = {}
    if weighted and number is not None and number != -1:
        verdict = Verdict(verdict.word, verdict.reason, preference=number - 1 if number else 0.5)
    logged = entry.get("raw_completion")
    if verdict.word == "tie" and ours == theirs and not logged:
        verdict = Verdict("tie", "identical answers", verdict.preference)
        more["asked"] = False
    if logged:
        with contextlib.suppress(ValueError):  # a judge whose replies are of a kind that is not known here
            more["read_again"] = read_again(logged, order, weighted=weighted)
    return row(
        prompt,
        seed,
        order,
        verdict,
        task=str(entry.get("dataset") or ""),
        raw=number,
        candidate_chars=len(ours),
        baseline_chars=len(theirs),
        **more,
    )


def _weighed(logprobs: Mapping[str, Any]) -> float | None:
    """2 - P(m) / (P(m) + P(M)) from the likely tokens at the last position."""
    try:
        last = logprobs["content"][-1]["top_logprobs"]
        likely = {str(item["token"]): float(item["logprob"]) for item in last}
    except (KeyError, IndexError, TypeError):
        raise ValueError("no log-probabilities of tokens") from None
    share = first_share(likely, "m", "M")
    return None if share is None else 2 - share


def _rank_of_first(reply: Any) -> float | None:
    """The rank that a ranking gives the answer shown first, called model_1 or m."""
    if isinstance(reply, str):
        reply = _parsed(reply)
    entries = reply.get("ordered_models") if isinstance(reply, Mapping) else reply
    if entries is None:
        return None
    if not isinstance(entries, list | tuple):
        raise ValueError("no ranking")
    for entry in entries:
        if isinstance(entry, Mapping) and entry.get("model") in ("model_1", "m"):
            rank = entry.get("rank")
            return float(rank) if isinstance(rank, int | float) and rank in (1, 2) else None
    return None


def _parsed(text: str) -> Any:
    """A JSON value or a Python literal; None for anything else. Nothing is evaluated."""
    if len(text) > _LONGEST_REPLY:
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return None


def _difference(published: float | None, again: float | None) -> float:
    if published is None or again is None:
        return 0.0 if published is again else math.inf
    return abs((1.5 if published == 0 else published) - again)
