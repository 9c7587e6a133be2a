"""Sets by name: found in a directory or in the hub's cache, known by their digest, and honest about another file."""

from __future__ import annotations

import gzip
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
from selectkd_eval.prompts import load_prompts
from selectkd_eval.verbs import ListOptions

SOURCES = {"selfinstruct": 252, "oasst": 188, "koala": 156, "helpful_base": 129, "vicuna": 80}


@pytest.fixture(scope="module")
def published(shared_data: Path) -> Path:
    """The files as DistiLLM-2 publishes them, gzipped."""
    return shared_data / "judge" / "distillm2"


@pytest.mark.parametrize("name", PROMPT_SETS)
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
    assert Counter(prompt.source for prompt in found.prompts) == dict.fromkeys(PROMPT_SETS, 50)
    assert found.files == {name: row.sha256 for name, row in PROMPT_SETS.items()}


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
    for name, row in PROMPT_SETS.items():
        folder = tmp_path / row.folder
        folder.mkdir()
        (folder / f"{row.stem}.json").write_text(json.dumps([{"prompt": name, "generated_text": "yes"}]))
    found = load_prompts(",".join(PROMPT_SETS), prompt_dir=tmp_path).prompts
    assert [(p.text, p.answer, p.source) for p in found] == [(name, "yes", name) for name in PROMPT_SETS]
    assert capsys.readouterr().err.count("note:") == 3


@pytest.mark.parametrize(
    ("name", "directory", "sentence"),
    [
        ("alpaca-eval", None, r"could not be fetched from the hub's tatsu-lab/alpaca_eval .*--prompt-dir"),
        ("evol-instruct", None, r"on no hub that we know: take eval/evol-instruct/evol_inst_eval.json from github"),
        ("ultrafeedback", ".", r"needs ultrafeedback_eval with one of the endings .* and none is there"),
        ("ultrafeedback", "nowhere", "is not a directory: give the one with ultrafeedback_eval.json"),
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
        assert f"{row.prompts:,} prompts, references by {row.references}" in lines[name]
        assert f"--prompt-dir with {row.stem}.json" in lines[name]
        assert run(ListOptions(what="prompts", explain=name)) == 0
        assert row.sha256 in capsys.readouterr().out
