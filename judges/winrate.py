"""`winrate`: how often is the candidate's answer preferred to the baseline's? (SelecTKD, Tables 1 and 4.)

One row per comparison and shown order, one judge and one protocol per record. The judge is a served model, a local
model's likelihood, or a file of published judgements. The number on stdout is computed from the record's rows by
the same functions that tables and figures use. It adjusts neither for length nor for the judge's taste.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from judges import likelihood, pairing, protocols, replay, verdicts
from judges.cache import Cache
from judges.pairing import Answers, Comparison
from judges.protocols import Order, Protocol
from judges.summary import lines
from judges.verdicts import Verdict
from selectkd_eval import records
from selectkd_eval.environment import require
from selectkd_eval.errors import InputError, SetupError
from selectkd_eval.records import Writer
from selectkd_eval.verbs import WinrateOptions

if TYPE_CHECKING:
    from judges.served import Outcome

CACHE = "judge-cache.sqlite"


def run(options: WinrateOptions) -> int:
    """Judge, or go on judging, and print the win rate. Returns 0; errors are raised."""
    kind, _, what = options.judge.partition(":")
    if kind in ("replay", "likelihood") and not what:
        raise InputError(f"--judge {options.judge!r} names no {'file' if kind == 'replay' else 'model'}: {kind}:NAME")
    model = what if kind == "likelihood" else ""
    path = _replay(options, Path(what)) if kind == "replay" else _judge(options, model)
    record = records.read(path, verb="winrate")
    print("\n".join(lines(record)))
    return 0


def _replay(options: WinrateOptions, file: Path) -> Path:
    published = replay.load(file)
    judgements = published.judgements[: options.limit]
    weighted = replay.is_weighted(judgement.preference for judgement in judgements)
    facts = {
        "judge": {"name": published.annotator, "kind": "replay", "note": "published judgements, read from a file"},
        "protocol": {
            "name": f"alpaca_eval:{published.annotator}",
            "sha256": "",  # the file does not hold the prompt that was used
            "order": "random",
            "ties": "half",
        },
        "candidate": {"name": published.candidate, "method": published.candidate, "fingerprint": ""},
        "baseline": {"name": published.baseline, "method": published.baseline, "fingerprint": ""},
        "prompts": {"name": file.name, "sha256": published.sha256, "n": len({j.prompt for j in judgements})},
        "weighted": weighted,
    }
    with records.open_record("winrate", options, inputs={"judgements": published.sha256}, facts=facts) as record:
        for judgement in () if record.complete else judgements:
            key = f"{judgement.prompt}/{judgement.seed}/{judgement.order}"
            if key in record.done:
                continue
            word = judgement.verdict.word
            extra: dict[str, Any] = {}
            if weighted and word in ("candidate", "baseline", "tie") and judgement.preference:
                extra["preference"] = judgement.preference - 1  # the judge's probability that the candidate is better
            if word == "failed":
                extra["error"] = judgement.verdict.reason
            record.write(
                key,
                prompt=judgement.prompt,
                seed=judgement.seed,
                order=judgement.order,
                verdict=word,
                reason=judgement.verdict.reason,
                raw=judgement.preference,
                candidate_chars=judgement.candidate_chars,
                baseline_chars=judgement.baseline_chars,
                **extra,
            )
        record.finish()
        return record.path


def _judge(options: WinrateOptions, model: str) -> Path:
    """Compare two sets of answers, by the likelihood under `model` or, when that is empty, by a served judge."""
    protocol = protocols.protocol(options.protocol)
    if not model:
        options = _with_server(options)
    options, candidate, baseline, limit = _sides(options)
    comparisons = pairing.join(candidate, baseline, limit)
    inputs = {"candidate": candidate.sha256, "baseline": baseline.sha256, "protocol": protocol.sha256}
    judge: dict[str, Any] = {"name": options.judge, "kind": "server", "note": "a language model's preference"}
    if model:
        card = likelihood.scorer().judge_card(model, options.device, options.threads)
        inputs["judge"] = card["fingerprint"]
        judge = {"name": options.judge, "kind": "likelihood", "note": likelihood.label(model), "model": card}
        judge["tie_band"] = options.tie_band
    facts = {
        "judge": judge,
        "protocol": protocol.facts(),
        "candidate": candidate.card,
        "baseline": baseline.card,
        "generation": {"candidate": candidate.generation, "baseline": baseline.generation},
        "prompts": {**candidate.prompts, "n": len({comparison.prompt for comparison in comparisons})},
    }
    with records.open_record("winrate", options, inputs=inputs, facts=facts) as record:
        todo = _todo(record, comparisons, protocol, options.seed)
        todo = _write_obvious(record, todo)
        if todo and model:
            _by_likelihood(record, todo, options, model)
        elif todo:
            _by_server(record, todo, options, protocol)
        if not record.done:
            raise SetupError(f"not one comparison got a verdict; the reasons are in {record.path}")
        record.finish()
        return record.path


def _sides(options: WinrateOptions) -> tuple[WinrateOptions, Answers, Answers, int | None]:
    """Both sets of answers, the options with their names filled in, and how many prompts to judge."""
    options = replace(options, candidate=options.candidate or pairing.newest_record(options.out))
    candidate = pairing.load_answers(options.candidate)
    if options.baseline:
        return options, candidate, pairing.load_answers(options.baseline), options.limit
    own = str(candidate.prompts.get("name", ""))
    try:
        baseline = pairing.load_answers(own)
    except InputError as error:
        raise InputError(
            f"{candidate.name} needs something to be compared with, and its prompt set is no help ({error}): "
            f"give --baseline an answer record or a file of answers"
        ) from None
    # The set's own reference answers: the candidate says which of its prompts it has answered.
    return replace(options, baseline=own), candidate, baseline, options.limit or len(candidate.text)


Todo = list[tuple[str, Comparison, Order]]


def _todo(record: Writer, comparisons: Sequence[Comparison], protocol: Protocol, seed: int) -> Todo:
    found = []
    for comparison in comparisons:
        for order in protocol.orders(comparison.prompt, comparison.seed, seed, comparison.text):
            key = f"{comparison.prompt}/{comparison.seed}/{order}"
            if key not in record.done:
                found.append((key, comparison, order))
    return found


def _write_obvious(record: Writer, todo: Todo) -> Todo:
    """Settle what needs no judge (identical and empty answers) and return the rest."""
    rest = []
    for key, comparison, order in todo:
        verdict = verdicts.without_judge(comparison.candidate, comparison.baseline)
        if verdict is None:
            rest.append((key, comparison, order))
        else:
            _write(record, key, comparison, order, verdict, {"asked": False})
    return rest


def _by_likelihood(record: Writer, todo: Todo, options: WinrateOptions, model: str) -> None:
    rows: dict[int, list[tuple[str, Order]]] = {}
    for key, comparison, order in todo:
        rows.setdefault(id(comparison), []).append((key, order))
    unique = list({id(comparison): comparison for _, comparison, _ in todo}.values())
    found = likelihood.judge(unique, model, options.tie_band, options.device, options.threads)
    for comparison, verdict, scores in tqdm(found, total=len(unique), desc="likelihood", unit="pair"):
        for key, order in rows[id(comparison)]:
            _write(record, key, comparison, order, verdict, {"asked": True, **scores})


def _with_server(options: WinrateOptions) -> WinrateOptions:
    """Fail on a missing package, key or a bad address before anything is read or written."""
    require("openai", f"the judge {options.judge!r}", "judge")
    from judges import client

    options = replace(options, base_url=client.checked_url(options.base_url))
    client.key_for(options.base_url, options.key_variable, os.environ)
    if options.concurrency < 1:
        raise InputError(f"--concurrency {options.concurrency} would ask nothing: give 1 or more")
    return options


def _by_server(record: Writer, todo: Todo, options: WinrateOptions, protocol: Protocol) -> None:
    from judges.client import Client, FatalError, key_for
    from judges.served import Task, judge_all

    key = key_for(options.base_url, options.key_variable, os.environ)
    tasks = [Task(*item) for item in todo]

    async def ask(cache: Cache, bar: Any) -> None:
        def keep(outcome: Outcome) -> None:
            task, last = outcome.task, outcome.replies[-1] if outcome.replies else None
            said = {
                "asked": True,
                "raw": last.text if last else "",
                "finish": last.finish_reason if last else None,
                "judge_model": last.model if last else "",
                "judge_fingerprint": last.fingerprint if last else "",
                "usage": outcome.usage(),
                "replies": len(outcome.replies),
            }
            _write(record, task.key, task.comparison, task.order, outcome.verdict, said)
            bar.update()

        async with Client(options.judge, options.base_url, key, protocol, cache) as client:
            await judge_all(tasks, client, options.concurrency, keep)

    with Cache(options.out / CACHE) as cache, tqdm(total=len(tasks), desc=options.judge, unit="call") as bar:
        try:
            asyncio.run(ask(cache, bar))
        except FatalError as error:
            raise SetupError(
                f"{error}; {len(record.done)} comparisons are kept in {record.path}, and the same command goes on"
            ) from None


def _write(
    record: Writer, key: str, comparison: Comparison, order: Order, verdict: Verdict, said: Mapping[str, Any]
) -> None:
    failure = {"error": verdict.reason} if verdict.word == "failed" else {}
    record.write(
        key,
        prompt=comparison.prompt,
        seed=comparison.seed,
        order=order,
        verdict=verdict.word,
        reason=verdict.reason,
        candidate_chars=len(comparison.candidate.strip()),
        baseline_chars=len(comparison.baseline.strip()),
        **said,
        **failure,
    )
