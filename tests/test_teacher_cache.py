"""Hidden rows on disk: what was stored comes back to the bit, and no kill, full disk or other run can spoil it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from selectkd_eval.batches import Example
from selectkd_eval.errors import InputError, SetupError
from selectkd_eval.teacher_cache import TeacherCache

WIDTH = 6


def texts(count: int = 12) -> list[Example]:
    """Text i has i % 4 response tokens after two of the prompt; every fourth has none."""
    return [Example([1, i + 3, *range(i % 4)], [False, False] + [True] * (i % 4), f"{i:016x}", i) for i in range(count)]


def rows_of(index: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(index % 4, WIDTH, generator=torch.Generator().manual_seed(index)).to(dtype)


def opened(root: Path, **changes: Any) -> TeacherCache:
    asked = {"fingerprint": "teacher", "examples": texts(), "width": WIDTH, "dtype": torch.float32} | changes
    return TeacherCache.open(root, **asked)


def filled(root: Path) -> TeacherCache:
    cache = opened(root)
    for index in range(12):
        cache.store(index, rows_of(index))
    cache.close()
    return cache


def child(program: str, root: Path, **popen: Any) -> subprocess.Popen[str]:
    """A process of its own that stores the same rows: `rows_of` and `opened` above, then `program`."""
    start = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    start += (
        f"import os, signal, torch; torch.set_num_threads(1)\nfrom pathlib import Path; root = Path({str(root)!r})\n"
    )
    start += "from test_teacher_cache import *\n"
    return subprocess.Popen(
        [sys.executable, "-c", start + program],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **popen,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_stored_rows_come_back_to_the_bit_in_the_order_asked(tmp_path: Path, dtype: torch.dtype) -> None:
    cache = opened(tmp_path, dtype=dtype)
    for index in (7, 3, 6):
        cache.store(index, rows_of(index, dtype))
    wanted = torch.cat([rows_of(index, dtype) for index in (3, 7, 6, 3)])
    assert torch.equal(cache.rows([3, 7, 6, 3]), wanted)
    cache.close()
    assert torch.equal(opened(tmp_path, dtype=dtype).rows([3, 7, 6, 3]), wanted)


def test_special_numbers_keep_their_bits(tmp_path: Path) -> None:
    bits = torch.tensor([0x7FC1, 0x7F80, -0x8000, 1, 0x0080, -1], dtype=torch.int16)  # NaN, inf, -0, subnormal ...
    cache = opened(tmp_path, dtype=torch.bfloat16)
    cache.store(1, bits.view(torch.bfloat16)[None])
    assert torch.equal(cache.rows([1]).view(torch.int16)[0], bits)


def test_it_is_complete_once_every_text_with_a_response_is_there(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    with_response = [index for index in range(12) if index % 4]
    for index in with_response[:-1]:
        cache.store(index, rows_of(index))
    assert not cache.complete and not cache.has(with_response[-1]) and cache.has(0)
    with pytest.raises(KeyError, match=f"text {with_response[-1]} has no rows"):
        cache.rows([with_response[-1]])
    cache.store(with_response[-1], rows_of(with_response[-1]))
    assert cache.complete
    assert cache.rows([0, 4]).shape == (0, WIDTH)


def test_size_is_reserved_and_printed_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cache = opened(tmp_path)
    tokens = sum(i % 4 for i in range(12))
    printed = capfd.readouterr()
    assert f"({tokens} tokens of 12 texts) in {cache.directory}" in printed.err and printed.out == ""
    assert cache.bytes == tokens * WIDTH * 4 == (cache.directory / "rows.bin").stat().st_size
    assert (cache.directory / "rows.bin").stat().st_blocks * 512 >= cache.bytes
    opened(tmp_path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": "another"},
        {"dtype": torch.bfloat16},
        {"width": WIDTH + 1},
        {"examples": texts(11)},
        {"examples": texts()[::-1]},
        {"examples": [*texts()[:-1], Example([1, 14, 0, 1, 3], [False, False, True, True, True], f"{11:016x}", 11)]},
        {"examples": [*texts()[:-1], Example([1, 14, 0, 1, 2], [False, True, False, True, True], f"{11:016x}", 11)]},
    ],
    ids=["teacher", "dtype", "width", "fewer", "order", "one token", "one mask"],
)
def test_whatever_decides_the_rows_decides_the_directory(tmp_path: Path, change: dict[str, Any]) -> None:
    assert opened(tmp_path, **change).directory != opened(tmp_path).directory
    assert opened(tmp_path).directory == opened(tmp_path).directory


def test_rows_of_another_shape_or_dtype_are_refused(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    for wrong in (rows_of(2), rows_of(3, torch.bfloat16), rows_of(3)[:, :-1]):
        with pytest.raises(ValueError, match="text 3 takes rows"):
            cache.store(3, wrong)
    assert not cache.has(3)


def test_a_mark_is_written_only_after_its_rows_are_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = opened(tmp_path)
    seen: list[tuple[str, int]] = []
    real = os.fsync

    def watched(descriptor: int) -> None:
        real(descriptor)
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        seen.append((name, sum((cache.directory / "done.bin").read_bytes())))

    monkeypatch.setattr("os.fsync", watched)
    without_rows = 3
    for index in (1, 2, 3):
        cache.store(index, rows_of(index))
    assert seen == []
    cache.flush()
    assert seen == [("rows.bin", without_rows), ("done.bin", without_rows + 3)]
    cache.flush()
    assert len(seen) == 2


def test_enough_stored_text_is_flushed_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selectkd_eval.teacher_cache.FLUSH_BYTES", 5 * WIDTH * 4)
    writer, reader = opened(tmp_path), opened(tmp_path)
    writer.store(2, rows_of(2))
    writer.store(1, rows_of(1))
    assert not reader.has(2) and not reader.has(1)
    writer.store(3, rows_of(3))
    assert [reader.has(i) for i in (1, 2, 3, 5)] == [True, True, True, False]


def test_a_process_killed_at_any_moment_leaves_no_mark_without_its_rows(tmp_path: Path) -> None:
    program = """
