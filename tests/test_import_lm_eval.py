"""What lm-eval itself wrote, imported: every answer right or wrong as lm-eval found it, and its own number."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.load import library
from selectkd_eval import records
from selectkd_eval.cli import main
from selectkd_eval.errors import InputError
from selectkd_eval.exchange.importing import run
from selectkd_eval.measures import pass_at_1
from selectkd_eval.regrade import run as regrade
from selectkd_eval.verbs import ImportOptions, PasskOptions, RegradeOptions

METRICS = ("exact_match,flexible-extract", "acc")
SUMS = """
task: tiny-sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer.split('####')[-1].strip()}}}}"
generation_kwargs: {{until: ["Question:"], do_sample: false, max_gen_toks: 64}}
filter_list:
  - name: strict-match
    filter: [{{function: regex, regex_pattern: "#### (1[0-9]+)"}}, {{function: take_first}}]
  - name: flexible-extract
    filter: [{{function: regex, group_select: -1, regex_pattern: "([0-9]+)"}}, {{function: take_first}}]
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 3.0}}
"""
CHOICES = """
task: tiny-choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["18", "50", "120"]
doc_to_target: 0
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output directory of a real lm-eval run of the embedded student, with --log_samples."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra `bench`)")
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from selectkd_eval.demo.corpus import examples
    from selectkd_eval.pair import load_model

    root = tmp_path_factory.mktemp("lm-eval")
    data = root / "data.jsonl"
    rows = [{"question": row["prompt"], "answer": row["answer"]} for row in list(examples("mini-gsm:test"))[:20]]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("sums", SUMS), ("choice", CHOICES)):
        (root / f"{name}.yaml").write_text(text.format(data=data))
    loaded = load_model("embedded:student")
    tracker = EvaluationTracker(output_path=str(root / "results"))
    results = simple_evaluate(
        HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=10, max_length=256),
        tasks=["tiny-sums", "tiny-choice"],
        task_manager=TaskManager(include_defaults=False, include_path=str(root)),
        bootstrap_iters=0,
        evaluation_tracker=tracker,
    )
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for task in results["configs"]:
        tracker.save_results_samples(task_name=task, samples=samples[task])
    return root / "results"


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "results"))


def imported(options: ImportOptions) -> records.Record:
    assert run(options) == 0
    found, *others = records.read_all(options.out, "passk")
    assert not any(others)
    return found[0]


def results_of(directory: Path) -> Path:
    return next(directory.rglob("results_*.json"))


def samples_of(directory: Path, task: str = "tiny-sums") -> Path:
    return next(directory.rglob(f"samples_{task}_*.jsonl"))


