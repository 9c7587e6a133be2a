"""By what is Theorem 1 judged? Every training run's TAR at its evaluations, on the clock of its learning rate.

A run is one student with its kept checkpoints in a tar record (values per prompt, so that a fall can be tested), or,
for methods without such records, the validation rows of a train record (no values per prompt). The clock is the
cumulative learning rate where the train record is among the records, else the optimiser step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from analysis.acceptance import WHAT, Measured, TarSet, tar_sets
from analysis.load import Library, Method
from selectkd_eval import measures, theorem
from selectkd_eval.records import Record
from selectkd_eval.stats import Floats
from selectkd_eval.theorem import Curve, Fit

HELD_OUT = "held-out text of training"
# The theorem speaks of the method's own gate. One without a gate has none, and is measured by Greedy Top-k.
_OWN = {"top-k": "greedy", "spec-k": "spec"}
_VALIDATION = {"greedy": "tar_top_k", "spec": "tar_spec_k", "alpha": "alpha"}


class Run(NamedTuple):
    """One training run: the curve of each acceptance over its evaluations.

    `steps` (T,); `by_rate`: whether the curves' clock is the cumulative learning rate, else it is the step.
    """

    method: Method
    seed: int | None
    text: str
    k: int
    steps: Floats
    by_rate: bool
    curves: Mapping[str, Curve]

    def fit(self, what: str, resamples: int) -> Fit:
        """Theorem 1 on one of the acceptances."""
        return theorem.fit(self.curves[what], resamples)


def own(method: Method) -> str:
    """The acceptance that a method's own gate decides by."""
    return _OWN.get(str(method.get("verifier")), "greedy")


def named(what: str, k: int) -> str:
    """An acceptance as a reader knows it."""
    return {"greedy": f"greedy Top-{k}", "spec": f"Spec-{k}", "alpha": "α"}[what]


def gated(method: Method) -> bool:
    """Whether the method has a gate that accepts or rejects: only of these does the theorem speak."""
    return str(method.get("verifier")) in _OWN


def runs(library: Library) -> list[Run]:
    """Every run with two evaluations or more, by text and method, those with values per prompt first."""
    found = [run for chosen in tar_sets(library) for run in _kept(library, chosen)]
    measured = {run.method for run in found}
    rest = [_validated(library, record) for record in library.of("train") if library.trained(record) not in measured]
    return found + sorted((run for run in rest if run is not None), key=lambda run: (run.method.order, run.seed or 0))


def cumulative_rate(record: Record | None, steps: Floats) -> Floats | None:
    """The sum of the learning rates of the updates up to each step; None where the record does not hold them all."""
    if record is None:
        return None
    at, rates = measures.curve(record.rows, "step", "lr")
    last = int(steps.max()) if len(steps) else 0
    if not np.array_equal(at[:last], np.arange(1, last + 1)):
        return None
    clock = np.concatenate([[0.0], np.cumsum(rates)])[steps.astype(int)]
    return clock if (np.diff(clock) > 0).all() else None


def _kept(library: Library, chosen: TarSet) -> list[Run]:
    """The runs of one tar set, each with the student that it began from at step 0 where that was measured."""
    trained = {record.path.name: record for record in library.of("train")}
    groups: dict[Any, dict[int, Measured]] = defaultdict(dict)
    for one in chosen.measured:
        training = one.card.get("training") or {}
        if one.step is not None and training:
            groups[one.method, str(training.get("record") or ""), one.card.get("seed")][one.step] = one
    found = []
    for (method, name, seed), points in groups.items():
        start = next(iter(points.values())).card["training"].get("start")
        before = [one for one in chosen.measured if start and one.card.get("fingerprint") == start]
        points = {**({0: before[0]} if before else {}), **points}
        if len(points) < 2:
            continue
        steps = np.array(sorted(points), dtype=np.float64)
        rate = cumulative_rate(trained.get(name), steps)
        clock = steps if rate is None else rate
        curves = {what: theorem.curve(clock, [points[int(s)].terms(what) for s in steps]) for what in WHAT}
        found.append(Run(method, seed, chosen.text, chosen.k, steps, rate is not None, curves))
    return sorted(found, key=lambda run: (run.method.order, run.seed or 0))


def _validated(library: Library, record: Record) -> Run | None:
    """A run as its validation rows tell it; None where none has two evaluations."""
    method, curves, steps, by_rate = library.trained(record), {}, np.zeros(0), False
    for what, name in _VALIDATION.items():
        at, values = measures.curve(record.rows, "validation", name)
        if not len(at) and gated(method) and what == own(method):
            at, values = measures.curve(record.rows, "validation", "tar")  # older records hold the gate's own alone
        if len(at) > 1:
            rate = cumulative_rate(record, at)
            steps, by_rate = at, rate is not None
            curves[what] = Curve(at if rate is None else rate, values)
    if own(method) not in curves:
        return None
    training = record.facts.get("training") or {}
    return Run(method, record.options.get("seed"), HELD_OUT, int(training.get("k") or 5), steps, by_rate, curves)
