"""Which two responses does DistiLLM-2 contrast? The teacher's, as in the data, and the current student's.

Batched on-policy, as the paper has it (arXiv 2503.07067, section 3): at the first update of every epoch the student
answers all prompts of the training set. Its answers are an answer record per epoch beside the train record. A killed
run goes on with the prompts that are missing there. What an update trains on are the record's answers, tokenised, so a
run given these records (`--student-text`) repeats the run that wrote them, and a record made elsewhere serves as well,
for instance by `answer --base-url` from a vLLM server.

The teacher's half is the training data: a `--data` record of the teacher, or what policy `teacher` had it write.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from selectkd_eval import records
from selectkd_eval.archive import Archive
from selectkd_eval.author import Author
from selectkd_eval.batches import Example
from selectkd_eval.controllers import Moment
from selectkd_eval.errors import InputError
from selectkd_eval.prompts import completion_text
from selectkd_eval.ranks import from_all, from_first, rank, world_size
from selectkd_eval.records import Writer


class Answer(NamedTuple):
    """What the student wrote, and whether it ended there or was cut at the token limit."""

    text: str
    cut: bool


class Pairs:
    """DistiLLM-2's text: every example becomes two, the teacher's response and the student's of this epoch."""

    def __init__(
        self,
        author: Author,
        training: Sequence[Example],
        *,
        archive: Archive | None = None,
        ready: Sequence[Path] = (),
    ) -> None:
        if archive is None and not ready:
            raise InputError("pairs of teacher's and student's text need a record to keep the student's: give --out")
        self.author = author
        self.archive = archive
        self.prompts = list({example.prompt: example for example in training}.values())
        self.ready = [_ready(path, self.prompts) for path in ready]
        self.epoch: int | None = None
        self._made: int | None = None  # the epoch whose text was there when the checkpoint was written
        self._answers: dict[str, Answer] = {}

    def update(self, examples: Sequence[Example], moment: Moment) -> list[Example]:
        """The teacher's and the student's response to every prompt, twice as many examples. A student's answer that was
        cut before its first token has nothing to train on and is left out.
        """
        if moment.epoch != self.epoch:
            self._answers = self._of_epoch(moment.epoch)
            self.epoch = moment.epoch
        texts = []
        for example in examples:
            texts.append(replace(example, source="teacher"))
            if response := self._response(example):
                texts.append(example.answered(response, "student"))
        return texts

    def validated(self, loss: float) -> None:
        """Nothing depends on it."""

    def readings(self) -> dict[str, float]:
        """The share of this epoch's student answers that were cut at the token limit."""
        return {"rollout_cut": sum(answer.cut for answer in self._answers.values()) / max(len(self._answers), 1)}

    def state_dict(self) -> dict[str, Any]:
        """The epoch whose text is in use; the text itself is in its record."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue in that epoch."""
        self._made = state["epoch"]
        self.epoch = None

    def finish(self) -> None:
        """Every epoch's record was finished when its text was."""

    def close(self) -> None:
        """No record is open between updates."""

    def _response(self, example: Example) -> list[int]:
        """The student's answer in tokens, with the end token where it ended by itself, no longer than fits."""
        answer, tokenizer = self._answers[example.prompt], self.author.tokenizer
        text = completion_text(tokenizer, answer.text) if answer.text else ""
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []
        end = [] if answer.cut else [tokenizer.eos_token_id]
        return (ids + end)[: self.author.longest - len(example.prompt_ids)]

    def _of_epoch(self, epoch: int) -> dict[str, Answer]:
        if self.ready:
            return self.ready[min(epoch, len(self.ready) - 1)]
        if self.archive is None or rank() > 0:
            return self._write(epoch, None)
        with self.archive.open(f"epoch-{epoch + 1}") as record:
            if self._made == epoch and not record.complete:
                raise InputError(
                    f"the student's text of epoch {epoch + 1} was in {record.path} and is not there any more, and the "
                    "student has changed since: put it back, or delete the training's checkpoints and record"
                )
            return self._write(epoch, record)

    def _write(self, epoch: int, record: Writer | None) -> dict[str, Answer]:
        """The answers of the epoch: those in the record, and the missing ones, which the ranks write together."""
        done = from_first({row["prompt"]: Answer(row["answer"], row["finish"] == "length") for row in _rows(record)})
        missing = [example for example in self.prompts if example.prompt not in done]
        missing.sort(key=lambda example: (len(example.prompt_ids), example.prompt))
        group = self.author.batch_size * world_size()
        with tqdm(
            total=len(self.prompts),
            initial=len(done),
            desc=f"student's text, epoch {epoch + 1}",
            unit="answer",
            file=sys.stderr,
            disable=None if rank() == 0 else True,
        ) as bar:
            for start in range(0, len(missing), group):
                mine = missing[start : start + group][rank() :: world_size()]
                for row in from_all(self._answer(mine, epoch)):
                    done[row["prompt"]] = Answer(row["answer"], row["finish"] == "length")
                    if record is not None:
                        record.write(f"{row['prompt']}/{row['seed']}", **row)
                    bar.update()
        if record is not None:
            record.finish()
        return done

    def _answer(self, examples: Sequence[Example], epoch: int) -> list[dict[str, Any]]:
        assert self.archive is not None
        written = self.author.write(examples, f"epoch {epoch}") if examples else []
        return self.archive.rows(written, seed=self.author.seed)


def _rows(record: Writer | None) -> list[dict[str, Any]]:
    return list(record.done.values()) if record is not None else []


def _ready(path: Path, prompts: Sequence[Example]) -> dict[str, Answer]:
    """The first answer to each prompt in an answer record. Raises InputError when prompts have none."""
    answers: dict[str, Answer] = {}
    for row in records.read(path, verb="answer").good:
        answers.setdefault(row["prompt"], Answer(row["answer"], row["finish"] == "length"))
    missing = sum(example.prompt not in answers for example in prompts)
    if missing:
        raise InputError(
            f"{path} has no answer to {missing} of the {len(prompts)} training prompts: let the student answer "
            "the same --data, and all of it (selectkd-eval answer --model STUDENT --prompts DATA)"
        )
    return answers
