"""What do published judgements say? Files of verdicts, read without asking anyone.

`open_file` tells the format by the content, gzipped or not: AlpacaEval's annotations, DistiLLM-2's counts, PandaLM's
labels and verdicts, or a `winrate` record of our own. Each becomes the rows of a record, so that every number is
computed by the same functions as a judge's own; `lines` gives a format's own figures for comparison with what was
published. A judge cache is no such file: it holds replies by request, and needs the answers that they are about.
"""

from __future__ import annotations

from pathlib import Path

from judges.replay import alpaca_eval, distillm2, pandalm, record
from judges.replay.alpaca_eval import is_weighted, leaderboard_row, shown_order, verdict_of
from judges.replay.published import Published, plain_bytes, values
from selectkd_eval.environment import sha256_file
from selectkd_eval.errors import InputError
from selectkd_eval.records import Record

__all__ = [
    "Published",
    "is_cache",
    "is_weighted",
    "leaderboard_row",
    "lines",
    "open_file",
    "shown_order",
    "verdict_of",
]

KNOWN = (
    "an AlpacaEval annotations.json, DistiLLM-2 counts per order, a PandaLM test set or verdict file, or a winrate "
    "record (.jsonl)"
)
_SQLITE = b"SQLite format 3\x00"
_FORMATS = (pandalm, alpaca_eval, distillm2)
_LINES = {alpaca_eval.FORMAT: alpaca_eval.lines, distillm2.FORMAT: distillm2.lines}


def open_file(path: Path) -> Published:
    """The judgements of a file in any known format; an InputError says what the file is not."""
    if not path.is_file():
        raise InputError(f"there is no file of judgements {path}: give replay:PATH of {KNOWN}")
    if is_cache(path):
        raise InputError(
            f"{path} is a judge cache, which holds replies by request and not who was compared: give the two sets of "
            f"answers too (--candidate and --baseline)"
        )
    content, sha256 = plain_bytes(path), sha256_file(path)
    if record.fits(content):
        return record.load(content, path, sha256)
    entries = values(content, path)
    if not entries:
        raise InputError(f"{path} holds no judgements: give {KNOWN}")
    for form in _FORMATS:
        if form.fits(entries):
            return form.load(entries, path, sha256)
    first = entries[0]
    found = f"fields {', '.join(map(str, first))}" if isinstance(first, dict) else f"a {type(first).__name__}"
    raise InputError(f"{path} is no file of judgements that is known here (its first entry: {found}): give {KNOWN}")


def is_cache(path: Path) -> bool:
    """Whether there is such a file and it is an SQLite database, as a judge cache is."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_SQLITE)) == _SQLITE


def lines(record: Record) -> list[str]:
    """The figures that files of the record's `format` are published with, in full precision; none for other records."""
    form = str(record.facts.get("format", ""))
    return _LINES[form](record.rows) if form in _LINES else []
