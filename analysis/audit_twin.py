"""Does one of our own tables follow from its own numbers?

`table` writes a JSON twin beside every Markdown table: each cell in full precision, with its interval, its seeds, its
difference and p-values. So differences, averages, Holm's adjustment and the marks of best and second are computed
again from the numbers beside them, rates are held against whole counts, and speed-ups against what their acceptance
and draft length allow. Records are not read: whether a number
follows from its record is for `table` itself to say.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from analysis.audit_section import Section
from analysis.audit_table import ACCEPTANCES, DRAFTED, SPEEDS, TESTED, TOKENS_PER_CALL, plain
from selectkd_eval.errors import InputError
from selectkd_eval.stats import holm

NEAR = 1e-9  # in the units of the table: floats that say the same number
DIGITS = (2, 3)  # decimals that `table` prints: of percentages and ratios, of shares of tokens
VERDICTS = 4  # most half verdicts of a prompt and seed: two orders, half a win for a tie
MOST = 20
DECODE_ONLY = {"decodeonly", "speedupdecodeonly", "decodeonlyspeedup", "decode"}
_LENGTH = re.compile(r"(?:γ|gamma) = (\d{1,4})\b")

Cell = Mapping[str, Any]


@dataclass(frozen=True)
class Twin:
    """A JSON twin: `blocks` are rows of (label, ranked, cells by column), and each has a title."""

    path: Path
    title: str
    columns: tuple[str, ...]
    better: Mapping[str, str | None]
    blocks: tuple[tuple[tuple[str, bool, Mapping[str, Cell]], ...], ...]
    titles: tuple[str, ...]


@dataclass(frozen=True)
class Check:
    """One kind of check: how many numbers were computed again, and a sentence for each that came out otherwise."""

    name: str
    count: int
    failures: tuple[str, ...]


def read(path: Path) -> Twin:
    """A twin from its file; an InputError says which part of a table is missing."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; give a CSV or the .json of `table`") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON in UTF-8 ({error}): give the .json that `table` wrote") from None
    try:
        columns = [": ".join(filter(None, (column["group"], column["label"]))) for column in content["columns"]]
        blocks = tuple(
            tuple((str(row["label"]), bool(row["ranked"]), _cells(columns, row["cells"])) for row in block["rows"])
            for block in content["blocks"]
        )
        better = {name: column["better"] for name, column in zip(columns, content["columns"], strict=True)}
        titles = tuple(str(block["title"]) for block in content["blocks"])
        return Twin(path, str(content["title"]), tuple(columns), better, blocks, titles)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} is JSON but no table of ours ({type(error).__name__}: {error}): give the .json that `table` wrote"
        ) from None


def _cells(columns: Sequence[str], cells: Sequence[Any]) -> dict[str, Cell]:
    """The numbers of a row; words and missing values are left out. Raises on a cell that is no number of ours.

    A number may have no interval, as a predicted one has none: then both its ends are missing.
    """
    found = {}
    for column, cell in zip(columns, cells, strict=True):
        if cell is None or "text" in cell:
            continue
        for part in filter(None, (cell["value"], cell.get("delta"))):
            ends = ("low", "high") if (part["low"], part["high"]) != (None, None) else ()
            if not all(isinstance(part[name], int | float) for name in ("value", *ends, "n")):
                raise ValueError(f"a cell of {column} lacks a number")
        found[column] = cell
    return found


def sections(twin: Twin) -> list[Section]:
    """Every check that this table gives something to, as one section."""
    checks = [made for check in CHECKS if (made := check(twin)).count]
    if not checks:
        return []
    rows = [("", "computed again", "as in the table", "otherwise")]
    rows += [
        (check.name, str(check.count), str(check.count - len(check.failures)), str(len(check.failures)))
        for check in checks
    ]
    failures = [failure for check in checks for failure in check.failures]
    sentences = failures[:MOST] + ([f"{len(failures) - MOST} more."] if len(failures) > MOST else [])
    closing = () if failures else ("Every number follows from those beside it.",)
    return [Section("Own table", tuple(rows), (*sentences, *closing))]


