"""How good was each method at each step of its training, and which number says so?

Checkpoints that were tested or judged say it best; where none was, training's own held-out acceptance or loss, or the
acceptance of kept checkpoints. One number is taken for all methods, by one rule: the first of these that at least two
methods have. Bands are over training seeds; nothing is smoothed and nothing drawn here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from analysis.acceptance import TarSet, tar_sets
from analysis.grid import Grid
from analysis.load import Library, Measurement, Method
from analysis.training_curves import by_seed, held_out_loss, side_by_side, trained_methods
from selectkd_eval import measures
from selectkd_eval.errors import InputError
from selectkd_eval.records import Record
from selectkd_eval.stats import Estimate, Floats, t_reach

Band = Literal["t", "range", "prompts", ""]
BANDS: dict[Band, str] = {
    "t": "95 % over training seeds, Student's t",
    "range": "from the smallest to the largest training seed",
    "prompts": "95 % over prompts, of one student",
}
_FEW = 4  # seeds below which their range is drawn: a t interval of two or three says more than it knows


class Line(NamedTuple):
    """One method over its training: steps or tokens, mean and band, (T,) each; NaN where there is no band."""

    at: Floats
    mean: Floats
    low: Floats
    high: Floats
    seeds: int
    band: Band


@dataclass(frozen=True)
class Progress:
    """One number of every method over steps: its name, what it was measured by, and its lines."""

    what: str
    source: str
    lines: dict[Method, Line]
    unit: str = "optimiser step"
    left_out: tuple[Method, ...] = ()


def progress(library: Library, resamples: int) -> Progress:
    """The best number that at least two methods have, else that one has; InputError where nothing was followed."""
    found = [one for one in _offers(library, resamples) if one.lines]
    if not found:
        raise InputError(
            "the curves figure needs train records, or passk, winrate or tar records of two checkpoints: run "
            "`selectkd-eval train` first"
        )
    chosen = next((one for one in found if len(one.lines) > 1), found[0])
    return _over_tokens(library, chosen)


def _offers(library: Library, resamples: int) -> Iterator[Progress]:
    yield from _checkpoints(library, "passk", "pass@1 (%)", resamples)
    yield from _checkpoints(library, "winrate", "win rate (%)", resamples)
    groups = trained_methods(library) if library.of("train") else {}
    held = _one_measure(groups)
    for what, name in (("alpha", "held-out α = 1 − mean TV"), ("loss", "validation loss (unweighted)")):
        kept = {m: r for m, r in held.items() if what != "loss" or m.held_out == held_out_loss(held)}
        drawn = {
            method: line for method, records in kept.items() if (line := _trained(records, what, resamples)) is not None
        }
        yield Progress(name, "train records", drawn, left_out=tuple(m for m in groups if m not in drawn))
    for chosen in tar_sets(library):
        points: dict[Method, dict[int, Estimate]] = defaultdict(dict)
        for (method, step), terms in _alphas(chosen):
            points[method][step] = terms.estimate(resamples)
        order = sorted(points, key=lambda method: method.order)
        lines = {method: _estimated(points[method]) for method in order if len(points[method]) > 1}
        yield Progress(f"α = 1 − mean TV on {chosen.text}", "tar records", lines)


def _one_measure(groups: Mapping[Method, Sequence[Record]]) -> dict[Method, list[Record]]:
    """The records of the teacher and validation text that most methods share: alpha and loss are against these."""
    apart: dict[Any, dict[Method, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for method, records in groups.items():
        for record in records:
            teacher, text = (record.facts.get(name) or {} for name in ("teacher", "validation"))
            apart[teacher.get("fingerprint"), text.get("sha256")][method].append(record)
    most = max(apart, key=lambda key: (len(apart[key]), key[0] is not None, str(key)), default=None)
    return dict(apart[most]) if most is not None else {}


def _alphas(chosen: TarSet) -> Iterator[tuple[tuple[Method, int], measures.Terms]]:
    for (method, step), kinds in chosen.points.items():
        if step is not None and method.role == "student":
            yield (method, step), kinds["alpha"]


def _trained(records: Sequence[Record], what: str, resamples: int) -> Line | None:
    """One number of training's own validation, seeds side by side on the steps that all have; of one seed with its
    interval over prompts, where they were kept.
    """
    if what == "alpha" and len(records) == 1 and len(each := measures.validated(records[0].rows, what)) > 1:
        return _estimated({step: terms.estimate(resamples) for step, terms in each.items()})
    return _seeds(by_seed(records, "validation", what))


def _checkpoints(library: Library, kind: Literal["passk", "winrate"], name: str, resamples: int) -> Iterator[Progress]:
    """The column on which most methods were followed over checkpoints."""
    grid = Grid(library, kind, resamples)
    columns = []
    for column in grid.columns:
        here = [m for m in library.measurements() if m.column == column]
        lines = _followed(library, here, resamples)
        if lines:
            columns.append(Progress(f"{name} on {grid.label(column)}", f"{kind} records of checkpoints", lines))
    yield from sorted(columns, key=lambda one: -len(one.lines))[:1]


def _followed(library: Library, found: Sequence[Measurement], resamples: int) -> dict[Method, Line]:
    terms: dict[Method, dict[Any, dict[int, measures.Terms]]] = defaultdict(lambda: defaultdict(dict))
    for one in found:
        card = one.record.facts.get("model" if one.column.kind == "passk" else "candidate") or {}
        training = card.get("training") or {}
        step = training.get("step") or card.get("step") or training.get("steps")
        if step is not None and one.method.role == "student":
            terms[library.run_of(card)][one.seed][int(step)] = one.terms
    lines: dict[Method, Line] = {}
    for method in sorted(terms, key=lambda method: method.order):
        seeds = list(terms[method].values())
        steps = set.intersection(*(set(seed) for seed in seeds))
        if len(steps) < 2:
            continue
        if len(seeds) == 1:
            lines[method] = _estimated({step: seeds[0][step].estimate(resamples).scaled(100) for step in steps})
        elif (line := _seeds([{step: 100 * seed[step].value for step in steps} for seed in seeds])) is not None:
            lines[method] = line
    return lines


def _estimated(points: Mapping[int, Estimate]) -> Line:
    """A line of one number with its interval over prompts at every step."""
    steps = sorted(points)
    mean, low, high = np.array([[points[at].value, points[at].low, points[at].high] for at in steps]).T
    return Line(np.array(steps, dtype=float), mean, low, high, 1, "prompts")


def _seeds(found: Sequence[Mapping[Any, float]]) -> Line | None:
    """Mean and band over seeds, each a step to its value, on the steps that all have; None for fewer than two."""
    at, values = side_by_side(found)
    if len(at) < 2:
        return None
    mean, count = values.mean(axis=0), len(found)
    if count == 1:
        return Line(at, mean, np.full(len(at), np.nan), np.full(len(at), np.nan), 1, "")
    if count < _FEW:
        return Line(at, mean, values.min(axis=0), values.max(axis=0), count, "range")
    reach = t_reach(values.std(axis=0, ddof=1) / np.sqrt(count), count - 1)
    return Line(at, mean, mean - reach, mean + reach, count, "t")


def _over_tokens(library: Library, chosen: Progress) -> Progress:
    """Over training tokens instead of steps where the methods' batches differ: a step is then not one amount."""
    batches = {str(method.get("batch")) for method in chosen.lines}
    groups = trained_methods(library) if library.of("train") and len(batches) > 1 else {}
    seen = {method: tokens(groups[method]) for method in chosen.lines if method in groups}
    if len(batches) < 2 or len(seen) < len(chosen.lines) or not all(len(at) for at, _ in seen.values()):
        return chosen
    lines = {}
    for method, line in chosen.lines.items():
        at, total = seen[method]
        lines[method] = line._replace(at=np.interp(line.at, np.append(0, at), np.append(0, total)) / 1e6)
    return replace(chosen, lines=lines, unit="training tokens (millions)")


def tokens(records: Sequence[Record]) -> tuple[Floats, Floats]:
    """Steps and the response tokens seen up to each, mean over a method's seeds; empty where they were not counted."""
    curves = [measures.curve(record.rows, "step", "tokens") for record in records]
    counted = [(at, np.cumsum(values)) for at, values in curves if len(at)]
    if not counted:
        return np.array([]), np.array([])
    longest = min(len(at) for at, _ in counted)
    return counted[0][0][:longest], np.mean([total[:longest] for _, total in counted], axis=0)