def test_rows_and_score_are_lm_evals_own(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = imported(ImportOptions(files=(made,), metric=METRICS, out=tmp_path))
    stated = json.loads(results_of(made).read_text())
    for task, metric in (("tiny-sums", "exact_match,flexible-extract"), ("tiny-choice", "acc,none")):
        assert pass_at_1(record.rows, task).value == stated["results"][task][metric]
        theirs = [json.loads(line) for line in samples_of(made, task).read_text().splitlines()]
        theirs = {str(one["doc_id"]): one for one in theirs if one["filter"] == metric.partition(",")[2]}
        ours = {row["problem"]: row for row in record.rows if row["task"] == task}
        assert ours.keys() == theirs.keys()
        for problem, row in ours.items():
            assert row["correct"] == theirs[problem][metric.partition(",")[0]]
            assert row["gold"] == theirs[problem]["target"]
            for name in ("doc_hash", "prompt_hash", "target_hash"):
                assert row[name] == theirs[problem][name]
    sums = [row for row in record.rows if row["task"] == "tiny-sums"]
    assert 0 < sum(row["correct"] for row in sums) < len(sums), "else the test would say little"
    theirs = json.loads(samples_of(made).read_text().splitlines()[0])
    assert sums[0]["completion"] == theirs["resps"][0][0]
    facts = record.facts
    assert facts["imported"]["version"] == stated["lm_eval_version"]
    assert facts["tasks"]["tiny-sums"]["shots"] == 0
    assert facts["tasks"]["tiny-sums"]["grader"] == "exact_match,flexible-extract"
    assert facts["generation"]["decoding"]["tiny-sums"]["max_new_tokens"] == 64
    said = capsys.readouterr().out
    assert "exact_match,flexible-extract" in said
    assert said.count("the same") == 2


def test_two_filters_are_two_scores_and_the_list_is_shown(made: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exact_match,strict-match or exact_match,flexible-extract"):
        run(ImportOptions(files=(made,), out=tmp_path))
    with pytest.raises(InputError, match="several filters"):
        run(ImportOptions(files=(made,), metric=("exact_match",), out=tmp_path))
    with pytest.raises(InputError, match=r"none of --metric f1.*exact_match,strict-match"):
        run(ImportOptions(files=(made,), metric=("f1",), out=tmp_path))
    assert not list(tmp_path.iterdir())
    strict = imported(ImportOptions(files=(made,), metric=("exact_match,strict-match", "acc_norm"), out=tmp_path))
    stated = json.loads(results_of(made).read_text())["results"]
    assert pass_at_1(strict.rows, "tiny-sums").value == stated["tiny-sums"]["exact_match,strict-match"]
    assert pass_at_1(strict.rows, "tiny-choice").value == stated["tiny-choice"]["acc_norm,none"]


def test_importing_twice_changes_nothing(made: Path, tmp_path: Path) -> None:
    options = ImportOptions(files=(made,), metric=METRICS, out=tmp_path)
    before = imported(options).path
    content = before.read_bytes()
    assert imported(options).path == before
    assert before.read_bytes() == content
    assert len(list(tmp_path.iterdir())) == 1


def test_an_import_that_was_killed_goes_on(made: Path, tmp_path: Path) -> None:
    """Half a line at the end, as SIGKILL leaves it."""
    options = ImportOptions(files=(made,), metric=METRICS, out=tmp_path)
    path = imported(options).path
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:9]) + lines[9][:30])
    imported(options)
    assert path.read_bytes() == whole


def test_a_changed_file_is_not_mixed_into_the_old_record(copied: Path, tmp_path: Path) -> None:
    options = ImportOptions(files=(copied,), metric=METRICS, out=tmp_path / "records")
    imported(options)
    path = results_of(copied)
    path.write_text(path.read_text().replace('"git_hash"', '"git_hash_"'))
    with pytest.raises(InputError, match="has changed since"):
        run(options)


def test_a_method_with_its_base_and_seed_stands_in_a_table(made: Path, copied: Path, tmp_path: Path) -> None:
    base = ImportOptions(files=(made,), metric=METRICS, out=tmp_path / "r", method="KD", training_seed=0)
    run(base)
    gated = replace(base, files=(copied,), model="kd-gated", method="KD + gate", base_method="KD", training_seed=0)
    run(gated)
    found = library(tmp_path / "r")
    assert {method.label: method.base for method in found.methods} == {"KD": "", "KD + gate": "KD"}
    assert {one.seed for one in found.measurements()} == {0}
    assert (
        main(["table", "2", "--records", str(tmp_path / "r"), "--out", str(tmp_path / "t"), "--resamples", "200"]) == 0
    )
    table = next((tmp_path / "t").glob("*.md")).read_text()
    assert "KD + gate" in table
    assert table.count("(0.00)") == 3, "the two are one model's answers, so that their difference is none"
    assert table.count("was imported from lm-eval") == 2


def test_a_limit_keeps_the_first_documents_and_still_checks_all(made: Path, tmp_path: Path) -> None:
    record = imported(ImportOptions(files=(made,), metric=METRICS, out=tmp_path, limit=5))
    assert [row["problem"] for row in record.rows if row["task"] == "tiny-sums"] == list("01234")
    assert record.facts["tasks"]["tiny-sums"]["n"] == 5


def test_show_says_that_it_was_imported_and_nothing_is_graded_or_repeated(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = imported(ImportOptions(files=(made,), metric=METRICS, out=tmp_path))
    assert main(["show", str(record.path)]) == 0
    said = capsys.readouterr().out
    assert "imported from lm-eval" in said
    assert "—" in next(line for line in said.splitlines() if line.startswith("tiny-sums ")), "cut answers are not known"
    with pytest.raises(InputError, match="not ours to grade again"):
        regrade(RegradeOptions(record=record.path, out=tmp_path))
    with pytest.raises(InputError, match="no passk command made it"):
        records.replay(record.path, "passk", PasskOptions)


def cut(directory: Path) -> None:
    path = samples_of(directory)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-3]))


