"""Which tar records belong together, and what do they say of each method at each step?

TAR is compared on one teacher, one text and one k. Training seeds are pooled prompt by prompt; the untrained
student stands at step 0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from analysis.load import Library, Method
from selectkd_eval import measures
from selectkd_eval.measures import Terms
from selectkd_eval.records import Record

WHAT = ("greedy", "spec", "alpha")


class TarSet(NamedTuple):
    """One teacher, text and k: (method, step) to the terms of greedy, spec and alpha."""

    text: str
    k: int
    points: dict[tuple[Method, int | None], dict[str, Terms]]

    @property
    def methods(self) -> list[Method]:
        return sorted({method for method, _ in self.points}, key=lambda method: method.order)

    def steps(self, method: Method) -> list[int]:
        """The steps at which a method was measured."""
        return sorted(step for other, step in self.points if other == method and step is not None)


def tar_sets(library: Library) -> list[TarSet]:
    """Every comparable set, the one with most students first."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in library.of("tar"):
        facts = record.facts
        text = (facts.get("prompts") or {}).get("sha256"), record.header["inputs"].get("data")
        key = (facts["teacher"].get("fingerprint"), text, facts.get("k"))
        groups[str(key)].append(record)
    ordered = sorted(groups.values(), key=lambda group: (-_students(group), group[0].path.name))
    return [_tar_set(library, group) for group in ordered]


def _tar_set(library: Library, found: Sequence[Record]) -> TarSet:
    parts: dict[tuple[Method, int | None], dict[str, list[Terms]]] = defaultdict(lambda: defaultdict(list))
    for record in found:
        for index, card in enumerate(record.facts["students"]):
            method = library.run_of(card)
            step = next((row.get("step") for row in record.good if row["student"] == index), None)
            at = (method, 0 if step is None and method.role == "start" else step)
            for what in WHAT:
                parts[at][what].append(measures.tar(record.rows, index, what))
    facts = found[0].facts
    points = {at: {what: measures.pool(terms) for what, terms in kinds.items()} for at, kinds in parts.items()}
    return TarSet(str((facts.get("prompts") or {}).get("name", "held-out text")), int(facts.get("k", 5)), points)


def _students(found: Sequence[Record]) -> int:
    return sum(len(record.facts["students"]) for record in found)
