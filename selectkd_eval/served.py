"""How is an OpenAI-compatible server asked for text? Many requests in flight, and two kinds of failure.

A prompt's mishap (its request is refused, its reply is empty) is that prompt's error, and the others go on. What asking
again cannot mend (key, permission, address, model, money, a server that has gone) ends the run at once, after what is
in flight has come back. The SDK repeats what can be repeated: connection errors, 408, 409, 429 and 5xx.

The key comes from the environment and goes into the request's header, nowhere else: every text that comes back is
searched for it, because some servers quote it in their errors. What is asked, and what a reply is worth, is not known
here; judges have a client of their own (`judges.client`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from selectkd_eval import environment
from selectkd_eval.errors import InputError, SetupError

STOPS = 4  # stop strings that OpenAI's API takes
SHORTEST_KEY = 8  # characters; real ones have 20 and more
_KEPT = "what was answered is kept, and the same command goes on from there"
_UNSUPPORTED = ("unsupported_parameter", "unsupported_value")


@dataclass(frozen=True)
class Reply:
    """A text, why it ended in the server's words, and counts in tokens (None: it did not say); or the error instead.

    `stop_reason` is the stop string that ended it, where a server tells (vLLM and SGLang do); `reasoning` what a
    thinking model wrote before its answer, where that is told apart.
    """

    text: str = ""
    finish: str = ""
    n_tokens: int | None = None
    n_prompt_tokens: int | None = None
    stop_reason: str = ""
    error: str = ""
    reasoning: str = ""


class Served:
    """One model at one server, asked by at most `in_flight` requests at a time."""

    def __init__(self, base_url: str, model: str, key_variable: str, in_flight: int, feature: str) -> None:
        self._openai = environment.require("openai", feature, "judge")
        self.base_url = base_url = checked_url(base_url)
        self.model, self.key_variable, self.in_flight = model, key_variable, in_flight
        self._key = header_key(key_variable, os.environ)
        # Local servers take any key, but the client insists on one.
        self._client = self._openai.OpenAI(base_url=base_url, api_key=self._key or "none", max_retries=4)
        self._length = "max_tokens"

    @property
    def card(self) -> dict[str, Any]:
        """What a record says about the model: its name and address, for its weights are not here."""
        return {
            "name": self.model,
            "fingerprint": f"server:{self.base_url}:{self.model}",
            "parameters": None,
            "method": self.model,
            "base_method": "",
            "seed": None,
            "training": {},
        }

    def about(self) -> dict[str, Any]:
        """What the server's list of models says of this one (vLLM: `owned_by`, `root`, `max_model_len`), or nothing."""
        try:
            listed = self._client.with_options(max_retries=1, timeout=20).models.list().data
        except (self._openai.OpenAIError, ValueError, TypeError, AttributeError):
            return {}  # not every server has such a list; one that refuses us will say so when it is asked
        return next((entry.model_dump() for entry in listed or [] if entry.id == self.model), {})

    def replies(self, requests: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, Reply]]:
        """(place, reply) as they arrive. Each request is a `prompt` (text, or chat messages), `max_tokens` and any
        other field of the API. A refusal that asking again cannot mend is raised after what is in flight.
        """
        answered, lost, refusal, waiting = 0, 0, None, iter(enumerate(requests))
        with ThreadPoolExecutor(self.in_flight) as pool:
            in_flight: dict[Future[Reply], int] = {}
            while True:
                while refusal is None and len(in_flight) < self.in_flight and (part := next(waiting, None)):
                    in_flight[pool.submit(self.ask, part[1])] = part[0]
                if not in_flight:
                    break
                for future in wait(in_flight, return_when=FIRST_COMPLETED).done:
                    place, error = in_flight.pop(future), future.exception()
                    lost = lost + 1 if isinstance(error, self._openai.APIConnectionError) else 0
                    if error is None:
                        answered += 1
                        yield place, future.result()
                    elif refusal := refusal or self._refusal(error, answered, lost):
                        continue
                    else:
                        yield place, Reply(error=self._describe(error))
        if refusal is not None:
            raise refusal

    def ask(self, request: Mapping[str, Any]) -> Reply:
        """One request; the SDK's errors are the caller's."""
        request = dict(request)
        prompt, length = request.pop("prompt"), request.pop("max_tokens")
        while True:
            named = self._length
            try:
                if isinstance(prompt, str):
                    return self._text(
                        self._client.completions.create(model=self.model, prompt=prompt, max_tokens=length, **request)
                    )
                return self._message(
                    self._client.chat.completions.create(
                        model=self.model, messages=prompt, **{named: length}, **request
                    )
                )
            except self._openai.BadRequestError as error:
                # OpenAI's reasoning models know the length by another name, and take no other.
                if error.code != "unsupported_parameter" or error.param != "max_tokens" or named != "max_tokens":
                    raise
                self._length = "max_completion_tokens"

    def _text(self, body: Any) -> Reply:
        choices = getattr(body, "choices", None)
        if not choices or getattr(choices[0], "text", None) is None:
            return Reply(error="the server's reply holds no text: is this address its /v1?")
        return self._reply(body, choices[0], choices[0].text)

    def _message(self, body: Any) -> Reply:
        choices = getattr(body, "choices", None)
        if not choices or choices[0].message is None:
            return Reply(error="the server's reply holds no answer: is this address its /v1?")
        text, why = choices[0].message.content, choices[0].finish_reason
        # A model that was still thinking at the limit has said nothing, and that is its answer.
        if text is None and why != "length":
            return Reply(error=f"the server returned no text (finish reason {why})")
        # vLLM and DeepSeek say `reasoning_content`, newer vLLM and OpenRouter `reasoning`.
        thoughts = (getattr(choices[0].message, name, None) for name in ("reasoning_content", "reasoning"))
        reasoning = next((thought for thought in thoughts if isinstance(thought, str)), "")
        return replace(self._reply(body, choices[0], text or ""), reasoning=self._clean(reasoning))

    def _reply(self, body: Any, choice: Any, text: str) -> Reply:
        stop = getattr(choice, "stop_reason", None) or getattr(choice, "matched_stop", None)
        return Reply(
            self._clean(text),
            str(choice.finish_reason or "stop"),
            _count(body, "completion_tokens"),
            _count(body, "prompt_tokens"),
            stop if isinstance(stop, str) else "",
        )

    def _refusal(self, error: BaseException, answered: int, lost: int) -> Exception | None:
        """The error that ends the run: key, permission, address, model or money; None for one prompt's mishap."""
        where, model, sdk = self.base_url, self.model, self._openai
        found = "was refused (401)" if self._key else "is not set, and the server asks for a key (401)"
        by_status: dict[type[BaseException], Exception] = {
            sdk.AuthenticationError: SetupError(
                f"the key in ${self.key_variable} {found}: set it, or name another with --key-variable; {_KEPT}"
            ),
            sdk.PermissionDeniedError: SetupError(
                f"{where} forbids the use of {model!r} with this key (403): use another of them; {_KEPT}"
            ),
            sdk.NotFoundError: InputError(
                f"{where} is no /v1 address or has no model {model!r} (404): correct either; {_KEPT}"
            ),
        }
        if refusal := by_status.get(type(error)):
            return refusal
        if isinstance(error, sdk.RateLimitError) and error.code == "insufficient_quota":
            return SetupError(f"{where} says that the account's quota is used up: raise it; {_KEPT}")
        if isinstance(error, sdk.BadRequestError) and error.code in _UNSUPPORTED:
            return InputError(f"{model!r} at {where} does not take {error.param!r} as asked: change it; {_KEPT}")
        if isinstance(error, sdk.APIConnectionError):
            return self._gone(answered, lost)
        if isinstance(error, sdk.OpenAIError | ValueError):
            return None
        # Anything else is a defect of ours and must be seen.
        raise error

    def _gone(self, answered: int, lost: int) -> Exception | None:
        """A connection failed `lost` times in a row, each after four repetitions: is anybody there?"""
        if not answered:
            return InputError(f"no server answers at {self.base_url}: start it, or correct --base-url; {_KEPT}")
        if lost > self.in_flight:
            return SetupError(f"the server at {self.base_url} has stopped answering: start it again; {_KEPT}")
        return None

    def _describe(self, error: BaseException) -> str:
        return self._clean(f"{type(error).__name__}: {error}")[:300]

    def _clean(self, text: str) -> str:
        """Without the key, and without half characters, which no file can hold."""
        whole = text.encode("utf-8", "replace").decode()
        return whole.replace(self._key, "[key]") if is_secret(self._key) else whole