def halve_a_line(directory: Path) -> None:
    path = samples_of(directory)
    path.write_text(path.read_text()[:-40])


def turn_a_verdict(directory: Path) -> None:
    path = samples_of(directory)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[-1]["exact_match"] = 1 - lines[-1]["exact_match"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def repeat_a_line(directory: Path) -> None:
    path = samples_of(directory)
    path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n")


def lose_the_samples(directory: Path) -> None:
    samples_of(directory).unlink()


def lose_the_results(directory: Path) -> None:
    results_of(directory).unlink()


def break_the_results(directory: Path) -> None:
    results_of(directory).write_text(results_of(directory).read_text()[:-100])


def binary_samples(directory: Path) -> None:
    samples_of(directory).write_bytes(b"\xff\xfe\x00\x01")


def a_list_of_results(directory: Path) -> None:
    results_of(directory).write_text("[1, 2]")


def results_twice(directory: Path) -> None:
    path = results_of(directory)
    later = path.with_name(path.name.replace("results_2", "results_3"))
    later.write_bytes(path.read_bytes())
    for task in ("tiny-sums", "tiny-choice"):
        samples = samples_of(directory, task)
        samples.with_name(samples.name.replace(f"{task}_2", f"{task}_3")).write_bytes(samples.read_bytes())


DAMAGE = {
    cut: "the file was cut",
    halve_a_line: "not valid JSON",
    turn_a_verdict: "not of one run, or one of the files was changed",
    repeat_a_line: "twice under the filter",
    lose_the_samples: "has no samples of tiny-sums.*--log_samples",
    lose_the_results: "has samples and no results",
    break_the_results: "not valid JSON",
    binary_samples: "not UTF-8",
    a_list_of_results: "has no results by task",
    results_twice: "both hold tiny-",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_damaged_files_are_refused_in_one_sentence_and_leave_nothing(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage
) -> None:
    damage(copied)
    out = tmp_path / "records"
    words = ["import", str(copied), "--kind", "lm-eval", "--out", str(out), "--metric", *METRICS]
    assert main(words) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    assert re.search(DAMAGE[damage], said), said
    assert not out.exists()


def test_scores_between_right_and_wrong_are_no_verdicts(copied: Path, tmp_path: Path) -> None:
    for task in ("tiny-sums", "tiny-choice"):
        path = samples_of(copied, task)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            for name in line["metrics"]:
                line[name] = 0.5
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match="no metric that is right or wrong answer by answer"):
        run(ImportOptions(files=(copied,), out=tmp_path / "records"))


def test_lmms_evals_layout_is_read_too(tmp_path: Path) -> None:
    """Its file names, its samples without documents and with `input`, and its scores in percent are lmms-eval's."""
    folder = tmp_path / "llava"
    folder.mkdir()
    samples = [
        {"doc_id": n, "input": f"How many? {n}", "target": "3", "filtered_resps": ["3" if n % 2 else "4"]}
        | {"doc_hash": str(n) * 64, "exact_match": float(n % 2)}
        for n in range(4)
    ]
    (folder / "20260101_120000_samples_counting.jsonl").write_text("".join(json.dumps(s) + "\n" for s in samples))
    results = {
        "results": {"counting": {"alias": "counting", "exact_match,none": 50.0}},
        "configs": {"counting": {"output_type": "generate_until", "generation_kwargs": {"max_new_tokens": 16}}},
        "n-shot": {"counting": 0},
        "config": {"model": "llava", "model_args": "pretrained=llava-7b"},
        "model_name": "llava-7b",
    }
    (folder / "20260101_120000_results.json").write_text(json.dumps(results))
    record = imported(ImportOptions(files=(folder,), out=tmp_path / "records"))
    assert record.facts["imported"]["tool"] == "lmms-eval"
    assert record.facts["model"]["name"] == "llava-7b"
    assert pass_at_1(record.rows, "counting").value == 0.5
    assert record.rows[1]["question"] == "How many? 1"
    assert record.rows[1]["completion"] == "3"
