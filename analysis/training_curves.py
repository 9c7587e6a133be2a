"""What did training write down, seed by seed, as curves over steps? Means with the smallest and the largest seed.

For every figure that is drawn over training: the methods that were trained, and one quantity of a method's records on
the steps that all its seeds have. Nothing is smoothed and nothing drawn here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from analysis.load import Library, Method
from selectkd_eval import measures
from selectkd_eval.errors import InputError
from selectkd_eval.records import Record
from selectkd_eval.stats import Floats


class Series(NamedTuple):
    """One quantity of one method over steps: mean, smallest and largest seed, (S,) each."""

    steps: Floats
    mean: Floats
    low: Floats
    high: Floats
    seeds: int


def trained_methods(library: Library) -> dict[Method, list[Record]]:
    """The train records of every method, in the order of the methods; InputError when there is none."""
    groups: dict[Method, list[Record]] = defaultdict(list)
    for record in library.of("train"):
        groups[library.trained(record)].append(record)
    if not groups:
        raise InputError("this figure needs train records: run `selectkd-eval train` first")
    return dict(sorted(groups.items(), key=lambda item: item[0].order))


def held_out_loss(groups: dict[Method, list[Record]]) -> tuple[Any, ...]:
    """What the validation loss of most methods is: only those share a panel."""
    kinds = [method.held_out for method in groups]
    return max(kinds, key=lambda kind: (kinds.count(kind), kind[0] != "nll", str(kind)))


def series_of(found: Sequence[Record], event: str, what: str) -> Series | None:
    """Seeds side by side on the steps they all have."""
    curves = by_seed(found, event, what)
    steps, values = side_by_side(curves)
    if not len(steps):
        return None
    return Series(steps, values.mean(axis=0), values.min(axis=0), values.max(axis=0), len(curves))


def by_seed(found: Sequence[Record], event: str, what: str) -> list[dict[float, float]]:
    """One quantity of every record that has it, each a step to its value."""
    curves = [measures.curve(record.rows, event, what) for record in found]
    return [dict(zip(at.tolist(), values.tolist(), strict=True)) for at, values in curves if len(at)]


def side_by_side(curves: Sequence[Mapping[Any, float]]) -> tuple[Floats, Floats]:
    """The steps that all of R curves have, (S,), and the values there, (R, S)."""
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    return np.array(steps, dtype=float), np.array([[one[step] for step in steps] for one in curves])


def plain(series: Series) -> dict[str, Any]:
    """The numbers of a curve as JSON has them."""
    return {
        "steps": series.steps.tolist(),
        "mean": series.mean.tolist(),
        "low": series.low.tolist(),
        "high": series.high.tolist(),
        "seeds": series.seeds,
    }
