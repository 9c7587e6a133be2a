"""The judge's client against a real server on loopback: what goes wrong, what is paid, what is kept."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from judge_server import JudgeServer, serving

from judges import client as client_module
from judges.cache import Cache, request_key
from judges.client import Client
from judges.judge import Judge, key_for
from judges.protocols import PROTOCOLS, Protocol
from judges.replies import CallError, FatalError, NotAskedError, Reply
from selectkd_eval.errors import InputError, SetupError
from selectkd_eval.served import checked_url

KEY = "sk-a/secret-that-must-not-leak"
PROTOCOL = PROTOCOLS["selectkd"]


def judge_at(url: str, **changes: Any) -> Judge:
    return replace(Judge(name="judge", model="judge", base_url=url), **changes)


def ask(
    server: JudgeServer | str,
    cache: Path,
    questions: list[str],
    *,
    protocol: Protocol = PROTOCOL,
    judge: dict[str, Any] | None = None,
    **settings: Any,
) -> list[Reply]:
    """The replies to these questions, all asked at once."""
    url = server if isinstance(server, str) else server.url

    async def go() -> list[Reply]:
        with Cache(cache) as store:
            async with Client(judge_at(url, **(judge or {})), KEY, protocol, store, **settings) as client:
                asked = [protocol.messages(text, "long answer", "short", "candidate-first") for text in questions]
                return list(await asyncio.gather(*map(client.ask, asked)))

    return asyncio.run(go())


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "c.sqlite"


@pytest.fixture(params=[True, False], ids=["aiohttp", "httpx2"])
def aiohttp(request: pytest.FixtureRequest) -> bool:
    if request.param:
        pytest.importorskip("aiohttp")
    return bool(request.param)


def test_a_reply_is_paid_once(store: Path, aiohttp: bool) -> None:
    with serving() as server:
        (first,) = ask(server, store, ["Q"], aiohttp=aiohttp)
        (again,) = ask(server, store, ["Q"], aiohttp=aiohttp)
        assert len(server.requests) == 1
        assert server.requests[0]["temperature"] == 0.0 and server.requests[0]["max_tokens"] == 1024
    assert first.text == again.text == "[[A]]"
    assert (first.cached, again.cached) == (False, True)
    assert first.usage == {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105}
    assert first.model == "judge-2026-01-01" and first.fingerprint == "fp"
    assert replace(first, cached=True) == again


def test_the_same_request_at_the_same_time_is_paid_once(store: Path) -> None:
    with serving(delay_s=0.1) as server:
        assert len(ask(server, store, ["Q"] * 5)) == 5
        assert len(server.requests) == 1


def test_another_model_setting_or_protocol_is_another_request(store: Path) -> None:
    with serving() as server:
        ask(server, store, ["Q"])
        ask(server, store, ["Q"], judge={"model": "other"})
        ask(server, store, ["Q"], judge={"extra_body": {"enable_thinking": False}})
        ask(server, store, ["Q"], protocol=PROTOCOLS["mtbench"])
        ask(server, store, ["Q"], judge={"price_in": 1.0, "requests_per_minute": 600, "name": "another word for it"})
        assert len(server.requests) == 4
        assert server.requests[2]["enable_thinking"] is False
    assert request_key("s", "p", {}, 0) != request_key("s", "p", {}, 1)


def test_repeats_are_asked_apart_and_kept_apart(store: Path) -> None:
    messages = PROTOCOL.messages("Q", "long answer", "short", "candidate-first")

    async def go(url: str) -> list[Reply]:
        with Cache(store) as kept:
            async with Client(judge_at(url), KEY, PROTOCOL, kept) as client:
                return [await client.ask(messages, sample) for sample in (0, 1, 1)]

    with serving(script=["", "never a label"]) as server:
        replies = asyncio.run(go(server.url))
        assert len(server.requests) == 2 and server.requests[0] == server.requests[1]
    assert [reply.text for reply in replies] == ["[[A]]", "I cannot choose.", "I cannot choose."]


@pytest.mark.parametrize("trouble", ["429:0.4", "429 ms:400", "503:0.4"])
def test_a_busy_server_is_obeyed(trouble: str, store: Path, aiohttp: bool) -> None:
    with serving(script=[trouble]) as server:
        assert ask(server, store, ["Q"], aiohttp=aiohttp)[0].text == "[[A]]"
        assert len(server.requests) == 2
        assert server.times[1] - server.times[0] >= 0.4


def test_a_date_to_wait_for_is_obeyed(store: Path) -> None:
    with serving(script=["429 date:2"]) as server:
        assert ask(server, store, ["Q"])[0].text == "[[A]]"
        assert 0.9 <= server.times[1] - server.times[0] <= 3  # a date counts whole seconds


def test_all_requests_wait_when_one_is_turned_away(store: Path) -> None:
    # One of four is turned away at once; the three in flight beside it are answered well after that.
    with serving(script=["429:0.6"], delay_s=0.3) as server:
        assert len(ask(server, store, [f"Q{i}" for i in range(12)], concurrency=4)) == 12
        late = [moment - server.times[0] for moment in server.times[4:]]
        # Nobody else asks before the time that the server named.
        assert min(late) >= 0.6 and len(server.requests) == 13


def test_a_limit_that_nobody_told_is_found_and_no_reply_is_lost_or_paid_twice(store: Path) -> None:
    with serving(window=(5, 0.5)) as server:
        replies = ask(server, store, [f"Q{i}" for i in range(30)], concurrency=16)
        assert [reply.text for reply in replies] == ["[[A]]"] * 30
        assert sum(server.answered.values()) == 30 == len(server.answered)
        assert server.turned_away >= 1  # a window is a wall: it is met before it is known


def test_a_limit_that_is_known_is_kept_to(store: Path) -> None:
    with serving() as server:
        start = time.monotonic()
        ask(server, store, [f"Q{i}" for i in range(25)], judge={"requests_per_minute": 600})
        seconds = time.monotonic() - start
    # Ten at once, the other fifteen at (600 - 10 + 1) / 60 a second, which takes 1.52 s; and hardly slower.
    assert server.times[-1] - server.times[0] >= 1.45 and seconds <= 3.0


def test_limits_that_a_server_states_replace_those_of_the_table(store: Path) -> None:
    headers = {"x-ratelimit-limit-requests": "60000", "x-ratelimit-limit-tokens": "100000000"}
    slow = {"requests_per_minute": 60, "tokens_per_minute": 20_000, "states_limits": True}
    with serving(headers=headers) as server:
        start = time.monotonic()
        ask(server, store, [f"Q{i}" for i in range(30)], judge=slow)
        assert time.monotonic() - start < 5  # 60 a minute would be half a minute
        assert len(server.requests) == 30


def test_a_server_that_wants_to_be_left_alone_for_long_ends_the_run(store: Path) -> None:
    with serving(always="429:3600") as server:
        with pytest.raises(FatalError, match="asks to wait 60 minutes"):
            ask(server, store, ["Q"])
        assert len(server.requests) == 1


def test_a_server_that_stays_busy_is_given_up_on(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "BUSY_TRIES", 3)
    with serving(always="429:0.05") as server:
        with pytest.raises(CallError, match="too busy, after 3 tries"):
            ask(server, store, ["Q"])
        assert len(server.requests) == 3  # the SDK adds none of its own


@pytest.mark.parametrize("trouble", ["500", "503", "cut", "cut body", "not json"])
def test_a_passing_trouble_is_asked_again(trouble: str, store: Path, aiohttp: bool) -> None:
    with serving(script=[trouble]) as server:
        assert ask(server, store, ["Q"], aiohttp=aiohttp)[0].text == "[[A]]"
        assert len(server.requests) == 2


@pytest.mark.parametrize(("trouble", "says"), [("400", "answered 400"), ("not json", "no chat completion")])
def test_a_lasting_trouble_fails_one_call_and_is_not_cached(trouble: str, says: str, store: Path) -> None:
    with serving(always=trouble) as server:
        with pytest.raises(CallError, match=says) as caught:
            ask(server, store, ["Q"])
        server.always = ""
        assert ask(server, store, ["Q"])[0].text == "[[A]]"
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        ("401", "refused the key"),
        ("402", "wants to be paid"),
        ("403", "refused access"),
        ("404", "knows no such model"),
        ("quota", "no quota left"),
        ("unsupported", r"does not take temperature .* \[judge\] of judges.toml \(temperature = false\)"),
    ],
)
def test_what_cannot_be_mended_is_asked_once(trouble: str, says: str, store: Path, aiohttp: bool) -> None:
    with serving(always=trouble) as server:
        with pytest.raises(FatalError, match=says) as caught:
            ask(server, store, ["Q"], aiohttp=aiohttp)
        assert len(server.requests) == 1
    assert KEY not in str(caught.value) and caught.value.__cause__ is None


def test_a_question_that_surely_does_not_fit_is_not_asked(store: Path) -> None:
    with serving(script=["too long"]) as server:
        with pytest.raises(NotAskedError, match="does not fit into the judge's context of 4,000 tokens: about"):
            ask(server, store, ["word " * 10_000], judge={"context": 4000})
        assert not server.requests
        # In doubt the server decides, which costs nothing.
        with pytest.raises(NotAskedError, match="does not fit into the judge's context: no"):
            ask(server, store, ["word " * 4000], judge={"context": 4000})
        assert len(server.requests) == 1


def test_without_calling_only_the_cache_answers(store: Path) -> None:
    with serving() as server:
        ask(server, store, ["Q"])
        assert ask(server, store, ["Q"], calling=False)[0].text == "[[A]]"
        with pytest.raises(CallError, match="not in the cache"):
            ask(server, store, ["another"], calling=False)
        assert len(server.requests) == 1


def test_thinking_and_counts_are_kept_apart_from_the_text(store: Path) -> None:
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 30,
        "prompt_tokens_details": {"cached_tokens": 64},
        "completion_tokens_details": {"reasoning_tokens": 20},
    }
    with serving(always="thinking apart", usage=usage) as server:
        (reply,) = ask(server, store, ["Q"])
    assert reply.text == "[[A]]" and reply.reasoning == "I was asked with [key]. [[C]]"
    assert reply.usage == {
        "prompt_tokens": 100, "completion_tokens": 30, "cached_tokens": 64, "reasoning_tokens": 20
    }  # fmt: skip


def test_the_first_tokens_probabilities_are_kept(store: Path) -> None:
    with serving() as server:
        (reply,) = ask(server, store, ["Q"], protocol=PROTOCOLS["alpacaeval2"])
        assert server.requests[0]["logprobs"] is True and server.requests[0]["max_tokens"] == 1
        (again,) = ask(server, store, ["Q"], protocol=PROTOCOLS["alpacaeval2"])
    assert reply.logprobs == again.logprobs == [{"m": -0.1, "M": -2.5}]


def test_a_judge_without_probabilities_is_refused_where_they_are_needed(store: Path) -> None:
    with serving() as server:
        with pytest.raises(InputError, match="reads the judge's log-probabilities"):
            ask(server, store, ["Q"], protocol=PROTOCOLS["alpacaeval2"], judge={"logprobs": False})
        assert not server.requests


@pytest.mark.parametrize("trouble", ["echo key", "echo key escaped"])
def test_a_key_that_the_server_repeats_is_not_kept(trouble: str, store: Path) -> None:
    with serving(always=trouble) as server:
        (reply,) = ask(server, store, ["Q"])
    assert reply.text.startswith("your key is [key]")
    spelt = {KEY.encode(), KEY.replace("/", "\\/").encode(), KEY.split("/")[1].encode()}
    assert not [file for file in store.parent.iterdir() for key in spelt if key in file.read_bytes()]


def test_a_remote_server_needs_a_key_and_a_local_one_does_not() -> None:
    with pytest.raises(SetupError, match="JUDGE_KEY is not set: export JUDGE_KEY="):
        key_for("", "JUDGE_KEY", {})
    with pytest.raises(SetupError, match=r"https://judge\.example"):
        key_for("https://judge.example/v1", "JUDGE_KEY", {"JUDGE_KEY": " "})
    assert key_for("http://localhost:8000/v1", "JUDGE_KEY", {}) == ""
    assert key_for("", "JUDGE_KEY", {"JUDGE_KEY": "k\n"}) == "k"


@pytest.mark.parametrize(
    "url",
    ["localhost:8000", "ftp://x/v1", "http://x:port/v1", "http://user:secret@x/v1", "http://x/v1?key=secret"],
)
def test_an_address_that_is_none_or_holds_a_secret_is_refused(url: str) -> None:
    with pytest.raises(InputError) as caught:
        checked_url(url)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_cache_is_left_alone(store: Path) -> None:
    store.write_text("these are my notes, not a database, and long enough to be looked at\n" * 40)
    before = store.read_bytes()
    with pytest.raises(InputError, match="no judge cache"):
        Cache(store)
    assert store.read_bytes() == before


def test_a_cache_that_cannot_be_written_is_one_sentence(store: Path) -> None:
    store.mkdir()
    with pytest.raises(SetupError, match="cannot be used"):
        Cache(store)


def test_two_caches_on_one_file_see_each_other(store: Path) -> None:
    with Cache(store) as one, Cache(store) as two:
        one.put("k", "m", 0, {"text": "first", "usage": {"completion_tokens": 7}}, 0.1)
        two.put("k", "m", 0, {"text": "second"}, 0.1)
        assert (two.get("k") or {})["text"] == "first" and len(two) == 1
        assert two.known(["k", "l"]) == {"k"} and two.models() == ["m"]
        assert two.usages("m") == [{"completion_tokens": 7}] and two.usages("n") == []
    with sqlite3.connect(store) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    database.close()


def test_what_came_instead_of_a_completion_is_quoted_without_the_key(store: Path) -> None:
    says = r"no chat completion, but '<html>Log in, \[key\]"
    with serving(always="login page") as server, pytest.raises(CallError, match=says) as caught:
        ask(server, store, ["Q"])
    assert KEY not in str(caught.value)


def test_a_negative_count_gives_no_money_back(store: Path) -> None:
    usage = {"prompt_tokens": -5, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": -9}}
    with serving(usage=usage) as server:
        (reply,) = ask(server, store, ["Q"])
    assert reply.usage == {"completion_tokens": 7}


@pytest.mark.parametrize("shown", ["http://x:1/v1", "http://x:1/v1/", "http://x:1/v1/chat/completions/"])
def test_the_whole_address_of_a_request_is_the_address_of_its_server(shown: str) -> None:
    assert checked_url(shown) == "http://x:1/v1"


def test_a_cache_is_read_where_nobody_can_write() -> None:
    # The directory for all tests is its owner's alone, and root may write wherever it likes.
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        store = Path(directory) / "c.sqlite"
        with Cache(store) as kept:
            kept.put("key", "model", 0, {"text": "[[A]]"}, 0.1)
        store.chmod(0o444)
        Path(directory).chmod(0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            with pytest.raises(SetupError, match="cannot be used"):
                Cache(store)
            with Cache(store, reading=True) as kept:
                assert kept.models() == ["model"] and kept.get("key") == {"text": "[[A]]"}
        finally:
            os.seteuid(user)
        assert [file.name for file in Path(directory).iterdir()] == ["c.sqlite"]
        Path(directory).chmod(0o755)


def test_a_reader_sees_what_another_process_is_writing(store: Path) -> None:
    with Cache(store) as writer:
        writer.put("key", "model", 0, {"text": "[[A]]"}, 0.1)
        with Cache(store, reading=True) as reader:
            assert reader.known(["key"]) == {"key"}
            writer.put("other", "model", 0, {"text": "[[B]]"}, 0.1)
            assert reader.known(["other"]) == {"other"}
