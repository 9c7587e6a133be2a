"""What does a person see when a speed-up has been measured? The gate, the ratios, what explains them.

Every line is computed from a record's header facts and rows, so that the command's end and `show` print the same. The
numbers are `speeds`' and `speed_explained`'s, the gate's words `lossless`'s; nothing is measured here.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from selectkd_eval import lossless, speed_explained, speeds, stats
from selectkd_eval.measures import Row
from selectkd_eval.records import imported
from selectkd_eval.speeds import Arm
from selectkd_eval.stats import Estimate
from selectkd_eval.terminal import WIDTH, aligned, bullets, visible

Facts = Mapping[str, Any]
Foreseen = Mapping[int, Sequence[speed_explained.Prediction]]
DASH = "—"
FEW = 20  # prompts below which a percentile interval covers clearly less than it says


def lines(facts: Facts, rows: Iterable[Row], resamples: int = stats.RESAMPLES) -> list[str]:
    """The whole summary; without speed-ups where the gate failed."""
    rows = list(rows)
    names = labels(facts)
    found = [_wrapped(line) for line in (_heading(facts), *lossless.lines(rows, names))]
    if failed := [row for row in rows if "error" in row]:
        found.append(_wrapped(f"{len(failed)} prompt{'s' if len(failed) > 1 else ''} left out: {failed[0]['error']}"))
    if not lossless.passed(rows):
        return [*found, "The text is not plain decoding's, so there is no speed-up to report."]
    foreseen = {draft: speed_explained.predicted(rows, draft, resamples=resamples) for draft in range(len(names))}
    for batch in speeds.batches(rows):
        arms = [arm for arm in speeds.arms(rows) if arm.batch == batch]
        if len(speeds.batches(rows)) > 1:
            found += ["", f"batch {batch}"]
        found += ["", *_ratios(rows, arms, names, batch, resamples)]
        found += ["", *_acceptance(facts, rows, arms, names, resamples)]
        if why := _explained(rows, arms, names, foreseen if batch == 1 else {}):
            found += ["", *why]
        if len({arm.draft for arm in arms}) > 1:
            found += ["", *_compared(rows, arms, names, resamples)]
        if len(speeds.tasks(rows)) > 1:
            found += ["", *_by_task(rows, arms, names, resamples)]
    return [*found, "", *bullets([visible(note) for note in _notes(facts, rows, names, foreseen, resamples)])]


def _wrapped(sentence: str) -> str:
    return textwrap.fill(sentence, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def labels(facts: Facts) -> list[str]:
    """What the drafts are called: the method and seed of a student trained here, else the model's name."""
    found = []
    for card in facts["drafts"]:
        method, seed = str(card.get("method") or card.get("name")), card.get("seed")
        found.append(visible(method if seed is None else f"{method}, seed {seed}"))
    repeated = {name for name in found if found.count(name) > 1}
    return [
        visible(str(card.get("name"))) if name in repeated else name
        for name, card in zip(found, facts["drafts"], strict=True)
    ]


def rule(facts: Facts) -> str:
    """How tokens were chosen, in words."""
    if not facts["temperature"]:
        return "greedy"
    cuts = [f"top-p {facts['top_p']:g}"] if facts["top_p"] < 1 else []
    cuts += [f"top-k {facts['top_k']}"] if facts["top_k"] else []
    return ", ".join([f"sampled at temperature {facts['temperature']:g}", *cuts])


def _heading(facts: Facts) -> str:
    prompts, engine = facts["prompts"], facts["engine"]
    if facts.get("device", "cpu") != "cpu":
        where = visible(str(facts["device"]))
    else:
        where = f"{facts['threads']} thread{'s' if facts['threads'] > 1 else ''}"
    target = visible(str(facts["target"]["name"]))
    return (
        f"speed-up of {target} by its drafts: {engine['name']} engine, {rule(facts)}, {facts['dtype']}, {where}; "
        f"{prompts['n']} prompt{'s' if prompts['n'] > 1 else ''} of {visible(str(prompts['name']))}"
    )


