"""`winrate --judge gpt-4o --batch`: the same judge at half the price, and its verdicts within a day.

All questions go out together; a reply without a readable verdict is asked about once more in a second batch. Replies
come into the judge cache, and verdicts are read from there by the rules of the live judge, so the record is the same
whichever way was taken, and one may go on where the other stopped. How batches begin and end is `judges.batch`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from judges import costs, presets
from judges.batch_files import BatchRequest, Limits
from judges.by_server import CACHE, Write, said
from judges.cache import Cache
from judges.judge import Judge, key_for
from judges.protocols import Protocol
from judges.replies import FILTERED, CallError, FatalError, NotAskedError, Reply
from judges.tasks import Outcome, Task, question, settled
from judges.verdicts import Verdict
from selectkd_eval.errors import InputError, SetupError
from selectkd_eval.records import Writer
from selectkd_eval.verbs import WinrateOptions

if TYPE_CHECKING:
    from judges.batch import BatchStatus
    from judges.client import Client

LEDGER = "judge-batches"
POLL_S = 5.0
_NAMED = 3  # batches that a line names


def check(judge: Judge) -> None:
    """Refuse a judge that has no Batch API, before anything is read."""
    if judge.batch_discount is None:
        raise InputError(
            f"--batch needs a Batch API, and none is known of {judge.name!r}: leave --batch out, or put "
            f"batch_discount = 0.5 (the share of the price that it saves) into a table [{judge.name}] of the file of "
            f"--judge-file"
        )


def judge(
    record: Writer,
    todo: Sequence[Task],
    options: WinrateOptions,
    protocol: Protocol,
    write: Write,
    *,
    poll_s: float | None = None,
    limits: Limits | None = None,
) -> bool:
    """Have every task judged and written; False when replies are still to come (only with --no-wait).

    Raises SetupError when it had to stop. What is at the server then is collected by the same command.
    """
    from judges.client import Client

    served = presets.find(options)
    check(served)
    key = key_for(served.base_url, served.key_variable, os.environ)
    spent = sum(costs.price(served, row.get("usage") or {}, batch=True) or 0.0 for row in record.done.values())

    async def ask(cache: Cache) -> bool:
        async with Client(served, key, protocol, cache) as client:
            work = _Work(client, options, todo, write, spent)
            return await work.go(poll_s or POLL_S, limits)

    with Cache(options.out / CACHE) as cache:
        try:
            return asyncio.run(ask(cache))
        except (CallError, FatalError) as error:
            raise SetupError(
                f"{error}; {len(record.done)} comparisons are kept in {record.path}, and the same command goes on"
            ) from None
        except KeyboardInterrupt:
            print("batches that were handed in go on; the same command collects their replies", file=sys.stderr)
            raise


class _Work:
    """The tasks of one command: those that are settled are written, the others' questions are asked."""

    def __init__(
        self, client: Client, options: WinrateOptions, todo: Sequence[Task], write: Write, spent: float
    ) -> None:
        self.client, self.options, self.write = client, options, write
        self._left = list(todo)
        self._failed: dict[str, str] = {}
        self._spent = spent
        self._notes: list[str] = []
        costs.Budget(client.judge, options.max_cost)  # refuses a bound without a price

    async def go(self, poll_s: float, limits: Limits | None) -> bool:
        """Ask round by round until every task is settled. Whether it is."""
        from judges import batch

        while wanted := self._settle():
            with tqdm(total=len(wanted), desc=f"{self.client.judge.name} by batch", unit="reply") as bar:
                status = await batch.run(
                    wanted,
                    self.client,
                    self.options.out / LEDGER,
                    wait=self.options.wait,
                    poll_s=poll_s,
                    progress=lambda status: self._show(bar, status),
                    approve=self._within_budget,
                    limits=limits,
                )
            self._failed |= status.failed
            if status.waiting:
                self._settle()
                print(_still_out(status, self.client.judge.name))
                return False
        return True

    def _settle(self) -> list[BatchRequest]:
        """Write every task that is settled by the replies that are there; the questions of the others, each once."""
        wanted: dict[str, BatchRequest] = {}
        left = []
        for task in self._left:
            outcome = self._outcome(task, wanted)
            if outcome is None:
                left.append(task)
            else:
                self._spent += costs.price(self.client.judge, outcome.usage(), batch=True) or 0.0
                self.write(task, outcome.verdict, said(outcome))
        self._left = left
        return list(wanted.values())

    def _outcome(self, task: Task, wanted: dict[str, BatchRequest]) -> Outcome | None:
        replies: list[Reply] = []
        protocol = self.client.protocol
        while (outcome := settled(task, protocol, replies)) is None:
            request = self.client.request(question(task, protocol, replies))
            key = self.client.cache_key(request, task.sample)
            if (reply := self.client.stored(key)) is not None:
                replies.append(reply)
            elif key in self._failed:
                why = self._failed[key]
                return Outcome(task, Verdict("filtered" if why.startswith(FILTERED) else "failed", why), tuple(replies))
            elif reason := self._too_long(request):
                return Outcome(task, Verdict("failed", reason), tuple(replies), asked=False)
            else:
                wanted[key] = BatchRequest(key, request, task.sample)
                return None
        return outcome

    def _too_long(self, request: Mapping[str, Any]) -> str:
        try:
            self.client.refuse_too_long(request)
        except NotAskedError as error:
            return str(error)
        return ""

    def _within_budget(self, missing: Sequence[BatchRequest]) -> None:
        """Refuse to hand in what might cost more than --max-cost: a batch cannot be stopped halfway."""
        if self.options.max_cost is None:
            return
        judge = self.client.judge
        plan = costs.estimate((), judge, self.client.protocol, self.client.cache)
        longest = [request.body.get(judge.max_tokens_name) or costs.LONGEST_REPLY for request in missing]
        out = len(missing) * plan.reply if plan.seen else sum(longest)
        into = sum(costs.prompt_tokens(request.body["messages"]) for request in missing)
        money = costs.price(judge, {"prompt_tokens": into, "completion_tokens": out}, batch=True) or 0.0
        if self._spent + money > self.options.max_cost:
            source = f"replies as long as {plan.seen} earlier ones" if plan.seen else "the longest replies"
            raise SetupError(
                f"the batch could cost about {costs.dollars(money)} (with {source}) on top of "
                f"{costs.dollars(self._spent)}, and --max-cost is {costs.dollars(self.options.max_cost)}: raise it, or "
                f"judge fewer prompts with --limit"
            )

    def _show(self, bar: Any, status: BatchStatus) -> None:
        for note in status.notes[len(self._notes) :]:
            bar.write(note, file=sys.stderr)
        self._notes = list(status.notes)
        bar.n = status.replies + len(status.failed) + status.answered
        failed = f", {len(status.failed)} failed" if status.failed else ""
        bar.set_postfix_str(f"{len(status.batches)} out{failed}")


def _still_out(status: BatchStatus, name: str) -> str:
    """Where the batches are, and how their replies are collected."""
    shown = ", ".join(status.batches[:_NAMED]) + (" ..." if len(status.batches) > _NAMED else "")
    unasked = "" if status.batches else " (no batch could be handed in yet)"
    return (
        f"{name} has {status.answered:,} of {status.waiting:,} replies ready in {len(status.batches)} "
        f"batch{'' if len(status.batches) == 1 else 'es'} ({shown}){unasked}, {status.replies:,} are collected: the "
        f"same command collects the rest, and without --no-wait it waits for them"
    )
