"""Answers: the same in any batch and after a resume; a real loopback server, its refusals and its mishaps."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import TinyPair
from local_judges import AGAIN, OPEN, scripted
from writing import tiny_author, training_set

from selectkd_eval import answer, records
from selectkd_eval.controllers import Moment
from selectkd_eval.errors import InputError, SetupError, commonest
from selectkd_eval.policies import training_text
from selectkd_eval.prompts import PromptSet, load_prompts
from selectkd_eval.rollouts import text_policy
from selectkd_eval.verbs import AnswerOptions

KEY = "sk-a-key-that-nobody-may-see"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    lines = [{"prompt": f"the red dog sees {i} ball{' and a hat' * (i % 3)}"} for i in range(12)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def options(tiny_pair, prompts: Path, tmp_path: Path) -> AnswerOptions:
    return AnswerOptions(
        model=str(tiny_pair.student),
        prompts=str(prompts),
        max_new_tokens=10,
        batch_size=4,
        out=tmp_path / "records",
        device="cpu",
        threads=1,
    )


def ask(options: AnswerOptions, code: int = 0) -> records.Record:
    assert answer.run(options) == code
    return records.read(records.record_path("answer", options), verb="answer")


def texts(record: records.Record) -> dict[str, tuple]:
    return {row["key"]: (row["answer"], row["finish"], row["n_tokens"]) for row in record.good}


def test_an_answer_depends_on_its_prompt_and_seed_only(options: AnswerOptions, tmp_path: Path) -> None:
    options = replace(options, seeds=(0, 1))
    whole = texts(ask(options))
    assert len(whole) == 24
    assert len({text for text, _, _ in whole.values()}) > 20
    assert texts(ask(replace(options, batch_size=5, out=tmp_path / "batch"))) == whole
    few = texts(ask(replace(options, limit=5, out=tmp_path / "limit")))
    assert len(few) == 10
    assert few.items() <= whole.items()


def test_torn_record_is_finished_without_repeating_a_row(options: AnswerOptions) -> None:
    whole = ask(options)
    lines = whole.path.read_bytes().split(b"\n")
    whole.path.write_bytes(b"\n".join(lines[:6]) + b"\n" + lines[6][:25])
    again = ask(options)
    keys = [json.loads(line)["key"] for line in whole.path.read_text().splitlines() if '"key"' in line]
    assert len(keys) == len(set(keys)) == 12
    assert texts(again) == texts(whole)


def test_stdout_is_the_path_and_one_line(options: AnswerOptions, capsys: pytest.CaptureFixture[str]) -> None:
    record = ask(options)
    cut = sum(row["finish"] == "length" for row in record.rows)
    mean = sum(row["n_tokens"] for row in record.rows) / 12
    expected = f"{record.path}\n12 answers, 0 failed, {cut} cut at the token limit, {mean:.1f} tokens on average\n"
    assert capsys.readouterr().out == expected


def test_the_header_says_what_can_change_an_answer(options: AnswerOptions, tmp_path: Path) -> None:
    facts = ask(options).facts
    assert facts["generation"] == {
        "backend": "transformers",
        "max_new_tokens": 10,
        "temperature": 0.8,
        "top_p": 0.95,
        "chat_template": False,
    }
    engine = facts["engine"]
    assert (engine["dtype"], engine["device"], engine["ends"]) == ("float32", "cpu", ["</s>"])
    assert engine["chat_template_sha256"] == ""
    assert {"torch", "transformers"} <= set(engine["versions"])
    assert "reasoning" in engine


def test_a_system_prompt_is_asked_with_and_recorded(options: AnswerOptions, tmp_path: Path) -> None:
    """A scripted model says one word after one message and another one after several."""
    shown = "{% for m in messages %}{{ m.content }}{% endfor %}"
    template = shown + "{{ '<again>' if messages | length > 1 else '<open>' }}"
    model = scripted(tmp_path / "m", {OPEN: "alone", AGAIN: "told"}, words=("alone", "told"), template=template)
    options = replace(options, model=model, temperature=0)
    told = ask(replace(options, system="Be brief."))
    assert {row["answer"] for row in ask(options).rows} == {"alone"}
    assert {row["answer"] for row in told.rows} == {"told"}
    assert told.facts["generation"]["system"] == "Be brief."
    assert len(told.facts["engine"]["chat_template_sha256"]) == 64


@pytest.mark.parametrize(
    ("follows", "answer", "finish", "thoughts"),
    [
        ({OPEN: "<think>", "<think>": "hm", "hm": "</think>", "</think>": "yes"}, "yes", "eos", "hm"),
        ({OPEN: "<think>", "<think>": "hm", "hm": "hm"}, "", "length", "hm" * 9),
        ({OPEN: "yes"}, "yes", "eos", None),
    ],
)
def test_reasoning_stands_beside_the_answer(
    options: AnswerOptions,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    follows: dict[str, str],
    answer: str,
    finish: str,
    thoughts: str | None,
) -> None:
    model = scripted(tmp_path / "m", follows, words=("yes", "hm", "<think>", "</think>"))
    record = ask(replace(options, model=model, temperature=0))
    assert {(row["answer"], row["finish"], row.get("reasoning")) for row in record.rows} == {(answer, finish, thoughts)}
    assert ("12 empty" in capsys.readouterr().out) == (not answer)


def test_rows_name_their_data_set_and_a_set_comes_from_its_directory(options: AnswerOptions, tmp_path: Path) -> None:
    rows = [{"instruction": f"Say {i}", "output": "x", "dataset": ("koala", "vicuna")[i % 2]} for i in range(6)]
    (tmp_path / "alpaca_eval.json").write_text(json.dumps(rows))
    record = ask(replace(options, prompts="alpaca-eval", prompt_dir=tmp_path, limit=4))
    assert [row["source"] for row in sorted(record.rows, key=lambda row: row["text"])] == ["koala", "vicuna"] * 2
    facts = record.facts["prompts"]
    assert (facts["name"], facts["n"], list(facts["files"])) == ("alpaca-eval", 4, ["alpaca-eval"])


def test_an_answered_prompt_set_keeps_its_data_sets(options: AnswerOptions, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"prompt": "Hi", "dataset": "koala"}]))
    record = ask(replace(options, prompts=str(tmp_path / "a.json")))
    assert [prompt.source for prompt in load_prompts(str(record.path)).prompts] == ["koala"]


def test_a_prompt_of_two_sets_is_asked_once_and_belongs_to_the_first(options: AnswerOptions, tmp_path: Path) -> None:
    for name, asked in (("a.json", ["x", "both"]), ("b.json", ["both", "y"])):
        (tmp_path / name).write_text(json.dumps([{"prompt": text, "answer": name} for text in asked]))
    record = ask(replace(options, prompts=f"{tmp_path / 'a.json'},{tmp_path / 'b.json'}"))
    assert {row["text"]: row["source"] for row in record.rows} == {"x": "a.json", "both": "a.json", "y": "b.json"}


def test_a_prompt_without_room_is_an_error_not_a_shorter_prompt(options: AnswerOptions, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"prompt": "ball " * 600}) + "\n" + json.dumps({"prompt": "a ball"}) + "\n")
    record = ask(replace(options, prompts=str(path)), code=1)
    assert len(record.good) == 1
    assert "positions" in record.failed[0]["error"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0, "seeds": (0, 1)}, "greedy"),
        ({"temperature": -0.1}, "negative"),
        ({"top_p": 0.0}, "--top-p"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"prompts": "mini-storeys"}, "did you mean"),
        ({"base_url": "localhost:8000"}, "http"),
        ({"base_url": f"http://user:{KEY}@localhost/v1"}, "--key-variable"),
    ],
)
def test_wrong_requests_are_one_sentence(options: AnswerOptions, change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        answer.run(replace(options, **change))
    assert KEY not in str(caught.value)


class Server(ThreadingHTTPServer):
    """Answers in the manner of an OpenAI server; `fails` maps a word in the prompt to a status code."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.fails: dict[str, int] = {}
        self.reason = "length"
        self.count: object = 7
        self.before = ""  # what stands before the answer
        self.thoughts: dict[str, str] = {}  # beside the answer
        self.asked: list[dict] = []
        self.keys: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        self.server.keys.add(self.headers["Authorization"])
        prompt = body["messages"][-1]["content"]
        status = next((code for word, code in self.server.fails.items() if word in prompt), 200)
        choice = {
            "index": 0,
            "finish_reason": self.server.reason,
            "message": {"role": "assistant", "content": self.server.before + prompt.upper(), **self.server.thoughts},
        }
        reply = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        reply["usage"] = {"prompt_tokens": 1, "completion_tokens": self.server.count, "total_tokens": 8}
        if status != 200:
            reply = {"error": {"message": f"no: {self.headers['Authorization']}", "code": None}}
        payload = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("TEST_KEY", KEY)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def served(options: AnswerOptions, server: Server) -> AnswerOptions:
    return replace(options, model="gpt-x", base_url=server.url, key_variable="TEST_KEY", top_p=0.9)


