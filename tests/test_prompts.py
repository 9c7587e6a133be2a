"""Prompts are known by their text; the response is exactly the answer and its end token."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from conftest import TinyPair

from selectkd_eval.errors import InputError
from selectkd_eval.pair import load_tokenizer
from selectkd_eval.prompt_files import MT_BENCH
from selectkd_eval.prompts import (
    EMBEDDED_SETS,
    encode_example,
    later_turns,
    load_prompts,
    prompt_id,
    prompt_ids,
    render,
    unasked,
)
from selectkd_eval.records import open_record
from selectkd_eval.verbs import AnswerOptions

CHAT = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>{% endif %}"
)


def test_an_answer_and_its_end_token_are_the_response(tiny_pair: TinyPair) -> None:
    tokenizer = load_tokenizer(str(tiny_pair.teacher))
    ids, response = encode_example(tokenizer, "Say :", "red dog", 64)
    assert tokenizer.decode([i for i, r in zip(ids, response, strict=True) if not r]) == "<s>Say :"
    assert tokenizer.decode([i for i, r in zip(ids, response, strict=True) if r]) == " red dog</s>"


def test_a_chat_template_writes_its_own_special_tokens(tiny_pair: TinyPair) -> None:
    tokenizer = load_tokenizer(str(tiny_pair.teacher))
    tokenizer.chat_template = CHAT
    assert render(tokenizer, "hi") == "<s>user: hi</s><s>"
    assert tokenizer.decode(prompt_ids(tokenizer, "hi")) == "<s>user: hi</s><s>"
    ids, response = encode_example(tokenizer, "hi", "ho", 64)
    assert tokenizer.decode([i for i, r in zip(ids, response, strict=True) if r]) == "ho</s>"


def test_a_long_answer_is_cut_at_its_end(tiny_pair: TinyPair) -> None:
    ids, response = encode_example(load_tokenizer(str(tiny_pair.teacher)), "Say :", "dog " * 50, 20)
    assert len(ids) == len(response) == 20 and response[-1] and not response[0]


def test_files_of_every_usual_shape_are_read(tmp_path: Path) -> None:
    rows = [{"instruction": "a", "output": "1"}, {"question": "b", "answer": "2"}, {"prompt": "c"}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    for name in ("a.json", "a.jsonl.gz"):
        found = load_prompts(str(tmp_path / name)).prompts
        assert [(p.text, p.answer) for p in found] == [("a", "1"), ("b", "2"), ("c", None)]


def test_a_conversation_of_one_turn_is_a_prompt(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "a"}]},
        {"messages": [{"role": "user", "content": "b"}, {"role": "assistant", "content": "2"}]},
        {"conversations": [{"from": "human", "value": "c"}, {"from": "gpt", "value": "3"}]},
        {"prompt": [{"role": "user", "content": "d"}], "completion": "4"},
        {"prompt": "e", "messages": [{"role": "user", "content": "not this"}], "generated_text": "5"},
        {"instruction": "f", "input": "more", "output": "6"},
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    found = load_prompts(str(tmp_path / "a.json")).prompts
    expected = [("a", None), ("b", "2"), ("c", "3"), ("d", "4"), ("e", "5"), ("f\n\nmore", "6")]
    assert [(p.text, p.answer) for p in found] == expected


@pytest.mark.parametrize(
    ("turns", "sentence"),
    [
        (["user", "assistant", "user"], "conversation of user, assistant, user, and only one user turn"),
        (["system", "user"], "with --system"),
        (["assistant"], "conversation of assistant"),
        ([], "conversation of no turns"),
    ],
)
def test_a_longer_conversation_is_refused(tmp_path: Path, turns: list[str], sentence: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"messages": [{"role": role, "content": "x"} for role in turns]}]))
    with pytest.raises(InputError, match=f"entry 1 of .*{sentence}"):
        load_prompts(str(path))


def questions(path: Path, **counts: int) -> Path:
    """A question file as Spec-Bench and MT-bench have it: so many of each category, MT-bench's own with two turns."""
    rows: list[dict[str, object]] = []
    for category, count in counts.items():
        for number in range(count):
            turns = [f"Tell me {category} thing {number}."]
            turns += [f"And {category} thing {number} again?"] if category in MT_BENCH else []
            rows.append({"question_id": len(rows) + 1, "category": category, "turns": turns, "reference": ["x"]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_question_is_its_first_turn_and_keeps_the_others_for_later(tmp_path: Path) -> None:
    path = questions(tmp_path / "question.jsonl", writing=1, stem=1, translation=1)
    found = load_prompts(str(path)).prompts
    assert [(p.text, later_turns(p), p.source, p.answer) for p in found] == [
        ("Tell me writing thing 0.", ["And writing thing 0 again?"], "mt_bench", None),
        ("Tell me stem thing 0.", ["And stem thing 0 again?"], "mt_bench", None),
        ("Tell me translation thing 0.", [], "translation", None),
    ]
    assert [(p.meta["question_id"], p.meta["category"]) for p in found] == [
        (1, "writing"),
        (2, "stem"),
        (3, "translation"),
    ]
    assert unasked(found).startswith("note: 2 later turns of conversations")
    assert unasked(found[2:]) == ""


def test_a_limit_keeps_the_first_of_each_task(tmp_path: Path) -> None:
    path = questions(tmp_path / "question.jsonl", writing=1, roleplay=3, qa=1, rag=4)
    plain = tmp_path / "plain.jsonl"
    plain.write_text("".join(json.dumps({"prompt": f"p{i}"}) + "\n" for i in range(5)))
    few = load_prompts(str(path), limit=2).prompts
    assert [p.text for p in few] == [
        *("Tell me writing thing 0.", "Tell me roleplay thing 0.", "Tell me qa thing 0."),
        *("Tell me rag thing 0.", "Tell me rag thing 1."),
    ]
    both = load_prompts(f"{path},{plain}", limit=2).prompts
    assert Counter(p.source for p in both) == {"mt_bench": 2, "qa": 1, "rag": 2, "plain.jsonl": 2}


def test_another_second_turn_is_another_set(tmp_path: Path) -> None:
    path = questions(tmp_path / "question.jsonl", coding=2)
    before = load_prompts(str(path)).sha256
    path.write_text(path.read_text().replace("And coding thing 1 again?", "Never mind."))
    assert load_prompts(str(path)).sha256 != before


def test_a_prompt_beside_turns_is_the_prompt(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "a", "turns": [{"role": "user"}]}))
    assert [(p.text, later_turns(p)) for p in load_prompts(str(path)).prompts] == [("a", [])]