def _count(body: Any, name: str) -> int | None:
    """A number of tokens, where the server gives one: nothing obliges it to."""
    said = getattr(body.usage, name, None)
    return said if isinstance(said, int) and said >= 0 else None


def checked_url(base_url: str, where: str = "--base-url") -> str:
    """A base URL without a trailing slash or the endpoint behind it; refused when it is none, or carries a secret."""
    if not base_url:
        return ""
    try:
        parts = urlsplit(base_url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is no number
        known = False
    if not known or any(character.isspace() for character in base_url):
        raise InputError(f"{where} {base_url!r} is no address: give one like http://localhost:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError(
            f"{where} holds a user name, a password or a query, which would end up in the record: "
            f"give the plain address, put the key into the environment, and name its variable with --key-variable"
        )
    # Pages show the whole address of a request; what answers there is asked for by the part before.
    return base_url.rstrip("/").removesuffix("/chat/completions").rstrip("/")


def header_key(variable: str, environment: Mapping[str, str]) -> str:
    """The key that a variable holds, without blanks around it; empty where it is not set.

    Raises SetupError for one that no request can carry: a quotation mark of a web page, a line break in its middle.
    """
    key = environment.get(variable, "").strip()
    if not key.isascii() or not key.isprintable():
        raise SetupError(
            f"the key in ${variable} holds a character that no request can carry (a line break, or none of ASCII): "
            f"copy it once more"
        )
    return key


def is_secret(key: str) -> bool:
    """Whether a key is to be taken out of what a server says. A short word for a server that checks none is not: it
    would be taken out of other words, and of verdicts.
    """
    return len(key) >= SHORTEST_KEY
