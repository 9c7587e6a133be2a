"""A record of our own as a file of judgements: its rows once more, with its facts.

So published records can be analysed again without the answers or an API. The protocol, the sides and the original
judge stay what they were; texts that the judge said stay in the original. Nothing is judged anew.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from judges.replay.published import Published
from selectkd_eval import records
from selectkd_eval.errors import InputError
from selectkd_eval.records import Record
from selectkd_eval.win_rates import VERDICTS

FORMAT = "record"
_TEXTS = ("raw",)


def fits(content: bytes) -> bool:
    """Whether the content begins like a record."""
    return records.begins_record(content.partition(b"\n")[0])


def load(content: bytes, path: Path, sha256: str) -> Published:
    """The judgements of a finished `winrate` record; an InputError for any other."""
    with tempfile.TemporaryDirectory() as directory:
        # Records are read from plain files; this one may have been gzipped.
        plain = Path(directory) / "record.jsonl"
        plain.write_bytes(content)
        try:
            found = checked(records.read(plain, verb="winrate"))
        except InputError as error:
            raise InputError(str(error).replace(str(plain), str(path))) from None
    facts = found.facts
    before = facts["judge"]
    kept = {key: before[key] for key in ("raters", "counts_only") if key in before}
    judge = {
        **kept,
        "name": before["name"],
        "kind": "replay",
        "note": f"{before.get('note') or 'a judge'}; from an earlier record",
        "original": before.get("original", before),
    }
    return Published(
        format=facts.get("format") or FORMAT,
        sha256=sha256,
        judge=judge,
        protocol=facts["protocol"],
        candidate=facts["candidate"],
        baseline=facts["baseline"],
        prompts=facts["prompts"],
        rows=[
            {key: value for key, value in row.items() if key not in _TEXTS or not isinstance(value, str)}
            for row in found.rows
        ],
        weighted=bool(facts.get("weighted")),
        generation=facts.get("generation"),
    )


def checked(found: Record) -> Record:
    """A `winrate` record whose facts and rows are such as we write; an InputError names the first that is not.

    Somebody may have edited it, or another version written it, and a preference of 7 would make a win rate of 117 %.
    """
    for name in ("judge", "protocol", "candidate", "baseline", "prompts"):
        if not isinstance(found.facts.get(name), Mapping):
            raise InputError(f"{found.path} does not say its {name}: it is no winrate record of ours, or was edited")
    for row in found.rows:
        odd = [name for name, fits in _ROW.items() if not fits(row.get(name))]
        if odd:
            raise InputError(
                f"the row {str(row['key'])[:60]!r} of {found.path} has {odd[0]} {str(row.get(odd[0]))[:40]!r}, "
                f"which no winrate command writes: restore the record, or judge again"
            )
    return found


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


_ROW: dict[str, Callable[[Any], bool]] = {
    "prompt": lambda value: isinstance(value, str) and bool(value),
    "seed": lambda value: isinstance(value, int),
    "sample": lambda value: value is None or _is_count(value),
    "order": lambda value: value in (None, "", "candidate-first", "baseline-first"),
    "verdict": lambda value: value in VERDICTS,
    "preference": lambda value: value is None or (isinstance(value, int | float) and 0 <= value <= 1),
    "candidate_chars": lambda value: value is None or _is_count(value),
    "baseline_chars": lambda value: value is None or _is_count(value),
}
