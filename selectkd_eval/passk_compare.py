"""Which of two pass@k runs is better, and why did a score change?

`compare_lines` holds one run against another on the same problems: difference, interval, discordant problems, exact
test, and what else than the model differs between them. `changes` holds two gradings of the same answers against each
other, item by item. Rows in, sentences out.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from selectkd_eval import measures, pass_rates, stats
from selectkd_eval.measures import Row
from selectkd_eval.pass_rates import Comparison
from selectkd_eval.passk_notes import SHOWN, grader_of, is_code, short
from selectkd_eval.records import canonical
from selectkd_eval.terminal import aligned, bullets, visible

Facts = Mapping[str, Any]

_OF_THE_MODEL = ("weights", "adapter", "tokenizer", "chat_template", "model", "repetition_penalty", "decoding", "seeds")


def compare_lines(
    facts: Facts, rows: Iterable[Row], other_facts: Facts, other_rows: Iterable[Row], names: tuple[str, str] = ("", "")
) -> list[str]:
    """This run against another one, task by task, on the problems that both answered."""
    rows, other_rows = list(rows), list(other_rows)
    this, that = (name or _name(found) for name, found in zip(names, (facts, other_facts), strict=True))
    told: list[str] = []
    found: dict[str, Comparison] = {}
    for name, task in facts["tasks"].items():
        other = other_facts["tasks"].get(name)
        if other is None:
            told.append(f"{name}: not in the other record")
        elif not _same_problems(task, other):
            digests = " and ".join(str(part.get("sha256"))[:12] for part in (task, other))
            told.append(f"{name}: not paired, for the two records were asked other problems (data {digests})")
        elif (pair := pass_rates.compare(rows, other_rows, name)) is None:
            told.append(f"{name}: no problem was answered in both")
        else:
            found[name] = pair
    head = [f"{visible(this)} against {visible(that)}, paired by problem:"]
    if found:
        told = [*_words(found), *told]
    told += [
        f"{name}: not only the model differs: {'; '.join(differences)}"
        for name in found
        if (differences := list(_differences(name, facts, rows, other_facts, other_rows)))
    ]
    return [*head, *(_table(found) if found else []), *bullets([visible(text) for text in told])]


def _same_problems(task: Facts, other: Facts) -> bool:
    """Whether both were asked the same problems with the same references, whatever examples stood before them."""
    return any(task.get(what) and task.get(what) == other.get(what) for what in ("problems_sha256", "sha256"))


def _name(facts: Facts) -> str:
    model = facts.get("model") or {}
    return f"{model.get('name') or 'unnamed model'} ({str(model.get('fingerprint') or 'unknown weights')[:12]})"


def _table(found: Mapping[str, Comparison]) -> list[str]:
    adjusted = stats.holm([pair.p for pair in found.values()])
    single = all(pair.single for pair in found.values())
    sides = ["only this", "only other"] if single else ["better", "worse"]
    table = [["task", "this %", "other %", "delta", "95 % interval", "n", *sides, "same", "p", "Holm", "settles"]]
    for (name, pair), p in zip(found.items(), adjusted, strict=True):
        delta = pair.delta.scaled(100)
        table.append(
            [
                visible(name),
                f"{100 * pair.a:.2f}",
                f"{100 * pair.b:.2f}",
                f"{delta.value:+.2f}",
                f"[{delta.low:+.1f}, {delta.high:+.1f}]",
                *map(str, (pair.n, pair.better, pair.worse, pair.same)),
                _p(pair.p),
                _p(p),
                f"{100 * pair.detectable:.1f}",
            ]
        )
    return aligned(table)


def _words(found: Mapping[str, Comparison]) -> Iterator[str]:
    """What the table's columns mean, and what may be concluded."""
    tests = sorted({pair.test for pair in found.values()})
    single = all(pair.single for pair in found.values())
    yield (
        (
            "only this, only other: problems that one run alone has right"
            if single
            else "better, worse: problems of which this run has the larger, the smaller share of answers right"
        )
        + f"; p: {' or '.join(tests)}; Holm: adjusted over the tasks; settles: the smallest difference in points "
        "that these problems settle (80 % power, 5 % two-sided)"
    )
    for (name, pair), p in zip(found.items(), stats.holm([pair.p for pair in found.values()]), strict=True):
        if p < 0.05:
            yield f"{name}: this run is {'better' if pair.delta.value > 0 else 'worse'} (Holm-adjusted p {_p(p)})"
        else:
            yield f"{name}: not told apart (Holm-adjusted p {_p(p)})"
        if pair.left_out:
            yield f"{name}: {pair.left_out:,} problems were answered in one record only and are left out ({pair.apart})"


