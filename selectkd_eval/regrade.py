"""What would another grader say? The stored answers of a pass@k record, graded again without a model.

A fault mended in a grader, another rule that a published number used, the other of the sandbox's modes: none of them
needs a GPU. The new verdicts are a record of their own, and the difference to the old ones is printed item by item.
The task's data must be those that were asked, by digest.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from selectkd_eval import environment, passk_table, records
from selectkd_eval.errors import InputError
from selectkd_eval.marking import SANDBOX, Item, Marker, check_grader
from selectkd_eval.records import Record, Writer, open_record
from selectkd_eval.tasks.sources import load_task
from selectkd_eval.tasks.table import find
from selectkd_eval.tasks.task import Problem, Task
from selectkd_eval.verbs import RegradeOptions

ASKED = (
    *("task", "problem", "seed", "sample", "question", "prompt_sha256", "completion", "finish"),
    *("n_tokens", "n_prompt_tokens", "prompt_cut"),
)
TOGETHER = 64  # answers graded at once


def run(options: RegradeOptions) -> int:
    """Grade a record's answers again; prints the new record's path, its table and what changed."""
    source = records.read(options.record)
    if source.verb not in ("passk", "regrade"):
        raise InputError(f"{options.record} is the record of {source.verb}: regrade takes one of passk")
    if words := records.imported(source.facts):
        raise InputError(f"{options.record} was imported from {words}: its problems are not ours to grade again")
    names = list(source.facts["tasks"])
    check_grader(names, options.grader)
    with Marker(
        {find(name)[0].kind for name in names},
        verdict=options.verdict,
        tier=options.sandbox,
        packages=options.sandbox_packages,
        cpu_seconds=options.cpu_seconds,
        workers=options.workers,
    ) as marker:
        tasks = {name: _task(name, source, options, marker) for name in names}
        marker.check(list(tasks.values()))
        facts = {
            **{name: value for name, value in source.facts.items() if name not in ("sandbox", "graders")},
            "tasks": {name: task.facts() for name, task in tasks.items()},
            **marker.facts(list(tasks.values())),
            "source": {"record": source.path.name, "verb": source.verb},
        }
        inputs = {"record": environment.sha256_file(options.record)}
        with open_record("regrade", options, inputs=inputs, facts=facts) as record:
            wanted = {(name, problem.id) for name, task in tasks.items() for problem in task.problems}
            rows = [row for row in source.good if (row["task"], row["problem"]) in wanted]
            pending = [row for row in rows if row["key"] not in record.done]
            _grade(pending, tasks, marker, source.facts["generation"].get("opens", True), record, len(rows))
            record.finish()
            new = [record.done[row["key"]] for row in rows]
            print(record.path)
            print("\n".join(passk_table.lines(record.facts, new, record.facts.get("k", [1]))))
            print("\n".join(passk_table.changes(rows, new)))
    return 0


def _task(name: str, source: Record, options: RegradeOptions, marker: Marker) -> Task:
    """The task that was asked, with the references in this grader's form; InputError when its data are others."""
    before, row = source.facts["tasks"][name], find(name)[0]
    grader = SANDBOX if row.kind == "code" else options.grader or row.grader
    gold = None if row.kind == "code" else marker.grader(grader).gold
    data = options.data or (Path(source.options["data"]) if source.options.get("data") else None)
    task = load_task(name, data, None, before["shots"], before.get("layout", ""), False, gold)
    if task.sha256 != before["sha256"]:
        raise InputError(
            f"{options.record} was asked {name} with the data {before['sha256'][:12]}, and {data or 'the hub'} holds "
            f"{task.sha256[:12]}: give the files of that time with --data"
        )
    asked = {row["problem"] for row in source.rows if row.get("task") == name}
    problems = [problem for problem in task.problems if problem.id in asked]
    return replace(task, grader=grader, problems=problems[: options.limit])


def _grade(
    pending: Sequence[dict[str, Any]],
    tasks: dict[str, Task],
    marker: Marker,
    opened: bool,
    record: Writer,
    total: int,
) -> None:
    problems = {name: {problem.id: problem for problem in task.problems} for name, task in tasks.items()}
    bar = tqdm(total=total, initial=total - len(pending), desc="regrade", unit="answer", file=sys.stderr)
    with bar:
        for start in range(0, len(pending), TOGETHER):
            batch = pending[start : start + TOGETHER]
            verdicts = marker.mark([_item(row, tasks, problems, opened) for row in batch])
            for row, verdict in zip(batch, verdicts, strict=True):
                record.write(row["key"], **{name: row[name] for name in ASKED if name in row}, **verdict)
            bar.update(len(batch))


def _item(row: dict[str, Any], tasks: dict[str, Task], problems: dict[str, dict[str, Problem]], opened: bool) -> Item:
    problem = problems[row["task"]][row["problem"]]
    return Item(tasks[row["task"]], problem, row["completion"], row["finish"], opened)
