"""What every verb's options share, and how options become JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

RECORDS = Path("reports/records")


def runtime(default: T) -> T:
    """A field that does not change the result and so stays out of the record's name."""
    return dataclasses.field(default=default, metadata={"runtime": True})


@dataclass(frozen=True, kw_only=True)
class Run:
    """What every measuring verb understands."""

    out: Path = runtime(RECORDS)
    """Directory of the records. The same command writes the same file there, so running it again resumes."""
    name: str = runtime("")
    """A word for the record's file name, before the hash."""
    seed: int = 0
    """Seed of every draw in this run."""
    limit: int | None = None
    """Only the first N prompts or problems of each set."""


@dataclass(frozen=True, kw_only=True)
class ModelRun(Run):
    """What every verb that runs a model understands."""

    device: str = runtime("auto")
    """auto, cpu, cuda or cuda:N."""
    threads: int = runtime(0)
    """torch threads; 0 means at most two."""


def result_options(options: Any) -> dict[str, Any]:
    """The options that decide the result: everything but the `runtime` fields."""
    return {
        field.name: jsonable(getattr(options, field.name))
        for field in dataclasses.fields(options)
        if not field.metadata.get("runtime")
    }


def all_options(options: Any) -> dict[str, Any]:
    """Every option as JSON, for the record's header."""
    return {field.name: jsonable(getattr(options, field.name)) for field in dataclasses.fields(options)}


def jsonable(value: Any) -> Any:
    """Paths as strings and tuples as lists; everything else is JSON already."""
    if isinstance(value, Path):
        return str(value)
    return [jsonable(item) for item in value] if isinstance(value, tuple) else value


def command(verb: str, kind: type[Any], stored: Mapping[str, Any]) -> list[str]:
    """The words of the command line that `stored` options (as `all_options` gives them) stand for: the verb and every
    option that differs from its default. An option that is not stored is left to its default.
    """
    words = [verb]
    for field in dataclasses.fields(kind):
        if field.name not in stored:
            continue
        value = stored[field.name]
        if field.default is dataclasses.MISSING:
            words += [str(one) for one in value] if isinstance(value, list) else [str(value)]
        elif value != jsonable(field.default):
            words += _flag(field.name, value)
    return words


def _flag(name: str, value: Any) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    return [flag, *map(str, value)] if isinstance(value, list) else [flag, str(value)]
