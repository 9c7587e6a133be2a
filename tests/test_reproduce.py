"""The reproduction scripts: every command they would run parses, and together they are the paper's tables."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from selectkd_eval import materials, refusals
from selectkd_eval.cli import parse
from selectkd_eval.ranges import check
from selectkd_eval.recipes import RECIPES
from selectkd_eval.verbs import AnswerOptions, PasskOptions, SpeedupOptions, TrainOptions, WinrateOptions

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "reports" / "reproduce"
PAPER = ROOT / "reports" / "paper"
sys.path.insert(0, str(SCRIPTS))

import methods  # noqa: E402
import prepare  # noqa: E402

LABELS = {"KD": "kd", "SeqKD": "seqkd", "ImitKD": "imitkd", "GKD": "gkd", "DistiLLM": "distillm", "SKD": "skd"}
LABELS |= {"DistiLLM-2": "distillm2"}


def script(name: str, root: Path = ROOT, **settings: str) -> subprocess.CompletedProcess[str]:
    """A script's dry run, or with DRY_RUN="0" its run."""
    environment = {"DRY_RUN": "1", "PYTHON": sys.executable, "SEEDS": "0"} | settings
    return subprocess.run(
        ["bash", f"reports/reproduce/{name}.sh"],
        cwd=root,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@cache
def commands(name: str, settings: tuple[tuple[str, str], ...] = ()) -> list[Any]:
    """The options of every selectkd-eval command of a script, parsed here once more by the command line's parser."""
    done = script(name, **dict(settings))
    assert done.returncode == 0, done.stderr
    found = []
    for line in done.stdout.splitlines():
        words = shlex.split(line)
        if "selectkd_eval" in words:
            options = parse(words[words.index("selectkd_eval") + 1 :])
            check(options)
            if isinstance(options, TrainOptions):
                could_be_meant(options)
            found.append(options)
    return found


def could_be_meant(options: TrainOptions) -> None:
    """`train`'s own refusals; a record of the student's text is not there yet in a dry run."""
    row = materials.chosen_recipe(options)
    assert row.policy == "pairs" or not options.student_text
    options = replace(options, student_text=())
    refusals.check(row, materials.loss_spec(row, options), options)


def of(kind: type, name: str, **settings: str) -> list[Any]:
    return [options for options in commands(name, tuple(settings.items())) if isinstance(options, kind)]


def published(number: int) -> list[dict[str, str]]:
    with (PAPER / f"table{number}.csv").open() as file:
        return list(csv.DictReader(file))


def gates(options: TrainOptions) -> tuple[str, int | None, float | None]:
    gated = options.verifier in ("top-k", "spec-k")
    return str(options.verifier), options.k if gated else None, options.beta if gated else None


@pytest.mark.parametrize("number", [4, 6])
def test_the_ablations_train_the_rows_of_the_paper(number: int) -> None:
    trained = [gates(options) for options in of(TrainOptions, f"table{number}") if options.recipe == "kd"]
    rows = [
        (row["verifier"], int(row["k"]) if row["k"] else None, float(row["beta"]) if row["k"] else None)
        for row in published(number)
    ]
    assert Counter(trained) == Counter(rows)
    # Every student and the one they start from is judged on three sets against the given answers.
    assert len(of(WinrateOptions, f"table{number}")) == 3 * (len(rows) + 1)


def test_table_6_shares_the_students_of_table_4() -> None:
    small, large = ({options.save for options in of(TrainOptions, f"table{number}")} for number in (4, 6))
    assert small < large


def test_table_1_trains_every_method_with_and_without_the_gate() -> None:
    wanted = Counter(
        (LABELS[row["base_method"] or row["method"]], "spec-k" if row["base_method"] else "none")
        for row in published(1)
        if row["pair"].startswith("Qwen2") and (row["base_method"] or row["method"]) in LABELS
    )
    students = [options for options in of(TrainOptions, "table1", PAIRS="qwen2") if options.recipe != "sft"]
    assert Counter((options.recipe, options.verifier) for options in students) == wanted
    for options in students:
        assert options.teacher == "Qwen/Qwen2-7B-Instruct"
        assert (options.k, options.beta) == (5, 0.01) or options.verifier == "none"
        assert options.batch_size * 8 == 128
        assert options.batch_size % options.accumulation == 0
        assert (options.lora_rank, options.lr, options.epochs) == (16, 5e-5, 2)


def test_table_1_judges_as_the_paper_does() -> None:
    verdicts = of(WinrateOptions, "table1", PAIRS="qwen2")
    judges = {options.baseline: options.judge for options in verdicts}
    assert judges == {"alpaca-eval": "gpt-4o", "evol-instruct": "gpt-4o", "ultrafeedback": "gpt-4o-mini"}
    written = {
        Path(options.prompts).name: options
        for options in of(AnswerOptions, "table1", PAIRS="qwen2")
        if options.model == "Qwen/Qwen2-7B-Instruct"
    }
    assert written["ultrachat-train.jsonl"].max_new_tokens == 1024
    assert written["evol-instruct"].max_new_tokens == 512
    # What is judged was answered before, by its record.
    records = {Path(options.candidate).name.rsplit("-", 1)[0] for options in verdicts}
    assert records == {f"answer-{o.name}" for o in of(AnswerOptions, "table1", PAIRS="qwen2") if o.prompts in judges}


@pytest.mark.parametrize("settings", [
    {"BASELINES": "own", "START": "instruct", "METHODS": "gkd kd", "PAIRS": "qwen2 gemma2"},
    {"STUDENT_TEXT": "start", "TEACHER_URL": "http://localhost:8000/v1", "METHODS": "distillm2", "PAIRS": "danube2"},
    {"GPUS": "1", "MICRO": "3", "TEACHER_CACHE": "cache", "METHODS": "kd distillm", "PAIRS": "qwen2"},
], ids=lambda settings: next(iter(settings)))  # fmt: skip
def test_the_switches_of_the_settings_work(settings: dict[str, str]) -> None:
    students = [options for options in of(TrainOptions, "table1", **settings) if options.recipe != "sft"]
    assert len(students) == len(settings["PAIRS"].split()) * len(settings["METHODS"].split()) * 2
    if settings.get("BASELINES") == "own":
        assert {options.student for options in students} == {"Qwen/Qwen2-1.5B-Instruct", "google/gemma-2-2b-it"}
        assert {options.variant for options in students} == {""}
        assert {o.attention for o in students if "gemma" in o.teacher} == {"eager"}
    elif "STUDENT_TEXT" in settings:
        assert all(len(options.student_text) == 2 for options in students)
        teacher = [o for o in of(AnswerOptions, "table1", **settings) if o.name == "teacher-text"]
        assert {options.base_url for options in teacher} == {"http://localhost:8000/v1"}
    else:
        assert {options.batch_size for options in students} == {128}
        assert all(options.batch_size % options.accumulation == 0 for options in students)
        assert {o.recipe for o in students if o.teacher_cache} == {"kd"}


def test_table_2_solves_mathematics_and_code() -> None:
    from selectkd_eval.tasks.table import TASKS

    solved = of(PasskOptions, "table2")
    assert {options.tasks for options in solved} == {("gsm8k", "math"), ("humaneval", "mbpp-base")}
    assert {task for options in solved for task in options.tasks} <= set(TASKS)
    assert len(solved) == 4 * (2 + 3 * 2)
    students = [o for o in of(TrainOptions, "table2", METHODS="distillm2") if o.recipe == "distillm2"]
    assert {(o.teacher, o.epochs) for o in students} == {
        ("Qwen/Qwen2-Math-7B-Instruct", 1),
        ("Qwen/Qwen2.5-Math-7B-Instruct", 1),
        ("deepseek-ai/deepseek-coder-6.7b-instruct", 2),
        ("Qwen/Qwen2.5-Coder-7B-Instruct", 2),
    }
    assert {row["method"] for row in published(2) if row["base_method"] == ""} == {
        *("Teacher", "Student before", "GKD", "DistiLLM", "DistiLLM-2")
    }


def test_table_3_says_that_nothing_was_run() -> None:
    done = script("table3", DRY_RUN="0")
    assert (done.returncode, done.stdout) == (0, "")
    assert "not reproduced" in done.stderr


def test_table_5_times_the_five_drafts_of_the_paper_on_both_targets() -> None:
    timed = of(SpeedupOptions, "table5")
    found = {(options.target, len(options.draft)) for options in timed}
    assert found == {("microsoft/Phi-3-medium-4k-instruct", 5), ("microsoft/Phi-3.5-mini-instruct", 5)}
    assert len({row["method"] for row in published(5)}) == 5
    drafts = Counter((options.recipe, options.verifier) for options in of(TrainOptions, "table5"))
    wanted = [("sft", None), ("gkd", "none"), ("distillm", "none"), ("distillm2", "none"), ("distillm2", "spec-k")]
    assert drafts == dict.fromkeys(wanted, 2)


def test_every_number_of_the_settings_has_a_source() -> None:
    text = (SCRIPTS / "settings.sh").read_text()
    defaults = re.findall(r"^: \"\$\{(\w+):=([^}]*)\}\"(.*)$", text, re.M)
    assert len(defaults) > 40
    for name, _, comment in defaults:
        assert re.match(r"\s+# (paper|DistiLLM-2|released|ours)\b", comment), name
    pairs = re.findall(r"^  [\w.|\- ]+\) # (.*)$", text, re.M)
    assert len(pairs) == 9 and all(comment.startswith("paper") for comment in pairs)


@pytest.mark.parametrize(("file", "right", "wrong", "complaint"), [
    ("commands.sh", '--warmup "$WARMUP"', '--warm-up "$WARMUP"', "warm-up"),
    ("settings.sh", "SCHEDULE:=cosine", "SCHEDULE:=cosinus", "cosinus"),
    ("settings.sh", "RECIPE=$1", "RECIPE=kdd", "kdd"),
    ("settings.sh", "VARIANT=distillm2", "VARIANT=distilm3", "distilm3"),
    ("settings.sh", "MAX_LENGTH:=1024", "MAX_LENGTH:=1", "--max-length"),
    ("settings.sh", "GPUS:=8", "GPUS:=7", "GPUS=7"),
])  # fmt: skip
def test_a_broken_option_stops_the_dry_run(file: str, right: str, wrong: str, complaint: str, tmp_path: Path) -> None:
    copy = tmp_path / "reports" / "reproduce"
    shutil.copytree(SCRIPTS, copy, ignore=shutil.ignore_patterns("__pycache__"))
    text = (copy / file).read_text()
    assert right in text
    (copy / file).write_text(text.replace(right, wrong))
    done = script("table2", tmp_path, METHODS="gkd", PAIRS="qwen2-math")
    assert done.returncode != 0
    assert complaint in done.stderr


def test_a_run_starts_a_command_once_and_prints_what_it_starts(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "reproduce").symlink_to(SCRIPTS)
    two = tmp_path / "two.sh"
    two.write_text(
        "set -euo pipefail\n. reports/reproduce/commands.sh\n. reports/reproduce/settings.sh\n"
        "selectkd answer --prompts mini-stories --limit 2 --max-new-tokens 4 --name two --out out\n"
        'echo "at $RECORD"\n'
    )
    text = [subprocess.run(["bash", str(two)], cwd=tmp_path, env=os.environ | {"PYTHON": sys.executable},
                           capture_output=True, text=True, check=True) for _ in range(2)]  # fmt: skip
    record = re.search(r"at (out/answer-two-\w+\.jsonl)", text[0].stdout)
    assert record and (tmp_path / record[1]).is_file()
    assert "2 answers" in text[0].stdout and "finished" not in text[0].stderr
    assert "2 answers" not in text[1].stdout and "finished" in text[1].stderr


def test_the_launcher_takes_the_line_that_starts_several_processes() -> None:
    from accelerate.commands.launch import launch_command_parser

    line = next(line for line in script("table5").stdout.splitlines() if line.startswith("accelerate launch"))
    words = shlex.split(line)
    parsed = launch_command_parser().parse_args(words[2:])
    assert (parsed.module, parsed.num_processes, parsed.training_script) == (True, 8, "selectkd_eval")
    assert parsed.training_script_args[0] == "train"


def rows(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"question {i}", "answer": f"answer {i}"} for i in range(count)]


