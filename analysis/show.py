"""The verb `show`: what is in one record?

Options that differ from the defaults, inputs, facts, how many rows measured something, and the verb's number from
the same function as tables and figures. With `--rows N` the first N rows follow as JSON lines; with `--item ID` one
row is shown in full instead (`item`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from analysis import pass_columns
from analysis.item import item_lines
from analysis.load import LIKELIHOOD_NOTE
from analysis.table_ir import number
from selectkd_eval import flatness, measures, passk_table, speed_summary, surfaces, win_rates
from selectkd_eval.records import Record, canonical, imported, read, repeat
from selectkd_eval.stats import Estimate
from selectkd_eval.surfaces import Surface
from selectkd_eval.terminal import visible
from selectkd_eval.verbs import VERBS, ShowOptions, jsonable

_WIDE = 100  # characters of a fact before it is cut


def run(options: ShowOptions) -> int | None:
    """Print one record; an unfinished one is shown as such."""
    record = read(options.record, unfinished_ok=True)
    shown = item_lines(record, options.item) if options.item else lines(record)
    print("\n".join(visible(line) for line in shown))
    for row in record.rows[: options.rows]:
        print(visible(canonical(row)))
    return None


def lines(record: Record) -> Iterator[str]:
    """The record in words."""
    header = record.header
    finish = f"finish it with {repeat(record)}" if repeat(record) else "run its command again to finish it"
    state = "finished" if record.finished else f"unfinished: {finish}"
    yield f"{record.verb} record {record.path} ({state})"
    if words := imported(record.facts):
        yield f"imported from {words}: measured there, not here"
    yield f"rows: {len(record.good):,} measured, {len(record.failed):,} failed"
    for reason, count in _reasons(record):
        yield f"  {count:,} x {reason}"
    yield from _section("options that differ from the defaults", _changed(record))
    yield from _section("inputs", header.get("inputs") or {})
    yield from _section("facts", {name: _brief(value) for name, value in record.facts.items()})
    yield f"made by: {_maker(header)}"
    if record.finished and (found := list(numbers(record))):
        yield "numbers, with 95 % intervals:"
        # The tables of pass@k and speed-up records are as wide as a screen already.
        indent = "" if record.verb in (*pass_columns.VERBS, "speedup") else "  "
        yield from (f"{indent}{line}" for line in found)


def numbers(record: Record) -> Iterator[str]:
    """The verb's own numbers, through the functions that tables use."""
    if record.verb in _NUMBERS:
        yield from _NUMBERS[record.verb](record)


def _passk(record: Record) -> Iterator[str]:
    yield from passk_table.lines(record.facts, record.rows, record.facts.get("k") or [1])


def _winrate(record: Record) -> Iterator[str]:
    counts = ", ".join(f"{count:,} {word}" for word, count in win_rates.verdict_counts(record.rows).items())
    judge = record.facts.get("judge") or {}
    note = f" ({LIKELIHOOD_NOTE})" if judge.get("kind") == "likelihood" else ""
    yield f"win rate: {_percent(win_rates.win_rate(record).estimate())}, {win_rates.TIES[win_rates.tie_rule(record)]}"
    yield f"verdicts: {counts}"
    yield f"judge: {judge.get('name', 'unnamed')}{note}"


def _tar(record: Record) -> Iterator[str]:
    for index, card in enumerate(record.facts["students"]):
        parts = [
            f"{word} {_plain(measures.tar(record.rows, index, what).estimate(), 3)}"
            for what, word in (("greedy", "greedy TAR"), ("spec", "Spec-k TAR"), ("alpha", "alpha"))
        ]
        yield f"{card.get('name')}: {', '.join(parts)}"


def _speedup(record: Record) -> Iterator[str]:
    yield from speed_summary.lines(record.facts, record.rows)


def _landscape(record: Record) -> Iterator[str]:
    facts = record.facts
    if share := facts.get("share"):
        yield f"share {share} of a landscape: its numbers come from all shares together, in figure and report"
        return
    yield f"radius {number(facts['radius'], 3)} of row norms, {facts.get('radius_rule') or 'as asked'}"
    for index, card in enumerate(facts["students"]):
        grid = [row for row in record.good if row.get("kind", "grid") == "grid" and row["student"] == index]
        for seed in sorted({row["seed"] for row in grid}):
            yield f"{card.get('name')}, directions {seed}: {_plane(surfaces.surface(record.rows, index, seed))}"
        if found := flatness.scalars(record.rows, index):
            parts = [f"{name} {_limits(estimate)}" for name, estimate in found.items()]
            yield f"{card.get('name')}: {', '.join(parts)}; {next(iter(found.values())).method}"


