"""Where does the teacher accept? Acceptance by its entropy and by the place in the response, from tar records.

The paper says that selection spares the student tokens of which the teacher itself is unsure. Here every method's
acceptance stands in bins of that entropy, and, since errors could also pile up along the text, of the place. Below are
the shares of the tokens: a bin with few of them moves no total. Pooled over tokens and training seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from analysis.acceptance import WHAT, Breakdown, TarSet, tar_sets
from analysis.fitting import ticks
from analysis.load import Library, Method
from analysis.method_legend import lines, method_legend
from analysis.style import Drawing, Look, Settings, interval_line, told_apart, width
from analysis.table_ir import number
from analysis.tar_words import not_drawn
from selectkd_eval.errors import InputError

DRAWN = "alpha"  # one definition for all: it depends on no k and does not saturate
KINDS = {"by_entropy": "teacher's entropy (nats)", "by_position": "token of the response"}
TEXTS = 2


def breakdown(library: Library, settings: Settings) -> Drawing:
    """Acceptance α per bin, methods side by side with intervals over prompts, and the share of the tokens below."""
    found = [(chosen, by, part) for chosen in tar_sets(library) for by in KINDS if (part := chosen.breakdown(by))]
    if not found:
        raise InputError(
            "the breakdown figure needs tar records with acceptance by entropy and position: measure the students "
            "with `selectkd-eval tar` (records of earlier versions lack it: give another --out)"
        )
    every = list(dict.fromkeys(chosen.text for chosen, _, _ in found))
    texts = every[: TEXTS if settings.columns == 2 else 1]
    found = [one for one in found if one[0].text in texts]
    columns = min(settings.columns, len(found))
    blocks = -(-len(found) // columns)
    methods = sorted({m for _, _, part in found for m in part.terms}, key=lambda method: method.order)
    styles = told_apart(methods)
    size = (width(settings), 2.45 * blocks + 0.1 + 0.15 * lines(library, styles, width(settings)))
    heights = [3.0, 1.0] * blocks
    figure, axes = plt.subplots(2 * blocks, columns, figsize=size, squeeze=False, height_ratios=heights)
    data: dict[str, Any] = {}
    words = []
    for place, (chosen, by, part) in enumerate(found):
        row, column = 2 * (place // columns), place % columns
        numbers = _numbers(part, settings.resamples)
        bins = [at for at in range(len(part.edges) + 1) if any(table["tokens"][at] for table in numbers.values())]
        _rates(axes[row, column], part, numbers, bins, styles, chosen.text)
        _shares(axes[row + 1, column], by, part, numbers, bins)
        words.append(_words(library, chosen, by, part, numbers, bins))
        data[f"{chosen.text} {by}"] = {
            "bins": labels(by, part.edges),
            **{library.label(method): table for method, table in numbers.items()},
        }
    method_legend(figure, library, styles, width(settings))
    sizes = {chosen.text: len(next(iter(part.terms.values()))[DRAWN][0].prompts) for chosen, _, part in found}
    told = ", ".join(f"n = {n:,} on {text}" for text, n in sizes.items())
    caption = (
        "Acceptance α = 1 − TV by the teacher's entropy and by the place in the response (powers of two), pooled over "
        f"tokens and training seeds; 95 % intervals over prompts ({told}). Below: each bin's share of the response "
        f"tokens.{not_drawn(text for text in every if text not in texts)}"
    )
    return Drawing("breakdown", figure, caption, " ".join(words), data)


def labels(by: str, edges: Sequence[float]) -> list[str]:
    """What each bin holds, in a reader's words."""
    if by == "by_position":
        first = [1, *(int(edge) + 1 for edge in edges)]
        last = [*(int(edge) for edge in edges), None]
        return [f"{a}+" if b is None else str(a) if a == b else f"{a}–{b}" for a, b in zip(first, last, strict=True)]
    inner = [f"{a:g}–{b:g}" for a, b in pairwise(edges)]
    return [f"< {edges[0]:g}", *inner, f"≥ {edges[-1]:g}"]


def _numbers(part: Breakdown, resamples: int) -> dict[Method, dict[str, list[Any]]]:
    """Per method: tokens in each bin, and every acceptance as [value, low, high], None where a bin is empty."""
    found: dict[Method, dict[str, list[Any]]] = {}
    for method, kinds in part.terms.items():
        table: dict[str, list[Any]] = {"tokens": [int(terms.den.sum()) for terms in kinds[DRAWN]]}
        for what in WHAT:
            estimates = [terms.estimate(resamples) for terms in kinds[what]]
            table[what] = [None if math.isnan(e.value) else [e.value, e.low, e.high] for e in estimates]
        found[method] = table
    return found


def _rates(
    axis: Axes,
    part: Breakdown,
    numbers: dict[Method, dict[str, list[Any]]],
    bins: list[int],
    styles: dict[Method, Look],
    text: str,
) -> None:
    methods = list(numbers)
    spread = 0.7 / max(1, len(methods))
    for rank, method in enumerate(methods):
        there = [at for at in bins if numbers[method][DRAWN][at] is not None]
        xs = [bins.index(at) + spread * (rank - (len(methods) - 1) / 2) for at in there]
        limits = [numbers[method][DRAWN][at] for at in there]
        interval_line(axis, xs, limits, styles[method], linewidth=0.5)
    axis.set_ylabel("α = 1 − TV")
    axis.set_title(text)
    axis.set_xticks(range(len(bins)), [])
    axis.set_xlim(-0.5, len(bins) - 0.5)


def _shares(axis: Axes, by: str, part: Breakdown, numbers: dict[Method, dict[str, list[Any]]], bins: list[int]) -> None:
    shares = _share(numbers)
    axis.bar(
        range(len(bins)), [100 * shares[at] for at in bins], width=0.7, color="#bbbbbb", edgecolor="#222222", lw=0.5
    )
    names = labels(by, part.edges)
    figure: Any = axis.figure
    # The layout leaves about that much of an axis' place beside its labels.
    unit = 0.85 * axis.get_position().width * float(figure.get_size_inches()[0]) / len(bins)
    ticks(axis, range(len(bins)), [names[at] for at in bins], unit, 6.5)
    axis.set_xlim(-0.5, len(bins) - 0.5)
    axis.set_ylabel("tokens (%)")
    axis.set_xlabel(KINDS[by])


def _share(numbers: dict[Method, dict[str, list[Any]]]) -> list[float]:
    """Each bin's share of the tokens; text and teacher are the same for every method."""
    tokens = np.sum([table["tokens"] for table in numbers.values()], axis=0)
    return [float(x) for x in tokens / tokens.sum()]


def _words(
    library: Library,
    chosen: TarSet,
    by: str,
    part: Breakdown,
    numbers: dict[Method, dict[str, list[Any]]],
    bins: list[int],
) -> str:
    names, shares = labels(by, part.edges), _share(numbers)
    rows = []
    for method, table in numbers.items():
        there = sorted((table[DRAWN][at][0], at) for at in bins if table[DRAWN][at] is not None)
        low, high = (f"{number(value, 3)} ({names[at]})" for value, at in (there[0], there[-1]))
        rows.append(f"{library.label(method)} from {low} to {high}")
    told = ", ".join(f"{names[at]}: {number(100 * shares[at], 1)} %" for at in bins)
    return f"Acceptance α on {chosen.text} by {KINDS[by]}: {'; '.join(rows)}. Shares of the tokens: {told}."
