"""Which landscapes were measured, and may they stand on one scale? What the paper's Figure 4b is drawn from.

Landscape records become planes: one student, its surfaces by direction seed. Records that hold a share each of one
landscape are put together, and refused while a share is missing. Landscapes of several commands are compared only where
teacher, tokens, loss, directions, radius and all else that decides a surface are the same; otherwise everything that
differs is named at once, with the records that say so.

It draws nothing and computes no interval: that is `figure_landscape` and `landscape_intervals`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis.load import Card, Library, Method
from selectkd_eval import surfaces
from selectkd_eval.errors import InputError
from selectkd_eval.records import Record, canonical
from selectkd_eval.surfaces import Surface

Row = Mapping[str, Any]

# What decides a surface beside the student. How the radius was found, and how finely a plane was refined, do not.
SHARED = (
    *("teacher", "teacher_sha256", "tokens_sha256", "loss", "vocabulary"),
    *("directions", "moved", "params_zeroed", "folded", "radius", "grid", "dtype", "attention"),
)
_SHOWN = 60  # characters of a fact in a refusal


@dataclass(frozen=True)
class Plane:
    """One student's surfaces of the loss by direction seed, and of every metric measured; `index`: its rows' number."""

    index: int
    method: Method
    seed: int | None
    surfaces: dict[int, Surface]
    metrics: dict[str, dict[int, Surface]] = field(default_factory=dict)

    def of(self, what: str) -> dict[int, Surface]:
        """The surfaces of the loss, or of a metric by name."""
        return self.surfaces if what == "loss" else self.metrics.get(what, {})


@dataclass(frozen=True)
class Landscapes:
    """Planes that share one scale, by method and training seed; `rows` of all of them, their students renumbered to
    the planes' `index`; `facts` of the first record, whose shared ones hold for all.
    """

    facts: dict[str, Any]
    planes: list[Plane]
    rows: list[Row]
    sources: list[str]

    @property
    def methods(self) -> list[Method]:
        """In the order of tables."""
        return list(dict.fromkeys(plane.method for plane in self.planes))

    def students(self, method: Method) -> list[Plane]:
        """A method's planes, by training seed."""
        return [plane for plane in self.planes if plane.method == method]

    @property
    def directions(self) -> list[int]:
        """Direction seeds under which every student was measured."""
        return sorted(set.intersection(*(set(plane.surfaces) for plane in self.planes)))

    @property
    def metrics(self) -> list[str]:
        """Metrics that were measured of every student under all those seeds."""
        known = self.planes[0].metrics
        return [name for name in known if all(set(self.directions) <= set(plane.of(name)) for plane in self.planes)]


@dataclass
class Part:
    """One whole landscape: the facts and rows of a record, or of all the shares of one."""

    facts: dict[str, Any]
    rows: Sequence[Row]
    names: list[str]


def landscapes(library: Library) -> Landscapes:
    """Every landscape of the library on one scale.

    Raises InputError where there is none, where shares are missing, or where they cannot be compared.
    """
    found = library.of("landscape")
    if not found:
        raise InputError("the landscape figure needs landscape records: run `selectkd-eval landscape` first")
    parts = whole(found)
    if apart := differences([(", ".join(part.names), part.facts) for part in parts]):
        raise InputError(
            f"these landscapes cannot be compared: {'; '.join(apart)}; measure all students in one command, "
            f"or keep other records in another directory"
        )
    return _joined(library, parts)