def _ratios(rows: list[Row], arms: Sequence[Arm], names: Sequence[str], batch: int, resamples: int) -> list[str]:
    """Speed-ups on every clock."""
    clocks = list(speeds.CLOCKS)
    heads = [words if clock != "wall_s" else f"speed-up {words}" for clock, (_, words) in speeds.CLOCKS.items()]
    table = [["draft", "γ", *heads]]
    control = [_cell(speeds.control(rows, clock, batch).estimate(resamples)) for clock in clocks]
    table.append(["(plain decoding, again)", "", *control])
    for arm in arms:
        cells = [_cell(speeds.speedup(rows, arm, clock).estimate(resamples)) for clock in clocks]
        table.append([names[arm.draft], str(arm.gamma), *cells])
    return aligned(table)


def _acceptance(facts: Facts, rows: list[Row], arms: Sequence[Arm], names: Sequence[str], resamples: int) -> list[str]:
    """Acceptance under each of its names."""
    kinds = ["alpha", "block", "tokens"] + (["overlap"] if facts["temperature"] else [])
    table = [["draft", "γ", *(speeds.ACCEPTANCE[what][2] for what in kinds)]]
    for arm in arms:
        cells = [_cell(speeds.acceptance(rows, arm, what).estimate(resamples)) for what in kinds]
        table.append([names[arm.draft], str(arm.gamma), *cells])
    return aligned(table)


def _explained(rows: list[Row], arms: Sequence[Arm], names: Sequence[str], foreseen: Foreseen) -> list[str]:
    """What the speed-up of decoding is made of; nothing where the engine has no timers of its own."""
    table = [
        ["why", "γ", "c", "v(γ)", "o", "Leviathan", "× acceptance", "× cost", "× rest", "= decode only", "predicted"]
    ]
    for arm in arms:
        why = speed_explained.explain(rows, arm, resamples=1)
        if why.leviathan is None:
            continue
        ahead = {one.gamma: one.speedup for one in foreseen.get(arm.draft, [])}.get(arm.gamma)
        parts = [why.c, why.v, why.o, why.leviathan, why.acceptance_factor, why.cost_factor, why.rest]
        cells = [*parts, why.measured.value, ahead.value if ahead else None]
        table.append([names[arm.draft], str(arm.gamma), *map(_plain, cells)])
    return aligned(table) if len(table) > 1 else []


def _compared(rows: list[Row], arms: Sequence[Arm], names: Sequence[str], resamples: int) -> list[str]:
    """Every draft's speed-up over the first draft's at the same length, paired by prompt."""
    first = arms[0].draft
    others = [arm for arm in arms if arm.draft != first and Arm(first, arm.gamma, arm.batch) in arms]
    found = [speeds.compared(rows, arm, arm._replace(draft=first), resamples=resamples) for arm in others]
    adjusted = stats.holm([p for _, p in found])
    table = [[f"speed-up over that of {names[first]}", "γ", "ratio", "p (Holm)"]]
    for arm, (ratio, _), p in zip(others, found, adjusted, strict=True):
        table.append([names[arm.draft], str(arm.gamma), f"×{_cell(ratio)}", f"{p:.2g}"])
    return aligned(table)


def _by_task(rows: list[Row], arms: Sequence[Arm], names: Sequence[str], resamples: int) -> list[str]:
    tasks = speeds.tasks(rows)
    table = [["speed-up by task", "γ", *map(visible, tasks)]]
    for arm in arms:
        cells = [_cell(speeds.speedup(rows, arm, task=task).estimate(resamples)) for task in tasks]
        table.append([names[arm.draft], str(arm.gamma), *cells])
    return aligned(table)


def _units(rows: list[Row]) -> str:
    """What the intervals resample: prompts (a conversation's turns are one), and waves of prompts."""
    return ", ".join(
        f"{n} prompt{'s' if n > 1 else ''}" if batch == 1 else f"{n} wave{'s' if n > 1 else ''} of {batch}"
        for batch, n in _sizes(rows).items()
    )


def _sizes(rows: list[Row]) -> dict[int, int]:
    """How many of them there are at each batch."""
    return {
        batch: len({row["cluster"] for row in speeds.timed(rows) for run in row["runs"] if run["batch"] == batch})
        for batch in speeds.batches(rows)
    }


