"""Kept answers: no other model's, durable against SIGKILL, shared by processes; damaged, foreign and full files."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selectkd_eval.backends.answer_store import AnswerStore, answer_key
from selectkd_eval.backends.backend import Asked, Completion, Decoding
from selectkd_eval.errors import InputError, SetupError

GREEDY = Decoding(16, 0.0, 1.0, ("\n\n",))
SAMPLED = replace(GREEDY, temperature=0.8)
IDENTITY = {"weights": "a" * 64, "dtype": "float32", "versions": {"torch": "2.13.0"}}


def completion(text: str) -> Completion:
    return Completion(text, 3, "eos", False, 5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deeper" / "answers.sqlite"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"])),
    n_tokens=st.none() | st.integers(0, 10**9),
    finish=st.sampled_from(["eos", "stop", "length"]),
    cut=st.booleans(),
    n_prompt=st.none() | st.integers(0, 10**9),
)
def test_what_is_kept_comes_back(path: Path, text: str, n_tokens, finish, cut: bool, n_prompt) -> None:
    answer = Completion(text, n_tokens, finish, cut, n_prompt)
    key = answer_key(IDENTITY, Asked(repr(answer), 0, GREEDY))
    with AnswerStore(path) as store:
        store.put(key, answer)
        assert store.get(key) == answer
    with AnswerStore(path) as store:
        assert store.get(key) == answer


def test_everything_that_can_change_an_answer_is_in_its_key() -> None:
    asked = Asked("How many?", 7, SAMPLED)
    other = [
        (IDENTITY, asked._replace(prompt="How many? ")),
        (IDENTITY, asked._replace(seed=8)),
        (IDENTITY, asked._replace(decoding=GREEDY)),
        *((IDENTITY, asked._replace(decoding=d)) for d in (
            replace(SAMPLED, temperature=0.9),
            replace(SAMPLED, top_p=0.9),
            replace(SAMPLED, max_new_tokens=17),
            replace(SAMPLED, stops=()),
        )),
        ({**IDENTITY, "dtype": "bfloat16"}, asked),
        ({**IDENTITY, "weights": "b" * 64}, asked),
        ({**IDENTITY, "adapter": "c" * 64}, asked),
        ({**IDENTITY, "versions": {"torch": "2.14.0"}}, asked),
    ]  # fmt: skip
    keys = [answer_key(*parts) for parts in [(IDENTITY, asked), *other]]
    assert len(set(keys)) == len(keys)
    assert answer_key(dict(reversed(IDENTITY.items())), asked) == keys[0]


def test_a_greedy_answer_has_no_seed() -> None:
    assert answer_key(IDENTITY, Asked("a", 1, GREEDY)) == answer_key(IDENTITY, Asked("a", 2, GREEDY))


def test_the_first_answer_stays_and_failures_are_not_kept(path: Path) -> None:
    with AnswerStore(path) as store:
        store.put("a", completion("first"))
        store.put_all(
            [("a", completion("second")), ("b", completion("b")), ("c", Completion("", 0, "eos", False, error="!"))]
        )
        assert store.find(["a", "b", "c", "d"]) == {"a": completion("first"), "b": completion("b")}
        assert len(store) == 2


def test_many_keys_are_found_at_once(path: Path) -> None:
    with AnswerStore(path) as store:
        store.put_all((str(number), completion(str(number))) for number in range(1300))
        found = store.find([str(number) for number in range(0, 2600, 2)])
        assert found == {str(number): completion(str(number)) for number in range(0, 1300, 2)}
        assert store.find([]) == {}


WRITER = """
import sys
from pathlib import Path
from selectkd_eval.backends.answer_store import AnswerStore
from selectkd_eval.backends.backend import Completion
with AnswerStore(Path(sys.argv[1])) as store:
    for number in range(int(sys.argv[3])):
        store.put(f"{sys.argv[2]}{number}", Completion(str(number), 1, "eos", False))
        store.put(f"common{number}", Completion(sys.argv[2], 1, "eos", False))
        print(number, flush=True)
"""


def writer(path: Path, name: str, rows: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), name, str(rows)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_share_one_new_file(path: Path) -> None:
    both = [writer(path, name, 200) for name in "xy"]
    for process in both:
        process.communicate(timeout=60)
    assert [process.returncode for process in both] == [0, 0]
    with AnswerStore(path) as store:
        assert len(store) == 3 * 200
        assert {store.get(f"common{number}").text for number in range(200)} <= {"x", "y"}
        assert all(store.get(f"{name}{number}") for name in "xy" for number in range(200))


def test_what_was_put_survives_sigkill(path: Path) -> None:
    for name in "abc":
        process = writer(path, name, 10**9)
        seen = [process.stdout.readline() for _ in range(20)]
        process.send_signal(signal.SIGKILL)
        seen += process.communicate(timeout=60)[0].splitlines(keepends=True)
        last = max(int(line) for line in seen if line.endswith("\n"))
        assert last >= 19
        with AnswerStore(path) as store:
            assert len(store.find([f"{name}{number}" for number in range(last + 1)])) == last + 1


@pytest.mark.parametrize("content", [b"no database at all, only text\n" * 300, b"SQLite format 3\x00" + b"\x07" * 5000])
def test_a_damaged_file_is_one_sentence(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"is no answer store .*--answers"):
        AnswerStore(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("table", ["replies (key TEXT, model TEXT)", "answers (key TEXT, words TEXT)"])
def test_a_file_of_something_else_is_left_alone(path: Path, table: str) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as database:
        database.execute(f"CREATE TABLE {table}")
    database.close()
    before = path.read_bytes()
    with pytest.raises(InputError, match="something else"):
        AnswerStore(path)
    assert path.read_bytes() == before


def test_an_answer_that_cannot_be_read_is_one_sentence(path: Path) -> None:
    with AnswerStore(path) as store:
        store.put("a", completion("a"))
    with sqlite3.connect(path) as database:
        database.execute("UPDATE answers SET completion = ?", (json.dumps({"text": "a", "words": 1}),))
    database.close()
    with AnswerStore(path) as store, pytest.raises(InputError, match="cannot be read"):
        store.get("a")


def test_a_directory_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--answers"):
        AnswerStore(tmp_path / "file" / "answers.sqlite")
    with pytest.raises(SetupError, match="cannot be used"):
        AnswerStore(tmp_path)


def test_a_full_disk_is_one_sentence_and_costs_nothing_kept(path: Path) -> None:
    """The file may not grow beyond 200 KB: the kernel refuses, as a full disk does."""
    code = f"""
import resource
from pathlib import Path
from selectkd_eval.backends.answer_store import AnswerStore
from selectkd_eval.backends.backend import Completion
from selectkd_eval.errors import SetupError
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
with AnswerStore(Path({str(path)!r})) as store:
    for number in range(1000):
        try:
            store.put(str(number), Completion("x" * 5000, 1, "eos", False))
        except SetupError as error:
            print(number, error)
            break
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    number, _, sentence = done.stdout.partition(" ")
    assert "space" in sentence
    assert int(number) > 10
    with AnswerStore(path) as store:
        assert len(store.find([str(n) for n in range(int(number))])) == int(number)
        store.put("more", completion("there is room again"))
