"""Rows as Parquet and CSV, scores as every-eval-ever JSON: everything there, nothing else, the same bytes twice."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import record_factory
from record_factory import card

from analysis.every_eval_ever import aggregate, instances
from analysis.export import run as export
from analysis.load import Library, library
from analysis.pack import run as pack
from analysis.row_columns import columns
from selectkd_eval import pass_rates, records, win_rates
from selectkd_eval.cli import main
from selectkd_eval.errors import InputError
from selectkd_eval.records import canonical
from selectkd_eval.verbs import ExportOptions, PackOptions

SCHEMAS = Path(__file__).parent / "schemas" / "every_eval_ever"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record of every kind, in a directory that no test writes to."""
    return record_factory.everything(tmp_path_factory.mktemp("records"), seeds=(0, 1), n=30)


def content(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


# ---- Parquet and CSV ------------------------------------------------------------


def test_parquet_holds_every_field_of_every_row(made: Path, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed (extra `pack`)")
    assert pack(PackOptions(records=made, out=tmp_path)) == 0
    found = library(made)
    assert {path.stem for path in tmp_path.iterdir()} == {record.verb for record in found.records}
    for path in tmp_path.iterdir():
        table = pq.read_table(path).to_pylist()
        rows = [(record, row) for record in found.of(path.stem) for row in record.rows]
        assert len(table) == len(rows)
        for packed, (record, row) in zip(table, rows, strict=True):
            assert packed["record"] == record.path.name
            for name, value in row.items():
                wanted = canonical(value) if isinstance(value, list | dict) else value
                assert packed[name] == wanted, (path.stem, name)


def test_methods_and_training_seeds_stand_beside_the_rows(made: Path) -> None:
    found = library(made)
    table = columns(found, "passk")
    for name, method, seed in zip(table["record"], table["method"], table["seed_trained"], strict=True):
        record = next(one for one in found.of("passk") if one.path.name == name)
        assert method == found.label(found.method(record.facts["model"]))
        assert seed == record.facts["model"]["seed"]
    landscape = columns(found, "landscape")
    assert {*zip(landscape["student"], landscape["method"], strict=True)} == {(0, "KD"), (1, "KD + Spec-k")}
    assert set(columns(found, "train")["seed_trained"]) == {0, 1}


def test_packed_twice_is_the_same_bytes(made: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra `pack`)")
    for name in ("a", "b"):
        pack(PackOptions(records=made, out=tmp_path / name))
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_without_texts_no_word_of_an_answer_is_left(made: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra `pack`)")
    import pyarrow.parquet as pq

    assert main(["pack", "--records", str(made), "--out", str(tmp_path), "--no-texts"]) == 0
    names = set(pq.read_table(tmp_path / "passk.parquet").column_names)
    assert names >= {"correct", "n_tokens", "problem"}
    assert not names & {"completion", "gold", "extracted", "question"}


def test_a_column_of_several_kinds_is_json_and_whole_numbers_among_fractions_are_fractions(tmp_path: Path) -> None:
    record = record_factory.passk(tmp_path, card("KD", 0), n=4)
    values = [(1, 0.5), ("two", 2), ([3], None), (None, 4)]
    rows = [{**row, "odd": odd, "number": number} for row, (odd, number) in zip(record.rows, values, strict=True)]
    changed = records.Record(record.path, record.header, rows, True)
    table = columns(Library([changed]), "passk")
    assert table["odd"] == ["1", '"two"', "[3]", None]
    assert table["number"] == [0.5, 2.0, None, 4.0]
    assert all(value is None or isinstance(value, float) for value in table["number"])


def test_a_number_beyond_64_bits_is_refused_with_its_field(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra `pack`)")
    from analysis.pack import parquet

    with pytest.raises(InputError, match="the field huge of the passk records"):
        parquet({"record": ["a"], "huge": [2**70]}, "passk")


def test_csv_holds_the_same_columns(made: Path, tmp_path: Path) -> None:
    export(ExportOptions(to="csv", records=made, out=tmp_path))
    table = columns(library(made), "winrate")
    with (tmp_path / "winrate.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(table)
    assert [row["verdict"] for row in rows] == table["verdict"]
    assert [int(row["candidate_chars"]) for row in rows] == table["candidate_chars"], "whole numbers stay whole"


def test_one_record_can_be_exported_alone(made: Path, tmp_path: Path) -> None:
    path = next(made.glob("tar-*.jsonl"))
    export(ExportOptions(to="csv", records=path, out=tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == ["tar.csv"]


def test_a_missing_package_is_named_with_its_command(made: Path, tmp_path: Path) -> None:
    """In an interpreter of its own, from which the packages are hidden."""
    for verb, package, extra in (
        (["pack"], "pyarrow", "pack"),
        (["export", "tensorboard"], "tensorboard", "tensorboard"),
        (["export", "wandb"], "wandb", "wandb"),
        (["export", "trackio"], "trackio", "trackio"),
    ):
        words = [*verb, "--records", str(made), "--out", str(tmp_path / "out")]
        hidden = f"import sys; sys.modules[{package!r}] = None"
        code = f"{hidden}\nfrom selectkd_eval.cli import main; sys.exit(main({words!r}))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        assert f"needs the package {package!r}" in done.stderr
        assert f"pip install 'selectkd-eval[{extra}]'" in done.stderr
    assert not (tmp_path / "out").exists()


# ---- every-eval-ever ------------------------------------------------------------


@pytest.fixture(scope="module")
def collected(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("collected")
    export(ExportOptions(to="every-eval-ever", records=made, out=out))
    return out


def test_both_files_follow_the_published_schema(collected: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed (extra `dev`)")
    schemas = {
        name: jsonschema.Draft7Validator(json.loads((SCHEMAS / f"{name}.schema.json").read_text()))
        for name in ("eval", "instance_level_eval")
    }
    files = sorted(collected.rglob("*.json"))
    assert files
    for path in files:
        schemas["eval"].validate(json.loads(path.read_text()))
        for line in path.with_name(f"{path.stem}_samples.jsonl").read_text().splitlines():
            schemas["instance_level_eval"].validate(json.loads(line))
    with pytest.raises(jsonschema.ValidationError):
        schemas["eval"].validate({**json.loads(files[0].read_text()), "another": 1})


def test_instances_are_named_by_their_place_and_digest_and_average_to_the_score(collected: Path) -> None:
    for path in collected.rglob("*.json"):
        told = json.loads(path.read_text())
        details = told["detailed_evaluation_results"]
        written = (collected / details["file_path"]).read_bytes()
        assert hashlib.sha256(written).hexdigest() == details["checksum"]
        rows = [json.loads(line) for line in written.decode().splitlines()]
        assert len(rows) == details["total_rows"]
        (result,) = told["evaluation_results"]
        assert {row["evaluation_result_id"] for row in rows} == {result["evaluation_result_id"]}
        assert {row["evaluation_id"] for row in rows} == {told["evaluation_id"]}
        mean = np.mean([row["evaluation"]["score"] for row in rows])
        assert result["score_details"]["score"] == pytest.approx(mean, abs=1e-12)


def test_where_both_orders_must_agree_an_instance_is_a_prompt(tmp_path: Path) -> None:
    record = record_factory.winrate(tmp_path, card("KD", 0), card("Start"), n=6, ties="agreement")
    rows = [{**row, "order": "candidate-first"} for row in record.rows]
    rows += [
        {**row, "key": f"{row['key']}/2", "order": "baseline-first", "verdict": "candidate"} for row in record.rows
    ]
    record = records.Record(record.path, record.header, rows, True)
    told = [one["evaluation"]["score"] for one in instances(record)]
    assert len(told) == 6
    score = aggregate(Library([record]), record, b"")["evaluation_results"][0]["score_details"]["score"]
    assert score == pytest.approx(np.mean(told), abs=1e-12)


def test_scores_and_intervals_are_those_of_our_tables(made: Path) -> None:
    found = library(made)
    for record in (found.of("passk")[3], found.of("winrate")[0]):
        told = aggregate(found, record, b"")["evaluation_results"][0]["score_details"]
        terms = win_rates.win_rate(record) if record.verb == "winrate" else pass_rates.pass_at(record.rows, "mini-gsm")
        ours = terms.estimate()
        assert told["score"] == ours.value
        interval = told["uncertainty"]["confidence_interval"]
        assert (interval["lower"], interval["upper"]) == (ours.low, ours.high)
        assert interval["method"] == ours.method
        assert told["uncertainty"]["num_samples"] == ours.n


def test_of_an_imported_model_no_weights_are_claimed(tmp_path: Path) -> None:
    record = record_factory.passk(tmp_path, card("KD", 0), n=4)
    facts = {
        **record.header["facts"],
        "imported": {"tool": "lm-eval", "version": "0.4", "file": "f", "sha256": "a" * 64},
    }
    record = records.Record(record.path, {**record.header, "facts": facts}, record.rows, True)
    told = aggregate(Library([record]), record, b"")
    assert "weights_sha256" not in told["model_info"]["additional_details"]
    assert told["eval_library"]["name"] == "lm-eval"
    assert len(list(instances(record))) == 4


def test_exported_twice_is_the_same(made: Path, collected: Path, tmp_path: Path) -> None:
    export(ExportOptions(to="every-eval-ever", records=made, out=tmp_path))
    assert content(tmp_path) == content(collected)


@pytest.mark.parametrize("to", ["every-eval-ever", "alpaca-eval", "tensorboard"])
def test_records_that_a_format_cannot_hold_are_refused(made: Path, tmp_path: Path, to: str) -> None:
    if to == "tensorboard":
        pytest.importorskip("tensorboard", reason="TensorBoard is not installed (extra `tensorboard`)")
    path = next(made.glob("tar-*.jsonl"))
    with pytest.raises(InputError, match="there is no"):
        export(ExportOptions(to=to, records=path, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
