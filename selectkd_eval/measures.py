"""From a record's rows to its number: one function per verb, for terminal, tables and figures alike.

Every number of the paper is a ratio of sums over prompts: pass@1 (correct / answers), win rate (wins /
decided comparisons), TAR (accepted / tokens, Eq. 13), speed-up (seconds / seconds). The functions here (and those of
`win_rates` and `speeds`) bring rows into that form, `Terms`: a numerator and a denominator per prompt. Pooling training
seeds adds terms prompt by prompt, comparing two methods pairs them prompt by prompt, and `stats` turns either into an
interval that resamples prompts.

It reads no files, knows no model and draws nothing. Rows with an `error` are never counted as wrong
answers; the caller prints how many there are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from selectkd_eval import stats
from selectkd_eval.errors import InputError
from selectkd_eval.stats import Estimate, Floats

Row = Mapping[str, Any]

_SHOWN, _LONG = 3, 40  # prompts that a refusal names, and characters of each
NOTHING = Estimate(float("nan"), float("nan"), float("nan"), 0, "no data")


@dataclass(frozen=True)
class Terms:
    """Numerator and denominator per prompt, (N,) each, with the prompts' ids in sorted order.

    `proportion` says that the ratio is a share of successes, so that an interval at the edges is Wilson's. `strata`
    names every prompt's task, (N,), where there are several: resampling keeps the number of prompts of each.
    """

    prompts: tuple[str, ...]
    num: Floats
    den: Floats
    proportion: bool = False
    strata: tuple[str, ...] | None = None

    @property
    def value(self) -> float:
        """sum(num) / sum(den), NaN when there is nothing to divide by."""
        total = float(self.den.sum())
        return float(self.num.sum()) / total if total else float("nan")

    @property
    def merged_strata(self) -> Any:
        """The strata to resample within, small ones together; None where there is one."""
        return None if self.strata is None else stats.merged_strata(self.strata)

    def estimate(
        self,
        resamples: int = stats.RESAMPLES,
        seed: int = 0,
        method: Literal["percentile", "bca"] = "percentile",
    ) -> Estimate:
        """The ratio with its 95 % interval over prompts; n counts the prompts that have a denominator."""
        counted = int(np.count_nonzero(self.den))
        if not counted:
            return NOTHING
        if self.proportion and stats.at_the_edge(self.num, self.den):
            return stats.edge(self.num, self.den)
        found = stats.ratio(
            self.num, self.den, strata=self.merged_strata, resamples=resamples, seed=seed, method=method
        )
        return replace(found, n=counted)


def terms(
    parts: Iterable[tuple[str, float, float]], proportion: bool = False, tasks: Mapping[str, str] | None = None
) -> Terms:
    """Add up (prompt, num, den) by prompt; `tasks` names the task of every prompt."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for prompt, num, den in parts:
        sums[prompt][0] += num
        sums[prompt][1] += den
    prompts = tuple(sorted(sums))
    table = np.array([sums[prompt] for prompt in prompts], dtype=np.float64).reshape(-1, 2)
    named = None if tasks is None else tuple(tasks.get(prompt, "") for prompt in prompts)
    strata = named if named and len(set(named)) > 1 else None
    return Terms(prompts, table[:, 0], table[:, 1], proportion, strata)


def pool(parts: Sequence[Terms]) -> Terms:
    """The sums of several runs (training seeds), prompt by prompt, so that a prompt stays one unit."""
    tasks = {p: task for part in parts if part.strata for p, task in zip(part.prompts, part.strata, strict=True)}
    return terms(
        ((p, n, d) for part in parts for p, n, d in zip(part.prompts, part.num, part.den, strict=True)),
        all(part.proportion for part in parts),
        tasks or None,
    )


def delta(a: Terms, b: Terms, resamples: int = stats.RESAMPLES, seed: int = 0) -> tuple[Estimate, float]:
    """a minus b, paired by prompt, and its two-sided p-value; InputError when the prompts differ.

    The p-value is that of `stats.swap_test`: were the two alike, a prompt's results could as well be each other's. n
    counts the prompts that have a denominator on either side. Of shares of which few prompts differ, the limits are
    Wilson's: see `edges`.
    """
    same_prompts(a, b)
    if not len(a.prompts) or not a.den.sum() or not b.den.sum():
        return NOTHING, float("nan")
    found, _ = stats.paired_delta(a.num, a.den, b.num, b.den, strata=a.merged_strata, resamples=resamples, seed=seed)
    p, _ = stats.swap_test(a.num, a.den, b.num, b.den, resamples=resamples, seed=seed)
    if a.proportion and b.proportion and (few := stats.paired_edge_limits(a.num, a.den, b.num, b.den)):
        found = replace(found, low=few[0], high=few[1], method="Wilson, paired: few prompts differ")
    return replace(found, n=int(np.count_nonzero((a.den > 0) | (b.den > 0)))), p


