"""Which tar records belong together, and what do they say of each method at each step?

TAR is compared on one teacher, one text and one k. Training seeds are pooled prompt by prompt; the untrained
student stands at step 0. Both of the paper's readings are here: Eq. 13's mean over sequences, and pooled over tokens.
What Theorem 1 is asked about, single runs on the clock of their learning rate, is `acceptance_runs`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np

from analysis.load import Card, Library, Method
from selectkd_eval import measures
from selectkd_eval.measures import Terms
from selectkd_eval.records import Record

WHAT = ("greedy", "spec", "alpha")
EDGES = {"by_entropy": "entropy_edges", "by_position": "position_edges"}
Point = tuple[Method, int | None]


class Measured(NamedTuple):
    """One student of a tar record: its rows, what it was trained as, and the step it was kept at."""

    method: Method
    step: int | None
    card: Card
    place: int
    rows: list[dict[str, Any]]
    facts: dict[str, Any]

    def terms(self, what: str, macro: bool = True) -> Terms:
        """One acceptance, per prompt."""
        return measures.tar(self.rows, self.place, what, macro)

    def bins(self, by: str, what: str) -> list[Terms] | None:
        """One acceptance per bin and prompt; None where the record has no breakdown."""
        edges = self.facts.get(EDGES[by])
        return None if edges is None else measures.tar_by(self.rows, self.place, by, len(edges) + 1, what)


@dataclass(frozen=True)
class Breakdown:
    """Acceptance per bin, pooled over tokens and seeds: `edges` between the bins, one more terms than edges."""

    by: str
    edges: tuple[float, ...]
    terms: dict[Method, dict[str, list[Terms]]]

    def between(self, method: Method, what: str, low: float | None, high: float | None) -> Terms:
        """The bins from edge `low` up to edge `high` taken together; None is the end of the scale."""
        first = 0 if low is None else self.edges.index(low) + 1
        last = len(self.edges) + 1 if high is None else self.edges.index(high) + 1
        parts = self.terms[method][what][first:last]
        num, den = (np.sum([getattr(part, name) for part in parts], axis=0) for name in ("num", "den"))
        return replace(parts[0], num=num, den=den)


@dataclass(frozen=True)
class TarSet:
    """What was measured with one teacher, text and k."""

    text: str
    k: int
    measured: tuple[Measured, ...]

    @property
    def methods(self) -> list[Method]:
        return sorted({one.method for one in self.measured}, key=lambda method: method.order)

    def steps(self, method: Method) -> list[int]:
        """The steps at which a method was measured."""
        return sorted({one.step for one in self.measured if one.method == method and one.step is not None})

    @cached_property
    def points(self) -> dict[Point, dict[str, Terms]]:
        """(method, step) to the terms of greedy, spec and alpha, as means over sequences (Eq. 13)."""
        return self._points(macro=True)

    @cached_property
    def pooled(self) -> dict[Point, dict[str, Terms]]:
        """The same over tokens, in which long sequences count for more."""
        return self._points(macro=False)

    def breakdown(self, by: str) -> Breakdown | None:
        """Every method's last students by_entropy or by_position; None where no method has it, or edges differ."""
        found: dict[Method, dict[str, list[Terms]]] = {}
        edges = {tuple(one.facts.get(EDGES[by]) or ()) for one in self.measured} - {()}
        if len(edges) != 1:
            return None
        for method in self.methods:
            last = [one for one in self.measured if one.method == method]
            steps = self.steps(method)
            last = [one for one in last if one.step == steps[-1]] if steps else last
            bins = {what: [one.bins(by, what) for one in last] for what in WHAT}
            whole = {what: [part for part in parts if part is not None] for what, parts in bins.items()}
            if last and all(len(parts) == len(last) for parts in whole.values()):
                found[method] = {
                    what: [measures.pool(column) for column in zip(*parts, strict=True)]
                    for what, parts in whole.items()
                }
        return Breakdown(by, edges.pop(), found) if found else None

    def _points(self, macro: bool) -> dict[Point, dict[str, Terms]]:
        groups: dict[Point, list[Measured]] = defaultdict(list)
        for one in self.measured:
            groups[one.method, one.step].append(one)
        return {
            at: {what: measures.pool([one.terms(what, macro) for one in group]) for what in WHAT}
            for at, group in groups.items()
        }


def tar_sets(library: Library) -> list[TarSet]:
    """Every comparable set, the one with most students first."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in library.of("tar"):
        facts = record.facts
        text = (facts.get("prompts") or {}).get("sha256"), record.header["inputs"].get("data")
        key = (facts["teacher"].get("fingerprint"), text, facts.get("k"))
        groups[str(key)].append(record)
    ordered = sorted(groups.values(), key=lambda group: (-_students(group), group[0].path.name))
    sets = [_tar_set(library, group) for group in ordered]
    return [one if names == 1 else replace(one, text=f"{one.text} {mark}") for one, names, mark in _marks(sets)]


def _marks(sets: Sequence[TarSet]) -> Iterator[tuple[TarSet, int, str]]:
    """Every set, how many have its text's name, and what tells it apart from these: k, else a number."""
    for one in sets:
        same = [other for other in sets if other.text == one.text]
        apart = len({other.k for other in same}) == len(same)
        yield one, len(same), f"(k = {one.k})" if apart else f"({same.index(one) + 1})"


def _tar_set(library: Library, found: Sequence[Record]) -> TarSet:
    measured: dict[Any, Measured] = {}
    for record in found:
        rows: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for row in record.good:
            rows[row["student"]].append(row)
        for index, card in enumerate(record.facts["students"]):
            method = library.run_of(card)
            step = next((row.get("step") for row in rows[index]), None)
            step = 0 if step is None and method.role == "start" else step
            # A student measured by two commands counts once.
            key = (method, step, card.get("seed"), card.get("fingerprint"))
            measured.setdefault(key, Measured(method, step, card, index, rows[index], record.facts))
    facts = found[0].facts
    return TarSet(text_name(facts), int(facts.get("k", 5)), tuple(measured.values()))


def text_name(facts: dict[str, Any]) -> str:
    """The text's name, without the places of files, and who wrote it where a model did."""
    name = str((facts.get("prompts") or {}).get("name", "held-out text"))
    short = ", ".join(PurePath(part.strip()).name for part in name.split(","))
    writers = [str(one.get("method") or one.get("name")) for one in facts.get("written_by") or []]
    return f"text by {', '.join(dict.fromkeys(writers))} ({short})" if writers else short


def _students(found: Sequence[Record]) -> int:
    return sum(len(record.facts["students"]) for record in found)
