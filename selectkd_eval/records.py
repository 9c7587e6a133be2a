"""What stands between measuring and reporting: one JSON-lines file per run.

A header line, one row per unit of measurement (a step, an answer, a judged comparison, a timed prompt, a grid
point), an end line. The file name carries a hash of the options that decide the result, so the same command is
the same file and running it again resumes it. Rows are keyed, never joined by position; for a key written twice
the last row counts. A failure is a row with an `error`, never an answer, and is tried again on resume. There are
no stored summaries: whoever prints a number computes it from the rows.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeVar

from selectkd_eval import __version__, environment
from selectkd_eval.errors import InputError, SetupError
from selectkd_eval.verbs import all_options, result_options

SCHEMA = 1
OptionsT = TypeVar("OptionsT")


@dataclass(frozen=True)
class Record:
    """A record read back: `rows` holds the last row of every key, in order of first appearance."""

    path: Path
    header: dict[str, Any]
    rows: list[dict[str, Any]]
    finished: bool

    @property
    def verb(self) -> str:
        return str(self.header["verb"])

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.header["options"])

    @property
    def facts(self) -> dict[str, Any]:
        return dict(self.header["facts"])

    @property
    def good(self) -> list[dict[str, Any]]:
        """Rows that measured something."""
        return [row for row in self.rows if "error" not in row]

    @property
    def failed(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if "error" in row]


class Writer:
    """An open record. `done` holds the finished rows of earlier runs of the same command, by key; `facts` are those of
    the run that began it.
    """

    def __init__(
        self,
        path: Path,
        file: BinaryIO,
        done: dict[str, dict[str, Any]],
        complete: bool,
        facts: Mapping[str, Any],
    ) -> None:
        self.path = path
        self.done = done
        self.complete = complete
        self.facts = facts
        self._file = file

    def write(self, key: str, **row: Any) -> None:
        """Append one row; it is on its way to the disk when this returns."""
        self._append({"key": key, **row})
        if "error" not in row:
            self.done[key] = {"key": key, **row}

    def finish(self) -> None:
        """Close the record with its end line; only then will tables and figures read it."""
        if not self.complete:
            self._append({"type": "end", "rows": len(self.done)})
            self.complete = True

    def _append(self, row: Mapping[str, Any]) -> None:
        try:
            self._file.write(canonical(row).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise SetupError(
                    f"no space left while writing {self.path}: the rows before this one are safe; "
                    f"free some space and run the same command again"
                ) from None
            raise

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Closing releases the lock; after a full disk the buffered tail cannot be written and is dropped.
        try:
            self._file.close()
        except OSError:
            if error is None:
                raise


def canonical(value: Any) -> str:
    """JSON with one spelling: sorted keys, no spaces, and null where a float is not a number."""
    return json.dumps(_finite(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def record_path(verb: str, options: Any, name: str = "") -> Path:
    """Where the record of this command lies."""
    digest = hashlib.sha256(canonical([verb, result_options(options)]).encode()).hexdigest()[:10]
    word = "".join(c if c.isalnum() or c in "-_." else "-" for c in name or options.name)
    return Path(options.out) / "-".join(part for part in (verb, word, f"{digest}.jsonl") if part)


def open_record(
    verb: str,
    options: Any,
    *,
    inputs: Mapping[str, str],
    facts: Mapping[str, Any],
    name: str = "",
) -> Writer:
    """Start the record of this command, or continue it.

    `inputs` maps each input's name to the sha256 of its content: a record is continued only on the same content.
    `facts` is what a reader of the record needs to know beside the options: model cards, set sizes, rules.
    Raises InputError when the record was begun on other inputs or is being written by another process.
    """
    path = record_path(verb, options, name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab+")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; give a writable --out") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InputError(f"{path} is being written by another process: wait for it, or give another --out") from None
    header = {
        "type": "header",
        "schema": SCHEMA,
        "verb": verb,
        "version": __version__,
        "options": all_options(options),
        "inputs": dict(inputs),
        "facts": dict(facts),
        "environment": environment.describe(),
        "git": environment.git_commit(),
    }
    try:
        return _continue(path, file, header)
    except BaseException:
        # On a full disk closing tries to write the header once more, and fails once more.
        with contextlib.suppress(OSError):
            file.close()
        raise


def _continue(path: Path, file: BinaryIO, header: dict[str, Any]) -> Writer:
    """The writer of an empty file, after its header, or of a file begun earlier with the same inputs."""
    if not (text := _whole_lines(file)):
        writer = Writer(path, file, {}, complete=False, facts=header["facts"])
        writer._append(header)
        return writer
    record = _parse(path, text)
    for what, digest in header["inputs"].items():
        before = record.header["inputs"].get(what)
        if before != digest:
            raise InputError(
                f"{what} has changed since {path} was begun (sha256 {str(before)[:12]} then, {digest[:12]} now): "
                f"restore it, or delete that record, or give another --out"
            )
    return Writer(path, file, {row["key"]: row for row in record.good}, record.finished, record.facts)


def read(path: str | Path, *, unfinished_ok: bool = False, verb: str | None = None) -> Record:
    """Read a record; an InputError when it is missing, damaged, unfinished or of another verb."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"cannot read the record {path}: {error.strerror}; `list records` shows what there is"
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a record: its bytes are not UTF-8 text; give a .jsonl record") from None
    record = _parse(path, text, torn_ok=unfinished_ok)
    if verb and record.verb != verb:
        raise InputError(f"{path} is the record of {record.verb}, and one of {verb} is needed: give such a record")
    if not record.finished and not unfinished_ok:
        raise InputError(
            f"{path} is unfinished ({len(record.rows)} rows, no end line): "
            f"run its {record.verb} command again to finish it"
        )
    return record


