"""How do bytes cross between candidate and tests? Length-prefixed messages on a stream socket, and what fails there.

What the bytes mean is the codec's matter. Neither side trusts a length.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from struct import Struct
from typing import Any

_COUNT = Struct("<I")


class RefusedError(ValueError):
    """The value cannot cross: too long, too deep, inside itself, or of a kind that must not."""


class Malformed(BaseException):
    """The other side sent bytes that are no message. Not an Exception: no test's `except Exception` may hide it."""


class Closed(BaseException):
    """The other side has gone."""


class Late(BaseException):
    """No answer within the patience of whoever asked."""


class Channel:
    """Length-prefixed messages over a stream socket; `cap` is the longest one in bytes."""

    def __init__(self, fd: int, cap: int) -> None:
        self.fd, self.cap = fd, cap
        self.deadline = 0.0  # by time.monotonic(); 0: wait for ever
        self._kept = b""

    def send(self, body: bytes, write: Callable[[int, Any], int] = os.write) -> None:
        """Raises Closed when nobody reads any more."""
        rest = memoryview(_COUNT.pack(len(body)) + body)
        try:
            while rest:
                rest = rest[write(self.fd, rest) :]
        except OSError:
            raise Closed from None

    def receive(self) -> bytes:
        """The next message; raises Closed at the end, Malformed for one longer than the cap, Late at the deadline."""
        self._fill(4)
        (length,) = _COUNT.unpack_from(self._kept)
        if length > self.cap:
            raise Malformed(f"a message of {length} bytes, more than {self.cap}")
        self._fill(4 + length)
        body, self._kept = self._kept[4 : 4 + length], self._kept[4 + length :]
        return body

    def _fill(self, wanted: int, read: Callable[[int, int], bytes] = os.read) -> None:
        if len(self._kept) >= wanted:
            return
        parts, have = [self._kept], len(self._kept)
        while have < wanted:
            if self.deadline:
                self._wait()
            try:
                part = read(self.fd, 1 << 16 if wanted < 1 << 16 else 1 << 20)
            except OSError:
                raise Closed from None
            if not part:
                raise Closed
            parts.append(part)
            have += len(part)
        self._kept = b"".join(parts)

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        if not poll.poll(max(0.0, self.deadline - time.monotonic()) * 1000):
            raise Late
