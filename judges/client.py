"""How is a served judge asked? The only file that talks to a chat server, through the `openai` SDK.

Chat Completions is the one wire format that OpenAI, vLLM, DeepSeek, Moonshot and DashScope share. The SDK repeats
what is a mishap of the transport (connection errors, 408, 409, 5xx); a server that is busy (429, or 503 with a time)
is this file's affair alone, because all requests must slow down then and not each for itself (`judges.limits`). What
cannot be mended by asking again (a refused key, an unknown model, an empty account, a setting that the judge does not
take) ends the run at once. Every reply goes to the cache before it is used. It does not know what a verdict is.

The key comes from the environment and goes into the request's header, nowhere else: every text that comes back
from a server is searched for it first, because some servers quote it in their errors.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import httpx2
import openai

from judges.cache import Cache, request_key
from judges.costs import BYTES_PER_TOKEN, Budget, SpentError, prompt_tokens
from judges.judge import Judge
from judges.limits import Limits, StoppedError
from judges.protocols import Message, Protocol
from judges.replies import (
    FILTERED,
    MALFORMED,
    CallError,
    FatalError,
    FilteredError,
    NotAskedError,
    OverBudgetError,
    Redaction,
    Reply,
    from_store,
    reply_of,
    retry_after,
    to_store,
)  # fmt: skip
from selectkd_eval.errors import InputError

RETRIES = 6
TIMEOUT_S = 600.0  # a reply that is given up on was paid for all the same, so wait long
MALFORMED_TRIES = 2
BUSY_TRIES = 20
PATIENCE_S = 900.0  # a server that is busy for longer is given up on
_FATAL = {
    401: "refused the key",
    402: "wants to be paid first",  # DeepSeek's empty account
    403: "refused access",
    404: "knows no such model or address",
}
# An empty account in the words of OpenAI, Moonshot and DashScope.
_EMPTY = re.compile(r"insufficient_quota|billing_hard_limit|exceeded_current_quota|Arrearage", re.IGNORECASE)
_UNSUPPORTED = ("unsupported_parameter", "unsupported_value")
# A question that a content filter turned away, in the words of Azure and Moonshot, DashScope and DeepSeek.
_FILTERED = re.compile(r"content_filter|data_?inspection_?failed|content exists risk", re.IGNORECASE)
_TOO_LONG = re.compile(r"context_length_exceeded|maximum context length|context (?:length|window)", re.IGNORECASE)
_SURELY = 8 / BYTES_PER_TOKEN  # hardly a text has fewer tokens than one for eight bytes


class Client:
    """One judge under one protocol. Use as an async context manager.

    `paid` counts replies that came from the server. With `calling` off, only the cache is asked. `aiohttp` chooses
    the transport: None takes it where it is installed, for half the processor time.
    """

    def __init__(
        self,
        judge: Judge,
        key: str,
        protocol: Protocol,
        cache: Cache,
        *,
        concurrency: int = 16,
        budget: Budget | None = None,
        calling: bool = True,
        aiohttp: bool | None = None,
    ) -> None:
        self.judge, self.protocol, self.cache, self.calling = judge, protocol, cache, calling
        self.model, self.base_url = judge.model, judge.base_url
        self.budget = budget or Budget(judge, None)
        most = min(concurrency, judge.concurrency or concurrency)
        self.limits = Limits(most, judge.requests_per_minute, judge.tokens_per_minute)
        self.paid = 0
        self.redact = Redaction(key)
        self._asking: dict[str, asyncio.Lock] = {}
        self._reply_tokens = 250.0
        self.sdk = openai.AsyncOpenAI(
            api_key=key or "none",  # a local server needs no key, the SDK needs a word
            base_url=self.base_url,
            max_retries=RETRIES,
            timeout=TIMEOUT_S,
            http_client=self._transport(aiohttp),
        )

    def request(self, messages: list[Message]) -> dict[str, Any]:
        """The body of a request, as the judge understands it."""
        return self.judge.request(self.protocol, messages)

    def cache_key(self, request: Mapping[str, Any], sample: int = 0) -> str:
        """Under which name the reply to a request is kept."""
        return request_key(self.base_url, self.protocol.sha256, request, sample)

    async def ask(self, messages: list[Message], sample: int = 0) -> Reply:
        """The reply to one request, from the cache or from the server. Raises CallError or FatalError."""
        request = self.request(messages)
        key = self.cache_key(request, sample)
        # Two seeds with the same answer make the same request; the second waits for the first one's reply.
        async with self._asking.setdefault(key, asyncio.Lock()):
            if (stored := self.stored(key)) is not None:
                return stored
            if not self.calling:
                raise NotAskedError(
                    "its reply is not in the cache: that is of other answers, protocol, address or repeat"
                )
            self.refuse_too_long(request)
            return await self._pay(request, key, sample)

    def stored(self, key: str) -> Reply | None:
        """The reply that the cache holds."""
        kept = self.cache.get(key)
        return None if kept is None else from_store(kept)

    def keep(self, key: str, sample: int, reply: Reply, seconds: float) -> None:
        """Put a reply that was paid for into the cache."""
        self.cache.put(key, self.model, sample, to_store(reply), seconds)
        self.paid += 1

    async def _pay(self, request: dict[str, Any], key: str, sample: int) -> Reply:
        try:
            reserved = await self.budget.reserve(request)
        except SpentError:
            raise OverBudgetError("the next call might cost more than is allowed") from None
        start, reply = time.monotonic(), None
        try:
            reply = await self._send(request)
            self.keep(key, sample, reply, time.monotonic() - start)
        finally:
            await self.budget.settle(reserved, reply.usage if reply else None)
        return reply

    async def _send(self, request: dict[str, Any]) -> Reply:
        estimated = prompt_tokens(request["messages"]) + self._reply_tokens
        busy = malformed = 0
        while True:
            try:
                async with self.limits.turn(estimated) as sent:
                    response = await self.sdk.post("/chat/completions", body=request, cast_to=httpx2.Response)
            except StoppedError:
                raise NotAskedError("the run was stopped") from None
            except openai.APIStatusError as error:
                if not _is_busy(error.response):
                    raise self.refusal(error) from None
                busy += 1
                self._wait(error, sent, busy)
                continue
            except openai.APIConnectionError as error:
                raise CallError(f"no connection to {self.base_url}: {self.cause(error)}") from None
            self._adopt(response.headers)
            try:
                reply = reply_of(json.loads(response.content), self.redact)
            except MALFORMED:
                malformed += 1
                if malformed == MALFORMED_TRIES:
                    # Some servers say what is wrong in a reply that is none, and proxies have pages of their own.
                    came = " ".join(self.redact(response.content.decode("utf-8", "replace")).split())[:200]
                    raise CallError(f"the server's reply is no chat completion, but {came!r}") from None
                continue
            self.limits.went_well()
            self.limits.spent(estimated, reply.usage.get("total_tokens", estimated))
            self._reply_tokens += (reply.usage.get("completion_tokens", self._reply_tokens) - self._reply_tokens) / 20
            return reply

    def _wait(self, error: openai.APIStatusError, sent: float, tries: int) -> None:
        """Slow everybody down; raises when the server has been busy, or says that it will be, for too long."""
        wait = retry_after(error.response.headers)
        if wait is not None and wait > PATIENCE_S:
            raise FatalError(
                f"the server at {self.base_url} asks to wait {wait / 60:.0f} minutes (429: "
                f"{self._said(error)}): give the same command again then"
            ) from None
        self.limits.slower(sent, wait)
        if tries >= BUSY_TRIES or time.monotonic() - self.limits.last_success > PATIENCE_S:
            raise CallError(f"the server is too busy, after {tries} tries: {self._said(error)}") from None

    def refusal(self, error: openai.APIStatusError) -> CallError | FatalError:
        """What an error of the server means: for this request alone, or for all of them."""
        said, status = self._said(error), error.status_code
        if _EMPTY.search(f"{error.code} {error.type} {said}"):
            return FatalError(f"the account at {self.base_url} has no quota left ({said}): add credit")
        if status in _FATAL:
            return FatalError(
                f"the server at {self.base_url} {_FATAL[status]} for judge {self.model!r} ({status}: {said})"
            )
        if status == 400 and (_TOO_LONG.search(said) or error.code == "context_length_exceeded"):
            return NotAskedError(f"does not fit into the judge's context: {said}")
        if status == 400 and _FILTERED.search(f"{error.code} {error.type} {said}"):
            return FilteredError(f"{FILTERED}: {said}")
        if status == 400 and error.code in _UNSUPPORTED:
            what = self.redact(str(error.param or "a setting"))
            return FatalError(
                f"judge {self.model!r} does not take {what} ({said}): say so in a table [{self.judge.name}] of "
                f"judges.toml ({_remedy(what)})"
            )
        return CallError(f"the server answered {status}: {said}")

    def cause(self, error: openai.APIConnectionError) -> str:
        """Why there is no connection, in one line."""
        cause = error.__cause__ or error
        return self.redact(str(cause) or type(cause).__name__)

    def _said(self, error: openai.APIStatusError) -> str:
        return self.redact(_message(error))[:300]

    def refuse_too_long(self, request: Mapping[str, Any]) -> None:
        """Not worth a call: a request that surely does not fit. In doubt the server decides, at no cost."""
        tokens = round(prompt_tokens(request["messages"]) / _SURELY)
        reply = request.get(self.judge.max_tokens_name) or 1
        if self.judge.context and tokens + reply > self.judge.context:
            raise NotAskedError(
                f"does not fit into the judge's context of {self.judge.context:,} tokens: about {tokens:,} and a "
                f"reply of up to {reply:,}"
            )

    def _adopt(self, headers: httpx2.Headers) -> None:
        """The account's limits as the server states them, which know more than a table does."""
        if not self.judge.states_limits:
            return
        for bucket, what in ((self.limits.requests, "requests"), (self.limits.tokens, "tokens")):
            stated = headers.get(f"x-ratelimit-limit-{what}", "")
            if stated.isdigit() and int(stated) not in (0, bucket.per_minute):
                bucket.set(int(stated))
                self.limits.look_again()

    def _transport(self, aiohttp: bool | None) -> httpx2.AsyncClient:
        if aiohttp is None:
            aiohttp = importlib.util.find_spec("aiohttp") is not None
        kind = openai.DefaultAioHttpClient if aiohttp else openai.DefaultAsyncHttpx2Client
        try:
            return kind(event_hooks={"request": [self._before], "response": [_after]})
        except (ValueError, httpx2.InvalidURL) as error:
            raise InputError(f"the proxy in the environment is no address ({error}): correct HTTPS_PROXY") from None

    async def _before(self, request: httpx2.Request) -> None:
        # The SDK's own repetitions count as requests too.
        if request.headers.get("x-stainless-retry-count", "0") != "0":
            await self.limits.again()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.sdk.close()


async def _after(response: httpx2.Response) -> None:
    # A busy server and an empty account both answer 429; the SDK would wait for either, each request for itself.
    if _is_busy(response):
        response.headers["x-should-retry"] = "false"
        await response.aread()


def _is_busy(response: httpx2.Response) -> bool:
    if response.status_code == 503:
        return retry_after(response.headers) is not None
    return response.status_code == 429 and not (response.is_stream_consumed and _EMPTY.search(response.text))


def _remedy(setting: str) -> str:
    remedies = {
        "max_tokens": 'max_tokens_name = "max_completion_tokens"',
        "temperature": "temperature = false",
        "top_p": "temperature = false",
        "seed": "seed = false",
        "logprobs": "logprobs = false",
        "top_logprobs": "logprobs = false",
    }
    return remedies.get(setting, "extra_body")


def _message(error: openai.APIStatusError) -> str:
    body = error.body
    if isinstance(body, Mapping) and body.get("message"):
        return str(body["message"])
    return " ".join(error.response.text.split()) or error.message
