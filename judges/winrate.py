"""`winrate`: how often is the candidate's answer preferred to the baseline's? (SelecTKD, Tables 1 and 4, Figure 5.)

One row per comparison, shown order and repeat, one judge and one protocol per record. The judge is a served model, a
local model that is asked, a local model's likelihood, or a file of published judgements (`judges.ways`). The numbers on
stdout are computed from the record's rows by the same functions that tables and figures use.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from judges import agreement, compare, pairing, protocols, ratings, replay, verdicts, ways
from judges.by_server import Write
from judges.pairing import Answers, Comparison
from judges.protocols import Protocol
from judges.replay.record import checked
from judges.resampling import Resampling
from judges.summary import lines
from judges.tasks import Task, row
from judges.verdicts import Verdict
from selectkd_eval import records
from selectkd_eval.errors import InputError, SetupError, commonest
from selectkd_eval.measures import Row
from selectkd_eval.records import Record, Writer
from selectkd_eval.terminal import visible
from selectkd_eval.verbs import WinrateOptions


def run(options: WinrateOptions) -> int:
    """Judge, or go on judging, and print the win rate. Returns 0; errors are raised."""
    # Read before anything is asked: a wrong name here must not be found after the judging was paid for.
    others = [checked(records.read(path, verb="winrate")) for path in options.compare]
    judges = [_raters(path) for path in options.agreement]
    published = _published(options)
    path = _replayed(options, published) if published else _judged(options)
    if path is None:
        return 0
    record = records.read(path, verb="winrate")
    print(visible("\n".join(lines(record, options.resamples))))
    how = Resampling(resamples=options.resamples)
    for found in judges:
        print(visible("\n" + "\n".join(_agreement(record, found, how))))
    others = [other for other in others if other.path.resolve() != record.path.resolve()]
    if others:
        print(visible("\n" + "\n".join(compare.lines(record, others, options.resamples))))
    return 0


def _published(options: WinrateOptions) -> replay.Published | None:
    """The file of judgements that --judge replay:FILE names; None for every other judge."""
    kind, _, what = options.judge.partition(":")
    if kind != "replay" or replay.is_cache(Path(what)):
        return None
    if not what:
        raise InputError(f"--judge {options.judge!r} names no file: replay:FILE")
    idle = [name for name in _ASKING if getattr(options, name) != getattr(WinrateOptions, name)]
    if idle:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
        print(f"{flags}: without effect, for the verdicts of {what} are taken as they stand", file=sys.stderr)
    return replay.open_file(Path(what))


# What decides how a judge is asked, and of whom.
_ASKING = ("candidate", "baseline", "protocol", "repeats", "base_url", "batch", "max_cost")


def _replayed(options: WinrateOptions, found: replay.Published) -> Path | None:
    """The record of published judgements: the rows of the file, of the first --limit prompts. None for --dry-run."""
    kept = list(dict.fromkeys(row["prompt"] for row in found.rows))[: options.limit]
    first = set(kept)
    if options.dry_run:
        n = sum(row["prompt"] in first for row in found.rows)
        print(f"no calls: {n:,} judgements of {len(kept):,} prompts are in the file")
        return None
    facts = {**found.facts(), "prompts": {**found.prompts, "n": len(kept)}}
    with records.open_record("winrate", options, inputs={"judgements": found.sha256}, facts=facts) as record:
        for row in () if record.complete else found.rows:
            if row["key"] not in record.done and row["prompt"] in first:
                record.write(**row)
        record.finish()
        return record.path


def _judged(options: WinrateOptions) -> Path | None:
    """Compare two sets of answers and return the record; None where nothing was to be judged yet (--dry-run)."""
    protocol = protocols.protocol(options.protocol)
    way = ways.way(options, protocol)
    options, candidate, baseline, limit = _sides(way.options)
    comparisons = pairing.join(candidate, baseline, limit)
    inputs = {"candidate": candidate.sha256, "baseline": baseline.sha256, "protocol": protocol.sha256, **way.inputs}
    facts = {
        "judge": way.facts,
        "protocol": protocol.facts(),
        "candidate": candidate.card,
        "baseline": baseline.card,
        "generation": {"candidate": candidate.generation, "baseline": baseline.generation},
        "prompts": {**candidate.prompts, "n": len({comparison.prompt for comparison in comparisons})},
    }
    tasks = _tasks(comparisons, protocol, options)
    if options.dry_run:
        done = _done(options)
        asked = [task for task in tasks if task.key not in done and _obvious(task) is None]
        print("\n".join(way.plan(asked)))
        return None
    with records.open_record("winrate", options, inputs=inputs, facts=facts) as record:
        todo = _write_obvious(record, [task for task in tasks if task.key not in record.done])
        if todo and not way.judge(record, todo, _writer(record)):
            return None
        if not record.done:
            raise SetupError(_nothing_came(record.path))
        record.finish()
        return record.path


def _nothing_came(path: Path) -> str:
    """Why there is no win rate, where every question has failed: mostly all for one reason."""
    failed = records.read(path, unfinished_ok=True).failed
    why, how_often = commonest(str(row["error"]) for row in failed)
    rest = f", and {len(failed) - how_often} for other reasons, which are in {path}" if how_often < len(failed) else ""
    return (
        f"not one comparison got a verdict: {how_often} failed because {why}{rest}; the same command tries them again"
    )


def _done(options: WinrateOptions) -> set[str]:
    """Keys that an earlier run of this command has finished."""
    path = records.record_path("winrate", options)
    return {row["key"] for row in records.read(path, unfinished_ok=True).good} if path.exists() else set()


def _sides(options: WinrateOptions) -> tuple[WinrateOptions, Answers, Answers, int | None]:
    """Both sets of answers, the options with their names filled in, and how many prompts to judge."""
    options = replace(options, candidate=options.candidate or pairing.newest_record(options.out))
    candidate = pairing.load_answers(options.candidate, options.prompt_dir, options.allow_missing)
    own = str(candidate.prompts.get("name", ""))
    prompt_dir = options.prompt_dir or candidate.prompt_dir
    # A record's options name the set that its command left out, so --like names it too.
    if options.baseline not in ("", own):
        baseline = pairing.load_answers(options.baseline, prompt_dir, options.allow_missing)
        return options, candidate, baseline, options.limit
    if not own:
        raise InputError(
            f"{candidate.name} needs something to be compared with: give --baseline an answer record, a file of "
            f"answers or a named set"
        )
    try:
        baseline = pairing.load_answers(own, prompt_dir)
    except InputError as error:
        raise InputError(
            f"{candidate.name} needs something to be compared with, and its prompt set is no help ({error}): "
            f"give --baseline an answer record or a file of answers"
        ) from None
    # The set's own reference answers: the candidate says which of its prompts it has answered.
    return replace(options, baseline=own), candidate, baseline, options.limit or len(candidate.text)


def _tasks(comparisons: list[Comparison], protocol: Protocol, options: WinrateOptions) -> list[Task]:
    """Every comparison in every order that it is shown in, as often as it is asked about."""
    return [
        Task(shown, order, sample)
        for sample in range(options.repeats)
        for shown in comparisons
        for order in protocol.orders(shown.prompt, shown.seed, options.seed, shown.text)
    ]


def _obvious(task: Task) -> Verdict | None:
    """The verdict that needs no judge. A missing answer fails its comparison for good: no judge can mend it."""
    if task.comparison.lacking:
        return Verdict("failed", task.comparison.lacking)
    return verdicts.without_judge(task.comparison.candidate, task.comparison.baseline)


def _write_obvious(record: Writer, todo: list[Task]) -> list[Task]:
    """Settle what needs no judge (identical, empty and missing answers) and return the rest."""
    write, rest = _writer(record), []
    for task in todo:
        if (verdict := _obvious(task)) is None:
            rest.append(task)
        else:
            write(task, verdict, {"asked": False})
    return rest


def _writer(record: Writer) -> Write:
    """What a judge calls with each verdict: one row, in the form that every win rate has."""

    def write(task: Task, verdict: Verdict, said: Mapping[str, Any]) -> None:
        shown = task.comparison
        found = row(
            shown.prompt,
            shown.seed,
            task.order,
            verdict,
            sample=task.sample,
            task=shown.task,
            candidate_chars=len(shown.candidate.strip()),
            baseline_chars=len(shown.baseline.strip()),
            **said,
        )
        if shown.lacking:
            del found["error"]  # it would be tried again by the next run, and be missing again
        record.write(**found)

    return write


Raters = tuple[str, dict[str, list[Row]]]


def _raters(name: str) -> Raters:
    """The verdicts of --agreement: a winrate record's, or those of a file of judgements, by rater."""
    path = Path(name)
    published = replay.open_file(path)
    names = published.judge.get("raters") or []
    if len({row["sample"] for row in published.rows}) > 1:
        return path.name, dict(ratings.by_sample(published.rows, names))
    return path.name, {str(published.judge["name"]): list(published.rows)}


def _agreement(record: Record, others: Raters, how: Resampling) -> list[str]:
    """This record's judge beside others: every pair, and against their majority where there are several."""
    source, by_rater = others
    own = str(record.facts["judge"]["name"])
    if own in by_rater:
        own = f"{own} (this record)"
    mine = [row for row in record.rows if not row.get("sample")]
    out = [f"agreement of {own} with {source}:"]
    joined = ratings.ratings({own: mine, **by_rater})
    if len(by_rater) > 1:
        majority = ratings.majority(by_rater)
        against = agreement.classification(mine, majority, "tie", how)
        reference = f"the majority of {len(by_rater)}, and a reply without a verdict counts as a tie"
        out += agreement.classification_lines(against, own, reference)
    return out + agreement.lines(agreement.agreement(joined, how))
