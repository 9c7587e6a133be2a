"""What does a served judge understand? A judge as data: its address, limits, prices and settings.

Where it answers, which environment variable holds its key, how fast it may be asked, what a token costs, which
settings it takes. A protocol's words are put into the judge's own here, and where that changes something the
record says so. Nothing here talks to a server, and no key is ever part of a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from judges.families import family
from judges.protocols import Message, Protocol
from selectkd_eval.errors import InputError, SetupError
from selectkd_eval.records import canonical
from selectkd_eval.served import header_key

OPENAI = "https://api.openai.com/v1"
KEY = "OPENAI_API_KEY"


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A served judge. 0 is no limit, None is unknown; prices are US dollars per million tokens."""

    name: str
    model: str
    base_url: str
    key_variable: str = KEY
    family: str = ""
    """Who made it, where its name does not tell (`judges.families`): judges prefer their own kin."""
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrency: int = 0
    """At most so many requests in flight, whatever --concurrency says."""
    states_limits: bool = False
    """Its replies state the account's limits per minute in OpenAI's headers; these then replace the two above."""
    price_in: float | None = None
    price_in_cached: float | None = None
    price_out: float | None = None
    batch_discount: float | None = None
    """Share of the price that the Batch API saves; None where there is none."""
    temperature: bool = True
    seed: bool = True
    logprobs: bool = True
    """Does it take a temperature, take a seed, give log-probabilities?"""
    max_tokens_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    max_tokens: int = 0
    """Longest reply instead of the protocol's, for a judge that thinks before it answers."""
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """Sent with every request: a thinking switch, for example."""
    context: int = 0
    """Tokens of request and reply together."""
    noted: str = ""
    """When and where prices and limits were noted."""

    def request(self, protocol: Protocol, messages: list[Message]) -> dict[str, Any]:
        """The body of one request, as it is sent and as the cache knows it."""
        return {"model": self.model, "messages": messages, **self.decoding(protocol)}

    def decoding(self, protocol: Protocol) -> dict[str, Any]:
        """The protocol's decoding in this judge's words, without what it does not take (see `deviations`).

        Raises InputError when the protocol reads log-probabilities and the judge gives none.
        """
        sent = dict(protocol.decoding)
        if sent.get("logprobs") and not self.logprobs:
            raise InputError(
                f"protocol {protocol.name!r} reads the judge's log-probabilities, and {self.name!r} gives none: "
                f"take another protocol or another judge"
            )
        for setting in self._not_taken(protocol):
            del sent[setting]
        if self.max_tokens or "max_tokens" in sent:
            sent[self.max_tokens_name] = self.max_tokens or sent["max_tokens"]
        if self.max_tokens_name != "max_tokens":
            sent.pop("max_tokens", None)
        return {**sent, **self.extra_body}

    def deviations(self, protocol: Protocol) -> list[str]:
        """Where the request differs from the protocol's words, because the judge takes no others."""
        said = [
            f"{name} {protocol.decoding[name]:g} is not sent: the judge takes none"
            for name in self._not_taken(protocol)
        ]
        own = protocol.decoding.get("max_tokens")
        if self.max_tokens and self.max_tokens != own:
            said.append(f"a reply may have {self.max_tokens} tokens instead of {own or 'any number'}")
        said += [f"{name} = {value!r} is sent too" for name, value in self.extra_body.items()]
        return said

    def _not_taken(self, protocol: Protocol) -> list[str]:
        takes = {"temperature": self.temperature, "top_p": self.temperature, "seed": self.seed}
        return [name for name in protocol.decoding if not takes.get(name, True)]

    @property
    def identity(self) -> dict[str, Any]:
        """What can change a reply: the model, where it answers, and how its requests are worded."""
        worded = ("max_tokens_name", "max_tokens", "temperature", "seed", "extra_body")
        return {name: getattr(self, name) for name in ("model", "base_url", *worded)}

    @property
    def sha256(self) -> str:
        """Digest of the identity, for a record's inputs."""
        return hashlib.sha256(canonical(self.identity).encode()).hexdigest()

    def facts(self, protocol: Protocol) -> dict[str, Any]:
        """What a record's header says about the judge."""
        return {
            "name": self.name,
            "kind": "server",
            "note": "a language model's preference",
            "model": self.model,
            "base_url": self.base_url,
            "family": self.family or family(self.model),
            "sha256": self.sha256,
            "deviations": self.deviations(protocol),
            "prices": {name: getattr(self, name) for name in _PRICES},
        }

    @property
    def limited(self) -> bool:
        """Is there a limit per minute?"""
        return bool(self.requests_per_minute or self.tokens_per_minute)

    @property
    def host(self) -> str:
        """The server's name, for a line on the screen."""
        return urlsplit(self.base_url).netloc


_PRICES = ("price_in", "price_in_cached", "price_out", "batch_discount", "noted")


def key_for(base_url: str, variable: str, environment: Mapping[str, str]) -> str:
    """The key for a server: from the environment alone. Only a server on this machine may go without."""
    if key := header_key(variable, environment):
        return key
    if base_url and urlsplit(base_url).hostname in ("localhost", "127.0.0.1", "::1"):
        return ""
    raise SetupError(
        f"a judge at {base_url or OPENAI} needs a key, but the environment variable {variable} is not set: "
        f"export {variable}=... (any word if it checks none), or name another variable with --key-variable"
    )