examples = texts(4000)
cache = opened(root, examples=examples)
for index in range(4000):
    cache.store(index, rows_of(index))
    if index % 7 == 0:
        cache.flush()
        print(index, flush=True)
"""
    process = child(program, tmp_path)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 70:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    cache = opened(tmp_path, examples=texts(4000))
    there = [index for index in range(4000) if index % 4 and cache.has(index)]
    assert set(there) >= {index for index in range(70) if index % 4}
    assert len(there) < 3000
    assert torch.equal(cache.rows(there), torch.cat([rows_of(index) for index in there]))
    for index in range(4000):
        if not cache.has(index):
            cache.store(index, rows_of(index))
    cache.close()
    assert torch.equal(
        opened(tmp_path, examples=texts(4000)).rows(range(4000)), torch.cat([*map(rows_of, range(4000))])
    )


def test_rows_stored_but_not_flushed_before_a_kill_are_asked_for_again(tmp_path: Path) -> None:
    program = """
cache = opened(root)
for index in (1, 2): cache.store(index, rows_of(index))
cache.flush()
cache.store(3, rows_of(3))
os.kill(os.getpid(), signal.SIGKILL)
"""
    process = child(program, tmp_path)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    assert [opened(tmp_path).has(index) for index in (1, 2, 3)] == [True, True, False]


def test_two_processes_fill_one_cache(tmp_path: Path) -> None:
    program = """
input()  # both begin together, with the same new directory
cache = opened(root)
for index in range(int(os.environ["FIRST"]), 12, 2):
    cache.store(index, rows_of(index))
cache.close()
"""
    processes = [child(program, tmp_path, env=os.environ | {"FIRST": first}) for first in "01"]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert sum("the teacher cache takes" in text for text in errors) == 1
    cache = opened(tmp_path)
    assert cache.complete
    assert torch.equal(cache.rows(range(12)), torch.cat([rows_of(index) for index in range(12)]))


def test_one_process_prepares_the_directory_while_the_others_wait(tmp_path: Path) -> None:
    directory = opened(tmp_path).directory
    (directory / "about.json").unlink()
    waiting = threading.Thread(target=opened, args=(tmp_path,))
    with (directory / "lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        waiting.start()
        waiting.join(timeout=0.3)
        assert waiting.is_alive() and not (directory / "about.json").exists()
    waiting.join(timeout=30)
    assert (directory / "about.json").exists()


def test_a_full_cache_is_read_where_nothing_can_be_written(tmp_path: Path) -> None:
    directory = filled(tmp_path).directory
    before = {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}
    (directory / "lock").unlink()
    cache = opened(tmp_path)
    assert cache.complete
    assert torch.equal(cache.rows([5]), rows_of(5))
    before.pop("lock")
    assert {path.name: path.stat().st_mtime_ns for path in directory.iterdir()} == before


def test_a_request_larger_than_the_disk_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"takes .* GB \(18 tokens of 12 texts\).*room for .*larger disk, or leave it"):
        opened(tmp_path, width=2**46)
    assert not list(tmp_path.rglob("*.bin"))


def test_a_disk_that_fills_up_is_one_sentence(tmp_path: Path) -> None:
    # A limit on the size of files stands in for a quota: it is found when the space is taken, or still later.
    program = """
