"""Is the text still the target's own? From a speedup record's gate rows to a verdict, before any speed is looked at.

Greedy text is compared token by token: identical, different where two logits tie numerically, or a violation. Sampled
text can only be held against the target's distribution p: sums over prompts (`speculation.gate` takes them) become
test statistics, all of them in one family under Holm's rule at a level that does not cry wolf. Some findings need no
test: a token that p excludes, a refusal where the draft's q did not exceed p, counts that do not add up. The paper's
Table 5 takes losslessness for granted; engines in use have broken it (transformers#32867, vllm#55005).

The checks of `about` "text" say whether the text is the target's. Those about "counts" say whether what the engine
tells of its drafts is true: its text may be right all the same, but an acceptance made of such counts is not.

No model runs here, and a text that passes is not proven right: small faults need more text than was looked at.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from selectkd_eval import stats
from selectkd_eval.measures import Row, good

LEVEL = 0.001  # chance that a correct engine fails a run, all checks together
WORDS = ("identical", "tie", "violation")
PER_BIN = 20  # expected tokens per bin of ranks below which the chi-square distribution is too thin at the tail

# What is added up over prompts; the rest of an evidence row is carried by the functions below.
_COUNTS = ("tokens", "edge", "impossible", "miscounted", "misplaced", "overlap_off")
_SUMS = ("surprise", "likeness", "accepted", "given")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `draft` -1 is plain decoding; `gamma` None, all draft lengths of a draft together.

    `p` is None where a single case is one too many; then `statistic` counts the cases. `about`: "text" or "counts".
    """

    name: str
    draft: int
    gamma: int | None
    statistic: float
    p: float | None
    passed: bool
    words: str
    about: str = "text"


@dataclass(frozen=True)
class Verdict:
    """Counts of greedy texts by outcome, per gate row (its worst arm) and per (draft, gamma), and all checks."""

    prompts: dict[str, int]
    arms: dict[tuple[int, int], dict[str, int]]
    largest_tie: float
    checks: list[Check]

    @property
    def passed(self) -> bool:
        """Whether anything was looked at, no text was changed and every check passed."""
        return sum(self.prompts.values()) > 0 and not self.prompts["violation"] and not self.failed

    @property
    def failed(self) -> list[Check]:
        """The checks that did not pass."""
        return [check for check in self.checks if not check.passed]


def verdict(rows: Iterable[Row]) -> Verdict:
    """Everything that the gate found, from the rows of one record."""
    rows = good(rows)
    arms: dict[tuple[int, int], Counter[str]] = defaultdict(Counter)
    ties = [0.0]
    for one in _outcomes(rows):
        arms[one["draft"], one["gamma"]][one["outcome"]] += 1
        if one["outcome"] == "tie":
            ties.append(float(one["gap_ulps"]))
    counted = {arm: {word: found[word] for word in WORDS} for arm, found in sorted(arms.items())}
    found = _enumeration(rows) + _greedy_counts(rows) + _sampled(rows)
    return Verdict(lossless_counts(rows), counted, max(ties), _with_holm(found))


def passed(rows: Iterable[Row]) -> bool:
    """Whether the gate is open: greedy texts were compared, none was changed, and no check failed."""
    return verdict(rows).passed


def lossless_counts(rows: Iterable[Row]) -> dict[str, int]:
    """Greedy texts by outcome: every gate row counts once, as the worst that any draft did to it."""
    worst = Counter(
        max((one["outcome"] for one in row["outcomes"]), key=WORDS.index) for row in good(rows) if row.get("outcomes")
    )
    return {word: worst[word] for word in WORDS}


def lines(rows: Iterable[Row], names: Sequence[str] = ()) -> list[str]:
    """The sentences that the terminal prints; `names` are the drafts' in the record's order."""
    found = verdict(rows)
    counts = found.prompts
    tie = f" (at most {found.largest_tie:.1f} ulp)" if counts["tie"] else ""
    said = [
        f"greedy text against plain decoding on {sum(counts.values())} prompts: {counts['identical']} identical, "
        f"{counts['tie']} different at a numerical tie{tie}, {counts['violation']} violations"
    ]
    if counts["violation"]:
        said += [
            f"  {_arm(draft, gamma, names)}{arm['violation']} violations"
            for (draft, gamma), arm in found.arms.items()
            if arm["violation"]
        ]
    shown = [check for check in found.checks if check.name in ("enumeration", "accepted") and check.gamma is not None]
    said += [f"{_arm(check.draft, check.gamma, names)}{check.words}" for check in shown if check.passed]
    tested = [check.p for check in found.checks if check.p is not None]
    if tested:
        said.append(
            f"sampled text against the target's distribution: {len(tested)} tests, smallest p {min(tested):.2g}, "
            f"{sum(check.p is not None for check in found.failed)} below the level (Holm, {LEVEL:g})"
        )
    said += [f"FAILED: {_arm(check.draft, check.gamma, names)}{check.words}" for check in found.failed]
    return said


