"""How fast may a server be asked? Requests and tokens per minute, and how many requests at once.

What a provider allows per minute is kept to by two buckets that fill evenly. What it does not say shows when it
answers 429: the number of requests in flight is halved, nobody asks before the time that it names, and with every
round of successes one more is tried. Times are seconds of a monotonic clock. This file sends nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
_MINUTE = 60.0
_PASSES = 8  # of the event loop, until a request has been written to its connection


class StoppedError(Exception):
    """Nothing is to be sent any more."""


class Bucket:
    """So many units a minute, evenly; 0 is no limit. In no minute are more than that spent, but for one large draw.

    What may be spent at once is one second's worth. A draw that is larger waits for a full bucket and leaves a debt.
    """

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.per_minute = 0.0
        self._level, self._at = 0.0, clock()
        self.set(per_minute)
        self._level = self._size

    def set(self, per_minute: float) -> None:
        """Another limit from now on."""
        if self.per_minute:
            self._fill()
        self.per_minute = per_minute
        self._size = max(1.0, per_minute / _MINUTE)
        # The size comes on top of what flows in during a minute; its last unit would fall into the next one.
        self._rate = (per_minute - self._size + 1) / _MINUTE
        self._level = min(self._level, self._size)

    def wait(self, amount: float) -> float:
        """Seconds until so much may be spent, if nobody else spends."""
        if not self.per_minute:
            return 0.0
        self._fill()
        missing = min(amount, self._size) - self._level
        return max(0.0, missing / self._rate) if missing > 1e-9 else 0.0

    def spend(self, amount: float) -> None:
        """Take it, below zero if need be; a negative amount gives back."""
        if self.per_minute:
            self._fill()
            self._level = min(self._size, self._level - amount)

    def _fill(self) -> None:
        now = self._clock()
        self._level = min(self._size, self._level + (now - self._at) * self._rate)
        self._at = now


class Limits:
    """The turnstile before a server. `allowed` is how many requests may be in flight now, at most `most`."""

    def __init__(
        self,
        most: int,
        requests_per_minute: int = 0,
        tokens_per_minute: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.most = self.allowed = most
        self.requests, self.tokens = Bucket(requests_per_minute, clock), Bucket(tokens_per_minute, clock)
        self.in_flight = 0
        self.turned_away = 0
        self.last_success = clock()
        self._clock = clock
        self._pause_until = 0.0
        self._slowed = 0.0
        self._backoff = FIRST_PAUSE_S
        self._streak = 0
        self._stopped = False
        self._gate = asyncio.Lock()  # first come, first served
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def turn(self, tokens: float) -> AsyncIterator[float]:
        """Wait until one more request of about so many tokens may be sent; gives the time it is sent at.

        Raises StoppedError once `stop` was called.
        """
        await self._gate.acquire()
        try:
            while (delay := self._delay(tokens)) != 0:
                await self._sleep(delay)
            self.requests.spend(1)
            self.tokens.spend(tokens)
            self.in_flight += 1
        finally:
            self._open_gate(_PASSES)
        try:
            yield self._clock()
        finally:
            self.in_flight -= 1
            self._changed.set()

    async def again(self) -> None:
        """Wait with a request that is in flight and must be sent once more."""
        while (delay := max(self._pause_until - self._clock(), self.requests.wait(1))) > 0:
            await asyncio.sleep(delay)
        self.requests.spend(1)

    def spent(self, estimated: float, used: float) -> None:
        """What a request really took, in tokens."""
        self.tokens.spend(used - estimated)

    def went_well(self) -> None:
        """A reply came: after a round of them, one more request in flight."""
        self.last_success, self._backoff = self._clock(), FIRST_PAUSE_S
        self._streak += 1
        if self._streak >= self.allowed and self.allowed < self.most:
            self.allowed, self._streak = self.allowed + 1, 0
            self._changed.set()

    def slower(self, sent: float, retry_after: float | None) -> None:
        """The server turned a request away that was sent at this time: half as many, and none before `retry_after`."""
        now = self._clock()
        self.turned_away += 1
        # Requests that were in flight together are turned away together: that is one event.
        first = sent >= self._slowed
        if first:
            self.allowed, self._streak, self._slowed = max(1, self.allowed // 2), 0, now
        if retry_after is None and first:
            retry_after, self._backoff = self._backoff, min(LONGEST_PAUSE_S, 2 * self._backoff)
        self._pause_until = max(self._pause_until, now + (retry_after or 0.0))

    def look_again(self) -> None:
        """A bucket has another limit: whoever waits may have waited long enough."""
        self._changed.set()

    def stop(self) -> None:
        """Whoever waits for a turn gets none."""
        self._stopped = True
        self._changed.set()

    def _open_gate(self, passes: int) -> None:
        # Not at once: the request is on its way some passes of the loop later. Were the next one let in before, all
        # whose replies came together would be sent together, after the last of them was prepared, for ever.
        if passes:
            asyncio.get_running_loop().call_soon(self._open_gate, passes - 1)
        else:
            self._gate.release()

    def _delay(self, tokens: float) -> float:
        """Seconds to wait, infinite when only a change can help, 0 when a request may go."""
        if self._stopped:
            raise StoppedError
        if self.in_flight >= self.allowed:
            return float("inf")
        pause = self._pause_until - self._clock()
        return max(0.0, pause, self.requests.wait(1), self.tokens.wait(tokens))

    async def _sleep(self, seconds: float) -> None:
        self._changed.clear()
        try:
            async with asyncio.timeout(None if seconds == float("inf") else seconds):
                await self._changed.wait()
        except TimeoutError:
            pass