def _limits(estimate: Estimate) -> str:
    return f"{estimate.value:.4g}" + (f" [{estimate.low:.4g}, {estimate.high:.4g}]" if estimate.spread else "")


def _plane(surface: Surface) -> str:
    """Loss at the student, its rise halfway and at the edge, and how far the interpolation was off."""
    radii, rises = surface.profile()
    last = len(radii) - 1
    rings = [ring for ring in sorted({(last + 1) // 2, last} - {0}) if np.isfinite(rises[ring])]
    risen = " and ".join(f"{number(rises[ring], 4)} at distance {number(radii[ring], 2)}" for ring in rings)
    said = f"loss {number(surface.centre, 4)}, {f'rising by {risen}' if rings else 'no rise known'}"
    if not np.isfinite(surface.residual):
        return said
    share = f" ({100 * surface.residual / surface.range:.2g} % of its range)" if surface.range > 0 else ""
    return f"{said}; interpolated, off by at most {surface.residual:.2g}{share} at {len(surface.errors)} points"


def _train(record: Record) -> Iterator[str]:
    for event, what in (("step", "loss"), ("validation", "loss"), ("validation", "alpha")):
        steps, values = measures.curve(record.rows, event, what)
        if len(steps):
            ends = f"{number(values[0], 4)} at step {steps[0]:.0f}, {number(values[-1], 4)} at step {steps[-1]:.0f}"
            yield f"{event} {what}: {ends}"


_NUMBERS: dict[str, Callable[[Record], Iterator[str]]] = {
    "passk": _passk,
    "regrade": _passk,
    "winrate": _winrate,
    "tar": _tar,
    "speedup": _speedup,
    "landscape": _landscape,
    "train": _train,
}


def _maker(header: dict[str, Any]) -> str:
    """Program, commit, machine and versions in one line."""
    environment = header.get("environment") or {}
    packages = " ".join(f"{name} {version}" for name, version in sorted((environment.get("packages") or {}).items()))
    machine = f"{environment.get('processor', 'unknown processor')}, {environment.get('cores', '?')} cores"
    commit = str(header.get("git") or "no checkout")[:13]
    return f"selectkd-eval {header.get('version')} ({commit}); {machine}; python {environment.get('python')} {packages}"


def _changed(record: Record) -> dict[str, Any]:
    """Options that are not the default; all of them for a verb this version does not know."""
    if record.verb not in VERBS:
        return record.options
    defaults = {}
    for field in dataclasses.fields(VERBS[record.verb].options):
        if field.default is not dataclasses.MISSING:
            defaults[field.name] = jsonable(field.default)
    return {name: value for name, value in record.options.items() if defaults.get(name, ...) != value}


def _reasons(record: Record) -> list[tuple[str, int]]:
    counts: dict[str, int] = {}
    for row in record.failed:
        reason = str(row["error"])[:_WIDE]
        counts[reason] = counts.get(reason, 0) + 1
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:5]


def _brief(value: Any) -> Any:
    """A model card by name and digest, anything else as JSON cut to a line."""
    if isinstance(value, dict) and "fingerprint" in value:
        seed = f", seed {value['seed']}" if value.get("seed") is not None else ""
        return f"{value.get('name')} ({value.get('method', '')}{seed}, {str(value['fingerprint'])[:12]})"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "; ".join(str(_brief(item)) for item in value)
    text = value if isinstance(value, str) else canonical(value)
    return text if len(text) <= _WIDE else f"{text[:_WIDE]}..."


def _section(title: str, content: dict[str, Any]) -> Iterator[str]:
    if not content:
        return
    yield f"{title}:"
    for name, value in content.items():
        yield f"  {name}: {value if isinstance(value, str) else canonical(value)}"


def _plain(estimate: Estimate, digits: int) -> str:
    return f"{number(estimate.value, digits)} [{number(estimate.low, digits)}, {number(estimate.high, digits)}]"


def _percent(estimate: Estimate) -> str:
    return f"{_plain(estimate.scaled(100), 2)} %, n = {estimate.n:,} ({estimate.method})"
