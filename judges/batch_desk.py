"""What is asked of a server with a Batch API? Files go over its counter, and batches begin there, each of them once.

Beginning a batch is the one call that must not be repeated blindly, because a second one is paid for as well: when the
connection is cut, the account's batches are searched for ours before it is tried again. Other calls are repeated by
the SDK. What is in the files, and what is done with the replies, is not known here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import httpx2
import openai
from openai import HttpxBinaryResponseContent
from openai.types import Batch, FileObject

from judges.batch_files import ENDPOINT, Refusal
from judges.batch_ledger import Entry
from judges.client import Client
from judges.replies import CallError, FatalError, retry_after

NAME = "selectkd"  # the field of a batch's metadata that holds our digest
CREATE_TRIES = 5
BUSY_TRIES = 20
LONGEST_WAIT_S = 900.0
LISTED = 3000  # batches looked through for one of ours
_BUSY, _MISHAPS = 429, {500, *range(502, 600)}  # 501: there is no such thing here

T = TypeVar("T")


class Desk:
    """One server, asked through a judge's client. Raises FatalError or CallError, as the client does."""

    def __init__(self, client: Client, poll_s: float) -> None:
        self.client, self.poll_s = client, poll_s

    async def retrieve(self, batch: str) -> Batch | None:
        """What the server says of a batch; None when it knows none of that name."""
        return await self._call(lambda: self.client.sdk.batches.retrieve(batch), Batch)

    async def upload(self, name: str, content: bytes) -> str:
        """The server's name for a file of requests."""
        file = await self._call(
            lambda: self.client.sdk.files.create(file=(f"{name}.jsonl", content), purpose="batch"), FileObject
        )
        if file:
            return file.id
        raise FatalError(f"the server at {self.client.base_url} has no Batch API: ask without --batch")

    async def download(self, file: str) -> str | None:
        """A file of replies; None when it is no longer there."""
        found = await self._call(lambda: self.client.sdk.files.content(file), HttpxBinaryResponseContent)
        return found.content.decode("utf-8", "replace") if found else None

    async def listed(self) -> list[Batch]:
        """The account's batches."""

        async def pages() -> list[Batch]:
            found: list[Batch] = []
            async for batch in self.client.sdk.batches.list(limit=100):
                found.append(batch)
                if len(found) == LISTED:
                    break
            return found

        return await self._call(pages, list) or []

    async def begun(self, entry: Entry) -> Batch | None:
        """The batch of this entry, where the server has begun one. Looked for twice: a list may lag behind."""
        for pause in (0.0, self.poll_s):
            await asyncio.sleep(pause)
            for batch in await self.listed():
                if batch.input_file_id == entry.file or (batch.metadata or {}).get(NAME) == entry.digest:
                    return batch
        return None

    async def begin(self, entry: Entry) -> Batch:
        """Begin the batch of an uploaded file, once, whatever the connection does."""
        # The SDK would repeat a call that was cut, and so begin and pay for a second batch.
        sdk = self.client.sdk.with_options(max_retries=0)
        said: CallError | FatalError = CallError("")
        for _ in range(CREATE_TRIES):
            try:
                return await sdk.batches.create(
                    input_file_id=entry.file,
                    endpoint=ENDPOINT,
                    completion_window="24h",
                    metadata={NAME: entry.digest},
                )
            except openai.APIStatusError as error:
                said = self._refusal(error)
                if isinstance(said, FatalError):
                    raise said from None
                if error.status_code == _BUSY:
                    await asyncio.sleep(self._pause(error))
                    continue
            except openai.APIConnectionError as error:
                said = self._unreachable(error)
            if batch := await self.begun(entry):
                return batch
        raise said

    def refused(self, refusal: Refusal) -> CallError | FatalError:
        """What the client makes of a status that came in a file and not over the line."""
        request = httpx2.Request("POST", self.client.base_url)
        response = httpx2.Response(refusal.status, request=request, json={"error": dict(refusal.body)})
        return self.client.refusal(openai.APIStatusError(refusal.said, response=response, body=dict(refusal.body)))

    async def _call(self, call: Callable[[], Awaitable[object]], kind: type[T]) -> T | None:
        """What the server gives, after waiting while it is busy; None where it knows nothing of the name."""
        for _ in range(BUSY_TRIES):
            try:
                found = await call()
            except openai.NotFoundError:
                return None
            except openai.APIStatusError as error:
                if error.status_code != _BUSY or isinstance(said := self._refusal(error), FatalError):
                    raise self._refusal(error) from None
                await asyncio.sleep(self._pause(error))
            except openai.APIConnectionError as error:
                raise self._unreachable(error) from None
            else:
                if not isinstance(found, kind):
                    raise FatalError(f"what answers at {self.client.base_url} is no Batch API: ask without --batch")
                return found
        raise said

    def _pause(self, error: openai.APIStatusError) -> float:
        asked = retry_after(error.response.headers)
        return self.poll_s if asked is None else min(asked, LONGEST_WAIT_S)

    def _refusal(self, error: openai.APIStatusError) -> CallError | FatalError:
        said = self.client.refusal(error)
        passing = error.status_code in (408, 409, _BUSY) or error.status_code in _MISHAPS
        return said if passing else FatalError(str(said))

    def _unreachable(self, error: openai.APIConnectionError) -> CallError:
        return CallError(f"no connection to {self.client.base_url}: {self.client.cause(error)}")
