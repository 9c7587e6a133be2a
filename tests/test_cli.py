"""Wrong words get one sentence and exit code 2; help and version work; foreign packages are noticed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from selectkd_eval import __version__
from selectkd_eval.cli import main
from selectkd_eval.records import open_record
from selectkd_eval.verbs import VERBS, AnswerOptions


def run(*words: str, cwd: Path | None = None, path: str = "") -> subprocess.CompletedProcess[str]:
    env = dict(os.environ) | ({"PYTHONPATH": path} if path else {})
    command = [sys.executable, "-m", "selectkd_eval", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=env)


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {verb} " in out for verb in VERBS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"selectkd-eval {__version__}\n"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trian"], "did you mean 'train'"),
        (["train", "--recipe", "kdd"], "there is no recipe called 'kdd'; did you mean 'kd'?"),
        (["train", "--data", "nowhere.jsonl"], "there is no prompt file nowhere.jsonl"),
        (["train", "--student", "embedded:studnt"], "did you mean 'student'"),
        (["train", "--like", "nowhere.jsonl"], "cannot read the record nowhere.jsonl"),
        (["show", "nowhere.jsonl"], "cannot read the record nowhere.jsonl"),
        (["passk", "--tasks", "gsm9k"], "there is no task called 'gsm9k'; did you mean 'gsm8k'?"),
        (["answer", "--prompts", "mini-storys"], "did you mean 'mini-stories'"),
        (["landscape", "--grid", "10"], "odd"),
        (["list", "recipes", "--explain", "kdd"], "did you mean 'kd'"),
        (["passk", "--like"], "--like needs a record"),
        (["answer", "--limit", "0"], "--limit must be at least 1, but 0 was given"),
        (["winrate", "--limit", "-2"], "--limit must be at least 1, but -2 was given"),
        (["answer", "--temperature", "nan"], "--temperature nan is not a finite number"),
        (["train", "--warmup", "3"], "--warmup is a share"),
        (["train", "--clip", "-1"], "--clip must not be negative"),
        (["passk", "--k"], "--k was given without a value"),
        (["answer", "--seeds", "1", "1"], "--seeds names one value twice"),
        (["tar", "--threads", "-1"], "--threads must be at least 0"),
        (["answer", "--limit", "1", "--device", "tpu"], "there is no device 'tpu'"),
        (["report", "--resamples", "0"], "--resamples must be at least 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_input_is_one_sentence_and_exit_code_2(
    words: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.err.count("\n") == 1 and "Traceback" not in captured.err


def test_an_unknown_option_exits_with_2() -> None:
    done = run("passk", "--modle", "x")
    assert done.returncode == 2 and "--model" in done.stderr


def test_unreadable_json_names_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a", "answer": "b"}\n{"prompt": \n')
    assert main(["train", "--data", str(data), "--out", str(tmp_path)]) == 2
    assert f"line 2 of {data} is not valid JSON" in capsys.readouterr().err


def test_a_truncated_record_is_refused_by_what_builds_on_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_record("answer", AnswerOptions(out=tmp_path), inputs={}, facts={}) as record:
        record.write("x/0", prompt="x", text="Say :", answer=" dog", seed=0, finish="eos")
        record.finish()
    record.path.write_bytes(record.path.read_bytes()[:-8])
    for words in (["winrate", "--candidate"], ["train", "--data"], ["answer", "--prompts"]):
        assert main([*words, str(record.path), "--out", str(tmp_path / "new")]) == 2
        assert "is truncated" in capsys.readouterr().err
    assert main(["show", str(record.path)]) == 0
    assert "unfinished" in capsys.readouterr().out


def buffered(*words: str, stdout: int) -> subprocess.CompletedProcess[str]:
    """A run whose output reaches `stdout` only at its end, as in a user's shell."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "selectkd_eval", *words]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, env=env)


@pytest.mark.parametrize("words", [["--help"], ["list", "protocols"], ["train", "--help"]])
def test_a_reader_that_has_gone_is_no_error(words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = buffered(*words, stdout=writing)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_an_output_without_space_is_one_sentence() -> None:
    with Path("/dev/full").open("wb") as full:
        done = buffered("list", "protocols", stdout=full.fileno())
    assert done.returncode == 2
    assert done.stderr == "selectkd-eval: no space left for the output: free some and run the same command again\n"


def test_progress_in_a_file_is_a_line_now_and_then(tmp_path: Path) -> None:
    code = (
        "import sys, time; from selectkd_eval.cli import main; main(['list', 'protocols']); from tqdm import tqdm\n"
        "for _ in tqdm(range(30)): time.sleep(0.02)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TQDM_")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr.count("\r") <= 3 and "30/30" in done.stderr


def test_a_demo_in_a_place_that_is_no_directory_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["demo", "--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err == (
        f"selectkd-eval: cannot write into {tmp_path / 'file'}: File exists; give a writable --out\n"
    )


def test_another_package_called_judges_is_noticed(tmp_path: Path) -> None:
    foreign = tmp_path / "judges"
    foreign.mkdir()
    (foreign / "__init__.py").write_text("")
    done = run("list", "protocols", path=str(tmp_path), cwd=tmp_path)
    assert done.returncode == 2
    assert "pip uninstall judges" in done.stderr and "Traceback" not in done.stderr
