"""Was this question paid for already? One SQLite file of judge replies, keyed by the request itself.

The key is the sha256 of the canonical request (server, model, messages, decoding, protocol) and the sample index,
so repeats are distinct and a candidate's name plays no part. Only replies are stored, never failures: what failed
is asked again. Each reply is on its way to the disk before the next is awaited, so a killed run loses at most the
requests that were in flight. No key and no header ever gets here.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from selectkd_eval.errors import InputError, SetupError
from selectkd_eval.records import canonical

_SCHEMA = """CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY, model TEXT NOT NULL, sample INTEGER NOT NULL,
    reply TEXT NOT NULL, seconds REAL NOT NULL, created REAL NOT NULL
) WITHOUT ROWID"""


class Cache:
    """Replies by request. Safe to share between processes: SQLite's write-ahead log takes care of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=60, isolation_level=None)
            self._database.execute("PRAGMA journal_mode=WAL")
            # NORMAL survives the process being killed; only a power cut can cost the last replies.
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.execute(_SCHEMA)

    def get(self, key: str) -> dict[str, Any] | None:
        """The stored reply, or None."""
        with self._explained():
            row = self._database.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        return json.loads(row[0]) if row else None

    def put(self, key: str, model: str, sample: int, reply: Mapping[str, Any], seconds: float) -> None:
        """Store one reply; the first one stays if two runs asked at the same time."""
        with self._explained():
            self._database.execute(
                "INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?, ?)",
                (key, model, sample, canonical(reply), seconds, time.time()),
            )

    def __len__(self) -> int:
        with self._explained():
            return int(self._database.execute("SELECT count(*) FROM replies").fetchone()[0])

    def __enter__(self) -> Cache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise SetupError(
                f"the judge cache {self.path} cannot be used ({error}): check the disk's space and permissions, "
                f"then run the same command again; the replies stored so far are safe"
            ) from None
        except sqlite3.DatabaseError as error:
            raise InputError(f"{self.path} is no judge cache ({error}): move it away or give another --out") from None
        except OSError as error:
            raise InputError(f"cannot make {self.path.parent} ({error.strerror}): give a writable --out") from None


def request_key(server: str, protocol_sha256: str, request: Mapping[str, Any], sample: int) -> str:
    """The identity of a request: everything that can change the reply."""
    parts = {"server": server, "protocol": protocol_sha256, "request": request, "sample": sample}
    return hashlib.sha256(canonical(parts).encode()).hexdigest()