import resource
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
limited = (100, unlimited[1])
resource.setrlimit(resource.RLIMIT_FSIZE, limited)
try:
    opened(root)
except SetupError as error:
    print(error, len(list(root.rglob("*.bin"))))
resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
cache = opened(root)
cache.store(1, rows_of(1))
resource.setrlimit(resource.RLIMIT_FSIZE, limited)
try:
    cache.store(11, rows_of(11))
except SetupError as error:
    print(error)
cache.close()
"""
    printed, errors = child(program, tmp_path).communicate()
    reserving, writing = printed.splitlines() or ["", errors]
    assert "cannot hold it (File too large): free some space" in reserving
    assert reserving.endswith(" 0")
    assert "no space left while writing the teacher cache" in writing
    assert [opened(tmp_path).has(index) for index in (1, 11)] == [True, False]


def test_a_sparse_copy_gets_its_space_back_before_it_is_filled(tmp_path: Path) -> None:
    examples = texts(4000)
    cache = opened(tmp_path, examples=examples)
    cache.store(3, rows_of(3))
    cache.flush()
    rows = cache.directory / "rows.bin"
    content = rows.read_bytes()
    with rows.open("wb") as file:
        file.write(content[:4096])
        file.truncate(len(content))
    assert rows.stat().st_blocks * 512 < len(content)
    again = opened(tmp_path, examples=examples)
    assert rows.stat().st_blocks * 512 >= len(content)
    assert torch.equal(again.rows([3]), rows_of(3))


@pytest.mark.parametrize("cut", ["rows.bin", "done.bin", "about.json"])
def test_a_creation_that_was_cut_off_begins_again(tmp_path: Path, cut: str) -> None:
    directory = opened(tmp_path).directory
    (directory / "about.json").unlink()
    (directory / cut).unlink(missing_ok=True)
    if cut == "about.json":
        (directory / "rows.bin").write_bytes(b"longer than it should be" * 1000)
        (directory / "done.bin").write_bytes(b"\x01" * 12)
    assert not opened(tmp_path).has(1)
    assert filled(tmp_path).complete


def test_damage_is_one_sentence_that_says_what_to_delete(tmp_path: Path) -> None:
    directory = filled(tmp_path).directory
    about = json.loads((directory / "about.json").read_text())
    damages = {
        "about.json": [b"", b"{", b"\xff\xfe", json.dumps(about | {"teacher": "other"}).encode()],
        "rows.bin": [b"", (directory / "rows.bin").read_bytes()[:-1]],
        "done.bin": [b"\x01" * 11, b"\x01" * 11 + b"\x07"],
    }
    for name, contents in damages.items():
        sound = (directory / name).read_bytes()
        for content in contents:
            (directory / name).write_bytes(content)
            with pytest.raises(InputError, match=f"{directory} is damaged .*: delete it"):
                opened(tmp_path)
        (directory / name).unlink()
        if name != "about.json":
            with pytest.raises(InputError, match=f"is damaged \\({name} has 0 bytes"):
                opened(tmp_path)
        (directory / name).write_bytes(sound)
    assert opened(tmp_path).complete


def test_a_place_that_cannot_hold_a_directory_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot use the teacher cache .*give another --teacher-cache"):
        opened(tmp_path / "file")


def test_text_without_any_response_has_no_cache(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none of the 1 training texts has a response token"):
        opened(tmp_path, examples=[Example([1, 2], [True, False], "0" * 16, 0)])


def test_the_size_of_a_small_cache_is_told_in_megabytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = opened(tmp_path, width=2**14).bytes
    assert 1e5 < size < 1e8
    assert f"takes {size / 1e6:.2f} MB (18 tokens of 12 texts)" in capsys.readouterr().err
