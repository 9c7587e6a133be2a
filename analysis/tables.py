"""The verb `table`: the paper's Tables 1 to 6 from our records.

1 win rates, 2 pass@1, 3 vision-language benchmarks (imported: nothing here runs such models), 4 and 6 the ablation over
verifier, k and beta, 5 speculative decoding. Several teacher-student pairs are blocks of one table. Every number comes
with n and a 95 % interval, every difference is paired by prompt, and whatever was not measured is a dash. Written as
Markdown, LaTeX, HTML and a JSON twin. What is said below a table is `table_notes`', what stands in a cell
`table_cells`', the published numbers beside ours `beside`'s.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from analysis import paper, table_cells, table_notes, writers
from analysis.beside import Beside, benchmark, vision
from analysis.files import put
from analysis.grid import Grid
from analysis.load import LIKELIHOOD_NOTE, Library, Method, library
from analysis.pairs import Block as PairBlock
from analysis.pairs import Pairs
from analysis.pass_columns import Column
from analysis.protocols import one_protocol, protocols
from analysis.speed_explanation import companions
from analysis.speed_table import speed_table
from analysis.table_ir import Block, Cell, Ci, Row, Table, finish
from analysis.table_ir import Column as TableColumn
from selectkd_eval import win_rates
from selectkd_eval.errors import InputError
from selectkd_eval.verbs import TableOptions

JUDGED = (1, 4, 6)  # the tables that hold win rates
LEGEND = table_notes.LEGEND
_HEADS = {"passk": "pass@1 (%)", "winrate": "Win rate (%)"}


def run(options: TableOptions) -> int | None:
    """Write one table in four formats and print its Markdown."""
    records = library(options.records)
    if options.number in JUDGED:
        records = one_protocol(records, options.protocol)
    made = [build(options.number, records, options.resamples, paper=options.paper)]
    if options.number == 5:
        made += companions(records, options.resamples)
    for table in made:
        for path in write(table, options.out, options.ci, options.siunitx):
            print(f"wrote {path}", file=sys.stderr)
    print("\n".join(writers.markdown(table, options.ci) for table in made), end="")
    return None


def write(table: Table, out: Path, ci: Ci = "inline", siunitx: bool = False) -> list[Path]:
    """The .md, .tex, .html and .json of a table; `ci` and `siunitx` as in the options of `table`."""
    texts = {
        ".md": writers.markdown(table, ci),
        ".tex": writers.latex(table, ci, siunitx),
        ".html": writers.page(table, ci),
        ".json": writers.twin(table),
    }
    return [put(out / f"{table.name}{suffix}", text) for suffix, text in texts.items()]


def build(number: int, records: Library, resamples: int, *, paper: bool = False) -> Table:
    """Table `number` of the paper from these records, with `paper` beside the published numbers; an InputError when
    they hold nothing for it, or when their win rates follow several protocols.
    """
    builders: dict[int, Callable[[Library, int, bool], Table]] = {
        1: win_rate_table,
        2: pass_table,
        3: vision_table,
        4: lambda records, resamples, paper: ablation_table(records, resamples, 4, paper),
        5: _speed_table,
        6: lambda records, resamples, paper: ablation_table(records, resamples, 6, paper),
    }
    if number not in builders:
        raise InputError(f"there is no table {number} in the paper: ask for 1, 2, 3, 4, 5 or 6")
    if number in JUDGED and len(protocols(records)) > 1:
        records = one_protocol(records, "")
    return finish(builders[number](records, resamples, paper))


def win_rate_table(records: Library, resamples: int, printed: bool = False) -> Table:
    """Table 1: win rates in percent, one column per prompt set, baseline, judge and protocol."""
    grid = _grid(records, "winrate", resamples, "table 1 needs winrate records")
    judges = sorted({_judge(column) for column in grid.columns})
    rules = sorted({win_rates.TIES[str(column.get("ties"))] for column in grid.columns})
    rows = _Rows(grid, Beside(1, [grid]) if printed else None)
    caption = f"Win rate in percent; judge: {'; '.join(judges)}; {'; '.join(rules)}. {table_notes.sample(grid)}"
    return rows.table("table1", "Table 1. Win rates.", caption, table_notes.verdict_notes(grid, rows.name))


def pass_table(records: Library, resamples: int, printed: bool = False) -> Table:
    """Table 2: pass@1 in percent, one column per task; the vision benchmarks are Table 3's."""
    grid = _grid(records, "passk", resamples, "table 2 needs passk records", lambda column: not vision(column))
    rows = _Rows(grid, Beside(2, [grid]) if printed else None)
    graders = sorted({f"{column.label}: {column.get('grader')}" for column in grid.columns if column.get("grader")})
    notes = [*(f"Grader of {grader}." for grader in graders), *table_notes.outcome_notes(grid, rows.name)]
    return rows.table("table2", "Table 2. pass@1.", f"pass@1 in percent. {table_notes.sample(grid)}", notes)


