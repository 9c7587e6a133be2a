"""All rows of all records of one verb as columns: what Parquet files and CSV files hold.

One column per field of the rows, and before them what tells the records apart: its name, the method, the training
seed. What is nested, or of several kinds in one column, is JSON text; a missing field is null. Rows keep the order of
the records' names and of their lines. Nothing is computed from the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from analysis.load import Library
from selectkd_eval.records import Record, canonical

HEAD = ("record", "method", "seed_trained")
# What a row holds of prompts, answers, programs and judges' replies. Counts and digests of them stay.
TEXTS = frozenset(
    {"answer", "completion", "detail", "extracted", "gold", "output", "question", "raw", "reason", "reasoning", "text"}
)
Columns = dict[str, list[Any]]


def verbs(library: Library) -> list[str]:
    """The verbs that have records, by name."""
    return sorted({record.verb for record in library.records})


def columns(library: Library, verb: str, texts: bool = True) -> Columns:
    """The columns of a verb's rows, all of one length; without `texts`, those that hold only what was said are gone."""
    rows = [(head, row) for record in library.of(verb) for head, row in _headed(library, record)]
    names = sorted({name for _, row in rows for name in row})
    found: Columns = {name: [head[place] for head, _ in rows] for place, name in enumerate(HEAD)}
    for name in names:
        values = [row.get(name) for _, row in rows]
        # AlpacaEval's raw is a number where a judge's is its reply.
        if not texts and name in TEXTS and not _numbers(values):
            continue
        found[name] = _plain(values)
    return found


def _headed(library: Library, record: Record) -> Iterator[tuple[tuple[Any, ...], Mapping[str, Any]]]:
    """A record's rows, each with its record's name and the method and seed that it measured."""
    labels = dict(enumerate(_labels(library, record)))
    for row in record.rows:
        index = row.get("student", 0) if record.verb in ("tar", "landscape") else 0
        method, seed = labels.get(index, (None, None))
        yield (record.path.name, method, seed), row


def _labels(library: Library, record: Record) -> list[tuple[str | None, int | None]]:
    """Method and training seed of the models of a record, in the order in which its rows number them."""
    facts = record.facts
    if record.verb == "train":
        return [(library.label(library.trained(record)), record.options.get("seed"))]
    if record.verb == "speedup":  # a row holds all drafts
        return []
    cards: Sequence[Any] = facts.get("students") or [facts.get("candidate") or facts.get("model")]
    return [(library.label(library.method(card)), card.get("seed")) if card else (None, None) for card in cards]


def _numbers(values: Sequence[Any]) -> bool:
    return all(value is None or isinstance(value, int | float) for value in values)


def _plain(values: Sequence[Any]) -> list[Any]:
    """Values of one kind as they are (whole numbers among fractions become those), anything else as JSON text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} and len(kinds) == 2:
        return [None if value is None else float(value) for value in values]
    if len(kinds) <= 1 and kinds <= {int, float, bool, str}:
        return list(values)
    return [None if value is None else canonical(value) for value in values]
