"""What does a person see when a speed-up has been measured? The gate, the ratios, what explains them.

Every line is computed from a record's header facts and rows, so that the command's end and `show` print the same. The
numbers are `speeds`' and `speed_explained`'s, the gate's words `lossless`'s; nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from selectkd_eval import lossless, speed_explained, speeds, stats
from selectkd_eval.measures import Row
from selectkd_eval.speeds import Arm
from selectkd_eval.stats import Estimate
from selectkd_eval.terminal import aligned, bullets, visible

Facts = Mapping[str, Any]
DASH = "—"


def lines(facts: Facts, rows: Iterable[Row], resamples: int = stats.RESAMPLES) -> list[str]:
    """The whole summary; without speed-ups where the gate failed."""
    rows = list(rows)
    names = labels(facts)
    found = [_heading(facts), *lossless.lines(rows, names)]
    if failed := [row for row in rows if "error" in row]:
        found.append(f"{len(failed)} prompt{'s' if len(failed) > 1 else ''} left out: {failed[0]['error']}")
    if not lossless.passed(rows):
        return [*found, "The text is not plain decoding's, so there is no speed-up to report."]
    for batch in speeds.batches(rows):
        arms = [arm for arm in speeds.arms(rows) if arm.batch == batch]
        if len(speeds.batches(rows)) > 1:
            found += ["", f"batch {batch}"]
        found += ["", *_ratios(rows, arms, names, batch, resamples)]
        found += ["", *_acceptance(facts, rows, arms, names, resamples)]
        if len({arm.draft for arm in arms}) > 1:
            found += ["", *_compared(rows, arms, names, resamples)]
        if len(speeds.tasks(rows)) > 1:
            found += ["", *_by_task(rows, arms, names, resamples)]
    return [*found, "", *bullets([visible(note) for note in _notes(rows, names, resamples)])]


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
    threads = f"{facts['threads']} thread{'s' if facts['threads'] > 1 else ''}"
    target = visible(str(facts["target"]["name"]))
    return (
        f"speed-up of {target} by its drafts: {engine['name']} engine, {rule(facts)}, {facts['dtype']}, {threads}; "
        f"{prompts['n']} prompts of {visible(str(prompts['name']))}"
    )


def _ratios(rows: list[Row], arms: Sequence[Arm], names: Sequence[str], batch: int, resamples: int) -> Iterator[str]:
    """Speed-ups on every clock, with the prediction that knew of no speculative run."""
    foreseen = {
        (draft, one.gamma): one.speedup
        for draft in {arm.draft for arm in arms}
        for one in (speed_explained.predicted(rows, draft, resamples=resamples) if batch == 1 else [])
    }
    table = [["draft", "γ", *(f"speed-up {words}" if clock == "wall_s" else words for clock, words in _clocks())]]
    table[0].append("decode only, predicted")
    control = [_cell(speeds.control(rows, clock, batch).estimate(resamples)) for clock, _ in _clocks()]
    table.append(["(plain decoding, again)", "", *control, ""])
    for arm in arms:
        cells = [_cell(speeds.speedup(rows, arm, clock).estimate(resamples)) for clock, _ in _clocks()]
        value = foreseen.get((arm.draft, arm.gamma))
        table.append([names[arm.draft], str(arm.gamma), *cells, DASH if value is None else f"{value.value:.3f}"])
    return iter(aligned(table))


def _clocks() -> list[tuple[str, str]]:
    return [(clock, words) for clock, (_, words) in speeds.CLOCKS.items()]


def _acceptance(
    facts: Facts, rows: list[Row], arms: Sequence[Arm], names: Sequence[str], resamples: int
) -> Iterator[str]:
    """Acceptance under each name, and what a call costs."""
    kinds = ["alpha", "block", "tokens"] + (["overlap"] if facts["temperature"] else [])
    heads = [speeds.ACCEPTANCE[what][2] for what in kinds]
    table = [["draft", "γ", *heads, "c", "v(γ)", "Leviathan", "with v, o"]]
    for arm in arms:
        cells = [_cell(speeds.acceptance(rows, arm, what).estimate(resamples)) for what in kinds]
        why = speed_explained.explain(rows, arm, resamples=resamples)
        more = [why.c, why.v, why.leviathan, why.costed]
        table.append([names[arm.draft], str(arm.gamma), *cells, *(_plain(value) for value in more)])
    return iter(aligned(table))


def _compared(rows: list[Row], arms: Sequence[Arm], names: Sequence[str], resamples: int) -> Iterator[str]:
    """Every draft's speed-up over the first draft's at the same length, paired by prompt."""
    first = arms[0].draft
    others = [arm for arm in arms if arm.draft != first and Arm(first, arm.gamma, arm.batch) in arms]
    found = [speeds.compared(rows, arm, arm._replace(draft=first), resamples=resamples) for arm in others]
    adjusted = stats.holm([p for _, p in found])
    table = [[f"speed-up over that of {names[first]}", "γ", "ratio", "p (Holm)"]]
    for arm, (ratio, _), p in zip(others, found, adjusted, strict=True):
        table.append([names[arm.draft], str(arm.gamma), f"×{_cell(ratio)}", f"{p:.2g}"])
    return iter(aligned(table))


def _by_task(rows: list[Row], arms: Sequence[Arm], names: Sequence[str], resamples: int) -> Iterator[str]:
    tasks = speeds.tasks(rows)
    table = [["speed-up by task", "γ", *map(visible, tasks)]]
    for arm in arms:
        cells = [_cell(speeds.speedup(rows, arm, task=task).estimate(resamples)) for task in tasks]
        table.append([names[arm.draft], str(arm.gamma), *cells])
    return iter(aligned(table))


def _notes(rows: list[Row], names: Sequence[str], resamples: int) -> Iterator[str]:
    yield (
        f"[ ] 95 % over {len({row['cluster'] for row in speeds.timed(rows)})} prompts, medians of "
        f"{_repetitions(rows)} repetitions, arms in turns within each prompt; plain decoding against itself should "
        "cover 1"
    )
    yield (
        "c: a draft call, v: verifying, in plain decoding's seconds per token, timed inside the runs; Leviathan: the "
        "formula from alpha and c; with v, o: from tokens per target call and all costs. Predicted: from the target's "
        "own text read again and the cost of calls measured apart, without a speculative run"
    )
    for draft, name in enumerate(names):
        if words := _best(speed_explained.predicted(rows, draft, resamples=resamples)):
            yield f"{name}: {words}"
    if peaks := next((row for row in rows if row.get("key") == "machine"), None):
        yield f"peak memory of the process {peaks['peak_rss_bytes'] / 1e6:,.0f} MB; energy {peaks['energy']}"


def _best(found: Sequence[speed_explained.Prediction]) -> str:
    """Which draft length the prediction finds fastest, and how sure it is of that."""
    timed = [one for one in found if one.speedup is not None and one.best is not None]
    if not timed:
        return ""
    top = max(timed, key=lambda one: one.speedup.value if one.speedup else 0.0)
    assert top.speedup is not None and top.best is not None
    lost = [f"γ = {one.gamma} loses {one.regret:.1%}" for one in timed if one.measured is not None and one.regret]
    return (
        f"predicted best of γ = 1 to {found[-1].gamma}: {top.gamma} (×{_cell(top.speedup)} decode only; the "
        f"best in {top.best:.0%} of resamples{''.join(f'; {words}' for words in lost)})"
    )


def _repetitions(rows: Iterable[Row]) -> int:
    return max((run["rep"] + 1 for row in speeds.timed(rows) for run in row["runs"]), default=0)


def _cell(estimate: Estimate) -> str:
    if not estimate.n:
        return DASH
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _plain(value: float | None) -> str:
    return DASH if value is None else f"{value:.2f}"
