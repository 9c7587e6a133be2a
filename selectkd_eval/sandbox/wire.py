"""How do the client and a worker's supervisor talk? Length-prefixed JSON over two pipes.

Both ends are trusted: nothing that a candidate wrote comes in here except as a string inside a finished outcome.
Standard library only; it does not know what a message means.
"""

from __future__ import annotations

import json
import struct
from typing import Any

_LENGTH = struct.Struct(">I")


def pack(message: dict[str, Any]) -> bytes:
    """One frame: four bytes of length, then ASCII JSON (lone surrogates in a candidate's text survive as escapes)."""
    body = json.dumps(message).encode("ascii")
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Bytes in, whole messages out, wherever the pipe happened to cut them."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The messages that `data` completes, in order."""
        self._buffer += data
        messages = []
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                break
            messages.append(json.loads(bytes(self._buffer[_LENGTH.size : end])))
            del self._buffer[:end]
        return messages
