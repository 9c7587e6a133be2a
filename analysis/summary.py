"""The whole of it on one screen: methods by numbers, and what may be concluded.

For the terminal: what `report` prints and so the end of `demo`. The cells come from the same grid as tables and
page, the sentences are the page's findings about differences.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping

from analysis.acceptance import tar_sets
from analysis.findings import differences
from analysis.grid import Grid
from analysis.load import LIKELIHOOD_NOTE, Library, Method
from analysis.table_ir import number
from selectkd_eval import measures
from selectkd_eval.stats import Estimate

_WIDTH = 100  # characters of a line


def one_screen(library: Library, resamples: int) -> str:
    """A table of every method's numbers with their intervals, and the differences in words."""
    columns = dict(_columns(library, resamples))
    methods = sorted({method for cells in columns.values() for method in cells}, key=lambda method: method.order)
    table = [["", *columns]]
    for method in methods:
        table.append([library.label(method), *(cells.get(method, "–") for cells in columns.values())])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
    lines += [f"[ ] 95 % intervals over prompts. {note}" for note in _notes(library)] + [""]
    for sentence in differences(library, resamples):
        lines += textwrap.wrap(f"- {sentence}", _WIDTH, subsequent_indent="  ")
    return "\n".join(lines)


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
    speeds = dict(_speeds(library, resamples))
    if speeds:
        yield "speed-up as draft", speeds


def _speeds(library: Library, resamples: int) -> Iterator[tuple[Method, str]]:
    """The best draft length of every draft whose text was unchanged."""
    for record in library.of("speedup"):
        arms = {arm: measures.speedup(record.rows, arm) for arm in measures.speedup_arms(record.rows)}
        if arms and not measures.lossless_counts(record.rows)["violation"]:
            best = max(arms, key=lambda arm: (arms[arm].value, arm))
            cell = f"×{_cell(arms[best].estimate(resamples), 2)} γ={best.removeprefix('gamma')}"
            yield library.method(record.facts["draft"]), cell


def _notes(library: Library) -> Iterator[str]:
    cards = [record.facts.get("judge") or {} for record in library.of("winrate")]
    judges = sorted({str(card.get("name")) for card in cards if card.get("kind") == "likelihood"})
    yield f"Judge: {', '.join(judges)}, {LIKELIHOOD_NOTE}." if judges else ""


def _cell(estimate: Estimate, digits: int) -> str:
    return f"{number(estimate.value, digits)} [{number(estimate.low, digits)}, {number(estimate.high, digits)}]"
