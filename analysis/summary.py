"""The whole of it on one screen: methods by numbers, and what may be concluded.

For the terminal: what `report` prints and so the end of `demo`. The cells come from the same grid as tables and
page, the sentences are the page's findings about differences.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence

from analysis import speed
from analysis.acceptance import tar_sets
from analysis.findings import differences
from analysis.grid import Grid
from analysis.load import LIKELIHOOD_NOTE, Library, Method
from analysis.table_ir import interval, number
from selectkd_eval.errors import InputError
from selectkd_eval.stats import Estimate
from selectkd_eval.terminal import WIDTH

_WIDTH = 100  # characters of a line


def one_screen(library: Library, resamples: int) -> str:
    """A table of every method's numbers with their intervals, and the differences in words."""
    columns = dict(_columns(library, resamples))
    methods = sorted({method for cells in columns.values() for method in cells}, key=lambda method: method.order)
    table = [["", *columns]]
    for method in methods:
        table.append([library.label(method), *(cells.get(method, "–") for cells in columns.values())])
    lines = [*_screens(table), *_notes(library, resamples), ""]
    for sentence in differences(library, resamples):
        lines += textwrap.wrap(f"- {sentence}", _WIDTH, subsequent_indent="  ")
    return "\n".join(lines)


def _screens(table: Sequence[Sequence[str]]) -> Iterator[str]:
    """The table's lines; columns that find no room in a line follow in a table of their own below."""
    first, *rest = ([cell.ljust(max(map(len, column))) for cell in column] for column in zip(*table, strict=True))
    while rest:
        count = 1
        while count < len(rest) and sum(len(column[0]) + 2 for column in (first, *rest[: count + 1])) - 2 <= WIDTH:
            count += 1
        yield from ("  ".join(row).rstrip() for row in zip(first, *rest[:count], strict=True))
        if rest := rest[count:]:
            yield ""


def _columns(library: Library, resamples: int) -> Iterator[tuple[str, Mapping[Method, str]]]:
    """(heading, cell of every method measured) for whatever was measured."""
    for kind, heading in (("passk", "pass@1 %"), ("winrate", "win rate %")):
        grid = Grid(library, kind, resamples)  # type: ignore[arg-type]
        for column in grid.columns:
            estimates = {method: grid.estimate(column, method) for method in grid.methods}
            # One column per measure fits a screen; the page has them all, with their full names.
            name = grid.label(column).split(" vs ")[0]
            yield f"{heading} {name}", {m: _cell(e.scaled(100), 1) for m, e in estimates.items() if e}
    for found in tar_sets(library):
        last = {method: max(found.steps(method), default=None) for method in found.methods}
        estimates = {m: found.points[m, step]["alpha"].estimate(resamples) for m, step in last.items()}
        yield f"α {found.text.split(':')[0]}", {method: _cell(e, 3) for method, e in estimates.items() if e}
    sets = _speed_sets(library)
    for place, chosen in enumerate(sets, start=1):
        if speeds := dict(_speeds(chosen, resamples)):
            yield f"speed-up as draft{f' ({place})' if len(sets) > 1 else ''}", speeds


def _speeds(chosen: speed.SpeedSet, resamples: int) -> Iterator[tuple[Method, str]]:
    """The best draft length of every draft whose text was unchanged; a clock in doubt is marked with ?."""
    for method, found in chosen.drafts.items():
        best = speed.best_way(chosen, found)
        if best and not speed.refused(found):
            mark = "?" if speed.doubt(found, resamples) else ""
            value = speed.speedup(found, best).estimate(resamples)
            yield method, f"×{_cell(value, 2)} γ={best.gamma}{mark}"


def _speed_sets(library: Library) -> Sequence[speed.SpeedSet]:
    """None where a record cannot be read: the sentences say why."""
    try:
        return speed.speed_sets(library)
    except InputError:
        return ()


def _notes(library: Library, resamples: int) -> Iterator[str]:
    cards = [record.facts.get("judge") or {} for record in library.of("winrate")]
    judges = sorted({str(card.get("name")) for card in cards if card.get("kind") == "likelihood"})
    judged = f" Judge: {', '.join(judges)}, {LIKELIHOOD_NOTE}." if judges else ""
    yield f"[ ] 95 % intervals over prompts.{judged}"
    sets = _speed_sets(library)
    for place, chosen in enumerate(sets, start=1):
        if len(sets) > 1:
            yield f"({place}) {speed.differing(sets, chosen)}"
    if any(speed.doubt(found, resamples) for chosen in sets for found in chosen.drafts.values()):
        yield "? plain decoding timed twice differs from itself: not settled; time it again on an idle machine"


def _cell(estimate: Estimate, digits: int) -> str:
    limits = f" {interval(estimate, digits)}" if estimate.spread else ""
    return f"{number(estimate.value, digits)}{limits}"
