"""Why is a draft as fast as it is? The costs and acceptance behind Table 5's speed-ups, and what formulas make of them.

The paper gives speed-ups and one acceptance, from which no speed-up follows. Here is what lies between: the cost of a
draft call and of verifying, tokens per target call, and the speed-up that Leviathan et al. (arXiv 2211.17192) would
expect; the measured one over theirs is taken apart into what the i.i.d. acceptance, the cost model and the rest get
wrong. Only decoding is explained, at the batches whose stages an engine times; `speed_explained` computes it.
"""

from __future__ import annotations

from analysis.load import Library, Method
from analysis.speed import SpeedSet, Timed, Way, foretold, refused, speed_sets
from analysis.table_ir import Block, Cell, Column, Row, Table
from selectkd_eval import speed_explained
from selectkd_eval.speed_explained import Explained, Prediction
from selectkd_eval.stats import Estimate

_COST, _TOKENS, _SPEED = "Cost in plain decoding's time per token", "Tokens per target call", "Speed-up, decode only"
_COLUMNS = (
    Column("c", _COST, None),
    Column("v(γ)", _COST, None),
    Column("o", _COST, None),
    Column("i.i.d.", _TOKENS, None),
    Column("predicted", _TOKENS, None),
    Column("measured", _TOKENS, None),
    Column("Leviathan", _SPEED, None),
    Column("with costs", _SPEED, None),
    Column("predicted", _SPEED, None),
    Column("measured", _SPEED, None),
    Column("acceptance", "Measured over Leviathan", None),
    Column("cost", "Measured over Leviathan", None),
    Column("rest", "Measured over Leviathan", None),
    Column("Predicted over measured", better=None),
)
CAPTION = (
    "c: a draft call; v(γ): verifying γ tokens; o: accepting and cutting the caches; all timed inside the speculative "
    "runs. i.i.d.: (1 − α^(γ+1)) / (1 − α) from α = accepted / tested. Leviathan: that over γc + 1. With costs: "
    "measured tokens per target call over c times the tokens drafted per call, v and o. Predicted: from the target's "
    "own text read again and the cost of calls timed apart, without drafting. Measured over Leviathan is the product "
    "of three factors: acceptance (tokens per target call, measured over i.i.d.), cost (verifying is not free, and the "
    "end of a text drafts less), rest. — not known: an engine that does not time its stages."
)


def explained_table(library: Library, resamples: int) -> Table | None:
    """One row per draft and training seed; None where nothing was timed at batch 1 or no stage is known."""
    blocks = []
    for chosen in speed_sets(library):
        curves = {
            (method, timed.place, timed.record.path): foretold(timed, resamples)
            for method, found in chosen.drafts.items()
            for timed in found
            if not refused(found)
        }
        for way in (way for way in chosen.ways if way.batch == 1):
            rows = [
                _row(library, method, timed, way, curves[method, timed.place, timed.record.path], resamples)
                for method, found in chosen.drafts.items()
                for timed in found
                if not refused(found)
            ]
            if rows := [row for row in rows if any(cell.present for cell in row.cells)]:
                blocks.append(Block(_title(chosen, way), tuple(rows)))
    if not blocks:
        return None
    title = "Table 5, explained. Acceptance and costs behind the speed-ups."
    return Table("table5-explained", title, CAPTION, _COLUMNS, tuple(blocks), stub="Draft")


def _title(chosen: SpeedSet, way: Way) -> str:
    return f"{', '.join(chosen.words)}, {way.words}"


def _row(library: Library, method: Method, timed: Timed, way: Way, curve: list[Prediction], resamples: int) -> Row:
    found = speed_explained.explain(timed.record.rows, timed.arm(way), resamples=resamples)
    seed = timed.card.get("seed")
    label = library.label(method) + (f", seed {seed}" if seed is not None else "")
    before = next((one for one in curve if one.gamma == way.gamma), None)
    return Row(label, tuple(_cells(found, before, timed.record.path.name)), ranked=False)


def _cells(found: Explained, before: Prediction | None, name: str) -> list[Cell]:
    speed = before.speedup if before else None
    values: list[tuple[float | Estimate | None, int]] = [
        (found.c, 3),
        (found.v, 2),
        (found.o, 3),
        (found.tokens_iid, 2),
        (before.tokens_per_call if before else None, 2),
        (found.tokens, 2),
        (found.leviathan, 2),
        (found.costed, 2),
        (speed, 2),
        (found.measured, 2),
        (found.acceptance_factor, 2),
        (found.cost_factor, 2),
        (found.rest, 2),
        (before.ratio if before else None, 2),
    ]
    return [_cell(value, digits, name) for value, digits in values]


def _cell(value: float | Estimate | None, digits: int, name: str) -> Cell:
    """A number with its interval, or without one where it is computed from others."""
    if value is None:
        return Cell()
    if not isinstance(value, Estimate):
        value = Estimate(value, float("nan"), float("nan"), 0, "computed from other numbers of the row")
    return Cell(value, digits=digits, interval_digits=digits, records=(name,))