def differences(landscapes: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Every fact that differs between landscapes, given as (record names, facts), with who says what."""
    return _differing(SHARED, landscapes, _said)


def _differing(
    names: Iterable[str], sides: Sequence[tuple[str, Mapping[str, Any]]], told: Callable[[Any], str]
) -> list[str]:
    """Of these facts those that differ between the sides, given as (record names, facts), with who says what."""
    found = []
    for name in names:
        values: dict[str, list[str]] = defaultdict(list)
        for side, facts in sides:
            values[told(facts.get(name))].append(side)
        if len(values) > 1:
            listed = "; ".join(f"{_cut(value)} in {', '.join(said)}" for value, said in sorted(values.items()))
            found.append(f"their {name} differs ({listed})")
    return found


def whole(found: Sequence[Record]) -> list[Part]:
    """Records as whole landscapes, shares put together; InputError where one is missing or does not belong.

    Shares whose rows a whole landscape has taken over are left out.
    """
    entire = [record for record in found if not record.facts.get("share")]
    parts = [Part(record.facts, record.rows, [record.path.name]) for record in entire]
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in found:
        if (share := record.facts.get("share")) and all(_apart([record, other]) for other in entire):
            facts = record.facts
            students = [card.get("fingerprint") for card in facts["students"]]
            groups[canonical([share.partition("/")[2], students, facts.get("seeds")])].append(record)
    return sorted([*parts, *(_merged(group) for group in groups.values())], key=lambda part: part.names)


def _merged(shares: Sequence[Record]) -> Part:
    """The shares of one landscape as one."""
    held: dict[int, list[Record]] = defaultdict(list)
    for record in shares:
        held[int(record.facts["share"].partition("/")[0])].append(record)
    names = sorted(record.path.name for record in shares)
    of = int(shares[0].facts["share"].partition("/")[2])
    if apart := _apart(shares):
        raise InputError(
            f"{', '.join(names)} are not shares of one landscape: {'; '.join(apart)}; measure every share with the "
            f"same options, or keep other records in another directory"
        )
    if twice := [f"{share}/{of}" for share, records in sorted(held.items()) if len(records) > 1]:
        raise InputError(f"{', '.join(names)} hold share {', '.join(twice)} more than once: keep one record of each")
    if missing := [f"{share}/{of}" for share in range(1, of + 1) if share not in held]:
        raise InputError(
            f"share {', '.join(missing)} of a landscape is missing beside {', '.join(names)}: run the same command "
            f"with --share {missing[0]}{' and so on' if len(missing) > 1 else ''}, or without --share for all the rest"
        )
    rows: dict[str, Row] = {}
    for share in sorted(held):
        for row in held[share][0].rows:
            rows.setdefault(row["key"], row)
    first = held[min(held)][0].facts
    return Part({**first, "share": ""}, list(rows.values()), names)


def _apart(shares: Sequence[Record]) -> list[str]:
    """What differs between the facts and inputs of records that should be shares of one landscape."""
    sides = [
        (
            record.path.name,
            {**record.facts, **{f"input {k}": v for k, v in (record.header.get("inputs") or {}).items()}},
        )
        for record in shares
    ]
    return _differing(sorted({name for _, facts in sides for name in facts} - {"share"}), sides, canonical)


def _joined(library: Library, parts: Sequence[Part]) -> Landscapes:
    """One plane per student, whichever records its surfaces lie in."""
    cards: dict[str, Card] = {}
    rows: list[Row] = []
    seen: set[tuple[str, str]] = set()
    scalars: dict[str, Part] = {}
    for part in parts:
        for index, card in enumerate(part.facts["students"]):
            student = str(card.get("fingerprint"))
            cards.setdefault(student, card)
            for row in part.rows:
                if row.get("student") != index or (place := (student, _place(row, index))) in seen:
                    continue  # a student that two commands measured counts once
                # Scalars name their directions by number within one command: two commands' do not mix.
                if row.get("kind") == "scalar" and scalars.setdefault(student, part) is not part:
                    continue
                seen.add(place)
                rows.append({**row, "student": student})
    order = sorted(cards, key=lambda name: (library.method(cards[name]).order, cards[name].get("seed") or 0, name))
    numbers = {name: number for number, name in enumerate(order)}
    rows = [{**row, "student": numbers[row["student"]]} for row in rows]
    mine: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        mine[row["student"]].append(row)
    planes = [
        _plane(number, library.method(cards[name]), cards[name], mine[number]) for name, number in numbers.items()
    ]
    return Landscapes(parts[0].facts, planes, rows, [name for part in parts for name in part.names])


def _place(row: Row, index: int) -> str:
    """A row's key without the student's number, which is that of its command."""
    words = str(row["key"]).split("/")
    at = next((place for place, word in enumerate(words[:2]) if word == str(index)), None)
    return "/".join(word for place, word in enumerate(words) if place != at)


def _plane(number: int, method: Method, card: Card, rows: Sequence[Row]) -> Plane:
    grid = [row for row in rows if row.get("kind", "grid") == "grid" and "error" not in row]
    if not grid:
        raise InputError(f"no point of the landscape of {card.get('name')} has a finite loss: give a smaller --radius")
    seeds = sorted({int(row["seed"]) for row in grid})
    found = {seed: surfaces.surface(rows, number, seed) for seed in seeds}
    metrics: dict[str, dict[int, Surface]] = {}
    for name in ("tar", "alpha", "accuracy"):
        having = sorted({int(row["seed"]) for row in grid if f"{name}_sum" in row})
        if having:
            metrics[name] = {seed: surfaces.surface(rows, number, seed, name) for seed in having}
    return Plane(number, method, card.get("seed"), found, metrics)


def _said(fact: Any) -> str:
    """A fact for comparing and showing: a model by its weights."""
    if isinstance(fact, Mapping) and "fingerprint" in fact:
        return str(fact["fingerprint"])
    if fact is None:
        return "not stated"
    return fact if isinstance(fact, str) else canonical(fact)


def _cut(value: str) -> str:
    return value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…"
