"""Where does text written during training stay? In answer records beside the train record, like any model's answers.

They can be read, judged, or trained on again (`--data`, `--student-text`). Under several processes the first rank
records what all have written. Rows are keyed: an update or an epoch run again after an interruption adds none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from selectkd_eval.author import Written
from selectkd_eval.prompts import PromptSet, answer_text
from selectkd_eval.ranks import from_all, rank
from selectkd_eval.records import Writer, open_record
from selectkd_eval.verbs import AnswerOptions


@dataclass(frozen=True)
class Archive:
    """What the records of one training say: the options of `answer` that would decode so (their `name` is the train
    record's), the card of the student that the training began with, its prompts and its tokenizer.
    """

    options: AnswerOptions
    model: Mapping[str, Any]
    prompts: PromptSet
    tokenizer: Any

    def open(self, word: str, **generation: Any) -> Writer:
        """The record `answer-NAME-WORD-HASH`, begun or continued; `generation` is added to its decoding facts."""
        options = replace(self.options, name=f"{self.options.name}-{word}")
        facts = {
            "model": self._in_training(options.name),
            "written_in": self.options.name,
            "prompts": self.prompts.facts(),
            "generation": {
                "backend": "transformers",
                "max_new_tokens": options.max_new_tokens,
                "temperature": options.temperature,
                "top_p": options.top_p,
                "chat_template": bool(self.tokenizer.chat_template),
                **generation,
            },
        }
        inputs = {"model": str(self.model["fingerprint"]), "prompts": self.prompts.sha256}
        return open_record("answer", options, inputs=inputs, facts=facts)

    def _in_training(self, when: str) -> dict[str, Any]:
        """The card of a student that has no directory: it is no longer the one that the training began with."""
        name, start = self.model["name"], self.model["fingerprint"]
        changed = {"name": f"{name} in {when}", "method": f"{self.model['method']} in training"}
        return {**self.model, **changed, "fingerprint": f"{start} in {when}", "training": {"written_in": when}}

    @cached_property
    def _texts(self) -> dict[str, str]:
        return {prompt.id: prompt.text for prompt in self.prompts.prompts}

    def rows(self, written: Iterable[Written], seed: int) -> list[dict[str, Any]]:
        """Rows as `answer` writes them; `seed` tells texts of one prompt apart."""
        return [
            {
                "prompt": one.example.prompt,
                "text": self._texts[one.example.prompt],
                "seed": seed,
                "answer": answer_text(self.tokenizer, one.generation.text),
                "finish": one.generation.finish,
                "n_tokens": len(one.generation.tokens),
            }
            for one in written
        ]


class Ledger:
    """All texts of a training in one record, keyed by prompt and update. Without an archive nothing is kept."""

    def __init__(self, archive: Archive | None, **generation: Any) -> None:
        self.archive = archive
        self.writer: Writer | None = None
        if archive is not None and rank() == 0:
            self.writer = archive.open("rollouts", **generation)
            self._forget()

    def keep(self, step: int, written: Sequence[Written]) -> None:
        """Add the texts of one update. Every rank calls this once per update, also with none."""
        if self.archive is None:
            return
        for row in from_all(self.archive.rows(written, seed=step)):
            key = f"{row['prompt']}/{step}"
            if self.writer is not None and key not in self.writer.done:
                self.writer.write(key, **row)
                self.writer.done[key] = {}

    def finish(self) -> None:
        """The training is over: the record is whole."""
        if self.writer is not None:
            self.writer.finish()
            self.close()

    def close(self) -> None:
        """Release the record; another process may continue it."""
        if self.writer is not None:
            self.writer.__exit__(None, None, None)
            self.writer = None

    def _forget(self) -> None:
        # Only the keys are needed again; the texts of a long training would fill the memory.
        if self.writer is not None:
            for key in self.writer.done:
                self.writer.done[key] = {}
