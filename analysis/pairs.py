"""Which teacher taught which student? The blocks of the paper's Tables 1 and 2.

A pair is a teacher and the model that a student was before anything was trained here: a student that goes on from a
fine-tuned one belongs to the model that the fine-tuning began with. Rows are compared within a pair alone. It reads
cards, the names and weights that records carry, and computes no number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from analysis.load import Library, Method

OTHERS = "Other models"


class Pair(NamedTuple):
    """A teacher and a student by name, as records call them, and by the digests of their weights."""

    teacher: str
    student: str
    weights: tuple[str, str]

    @property
    def title(self) -> str:
        """The pair as the paper heads a block."""
        return f"{plain(self.teacher)} → {plain(self.student)}"


def plain(name: str) -> str:
    """A model's name without its owner or directory."""
    return name.rstrip("/").rpartition("/")[2]


class Block(NamedTuple):
    """Methods whose rows are compared with each other: those of one pair, where it is known."""

    title: str
    methods: list[Method]
    pair: Pair | None


class Pairs:
    """The pairs of a library, and the methods of each."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self._cards = [*library.cards(), *_of_trainings(library)]
        self._starts = self._starts_of()
        self._names = self._names_of()
        self._weights: dict[Method, set[str]] = defaultdict(set)
        for card in library.cards():
            self._weights[library.method(card)].add(str(card.get("fingerprint")))
        students = {(m.get("teacher"), self._root(m.get("start"))) for m in library.methods if m.role == "student"}
        known = sorted((str(teacher), str(start)) for teacher, start in students if teacher and start)
        self.found = [Pair(self._name(teacher), self._name(start), (teacher, start)) for teacher, start in known]

    def of(self, method: Method) -> list[Pair]:
        """The pairs that a method's row stands under; a teacher, a start or an SFT control may stand under several."""
        if method.role != "student":
            return [pair for pair in self.found if self._weights[method] & set(pair.weights)]
        teacher, start = method.get("teacher"), self._root(method.get("start"))
        return [pair for pair in self.found if pair.weights[1] == start and teacher in (None, "", pair.weights[0])]

    def blocks(self, methods: Iterable[Method]) -> list[Block]:
        """Block by block; one without a title where there are no two pairs among these methods."""
        methods = list(methods)
        found: dict[Pair, list[Method]] = {}
        for pair in self.found:
            own = [method for method in methods if pair in self.of(method)]
            if any(method.role == "student" and method.get("teacher") for method in own):
                found[pair] = own
        if len(found) < 2:
            return [Block("", methods, next(iter(found), None))]
        titles = [pair.title for pair in found]
        blocks = []
        for pair, own in sorted(found.items()):
            apart = f" ({', '.join(digest[:8] for digest in pair.weights)})" if titles.count(pair.title) > 1 else ""
            blocks.append(Block(pair.title + apart, own, pair))
        rest = [method for method in methods if not any(method in own for own in found.values())]
        return [*blocks, *([Block(OTHERS, rest, None)] if rest else [])]

    def _root(self, start: Any) -> Any:
        """The model that training began with, before all trainings that are known here."""
        seen = set()
        while start in self._starts and start not in seen:
            seen.add(start)
            start = self._starts[start]
        return start

    def _starts_of(self) -> dict[Any, Any]:
        """What each trained student was trained from, by its weights."""
        found = {}
        for card in self._cards:
            start = (card.get("training") or {}).get("start")
            if start and card.get("fingerprint"):
                found[card["fingerprint"]] = start
        return found

    def _names_of(self) -> Mapping[str, str]:
        """What models are called, by their weights: as they were trained with, else as they were measured."""
        found: dict[str, str] = {}
        for card in self._cards:
            training = card.get("training") or {}
            for who in ("teacher", "start"):
                if training.get(who) and training.get(f"{who}_name"):
                    found.setdefault(str(training[who]), str(training[f"{who}_name"]))
        for card in self._cards:
            if card.get("fingerprint"):
                found.setdefault(str(card["fingerprint"]), str(card.get("name") or card["fingerprint"][:12]))
        return found

    def _name(self, weights: str) -> str:
        return self._names.get(weights, weights[:12])


def _of_trainings(library: Library) -> Iterable[Mapping[str, Any]]:
    for record in library.of("train"):
        for name in ("teacher", "student"):
            if isinstance(card := record.facts.get(name), dict):
                yield card
