"""Was this question paid for already? One SQLite file of judge replies, keyed by the request itself.

The key is the sha256 of the canonical request (server, model, messages, decoding, protocol) and the sample index,
so repeats are distinct and a candidate's name plays no part. Only replies are stored, never failures: what failed
is asked again. Each reply is on its way to the disk before the next is awaited, so a killed run loses at most the
requests that were in flight. No key and no header ever gets here.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from selectkd_eval.kept import Kept
from selectkd_eval.records import canonical

_COLUMNS = {
    "key": "TEXT",
    "model": "TEXT",
    "sample": "INTEGER",
    "reply": "TEXT",
    "seconds": "REAL",
    "created": "REAL",
}


class Cache:
    """Replies by request. Safe to share between processes: SQLite's write-ahead log takes care of it.

    With `reading` the file is only looked into, wherever it lies.
    """

    def __init__(self, path: Path, *, reading: bool = False) -> None:
        self.path = path
        self._kept = Kept(path, "replies", _COLUMNS, "judge cache", "--out", reading=reading)

    def get(self, key: str) -> dict[str, Any] | None:
        """The stored reply, or None."""
        found = self._kept.find([key], "reply")
        return json.loads(found[key]) if found else None

    def known(self, keys: Sequence[str]) -> set[str]:
        """Those of the keys whose reply is stored."""
        return set(self._kept.find(keys, "sample"))

    def usages(self, model: str, most: int = 2000) -> list[dict[str, int]]:
        """What stored replies of a model took, in tokens."""
        return [json.loads(reply).get("usage") or {} for reply in self._kept.where("model", model, "reply", most)]

    def models(self) -> list[str]:
        """The models whose replies are stored."""
        return self._kept.distinct("model")

    def put(self, key: str, model: str, sample: int, reply: Mapping[str, Any], seconds: float) -> None:
        """Store one reply; the first one stays if two runs asked at the same time."""
        self._kept.put([(key, model, sample, canonical(reply), seconds, time.time())])

    def __len__(self) -> int:
        return len(self._kept)

    def __enter__(self) -> Cache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kept.close()


def request_key(server: str, protocol_sha256: str, request: Mapping[str, Any], sample: int) -> str:
    """The identity of a request: everything that can change the reply."""
    parts = {"server": server, "protocol": protocol_sha256, "request": request, "sample": sample}
    return hashlib.sha256(canonical(parts).encode()).hexdigest()