def test_of_several_files_the_source_is_the_file(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(json.dumps({"prompt": name, "dataset": "other"}))
    parts = f"{tmp_path / 'a.jsonl'},mini-gsm,{tmp_path / 'b.jsonl'}"
    assert [p.source for p in load_prompts(parts, limit=1).prompts] == ["a.jsonl", "mini-gsm:test", "b.jsonl"]


def test_the_same_prompt_is_kept_once_and_limit_counts_what_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("a", "a ", "b", "c")))
    assert [p.text for p in load_prompts(str(path), limit=2).prompts] == ["a", "b"]
    assert prompt_id("a") == prompt_id(" a\n")


def test_an_answer_record_is_a_data_set(tmp_path: Path) -> None:
    with open_record("answer", AnswerOptions(out=tmp_path), inputs={}, facts={}) as record:
        record.write("x/0", prompt="x", text="Say :", answer=" dog", seed=0, finish="eos")
        record.write("y/0", error="timed out")
        record.finish()
    assert [(p.text, p.answer) for p in load_prompts(str(record.path)).prompts] == [("Say :", " dog")]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'{"prompt": "a"}\n{"prompt":', "line 2 of"),
        (b'["a"]', "not a JSON object"),
        (b'{"reponse": "a"}', "has no prompt"),
        (b"\xff\xfe\x00", "as UTF-8 text"),
        (b"", "holds no prompts"),
        (b'{"prompt": " ", "answer": "b"}', "the prompt of entry 1 of .* is empty"),
        (b'{"prompt": "a', "Unterminated string starting at column 12"),
        (b'{"prompt": null}', "has no prompt .* found prompt, which is no text"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"prompt": "a", "n": ' + b"9" * 5000 + b"}", "a number of thousands of digits"),
        (b'{"prompt": "a \\ud800"}', "the prompt of entry 1 of .* holds half a character"),
        (b'{"prompt": "a", "answer": "\\udfff"}', "the answer of entry 1 of .* holds half a character"),
        (b'{"turns": []}', "the turns of entry 1 of .* must be texts"),
        (b'{"turns": ["a", " "]}', "the turns of entry 1 of .* must be texts"),
        (b'{"turns": ["a", 1]}', "the turns of entry 1 of .* must be texts"),
        (b'{"turns": ["a", "\\ud800"]}', "the prompt of entry 1 of .* holds half a character"),
        (b'{"turns": "a"}', "has no prompt .* found turns, which is no text"),
    ],
)
def test_unreadable_files_are_one_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        load_prompts(str(path))


def test_an_empty_field_gives_way_to_one_with_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "", "instruction": "a"}))
    assert [prompt.text for prompt in load_prompts(str(path)).prompts] == ["a"]


def test_a_directory_is_not_a_prompt_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a directory where a prompt file is needed"):
        load_prompts(str(tmp_path))


@pytest.mark.parametrize("name", [name for name in EMBEDDED_SETS if ":" in name])
def test_the_embedded_sets_exist_and_do_not_overlap_with_the_test_set(name: str) -> None:
    found = {prompt.id for prompt in load_prompts(name).prompts}
    assert len(found) >= 100
    if not name.endswith(":test"):
        assert not found & {prompt.id for prompt in load_prompts(name.split(":", maxsplit=1)[0]).prompts}


def test_a_line_ends_at_a_newline_and_nowhere_else(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    texts = ["line\u2028separator", "next\x85line", "paragraph\u2029separator"]
    rows = [json.dumps({"prompt": text, "answer": "x"}, ensure_ascii=False) for text in texts]
    path.write_bytes("\r\n".join(rows).encode())
    assert [prompt.text for prompt in load_prompts(str(path)).prompts] == texts


def test_an_empty_answer_is_its_end_token(tiny_pair: TinyPair) -> None:
    tokenizer = load_tokenizer(str(tiny_pair.teacher))
    ids, response = encode_example(tokenizer, "Say :", "", 64)
    assert [i for i, r in zip(ids, response, strict=True) if r] == [tokenizer.eos_token_id]


def test_a_damaged_archive_is_one_sentence(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps([{"prompt": f"p{i}"} for i in range(99)]).encode())
    path = tmp_path / "a.json.gz"
    for content in (whole[:-30], whole[:40] + b"\xff" * 40 + whole[80:], b"\x1f\x8b" + whole[9:]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="cannot read"):
            load_prompts(str(path))


def test_a_file_written_on_windows_and_fields_in_capitals_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"Instruction": "a", "Response": "b"}\r\n{"Instruction": "c", "Input": "d"}\r\n')
    assert [(p.text, p.answer) for p in load_prompts(str(path)).prompts] == [("a", "b"), ("c\n\nd", None)]
