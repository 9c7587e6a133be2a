"""Files that another tool wrote: how are they read, and what does a record say of them?

Damaged bytes, half a line, JSON of another shape: each is one sentence that names the file. A model that is known by
its name alone gets a card with a digest of that name, so that no two of them are taken for one another.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selectkd_eval.environment import sha256_file
from selectkd_eval.errors import InputError
from selectkd_eval.verbs import ImportOptions

Row = dict[str, Any]
GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Found:
    """One record to be written: of which verb, from which files, with which facts and rows.

    `inputs` maps the files' names to their sha256. `lines` are the tool's own figures, and how ours agree with them.
    """

    verb: str
    name: str
    options: ImportOptions
    inputs: dict[str, str]
    facts: dict[str, Any]
    rows: list[Row]
    lines: list[str] = field(default_factory=list)


def origin(tool: str, version: str | None, path: Path, sha256: str) -> dict[str, Any]:
    """The fact `imported` of a record: whose file it was made from."""
    return {"tool": tool, "version": version, "file": path.name, "sha256": sha256}


def card(options: ImportOptions, name: str, *known: str) -> dict[str, Any]:
    """The model card of an imported model; `known` is what beside its name tells it apart (a revision's hash).

    --method, --base-method and --training-seed make a trained student of it; without them it is a model like any other.
    """
    name = options.model or name
    told = {"method": options.method, "base_method": options.base_method, "seed": options.training_seed}
    training: dict[str, Any] = {}
    if any(value not in ("", None) for value in told.values()):
        training = {**told, "method": options.method or name, "verifier": "unknown" if options.base_method else "none"}
    return {
        "name": name,
        "fingerprint": hashlib.sha256("\n".join(("imported", name, *known)).encode()).hexdigest(),
        "parameters": None,
        "method": options.method or name,
        "base_method": options.base_method,
        "seed": options.training_seed,
        "training": training,
    }


def content(path: Path) -> str:
    """The text of a file, gzipped or not; an InputError when it cannot be read as such."""
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if raw.startswith(GZIP) else raw).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text: give the file as its tool wrote it, gzipped or not") from None
    except (OSError, EOFError, zlib.error) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"cannot read {path} ({what}): give the file as its tool wrote it, gzipped or not") from None


def whole_json(path: Path) -> Any:
    """The one JSON value of a file."""
    return _parsed(content(path), str(path))


def json_lines(path: Path) -> list[Row]:
    """The objects of a JSON-lines file; an InputError names the line that is none."""
    # Only a newline ends a line: texts may hold other characters that Python takes for line ends.
    lines = content(path).split("\n")
    rows = [_parsed(line, f"line {number} of {path}") for number, line in enumerate(lines, 1) if line.strip()]
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise InputError(f"entry {number} of {path} is a {type(row).__name__} and no JSON object: restore the file")
    if not rows:
        raise InputError(f"{path} is empty: give a file with results in it")
    return rows


def wants(row: Mapping[str, Any], fields: Mapping[str, type | tuple[type, ...]], where: str) -> None:
    """An InputError when a field is missing or of another kind."""
    for name, kind in fields.items():
        if name not in row:
            raise InputError(f"{where} has no {name}: it is not what its tool writes, or was cut; restore the file")
        if not isinstance(row[name], kind) or (isinstance(row[name], bool) and bool not in _kinds(kind)):
            raise InputError(f"{where} has the {name} {str(row[name])[:40]!r}, which its tool never writes: restore it")


def digests(paths: Iterable[Path]) -> dict[str, str]:
    """sha256 by file name; the folder is added where two files share a name."""
    found: dict[str, str] = {}
    for path in paths:
        name = path.name if path.name not in found else f"{path.parent.name}/{path.name}"
        found[name] = sha256_file(path)
    return found


def _kinds(kind: type | tuple[type, ...]) -> tuple[type, ...]:
    return kind if isinstance(kind, tuple) else (kind,)


def _parsed(text: str, where: str) -> Any:
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():  # a character's half can be spelled in JSON, and no file can hold it
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError:
        raise InputError(f"{where} holds half a character (\\ud800 to \\udfff alone): correct it") from None
    except json.JSONDecodeError as error:
        said = f"{error.msg.removesuffix(' at')}, line {error.lineno} column {error.colno}"
        raise InputError(f"{where} is not valid JSON ({said}): give the whole file as its tool wrote it") from None
    except (ValueError, RecursionError):
        raise InputError(f"{where} is not valid JSON: give the whole file as its tool wrote it") from None