def _arm(draft: int, gamma: int | None, names: Sequence[str]) -> str:
    """What a sentence about one arm begins with."""
    if gamma == 0:
        return "" if draft < -1 else "plain decoding: "
    name = names[draft] if 0 <= draft < len(names) else f"draft {draft}"
    return f"{name}, gamma {gamma}: " if gamma else f"{name}, all gammas: "


def _outcomes(rows: Iterable[Row]) -> list[Mapping[str, Any]]:
    return [one for row in rows for one in row.get("outcomes") or ()]


# ---- checks ------------------------------------------------------------


def _enumeration(rows: Iterable[Row]) -> list[Check]:
    """The engine on a model small enough to write its distribution down. It belongs to no arm: draft -2, gamma 0."""
    checks = []
    for row in rows:
        if row.get("key") == "enumeration":
            words = (
                f"exact law of 3 tokens of a tiny model, {row['n']} texts: chi-square {row['chi2']:.1f} on {row['df']} "
                f"degrees of freedom (p = {row['p']:.2g}), total variation {row['tv']:.3f} where chance gives "
                f"{row['tv_expected']:.3f}"
            )
            checks.append(Check("enumeration", -2, 0, row["chi2"], row["p"], True, words))
    return checks


def _greedy_counts(rows: Iterable[Row]) -> list[Check]:
    """In greedy decoding a draft token is accepted exactly where the draft's best is the text's token."""
    sums: dict[tuple[int, int], Counter[str]] = defaultdict(Counter)
    for one in _outcomes(rows):
        for name in ("miscounted", "misplaced"):
            if one.get(name) is not None:
                sums[one["draft"], one["gamma"]][name] += one[name]
    return [
        check
        for (draft, gamma), found in sorted(sums.items())
        for check in _cases(draft, gamma, {"tokens": None, **found}, "greedy ")
    ]


