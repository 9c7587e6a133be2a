"""Which records are the same run twice? A copied file, or one command run into two directories, must not count twice.

Two records are of one run where verb, inputs, facts, every option that decides the result, and the keys of their rows
are the same; of these the one with more measured rows counts, then the first by name. Landscapes are left alone: their
shares look alike, and `landscapes` knows what is doubled there. It computes no number.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable

from selectkd_eval.records import Record, canonical
from selectkd_eval.verbs import VERBS


def once(records: Iterable[Record]) -> tuple[list[Record], dict[str, str]]:
    """The records that count, in their order, and a sentence for each that does not, by its path."""
    records = list(records)
    alike: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        alike[_run(record)].append(record)
    left_out: dict[str, str] = {}
    for group in alike.values():
        if len(group) > 1 and group[0].verb != "landscape":
            left_out |= _copies(group)
    return [record for record in records if str(record.path) not in left_out], left_out


def _run(record: Record) -> str:
    """What makes a record that of one run, without its rows."""
    verb = VERBS.get(record.verb)
    fields = dataclasses.fields(verb.options) if verb else ()
    places = {field.name for field in fields if field.metadata.get("runtime")}
    options = {name: value for name, value in record.options.items() if name not in places}
    return canonical([record.verb, options, record.header.get("inputs"), record.facts])


def _copies(group: list[Record]) -> dict[str, str]:
    by_keys: dict[frozenset[str], list[Record]] = defaultdict(list)
    for record in group:
        by_keys[frozenset(row["key"] for row in record.rows)].append(record)
    found = {}
    for same in by_keys.values():
        first, *others = sorted(same, key=lambda record: (-len(record.good), str(record.path)))
        for other in others:
            rows = "the same rows" if _rows(other) == _rows(first) else "the same keys, but other values"
            found[str(other.path)] = (
                f"{other.path.name} is left out: it is the run of {first.path.name} again ({rows}), and counts once."
            )
    return found


def _rows(record: Record) -> dict[str, str]:
    return {row["key"]: canonical(row) for row in record.rows}
