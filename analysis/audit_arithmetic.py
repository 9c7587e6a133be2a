"""Do the averages and the differences of a printed table follow from its other numbers?

The paper's Table 1 prints an average and four differences beside every method with SelecTKD. Each printed number
stands for the closed interval of what rounds to it, so that a half may have gone either way. A sum fails only when no
choice of true numbers within these intervals makes it right. A failure says that the numbers do not belong together,
not which of them is wrong.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

from analysis.audit_section import Section, Settings
from analysis.audit_table import Printed, decimal

MOST = 40  # failures that are listed


class Sum(NamedTuple):
    """One recomputed number: what is printed, what the other cells give, and how far rounding can explain.

    `own` is half a unit of the printed number, `allowed` that plus what the other cells' rounding can add.
    """

    kind: str
    where: str
    column: str
    printed: Fraction
    recomputed: Fraction
    own: Fraction
    allowed: Fraction

    @property
    def apart(self) -> Fraction:
        return abs(self.printed - self.recomputed)

    @property
    def exact(self) -> bool:
        """Right when computed from the printed numbers, a half rounded either way."""
        return self.apart <= self.own

    @property
    def fails(self) -> bool:
        return self.apart > self.allowed


def averages(table: Printed) -> list[Sum]:
    """Every average of two or more cells: their mean lies within half a unit of the mean of the printed ones."""
    sums = []
    for column in table.averages:
        for line in table.lines:
            parts = [name for name in table.results if name in line.cells]
            if column not in line.cells or len(parts) < 2:
                continue
            mean = sum((line.cells[name] for name in parts), Fraction(0)) / len(parts)
            slack = sum((table.half(name) for name in parts), Fraction(0)) / len(parts)
            own = table.half(column)
            sums.append(Sum("average", line.label, column, line.cells[column], mean, own, own + slack))
    return sums


def differences(table: Printed) -> list[Sum]:
    """Every printed difference: the row's value less its base's, each within half a unit."""
    sums = []
    for delta, column in table.deltas.items():
        for line in table.lines:
            base = table.base_of(line)
            if base is None or not {delta, column} <= line.cells.keys() or column not in base.cells:
                continue
            own = table.half(delta)
            found = line.cells[column] - base.cells[column]
            allowed = own + 2 * table.half(column)
            sums.append(Sum("difference", line.label, delta, line.cells[delta], found, own, allowed))
    return sums


def arithmetic(table: Printed, settings: Settings) -> list[Section]:
    """How many averages and differences were recomputed, and every one that rounding cannot explain."""
    del settings
    kinds = {"averages": averages(table), "differences": differences(table)}
    unbased = sorted({line.label for line in table.lines if line.base and table.base_of(line) is None})
    if not any(kinds.values()) and not unbased:
        return []
    rows: list[tuple[str, ...]] = [("", "recomputed", "from the printed digits", "within rounding", "fail")]
    rows += [(kind, str(len(sums)), *(str(count) for count in _counts(sums))) for kind, sums in kinds.items() if sums]
    failed = [found for sums in kinds.values() for found in sums if found.fails]
    sentences = [_said(table, found) for found in failed[:MOST]]
    if len(failed) > MOST:
        sentences.append(f"{len(failed) - MOST} more fail.")
    if not failed and any(kinds.values()):
        sentences.append("Every recomputed number is what the printed ones give.")
    sentences += [f"{label} names a base method that its block does not hold exactly once." for label in unbased]
    return [Section("Arithmetic", tuple(rows) if len(rows) > 1 else (), tuple(sentences))]


def _counts(sums: list[Sum]) -> tuple[int, int, int]:
    exact = sum(found.exact for found in sums)
    failing = sum(found.fails for found in sums)
    return exact, len(sums) - exact - failing, failing


def _said(table: Printed, found: Sum) -> str:
    digits = table.digits[found.column]
    return (
        f"{found.where}: {found.column} is printed as {decimal(found.printed, digits)}, but its cells give "
        f"{decimal(found.recomputed, digits + 2)}; rounding explains at most {float(found.allowed):.3g} of the "
        f"{float(found.apart):.3g} between them."
    )
