"""What is in a table, before anyone asks in which format?

A table is blocks of rows of cells. Here is decided what a reader sees beside a number: its difference to the base
method, its interval, whether it is the best of its block, and which differences survive Holm's adjustment. The
writers only spell it; they decide nothing.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from selectkd_eval.stats import Estimate, holm

MISSING = "—"
UNSURE = "°"  # the interval of the difference contains 0, that of the ratio 1
HOLDS = "*"  # Holm-adjusted p < .05
Style = Literal["plain", "best", "second", "delta", "unsure", "mark", "interval"]


class Span(NamedTuple):
    """A piece of a cell's text and how it is set."""

    text: str
    style: Style = "plain"


@dataclass(frozen=True)
class Cell:
    """One entry: a number in display units, or a word. An empty cell is a missing value.

    `ratio` says that the delta is a ratio to the base's number, not a difference.
    """

    value: Estimate | None = None
    text: str = ""
    delta: Estimate | None = None
    p: float = float("nan")
    p_holm: float = float("nan")
    digits: int = 2
    interval_digits: int = 1
    prefix: str = ""
    ratio: bool = False
    best: bool = False
    second: bool = False
    seeds: tuple[tuple[int | None, float], ...] = ()
    records: tuple[str, ...] = ()

    @property
    def present(self) -> bool:
        return self.value is not None and not math.isnan(self.value.value)

    @property
    def printed(self) -> str:
        """The number as it is printed: ties for best are decided on this."""
        assert self.value is not None
        return f"{self.prefix}{number(self.value.value, self.digits)}"

    def spans(self) -> list[Span]:
        """The cell's text, piece by piece."""
        if self.text or not self.present:
            return [Span(self.text or MISSING)]
        assert self.value is not None
        spans = [Span(self.printed, "best" if self.best else "second" if self.second else "plain")]
        if self.delta is not None and not math.isnan(self.delta.value):
            unsure = not self.delta.excludes(1 if self.ratio else 0)
            value = self.delta.value
            told = f"×{number(value, self.digits)}" if self.ratio else signed(value, self.digits)
            spans.append(Span(f" ({told})", "unsure" if unsure else "delta"))
            if unsure or self.p_holm < 0.05:
                spans.append(Span(UNSURE if unsure else HOLDS, "mark"))
        if self.value.spread:
            spans.append(Span(interval(self.value, self.interval_digits), "interval"))
        return spans


@dataclass(frozen=True)
class Column:
    """A column of numbers (`better` says which end is good) or of words (`better` None)."""

    label: str
    group: str = ""
    better: Literal["higher", "lower"] | None = "higher"


@dataclass(frozen=True)
class Row:
    """A labelled row. Only `ranked` rows compete for best: the teacher does not."""

    label: str
    cells: tuple[Cell, ...]
    ranked: bool = True
    indent: bool = False


@dataclass(frozen=True)
class Block:
    """Rows that are compared with each other."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Table:
    """A table ready to be written: `caption` is one paragraph, `notes` are short lines below."""

    name: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    blocks: tuple[Block, ...]
    notes: tuple[str, ...] = ()
    stub: str = "Method"
    facts: dict[str, Any] = field(default_factory=dict)


def number(value: float, digits: int) -> str:
    """A number with a fixed count of decimals and a true minus sign; never "-0.00"."""
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def signed(value: float, digits: int) -> str:
    """A number that always shows its sign, except when it rounds to 0."""
    text = number(value, digits)
    return text if text.startswith("−") or float(text) == 0 else f"+{text}"


def interval(estimate: Estimate, digits: int) -> str:
    """The 95 % interval in brackets."""
    return f"[{number(estimate.low, digits)}, {number(estimate.high, digits)}]"


def verdict(estimate: Estimate, null: float, words: tuple[str, str, str]) -> str:
    """Above, below or not settled: the interval decides, never the value alone."""
    if not estimate.excludes(null):
        return words[2]
    return words[0] if estimate.low > null else words[1]


def finish(table: Table) -> Table:
    """Mark best and second and adjust p-values, block by block; the family of Holm is the block."""
    return dataclasses.replace(table, blocks=tuple(_finish_block(block, table.columns) for block in table.blocks))


def _finish_block(block: Block, columns: tuple[Column, ...]) -> Block:
    adjusted = iter(holm([cell.p for row in block.rows for cell in row.cells]))
    rows = [[dataclasses.replace(cell, p_holm=next(adjusted)) for cell in row.cells] for row in block.rows]
    for index, column in enumerate(columns):
        if column.better is None:
            continue
        competing = [i for i, row in enumerate(block.rows) if row.ranked and row.cells[index].present]
        if len(competing) < 2:
            continue
        # Ties at printed precision share the rank: a difference nobody can see must not decide.
        sign = -1 if column.better == "higher" else 1
        ranks = sorted({sign * _printed(rows[i][index]) for i in competing})
        for i in competing:
            place = ranks.index(sign * _printed(rows[i][index]))
            rows[i][index] = dataclasses.replace(rows[i][index], best=place == 0, second=place == 1)
    return Block(
        block.title,
        tuple(dataclasses.replace(row, cells=tuple(cells)) for row, cells in zip(block.rows, rows, strict=True)),
    )


def _printed(cell: Cell) -> float:
    assert cell.value is not None
    return round(cell.value.value, cell.digits)
