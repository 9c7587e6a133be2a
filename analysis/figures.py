"""The verb `figure`: the paper's pictures from our records, as PNG, SVG and PDF, with the drawn numbers as JSON.

Drawn twice from the same records, every file is the same bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from analysis import (
    figure_bars,
    figure_breakdown,
    figure_curves,
    figure_judges,
    figure_landscape,
    figure_speed,
    figure_tar,
    figure_teachers,
    figure_theorem,
    figure_training,
)
from analysis.load import Library, library
from analysis.protocols import one_protocol
from analysis.style import Drawing, Settings, close, save, settle, styled
from selectkd_eval.errors import choose
from selectkd_eval.verbs import FigureOptions

FIGURES: dict[str, Callable[[Library, Settings], Drawing]] = {
    "winrate": lambda records, settings: figure_bars.rates(records, "winrate", settings),
    "passk": lambda records, settings: figure_bars.rates(records, "passk", settings),
    "curves": figure_curves.curves,
    "teachers": figure_teachers.teachers,
    "training": figure_training.training,
    "tar": figure_tar.tar,
    "theorem": figure_theorem.theorem_1,
    "breakdown": figure_breakdown.breakdown,
    "landscape": figure_landscape.landscape,
    "judges": figure_judges.judges,
    "speedup": figure_speed.speedups,
}
PAPER = {"1": "winrate", "3a": "curves", "3b": "teachers", "4a": "tar", "4b": "landscape", "5": "judges"}
JUDGED = ("winrate", "judges")  # two protocols never share one of these


def run(options: FigureOptions) -> int | None:
    """Draw one figure and print where its files are and what they show."""
    records = library(options.records)
    what = named(options.what, records)
    if what in JUDGED or options.protocol:
        records = one_protocol(records, options.protocol)
    settings = Settings(options.resamples, options.columns, options.style, options.margin)
    drawing = draw(what, records, settings)
    for path in save(drawing, options.out):
        print(f"wrote {path}", file=sys.stderr)
    print(drawing.alt)
    close(drawing)
    return None


def named(what: str, records: Library) -> str:
    """A figure's name from its name or its number in the paper; Figure 1 is of pass@1 where nothing was judged."""
    name = PAPER.get(what, what)
    if what == "1" and not records.of("winrate") and (records.of("passk") or records.of("regrade")):
        return "passk"
    return name


def draw(what: str, records: Library, settings: Settings) -> Drawing:
    """One figure by name or number; an InputError when the records hold nothing for it."""
    with styled():
        drawing = choose(named(what, records), FIGURES, "figure")(records, settings)
        settle(drawing.figure)
        if settings.columns == 1:
            drawing.name += "-1col"
        return drawing
