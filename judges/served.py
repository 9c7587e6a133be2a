"""Asking a server about many comparisons at once, without losing one or paying for one twice.

A fixed number of workers take comparisons from one queue. A reply without a readable verdict is asked about once
more in the same conversation. A fatal error stops the queue; requests already in flight are waited for, because
they are paid for.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from judges import verdicts
from judges.client import CallError, Client, FatalError, Reply
from judges.pairing import Comparison
from judges.protocols import Order
from judges.verdicts import Verdict

GRACE_S = 60.0  # how long requests in flight may still take after a fatal error


@dataclass(frozen=True)
class Task:
    """One comparison in one order, and the key of its row."""

    key: str
    comparison: Comparison
    order: Order


@dataclass(frozen=True)
class Outcome:
    """What came of a task. `replies` holds every reply, the readable one last."""

    task: Task
    verdict: Verdict
    replies: tuple[Reply, ...] = ()

    def usage(self) -> dict[str, int]:
        """Tokens of all replies together."""
        total: Counter[str] = Counter()
        for reply in self.replies:
            total.update(reply.usage)
        return dict(total)


async def judge_all(
    tasks: Sequence[Task], client: Client, concurrency: int, on_outcome: Callable[[Outcome], None]
) -> None:
    """Judge every task; `on_outcome` is called once per task as it ends, in no fixed order.

    Raises FatalError when going on is useless: the server refuses for good, or nothing but failures comes back. What
    was judged before has been handed to `on_outcome`.
    """
    queue = iter(tasks)
    watch = _Watch(limit=max(8, concurrency))
    workers = [
        asyncio.create_task(_work(queue, client, watch, on_outcome)) for _ in range(min(concurrency, len(tasks)))
    ]
    pending = set(workers)
    try:
        while pending:
            done, pending = await asyncio.wait(
                pending, timeout=GRACE_S if watch.stopped else None, return_when=asyncio.FIRST_COMPLETED
            )
            for worker in done:
                worker.result()  # a defect in a worker is raised here, and the others are stopped
            if not done:
                break
    finally:
        for worker in pending:
            worker.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
    if watch.stopped:
        raise FatalError(watch.stopped)


async def judge_one(task: Task, client: Client) -> Outcome:
    """One comparison in one order. Raises FatalError; a request that got no reply is a `failed` verdict."""
    protocol, comparison = client.protocol, task.comparison
    messages = protocol.messages(comparison.text, comparison.candidate, comparison.baseline, task.order)
    replies: list[Reply] = []
    found = Verdict("unreadable", "not asked")
    for _ in range(2):
        try:
            reply = await client.ask(messages)
        except CallError as error:
            return Outcome(task, Verdict("failed", str(error)), tuple(replies))
        replies.append(reply)
        found = verdicts.read(reply.text, reply.finish_reason, protocol.labels, task.order)
        if found.word != "unreadable":
            break
        messages = protocol.messages_again(messages, verdicts.strip_reasoning(reply.text))
    return Outcome(task, found, tuple(replies))


class _Watch:
    """Notices when the server is not merely busy: `limit` failures in a row without one reply between."""

    def __init__(self, limit: int) -> None:
        self.stopped = ""
        self._limit, self._failures, self._replied = limit, 0, False

    def saw(self, outcome: Outcome) -> None:
        if outcome.verdict.word != "failed":
            self._failures, self._replied = 0, True
            return
        self._failures += 1
        nothing_works = not self._replied and outcome.verdict.reason.startswith("no connection")
        if nothing_works or self._failures >= self._limit:
            self.stopped = self.stopped or outcome.verdict.reason


async def _work(queue: Iterator[Task], client: Client, watch: _Watch, on_outcome: Callable[[Outcome], Any]) -> None:
    for task in queue:
        if watch.stopped:
            return
        try:
            outcome = await judge_one(task, client)
        except FatalError as error:
            watch.stopped = watch.stopped or str(error)
            return
        watch.saw(outcome)
        on_outcome(outcome)
