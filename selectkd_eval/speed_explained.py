"""Why is a draft as fast as it is, and how fast would it be at another length? A speedup record's numbers, taken apart.

The paper's Table 5 sets speed-ups beside acceptances without what lies between them. `explain` puts the acceptance and
the costs that were measured inside the runs into the formulas of `speed_model` and says how far each simplification is
from the clock. `predicted` needs no speculative run: the target's text, read again, gives the target calls of every
draft length, and the cost of a call with n rows their seconds.

It times nothing and fits nothing: no number here is adjusted to the speed-up it is compared with. Which acceptance goes
with speed over several drafts is `speed_links`' question.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import NamedTuple

import numpy as np

from selectkd_eval import bootstrap, measures, speed_model, speeds, stats
from selectkd_eval.measures import Row, Terms
from selectkd_eval.speeds import Arm
from selectkd_eval.stats import Estimate, Floats


@dataclass(frozen=True)
class Explained:
    """One arm's speed-up in decoding and what the formulas make of it. Costs are in plain decoding's seconds per token:
    `c` of a draft call, `v` of verifying, `o` of accepting and cutting the caches; None where the engine has no timers.

    alpha        accepted / tested
    block        accepted / drafted
    tokens       tokens per target call as counted, `tokens_iid` by the formula from alpha
    drafted      tokens drafted per target call
    leviathan    speed-up from alpha and c alone
    iid, costed  speed-up with all costs, from `tokens_iid` and from `tokens`
    measured     speed-up of decoding by the clock
    """

    arm: Arm
    alpha: Estimate
    block: float
    tokens: Estimate
    tokens_iid: float
    drafted: float
    measured: Estimate
    c: float | None = None
    v: float | None = None
    o: float | None = None
    leviathan: float | None = None
    iid: float | None = None
    costed: float | None = None

    @property
    def acceptance_factor(self) -> float:
        """What one alpha for every position gets wrong: tokens per target call as counted, over the formula's."""
        return self.tokens.value / self.tokens_iid

    @property
    def cost_factor(self) -> float | None:
        """What "verifying costs one call, and every step drafts gamma" gets wrong."""
        if self.costed is None or self.leviathan is None:
            return None
        return self.costed / self.leviathan / self.acceptance_factor

    @property
    def rest(self) -> float | None:
        """What nothing here explains: the clock over all that was counted and timed inside the runs, so that
        `leviathan` times the three factors is `measured`. The reference engine's stages add up to its decoding: there
        the rest differs from 1 only by medians and by how runs vary, and `predicted` is the test of the costs.
        """
        return None if self.costed is None else self.measured.value / self.costed


def explain(
    rows: Iterable[Row], arm: Arm, task: str | None = None, *, resamples: int = stats.RESAMPLES, seed: int = 0
) -> Explained:
    """One arm, over one task or all; NaN where nothing was measured."""
    rows = list(rows)
    counted = {what: speeds.acceptance(rows, arm, what, task) for what in ("alpha", "block", "tokens", "drafted")}
    alpha, tokens = (counted[what].estimate(resamples, seed) for what in ("alpha", "tokens"))
    drafted = counted["drafted"].value
    iid = speed_model.expected_tokens(alpha.value, arm.gamma) if alpha.n else float("nan")
    measured = speeds.speedup(rows, arm, "decode", task).estimate(resamples, seed)
    found = Explained(arm, alpha, counted["block"].value, tokens, iid, drafted, measured)
    costs = in_place(rows, arm, task)
    if costs is None or not alpha.n:
        return found
    return replace(
        found,
        **costs._asdict(),
        leviathan=speed_model.leviathan(alpha.value, arm.gamma, costs.c),
        iid=speed_model.with_cost(iid, drafted, *costs),
        costed=speed_model.with_cost(tokens.value, drafted, *costs),
    )


class Costs(NamedTuple):
    """In plain decoding's seconds per token: a draft call, verifying, and accepting with cutting the caches."""

    c: float
    v: float
    o: float


# for each of Costs: the stages whose seconds it is, and what is counted
_STAGES = ((("draft_s",), "drafted"), (("verify_s",), "steps"), (("accept_s", "crop_s"), "steps"))


