"""DistiLLM-2's pairs: the student's text of an epoch is a record that survives a kill, and that can be given ready."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TinyPair
from rewriting import rewrite
from writing import at, prompt_file, responses, tiny_archive, tiny_author, training_set

from selectkd_eval import answer, records
from selectkd_eval.author import Author
from selectkd_eval.batches import Example
from selectkd_eval.errors import InputError
from selectkd_eval.prompts import load_prompts
from selectkd_eval.rollouts import TextPolicy, text_policy
from selectkd_eval.verbs import AnswerOptions


@pytest.fixture(scope="module")
def author(tiny_pair: TinyPair) -> Author:
    return tiny_author(tiny_pair, batch_size=3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prompt_file(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def examples(author: Author, data: Path) -> list[Example]:
    return training_set(author, load_prompts(str(data)))


def pairs(author: Author, examples: list[Example], data: Path, out: Path, **rest: Any) -> TextPolicy:
    return text_policy("pairs", {}, author, archive=tiny_archive(author, data, out), training=examples, **rest)


def record_of(out: Path, epoch: int) -> Path:
    return next(out.glob(f"answer-run-epoch-{epoch}-*.jsonl"))


def test_every_example_becomes_the_teachers_and_the_students(
    author: Author, examples: list[Example], data: Path, tmp_path: Path
) -> None:
    policy = pairs(author, examples, data, tmp_path)
    texts = policy.update(examples[2:6], at(1))
    assert texts[::2] == [replace(example, source="teacher") for example in examples[2:6]]
    assert [(text.prompt, text.source, text.index) for text in texts[1::2]] == [
        (example.prompt, "student", -1) for example in examples[2:6]
    ]
    # The record's text, tokenised, is what the student wrote: the end token where it ended, none where it was cut.
    rows = {row["prompt"]: row for row in records.read(record_of(tmp_path, 1), verb="answer").good}
    assert len(rows) == 10
    for text in texts[1::2]:
        row, response = rows[text.prompt], responses([text])[0]
        assert (response[-1] == author.tokenizer.eos_token_id) == (row["finish"] == "eos")
        assert author.tokenizer.decode(response, skip_special_tokens=True).removeprefix(" ") == row["answer"]


def test_the_student_writes_once_per_epoch_with_the_weights_of_its_start(
    tiny_pair: TinyPair, data: Path, tmp_path: Path
) -> None:
    author = tiny_author(tiny_pair)
    examples = training_set(author, load_prompts(str(data)))
    policy = pairs(author, examples, data, tmp_path)
    first = policy.update(examples, at(1))
    with torch.no_grad():
        author.student.model.embed_tokens.weight.mul_(1.5)
    assert policy.update(examples, at(2)) == first
    second = policy.update(examples, at(3, epoch=1))
    assert second[::2] == first[::2]
    assert second[1::2] != first[1::2]
    by_hand = author.write(examples, "epoch 1")
    rows = {row["prompt"]: row["n_tokens"] for row in records.read(record_of(tmp_path, 2)).good}
    assert [rows[one.example.prompt] for one in by_hand] == [len(one.generation.tokens) for one in by_hand]


def test_a_killed_epoch_goes_on_where_it_was(
    author: Author, examples: list[Example], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pairs(author, examples, data, tmp_path / "whole").update(examples, at(1))
    pairs(author, examples, data, tmp_path / "cut").update(examples, at(1))
    path = record_of(tmp_path / "cut", 1)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:6]) + lines[6][:20])  # 5 answers and half a line, as kill -9 leaves it
    asked: list[str] = []
    write = Author.write

    def counted(self: Author, some: list[Example], occasion: str) -> Any:
        asked.extend(example.prompt for example in some)
        return write(self, some, occasion)

    monkeypatch.setattr(Author, "write", counted)
    assert pairs(author, examples, data, tmp_path / "cut").update(examples, at(1)) == whole
    assert len(asked) == 5
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len([row for row in rows if "answer" in row]) == 10
    assert records.read(path).finished


def test_a_resumed_epoch_reads_its_text_and_never_writes_it_with_later_weights(
    tiny_pair: TinyPair, data: Path, tmp_path: Path
) -> None:
    author = tiny_author(tiny_pair)
    examples = training_set(author, load_prompts(str(data)))
    policy = pairs(author, examples, data, tmp_path)
    before = policy.update(examples, at(1))
    state = json.loads(json.dumps(policy.state_dict()))
    with torch.no_grad():
        author.student.model.embed_tokens.weight.mul_(1.5)
    resumed = pairs(author, examples, data, tmp_path)
    resumed.load_state_dict(state)
    assert resumed.update(examples, at(2)) == before
    record_of(tmp_path, 1).unlink()
    resumed = pairs(author, examples, data, tmp_path)
    resumed.load_state_dict(state)
    with pytest.raises(InputError, match="student has changed since"):
        resumed.update(examples, at(2))


def test_ready_records_repeat_the_run_that_wrote_them(
    author: Author, examples: list[Example], data: Path, tmp_path: Path
) -> None:
    policy = pairs(author, examples, data, tmp_path)
    epochs = [policy.update(examples, at(epoch + 1, epoch=epoch)) for epoch in (0, 1)]
    ready = [record_of(tmp_path, 1), record_of(tmp_path, 2)]
    again = text_policy("pairs", {}, replace(author, sharded=True), training=examples, ready=ready)
    assert [again.update(examples, at(epoch + 1, epoch=epoch)) for epoch in (0, 1)] == epochs
    assert again.update(examples, at(3, epoch=2)) == epochs[1]  # the last one is repeated


def test_what_the_verb_answer_writes_can_be_given(
    tiny_pair: TinyPair, author: Author, examples: list[Example], data: Path, tmp_path: Path
) -> None:
    options = AnswerOptions(
        model=str(tiny_pair.student), prompts=str(data), max_new_tokens=10, out=tmp_path, device="cpu", threads=1
    )
    answer.run(options)
    path = records.record_path("answer", options)
    texts = text_policy("pairs", {}, author, training=examples, ready=[path]).update(examples, at(1))
    assert [text.source for text in texts] == ["teacher", "student"] * 10
    answer.run(replace(options, limit=7))
    short = records.record_path("answer", replace(options, limit=7))
    with pytest.raises(InputError, match="no answer to 3 of the 10 training prompts"):
        text_policy("pairs", {}, author, training=examples, ready=[short])


def test_an_answer_cut_before_its_first_token_makes_no_half(
    author: Author, examples: list[Example], data: Path, tmp_path: Path
) -> None:
    policy = pairs(author, examples, data, tmp_path)
    policy.update(examples, at(1))
    path = record_of(tmp_path, 1)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[1] |= {"answer": "", "finish": "length"}
    rows[2] |= {"answer": "", "finish": "eos"}
    rewrite(path, "".join(json.dumps(row) + "\n" for row in rows))
    texts = text_policy("pairs", {}, author, training=examples, ready=[path]).update(examples, at(1))
    assert len(texts) == 19
    empty = next(t for t in texts if t.prompt == rows[2]["prompt"] and t.source == "student")
    assert responses([empty]) == [[author.tokenizer.eos_token_id]]


def test_two_processes_write_what_one_writes(tiny_pair: TinyPair, data: Path, tmp_path: Path) -> None:
    author = tiny_author(tiny_pair, batch_size=3)
    examples = training_set(author, load_prompts(str(data)))
    alone = pairs(author, examples, data, tmp_path / "one").update(examples, at(1))
    rolled = text_policy("student", {}, author).update(examples, at(1))
    (tmp_path / "two").mkdir()
    torch.multiprocessing.spawn(_as_rank, (tiny_pair, data, tmp_path / "two"), nprocs=2)
    texts = [json.loads((tmp_path / "two" / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert texts[0]["pairs"] + texts[1]["pairs"] == [text.ids for text in alone]
    assert texts[0]["student"] + texts[1]["student"] == [text.ids for text in rolled]
    rows = [{row["key"]: row for row in records.read(record_of(tmp_path / n, 1)).rows} for n in ("one", "two")]
    assert rows[0] == rows[1]
    kept = records.read(next((tmp_path / "two").glob("answer-run-rollouts-*.jsonl")))
    assert {row["prompt"] for row in kept.rows} == {example.prompt for example in examples}


def _as_rank(rank: int, pair: TinyPair, data: Path, out: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{out}/meet", rank=rank, world_size=2)
    author = tiny_author(pair, batch_size=3)
    examples = training_set(author, load_prompts(str(data)))
    mine = examples[rank * 5 : rank * 5 + 5]
    alone, asked = Author.write, []

    def counted(self: Author, some: list[Example], occasion: str) -> Any:
        asked.extend(some)
        return alone(self, some, occasion)

    Author.write = counted  # type: ignore[method-assign]  # this process ends with the test
    together = pairs(author, examples, data, out).update(mine, at(1))
    assert len(asked) == 5, "the ranks share the work"
    policy = text_policy("student", {}, author, archive=tiny_archive(author, data, out))
    rolled = policy.update(mine, at(1))
    policy.finish()
    (out / f"{rank}.json").write_text(
        json.dumps({"pairs": [t.ids for t in together], "student": [t.ids for t in rolled]})
    )
    torch.distributed.barrier()  # none leaves while another still reads what it sent
    torch.distributed.destroy_process_group()