def differences(twin: Twin) -> Check:
    """A cell's difference is its value less that of its base, in full precision; a ratio its value over that.

    The base is the row whose label this one adds a gate to. Where there is none without a difference of its own
    ("SpecKD" is KD with a gate), any row without one may be it.
    """
    count, failures = 0, []
    for label, column, cell, bases in _differing(twin):
        count += 1
        delta = cell["delta"]["value"]
        value, others = cell["value"]["value"], [base["value"]["value"] for base in bases]
        ratio = bool(cell.get("ratio"))
        found = [value / other if ratio else value - other for other in others if other or not ratio]
        if any(abs(one - delta) <= NEAR for one in found):
            continue
        words = f"its value and its base's give {found[0]:.6f}" if len(found) == 1 else "no row of its block gives it"
        failures.append(f"{label}, {column}: the {'ratio' if ratio else 'difference'} is {delta:.6f}, but {words}.")
    return Check("differences and ratios", count, tuple(failures))


def averages(twin: Twin) -> Check:
    """AVG, and its difference, is the mean over the other columns, and missing unless all of them are there."""
    count, failures = 0, []
    others = [column for column in twin.columns if column != "AVG"]
    for label, _, cells in (row for block in twin.blocks for row in block):
        for part in ("value", "delta"):
            if "AVG" not in cells or cells["AVG"].get(part) is None:
                continue
            count += 1
            parts = [cells[column][part]["value"] for column in others if cells.get(column, {}).get(part)]
            mean = math.fsum(parts) / len(others)
            printed = cells["AVG"][part]["value"]
            if len(parts) < len(others) or abs(mean - printed) > NEAR:
                failures.append(
                    f"{label}, AVG: the {part} is {printed:.6f}, but {len(parts)} of {len(others)} columns "
                    f"give {mean:.6f}."
                )
    return Check("averages", count, tuple(failures))


def intervals(twin: Twin) -> Check:
    """An interval holds its value, and stands on at least one prompt."""
    count, failures = 0, []
    for label, column, cell in _numbers(twin):
        for name, part in (("value", cell["value"]), ("difference", cell.get("delta"))):
            if part is None or part["low"] is None:
                continue
            count += 1
            if not part["low"] - NEAR <= part["value"] <= part["high"] + NEAR or part["n"] < 1:
                failures.append(
                    f"{label}, {column}: the {name} {part['value']:.4f} does not lie in its interval "
                    f"[{part['low']:.4f}, {part['high']:.4f}] over n = {part['n']}."
                )
    return Check("intervals", count, tuple(failures))


def counts(twin: Twin) -> Check:
    """A rate is a ratio of whole counts with no larger denominator than its prompts, seeds and orders allow."""
    count, failures = 0, []
    for label, column, cell in _numbers(twin):
        if column == "AVG" or not _is_rate(twin, column):
            continue
        n, seeds = cell["value"]["n"], cell.get("seeds") or []
        rates = [("the value", cell["value"]["value"], VERDICTS * n * max(1, len(seeds)))]
        rates += [(f"seed {seed['seed']}", seed["value"], VERDICTS * n) for seed in seeds]
        for name, value, most in rates:
            count += 1
            share = Fraction(value) / 100
            if abs(share.limit_denominator(max(1, most)) - share) > Fraction(1, 10**12):
                failures.append(f"{label}, {column}: {name}, {value!r}, is no ratio of counts up to {most:,}.")
    return Check("ratios of counts", count, tuple(failures))


def adjusted(twin: Twin) -> Check:
    """Holm's p-values follow from the raw ones of their block."""
    count, failures = 0, []
    for block in twin.blocks:
        cells = [(label, column, cell) for label, _, row in block for column, cell in row.items()]
        tested = [(label, column, cell) for label, column, cell in cells if cell.get("p") is not None]
        for (label, column, cell), p in zip(tested, holm([cell["p"] for *_, cell in tested]), strict=True):
            count += 1
            if cell.get("p_holm") is None or abs(p - cell["p_holm"]) > NEAR:
                failures.append(f"{label}, {column}: Holm's p is {cell.get('p_holm')}, but the block gives {p:.6g}.")
    return Check("Holm's p-values", count, tuple(failures))


def marks(twin: Twin) -> Check:
    """Best and second are those of the ranked rows; what prints alike ranks alike."""
    count, failures = 0, []
    for block in twin.blocks:
        for column in twin.columns:
            ranked = [(label, row[column]) for label, ranked, row in block if ranked and column in row]
            if len(ranked) < 2 or twin.better[column] is None:
                continue
            count += 1
            said = {mark: {label for label, cell in ranked if cell.get(mark)} for mark in ("best", "second")}
            if not any(said == _ranks(ranked, twin.better[column] == "higher", digits) for digits in DIGITS):
                words = "; ".join(f"{mark} {', '.join(sorted(labels)) or 'none'}" for mark, labels in said.items())
                failures.append(f"{column}: its values do not give the marks {words}.")
    return Check("marks of best and second", count, tuple(failures))


