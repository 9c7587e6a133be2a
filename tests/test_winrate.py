"""`winrate` from the command line to the record: judged, resumed after a kill, stopped by a refusal."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from judge_server import serving
from judging import answer_record
from rewriting import rewrite

from judges import likelihood
from selectkd_eval import records, win_rates
from selectkd_eval.cli import main
from selectkd_eval.verbs import AnswerOptions

KEY = "sk-a-secret-that-must-not-leak"
N = 24


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def two_records(directory: Path, n: int = N) -> list[str]:
    """Candidate longer on two thirds of the prompts, shorter on the others, equal in length never."""
    one = {f"prompt {i}": ["x" * (9 if i % 3 else 3)] for i in range(n)}
    two = {f"prompt {i}": ["y" * 6] for i in range(n)}
    paths = answer_record(directory, "student", one), answer_record(directory, "base", two)
    return ["--candidate", str(paths[0]), "--baseline", str(paths[1])]


def judged(directory: Path) -> records.Record:
    return records.read(next(directory.glob("winrate-*.jsonl")))


def words(record: records.Record) -> dict[str, str]:
    return {row["key"]: row["verdict"] for row in record.rows}


def command(out: Path, url: str, *more: str) -> list[str]:
    return ["winrate", "--judge", "served", "--base-url", url, "--out", str(out), *more]


@pytest.mark.parametrize(("protocol", "calls"), [("selectkd", N), ("distillm2", 2 * N), ("mtbench", 2 * N)])
def test_a_served_judge_is_asked_once_per_shown_order(
    protocol: str, calls: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = two_records(tmp_path)
    with serving() as server:
        assert main(command(tmp_path, server.url, *sides, "--protocol", protocol)) == 0
        assert len(server.requests) == calls and server.most_in_flight <= 8
        assert main(command(tmp_path, server.url, *sides, "--protocol", protocol)) == 0
        assert len(server.requests) == calls
    record = judged(tmp_path)
    # The server prefers the longer answer: 16 wins of 24, whatever the order and the tie rule.
    assert win_rates.win_rate(record).value == pytest.approx(2 / 3)
    assert record.facts["protocol"]["name"] == protocol and record.facts["judge"]["kind"] == "server"
    printed = capsys.readouterr()
    assert printed.out.startswith("win rate 66.67 % [") and "student over base" in printed.out
    assert "shown first" in printed.out and "0 unreadable, 0 failed" in printed.out
    assert not [line for line in printed.err.splitlines() if "win rate" in line]


def test_identical_and_empty_answers_are_settled_without_a_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = answer_record(tmp_path, "one", {"p": [" same"], "q": [""], "r": ["longer"]})
    two = answer_record(tmp_path, "two", {"p": ["same"], "q": ["text"], "r": ["short"]})
    with serving() as server:
        assert main(command(tmp_path, server.url, "--candidate", str(one), "--baseline", str(two))) == 0
        assert len(server.requests) == 1
    out = capsys.readouterr().out
    assert "1 won, 1 lost, 1 tied" in out
    assert "1 empty candidate answer, 1 identical answers" in out


def test_an_unreadable_reply_is_asked_about_once_more_and_then_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = two_records(tmp_path)
    with serving(script=["no label"]) as server:
        assert main(command(tmp_path / "a", server.url, *sides, "--concurrency", "1")) == 0
        assert len(server.requests) == N + 1
        assert len(server.requests[1]["messages"]) == len(server.requests[0]["messages"]) + 2
    with serving(script=["never a label", "never a label"]) as server:
        assert main(command(tmp_path / "b", server.url, *sides, "--concurrency", "1")) == 0
        calls = len(server.requests)
        assert calls == N + 1
        assert main(command(tmp_path / "b", server.url, *sides)) == 0
        assert len(server.requests) == calls  # it was paid for; asking again would be paying again
    assert win_rates.verdict_counts(judged(tmp_path / "a").rows)["unreadable"] == 0
    record = judged(tmp_path / "b")
    assert win_rates.verdict_counts(record.rows)["unreadable"] == 1
    low, high = win_rates.win_rate_bounds(record)
    assert high - low == pytest.approx(1 / N)
    assert f"bounds       {low * 100:.2f} % if the 1 without" in capsys.readouterr().out


def test_a_failed_call_is_not_an_answer_and_is_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sides = two_records(tmp_path)
    with serving(script=["400"]) as server:
        assert main(command(tmp_path, server.url, *sides, "--concurrency", "1")) == 0
        record = judged(tmp_path)
        assert win_rates.verdict_counts(record.rows)["failed"] == 1 == len(record.failed)
        assert "1 failed: the same command tries them again" in capsys.readouterr().out
        assert main(command(tmp_path, server.url, *sides)) == 0
        assert len(server.requests) == N + 1
    assert not judged(tmp_path).failed
    assert sum(server.answered.values()) == N


@pytest.mark.parametrize("trouble", ["401", "quota"])
def test_a_refusal_stops_at_once_and_keeps_what_was_judged(
    trouble: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = two_records(tmp_path)
    with serving(script=[""] * 10, always=trouble) as server:
        assert main(command(tmp_path, server.url, *sides, "--concurrency", "2")) == 2
        assert len(server.requests) <= 12
        err = capsys.readouterr().err
        assert "10 comparisons are kept" in err and KEY not in err
        sentence = [line for line in err.splitlines() if line.startswith("selectkd-eval:")]
        assert len(sentence) == 1
        server.always = ""
        assert main(command(tmp_path, server.url, *sides)) == 0
    assert sum(server.answered.values()) == N == len(judged(tmp_path).rows)


def test_the_key_is_nowhere_on_the_disk_or_the_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sides = two_records(tmp_path)
    with serving(script=["500", "echo key", "400"], always="echo key") as server:
        assert main(command(tmp_path, server.url, *sides)) == 0
    printed = capsys.readouterr()
    assert KEY not in printed.out + printed.err
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert any(file.name.startswith("judge-cache.sqlite") for file in files)
    assert all(KEY.encode() not in file.read_bytes() for file in files)


def test_a_killed_run_resumes_without_paying_twice(tmp_path: Path) -> None:
    sides = two_records(tmp_path, n=60)
    workers = 3
    with serving(delay_s=0.02) as server:
        line = [sys.executable, "-m", "selectkd_eval", *command(tmp_path / "a", server.url, *sides)]
        line += ["--concurrency", str(workers)]
        environment = {**os.environ, "OPENAI_API_KEY": KEY}
        with subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
            deadline = time.monotonic() + 60
            while sum(server.answered.values()) < 20 and run.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
            run.send_signal(signal.SIGKILL)
        assert run.returncode == -signal.SIGKILL
        with next((tmp_path / "a").glob("winrate-*.jsonl")).open("a") as file:
            file.write('{"key":"half a li')  # what a kill in the middle of a write leaves
        before = next((tmp_path / "a").glob("winrate-*.jsonl")).read_text().splitlines()[1:-1]
        server.delay_s = 0
        assert main(command(tmp_path / "a", server.url, *sides, "--concurrency", str(workers))) == 0
        # Only requests in flight at the kill may have been answered to nobody and asked again.
        assert sum(server.answered.values()) <= 60 + workers and len(server.answered) == 60
        assert main(command(tmp_path / "b", server.url, *sides)) == 0
    resumed = judged(tmp_path / "a")
    assert words(resumed) == words(judged(tmp_path / "b"))
    assert len(before) >= 10
    written = resumed.path.read_text().splitlines()
    assert written[1 : 1 + len(before)] == before and len(written) == 60 + 2


def test_a_lost_record_costs_nothing_while_the_cache_is_there(tmp_path: Path) -> None:
    sides = two_records(tmp_path)
    with serving() as server:
        assert main(command(tmp_path, server.url, *sides)) == 0
        before = words(judged(tmp_path))
        judged(tmp_path).path.unlink()
        assert main(command(tmp_path, server.url, *sides)) == 0
        assert len(server.requests) == N
    assert words(judged(tmp_path)) == before


def test_judging_loads_torch_and_openai_only_when_it_needs_them() -> None:
    code = "import sys, judges.winrate; print(sorted({'torch', 'openai', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_server_that_is_not_there_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("judges.client.RETRIES", 0)  # the waiting between retries is the SDK's, and takes long
    with serving() as server:
        url = server.url
    assert main(command(tmp_path, url, *two_records(tmp_path))) == 2
    assert f"no connection to {url}" in capsys.readouterr().err


def test_a_judge_without_a_key_says_what_to_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    assert main(["winrate", "--judge", "gpt-4o", "--out", str(tmp_path)]) == 2
    assert "export OPENAI_API_KEY=" in capsys.readouterr().err


def test_without_answers_the_command_that_makes_them_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["winrate", "--judge", "gpt-4o", "--out", str(tmp_path)]) == 2
    assert "selectkd-eval answer --model" in capsys.readouterr().err


def test_the_bare_form_takes_the_newest_answers_and_their_own_references(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"p{i}", "answer": "ref"}) + "\n" for i in range(4)))
    old = answer_record(tmp_path, "old", {"other": ["x"]})
    os.utime(old, (1, 1))
    answer_record(tmp_path, "new", {f"p{i}": ["longer text"] for i in range(3)}, prompts=str(prompts))
    with serving() as server:
        assert main(command(tmp_path, server.url)) == 0
    record = judged(tmp_path)
    assert record.facts["candidate"]["name"] == "new" and record.facts["baseline"]["name"] == "prompts.jsonl"
    assert record.facts["generation"] == {"candidate": {"temperature": 0.8}, "baseline": None}
    assert len(record.rows) == 3 and Path(record.options["candidate"]).name.startswith("answer-new")


def test_answers_that_changed_are_not_mixed_into_an_old_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = two_records(tmp_path)
    with serving() as server:
        assert main(command(tmp_path, server.url, *sides)) == 0
        path = Path(sides[1])
        rewrite(path, path.read_text().replace("xxx", "xxz"))
        assert main(command(tmp_path, server.url, *sides)) == 2
    assert "candidate has changed since" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--judge", "replay:"], "names no file"),
        (["--judge", "likelihood:"], "names no model"),
        (["--judge", "hf:x", "--base-url", "http://x/v1"], "--base-url is for a served judge"),
        (["--judge", "x", "--protocol", "selectk"], "did you mean 'selectkd'"),
        (["--judge", "x", "--concurrency", "0"], "--concurrency must be at least 1"),
        (["--judge", "x", "--base-url", "nowhere"], "is no address"),
    ],
)
def test_wrong_options_are_one_sentence(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["winrate", "--out", str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_the_denominator_tells_judged_prompts_from_decided_ones(
    tiny_pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = answer_record(tmp_path, "mine", {"a": ["the red dog"], "b": ["same"], "c": ["same"]})
    theirs = answer_record(tmp_path, "theirs", {"a": ["ball sees"], "b": ["same"], "c": ["same"]})
    words = ["winrate", "--candidate", str(mine), "--baseline", str(theirs), "--tie-band", "0"]
    assert main([*words, "--judge", f"likelihood:{tiny_pair.teacher}", "--out", str(tmp_path)]) == 0
    assert "1 counted on 1 prompt, from 3 judgements on 3 prompts" in capsys.readouterr().out


def test_the_likelihood_judge_follows_the_models_own_numbers(
    tiny_pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = {f"prompt {i}": [f"the red dog sees {i} balls ."] for i in range(6)}
    two = {f"prompt {i}": [f"zq {i} zq"] for i in range(6)}
    paths = answer_record(tmp_path, "one", one), answer_record(tmp_path, "two", two)
    judge = f"likelihood:{tiny_pair.teacher}"
    base = ["winrate", "--judge", judge, "--tie-band", "0", "--device", "cpu", "--threads", "1"]
    for n, (a, b) in enumerate((paths, paths[::-1])):
        sides = ["--candidate", str(a), "--baseline", str(b), "--out", str(tmp_path / f"{n}")]
        assert main([*base, *sides]) == 0
    straight, mirrored = judged(tmp_path / "0"), judged(tmp_path / "1")
    for row in straight.rows:
        assert (row["verdict"] == "candidate") == (row["candidate_score"] > row["baseline_score"])
    assert win_rates.win_rate(straight).value + win_rates.win_rate(mirrored).value == pytest.approx(1)
    note = f"a likelihood under {tiny_pair.teacher}, not a human or LLM preference; rewards bland text"
    assert straight.facts["judge"]["note"] == note and note in " ".join(capsys.readouterr().out.split())
    assert main([*base, *sides, "--tie-band", "1000"]) == 0
    assert "6 tied" in capsys.readouterr().out


def test_a_tie_band_and_a_missing_score() -> None:
    assert likelihood.verdict(-1.0, -1.02, 0.05).word == "tie"
    assert likelihood.verdict(-1.0, -1.2, 0.05).word == "candidate"
    assert likelihood.verdict(-1.2, -1.0, 0.05).word == "baseline"
    assert likelihood.verdict(math.nan, -1.0, 0.05).word == "failed"


def test_scores_do_not_depend_on_the_batch_and_agree_with_the_models_loss(tiny_pair) -> None:
    import torch

    from selectkd_eval.likelihood import score_answers
    from selectkd_eval.pair import load_model

    model, tokenizer, _ = load_model(str(tiny_pair.teacher))
    answers = ["the red dog", "the old cat sees 3 hats and more of them .", "x"]
    together = score_answers(str(tiny_pair.teacher), ["Say :"] * 3, answers, "cpu", 1)
    alone = [score_answers(str(tiny_pair.teacher), ["Say :"], [answer], "cpu", 1)[0] for answer in answers]
    assert together == pytest.approx(alone, abs=1e-5)
    ids = torch.tensor([tokenizer("Say :")["input_ids"] + tokenizer(" x", add_special_tokens=False)["input_ids"]])
    start = len(tokenizer("Say :")["input_ids"])
    labels = torch.where(torch.arange(ids.shape[1]) < start, -100, ids[0])[None]
    with torch.inference_mode():
        loss = model(input_ids=ids, labels=labels).loss
    assert together[2] == pytest.approx(-float(loss) * (ids.shape[1] - start), abs=1e-4)
    assert math.isnan(score_answers(str(tiny_pair.teacher), ["Say :"], ["word " * 900], "cpu", 1)[0])
    with pytest.raises(ValueError, match="empty answer"):
        score_answers(str(tiny_pair.teacher), ["Say :"], [" "], "cpu", 1)


def test_prompts_without_an_answer_are_refused_or_stand_as_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = two_records(tmp_path)
    options = AnswerOptions(model="student", name="student", out=tmp_path, seeds=(0,))
    path = records.record_path("answer", options)
    lines = path.read_text().splitlines()
    row = json.loads(lines[1])
    del row["answer"]
    rewrite(path, "\n".join([lines[0], json.dumps({**row, "error": "too long"}), *lines[2:]]) + "\n")
    with serving() as server:
        assert main(command(tmp_path, server.url, *sides)) == 2
        assert "1 prompts without an answer (too long)" in capsys.readouterr().err
        assert main(command(tmp_path, server.url, *sides, "--allow-missing")) == 0
        assert len(server.requests) == N - 1
        found = next(record for record in tmp_path.glob("winrate-*.jsonl") if record.stat().st_size)
        before = found.read_bytes()
        assert main(command(tmp_path, server.url, *sides, "--allow-missing")) == 0
        assert found.read_bytes() == before
    out = capsys.readouterr().out
    assert "1 failed" in out and "1 the candidate has no answer: too long" in out
    assert "if the 1 without a verdict were lost" in out and "tries them again" not in out


def test_nothing_that_a_terminal_obeys_gets_from_a_server_to_the_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = two_records(tmp_path, n=3)
    with serving(always="escapes") as server:
        assert main(command(tmp_path, server.url, *sides)) == 0
        server.always = "login page"
        assert main(command(tmp_path, server.url, *sides, "--seed", "1", "--protocol", "mtbench")) == 2
    printed = capsys.readouterr()
    assert "answered by  judge\\u001b[2J\\u001b]0;owned\\u0007\\u202e (3)" in printed.out
    assert not {"\x1b", "\x07", "\u202e"} & set(printed.out + printed.err)


def test_where_nothing_worked_the_reason_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(script=["400"], always="login page") as server:
        assert main(command(tmp_path, server.url, *two_records(tmp_path, n=3), "--concurrency", "1")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "not one comparison got a verdict: 2 failed because the server's reply is no chat completion" in error
    assert "and 1 for other reasons" in error and KEY not in error


def test_of_several_answer_records_the_one_that_is_judged_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "p", "answer": "ref"}) + "\n")
    os.utime(answer_record(tmp_path, "old", {"p": ["x"]}, prompts=str(prompts)), (1, 1))
    new = answer_record(tmp_path, "new", {"p": ["longer"]}, prompts=str(prompts))
    with serving() as server:
        assert main(command(tmp_path, server.url)) == 0
    assert f"judging {new}, the newest of 2 finished answer records (new on {prompts})" in capsys.readouterr().err


def test_like_repeats_a_command_that_left_the_baseline_to_the_prompt_set(tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    rows = [{"prompt": f"p{i}", "generated_text": "ref"} for i in range(4)]
    (tmp_path / "sets" / "evol_inst_eval.json").write_text(json.dumps(rows))
    words = ["answer", "--prompts", "evol-instruct", "--prompt-dir", str(tmp_path / "sets"), "--limit", "2"]
    assert main([*words, "--max-new-tokens", "4", "--out", str(tmp_path)]) == 0
    with serving() as server:
        assert main(command(tmp_path, server.url)) == 0
        before = judged(tmp_path)
        assert before.options["baseline"] == "evol-instruct" and len(before.rows) == 2
        assert main(["winrate", "--like", str(before.path), "--out", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.glob("winrate-*.jsonl")] == [before.path.name]


def test_what_cannot_change_published_verdicts_is_named_and_a_dry_run_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving() as server:
        assert main(command(tmp_path, server.url, *two_records(tmp_path))) == 0
    words = ["winrate", "--judge", f"replay:{judged(tmp_path).path}", "--out", str(tmp_path / "new")]
    capsys.readouterr()
    assert main([*words, "--dry-run", "--limit", "5", "--protocol", "mtbench", "--repeats", "2"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "no calls: 5 judgements of 5 prompts are in the file\n"
    assert printed.err.startswith("--protocol, --repeats: without effect") and not (tmp_path / "new").exists()
    assert main(words) == 0
    assert "without effect" not in capsys.readouterr().err


def test_what_the_replies_cost_is_said_where_the_judge_has_prices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving() as server:
        judges = tmp_path / "judges.toml"
        judges.write_text(f'[priced]\nbase_url = "{server.url}"\nprice_in = 1000\nprice_out = 2000\n')
        words = ["--judge", "priced", "--judge-file", str(judges), "--out", str(tmp_path)]
        assert main(["winrate", *words, *two_records(tmp_path)]) == 0
    # 24 replies of 100 tokens in and 5 out.
    assert "2,400 tokens in and 120 out, US$ 2.64 by the prices noted" in capsys.readouterr().out


def test_a_file_of_answers_without_a_set_needs_a_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = tmp_path / "mine.jsonl"
    answers.write_text(json.dumps({"prompt": "p", "answer": "a"}) + "\n")
    assert main(["winrate", "--out", str(tmp_path), "--candidate", str(answers)]) == 2
    error = capsys.readouterr().err
    assert "mine.jsonl needs something to be compared with: give --baseline" in error and "''" not in error
