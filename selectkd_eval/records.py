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
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeVar

from selectkd_eval import __version__, environment
from selectkd_eval.errors import InputError, SetupError
from selectkd_eval.lines import SCHEMA, checksum, parse
from selectkd_eval.verbs import VERBS, all_options, command, result_options

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
        lines: bytes = b"",
    ) -> None:
        self.path = path
        self.done = done
        self.complete = complete
        self.facts = facts
        self._file = file
        self._sums = checksum(lines)

    def write(self, key: str, **row: Any) -> None:
        """Append one row; it is on its way to the disk when this returns."""
        self._append({"key": key, **row})
        self.complete = False
        if "error" not in row:
            self.done[key] = {"key": key, **row}

    def finish(self) -> None:
        """Close the record with its end line; only then will tables and figures read it."""
        if not self.complete:
            self._append({"type": "end", "rows": len(self.done), "sha256": self._sums.hexdigest()})
            self.complete = True

    def _append(self, row: Mapping[str, Any]) -> None:
        line = canonical(row).encode() + b"\n"
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise SetupError(
                    f"no space left while writing {self.path}: the rows before this one are safe; "
                    f"free some space and run the same command again"
                ) from None
            raise
        self._sums.update(line)

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
    record = Record(path, *parse(path, text))
    for what, digest in header["inputs"].items():
        before = record.header["inputs"].get(what)
        if before != digest:
            raise InputError(
                f"{what} has changed since {path} was begun (sha256 {str(before)[:12]} then, {digest[:12]} now): "
                f"restore it, or delete that record, or give another --out"
            )
    return Writer(path, file, {row["key"]: row for row in record.good}, record.finished, record.facts, text)


def read(path: str | Path, *, unfinished_ok: bool = False, verb: str | None = None) -> Record:
    """Read a record; an InputError when it is missing, damaged, unfinished or of another verb."""
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot read the record {path}: {error.strerror}; `list records` shows what there is"
        ) from None
    record = Record(path, *parse(path, content, torn_ok=unfinished_ok))
    if verb and record.verb != verb:
        raise InputError(f"{path} is the record of {record.verb}, and one of {verb} is needed: give such a record")
    if not record.finished and not unfinished_ok:
        raise InputError(unfinished(path))
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
    """Every finished record below a directory, sorted by name, and the paths of the unfinished ones. Raises InputError
    with the reason for every file that is damaged or no record.
    """
    finished, begun, refused = read_each(directory, verb)
    if not refused:
        return finished, begun
    told = "; ".join(f"({place}) {why}" for place, why in enumerate(refused.values(), start=1))
    rest = len(finished) + len(begun)
    others = f"the other {rest:,} can be read" if rest else "there is no other record"
    raise InputError(
        f"{len(refused):,} of {len(refused) + rest:,} records in {directory} are refused, and {others}: {told}"
        if len(refused) > 1
        else f"{next(iter(refused.values()))} ({others})"
    )


def read_each(directory: str | Path, verb: str | None = None) -> tuple[list[Record], list[Path], dict[Path, str]]:
    """Every finished record below a directory, the paths of the unfinished ones, and why others are refused."""
    finished: list[Record] = []
    begun: list[Path] = []
    refused: dict[Path, str] = {}
    for path in sorted(Path(directory).rglob("*.jsonl")):
        if verb and not path.name.startswith(f"{verb}-"):
            continue
        try:
            with path.open("rb") as file:
                torn = not file.readline().endswith(b"\n")
            if torn:  # killed, or out of space, before its header was there
                begun.append(path)
                continue
            record = read(path, unfinished_ok=True)
        except OSError as error:
            refused[path] = f"cannot read the record {path}: {error.strerror}"
            continue
        except InputError as error:
            refused[path] = str(error)
            continue
        if verb and record.verb != verb:
            continue
        if record.finished:
            finished.append(record)
        else:
            begun.append(path)
    return finished, begun, refused


def unfinished(path: Path) -> str:
    """What is to be said of an unfinished record: how far it came, and the command that finishes it."""
    try:
        record = read(path, unfinished_ok=True)
    except InputError:
        return f"{path} is unfinished (it ends before its header does): run its command again, or delete it"
    finish = f"finish it with `{line}`" if (line := repeat(record)) else "run its command again to finish it"
    return f"{path} is unfinished ({len(record.rows):,} rows, no end line): {finish}"


def repeat(record: Record) -> str:
    """The command line that made a record, and finishes it where it was killed, from the options in its header."""
    verb = "import" if imported(record.facts) else record.verb
    if verb not in VERBS:
        return ""
    return shlex.join(["selectkd-eval", *command(verb, VERBS[verb].options, record.options)])


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


def _whole_lines(file: BinaryIO) -> bytes:
    """A killed run can leave half a line at the end: cut it off (its row will be measured again), return the rest."""
    file.seek(0)
    content = file.read()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        file.truncate(whole)
    return content[:whole]


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
