"""Where does a number on the page come from? Every record behind it, and the command that makes it again.

A record is known on the page by a short name, R1, R2 ... in the order of the file names. Tables list the records of
every row, figures those that they are drawn from; one table at the end holds digest, code, machine, rows and seed of
each. It reads headers only: no number is computed here.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from analysis.load import Library
from analysis.table_ir import Table
from selectkd_eval.environment import sha256_file
from selectkd_eval.records import Record
from selectkd_eval.verbs import VERBS, command


class Origin(NamedTuple):
    """One record as the page tells of it. What its header does not know is None."""

    id: str
    name: str
    verb: str
    command: str
    sha256: str
    code: str
    machine: int
    rows: int
    failed: int
    seed: Any
    prompts: tuple[tuple[str, str], ...]


class Sources(NamedTuple):
    """The records behind one row of a table: for each of its columns their ids."""

    place: str
    label: str
    columns: tuple[tuple[str, tuple[str, ...]], ...]


def ids(library: Library) -> dict[str, str]:
    """The short name of every record, by file name."""
    return {record.path.name: f"R{place}" for place, record in enumerate(library.records, start=1)}


def origins(library: Library) -> tuple[list[Origin], list[str]]:
    """Every record of the page, and the machines that measured them, each once."""
    known = ids(library)
    machines = sorted({_machine(record) for record in library.records})
    found = []
    for record in library.records:
        header = record.header
        commit = str(header.get("git") or "not in a checkout")[:13]
        found.append(
            Origin(
                known[record.path.name],
                record.path.name,
                record.verb,
                repeat(record),
                sha256_file(record.path),
                f"{header.get('version') or 'unknown'} {commit}",
                machines.index(_machine(record)) + 1,
                len(record.good),
                len(record.failed),
                record.options.get("seed"),
                tuple(_prompts(record.facts)),
            )
        )
    return found, machines


def repeat(record: Record) -> str:
    """The command line that measures a record again, from the options in its header."""
    if record.verb not in VERBS:
        return ""
    words = command(record.verb, VERBS[record.verb].options, record.options)
    return shlex.join(["selectkd-eval", *words])


def sources(table: Table, known: Mapping[str, str]) -> list[Sources]:
    """The records behind each row of a table, row by row as it is printed; rows without any are left out."""
    rows = [row for block in table.blocks for row in block.rows]
    found = []
    for place, row in enumerate(rows):
        columns = []
        for column, cell in zip(table.columns, row.cells, strict=True):
            names = tuple(known[name] for name in dict.fromkeys(cell.records) if name in known)
            label = ": ".join(part for part in (column.group, column.label) if part)
            # Neighbours made of the same records are told once.
            if names and columns and columns[-1][1] == names:
                columns[-1] = (f"{columns[-1][0]}, {column.label}", names)
            elif names:
                columns.append((label, names))
        if columns:
            found.append(Sources(f"{table.name}-{place}", row.label, tuple(columns)))
    return found


def of_verbs(library: Library, verbs: Iterable[str], known: Mapping[str, str]) -> tuple[str, ...]:
    """The records of some verbs, by id."""
    wanted = set(verbs)
    return tuple(known[record.path.name] for record in library.records if record.verb in wanted)


def _prompts(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every prompt set or task in a header with its digest."""
    prompts = facts.get("prompts")
    if isinstance(prompts, Mapping) and prompts.get("sha256"):
        yield str(prompts.get("name") or "prompts"), str(prompts["sha256"])
    tasks = facts.get("tasks")
    for name, task in tasks.items() if isinstance(tasks, Mapping) else ():
        if isinstance(task, Mapping) and (digest := task.get("problems_sha256") or task.get("sha256")):
            yield str(name), str(digest)
    data = facts.get("data")
    if isinstance(data, Mapping) and data.get("sha256"):
        yield "training data", str(data["sha256"])


def _machine(record: Record) -> str:
    """Processor, system and versions in one line."""
    env = record.header.get("environment") or {}
    packages = ", ".join(f"{name} {version}" for name, version in sorted((env.get("packages") or {}).items()))
    machine = f"{env.get('processor', 'unknown processor')}, {env.get('cores', '?')} cores, {env.get('system', '')}"
    return f"{machine}; Python {env.get('python', '?')}; {packages}"
