"""What could differences of this size mean, and which numbers stand twice?

Two checks of the paper's tables beside sums and rounding grids. Power: the smallest paired difference that so many
prompts can tell from none, against the differences claimed. Repeats: equal numbers in rows that were measured apart.
Nothing here knows how a number was made; every sentence says what it supposes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

from analysis.audit_grid import TOKENS, sizes_of
from analysis.audit_section import Section, Settings, short
from analysis.audit_table import Line, Printed, plain
from selectkd_eval.stats import detectable

MOST = 20  # repeats that are listed


def claimed(table: Printed, column: str) -> list[Fraction]:
    """The difference of every row to its base: the printed one, else that of the two printed values."""
    printed = next((delta for delta, about in table.deltas.items() if about == column), "")
    found = []
    for line in table.lines:
        base = table.base_of(line)
        if printed in line.cells:
            found.append(line.cells[printed])
        elif base is not None and column in line.cells and column in base.cells:
            found.append(line.cells[column] - base.cells[column])
    return found


def power(table: Printed, settings: Settings) -> list[Section]:
    """The smallest difference that n prompts tell apart, and how many claimed differences are smaller."""
    rows = []
    for column in table.columns:
        deltas = claimed(table, column)
        if not deltas:
            continue
        scale = 100 if table.percent(column) else 1
        for words, variance in _variances(table, column, settings):
            row = [
                short(column, 24),
                words,
                str(len(deltas)),
                f"{float(min(deltas)):+.2f}",
                f"{float(max(deltas)):+.2f}",
            ]
            for seeds in settings.seeds:
                least = scale * detectable(settings.sd * math.sqrt(variance / seeds))
                row += [f"{least:.1f}", f"{sum(abs(delta) < least for delta in deltas)} of {len(deltas)}"]
            rows.append(tuple(row))
    if not rows:
        return []
    heads = ["column", "prompts", "deltas", "smallest", "largest"]
    for seeds in settings.seeds:
        heads += [f"detectable, {seeds} seed{'s' if seeds > 1 else ''}", "below it"]
    sentences = [
        f"Detectable: the difference of two methods on the same prompts that a two-sided 5 % test finds with 80 % "
        f"power, for a standard deviation of {settings.sd:g} of the prompt-by-prompt difference (ten AlpacaEval pairs: "
        ".32 to .52). A smaller difference may be real, but this many prompts would mostly miss it.",
    ]
    if max(settings.seeds) > 1:
        sentences.append(
            "More than one seed is taken at its best, as if every seed drew new noise on every prompt; prompts that "
            "are hard for one method in every seed bring the figure back towards that of one seed."
        )
    return [Section("Power", (tuple(heads), *rows), (*sentences, *_signs(table)))]


def _variances(table: Printed, column: str, settings: Settings) -> Iterator[tuple[str, float]]:
    """Variance of a mean difference per unit variance of a prompt's: 1 / n, or that of an average of benchmarks."""
    if column not in table.averages:
        yield from ((f"{n:,}", 1 / n) for n in sizes_of(column, settings))
        return
    kinds = {tuple(name for name in table.results if name in line.cells) for line in table.lines if line.base}
    for names in sorted(kinds):
        sizes = [sizes_of(name, settings) for name in names]
        if len(kinds) == 1 and names and all(len(size) == 1 for size in sizes):
            yield "+".join(str(n) for (n,) in sizes), sum(1 / n for (n,) in sizes) / len(sizes) ** 2


def _signs(table: Printed) -> Iterator[str]:
    deltas = [delta for column in table.results for delta in claimed(table, column)]
    above = sum(delta > 0 for delta in deltas)
    if deltas:
        yield (
            f"{above} of {len(deltas)} benchmark differences are above 0. They share prompts and teachers, "
            f"so they are not {len(deltas)} tosses of a coin"
            + (f", and no p of 2^-{len(deltas)} follows from it." if above == len(deltas) else ".")
        )


def repeats(table: Printed, settings: Settings) -> list[Section]:
    """Every number that stands in one column more than once, one method in several blocks first."""
    del settings
    found: list[tuple[bool, str, Fraction, list[Line]]] = []
    expected = 0.0
    for column in table.results:
        held: dict[Fraction, list[Line]] = defaultdict(list)
        for line in table.lines:
            if column in line.cells:
                held[line.cells[column]].append(line)
        expected += _by_chance(table, column, held)
        for value, lines in held.items():
            if len(lines) > 1:
                same = len({line.method for line in lines}) < len(lines)
                found.append((same, column, value, lines))
    if not table.results or len(table.lines) < 2:
        return []
    pairs = sum(math.comb(len(lines), 2) for *_, lines in found)
    found.sort(key=lambda item: not item[0])
    sentences = [_repeated(table, *item) for item in found[:MOST]]
    if len(found) > MOST:
        sentences.append(f"{len(found) - MOST} more numbers stand twice.")
    sentences += _whole_rows(table)
    sentences.append(
        f"{pairs} pair{'' if pairs == 1 else 's'} of equal numbers within a column; {expected:.1f} if values were "
        "spread evenly between the "
        "smallest and the largest of their column"
        + (". Chance, a shared source and a copied cell look alike here." if pairs else ".")
    )
    return [Section("Repeats", (), tuple(sentences))]


def _by_chance(table: Printed, column: str, held: Mapping[Fraction, Sequence[Line]]) -> float:
    """Expected pairs of equal numbers, for as many rows, evenly spread over the printable values of their range."""
    if not held:
        return 0.0
    printable = (max(held) - min(held)) * 10 ** table.digits[column] + 1
    return math.comb(sum(map(len, held.values())), 2) / float(printable)


def _repeated(table: Printed, same: bool, column: str, value: Fraction, lines: Sequence[Line]) -> str:
    what = "one method in several blocks" if same else "different rows"
    return f"{column} {table.text(column, value)}, {what}: {'; '.join(line.label for line in lines)}."


def _whole_rows(table: Printed) -> Iterator[str]:
    """Rows with two or more results, all of them equal."""
    held: dict[tuple[tuple[str, Fraction], ...], list[Line]] = defaultdict(list)
    for line in table.lines:
        cells = tuple((column, line.cells[column]) for column in table.results if column in line.cells)
        if len(cells) > 1:
            held[cells].append(line)
    for cells, lines in held.items():
        if len(lines) > 1:
            yield f"All {len(cells)} results are equal in: {'; '.join(line.label for line in lines)}."


def across(tables: Sequence[Printed]) -> list[Section]:
    """Rows of several tables with the same words: do they print the same results?"""
    held: dict[tuple[str, ...], list[tuple[Printed, Fraction]]] = defaultdict(list)
    for table in tables:
        for line in table.lines:
            for column in table.columns:
                if column in line.cells and plain(column) not in TOKENS:
                    held[line.block, line.method, line.base, line.detail, column].append((table, line.cells[column]))
    shared = {key: found for key, found in held.items() if len({table.path for table, _ in found}) > 1}
    if not shared:
        return []
    sentences = []
    for (block, method, _, detail, column), found in shared.items():
        if len({value for _, value in found}) > 1:
            label = ", ".join(filter(None, (block, method, detail)))
            words = "; ".join(f"{table.text(column, value)} in {table.path.name}" for table, value in found)
            sentences.append(f"{label}, {column}: {words}.")
    count = len(shared) - len(sentences)
    return [Section("Across tables", (), (f"{count} of {len(shared)} shared numbers are equal.", *sentences[:MOST]))]