def vision_table(records: Library, resamples: int, printed: bool = False) -> Table:
    """Table 3: the paper's vision-language benchmarks, from imported samples; all models compete."""
    grid = Grid(records, "passk", resamples, vision)
    if not grid.columns:
        raise InputError(
            "table 3 needs records of its vision-language benchmarks, and nothing here runs such models: measure them "
            f"elsewhere and `import` the samples, with tasks named {', '.join(paper.VISION)}"
        )
    grid.columns.sort(key=lambda column: paper.VISION.index(benchmark(column)))
    rows = _Rows(grid, Beside(3, [grid]) if printed else None, everyone=True)
    caption = f"Accuracy in percent, as imported. {table_notes.sample(grid)}"
    return rows.table("table3", "Table 3. Vision-language models.", caption, [], stub="Model")


def _speed_table(records: Library, resamples: int, printed: bool) -> Table:
    return speed_table(records, resamples, paper.published(5) if printed else [])


def ablation_table(records: Library, resamples: int, number: int = 4, printed: bool = False) -> Table:
    """Tables 4 and 6: every trained set-up by verifier, k and beta, on whatever was measured."""
    found = [grid for kind in _HEADS if (grid := Grid(records, kind, resamples, _not_vision)).columns]  # type: ignore[arg-type]
    grids = sorted(found, key=lambda grid: grid.kind, reverse=True)
    methods = sorted(
        {m for grid in grids for m in grid.methods if m.role == "student" and m.get("verifier")},
        key=lambda method: method.order,
    )
    if not methods:
        raise InputError(
            f"table {number} needs passk or winrate records of students trained here: train and measure some"
        )
    beside = Beside(number, grids) if printed else None
    columns = [TableColumn(label, better=None) for label in ("Verification", "k", "β")]
    for grid in grids:
        columns += [TableColumn(grid.label(column), _HEADS[grid.kind]) for column in grid.columns]
        columns += [TableColumn("AVG", _HEADS[grid.kind])] if len(grid.columns) > 1 else []
    blocks, name = [], _Names(records, methods)
    for block in name.blocks:
        rows = []
        for method in block.methods:
            cells = [Cell(text=word) for word in _gate(method)]
            for grid in grids:
                cells += [table_cells.measured(grid, column, method) for column in grid.columns]
                cells += [table_cells.average(grid, method, grid.columns)] if len(grid.columns) > 1 else []
            rows.append(Row(name.within(block, method), (*cells, *_published(beside, block, method))))
        blocks.append(Block(block.title, tuple(rows)))
    judges = sorted({_judge(column) for grid in grids for column in grid.columns if column.kind == "winrate"})
    notes = [LEGEND, *(f"Judge: {judge}." for judge in judges), *table_notes.notes(grids, name)]
    return Table(
        f"table{number}",
        f"Table {number}. Ablation of the gate.",
        f"Verifier, k and β; differences to the method without the gate. {table_notes.sample(*grids)}",
        (*columns, *(beside.columns if beside else ())),
        tuple(blocks),
        (*notes, *(beside.notes if beside else ())),
        intervals=table_notes.intervals(resamples),
    )