def test_server_is_asked_once_per_prompt_and_seed(served: AnswerOptions, server: Server) -> None:
    record = ask(replace(served, seeds=(0, 1)))
    assert len(server.asked) == 24
    assert len({body["seed"] for body in server.asked}) == 24
    assert {(b["model"], b["max_tokens"], b["temperature"], b["top_p"]) for b in server.asked} == {
        ("gpt-x", 10, 0.8, 0.9)
    }
    assert all(row["answer"] == row["text"].upper() for row in record.rows)
    assert {(row["finish"], row["n_tokens"]) for row in record.rows} == {("length", 7)}
    assert record.facts["model"]["parameters"] is None
    ask(replace(served, seeds=(0, 1)))
    assert len(server.asked) == 24


def test_a_served_model_gets_the_system_prompt_and_its_reasoning_is_kept(served: AnswerOptions, server: Server) -> None:
    served = replace(served, system="Be brief.")
    server.thoughts = {"reasoning_content": "hm"}
    record = ask(served)
    assert {tuple(turn["role"] for turn in body["messages"]) for body in server.asked} == {("system", "user")}
    assert all((row["answer"], row["reasoning"]) == (row["text"].upper(), "hm") for row in record.rows)
    server.thoughts, server.before = {}, "well</think>\n"  # a server that swallows the opening tag
    record = ask(replace(served, seeds=(1,)))
    assert all((row["answer"], row["reasoning"]) == (row["text"].upper(), "well") for row in record.rows)


