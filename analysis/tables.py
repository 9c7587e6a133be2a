"""The verb `table`: the paper's Tables 1, 2, 4, 5 and 6 from our records.

1 win rates, 2 pass@1, 4 and 6 the ablation over verifier, k and beta, 5 speculative decoding. Table 3 compares
vision-language models and is out of scope. Every number comes with n and a 95 % interval, every difference is
paired by prompt, and whatever was not measured is a dash. Written as Markdown, LaTeX and a JSON twin.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from analysis import writers
from analysis.files import put
from analysis.grid import Grid
from analysis.load import LIKELIHOOD_NOTE, Library, Method, library
from analysis.paper import published
from analysis.pass_columns import Column, outcomes
from analysis.protocols import one_protocol, protocols
from analysis.speed_explanation import companions
from analysis.speed_table import speed_table
from analysis.table_ir import Block, Cell, Row, Table, finish, number
from analysis.table_ir import Column as TableColumn
from selectkd_eval import stats, win_rates
from selectkd_eval.errors import InputError
from selectkd_eval.verbs import TableOptions

JUDGED = (1, 4, 6)  # the tables that hold win rates
LEGEND = (
    "In parentheses: paired difference to the method without the gate, in points; ° its 95 % interval contains 0; "
    "* Holm-adjusted p < .05 within the table block, of a permutation test that swaps the two methods prompt by "
    "prompt. Bold: best student, underlined: second; equal at the printed precision ranks equal. — not measured."
)


def run(options: TableOptions) -> int | None:
    """Write one table in three formats and print its Markdown."""
    records = library(options.records)
    if options.number in JUDGED:
        records = one_protocol(records, options.protocol)
    made = [build(options.number, records, options.resamples, paper=options.paper)]
    if options.number == 5:
        made += companions(records, options.resamples)
    for table in made:
        for path in write(table, options.out):
            print(f"wrote {path}", file=sys.stderr)
    print("\n".join(map(writers.markdown, made)), end="")
    return None


def write(table: Table, out: Path) -> list[Path]:
    """The .md, .tex and .json of a table."""
    kinds = ((".md", writers.markdown), (".tex", writers.latex), (".json", writers.twin))
    return [put(out / f"{table.name}{suffix}", writer(table)) for suffix, writer in kinds]


def build(number: int, records: Library, resamples: int, *, paper: bool = False) -> Table:
    """Table `number` of the paper from these records, with `paper` beside the published numbers; an InputError when
    they hold nothing for it, or when their win rates follow several protocols.
    """
    printed = published(number) if paper else []
    builders: dict[int, Callable[[Library, int], Table]] = {
        1: win_rate_table,
        2: pass_table,
        4: lambda records, resamples: ablation_table(records, resamples, 4),
        5: lambda records, resamples: speed_table(records, resamples, printed),
        6: lambda records, resamples: ablation_table(records, resamples, 6),
    }
    if number == 3:
        raise InputError(
            "table 3 compares vision-language models, which this program does not run: ask for 1, 2, 4, 5 or 6"
        )
    if number in JUDGED and len(protocols(records)) > 1:
        records = one_protocol(records, "")
    if number not in builders:
        raise InputError(f"there is no table {number} in the paper: ask for 1, 2, 4, 5 or 6")
    return finish(builders[number](records, resamples))


def win_rate_table(records: Library, resamples: int) -> Table:
    """Table 1: win rates in percent, one column per prompt set, baseline, judge and protocol."""
    grid = _grid(records, "winrate", resamples, "table 1 needs winrate records")
    judges = sorted({_judge(column) for column in grid.columns})
    rules = sorted({win_rates.TIES[str(column.get("ties"))] for column in grid.columns})
    caption = f"Win rate in percent; judge: {'; '.join(judges)}; {'; '.join(rules)}. {_sample(grid)}"
    return _measured_table("table1", "Table 1. Win rates.", caption, grid, [*_verdict_notes(grid)])


def pass_table(records: Library, resamples: int) -> Table:
    """Table 2: pass@1 in percent, one column per task."""
    grid = _grid(records, "passk", resamples, "table 2 needs passk records")
    graders = sorted({f"{column.label}: {column.get('grader')}" for column in grid.columns if column.get("grader")})
    caption = f"pass@1 in percent. {_sample(grid)}"
    notes = [*(f"Grader of {grader}." for grader in graders), *_outcome_notes(grid)]
    return _measured_table("table2", "Table 2. pass@1.", caption, grid, notes)


def ablation_table(records: Library, resamples: int, number: int = 4) -> Table:
    """Tables 4 and 6: every trained set-up by verifier, k and beta, on whatever was measured."""
    grids = [grid for kind in ("winrate", "passk") if (grid := Grid(records, kind, resamples)).columns]
    methods = sorted(
        {m for grid in grids for m in grid.methods if m.role == "student" and m.get("verifier")},
        key=lambda method: method.order,
    )
    if not methods:
        raise InputError(
            f"table {number} needs passk or winrate records of students trained here: train and measure some"
        )
    columns = [TableColumn(label, better=None) for label in ("Verification", "k", "β")]
    columns += [
        TableColumn(grid.label(column), {"passk": "pass@1 (%)", "winrate": "Win rate (%)"}[grid.kind])
        for grid in grids
        for column in grid.columns
    ]
    rows = []
    for method in methods:
        words = [Cell(text=str(word)) for word in _gate(method)]
        cells = [_cell(grid, column, method) for grid in grids for column in grid.columns]
        rows.append(Row(records.label(method), (*words, *cells)))
    caption = f"Verifier, k and β; differences to the method without the gate. {_sample(*grids)}"
    judges = sorted({_judge(column) for grid in grids for column in grid.columns if column.kind == "winrate"})
    notes = [LEGEND, *(f"Judge: {judge}." for judge in judges), *(note for grid in grids for note in _notes(grid))]
    title = f"Table {number}. Ablation of the gate."
    return Table(f"table{number}", title, caption, tuple(columns), (Block("", tuple(rows)),), tuple(notes))


def _measured_table(name: str, title: str, caption: str, grid: Grid, notes: Iterable[str]) -> Table:
    columns = [TableColumn(grid.label(column)) for column in grid.columns]
    averaged = len(columns) > 1
    rows = []
    for method in grid.methods:
        cells = [_cell(grid, column, method) for column in grid.columns]
        if averaged:
            cells.append(_average(grid, method))
        based = any(grid.base_of(column, method) for column in grid.columns)
        label = grid.library.label(method)
        rows.append(Row(label, tuple(cells), ranked=method.role == "student", indent=based))
    if averaged:
        columns.append(TableColumn("AVG"))
    facts = {grid.label(column): dict(column.key) for column in grid.columns}
    notes = [LEGEND, *notes, *_notes(grid)]
    return Table(name, title, caption, tuple(columns), (Block("", tuple(rows)),), tuple(notes), facts=facts)


def _cell(grid: Grid, column: Column, method: Method) -> Cell:
    value = grid.estimate(column, method)
    if value is None:
        return Cell()
    base = grid.base_of(column, method)
    delta, p = (grid.delta(column, method, base) if base else None) or (None, float("nan"))
    return Cell(
        value=value.scaled(100),
        delta=delta.scaled(100) if delta else None,
        p=p,
        seeds=tuple((seed, 100 * share) for seed, share in grid.seeds(column, method)),
        records=grid.sources(column, method),
    )


def _average(grid: Grid, method: Method) -> Cell:
    value = grid.average(method)
    if value is None:
        return Cell()
    bases = {grid.base_of(column, method) for column in grid.columns}
    base = bases.pop() if len(bases) == 1 else None
    delta, p = (grid.average_delta(method, base) if base else None) or (None, float("nan"))
    names = sorted({name for column in grid.columns for name in grid.sources(column, method)})
    return Cell(value.scaled(100), "", delta.scaled(100) if delta else None, p, records=tuple(names))


def _grid(records: Library, kind: str, resamples: int, need: str) -> Grid:
    grid = Grid(records, kind, resamples)  # type: ignore[arg-type]
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


def _sample(*grids: Grid) -> str:
    """How many prompts and seeds stand behind the numbers, and how the intervals were made."""
    sizes, seeds = [], set()
    for grid in grids:
        for column in grid.columns:
            counts = sorted({len(t.prompts) for m in grid.methods if (t := grid.terms(column, m)) is not None})
            sizes.append(f"{grid.label(column)} n = {' or '.join(f'{count:,}' for count in counts)} prompts")
            seeds |= {len(grid.seeds(column, m)) for m in grid.methods if m.role == "student"} - {0}
    plural = "" if seeds == {1} else "s"
    trained = f" {' or '.join(map(str, sorted(seeds)))} training seed{plural} per student, pooled." if seeds else ""
    return (
        f"{'; '.join(sizes)}.{trained} Brackets: 95 % interval, percentile bootstrap over prompts with all seeds of "
        f"a prompt together, {grids[0].resamples:,} resamples (Wilson's where fewer than {stats.RARE} succeed, "
        "fail or differ from the rest); it holds for the students trained."
    )


def _notes(grid: Grid) -> list[str]:
    """Per-seed values, failures and refused comparisons."""
    notes = []
    for column in grid.columns:
        parts = []
        for method in grid.methods:
            seeds = grid.seeds(column, method)
            if len(seeds) > 1:
                values = ", ".join(number(100 * v, 2) for _, v in seeds)
                parts.append(f"{grid.library.label(method)} {values}{_crossed(grid, column, method)}")
        if parts:
            notes.append(
                f"Per training seed, {grid.label(column)} (brackets: prompts and seeds both resampled, the wider "
                f"interval that also covers another training): {'; '.join(parts)}."
            )
        if settled := _detectable(grid, column):
            notes.append(
                f"Smallest difference that {grid.label(column)} settles (80 % power, 5 % two-sided, one comparison): "
                f"{settled} points."
            )
    failed = {f.record.path.name: len(f.record.failed) for found in grid.found.values() for f in found}
    if total := sum(failed.values()):
        notes.append(f"{total} failed rows in {sum(map(bool, failed.values()))} records are in no number.")
    return notes + grid.notes


def _crossed(grid: Grid, column: Column, method: Method) -> str:
    value = grid.crossed(column, method)
    return f" [{number(100 * value.low, 2)}, {number(100 * value.high, 2)}]" if value else ""


def _detectable(grid: Grid, column: Column) -> str:
    """From the intervals of the column's differences, the narrowest and the widest."""
    pairs = [(method, base) for method in grid.methods if (base := grid.base_of(column, method))]
    deltas = [found[0] for method, base in pairs if (found := grid.delta(column, method, base))]
    sizes = {number(100 * stats.detectable(delta.half_width / stats.Z), 1) for delta in deltas if delta.n}
    return " to ".join(sorted({min(sizes, key=float), max(sizes, key=float)}, key=float)) if sizes else ""


def _outcome_notes(grid: Grid) -> list[str]:
    notes = []
    for column in grid.columns:
        parts = []
        for method in grid.methods:
            found = [f.record for f in grid.found.get((column, method), [])]
            if words := ", ".join(outcomes(found, str(column.get("task")))):
                parts.append(f"{grid.library.label(method)} {words}")
        if parts:
            notes.append(f"Behind {grid.label(column)}: {'; '.join(parts)}.")
    return notes


def _verdict_notes(grid: Grid) -> list[str]:
    notes = []
    for column in grid.columns:
        for method in grid.methods:
            found = grid.found.get((column, method), [])
            if not found:
                continue
            counts = win_rates.verdict_counts([row for f in found for row in f.record.rows])
            words = ", ".join(f"{count:,} {word}" for word, count in counts.items() if count)
            notes.append(f"Verdicts, {grid.library.label(method)}, {grid.label(column)}: {words}.")
    return notes