def test_a_draw_depends_on_text_and_seed_alone() -> None:
    train, validation = prepare.draw(rows(100), 40, 10, seed=0)
    assert (len(train), len(validation)) == (30, 10)
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in validation}
    assert prepare.draw(rows(100)[::-1], 40, 10, seed=0) == (train, validation)
    assert prepare.draw(rows(100), 60, 10, seed=0)[0][:30] == train
    assert prepare.draw(rows(100), 40, 10, seed=1) != (train, validation)
    assert len(prepare.draw(rows(100), 0, 10, seed=0)[0]) == 90


def test_unusable_rows_are_left_out() -> None:
    odd = [{"prompt": " ", "answer": "a"}, {"prompt": "b", "answer": ""}, {"prompt": "c" * 11, "answer": "d"}]
    assert prepare.usable([*odd, *rows(2), *rows(2)], characters=10) == rows(2)
    assert len(prepare.usable(odd, characters=0)) == 1


def test_a_training_set_is_drawn_from_a_local_copy_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = tmp_path / "copy", tmp_path / "data"
    source.mkdir()
    raw = [{"query": f"{row['prompt']}?", "response": row["answer"]} for row in rows(30)]
    (source / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in raw))
    words = f"metamath --out {out} --prompts 20 --held-out 5 --source {source}".split()
    for again in (False, True):
        monkeypatch.setattr(sys, "argv", ["prepare.py", *words])
        prepare.main()
        counts = {path.name: len(path.read_text().splitlines()) for path in sorted(out.iterdir())}
        assert counts == {"metamath-train.jsonl": 15, "metamath-validation.jsonl": 5, "metamath-whole.jsonl": 30}
        if not again:
            shutil.rmtree(source)
    monkeypatch.setattr(sys, "argv", ["prepare.py", *words[:2], str(tmp_path / "b"), *words[3:]])
    with pytest.raises(Exception, match="copy"):
        prepare.main()


