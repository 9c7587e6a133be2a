"""What will a judgement cost, and when is it enough? Calls, tokens and money, before and while they are spent.

Tokens of a request are estimated from its bytes, four to a token, which is near the truth for English and a little
high for Chinese; those of a reply from the replies that the cache already holds. What a reply really took comes with
it. Prices are the judge's (`judges.judge`); without them money is unknown and is said to be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from judges.cache import Cache, request_key
from judges.judge import Judge
from judges.protocols import Message, Protocol
from judges.tasks import Task, question
from selectkd_eval.errors import InputError

BYTES_PER_TOKEN = 4.0
TYPICAL_REPLY = 250  # tokens: a few sentences and a label
LONGEST_REPLY = 1024  # tokens, where neither protocol nor judge sets a limit
_PER_MESSAGE = 4  # tokens that a chat format puts around each message
_MILLION = 1e6


class SpentError(Exception):
    """One more call could cost more than is allowed."""


@dataclass(frozen=True)
class Plan:
    """What is still to be asked. Token counts are estimates; money is None where the judge's price is not known."""

    judge: Judge
    comparisons: int
    cached: int
    calls: int
    tokens_in: int
    tokens_out: int
    reply: float
    """Tokens expected in one reply."""
    seen: int
    """From how many earlier replies that is known; 0: from none, it is the typical one."""

    @property
    def money(self) -> float | None:
        """US dollars."""
        return price(self.judge, {"prompt_tokens": self.tokens_in, "completion_tokens": self.tokens_out})

    @property
    def minutes(self) -> float:
        """How long the judge's limits make it at least; 0 where it has none."""
        limits = (self.judge.requests_per_minute, self.judge.tokens_per_minute)
        amounts = (self.calls, self.tokens_in + self.tokens_out)
        return max(amount / limit if limit else 0.0 for amount, limit in zip(amounts, limits, strict=True))

    @property
    def batch_money(self) -> float | None:
        """US dollars through the Batch API; None where there is none, or no price."""
        if self.money is None or self.judge.batch_discount is None:
            return None
        return self.money * (1 - self.judge.batch_discount)


def estimate(tasks: Sequence[Task], judge: Judge, protocol: Protocol, cache: Cache | None = None) -> Plan:
    """The calls that these tasks need, those left out whose reply is in the cache. Asks nothing."""
    bodies: dict[str, list[Message]] = {}
    for task in tasks:
        messages = question(task, protocol)
        body = judge.request(protocol, messages)
        bodies[request_key(judge.base_url, protocol.sha256, body, task.sample)] = messages
    known = cache.known(list(bodies)) if cache else set()
    missing = [messages for key, messages in bodies.items() if key not in known]
    reply, seen = _reply_length(judge, protocol, cache)
    return Plan(
        judge=judge,
        comparisons=len(tasks),
        cached=len(tasks) - len(missing),
        calls=len(missing),
        tokens_in=sum(map(prompt_tokens, missing)),
        tokens_out=round(reply * len(missing)),
        reply=reply,
        seen=seen,
    )


def _reply_length(judge: Judge, protocol: Protocol, cache: Cache | None) -> tuple[float, int]:
    limit = judge.max_tokens or protocol.decoding.get("max_tokens") or LONGEST_REPLY
    if cache:
        lengths = [usage["completion_tokens"] for usage in cache.usages(judge.model) if "completion_tokens" in usage]
        if lengths:
            return min(limit, sum(lengths) / len(lengths)), len(lengths)
    return min(limit, TYPICAL_REPLY), 0


