"""A judge on this machine: asked and read like a served one, the same after a resume, honest about what it lacks."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from local_judges import AGAIN, OPEN, scripted

from judges import local
from judges.pairing import Comparison
from judges.protocols import PROTOCOLS, Protocol
from judges.tasks import Task
from judges.verdicts import Verdict
from selectkd_eval.errors import InputError, SetupError
from selectkd_eval.local_chat import opened
from selectkd_eval.prompts import prompt_id
from selectkd_eval.records import Record, open_record, read
from selectkd_eval.verbs import WinrateOptions

LABELS = ("[[A]]", "[[B]]", "[[C]]", "[[D]]")
SELECTKD, DISTILLM2 = PROTOCOLS["selectkd"], PROTOCOLS["distillm2"]


@pytest.fixture
def options(tmp_path: Path) -> WinrateOptions:
    return WinrateOptions(judge="", device="cpu", threads=1, concurrency=4, out=tmp_path / "records")


def tasks(count: int, samples: int = 1) -> list[Task]:
    """`count` comparisons in both orders, of different lengths."""
    found = []
    for number in range(count):
        text = f"question {number} " + "more " * (number % 3)
        comparison = Comparison(prompt_id(text), text, 0, f"one answer {number}", f"another {number}")
        for order in ("candidate-first", "baseline-first"):
            for sample in range(samples):
                found.append(Task(comparison, order, sample))  # type: ignore[arg-type]
    return found


def judged(
    options: WinrateOptions, todo: list[Task], protocol: Protocol = SELECTKD, stop_after: int | None = None
) -> Record:
    """The record of these tasks; with `stop_after` the run breaks off there, as a killed one does."""
    facts = local.facts(options, protocol)
    with open_record("winrate", options, inputs={}, facts={"judge": facts}) as record:

        def write(task: Task, verdict: Verdict, said: Mapping[str, Any]) -> None:
            if len(record.done) == stop_after:
                raise KeyboardInterrupt
            failure = {"error": verdict.reason} if verdict.word == "failed" else {}
            record.write(task.key, order=task.order, verdict=verdict.word, reason=verdict.reason, **said, **failure)

        left = [task for task in todo if task.key not in record.done]
        local.judge(record, left, options, protocol, write)
        record.finish()
    return read(record.path)


def words(record: Record) -> dict[str, tuple[str, str, str, int]]:
    return {row["key"]: (row["verdict"], row["reason"], row["raw"], row["replies"]) for row in record.rows}


@pytest.mark.parametrize(
    ("follows", "first", "second"),
    [
        ({OPEN: "[[A]]"}, ("candidate", "", "[[A]]", 1), ("baseline", "", "[[A]]", 1)),
        ({OPEN: "[[B]]"}, ("baseline", "", "[[B]]", 1), ("candidate", "", "[[B]]", 1)),
        ({OPEN: "[[A]]", "[[A]]": "[[C]]"}, ("tie", "", "[[A]][[C]]", 1), ("tie", "", "[[A]][[C]]", 1)),
        ({OPEN: "[[D]]", AGAIN: "[[B]]"}, ("baseline", "", "[[B]]", 2), ("candidate", "", "[[B]]", 2)),
        (
            {OPEN: "[[D]]", AGAIN: "[[D]]"},
            ("unreadable", "label D was not offered", "[[D]]", 2),
            ("unreadable", "label D was not offered", "[[D]]", 2),
        ),
        (
            {OPEN: "<think>", "<think>": "[[A]]"},
            ("unreadable", "empty reply", "", 2),
            ("unreadable", "empty reply", "", 2),
        ),
        (
            {OPEN: "<think>", "<think>": "[[A]]", "[[A]]": "</think>", "</think>": "[[B]]"},
            ("baseline", "", "[[B]]", 1),
            ("candidate", "", "[[B]]", 1),
        ),
    ],
)
def test_what_the_model_writes_is_read_and_turned_back(
    options: WinrateOptions, tmp_path: Path, follows: dict[str, str], first: tuple, second: tuple
) -> None:
    model = scripted(tmp_path / "judge", follows, words=(*LABELS, "<think>", "</think>"))
    record = judged(replace(options, judge=f"hf:{model}"), tasks(5))
    assert len(record.rows) == 10
    for row in record.rows:
        found = (row["verdict"], row["reason"], row["raw"], row["replies"])
        assert found == (first if row["order"] == "candidate-first" else second)
        assert row["judge_model"] == model
        assert row["usage"]["completion_tokens"] >= row["replies"] * 2 - 1  # the end token is drawn too


def test_a_reply_without_an_end_is_truncated_and_not_asked_again(options: WinrateOptions, tmp_path: Path) -> None:
    model = scripted(tmp_path / "judge", {OPEN: "[[A]]", "[[A]]": "[[A]]"}, words=LABELS, positions=2048)
    record = judged(replace(options, judge=f"hf:{model}"), tasks(1))
    assert {(row["verdict"], row["replies"], row["usage"]["completion_tokens"]) for row in record.rows} == {
        ("truncated", 1, 1024)
    }


def test_a_prompt_that_does_not_fit_has_failed_and_is_never_cut(options: WinrateOptions, tmp_path: Path) -> None:
    model = scripted(tmp_path / "judge", {OPEN: "[[A]]"}, words=LABELS, positions=4096)
    short, long = tasks(1)[0], tasks(2)[2]
    long = replace(long, comparison=replace(long.comparison, candidate="words " * 1000))
    record = judged(replace(options, judge=f"hf:{model}"), [short, long])
    assert [row["verdict"] for row in record.good] == ["candidate"]
    assert "exceed 4096 positions" in record.failed[0]["error"]


def test_a_second_question_that_does_not_fit_leaves_the_first_reply(options: WinrateOptions, tmp_path: Path) -> None:
    task = tasks(1)[0]
    model = scripted(tmp_path / "judge", {OPEN: "[[D]]"}, words=LABELS)
    one = judged(replace(options, judge=f"hf:{model}"), [task]).rows[0]
    asked = one["usage"]["prompt_tokens"]
    # Room for the first question (about half of the two questions' tokens) and a reply, but not for the second one.
    positions = asked // 2 + 1024
    tight = scripted(tmp_path / "tight", {OPEN: "[[D]]"}, words=LABELS, positions=positions)
    row = judged(replace(options, judge=f"hf:{tight}"), [task]).rows[0]
    assert (row["verdict"], row["replies"]) == ("unreadable", 1)
    assert "not asked again: the prompt's" in row["reason"]


def test_a_broken_off_run_goes_on_to_the_same_record(options: WinrateOptions, tmp_path: Path) -> None:
    """A judge that hesitates: its draws depend on the comparison, order and repeat alone."""
    follows = {OPEN: "[[A]]", AGAIN: "[[C]]"}
    judge = f"hf:{scripted(tmp_path / 'judge', follows, words=LABELS, strength=8.0)}"
    options = replace(options, judge=judge, repeats=3)
    todo = tasks(6, samples=3)
    whole = words(judged(options, todo, DISTILLM2))
    assert len(set(whole.values())) > 3
    assert len(whole) == 36
    broken = replace(options, out=tmp_path / "broken", concurrency=5)
    with pytest.raises(KeyboardInterrupt):
        judged(broken, todo, DISTILLM2, stop_after=17)
    assert words(judged(broken, todo, DISTILLM2)) == whole
    by_comparison: dict[str, set] = {}
    for key, said in whole.items():
        by_comparison.setdefault("/".join(key.split("/")[:3]), set()).add(said[2])
    assert any(len(replies) > 1 for replies in by_comparison.values()), "every repeat said the same"


def test_an_untrained_judge_is_unreadable_and_says_so(options: WinrateOptions, tiny_pair, tmp_path: Path) -> None:
    model = scripted(tmp_path / "judge", {}, template=None)  # a base model that ends at once
    record = judged(replace(options, judge=f"hf:{model}"), tasks(2))
    assert {(row["verdict"], row["reason"], row["replies"]) for row in record.rows} == {
        ("unreadable", "empty reply", 2)
    }
    assert record.facts["judge"]["engine"]["chat_template"] is False
    with pytest.raises(InputError, match="could not be loaded"):
        local.facts(replace(options, judge="hf:nobody/nothing"), SELECTKD)


def test_the_header_says_what_can_change_a_verdict(options: WinrateOptions, tmp_path: Path) -> None:
    model = scripted(tmp_path / "judge", {OPEN: "[[A]]"}, words=LABELS)
    facts = local.facts(replace(options, judge=f"hf:{model}"), SELECTKD)
    assert (facts["name"], facts["kind"]) == (f"hf:{model}", "local")
    assert facts["decoding"] == {"max_new_tokens": 1024, "temperature": 0.0, "top_p": 1.0}
    assert facts["engine"]["dtype"] == "float32"
    assert len(facts["engine"]["chat_template_sha256"]) == len(facts["model"]["fingerprint"]) == 64
    own = local.facts(replace(options, judge=f"hf:{model}"), DISTILLM2)["decoding"]
    assert own == {"max_new_tokens": 2048, "temperature": 1.0, "top_p": 1.0}


@pytest.mark.parametrize(
    ("change", "protocol", "sentence"),
    [
        ({}, "alpacaeval2", "reads the judge's log-probabilities"),
        ({"concurrency": 0}, "selectkd", "--concurrency 0 would ask nothing"),
        ({"repeats": 3}, "selectkd", "--repeats 3 would ask .* the same again"),
    ],
)
def test_what_it_cannot_do_is_said_before_a_model_is_loaded(
    options: WinrateOptions, change: dict[str, Any], protocol: str, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        local.facts(replace(options, judge="hf:nowhere/at/all", **change), PROTOCOLS[protocol])


def test_without_vllm_the_extra_is_named(options: WinrateOptions, tmp_path: Path) -> None:
    if importlib.util.find_spec("vllm") is not None:
        pytest.skip("vLLM is installed here")
    with pytest.raises(SetupError, match=r"the judge 'vllm:.*pip install 'selectkd-eval\[vllm\]'"):
        local.facts(replace(options, judge=f"vllm:{tmp_path}"), SELECTKD)


@pytest.mark.timeout(900)  # the engine takes up to two minutes to start
def test_vllm_judges_as_transformers_does(options: WinrateOptions, tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed here: it lives in an environment of its own")
    model = scripted(tmp_path / "judge", {OPEN: "[[D]]", AGAIN: "[[B]]"}, words=LABELS)
    ours = words(judged(replace(options, judge=f"hf:{model}"), tasks(9)))
    options = replace(options, judge=f"vllm:{model}", out=tmp_path / "vllm")
    record = judged(options, tasks(9))
    assert words(record) == ours
    assert record.facts["judge"]["engine"]["engine"] == "vLLM"
    opened("vllm", model, "cpu", 1, 4, f"the judge {options.judge!r}").engine.llm.llm_engine.engine_core.shutdown()


def test_importing_the_judge_loads_neither_torch_nor_openai() -> None:
    code = "import sys, judges.local; print(sorted({'torch', 'transformers', 'openai'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
