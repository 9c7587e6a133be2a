"""What goes to a Batch API and what comes back: lines of JSON, one a request and one a reply, in any order.

The two shapes are OpenAI's; DashScope keeps to them. A line that cannot be read is counted and costs nothing but its
own request. Nothing here talks to a server, and nothing here knows what a judge is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

ENDPOINT: Final = "/v1/chat/completions"
NOT_REACHED = {"batch_expired", "batch_cancelled"}
_PASSING = {408, 409, 429}  # what an SDK would ask again
_SERVER = 500


@dataclass(frozen=True)
class BatchRequest:
    """One request: its key in the cache, the body of a chat completion, and which asking of the same it is."""

    key: str
    body: Mapping[str, Any]
    sample: int = 0


@dataclass(frozen=True)
class Limits:
    """What one file may hold: OpenAI's limits, the narrower ones."""

    requests: int = 50_000
    size: int = 200_000_000


@dataclass(frozen=True)
class Refusal:
    """A request that got no completion: the server's status (0: none), its code and its words."""

    status: int
    code: str
    said: str
    body: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passing(self) -> bool:
        """Whether asking again may help."""
        return self.status == 0 or self.status in _PASSING or self.status >= _SERVER

    def __str__(self) -> str:
        return f"the server answered {self.status}: {self.said}" if self.status else self.said


@dataclass
class Replies:
    """What the files of a batch hold, by request."""

    bodies: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    refused: dict[str, Refusal] = field(default_factory=dict)
    unread: int = 0

    def read(self, text: str) -> None:
        """Take in one file. A completion wins over a refusal of the same request."""
        # Only a line feed ends a line: a judge's text may hold any other separator as it is.
        for line in text.split("\n"):
            if line.strip() and not self._take(line):
                self.unread += 1

    def _take(self, line: str) -> bool:
        try:
            item = json.loads(line)
            key, response, error = item["custom_id"], item.get("response") or {}, item.get("error") or {}
            status, body = int(response.get("status_code") or 0), response.get("body") or {}
            error = error or body.get("error") or {}
            if status == 200 and "choices" in body:
                self.bodies[str(key)] = body
            else:
                said = str(error.get("message") or "no reason given")
                self.refused[str(key)] = Refusal(status, str(error.get("code") or ""), said, error)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
            return False
        return True


def parts(
    requests: Sequence[BatchRequest], limits: Limits, refused: dict[str, str]
) -> Iterator[tuple[list[BatchRequest], bytes]]:
    """One file after the other, each within the limits, with the requests that it holds.

    A request that is too large for any file is put into `refused` with the reason and is in none.
    """
    part: list[BatchRequest] = []
    lines: list[bytes] = []
    size = 0
    for request in requests:
        line = _line(request)
        if len(line) > limits.size:
            refused[request.key] = f"the request's {len(line)} bytes are more than a batch file may hold"
            continue
        if part and (len(part) >= limits.requests or size + len(line) > limits.size):
            yield part, b"".join(lines)
            part, lines, size = [], [], 0
        part.append(request)
        lines.append(line)
        size += len(line)
    if part:
        yield part, b"".join(lines)


def _line(request: BatchRequest) -> bytes:
    # Plain ASCII: half a surrogate pair in an answer must not stop ten thousand other requests.
    fields = {"custom_id": request.key, "method": "POST", "url": ENDPOINT, "body": request.body}
    return json.dumps(fields).encode() + b"\n"
