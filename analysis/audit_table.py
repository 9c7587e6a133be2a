"""What does a results table print, digit by digit?

Reads a table that somebody published, as CSV, for the verb `audit`. A printed number stands for an interval: 59.72 is
anything that rounds to it. So cells stay exact fractions with their count of decimals, never floats. Two layouts are
read: one row per method with a column per benchmark, and one row per method and benchmark. Nothing is judged here.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from selectkd_eval.errors import InputError

NAMES = ("method", "model", "system", "name")
BASES = ("base_method", "base")
TASKS = ("task", "benchmark", "dataset")
# Numbers that say how something was run, never what came out.
SETTINGS = {
    *("k", "beta", "alpha", "gamma", "tau", "temperature", "top_p", "lr", "learning_rate", "seed", "seeds", "n"),
    *("steps", "epochs", "batch_size", "shots", "samples", "rank", "lora_rank", "params", "size"),
}
# What tables of speculative decoding call their columns, without case and separators. In these a cost is a setting
# too, and `tau` and `alpha` are results.
SPEEDS = {"speedup", "speedups", "walltimespeedup"}
GAMMAS = {"gamma", "draftlength", "numdrafttokens", "speculativetokens"}
COSTS = {"c", "cost", "costratio", "costcoefficient"}
TOKENS_PER_CALL = {
    *("tokens", "tau", "mat", "tokenspertargetcall", "tokenspercall", "tokensperstep", "blockefficiency"),
    *("meanacceptedtokens", "meanacceptancelength", "acceptancelength", "acceptlength"),
}
TESTED, DRAFTED = "accepted / tested", "accepted / drafted"
ACCEPTANCES = {
    TESTED: {"acceptedtested", "alpha", "conditionalacceptance"},
    DRAFTED: {"accepteddrafted", "draftacceptance", "draftacceptancerate"},
}
ACCEPTANCE = {"acceptance", "acceptancerate", "acpt"}  # of a column that does not say which
MOST_DIGITS = 9
_NUMBER = re.compile(r"[-+]?\d+(?:\.(\d+))?")
_MISSING = {"", "-", "–", "—", "n/a", "na", "nan", "none", "null"}
_AVERAGE = re.compile(r"(avg|average|mean)(?![a-z])")
_DELTA = re.compile(r"^(?:delta|diff|gain)[_ ](.+)$|^(.+)[_ ](?:delta|diff|gain)$")


class Line(NamedTuple):
    """A row of the table. `block` groups the rows that are compared; `cells` holds what is printed, by column, and
    `settings` the numbers that say how the row was made.
    """

    block: str
    method: str
    base: str
    detail: str
    cells: Mapping[str, Fraction]
    settings: Mapping[str, Fraction] = MappingProxyType({})

    @property
    def label(self) -> str:
        """Every word that names the row."""
        return ", ".join(filter(None, (self.block, self.method, self.detail)))


@dataclass(frozen=True)
class Printed:
    """A table as it was printed.

    `columns` are results, averages among them; `deltas` maps a column of differences to the results it is about;
    `digits` counts the decimals of a column, settings too.
    """

    path: Path
    lines: tuple[Line, ...]
    columns: tuple[str, ...]
    averages: tuple[str, ...]
    deltas: Mapping[str, str]
    digits: Mapping[str, int]

    @property
    def results(self) -> tuple[str, ...]:
        """The columns that are no average of others."""
        return tuple(column for column in self.columns if column not in self.averages)

    def half(self, column: str) -> Fraction:
        """Half a unit of the last printed decimal: how far the true number can lie from the printed one."""
        return Fraction(1, 2 * 10 ** self.digits[column])

    def text(self, column: str, value: Fraction) -> str:
        """A number of this column as it is printed."""
        return decimal(value, self.digits[column])

    def base_of(self, line: Line) -> Line | None:
        """The row that a row names as its base, in its own block."""
        found = [other for other in self.lines if other.block == line.block and other.method == line.base]
        return found[0] if line.base and len(found) == 1 else None

    def percent(self, column: str) -> bool | None:
        """Is the column in percent (True) or a share (False)? None when it is no rate at all."""
        values = [line.cells[column] for line in self.lines if column in line.cells]
        if not values or min(values) < 0 or max(values) > 100:
            return None
        return max(values) > 1


def decimal(value: Fraction, digits: int) -> str:
    """An exact number with a fixed count of decimals; halves go to the even digit, as Python rounds."""
    scaled = round(abs(value) * 10**digits)
    text = str(scaled).rjust(digits + 1, "0")
    sign = "-" if value < 0 and scaled else ""
    return sign + (f"{text[:-digits]}.{text[-digits:]}" if digits else text)


def plain(name: str) -> str:
    """A column's name without case and separators: `Evol-Instruct`, `evol_instruct` and `EvolInstruct` are one."""
    return re.sub(r"[^a-z0-9+]", "", name.lower())


