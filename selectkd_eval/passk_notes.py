"""What do the numbers of a pass@k run rest on? The sentences under its table, and the breakdown by strata.

What was asked and how, what failed or was cut, where the sandbox's two modes disagree, how close programs came to
their limit, what the interval covers and what it does not. Everything is counted from rows.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from selectkd_eval import measures, pass_rates, stats
from selectkd_eval.measures import Row
from selectkd_eval.records import imported
from selectkd_eval.terminal import aligned, visible

Facts = Mapping[str, Any]

SHOWN = 10  # items named in one note
_OTHER = {"isolated": "official", "official": "isolated"}


def of_task(facts: Facts, rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Every task's rows, failed ones too, by name."""
    # A header's mappings are sorted when they are read back; a run's end must print the same.
    parts: dict[str, list[Row]] = {name: [] for name in sorted(facts["tasks"])}
    for row in rows:
        if row.get("task") in parts:
            parts[row["task"]].append(row)
    return parts


def is_code(facts: Facts, name: str) -> bool:
    return bool(facts["tasks"][name].get("kind") == "code")


def grader_of(facts: Facts, name: str) -> str:
    """What decided right and wrong: a grader's name, or the mode in which programs were run."""
    if is_code(facts, name):
        return str((facts.get("sandbox") or {}).get("verdict", "unknown"))
    return str(facts["tasks"][name].get("grader") or "unknown")


def notes(facts: Facts, rows: Sequence[Row], ks: Sequence[int] = (1,)) -> Iterator[str]:
    """The sentences, task by task where they differ."""
    parts = of_task(facts, rows)
    if words := imported(facts):
        yield f"imported, not measured here: {words}; token counts, and why a text ended, are not in such files"
    yield from (_asked(facts, name) for name in parts)
    failed = max(int(facts.get("failed", 0)), sum("error" in row for row in rows))
    if failed:
        yield (
            f"{failed:,} failed answers (no text: a server's error, no memory) are in no number, neither as right nor "
            "as wrong; the same command tries them again"
        )
    for name, found in parts.items():
        good = measures.good(found)
        yield from _cut(name, good)
        yield from _outcomes(name, good)
        if is_code(facts, name):
            yield from _modes(name, good)
            yield from _limit(facts, name, good)
        yield from _plus(name, good)
        yield from _few(name, found, ks)
    yield from _coverage(facts, rows)
    yield from _detectable(parts)


def _asked(facts: Facts, name: str) -> str:
    """The setting that a number belongs to, in one line."""
    task, generation = facts["tasks"][name], facts.get("generation") or {}
    decoding = (generation.get("decoding") or {}).get(name) or generation
    graders, sandbox = facts.get("graders") or {}, facts.get("sandbox") or {}
    shots = task.get("shots")
    words = [
        str(task["version"]) if task.get("version") else "",
        f"layout {task['layout']}" if task.get("layout") else "",
        f"{shots} solved example{'' if shots == 1 else 's'}" if shots is not None else "",
        "" if "chat" not in generation else "as chat" if generation["chat"] else "as plain text",
        "with a system prompt" if generation.get("system") else "",
        _decoding(decoding),
    ]
    if is_code(facts, name):
        packages = sandbox.get("packages") or {}
        listed = [f"{found} {packages[found]}" for found in packages] if isinstance(packages, Mapping) else packages
        words += [f"sandbox {sandbox.get('tier', 'unknown')}", f"packages {', '.join(listed) or 'none'}"]
    else:
        version = graders.get(task.get("grader"))
        words.append(f"grader {task.get('grader')}" + (f" {version}" if version else ""))
    return f"{name}: {', '.join(word for word in words if word)}"


def _decoding(decoding: Mapping[str, Any]) -> str:
    temperature, longest = decoding.get("temperature"), decoding.get("max_new_tokens")
    words = []
    if temperature is not None:
        words.append("greedy" if temperature == 0 else f"temperature {temperature:g}")
        if temperature and decoding.get("top_p", 1.0) != 1.0:
            words.append(f"top-p {decoding['top_p']:g}")
    if longest is not None:
        words.append(f"at most {longest:,} tokens")
    return ", ".join(words)