def is_finished(path: Path) -> bool:
    """Whether this is a record with its end line."""
    return path.is_file() and is_record(path) and read(path, unfinished_ok=True).finished


def is_record(path: Path) -> bool:
    """Whether a file begins as a record does; no more than its first line is read."""
    with path.open("rb") as file:
        return begins_record(file.readline())


def begins_record(line: bytes) -> bool:
    """Whether this is the first line of a record."""
    return line.startswith(b"{") and b'"type":"header"' in line


def read_all(directory: str | Path, verb: str | None = None) -> tuple[list[Record], list[Path]]:
    """Every finished record below a directory, sorted by name, and the paths of the unfinished ones."""
    finished, unfinished = [], []
    for path in sorted(Path(directory).rglob("*.jsonl")):
        if verb and not path.name.startswith(f"{verb}-"):
            continue
        with path.open("rb") as file:
            if not file.readline().endswith(b"\n"):  # killed, or out of space, before its header was there
                unfinished.append(path)
                continue
        record = read(path, unfinished_ok=True)
        if verb and record.verb != verb:
            continue
        if record.finished:
            finished.append(record)
        else:
            unfinished.append(path)
    return finished, unfinished


def imported(facts: Mapping[str, Any]) -> str:
    """Whose file a record was made from, in words; empty for what was measured here."""
    origin = facts.get("imported")
    if not isinstance(origin, Mapping):
        return ""
    tool = " ".join(str(origin[name]) for name in ("tool", "version") if origin.get(name))
    return f"{tool}, file {origin.get('file')} (sha256 {str(origin.get('sha256'))[:12]})"


def replay(path: str | Path, verb: str, options: type[OptionsT]) -> OptionsT:
    """The options of an earlier record of the same verb, for `--like`."""
    record = read(path, unfinished_ok=True, verb=verb)
    if words := imported(record.facts):
        raise InputError(f"{path} was imported from {words}: no {verb} command made it, so give --like another record")
    stored = record.options
    known = {}
    for field in fields(options):  # type: ignore[arg-type]
        if field.name not in stored or field.metadata.get("runtime"):
            continue
        value = stored[field.name]
        if isinstance(value, list):
            value = tuple(value)
        known[field.name] = Path(value) if value is not None and "Path" in str(field.type) else value
    return options(**known)


def _parse(path: Path, text: str, torn_ok: bool = True) -> Record:
    lines = text.split("\n")
    torn = lines.pop()
    if torn and not torn_ok:
        raise InputError(f"{path} is truncated in line {len(lines) + 1}: run its command again to finish it")
    parsed = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict):
            raise InputError(
                f"line {number} of {path} is not a JSON object: the file is damaged; delete it or restore it"
            )
        parsed.append(row)
    header = _header(path, parsed)
    rows: dict[str, dict[str, Any]] = {}
    finished = False
    for number, row in enumerate(parsed[1:], start=2):
        if row.get("type") == "end":
            finished = True
        elif "key" in row:
            rows[row["key"]] = row
        else:
            raise InputError(f"line {number} of {path} has no key: the file is damaged; delete it or restore it")
    return Record(path, header, list(rows.values()), finished)


def _header(path: Path, parsed: list[dict[str, Any]]) -> dict[str, Any]:
    """The first line, which must be a header that this version reads."""
    if not parsed:
        raise InputError(f"{path} ends before its header does: run its command again, or delete it")
    header = parsed[0]
    if header.get("type") != "header":
        raise InputError(f"{path} has no header line, so it is no record of this program: give one that is")
    if header.get("schema") != SCHEMA:
        raise InputError(
            f"{path} has schema {header.get('schema')}, this version reads {SCHEMA}: use the version that wrote it"
        )
    for name, kind in (("verb", str), ("options", dict), ("facts", dict)):
        if not isinstance(header.get(name), kind):
            raise InputError(f"the header of {path} has no {name}: the file is damaged; delete it or restore it")
    return header


def _whole_lines(file: BinaryIO) -> str:
    """A killed run can leave half a line at the end: cut it off (its row will be measured again), return the rest."""
    file.seek(0)
    content = file.read()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        file.truncate(whole)
    return content[:whole].decode()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
