"""Which acceptance goes with speed? Rank correlations over the drafts of one speedup record.

The paper trains for token acceptance (TAR, Eq. 13), which is teacher-forced, and hopes for its Table 5. Here are both
of the same students: what reading the target's text again says of a draft, and the tokens per target call it then had.
Over drafts a correlation says whether the better student by one number is the better by the other; over (prompt, draft)
pairs, whether that holds text by text.

Intervals resample prompts. They say how well these drafts are known, not what other drafts would show: three students
in one order have a correlation of 1 whatever the interval. It does not train, time or decode.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np

from selectkd_eval import bootstrap, speeds
from selectkd_eval.measures import Row, Terms
from selectkd_eval.speeds import Arm
from selectkd_eval.stats import Estimate, Floats

FEWEST = 3  # drafts: two are always in order or in reverse
QUANTITIES = ("top5", "agreement", "overlap", "alpha")
_HELD = 1 << 21  # weights held at once


class Link(NamedTuple):
    """Spearman's correlation of one quantity (three of `speeds.TEXT`, and alpha as counted in the runs) with tokens
    per target call at draft length `gamma`, over `n` drafts or (prompt, draft) pairs. None for fewer than FEWEST drafts
    or points, and where one side is the same everywhere.
    """

    what: str
    over: Literal["drafts", "prompts"]
    gamma: int
    n: int
    spearman: Estimate | None


def links(
    rows: Iterable[Row], gamma: int | None = None, task: str | None = None, *, resamples: int = 2_000, seed: int = 0
) -> list[Link]:
    """Every quantity over drafts and over (prompt, draft) pairs, at batch 1 and the longest draft length that all
    drafts have, or another; empty where there is no text read again or no such length.
    """
    rows = list(rows)
    arms = [arm for arm in speeds.arms(rows, task) if arm.batch == 1]
    drafts = sorted({arm.draft for arm in arms})
    shared = [g for g in {arm.gamma for arm in arms} if all(Arm(draft, g) in arms for draft in drafts)]
    gamma = gamma or max(shared, default=0)
    if gamma not in shared:
        return []
    tokens = [speeds.acceptance(rows, Arm(draft, gamma), "tokens", task) for draft in drafts]
    found = []
    for what in QUANTITIES:
        if what == "alpha":
            values = [speeds.acceptance(rows, Arm(draft, gamma), what, task) for draft in drafts]
        else:
            values = [speeds.text(rows, draft, what, task) for draft in drafts]
        if any(x.prompts != tokens[0].prompts for x in (*values, *tokens)) or not tokens[0].prompts:
            continue
        found += [_over_drafts(what, gamma, values, tokens, resamples, seed)]
        found += [_over_prompts(what, gamma, values, tokens, resamples, seed)]
    return found


def _over_drafts(what: str, gamma: int, x: list[Terms], y: list[Terms], resamples: int, seed: int) -> Link:
    """One point per draft, its ratio over all prompts."""
    n, prompts = len(x), len(x[0].prompts)
    if n < FEWEST:
        return Link(what, "drafts", gamma, n, None)
    num, den = (np.stack([getattr(one, part) for one in (*x, *y)]) for part in ("num", "den"))
    draws = bootstrap.ratios(num, den, x[0].merged_strata, resamples, seed)
    with np.errstate(invalid="ignore"):
        values = num.sum(axis=1) / den.sum(axis=1)
    value = float(spearman(values[None, :n], values[None, n:])[0])
    return Link(what, "drafts", gamma, n, _estimate(value, spearman(draws[:n].T, draws[n:].T), prompts))


def _over_prompts(what: str, gamma: int, x: list[Terms], y: list[Terms], resamples: int, seed: int) -> Link:
    """One point per prompt and draft; a prompt's points are drawn together."""
    prompts, drafts = len(x[0].prompts), len(x)
    with np.errstate(invalid="ignore", divide="ignore"):
        points = [np.concatenate([one.num / one.den for one in side]) for side in (x, y)]
    whole = np.isfinite(points).all(axis=0)
    first, second = (side[whole] for side in points)
    n = len(first)
    if drafts < FEWEST or n < FEWEST:
        return Link(what, "prompts", gamma, n, None)
    value = float(weighted_spearman(first, second, np.ones((1, n)))[0])
    owner = np.tile(np.arange(prompts), drafts)[whole]
    rng = np.random.default_rng(np.random.SeedSequence([seed, prompts]))
    drawn = bootstrap.resampled_sums(np.eye(prompts), x[0].merged_strata, resamples, rng)  # how often each prompt
    chunk = max(1, _HELD // n)
    draws = [weighted_spearman(first, second, drawn[owner, at : at + chunk].T) for at in range(0, resamples, chunk)]
    return Link(what, "prompts", gamma, n, _estimate(value, np.concatenate(draws), prompts))


def _estimate(value: float, draws: Floats, prompts: int) -> Estimate | None:
    if not np.isfinite(value):
        return None
    low, high = bootstrap.limits(draws, value)
    return Estimate(value, low, high, prompts, f"bootstrap over prompts, {len(draws):,} resamples")


def spearman(x: Floats, y: Floats) -> Floats:
    """Spearman's correlation row by row, of (rows, n) each; NaN where one side is the same everywhere."""
    return _pearson(_ranks(x), _ranks(y), np.ones_like(x))


def _ranks(values: Floats) -> Floats:
    """Ranks row by row, equal values sharing their mean rank; for few columns."""
    apart = values[:, :, None] - values[:, None, :]
    return np.asarray((apart > 0).sum(axis=-1) + (apart == 0).sum(axis=-1) / 2)


def weighted_spearman(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Spearman's correlation of points (n,) that occur as often as each row of `weights`, (rows, n), says."""
    return _pearson(_weighted_ranks(x, weights), _weighted_ranks(y, weights), weights)


def _weighted_ranks(values: Floats, weights: Floats) -> Floats:
    """The mean rank of each point among all, each counted as often as it occurs, (rows, n)."""
    kinds, which = np.unique(values, return_inverse=True)
    order = np.argsort(which, kind="stable")
    starts = np.searchsorted(which[order], np.arange(len(kinds)))
    sizes = np.add.reduceat(weights[:, order], starts, axis=1)
    return np.asarray((np.cumsum(sizes, axis=1) - sizes / 2)[:, which])


def _pearson(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Weighted correlation row by row."""
    total = weights.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y = (side - (weights * side).sum(axis=1, keepdims=True) / total for side in (x, y))
        products = [(weights * a * b).sum(axis=1) for a, b in ((x, y), (x, x), (y, y))]
        return np.asarray(products[0] / np.sqrt(products[1] * products[2]))
