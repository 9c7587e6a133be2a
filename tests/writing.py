"""A tiny pair in training, its examples, and an author over it: shared by the tests of text policies."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from conftest import TinyPair

from selectkd_eval.archive import Archive
from selectkd_eval.author import Author
from selectkd_eval.batches import Example
from selectkd_eval.controllers import Moment
from selectkd_eval.pair import load_model
from selectkd_eval.prompts import PromptSet, encode_example, load_prompts
from selectkd_eval.sampling import Sampling
from selectkd_eval.verbs import AnswerOptions


def tiny_author(pair: TinyPair, **changes: Any) -> Author:
    """Student and teacher over one tokenizer; the student is in training mode, as it is when a policy is asked."""
    student, teacher = load_model(str(pair.student)), load_model(str(pair.teacher))
    author = Author(
        student=student.model.train(),
        tokenizer=student.tokenizer,
        sampling=Sampling(1.0),
        max_new_tokens=12,
        longest=64,
        teacher=teacher.model,
    )
    return replace(author, **changes)


def prompt_file(directory: Path, count: int = 10) -> Path:
    """Prompts of different lengths with answers."""
    path = directory / "data.jsonl"
    rows = [
        {"prompt": f"the red dog sees {i} ball{' and a hat' * (i % 3)}", "answer": f"old cat {i}"} for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def training_set(author: Author, text: PromptSet) -> list[Example]:
    """The prompts and answers as examples of the training set."""
    return [
        Example(*encode_example(author.tokenizer, prompt.text, prompt.answer or "", author.longest), prompt.id, index)
        for index, prompt in enumerate(text.prompts)
    ]


def tiny_archive(author: Author, data: Path, out: Path) -> Archive:
    """Records in `out`."""
    options = AnswerOptions(
        prompts=str(data), max_new_tokens=author.max_new_tokens, temperature=1.0, top_p=1.0, out=out, name="run"
    )
    card = {"name": "student", "fingerprint": "f" * 64, "parameters": 1, "method": "student", "base_method": ""}
    return Archive(options, card, load_prompts(str(data)), author.tokenizer)


def at(step: int, steps: int = 10, epoch: int = 0) -> Moment:
    return Moment(step, steps, epoch, 2.0)


def responses(examples: list[Example]) -> list[list[int]]:
    return [example.ids[len(example.prompt_ids) :] for example in examples]
