"""What stands in one cell of Tables 1, 2, 3, 4 and 6: a number of the grid with all that is known of it.

Value, difference to the base, the standard errors that check both, seeds and records, in percent. It decides nothing
about layout and takes every number from the grid.
"""

from __future__ import annotations

from collections.abc import Sequence

from analysis.grid import Grid
from analysis.load import Method
from analysis.pass_columns import Column
from analysis.table_ir import Cell


def measured(grid: Grid, column: Column, method: Method) -> Cell:
    """A method's number in one column, with its difference to its base."""
    value = grid.estimate(column, method)
    if value is None:
        return Cell()
    base = grid.base_of(column, method)
    delta, p = (grid.delta(column, method, base) if base else None) or (None, float("nan"))
    theirs = grid.estimate(column, base) if base else None
    return Cell(
        value=value.scaled(100),
        delta=delta.scaled(100) if delta else None,
        p=p,
        seeds=tuple((seed, 100 * share) for seed, share in grid.seeds(column, method)),
        records=grid.sources(column, method),
        base=100 * theirs.value if theirs and delta else None,
        error=100 * grid.error(column, method),
        delta_error=100 * grid.delta_error(column, method, base) if base else float("nan"),
    )


def average(grid: Grid, method: Method, columns: Sequence[Column]) -> Cell:
    """A method's mean over columns, where it was measured on every one of them."""
    value = grid.average(method, columns)
    if value is None:
        return Cell()
    bases = {grid.base_of(column, method) for column in columns}
    base = bases.pop() if len(bases) == 1 else None
    delta, p = (grid.average_delta(method, base, columns) if base else None) or (None, float("nan"))
    theirs = grid.average(base, columns) if base else None
    names = sorted({name for column in columns for name in grid.sources(column, method)})
    return Cell(
        value=value.scaled(100),
        delta=delta.scaled(100) if delta else None,
        p=p,
        records=tuple(names),
        base=100 * theirs.value if theirs and delta else None,
    )
