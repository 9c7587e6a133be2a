"""From a speedup record's rows to its numbers: ratios of seconds, and acceptance under each of its names.

The paper's Table 5 sets a speed-up beside "Acpt."; here both are ratios of sums over prompts, as in `measures`, and
acceptance has as many names as it has definitions in use. One record times plain decoding twice and every (draft, draft
length) on the same prompts, so that drafts are compared within a prompt. Texts of one conversation share a `cluster`,
the unit that intervals resample, within its task.

Nothing here times, draws or runs a model; what explains a speed-up is `speed_explained`'s matter, whether text was left
as it is `lossless`'s.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from selectkd_eval import stats
from selectkd_eval.errors import InputError, choose
from selectkd_eval.measures import NOTHING, Row, Terms, good, same_prompts, terms
from selectkd_eval.stats import Estimate, Floats


class Arm(NamedTuple):
    """A way to decode: `draft` is the draft's place in the record's list, `gamma` its length (0: plain decoding, whose
    `draft` is -1), `batch` the number of texts decoded together.
    """

    draft: int
    gamma: int
    batch: int = 1

    @property
    def plain(self) -> bool:
        return self.gamma == 0


PLAIN = Arm(-1, 0)


# ---- what a record holds ------------------------------------------------------------


def timed(rows: Iterable[Row], task: str | None = None) -> Iterator[Row]:
    """Rows of timed texts (or waves of them), of one task or all.

    Raises InputError for a record of an earlier version, whose rows are single runs.
    """
    for row in good(rows):
        if "arm" in row:
            raise InputError(
                "these speed-ups were measured by an earlier version, which wrote one row per run: run `speedup` again"
            )
        if "runs" in row and (task is None or row["task"] == task):
            yield row


def runs(rows: Iterable[Row], task: str | None = None) -> list[dict[str, Any]]:
    """Every timed run with its prompt, cluster, task and length."""
    return [
        {**run, **{name: row[name] for name in ("prompt", "cluster", "task", "length")}}
        for row in timed(rows, task)
        for run in row["runs"]
    ]


def arms(rows: Iterable[Row], task: str | None = None) -> list[Arm]:
    """The speculative arms, by batch, draft and draft length."""
    found = {_arm(run) for row in timed(rows, task) for run in row["runs"]}
    return sorted((arm for arm in found if not arm.plain), key=lambda arm: (arm.batch, arm.draft, arm.gamma))


def batches(rows: Iterable[Row], task: str | None = None) -> list[int]:
    """Numbers of texts decoded together, smallest first."""
    return sorted({int(run["batch"]) for row in timed(rows, task) for run in row["runs"]})


def tasks(rows: Iterable[Row]) -> list[str]:
    """The tasks whose texts were timed, in order of first appearance; waves of several tasks are of none."""
    return list(dict.fromkeys(str(row["task"]) for row in timed(rows) if row["task"]))


def _arm(run: Row) -> Arm:
    return Arm(int(run["draft"]), int(run["gamma"]), int(run["batch"]))


def runs_of(row: Row, arm: Arm, control: bool = False) -> list[Row]:
    """A timed text's runs under one arm; `control` asks for plain decoding's second timing instead of its first."""
    draft, gamma, batch = arm
    return [
        run
        for run in row["runs"]
        if run["gamma"] == gamma
        and run["draft"] == draft
        and run["batch"] == batch
        and bool(run.get("control")) is control
    ]


# ---- seconds ------------------------------------------------------------


def _per_token(run: Row) -> float | None:
    """Decoding's seconds per token after the first; None where the engine does not time it."""
    return run["decode_s"] / run["decode_tokens"] if run.get("decode_s") and run.get("decode_tokens") else None


# name: seconds of a run, how it is called
CLOCKS: dict[str, tuple[Callable[[Row], float | None], str]] = {
    "wall_s": (lambda run: run.get("wall_s"), "end to end"),
    "decode": (_per_token, "decode only"),
    "cpu_s": (lambda run: run.get("cpu_s"), "CPU time"),
}


def seconds(row: Row, arm: Arm, clock: str = "wall_s", control: bool = False) -> float | None:
    """The median over a timed text's repetitions under one arm; None where nothing was timed.

    `clock` is a name of CLOCKS. decode leaves out the prompt's prefill and the first token: seconds per token, times
    the tokens after the first, whose number all arms share.
    """
    reading, _ = choose(clock, CLOCKS, "clock")
    found = [value for run in runs_of(row, arm, control) if (value := reading(run)) is not None]
    if not found:
        return None
    return median(found) * (max(int(row["length"]) - 1, 1) if clock == "decode" else 1)


