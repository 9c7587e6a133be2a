"""A record of our own as a file of judgements: its rows once more, with its facts.

So published records can be analysed again without the answers or an API. The protocol, the sides and the original
judge stay what they were; texts that the judge said stay in the original. Nothing is judged anew.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from judges.replay.published import Published
from selectkd_eval import records
from selectkd_eval.errors import InputError

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
            found = records.read(plain, verb="winrate")
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
