"""Table 5: what each draft buys in speculative decoding, and under which definition of acceptance.

The paper prints one "Acpt." without saying which. Two definitions are in use and differ widely: accepted / tested
(the alpha of Leviathan et al., conditional on the position being reached) and accepted / drafted (what serving
engines print; it falls with the draft length). Both are printed here, each under its own name.
"""

from __future__ import annotations

from collections import defaultdict

from analysis.load import Library, Method
from analysis.table_ir import Block, Cell, Column, Row, Table, number
from selectkd_eval import measures
from selectkd_eval.errors import InputError
from selectkd_eval.measures import Terms
from selectkd_eval.records import Record

_ACCEPTANCE = ("alpha", "block", "tokens")


def speed_table(records: Library, resamples: int) -> Table:
    """One block per target, decoding and draft length; one row per draft."""
    found = records.of("speedup")
    if not found:
        raise InputError("table 5 needs speedup records: run `selectkd-eval speedup` first")
    columns = tuple(Column(label) for label in ("Speed-up", *(measures.ACCEPTANCE[name][2] for name in _ACCEPTANCE)))
    settings: dict[str, dict[Method, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in found:
        settings[_setting(records, record)][records.method(record.facts["draft"])].append(record)
    blocks, notes = [], []
    for setting, by_method in sorted(settings.items()):
        ordered = sorted(by_method.items(), key=lambda item: item[0].order)
        arms = {arm for _, group in ordered for record in group for arm in measures.speedup_arms(record.rows)}
        for arm in sorted(arms, key=_length):
            rows = [Row(records.label(method), tuple(_cells(group, arm, resamples))) for method, group in ordered]
            rows = [row for row in rows if any(cell.present or cell.text for cell in row.cells)]
            blocks.append(Block(f"{setting}, γ = {_length(arm)}", tuple(rows)))
        notes += [note for method, group in ordered for note in _notes(records.label(method), group, resamples)]
    caption = (
        "γ: draft length. Speed-up: seconds of plain decoding over seconds of speculative decoding, end to end, the "
        "same count of tokens, each prompt's median over repetitions, summed over prompts. accepted / tested: "
        "share of drafted tokens accepted among those the target examined; accepted / drafted: among all drafted. "
        f"Brackets: 95 % interval, percentile bootstrap over prompts, {resamples:,} resamples."
    )
    return Table(
        "table5", "Table 5. Speculative decoding.", caption, columns, tuple(blocks), tuple(notes), stub="Draft"
    )


def _length(arm: str) -> int:
    return int(arm.removeprefix("gamma"))


def _setting(records: Library, record: Record) -> str:
    facts, options = record.facts, record.options
    temperature = facts.get("temperature", options.get("temperature", 0.0))
    decoding = f"temperature {temperature:g}" if temperature else "greedy"
    target = facts["target"].get("name") or records.label(records.method(facts["target"]))
    prompts = facts.get("prompts")
    name = prompts["name"] if isinstance(prompts, dict) and "name" in prompts else options.get("prompts", "")
    return f"Target {target}, {decoding}, {name}, at most {options.get('max_new_tokens')} tokens"


def _cells(found: list[Record], arm: str, resamples: int) -> list[Cell]:
    """Speed-up and acceptances of one draft at one length, its training seeds pooled by prompt."""
    names = tuple(sorted(record.path.name for record in found))
    violated = any(measures.lossless_counts(record.rows)["violation"] for record in found)
    parts = {"speed": [measures.speedup(record.rows, arm) for record in found]}
    parts |= {name: [measures.acceptance(record.rows, arm, name) for record in found] for name in _ACCEPTANCE}
    cells = []
    for name, terms in parts.items():
        pooled = measures.pool(terms)
        if not pooled.den.sum():
            cells.append(Cell())
        elif name == "speed" and violated:
            cells.append(Cell(text="text changed"))
        else:
            cells.append(_cell(pooled, terms, found, name, names, resamples))
    return cells


def _cell(
    pooled: Terms, parts: list[Terms], found: list[Record], name: str, names: tuple[str, ...], resamples: int
) -> Cell:
    seeds = [record.facts["draft"].get("seed") for record in found]
    return Cell(
        value=pooled.estimate(resamples),
        prefix="×" if name == "speed" else "",
        digits=2 if name in ("speed", "tokens") else 3,
        interval_digits=2 if name in ("speed", "tokens") else 3,
        seeds=tuple((seed, part.value) for seed, part in zip(seeds, parts, strict=True)),
        records=names,
    )


def _notes(label: str, found: list[Record], resamples: int) -> list[str]:
    gate = measures.lossless_counts([row for record in found for row in record.rows])
    parts = []
    if sum(gate.values()):
        parts.append(
            f"text identical to plain decoding on {gate['identical']} prompts, a numerical tie on {gate['tie']}, "
            f"changed on {gate['violation']}"
        )
    control = measures.pool([measures.speedup(record.rows, "ar2") for record in found])
    if control.den.sum():
        estimate = control.estimate(resamples)
        low, high = number(estimate.low, 3), number(estimate.high, 3)
        parts.append(f"plain decoding timed twice gives ×{number(estimate.value, 3)} [{low}, {high}]")
    return [f"{label}: {'; '.join(parts)}."] if parts else []
