"""A command that judges by batch, small enough to be killed anywhere: for the tests of `judges.batch`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from judges import by_batch
from judges.batch_files import Limits
from judges.by_server import said
from judges.cache import Cache
from judges.client import Client
from judges.judge import Judge
from judges.pairing import Comparison
from judges.protocols import BOTH_ORDERS, PROTOCOLS
from judges.served import judge_all
from judges.tasks import Task
from judges.verdicts import Verdict
from selectkd_eval import records
from selectkd_eval.prompts import prompt_id
from selectkd_eval.verbs import WinrateOptions

KEY = "sk-a-secret-that-must-not-leak"
POLL_S = 0.02
PROTOCOL = PROTOCOLS["selectkd"]
JUDGE = """
[served]
model = "served"
base_url = "{url}"
price_in = {price}
price_out = {price}
batch_discount = 0.5
"""


def options(directory: Path, url: str, *, price: float = 1.0, **changes: Any) -> WinrateOptions:
    """The options of `winrate --judge served --batch`, with the judge in a file of one's own."""
    file = directory / "judges.toml"
    file.write_text(JUDGE.format(url=url, price=price))
    return WinrateOptions(judge="served", judge_file=file, out=directory, batch=True, **changes)


def tasks(n: int) -> list[Task]:
    """Candidates longer on two thirds of the prompts, shorter on the others, in either order by turns."""
    found = []
    for i in range(n):
        text, order = f"prompt {i}", BOTH_ORDERS[i % 2]
        shown = Comparison(prompt_id(text), text, 0, "x" * (9 if i % 3 else 3), "y" * 6)
        found.append(Task(shown, order))
    return found


def judged(chosen: WinrateOptions, n: int, *, live: str = "", limits: Limits | None = None) -> records.Record:
    """The record of n tasks, through the Batch API or, with the address of a server, `live`. Goes on where it was."""
    with records.open_record("winrate", chosen, inputs={}, facts={}) as record:
        todo = [task for task in tasks(n) if task.key not in record.done]

        def write(task: Task, verdict: Verdict, words: Mapping[str, Any]) -> None:
            failure = {"error": verdict.reason} if verdict.word == "failed" else {}
            record.write(task.key, verdict=verdict.word, reason=verdict.reason, **words, **failure)

        if live:
            asyncio.run(_live(chosen, live, todo, write))
            finished = True
        else:
            finished = by_batch.judge(record, todo, chosen, PROTOCOL, write, poll_s=POLL_S, limits=limits)
        if finished:
            record.finish()
    return records.read(record.path, unfinished_ok=True)


async def _live(chosen: WinrateOptions, url: str, todo: list[Task], write: Any) -> None:
    judge = Judge(name="served", model="served", base_url=url)
    with Cache(chosen.out / "live.sqlite") as cache:
        async with Client(judge, KEY, PROTOCOL, cache) as client:
            await judge_all(todo, client, 4, lambda outcome: write(outcome.task, outcome.verdict, said(outcome)))


if __name__ == "__main__":
    place, url, number, *name = sys.argv[1:]
    judged(options(Path(place), url, name="".join(name)), int(number))
