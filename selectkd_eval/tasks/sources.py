"""Where do a task's problems come from? Files of a directory, the package itself, or the hub; and their digest.

The digest covers every problem and every solved example shown, in the order of the data, whatever --limit says; a
file's packing and the order of its keys do not enter it.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from selectkd_eval import environment
from selectkd_eval.errors import InputError
from selectkd_eval.prompts import read_json_rows
from selectkd_eval.tasks.files import accepted, find_file, problems_file
from selectkd_eval.tasks.rows import Row, read_row
from selectkd_eval.tasks.table import TASKS, Hub, TaskRow, find
from selectkd_eval.tasks.task import Layout, Problem, Task

DRAW_SEED = 1234
"""lm-eval's seed of drawn examples (fewshot_random_seed)."""


def load_task(
    name: str,
    data: Path | None,
    limit: int | None,
    shots: int | None,
    layout: str,
    chat: bool,
    gold: Callable[[str], str] | None,
) -> Task:
    """A task by name, optionally with a version (humaneval-plus@v0.1.10), from `data` or, without it, by its name.

    `gold` brings a reference answer into its grader's form. An InputError says what was looked for and not found.
    """
    row, version = find(name)
    chosen = row.layout(layout, chat)
    count = chosen.shots if shots is None else shots
    rows, found = _problems(name, row, version, data)
    examples = _examples(name, row, chosen, count, data)
    problems, shown = hashlib.sha256(), hashlib.sha256()
    for line in (row.decides for row in rows):
        problems.update(line)
        shown.update(line)
    for line in _shown(len(rows), examples, chosen, count):
        shown.update(line)
    return Task(
        name=name,
        kind=row.kind,
        problems=_numbered(row, chosen, rows[:limit], gold),
        examples=[example.fields for example in examples],
        layout=chosen,
        shots=count,
        grader=row.grader,
        sha256=shown.hexdigest(),
        problems_sha256=problems.hexdigest(),
        version=found or row.version,
        max_new_tokens=row.max_new_tokens,
    )


def _numbered(row: TaskRow, layout: Layout, rows: Sequence[Row], gold: Callable[[str], str] | None) -> list[Problem]:
    seen, problems = Counter[str](), []
    for one in rows:
        seen[one.id] += 1
        program = dict(one.program)
        if row.kind == "code" and (layout.continues or row.reader.startswith("humaneval")):
            program["prompt"] = one.prompt
        problems.append(
            Problem(
                id=one.id if seen[one.id] == 1 else f"{one.id}-{seen[one.id]}",
                fields=one.fields,
                gold=gold(one.reference) if gold and row.kind == "answer" else "",
                strata=dict(one.strata),
                program=program,
            )
        )
    return problems


def _shown(problems: int, examples: Sequence[Row], layout: Layout, shots: int) -> Iterable[bytes]:
    """The digest's lines for the solved examples, as they are shown."""
    lines = [example.decides for example in examples] if shots else []
    if not shots or layout.sampler == "first_n":
        yield from lines
        return
    draws = random.Random(DRAW_SEED)
    for _ in range(problems):
        yield from draws.sample(lines, shots)


def _examples(name: str, row: TaskRow, layout: Layout, shots: int, data: Path | None) -> list[Row]:
    """The solved examples to show or, for a layout that draws, to draw from."""
    if not shots:
        return []
    if layout.examples:
        found = [Row("", dict(example)) for example in layout.examples]
    elif row.train:
        found = _training_rows(name, row, data)
    else:
        raise InputError(f"layout {layout.name} of {name} has no solved examples, but --shots {shots} asks for some")
    if shots > len(found):
        raise InputError(
            f"--shots {shots} asks for more solved examples than the {len(found)} of {name}: ask for fewer"
        )
    return found if layout.sampler == "default" else found[:shots]


