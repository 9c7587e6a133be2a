"""What does a win-rate record say, on one screen? The lines that `winrate` prints.

Every number comes from the record's rows through `measures`; nothing is stored. The denominator, what is missing
from it, and what the judge is stand beside the rate.
"""

from __future__ import annotations

import math
from typing import Any

from judges import protocols, replay
from judges.protocols import BOTH_ORDERS
from selectkd_eval import win_rates
from selectkd_eval.records import Record
from selectkd_eval.stats import Estimate


def lines(record: Record) -> list[str]:
    """The result of a finished winrate record, the number first."""
    facts, counts = record.facts, win_rates.verdict_counts(record.rows)
    terms = win_rates.win_rate(record)
    estimate = terms.estimate()
    protocol, judge = facts["protocol"], facts["judge"]
    out = [
        f"win rate {percent(estimate)}  {facts['candidate']['method']} over {facts['baseline']['method']}",
        f"  interval     95 %, {estimate.method}, prompts as clusters",
        f"  judge        {judge['name']}: {judge['note']}",
        f"  protocol     {protocol['name']} ({protocols.in_words(protocol)})"
        + (f", sha256 {protocol['sha256'][:12]}" if protocol["sha256"] else ""),
        "  verdicts     {candidate} won, {baseline} lost, {tie} tied, {unreadable} unreadable, {failed} failed".format(
            **counts
        ),
        f"  denominator  {terms.den.sum():g} counted on {estimate.n} prompts, from {len(record.rows)} judgements on "
        f"{len({row['prompt'] for row in record.rows})} prompts",
    ]
    if repeated := facts["baseline"].get("repeated_prompts"):
        out.append(f"  repeated     {repeated} entries of the baseline repeat a prompt: its first answer is judged")
    out += _reasons(record)
    missing = counts["unreadable"] + counts["failed"]
    if missing:
        low, high = win_rates.win_rate_bounds(record)
        out.append(
            f"  bounds       {number(low)} if all {missing} without a verdict were lost, {number(high)} if all were won"
        )
    out += _positions(record)
    if judge["kind"] == "replay":
        out += _published(record)
    if counts["failed"] and judge["kind"] != "replay":
        out.append(f"  {counts['failed']} failed: the same command tries them again")
    out.append(f"  record       {record.path}")
    return out


def percent(estimate: Estimate) -> str:
    """12.3 % [10.0, 14.6], or a dash when there is nothing to count."""
    if math.isnan(estimate.value):
        return "– (no decided comparison)"
    scaled = estimate.scaled(100)
    return f"{scaled.value:.2f} % [{scaled.low:.2f}, {scaled.high:.2f}]"


def number(share: float) -> str:
    """A share in percent, or a dash."""
    return "–" if math.isnan(share) else f"{share * 100:.2f} %"


def _reasons(record: Record) -> list[str]:
    """What was settled without a judge, and why replies could not be read: counts by reason."""
    counts: dict[str, int] = {}
    for row in record.good:
        if row.get("reason") and (row["verdict"] == "unreadable" or row.get("asked") is False):
            counts[row["reason"]] = counts.get(row["reason"], 0) + 1
    return ["  of these     " + ", ".join(f"{n} {what}" for what, n in sorted(counts.items()))] if counts else []


def _positions(record: Record) -> list[str]:
    """The rate by the position in which the candidate was shown: a fair judge has one rate."""
    if record.facts["judge"]["kind"] == "likelihood":
        return ["  position     does not matter: a likelihood judge sees one answer at a time"]
    ties = record.facts["protocol"]["ties"]
    parts = []
    for order, where in zip(BOTH_ORDERS, ("first", "second"), strict=True):
        terms = win_rates.win_rate_terms([row for row in record.rows if row["order"] == order], ties)
        parts.append(f"shown {where} {percent(terms.estimate())} (n {terms.den.sum():g})")
    return ["  position     " + ", ".join(parts)]


def _published(record: Record) -> list[str]:
    """AlpacaEval's own figures, for comparison with its leaderboard digit by digit."""
    raw: list[Any] = [-1.0 if row["verdict"] == "failed" else row["raw"] for row in record.rows]
    row = replay.leaderboard_row(raw)
    excluded = win_rates.win_rate_terms([{**r, "preference": None} for r in record.rows], "excluded").estimate()
    return [
        "  AlpacaEval   " + ", ".join(f"{name} {value!r}" for name, value in row.items()),
        f"  ties out     {percent(excluded)} of {row['n_wins'] + row['n_wins_base']} decided",
    ]
