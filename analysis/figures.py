"""The verb `figure`: the paper's pictures from our records, as PNG, SVG and PDF, with the drawn numbers as JSON.

Drawn twice from the same records, every file is the same bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from analysis import figure_bars, figure_landscape, figure_speed, figure_training
from analysis.load import Library, library
from analysis.protocols import one_protocol
from analysis.style import Drawing, close, save, settle, styled
from selectkd_eval.errors import choose
from selectkd_eval.verbs import FigureOptions

FIGURES: dict[str, Callable[[Library, int], Drawing]] = {
    "passk": lambda records, resamples: figure_bars.rates(records, "passk", resamples),
    "winrate": lambda records, resamples: figure_bars.rates(records, "winrate", resamples),
    "speedup": figure_speed.speedups,
    "training": lambda records, resamples: figure_training.training(records),
    "tar": figure_training.tar,
    "landscape": lambda records, resamples: figure_landscape.landscape(records),
}


def run(options: FigureOptions) -> int | None:
    """Draw one figure and print where its files are and what they show."""
    records = library(options.records)
    if options.what == "winrate":
        records = one_protocol(records, options.protocol)
    drawing = draw(options.what, records, options.resamples)
    for path in save(drawing, options.out):
        print(f"wrote {path}", file=sys.stderr)
    print(drawing.alt)
    close(drawing)
    return None


def draw(what: str, records: Library, resamples: int) -> Drawing:
    """One figure by name; an InputError when the records hold nothing for it."""
    with styled():
        drawing = choose(what, FIGURES, "figure")(records, resamples)
        settle(drawing.figure)
        return drawing
