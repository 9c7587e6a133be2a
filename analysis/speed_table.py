"""Table 5: what each draft buys in speculative decoding, and under which definition of acceptance.

The paper prints one "Acpt." without saying which. Two definitions are in use and differ widely: accepted / tested
(the alpha of Leviathan et al., conditional on the position being reached) and accepted / drafted (what serving
engines print; it falls with the draft length). Both are printed here, each under its own name. Beside each speed-up
stands its paired ratio to that of one reference draft, which is what a comparison of drafts claims.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from analysis import paper, speed_words
from analysis.load import Library, Method
from analysis.speed import (
    SpeedSet,
    Timed,
    Way,
    acceptance,
    by_seed,
    compared,
    differing,
    predictions,
    refused,
    speed_sets,
    speedup,
)
from analysis.table_ir import Block, Cell, Column, Row, Table
from analysis.table_notes import imports
from selectkd_eval import speeds
from selectkd_eval.errors import InputError
from selectkd_eval.stats import Estimate

_ACCEPTANCE = ("alpha", "block", "tokens")
_DIGITS = {"alpha": 3, "block": 3, "tokens": 2}
LEGEND = (
    "In parentheses: paired ratio of the speed-up to that of the block's reference draft; ° its 95 % interval contains "
    "1 or does not exist (one prompt); * Holm-adjusted p < .05 within the block, of a permutation test that swaps the "
    "two drafts prompt by prompt. "
    "Bold: best draft, underlined: second; equal at the printed precision ranks equal. — not measured or not known."
)


def speed_table(records: Library, resamples: int, printed: Sequence[paper.Row] = ()) -> Table:
    """One block per target, engine, decoding, draft length and batch; one row per draft. `printed` are the published
    rows to set beside them.
    """
    if not records.of("speedup"):
        raise InputError("table 5 needs speedup records: run `selectkd-eval speedup` first")
    sets = speed_sets(records)
    tasks = list(dict.fromkeys(task for chosen in sets for task in chosen.tasks))
    layout = _Layout(records, tuple(tasks) if len(tasks) > 1 else (), paper.Printed(printed), resamples)
    blocks, notes = [], [LEGEND]
    for chosen in sets:
        blocks += layout.blocks(chosen)
        notes += _notes(records, sets, chosen, resamples)
    blocks += layout.printed_blocks()
    caption = (
        "γ: draft length. Speed-up: seconds of plain decoding over seconds of speculative decoding, end to end, the "
        "same count of tokens, each prompt's median over repetitions, summed over prompts; decode only: without the "
        "prompt's prefill. Predicted (decode only): from the target's own text read again and the cost of a call. "
        "accepted / tested: share of drafted tokens accepted among those the target examined; accepted / drafted: "
        "among all drafted; tokens per target call: the target's own included."
    )
    intervals = f"95 % interval, percentile bootstrap over prompts, {resamples:,} resamples."
    notes += imports(record for chosen in sets for record in chosen.records)
    notes += [paper.NOTE] if printed else []
    title = "Table 5. Speculative decoding."
    return Table(
        *("table5", title, caption, layout.columns, tuple(blocks), tuple(notes)), stub="Draft", intervals=intervals
    )


@dataclass(frozen=True)
class _Layout:
    """Which columns there are, and how a draft fills them."""

    library: Library
    tasks: tuple[str, ...]
    printed: paper.Printed
    resamples: int

    @property
    def columns(self) -> tuple[Column, ...]:
        return (
            Column("Speed-up"),
            Column("Decode only"),
            *(Column(task, "Speed-up by task") for task in self.tasks),
            Column("Predicted", better=None),
            *(Column(speeds.ACCEPTANCE[name][2]) for name in _ACCEPTANCE),
            *(Column(label, paper.GROUP, better=None) for label in paper.LABELS if self.printed.rows),
        )

    def blocks(self, chosen: SpeedSet) -> list[Block]:
        """The blocks of one set: one for every draft length and batch."""
        foretold = {method: predictions(found, self.resamples) for method, found in chosen.drafts.items()}
        made = []
        for way in chosen.ways:
            rows = []
            for method in chosen.drafts:
                curve = foretold[method] if way.batch == 1 else {}
                cells = self._cells(chosen, method, way, curve.get(way.gamma))
                if any(cell.present or cell.text for cell in cells):
                    beside = self._beside(chosen, method)
                    rows.append(Row(self.library.label(method), (*cells, *beside)))
            against = f", ratios to {self.library.label(chosen.reference)}" if len(rows) > 1 else ""
            if rows:
                made.append(Block(f"{', '.join(chosen.words)}, {way.words}{against}", tuple(rows)))
        return made

    def printed_blocks(self) -> list[Block]:
        """What the paper prints of targets, drafts and methods that were not measured here."""
        empty = (Cell(),) * (len(self.columns) - len(paper.LABELS))
        return [
            Block(
                f"{paper.TITLE}, target {target}, draft {draft}",
                tuple(Row(row["method"], (*empty, *_printed(row)), ranked=False) for row in rows),
            )
            for (target, draft), rows in self.printed.left().items()
        ]

    def _beside(self, chosen: SpeedSet, method: Method) -> tuple[Cell, ...]:
        """The published numbers of the same target, draft model and method."""
        if not self.printed.rows:
            return ()
        timed = chosen.drafts[method][0]
        names = {str(timed.card.get("name"))} | self._untrained(timed)
        target = str(timed.record.facts["target"].get("name"))
        return _printed(self.printed.of(target, names, str(timed.card.get("method"))))

    def _untrained(self, timed: Timed) -> set[str]:
        """What the model is called that a student was trained from, where its training is among the records."""
        start = (timed.card.get("training") or {}).get("start")
        cards = [record.facts.get("student") or {} for record in self.library.of("train")]
        return {str(card.get("name")) for card in cards if start and card.get("fingerprint") == start}

    def _cells(self, chosen: SpeedSet, method: Method, way: Way, foretold: Estimate | None) -> tuple[Cell, ...]:
        """Speed-ups and acceptances of one draft used one way, its training seeds pooled by prompt."""
        found = chosen.drafts[method]
        if why := refused(found):
            return (Cell(text=why), *(Cell(),) * (2 + len(self.tasks) + len(_ACCEPTANCE)))
        names = tuple(sorted({timed.record.path.name for timed in found}))
        whole = self._seconds(found, way, "wall_s", None, names)
        if whole.present:
            delta, p = compared(chosen, method, chosen.reference, way, self.resamples) or (None, float("nan"))
            whole = replace(whole, delta=delta, p=p, ratio=delta is not None, seeds=by_seed(found, way))
        cells = [whole, self._seconds(found, way, "decode", None, names)]
        cells += [self._seconds(found, way, "wall_s", task, names) for task in self.tasks]
        cells.append(Cell(foretold, interval_digits=2, prefix="×", records=names) if whole.present else Cell())
        for name in _ACCEPTANCE:
            terms, digits = acceptance(found, way, name), _DIGITS[name]
            value = terms.estimate(self.resamples) if terms.den.sum() else None
            cells.append(Cell(value, digits=digits, interval_digits=digits, records=names))
        return tuple(cells)

    def _seconds(self, found: Sequence[Timed], way: Way, clock: str, task: str | None, names: tuple[str, ...]) -> Cell:
        terms = speedup(found, way, clock, task)
        if not terms.den.sum():
            return Cell()
        return Cell(terms.estimate(self.resamples), interval_digits=2, prefix="×", records=names)


def _printed(row: paper.Row | None) -> tuple[Cell, ...]:
    if row is None:
        return (Cell(),) * len(paper.LABELS)
    return Cell(text=f"×{row['speedup']}"), Cell(text=row["acceptance"])


def _notes(library: Library, sets: Sequence[SpeedSet], chosen: SpeedSet, resamples: int) -> list[str]:
    """What the gate found, what plain decoding timed twice gives, the best draft length, and what goes with what."""
    of = "" if len(sets) == 1 else f" ({differing(sets, chosen)})"
    notes = []
    for method, found in chosen.drafts.items():
        parts = [speed_words.gate(found), speed_words.lengths(found, resamples)]
        notes.append(f"{library.label(method)}{of}: {'; '.join(part for part in parts if part)}.")
    said = [*speed_words.clock(chosen, library, resamples), *speed_words.links(chosen, resamples)]
    return notes + [f"{line}{of}." for line in said]