def read_csv(path: Path, digits: int | None = None) -> Printed:
    """A CSV of results; an InputError in one sentence when it is none.

    `digits` is the count of decimals that was printed, for files that lost their trailing zeros; otherwise a column
    has as many as its longest cell.
    """
    heads, records = _records(path)
    name = _find(heads, NAMES)
    if name is None:
        raise InputError(
            f"{path} has no column 'method' (found: {', '.join(heads)}): name the column of row labels 'method'"
        )
    base, numeric = _find(heads, BASES), _numeric(path, heads, records, name)
    task = _find(heads, TASKS)
    words = [head for head in heads if head not in (name, base, *numeric)]
    how = _settings(numeric)
    measured = [head for head in numeric if plain(head) not in how]
    if not measured:
        raise InputError(f"{path} has no column of results (found: {', '.join(heads)}): an audit needs numbers")
    long = task in words and len(measured) == 1
    words = [word for word in words if not (long and word == task)]
    settings = [head for head in numeric if head not in measured]
    before = heads.index(name)
    cells: dict[tuple[str, str, str, str], dict[str, str]] = {}
    said: dict[tuple[str, str, str, str], dict[str, str]] = {}
    for number, record in records:
        block = ", ".join(record[word] for word in words if heads.index(word) < before and record[word])
        facts = [f"{record[head]}" if head in words else f"{head} {record[head]}" for head in heads
                 if record[head] and ((head in words and heads.index(head) > before) or head in settings)]  # fmt: skip
        key = (block, record[name], record[base] if base else "", ", ".join(facts))
        here = {record[task]: record[measured[0]]} if long and task else {head: record[head] for head in measured}
        held = cells.setdefault(key, {})
        if twice := [column for column in here if column in held]:
            label = ", ".join(filter(None, key[:2]))
            raise InputError(f"{path}, line {number}: {label} has {twice[0]} a second time: keep one of the two rows")
        held.update(here)
        said[key] = {head: record[head] for head in settings}
    return _printed(path, cells, said, digits)


def _settings(numeric: Sequence[str]) -> set[str]:
    """Plain names of the columns that are settings in a table with these columns of numbers."""
    names = {plain(setting) for setting in SETTINGS}
    if not any(plain(head) in SPEEDS for head in numeric):
        return names
    return (names - TOKENS_PER_CALL - {"alpha"}) | GAMMAS | COSTS


def _records(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Heads, and every row with its line number."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; give a CSV or the .json of `table`") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no CSV in UTF-8 ({error}): save the table as one") from None
    if len(rows) < 2:
        raise InputError(f"{path} holds {len(rows)} lines: an audit needs a line of column names and rows below it")
    heads = rows[0][1]
    if len(set(heads)) < len(heads) or "" in heads:
        raise InputError(f"{path} needs a different name over every column, but its first line is: {', '.join(heads)}")
    for number, row in rows[1:]:
        if len(row) != len(heads):
            raise InputError(
                f"{path}, line {number} has {len(row)} cells under {len(heads)} column names: "
                "quote cells that hold a comma"
            )
    return heads, [(number, dict(zip(heads, row, strict=True))) for number, row in rows[1:]]


def _numeric(path: Path, heads: Sequence[str], records: Sequence[tuple[int, dict[str, str]]], name: str) -> list[str]:
    """Columns of numbers. One word among many numbers is a slip of the pen and an error, not a column of words."""
    numeric = []
    for head in heads:
        cells = [(number, record[head]) for number, record in records if record[head].lower() not in _MISSING]
        good = [cell for _, cell in cells if _cleaned(cell) is not None]
        if head == name or 2 * len(good) <= len(cells):
            continue
        for number, cell in cells:
            if _cleaned(cell) is None:
                raise InputError(
                    f"{path}, line {number}: {head} holds {cell!r}, which is no number: write one like 59.72"
                )
        numeric.append(head)
    return numeric


def _cleaned(cell: str) -> str | None:
    """The digits of a cell, or None: `+2.23`, `(+2.23)`, `59.72 %`, `1.97x` and `−0.10` are numbers."""
    text = cell.strip().strip("()").rstrip("%×x ").lstrip("×").replace("−", "-")
    return text if _NUMBER.fullmatch(text) else None


def _printed(
    path: Path,
    cells: Mapping[tuple[str, str, str, str], Mapping[str, str]],
    said: Mapping[tuple[str, str, str, str], Mapping[str, str]],
    digits: int | None,
) -> Printed:
    """The table from its cells' texts, `said` those of the settings."""
    names = list(dict.fromkeys(column for held in cells.values() for column in held))
    places: dict[str, int] = {}
    settled: dict[str, int] = {}
    lines = []
    for (block, method, base, detail), held in cells.items():
        numbers = {}
        for column, cell in held.items():
            if (text := _cleaned(cell)) is None:
                continue
            found = _NUMBER.fullmatch(text)
            places[column] = max(places.get(column, 0), len(found[1] or "") if found else 0)
            numbers[column] = Fraction(text)
        how = {head: text for head, cell in said[block, method, base, detail].items() if (text := _cleaned(cell))}
        for head, text in how.items():
            settled[head] = max(settled.get(head, 0), len(text.partition(".")[2]))
        numbered = {head: Fraction(text) for head, text in how.items()}
        lines.append(Line(block, method, base, detail, numbers, numbered))
    for column, count in places.items():
        if count > (MOST_DIGITS if digits is None else digits):
            limit = f"--digits {digits}" if digits is not None else f"at most {MOST_DIGITS}"
            raise InputError(
                f"{path}: {column} is printed with {count} decimals, but {limit} can be read: round it there"
            )
    names = [name for name in names if name in places]
    deltas = {}
    for column in names:
        if (found := _DELTA.match(column)) and (about := found[1] or found[2]) in names:
            deltas[column] = about
    results = tuple(name for name in names if name not in deltas)
    return Printed(
        path,
        tuple(lines),
        results,
        tuple(name for name in results if _AVERAGE.match(name.lower()) and plain(name) not in TOKENS_PER_CALL),
        deltas,
        {name: places[name] if digits is None else digits for name in names} | settled,
    )


def _find(heads: Sequence[str], wanted: Sequence[str]) -> str | None:
    return next((head for name in wanted for head in heads if head.lower() == name), None)
