"""Same noise for the same name, rows as long as the weights', the model itself in the middle, and its weights
put back.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import TinyPair, tiny_llama

from selectkd_eval import landscape, pair, prompts, records, surfaces
from selectkd_eval.directions import Plane, fingerprint, left_out, noise, normalised, perturbed
from selectkd_eval.errors import InputError
from selectkd_eval.teacher_forced import batches, encode, log_probs
from selectkd_eval.verbs import LandscapeOptions

V = 24


def options(tiny_pair: TinyPair, out: Path, **changes) -> LandscapeOptions:
    given = {
        "teacher": str(tiny_pair.teacher),
        "student": (str(tiny_pair.student),),
        "data": str(tiny_pair.data),
        "sequences": 4,
        "grid": 5,
        "threads": 1,
        "device": "cpu",
        "out": out,
    }
    return LandscapeOptions(**given | changes)


def only_record(out: Path) -> records.Record:
    (path,) = out.glob("landscape-*.jsonl")
    return records.read(path)


def test_noise_depends_on_seed_axis_and_name_alone():
    model = tiny_llama([], vocabulary=V)
    deeper = tiny_llama([], layers=3, vocabulary=V)
    drawn = {name: noise(0, 1, name, p.shape) for name, p in perturbed(model).items()}
    for name, p in reversed(perturbed(deeper).items()):
        if name in drawn:
            assert torch.equal(noise(0, 1, name, p.shape), drawn[name])
    first = next(iter(drawn))
    shape = drawn[first].shape
    others = [noise(1, 1, first, shape), noise(0, 2, first, shape), noise(0, 1, "another", shape)]
    assert all(not torch.equal(drawn[first], other) for other in others)
    assert abs(float(noise(0, 1, "large", torch.Size([200, 200])).std()) - 1) < 0.02


def test_every_row_of_a_direction_is_as_long_as_the_weights_own():
    weight = torch.randn(7, 5)
    weight[2] = 0
    direction = normalised(noise(0, 1, "w", weight.shape), weight)
    assert torch.allclose(direction.norm(dim=1), weight.norm(dim=1), atol=1e-6)
    assert not direction[2].any()
    experts = torch.randn(3, 4, 5)
    moved = normalised(noise(0, 1, "w", experts.shape), experts)
    assert torch.allclose(moved.flatten(1).norm(dim=1), experts.flatten(1).norm(dim=1), atol=1e-5)


def test_gains_stay_and_tied_tensors_move_once():
    model = tiny_llama([], vocabulary=V)
    names = perturbed(model)
    assert "model.embed_tokens.weight" in names and "lm_head.weight" not in names
    assert not [name for name in names if "norm" in name]
    assert left_out(model) == {"params_zeroed": 3, "zero_rows": 1}  # the padding token
    gains = {name: p.detach().clone() for name, p in model.named_parameters() if p.dim() == 1}
    with Plane(model, 0).on() as plane:
        plane.move(0.3, -0.2)
        assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
        assert all(torch.equal(dict(model.named_parameters())[name], gain) for name, gain in gains.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_move_exactly_and_are_back_even_after_a_failure(dtype):
    model = tiny_llama([], vocabulary=V).to(dtype)
    own = {name: p.detach().clone() for name, p in perturbed(model).items()}
    addresses = {name: p.data_ptr() for name, p in perturbed(model).items()}
    plane = Plane(model, 4)

    def fail() -> None:
        with plane.on():
            for a, b in ((0.5, 0.5), (-0.5, 0.1), (0.25, -0.5)):
                plane.move(a, b)
            start = 0
            for name, p in perturbed(model).items():
                d1, d2 = (normalised(noise(4, axis, name, p.shape), own[name].float()) for axis in (1, 2))
                expected = own[name].float() + 0.25 * d1 - 0.5 * d2
                assert torch.allclose(
                    p.float(), expected.to(dtype).float(), atol=1e-6, rtol=1e-2 if dtype != torch.float32 else 1e-5
                )
                start += p.numel()
            plane.move(0.0, 0.0)
            assert fingerprint(perturbed(model)) == fingerprint(own)
            plane.move(1.0, 1.0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert fingerprint(perturbed(model)) == fingerprint(own)
    assert {name: p.data_ptr() for name, p in perturbed(model).items()} == addresses


def test_the_centre_is_the_students_own_loss(tiny_pair, tmp_path, capsys):
    landscape.run(options(tiny_pair, tmp_path, directions=2))
    record = only_record(tmp_path)
    assert len(record.rows) == 2 * 25
    p, q = pair.load_model(str(tiny_pair.teacher)), pair.load_model(str(tiny_pair.student))
    total, count = 0.0, 0
    with torch.inference_mode():
        for prompt in prompts.load_prompts(str(tiny_pair.data), 4).prompts:
            ids, response = prompts.encode_example(p.tokenizer, prompt.text, prompt.answer, 100)
            log_p, log_q = (m.model(torch.tensor([ids])).logits[0].log_softmax(-1) for m in (p, q))
            kl = (log_p.exp() * (log_p - log_q)).sum(-1)[:-1]
            total += float(kl[torch.tensor(response)[1:]].sum())
            count += sum(response)
    for seed in (0, 1):
        assert surfaces.surface(record.rows, 0, seed).centre == pytest.approx(total / count, rel=1e-5)
    first, second = (surfaces.surface(record.rows, 0, seed).loss for seed in (0, 1))
    assert (first != second).sum() == 24  # all but the centre
    assert "filter-normalised" in capsys.readouterr().out


def test_the_teacher_as_its_own_student_sits_in_a_minimum(tiny_pair, tmp_path):
    landscape.run(options(tiny_pair, tmp_path, student=(str(tiny_pair.teacher),)))
    surface = surfaces.surface(only_record(tmp_path).rows, 0, 0)
    assert surface.centre == pytest.approx(0, abs=1e-6)
    assert (surface.loss >= -1e-6).all() and surface.loss.max() > 0.01


def test_students_share_directions_and_differ_in_loss_only(tiny_pair, tmp_path):
    twin = tmp_path / "twin"
    loaded = pair.load_model(str(tiny_pair.student))
    tiny_llama(loaded.tokenizer, seed=9).save_pretrained(twin)
    loaded.tokenizer.save_pretrained(twin)
    both = (str(tiny_pair.student), str(twin), str(tiny_pair.student))
    landscape.run(options(tiny_pair, tmp_path / "out", student=both, grid=3))
    record = only_record(tmp_path / "out")
    first, other, again = (surfaces.surface(record.rows, index, 0).loss for index in range(3))
    assert (first == again).all() and (first != other).all()


def test_students_of_different_shape_are_refused(tiny_pair, tmp_path):
    with pytest.raises(InputError, match="one architecture"):
        landscape.run(options(tiny_pair, tmp_path, student=(str(tiny_pair.student), str(tiny_pair.teacher))))


@pytest.mark.parametrize("wrong", [{"grid": 4}, {"grid": 1}, {"radius": 0.0}, {"directions": 0}, {"sequences": 0}])
def test_impossible_requests_are_refused(tiny_pair, tmp_path, wrong):
    with pytest.raises(InputError):
        landscape.run(options(tiny_pair, tmp_path, **wrong))


def test_a_distance_without_a_point_is_a_dash(tiny_pair, tmp_path, capsys):
    landscape.run(options(tiny_pair, tmp_path, grid=3, radius=0.5))
    header, line, *_ = capsys.readouterr().out.splitlines()
    assert header.endswith("rise at |r| = 0.25  rise at |r| = 0.5")
    near, far = line.split()[-2:]
    assert near == "–" and float(far) != 0


def test_batching_does_not_change_the_loss(tiny_pair):
    p, q = pair.load_model(str(tiny_pair.teacher)), pair.load_model(str(tiny_pair.student))
    examples = encode(p.tokenizer, prompts.load_prompts(str(tiny_pair.data), 6), p.model, q.model)
    losses = []
    for size in (1, 4):
        text = list(batches(examples, size, 0, "cpu"))
        with torch.inference_mode():
            log_p = [log_probs(p.model, batch, 200) for batch in text]
            losses.append(landscape.loss_sum(q.model, text, log_p))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_run_killed_at_any_moment_goes_on_without_repeating_a_point(tiny_pair, tmp_path):
    killed = options(tiny_pair, tmp_path / "killed", grid=15)
    command = [
        *(
            sys.executable,
            "-m",
            "selectkd_eval",
            "landscape",
            "--teacher",
            killed.teacher,
            "--student",
            *killed.student,
        ),
        *("--data", killed.data, "--sequences", "4", "--grid", "15", "--threads", "1", "--device", "cpu"),
        *("--out", str(killed.out)),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if any(path.read_bytes().count(b"\n") > 20 for path in killed.out.glob("*.jsonl")):
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (path,) = killed.out.glob("*.jsonl")
    before = path.read_text().splitlines(keepends=True)
    assert 20 < len(before) < 15 * 15, "killed in the middle"
    landscape.run(killed)
    rows = [json.loads(line) for line in path.read_text().splitlines()[1:-1]]
    assert len(rows) == len({row["key"] for row in rows}) == 15 * 15
    landscape.run(options(tiny_pair, tmp_path / "whole", grid=15))
    whole = {row["key"]: row["loss_sum"] for row in only_record(tmp_path / "whole").rows}
    assert {row["key"]: row["loss_sum"] for row in rows} == pytest.approx(whole, rel=1e-6)
