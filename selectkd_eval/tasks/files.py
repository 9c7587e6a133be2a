"""Which file of a directory holds a task's problems? Accepted names, endings and versions.

A file is found by its name alone; nothing in it is looked at here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from selectkd_eval.errors import InputError
from selectkd_eval.tasks.table import TaskRow

ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz")


class Found(NamedTuple):
    """A task's file and the version that its name bears, empty for one without."""

    path: Path
    version: str


def find_file(directory: Path, stems: tuple[str, ...]) -> Path | None:
    """The first of `stems` with one of the ENDINGS, in that order; None when no such file is there."""
    names = (directory / f"{stem}{ending}" for stem in stems for ending in ENDINGS)
    return next((path for path in names if path.is_file()), None)


def problems_file(name: str, row: TaskRow, version: str, directory: Path) -> Found:
    """The file with a task's problems; of several versions the one asked for, or the newest release.

    An InputError names the accepted files, or the versions that are there.
    """
    if not directory.is_dir():
        raise InputError(f"--data {directory} is not a directory: give the one with the tasks' files")
    if not row.versioned:
        if path := find_file(directory, row.files):
            return Found(path, "")
        raise InputError(
            f"{name} needs {accepted(row.files)} in {directory}, and none of them is there: "
            f"give --data the directory that has it"
        )
    there = _versions(directory, row.files)
    if not there:
        raise InputError(
            f"{name} needs {accepted(row.files)}, or with a version as in {row.files[0]}-v0.1.0.jsonl.gz, in "
            f"{directory}, and none of them is there: give --data the directory that has it"
        )
    if version and version not in there:
        raise InputError(
            f"{name} asks for version {version}, but {directory} has {', '.join(sorted(filter(None, there)))}: ask for "
            f"one of these"
        )
    chosen = version or max(there, key=_age)
    return Found(there[chosen], chosen)


def accepted(stems: tuple[str, ...]) -> str:
    """The names a file may have, for a message."""
    return " or ".join(f"{stem}{ending}" for stem in stems for ending in ENDINGS[:2])


def _versions(directory: Path, stems: tuple[str, ...]) -> dict[str, Path]:
    """Version to file; of two endings of one version the first of ENDINGS."""
    found: dict[str, Path] = {}
    for ending in reversed(ENDINGS):
        for stem in stems:
            for path in directory.glob(f"{stem}*{ending}"):
                rest = path.name[len(stem) : -len(ending)]
                if rest == "" or rest[0] in "-_":
                    found[rest[1:]] = path
    return found


def _age(version: str) -> tuple[bool, list[int], str]:
    """Releases (v0.1.10) by number, before them everything else (a branch's state, a date) by its letters."""
    released = re.fullmatch(r"v?(\d+(?:\.\d+)*)", version)
    return (bool(released), [int(part) for part in released[1].split(".")] if released else [], version)
