"""AlpacaEval's files in and out: the judgements of its own repository, and a file of our own with every code in it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from judges.replay import leaderboard_row
from judges.winrate import run as judge
from selectkd_eval import records, win_rates
from selectkd_eval.cli import main
from selectkd_eval.errors import InputError
from selectkd_eval.exchange.importing import run
from selectkd_eval.verbs import ExportOptions, ImportOptions, WinrateOptions

PREFERENCES = [1, 2, 1.5, None, -1, 2, 0]


def entries() -> list[dict[str, Any]]:
    found = []
    for number, preference in enumerate(PREFERENCES):
        instruction = f"Say {min(number, 5)}, please.\n"  # the last two are one instruction, asked twice
        sides = {
            "output_1": f"one {number}",
            "output_2": f"two {number} | é",
            "generator_1": "old",
            "generator_2": "new",
        }
        entry = {"instruction": instruction, **sides, "annotator": "a_judge", "preference": preference}
        found.append({**entry, "dataset": "helpful" if number % 2 else "koala"})
    return found


def written(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def read(out: Path, verb: str) -> list[records.Record]:
    found, *others = records.read_all(out, verb)
    assert not any(others)
    return found


def exported(record: records.Record, out: Path, to: str = "alpaca-eval") -> None:
    from analysis.export import run as export

    assert export(ExportOptions(to=to, records=record.path.parent, out=out)) == 0


def test_annotations_become_verdicts_and_both_sides_answers(tmp_path: Path) -> None:
    path = written(tmp_path / "annotations.json", entries())
    run(ImportOptions(files=(path,), out=tmp_path / "r", method="KD", training_seed=3))
    (record,) = read(tmp_path / "r", "winrate")
    assert [row["verdict"] for row in record.rows] == [
        *("baseline", "candidate", "tie", "unreadable", "failed", "candidate", "tie")
    ]
    assert record.facts["candidate"]["method"] == "KD"
    assert record.facts["candidate"]["seed"] == 3
    assert record.facts["baseline"]["method"] == "old"
    assert record.facts["imported"]["file"] == "annotations.json"
    answers = {one.facts["model"]["name"]: one for one in read(tmp_path / "r", "answer")}
    assert answers.keys() == {"old", "new"}
    assert [row["answer"] for row in answers["new"].rows] == [f"two {n} | é" for n in range(7)]
    assert [row["seed"] for row in answers["old"].rows][-2:] == [0, 1], "an instruction asked twice has two answers"


def test_annotations_that_are_written_again_are_the_same(tmp_path: Path) -> None:
    path = written(tmp_path / "annotations.json", entries())
    run(ImportOptions(files=(path,), out=tmp_path / "r"))
    (record,) = read(tmp_path / "r", "winrate")
    exported(record, tmp_path / "out")
    again = json.loads((tmp_path / "out" / record.path.stem / "annotations.json").read_text())
    assert again == entries()
    before = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*.json")}
    exported(record, tmp_path / "out")
    assert {file: file.read_bytes() for file in (tmp_path / "out").rglob("*.json")} == before


def test_model_outputs_go_round(tmp_path: Path) -> None:
    outputs = [
        {"dataset": "koala", "instruction": f"Ask {n}", "output": f"Answer {n}", "generator": "m"} for n in range(4)
    ]
    path = written(tmp_path / "model_outputs.json", outputs)
    run(ImportOptions(files=(path,), out=tmp_path / "r"))
    (record,) = read(tmp_path / "r", "answer")
    exported(record, tmp_path / "out")
    assert json.loads((tmp_path / "out" / record.path.stem / "model_outputs.json").read_text()) == outputs
    assert main(["show", str(record.path)]) == 0


def test_imported_answers_can_be_judged_here(tmp_path: Path) -> None:
    """The likelihood judge reads imported answers as it reads measured ones."""
    for name in ("new", "old"):
        outputs = [{"instruction": f"Ask {n}", "output": f"{name} text {n}", "generator": name} for n in range(6)]
        path = written(tmp_path / f"{name}.json", outputs)
        run(ImportOptions(files=(path,), kind="alpaca-eval", out=tmp_path / "r"))
    new, old = (
        next(one for one in read(tmp_path / "r", "answer") if one.facts["model"]["name"] == name)
        for name in ("new", "old")
    )
    judge(WinrateOptions(candidate=str(new.path), baseline=str(old.path), out=tmp_path / "w"))
    (record,) = read(tmp_path / "w", "winrate")
    assert len(record.good) == 6
    both = tmp_path / "both"
    both.mkdir()
    for one in (new, old, record):
        (both / one.path.name).write_bytes(one.path.read_bytes())
    exported(records.read(both / record.path.name), tmp_path / "out")
    found = json.loads((tmp_path / "out" / record.path.stem / "annotations.json").read_text())
    share = {"candidate": 2.0, "baseline": 1.0, "tie": 1.5}
    assert [entry["preference"] for entry in found] == [share[row["verdict"]] for row in record.rows]
    assert all(entry["output_2"].startswith("new") and entry["output_1"].startswith("old") for entry in found)


def test_verdicts_without_their_answers_are_not_exported(tmp_path: Path) -> None:
    path = written(tmp_path / "annotations.json", entries())
    run(ImportOptions(files=(path,), out=tmp_path / "r"))
    for one in read(tmp_path / "r", "answer"):
        one.path.unlink()
    (record,) = read(tmp_path / "r", "winrate")
    with pytest.raises(InputError, match="put both sides' answer records beside it"):
        exported(record, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model", ["alpaca-7b", "claude-2.1", "ghost-7b-alpha", "text_davinci_001"])
def test_published_judgements_go_round_and_give_the_published_numbers(
    shared_data: Path, tmp_path: Path, model: str
) -> None:
    folder = shared_data / "judge" / "alpaca_eval" / "annotations_full"
    (path,) = folder.glob(f"{model}__*.gz")
    run(ImportOptions(files=(path,), out=tmp_path / "r"))
    (record,) = read(tmp_path / "r", "winrate")
    published = json.loads(gzip.decompress(path.read_bytes()))
    raw = [entry.get("preference") for entry in published]
    assert win_rates.win_rate(record).value == pytest.approx(leaderboard_row(raw)["win_rate"] / 100, abs=1e-12)
    exported(record, tmp_path / "out")
    again = json.loads((tmp_path / "out" / record.path.stem / "annotations.json").read_text())
    names = ("instruction", "output_1", "output_2", "generator_1", "generator_2", "annotator", "preference", "dataset")
    assert [[entry[name] for name in names] for entry in again] == [
        [entry.get(name) for name in names] for entry in published
    ]


def test_importing_twice_changes_nothing_and_a_limit_keeps_the_first_prompts(tmp_path: Path) -> None:
    path = written(tmp_path / "annotations.json", entries())
    options = ImportOptions(files=(path,), out=tmp_path / "r", name="some")
    run(options)
    before = {file.name: file.read_bytes() for file in (tmp_path / "r").iterdir()}
    assert len(before) == 3
    run(options)
    assert {file.name: file.read_bytes() for file in (tmp_path / "r").iterdir()} == before
    run(ImportOptions(files=(path,), out=tmp_path / "few", limit=2))
    assert [len(one.rows) for one in (*read(tmp_path / "few", "winrate"), *read(tmp_path / "few", "answer"))] == [2] * 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[{", "not valid JSON"),
        ("[]", "no list of entries|of no tool|neither AlpacaEval"),
        ('[{"instruction": "a", "output": 3, "generator": "m"}]', "has the output '3'"),
        ('[{"instruction": 1, "output": "b"}]', "has the instruction '1'"),
        ('[{"instruction": "a", "output": "b", "generator": "m"}, 4]', "no list of entries"),
        (
            '[{"instruction": "a", "output": "b", "generator": "m"}, {"instruction": "c", "output": "d", '
            '"generator": "n"}]',
            "mixes answers of m, n",
        ),
        ('[{"instruction": "a", "output_1": "b", "output_2": "c", "preference": 7}]', "preference 7"),
        ('[{"instruction": "a", "output_1": "b", "preference": 1}]', "has no output_2"),
        ('{"instruction": "a", "output": "b"}', "no list of entries|of no tool|neither AlpacaEval"),
    ],
    ids=["half", "empty", "number", "no text", "mixed", "two models", "code", "one side", "object"],
)
def test_damaged_files_are_refused_in_one_sentence_and_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, said: str
) -> None:
    import re

    path = tmp_path / "model_outputs.json"
    path.write_text(content)
    assert main(["import", str(path), "--out", str(tmp_path / "r")]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert re.search(said, error), error
    assert not (tmp_path / "r").exists()


def test_files_of_nobody_and_options_of_another_tool_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "some.json", {"a": 1})
    with pytest.raises(InputError, match="of no tool that is known here"):
        run(ImportOptions(files=(path,), out=tmp_path / "r"))
    with pytest.raises(InputError, match="there is no file or directory"):
        run(ImportOptions(files=(tmp_path / "none",), out=tmp_path / "r"))
    outputs = written(tmp_path / "model_outputs.json", [{"instruction": "a", "output": "b", "generator": "m"}])
    with pytest.raises(InputError, match="--baseline belongs to Spec-Bench"):
        run(ImportOptions(files=(outputs,), baseline=path, out=tmp_path / "r"))
    with pytest.raises(InputError, match="--metric belongs to lm-eval"):
        run(ImportOptions(files=(outputs,), metric=("acc",), out=tmp_path / "r"))
