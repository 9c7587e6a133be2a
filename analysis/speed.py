"""Which speed measurements belong together, and was their clock fit to tell?

Speed-ups are compared on one engine, one target, one way of decoding, one set of prompts, one length and one machine;
a record holds several drafts, and training seeds of a draft are pooled prompt by prompt. Every record times plain
decoding twice. Where the interval of that ratio leaves 1 out, something else than the draft moved the clock, and the
timing is called not settled wherever it is shown. Drafts are compared by the paired ratio of their speed-ups to that of
one reference draft. The numbers themselves are `selectkd_eval.speeds`'s.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import harmonic_mean
from typing import Any

import numpy as np

from analysis.load import Card, Library, Method
from analysis.table_ir import interval, number
from selectkd_eval import lossless, measures, speed_explained, speeds, stats
from selectkd_eval.errors import InputError
from selectkd_eval.measures import Terms
from selectkd_eval.records import Record
from selectkd_eval.speed_explained import Prediction
from selectkd_eval.speeds import Arm
from selectkd_eval.stats import Estimate


@dataclass(frozen=True, order=True)
class Way:
    """How a draft is used: `gamma` tokens at a time, on `batch` texts together."""

    batch: int
    gamma: int

    @property
    def words(self) -> str:
        return f"γ = {self.gamma}" + (f", batch {self.batch}" if self.batch > 1 else "")


@dataclass(frozen=True, eq=False)
class Timed:
    """One draft of one record: `place` is where it stands in the record's list."""

    record: Record
    place: int

    @property
    def card(self) -> Card:
        card: Card = self.record.facts["drafts"][self.place]
        return card

    def arm(self, way: Way) -> Arm:
        """The arm of this record that uses the draft in this way."""
        return Arm(self.place, way.gamma, way.batch)


@dataclass(frozen=True)
class SpeedSet:
    """The drafts measured under one setting, whose `words` are target, engine, decoding, prompts, their number, length.

    `reference` is the draft that the others are compared with.
    """

    target: str
    words: tuple[str, ...]
    drafts: dict[Method, list[Timed]]
    reference: Method

    @property
    def records(self) -> list[Record]:
        """Every record of the set once."""
        return list({timed.record.path: timed.record for found in self.drafts.values() for timed in found}.values())

    @property
    def runs(self) -> list[tuple[list[Method], list[Timed]]]:
        """Drafts that were timed by the same runs, and so on one clock: (their methods, one of them as timed)."""
        groups: dict[tuple[Any, ...], list[Method]] = defaultdict(list)
        for method, found in self.drafts.items():
            groups[tuple(sorted(str(timed.record.path) for timed in found))].append(method)
        return [(methods, self.drafts[methods[0]]) for methods in groups.values()]

    @property
    def ways(self) -> list[Way]:
        """Every way that some draft was to be used in, the smallest batch and the shortest drafts first."""
        found = set()
        for record in self.records:
            batches, gammas = record.facts.get("batches") or [1], record.facts.get("gammas") or []
            found |= {Way(int(batch), int(gamma)) for batch in batches for gamma in gammas}
        return sorted(found)

    @property
    def tasks(self) -> list[str]:
        """The tasks whose texts were timed."""
        return list(dict.fromkeys(task for record in self.records for task in speeds.tasks(record.rows)))


@lru_cache(maxsize=1)
def speed_sets(library: Library) -> tuple[SpeedSet, ...]:
    """Every comparable set of drafts, in the order of their words; the same objects as long as the library is, so that
    table, figure and sentences of one report share what was computed.

    Raises InputError for a record that an earlier version measured.
    """
    groups: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in library.of("speedup"):
        _expect_drafts(record)
        groups[*_words(library, record), *map(str, _hidden(record).values())].append(record)
    named = [_words(library, found[0]) for found in groups.values()]
    sets = []
    for _, found in sorted(groups.items(), key=lambda item: str(item[0])):
        mine = _words(library, found[0])
        # Sets of one name: what else differs tells them apart.
        twins = [other[0] for other in groups.values() if _words(library, other[0]) == mine]
        if named.count(mine) > 1:
            apart = {name for name in _hidden(found[0]) if len({str(_hidden(twin)[name]) for twin in twins}) > 1}
            mine += tuple(f"{name} {_brief(_hidden(found[0])[name])}" for name in sorted(apart))
        drafts: dict[Method, list[Timed]] = defaultdict(list)
        for record in found:
            for index, card in enumerate(record.facts["drafts"]):
                drafts[library.method(card)].append(Timed(record, index))
        ordered = dict(sorted(drafts.items(), key=lambda item: item[0].order))
        reference = next((method for method in ordered if method.role == "start"), next(iter(ordered)))
        sets.append(SpeedSet(_target(library, found[0]), mine, ordered, reference))
    return tuple(sets)


