"""What must be said below Tables 1, 2, 3, 4 and 6 so that their numbers are not misread?

How large the sample is and how the intervals were made; what all rows say together; the values of single seeds; what
a column can settle; whether two ways to the same error agree; what was left out or not compared. Sentences only: the
numbers are the grid's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from analysis import aggregate
from analysis.grid import Grid
from analysis.load import Method
from analysis.pass_columns import Column, outcomes
from analysis.table_ir import number, signed
from selectkd_eval import stats, win_rates
from selectkd_eval.records import Record, imported

LEGEND = (
    "In parentheses: paired difference to the method without the gate, in points; ° its 95 % interval contains 0; "
    "* Holm-adjusted p < .05 within the table block, of a permutation test that swaps the two methods prompt by "
    "prompt. Bold: best student, underlined: second; equal at the printed precision ranks equal. — not measured."
)
Name = Callable[[Method], str]
_LISTED = 4  # numbers that a warning names one by one


def sample(*grids: Grid) -> str:
    """How many prompts and training seeds stand behind the numbers."""
    sizes, seeds = [], set()
    for grid in grids:
        for column in grid.columns:
            counts = sorted({len(t.prompts) for m in grid.methods if (t := grid.terms(column, m)) is not None})
            sizes.append(f"{grid.label(column)} n = {' or '.join(f'{count:,}' for count in counts)} prompts")
            seeds |= {len(grid.seeds(column, m)) for m in grid.methods if m.role == "student"} - {0}
    plural = "" if seeds == {1} else "s"
    trained = f" {' or '.join(map(str, sorted(seeds)))} training seed{plural} per student, pooled." if seeds else ""
    return f"{'; '.join(sizes)}.{trained}"


def intervals(resamples: int) -> str:
    """How the intervals were made."""
    return (
        f"95 % interval, percentile bootstrap over prompts with all seeds of a prompt together, {resamples:,} "
        f"resamples (Wilson's where fewer than {stats.RARE} succeed, fail or differ from the rest); it holds for the "
        "students trained."
    )


def notes(grids: Sequence[Grid], name: Name) -> list[str]:
    """All rows together, seeds, what is settled, the cross-check, failures and refused comparisons."""
    made = all_rows(grids)
    for grid in grids:
        for column in grid.columns:
            made += _by_column(grid, column, name)
    made += cross_check(grids, name)
    made += imports(f.record for grid in grids for found in grid.found.values() for f in found)
    failed = {
        f.record.path.name: len(f.record.failed) for grid in grids for found in grid.found.values() for f in found
    }
    if total := sum(failed.values()):
        made.append(f"{total} failed rows in {sum(map(bool, failed.values()))} records are in no number.")
    return made + [note for grid in grids for note in grid.notes]


def imports(records: Iterable[Record]) -> list[str]:
    """Which records were not measured here, a line for each foreign file."""
    named = {record.path.name: imported(record.facts) for record in records}
    return [f"Not measured here: {name} was imported from {words}." for name, words in sorted(named.items()) if words]


def all_rows(grids: Sequence[Grid]) -> list[str]:
    """The mean difference of gate and base over every row and column, in one sentence; nothing of a single one."""
    methods = sorted({method for grid in grids for method in grid.methods}, key=lambda method: method.order)
    found = aggregate.overall(aggregate.contrasts(grids, methods), grids[0].resamples if grids else 0)
    if found is None:
        return []
    value, low, high = (signed(100 * one, 2) for one in (found.value, found.low, found.high))
    return [
        f"All rows: over {found.differences} differences of a gate and its base the mean is {value} points "
        f"[{low}, {high}], p = {p_value(found.p)} (bootstrap over prompts that all rows share)."
    ]


def p_value(p: float) -> str:
    """A p-value with as many decimals as it needs, without the zero before them."""
    return f"{p:.3f}".lstrip("0") if p >= 0.0095 else f"{p:.1g}" if p >= 1e-4 else f"{p:.0e}"


def _by_column(grid: Grid, column: Column, name: Name) -> list[str]:
    made, parts = [], []
    for method in grid.methods:
        seeds = grid.seeds(column, method)
        if len(seeds) > 1:
            values = ", ".join(number(100 * v, 2) for _, v in seeds)
            parts.append(f"{name(method)} {values}{_crossed(grid, column, method)}")
    if parts:
        made.append(
            f"Per training seed, {grid.label(column)} (brackets: prompts and seeds both resampled, the wider "
            f"interval that also covers another training): {'; '.join(parts)}."
        )
    if settled := _detectable(grid, column):
        made.append(
            f"Smallest difference that {grid.label(column)} settles (80 % power, 5 % two-sided, one comparison): "
            f"{settled} points."
        )
    return made


def _crossed(grid: Grid, column: Column, method: Method) -> str:
    value = grid.crossed(column, method)
    return f" [{number(100 * value.low, 2)}, {number(100 * value.high, 2)}]" if value else ""


def _detectable(grid: Grid, column: Column) -> str:
    """From the intervals of the column's differences, the narrowest and the widest."""
    pairs = [(method, base) for method in grid.methods if (base := grid.base_of(column, method))]
    deltas = [found[0] for method, base in pairs if (found := grid.delta(column, method, base))]
    sizes = {number(100 * stats.detectable(delta.half_width / stats.Z), 1) for delta in deltas if delta.n}
    return " to ".join(sorted({min(sizes, key=float), max(sizes, key=float)}, key=float)) if sizes else ""


def cross_check(grids: Sequence[Grid], name: Name) -> list[str]:
    """Where a bootstrap interval and 1.96 cluster-robust standard errors differ by more than `stats.APART`."""
    apart = []
    for grid in grids:
        for column in grid.columns:
            for method in grid.methods:
                where = f"{name(method)} on {grid.label(column)}"
                value = grid.estimate(column, method)
                if value and (why := stats.disagreement(value, grid.error(column, method))):
                    apart.append(f"{where}: {why}")
                base = grid.base_of(column, method)
                found = grid.delta(column, method, base) if base else None
                if base and found and (why := stats.disagreement(found[0], grid.delta_error(column, method, base))):
                    apart.append(f"difference of {where}: {why}")
    rest = f"; and {len(apart) - _LISTED} more" if len(apart) > _LISTED else ""
    return [f"Cross-check (in shares, not points): {'; '.join(apart[:_LISTED])}{rest}."] if apart else []


def outcome_notes(grid: Grid, name: Name) -> list[str]:
    """What stands behind pass rates: answers cut short, timeouts, the other mode."""
    made = []
    for column in grid.columns:
        parts = []
        for method in grid.methods:
            found = [f.record for f in grid.found.get((column, method), [])]
            if words := ", ".join(outcomes(found, str(column.get("task")))):
                parts.append(f"{name(method)} {words}")
        if parts:
            made.append(f"Behind {grid.label(column)}: {'; '.join(parts)}.")
    return made


def verdict_notes(grid: Grid, name: Name) -> list[str]:
    """How many verdicts of each kind stand behind the win rates, a line per column."""
    made = []
    for column in grid.columns:
        parts = []
        for method in grid.methods:
            if found := grid.found.get((column, method), []):
                counts = win_rates.verdict_counts([row for f in found for row in f.record.rows])
                words = ", ".join(f"{count:,} {word}" for word, count in counts.items() if count)
                parts.append(f"{name(method)} {words}")
        if parts:
            made.append(f"Verdicts, {grid.label(column)}: {'; '.join(parts)}.")
    return made
