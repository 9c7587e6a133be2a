"""How is a served judge asked? The only file that talks to a server, through the `openai` SDK.

Chat Completions is the one wire format that OpenAI, vLLM, DeepSeek, Moonshot and DashScope share. The SDK repeats
what can be repeated (connection errors, 408, 409, 429 with its Retry-After, 5xx); what cannot be mended by asking
again (a refused key, an unknown model, an empty account) ends the run at once. Every reply goes to the cache before
it is used. It does not know what a verdict is.

The key comes from the environment and goes into the request's header, nowhere else: every text that comes back
from a server is searched for it first, because some servers quote it in their errors.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai

from judges.cache import Cache, request_key
from judges.protocols import Message, Protocol
from selectkd_eval.errors import InputError, SetupError

OPENAI = "https://api.openai.com/v1"
RETRIES = 5
TIMEOUT_S = 600.0  # a reply that is given up on was paid for all the same, so wait long
MALFORMED_TRIES = 2
_FATAL = {401: "refused the key", 403: "refused access", 404: "knows no such model or address"}
_EMPTY_ACCOUNT = "insufficient_quota"


class CallError(Exception):
    """One request got no usable reply, after every retry. The message holds no key."""


class FatalError(Exception):
    """No further request can succeed. The message holds no key."""


@dataclass(frozen=True)
class Reply:
    """What a server said."""

    text: str
    finish_reason: str | None
    model: str = ""
    fingerprint: str = ""
    usage: dict[str, int] = field(default_factory=dict)
    cached: bool = False


class Client:
    """One judge model at one server. Use as an async context manager."""

    def __init__(self, model: str, base_url: str, key: str, protocol: Protocol, cache: Cache) -> None:
        self.model, self.protocol, self.cache = model, protocol, cache
        self.base_url = base_url or OPENAI
        self.paid = 0
        self._key = key
        self._asking: dict[str, asyncio.Lock] = {}
        # Built by hand for one hook; everything else is the SDK's own default client.
        transport = openai.DefaultAsyncHttpx2Client(event_hooks={"response": [_no_retry_on_empty_account]})
        self._sdk = openai.AsyncOpenAI(
            api_key=key or "none",  # a local server needs no key, the SDK needs a word
            base_url=self.base_url,
            max_retries=RETRIES,
            timeout=TIMEOUT_S,
            http_client=transport,
        )

    async def ask(self, messages: list[Message], sample: int = 0) -> Reply:
        """The reply to one request, from the cache or from the server. Raises CallError or FatalError."""
        request = {"model": self.model, "messages": messages, **self.protocol.decoding}
        key = request_key(self.base_url, self.protocol.sha256, request, sample)
        # Two seeds with the same answer make the same request; the second waits for the first one's reply.
        async with self._asking.setdefault(key, asyncio.Lock()):
            if (stored := self.cache.get(key)) is not None:
                return Reply(**{**stored, "cached": True})
            start = time.monotonic()
            reply = await self._send(request)
            self.paid += 1
            kept = {name: value for name, value in asdict(reply).items() if name != "cached"}
            self.cache.put(key, self.model, sample, kept, time.monotonic() - start)
            return reply

    async def _send(self, request: dict[str, Any]) -> Reply:
        for attempt in range(1, MALFORMED_TRIES + 1):
            try:
                raw = await self._sdk.chat.completions.with_raw_response.create(**request)
            except openai.APIStatusError as error:
                raise self._status(error) from None
            except openai.APIConnectionError as error:
                cause = self._redact(str(error.__cause__ or error))
                raise CallError(f"no connection to {self.base_url}: {cause}") from None
            try:
                return self._reply(json.loads(self._redact(raw.http_response.text)))
            except (ValueError, TypeError, LookupError, AttributeError) as error:
                if attempt == MALFORMED_TRIES:
                    what = f"{type(error).__name__}: {self._redact(str(error))}"[:200]
                    raise CallError(f"the server's reply is no chat completion ({what})") from None
        raise AssertionError("the loop above returns or raises")

    def _reply(self, body: Mapping[str, Any]) -> Reply:
        choice = body["choices"][0]
        usage = {name: n for name, n in (body.get("usage") or {}).items() if isinstance(n, int)}
        return Reply(
            text=choice["message"].get("content") or "",
            finish_reason=choice.get("finish_reason"),
            model=body.get("model") or "",
            fingerprint=body.get("system_fingerprint") or "",
            usage=usage,
        )

    def _status(self, error: openai.APIStatusError) -> Exception:
        said = self._redact(_message(error))[:300]
        if error.code == _EMPTY_ACCOUNT or _EMPTY_ACCOUNT in said:
            return FatalError(f"the account at {self.base_url} has no quota left ({said}): add credit")
        if error.status_code in _FATAL:
            what = _FATAL[error.status_code]
            return FatalError(
                f"the server at {self.base_url} {what} for judge {self.model!r} ({error.status_code}: {said})"
            )
        return CallError(f"the server answered {error.status_code}: {said}")

    def _redact(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._sdk.close()


def key_for(base_url: str, variable: str, environment: Mapping[str, str]) -> str:
    """The key for a server: from the environment alone. Only a server on this machine may go without."""
    if key := environment.get(variable, "").strip():
        return key
    if base_url and urlsplit(base_url).hostname in ("localhost", "127.0.0.1", "::1"):
        return ""
    raise SetupError(
        f"a judge at {base_url or OPENAI} needs a key, but the environment variable {variable} is not set: "
        f"export {variable}=... (any word if it checks none), or name another variable with --key-variable"
    )


def checked_url(base_url: str) -> str:
    """A base URL without a trailing slash; refused when it is none, or when it carries a secret."""
    if not base_url:
        return ""
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"--base-url {base_url!r} is no address: give one like http://localhost:8000/v1")
    if parts.username or parts.password or parts.query:
        raise InputError(
            "--base-url holds a user name, a password or a query, which would end up in the record: "
            "give the plain address and put the key into the environment"
        )
    return base_url.rstrip("/")


async def _no_retry_on_empty_account(response: httpx2.Response) -> None:
    # An empty account answers 429 like a busy server does; the SDK would wait and ask again for nothing.
    if response.status_code == 429:
        await response.aread()
        if _EMPTY_ACCOUNT in response.text:
            response.headers["x-should-retry"] = "false"


def _message(error: openai.APIStatusError) -> str:
    body = error.body
    if isinstance(body, Mapping) and body.get("message"):
        return str(body["message"])
    return " ".join(error.response.text.split()) or error.message