def _against(
    rows: Iterable[Row], clock: str, task: str | None, base: tuple[Arm, bool], other: tuple[Arm, bool]
) -> Terms:
    """Seconds under `base` over seconds under `other`, both (arm, control), on texts timed under both."""
    parts, named = [], {}
    for row in timed(rows, task):
        num, den = seconds(row, base[0], clock, base[1]), seconds(row, other[0], clock, other[1])
        if num is not None and den is not None:
            parts.append((str(row["cluster"]), num, den))
            named[str(row["cluster"])] = str(row["task"])
    return terms(parts, tasks=named)


def speedup(rows: Iterable[Row], arm: Arm, clock: str = "wall_s", task: str | None = None) -> Terms:
    """Seconds of plain decoding over seconds of `arm`, at the arm's batch: per text the medians of the repetitions."""
    return _against(rows, clock, task, (Arm(-1, 0, arm.batch), False), (arm, False))


def control(rows: Iterable[Row], clock: str = "wall_s", batch: int = 1, task: str | None = None) -> Terms:
    """Plain decoding over plain decoding timed a second time: 1 but for the clock's own noise."""
    plain = Arm(-1, 0, batch)
    return _against(rows, clock, task, (plain, False), (plain, True))


def compared(
    rows: Iterable[Row],
    a: Arm,
    b: Arm,
    clock: str = "wall_s",
    *,
    others: Iterable[Row] | None = None,
    task: str | None = None,
    resamples: int = stats.RESAMPLES,
    seed: int = 0,
) -> tuple[Estimate, float]:
    """How many times the speed-up of `a` is that of `b`, paired by prompt, with the p-value of "no difference".

    `others` are the rows of the record that has `b`, where it is not the same. Within one record and batch both
    speed-ups have the same numerator, plain decoding, so it cancels: the ratio is b's seconds over a's. Raises
    InputError when two records have different prompts.
    """
    rows = list(rows)
    one = speedup(rows, a, clock, task)
    two = speedup(rows if others is None else others, b, clock, task)
    same_prompts(one, two)
    if not one.den.sum():
        return NOTHING, float("nan")
    return stats.ratio_of_ratios(
        one.num, one.den, two.num, two.den, strata=one.merged_strata, resamples=resamples, seed=seed
    )


# ---- acceptance ------------------------------------------------------------

# name: numerator, denominator, how it is called
ACCEPTANCE: dict[str, tuple[str, str, str]] = {
    "alpha": ("accepted", "tested", "accepted / tested"),
    "block": ("accepted", "drafted", "accepted / drafted"),
    "tokens": ("tokens", "steps", "tokens per target call"),
    "accepted": ("accepted", "steps", "accepted per target call"),
    "drafted": ("drafted", "steps", "drafted per target call"),
    "share": ("accepted", "tokens", "accepted / emitted"),
    "overlap": ("overlap", "tested", "mean sum min(p, q)"),
}


def acceptance(rows: Iterable[Row], arm: Arm, what: str = "alpha", task: str | None = None) -> Terms:
    """Acceptance of the drafted tokens under a named definition of ACCEPTANCE, every repetition counted.

    alpha is conditional, what Leviathan et al. (arXiv 2211.17192) call so: a position counts only when the accept
    rule looked at it. block is what serving engines call the acceptance rate and falls with the draft length. tokens
    has the target's own token in it, accepted has not. drafted is less than the draft length, because a text's last
    steps draft no more than can be used. overlap is alpha's expectation given the distributions, for sampled drafts
    alone. Texts of which the engine does not tell are left out.
    """
    num, den, _ = choose(what, ACCEPTANCE, "acceptance")
    parts, named = [], {}
    for row in timed(rows, task):
        for run in runs_of(row, arm):
            top, bottom = run.get(num), run.get(den)
            if top is not None and bottom is not None:
                parts.append((str(row["cluster"]), float(sum(top) if num == "overlap" else top), float(bottom)))
                named[str(row["cluster"])] = str(row["task"])
    return _whole(terms(parts, tasks=named), what in ("alpha", "block", "share"))