def differing(sets: Sequence[SpeedSet], chosen: SpeedSet) -> str:
    """The words of one set that not all sets share."""
    common = set.intersection(*(set(other.words) for other in sets))
    return ", ".join(word for word in chosen.words if word not in common)


def speedup(found: Sequence[Timed], way: Way, clock: str = "wall_s", task: str | None = None) -> Terms:
    """Seconds over seconds of one draft, its training seeds pooled by prompt; `clock` is one of speeds.CLOCKS."""
    return _mean([_speedup(timed, way, clock, task) for timed in found])


@lru_cache(maxsize=4096)
def _speedup(timed: Timed, way: Way, clock: str, task: str | None) -> Terms:
    return speeds.speedup(timed.record.rows, timed.arm(way), clock, task)


def acceptance(found: Sequence[Timed], way: Way, name: str) -> Terms:
    """Acceptance of one draft under a name of speeds.ACCEPTANCE, its training seeds pooled by prompt."""
    return measures.pool([speeds.acceptance(timed.record.rows, timed.arm(way), name) for timed in found])


def by_seed(found: Sequence[Timed], way: Way) -> tuple[tuple[int | None, float], ...]:
    """(training seed, speed-up) of every student that was timed."""
    parts = [(timed.card.get("seed"), speedup([timed], way)) for timed in found]
    return tuple((seed, terms.value) for seed, terms in parts if terms.den.sum())


def compared(
    chosen: SpeedSet, method: Method, other: Method, way: Way, resamples: int
) -> tuple[Estimate, float] | None:
    """How many times the speed-up of `other` that of `method` is, paired by prompt, and the p-value of "as fast".

    None where one of them was not timed in this way, changed the text, or was timed on other prompts.
    """
    if method == other or refused(chosen.drafts[method]) or refused(chosen.drafts[other]):
        return None
    a, b = (speedup(chosen.drafts[one], way) for one in (method, other))
    if not a.den.sum() or a.prompts != b.prompts:
        return None
    return stats.ratio_of_ratios(a.num, a.den, b.num, b.den, strata=a.merged_strata, resamples=resamples)


def predictions(found: Sequence[Timed], resamples: int) -> dict[int, Estimate]:
    """By draft length the speed-up, decode only, that the target's own text and the cost of a call predict at batch 1;
    empty where the engine does not tell its costs.

    Training seeds are pooled as their measured speed-ups are: seconds are averaged, and plain decoding's are the same.
    Of several seeds there is no interval.
    """
    values: dict[int, list[Estimate]] = defaultdict(list)
    for timed in found:
        for one in foretold(timed, resamples):
            if one.speedup is not None:
                values[one.gamma].append(one.speedup)
    whole = {gamma: some for gamma, some in sorted(values.items()) if len(some) == len(found)}
    return {gamma: some[0] if len(some) == 1 else _harmonic(some) for gamma, some in whole.items()}


@lru_cache(maxsize=256)
def foretold(timed: Timed, resamples: int) -> Sequence[Prediction]:
    """What is predicted of one draft at every draft length; nothing where it was never timed."""
    return speed_explained.predicted(timed.record.rows, timed.place, resamples=resamples)


def _harmonic(some: Sequence[Estimate]) -> Estimate:
    value = harmonic_mean([one.value for one in some])
    return Estimate(value, float("nan"), float("nan"), some[0].n, f"harmonic mean of {len(some)} seeds")


def best_way(chosen: SpeedSet, found: Sequence[Timed], batch: int = 1) -> Way | None:
    """The draft length with the largest speed-up of one draft; None when nothing was timed."""
    ways = [way for way in chosen.ways if way.batch == batch]
    values = {way: terms.value for way in ways if (terms := speedup(found, way)).den.sum()}
    return max(values, key=lambda way: (values[way], -way.gamma), default=None)


def outcomes(found: Sequence[Timed]) -> dict[str, int]:
    """Prompts on which one draft left the greedy text identical, or different at a tie, or changed it: the worst of its
    lengths.
    """
    counts: Counter[str] = Counter()
    for timed in found:
        for row in timed.record.good:
            mine = [one["outcome"] for one in row.get("outcomes") or () if one["draft"] == timed.place]
            if mine:
                counts[max(mine, key=lossless.WORDS.index)] += 1
    return {word: counts[word] for word in lossless.WORDS}