def drafting(twin: Twin) -> Check:
    """Speed-ups, tokens per target call and both acceptances of one draft keep within each other's limits.

    These hold in every run whose counts are sums over the same calls, however acceptance is spread. A speed-up is
    timed, so its interval counts; a task's own has no tokens beside it and is left out.
    """
    count, failures = 0, []
    for title, rows in zip(twin.titles, twin.blocks, strict=True):
        length = _LENGTH.search(title)
        for label, _, cells in rows:
            named = {plain(column): cell["value"] for column, cell in cells.items()}
            for what, fits in _limits(named, int(length[1]) if length else None):
                count += 1
                if not fits:
                    failures.append(f"{label}, {title}: {what}.")
    return Check("limits of drafting", count, tuple(failures))


def _limits(named: Mapping[str, Mapping[str, float]], gamma: int | None) -> Iterator[tuple[str, bool]]:
    """What would be wrong in a row, and whether the row is right; only of what stands in it."""

    def first(names: Iterable[str]) -> Mapping[str, float] | None:
        return next((named[name] for name in names if name in named), None)

    tested, drafted = first(ACCEPTANCES[TESTED]), first(ACCEPTANCES[DRAFTED])
    if tested and drafted:
        words = f"{DRAFTED} is {drafted['value']:.4f}, more than {TESTED}, {tested['value']:.4f}"
        yield words, drafted["value"] <= tested["value"] + NEAR
    tokens = first(TOKENS_PER_CALL)
    if tokens is None:
        return
    said = f"{tokens['value']:.4f} tokens per target call"
    for name in (*SPEEDS, *DECODE_ONLY):
        if name in named and named[name]["low"] is not None:
            words = f"a speed-up of {named[name]['value']:.3f} is more than {said}"
            yield words, named[name]["low"] <= tokens["value"] + NEAR
    if gamma is not None:
        yield f"{said} are more than γ + 1 = {gamma + 1}", tokens["value"] <= gamma + 1 + NEAR
    if gamma is not None and drafted:
        most = 1 + gamma * drafted["value"]
        yield f"{said} are more than {most:.4f}, which {DRAFTED} allows", tokens["value"] <= most + NEAR
    if tested and tested["value"] < 1:
        most = 1 / (1 - tested["value"])
        yield f"{said} are more than {most:.4f}, which {TESTED} allows", tokens["value"] <= most * (1 + NEAR)


def _ranks(ranked: Sequence[tuple[str, Cell]], higher: bool, digits: int) -> dict[str, set[str]]:
    printed = {label: round(cell["value"]["value"], digits) for label, cell in ranked}
    order = sorted(set(printed.values()), reverse=higher)
    return {
        mark: {label for label, value in printed.items() if len(order) > place and value == order[place]}
        for place, mark in enumerate(("best", "second"))
    }


def _is_rate(twin: Twin, column: str) -> bool:
    """Win rates and pass@1 are counts over prompts; speed-ups and acceptances are not."""
    return twin.path.stem in ("table1", "table2") or column.startswith(("Win rate (%)", "pass@1 (%)"))


def _numbers(twin: Twin) -> Iterator[tuple[str, str, Cell]]:
    for block in twin.blocks:
        for label, _, cells in block:
            for column, cell in cells.items():
                yield label, column, cell


def _differing(twin: Twin) -> Iterator[tuple[str, str, Cell, list[Cell]]]:
    """Every cell with a difference, and the cells of the same block and column that may be its base's."""
    for block in twin.blocks:
        for label, column, cell in ((label, column, cell) for label, _, row in block for column, cell in row.items()):
            if cell.get("delta") is None:
                continue
            plain = {name: row[column] for name, _, row in block if column in row and row[column].get("delta") is None}
            named = [name for name in plain if label.startswith(f"{name} + ")]
            yield label, column, cell, [plain[max(named, key=len)]] if named else list(plain.values())


CHECKS: tuple[Callable[[Twin], Check], ...] = (differences, averages, intervals, counts, adjusted, marks, drafting)
