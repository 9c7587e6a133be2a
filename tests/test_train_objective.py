"""What the loop minimises and reports is the objective of `loss`, on the text, noise and order that options name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import TinyPair
from training import six_updates, steps, train

from selectkd_eval import pair, records
from selectkd_eval.divergences import skl, srkl, tvd
from selectkd_eval.loss import rolled
from selectkd_eval.prompts import encode_example, load_prompts
from selectkd_eval.stress import corruption
from selectkd_eval.verbs import AnswerOptions, TrainOptions


@pytest.fixture
def base(tiny_pair: TinyPair, tmp_path: Path) -> TrainOptions:
    return six_updates(tiny_pair, tmp_path)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_selected_tokens_divides_the_gradient_by_the_selected_weight(base: TrainOptions, accumulation: int) -> None:
    common = {"k": 1, "beta": 0.1, "steps": 1, "accumulation": accumulation}
    (by_all, _), (by_selected, _) = (
        train(base, normaliser=normaliser, **common) for normaliser in ("valid_tokens", "selected_tokens")
    )
    [a], [b] = steps(by_all), steps(by_selected)
    assert a["mean_weight"] < 0.9
    assert b["grad_norm"] == pytest.approx(a["grad_norm"] / a["mean_weight"], rel=1e-4)
    assert b["loss"] == pytest.approx(a["loss"] / a["mean_weight"], rel=1e-6)


def test_the_loss_beside_the_bar_is_the_records(base: TrainOptions) -> None:
    record, _ = train(base, k=1, steps=2, accumulation=3, normaliser="selected_tokens", keep_checkpoints=0)
    state = json.loads((record.path.with_suffix("") / "checkpoint-2" / "trainer_state.json").read_text())
    told = [entry["loss"] for entry in state["log_history"] if "grad_norm" in entry]
    assert told == pytest.approx([row["loss"] for row in steps(record)], rel=1e-6)


def test_validation_is_the_plain_divergence_whatever_the_gate(base: TrainOptions) -> None:
    gated, _ = train(base, verifier="top-k", k=1, beta=0.0, steps=1)
    plain, _ = train(base, verifier="none", steps=1)
    before = [next(row for row in record.rows if row["key"] == "validation/0") for record in (gated, plain)]
    assert before[0]["loss"] == before[1]["loss"]
    assert before[0]["tar"] < 1
    assert before[1]["tar"] == 1


def test_distillm2_is_half_the_mean_over_pairs(base: TrainOptions) -> None:
    prompts = load_prompts(base.data).prompts[:6]
    of_teacher = [(prompt.text, prompt.answer or "") for prompt in prompts]
    of_student = [(prompt.text, "the red dog" + " sees" * (n % 4)) for n, prompt in enumerate(prompts)]
    records_of = {}
    for name, texts in (("teacher", of_teacher), ("student", of_student)):
        answers = AnswerOptions(model=name, prompts=base.data, out=base.out)
        card = {"name": name, "fingerprint": name, "parameters": 0, "method": name}
        with records.open_record("answer", answers, inputs={}, facts={"model": card}) as written:
            for prompt, (text, answer) in zip(prompts, texts, strict=True):
                facts = {"prompt": prompt.id, "text": text, "answer": answer, "seed": 0, "finish": "eos"}
                written.write(f"{prompt.id}/0", **facts, n_tokens=4)
            written.finish()
        records_of[name] = str(records.record_path("answer", answers))
    # One update per epoch. In the first of two, half the training is done: both halves weigh 1/2, and alpha is 0.1.
    options = {"recipe": "distillm2", "verifier": None, "steps": 2, "data": records_of["teacher"]}
    record, _ = train(base, **options, student_text=(records_of["student"], records_of["teacher"]))
    teacher, student = pair.load_model(base.teacher), pair.load_model(base.student)
    total = 0.0
    for texts, divergence in ((of_teacher, skl), (of_student, srkl)):
        for text, answer in texts:
            ids, response = encode_example(teacher.tokenizer, text, answer, 512)
            with torch.inference_mode():
                log_p, log_q = (
                    one.model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1) for one in (teacher, student)
                )
            total += 0.5 * float(divergence(log_p, log_q)[torch.tensor(response[1:])].mean())
    first = steps(record)[0]
    assert first["loss"] == pytest.approx(total / (2 * 6), rel=1e-5)
    assert (first["alpha_teacher"], first["alpha_student"], first["beta_c"]) == (0.1, 0.1, 0.5)
    assert steps(record)[1]["beta_c"] == 1


def test_fewer_texts_than_passes_are_a_pass_each(base: TrainOptions) -> None:
    whole, cut = (train(base, limit=3, steps=1, accumulation=accumulation)[0] for accumulation in (1, 8))
    assert steps(cut)[0]["loss"] == pytest.approx(steps(whole)[0]["loss"], rel=1e-5)
    assert steps(cut)[0]["grad_norm"] == pytest.approx(steps(whole)[0]["grad_norm"], rel=1e-4)


def test_distillms_threshold_hears_every_validation(base: TrainOptions) -> None:
    # At a learning rate of nothing every validation is as good as the first: not better by epsilon = 0.
    still = {"recipe": "distillm", "verifier": None, "lr": 1e-30, "eval_every": 1, "steps": 3}
    record, _ = train(base, **still, set=("epsilon=0", "phi_step=0.25"), generation_max_new_tokens=4)
    assert [row["phi"] for row in steps(record)] == [0, 0.25, 0.5]


def test_the_seed_orders_the_text(base: TrainOptions) -> None:
    first = [steps(train(base, steps=1, seed=seed)[0])[0]["loss"] for seed in (0, 1)]
    assert first[0] != first[1]


def test_noise_corrupts_the_teachers_word_on_the_token_it_is_drawn_for(base: TrainOptions) -> None:
    record, _ = train(base, student=base.teacher, batch_size=40, steps=1, teacher_noise=0.3)
    teacher = pair.load_model(base.teacher)
    overlap: list[float] = []
    for prompt in load_prompts(base.data).prompts:
        ids, response = encode_example(teacher.tokenizer, prompt.text, prompt.answer or "", 512)
        shifts = corruption(base.seed, prompt.id, len(ids), 0.3, len(teacher.tokenizer))
        with torch.inference_mode():
            logits = teacher.model(torch.tensor([ids])).logits
        # The logits at t - 1 speak about token t.
        noisy = rolled(logits[0, :-1], torch.tensor(shifts[1:]))
        agreed = 1 - tvd(noisy.log_softmax(-1), logits[0, :-1].log_softmax(-1))
        overlap += agreed[torch.tensor(response[1:])].tolist()
    assert steps(record)[0]["alpha"] == pytest.approx(sum(overlap) / len(overlap), abs=1e-5)
    assert 0.5 < steps(record)[0]["alpha"] < 0.95
