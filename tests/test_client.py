"""The judge's client against a real server on loopback: what goes wrong, what is paid, what is kept."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from judge_server import serving

from judges.cache import Cache, request_key
from judges.client import CallError, Client, FatalError, Reply, checked_url, key_for
from judges.protocols import PROTOCOLS
from selectkd_eval.errors import InputError, SetupError

KEY = "sk-a-secret-that-must-not-leak"
PROTOCOL = PROTOCOLS["selectkd"]
MESSAGES = PROTOCOL.messages("Q", "long answer", "short", "candidate-first")


def ask(url: str, cache: Path, n: int = 1, **changes: Any) -> list[Reply]:
    """The replies to n identical requests made at once."""
    settings = {"model": "judge", "base_url": url, "key": KEY, "protocol": PROTOCOL, **changes}

    async def go() -> list[Reply]:
        with Cache(cache) as store:
            async with Client(cache=store, **settings) as client:
                return list(await asyncio.gather(*(client.ask(MESSAGES) for _ in range(n))))

    return asyncio.run(go())


def test_a_reply_is_paid_once(tmp_path: Path) -> None:
    with serving() as server:
        first = ask(server.url, tmp_path / "c.sqlite")[0]
        again = ask(server.url, tmp_path / "c.sqlite")[0]
        assert len(server.requests) == 1
        assert server.requests[0]["temperature"] == 0.0 and server.requests[0]["max_tokens"] == 1024
    assert first.text == again.text == "[[A]]"
    assert (first.cached, again.cached) == (False, True)
    assert first.usage == {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105}
    assert first.model == "judge-2026-01-01" and first.fingerprint == "fp"


def test_the_same_request_at_the_same_time_is_paid_once(tmp_path: Path) -> None:
    with serving(delay_s=0.1) as server:
        assert len(ask(server.url, tmp_path / "c.sqlite", n=5)) == 5
        assert len(server.requests) == 1


def test_another_model_or_protocol_is_another_request(tmp_path: Path) -> None:
    with serving() as server:
        for changes in ({}, {"model": "other"}, {"protocol": PROTOCOLS["mtbench"]}):
            ask(server.url, tmp_path / "c.sqlite", **changes)
        assert len(server.requests) == 3
    assert request_key("s", "p", {}, 0) != request_key("s", "p", {}, 1)


def test_a_busy_server_is_obeyed(tmp_path: Path) -> None:
    with serving(script=["429"]) as server:
        assert ask(server.url, tmp_path / "c.sqlite")[0].text == "[[A]]"
        assert len(server.requests) == 2
        assert server.times[1] - server.times[0] >= 0.4  # its Retry-After


@pytest.mark.parametrize("trouble", ["500", "cut", "not json"])
def test_a_passing_trouble_is_asked_again(trouble: str, tmp_path: Path) -> None:
    with serving(script=[trouble]) as server:
        assert ask(server.url, tmp_path / "c.sqlite")[0].text == "[[A]]"
        assert len(server.requests) == 2


@pytest.mark.parametrize(("trouble", "says"), [("400", "answered 400"), ("not json", "no chat completion")])
def test_a_lasting_trouble_fails_one_call_and_is_not_cached(trouble: str, says: str, tmp_path: Path) -> None:
    with serving(always=trouble) as server:
        with pytest.raises(CallError, match=says) as caught:
            ask(server.url, tmp_path / "c.sqlite")
        server.always = ""
        assert ask(server.url, tmp_path / "c.sqlite")[0].text == "[[A]]"
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("trouble", ["401", "403", "404", "quota"])
def test_what_cannot_be_mended_is_asked_once(trouble: str, tmp_path: Path) -> None:
    with serving(always=trouble) as server:
        with pytest.raises(FatalError) as caught:
            ask(server.url, tmp_path / "c.sqlite")
        assert len(server.requests) == 1
    assert KEY not in str(caught.value)


def test_a_key_that_the_server_repeats_is_not_kept(tmp_path: Path) -> None:
    with serving(always="echo key") as server:
        reply = ask(server.url, tmp_path / "c.sqlite")[0]
    assert reply.text.startswith("your key is [key]")
    assert all(KEY.encode() not in file.read_bytes() for file in tmp_path.iterdir())


def test_a_remote_server_needs_a_key_and_a_local_one_does_not() -> None:
    with pytest.raises(SetupError, match="JUDGE_KEY is not set: export JUDGE_KEY="):
        key_for("", "JUDGE_KEY", {})
    with pytest.raises(SetupError, match=r"https://judge\.example"):
        key_for("https://judge.example/v1", "JUDGE_KEY", {"JUDGE_KEY": " "})
    assert key_for("http://localhost:8000/v1", "JUDGE_KEY", {}) == ""
    assert key_for("", "JUDGE_KEY", {"JUDGE_KEY": "k\n"}) == "k"


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/v1", "http://user:secret@x/v1", "http://x/v1?key=secret"])
def test_an_address_that_is_none_or_holds_a_secret_is_refused(url: str) -> None:
    with pytest.raises(InputError) as caught:
        checked_url(url)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_cache_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    path.write_text("these are my notes, not a database, and long enough to be looked at\n" * 40)
    before = path.read_bytes()
    with pytest.raises(InputError, match="no judge cache"):
        Cache(path)
    assert path.read_bytes() == before


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "c.sqlite").mkdir()
    with pytest.raises(SetupError, match="cannot be used"):
        Cache(tmp_path / "c.sqlite")


def test_two_caches_on_one_file_see_each_other(tmp_path: Path) -> None:
    with Cache(tmp_path / "c.sqlite") as one, Cache(tmp_path / "c.sqlite") as two:
        one.put("k", "m", 0, {"text": "first"}, 0.1)
        two.put("k", "m", 0, {"text": "second"}, 0.1)
        assert two.get("k") == {"text": "first"} and len(two) == 1
    with sqlite3.connect(tmp_path / "c.sqlite") as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    database.close()