def _p(value: float) -> str:
    return "-" if math.isnan(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


def _differences(
    name: str, facts: Facts, rows: Sequence[Row], other_facts: Facts, other_rows: Sequence[Row]
) -> Iterator[str]:
    """What beside the model is not the same in two runs of a task."""
    settings, others = setting(facts, name), setting(other_facts, name)
    for what in dict.fromkeys((*settings, *others)):
        if canonical(settings.get(what)) != canonical(others.get(what)):
            yield f"{what} {_brief(settings.get(what))} / {_brief(others.get(what))}"
    prompts, before = (
        {row["problem"]: row.get("prompt_sha256") for row in some if row.get("task") == name and "problem" in row}
        for some in (rows, other_rows)
    )
    shared = [problem for problem in prompts if prompts[problem] and before.get(problem)]
    if other := sum(prompts[problem] != before[problem] for problem in shared):
        yield f"the rendered prompts of {other:,} of {len(shared):,} problems"


def setting(facts: Facts, name: str) -> dict[str, Any]:
    """Everything beside model, data and seeds that a task's score depends on, as far as the header says it."""
    task, generation, sandbox = facts["tasks"][name], facts.get("generation") or {}, facts.get("sandbox") or {}
    decoding = (generation.get("decoding") or {}).get(name) or {}
    found = {"layout": task.get("layout"), "shots": task.get("shots"), "grader": grader_of(facts, name)}
    if is_code(facts, name):
        found |= {"limit": sandbox.get("limits"), "packages": sandbox.get("packages")}
    else:
        found["grader version"] = (facts.get("graders") or {}).get(task.get("grader"))
    found |= {what.replace("_", " "): value for what, value in decoding.items()}
    found |= {what: value for what, value in generation.items() if what not in _OF_THE_MODEL}
    return dict(_flat(found))


def _flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Mappings (limits, versions of packages) entry by entry, so that only the entries that differ are named."""
    for what, value in settings.items():
        if isinstance(value, Mapping):
            yield from ((f"{what} {part}", inner) for part, inner in value.items())
        else:
            yield what, value


def _brief(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def changes(old: Iterable[Row], new: Iterable[Row]) -> list[str]:
    """Why did the score change? Two gradings of the same answers: scores, then every flip with its items."""
    before = {str(row["key"]): row for row in old if "error" not in row}
    after = {str(row["key"]): row for row in new if "error" not in row}
    shared = [key for key in after if key in before]
    told: list[str] = []
    for name in dict.fromkeys(after[key].get("task") for key in shared):
        keys = [key for key in shared if after[key].get("task") == name]
        scores = [measures.pass_at_1([rows[key] for key in keys], name).value * 100 for rows in (before, after)]
        moved = [key for key in keys if before[key].get("correct") != after[key].get("correct")]
        change = f"{scores[0]:.2f} % before, {scores[1]:.2f} % now ({scores[1] - scores[0]:+.2f} points)"
        told.append(f"{name}: {change}; {len(moved):,} of {len(keys):,} verdicts changed")
        told += _flips(str(name), moved, before, after)
        renamed = [key for key in keys if key not in moved and _word(before[key]) != _word(after[key])]
        told += _flips(f"{name}, without a change of score", renamed, before, after)
    alone = len(before.keys() ^ after.keys())
    if alone:
        told.append(f"{alone:,} answers are in one of the two only and are not compared")
    return ["what changed:", *bullets([visible(text) for text in told])]


def _flips(name: str, keys: Sequence[str], before: Mapping[str, Row], after: Mapping[str, Row]) -> Iterator[str]:
    pairs: dict[tuple[str, str], list[str]] = defaultdict(list)
    for key in keys:
        pairs[_word(before[key]), _word(after[key])].append(key)
    for (was, now), items in sorted(pairs.items(), key=lambda item: (-len(item[1]), item[0])):
        more = f" and {len(items) - SHOWN:,} more" if len(items) > SHOWN else ""
        shown = ", ".join(short(after[key]) for key in items[:SHOWN])
        yield f"{name}: {len(items):,} from {was} to {now}: {shown}{more}"


def _word(row: Row) -> str:
    """A row's outcome; records of earlier versions only say whether it was right."""
    return str(row.get("outcome") or ("right" if row.get("correct") else "wrong"))
