"""Training that was killed, moved, given other inputs or ran out of disk: nothing is lost and nothing is mixed up."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TinyPair
from training import assert_same, results, six_updates, steps, train

from selectkd_eval import records
from selectkd_eval.checkpoints import require_space
from selectkd_eval.demo.plan import Job
from selectkd_eval.errors import InputError, SetupError
from selectkd_eval.pair import load_model
from selectkd_eval.verbs import TrainOptions


@pytest.fixture
def base(tiny_pair: TinyPair, tmp_path: Path) -> TrainOptions:
    return six_updates(tiny_pair, tmp_path)


def cut_back(record: records.Record, to: int) -> Path:
    """Leave a run's directory and record as a kill shortly after update `to` would have; return the directory."""
    save = record.path.with_suffix("")
    for checkpoint in save.glob("checkpoint-*"):
        if int(checkpoint.name.rpartition("-")[2]) > to:
            shutil.rmtree(checkpoint)
    for name in ("selectkd.json", "model.safetensors"):
        (save / name).unlink(missing_ok=True)
    lines = record.path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line).get("step", 0) <= to and '"type":"end"' not in line]
    record.path.write_text("".join(kept))
    return save


def test_early_stopping_remembers_across_a_kill_how_long_it_has_waited(base: TrainOptions) -> None:
    changes = {"recipe": "sft", "verifier": "none", "steps": 60, "lr": 0.05, "eval_every": 3, "patience": 2}
    whole, weights = train(base, keep_checkpoints=0, **changes)
    cut_back(whole, to=max(row["step"] for row in steps(whole)) - 3)
    resumed, again = train(base, keep_checkpoints=0, **changes)
    assert results(resumed) == results(whole)
    assert_same(again, weights)


def test_lora_with_early_stopping_survives_a_kill(base: TrainOptions) -> None:
    changes = {"lora_rank": 2, "patience": 5, "keep_checkpoints": 0}
    whole, weights = train(base, **changes)
    cut_back(whole, to=2)
    resumed, again = train(base, **changes)
    assert results(resumed) == results(whole)
    assert_same(again, weights)


@pytest.mark.parametrize("keep", [1, 2])
def test_old_checkpoints_go_only_once_the_new_one_is_whole(
    base: TrainOptions, keep: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_at_the_card: list[int] = []

    def count_then_write(directory: Path, card: dict[str, object]) -> None:
        whole_at_the_card.append(len(list(directory.parent.glob("checkpoint-*/selectkd.json"))))
        (directory / "selectkd.json").write_text(json.dumps(card))

    monkeypatch.setattr("selectkd_eval.course.write_card", count_then_write)
    record, _ = train(base, steps=8, keep_checkpoints=keep)
    assert whole_at_the_card == [min(saved, keep) for saved in range(4)]
    left = sorted(path.name for path in record.path.with_suffix("").glob("checkpoint-*"))
    assert left == ["checkpoint-6", "checkpoint-8"][-keep:]


def test_early_stopping_keeps_the_best_checkpoint_and_the_last(base: TrainOptions) -> None:
    changes = {"recipe": "sft", "verifier": "none", "steps": 300, "lr": 0.1, "schedule": "constant"}
    record, _ = train(base, keep_checkpoints=1, eval_every=3, patience=2, **changes)
    last = max(row["step"] for row in steps(record))
    left = {path.name for path in record.path.with_suffix("").glob("checkpoint-*")}
    assert left == {f"checkpoint-{last - 6}", f"checkpoint-{last}"}


def test_a_directory_of_another_run_is_refused(base: TrainOptions, tmp_path: Path) -> None:
    save = tmp_path / "student"
    train(base, save=save)
    with pytest.raises(InputError, match=r"another run \(record, seed differ\)"):
        train(base, save=save, seed=1)


def test_checkpoints_from_other_text_are_refused_though_the_record_is_gone(base: TrainOptions, tmp_path: Path) -> None:
    data = tmp_path / "text.jsonl"
    lines = Path(base.data).read_text().splitlines(keepends=True)
    data.write_text("".join(lines))
    record, _ = train(base, data=str(data))
    cut_back(record, to=4).joinpath("checkpoint-4")
    data.write_text("".join(lines[:20]))
    with pytest.raises(InputError, match="data has changed"):
        train(base, data=str(data))
    record.path.unlink()
    with pytest.raises(InputError, match=r"another run \(data differ\)"):
        train(base, data=str(data))


def test_a_lost_record_is_not_finished_without_its_updates(base: TrainOptions) -> None:
    record, _ = train(base)
    save = cut_back(record, to=4)
    record.path.unlink()
    with pytest.raises(InputError, match="lacks 4 of the updates"):
        train(base)
    shutil.rmtree(save)
    again, _ = train(base)
    assert results(again) == results(record)


def limited(options: TrainOptions, size: int) -> subprocess.CompletedProcess[str]:
    """The command in a process whose files may not grow beyond `size` bytes: the kernel refuses as a full disk does."""
    code = f"""
import resource, signal, sys
from selectkd_eval.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, resource.RLIM_INFINITY))
sys.exit(main({Job("train", options).arguments!r}))
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("part", ["weights", "optimizer"])
def test_a_disk_that_fills_up_while_saving_loses_nothing(base: TrainOptions, part: str) -> None:
    whole, weights = train(base, out=base.out / "whole")
    model = (whole.path.with_suffix("") / "model.safetensors").stat().st_size
    # The optimizer's two moments are twice the weights.
    done = limited(base, model - 1000 if part == "weights" else model + 1000)
    assert done.returncode == 2, done.stderr
    assert "no space left while saving" in done.stderr and "Traceback" not in done.stderr
    record, again = train(base)
    assert results(record) == results(whole)
    assert_same(again, weights)


def test_what_a_killed_run_has_written_counts_as_space_it_has(
    base: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, _ = train(base)
    save = cut_back(record, to=4)
    written = sum(file.stat().st_size for file in save.rglob("*") if file.is_file())
    student = load_model(base.student).model
    needed = 4 * student.num_parameters() * (1 + 3 * 3)
    monkeypatch.setattr("selectkd_eval.environment.free_bytes", lambda path: needed - written)
    require_space(student, save, 6, base)
    monkeypatch.setattr("selectkd_eval.environment.free_bytes", lambda path: needed - written - 1)
    with pytest.raises(SetupError, match="free some space"):
        require_space(student, save, 6, base)


def test_space_is_reckoned_for_all_checkpoints_of_a_run_counted_in_epochs(
    base: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = load_model(base.student).model
    monkeypatch.setattr("selectkd_eval.environment.free_bytes", lambda path: 4 * student.num_parameters() * 20)
    every = dataclasses.replace(base, steps=0, keep_checkpoints=0)
    with pytest.raises(SetupError, match="free some space"):
        require_space(student, Path("nowhere"), 100, every)


def test_a_place_where_no_student_can_be_saved_is_refused_before_the_record(base: TrainOptions, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot save the student in .*file: File exists; give another --save"):
        train(base, save=tmp_path / "file")
    assert not list(base.out.rglob("*.jsonl"))


def test_another_place_for_a_student_that_was_begun_elsewhere_is_refused(base: TrainOptions, tmp_path: Path) -> None:
    record, _ = train(base)
    cut_back(record, to=4)
    with pytest.raises(InputError, match="was begun with --save"):
        train(base, save=tmp_path / "elsewhere")
