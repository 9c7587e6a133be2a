"""Does the judge favour a position? Rates by where the candidate was shown, and what changes when the answers swap.

A fair judge has one win rate in both positions. Where every comparison was judged in both orders, the same pair of
answers says how often the verdict turned with the order; where the order was drawn, only the two groups of prompts can
be compared. AlpacaEval 2's judge gives one model 9 % shown first and 25 % shown second: a drawn order is fair on
average, but says little about a single prompt. Nothing is corrected here; judging both orders is the correction.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from judges import wording
from judges.resampling import Resampling
from selectkd_eval import stats
from selectkd_eval.measures import NOTHING, Row, Terms, terms
from selectkd_eval.stats import Estimate
from selectkd_eval.win_rates import DECIDED, over, tasks_of, undecided, win_rate_terms

FIRST, SECOND = "candidate-first", "baseline-first"
_DEFAULT = Resampling()

# What the two orders of one comparison say together, by (verdict candidate-first, verdict baseline-first).
OUTCOMES = {
    ("candidate", "candidate"): "win",
    ("baseline", "baseline"): "loss",
    ("tie", "tie"): "tie",
    ("candidate", "baseline"): "first",  # whoever was shown first won
    ("baseline", "candidate"): "second",
}
KINDS = ("win", "loss", "tie", "first", "second", "half-tie")  # half-tie: a tie in one order only


@dataclass(frozen=True)
class BothOrders:
    """Comparisons judged in both orders: how many are of each kind in KINDS, and how often the order decided."""

    counts: dict[str, int]
    flipped: Estimate  # the other answer won in the other order
    changed: Estimate  # any change, a tie in one order included
    incomplete: int  # judged in both orders, without a verdict in one of them

    @property
    def n(self) -> int:
        """Comparisons with two verdicts."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class Positions:
    """The win rate by shown position, their difference, and how often the answer shown first wins."""

    first: Estimate  # win rate where the candidate was shown first
    second: Estimate
    difference: Estimate  # first minus second
    preference: Estimate  # share of decided verdicts for the answer shown first: 1/2 for a fair judge
    both: BothOrders | None  # None where no comparison was judged in both orders


def positions(rows: Iterable[Row], ties: str, how: Resampling = _DEFAULT) -> Positions:
    """The position report of judged rows under a tie rule of `win_rates.TIES`.

    One position alone has no other order to agree with or to average over: rules about two orders count a tie half
    here. The rates are over all that the record's win rate counts, so that they are its two parts; what both orders say
    and the preference leave out what was settled without a judge.
    """
    rows = list(rows)
    asked = [row for row in rows if row.get("asked") is not False]
    rule = "excluded" if ties == "excluded" else "half"
    parts = [win_rate_terms([row for row in rows if row["order"] == order], rule) for order in (FIRST, SECOND)]
    tasks = tasks_of(rows)
    first, second = (over(part, tasks) for part in parts)
    # Prompts in both sums are rare under a drawn order: several answers of one prompt may be shown differently.
    shared = int(np.count_nonzero((first.den > 0) & (second.den > 0)))
    return Positions(
        first.estimate(how.resamples, how.seed),
        second.estimate(how.resamples, how.seed),
        _difference(first, second, shared, how),
        _preference(asked, tasks).estimate(how.resamples, how.seed),
        both_orders(asked, how),
    )


def _difference(first: Terms, second: Terms, shared: int, how: Resampling) -> Estimate:
    """First minus second. Prompts are resampled with all they hold, which pairs those that have both orders."""
    if not first.den.sum() or not second.den.sum():
        return NOTHING
    n = int(np.count_nonzero((first.den > 0) | (second.den > 0)))
    sides = [(part.num[part.den > 0], part.den[part.den > 0]) for part in (first, second)]
    if any(stats.at_the_edge(*side) for side in sides):
        return _by_limits(first, second, n)
    found, _ = stats.paired_delta(
        first.num, first.den, second.num, second.den, strata=first.merged_strata, resamples=how.resamples, seed=how.seed
    )
    design = (
        "paired by prompt" if shared == n else "other prompts in the other order" if not shared else "partly paired"
    )
    return replace(found, n=n, method=f"bootstrap over prompts, {design}, {how.resamples:,} resamples")