def crossed(parts: Sequence[Terms], resamples: int = stats.RESAMPLES, seed: int = 0) -> Estimate:
    """The pooled ratio of several seeds over the same prompts, with prompts and seeds both resampled.

    Raises InputError when the prompts differ.
    """
    for part in parts[1:]:
        same_prompts(parts[0], part)
    num, den = (np.stack([getattr(part, what) for part in parts], axis=1) for what in ("num", "den"))
    if not den.sum():
        return NOTHING
    shares = all(part.proportion for part in parts)
    strata = parts[0].merged_strata
    found = stats.crossed(num, den, strata=strata, resamples=resamples, seed=seed, proportion=shares)
    return replace(found, n=int(np.count_nonzero(den.sum(axis=1))))


def same_prompts(a: Terms, b: Terms) -> None:
    """InputError unless both were measured on the same prompts."""
    if a.prompts == b.prompts:
        return
    raise InputError(
        f"the two methods were not measured on the same prompts ({apart(a.prompts, b.prompts)}), so they cannot be "
        f"paired: measure both on one set"
    )


def apart(a: Iterable[str], b: Iterable[str], sides: tuple[str, str] = ("in the first", "in the second")) -> str:
    """How two sets of prompts differ, in words: how many are on one side alone, on both, and which."""
    one, two = set(a), set(b)
    words = f"{len(one - two):,} only {sides[0]}, {len(two - one):,} only {sides[1]}, {len(one & two):,} in both"
    listed = [f"only {side}: {_some(only)}" for side, only in zip(sides, (one - two, two - one), strict=True) if only]
    return "; ".join([words, *listed])


def _some(prompts: set[str]) -> str:
    """The first few ids, the long ones by their beginning."""
    shown = [one if len(one) <= _LONG else f"{one[:_LONG]}…" for one in sorted(prompts)[:_SHOWN]]
    return ", ".join(shown) + (f" and {len(prompts) - _SHOWN:,} more" if len(prompts) > _SHOWN else "")


def good(rows: Iterable[Row]) -> list[Row]:
    """Rows that measured something."""
    return [row for row in rows if "error" not in row]


# ---- pass@1 ------------------------------------------------------------


def pass_at_1(rows: Iterable[Row], task: str | None = None) -> Terms:
    """Correct answers per problem (its seeds and samples together), over one task or all.

    A failed answer is neither right nor wrong: its problem stays, with nothing in either sum.
    """
    return terms(
        (
            (f"{row['task']}/{row['problem']}", float(row.get("correct", 0)), float("error" not in row))
            for row in rows
            if "problem" in row and (task is None or row["task"] == task)
        ),
        proportion=True,
    )


# ---- token acceptance ------------------------------------------------------------


def tar(rows: Iterable[Row], student: int, what: str = "greedy", macro: bool = True) -> Terms:
    """Mean of a per-token quantity on the held-out set, for one student of a `tar` record.

    `what` is the name of a per-prompt sum: greedy, greedy1, spec, alpha, fkl, nll, hellinger or
    teacher_entropy.
    macro: mean over sequences of per-sequence means (Eq. 13); otherwise pooled over tokens.
    """
    parts = []
    for row in good(rows):
        if row["student"] == student and row["n_tokens"]:
            total, n = float(row[what]), float(row["n_tokens"])
            parts.append((str(row["prompt"]), total / n, 1.0) if macro else (str(row["prompt"]), total, n))
    return terms(parts)


def tar_by(rows: Iterable[Row], student: int, by: str, bins: int, what: str = "greedy") -> list[Terms] | None:
    """The same pooled over the tokens of each bin, `by` by_entropy or by_position: `bins` terms over the same prompts.

    A prompt without a token in a bin has 0 in both sums there. None where a row has no breakdown (older records).
    """
    found = [row for row in good(rows) if row["student"] == student and row["n_tokens"]]
    if not found or any(by not in row or len(row[by]["n"]) != bins for row in found):
        return None
    return [
        terms((str(row["prompt"]), float(row[by][what][at]), float(row[by]["n"][at])) for row in found)
        for at in range(bins)
    ]


# ---- training ------------------------------------------------------------


def curve(rows: Iterable[Row], event: str, what: str) -> tuple[Floats, Floats]:
    """(steps, values) of a quantity of a train record, `event` step or validation; missing ones left out."""
    points = sorted(
        (float(row["step"]), float(row[what]))
        for row in good(rows)
        if row.get("event") == event and row.get(what) is not None
    )
    table = np.array(points, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def validated(rows: Iterable[Row], what: str) -> dict[int, Terms]:
    """By step, a validation's acceptance by response: `what` is tar_top_k or tar_spec_k, the mean of the responses'
    means (Eq. 13), or alpha, pooled over tokens. Empty for records that keep the means alone (older ones).
    """
    found = {}
    for row in good(rows):
        if row.get("event") == "validation" and (kept := row.get("responses")):
            means = enumerate(zip(kept[what], kept["n_tokens"], strict=True))
            each = ((f"{place:06}", mean, n) for place, (mean, n) in means if n)
            found[int(row["step"])] = terms(
                (p, mean * n, n) if what == "alpha" else (p, mean, 1.0) for p, mean, n in each
            )
    return found
