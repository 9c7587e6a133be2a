"""Which pass@1 numbers do passk and regrade records hold, and which of them may stand in one column?

A column is everything but the model that a score depends on: data, wording, examples, decoding, grader, and for
programs the sandbox's mode and limits. What differs in any of it never shares a column. A regrade that lands in its
source's column is that number graded anew and takes its place; in another column it stands beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from analysis.table_ir import signed
from selectkd_eval import measures
from selectkd_eval.measures import Terms
from selectkd_eval.passk_notes import grader_of, is_code
from selectkd_eval.records import Record, canonical

VERBS = ("passk", "regrade")


@dataclass(frozen=True)
class Column:
    """What was measured, on what, by which rule. Only equal columns are compared."""

    kind: Literal["passk", "winrate"]
    label: str
    key: tuple[tuple[str, Any], ...]

    def get(self, name: str) -> Any:
        return dict(self.key).get(name)


@dataclass(frozen=True)
class Scored:
    """One task of one record."""

    column: Column
    record: Record
    task: str

    @property
    def terms(self) -> Terms:
        return measures.pass_at_1(self.record.rows, self.task)

    @property
    def answers(self) -> set[str]:
        """Keys of the answers that were graded."""
        return {row["key"] for row in self.record.good if row.get("task") == self.task}


def column(record: Record, task: str) -> Column:
    """The column of one task. Records of earlier versions say less in their facts, and their options say it instead."""
    facts, options, told = record.facts, record.options, record.facts["tasks"][task]
    generation = facts.get("generation") or {}
    decoding = (generation.get("decoding") or {}).get(task) or {}
    key = {
        "task": task,
        "sha256": told.get("sha256"),
        "n": told.get("n"),
        "version": told.get("version"),
        "layout": told.get("layout"),
        "shots": told.get("shots", options.get("shots")),
        "chat": generation.get("chat"),
        "system": generation.get("system") or None,
        "grader": grader_of(facts, task),
        "grader version": (facts.get("graders") or {}).get(told.get("grader")),
        "temperature": decoding.get("temperature", options.get("temperature")),
        "top-p": decoding.get("top_p"),
        "max_new_tokens": decoding.get("max_new_tokens", options.get("max_new_tokens")),
        "stops": canonical(decoding.get("stops")),
    }
    if is_code(facts, task):
        sandbox = facts.get("sandbox") or {}
        limits = sandbox.get("limits") or {}
        key |= {"CPU seconds": limits.get("cpu_seconds"), "memory": limits.get("memory_bytes")}
        key["packages"] = canonical(sandbox.get("packages"))
    return Column("passk", task, tuple(key.items()))


def scored(records: Sequence[Record]) -> tuple[list[Scored], list[str]]:
    """Every task of every record that counts, in the order of the records, and what was left out and why."""
    found = [Scored(column(r, task), r, task) for r in records if r.verb in VERBS for task in r.facts["tasks"]]
    notes: list[str] = []
    gone: set[int] = set()
    for place, regrade in enumerate(found):
        if regrade.record.verb != "regrade":
            continue
        for other, source in enumerate(found):
            if other == place or other in gone or place in gone or not _same_answers(regrade, source):
                continue
            if source.answers - regrade.answers:
                gone.add(place)
                notes.append(
                    f"{regrade.record.path.name} graded {len(regrade.answers):,} of {len(source.answers):,} answers on "
                    f"{regrade.task} anew and is left out."
                )
            else:
                gone.add(other)
                notes.append(
                    f"{regrade.task}: {regrade.record.path.name} is {source.record.path.name} graded anew and takes "
                    f"its place."
                )
    return [one for place, one in enumerate(found) if place not in gone], notes


def _same_answers(regrade: Scored, other: Scored) -> bool:
    """Whether `other` holds the same answers in the same column: the regrade's source, or an earlier regrade of it."""
    if regrade.column != other.column or _model(regrade) != _model(other):
        return False
    source = (regrade.record.facts.get("source") or {}).get("record")
    if other.record.verb == "passk":
        return bool(other.record.path.name == source)
    theirs = (other.record.facts.get("source") or {}).get("record")
    # Of two regrades of one record, the one whose name comes last stands; a regrade of a regrade stands over it.
    twins = theirs == source and regrade.record.path.name > other.record.path.name
    return bool(other.record.path.name == source or twins)


def _model(one: Scored) -> Any:
    return (one.record.facts.get("model") or {}).get("fingerprint")


def outcomes(records: Sequence[Record], task: str) -> Iterator[str]:
    """What stands behind one number of a table: answers cut short, timeouts, and what the other mode says."""
    rows = [row for record in records for row in record.good if row.get("task") == task]
    counts = {
        "answers truncated": sum(row.get("finish") == "length" for row in rows),
        "prompts cut": sum(bool(row.get("prompt_cut")) for row in rows),
        "timeouts": sum(row.get("outcome") == "timeout" for row in rows),
    }
    yield from (f"{count:,} of {len(rows):,} {what}" for what, count in counts.items() if count)
    apart = [row["other"] | {"gain": row["other"]["correct"] - row["correct"]} for row in rows if row.get("other")]
    apart = [other for other in apart if other["gain"]]
    if apart:
        points = 100 * sum(other["gain"] for other in apart) / len(rows)
        yield f"{len(apart):,} verdicts are others in {apart[0]['mode']} mode, {signed(points, 2)} points in all"
