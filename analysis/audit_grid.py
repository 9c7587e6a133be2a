"""Do a table's rates lie on the rounding grid that its number of prompts and a rule of counting allow?

The paper's Table 1 has the same 218 prompts in every Evol-Instruct cell. Under one rule of counting all of them lie on
one grid, whichever method was measured. Here is counted how many do, rows that name a base method ("+ SelecTKD")
apart from the others, and how many would if printed values were spread evenly: exact binomial p-values, Fisher's
between the groups, Holm over all of them. An inference about rounding grids is no proof of how anything was measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from analysis.audit_lattice import Grid, grids, nearest, on_grid, reachable
from analysis.audit_section import Section, Settings, p_text, short
from analysis.audit_table import (
    ACCEPTANCE,
    ACCEPTANCES,
    DRAFTED,
    SPEEDS,
    TESTED,
    TOKENS_PER_CALL,
    Line,
    Printed,
    plain,
)
from analysis.table_ir import MISSING
from selectkd_eval.stats import holm

# Prompts of known test sets, by plain column name. MBPP: its test split, the sanitised set, MBPP+ v0.2.0.
JUDGED: dict[str, tuple[int, ...]] = {
    "alpacaeval": (805,),
    "alpacaeval1": (805,),
    "alpacaeval2": (805,),
    "evolinstruct": (218,),
    "evol": (218,),
    "ultrafeedback": (2000,),
}
GRADED: dict[str, tuple[int, ...]] = {
    "gsm8k": (1319,),
    "math": (5000, 500),
    "math500": (500,),
    "humaneval": (164,),
    "humaneval+": (164,),
    "mbpp": (500, 427, 378),
    "mbpp+": (378,),
}
# Ratios of seconds and of tokens, not of prompts.
TOKENS = {*SPEEDS, *TOKENS_PER_CALL, *ACCEPTANCE, *ACCEPTANCES[TESTED], *ACCEPTANCES[DRAFTED], "tar"}
SILENT = 0.95  # from this share of printable values on, a grid says nothing: it is left out before any value is seen
LEVEL = 0.05
LISTED = 12  # values off a grid that are spelled out

CAUTION = (
    "This is an inference about rounding grids, not proof: a value off a grid only says that it is no correctly "
    "rounded rate of that rule with exactly that n. Dropped verdicts, another prompt set, more samples, averaging or "
    "a slip of the pen take a value off its grid too, and rows that share prompts or baselines are not independent."
)
CHANCE = (
    "In brackets: how many to expect by chance, the reachable share of printable values times the rows. p: exact "
    "binomial of so many or more, or so many or fewer, doubled; differ: Fisher's exact test between the two groups; "
    "Holm over all {count} tests of this file."
)
_MISSING = float("nan")


class Group(NamedTuple):
    """Rows that are counted together; only `tested` groups get a p-value, the others are parts of them."""

    name: str
    lines: tuple[Line, ...]
    tested: bool


class Fit(NamedTuple):
    """How many values of one group in one column lie on one grid; `p_holm` is adjusted over the whole table."""

    column: str
    grid: Grid
    group: Group
    share: float
    on: int
    of: int
    p: float
    p_holm: float = _MISSING

    @property
    def expected(self) -> float:
        return self.share * self.of


class Tried(NamedTuple):
    """One column on one grid: a fit per group, and whether the two tested groups differ."""

    column: str
    grid: Grid
    fits: tuple[Fit, ...]
    p: float
    p_holm: float = _MISSING

    @property
    def tested(self) -> list[Fit]:
        return [fit for fit in self.fits if fit.group.tested]


def sizes_of(column: str, settings: Settings) -> tuple[int, ...]:
    """Numbers of prompts a column may have: those given, else those of the test set it is named after."""
    name = plain(column)
    return settings.sizes.get(name) or JUDGED.get(name) or GRADED.get(name) or ()


def groups(table: Printed) -> list[Group]:
    """Rows without and with a base method, and of the former teacher and student before training."""
    with_base = tuple(line for line in table.lines if line.base)
    without = tuple(line for line in table.lines if not line.base)
    found = [Group("no base" if with_base else "all rows", without, True), Group("with base", with_base, True)]
    found += [
        Group(name, tuple(line for line in without if line.method.lower().startswith(name)), False)
        for name in ("teacher", "student before")
    ]
    return [group for group in found if group.lines]


def fit(table: Printed, column: str, grid: Grid, group: Group) -> Fit:
    """Values on the grid, and how surprising so many (or so few) are if printed values were spread evenly."""
    from scipy.stats import binom

    percent, digits = table.percent(column) is not False, table.digits[column]
    values = [line.cells[column] for line in group.lines if column in line.cells]
    on = sum(on_grid(value, grid, digits, percent) for value in values)
    share = reachable(grid, digits, percent)
    p = _MISSING
    if group.tested and values and share < 1:
        more = on >= share * len(values)
        p = float(min(1.0, 2 * (binom.sf(on - 1, len(values), share) if more else binom.cdf(on, len(values), share))))
    return Fit(column, grid, group, share, on, len(values), p)


def tries(table: Printed, settings: Settings) -> tuple[list[Tried], list[tuple[str, Grid, float]]]:
    """Every column on every grid that can say something, and the grids that cannot, with their reachable share."""
    from scipy.stats import fisher_exact

    tried, silent = [], []
    for column in table.results:
        percent = table.percent(column)
        if percent is None or not sizes_of(column, settings):
            continue
        judged = plain(column) not in GRADED
        for grid in grids(settings.protocol, sizes_of(column, settings), settings.seeds, judged):
            share = reachable(grid, table.digits[column], percent)
            if not share < SILENT:
                silent.append((column, grid, share))
                continue
            fits = tuple(fit(table, column, grid, group) for group in groups(table))
            counts = [[found.on, found.of - found.on] for found in fits if found.group.tested and found.of]
            p = float(fisher_exact(np.array(counts)).pvalue) if len(counts) == 2 else _MISSING
            tried.append(Tried(column, grid, fits, p))
    return _adjusted(tried), silent


def _adjusted(tried: list[Tried]) -> list[Tried]:
    """Holm over every binomial and every Fisher test of the table."""
    holms = iter(holm([p for line in tried for p in (*(found.p for found in line.fits), line.p)]))
    return [
        line._replace(fits=tuple(found._replace(p_holm=next(holms)) for found in line.fits), p_holm=next(holms))
        for line in tried
    ]


def rounding_grid(table: Printed, settings: Settings) -> list[Section]:
    """What fits every column and group best, then every grid of every column, and what that can and cannot mean."""
    rates = [column for column in table.results if table.percent(column) is not None and plain(column) not in TOKENS]
    if not rates:
        return []
    tried, silent = tries(table, settings)
    unknown = [column for column in rates if not sizes_of(column, settings)]
    missing = [f"No known number of prompts for {', '.join(unknown)}: give --n '{unknown[0]}=N'."] if unknown else []
    if not tried and not silent:
        return [Section("Rounding grid", (), tuple(missing))]
    sections = [_section(table, column, settings, tried, silent) for column in rates if sizes_of(column, settings)]
    tests = sum(not math.isnan(p) for line in tried for p in (*(found.p for found in line.fits), line.p))
    closing = [CHANCE.format(count=tests)] if tests else []
    best = Section("Rounding grid: what fits best", _best_rows(tried), (*closing, CAUTION, *missing), (0, 1, 2, 3))
    return [best, *sections]


def _best(tried: Iterable[Tried], column: str, group: str) -> Fit | None:
    """The grid on which a group lies more often than by chance, with the smallest adjusted p below 5 %."""
    found = [
        fit
        for line in tried
        for fit in line.tested
        if fit.column == column and fit.group.name == group and fit.on > fit.expected and fit.p_holm < LEVEL
    ]
    return min(found, key=lambda fit: (fit.p_holm, fit.p), default=None)


def _best_rows(tried: list[Tried]) -> tuple[tuple[str, ...], ...]:
    rows: list[tuple[str, ...]] = [("column", "rows", "best grid", "rule", "on it", "by chance", "Holm p")]
    kinds = dict.fromkeys((fit.column, fit.group.name) for line in tried for fit in line.tested if fit.of)
    for column, group in kinds:
        fit = _best(tried, column, group)
        if fit is None:
            rows.append((short(column), group, "none", "on no grid more often than by chance", *[MISSING] * 3))
        else:
            count = f"{fit.on} of {fit.of}"
            words = f"{fit.grid.words}, n = {fit.grid.n:,}"
            rows.append((short(column), group, fit.grid.name, words, count, f"{fit.expected:.1f}", p_text(fit.p_holm)))
    return tuple(rows) if len(rows) > 1 else ()


def _section(
    table: Printed, column: str, settings: Settings, tried: list[Tried], silent: list[tuple[str, Grid, float]]
) -> Section:
    """One column: a line per grid, then its sentences."""
    mine = [line for line in tried if line.column == column]
    sizes = " or ".join(f"{n:,}" for n in sizes_of(column, settings))
    rows = []
    for line in mine:
        row = [line.grid.name, line.grid.words, f"{100 * line.fits[0].share:.1f} %"]
        for found in line.tested:
            row += [f"{found.on}/{found.of} ({found.expected:.1f})" if found.of else MISSING, p_text(found.p_holm)]
        rows.append((*row, p_text(line.p_holm)) if len(line.tested) == 2 else tuple(row))
    if rows:
        heads = [word for found in mine[0].tested for word in (found.group.name, "p")]
        differ = ["differ p"] if len(mine[0].tested) == 2 else []
        rows.insert(0, ("grid", "rule", "reachable", *heads, *differ))
    sentences = [said for group in groups(table) for said in _fitting(table, _best(mine, column, group.name), mine)]
    mute = [(grid, share) for name, grid, share in silent if name == column and share >= SILENT]
    if mute:
        least = min(share for _, share in mute)
        most = "all" if least == 1 else f"at least {math.floor(1000 * least) / 10} % of all"
        sentences.append(
            f"Not counted, because {most} printable values "
            f"can be reached and the grid says nothing: {'; '.join(f'{grid.words} ({grid.name})' for grid, _ in mute)}."
        )
    uncounted = [grid.name for name, grid, share in silent if name == column and math.isnan(share)]
    if uncounted:
        sentences.append(f"Too many digits or prompts to list every fraction: {', '.join(uncounted)} not looked at.")
    return Section(f"Rounding grid: {column}, n = {sizes}", tuple(rows), tuple(sentences), (0, 1))


def _fitting(table: Printed, best: Fit | None, mine: list[Tried]) -> Iterator[str]:
    """What lies on and off the best grid of a group, and whether the other group shares it."""
    if best is None:
        return
    line = next(line for line in mine if line.grid == best.grid)
    parts = [f"{fit.group.name} {fit.on}/{fit.of}" for fit in line.fits if not fit.group.tested and fit.of]
    among = f" (among them {', '.join(parts)})" if parts and best.group.name != "with base" else ""
    off = _off(table, best)
    yield f"{best.group.name} on {best.grid.name}: {best.on} of {best.of}{among}." + (
        f" Not on it: {off}." if off else ""
    )
    if line.p_holm < LEVEL:
        counts = " against ".join(f"{fit.on} of {fit.of} {fit.group.name}" for fit in line.tested)
        yield (
            f"The groups differ on {best.grid.name}: {counts} (Holm p {p_text(line.p_holm)}). Counted by one rule "
            f"on the same {best.grid.n:,} prompts, all would lie on one grid; means over more seeds or samples, and "
            "rules that can reach nearly any value, stay open for the others."
        )


def _off(table: Printed, found: Fit) -> str:
    """The values that are no rounded rate of the grid, each with the nearest one."""
    column, percent, digits = found.column, table.percent(found.column) is not False, table.digits[found.column]
    cells = [line.cells[column] for line in found.group.lines if column in line.cells]
    values = [value for value in cells if not on_grid(value, found.grid, digits, percent)]
    words = [_near(table, found, value) for value in values[:LISTED]]
    return ", ".join(words) + (f" and {len(values) - LISTED} more" if len(values) > LISTED else "")


def _near(table: Printed, found: Fit, value: Fraction) -> str:
    printed, grid, digits = table.text(found.column, value), found.grid, table.digits[found.column]
    if grid.rule.open:
        return printed
    rate, k = min(nearest(value, grid, table.percent(found.column) is not False), key=lambda near: abs(near[0] - value))
    cut = ", cut off" if int(rate * 10**digits) == value * 10**digits else ""
    return f"{printed} ({k}/{grid.most} = {float(rate):.{digits + 1}f}{cut})"
