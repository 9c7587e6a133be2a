"""pass@k of one run, and the difference between two, problem by problem.

All answers to a problem, whatever their seed, stand together: they are one unit of every interval and of every test.
A difference is paired, for two models asked the same problems share their difficulty. It reads no files and prints
nothing; see `passk_table` and `passk_compare`.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from selectkd_eval import measures, stats
from selectkd_eval.measures import Row, Terms
from selectkd_eval.stats import Estimate


def pass_at(rows: Iterable[Row], task: str, k: int = 1) -> Terms:
    """The unbiased pass@k of every problem of a task, over its answers under all seeds.

    For k = 1 that is `measures.pass_at_1`. A problem with fewer than k answers (others failed) stays, with nothing in
    either sum.
    """
    if k == 1:
        return measures.pass_at_1(rows, task)
    n, c = Counter[str](), Counter[str]()
    for row in rows:
        if row.get("task") == task and "problem" in row:
            problem = f"{task}/{row['problem']}"
            n[problem] += "error" not in row
            c[problem] += int(row.get("correct", 0)) if "error" not in row else 0
    parts = (
        (problem, stats.pass_at_k(n[problem], c[problem], k), 1.0) if n[problem] >= k else (problem, 0.0, 0.0)
        for problem in n
    )
    return measures.terms(parts, proportion=True)


def detectable_alone(terms: Terms) -> float:
    """The smallest difference (as a share) that two runs like this one could settle, before there is a second one.

    With nothing known about the other run: its answers vary as these do and, problem by problem, have nothing to do
    with them, so the variances add. With one answer per problem that variance is p (1 - p). Runs of similar models
    agree on most problems, and settle less. 80 % power, 5 % two-sided.
    """
    some = terms.den > 0
    n = int(some.sum())
    if not n:
        return float("nan")
    error = stats.standard_error(terms.num[some], terms.den[some])
    if not error > 0:
        # Nothing varies, which only says that the rate is near an edge: Wilson's centre stands for it.
        p = (terms.value * n + 2) / (n + 4)
        error = math.sqrt(p * (1 - p) / n)
    return stats.detectable(math.sqrt(2) * error)


@dataclass(frozen=True)
class Comparison:
    """Run a against run b on the problems that both answered.

    `better`, `worse` and `same` count problems by whose share of right answers is higher; with one answer each,
    `better` are the problems that a alone has right. `single` says that there was one answer per problem and run.
    `apart` says in words which problems the `left_out` are.
    """

    a: float
    b: float
    delta: Estimate
    better: int
    worse: int
    same: int
    single: bool
    p: float
    test: str
    detectable: float
    left_out: int
    apart: str

    @property
    def n(self) -> int:
        return self.better + self.worse + self.same


def compare(a: Sequence[Row], b: Sequence[Row], task: str) -> Comparison | None:
    """pass@1 of a minus that of b on a task's common problems; None when no problem was answered in both."""
    left, right = _counts(a, task), _counts(b, task)
    common = sorted(left.keys() & right.keys())
    if not common:
        return None
    num_a, den_a = np.array([left[problem] for problem in common], dtype=np.float64).T
    num_b, den_b = np.array([right[problem] for problem in common], dtype=np.float64).T
    # Whole numbers, so that the exact distribution can be computed: shares times the least common denominator.
    unit = math.lcm(*{int(n) for n in (*den_a, *den_b)})
    apart = np.rint(num_a / den_a * unit) - np.rint(num_b / den_b * unit)
    p, test = stats.sign_flip(apart)
    delta, _ = stats.paired_delta(num_a, den_a, num_b, den_b)
    return Comparison(
        a=float(num_a.sum() / den_a.sum()),
        b=float(num_b.sum() / den_b.sum()),
        delta=delta,
        better=int((apart > 0).sum()),
        worse=int((apart < 0).sum()),
        same=int((apart == 0).sum()),
        single=unit == 1,
        p=p,
        test=test,
        detectable=stats.detectable(stats.standard_error(apart / unit, np.ones(len(common)))),
        left_out=len(left.keys() ^ right.keys()),
        apart=measures.apart(left, right, ("in this record", "in the other")),
    )


def _counts(rows: Iterable[Row], task: str) -> dict[str, tuple[int, int]]:
    """(right, answers) of every problem that has an answer."""
    found: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for row in measures.good(rows):
        if row.get("task") == task and "problem" in row:
            right, answers = found[str(row["problem"])]
            found[str(row["problem"])] = right + int(row.get("correct", 0)), answers + 1
    return dict(found)
