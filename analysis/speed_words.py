"""What may be said of speculative decoding, in sentences? For the report's findings, the demo's screen and Table 5.

A draft is called faster or slower than another only where the interval of their paired ratio leaves 1 out and six
prompts or more are behind it, and nothing is claimed on a clock on which plain decoding differs from itself. Drafts are
compared at the length that suits the reference draft best, so that the comparison is not chosen to please the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from analysis import speed
from analysis.load import Library, Method
from analysis.speed import SpeedSet, Timed, Way
from analysis.table_ir import interval, number, verdict
from selectkd_eval import lossless, speed_explained, speed_links, speeds
from selectkd_eval.errors import InputError
from selectkd_eval.stats import Estimate

_LINK_RESAMPLES = 2_000
FEWEST = 6  # prompts: of five, swapping two drafts prompt by prompt gives no p-value below 1/16
_QUANTITIES = {**speeds.TEXT, "alpha": speeds.ACCEPTANCE["alpha"][2]}


def lines(library: Library, resamples: int) -> list[str]:
    """What was measured, then who is faster than whom, then which acceptance goes with speed."""
    try:
        sets = speed.speed_sets(library)
    except InputError as error:
        return [f"No speed-up is told: {error}."]
    told: list[str] = []
    for chosen in sets:
        told += _refusals(library, chosen)
        parts = [
            f"{library.label(method)} {_measured(chosen, method, best, resamples)}"
            for method, found in chosen.drafts.items()
            if not speed.refused(found) and (best := _best(chosen, found))
        ]
        if parts:
            on = f"{chosen.target}, {', '.join(chosen.words[1:])}"
            told.append(f"Speculative decoding of {on}; text unchanged, best draft length: {'; '.join(parts)}.")
        told += [f"{line}{_where(sets, chosen)}." for line in links(chosen, resamples)]
    return told + differences(library, resamples)


def differences(library: Library, resamples: int) -> list[str]:
    """Only the sentences that compare two drafts: with the reference draft, and a gate with its base."""
    try:
        sets = speed.speed_sets(library)
    except InputError:
        return []
    return [
        f"{line}{_where(sets, chosen)}."
        for chosen in sets
        for method in chosen.drafts
        for other in _held_against(library, chosen, method)
        for line in _compared(library, chosen, method, other, resamples)
    ]


def gate(found: Sequence[Timed]) -> str:
    """What the gate saw of one draft."""
    counts = speed.outcomes(found)
    parts = []
    if sum(counts.values()):
        parts.append(
            f"text identical to plain decoding on {counts['identical']} prompts, a numerical tie on {counts['tie']}, "
            f"changed on {counts['violation']}"
        )
    checks = [check for timed in found for check in _checks(timed)]
    if tested := [check for check in checks if check.p is not None]:
        parts.append(f"{sum(check.passed for check in tested)} of {len(tested)} tests of sampled text passed")
    parts += list(dict.fromkeys(f"FAILED: {check.words}" for check in checks if not check.passed))
    return "; ".join(parts)


def clock(chosen: SpeedSet, library: Library, resamples: int) -> list[str]:
    """Plain decoding timed twice, for every group of drafts that shared a clock."""
    said = []
    for methods, found in chosen.runs:
        who = "" if len(chosen.runs) == 1 else f"{', '.join(map(library.label, methods))}: "
        for batch in sorted({way.batch for way in chosen.ways}):
            timed = speed.control(found, resamples, batch)
            if timed is None:
                continue
            at = f" at batch {batch}" if batch > 1 else ""
            line = f"{who}plain decoding timed twice{at} gives {speed.times(timed, 3)}"
            if timed.excludes(1):
                line += "; that interval leaves 1 out, so this timing is not settled: measure again on an idle machine"
            said.append(line[0].upper() + line[1:] if not who else line)
    return said


def lengths(found: Sequence[Timed], resamples: int) -> str:
    """The draft length that is predicted to be the fastest, and how sure that is; empty where nothing is predicted."""
    parts = []
    for timed in found:
        curve = speed.foretold(timed, resamples)
        if (top := speed_explained.fastest(curve)) is None:
            continue
        best, value, share = top
        seed = f"seed {timed.card.get('seed')}: " if len(found) > 1 else ""
        parts.append(
            f"{seed}of γ = 1 to {curve[-1].gamma}, {best.gamma} is predicted to be the fastest, "
            f"×{number(value.value, 2)} decode only, and is for {100 * share:.0f} % of resampled prompts"
        )
    return "; ".join(parts)


def links(chosen: SpeedSet, resamples: int) -> list[str]:
    """Which acceptance goes with tokens per target call, over the drafts of each record that has several."""
    said = []
    for record in chosen.records:
        parts, drafts, gamma = [], 0, 0
        for link in speed_links.links(record.rows, resamples=min(resamples, _LINK_RESAMPLES)):
            if link.over == "drafts" and link.spearman is not None:
                name = _QUANTITIES.get(link.what, link.what)
                drafts, gamma = link.n, link.gamma
                limits = f" {interval(link.spearman, 2)}" if link.spearman.spread else ""
                parts.append(f"{name} {number(link.spearman.value, 2)}{limits}")
        if parts:
            said.append(
                f"Spearman's correlation with tokens per target call over {drafts} drafts at γ = {gamma}: "
                f"{', '.join(parts)} (brackets: other prompts, not other drafts)"
            )
    return said


def _checks(timed: Timed) -> list[lossless.Check]:
    """The checks of one draft, of plain decoding and of the engine."""
    return [check for check in speed.gated(timed).checks if check.draft in (timed.place, -1, -2)]


def _refusals(library: Library, chosen: SpeedSet) -> Iterator[str]:
    for method, found in chosen.drafts.items():
        why, count = speed.refused(found), speed.outcomes(found)["violation"]
        said = {
            "text changed": f"changed the text on {count} prompts" if count else "did not keep the text's distribution",
            "counts wrong": "was miscounted by its engine",
            "not timed": "was not timed, for another draft of its run changed the text",
        }
        if why:
            name = library.label(method)
            yield f"{name} as a draft for {chosen.target} {said[why]}, so no speed-up is given."


def _best(chosen: SpeedSet, found: Sequence[Timed]) -> Way | None:
    """The fastest draft length at the smallest batch that was timed."""
    batches = sorted({way.batch for way in chosen.ways})
    return next((best for batch in batches if (best := speed.best_way(chosen, found, batch))), None)


def _measured(chosen: SpeedSet, method: Method, best: Way, resamples: int) -> str:
    found = chosen.drafts[method]
    value = speed.speedup(found, best).estimate(resamples)
    accepted = speed.acceptance(found, best, "alpha").estimate(resamples)
    word = speed.doubt(found, resamples, best.batch) or _verdict(value, ("faster", "slower", "not settled"))
    said = f", {speeds.ACCEPTANCE['alpha'][2]} {number(accepted.value, 3)}" if accepted.n else ""
    return f"{speed.times(value)} at {best.words}{said}, n = {value.n:,} ({word})"


def _held_against(library: Library, chosen: SpeedSet, method: Method) -> list[Method]:
    base = library.base_of(method, chosen.drafts) if method.base else None
    return list(dict.fromkeys(other for other in (chosen.reference, base) if other not in (None, method)))


def _compared(library: Library, chosen: SpeedSet, method: Method, other: Method, resamples: int) -> Iterator[str]:
    way = _best(chosen, chosen.drafts[other])
    found = speed.compared(chosen, method, other, way, resamples) if way else None
    if way is None or found is None:
        return
    ratio, names = found[0], (library.label(method), library.label(other))
    doubts = [speed.doubt(chosen.drafts[one], resamples, way.batch) for one in (method, other)]
    at = f"{speed.times(ratio)} at {way.words}, paired, n = {ratio.n:,} prompts"
    if any(doubts):
        yield f"As a draft {names[0]} against {names[1]}: {at} ({next(filter(None, doubts))})"
        return
    verb = _verdict(ratio, ("is faster than", "is slower than", "is not told apart from"))
    yield f"As a draft {names[0]} {verb} {names[1]}: {at}"


def _verdict(estimate: Estimate, words: tuple[str, str, str]) -> str:
    """Above, below or not settled; fewer than FEWEST prompts or waves settle nothing."""
    return verdict(estimate, 1.0, words) if estimate.n >= FEWEST else words[2]


def _where(sets: Sequence[SpeedSet], chosen: SpeedSet) -> str:
    return f" ({speed.differing(sets, chosen)})" if len(sets) > 1 else ""