def test_the_key_goes_to_the_server_and_nowhere_else(
    served: AnswerOptions, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.fails = {"sees 3 ball": 400}
    record = ask(served, code=1)
    assert server.keys == {f"Bearer {KEY}"}
    out = capsys.readouterr()
    assert KEY not in record.path.read_text() + out.out + out.err


def test_a_servers_answers_are_training_text_and_students_text(
    served: AnswerOptions, server: Server, tiny_pair: TinyPair
) -> None:
    server.reason = "stop"
    path = ask(served).path
    text = training_text(
        "dataset", str(path), exclude=(), held_out=PromptSet("none", []), limit=None, ask_teacher=lambda: path
    )
    assert text.facts["answers_by"] == "gpt-x"
    author = tiny_author(tiny_pair, longest=256)
    examples = training_set(author, text.text)
    halves = text_policy("pairs", {}, author, training=examples, ready=[path]).update(examples, Moment(1, 1, 0, 1.0))
    assert len(halves) == 24
    end = author.tokenizer.eos_token_id
    for teacher, student in zip(halves[::2], halves[1::2], strict=True):
        assert (teacher.source, student.source) == ("teacher", "student")
        assert teacher.ids == student.ids  # here both records are one
        assert student.ids[-1] == end
        whole = author.tokenizer.decode(student.ids, skip_special_tokens=True)
        assert whole in {f"{prompt.text} {prompt.text.upper()}" for prompt in text.text.prompts}


def test_a_server_that_counts_oddly_loses_its_count_and_no_answer(
    served: AnswerOptions, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.count = "many"
    record = ask(served)
    assert len(record.good) == 12 and {row["n_tokens"] for row in record.rows} == {None}
    server.count = -7
    assert {row["n_tokens"] for row in ask(replace(served, seeds=(1,))).rows} == {None}
    assert "— tokens on average" in capsys.readouterr().out


def test_why_prompts_failed_is_said_once(
    served: AnswerOptions, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.fails = {"sees 1 ball": 400, "sees 2 ball": 400, "sees 3 ball": 422}
    ask(served, code=1)
    error = capsys.readouterr().err.splitlines()[-1]
    assert "3 of 12 prompts failed: BadRequestError: Error code: 400" in error
    assert "(2 of them; the record has the others' reasons); run the same command again" in error


def test_reasons_that_differ_in_numbers_alone_are_one() -> None:
    long = [f"the prompt's {n} tokens exceed 2,048 positions" for n in (3000, 2999, 12)]
    assert commonest(["empty", *long]) == (long[0], 3) and commonest(["empty"]) == ("empty", 1)
    assert commonest(["the server answered 500: no", "the server answered 400: no"])[1] == 1


def test_a_failed_prompt_is_asked_again_and_alone(served: AnswerOptions, server: Server) -> None:
    server.fails = {"sees 3 ball": 400}
    record = ask(served, code=1)
    assert len(record.good) == 11
    assert "400" in record.failed[0]["error"]
    server.fails, server.asked = {}, []
    record = ask(served)
    assert len(server.asked) == 1
    assert len(record.good) == 12
    assert not record.failed


@pytest.mark.parametrize(("status", "word"), [(401, "TEST_KEY"), (403, "403"), (404, "gpt-x")])
def test_refusal_stops_at_once_and_keeps_what_there_is(
    served: AnswerOptions, server: Server, status: int, word: str
) -> None:
    served = replace(served, batch_size=1)
    server.fails = {"sees 3 ball": status}
    with pytest.raises((InputError, SetupError), match=word) as caught:
        answer.run(served)
    assert KEY not in str(caught.value)
    assert len(server.asked) == 4
    record = records.read(records.record_path("answer", served), unfinished_ok=True)
    assert not record.finished
    assert len(record.good) == 3
    server.fails = {}
    assert len(ask(served).good) == 12
    assert len(server.asked) == 4 + 9


def test_no_server_is_one_sentence(served: AnswerOptions) -> None:
    with pytest.raises(InputError, match="no server answers"):
        answer.run(replace(served, base_url="http://127.0.0.1:9/v1", limit=1))


def test_the_second_turns_that_are_not_asked_are_said(
    options: AnswerOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "question.jsonl"
    rows = [{"category": "coding", "turns": [f"the red dog sees {i}", "and a hat"]} for i in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = ask(replace(options, prompts=str(path)))
    assert [row["text"] for row in record.good] == [f"the red dog sees {i}" for i in range(3)]
    assert {row["source"] for row in record.good} == {"mt_bench"}
    assert "note: 3 later turns of conversations are not asked" in capsys.readouterr().err
