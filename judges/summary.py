"""What does a win-rate record say, on one screen? The lines that `winrate` prints.

Every number comes from the record's rows; nothing is stored. The denominator, what is missing from it, and what the
judge is stand beside the rate; so do the other tie rule, the wider interval that crosses prompts with answer seeds,
what so many prompts can settle, and the judge's habits: position, length, agreement with itself.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from judges import agreement, costs, families, lengths, positions, protocols, replay
from judges.judge import Judge
from judges.resampling import Resampling
from judges.wording import line, share, some
from selectkd_eval import measures, stats, win_rates
from selectkd_eval.measures import Terms
from selectkd_eval.records import Record
from selectkd_eval.stats import Estimate


def lines(record: Record, resamples: int = stats.RESAMPLES) -> list[str]:
    """The result of a finished winrate record, the number first."""
    facts, how = record.facts, Resampling(resamples)
    terms = win_rates.win_rate(record)
    estimate = terms.estimate(resamples)
    names = " over ".join(_name(facts[side], side) for side in ("candidate", "baseline"))
    rate = share(estimate) if not math.isnan(estimate.value) else "– (no decided comparison)"
    return [
        f"win rate {rate}  {names}",
        *_interval(record, terms, estimate, resamples),
        *_judge(record),
        *_denominator(record, terms, estimate),
        *_tasks(record, resamples),
        *_habits(record, how),
        *_spent(record),
        *(replay.lines(record) if facts.get("format") else []),
        *line("record", str(record.path)),
    ]


def _name(card: Mapping[str, Any], side: str) -> str:
    name = str(card.get("method") or card.get("name") or "unnamed")
    return f"the {side}" if name == "unnamed" else name


def _interval(record: Record, terms: Terms, estimate: Estimate, resamples: int) -> Iterator[str]:
    """How sure the rate is, by every honest account of it."""
    rule = win_rates.tie_rule(record)
    strata = f", {_strata(terms)}" if terms.strata else ""
    yield from line(
        "interval", f"95 %, {estimate.method}, prompts as clusters{strata}; {_bca(terms, estimate, resamples)}"
    )
    yield from line("other rule", _other_rule(record, rule, resamples))
    yield from _seeds(record, rule, resamples)
    if not math.isnan(estimate.value):
        error = stats.error_of(estimate, stats.standard_error(terms.num, terms.den, terms.merged_strata))
        yield from line(
            "settles",
            f"{100 * stats.detectable(math.sqrt(2) * error):.1f} points to another model's rate on these prompts, were "
            f"their verdicts unrelated (80 % power, 5 % two-sided); --compare pairs them and settles less",
        )
        if warning := stats.disagreement(estimate, error):
            yield from line("warning", warning)


def _strata(terms: Terms) -> str:
    """How many tasks keep their number of prompts: small ones keep theirs together."""
    tasks, strata = len(set(terms.strata or ())), len(set(terms.merged_strata))
    return f"{tasks} tasks as strata" if strata == tasks else f"{tasks} tasks, small ones together, {strata} strata"


def _other_rule(record: Record, rule: str, resamples: int) -> str:
    """The rate under the other way to count ties, and what else that leaves out."""
    if rule == "excluded":
        return (
            f"{share(win_rates.win_rate_terms(record.rows, 'half').estimate(resamples))} where {win_rates.TIES['half']}"
        )
    # A judge's probability has no ties; with the words alone, the other rule can be told.
    told = win_rates.win_rate_terms(({**row, "preference": None} for row in record.rows), "excluded")
    alone = ", every verdict by itself" if rule in ("half-per-order", "agreement") else ""
    words = ", by words alone" if any(row.get("preference") is not None for row in record.rows) else ""
    return f"{share(told.estimate(resamples))} where {win_rates.TIES['excluded']}{alone}{words}"


def _bca(terms: Terms, estimate: Estimate, resamples: int) -> str:
    if estimate.method.startswith("Wilson") or math.isnan(estimate.value):
        return "too few prompts differ to resample"
    found = terms.estimate(resamples, method="bca").scaled(100)
    return f"BCa [{found.low:.2f}, {found.high:.2f}]"


def _seeds(record: Record, rule: str, resamples: int) -> list[str]:
    """Several answers to every prompt: the rate of each seed, and the interval that would also cover another one.

    Prompts that lack an answer of some seed are not crossed: a seed that has few prompts would stand for all of them.
    """
    apart = win_rates.by_seed(record.rows, rule)
    if len(apart) < 2:
        return []
    seeds: dict[str, set[int]] = defaultdict(set)
    for row in record.rows:
        seeds[row["prompt"]].add(int(row.get("seed") or 0))
    full = {prompt for prompt, own in seeds.items() if len(own) == len(apart)}
    values = ", ".join("–" if math.isnan(part.value) else f"{100 * part.value:.2f}" for part in apart.values())
    if len(full) == len(seeds):
        spread = float(np.std([100 * part.value for part in apart.values()], ddof=1))
        sd = "" if math.isnan(spread) else f"; sd {spread:.2f}"
        text, where = f"{len(apart)} answers to every prompt ({values}{sd})", ""
    else:
        text = f"{len(apart)} answers to {len(full):,} of {some(len(seeds), 'prompt')}, fewer to the others ({values})"
        where = f" on these {len(full):,}"
    if where and len(full) < stats.RARE:
        return line("seeds", f"{text}; too few to cross seeds with prompts")
    parts = win_rates.by_seed([row for row in record.rows if row["prompt"] in full], rule)
    crossed = share(measures.crossed(list(parts.values()), resamples))
    return line("seeds", f"{text}; crossed with prompts{where}, the conservative interval: {crossed}")


def _judge(record: Record) -> Iterator[str]:
    facts = record.facts
    judge, protocol = facts["judge"], facts["protocol"]
    yield from line("judge", f"{judge['name']}: {judge['note']}")
    answered = Counter(str(row["judge_model"]) for row in record.rows if row.get("judge_model"))
    if answered and set(answered) != {judge["name"]}:
        # A name like gpt-4o is an alias: which model answered is what the server says.
        told = ", ".join(f"{name} ({n:,})" for name, n in answered.most_common())
        warning = ": more than one model judged, so read the rate with care" if len(answered) > 1 else ""
        yield from line("answered by", told + warning)
    for deviation in judge.get("deviations") or []:
        yield from line("deviation", deviation)
    if kin := families.kin(str(judge.get("family") or judge["name"]), facts["candidate"], facts["baseline"]):
        yield from line("kin", kin)
    digest = f", sha256 {protocol['sha256'][:12]}" if protocol.get("sha256") else ""
    yield from line("protocol", f"{protocol['name']} ({protocols.in_words(protocol)}){digest}")


def _denominator(record: Record, terms: Terms, estimate: Estimate) -> Iterator[str]:
    """What was counted, what was not and why, and what that could change."""
    counts = win_rates.verdict_counts(record.rows)
    words = {"candidate": "won", "baseline": "lost", "tie": "tied"}
    always = (*win_rates.DECIDED, "unreadable", "failed")
    told = [f"{n:,} {words.get(word, word)}" for word, n in counts.items() if n or word in always]
    yield from line("verdicts", ", ".join(told))
    prompts = len({row["prompt"] for row in record.rows})
    yield from line(
        "denominator",
        f"{terms.den.sum():,.12g} counted on {some(estimate.n, 'prompt')}, from "
        f"{some(len(record.rows), 'judgement')} on {some(prompts, 'prompt')}",
    )
    if repeated := record.facts["baseline"].get("repeated_prompts"):
        entries = some(repeated, "entry", "entries")
        yield from line("repeated", f"prompts stand again in {entries} of the baseline: the first answer is judged")
    reasons: Counter[str] = Counter()
    for row in record.rows:
        if row.get("reason") and (win_rates.undecided(row) or row.get("asked") is False):
            reasons[row["reason"]] += 1
    if reasons:
        yield from line("of these", ", ".join(f"{n:,} {what}" for what, n in sorted(reasons.items())))
    missing = sum(n for word, n in counts.items() if word not in win_rates.DECIDED)
    if missing:
        low, high = (f"{100 * bound:.2f} %" for bound in win_rates.win_rate_bounds(record))
        yield from line("bounds", f"{low} if the {missing:,} without a verdict were lost, {high} if won")
    if win_rates.tie_rule(record) == "half-per-order" and (order := _unread_order(record)):
        yield from line("warning", f"not one verdict {order}: the rate is that of the other order alone")
    if record.failed and record.facts["judge"]["kind"] != "replay":
        yield from line("again", f"{len(record.failed):,} failed: the same command tries them again")


def _unread_order(record: Record) -> str:
    """The shown order without any verdict, where the other has one; empty when both or neither have."""
    read = {row["order"] for row in record.rows if not win_rates.undecided(row)}
    lacking = {row["order"] for row in record.rows} - read
    return lacking.pop() if read and lacking else ""


def _tasks(record: Record, resamples: int) -> Iterator[str]:
    """The rate of every data set, where the record covers several."""
    rule, tasks = win_rates.tie_rule(record), sorted({str(row.get("task") or "") for row in record.rows})
    for task in tasks if len(tasks) > 1 else ():
        found = win_rates.win_rate_terms([row for row in record.rows if (row.get("task") or "") == task], rule)
        estimate = found.estimate(resamples)
        yield from line("task", f"{task}: {share(estimate)} (n {estimate.n:,})")


def _habits(record: Record, how: Resampling) -> Iterator[str]:
    """What else than quality the judge's verdicts go with."""
    rule, rows = win_rates.tie_rule(record), record.rows
    if record.facts["judge"]["kind"] == "likelihood":
        yield from line("position", "does not matter: a likelihood judge sees one answer at a time")
    elif record.facts["judge"].get("counts_only"):
        yield from line("position", "not known prompt by prompt: the file holds counts for each order")
    elif all(row.get("order") for row in rows):
        yield from positions.lines(positions.positions(rows, rule, how))
    if found := lengths.lengths(rows, rule, how):
        yield from lengths.lines(found)
    if len({row.get("sample") or 0 for row in rows}) > 1:
        names = record.facts["judge"].get("raters") or []
        if names:
            yield from agreement.lines(agreement.agreement(agreement.ratings(agreement.by_sample(rows, names)), how))
        else:
            yield from agreement.consistency_lines(agreement.self_consistency(rows, how))


def _spent(record: Record) -> list[str]:
    """Calls and tokens of a served judge, whether they were paid for now or came from the cache."""
    usages = [row["usage"] for row in record.rows if row.get("usage")]
    if not usages:
        return []
    total: Counter[str] = Counter()
    for usage in usages:
        total.update(usage)
    calls = sum(int(row.get("replies") or 0) for row in record.rows)
    tokens = f"{total['prompt_tokens']:,} tokens in and {total['completion_tokens']:,} out"
    return line("asked", f"{some(calls, 'reply', 'replies')}, {tokens}{_money(record.facts['judge'], total)}")


def _money(judge: Mapping[str, Any], usage: Mapping[str, int]) -> str:
    """What the replies cost by the prices that the record holds; nothing where it holds none."""
    priced = Judge(name="", model="", base_url="", **(judge.get("prices") or {}))
    money = costs.price(priced, usage, batch=judge["kind"] == "batch")
    return "" if money is None else f", {costs.dollars(money)} by the prices noted in the record"
