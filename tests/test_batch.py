"""The Batch API against a real server on loopback: the live judge's record, nothing paid for twice, nothing lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from batch_run import KEY, judged, options
from batch_server import BatchServer, batch_serving
from hypothesis import given
from hypothesis import strategies as st
from judge_server import serving
from judging import answer_record

from judges import by_batch
from judges.batch_files import BatchRequest, Limits, Replies, parts
from judges.batch_ledger import Entry, Ledger, new_name, room, tried_before
from selectkd_eval import records
from selectkd_eval.cli import main
from selectkd_eval.errors import InputError, SetupError

N = 12
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def rows(record: records.Record) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in record.rows}


def verdicts(record: records.Record) -> dict[str, str]:
    return {row["key"]: row["verdict"] for row in record.rows}


def paid_once(server: BatchServer, n: int = N) -> bool:
    bill = server.bill()
    return len(bill) == n and set(bill.values()) == {1}


def test_a_batch_gives_the_record_of_the_live_judge(tmp_path: Path) -> None:
    (tmp_path / "live").mkdir()
    with batch_serving(polls=2) as server, serving() as live:
        batch = judged(options(tmp_path, server.url), N)
        served = judged(options(tmp_path / "live", live.url), N, live=live.url)
        assert paid_once(server) and server.calls["POST /batches"] == 1
        assert server.calls["GET /batches/batch_N"] == 3
    assert batch.finished and rows(batch) == rows(served)
    assert list(verdicts(batch).values()).count("candidate") == N * 2 // 3  # the server prefers the longer answer


def test_an_unreadable_reply_is_asked_about_once_more_in_a_second_batch(tmp_path: Path) -> None:
    with batch_serving(lines={3: "no label"}) as server:
        record = judged(options(tmp_path, server.url), N)
        assert server.calls["POST /batches"] == 2 and paid_once(server, N + 1)
        assert len(server.bodies[-1]["messages"]) == len(server.bodies[0]["messages"]) + 2
    assert sorted(row["replies"] for row in record.rows) == [1] * (N - 1) + [2]
    assert set(verdicts(record).values()) == {"candidate", "baseline"}


def test_the_same_command_again_asks_nothing(tmp_path: Path) -> None:
    with batch_serving() as server:
        before = judged(options(tmp_path, server.url), N)
        before.path.unlink()
        calls = sum(server.calls.values())
        assert rows(judged(options(tmp_path, server.url), N)) == rows(before)
        assert sum(server.calls.values()) == calls


def test_without_waiting_it_is_handed_in_and_collected_later(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with batch_serving(polls=1, lines={0: "no label"}) as server:
        chosen = options(tmp_path, server.url, wait=False)
        record = judged(chosen, N)
        assert not record.finished and not record.rows
        assert "0 of 12 replies ready in 1 batch (batch_1)" in capsys.readouterr().out
        judged(chosen, N)
        assert server.calls["POST /batches"] == 1
        record = judged(chosen, N)  # the batch has ended; one reply had no verdict
        assert len(record.rows) == N - 1 and server.calls["POST /batches"] == 2
        assert "the same command collects the rest" in capsys.readouterr().out
        while not record.finished:
            record = judged(chosen, N)
        assert paid_once(server, N + 1)
    assert len(record.good) == N


@pytest.mark.parametrize("moment", [
    "before upload", "after upload", "before create", "after create", "polling", "downloading", "downloaded",
])  # fmt: skip
def test_a_run_that_is_killed_is_gone_on_with_and_nothing_is_paid_twice(moment: str, tmp_path: Path) -> None:
    line = [sys.executable, str(ROOT / "tests" / "batch_run.py"), str(tmp_path)]
    with batch_serving(hold_at=moment, lines={2: "no label"}, named=False) as server:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen([*line, server.url, str(N)], env=environment, stderr=subprocess.DEVNULL) as run:
            assert server.reached.wait(60) and run.poll() is None
            run.send_signal(signal.SIGKILL)
        assert run.returncode == -signal.SIGKILL
        server.hold_at = ""
        server.release.set()
        record = judged(options(tmp_path, server.url), N)
        assert paid_once(server, N + 1)
    assert record.finished and len(record.good) == N


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("trouble", ["429", "500", "cut before", "cut after"])
def test_a_batch_is_begun_once_whatever_the_connection_does(trouble: str, named: bool, tmp_path: Path) -> None:
    with batch_serving(creates=[trouble], named=named) as server:
        assert judged(options(tmp_path, server.url), N).finished
        assert len(server.batches) == 1 and paid_once(server)


def test_two_runs_at_once_share_their_batches(tmp_path: Path) -> None:
    line = [sys.executable, str(ROOT / "tests" / "batch_run.py")]
    with batch_serving(hold_at="before create", polls=3) as server:
        runs = []
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        for name in ("one", "two"):
            words = [*line, str(tmp_path), server.url, str(N), name]
            runs.append(subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL))
        assert server.reached.wait(60)
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("winrate-*.jsonl"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1)  # the other one is at the lock by now, or would be through it
        server.release.set()
        assert [run.wait(60) for run in runs] == [0, 0]
        assert paid_once(server) and len(server.batches) == 1
    for name in ("one", "two"):
        assert len(records.read(next(tmp_path.glob(f"winrate-{name}-*.jsonl"))).good) == N


def test_a_lost_ledger_is_no_reason_to_pay_again(tmp_path: Path) -> None:
    with batch_serving() as server:
        judged(options(tmp_path, server.url, wait=False), N)
        for file in (tmp_path / "judge-batches").iterdir():
            file.unlink()
        assert judged(options(tmp_path, server.url), N).finished
        assert len(server.batches) == 1 and paid_once(server)


def test_what_an_expired_batch_left_out_is_asked_for_again(tmp_path: Path) -> None:
    with batch_serving(ends=["expired", "expired"]) as server:
        record = judged(options(tmp_path, server.url), N)
        assert [batch["request_counts"]["completed"] for batch in server.batches.values()] == [6, 3, 3]
        assert paid_once(server)
    assert len(record.good) == N


def test_a_server_whose_batches_bring_nothing_is_not_asked_for_ever(tmp_path: Path) -> None:
    with batch_serving(ends=["expired"] * 9) as server:
        record = judged(options(tmp_path, server.url), 1)
        assert len(server.batches) == 2
    assert [(row["verdict"], row["reason"]) for row in record.rows] == [("failed", "not reached")]


@pytest.mark.parametrize("trouble", ["500", "429", "malformed", "missing", "no choices"])
def test_a_request_that_failed_is_asked_once_more(trouble: str, tmp_path: Path) -> None:
    with batch_serving(lines={4: trouble}) as server:
        record = judged(options(tmp_path, server.url), N)
        assert len(server.batches) == 2
        assert list(server.batches.values())[1]["request_counts"]["total"] == 1
    assert len(record.good) == N


def test_a_request_that_keeps_failing_is_a_failed_comparison(tmp_path: Path) -> None:
    with batch_serving(lines={0: "500"}, lasting=True) as server:
        record = judged(options(tmp_path, server.url), N)
        assert len(server.batches) == 2
        failed = [row for row in record.rows if row["verdict"] == "failed"]
        assert len(failed) == 1 and failed[0]["reason"] == "the server answered 500: no: the key was [key]"
        server.lines = {}
        # A failure is tried again by the same command, as every failed row is.
        assert len(judged(options(tmp_path, server.url), N).good) == N


def test_a_request_that_the_server_refuses_is_not_asked_again(tmp_path: Path) -> None:
    with batch_serving(lines={0: "400"}, lasting=True) as server:
        record = judged(options(tmp_path, server.url), N)
        assert len(server.batches) == 1
    assert len(record.failed) == 1 and len(record.good) == N - 1


def test_a_question_that_a_content_filter_turns_away_is_filtered_as_by_call(tmp_path: Path) -> None:
    with batch_serving(lines={0: "filter"}, lasting=True) as server:
        record = judged(options(tmp_path, server.url), N)
        assert len(server.batches) == 1
    assert not record.failed
    (row,) = (row for row in record.rows if row["verdict"] == "filtered")
    assert row["reason"].startswith("stopped by a content filter: no: the key was [key]")


def test_when_every_request_is_refused_for_good_the_run_stops(tmp_path: Path) -> None:
    with (
        batch_serving(lines=dict.fromkeys(range(N), "404")) as server,
        pytest.raises(SetupError, match="knows no such model"),
    ):
        judged(options(tmp_path, server.url), N)
    assert len(server.batches) == 1


@pytest.mark.parametrize(("end", "says"), [("cancelled", "was cancelled at the server; 6 replies of it are kept"),
                                           ("failed", "refused the batch batch_1")])  # fmt: skip
def test_a_batch_that_somebody_stopped_stops_the_run(end: str, says: str, tmp_path: Path) -> None:
    with batch_serving(ends=[end]) as server:
        with pytest.raises(SetupError, match=says) as caught:
            judged(options(tmp_path, server.url), N)
        assert KEY not in str(caught.value)
        assert judged(options(tmp_path, server.url), N).finished
        assert paid_once(server)


def test_replies_that_are_gone_are_asked_for_again(tmp_path: Path) -> None:
    with batch_serving(ends=["gone"]) as server:
        assert judged(options(tmp_path, server.url), N).finished
        assert set(server.bill().values()) == {2}


def test_many_requests_go_in_several_batches(tmp_path: Path) -> None:
    with batch_serving() as server:
        assert judged(options(tmp_path, server.url), N, limits=Limits(requests=5)).finished
        assert [batch["request_counts"]["total"] for batch in server.batches.values()] == [5, 5, 2]
        assert paid_once(server)


@pytest.mark.parametrize(("most", "n"), [(5, N), (1, 4)])
def test_where_few_may_wait_the_next_part_follows_when_the_last_is_done(most: int, n: int, tmp_path: Path) -> None:
    with batch_serving(most_waiting=most) as server:
        assert judged(options(tmp_path, server.url), n).finished
        assert paid_once(server, n)
        begun = [batch["request_counts"]["total"] for batch in server.batches.values() if batch["status"] != "failed"]
        assert max(begun) <= most and sum(begun) == n


def test_parts_beside_each_other_are_counted_when_the_server_is_full(tmp_path: Path) -> None:
    with batch_serving(most_waiting=8) as server:
        assert judged(options(tmp_path, server.url), N, limits=Limits(requests=4)).finished
        assert paid_once(server) and len(server.batches) == 4  # the third was turned away, and came again whole


def test_a_server_without_room_for_one_request_is_one_sentence(tmp_path: Path) -> None:
    with batch_serving(ends=["crowded"] * 9) as server:
        with pytest.raises(SetupError, match="no room for a batch of one request") as caught:
            judged(options(tmp_path, server.url), 4)
        assert [batch["status"] for batch in server.batches.values()] == ["failed"] * 3  # of 4, 2 and 1 requests
    assert KEY not in str(caught.value)


def test_a_refused_key_is_one_sentence(tmp_path: Path) -> None:
    with batch_serving(creates=["401"]) as server:
        with pytest.raises(SetupError, match="refused the key") as caught:
            judged(options(tmp_path, server.url), N)
        assert not server.batches and KEY not in str(caught.value)
        assert judged(options(tmp_path, server.url), N).finished


def test_a_server_without_a_batch_api_and_a_judge_without_one_are_refused(tmp_path: Path) -> None:
    with batch_serving(offered=False) as server, pytest.raises(SetupError, match="has no Batch API"):
        judged(options(tmp_path, server.url), N)
    chosen = options(tmp_path, server.url)
    chosen.judge_file.write_text('[served]\nbase_url = "http://localhost/v1"\n')
    with pytest.raises(InputError, match=r"none is known of 'served'.*batch_discount = 0\.5"):
        judged(chosen, N)


def test_a_server_that_is_not_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("judges.client.RETRIES", 0)  # the waiting between retries is the SDK's, and takes long
    with batch_serving() as server:
        judged(options(tmp_path, server.url, wait=False), 2)
    with pytest.raises(SetupError, match=f"no connection to {server.url}"):
        judged(options(tmp_path, server.url, wait=False), 2)


def test_a_network_that_is_away_for_a_while_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("judges.client.RETRIES", 0)
    with batch_serving(away={2, 3, 4}) as server:
        assert judged(options(tmp_path, server.url), N).finished
        assert paid_once(server) and server.calls["GET /batches/batch_N"] == 5


def test_what_could_cost_too_much_is_not_handed_in(tmp_path: Path) -> None:
    with batch_serving() as server:
        with pytest.raises(SetupError, match="--max-cost is US"):
            judged(options(tmp_path, server.url, max_cost=0.001), N)
        assert not server.files
        # 12 replies of at most 1,024 tokens at half of US$ 1 per million are less than a cent.
        assert judged(options(tmp_path, server.url, max_cost=0.01), N).finished


def test_no_key_on_the_disk_or_the_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with batch_serving(lines={0: "echo key", 1: "500", 2: "separator"}, lasting=True) as server:
        record = judged(options(tmp_path, server.url), N)
    printed = capsys.readouterr()
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) >= 4 and all(KEY.encode() not in file.read_bytes() for file in files)
    assert KEY not in printed.out + printed.err
    assert any("your key is [key]" in row["raw"] for row in record.rows)
    assert any("one\u2028two\x85three" in row["raw"] for row in record.rows)


def test_the_command_hands_in_collects_and_prints_as_the_live_one_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_batch, "POLL_S", 0.02)
    one = answer_record(tmp_path, "student", {f"p{i}": ["x" * (9 if i % 3 else 3)] for i in range(N)})
    two = answer_record(tmp_path, "base", {f"p{i}": ["y" * 6] for i in range(N)})
    with batch_serving() as server:
        file = options(tmp_path, server.url).judge_file
        line = ["winrate", "--judge", "served", "--judge-file", str(file), "--out", str(tmp_path), "--repeats", "2"]
        line += ["--candidate", str(one), "--baseline", str(two)]
        assert main([*line, "--batch", "--dry-run"]) == 0
        said = capsys.readouterr().out
        assert said.startswith(f"{2 * N} calls to served") and "with --batch" in said and not server.calls
        assert main([*line, "--batch", "--no-wait"]) == 0
        assert f"0 of {2 * N} replies ready in 1 batch (batch_1)" in capsys.readouterr().out
        path = next(tmp_path.glob("winrate-*.jsonl"))
        assert not records.read(path, unfinished_ok=True).finished
        assert main([*line, "--batch"]) == 0
        assert capsys.readouterr().out.startswith("win rate 66.67 % [") and paid_once(server, 2 * N)
        calls = sum(server.calls.values())
        path.unlink()
        assert main(line) == 0  # the live judge finds every reply in the cache
        assert sum(server.calls.values()) == calls
    record = records.read(path)
    assert len(record.good) == 2 * N and record.facts["judge"]["kind"] == "server"


def test_an_interrupted_wait_says_that_the_batch_goes_on(tmp_path: Path) -> None:
    line = [sys.executable, str(ROOT / "tests" / "batch_run.py"), str(tmp_path)]
    with batch_serving(hold_at="polling") as server:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen([*line, server.url, str(N)], env=environment, stderr=subprocess.PIPE, text=True) as run:
            assert server.reached.wait(60)
            run.send_signal(signal.SIGINT)
            error = run.communicate(timeout=30)[1]
        assert "batches that were handed in go on; the same command collects their replies" in error
        server.hold_at = ""
        server.release.set()
        assert judged(options(tmp_path, server.url), N).finished and paid_once(server)


def test_a_comparison_too_long_for_the_judge_fails_without_being_handed_in(tmp_path: Path) -> None:
    with batch_serving() as server:
        chosen = options(tmp_path, server.url)
        with chosen.judge_file.open("a") as file:
            file.write("context = 1100\n")  # 1,024 are the reply's
        record = judged(chosen, 2)
        assert not server.files
    assert {row["verdict"] for row in record.rows} == {"failed"} and "does not fit" in record.rows[0]["reason"]


def test_a_file_of_replies_is_read_line_by_line() -> None:
    found = Replies()
    found.read('{"custom_id": "a", "response": {"status_code": 200, "body": {"choices": [1]}}}\nnot json\n[]\n\n7\n')
    found.read('{"custom_id": "b", "response": null, "error": {"code": "batch_expired", "message": "late"}}')
    found.read('{"custom_id": "c", "response": {"status_code": 503, "body": {"error": {"message": "x"}}}}')
    assert list(found.bodies) == ["a"] and found.unread == 3
    assert {key: (refusal.status, refusal.code) for key, refusal in found.refused.items()} == {
        "b": (0, "batch_expired"),
        "c": (503, ""),
    }
    assert found.refused["c"].passing


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda some: (
        st.lists(some, max_size=3)
        | st.dictionaries(
            st.sampled_from(["custom_id", "response", "error", "status_code", "body", "choices", "message", "code"]),
            some,
            max_size=8,
        )
    ),
    max_leaves=20,
)


@given(st.lists(JSON | st.text(), max_size=5))
def test_no_file_of_replies_stops_the_reading(lines: list[Any]) -> None:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    found = Replies()
    found.read(text)
    whole = sum(bool(line.strip()) for line in text.split("\n"))
    assert found.unread + max(len(found.bodies), len(found.refused)) <= whole
    assert all("choices" in body for body in found.bodies.values())


def test_parts_keep_to_both_limits_and_lose_nothing() -> None:
    requests = [BatchRequest(str(i), {"text": "z" * (10 * i)}) for i in range(30)]
    refused: dict[str, str] = {}
    found = list(parts(requests, Limits(requests=7, size=900), refused))
    assert [request.key for part, _ in found for request in part] + sorted(refused, key=int) == [
        str(i) for i in range(30)
    ]
    assert all(len(part) <= 7 and len(content) <= 900 for part, content in found) and not refused
    list(parts(requests, Limits(size=200), refused))
    assert refused and all(int(name) > 10 for name in refused)


def entry(name: str, keys: str, **changes: Any) -> Entry:
    return Entry(digest=name, server="s", model="m", file="f", keys=list(keys), **changes)


def test_the_ledger_remembers_who_failed_before_and_how_much_there_was_room_for(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "b")
    one = entry("1", "abc", state="ended", status="completed", again=["a", "b"], made=1.0, ended=2.0)
    two = entry("2", "ab", state="ended", status="completed", failed={"a": "no"}, made=3.0, ended=4.0)
    for item in (two, one):
        ledger.save(item)
    assert ledger.entries("s", "m") == [one, two] and not ledger.entries("s", "other")
    assert tried_before([one, two]) == {"b"}
    assert new_name([], "s", "ab") == new_name([], "s", "ba") != new_name([], "s", "abc")
    first = new_name([], "s", "ab")
    assert new_name([entry(first, "ab")], "s", "ab") != first
    full = entry("3", "a" * 40, state="ended", status="failed", crowded=True, ended=5.0)
    assert room([one], 100) == (100, None)
    assert room([full], 100) == (20, 1)
    full.beside = 3
    assert room([full], 100) == (100, 3)


def test_a_damaged_ledger_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(InputError, match=r"x\.json is no batch of this program"):
        Ledger(tmp_path).entries("s", "m")
