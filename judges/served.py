"""Asking a server about many comparisons at once, without losing one or paying for one twice.

A fixed number of workers take comparisons from one queue. A reply without a readable verdict is asked about once
more in the same conversation. A fatal error stops the queue; requests already in flight are waited for, because
they are paid for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from judges.client import Client
from judges.replies import CallError, FatalError, FilteredError, NotAskedError, Reply
from judges.tasks import Outcome, Task, question, settled
from judges.verdicts import Verdict

GRACE_S = 60.0  # how long requests in flight may still take after a fatal error
INTERRUPTED_S = 20.0  # and after Ctrl-C


async def judge_one(task: Task, client: Client) -> Outcome:
    """One comparison in one order. Raises FatalError; a request that got no reply is a `failed` verdict."""
    replies: list[Reply] = []
    while (outcome := settled(task, client.protocol, replies)) is None:
        try:
            replies.append(await client.ask(question(task, client.protocol, replies), task.sample))
        except FilteredError as error:
            return Outcome(task, Verdict("filtered", str(error)), tuple(replies))
        except CallError as error:
            return Outcome(
                task, Verdict("failed", str(error)), tuple(replies), asked=not isinstance(error, NotAskedError)
            )
    return outcome


async def judge_all(
    tasks: Sequence[Task], client: Client, concurrency: int, on_outcome: Callable[[Outcome], None]
) -> None:
    """Judge every task; `on_outcome` is called once per task as it ends, in no fixed order.

    Raises FatalError when going on is useless: the server refuses for good, or nothing but failures comes back. What
    was judged before has been handed to `on_outcome`. When it is cancelled (Ctrl-C) it asks nothing more, and waits
    a little for what is in flight.
    """
    watch = _Watch(limit=max(8, concurrency), client=client)
    queue = iter(tasks)
    pending = {asyncio.create_task(_work(queue, client, watch, on_outcome)) for _ in tasks[:concurrency]}
    try:
        while pending:
            done, pending = await asyncio.wait(
                pending, timeout=GRACE_S if watch.stopped else None, return_when=asyncio.FIRST_COMPLETED
            )
            for worker in done:
                worker.result()  # a defect in a worker is raised here, and the others are stopped
            if not done:
                break
    except asyncio.CancelledError:
        watch.stop("interrupted")
        await asyncio.wait(pending, timeout=INTERRUPTED_S)
        raise
    finally:
        for worker in pending:
            worker.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
    if watch.stopped:
        raise watch.stopped


class _Watch:
    """Notices when the server is not merely busy: `limit` failures in a row without one reply between."""

    def __init__(self, limit: int, client: Client) -> None:
        self.stopped: FatalError | None = None
        self._limit, self._client = limit, client
        self._failures, self._replied = 0, False

    def stop(self, why: str | FatalError) -> None:
        self.stopped = self.stopped or (why if isinstance(why, FatalError) else FatalError(why))
        self._client.limits.stop()

    def saw(self, outcome: Outcome) -> None:
        if outcome.verdict.word != "failed":
            self._failures, self._replied = 0, True
            return
        if not outcome.asked:
            return
        self._failures += 1
        nothing_works = not self._replied and outcome.verdict.reason.startswith("no connection")
        if nothing_works or self._failures >= self._limit:
            self.stop(outcome.verdict.reason)


async def _work(queue: Iterator[Task], client: Client, watch: _Watch, on_outcome: Callable[[Outcome], Any]) -> None:
    for task in queue:
        try:
            outcome = await judge_one(task, client)
        except FatalError as error:
            watch.stop(error)
            return
        if watch.stopped and not outcome.asked:
            return  # it never left the turnstile: there is nothing to keep
        watch.saw(outcome)
        on_outcome(outcome)
        if watch.stopped:
            return
