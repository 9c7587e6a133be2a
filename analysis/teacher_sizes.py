"""Which students differ in their teacher alone, and how large was each teacher?

A student's card names its teacher by fingerprint; the teacher's size stands in the cards of the records that saw the
teacher itself (train, tar, speedup, or its own measurement). Methods whose students agree in everything but teacher and
data (a larger teacher writes other answers) make one line. One column is taken: the one with most points.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from analysis.grid import Grid
from analysis.load import Library, Measurement, Method
from analysis.pass_columns import Column
from selectkd_eval import measures
from selectkd_eval.errors import InputError
from selectkd_eval.measures import Terms

_OF_TEACHER = ("teacher", "data")
_CARDS = ("teacher", "target", "model", "student", "candidate", "baseline")


@dataclass(frozen=True)
class Sized:
    """One method by teacher size: seeds pooled, and seed by seed."""

    method: Method
    pooled: dict[int, Terms]
    seeds: dict[int, dict[int | None, Terms]]


@dataclass(frozen=True)
class Sizes:
    """One column: its name, its lines, and the untrained student where it was measured."""

    kind: str
    title: str
    lines: list[Sized]
    alone: Terms | None


def parameters(library: Library) -> dict[str, int]:
    """Parameters by fingerprint, of every model whose card a record holds."""
    return {str(card["fingerprint"]): int(card["parameters"]) for card in _cards(library) if card.get("parameters")}


def _cards(library: Library) -> Iterator[dict[str, Any]]:
    for record in library.records:
        for name in _CARDS:
            card = record.facts.get(name)
            if isinstance(card, dict) and card.get("fingerprint"):
                yield card


def size_name(count: float) -> str:
    """A size as papers write it: 0.7M, 1.5B, 7B."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= 0.1 * scale:
            value = count / scale
            return f"{value:.0f}{unit}" if value >= 10 or abs(value - round(value)) < 0.05 else f"{value:.1f}{unit}"
    return f"{count:.0f}"


def sizes(library: Library, resamples: int) -> Sizes:
    """The column with most points of lines over two teachers or more; InputError where there is none."""
    known = parameters(library)
    found = [
        one
        for kind in ("winrate", "passk")
        for grid in [Grid(library, kind, resamples)]
        for column in grid.columns
        if (one := _column(library, grid, column, known)).lines
    ]
    if not found:
        taught = {str(m.get("teacher")) for m in library.methods if m.get("teacher")}
        seen = sorted({known[teacher] for teacher in taught if teacher in known})
        names = f" ({', '.join(map(size_name, seen))})" if seen else ""
        raise InputError(
            f"the teachers figure needs measured students of one method from teachers of two sizes, and the records "
            f"know {len(seen) or 'no'} teacher size{'' if len(seen) == 1 else 's'}{names}: train the method from "
            f"another teacher and measure it with passk or winrate"
        )
    return max(found, key=lambda one: sum(len(line.pooled) for line in one.lines))


def _column(library: Library, grid: Grid, column: Column, known: dict[str, int]) -> Sizes:
    groups: dict[Method, dict[int, list[Measurement]]] = defaultdict(lambda: defaultdict(list))
    taught: dict[tuple[Method, int], set[str]] = defaultdict(set)
    alone = []
    for (other, method), found in grid.found.items():
        if other != column:
            continue
        if method.role == "start":
            alone += [one.terms for one in found]
        teacher = str(method.get("teacher"))
        if method.role == "student" and teacher in known and method.get("step") is None:
            groups[_without_teacher(method)][known[teacher]] += found
            taught[_without_teacher(method), known[teacher]].add(teacher)
    if alike := [
        f"{method.label} from {size_name(size)}" for (method, size), names in taught.items() if len(names) > 1
    ]:
        raise InputError(
            f"several teachers of one size taught the same method ({', '.join(alike)}), and a point of the teachers "
            "figure is one teacher: keep their records in directories of their own"
        )
    lines = [_line(method, by_size) for method, by_size in groups.items() if len(by_size) > 1]
    lines.sort(key=lambda line: line.method.order)
    return Sizes(column.kind, grid.label(column), lines, measures.pool(alone) if alone else None)


def _without_teacher(method: Method) -> Method:
    setting = tuple(part for part in method.setting if part[0] not in _OF_TEACHER)
    return Method(method.label, method.base, method.role, setting)


def _line(method: Method, by_size: dict[int, list[Measurement]]) -> Sized:
    seeds: dict[int, dict[int | None, Terms]] = {}
    for size, found in sorted(by_size.items()):
        apart: dict[int | None, list[Terms]] = defaultdict(list)
        for one in found:
            apart[one.seed].append(one.terms)
        seeds[size] = {seed: measures.pool(parts) for seed, parts in apart.items()}
    pooled = {size: measures.pool(list(apart.values())) for size, apart in seeds.items()}
    return Sized(method, pooled, seeds)
