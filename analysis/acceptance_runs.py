"""By what is Theorem 1 judged? Every training run's TAR at its evaluations, on the clock of its learning rate.

A run is one student with its kept checkpoints in a tar record, or the validation rows of a train record; both hold
values per prompt, so that a fall can be tested. Validation rows of an older version, which do not, count only for
methods without tar records. The clock is the cumulative learning rate where the train record is among the records, else
the optimiser step.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from analysis.acceptance import WHAT, Measured, TarSet, tar_sets
from analysis.load import Library, Method
from selectkd_eval import measures, theorem
from selectkd_eval.records import Record
from selectkd_eval.stats import Estimate, Floats
from selectkd_eval.theorem import Curve, Fit, Verdict

HELD_OUT = "held-out text of training"
# The theorem speaks of the method's own gate. One without a gate has none, and is measured by Greedy Top-k.
_OWN = {"top-k": "greedy", "spec-k": "spec"}
# What the validation rows of a train record call each acceptance.
VALIDATION = {"greedy": "tar_top_k", "spec": "tar_spec_k", "alpha": "alpha"}


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
    """Every run with two evaluations or more, by text and method, those of tar records first."""
    found = [run for chosen in tar_sets(library) for run in _kept(library, chosen)]
    measured = {run.method for run in found}
    rest = [run for record in library.of("train") if (run := _validated(library, record)) is not None]
    rest = [run for run in rest if run.curves[own(run.method)].terms or run.method not in measured]
    return found + sorted(rest, key=lambda run: (run.method.order, run.seed or 0))


class Judged(NamedTuple):
    """The runs of one method on one text, with their fits, and the rate over all of them."""

    method: Method
    text: str
    what: str
    runs: list[Run]
    fits: list[Fit]
    rate: Estimate | None
    intercept: float
    left_out: int  # runs whose learning rates are unknown, beside others whose are known

    @property
    def kappa_max(self) -> float:
        """The largest kappa for which the bound holds on every interval of every run; NaN where none can be told."""
        known = [fit.kappa_max for fit in self.fits if not math.isnan(fit.kappa_max)]
        return min(known, default=float("nan"))

    @property
    def name(self) -> str:
        """The acceptance that judges."""
        return named(self.what, self.runs[0].k)


def judged(library: Library, resamples: int) -> list[Judged]:
    """One for each text and method, in order; only gated methods where there is one: of these the theorem
    speaks.
    """
    groups: dict[tuple[str, Method], list[Run]] = defaultdict(list)
    for run in runs(library):
        groups[run.text, run.method].append(run)
    if any(gated(method) for _, method in groups):
        groups = defaultdict(list, {key: found for key, found in groups.items() if gated(key[1])})
    return [_judged(text, method, found, resamples) for (text, method), found in groups.items()]


def _judged(text: str, method: Method, found: list[Run], resamples: int) -> Judged:
    # Runs on two clocks are not judged on one: those whose learning rates are known go first.
    known = [run for run in found if run.by_rate] or found
    what = own(method)
    every = np.concatenate([run.curves[what].clock for run in known])
    rate, intercept = theorem.slope(every, np.concatenate([run.curves[what].tar for run in known]))
    fits = [run.fit(what, resamples) for run in known]
    return Judged(method, text, what, known, fits, rate, intercept, len(found) - len(known))


def in_words(fits: Sequence[Fit]) -> str:
    """The verdict over one method's runs: 'violated (2 significant falls)', or how many of its runs say what."""
    counts = Counter(fit.verdict for fit in fits)
    falls = sum(len(fit.significant) for fit in fits)
    told = f" ({falls} significant fall{'s' if falls > 1 else ''})" if falls else ""
    if len(fits) == 1:
        return f"{fits[0].verdict}{told}"
    order: tuple[Verdict, ...] = ("violated", "not violated beyond chance", "holds on this run", "cannot be told")
    return "; ".join(
        f"{verdict.removesuffix(' on this run')} in {counts[verdict]} of {len(fits)} runs"
        f"{told if verdict == 'violated' else ''}"
        for verdict in order
        if counts[verdict]
    )


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
    for what, name in VALIDATION.items():
        at, values = measures.curve(record.rows, "validation", name)
        if not len(at) and gated(method) and what == own(method):
            at, values = measures.curve(record.rows, "validation", "tar")  # older records hold the gate's own alone
        if len(at) > 1:
            rate = cumulative_rate(record, at)
            steps, by_rate = at, rate is not None
            clock, each = at if rate is None else rate, measures.validated(record.rows, name)
            whole = len(each) == len(at)
            curves[what] = theorem.curve(clock, [each[int(s)] for s in at]) if whole else Curve(clock, values)
    if own(method) not in curves:
        return None
    training = record.facts.get("training") or {}
    return Run(method, record.options.get("seed"), HELD_OUT, int(training.get("k") or 5), steps, by_rate, curves)