def _cut(name: str, rows: Sequence[Row]) -> Iterator[str]:
    ended = [row for row in rows if row.get("finish") == "length"]
    if ended:
        yield (
            f"{name}: {len(ended):,} of {len(rows):,} answers were ended by the token limit; "
            f"{sum(row.get('correct', 0) for row in ended):,} of them count as right"
        )
    if cut := sum(bool(row.get("prompt_cut")) for row in rows):
        yield (
            f"{name}: {cut:,} prompts did not fit and lost their beginning; their answers count as they are: ask with "
            "fewer --shots or a smaller --max-new-tokens"
        )


def _outcomes(name: str, rows: Sequence[Row]) -> Iterator[str]:
    counts = Counter(str(row["outcome"]) for row in rows if row.get("outcome"))
    if set(counts) <= {"right", "wrong"}:
        return
    yield f"{name} outcomes: {', '.join(f'{count:,} {word}' for word, count in _most(counts))}"
    for word in ("import-missing", "forbidden", "crash"):
        details = Counter(str(row.get("detail") or "unnamed")[:60] for row in rows if row.get("outcome") == word)
        if details:
            yield f"{name} {word}: {', '.join(f'{detail} ({count:,})' for detail, count in _most(details)[:SHOWN])}"


def _most(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _modes(name: str, rows: Sequence[Row]) -> Iterator[str]:
    """Both modes' scores where they differ, and what had to be judged in the other one."""
    both = [row for row in rows if row.get("other")]
    apart = [row for row in both if row["correct"] != row["other"]["correct"]]
    fallback: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.get("fallback"):
            fallback[str(row["mode"])].add(str(row["problem"]))
    if apart:
        scores = ", ".join(f"{mode} {100 * _in_mode(rows, mode, name):.2f} %" for mode in ("isolated", "official"))
        yield f"{name}: {scores}; {len(apart):,} of {len(both):,} verdicts differ: {_pairs_of_outcomes(apart)}"
    elif both:
        yield f"{name}: isolated and official verdicts agree on all {len(both):,} programs"
    for mode, ids in sorted(fallback.items()):
        yield f"{name}: no {_OTHER[mode]} verdict is possible on {_named(sorted(ids))}; {mode} ones stand for them"


def _in_mode(rows: Sequence[Row], mode: str, name: str) -> float:
    """pass@1 under one mode; what has only one verdict (no code, a fallback) counts with that one."""
    told = [
        {**row, "correct": row["other"]["correct"]} if (row.get("other") or {}).get("mode") == mode else row
        for row in rows
    ]
    return measures.pass_at_1(told, name).value


def _pairs_of_outcomes(apart: Sequence[Row]) -> str:
    pairs: dict[str, list[str]] = defaultdict(list)
    for row in apart:
        verdicts = {row.get("mode"): row["outcome"], row["other"]["mode"]: row["other"]["outcome"]}
        pairs[f"isolated {verdicts.get('isolated')}, official {verdicts.get('official')}"].append(short(row))
    left, words = SHOWN, []
    for pair, keys in sorted(pairs.items(), key=lambda item: (-len(item[1]), item[0])):
        shown = keys[:left]
        left -= len(shown)
        more = f" and {len(keys) - len(shown)} more" if len(keys) > len(shown) else ""
        words.append(f"{len(keys)} {pair} ({', '.join(shown)}{more})".replace("( and", "(").replace("()", ""))
    return "; ".join(words)


def short(row: Row) -> str:
    """A row's key without its task, which the sentence names already; `show --item` takes it so."""
    return str(row["key"]).removeprefix(f"{row['task']}/")


def _named(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return ", ".join(ids[:SHOWN]) + more


def _limit(facts: Facts, name: str, rows: Sequence[Row]) -> Iterator[str]:
    """How near the programs came to the limit: where it decides, another machine gives another score."""
    limit = ((facts.get("sandbox") or {}).get("limits") or {}).get("cpu_seconds")
    timeouts = [row for row in rows if row.get("outcome") == "timeout"]
    near = [
        row for row in rows if row.get("outcome") != "timeout" and limit and row.get("cpu_seconds", 0.0) > limit / 2
    ]
    again = sum(bool(row.get("again")) for row in rows)
    if timeouts or near or again:
        ids = [short(row) for row in (*timeouts, *near)]
        yield (
            f"{name}, CPU limit {f'{limit:g} s' if limit else 'unknown'}: timeouts: {len(timeouts)}, other verdicts "
            f"over half of it: {len(near)}, programs run a second time, alone: {again}"
            + (f" ({_named(ids)})" if ids else "")
        )


def _plus(name: str, rows: Sequence[Row]) -> Iterator[str]:
    based = [row for row in rows if row.get("base")]
    if based:
        base = measures.pass_at_1([{**row, "correct": row["base"]["correct"]} for row in based], name).estimate()
        plus = measures.pass_at_1(based, name).estimate()
        lost = sum(row["base"]["correct"] > row["correct"] for row in based)
        yield (
            f"{name}: {_percent(base)} on the base tests, {_percent(plus)} with the plus tests, which "
            f"{lost:,} of {len(based):,} programs pass the base tests only to fail"
        )


def _few(name: str, rows: Sequence[Row], ks: Sequence[int]) -> Iterator[str]:
    for k in ks:
        terms = pass_rates.pass_at(rows, name, k)
        if k > 1 and (few := int((terms.den == 0).sum())):
            yield f"{name}: {few:,} problems have fewer than {k} answers and are not in pass@{k}"


def _percent(score: stats.Estimate) -> str:
    score = score.scaled(100)
    return f"{score.value:.2f} % [{score.low:.1f}, {score.high:.1f}]"


def _coverage(facts: Facts, rows: Sequence[Row]) -> Iterator[str]:
    """What the interval is about, in words."""
    seeds = len({row.get("seed") for row in rows})
    drawn = str((facts.get("generation") or {}).get("seeds") or "")
    sampled = not drawn.startswith("greedy") and (seeds > 1 or drawn)
    cover = (
        "the choice of problems and the sampling of answers" if sampled else "the choice of problems (greedy decoding)"
    )
    yield (
        f"95 % intervals resample problems, all answers to one problem together (Wilson's where fewer than "
        f"{stats.RARE} problems have a right answer, or a wrong one): they cover {cover}, not another training of the "
        "model"
    )
    if drawn and sampled:
        yield f"sampling seeds: {drawn}"


def _detectable(parts: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    found = {name: pass_rates.detectable_alone(measures.pass_at_1(rows, name)) for name, rows in parts.items()}
    told = ", ".join(
        f"{name} {100 * value:.1f}" if value < 1 else f"{name} none at all"
        for name, value in found.items()
        if not math.isnan(value)
    )
    if told:
        yield (
            f"smallest difference in points that a second run of this size could settle (80 % power, 5 % two-sided, if "
            f"the two runs' answers to a problem were unrelated; similar models settle less: --compare): {told}"
        )


def breakdown(name: str, rows: Sequence[Row]) -> list[str]:
    """pass@1 by every stratum of a task (MATH: level, subject); nothing where there is none."""
    kinds = dict.fromkeys(kind for row in rows for kind in row.get("strata") or {})
    found: list[str] = []
    for kind in kinds:
        values: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            if kind in (row.get("strata") or {}):
                values[str(row["strata"][kind])].append(row)
        table = [[f"{name} by {kind}", "pass@1 %", "95 % interval", "n"]]
        for value in sorted(values):
            score = measures.pass_at_1(values[value], name).estimate().scaled(100)
            number = ["none", ""] if not score.n else [f"{score.value:.2f}", f"[{score.low:.1f}, {score.high:.1f}]"]
            table.append([f"  {value}", *number, str(score.n)])
        found += ["", *(visible(line) for line in aligned(table))]
    return found
