"""The sandbox's pure parts: how an end becomes a word, what is kept of output, messages, the emptied directory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from selectkd_eval.sandbox import slot
from selectkd_eval.sandbox.ends import Capture, judge
from selectkd_eval.sandbox.program import PLUS_SECONDS, TESTS_SECONDS, Limits
from selectkd_eval.sandbox.wire import Frames, pack


def test_the_first_and_the_last_bytes(tmp_path: Path) -> None:
    capture = Capture(4)
    read, write = os.pipe2(os.O_NONBLOCK)
    for chunk in (b"ab", b"cdef", b"g" * 10, b"hi"):
        os.write(write, chunk)
        assert capture.drain(read)
    assert not capture.drain(read)
    os.close(write)
    assert not capture.drain(read)
    os.close(read)
    assert capture.start() == b"abcd"
    assert capture.text() == "abcd\n[... 10 bytes left out ...]\ngghi"


def end(status: int = 0, cpu: float = 0.1, killed: str = "", peak: int = 0) -> dict[str, Any]:
    return {"status": status, "cpu": cpu, "cpu_limit": 1.0, "killed": killed, "peak_bytes": peak}


@pytest.mark.parametrize(
    ("lines", "ends", "word", "detail"),
    [
        (b'{"nonce": "n", "word": "pass", "detail": ""}\n', [end(9, killed="end"), end()], "pass", ""),
        (b'{"nonce": "x", "word": "pass", "detail": ""}\n', [end(), end()], "crash", "exit status 0"),
        (b'{"nonce": "n", "word": "pass", "detail": ""}', [end(), end()], "crash", "exit status 0"),
        (b'{"nonce": "n", "word": "won"}\n[]\nx\n', [end(256), end()], "crash", "exit status 1"),
        (b'{"nonce": "n", "word": "pass", "detail": ""}\n', [end(9, cpu=1.1, killed="end"), end()], "timeout", "1 s"),
        (b'{"nonce": "n", "word": "crash", "detail": ""}\n', [end(11), end()], "crash", "SIGSEGV"),
        (b"", [end(9, cpu=0.995), end()], "timeout", "1 s of CPU"),
        (b"", [end(9, peak=90), end()], "memory", "kernel"),
        (b"", [end(9, peak=10), end()], "crash", "SIGKILL"),
        (b"", [end(31), end()], "forbidden", "architecture"),
        (b"", [end(9, killed="wall"), end(9, killed="wall")], "timeout", "3 s of waiting"),
        (b"", [end(9, killed="end"), end()], "crash", "SIGKILL"),
        (b"", [end(9, killed="end"), end(256)], "crash", "without a verdict (exit status 1)"),
        (b"", [end(9, killed="files"), end(9, killed="files")], "memory", "files"),
        (b"", [end(9, killed="end"), end(9, cpu=1.1, killed="cpu")], "timeout", "the tests took more than 1 s"),
        (b"", [end(0), end(9, cpu=1.0)], "timeout", "the tests took more than 1 s"),  # it left when they had gone
        (b"", [end(256), end(9, cpu=1.0)], "crash", "exit status 1"),
        (b'{"nonce": "n", "note": "base passed"}\n', [end(11), end()], "crash", "base passed; SIGSEGV"),
    ],
)
def test_ends_are_judged(lines: bytes, ends: list[dict[str, Any]], word: str, detail: str) -> None:
    limits = Limits(cpu_seconds=1, memory_bytes=100)
    found = judge(lines, "n", dict(zip(("candidate", "tester"), ends, strict=True)), limits)
    assert found[0] == word
    assert detail in found[1]


def test_messages_survive_any_cut() -> None:
    messages = [{"a": "\ud800é" * 10}, {}, {"b": list(range(50))}]
    data = b"".join(map(pack, messages))
    for size in (1, 3, 7, 1000):
        frames = Frames()
        found = [m for at in range(0, len(data), size) for m in frames.feed(data[at : at + size])]
        assert found == messages


def test_emptying_is_not_stopped_by_what_lies_there(tmp_path: Path) -> None:
    room = slot.Slot(str(tmp_path))
    outside = tmp_path / "outside"
    outside.write_text("kept")
    here = Path(room.path)
    (here / "link").symlink_to(outside)
    (here / "up").symlink_to(tmp_path)
    os.mkfifo(here / "fifo")
    for name in ("a", "b", ".moved-1"):
        (here / name / "x" / "y" / "z").mkdir(parents=True)
        (here / name / "x" / "y" / "z" / "file").write_text("")
    place = os.open(here, os.O_RDONLY)
    for _ in range(3000):  # far beyond the longest path and any recursion limit
        os.mkdir("deep", dir_fd=place)
        inner = os.open("deep", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
    os.close(place)
    (here / "shut").mkdir(0)
    room.empty()
    assert not list(here.iterdir())
    assert outside.read_text() == "kept"
    assert not room.overfull()
    for i in range(slot.MOST_FILES + 1):
        os.close(os.open(here / str(i), os.O_CREAT, 0))
    assert room.overfull()
    room.empty()


def test_no_program_takes_longer_than_it_may() -> None:
    """What the client waits for is never less than what the fork-server lets pass."""
    limits = Limits(cpu_seconds=0.5, wall_factor=2.0)
    assert limits.longest_wall(plus=False) == limits.wall_seconds(0.5 + TESTS_SECONDS)
    assert limits.longest_wall(plus=True) == limits.wall_seconds(2 * PLUS_SECONDS)
    assert Limits(cpu_seconds=100.0).longest_wall(plus=True) == Limits(cpu_seconds=100.0).wall_seconds(200.0)
