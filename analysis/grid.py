"""How good is every method on everything that was measured, and how much better than its base?

A grid of methods by columns (tasks, or win rates under one protocol and judge). Training seeds are pooled prompt
by prompt; differences are paired by prompt. Tables, bar figures and the report's sentences read the same grid, so
they cannot disagree. What is not comparable is never compared: other prompts, other judge, other column.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal

from analysis.load import Library, Measurement, Method
from analysis.pass_columns import Column
from selectkd_eval import measures, stats
from selectkd_eval.errors import InputError
from selectkd_eval.measures import Terms
from selectkd_eval.stats import Estimate

CONTROL = "SFT-control"  # the same steps on labelled text, without a teacher


class Grid:
    """Every number of one kind (passk or winrate), by column and method. Values are shares; nothing is rounded."""

    def __init__(
        self,
        library: Library,
        kind: Literal["passk", "winrate"],
        resamples: int,
        keep: Callable[[Column], bool] = lambda column: True,
    ) -> None:
        self.library = library
        self.kind = kind
        self.resamples = resamples
        self.found: dict[tuple[Column, Method], list[Measurement]] = defaultdict(list)
        for measurement in library.measurements():
            if measurement.column.kind == kind and keep(measurement.column):
                self.found[measurement.column, measurement.method].append(measurement)
        self.columns = sorted({column for column, _ in self.found}, key=lambda column: (column.label, str(column.key)))
        self.methods = sorted({method for _, method in self.found}, key=lambda method: method.order)
        self.notes: list[str] = list(library.pass_notes if kind == "passk" else library.win_notes)
        self.terms = cache(self._terms)
        self.estimate = cache(self._estimate)
        self.delta = cache(self._delta)

    def label(self, column: Column) -> str:
        """The column's name, with whatever tells it apart from another column of that name."""
        twins = [other for other in self.columns if other.label == column.label]
        differing = [name for name, _ in column.key if len({str(twin.get(name)) for twin in twins}) > 1]
        words = [f"{name} {_short(str(column.get(name)))}" for name in differing if name != "protocol_sha256"]
        return f"{column.label} ({', '.join(words)})" if words else column.label

    def _terms(self, column: Column, method: Method) -> Terms | None:
        """All seeds of a method, prompt by prompt."""
        found = self.found.get((column, method))
        return measures.pool([measurement.terms for measurement in found]) if found else None

    def seeds(self, column: Column, method: Method) -> tuple[tuple[int | None, float], ...]:
        """(training seed, value) of every student, by seed."""
        return tuple((seed, terms.value) for seed, terms in self._by_seed(column, method).items())

    def crossed(self, column: Column, method: Method) -> Estimate | None:
        """The interval that resamples training seeds as well as prompts; None where there is one seed."""
        parts = list(self._by_seed(column, method).values())
        if len(parts) < 2 or len({part.prompts for part in parts}) > 1:
            return None
        return measures.crossed(parts, self.resamples)

    def _by_seed(self, column: Column, method: Method) -> dict[int | None, Terms]:
        """Every student of a method apart, by training seed."""
        found: dict[int | None, list[Terms]] = defaultdict(list)
        for measurement in self.found.get((column, method), []):
            found[measurement.seed].append(measurement.terms)
        order = sorted(found, key=lambda seed: (seed is None, seed or 0))
        return {seed: measures.pool(found[seed]) for seed in order}

    def sources(self, column: Column, method: Method) -> tuple[str, ...]:
        """File names of the records behind a number."""
        return tuple(sorted({found.record.path.name for found in self.found.get((column, method), [])}))

    def base_of(self, column: Column, method: Method) -> Method | None:
        """The method without the gate, measured on the same column."""
        here = [other for other in self.methods if (column, other) in self.found]
        return self.library.base_of(method, here) if method.base else None

    def reference(self, column: Column, method: Method) -> Method | None:
        """What a method is held against: a gate against its base, any other student against the SFT control."""
        if method.base:
            return self.base_of(column, method)
        here = [other for other in self.methods if other.label == CONTROL and (column, other) in self.found]
        return here[0] if here and method.role == "student" and method.label != CONTROL else None

    def _estimate(self, column: Column, method: Method) -> Estimate | None:
        terms = self.terms(column, method)
        return terms.estimate(self.resamples) if terms else None

    def _delta(self, column: Column, a: Method, b: Method) -> tuple[Estimate, float] | None:
        """a minus b, paired by prompt; None, with a note, when the prompts are not the same."""
        left, right = self.terms(column, a), self.terms(column, b)
        if left is None or right is None:
            return None
        names = f"{self.library.label(a)} and {self.library.label(b)} on {self.label(column)}"
        try:
            found = measures.delta(left, right, self.resamples)
        except InputError as error:
            self.note(f"No difference of {names}: {error}.")
            return None
        seeds = [tuple(seed for seed, _ in self.seeds(column, method)) for method in (a, b)]
        if seeds[0] != seeds[1]:
            self.note(f"The difference of {names} pools unequal training seeds: {seeds[0]} and {seeds[1]}.")
        return found

    def error(self, column: Column, method: Method) -> float:
        """The cluster-robust standard error of a number, which checks its interval; NaN where there is none."""
        terms = self.terms(column, method)
        return stats.standard_error(terms.num, terms.den, terms.merged_strata) if terms else float("nan")

    def delta_error(self, column: Column, a: Method, b: Method) -> float:
        """The same of a difference paired by prompt; NaN where the prompts are not the same."""
        x, y = self.terms(column, a), self.terms(column, b)
        if x is None or y is None or x.prompts != y.prompts:
            return float("nan")
        return stats.paired_error(x.num, x.den, y.num, y.den, x.merged_strata)

    def average(self, method: Method, columns: Sequence[Column] | None = None) -> Estimate | None:
        """Unweighted mean over all columns (or these); None unless the method was measured on every one."""
        parts = [self.terms(column, method) for column in (self.columns if columns is None else columns)]
        if len(parts) < 2 or not all(part and part.den.sum() for part in parts):
            return None
        shares = all(part.proportion for part in parts if part)
        groups = [(part.num, part.den) for part in parts if part]
        return stats.mean_of_ratios(groups, resamples=self.resamples, proportion=shares)[0]

    def average_delta(
        self, a: Method, b: Method, columns: Sequence[Column] | None = None
    ) -> tuple[Estimate, float] | None:
        """Difference of two averages, paired by prompt within every column."""
        columns = self.columns if columns is None else columns
        left, right = ([self.terms(column, method) for column in columns] for method in (a, b))
        pairs = [(x, y) for x, y in zip(left, right, strict=True) if x and y and x.prompts == y.prompts]
        if len(pairs) < max(2, len(columns)) or not all(x.den.sum() and y.den.sum() for x, y in pairs):
            return None
        shares = all(x.proportion and y.proportion for x, y in pairs)
        mine, theirs = [(x.num, x.den) for x, _ in pairs], [(y.num, y.den) for _, y in pairs]
        return stats.mean_of_ratios(mine, theirs, resamples=self.resamples, proportion=shares)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _short(text: str) -> str:
    """A setting's value as part of a label: digests by their beginning, long texts by it and a digest, so that two
    values never look alike.
    """
    if re.fullmatch("[0-9a-f]{40,}", text):
        return text[:12]
    return text if len(text) <= 32 else f"{text[:24]}… {hashlib.sha256(text.encode()).hexdigest()[:6]}"
