"""Where does a number on the page come from? Every record behind it, and the command that makes it again.

A record is known on the page by a short name, R1, R2 ... in the order of the file names. Tables list the records of
every row, figures those that they are drawn from; one table at the end holds digest, code, machine, rows and seed of
each. It reads headers only: no number is computed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from analysis.load import Library
from analysis.table_ir import Table
from selectkd_eval.environment import sha256_file
from selectkd_eval.records import Record, repeat


class Origin(NamedTuple):
    """One record as the page tells of it. What its header does not know is None."""

    id: str
    name: str
    verb: str
    command: str
    sha256: str
    maker: int
    prompts: tuple[int, ...]
    rows: int
    failed: int
    seed: Any


class Provenance(NamedTuple):
    """Every record, and what several of them share, told once: who measured (code, machine, versions), on which prompts
    (name, sha256). Records point to both by place, from 1.
    """

    records: list[Origin]
    makers: list[str]
    prompts: list[tuple[str, str]]


class Sources(NamedTuple):
    """The records behind one row of a table: for each of its columns their ids."""

    place: str
    label: str
    columns: tuple[tuple[str, tuple[str, ...]], ...]


def ids(library: Library) -> dict[str, str]:
    """The short name of every record, by file name."""
    return {record.path.name: f"R{place}" for place, record in enumerate(library.records, start=1)}


def provenance(library: Library) -> Provenance:
    """Where the records of a library come from."""
    known = ids(library)
    makers = sorted({_maker(record) for record in library.records})
    prompts = sorted({one for record in library.records for one in _prompts(record.facts)})
    found = [
        Origin(
            known[record.path.name],
            record.path.name,
            record.verb,
            repeat(record),
            sha256_file(record.path),
            makers.index(_maker(record)) + 1,
            tuple(prompts.index(one) + 1 for one in _prompts(record.facts)),
            len(record.good),
            len(record.failed),
            record.options.get("seed"),
        )
        for record in library.records
    ]
    return Provenance(found, makers, prompts)


def sources(table: Table, known: Mapping[str, str]) -> list[Sources]:
    """The records behind each row of a table, row by row as it is printed; rows without any are left out."""
    rows = [row for block in table.blocks for row in block.rows]
    found = []
    for place, row in enumerate(rows):
        columns: list[tuple[str, tuple[str, ...]]] = []
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


def ranges(names: Iterable[str]) -> list[tuple[str, str]]:
    """Ids as links, (target, text): three and more that follow each other are told by the first and the last."""
    places = sorted({int(name[1:]) for name in names})
    found: list[list[int]] = []
    for place in places:
        if found and found[-1][-1] == place - 1:
            found[-1].append(place)
        else:
            found.append([place])
    links = []
    for run in found:
        if len(run) > 2:
            links.append((f"R{run[0]}", f"R{run[0]}–R{run[-1]}"))
        else:
            links += [(f"R{place}", f"R{place}") for place in run]
    return links


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


def _maker(record: Record) -> str:
    """Program, commit, processor, system and versions in one line."""
    header = record.header
    code = f"selectkd-eval {header.get('version') or 'unknown'}, {str(header.get('git') or 'not in a checkout')[:13]}"
    env = record.header.get("environment") or {}
    packages = ", ".join(f"{name} {version}" for name, version in sorted((env.get("packages") or {}).items()))
    machine = f"{env.get('processor', 'unknown processor')}, {env.get('cores', '?')} cores, {env.get('system', '')}"
    return f"{code}; {machine}; Python {env.get('python', '?')}; {packages}"
