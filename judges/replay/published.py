"""What is a file of judgements to the rest of the program, whatever its format? Rows and facts of a record.

The rows are those of a `winrate` record: keyed by prompt, seed, order and sample, a verdict in words, no texts. It
reads bytes and JSON; what the fields mean is known by the modules beside it, one per format.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selectkd_eval.errors import InputError
from selectkd_eval.records import canonical

Row = dict[str, Any]
GZIP = b"\x1f\x8b"
_NOTE = "published judgements, read from a file"


@dataclass(frozen=True)
class Published:
    """The judgements of one file: one candidate against one baseline, by one judge or one group of raters.

    `rows` are the rows of a record; all but `sha256`, the digest of the file as it lies on the disk, are facts of its
    header. `weighted` says that the judge gave probabilities, `generation` how both sides decoded, where it is known.
    """

    format: str
    sha256: str
    judge: dict[str, Any]
    protocol: dict[str, Any]
    candidate: dict[str, Any]
    baseline: dict[str, Any]
    prompts: dict[str, Any]
    rows: list[Row]
    weighted: bool = False
    generation: dict[str, Any] | None = None

    def facts(self) -> dict[str, Any]:
        """What a record's header says about them."""
        names = ("judge", "protocol", "candidate", "baseline", "generation", "prompts", "weighted", "format")
        return {name: getattr(self, name) for name in names}


def judge(name: str, note: str = "", **more: Any) -> dict[str, Any]:
    """Header facts of a judge whose verdicts are read from a file."""
    return {"name": name, "kind": "replay", "note": "; ".join(part for part in (_NOTE, note) if part), **more}


def protocol(name: str, order: str, ties: str, source: str) -> dict[str, Any]:
    """Header facts of a protocol whose prompt is not in the file; the digest covers what is known of it."""
    known = {"name": name, "order": order, "ties": ties}
    digest = hashlib.sha256(canonical(known).encode()).hexdigest()
    return {**known, "sha256": digest, "decoding": {}, "source": source}


def card(name: str) -> dict[str, Any]:
    """Header facts of a side that is known by its name alone."""
    return {"name": name, "method": name, "fingerprint": ""}


def only(rows: Iterable[Mapping[str, Any]], name: str, path: Path) -> str:
    """The one value of a field over all rows that have it; "unnamed" when none has it; refused when they differ."""
    values = sorted({str(row[name]) for row in rows if row.get(name)})
    if len(values) > 1:
        shown = ", ".join(values[:4]) + (", ..." if len(values) > 4 else "")
        raise InputError(f"{path} mixes several {name} ({shown}): give one file per model and judge")
    return values[0] if values else "unnamed"


def plain_bytes(path: Path) -> bytes:
    """The content of a file, unpacked where its first bytes are gzip's, whatever its name."""
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw.startswith(GZIP) else raw
    except (OSError, EOFError, zlib.error) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"cannot read {path} ({what}): give a .json or .jsonl file, gzipped or not") from None


def values(content: bytes, path: Path) -> list[Any]:
    """The entries of a JSON list, the lines of a JSON-lines file, or a lone JSON value as a list of one."""
    try:
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text: give a .json or .jsonl file, gzipped or not") from None
    try:
        whole = json.loads(text)
        return whole if isinstance(whole, list) else [whole]
    except (ValueError, RecursionError) as error:
        lines = [line for line in text.split("\n") if line.strip()]
        if text.startswith("[") or len(lines) < 2:
            raise InputError(
                f"{path} is not valid JSON ({_place(error)}): give a .json or .jsonl file that is whole"
            ) from None
    return [_line(line, number, path) for number, line in enumerate(lines, start=1)]


def _line(line: str, number: int, path: Path) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"line {number} of {path} is not valid JSON ({_place(error)}): give a .json or .jsonl file that is whole"
        ) from None


def _place(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.removesuffix(' at')}, line {error.lineno} column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)
