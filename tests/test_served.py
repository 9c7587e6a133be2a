"""A real loopback server writes pass@k's answers: what it is sent, what comes of it, its mishaps, its refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from text_server import TextServer, serving

from judges.replies import Redaction
from selectkd_eval.backends import open_backend
from selectkd_eval.backends.answer_store import AnswerStore, answer_key
from selectkd_eval.backends.backend import Asked, Completion, Decoding
from selectkd_eval.backends.server import Server
from selectkd_eval.errors import InputError, SetupError
from selectkd_eval.served import Served, header_key
from selectkd_eval.tasks.task import Layout, Problem, Task
from selectkd_eval.verbs import PasskOptions

KEY = "sk-a-key-that-nobody-may-see"
GREEDY = Decoding(12, 0.0, 1.0, ())
SAMPLED = Decoding(12, 0.9, 0.9, ())
PROMPTS = [f"the red dog sees {i} ball{' and a hat' * (i % 3)}" for i in range(12)]
STOPS = ("alpha", "beta", "gamma", "delta", "hat")


@pytest.fixture
def server(tiny_pair, monkeypatch: pytest.MonkeyPatch) -> Iterator[TextServer]:
    monkeypatch.setenv("TEST_KEY", KEY)
    with serving(tiny_pair.teacher) as server:
        yield server


@pytest.fixture
def options(server: TextServer) -> PasskOptions:
    return PasskOptions(model="tiny", base_url=server.url, key_variable="TEST_KEY", batch_size=4)


def opened(options: PasskOptions) -> Server:
    backend = open_backend(options)
    assert isinstance(backend, Server)
    return backend


def conversation(text: str) -> str:
    return json.dumps([{"role": "user", "content": text}])


def ask(prompts: Sequence[str], decoding: Decoding = GREEDY) -> list[Asked]:
    return [Asked(prompt, 2**40 + seed, decoding) for seed, prompt in enumerate(prompts)]


def write(backend: Server, asked: Sequence[Asked]) -> list[Completion]:
    done = list(backend.complete(asked))
    assert len(dict(done)) == len(done) == len(asked)
    return [completion for _, completion in sorted(done)]


def toy_task(**layout: str) -> Task:
    words = {"text": "Question: {{question}}\nAnswer:", "target": "{{answer}}", **layout}
    rows = [{"question": f"{i} + 1 = ?", "answer": str(i + 1)} for i in range(2)]
    return Task(
        name="toy",
        kind="answer",
        problems=[Problem("1", rows[1], "2")],
        examples=rows[:1],
        layout=Layout(name="toy", stops=(), **words),
        shots=0 if "prefix" in layout else 1,
        grader="gsm8k-numeric",
        sha256="0" * 64,
        version="1",
        max_new_tokens=16,
    )


def test_plain_completions_are_those_of_the_model_itself(options: PasskOptions, server: TextServer, tiny_pair) -> None:
    backend = opened(replace(options, chat="no"))
    local = open_backend(PasskOptions(model=str(tiny_pair.teacher), device="cpu"))
    texts, ours = write(backend, ask(PROMPTS)), [text for _, text in sorted(local.complete(ask(PROMPTS)))]
    assert [(one.text, one.n_tokens, one.finish) for one in texts] == [
        (one.text, one.n_tokens, one.finish) for one in ours
    ]
    assert {one.finish for one in texts} == {"eos", "length"}
    assert {one.n_prompt_tokens for one in texts} == {3}
    assert backend.prompts(toy_task()) == local.prompts(toy_task())


def test_a_request_says_what_the_decoding_says_and_no_more(options: PasskOptions, server: TextServer) -> None:
    backend = opened(options)
    write(backend, ask([conversation("greedy")]))
    write(backend, ask([conversation("sampled")], replace(SAMPLED, stops=STOPS)))
    message = {"model": "tiny", "max_tokens": 12}
    assert server.asked == [
        {**message, "messages": [{"role": "user", "content": "greedy"}], "temperature": 0.0},
        {
            **message,
            "messages": [{"role": "user", "content": "sampled"}],
            "temperature": 0.9,
            "top_p": 0.9,
            "seed": 0,
            "stop": list(STOPS[:4]),
        },
    ]


def test_seeds_are_31_bits_and_tell_samples_apart(options: PasskOptions, server: TextServer) -> None:
    texts = write(opened(options), ask([conversation("a ball")] * 8, SAMPLED))
    assert len({one.text for one in texts}) > 4
    assert sorted(body["seed"] for body in server.asked) == list(range(8))
    assert write(opened(replace(options, batch_size=1)), ask([conversation("a ball")] * 8, SAMPLED)) == texts


def test_a_fifth_stop_string_is_cut_off_here(options: PasskOptions) -> None:
    backend = opened(replace(options, chat="no"))
    free = write(backend, ask(PROMPTS))
    fifth = free[0].text[2:4]
    cut = write(backend, ask(PROMPTS, replace(GREEDY, stops=(*STOPS[:4], fifth))))
    assert [one.text for one in cut] == [one.text.split(fifth)[0] for one in free]
    assert cut[0].finish == "stop"
    assert all(one == two for one, two in zip(free, cut, strict=True) if fifth not in one.text)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ({"finish_reason": "stop", "stop_reason": "hat"}, "stop"),
        ({"finish_reason": "stop", "stop_reason": 2}, "eos"),
        ({"finish_reason": "stop", "matched_stop": "hat"}, "stop"),
        ({"finish_reason": "length"}, "length"),
        ({"finish_reason": None}, "eos"),
        ({"finish_reason": "length", "message": {"role": "assistant", "content": None}}, "length"),
    ],
)
def test_end_reasons(options: PasskOptions, server: TextServer, reply: dict, expected: str) -> None:
    server.reply = reply
    assert write(opened(options), ask([conversation("a ball")]))[0].finish == expected


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ({"message": {"role": "assistant", "content": None}, "finish_reason": "tool_calls"}, "tool_calls"),
        ({"message": {"role": "assistant", "content": "I"}, "finish_reason": "content_filter"}, "withheld"),
        ({"message": None}, "no answer"),
    ],
)
def test_no_text_is_an_error_and_is_not_kept(
    options: PasskOptions, server: TextServer, tmp_path: Path, reply: dict, message: str
) -> None:
    server.reply = reply
    backend, asked = opened(options), ask([conversation("a ball")])
    found = write(backend, asked)[0]
    assert message in found.error
    with AnswerStore(tmp_path / "answers.sqlite") as store:
        store.put(answer_key(backend.identity, asked[0]), found)
        assert len(store) == 0


def test_half_characters_do_not_reach_a_file(options: PasskOptions, server: TextServer) -> None:
    server.reply = {"message": {"role": "assistant", "content": "a \ud800 b"}}
    write(opened(options), ask([conversation("a ball")]))[0].text.encode()


def test_at_most_batch_size_requests_are_in_flight(options: PasskOptions, server: TextServer) -> None:
    server.delay_s = 0.03
    write(opened(options), ask([conversation(prompt) for prompt in PROMPTS]))
    assert server.most_in_flight == 4


def test_a_prompts_mishap_is_its_own(options: PasskOptions, server: TextServer) -> None:
    server.troubles = {"sees 3 ball": 400}
    texts = write(opened(options), ask([conversation(prompt) for prompt in PROMPTS]))
    assert [bool(one.error) for one in texts] == [place == 3 for place in range(12)]
    assert "400" in texts[3].error
    assert KEY not in texts[3].error
    assert "[key]" in texts[3].error


@pytest.mark.parametrize(("status", "word"), [(401, "TEST_KEY"), (403, "403"), (404, "tiny")])
def test_a_refusal_ends_the_run_and_what_came_before_is_there(
    options: PasskOptions, server: TextServer, status: int, word: str
) -> None:
    server.troubles = {"sees 3 ball": status}
    backend, came = opened(replace(options, batch_size=1)), []
    with pytest.raises((InputError, SetupError), match=word) as caught:
        came.extend(backend.complete(ask([conversation(prompt) for prompt in PROMPTS])))
    assert KEY not in str(caught.value)
    assert [place for place, _ in came] == [0, 1, 2]
    assert len(server.asked) == 4


def test_the_key_is_in_no_fact(options: PasskOptions) -> None:
    backend = opened(replace(options, temperature=0.9))
    assert KEY not in repr([backend.identity, backend.card, backend.seeds, vars(backend)])


def test_a_length_by_another_name(options: PasskOptions, server: TextServer) -> None:
    """OpenAI's reasoning models refuse `max_tokens`; what else they refuse ends the run at once."""
    server.troubles = {"ball": 400}
    server.error = {"code": "unsupported_parameter", "param": "max_tokens"}
    backend = opened(replace(options, batch_size=1))
    with pytest.raises(InputError, match="'max_tokens'"):
        write(backend, ask([conversation("a ball")]))
    assert ["max_completion_tokens" in body for body in server.asked] == [False, True]
    server.troubles, server.asked = {}, []
    write(backend, ask([conversation("a ball")]))
    assert server.asked[0]["max_completion_tokens"] == 12
    server.troubles, server.error = {"ball": 400}, {"code": "unsupported_value", "param": "temperature"}
    with pytest.raises(InputError, match="'temperature'"):
        write(backend, ask([conversation("a ball")] * 5))
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("engine", "sent", "extra"),
    [
        ("vllm", True, {"add_generation_prompt": False, "continue_final_message": True}),
        ("sglang", True, {"continue_final_message": True}),
        ("llamacpp", True, {}),
        ("openai", False, {}),
        ("", False, {}),
    ],
)
def test_an_opened_answer_is_sent_where_it_is_continued(
    options: PasskOptions, server: TextServer, engine: str, sent: bool, extra: dict
) -> None:
    server.engine = engine
    backend = opened(replace(options, system="Be brief."))
    [prompt] = backend.prompts(toy_task(prefix="It is"))
    write(backend, ask([prompt]))
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Question: 1 + 1 = ?\nAnswer:"},
        {"role": "assistant", "content": "It is"},
    ]
    body = server.asked[-1]
    assert body["messages"] == turns[: 3 if sent else 2]
    assert {
        name: body[name] for name in body if name not in ("messages", "model", "max_tokens", "temperature")
    } == extra


