"""From the rows of a judged record to its win rate (SelecTKD, Tables 1 and 4).

One row per comparison, shown order and repeat; a verdict is a word, never a number. A tie rule says how words
become a share of a win, and the shares are summed prompt by prompt (`Terms`), so that a prompt with its seeds,
orders and repeats stays one unit of every interval.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from selectkd_eval.errors import choose
from selectkd_eval.measures import Row, Terms, terms

TIES = {
    "excluded": "ties excluded",  # W / (W + L): the paper's
    "half": "a tie counts half",  # (W + T/2) / n: AlpacaEval's
    "half-per-order": "a tie counts half, mean of the two orders' rates",  # DistiLLM-2's
    "agreement": "both orders must agree, else a tie, which counts half",  # MT-bench's
}
VERDICTS = ("candidate", "baseline", "tie", "unreadable", "truncated", "filtered", "failed")
DECIDED = VERDICTS[:3]  # the words that count; the others are in no rate, and every rate says how many they are


def win_rate_terms(rows: Iterable[Row], ties: str = "excluded") -> Terms:
    """Wins and counted comparisons per prompt under a tie rule of TIES.

    A row with a `preference` in [0, 1] (a judge that gave a probability) counts as that share of a win.
    What got no verdict is in neither sum: see `verdict_counts`. Rows of several tasks give strata.
    """
    choose(ties, TIES, "tie rule")
    rows = list(rows)
    counted = _agreed(rows) if ties == "agreement" else rows
    shares = [(row, _share(row, ties)) for row in counted]
    # The mean of the orders' rates weighs each order alike, however many of its verdicts could be read.
    per_order = ties == "half-per-order"
    sizes = Counter(row.get("order") if per_order else None for row, share in shares if share is not None)
    even = sizes.total() / max(1, len(sizes))
    parts = []
    for row, share in shares:
        # A prompt without a counted comparison stays, with nothing in either sum, so that methods pair.
        weight = 0.0 if share is None else even / sizes[row.get("order") if per_order else None]
        parts.append((str(row["prompt"]), (share or 0.0) * weight, weight))
    return terms(parts, proportion=True, tasks=tasks_of(rows))


def by_seed(rows: Iterable[Row], ties: str = "excluded") -> dict[int, Terms]:
    """The terms of every answer seed apart, all over the same prompts: the crossed design of prompts and seeds."""
    rows = list(rows)
    tasks = tasks_of(rows)
    apart: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        apart[int(row.get("seed") or 0)].append(row)
    return {seed: over(win_rate_terms(own, ties), tasks) for seed, own in sorted(apart.items())}


def over(part: Terms, tasks: Mapping[str, str]) -> Terms:
    """The same sums over all prompts of `tasks`, so that parts of a record line up; prompts not in them add nothing."""
    sums = ((p, n, d) for p, n, d in zip(part.prompts, part.num, part.den, strict=True))
    return terms([*sums, *((prompt, 0.0, 0.0) for prompt in tasks)], proportion=True, tasks=tasks)


def tasks_of(rows: Iterable[Row]) -> dict[str, str]:
    """Every prompt's task, empty where there is only one."""
    return {str(row["prompt"]): str(row.get("task") or "") for row in rows}


def _share(row: Row, ties: str) -> float | None:
    """The candidate's share of one comparison; None when the comparison does not count."""
    if "error" in row:
        return None
    if row.get("preference") is not None:
        return float(row["preference"])
    if row["verdict"] == "tie":
        return None if ties == "excluded" else 0.5
    return {"candidate": 1.0, "baseline": 0.0}.get(row["verdict"])


def _agreed(rows: Iterable[Row]) -> list[Row]:
    """One row per (prompt, seed, sample): the verdict both orders share, else a tie; unreadable if either has none."""
    together: dict[tuple[str, Any, Any], list[Row]] = defaultdict(list)
    for row in rows:
        together[str(row["prompt"]), row.get("seed"), row.get("sample") or 0].append(row)
    merged: list[Row] = []
    for (prompt, _, _), pair in together.items():
        # One order alone cannot agree with itself: a failed other order leaves the comparison undecided.
        verdicts = {"failed" if "error" in row else row["verdict"] for row in pair}
        decided = verdicts <= set(DECIDED)
        verdict = "unreadable" if not decided else verdicts.pop() if len(verdicts) == 1 else "tie"
        merged.append({"prompt": prompt, "verdict": verdict})
    return merged


def tie_rule(record: Any) -> str:
    """The tie rule of a winrate record's protocol."""
    return str((record.facts.get("protocol") or {}).get("ties", "excluded"))


def win_rate(record: Any) -> Terms:
    """The win-rate terms of a record under its own protocol's tie rule."""
    return win_rate_terms(record.rows, tie_rule(record))


def verdict_counts(rows: Iterable[Row]) -> dict[str, int]:
    """How many comparisons ended in each word; a row with an `error` has failed."""
    counts = Counter("failed" if "error" in row else str(row["verdict"]) for row in rows)
    return {word: counts[word] for word in VERDICTS}


def win_rate_bounds(record: Any) -> tuple[float, float]:
    """The win rate if every comparison without a verdict had been lost, and if all had been won."""

    def if_all_were(word: str) -> float:
        rows = [_settled(row, word) if undecided(row) else row for row in record.rows]
        return win_rate_terms(rows, tie_rule(record)).value

    return if_all_were("baseline"), if_all_were("candidate")


def undecided(row: Row) -> bool:
    """Whether a comparison got no verdict."""
    return "error" in row or row["verdict"] not in DECIDED


def _settled(row: Row, word: str) -> Row:
    kept = {name: row.get(name) for name in ("prompt", "seed", "order", "sample", "task")}
    return {**kept, "verdict": word}