def _whole(found: Terms, share: bool) -> Terms:
    """A prompt has dozens of tokens: few prompts with a rejection are not few rejections. Only at 0 and 1 themselves
    does resampling know nothing, and Wilson's interval is asked.
    """
    return replace(found, proportion=bool(share and found.num.sum() in (0.0, found.den.sum())))


@dataclass(frozen=True)
class Position:
    """What became of the i-th drafted token, i from 1: steps that drafted it, that tested it (all before it were
    accepted), that accepted it. `survival` is accepted / drafted, U_i; `conditional` accepted / tested, C_i.
    """

    i: int
    drafted: int
    tested: int
    accepted: int
    survival: Estimate
    conditional: Estimate


def positions(
    rows: Iterable[Row], arm: Arm, task: str | None = None, *, resamples: int = stats.RESAMPLES, seed: int = 0
) -> list[Position]:
    """Acceptance position by position, with intervals over prompts; empty where the engine gives no trace.

    A step that could draft fewer than i tokens before the text's end is in no count of position i, so that the end
    bends no curve: U_i estimates P(i tokens are accepted) in a step that has room for them.
    """
    clusters, named, table = step_counts(rows, arm, task)
    if not len(clusters):
        return []
    found = []
    for i in range(1, table.shape[1]):
        drafted = table[:, i:, :].sum(axis=(1, 2))
        tested = table[:, i:, i - 1 :].sum(axis=(1, 2))
        accepted = table[:, i:, i:].sum(axis=(1, 2))
        u, c = (
            _whole(Terms(clusters, accepted, below, strata=named), True).estimate(resamples, seed)
            for below in (drafted, tested)
        )
        found.append(Position(i, int(drafted.sum()), int(tested.sum()), int(accepted.sum()), u, c))
    return found


def step_counts(
    rows: Iterable[Row], arm: Arm, task: str | None = None
) -> tuple[tuple[str, ...], tuple[str, ...] | None, Floats]:
    """How often a step drafted d tokens and kept k of them: sorted clusters, their tasks where there are several, and
    counts (clusters, gamma + 1, gamma + 1).
    """
    size = arm.gamma + 1
    sums: dict[str, Floats] = defaultdict(lambda: np.zeros(size * size))
    named: dict[str, str] = {}
    for row in timed(rows, task):
        for run in runs_of(row, arm):
            if run.get("drafted_per_step") and run.get("accepted_per_step"):
                pairs = size * np.asarray(run["drafted_per_step"]) + np.asarray(run["accepted_per_step"])
                sums[str(row["cluster"])] += np.bincount(pairs, minlength=size * size)
                named[str(row["cluster"])] = str(row["task"])
    clusters = tuple(sorted(sums))
    strata = tuple(named[cluster] for cluster in clusters)
    table = np.array([sums[cluster] for cluster in clusters]).reshape(-1, size, size)
    return clusters, strata if len(set(strata)) > 1 else None, table


# ---- the target's own text, read again ------------------------------------------------------------

# name: how it is called
TEXT: dict[str, str] = {
    "agreement": "argmax q = argmax p on target text",
    "top5": "argmax q in p's top 5 on target text (greedy TAR)",
    "overlap": "mean sum min(p, q) on target text",
    "chance": "mean chance of acceptance on target text",
}


def text(rows: Iterable[Row], draft: int, what: str = "agreement", task: str | None = None) -> Terms:
    """The mean over tokens of the target's own text of a named quantity of TEXT, for one draft.

    Teacher-forced, so it does not depend on where steps begin nor on a draft length; nothing drafted it.
    """
    choose(what, TEXT, "quantity of the text")
    parts, named = [], {}
    for row, values in read_again(rows, draft, what, task):
        parts.append((str(row["cluster"]), float(values.sum()), float(len(values))))
        named[str(row["cluster"])] = str(row["task"])
    return _whole(terms(parts, tasks=named), what != "overlap")


def read_again(
    rows: Iterable[Row], draft: int, what: str, task: str | None = None
) -> Iterator[tuple[Row, NDArray[np.float64]]]:
    """Every text read again, with one draft's values of a quantity of TEXT at its tokens after the first."""
    for row in good(rows):
        if "drafts" in row and (task is None or row["task"] == task):
            for one in row["drafts"]:
                if one["draft"] == draft:
                    yield row, np.asarray(one[what], dtype=np.float64)
