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
Ci = Literal["inline", "row", "none"]  # intervals behind the number, in a row below it, or in the JSON alone
_LISTED = 6  # cells that a note names one by one


class Span(NamedTuple):
    """A piece of a cell's text and how it is set."""

    text: str
    style: Style = "plain"


@dataclass(frozen=True)
class Cell:
    """One entry: a number in display units, or a word. An empty cell is a missing value.

    `ratio` says that the delta is a ratio to the base's number, not a difference. `base` is that number, `error` and
    `delta_error` are cluster-robust standard errors of value and delta; all three are for notes and the JSON twin.
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
    base: float | None = None
    error: float = float("nan")
    delta_error: float = float("nan")

    @property
    def present(self) -> bool:
        return self.value is not None and not math.isnan(self.value.value)

    @property
    def printed(self) -> str:
        """The number as it is printed: ties for best are decided on this."""
        assert self.value is not None
        return f"{self.prefix}{number(self.value.value, self.digits)}"

    @property
    def emphasis(self) -> Style:
        """How the number itself is set."""
        return "best" if self.best else "second" if self.second else "plain"

    def spans(self, intervals: bool = True) -> list[Span]:
        """The cell's text, piece by piece; the number first."""
        if self.text or not self.present:
            return [Span(self.text or MISSING)]
        assert self.value is not None
        spans = [Span(self.printed, self.emphasis)]
        if self.delta is not None and not math.isnan(self.delta.value):
            unsure = not self.delta.excludes(1 if self.ratio else 0)
            value = self.delta.value
            told = f"×{number(value, self.digits)}" if self.ratio else signed(value, self.digits)
            spans.append(Span(f" ({told})", "unsure" if unsure else "delta"))
            if unsure or self.p_holm < 0.05:
                spans.append(Span(UNSURE if unsure else HOLDS, "mark"))
        if intervals and self.value.spread:
            spans.append(Span(interval(self.value, self.interval_digits), "interval"))
        return spans

    def below(self) -> list[Span]:
        """What stands in the row of intervals: the number's, and in parentheses that of its difference."""
        if self.text or not self.present or self.value is None:
            return []
        words = interval(self.value, self.interval_digits) if self.value.spread else ""
        if self.delta is not None and self.delta.spread:
            words += f" ({interval(self.delta, self.interval_digits)})"
        return [Span(words.strip(), "interval")] if words else []


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

    @property
    def spread(self) -> bool:
        """Whether a number of the row has an interval."""
        return any(cell.below() for cell in self.cells)


@dataclass(frozen=True)
class Block:
    """Rows that are compared with each other."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Table:
    """A table ready to be written: `caption` is one paragraph, `notes` are short lines below.

    `intervals` says in words how the intervals were made; where they stand is the writer's to say.
    """

    name: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    blocks: tuple[Block, ...]
    notes: tuple[str, ...] = ()
    stub: str = "Method"
    facts: dict[str, Any] = field(default_factory=dict)
    intervals: str = ""

    def told(self, ci: Ci = "inline") -> str:
        """The caption with the sentence about intervals that fits where they stand."""
        where = {
            "inline": "Brackets: ",
            "row": "Below each number, and in parentheses below its difference: ",
            "none": "In the JSON twin alone: ",
        }[ci]
        return f"{self.caption} {where}{self.intervals}" if self.intervals else self.caption


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


def difference(estimate: Estimate, digits: int) -> str:
    """A difference with its 95 % interval, every number with its sign."""
    low, high = signed(estimate.low, digits), signed(estimate.high, digits)
    return f"{signed(estimate.value, digits)} [{low}, {high}]"


def verdict(estimate: Estimate, null: float, words: tuple[str, str, str]) -> str:
    """Above, below or not settled: the interval decides, never the value alone."""
    if not estimate.excludes(null):
        return words[2]
    return words[0] if estimate.low > null else words[1]


def finish(table: Table) -> Table:
    """Mark best and second and adjust p-values, block by block; the family of Holm is the block. Where rounding makes
    the printed numbers differ by something else than the printed difference, a note says so.
    """
    blocks = tuple(_finish_block(block, table.columns) for block in table.blocks)
    return dataclasses.replace(table, blocks=blocks, notes=(*table.notes, *_rounding(blocks, table.columns)))


def _rounding(blocks: tuple[Block, ...], columns: tuple[Column, ...]) -> list[str]:
    """One note that names the differences which the printed numbers do not give."""
    found = [
        f"{row.label}, {column.label}: {number(cell.value.value, cell.digits)} less {number(cell.base, cell.digits)}, "
        f"printed {signed(cell.delta.value, cell.digits)}"
        for block in blocks
        for row in block.rows
        for column, cell in zip(columns, row.cells, strict=True)
        if cell.present and cell.value and cell.delta and not cell.ratio and cell.base is not None
        if not math.isnan(cell.delta.value) and _apart(cell.value.value, cell.base, cell.delta.value, cell.digits)
    ]
    if not found:
        return []
    rest = f"; and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return [
        "Differences are rounded after they are taken, so some are not those of the printed numbers: "
        f"{'; '.join(found[:_LISTED])}{rest}."
    ]


def _apart(value: float, base: float, delta: float, digits: int) -> bool:
    shown = round(value, digits) - round(base, digits)
    return abs(shown - round(delta, digits)) > 0.5 * 10.0**-digits


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
