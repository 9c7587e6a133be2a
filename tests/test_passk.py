"""pass@1: lm-eval's own text and score, answers that survive batch size, limit and SIGKILL, real GSM8K."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from rewriting import rewrite

from selectkd_eval import passk, records
from selectkd_eval.errors import InputError
from selectkd_eval.grading import extract_number, gsm8k_gold
from selectkd_eval.tasks.sources import load_task
from selectkd_eval.tasks.task import Task
from selectkd_eval.verbs import PasskOptions

pytestmark = pytest.mark.slow  # lm-eval takes seconds to import; the tests of this file share one process


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small gsm8k: 24 problems of different lengths, and 3 solved examples."""
    directory = tmp_path_factory.mktemp("data")
    for split, count in (("test", 24), ("train", 3)):
        rows = [
            {"question": f"the red dog sees {i} balls{' and 2 hats' * (i % 4)} .", "answer": f"so {i} .\n#### {i}"}
            for i in range(count)
        ]
        (directory / f"gsm8k_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


@pytest.fixture
def options(tiny_pair, data: Path, tmp_path: Path) -> PasskOptions:
    return PasskOptions(
        model=str(tiny_pair.teacher),
        tasks=("gsm8k",),
        data=data,
        shots=0,
        max_new_tokens=16,
        batch_size=8,
        out=tmp_path,
        device="cpu",
        threads=1,
    )


def measure(options: PasskOptions) -> records.Record:
    assert passk.run(options) == 0
    return records.read(records.record_path("passk", options), verb="passk")


def by_key(record: records.Record) -> dict[str, tuple]:
    return {row["key"]: (row["completion"], row["finish"], row["n_tokens"]) for row in record.rows}


def task(options: PasskOptions) -> Task:
    return load_task("gsm8k", options.data, options.limit, options.shots, "", False, gsm8k_gold)


def test_text_and_score_are_those_of_simple_evaluate(options: PasskOptions, tmp_path: Path) -> None:
    """The same task through lm-eval's own evaluator and unchanged HFLM; half of the golds are what the model says."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from selectkd_eval.backends.backend import Decoding
    from selectkd_eval.pair import load_model
    from selectkd_eval.tasks.lm_task import lm_task

    said = {row["problem"]: row["extracted"] for row in measure(options).rows}
    assert len(set(filter(None, said.values()))) > 1, "a model that writes no numbers would make this test say nothing"
    asked = tmp_path / "asked"
    asked.mkdir()
    rows = [
        {
            "question": problem.fields["question"],
            "answer": f"#### {said[problem.id] if i % 2 and said[problem.id] else -7}",
        }
        for i, problem in enumerate(task(options).problems)
    ]
    (asked / "gsm8k_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = replace(options, data=asked)
    record = measure(options)

    again = task(options)
    loaded = load_model(options.model)

    def score(doc: dict, completion: str) -> float:
        return float(extract_number(completion) == doc["gold"])

    theirs = simple_evaluate(
        HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=5, max_length=512),
        tasks=[lm_task(again, Decoding(16, 0.0, 1.0, again.layout.stops), score)],
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
    )
    text = {sample["doc"]["id"]: sample["resps"][0][0] for sample in theirs["samples"]["gsm8k"]}
    assert {row["problem"]: row["completion"] for row in record.rows} == text
    share = sum(row["correct"] for row in record.rows) / len(record.rows)
    assert share == theirs["results"]["gsm8k"]["pass@1,none"]
    assert 0 < share < 1


def test_an_answer_is_the_same_in_any_batch_and_under_any_limit(options: PasskOptions, tmp_path: Path) -> None:
    sampled = replace(options, temperature=0.9, samples=2, seeds=(0, 1))
    whole = by_key(measure(sampled))
    assert len(whole) == 24 * 2 * 2
    problem = next(iter(whole)).split("/")[1]
    assert len({whole[f"gsm8k/{problem}/{seed}/{sample}"][0] for seed in (0, 1) for sample in (0, 1)}) == 4
    assert by_key(measure(replace(sampled, batch_size=5, out=tmp_path / "batch"))) == whole
    few = by_key(measure(replace(sampled, limit=7, out=tmp_path / "limit")))
    assert len(few) == 7 * 4
    assert few.items() <= whole.items()
    other = by_key(measure(replace(sampled, seed=1, limit=7, out=tmp_path / "seed")))
    assert sum(other[key][0] == few[key][0] for key in few) < len(few) / 2


def test_token_counts_include_what_ended_the_answer(options: PasskOptions) -> None:
    rows = measure(options).rows
    assert Counter(row["finish"] for row in rows).keys() >= {"eos", "length"}
    assert all(row["n_tokens"] == 16 for row in rows if row["finish"] == "length")
    assert all(1 <= row["n_tokens"] <= 16 for row in rows)


def test_killed_run_goes_on_where_it_was(options: PasskOptions, tmp_path: Path) -> None:
    """SIGKILL in the middle; the same command finishes the same file, no answer is generated twice, none differs."""
    options = replace(
        options, temperature=0.9, samples=4, seeds=(0,), batch_size=2, max_new_tokens=24, out=tmp_path / "killed"
    )
    path = records.record_path("passk", options)
    command = [sys.executable, "-m", "selectkd_eval", "passk", "--model", options.model, "--tasks", "gsm8k"]
    words = f"--data {options.data} --shots 0 --temperature 0.9 --samples 4 --seeds 0 --batch-size 2"
    command += [*words.split(), *f"--max-new-tokens 24 --out {options.out} --device cpu --threads 1".split()]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ.copy())
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") > 8:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed = records.read(path, unfinished_ok=True)
    assert not killed.finished
    assert 0 < len(killed.rows) < 24 * 4
    with pytest.raises(InputError, match="unfinished"):
        records.read(path)

    finished = measure(options)
    keys = [row["key"] for line in path.read_text().splitlines() if "key" in (row := json.loads(line))]
    assert len(keys) == len(set(keys)) == 24 * 4
    assert by_key(killed).items() <= by_key(finished).items()
    assert by_key(finished) == by_key(measure(replace(options, out=tmp_path / "whole")))


def test_finished_record_is_only_read_again(options: PasskOptions, capsys: pytest.CaptureFixture[str]) -> None:
    path = measure(options).path
    before, first = path.read_bytes(), capsys.readouterr().out
    measure(options)
    assert path.read_bytes() == before
    assert capsys.readouterr().out == first
    assert first.startswith(f"{path}\ntask ")
    assert re.search(
        r"^gsm8k +0\.00 +\[0\.0, 13\.8\] +24 +1 +\d+ +0 +0 +gsm8k-numeric +[0-9a-f]{12}$", first, re.MULTILINE
    )


def max_new_tokens(options: PasskOptions) -> int:
    return int(measure(options).facts["generation"]["decoding"]["gsm8k"]["max_new_tokens"])


def test_length_limit_is_the_one_asked_or_a_default_that_leaves_room(options: PasskOptions) -> None:
    for asked, allowed in ((9, 9), (0, 128), (400, 256)):  # the tiny model has 512 positions for prompt and answer
        assert max_new_tokens(replace(options, max_new_tokens=asked, limit=1)) == allowed


def test_prompts_cut_to_fit_are_counted(options: PasskOptions, tmp_path: Path) -> None:
    rows = [{"question": "ball " * n, "answer": "#### 1"} for n in (3, 700)]
    (tmp_path / "gsm8k_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = measure(replace(options, data=tmp_path, max_new_tokens=4))
    assert sorted(row["prompt_cut"] for row in record.rows) == [False, True]


def test_real_gsm8k_file(options: PasskOptions, shared_data: Path) -> None:
    record = measure(replace(options, data=shared_data / "tasks", shots=None, limit=4, max_new_tokens=4))
    assert {row["gold"] for row in record.rows} == {"18", "3", "70000", "540"}
    facts = record.facts["tasks"]["gsm8k"]
    assert (facts["n"], facts["shots"], facts["grader"]) == (4, 5, "gsm8k-numeric")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ("gsm9k",)}, "did you mean 'gsm8k'"),
        ({"data": Path("/nonexistent")}, "not a directory"),
        ({"data": Path(__file__).parent}, "gsm8k_test.jsonl.gz"),
        ({"seeds": (0, 1)}, "greedy decoding"),
        ({"samples": 2}, "greedy decoding"),
        ({"k": (2,)}, "--k 2 lies between 1 and the answers per problem, which are 1"),
        ({"grader": "minerva"}, "does not suit the answers of gsm8k: one of gsm8k-numeric"),
        ({"grader": "minerva", "tasks": ("humaneval",)}, "grades no program"),
        ({"top_p": 0.0}, "--top-p"),
        ({"grader": "minervo"}, "did you mean 'minerva'"),
        ({"shots": 9}, "more solved examples than the 3"),
    ],
)
def test_wrong_requests_are_one_sentence(options: PasskOptions, change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        passk.run(replace(options, **change))


def test_what_cannot_be_compared_is_told_before_anything_is_measured(options: PasskOptions, tmp_path: Path) -> None:
    record = measure(replace(options, limit=2, out=tmp_path / "earlier"))
    text = record.path.read_text()
    train, other = tmp_path / "train-1.jsonl", tmp_path / "passk-1.jsonl"
    rewrite(train, text.replace('"verb":"passk"', '"verb":"train"'))
    rewrite(other, text.replace('"tasks":{"gsm8k"', '"tasks":{"math"'))
    for path, message in ((train, "is the record of train"), (other, "holds math and none of gsm8k")):
        with pytest.raises(InputError, match=message):
            passk.run(replace(options, compare=path, out=tmp_path / "new"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "empty"),
        ('{"question": "q"}\n', "lacks a text `answer`"),
        ('{"question": "q", "answer": "a\n', "not valid JSON"),
        ('{"question": "q", "answer": "it is 4"}\n', "has no '#### NUMBER'"),
    ],
)
def test_damaged_task_files_are_one_sentence(options: PasskOptions, tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "gsm8k_test.jsonl").write_text(line)
    with pytest.raises(InputError, match=message):
        passk.run(replace(options, data=tmp_path))


def test_hub_task_without_network_says_what_to_give(options: PasskOptions) -> None:
    # tests/conftest.py sets HF_HUB_OFFLINE, as a machine without network would have it
    with pytest.raises(InputError, match="--data DIR"):
        passk.run(replace(options, data=None))
