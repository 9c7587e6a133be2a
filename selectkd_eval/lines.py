"""What do the lines of a record say, and are they those that were written?

A header, rows with a key, an end line. A killed run leaves no end line, or half a line: that is an unfinished record.
Anything else that is not as a run writes it is damage, and is refused with the line: no JSON object, no UTF-8, a row
without key, rows that are missing (the end line counts them), bytes that changed (the end line holds their sha256;
records of earlier versions have none, and of them only broken lines and missing rows are seen).

It knows no verb and no option; opening, continuing and reading files is `records`'.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from selectkd_eval.errors import InputError

SCHEMA = 1
_BEGINNINGS = (b'{"environment":', b'{"type":"header"')  # of a header: its fields are sorted
_RESTORE = "restore it, or delete it and run its command again"


class Content(NamedTuple):
    """The header, the last row of every key in order of first appearance, and whether the end line is there."""

    header: dict[str, Any]
    rows: list[dict[str, Any]]
    finished: bool


def parse(path: Path, content: bytes, torn_ok: bool = True) -> Content:
    """The lines of a record; `torn_ok` takes half a last line for a run that was killed. Raises InputError, with the
    line, for whatever no run writes.
    """
    lines = content.split(b"\n")
    torn = bool(lines.pop())
    if not lines and not any(content.startswith(beginning[: len(content)]) for beginning in _BEGINNINGS):
        raise InputError(f"{path} has no header line, so it is no record of this program: give one that is")
    if torn and not torn_ok:
        raise InputError(f"{path} is truncated in line {len(lines) + 1}: run its command again to finish it")
    if not lines:
        raise InputError(f"{path} ends before its header does: run its command again, or delete it")
    header = _header(path, _object(path, 1, lines[0]))
    sums = checksum(lines[0])
    rows: dict[str, dict[str, Any]] = {}
    good: set[str] = set()  # keys that were measured at some time
    finished = False
    for number, line in enumerate(lines[1:], start=2):
        row = _object(path, number, line)
        if finished := row.get("type") == "end":
            _check_end(path, number, row, rows, good, sums.hexdigest())
        elif isinstance(key := row.get("key"), str):
            rows[key] = row
            if "error" not in row:
                good.add(key)
        else:
            raise InputError(f"line {number} of {path} has no key: the file is damaged; {_RESTORE}")
        sums.update(line.removesuffix(b"\r") + b"\n")
    return Content(header, list(rows.values()), finished and not torn)


def checksum(content: bytes = b"") -> Any:
    """The running sha256 of a record's lines, whichever way their ends are written; of no line yet without any."""
    sums = hashlib.sha256()
    if content:
        sums.update(content.replace(b"\r\n", b"\n").removesuffix(b"\n").removesuffix(b"\r") + b"\n")
    return sums


def _check_end(
    path: Path, number: int, end: dict[str, Any], rows: dict[str, dict[str, Any]], good: set[str], digest: str
) -> None:
    """InputError unless the lines before an end line are those that it was written below."""
    counted = end.get("rows")
    least = sum("error" not in row for row in rows.values())
    if isinstance(counted, int) and not least <= counted <= len(good):
        raise InputError(
            f"{path} is damaged: its end in line {number} counts {counted:,} measured rows, and {len(good):,} stand "
            f"before it; {_RESTORE}"
        )
    if end.get("sha256", digest) != digest:
        raise InputError(
            f"{path} is damaged: something before its end in line {number} is not as it was written (its sha256 is "
            f"{digest[:12]}, and the end line says {str(end['sha256'])[:12]}); {_RESTORE}"
        )


def _object(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError:
        if number == 1:
            raise InputError(
                f"{path} is not a record: its bytes are not UTF-8 text (line 1); give a .jsonl record"
            ) from None
        raise InputError(f"line {number} of {path} is not UTF-8 text: the file is damaged; {_RESTORE}") from None
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise InputError(f"line {number} of {path} is not a JSON object: the file is damaged; {_RESTORE}")
    return row


def _header(path: Path, header: dict[str, Any]) -> dict[str, Any]:
    """The first line, which must be a header that this version reads."""
    if header.get("type") != "header":
        raise InputError(f"{path} has no header line (line 1), so it is no record of this program: give one that is")
    if header.get("schema") != SCHEMA:
        raise InputError(
            f"{path} has schema {header.get('schema')} in line 1, and this version reads {SCHEMA}: use the version "
            "that wrote it"
        )
    for name, kind in (("verb", str), ("options", dict), ("facts", dict)):
        if not isinstance(header.get(name), kind):
            raise InputError(f"the header in line 1 of {path} has no {name}: the file is damaged; {_RESTORE}")
    return header
