"""What does a person see when a pass@k run ends? One table, and under it what the numbers rest on.

Every line is computed from a record's header facts and rows, so that the command's end, `show` and `regrade` print the
same. It measures nothing and knows no model; the numbers are `pass_rates`', the notes `passk_notes`'. Comparisons of
two runs are in `passk_compare`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from selectkd_eval import measures, pass_rates
from selectkd_eval.measures import Row
from selectkd_eval.passk_compare import changes, compare_lines
from selectkd_eval.passk_notes import breakdown, grader_of, notes, of_task
from selectkd_eval.stats import Estimate
from selectkd_eval.terminal import WIDTH, aligned, bullets, visible

__all__ = ["changes", "compare_lines", "lines", "running"]

Facts = Mapping[str, Any]


def lines(facts: Facts, rows: Iterable[Row], ks: Sequence[int] = (1,)) -> list[str]:
    """The table of every task, the notes, and the breakdown of tasks that have strata.

    `facts` are a passk or regrade record's header facts; beside failed `rows`, `facts["failed"]` may count answers that
    have no row at all.
    """
    rows = list(rows)
    parts = of_task(facts, rows)
    return [
        *_table(facts, parts, sorted(set(ks)) or [1]),
        "",
        *bullets([visible(note) for note in notes(facts, rows, ks)]),
        *(line for name, task_rows in parts.items() for line in breakdown(name, task_rows)),
    ]


def running(rows: Iterable[Row]) -> str:
    """The score so far, for a progress bar: "gsm8k 41.2 %, math 30.0 %"."""
    right, asked = Counter[str](), Counter[str]()
    for row in rows:
        if "error" not in row:
            right[row["task"]] += row.get("correct", 0)
            asked[row["task"]] += 1
    return ", ".join(f"{visible(task)} {100 * right[task] / n:.1f} %" for task, n in asked.items())


def _table(facts: Facts, parts: Mapping[str, Sequence[Row]], ks: Sequence[int]) -> list[str]:
    several = len(ks) > 1 or ks[0] != 1
    heading = ["task", "pass@k %" if several else "pass@1 %", "95 % interval", "n", "seeds"]
    table = [[*heading, "truncated", "timeouts", "cut prompts", "grader", "data"]]
    for name, rows in parts.items():
        for place, k in enumerate(ks):
            score = pass_rates.pass_at(rows, name, k).estimate().scaled(100)
            value, interval = _value(score, f"{k}: " if several else ""), _interval(score)
            rest = [f"{score.n}", *_rest(facts, name, rows)] if place == 0 else [""] * 7
            table.append([visible(name) if place == 0 else "", value, interval, *rest])
    # A grader of a long name must not push the table over the line; the notes have it in full.
    room = 20
    while max(map(len, aligned(table))) > WIDTH and room > 6:
        room -= 1
        table = [[*row[:8], _cut(row[8], room), row[9]] for row in table]
    return aligned(table, words=(0, 8, 9))


def _rest(facts: Facts, name: str, rows: Sequence[Row]) -> list[str]:
    """The columns behind n."""
    good = measures.good(rows)
    per_seed: dict[Any, set[Any]] = defaultdict(set)
    for row in good:
        per_seed[row.get("seed")].add(row.get("sample"))
    samples = max(map(len, per_seed.values()), default=1)
    return [
        f"{len(per_seed)}" + (f" x {samples}" if samples > 1 else ""),
        _told(good, "finish", sum(row.get("finish") == "length" for row in good)),
        str(sum(row.get("outcome") == "timeout" for row in good)),
        _told(good, "prompt_cut", sum(bool(row.get("prompt_cut")) for row in good)),
        visible(grader_of(facts, name)),
        str(facts["tasks"][name].get("sha256") or "unknown")[:12],
    ]


def _told(rows: Sequence[Row], name: str, count: int) -> str:
    """A count of rows, or a dash where imported rows say that they do not know."""
    return "—" if rows and all(row.get(name, "") is None for row in rows) else str(count)


def _value(score: Estimate, prefix: str) -> str:
    return "none" if score.n == 0 else f"{prefix}{score.value:.2f}"


def _interval(score: Estimate) -> str:
    return "" if score.n == 0 else f"[{score.low:.1f}, {score.high:.1f}]"


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: room - 1]}…"