def test_examples_are_turns_of_their_own(options: PasskOptions) -> None:
    roles = [message["role"] for message in json.loads(opened(options).prompts(toy_task())[0])]
    assert roles == ["user", "assistant", "user"]


def test_room_is_half_of_the_positions_that_the_server_tells(options: PasskOptions, server: TextServer) -> None:
    assert opened(options).room(5000) == 5000
    server.engine = "vllm"
    assert opened(options).room(5000) == 20


def test_whether_the_server_honours_seeds_is_tried_when_it_matters(options: PasskOptions, server: TextServer) -> None:
    sampled = replace(options, temperature=0.9)
    assert not server.asked
    assert "and the server honours seeds" in opened(sampled).seeds
    assert [body["seed"] for body in sorted(server.asked, key=lambda body: body["seed"])] == [1, 1, 2]
    server.honours_seeds = False
    assert "does not honour seeds" in opened(sampled).seeds
    server.reply = {"message": {"role": "assistant", "content": "7"}}
    assert "may ignore them" in opened(sampled).seeds
    server.troubles = {"random number": 400}
    assert "could not be tried" in opened(sampled).seeds


def test_a_server_that_is_gone_is_one_sentence(options: PasskOptions, server: TextServer) -> None:
    nobody = opened(replace(options, base_url="http://127.0.0.1:9/v1", batch_size=1, temperature=0.9))
    nobody.served._client = nobody.served._client.with_options(max_retries=0)
    with pytest.raises(InputError, match="no server answers"):
        write(nobody, ask([conversation("a ball")] * 3))
    assert "could not be tried" in nobody.seeds
    backend = opened(replace(options, batch_size=2))
    backend.served._client = backend.served._client.with_options(max_retries=0)
    came = []
    with pytest.raises(SetupError, match="has stopped answering"):
        for place, completion in backend.complete(ask([conversation(prompt) for prompt in PROMPTS])):
            came.append((place, completion))
            if len(came) == 4:
                server.gone = True
    assert 4 <= sum(not completion.error for _, completion in came) < len(PROMPTS)


