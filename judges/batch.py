"""How are many questions asked at half the price? Through a Batch API: a file of requests, replies within a day.

OpenAI and DashScope take a file of chat completions, begin a batch of it and leave a file of replies, in any order.
Every reply goes into the judge cache under its request's key, so that it makes no difference afterwards how it was
asked for. Nothing is paid for twice: a batch carries the digest of its requests, and where it is not certain that
the server began one (a cut connection, a killed run, a lost ledger), it is looked for there before another is begun.

A request that a batch left out because it expired is handed in again; one that failed is asked once more, in the
next batch. This file does not know what a verdict is, and asks nothing in any other way.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from openai.types import Batch

from judges.batch_desk import NAME, Desk
from judges.batch_files import NOT_REACHED, BatchRequest, Limits, Refusal, Replies, parts
from judges.batch_ledger import Entry, Ledger, new_name, room, tried_before
from judges.client import Client
from judges.replies import MALFORMED, CallError, FatalError, FilteredError, reply_of

LONGEST_PAUSE_S = 60.0
GIVE_UP_S = 3600.0  # how long a server may be out of reach while its batch is waited for
_ENDED = {"completed", "failed", "expired", "cancelled"}
_CROWDED = "token_limit_exceeded"


@dataclass
class BatchStatus:
    """How far the requests are: `replies` are in the cache, `failed` says of others why they will get none.

    `answered` of the `waiting` requests have a reply at the server already. `notes` are sentences on what went wrong.
    """

    total: int
    replies: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    waiting: int = 0
    answered: int = 0
    batches: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)


async def run(
    requests: Sequence[BatchRequest],
    client: Client,
    state_path: Path,
    *,
    wait: bool,
    poll_s: float = 5.0,
    progress: Callable[[BatchStatus], None] | None = None,
    approve: Callable[[Sequence[BatchRequest]], None] | None = None,
    limits: Limits | None = None,
) -> BatchStatus:
    """Get every request's reply into the client's cache.

    `state_path` is the directory of the ledger. Without `wait`, what is ready is collected, what no batch holds is
    handed in, and the status says what is still to come. `approve` is called before something is handed in, with all
    requests that have no reply yet, and may raise. Raises FatalError, CallError, or what `approve` raises; the same
    call goes on later.
    """
    work = _Run(requests, Desk(client, poll_s), Ledger(state_path), limits or Limits(), approve)
    pause, reached = poll_s, time.monotonic()
    while True:
        before = work.steps
        try:
            await work.look()
            await work.hand_in()
            reached = time.monotonic()
        except CallError:
            # A day is long: while a batch is out, a network that is away for a while is no reason to go home.
            if not wait or not work.out() or time.monotonic() - reached > GIVE_UP_S:
                raise
        status = work.status()
        if progress:
            progress(status)
        if not status.waiting or not wait:
            return status
        pause = poll_s if work.steps > before else min(max(LONGEST_PAUSE_S, poll_s), pause * 1.5)
        await asyncio.sleep(pause)


class _Run:
    """One call of `run`: what is wanted, and what the last look at the server said."""

    def __init__(
        self,
        requests: Sequence[BatchRequest],
        desk: Desk,
        ledger: Ledger,
        limits: Limits,
        approve: Callable[[Sequence[BatchRequest]], None] | None,
    ) -> None:
        self.wanted = {request.key: request for request in requests}
        self.desk, self.client, self.ledger, self.limits, self.approve = desk, desk.client, ledger, limits, approve
        self.steps = 0  # batches begun or ended
        self.failed: dict[str, str] = {}
        self.notes: list[str] = []
        self._remote: dict[str, Batch] = {}
        self._named: dict[str, Batch] | None = None
        self._lost: set[str] = set()

    def status(self) -> BatchStatus:
        """What can be said now."""
        missing = self._missing()
        out = [entry for entry in self.out() if not self.wanted.keys().isdisjoint(entry.keys)]
        counts = [remote.request_counts for entry in out if (remote := self._remote.get(entry.batch))]
        return BatchStatus(
            total=len(self.wanted),
            replies=len(self.wanted) - len(missing) - len(self.failed),
            failed=dict(self.failed),
            waiting=len(missing),
            answered=min(len(missing), sum(count.completed for count in counts if count)),
            batches=tuple(entry.batch for entry in out),
            notes=list(self.notes),
        )

    def out(self) -> list[Entry]:
        """The batches whose replies are still to come."""
        return [entry for entry in self._entries() if entry.state == "handed in" and entry.digest not in self._lost]

    async def look(self) -> None:
        """Ask after every batch that is out, and collect those that have ended."""
        for entry in self.out():
            remote = await self.desk.retrieve(entry.batch)
            if remote is None:
                if self.wanted.keys().isdisjoint(entry.keys):
                    self._lost.add(entry.digest)  # another record's, handed in with another account's key
                    continue
                raise FatalError(
                    f"the server at {self.client.base_url} does not know the batch {entry.batch} that was handed in "
                    f"earlier: use the key of the account that did, or delete {self.ledger.directory} to pay again"
                )
            self._remote[entry.batch] = remote
            if remote.status in _ENDED:
                await self._collect(entry, remote)

    async def hand_in(self) -> None:
        """Hand in what no batch holds, as far as there is room."""
        if not self._unasked():
            return
        async with self.ledger.locked():
            for entry in self._entries():
                if entry.state == "uploaded":  # a run ended before it knew whether its batch had begun
                    if batch := await self.desk.begun(entry):
                        self._adopt(entry, batch)
                    else:
                        self.ledger.drop(entry)
            most, at_once = room(self._entries(), self.limits.requests)
            free = math.inf if at_once is None else at_once - len(self.out())
            unasked = [self.wanted[key] for key in self._unasked()]
            for part, content in parts(unasked, replace(self.limits, requests=most), self.failed):
                if free < 1:
                    return
                await self._begin(part, content)
                free -= 1

    def _entries(self) -> list[Entry]:
        return self.ledger.entries(self.client.base_url, self.client.model)

    def _missing(self) -> list[str]:
        known = self.client.cache.known(list(self.wanted))
        return [key for key in self.wanted if key not in self.failed and key not in known]

    def _unasked(self) -> list[str]:
        held = {key for entry in self.out() for key in entry.keys}
        return [key for key in self._missing() if key not in held]

    async def _begin(self, part: Sequence[BatchRequest], content: bytes) -> None:
        entries, keys = self._entries(), [request.key for request in part]
        tried = tried_before(entries)
        entry = Entry(
            digest=new_name(entries, self.client.base_url, keys),
            server=self.client.base_url,
            model=self.client.model,
            file="",
            keys=keys,
            samples={request.key: request.sample for request in part if request.sample},
            second=[key for key in keys if key in tried],
            made=time.time(),
        )
        if self._named is None:
            self._named = {(batch.metadata or {}).get(NAME, ""): batch for batch in await self.desk.listed()}
        known = self._named.get(entry.digest)
        if known and (known.status not in _ENDED or known.output_file_id):
            self._adopt(entry, known)
            return
        if self.approve:
            self.approve([self.wanted[missing] for missing in self._missing()])
        entry.file = await self.desk.upload(f"{NAME}-{entry.digest[:16]}", content)
        self.ledger.save(entry)
        self._adopt(entry, await self.desk.begin(entry))

    def _adopt(self, entry: Entry, batch: Batch) -> None:
        entry.batch, entry.file, entry.state, entry.status = batch.id, batch.input_file_id, "handed in", batch.status
        self.ledger.save(entry)
        self._remote[batch.id] = batch
        self.steps += 1

    async def _collect(self, entry: Entry, remote: Batch) -> None:
        """Keep every reply of a batch that has ended, and note what became of the rest."""
        found = Replies()
        for file in (remote.output_file_id, remote.error_file_id):
            if file and (text := await self.desk.download(file)) is not None:
                found.read(text)
            elif file:
                self.notes.append(f"the replies of batch {entry.batch} are no longer at the server")
        kept = self._keep(entry, found, max(0.0, time.time() - entry.made))
        if found.unread:
            self.notes.append(f"{found.unread} lines of batch {entry.batch} cannot be read")
        errors = (remote.errors.data or []) if remote.errors else []
        entry.crowded = remote.status == "failed" and any(error.code == _CROWDED for error in errors)
        before = [other for other in self._entries() if other.made < entry.made]
        entry.beside = sum(other.open or other.ended > entry.made for other in before)
        self._judge_the_rest(entry, remote.status, found, kept)
        entry.state, entry.status, entry.ended = "ended", remote.status, time.time()
        self.ledger.save(entry)
        self.steps += 1
        said = self.client.redact("; ".join(str(error.message or error.code) for error in errors))[:300]
        self._stop_if_useless(entry, found, kept, said)

    def _keep(self, entry: Entry, found: Replies, seconds: float) -> int:
        ours, kept, redact = set(entry.keys), 0, self.client.redact
        for key, body in found.bodies.items():
            if key not in ours:
                continue
            try:
                reply = reply_of(body, redact)
            except MALFORMED as error:
                found.refused[key] = Refusal(0, type(error).__name__, "the reply is no chat completion")
                continue
            self.client.keep(key, entry.samples.get(key, 0), reply, seconds)
            kept += 1
        return kept

    def _judge_the_rest(self, entry: Entry, status: str, found: Replies, kept: int) -> None:
        """Which requests without a reply are asked again for nothing, which once more, which never."""
        second, known = set(entry.second), self.client.cache.known(entry.keys)
        for key in entry.keys:
            if key in known:
                continue
            refusal = found.refused.get(key)
            reached = refusal is not None and refusal.code not in NOT_REACHED
            # A batch that expired without one reply counts as a try, or a stuck server would be asked for ever.
            if not reached and (status in ("failed", "cancelled") or (status == "expired" and kept)):
                continue
            if key not in second and (refusal is None or refusal.passing):
                entry.again.append(key)
            else:
                said = self._reason(refusal) if refusal else f"batch {entry.batch} {status} without its reply"
                entry.failed[key] = self.client.redact(said)[:300]
                if key in self.wanted:
                    self.failed[key] = entry.failed[key]

    def _reason(self, refusal: Refusal) -> str:
        """Why a request got no reply, as the client would say it where it matters: a content filter is an outcome."""
        found = self.desk.refused(refusal) if refusal.status else None
        return str(found if isinstance(found, FilteredError) else refusal)

    def _stop_if_useless(self, entry: Entry, found: Replies, kept: int, said: str) -> None:
        if entry.crowded:
            if len(entry.keys) == 1 and not entry.beside:
                raise FatalError(f"the server has no room for a batch of one request ({said}): try again later")
            return
        if entry.status == "failed":
            raise FatalError(f"the server refused the batch {entry.batch}: {said or 'it gave no reason'}")
        if entry.status == "cancelled":
            raise FatalError(f"the batch {entry.batch} was cancelled at the server; {kept} replies of it are kept")
        if kept or not found.refused:
            return
        stops = [
            stop for refusal in found.refused.values() if isinstance(stop := self.desk.refused(refusal), FatalError)
        ]
        if len(stops) == len(entry.keys):
            raise stops[0]
