"""`train` end to end on two tiny random Llamas: rows, resume, accumulation, LoRA, early stopping,
refusals.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TinyPair, tiny_llama, tiny_tokenizer
from safetensors.torch import load_file
from training import assert_same, results, six_updates, steps, train

from selectkd_eval import measures, pair, records
from selectkd_eval.batches import Example, tensors
from selectkd_eval.cli import main
from selectkd_eval.demo.plan import Job
from selectkd_eval.environment import fingerprint_dir
from selectkd_eval.errors import InputError, SetupError
from selectkd_eval.loss import rolled, selective_loss
from selectkd_eval.materials import chosen_recipe, gather, loss_spec
from selectkd_eval.objective import NORMALISERS, single
from selectkd_eval.prompts import encode_example
from selectkd_eval.stress import corruption
from selectkd_eval.train import run
from selectkd_eval.verbs import TrainOptions


@pytest.fixture
def base(tiny_pair: TinyPair, tmp_path: Path) -> TrainOptions:
    return six_updates(tiny_pair, tmp_path)


def test_rows_card_and_student(base: TrainOptions, capsys: pytest.CaptureFixture[str]) -> None:
    record, weights = train(base, seed=3)
    assert capsys.readouterr().out.strip() == str(record.path)
    assert [row["key"] for row in steps(record)] == [f"step/{n}" for n in range(1, 7)]
    validations = [row for row in record.rows if row["event"] == "validation"]
    assert [row["step"] for row in validations] == [0, 2, 4, 6]
    assert validations[-1]["loss"] < validations[0]["loss"]
    assert validations[0]["tar"] == validations[0]["tar_top_k"]
    for row in validations:
        kept = row["responses"]
        assert {len(values) for values in kept.values()} == {record.facts["validation"]["n"]}
        for name in ("tar_top_k", "tar_spec_k"):
            assert np.mean(kept[name]) == pytest.approx(row[name], abs=1e-6)
            assert measures.validated(record.rows, name)[row["step"]].value == pytest.approx(row[name], abs=1e-6)
        assert np.average(kept["alpha"], weights=kept["n_tokens"]) == pytest.approx(row["alpha"], abs=1e-6)
    for row in steps(record):
        assert 0 <= row["tar"] <= 1
        assert 0 < row["alpha"] < 1
        assert 0 <= row["bite"] <= 1
        assert row["loss"] == pytest.approx(row["divergence"] * (1 - row["bite"]), rel=0.2)
        assert row["tokens"] > 0
    student = pair.load_model(str(record.path))
    assert (student.card.method, student.card.base_method, student.card.seed) == ("KD + Top-k", "KD", 3)
    # What makes it another set-up than a student trained otherwise, whatever the seeds.
    assert student.card.training["lr"] == base.lr
    assert student.card.training["batch"] == base.batch_size
    assert not torch.equal(
        weights["model.norm.weight"], load_file(Path(base.student) / "model.safetensors")["model.norm.weight"]
    )


def test_the_same_command_again_does_nothing(base: TrainOptions) -> None:
    record, _ = train(base)
    before = record.path.read_bytes()
    train(base)
    assert record.path.read_bytes() == before


def test_a_complete_record_whose_student_is_gone_is_refused(base: TrainOptions) -> None:
    record, _ = train(base, steps=1)
    (Path(pair.locate(str(record.path))) / "selectkd.json").unlink()
    with pytest.raises(InputError, match="delete the record to train again"):
        train(base, steps=1)


@pytest.mark.parametrize("normaliser", [name for name in NORMALISERS if name != "class_mean"])
def test_eight_forward_passes_of_one_equal_one_of_eight(base: TrainOptions, normaliser: str) -> None:
    common = {"normaliser": normaliser, "steps": 3, "beta": 0.1, "verifier": "spec-k", "k": 1, "lr": 1e-3}
    whole, weights = train(base, **common)
    cut, cut_weights = train(base, accumulation=8, **common)
    for a, b in zip(steps(whole), steps(cut), strict=True):
        for quantity in ("loss", "grad_norm", "tar", "bite", "alpha"):
            assert a[quantity] == pytest.approx(b[quantity], rel=1e-4), quantity
    assert_same(weights, cut_weights, rtol=1e-3, atol=1e-4)


def test_the_last_and_smaller_update_of_an_epoch_is_cut_as_exactly(base: TrainOptions) -> None:
    # 40 texts in updates of 12 are 3 of 12 and 1 of 4; in passes of 3 the last pass of the epoch holds one text.
    common = {"normaliser": "selected_tokens", "steps": 5, "beta": 0.1, "batch_size": 12, "lr": 1e-3}
    (whole, weights), (cut, cut_weights) = train(base, **common), train(base, accumulation=4, **common)
    tokens = [row["tokens"] for row in steps(whole)]
    assert tokens[3] < tokens[0] / 2
    assert [row["tokens"] for row in steps(cut)] == tokens
    for a, b in zip(steps(whole), steps(cut), strict=True):
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    assert_same(weights, cut_weights, rtol=1e-3, atol=1e-4)


def test_sampled_gates_survive_accumulation_too(base: TrainOptions) -> None:
    common = {"verifier": "spec-k", "k": 1, "spec_sampled": True, "steps": 1}
    (whole, _), (cut, _) = train(base, **common), train(base, accumulation=4, **common)
    assert steps(whole)[0]["tar"] == pytest.approx(steps(cut)[0]["tar"])
    tokens = steps(whole)[0]["tokens"]
    accepted = steps(whole)[0]["tar_pooled"] * tokens
    assert accepted == pytest.approx(round(accepted), abs=1e-3), "sampled acceptances are whole tokens"


def test_beta_one_is_plain_distillation(base: TrainOptions) -> None:
    _, gated = train(base, verifier="spec-k", beta=1.0, steps=3)
    _, plain = train(base, verifier="none", steps=3)
    assert_same(gated, plain)


def test_killed_at_a_random_moment_it_ends_as_if_nothing_had_happened(base: TrainOptions) -> None:
    options = dataclasses.replace(base, steps=30, save_every=4, eval_every=10, verifier="spec-k")
    whole, weights = train(options, out=base.out / "whole")
    command = [sys.executable, "-m", "selectkd_eval", *Job("train", options).arguments]
    path = records.record_path("train", options)
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    while running.poll() is None:
        # Eleven rows: the checkpoint of update 8 is whole, updates 9 to 11 are in the record only.
        if path.exists() and path.read_bytes().count(b'"event":"step"') >= 11:
            running.send_signal(signal.SIGKILL)
        time.sleep(0.002)
    assert running.wait() == -signal.SIGKILL
    with path.open("a") as file:
        file.write('{"torn')
    record, resumed = train(options)
    assert_same(resumed, weights)
    assert results(record) == results(whole)
    keys = [json.loads(line)["key"] for line in path.read_text().splitlines()[1:-1]]
    assert len(keys) == len(set(keys)), "a finished row was written again"


def test_killed_before_the_student_was_saved_it_only_saves(base: TrainOptions) -> None:
    record, weights = train(base)
    directory = Path(pair.locate(str(record.path)))
    (directory / "selectkd.json").unlink()
    (directory / "model.safetensors").unlink()
    lines = record.path.read_text().splitlines(keepends=True)
    record.path.write_text("".join(lines[:-1]))
    again, saved = train(base)
    assert_same(saved, weights)
    assert results(again) == results(record)


def test_a_checkpoint_cut_off_while_being_written_is_not_resumed(base: TrainOptions) -> None:
    record, weights = train(base, keep_checkpoints=0)
    directory = Path(pair.locate(str(record.path)))
    (directory / "checkpoint-6" / "selectkd.json").unlink()
    (directory / "checkpoint-6" / "optimizer.pt").write_bytes(b"torn")
    record.path.write_text("".join(record.path.read_text().splitlines(keepends=True)[:-1]))
    _, resumed = train(base, keep_checkpoints=0)
    assert_same(resumed, weights)


def test_early_stopping_keeps_the_best_student(base: TrainOptions) -> None:
    # A rate so large that the loss jumps about: on no machine does it fall for a hundred validations on end.
    changes = {"recipe": "sft", "verifier": "none", "steps": 300, "lr": 0.1, "schedule": "constant"}
    record, weights = train(base, **changes, eval_every=3, patience=2)
    losses = {row["step"]: row["loss"] for row in record.rows if row["event"] == "validation"}
    best = min(losses, key=lambda step: losses[step])
    last = max(losses)
    assert last < 300
    assert last == best + 6
    checkpoint = Path(pair.locate(str(record.path))) / f"checkpoint-{best}" / "model.safetensors"
    assert_same(weights, load_file(checkpoint))


def test_lora_trains_the_adapter_and_saves_either_form(base: TrainOptions, recwarn: pytest.WarningsRecorder) -> None:
    teacher = fingerprint_dir(base.teacher)
    lora = {"lora_rank": 2, "lora_dropout": 0.1, "steps": 3}
    _, merged = train(base, **lora)
    assert not [one for one in recwarn if "gradient_checkpointing" in str(one.message)], "libraries' own affairs"
    options = dataclasses.replace(base, keep_adapter=True, **lora)
    run(options)
    adapted = pair.load_model(str(records.record_path("train", options)))
    assert (Path(pair.locate(str(records.record_path("train", options)))) / "adapter_config.json").exists()
    state = adapted.model.state_dict()
    assert_same({name: state[name] for name in merged}, merged, rtol=1e-5, atol=1e-6)
    original = load_file(Path(base.student) / "model.safetensors")
    changed = {name for name in merged if not torch.equal(merged[name], original[name])}
    assert changed
    assert all("_proj" in name for name in changed)
    assert fingerprint_dir(base.teacher) == teacher


def test_sft_needs_no_teacher_and_epochs_count_passes(base: TrainOptions) -> None:
    record, _ = train(base, recipe="sft", verifier="none", teacher="/nowhere", steps=0, epochs=0.5)
    n = len(Path(base.data).read_text().splitlines())
    assert len(steps(record)) == -(-n // 2 // base.batch_size)
    assert steps(record)[0]["alpha"] is None
    assert record.facts["teacher"] is None


def test_seqkd_lets_the_teacher_write(base: TrainOptions, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Write {i} :"}) + "\n" for i in range(12)))
    # A random teacher seldom stops by itself; one that always prefers the end token writes empty answers.
    teacher = tmp_path / "terse"
    loaded = pair.load_model(base.teacher)
    torch.nn.init.zeros_(loaded.model.model.norm.weight)
    loaded.model.save_pretrained(teacher)
    loaded.tokenizer.save_pretrained(teacher)
    record, _ = train(base, recipe="seqkd", verifier="none", data=str(prompts), teacher=str(teacher), steps=2)
    assert record.facts["data"]["policy"] == "teacher"
    assert record.facts["data"]["answers_by"] == str(teacher)
    assert record.facts["method"] == "SeqKD"
    [answers] = base.out.glob("answer-*.jsonl")
    kept = [row for row in records.read(answers).rows if row["finish"] == "eos"]
    assert record.facts["data"]["n"] == len(kept) > 0
    assert record.facts["data"]["dropped_cut_answers"] == 12 - len(kept)


def test_padded_heads_train_and_other_tokenizers_are_refused(base: TrainOptions, tmp_path: Path) -> None:
    tokenizer = pair.load_tokenizer(base.student)
    padded = tmp_path / "padded"
    tiny_llama(tokenizer, vocabulary=len(tokenizer) + 40).save_pretrained(padded)
    tokenizer.save_pretrained(padded)
    record, _ = train(base, student=str(padded), steps=1)
    assert len(steps(record)) == 1
    tokenizer = tiny_tokenizer(["completely different words here"])
    other = tmp_path / "other"
    tiny_llama(tokenizer).save_pretrained(other)
    tokenizer.save_pretrained(other)
    with pytest.raises(InputError, match="different tokenizers"):
        train(base, student=str(other), steps=1)


def test_text_longer_than_the_models_allow_is_cut(base: TrainOptions, tmp_path: Path) -> None:
    data = tmp_path / "long.jsonl"
    data.write_text(json.dumps({"prompt": "Say :", "answer": "dog " * 700}) + "\n")
    record, _ = train(base, data=str(data), steps=1)
    before = len(encode_example(pair.load_tokenizer(base.student), "Say :", "", 64)[0]) - 1
    assert steps(record)[0]["tokens"] == 512 - before


def test_evaluation_prompts_are_in_neither_the_training_nor_the_validation_text(
    base: TrainOptions, tmp_path: Path
) -> None:
    tests = tmp_path / "tests.jsonl"
    lines = [*Path(base.data).read_text().splitlines()[:5], *Path(base.validation).read_text().splitlines()[:3]]
    tests.write_text("".join(json.dumps({"question": json.loads(line)["prompt"]}) + "\n" for line in lines))
    record, _ = train(base, exclude=(str(tests),), steps=1)
    assert (record.facts["data"]["n"], record.facts["data"]["dropped"][str(tests)]) == (35, 5)
    assert (record.facts["validation"]["n"], record.facts["validation"]["dropped_duplicates"]) == (5, 3)
    with pytest.raises(InputError, match="nothing outside the sets"):
        train(base, exclude=(base.validation,), steps=1)


def test_an_epoch_is_as_many_updates_as_all_processes_together_need(
    base: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = dataclasses.replace(base, steps=0, epochs=1.0)
    recipe = chosen_recipe(options)
    assert gather(recipe, loss_spec(recipe, options), options).steps == 5
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert gather(recipe, loss_spec(recipe, options), options).steps == 3
    with pytest.raises(InputError, match="let the teacher answer first"):
        run(dataclasses.replace(options, recipe="seqkd", verifier="none"))


def test_the_first_response_token_and_the_end_token_are_trained(tiny_pair: TinyPair) -> None:
    tokenizer = pair.load_tokenizer(str(tiny_pair.student))
    ids, response = encode_example(tokenizer, "Say 1 :", "the red dog", 64)
    batch = tensors([Example(ids, response, "ab"), Example(ids[:-3], response[:-3], "cd")], tokenizer.pad_token_id)
    logits = torch.randn(2, len(ids), len(tokenizer), requires_grad=True)
    loss, stats = selective_loss(
        None, logits, batch["input_ids"], batch["response_mask"], single("nll", normaliser="valid_tokens")
    )
    loss.backward()
    assert logits.grad is not None
    trained = logits.grad.abs().sum(-1)[0] > 0
    first = response.index(True)
    assert trained.tolist() == [first - 1 <= t < len(ids) - 1 for t in range(len(ids))]
    assert ids[-1] == tokenizer.eos_token_id
    # Gradient of -log q[y]: only the target's entry is negative.
    assert logits.grad[0, first - 1].argmin() == ids[first]
    assert logits.grad[0, -2].argmin() == tokenizer.eos_token_id
    assert stats.tokens == 2 * sum(response) - 3


def test_corruption_hits_its_share_of_positions_and_nothing_else() -> None:
    shifts = torch.tensor([corruption(0, "a prompt", 4000, 0.3, 50)])
    assert (shifts > 0).float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert shifts.max() == 49
    assert corruption(0, "a prompt", 100, 0.3, 50) == shifts[0, :100].tolist()
    assert corruption(1, "a prompt", 100, 0.3, 50) != shifts[0, :100].tolist()
    clean = torch.randn(4000, 50)
    noisy = rolled(clean, shifts[0])
    for position in range(200):
        expected = clean[position].roll(int(shifts[0, position]))
        torch.testing.assert_close(noisy[position], expected, rtol=0, atol=0)


def test_a_noisy_teacher_is_harder_to_agree_with(base: TrainOptions) -> None:
    clean, _ = train(base, student=base.teacher, steps=1)
    noisy, _ = train(base, student=base.teacher, steps=1, teacher_noise=1.0)
    assert steps(clean)[0]["alpha"] == pytest.approx(1, abs=1e-5)
    assert steps(noisy)[0]["alpha"] < 0.5
    assert noisy.options["teacher_noise"] == 1.0
    validations = [[r["loss"] for r in record.rows if r["key"] == "validation/0"] for record in (clean, noisy)]
    assert validations[0] == validations[1], "validation asks the clean teacher"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"recipe": "kdd"}, "did you mean 'kd'"),
        ({"divergence": "fkll"}, "did you mean 'fkl'"),
        ({"batch_size": 8, "accumulation": 9}, "cannot be cut"),
        ({"set": ("lambda",)}, "takes NAME=VALUE"),
        ({"set": ("lambda=1",)}, "no constants of its own"),
        ({"recipe": "gkd", "set": ("lamda=1",)}, "did you mean 'lambda'"),
        ({"recipe": "distillm2", "divergence": "fkl"}, "made of skl and srkl"),
        ({"alpha": 0.5}, "--alpha belongs to another divergence"),
        ({"recipe": "adaspec"}, "give its record as --reference"),
        ({"recipe": "minillm"}, "policy gradient"),
        ({"recipe": "distillspec", "teacher_cache": Path("cache")}, "written anew"),
        ({"lr": 0.0}, "--lr above 0"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"teacher_noise": 1.5}, "share of positions"),
        ({"max_length": 4}, "no room for its answer"),
        ({"student": "nowhere/at/all"}, "no model directory"),
        ({"data": "nowhere.jsonl"}, "no prompt file"),
    ],
)
def test_wrong_requests_are_refused(base: TrainOptions, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        run(dataclasses.replace(base, **changes))


def test_a_loss_that_explodes_ends_with_one_sentence(base: TrainOptions, capsys: pytest.CaptureFixture[str]) -> None:
    options = dataclasses.replace(base, lr=1e30, clip=0.0, schedule="constant")
    assert main(Job("train", options).arguments) == 2
    error = capsys.readouterr().err
    assert "lower --lr" in error
    assert "Traceback" not in error


def test_a_full_disk_is_foreseen(base: TrainOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selectkd_eval.environment.free_bytes", lambda path: 1000)
    with pytest.raises(SetupError, match="free some space"):
        run(base)
