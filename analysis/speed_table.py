"""Table 5: what each draft buys in speculative decoding, and under which definition of acceptance.

The paper prints one "Acpt." without saying which. Two definitions are in use and differ widely: accepted / tested
(the alpha of Leviathan et al., conditional on the position being reached) and accepted / drafted (what serving
engines print; it falls with the draft length). Both are printed here, each under its own name.
"""

from __future__ import annotations

from analysis.load import Library
from analysis.speed import changed, control, differing, length, speed_sets
from analysis.table_ir import Block, Cell, Column, Row, Table, number
from selectkd_eval import measures
from selectkd_eval.errors import InputError
from selectkd_eval.measures import Terms
from selectkd_eval.records import Record

_ACCEPTANCE = ("alpha", "block", "tokens")


def speed_table(records: Library, resamples: int) -> Table:
    """One block per target, decoding and draft length; one row per draft."""
    if not records.of("speedup"):
        raise InputError("table 5 needs speedup records: run `selectkd-eval speedup` first")
    columns = tuple(Column(label) for label in ("Speed-up", *(measures.ACCEPTANCE[name][2] for name in _ACCEPTANCE)))
    blocks, notes, sets = [], [], speed_sets(records)
    for chosen in sets:
        for arm in chosen.arms:
            rows = [
                Row(records.label(method), tuple(_cells(found, arm, resamples)))
                for method, found in chosen.drafts.items()
            ]
            rows = [row for row in rows if any(cell.present or cell.text for cell in row.cells)]
            blocks.append(Block(f"{', '.join(chosen.words)}, γ = {length(arm)}", tuple(rows)))
        for method, found in chosen.drafts.items():
            of = "" if len(sets) == 1 else f" ({differing(sets, chosen)})"
            notes += _notes(f"{records.label(method)}{of}", found, resamples)
    caption = (
        "γ: draft length. Speed-up: seconds of plain decoding over seconds of speculative decoding, end to end, the "
        "same count of tokens, each prompt's median over repetitions, summed over prompts. accepted / tested: "
        "share of drafted tokens accepted among those the target examined; accepted / drafted: among all drafted. "
        f"Brackets: 95 % interval, percentile bootstrap over prompts, {resamples:,} resamples."
    )
    return Table(
        "table5", "Table 5. Speculative decoding.", caption, columns, tuple(blocks), tuple(notes), stub="Draft"
    )


def _cells(found: list[Record], arm: str, resamples: int) -> list[Cell]:
    """Speed-up and acceptances of one draft at one length, its training seeds pooled by prompt."""
    names = tuple(sorted(record.path.name for record in found))
    violated = changed(found)
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
    timed = control(found, resamples)
    if timed is not None:
        low, high = number(timed.low, 3), number(timed.high, 3)
        parts.append(f"plain decoding timed twice gives ×{number(timed.value, 3)} [{low}, {high}]")
        if timed.excludes(1):
            parts.append("that interval leaves 1 out, so this timing is not settled: measure again on an idle machine")
    return [f"{label}: {'; '.join(parts)}."] if parts else []
