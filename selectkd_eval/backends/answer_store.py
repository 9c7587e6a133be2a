"""Was this answer written already? Finished answers by everything that can change them, in one SQLite file.

The key digests the model and engine (the backend's `identity`), the rendered prompt, the decoding and, when sampling,
the seed. So another model, adapter, tokenizer, chat template, dtype or engine never gets these answers, and the same
question in another command is not answered twice. A failure is never kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from selectkd_eval.backends.backend import Asked, Completion
from selectkd_eval.errors import InputError
from selectkd_eval.kept import Kept
from selectkd_eval.records import canonical


class AnswerStore:
    """Completions by key. Several processes may share the file; a put is durable against SIGKILL when it returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._kept = Kept(path, "answers", {"key": "TEXT", "completion": "TEXT"}, "answer store", "--answers FILE")

    def get(self, key: str) -> Completion | None:
        """The kept answer, or None."""
        return self.find([key]).get(key)

    def find(self, keys: Sequence[str]) -> dict[str, Completion]:
        """The kept answers among these keys."""
        return {key: self._read(text) for key, text in self._kept.find(keys, "completion").items()}

    def put(self, key: str, completion: Completion) -> None:
        """Keep one answer; the first one of a key stays."""
        self.put_all([(key, completion)])

    def put_all(self, done: Iterable[tuple[str, Completion]]) -> None:
        """Keep answers in one transaction. Those with an `error` are passed over: what failed is asked again."""
        self._kept.put((key, canonical(answer._asdict())) for key, answer in done if not answer.error)

    def _read(self, text: str) -> Completion:
        try:
            return Completion(**json.loads(text))
        except (ValueError, TypeError):
            raise InputError(
                f"the answer store {self.path} holds an answer that cannot be read: move the file away or give "
                f"another --answers FILE"
            ) from None

    def __len__(self) -> int:
        return len(self._kept)

    def __enter__(self) -> AnswerStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._kept.close()


def answer_key(identity: Mapping[str, Any], asked: Asked) -> str:
    """sha256 over all that decides the text; a greedy answer has no seed."""
    seed = asked.seed if asked.decoding.temperature > 0 else None
    parts = [dict(identity), asked.prompt, asked.decoding.as_dict(), seed]
    return hashlib.sha256(canonical(parts).encode()).hexdigest()