def in_place(rows: Iterable[Row], arm: Arm, task: str | None = None) -> Costs | None:
    """What an arm's own runs spent; None without timers. As in the speed-up, a text counts the median of its
    repetitions.
    """
    plain, tokens = 0.0, 0
    spent, counted = np.zeros((2, len(_STAGES)))
    for row in speeds.timed(rows, task):
        base = speeds.seconds(row, Arm(-1, 0, arm.batch), "decode")
        runs = [run for run in speeds.runs_of(row, arm) if _has_timers(run)]
        if base is None or not runs:
            continue
        plain, tokens = plain + base, tokens + max(int(row["length"]) - 1, 1)
        for place, (stages, count) in enumerate(_STAGES):
            each = [sum(run[stage] for stage in stages) / run[count] for run in runs if run[count]]
            if each:
                many = float(np.mean([run[count] for run in runs]))
                spent[place] += median(each) * many
                counted[place] += many
    if not plain or not counted.all():
        return None
    return Costs(*(float(value) for value in spent / counted / (plain / tokens)))


def _has_timers(run: Row) -> bool:
    return all(run.get(stage) is not None for stages, _ in _STAGES for stage in stages)


# ---- any draft length, from one text ------------------------------------------------------------


class Prediction(NamedTuple):
    """One draft length: tokens per target call and speed-up of decoding as predicted, and as measured where that length
    was timed. `survival` predicts the tokens from the longest timed run alone, 1 + U_1 + ... + U_gamma of its
    `speeds.positions`; a text's end, where steps are cut short, is not in it, so it is too high on short texts. `ratio`
    is predicted over measured, paired by prompt. `best` is the share of resampled prompts in which this length is the
    fastest (None of one prompt), `regret` what it loses against the fastest, as a share of that one's speed. What needs
    the cost of calls is None where no engine could time them.
    """

    gamma: int
    tokens_per_call: float
    survival: float | None = None
    speedup: Estimate | None = None
    measured_tokens: float | None = None
    measured: Estimate | None = None
    ratio: Estimate | None = None
    best: float | None = None
    regret: float | None = None


def predicted(
    rows: Iterable[Row],
    draft: int,
    most: int | None = None,
    task: str | None = None,
    *,
    resamples: int = stats.RESAMPLES,
    seed: int = 0,
) -> list[Prediction]:
    """Every draft length from 1 to `most`, by default the longest that was timed; empty where no text was read again.

    The target calls come from the target's text, their seconds from the cost of calls with n rows and of draft calls,
    text by text. One thing is taken from the speculative runs, what accepting and cutting the caches add to a call (see
    `_added`), because no call alone has it. A text begins after its first token, as in an engine whose prefill gives
    that one; where it does not the target calls are one more at most.
    """
    rows = list(rows)
    texts = list(speeds.read_again(rows, draft, "chance", task))
    timed = [arm.gamma for arm in speeds.arms(rows, task) if arm.draft == draft and arm.batch == 1]
    most = most or max(timed, default=0)
    if not texts or not most:
        return []
    counts = speed_model.replay_all([chances for _, chances in texts], list(range(1, most + 1)))
    calls, accepted = counts.calls.sum(axis=0), counts.accepted.sum(axis=0)
    survival = _survival(rows, Arm(draft, max(timed)), task) if timed else []
    clocked = {gamma: speeds.speedup(rows, Arm(draft, gamma), "decode", task) for gamma in timed if gamma <= most}
    found = []
    for index in range(most):
        tokens = float((calls[index] + accepted[index]) / calls[index]) if calls[index] else float("nan")
        one = Prediction(index + 1, tokens, survival[index + 1] if index + 1 < len(survival) else None)
        if one.gamma in clocked:
            measured = clocked[one.gamma].estimate(resamples, seed)
            per_call = speeds.acceptance(rows, Arm(draft, one.gamma), "tokens", task).value
            one = one._replace(measured=measured if measured.n else None, measured_tokens=per_call)
        found.append(one)
    expected = _expected_seconds(rows, draft, texts, counts, task)
    return found if expected is None else _with_speed(found, expected, clocked, resamples, seed)


def fastest(found: Iterable[Prediction]) -> tuple[Prediction, Estimate, float] | None:
    """The draft length that is predicted to be the fastest, its speed-up, and the share of resamples in which it is;
    None where that is not known.
    """
    known = [(one, one.speedup, one.best) for one in found if one.speedup is not None and one.best is not None]
    return max(known, key=lambda one: one[1].value, default=None)


def _survival(rows: Sequence[Row], arm: Arm, task: str | None) -> list[float]:
    """Tokens per target call at draft lengths 0, 1, ... from one arm's trace; empty without one."""
    _, _, table = speeds.step_counts(rows, arm, task)
    counts = [(table[:, i:, i:].sum(), table[:, i:, :].sum()) for i in range(1, table.shape[1])]
    return speed_model.survival_tokens([kept / drafted for kept, drafted in counts if drafted]) if len(table) else []


