"""Which of two students wins more? Paired differences between win-rate records on the same prompts.

Students judged on the same prompts against the same answers share the prompts' difficulty, so their difference is
known better than either rate (two of AlpacaEval's models: a standard error of 1.16 points where unpaired rates have
1.60). Records of another judge, protocol, baseline or set of prompts are not paired, and the sentence says
which of these differs. Rows in, lines out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from selectkd_eval import measures, stats, win_rates
from selectkd_eval.records import Record
from selectkd_eval.stats import Estimate
from selectkd_eval.terminal import aligned, bullets, visible


@dataclass(frozen=True)
class Pair:
    """This record's win rate minus another's, in shares. `better` and `worse` count prompts; `settles` is the smallest
    true difference that these prompts find with 80 % power.
    """

    other: str
    a: float
    b: float
    delta: Estimate
    better: int
    worse: int
    p: float
    test: str
    settles: float


def pair(this: Record, other: Record, resamples: int = stats.RESAMPLES) -> Pair:
    """Compare two records that `differences` finds nothing against. Raises InputError when their prompts differ."""
    a, b = win_rates.win_rate(this), win_rates.win_rate(other)
    delta, _ = measures.delta(a, b, resamples)
    p, test = stats.swap_test(a.num, a.den, b.num, b.den, resamples=resamples)
    sides = np.sign(np.round(_shares(this) - _shares(other), 9))
    error = stats.paired_error(a.num, a.den, b.num, b.den, a.merged_strata)
    return Pair(
        name(other),
        a.value,
        b.value,
        delta,
        int((sides > 0).sum()),
        int((sides < 0).sum()),
        p,
        test,
        stats.detectable(stats.error_of(delta, error)),
    )


def differences(this: Record, other: Record) -> list[str]:
    """What besides the candidate differs between two records, in words: nothing, or they cannot be paired."""
    return [word for word, find in _SAME.items() if find(this.facts) != find(other.facts)]


_SAME: dict[str, Any] = {
    "judge": lambda facts: [_original(facts["judge"]).get(what) for what in ("name", "base_url", "tie_band")],
    "protocol": lambda facts: facts["protocol"].get("sha256") or facts["protocol"].get("name"),
    "baseline": lambda facts: facts["baseline"].get("fingerprint") or facts["baseline"].get("name"),
}


def lines(this: Record, others: Sequence[Record], resamples: int = stats.RESAMPLES) -> list[str]:
    """This record against each of the others: a table, and what may be concluded."""
    pairs, told = [], []
    called = Counter(map(name, others))
    for other in others:
        # Records of one model (its checkpoints, its decodings) are told apart by their files.
        label = name(other) if called[name(other)] == 1 else f"{name(other)} {other.path.stem}"
        mine = {str(row["prompt"]) for row in this.rows}
        theirs = {str(row["prompt"]) for row in other.rows}
        if differing := differences(this, other):
            told.append(f"{label}: not paired, for it has another {' and another '.join(differing)}")
        elif mine != theirs:
            told.append(
                f"{label}: not paired, for it was judged on other prompts "
                f"({measures.apart(mine, theirs, ('here', 'there'))}): judge both on one set"
            )
        else:
            pairs.append(replace(pair(this, other, resamples), other=label))
    head = [f"{visible(name(this))} against others on the same prompts, paired:"]
    return [*head, *(_table(pairs) if pairs else []), *bullets([visible(text) for text in (*_words(pairs), *told)])]


def name(record: Record) -> str:
    """The candidate of a record, with its training seed where it has one."""
    card: Mapping[str, Any] = record.facts["candidate"]
    seed = card.get("seed")
    return f"{card.get('method') or card.get('name')}" + (f" (seed {seed})" if seed is not None else "")


def _original(judge: Mapping[str, Any]) -> Mapping[str, Any]:
    """Who judged: a record that is read from a file of judgements keeps what the first one said of its judge."""
    return judge.get("original") or judge


def _shares(record: Record) -> Any:
    """The share of wins per prompt, one half where nothing was decided.

    Every verdict counts alike: the weights that make up for verdicts missing in one order belong to the whole rate,
    and would make a prompt that went the same way in two records differ.
    """
    rule = win_rates.tie_rule(record)
    terms = win_rates.win_rate_terms(record.rows, "half" if rule == "half-per-order" else rule)
    return np.divide(terms.num, terms.den, out=np.full(len(terms.num), 0.5), where=terms.den > 0)


def _table(pairs: Sequence[Pair]) -> list[str]:
    adjusted = stats.holm([found.p for found in pairs])
    table = [["other", "this %", "other %", "delta", "95 % interval", "n", "better", "worse", "p", "Holm", "settles"]]
    for found, p in zip(pairs, adjusted, strict=True):
        delta = found.delta.scaled(100)
        table.append(
            [
                visible(found.other),
                *(_number(100 * rate) for rate in (found.a, found.b)),
                _number(delta.value, "+.2f"),
                "–" if math.isnan(delta.low) else f"[{delta.low:+.2f}, {delta.high:+.2f}]",
                *map(str, (delta.n, found.better, found.worse)),
                _p(found.p),
                _p(p),
                _number(100 * found.settles, ".1f"),
            ]
        )
    return aligned(table)


def _words(pairs: Sequence[Pair]) -> Iterator[str]:
    if not pairs:
        return
    tests = sorted({found.test for found in pairs})
    yield (
        f"better, worse: prompts of which this one has the larger, the smaller share of wins; p: {' or '.join(tests)}; "
        f"Holm: adjusted over these {len(pairs)}; settles: the smallest difference in points that these prompts find "
        "(80 % power, 5 % two-sided)"
    )
    for found, p in zip(pairs, stats.holm([one.p for one in pairs]), strict=True):
        if math.isnan(p):
            yield f"{found.other}: nothing was decided on one side at least"
            continue
        verdict = "not told apart"
        if p < 0.05:
            verdict = f"this one wins {'more' if found.delta.value > 0 else 'less'}"
        yield f"{found.other}: {verdict} (Holm-adjusted p {_p(p)})"


def _number(value: float, form: str = ".2f") -> str:
    return "–" if math.isnan(value) else format(round(value, 9) + 0.0, form)  # no -0.00


def _p(value: float) -> str:
    return "–" if math.isnan(value) else "<0.001" if value < 0.001 else f"{value:.3f}"