def test_an_address_that_holds_a_key_is_refused() -> None:
    for address in (f"http://user:{KEY}@localhost/v1", f"http://localhost/v1?key={KEY}"):
        with pytest.raises(InputError, match="would end up in the record") as caught:
            Served(address, "tiny", "TEST_KEY", 1, "passk")
        assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["localhost:8000", "http://x:port/v1", "http://x:99999/v1", "http://[::1", "http://x y"]
)
def test_an_address_that_is_none_is_one_sentence(address: str) -> None:
    with pytest.raises(InputError, match="is no address"):
        Served(address, "tiny", "TEST_KEY", 1, "passk")


@pytest.mark.parametrize("key", ["sk-two\nlines", "\u201csk-quoted\u201d", "sk-\x00"])
def test_a_key_that_no_request_can_carry_is_one_sentence_without_it(key: str) -> None:
    with pytest.raises(SetupError, match=r"the key in \$TEST_KEY holds a character") as caught:
        header_key("TEST_KEY", {"TEST_KEY": key})
    assert "sk-" not in str(caught.value)
    assert header_key("TEST_KEY", {"TEST_KEY": " sk-fine\n"}) == "sk-fine"


def test_a_short_word_for_a_server_that_checks_no_key_is_no_secret() -> None:
    # Taken out of a verdict, "A" would leave none.
    assert Redaction("A")("[[A]]") == "[[A]]" and Redaction("none")("none of them") == "none of them"
    assert Redaction(KEY)(f"no: {KEY}") == "no: [key]"