def refused(found: Sequence[Timed]) -> str:
    """Why a draft has no speed-up, as a cell says it; empty where the gate let it through under every seed."""
    words = {_refused(timed) for timed in found}
    return next((word for word in ("text changed", "counts wrong", "not timed") if word in words), "")


@lru_cache(maxsize=256)
def gated(timed: Timed) -> lossless.Verdict:
    """What the gate found in the record that one draft was timed in."""
    return lossless.verdict(timed.record.rows)


def _refused(timed: Timed) -> str:
    gate = gated(timed)
    if gate.passed:
        return ""
    # Checks of plain decoding and of the engine itself (draft below 0) speak for every draft.
    about = {check.about for check in gate.failed if check.draft in (timed.place, -1, -2)}
    if "text" in about or outcomes([timed])["violation"]:
        return "text changed"
    return "counts wrong" if about else "not timed"


def control(found: Sequence[Timed], resamples: int, batch: int = 1) -> Estimate | None:
    """Plain decoding over plain decoding, timed in the same runs; None when it was not timed twice."""
    rows = list({timed.record.path: timed.record.rows for timed in found}.values())
    terms = _mean([speeds.control(some, batch=batch) for some in rows])
    return terms.estimate(resamples) if terms.den.sum() else None


def doubt(found: Sequence[Timed], resamples: int, batch: int = 1) -> str:
    """Why this draft's timing is not settled, in words; empty when plain decoding took as long as itself."""
    timed = control(found, resamples, batch)
    if timed is None or not timed.excludes(1):
        return ""
    return f"timing not settled: plain decoding timed twice differs from itself, {times(timed, 3)}"


def times(estimate: Estimate, digits: int = 2) -> str:
    """A ratio of seconds with its interval, if it has one, in words."""
    return f"×{number(estimate.value, digits)}" + (f" {interval(estimate, digits)}" if estimate.spread else "")


def _mean(parts: Sequence[Terms]) -> Terms:
    """Several seeds' seconds, prompt by prompt: their mean, so that drafts of few and of many seeds can be swapped.

    Of those that timed the prompt: a record of another draft length has no seconds, and must not halve the others'.
    """
    found = measures.pool(parts)
    timed = Counter(prompt for part in parts for prompt in part.prompts)
    seeds = np.array([timed[prompt] for prompt in found.prompts], dtype=np.float64)
    return replace(found, num=found.num / seeds, den=found.den / seeds)


def _expect_drafts(record: Record) -> None:
    if "drafts" not in record.facts:
        raise InputError(
            f"{record.path.name} was measured by an earlier version, which wrote one row per run: run `speedup` again"
        )


def _target(library: Library, record: Record) -> str:
    return library.label(library.method(record.facts["target"]))


def _words(library: Library, record: Record) -> tuple[str, ...]:
    facts, options = record.facts, record.options
    prompts = facts.get("prompts") or {}
    dtype, length = facts.get("dtype", "float32"), options.get("max_new_tokens")
    decoded = {row["cluster"] for row in record.good if "outcomes" in row}  # those that fit no model are not
    return (
        f"Target {facts['target'].get('name') or _target(library, record)}",
        f"engine {(facts.get('engine') or {}).get('name', 'unnamed')}",
        _decoding(facts),
        str(prompts.get("name", options.get("prompts", ""))),
        f"n = {len(decoded) or prompts.get('n', options.get('limit'))}",
        *([f"{'exactly' if options.get('ignore_end') else 'at most'} {length} tokens"] if length else []),
        *([] if dtype == "float32" else [str(dtype)]),
    )


def _decoding(facts: Card) -> str:
    temperature = facts.get("temperature") or 0
    if not temperature:
        return "greedy"
    top_k, top_p = facts.get("top_k") or 0, facts.get("top_p", 1.0)
    cut = (f", top-k {top_k}" if top_k else "") + (f", top-p {top_p:g}" if top_p < 1 else "")
    return f"temperature {temperature:g}{cut}"


def _hidden(record: Record) -> dict[str, Any]:
    """What must agree too, and is said only where it does not: by the word it is said with."""
    facts, environment = record.facts, record.header.get("environment") or {}
    return {
        "prompts": (facts.get("prompts") or {}).get("sha256"),
        "target": facts["target"].get("fingerprint"),
        "engine version": (facts.get("engine") or {}).get("version"),
        "threads": facts.get("threads"),
        "processor": environment.get("processor"),
        "device": record.facts.get("device", record.options.get("device")),
    }


def _brief(value: Any) -> str:
    """A digest by its beginning, anything else as it is."""
    text = str(value)
    return text[:8] if re.fullmatch("[0-9a-f]{40,}", text) else text
