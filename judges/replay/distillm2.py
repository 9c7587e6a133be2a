"""What do DistiLLM-2's counts say? Wins, losses and ties per shown order, as its grading script prints them.

The rate is its own: a tie counts half in each order, and the two orders' rates are averaged. Counts do not tell which
prompt got which verdict, so rows cannot be paired with another model's, and the two orders are laid side by side so
that they agree as often as the counts allow: of all layouts that is the one with the widest interval over prompts.
Rates that the file states are not read; they follow from the counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from judges.protocols import Order
from judges.replay.published import Published, Row, card, judge, protocol
from judges.tasks import row
from judges.verdicts import Verdict, Word
from selectkd_eval import win_rates
from selectkd_eval.errors import InputError
from selectkd_eval.prompts import prompt_id

FORMAT = "distillm2-counts"
_ORDERS: dict[str, Order] = {"order1": "candidate-first", "order2": "baseline-first"}
_WORDS: dict[str, Word] = {"win": "candidate", "tie": "tie", "lose": "baseline"}


def fits(entries: Sequence[Any]) -> bool:
    """Whether this is one object with counts for an order."""
    return len(entries) == 1 and isinstance(entries[0], dict) and bool(_ORDERS.keys() & entries[0].keys())


def load(entries: Sequence[Mapping[str, Any]], path: Path, sha256: str) -> Published:
    """The counts of one candidate in both orders as rows; an InputError says what is wrong with them."""
    found = entries[0]
    counts = {name: _counts(found.get(name), name, path) for name in _ORDERS}
    n = found.get("n_prompts", max(sum(count.values()) for count in counts.values()))
    if not _is_count(n) or any(sum(count.values()) > n for count in counts.values()):
        raise InputError(f"{path} counts more verdicts in an order than its n_prompts, {n!r}: restore the file")
    task = str(found.get("benchmark") or "")
    rows = []
    for name, order in _ORDERS.items():
        verdicts = [Verdict(word) for key, word in _WORDS.items() for _ in range(counts[name][key])]
        verdicts += [Verdict("unreadable", "not counted in the file")] * (n - len(verdicts))
        # The file's digest keeps these prompts, of which only the number is known, apart from every other file's.
        rows += [row(prompt_id(f"{sha256} {i}"), 0, order, verdict) for i, verdict in enumerate(verdicts)]
    return Published(
        format=FORMAT,
        sha256=sha256,
        judge=judge(
            str(found.get("judge") or "unnamed"), "counts only, so prompts cannot be told apart", counts_only=True
        ),
        protocol=protocol(
            "distillm2:counts", "both", "half-per-order", "DistiLLM-2; counts without the judge's prompt"
        ),
        candidate=card(str(found.get("candidate") or "unnamed")),
        baseline=card(str(found.get("baseline") or "unnamed")),
        prompts={"name": task or path.name, "sha256": sha256},
        rows=rows,
    )


def lines(rows: Sequence[Row]) -> list[str]:
    """The rate of each order and their mean, as DistiLLM-2 prints them."""
    rates = [
        (name, win_rates.win_rate_terms([row for row in rows if row["order"] == order], "half").value)
        for name, order in zip(("order 1", "order 2"), _ORDERS.values(), strict=True)
    ]
    mean = win_rates.win_rate_terms(rows, "half-per-order").value
    return ["  DistiLLM-2   " + ", ".join(f"{name} {value!r}" for name, value in [*rates, ("mean", mean)])]


def _counts(found: Any, name: str, path: Path) -> dict[str, int]:
    if not isinstance(found, Mapping) or any(not _is_count(found.get(key)) for key in _WORDS):
        raise InputError(f"{path} has no whole numbers win, lose and tie for {name}: counts are needed for both orders")
    counts = {key: int(found[key]) for key in _WORDS}
    total = sum(counts.values())
    if total == 0 or found.get("n", total) != total:
        raise InputError(
            f"win, lose and tie of {name} in {path} add up to {total}, and its n is {found.get('n')}: restore the file"
        )
    return counts


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
