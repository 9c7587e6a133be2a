"""Sets by name: found in a directory or in the hub's cache, known by their digest, and honest about another file."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from selectkd_eval.errors import InputError
from selectkd_eval.listing import run
from selectkd_eval.prompt_sets import PROMPT_SETS
from selectkd_eval.prompts import later_turns, load_prompts
from selectkd_eval.verbs import ListOptions

SOURCES = {"selfinstruct": 252, "oasst": 188, "koala": 156, "helpful_base": 129, "vicuna": 80}


JUDGED = [name for name, row in PROMPT_SETS.items() if row.references]
SPEC_BENCH = PROMPT_SETS["spec-bench"]


@pytest.fixture(scope="module")
def published(shared_data: Path) -> Path:
    """The files as DistiLLM-2 publishes them, gzipped."""
    return shared_data / "judge" / "distillm2"


@pytest.mark.parametrize("name", JUDGED)
def test_the_published_file_is_known_without_a_word(
    name: str, published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = load_prompts(name, prompt_dir=published)
    assert capsys.readouterr().err == ""
    assert found.facts()["files"] == {name: PROMPT_SETS[name].sha256}
    assert len(found.prompts) == PROMPT_SETS[name].prompts
    assert all(prompt.answer for prompt in found.prompts)


def test_evol_instruct_asks_217_questions_and_has_218_references(published: Path) -> None:
    found = load_prompts("evol-instruct", prompt_dir=published)
    twice = [text for text, times in Counter(prompt.id for prompt in found.prompts).items() if times > 1]
    assert (len({prompt.id for prompt in found.prompts}), len(twice)) == (217, 1)


def test_alpacaevals_strata_are_its_data_sets(published: Path) -> None:
    assert Counter(prompt.source for prompt in load_prompts("alpaca-eval", prompt_dir=published).prompts) == SOURCES


def test_of_several_sets_the_stratum_is_the_set(published: Path) -> None:
    found = load_prompts("alpaca-eval, evol-instruct,ultrafeedback", 50, published)
    assert Counter(prompt.source for prompt in found.prompts) == dict.fromkeys(JUDGED, 50)
    assert found.files == {name: PROMPT_SETS[name].sha256 for name in JUDGED}


def test_another_packing_of_the_same_prompts_is_the_published_set(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = json.loads(gzip.decompress((published / "evol_inst_eval.json.gz").read_bytes()))
    (tmp_path / "evol_inst_eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_prompts("evol-instruct", prompt_dir=tmp_path)
    assert found.sha256 == load_prompts("evol-instruct", prompt_dir=published).sha256
    assert found.files["evol-instruct"] != PROMPT_SETS["evol-instruct"].sha256
    assert capsys.readouterr().err == ""


def test_one_changed_letter_is_noted(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = gzip.decompress((published / "evol_inst_eval.json.gz").read_bytes()).decode()
    (tmp_path / "evol_inst_eval.json").write_text(text.replace("Anna", "Hanna", 1))
    assert len(load_prompts("evol-instruct", prompt_dir=tmp_path).prompts) == 218
    assert "evol-instruct is not the published one" in capsys.readouterr().err


def hub_cache(home: Path, rows: list[dict[str, str]]) -> None:
    """What the hub's client leaves behind after it fetched AlpacaEval."""
    repository = home / "datasets--tatsu-lab--alpaca_eval"
    snapshot = repository / "snapshots" / ("5" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("5" * 40)
    (snapshot / "alpaca_eval.json").write_text(json.dumps(rows, indent=2))


def test_a_set_comes_from_the_hubs_cache_and_a_short_one_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    hub_cache(tmp_path, [{"instruction": "Hi", "output": "Ho", "dataset": "koala", "generator": "g"}])
    found = load_prompts("alpaca-eval").prompts
    assert [(p.text, p.answer, p.source) for p in found] == [("Hi", "Ho", "koala")]
    assert "has 1 entries where the published one has 805" in capsys.readouterr().err


def test_the_hubs_own_packing_is_the_published_set(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = json.loads(gzip.decompress((published / "alpaca_eval.json.gz").read_bytes()))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    hub_cache(tmp_path, rows)
    assert load_prompts("alpaca-eval").sha256 == load_prompts("alpaca-eval", prompt_dir=published).sha256
    assert capsys.readouterr().err == ""


def test_distillm2s_own_folders_are_a_prompt_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in JUDGED:
        folder = tmp_path / PROMPT_SETS[name].folder
        folder.mkdir()
        path = folder / f"{PROMPT_SETS[name].stem}.json"
        path.write_text(json.dumps([{"prompt": name, "generated_text": "yes"}]))
    found = load_prompts(",".join(JUDGED), prompt_dir=tmp_path).prompts
    assert [(p.text, p.answer, p.source) for p in found] == [(name, "yes", name) for name in JUDGED]
    assert capsys.readouterr().err.count("note:") == 3


def question_file(folder: Path, categories: list[str], each: int) -> Path:
    """A question file in Spec-Bench's format with questions of our own."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"question_id": i, "category": name, "turns": [f"Say {name} {i}.", "Again."][: 1 + (name == "writing")]}
        for i, name in enumerate(category for category in categories for _ in range(each))
    ]
    path = folder / "question.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_spec_bench_keeps_its_tasks_beside_other_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    categories = ["writing", "translation", "summarization", "qa", "math_reasoning", "rag"]
    question_file(tmp_path / SPEC_BENCH.folder, categories, each=3)
    found = load_prompts("spec-bench,mini-gsm", 2, tmp_path)
    tasks = ["mt_bench", *categories[1:]]
    assert Counter(prompt.source for prompt in found.prompts) == {**dict.fromkeys(tasks, 2), "mini-gsm:test": 2}
    assert [later_turns(prompt) for prompt in found.prompts[:3]] == [["Again."], ["Again."], []]
    assert not any(prompt.answer for prompt in found.prompts[:12])
    assert "has 18 entries where the published one has 480" in capsys.readouterr().err


def test_480_questions_of_somebody_else_are_not_spec_bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = question_file(tmp_path, ["writing"], each=480)
    found = load_prompts("spec-bench", None, tmp_path)
    assert len(found.prompts) == SPEC_BENCH.prompts
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.facts()["files"] == {"spec-bench": digest}
    said = capsys.readouterr().err
    assert f"spec-bench is not the published one (sha256 {digest[:12]}, published 4b6d33e79484)" in said


@pytest.mark.parametrize(
    ("name", "directory", "sentence"),
    [
        ("alpaca-eval", None, r"could not be fetched from the hub's tatsu-lab/alpaca_eval .*--prompt-dir"),
        ("evol-instruct", None, r"on no hub that we know: take eval/evol-instruct/evol_inst_eval.json from github"),
        ("ultrafeedback", ".", r"needs ultrafeedback_eval with one of the endings .* and none is there"),
        ("ultrafeedback", "nowhere", "is not a directory: give the one with ultrafeedback_eval.json"),
        (
            "spec-bench",
            None,
            r"no references is on no hub that we know: take data/spec_bench/question.jsonl from github",
        ),
        ("spec-bench", ".", r"needs question with one of the endings .* and none is there: take data/spec_bench/"),
        ("spec-bench", "nowhere", "is not a directory: give the one with question.jsonl"),
        ("alpaca-evil", None, "did you mean 'alpaca-eval'"),
    ],
)
def test_what_is_missing_is_one_sentence(
    name: str, directory: str | None, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(InputError, match=sentence):
        load_prompts(name, prompt_dir=None if directory is None else tmp_path / directory)


def test_the_hub_is_asked_by_a_program_that_has_loaded_nothing_else(tmp_path: Path) -> None:
    # The hub's package shows its `constants` only to those who came after another who wanted them.
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    hub_cache(tmp_path, [{"instruction": "Hi", "output": "Ho"}])
    code = "from selectkd_eval.prompts import load_prompts; print(len(load_prompts('alpaca-eval').prompts))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


def test_the_list_names_sets_that_are_not_at_hand(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(ListOptions(what="prompts")) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    for name, row in PROMPT_SETS.items():
        answers = f"references by {row.references}" if row.references else "no references"
        assert f"{row.prompts:,} prompts, {answers}; " in lines[name]
        assert f"--prompt-dir with {row.stem}.json" in lines[name]
        assert run(ListOptions(what="prompts", explain=name)) == 0
        assert row.sha256 in capsys.readouterr().out