def lines(plan: Plan) -> list[str]:
    """The plan for a reader, the number of calls first."""
    judge, one = plan.judge, plan.calls == 1
    if not plan.calls:
        cached = f" ({plan.cached:,} replies are in the cache)" if plan.cached else ""
        return [f"no calls: nothing is left to ask {judge.name}{cached}"]
    source = f"the mean of {plan.seen} replies in the cache" if plan.seen else "a typical length"
    out = [
        f"{plan.calls:,} call{'' if one else 's'} to {judge.name} for {plan.comparisons:,} judgements"
        + (f" ({plan.cached:,} are in the cache)" if plan.cached else ""),
        f"  tokens       about {plan.tokens_in:,} in and {plan.tokens_out:,} out, estimated: {BYTES_PER_TOKEN:g} bytes "
        f"per token, replies of {plan.reply:.0f} tokens ({source})",
    ]
    if plan.minutes >= 1:
        out.append(
            f"  time         at least {plan.minutes:,.0f} minutes, by the limits of {judge.name} as they are noted"
        )
    if plan.money is None:
        return [*out, f"  money        price unknown: put price_in and price_out of [{judge.name}] into judges.toml"]
    batch = "" if plan.batch_money is None else f", {dollars(plan.batch_money)} with --batch"
    out.append(
        f"  money        about {dollars(plan.money)}{batch}, at {judge.price_in:g} in and {judge.price_out:g} out"
    )
    if judge.noted:
        out.append(f"  prices       noted {judge.noted}: check them")
    return out


def dollars(money: float) -> str:
    """Money for a reader: two digits, more when it is less than ten cents."""
    return f"US$ {money:.2f}" if money >= 0.1 or money == 0 else f"US$ {money:.2g}"


def prompt_tokens(messages: Iterable[Message]) -> int:
    """About how many tokens a request has."""
    return sum(_PER_MESSAGE + round(len(message["content"].encode()) / BYTES_PER_TOKEN) for message in messages)


def price(judge: Judge, usage: Mapping[str, Any], batch: bool = False) -> float | None:
    """US dollars for what a reply's `usage` says it took; None when the judge's price is not known."""
    if judge.price_in is None or judge.price_out is None:
        return None
    tokens_in, tokens_out = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
    cached = min(tokens_in, usage.get("cached_tokens", 0)) if judge.price_in_cached is not None else 0
    money = (tokens_in - cached) * judge.price_in + cached * (judge.price_in_cached or 0) + tokens_out * judge.price_out
    return money / _MILLION * (1 - judge.batch_discount if batch and judge.batch_discount else 1)


class Budget:
    """No more than `most` US dollars, with what was `spent` before. None is no bound; then it only counts.

    A call is let through when even its longest reply keeps the sum of what was spent and what is in flight within
    the bound. One that might not waits for those in flight, which mostly cost less than they might have.
    """

    def __init__(self, judge: Judge, most: float | None, spent: float = 0.0) -> None:
        if most is not None and price(judge, {}) is None:
            raise InputError(
                f"--max-cost needs the price of {judge.name!r}, which is not known: put price_in and price_out "
                f"(US dollars per million tokens) of [{judge.name}] into the file of --judge-file"
            )
        if most is not None and not most > 0:
            raise InputError(f"--max-cost must be more than 0, but {most:g} was given")
        self.judge, self.most, self.spent = judge, most, spent
        self.refused = 0.0
        """What the call that was not let through might have cost."""
        self._reserved = 0.0
        self._in_flight = 0
        self._longest = LONGEST_REPLY
        self._settled = asyncio.Condition()

    async def reserve(self, request: Mapping[str, Any]) -> float:
        """Money set aside for a request. Raises SpentError when there is too little, and nothing to wait for."""
        if self.most is None:
            return 0.0
        limit = request.get("max_tokens") or request.get("max_completion_tokens") or 2 * self._longest
        worst = {"prompt_tokens": 1.3 * prompt_tokens(request["messages"]), "completion_tokens": limit}
        money = price(self.judge, worst) or 0.0
        async with self._settled:
            while self.spent + self._reserved + money > self.most:
                if not self._in_flight:
                    self.refused = money
                    raise SpentError
                await self._settled.wait()
            self._reserved += money
            self._in_flight += 1
        return money

    async def settle(self, money: float, usage: Mapping[str, Any] | None) -> None:
        """The call that `reserve` let through has ended; `usage` is its reply's, None when none came."""
        told = usage is None or "prompt_tokens" in usage
        # A server that does not count is taken at its dearest.
        self.spent += (price(self.judge, usage or {}) or 0.0) if told else money
        if self.most is None:
            return
        async with self._settled:
            self._longest = max(self._longest, (usage or {}).get("completion_tokens", 0))
            self._reserved -= money
            self._in_flight -= 1
            self._settled.notify_all()