def test_a_file_that_is_not_the_released_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = tmp_path / "release"
    for path, _ in prepare.JUDGED.values():
        (release / path).parent.mkdir(parents=True, exist_ok=True)
        (release / path).write_text("[]")
    words = ["prepare.py", "evaluation", "--out", str(tmp_path / "data"), "--release", release.as_uri()]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match="not the released file"):
        prepare.main()
    assert not (tmp_path / "data").exists()


def test_the_judged_sets_are_the_released_ones(shared_data: Path, tmp_path: Path) -> None:
    import gzip
    import hashlib

    for name, (_, sha256) in prepare.JUDGED.items():
        content = gzip.decompress((shared_data / "judge" / "distillm2" / f"{name}.gz").read_bytes())
        assert hashlib.sha256(content).hexdigest() == sha256


def test_a_start_has_its_teachers_tokenizer_and_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from conftest import tiny_llama, tiny_tokenizer

    from selectkd_eval.generate import end_tokens
    from selectkd_eval.pair import load_pair

    tokenizer = tiny_tokenizer(["say the red dog"])
    tiny_llama(tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|end|>"]})
    tokenizer.chat_template = "{% for m in messages %}<|user|>{{ m['content'] }}<|end|>{% endfor %}"
    tiny_llama(tokenizer, layers=2).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    words = ["start", "--model", "base", "--tokenizer", "teacher", "--end", "<|end|>", "--out", "start"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["prepare.py", *words])
    prepare.main()
    both = load_pair("teacher", "start")
    assert both.vocabulary == len(tokenizer)
    assert both.student.tokenizer.chat_template == tokenizer.chat_template
    assert both.student.tokenizer.convert_tokens_to_ids("<|end|>") in end_tokens(
        both.student.model, both.student.tokenizer
    )


COMPARISON = methods.Comparison(Path("out"), (0, 1, 2))


def trainings() -> list[TrainOptions]:
    return [job.options for task in COMPARISON.tasks() for job in task.jobs if job.verb == "train"]


def test_every_command_of_the_comparison_parses_back() -> None:
    for job in [*(job for task in COMPARISON.tasks() for job in task.jobs), COMPARISON.table()]:
        assert parse(job.arguments) == job.options
        check(job.options)
        if job.verb == "train":
            could_be_meant(job.options)


def test_every_method_meets_every_gate_under_every_seed_and_under_equal_terms() -> None:
    found = Counter((options.recipe, options.verifier, options.seed) for options in trainings())
    wanted = {(recipe, gate, seed) for recipe in RECIPES for gate in methods.GATES for seed in (0, 1, 2)}
    assert set(found) == wanted - {("speckd", "none", seed) for seed in (0, 1, 2)}
    assert set(found.values()) == {1}
    equal = {
        replace(options, name="", recipe="", verifier=None, seed=0, save=None, reference="", data="")
        for options in trainings()
    }
    assert len(equal) == 1
    assert len({options.data for options in trainings() if options.recipe != "sft"}) == 1
    # Seed after seed, so that a comparison is whole as early as possible.
    assert [options.seed for options in trainings()] == sorted(options.seed for options in trainings())


def test_a_task_waits_for_what_it_needs() -> None:
    tasks = {task.name: task for task in COMPARISON.tasks()}
    waiting = [task for task in tasks.values() if "adaspec" in task.name]
    assert len(waiting) == 9
    for task in waiting:
        reference = next(job.options.reference for job in task.jobs if job.verb == "train")
        needed = tasks[f"kd-none-seed{task.seed}"]
        assert needed.name in task.needs
        assert reference == str(needed.jobs[0].options.save)
        assert methods._next([task], {"teacher's text"}) is None
        assert methods._next([task], {"teacher's text", needed.name}) is task


def test_a_failed_task_stops_only_what_needs_it_and_finished_ones_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = AnswerOptions(prompts="mini-stories", limit=2, max_new_tokens=4, name="good", out=tmp_path, threads=1)
    missing = PasskOptions(model=str(tmp_path / "nowhere"), name="bad", out=tmp_path, threads=1)
    tasks = [
        methods.Task("bad", [methods.Job("passk", missing)]),
        methods.Task("after bad", [methods.Job("answer", replace(answer, limit=1))], ("bad",)),
        methods.Task("good", [methods.Job("answer", answer)]),
    ]
    monkeypatch.setattr(methods.Comparison, "tasks", lambda self: iter(tasks))
    comparison = methods.Comparison(tmp_path, (0,))
    assert methods.work(comparison, 1) == 2
    said = capsys.readouterr().err
    assert "no model directory" in said and "after bad, bad" in said
    assert methods.finished(tasks[2].jobs[0].record, answer)
    monkeypatch.setattr(methods.Comparison, "tasks", lambda self: iter(tasks[2:]))
    assert methods.work(comparison, 1) == 0
    assert "1 runs, 1 finished before" in capsys.readouterr().err