def _problems(name: str, row: TaskRow, version: str, data: Path | None) -> tuple[list[Row], str]:
    """Every problem in its data set's order, and the version that was found."""
    stem = name.partition("@")[0]
    if data is not None and (not row.embedded or find_file(data, row.files)):
        path, found = problems_file(name, row, version, data)
        raw = read_json_rows(path)
        if stem == "math500" and raw and "problem" not in raw[0] and "math_idx" in raw[0]:
            raw = _picked(raw, path, data)
        rows = _read(row, raw, str(path))
    elif row.embedded:
        rows, found = _embedded(row, row.embedded[0]), ""
    elif row.hub is not None and not version:
        rows, found = _read(row, _from_hub(name, row.hub, row.files), row.hub.path), ""
        if row.reader == "mbpp":
            rows.sort(key=_task_number)
    else:
        raise InputError(f"{name} is not on the hub: give --data DIR with {accepted(row.files)}")
    if row.keep:
        rows = [one for one in rows if row.keep[0] <= _task_number(one) <= row.keep[1]]
    return rows, found


def _task_number(row: Row) -> int:
    number = row.id.rsplit("/", maxsplit=1)[-1]
    return int(number) if number.isdigit() else 0


def _picked(raw: list[dict[str, Any]], path: Path, data: Path) -> list[dict[str, Any]]:
    """MATH-500 from its indices into the 5000: rows of `math_idx` alone."""
    whole = problems_file("math500 by math_idx", TASKS["math"], "", data).path
    rows = {row.get("idx", place): row for place, row in enumerate(read_json_rows(whole))}
    if missing := [row["math_idx"] for row in raw if row["math_idx"] not in rows]:
        raise InputError(
            f"{path} names math_idx {missing[0]}, which {whole} does not have: give the 5000 test problems"
        )
    return [rows[row["math_idx"]] for row in raw]


def _training_rows(name: str, row: TaskRow, data: Path | None) -> list[Row]:
    path = find_file(data, row.train) if data is not None else None
    if path is not None:
        return _read(row, read_json_rows(path), str(path))
    if row.embedded:
        return _embedded(row, row.embedded[1])
    if data is not None:
        raise InputError(
            f"the solved examples of {name} need {accepted(row.train)} in {data}, and neither is there: put it there, "
            f"or ask with --shots 0"
        )
    assert row.hub is not None
    hub = Hub(row.hub.path, row.hub.configurations, ("train",))
    return _read(row, _from_hub(name, hub, row.train), hub.path)


def _read(row: TaskRow, raw: Iterable[dict[str, Any]], source: str) -> list[Row]:
    rows = [read_row(row.reader, one, f"entry {number} of {source}") for number, one in enumerate(raw, start=1)]
    if not rows:
        raise InputError(f"the task file {source} is empty: give one problem per line")
    return [_base_only(one) for one in rows] if row.base_only else rows


def _base_only(row: Row) -> Row:
    return replace(row, program={**row.program, "plus": {**row.program["plus"], "plus": []}})


def _embedded(row: TaskRow, name: str) -> list[Row]:
    from selectkd_eval.demo.corpus import examples

    raw = [{"question": one["meta"]["question"], "answer": one["answer"]} for one in examples(name)]
    return _read(row, raw, name)


def _from_hub(name: str, hub: Hub, files: tuple[str, ...]) -> list[dict[str, Any]]:
    environment.expect_hub()
    datasets = environment.require("datasets", f"the task {name}", "bench")
    rows: list[dict[str, Any]] = []
    for configuration in hub.configurations:
        for split in hub.splits:
            try:
                rows += [dict(row) for row in datasets.load_dataset(hub.path, configuration, split=split)]
            except (OSError, RuntimeError, ValueError) as error:
                first = str(error).strip().split("\n", 1)[0][:160]
                raise InputError(
                    f"{name} could not be fetched from the hub's {hub.path} ({type(error).__name__}: {first}): "
                    f"give --data DIR with {accepted(files)}"
                ) from None
    return rows
