"""Does the judge favour longer answers? Mean lengths, how often the longer answer wins, the win rate by length ratio.

Lengths are characters of the answers, not tokens. What is seen here may come from the judge or from longer answers
being better; `length_adjusted` asks what the win rate would be between answers of equal length.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from judges import wording
from judges.length_adjusted import Adjusted, adjusted, pairs
from judges.resampling import Resampling
from selectkd_eval.measures import Row, terms
from selectkd_eval.stats import Estimate
from selectkd_eval.win_rates import tasks_of, undecided, win_rate_terms

EDGES = (0.5, 0.8, 1.25, 2.0)  # of the ranges of candidate's length / baseline's
_DEFAULT = Resampling()


@dataclass(frozen=True)
class Bin:
    """Comparisons whose length ratio lies in [low, high), and the win rate there."""

    low: float
    high: float
    rate: Estimate


@dataclass(frozen=True)
class Lengths:
    """What the lengths of the answers have to do with the verdicts."""

    candidate: Estimate  # mean characters per answer
    baseline: Estimate
    ratio: float  # of the two means
    longer_wins: Estimate  # share of decided comparisons of unequal length that the longer answer won
    bins: tuple[Bin, ...]
    adjusted: Adjusted


def lengths(rows: Iterable[Row], ties: str, how: Resampling = _DEFAULT) -> Lengths | None:
    """The length report of judged rows under a tie rule of `win_rates.TIES`; None where no row tells both lengths.

    Lengths are averaged over answers, also those without a verdict. Comparisons settled without a judge are in the
    averages only: an empty answer loses and an identical one ties whatever the judge thinks of length.
    """
    rows = [row for row in rows if row.get("candidate_chars") is not None and row.get("baseline_chars") is not None]
    if not rows:
        return None
    asked = [row for row in rows if row.get("asked") is not False]
    candidate, baseline = (_mean(rows, side, how) for side in ("candidate_chars", "baseline_chars"))
    return Lengths(
        candidate,
        baseline,
        candidate.value / baseline.value if baseline.value else math.nan,
        _longer_wins(asked, how),
        tuple(by_ratio(asked, ties, how)),
        adjusted(pairs(asked, ties), how),
    )


def _mean(rows: Sequence[Row], side: str, how: Resampling) -> Estimate:
    """Mean characters over answers: the orders and repeats of one pair show the same answers."""
    each = {(str(row["prompt"]), row.get("seed")): float(row[side]) for row in rows}
    parts = ((prompt, chars, 1.0) for (prompt, _), chars in each.items())
    return terms(parts, tasks=tasks_of(rows)).estimate(how.resamples, how.seed)


def _longer_wins(rows: Iterable[Row], how: Resampling) -> Estimate:
    rows = [row for row in rows if not undecided(row) and row["verdict"] != "tie"]
    parts = [
        (str(row["prompt"]), float((row["verdict"] == "candidate") == (longer > 0)), 1.0)
        for row in rows
        if (longer := row["candidate_chars"] - row["baseline_chars"])
    ]
    return terms(parts, proportion=True, tasks=tasks_of(rows)).estimate(how.resamples, how.seed)


def by_ratio(rows: Iterable[Row], ties: str, how: Resampling = _DEFAULT) -> list[Bin]:
    """The win rate within ranges of candidate's length / baseline's, between EDGES."""
    rows = list(rows)
    found = []
    for low, high in pairwise((0.0, *EDGES, math.inf)):
        inside = [row for row in rows if low <= _ratio(row) < high or (high == math.inf and _ratio(row) == high)]
        found.append(Bin(low, high, win_rate_terms(inside, ties).estimate(how.resamples, how.seed)))
    return found


def _ratio(row: Row) -> float:
    """Candidate's length / baseline's; infinite over an empty baseline, 1 between two empty answers."""
    candidate, baseline = row["candidate_chars"], row["baseline_chars"]
    if not baseline:
        return math.inf if candidate else 1.0
    return float(candidate / baseline)


# ---- in words ------------------------------------------------------------


def lines(found: Lengths) -> list[str]:
    """What `winrate` prints about lengths."""
    ratio = "–" if math.isnan(found.ratio) else f"{found.ratio:.2f}"
    out = wording.line(
        "length",
        f"candidate {_chars(found.candidate)}, baseline {_chars(found.baseline)} on average, ratio {ratio}; "
        f"the longer answer won {wording.share(found.longer_wins)} of the decided (n {found.longer_wins.n:,})",
    )
    ranges = [f"{_range(one)}: {wording.share(one.rate)} (n {one.rate.n:,})" for one in found.bins]
    out += wording.line("by length", "win rate where candidate / baseline is " + ", ".join(ranges))
    return out + wording.line("equal length", _adjusted_text(found.adjusted))


def _adjusted_text(adjusted: Adjusted) -> str:
    plain = "–" if math.isnan(adjusted.plain) else f"{adjusted.plain * 100:.2f} %"
    text = f"length-adjusted win rate {wording.share(adjusted.rate)}, plain {plain}: {in_words(adjusted)}"
    return f"{text} ({adjusted.why})" if adjusted.why else text


def in_words(adjusted: Adjusted) -> str:
    """Which way length goes with winning, as far as the interval of psi allows to say."""
    psi = adjusted.psi
    if math.isnan(psi.value):
        return "no effect of length could be fitted"
    if not psi.excludes(0):
        return "no effect of length can be seen"
    more, less = ("longer", "shorter") if psi.value < 0 else ("shorter", "longer")
    return f"{more} answers win more often than {less}"


def _chars(mean: Estimate) -> str:
    return "–" if math.isnan(mean.value) else f"{mean.value:,.0f} characters"


def _range(one: Bin) -> str:
    if one.low == 0:
        return f"<{one.high:.3g}"
    return f">={one.low:.3g}" if math.isinf(one.high) else f"{one.low:.3g}-{one.high:.3g}"
