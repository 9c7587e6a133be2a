"""What has been handed in to a Batch API, and what came of it? One small JSON file per batch, beside the judge cache.

A batch is paid for once the server has it, and its replies come hours later, to another process perhaps. So what is
handed in is written down before the server is asked to start, and a file is replaced as a whole: a run that is
killed at any moment leaves a ledger from which the next one goes on. It holds names of requests (their cache keys)
and of files at the server; neither texts nor keys of accounts.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from selectkd_eval.errors import InputError, SetupError
from selectkd_eval.records import canonical

_SUFFIX = ".json"
_LOCK_WAIT_S = 0.2


@dataclass
class Entry:
    """One batch.

    `samples` are the sample indices of its requests where they are not 0; `second` those of its requests that failed
    once before. When it has ended, `again` are those that failed for the first time and `failed` those that failed
    for good, with the reason. `crowded` means that the server turned it away because too much was waiting, while
    `beside` other batches of ours did.
    """

    digest: str
    server: str
    model: str
    file: str
    keys: list[str]
    samples: dict[str, int] = field(default_factory=dict)
    second: list[str] = field(default_factory=list)
    batch: str = ""
    state: Literal["uploaded", "handed in", "ended"] = "uploaded"
    status: str = ""
    again: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    crowded: bool = False
    beside: int = 0
    made: float = 0.0
    ended: float = 0.0

    @property
    def open(self) -> bool:
        """Whether replies are still to come."""
        return self.state != "ended"


class Ledger:
    """The batches of one directory. Read anew at every question, because another process may have gone on."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make {directory} ({error.strerror}): give a writable --out") from None

    def entries(self, server: str, model: str) -> list[Entry]:
        """Every batch for this model at this server, the oldest first."""
        found = [self._read(path) for path in self.directory.glob(f"*{_SUFFIX}")]
        ours = [entry for entry in found if (entry.server, entry.model) == (server, model)]
        return sorted(ours, key=lambda entry: (entry.made, entry.digest))

    def save(self, entry: Entry) -> None:
        """Write an entry; it is whole on the disk when this returns."""
        path = self.directory / f"{entry.digest[:32]}{_SUFFIX}"
        draft = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            with draft.open("w", encoding="utf-8") as file:
                file.write(canonical(asdict(entry)))
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except OSError as error:
            raise SetupError(
                f"cannot write {path} ({error.strerror}): check the disk's space and permissions, then run the same "
                f"command again; what was handed in is found at the server"
            ) from None

    def drop(self, entry: Entry) -> None:
        """Forget a batch that the server never began."""
        (self.directory / f"{entry.digest[:32]}{_SUFFIX}").unlink(missing_ok=True)

    @asynccontextmanager
    async def locked(self) -> AsyncIterator[None]:
        """One process at a time decides what to hand in; a killed one lets go by itself."""
        with (self.directory / "lock").open("w") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(_LOCK_WAIT_S)
            yield

    def _read(self, path: Path) -> Entry:
        try:
            stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return Entry(**stored)
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{path} is no batch of this program ({type(error).__name__}): move it away; a batch that it stood "
                f"for is found at the server again"
            ) from None


def new_name(entries: Sequence[Entry], server: str, keys: Iterable[str]) -> str:
    """The digest that a new batch of these requests carries: the same one after a lost ledger, another one when they
    are asked again because a batch has ended without them.
    """
    known = {entry.digest for entry in entries}
    names = (canonical([server, number, sorted(keys)]) for number in range(len(known) + 1))
    digests = (hashlib.sha256(name.encode()).hexdigest() for name in names)
    return next(digest for digest in digests if digest not in known)


def tried_before(entries: Iterable[Entry]) -> set[str]:
    """The requests whose last batch left them failed for the first time: the next try is the last."""
    tried: set[str] = set()
    for entry in entries:
        if not entry.open:
            tried.difference_update(entry.failed)
            tried.update(entry.again)
    return tried


def room(entries: Iterable[Entry], most: int) -> tuple[int, int | None]:
    """How many requests one batch may hold and how many batches may wait at once (None: no limit seen).

    An organisation may have so many tokens waiting and no more, and the server does not say how many it counts. A
    batch that was turned away while others waited waits for one of them; one that was turned away alone is halved,
    and what went through doubles again.
    """
    size, at_once = most, None
    for entry in sorted((entry for entry in entries if not entry.open), key=lambda entry: entry.ended):
        if entry.crowded:
            at_once = max(1, entry.beside)
            if not entry.beside:
                size = max(1, len(entry.keys) // 2)
        elif entry.status == "completed":
            size = min(most, max(size, 2 * len(entry.keys)))
    return size, at_once