def _with_speed(
    found: list[Prediction], expected: list[Terms], clocked: Mapping[int, Terms], resamples: int, seed: int
) -> list[Prediction]:
    """Predictions with their speed-ups, from every length's plain and speculative seconds by prompt, all under the same
    resampled prompts.
    """
    prompts, most = expected[0].prompts, len(expected)
    same = {gamma: most + row for row, gamma in enumerate(g for g, one in clocked.items() if one.prompts == prompts)}
    both = [*expected, *(clocked[gamma] for gamma in same)]
    num, den = (np.stack([getattr(one, what) for one in both]) for what in ("num", "den"))
    draws = bootstrap.ratios(num, den, expected[0].merged_strata, resamples, seed)
    values = num.sum(axis=1) / den.sum(axis=1)
    best = np.bincount(draws[:most].argmax(axis=0), minlength=most) / resamples

    def estimate(value: float, drawn: Floats) -> Estimate:
        low, high = bootstrap.limits(drawn, value)
        return Estimate(value, low, high, len(prompts), f"bootstrap over prompts, {resamples:,} resamples")

    completed = []
    for index, one in enumerate(found):
        ratio = None
        if (row := same.get(one.gamma)) is not None:
            ratio = estimate(float(values[index] / values[row]), draws[index] / draws[row])
        lost = float(1 - values[index] / values[:most].max())
        speed = estimate(float(values[index]), draws[index])
        share = float(best[index]) if len(prompts) > 1 else None
        completed.append(one._replace(speedup=speed, ratio=ratio, best=share, regret=lost))
    return completed


def _expected_seconds(
    rows: Sequence[Row],
    draft: int,
    texts: Sequence[tuple[Row, Floats]],
    counts: speed_model.ReplayedAll,
    task: str | None,
) -> list[Terms] | None:
    """Seconds of plain decoding over those of each draft length, by prompt; None where no text has the cost of its
    calls.
    """
    most = counts.calls.shape[1]
    costs = _call_seconds(rows, draft, most)
    kept = [index for index, (row, _) in enumerate(texts) if str(row["prompt"]) in costs]
    if not kept:
        return None
    target, drafting = (np.array(part) for part in zip(*(costs[str(texts[i][0]["prompt"])] for i in kept), strict=True))
    seconds = (counts.sizes[kept] * target[:, None, :]).sum(axis=-1)
    seconds += counts.drafted[kept] * drafting[:, None] + counts.calls[kept] * _added(rows, draft, task)
    plain = target[:, 0] * [len(texts[index][1]) for index in kept]
    clusters = [str(texts[index][0]["cluster"]) for index in kept]
    named = {str(texts[index][0]["cluster"]): str(texts[index][0]["task"]) for index in kept}
    return [
        measures.terms(zip(clusters, plain.tolist(), seconds[:, length].tolist(), strict=True), tasks=named)
        for length in range(most)
    ]


def _call_seconds(rows: Iterable[Row], draft: int, most: int) -> dict[str, tuple[list[float], float]]:
    """By text: median seconds of a target call with 1 to `most` + 1 rows, and of a draft call. Texts near the end of a
    model's positions, where no such call fits, are left out.
    """
    found = {}
    for row in measures.good(rows):
        if "target" not in row or not row.get("draft", {}).get(str(draft)):
            continue
        calls = [row["target"].get(str(count)) for count in range(1, most + 2)]
        if all(calls):
            found[str(row["prompt"])] = ([median(call) for call in calls], median(row["draft"][str(draft)]))
    return found


def _added(rows: Sequence[Row], draft: int, task: str | None) -> float:
    """Seconds that accepting and cutting the caches add to a target call, beyond choosing a token, which every timed
    call does; from all runs of the draft, 0 where the engine does not tell.
    """
    own, base = [], []
    for row in speeds.timed(rows, task):
        for run in row["runs"]:
            if run["batch"] == 1 and run["steps"] and run.get("accept_s") is not None:
                if run["draft"] == draft and run.get("crop_s") is not None:
                    own.append((run["accept_s"] + run["crop_s"]) / run["steps"])
                elif run["gamma"] == 0:
                    base.append(run["accept_s"] / run["steps"])
    return max(0.0, median(own) - (median(base) if base else 0.0)) if own else 0.0
