"""Can these speed-ups of speculative decoding be what they are said to be?

Four checks of a table like the paper's Table 5, which prints a speed-up and an acceptance beside each other and says
neither the draft length nor what the acceptance counts. Ceiling: the most that this acceptance allows. Ratio: the most
that a change of acceptance explains between two drafts. Calls: tokens per target call against acceptance and draft
length. Cost: what a drafted token must have cost. Acceptance is read both ways that are in use, accepted / tested
(Leviathan et al. 2023) and accepted / drafted, and each number at whatever it can stand for, its rounding included.
Findings are questions: nothing here knows how a number was made, and every sentence says what it supposes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

from analysis.audit_section import Section, Settings, short
from analysis.audit_table import (
    ACCEPTANCE,
    ACCEPTANCES,
    COSTS,
    DRAFTED,
    GAMMAS,
    SPEEDS,
    TESTED,
    TOKENS_PER_CALL,
    Line,
    Printed,
    decimal,
    plain,
)
from analysis.table_ir import MISSING

LONGEST = 100  # tokens per draft: a larger number in a column of that name is something else


class Band(NamedTuple):
    """A printed number and the least and the most that is printed so."""

    low: Fraction
    value: Fraction
    high: Fraction


class Drafting(NamedTuple):
    """One row: its speed-up, and what else the table prints of it. `acceptance` is by definition, both for a number
    whose column says neither; `group` are the rows of one target, draft and setting.
    """

    line: Line
    group: tuple[str, ...]
    speed: Band
    acceptance: Mapping[str, Band]
    tokens: Band | None
    gamma: int | None
    cost: Band | None

    def beside(self, first: Drafting) -> str:
        """This row against the first of its group, in words."""
        same = self.line.method == first.line.method
        names = [one.line.detail if same and one.line.detail else one.line.method for one in (first, self)]
        where = ", ".join(filter(None, self.group))
        return f"{where}: {names[0]} to {names[1]}".removeprefix(": ")


def draftings(table: Printed) -> list[Drafting]:
    """Every row with a speed-up; none for a table of something else."""
    speed = _column(table, SPEEDS)
    if speed is None:
        return []
    tokens, unnamed = _column(table, TOKENS_PER_CALL), _column(table, ACCEPTANCE)
    columns = {name: _column(table, names) for name, names in ACCEPTANCES.items()}
    if not any(columns.values()):
        columns = dict.fromkeys(ACCEPTANCES, unnamed)
    found = []
    for line in table.lines:
        rate = _band(table, line, speed)
        if rate is None or rate.low <= 0:
            continue
        shares = {name: share for name, column in columns.items() if (share := _share(table, line, column))}
        gamma = next((value for name, value in line.settings.items() if plain(name) in GAMMAS), None)
        whole = int(gamma) if gamma and gamma.denominator == 1 and 1 <= gamma <= LONGEST else None
        costs = [Band(value - half, value, value + half) for value, half in _costs(table, line)]
        settings = [f"{name} {value}" for name, value in line.settings.items() if plain(name) not in COSTS]
        group = (line.block, *settings)
        found.append(Drafting(line, group, rate, shares, _band(table, line, tokens), whole, next(iter(costs), None)))
    return found


def _column(table: Printed, names: Iterable[str]) -> str | None:
    return next((name for name in table.columns if plain(name) in names), None)


def _band(table: Printed, line: Line, column: str | None) -> Band | None:
    if column is None or column not in line.cells:
        return None
    value, half = line.cells[column], table.half(column)
    return Band(value - half, value, value + half)


def _share(table: Printed, line: Line, column: str | None) -> Band | None:
    """An acceptance as a share of 1, whether it is printed so or in percent."""
    band = _band(table, line, column)
    if band is None or column is None:
        return None
    scale = 100 if table.percent(column) else 1
    low, value, high = (part / scale for part in band)
    return Band(max(low, Fraction(0)), value, min(high, Fraction(1))) if 0 <= value <= 1 else None


def _costs(table: Printed, line: Line) -> Iterator[tuple[Fraction, Fraction]]:
    """The printed cost of a draft call in target calls, and half a unit of its last decimal."""
    for name, value in line.settings.items():
        if plain(name) in COSTS and value >= 0:
            yield value, table.half(name)


def tokens_per_call(acceptance: Fraction, gamma: int, definition: str) -> Fraction:
    """Expected tokens of a target call that verifies `gamma` drafted ones: Leviathan et al., eq. 1, for accepted /
    tested, where every position is accepted with one probability; 1 + gamma x acceptance for accepted / drafted.
    """
    if definition == TESTED:
        return sum((acceptance**place for place in range(gamma + 1)), Fraction(0))
    return 1 + gamma * acceptance


def most_ratio(old: Fraction, new: Fraction, gamma: int | None, definition: str) -> Fraction | None:
    """The most by which tokens per call can grow when acceptance goes from `old` to `new`: at `gamma`, or at whichever
    draft length gives most. None where there is no limit.
    """
    shortest = (1 + new) / (1 + old)
    if gamma is not None:
        return tokens_per_call(new, gamma, definition) / tokens_per_call(old, gamma, definition)
    if definition == TESTED:
        return max(shortest, (1 - old) / (1 - new)) if new < 1 else None
    return max(shortest, new / old) if old > 0 else None


def ceiling(table: Printed, settings: Settings) -> list[Section]:
    """Speed-ups against 1 / (1 - acceptance), the most tokens per target call where acceptance is accepted / tested."""
    del settings
    rows: list[tuple[str, ...]] = [("row", "speed-up", "acceptance", "ceiling", "")]
    above = 0
    for one in draftings(table):
        share = one.acceptance.get(TESTED)
        if share is None:
            continue
        # The largest acceptance that prints so, against the smallest speed-up that prints so.
        over = share.high < 1 and one.speed.low > 1 / (1 - share.high)
        above += over
        limit = decimal(1 / (1 - share.value), 3) if share.value < 1 else MISSING
        texts = (_text(table, one.line, SPEEDS), _text(table, one.line, ACCEPTANCE | ACCEPTANCES[TESTED]))
        rows.append((short(one.line.label, 60), *texts, limit, "above" if over else ""))
    if len(rows) == 1:
        return []
    sentence = (
        f"{above} of {len(rows) - 1} speed-ups lie above 1 / (1 - acceptance), whatever the rounding. That is the most "
        "tokens per target call of any run whose acceptance is accepted / tested, at any draft length and even if "
        "drafting costs nothing"
        + ("; is the acceptance something else there, such as accepted / drafted?" if above else ".")
    )
    return [Section("Ceiling of the speed-up", tuple(rows), (sentence,), (0, 4))]


def ratios(table: Printed, settings: Settings) -> list[Section]:
    """Every row's speed-up over that of its block's first row, against what the change of acceptance can explain."""
    del settings
    rows: list[tuple[str, ...]] = [("rows", "speed-up ratio", TESTED, DRAFTED, "")]
    above, lengths = 0, set()
    for group in _groups(draftings(table)):
        first = group[0]
        for one in group[1:]:
            least = one.speed.low / first.speed.high
            limits, texts = [], []
            for definition in ACCEPTANCES:
                old, new = first.acceptance.get(definition), one.acceptance.get(definition)
                if old is None or new is None:
                    texts.append(MISSING)
                    continue
                limits.append(most_ratio(old.low, new.high, one.gamma, definition))
                texts.append(_decimal(most_ratio(old.value, new.value, one.gamma, definition)))
            if not limits:
                continue
            over = all(limit is not None and least > limit for limit in limits)
            above += over
            lengths.add(one.gamma)
            flag = ("above both" if len(limits) > 1 else "above") if over else ""
            rows.append((short(one.beside(first), 60), _decimal(one.speed.value / first.speed.value), *texts, flag))
    if len(rows) == 1:
        return []
    length = "the draft length that explains most" if lengths == {None} else "their draft length where it is printed"
    sentences = (
        f"{above} of {len(rows) - 1} speed-ups grow by more than the change of acceptance explains at {length}, "
        "whatever the rounding"
        + ("; did draft length or cost differ between the rows, or was something else timed?" if above else "."),
        "Supposed: one draft length and one cost of a call in both rows, so that costs cancel and speed-ups are to "
        "each other as tokens per target call; batch 1; text that stays the target's own; one probability at every "
        f"position, independently, for {TESTED}, and all of the draft length drafted in every call for {DRAFTED}.",
    )
    title = "Largest ratio that acceptance explains at a fixed draft length"
    return [Section(title, tuple(rows), sentences, (0, 4))]


def calls(table: Printed, settings: Settings) -> list[Section]:
    """Tokens per target call, where they are printed, against the speed-up, the draft length and the acceptance."""
    del settings
    rows: list[tuple[str, ...]] = [("row", "speed-up", "tokens", "γ + 1", TESTED, DRAFTED, "")]
    odd = 0
    for one in draftings(table):
        if one.tokens is None:
            continue
        limits = {name: _most_tokens(one, name, high=True) for name in one.acceptance}
        flags = ["speed-up > tokens"] if one.speed.low > one.tokens.high else []
        if one.gamma is not None and one.tokens.low > one.gamma + 1:
            flags.append("tokens > γ + 1")
        if limits and all(limit is not None and one.tokens.low > limit for limit in limits.values()):
            flags.append("tokens > acceptance")
        odd += bool(flags)
        texts = [_decimal(_most_tokens(one, name, high=False)) for name in ACCEPTANCES]
        longest = str(one.gamma + 1) if one.gamma is not None else MISSING
        printed = (_text(table, one.line, SPEEDS), _text(table, one.line, TOKENS_PER_CALL))
        rows.append((short(one.line.label, 40), *printed, longest, *texts, ", ".join(flags)))
    if len(rows) == 1:
        return []
    sentences = (
        f"{odd} of {len(rows) - 1} rows exceed a limit, whatever the rounding"
        + ("; what was counted there, and over which calls?" if odd else "."),
        "Tokens per target call, the target's own token of each call among them, are at most γ + 1. In any run whose "
        f"counts are sums over the same calls they are at most 1 / (1 - acceptance) for {TESTED} and 1 + γ × "
        f"acceptance for {DRAFTED}. And no speed-up is larger, unless verifying takes less time than plain decoding.",
    )
    return [Section("Tokens per target call", tuple(rows), sentences, (0, 6))]


def _most_tokens(one: Drafting, definition: str, *, high: bool) -> Fraction | None:
    """The most tokens per call of any run with this acceptance; it supposes nothing of how acceptance is spread."""
    share = one.acceptance.get(definition)
    if share is None:
        return None
    value = share.high if high else share.value
    if definition == TESTED:
        return 1 / (1 - value) if value < 1 else None
    return 1 + one.gamma * value if one.gamma is not None else None


def costs(table: Printed, settings: Settings) -> list[Section]:
    """What a drafted token must have cost, in target calls, for the printed speed-up at the printed draft length."""
    del settings
    heads = (TESTED, DRAFTED, "tokens")
    rows: list[tuple[str, ...]] = [("row", "γ", *heads, "printed c", "")]
    odd = 0
    spreads: dict[tuple[str, ...], dict[str, list[Fraction]]] = defaultdict(lambda: defaultdict(list))
    for one in draftings(table):
        if one.gamma is None or not (readings := _readings(one, one.gamma)):
            continue
        implied = {name: (band.value / one.speed.value - 1) / one.gamma for name, band in readings.items()}
        # Printed tokens are what acceptance only tells indirectly.
        bands = [readings["tokens"]] if "tokens" in readings else list(readings.values())
        most = max((band.high / one.speed.low - 1) / one.gamma for band in bands)
        flag = "negative" if most < 0 else "below the printed c" if one.cost and most < one.cost.low else ""
        odd += bool(flag)
        for name, value in implied.items():
            spreads[one.group][name].append(value)
        texts = [_decimal(implied.get(name)) for name in heads]
        printed = _decimal(one.cost.value if one.cost else None)
        rows.append((short(one.line.label, 48), str(one.gamma), *texts, printed, flag))
    if len(rows) == 1:
        return []
    sentences = [
        f"{odd} of {len(rows) - 1} speed-ups are too large for any cost that can be"
        + (": was the draft length another one, or was something else timed?" if odd else "."),
        "Cost of a drafted token in target calls, c = (tokens per target call / speed-up - 1) / γ, and in it whatever "
        f"verifying γ tokens costs more than one. Tokens per call follow from {TESTED} if every position is accepted "
        f"with one probability, independently, and from {DRAFTED} if every call drafts γ tokens. Where a cost is "
        "negative, that reading is not what was measured.",
        *_spread(spreads),
    ]
    return [Section("Implied cost of a drafted token", tuple(rows), tuple(sentences), (0, 6))]


def _readings(one: Drafting, gamma: int) -> dict[str, Band]:
    """Tokens per call by every number that the row prints."""
    found = {
        name: Band(*(tokens_per_call(part, gamma, name) for part in share)) for name, share in one.acceptance.items()
    }
    return found | ({"tokens": one.tokens} if one.tokens is not None else {})


def _spread(spreads: Mapping[tuple[str, ...], Mapping[str, Sequence[Fraction]]]) -> Iterator[str]:
    """One draft architecture has one cost: how far apart are those of a block's rows?"""
    for group, by_name in spreads.items():
        parts = [
            f"{decimal(min(values), 3)} to {decimal(max(values), 3)} by {name}"
            for name, values in by_name.items()
            if len(values) > 1
        ]
        if parts:
            where = ", ".join(filter(None, group))
            yield f"{where + ': ' if where else ''}{', '.join(parts)}; drafts of one architecture have one cost."


def _groups(found: Iterable[Drafting]) -> list[list[Drafting]]:
    groups: dict[tuple[str, ...], list[Drafting]] = defaultdict(list)
    for one in found:
        groups[one.group].append(one)
    return list(groups.values())


def _text(table: Printed, line: Line, names: Iterable[str]) -> str:
    column = next(name for name in table.columns if plain(name) in names and name in line.cells)
    return table.text(column, line.cells[column])


def _decimal(value: Fraction | None) -> str:
    return MISSING if value is None else decimal(value, 3)


CHECKS = (ceiling, ratios, calls, costs)
