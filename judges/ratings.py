"""Who said what about which comparison? Verdicts of several raters, joined by comparison and never by position.

A rater is a judge, one asking of a judge, or a person. Comparisons that were settled without a judge (identical or
empty answers) are left out and counted: all raters agree on them by rule. It computes no coefficient: see `agreement`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selectkd_eval.errors import InputError
from selectkd_eval.measures import Row
from selectkd_eval.win_rates import DECIDED

K = len(DECIDED)
MISSING = -1
_WITHOUT_LABEL = ("unreadable", "truncated", "filtered")  # replies without a verdict; a failed call is no reply

Unit = tuple[Any, ...]  # prompt, seed, repeat, and the shown order where it tells comparisons apart


@dataclass(frozen=True)
class Ratings:
    """Verdicts of R raters on U comparisons: `codes` (U, R) indexes DECIDED, MISSING where a rater gave none."""

    raters: tuple[str, ...]
    units: tuple[Unit, ...]
    codes: NDArray[np.int64]
    task_of: Mapping[str, str] = field(default_factory=dict)  # by prompt
    settled: int = 0  # comparisons left out because somebody's verdict needed no judge

    def by_prompt(self, per_unit: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums over each prompt's comparisons, (U, d) to (N, d), prompts sorted."""
        prompts = np.unique([unit[0] for unit in self.units], return_inverse=True)[1]
        out = np.zeros((prompts.max(initial=-1) + 1, per_unit.shape[1]))
        np.add.at(out, prompts, per_unit)
        return out

    @property
    def tasks(self) -> list[str] | None:
        """Every prompt's task, prompts sorted; None where there is one."""
        tasks = [self.task_of.get(prompt, "") for prompt in sorted({unit[0] for unit in self.units})]
        return tasks if len(set(tasks)) > 1 else None

    @property
    def offered(self) -> int:
        """How many words were in use, at least two: Gwet's number of categories."""
        return max(2, len(set(self.codes[self.codes >= 0].tolist())))


def ratings(by_rater: Mapping[str, Iterable[Row]], unread_as: str = "") -> Ratings:
    """Join raters by prompt, seed and repeat; by shown order too as soon as one of them judged both orders.

    Verdicts name the answer, not the position, so judges that saw a comparison in different orders can be joined.
    `unread_as` is the word that a reply without a verdict stands for ("" leaves it out; PandaLM's figures take a tie).
    InputError where a rater judged one comparison twice, or where no two raters share one.
    """
    rows = {rater: list(found) for rater, found in by_rater.items()}
    by_order = any(len({_unit(row, False) for row in found}) < len(found) for found in rows.values())
    verdicts: dict[Unit, dict[str, int]] = defaultdict(dict)
    settled: set[Unit] = set()
    tasks: dict[str, str] = {}
    for rater, found in rows.items():
        for row in found:
            unit = _unit(row, by_order)
            if rater in verdicts[unit]:
                raise InputError(
                    f"{rater} judged the comparison {'/'.join(map(str, unit))} twice: give a record with one verdict "
                    f"per prompt, seed, order and repeat"
                )
            tasks.setdefault(unit[0], str(row.get("task") or ""))
            verdicts[unit][rater] = _code(row, unread_as)
            if row.get("asked") is False:
                settled.add(unit)
    shared = sorted((unit for unit, by in verdicts.items() if len(by) > 1), key=str)
    if not shared:
        raise InputError(
            f"{' and '.join(rows) or 'nobody'} judged no comparison in common: agreement needs two judges on the same "
            f"prompts and answer seeds"
        )
    units = tuple(unit for unit in shared if unit not in settled)
    codes = np.array([[verdicts[unit].get(rater, MISSING) for rater in rows] for unit in units], dtype=np.int64)
    return Ratings(tuple(rows), units, codes.reshape(len(units), len(rows)), tasks, len(shared) - len(units))


def by_sample(rows: Iterable[Row], names: Sequence[str] = ()) -> dict[str, list[Row]]:
    """The repeats of one record as raters of their own: the annotators of a published file, or askings of a judge."""
    split: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        split[int(row.get("sample") or 0)].append({**row, "sample": 0})
    return {names[sample] if sample < len(names) else f"asking {sample + 1}": split[sample] for sample in sorted(split)}


def majority(by_rater: Mapping[str, Iterable[Row]]) -> list[Row]:
    """One row per comparison with the word that most raters gave; none where two words share the lead."""
    found = ratings(by_rater)
    rows: list[Row] = []
    for unit, codes in zip(found.units, found.codes, strict=True):
        counts = np.bincount(codes[codes >= 0], minlength=K)
        if counts.max() and np.count_nonzero(counts == counts.max()) == 1:
            prompt, seed, sample, *order = unit
            rows.append(
                {
                    "prompt": prompt,
                    "seed": seed,
                    "sample": sample,
                    **({"order": order[0]} if order else {}),
                    "verdict": DECIDED[int(counts.argmax())],
                }
            )
    return rows


def _unit(row: Row, by_order: bool) -> Unit:
    unit = (str(row["prompt"]), row.get("seed") or 0, row.get("sample") or 0)
    return (*unit, row.get("order")) if by_order else unit


def _code(row: Row, unread_as: str) -> int:
    word = "" if "error" in row else str(row["verdict"])
    if unread_as and word in _WITHOUT_LABEL:
        word = unread_as
    return DECIDED.index(word) if word in DECIDED else MISSING
