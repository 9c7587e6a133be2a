"""Why is a draft as fast as it is? Acceptance under every name, the costs, and what formulas make of both.

The paper gives speed-ups and one acceptance, from which no speed-up follows. Here is what lies between: the cost of a
draft call and of verifying, tokens per target call, and the speed-up that Leviathan et al. (arXiv 2211.17192) would
expect; the measured one over theirs is taken apart into what the i.i.d. acceptance, the cost model and the rest get
wrong. Acceptance has a table of its own, because its names are used for each other and none means what another does.
Only decoding of single texts is explained; `speeds` and `speed_explained` compute it.
"""

from __future__ import annotations

from collections.abc import Callable

from analysis.load import Library
from analysis.speed import Timed, Way, foretold, refused, speed_sets
from analysis.table_ir import Block, Cell, Column, Row, Table, number
from selectkd_eval import speed_explained, speeds
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
_EXPLAINED = (
    "c: a draft call; v(γ): verifying γ tokens; o: accepting and cutting the caches; all timed inside the speculative "
    "runs. i.i.d.: (1 − α^(γ+1)) / (1 − α) from α = accepted / tested. Leviathan: that over γc + 1. With costs: "
    "measured tokens per target call over c times the tokens drafted per call, v and o. Predicted: from the target's "
    "own text read again and the cost of calls timed apart, without drafting. Measured over Leviathan is the product "
    "of three factors: acceptance (tokens per target call, measured over i.i.d.), cost (verifying is not free, and the "
    "end of a text drafts less), rest. — not known: an engine that does not time its stages."
)


_IN_RUNS = ("alpha", "block", "share", "tokens", "accepted", "overlap")
_ON_TEXT = ("agreement", "top5", "overlap")
_WIDE = {"tokens", "accepted"}  # counts of tokens, not shares
_ACCEPTANCE = (
    *(Column(speeds.ACCEPTANCE[name][2], "In the runs", None) for name in _IN_RUNS),
    *(Column(speeds.TEXT[name].replace(" on target text", ""), "On the target's own text", None) for name in _ON_TEXT),
    Column("accepted / drafted", "By position 1, 2, ...", None),
    Column("accepted / tested", "By position 1, 2, ...", None),
)
_NAMES = (
    "accepted / tested: conditional, the α of Leviathan et al.; accepted / drafted: what serving engines call the "
    "acceptance rate, it falls with γ; accepted / emitted: share of the text that was drafted; tokens per target call "
    "with the target's own token, accepted per target call without; mean sum min(p, q): the expectation of accepted / "
    "tested for sampled drafts. On the target's own text, teacher-forced: nothing was drafted, so nothing depends on "
    "γ; greedy TAR is the paper's Eq. 13 on this text, token by token. By position: steps that had room for the "
    "position; accepted / drafted counts refused beginnings against it, accepted / tested does not."
)


def companions(library: Library, resamples: int) -> list[Table]:
    """What stands below Table 5: every acceptance, and what explains the speed-ups; nothing without timed runs."""
    made = [
        _table(
            library,
            resamples,
            "table5-acceptance",
            "Table 5, acceptance. Under every name.",
            _NAMES,
            _ACCEPTANCE,
            _accepted,
        ),
        _table(
            library,
            resamples,
            "table5-explained",
            "Table 5, explained. Acceptance and costs behind the speed-ups.",
            _EXPLAINED,
            _COLUMNS,
            _explained,
        ),
    ]
    return [table for table in made if table.blocks]


def _table(
    library: Library,
    resamples: int,
    name: str,
    title: str,
    caption: str,
    columns: tuple[Column, ...],
    cells_of: Callable[[Timed, Way, int], list[Cell]],
) -> Table:
    """One row per draft and training seed, a block per draft length, single texts alone."""
    blocks = []
    for chosen in speed_sets(library):
        kept = [(method, timed) for method, found in chosen.drafts.items() if not refused(found) for timed in found]
        for way in (way for way in chosen.ways if way.batch == 1):
            rows = []
            for method, timed in kept:
                cells = cells_of(timed, way, resamples)
                seed = timed.card.get("seed")
                label = library.label(method) + (f", seed {seed}" if seed is not None else "")
                if any(cell.present for cell in cells):
                    rows.append(Row(label, tuple(cells), ranked=False))
            if rows:
                blocks.append(Block(f"{', '.join(chosen.words)}, {way.words}", tuple(rows)))
    return Table(name, title, caption, columns, tuple(blocks), stub="Draft")


def _accepted(timed: Timed, way: Way, resamples: int) -> list[Cell]:
    """Every acceptance of one draft, none of them where this length was not timed."""
    rows, arm, name = timed.record.rows, timed.arm(way), timed.record.path.name
    terms = [(what, speeds.acceptance(rows, arm, what)) for what in _IN_RUNS]
    if not any(found.den.sum() for _, found in terms):
        return []
    terms += [(what, speeds.text(rows, timed.place, what)) for what in _ON_TEXT]
    cells = [
        _cell(found.estimate(resamples) if found.den.sum() else None, 2 if what in _WIDE else 3, name)
        for what, found in terms
    ]
    places = speeds.positions(rows, arm, resamples=1)
    for kind in ("survival", "conditional"):
        text = " ".join(number(getattr(place, kind).value, 2) for place in places)
        cells.append(Cell(text=text))
    return cells


def _explained(timed: Timed, way: Way, resamples: int) -> list[Cell]:
    """Costs, tokens and speed-ups of one draft, and the factors between formula and clock."""
    name = timed.record.path.name
    found = speed_explained.explain(timed.record.rows, timed.arm(way), resamples=resamples)
    before = next((one for one in foretold(timed, resamples) if one.gamma == way.gamma), None)
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
