"""What did a server say, and what of it may be kept? A chat completion as a reply, or why there is none.

The text, what the judge thought before it apart from it, why it ended, what it took, and the log-probabilities of its
first token where they were asked for. Some servers quote the key in what they say; it is taken out here, before
anything is stored or shown. Whether a reply holds a verdict is for `judges.verdicts`.
"""

from __future__ import annotations

import email.utils
import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from selectkd_eval.served import is_secret

_MASKED = re.compile(r"\b[A-Za-z]{2,4}-[\w-]*\*{3,}[\w-]*")  # a key as OpenAI quotes it, with its ends


class CallError(Exception):
    """One request got no usable reply, after every retry. The message holds no key."""


class NotAskedError(CallError):
    """A request that was not sent, or turned away for its length: it says nothing about the server."""


MALFORMED = (ValueError, TypeError, LookupError, AttributeError)  # what JSON of another shape raises
FILTERED = "stopped by a content filter"


class FilteredError(CallError):
    """A request that a content filter turned away: an outcome, which asking again does not change. Its message begins
    with FILTERED.
    """


class FatalError(Exception):
    """No further request can succeed. The message holds no key."""


class OverBudgetError(FatalError):
    """The next call might cost more than is allowed."""


@dataclass(frozen=True)
class Reply:
    """What a server said. `logprobs` are those of the likely first tokens, where they were asked for."""

    text: str
    finish_reason: str | None
    model: str = ""
    fingerprint: str = ""
    usage: dict[str, int] = field(default_factory=dict)
    reasoning: str = ""
    logprobs: list[dict[str, float]] | None = None
    cached: bool = False


_STORED = {entry.name for entry in fields(Reply)} - {"cached"}


def to_store(reply: Reply) -> dict[str, Any]:
    """What the cache keeps of a reply."""
    return {name: getattr(reply, name) for name in _STORED}


def from_store(kept: Mapping[str, Any]) -> Reply:
    """A reply that the cache held; fields of other versions are left out."""
    return Reply(**{name: value for name, value in kept.items() if name in _STORED}, cached=True)


class Redaction:
    """Takes a key out of what a server says."""

    def __init__(self, key: str) -> None:
        quoted = json.dumps(key)[1:-1]
        slashed = {text.replace("/", "\\/") for text in (key, quoted)}
        self._spelt = sorted({key, quoted} | slashed, key=len, reverse=True) if is_secret(key) else []

    def __call__(self, text: str) -> str:
        """The text without the key, as it is or as JSON spells it, and without half characters, which no file holds."""
        text = text.encode("utf-8", "replace").decode()
        for spelt in self._spelt:
            text = text.replace(spelt, "[key]")
        return _MASKED.sub("[key]", text) if "***" in text else text


def reply_of(body: Mapping[str, Any], redact: Redaction) -> Reply:
    """A chat completion's body as a reply; raises one of MALFORMED when it is none."""
    choice = body["choices"][0]
    message = choice["message"]
    first = ((choice.get("logprobs") or {}).get("content") or [])[:1]
    return Reply(
        text=redact(message.get("content") or ""),
        finish_reason=redact(choice.get("finish_reason") or "") or None,
        model=redact(body.get("model") or ""),
        fingerprint=redact(body.get("system_fingerprint") or ""),
        usage=_usage(body.get("usage") or {}),
        reasoning=redact(message.get("reasoning_content") or message.get("reasoning") or ""),
        logprobs=[_likely(token, redact) for token in first] or None,
    )


def _likely(token: Mapping[str, Any], redact: Redaction) -> dict[str, float]:
    return {redact(one["token"]): float(one["logprob"]) for one in [*(token.get("top_logprobs") or []), token]}


def _usage(said: Mapping[str, Any]) -> dict[str, int]:
    """The counts of a reply, with the cached and the thinking tokens wherever the server puts them."""
    usage = {name: n for name, n in said.items() if _is_count(n)}
    prompt, completion = (said.get(f"{side}_tokens_details") or {} for side in ("prompt", "completion"))
    hit = usage.pop("prompt_cache_hit_tokens", None)  # DeepSeek's word
    usage.pop("prompt_cache_miss_tokens", None)
    elsewhere = {
        "cached_tokens": prompt.get("cached_tokens", hit),
        "reasoning_tokens": completion.get("reasoning_tokens"),
    }
    return usage | {name: n for name, n in elsewhere.items() if n and _is_count(n)}


def _is_count(said: Any) -> bool:
    """A negative number of tokens would give money back, and let a run spend more than --max-cost."""
    return isinstance(said, int) and not isinstance(said, bool) and said >= 0


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait: in milliseconds, in seconds or until a date; None when it does not say."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / unit
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None