def _by_limits(first: Terms, second: Terms, n: int) -> Estimate:
    """The difference with limits from each side's Wilson limits, as if independent (Newcombe 1998, method 10)."""
    a, b = (stats.wilson(part.value * (m := int(np.count_nonzero(part.den))), m) for part in (first, second))
    value = a.value - b.value
    low = value - math.hypot(a.value - a.low, b.high - b.value)
    high = value + math.hypot(a.high - a.value, b.value - b.low)
    return Estimate(value, low, high, n, "Newcombe's, from Wilson's limits")


def _preference(rows: Iterable[Row], tasks: dict[str, str]) -> Terms:
    """Decided verdicts for the answer shown first, and all decided ones, per prompt."""
    parts = [
        (str(row["prompt"]), float((row["verdict"] == "candidate") == (row["order"] == FIRST)), 1.0)
        for row in rows
        if not undecided(row) and row["verdict"] != "tie"
    ]
    return terms(parts, proportion=True, tasks=tasks)


def both_orders(rows: Iterable[Row], how: Resampling = _DEFAULT) -> BothOrders | None:
    """What the two orders of every comparison (prompt, seed, repeat) say together; None without any such pair."""
    together: dict[tuple[str, Any, Any], dict[str, str]] = defaultdict(dict)
    rows = list(rows)
    tasks = tasks_of(rows)
    for row in rows:
        unit = (str(row["prompt"]), row.get("seed"), row.get("sample") or 0)
        together[unit][row["order"]] = "" if undecided(row) else row["verdict"]
    pairs = [(unit[0], (by[FIRST], by[SECOND])) for unit, by in together.items() if len(by) > 1]
    if not pairs:
        return None
    read = [(prompt, OUTCOMES.get(words, "half-tie")) for prompt, words in pairs if set(words) <= set(DECIDED)]
    counts = {kind: sum(found == kind for _, found in read) for kind in KINDS}

    def share(kinds: set[str]) -> Estimate:
        parts = ((prompt, float(found in kinds), 1.0) for prompt, found in read)
        return terms(parts, proportion=True, tasks=tasks).estimate(how.resamples, how.seed)

    flipped, changed = share({"first", "second"}), share({"first", "second", "half-tie"})
    return BothOrders(counts, flipped, changed, incomplete=len(pairs) - len(read))


# ---- in words ------------------------------------------------------------


def lines(found: Positions) -> list[str]:
    """What `winrate` prints about positions."""
    out = wording.line(
        "position",
        f"shown first {wording.share(found.first)} (n {found.first.n:,}), "
        f"shown second {wording.share(found.second)} (n {found.second.n:,})",
    )
    out += wording.line("", f"first minus second {wording.points(found.difference)}: {in_words(found)}")
    if found.first.n and found.second.n:
        out += wording.line("", f"the answer shown first won {wording.share(found.preference)} of the decided verdicts")
    if found.both is not None:
        out += _both_lines(found.both)
    return out


def in_words(found: Positions) -> str:
    """Which position the judge favours, as far as the interval of the difference allows to say."""
    if math.isnan(found.difference.value):
        return "one position alone shows nothing"
    if not found.difference.excludes(0):
        return "no favoured position can be seen"
    return f"the judge favours the answer shown {'first' if found.difference.value > 0 else 'second'}"


def _both_lines(both: BothOrders) -> list[str]:
    counts = both.counts
    rest = f"; {both.incomplete:,} without a verdict in one order" if both.incomplete else ""
    return wording.line(
        "both orders",
        f"of {wording.some(both.n, 'comparison')} {counts['win']:,} won twice, {counts['loss']:,} lost twice, "
        f"{counts['tie']:,} tied twice, {counts['half-tie']:,} tied in one order only, {counts['first']:,} won by the "
        f"first shown twice, {counts['second']:,} by the second{rest}",
    ) + wording.line(
        "flip rate",
        f"{wording.share(both.flipped)} have the other winner in the other order; {wording.share(both.changed)} change "
        f"at all",
    )