class _Names:
    """The blocks of a table, and what a method is called within its block and in a note."""

    def __init__(self, records: Library, methods: Iterable[Method]) -> None:
        self.library = records
        self.blocks = Pairs(records).blocks(methods)

    def within(self, block: PairBlock, method: Method) -> str:
        """A row's label: what tells it from the other rows of its block."""
        return self.library.label(method, block.methods if len(self.blocks) > 1 else None)

    def __call__(self, method: Method) -> str:
        own = [block for block in self.blocks if method in block.methods]
        if len(self.blocks) == 1 or len(own) != 1:
            return self.library.label(method)
        return f"{self.within(own[0], method)} ({own[0].title})"


class _Rows:
    """A grid as a table: a column per column and their average, a block per teacher-student pair."""

    def __init__(self, grid: Grid, beside: Beside | None, everyone: bool = False) -> None:
        self.grid = grid
        self.beside = beside
        self.everyone = everyone
        self.name = _Names(grid.library, grid.methods)
        self.averaged = len(grid.columns) > 1

    def table(self, name: str, title: str, caption: str, notes: Sequence[str], stub: str = "Method") -> Table:
        """The table with its notes: the legend, those given, and what all tables say."""
        columns = [TableColumn(self.grid.label(column)) for column in self.grid.columns]
        columns += [TableColumn("AVG")] if self.averaged else []
        more = table_notes.notes([self.grid], self.name)
        legend = LEGEND.replace("best student", "best model") if self.everyone else LEGEND
        if len(self.name.blocks) > 1 and self.averaged:
            more.append("AVG of a block: the mean over the columns on which its models were measured.")
        return Table(
            name,
            title,
            caption,
            (*columns, *(self.beside.columns if self.beside else ())),
            tuple(self._block(block) for block in self.name.blocks),
            (legend, *notes, *more, *(self.beside.notes if self.beside else ())),
            stub=stub,
            facts={self.grid.label(column): dict(column.key) for column in self.grid.columns},
            intervals=table_notes.intervals(self.grid.resamples),
        )

    def _block(self, block: PairBlock) -> Block:
        grid = self.grid
        here = [column for column in grid.columns if any((column, m) in grid.found for m in block.methods)]
        rows = []
        for method in block.methods:
            cells = [table_cells.measured(grid, column, method) for column in grid.columns]
            cells += [table_cells.average(grid, method, here)] if self.averaged else []
            rows.append(
                Row(
                    self.name.within(block, method),
                    (*cells, *_published(self.beside, block, method)),
                    ranked=self.everyone or method.role == "student",
                    indent=any(grid.base_of(column, method) for column in grid.columns),
                )
            )
        return Block(block.title, tuple(rows))


def _published(beside: Beside | None, block: PairBlock, method: Method) -> tuple[Cell, ...]:
    return beside.cells(block, method) if beside else ()


def _not_vision(column: Column) -> bool:
    return not vision(column)


def _grid(
    records: Library, kind: str, resamples: int, need: str, keep: Callable[[Column], bool] = lambda column: True
) -> Grid:
    grid = Grid(records, kind, resamples, keep)  # type: ignore[arg-type]
    if not grid.columns:
        have = ", ".join(sorted({record.verb for record in records.records}))
        raise InputError(f"{need}, and these records are of {have} only: run `selectkd-eval {kind}` first")
    return grid


def _gate(method: Method) -> tuple[str, str, str]:
    verifier = str(method.get("verifier"))
    name = {
        "none": "None",
        "hellinger": "Hellinger-based",
        "top-k": "Greedy Top-k",
        "spec-k": "Non-greedy Spec-k" + (" (sampled)" if method.get("spec_mode") == "sampled" else ""),
    }.get(verifier, verifier)
    k, beta = (method.get(fact) for fact in ("k", "beta"))
    weight = f"{beta:g}" if beta is not None else "1" if verifier == "none" else "–"
    return name, str(k) if k is not None else "–", weight


def _judge(column: Column) -> str:
    kind, name = column.get("judge_kind"), column.get("judge")
    note = f" ({LIKELIHOOD_NOTE})" if kind == "likelihood" else " (replayed)" if kind == "replay" else ""
    return f"{name}{note}, protocol {column.get('protocol') or 'unnamed'}"
