"""Which speedup records belong together, and was their clock fit to tell?

Speed-ups are compared on one target, one way of decoding, one set of prompts and one length; training seeds of a
draft are pooled prompt by prompt. Every record times plain decoding twice. Where the interval of that ratio leaves
1 out, something else than the draft moved the clock, and the timing is called not settled wherever it is shown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from analysis.load import Library, Method
from analysis.table_ir import number
from selectkd_eval import measures
from selectkd_eval.measures import Terms
from selectkd_eval.records import Record
from selectkd_eval.stats import Estimate


class SpeedSet(NamedTuple):
    """The drafts measured under one setting, whose `words` are target, decoding, prompts, their number, length."""

    target: str
    words: tuple[str, ...]
    drafts: dict[Method, list[Record]]

    @property
    def arms(self) -> list[str]:
        """Every draft length that some draft was measured with, by length."""
        found = {
            arm for group in self.drafts.values() for record in group for arm in measures.speedup_arms(record.rows)
        }
        return sorted(found, key=length)


def length(arm: str) -> int:
    """The draft length of an arm."""
    return int(arm.removeprefix("gamma"))


def speed_sets(library: Library) -> list[SpeedSet]:
    """Every comparable set of drafts, in the order of their words."""
    groups: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in library.of("speedup"):
        prompts = record.facts.get("prompts") or {}
        key = (record.facts["target"].get("fingerprint"), prompts.get("sha256"), record.options.get("ignore_end"))
        groups[*_words(library, record), *key].append(record)
    words = [_words(library, found[0]) for found in groups.values()]
    sets = []
    for key, found in sorted(groups.items(), key=lambda item: str(item[0])):
        mine = _words(library, found[0])
        # Two sets of one name: their digests tell them apart.
        mine += (f"prompts {str(key[-2])[:8]}",) if words.count(mine) > 1 else ()
        drafts: dict[Method, list[Record]] = defaultdict(list)
        for record in found:
            drafts[library.method(record.facts["draft"])].append(record)
        ordered = dict(sorted(drafts.items(), key=lambda item: item[0].order))
        sets.append(SpeedSet(library.label(library.method(found[0].facts["target"])), mine, ordered))
    return sets


def differing(sets: Sequence[SpeedSet], chosen: SpeedSet) -> str:
    """The words of one set that not all sets share."""
    common = set.intersection(*(set(other.words) for other in sets))
    return ", ".join(word for word in chosen.words if word not in common)


def speedup(found: list[Record], arm: str) -> Terms:
    """Seconds over seconds of one draft, its training seeds pooled by prompt."""
    return measures.pool([measures.speedup(record.rows, arm) for record in found])


def best_arm(chosen: SpeedSet, found: list[Record]) -> str | None:
    """The draft length with the largest speed-up of one draft; None when nothing was timed."""
    values = {arm: terms.value for arm in chosen.arms if (terms := speedup(found, arm)).den.sum()}
    return max(values, key=lambda arm: (values[arm], arm), default=None)


def acceptance(found: list[Record], arm: str, name: str) -> Terms:
    """Acceptance of one draft, its training seeds pooled by prompt."""
    return measures.pool([measures.acceptance(record.rows, arm, name) for record in found])


def changed(found: list[Record]) -> int:
    """Prompts whose text was changed: such a draft has no speed-up."""
    return sum(measures.lossless_counts(record.rows)["violation"] for record in found)


def control(found: list[Record], resamples: int) -> Estimate | None:
    """Plain decoding over plain decoding, timed in the same run; None when it was not timed twice."""
    terms = speedup(found, "ar2")
    return terms.estimate(resamples) if terms.den.sum() else None


def doubt(found: list[Record], resamples: int) -> str:
    """Why this draft's timing is not settled, in words; empty when plain decoding took as long as itself."""
    timed = control(found, resamples)
    if timed is None or not timed.excludes(1):
        return ""
    interval = f"[{number(timed.low, 3)}, {number(timed.high, 3)}]"
    return f"timing not settled: plain decoding timed twice differs from itself, ×{number(timed.value, 3)} {interval}"


def _words(library: Library, record: Record) -> tuple[str, ...]:
    facts, options = record.facts, record.options
    temperature = facts.get("temperature", options.get("temperature", 0.0))
    target = facts["target"].get("name") or library.label(library.method(facts["target"]))
    prompts = facts["prompts"] if isinstance(facts.get("prompts"), dict) else {}
    count = prompts.get("n", options.get("limit"))
    dtype = facts.get("dtype", "float32")
    return (
        f"Target {target}",
        f"temperature {temperature:g}" if temperature else "greedy",
        str(prompts.get("name", options.get("prompts", ""))),
        f"n = {count}",
        f"at most {options.get('max_new_tokens')} tokens",
        *([] if dtype == "float32" else [str(dtype)]),
    )