def _notes(facts: Facts, rows: list[Row], names: Sequence[str], foreseen: Foreseen, resamples: int) -> Iterator[str]:
    if words := imported(facts):
        yield f"imported, not measured here: {words}; {facts['rules']}"
    how = f"[ ] 95 % over {_units(rows)}, medians of {_repetitions(rows)} repetitions"
    if imported(facts):
        yield f"{how}, each method timed apart: what the machine did meanwhile is in the ratio, and no control tells"
    else:
        yield f"{how}, arms in turns within each prompt; plain decoding against itself should cover 1"
    if min(_sizes(rows).values(), default=FEW) < FEW:
        yield (
            f"fewer than {FEW} of them: such intervals are too narrow (simulated, they cover 81 % with 4, 87 % with 8 "
            "and 92 % with 16 where 95 % is claimed); raise --limit before anything rests on them"
        )
    for batch in speeds.batches(rows):
        again = speeds.control(rows, batch=batch).estimate(resamples)
        if again.excludes(1):
            at = f" at batch {batch}" if batch > 1 else ""
            yield (
                f"plain decoding timed twice{at} differs from itself, ×{_cell(again)}: this timing is not settled, "
                "measure again on an idle machine"
            )
    if any(speed_explained.in_place(rows, arm) for arm in speeds.arms(rows)):
        yield (
            "why: c is a draft call, v verifying, o accepting and cutting caches, in plain decoding's seconds per "
            "token, timed inside the runs; Leviathan's formula knows alpha and c; the factors are what it gets wrong "
            "about acceptance and about cost, and what the timers leave open"
        )
    if any(one.speedup for found in foreseen.values() for one in found):
        yield (
            "predicted: from the target's own text read again and the cost of calls measured apart, without a "
            "speculative run"
        )
    for draft, name in enumerate(names):
        if words := _best(foreseen[draft]):
            yield f"{name}: {words}"
    yield from _spent(facts, rows, names)


def _spent(facts: Facts, rows: list[Row], names: Sequence[str]) -> Iterator[str]:
    """Memory of the models and of the process, and energy where the machine tells it."""
    labelled = {"target": "target"} | {f"draft {index}": name for index, name in enumerate(names)}
    sizes = [
        f"{labelled.get(who, who)} {size['weights'] / 1e6:,.1f} MB"
        + (f" and {size['cache_per_token'] / 1e3:,.1f} kB per token" if size["cache_per_token"] else "")
        for who, size in sorted((facts.get("memory") or {}).items(), key=lambda item: item[0] != "target")
    ]
    if sizes:
        yield f"weights and key-value cache: {', '.join(sizes)}"
    if not (peaks := next((row for row in rows if row.get("key") == "machine"), None)):
        return
    gpu = f", on the GPU {peaks['peak_gpu_bytes'] / 1e6:,.0f} MB" if peaks["peak_gpu_bytes"] is not None else ""
    yield f"peak memory of the process {peaks['peak_rss_bytes'] / 1e6:,.0f} MB{gpu}; energy {peaks['energy']}"
    for arm in [Arm(-1, 0, batch) for batch in speeds.batches(rows)] + speeds.arms(rows):
        read = [run for row in speeds.timed(rows) for run in speeds.runs_of(row, arm) if run["joules"] is not None]
        if read and (tokens := sum(run["tokens"] for run in read)):
            name = "plain decoding" if arm.plain else f"{names[arm.draft]}, γ = {arm.gamma}"
            at = f", batch {arm.batch}" if arm.batch > 1 else ""
            yield f"{name}{at}: {sum(run['joules'] for run in read) / tokens:.3g} J per token"


def _best(found: Sequence[speed_explained.Prediction]) -> str:
    """Which draft length the prediction finds fastest, and how sure it is of that."""
    if (top := speed_explained.fastest(found)) is None:
        return ""
    one, speed, share = top
    lost = [f"γ = {other.gamma} loses {other.regret:.1%}" for other in found if other.measured and other.regret]
    return (
        f"predicted best of γ = 1 to {found[-1].gamma}: {one.gamma} (×{_cell(speed)} decode only; the "
        f"best in {share:.0%} of resamples{''.join(f'; {words}' for words in lost)})"
    )


def _repetitions(rows: Iterable[Row]) -> int:
    return max((run["rep"] + 1 for row in speeds.timed(rows) for run in row["runs"]), default=0)


def _cell(estimate: Estimate) -> str:
    if not estimate.n:
        return DASH
    limits = f" [{estimate.low:.3f}, {estimate.high:.3f}]" if estimate.spread else ""
    return f"{estimate.value:.3f}{limits}"


def _plain(value: float | None) -> str:
    return DASH if value is None else f"{value:.2f}"