def _sampled(rows: Iterable[Row]) -> list[Check]:
    """All checks of the sampled texts: per (draft, gamma), and per draft where it has several lengths."""
    groups: dict[tuple[int, int | None], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        for one in row.get("arms") or ():
            groups[one["draft"], one["gamma"]].append(one)
    lengths = Counter(draft for draft, _ in groups)
    for draft, gamma in list(groups):
        if lengths[draft] > 1:
            groups[draft, None] += groups[draft, gamma]
    found: list[Check] = []
    for (draft, gamma), some in sorted(groups.items(), key=lambda item: (item[0][0], item[0][1] or 0)):
        total = added(some)
        if gamma is not None:
            found += _cases(draft, gamma, total)
        found += _ranks(draft, gamma, total) + _rarest(draft, gamma, total) + _martingales(draft, gamma, total)
    return found


def _cases(draft: int, gamma: int, total: Mapping[str, Any], kind: str = "") -> list[Check]:
    """Findings of which one is too many."""
    said = {
        "impossible": ("text", "tokens to which the target gives no probability"),
        "miscounted": ("counts", "texts whose length is not that of their steps and accepted tokens"),
        "misplaced": ("counts", "draft tokens accepted where no draft could be, or refused where none could be"),
        "overlap_off": ("counts", "positions whose sum min(p, q) is not the one that the engine tells"),
    }
    return [
        Check(kind + name, draft, gamma, total[name], None, total[name] == 0, f"{total[name]} {kind}{words}", about)
        for name, (about, words) in said.items()
        if total.get(name) is not None
    ]


def _ranks(draft: int, gamma: int | None, total: Mapping[str, Any]) -> list[Check]:
    """Randomised ranks of the tokens under p are uniform."""
    bins, n = total["ranks"], sum(total["ranks"])
    while len(bins) % 2 == 0 and n < PER_BIN * len(bins):
        bins = [bins[i] + bins[i + 1] for i in range(0, len(bins), 2)]
    if n < PER_BIN * len(bins):
        return []
    expected = n / len(bins)
    chi2 = sum((count - expected) ** 2 for count in bins) / expected
    words = f"ranks of {n} tokens under the target: chi-square {chi2:.1f} on {len(bins) - 1} degrees of freedom"
    return [Check("ranks", draft, gamma, chi2, chi2_tail(chi2, len(bins) - 1), True, words)]


def _rarest(draft: int, gamma: int | None, total: Mapping[str, Any]) -> list[Check]:
    """One token in a thousand that is next to impossible moves no histogram: the least likely is looked at by itself.

    A token is among those of probability p(x) or less with just that much chance; n tokens were drawn.
    """
    tail = total["rarest"]
    words = f"the least likely of {total['tokens']} tokens is among {tail:.2g} of the target's probability"
    return [Check("rarest", draft, gamma, tail, min(1.0, total["tokens"] * tail), True, words)]


def _martingales(draft: int, gamma: int | None, total: Mapping[str, Any]) -> list[Check]:
    found = []
    for name in _SUMS:
        if (sums := total.get(name)) is None:
            continue
        z = sums["sum"] / math.sqrt(sums["var"]) if sums["var"] > 0 else 0.0
        words = {
            "surprise": f"surprise of {total['tokens']} tokens against the target's entropy (z = {z:+.2f})",
            "likeness": f"likeness of {total['tokens']} tokens to the draft's (z = {z:+.2f})",
            "accepted": f"{sums.get('seen', 0)} draws accepted where sum min(p, q) expects "
            f"{sums.get('expected', 0.0):.1f} (z = {z:+.2f})",
            "given": f"draws accepted, given the text, against min(1, q / p) (z = {z:+.2f})",
        }[name]
        noise = sums.get("noise", 0.0)
        step = sums["up"] if sums["sum"] > 0 else sums["down"]
        p = bennett(max(0.0, abs(sums["sum"]) - noise), sums["var"] + noise, step)
        about = "text" if name in ("surprise", "likeness") else "counts"
        found.append(Check(name, draft, gamma, z, p, True, words, about))
    return found


def _with_holm(checks: Sequence[Check]) -> list[Check]:
    adjusted = stats.holm([math.nan if check.p is None else check.p for check in checks])
    return [
        check if check.p is None else replace(check, passed=value > LEVEL)
        for check, value in zip(checks, adjusted, strict=True)
    ]


# ---- sums and tails ------------------------------------------------------------


def added(evidence: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The evidence of several texts as that of one: sums add, bounds are the largest, None is what no text tells."""
    total: dict[str, Any] = {}
    for name in _COUNTS:
        known = [one[name] for one in evidence if one.get(name) is not None]
        total[name] = sum(known) if known else None
    total["ranks"] = [sum(column) for column in zip(*(one["ranks"] for one in evidence), strict=True)]
    total["rarest"] = min(one["rarest"] for one in evidence)
    for name in _SUMS:
        parts = [one[name] for one in evidence if one.get(name) is not None]
        total[name] = None
        if parts:
            fields = {key: sum(part[key] for part in parts) for key in parts[0] if key not in ("up", "down")}
            total[name] = fields | {key: max(part[key] for part in parts) for key in ("up", "down")}
    return total


def bennett(distance: float, variance: float, step: float) -> float:
    """Two-sided p-value, at most, of a martingale that ends `distance` from 0.

    `variance` is the sum of its predictable variances and no increment in that direction exceeds `step`. Bennett's
    inequality (for martingales Freedman 1975) holds at any length; the normal distribution does not where q is nearly
    p and a rare refusal makes up all of the variance. Far from the bounds it is 2 exp(-z^2 / 2).
    """
    if distance <= 1e-6:
        return 1.0
    if variance <= 0 or step <= 0:
        return 0.0
    u = step * distance / variance
    return min(1.0, 2 * math.exp(-variance / step**2 * ((1 + u) * math.log1p(u) - u)))


def chi2_tail(statistic: float, df: int) -> float:
    """P(chi-square on `df` degrees of freedom >= statistic)."""
    from scipy.special import gammaincc

    return float(gammaincc(df / 2, statistic / 2))
