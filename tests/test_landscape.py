"""The verb: the model itself in the middle, one plane and one loss for all students, and nothing measured twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import tiny_llama
from landscape_runs import of_kind, only_record, options, saved

from selectkd_eval import landscape, pair, prompts, surfaces
from selectkd_eval.directions import fingerprint
from selectkd_eval.errors import InputError


@pytest.fixture(scope="module")
def untied(tiny_pair, tmp_path_factory) -> str:
    """A student with its own output layer, gains far from 1, and two layers."""
    loaded = pair.load_model(str(tiny_pair.student))
    model = tiny_llama(loaded.tokenizer, layers=2, seed=5)
    model.config.tie_word_embeddings = False
    torch.manual_seed(6)
    model.lm_head.weight = torch.nn.Parameter(0.3 * torch.randn_like(model.lm_head.weight))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data = torch.exp(0.3 * torch.randn_like(parameter))
    return saved(model, loaded.tokenizer, tmp_path_factory.mktemp("untied"))


# ---- the surface ------------------------------------------------------------


def test_the_centre_is_the_students_own_loss(tiny_pair, tmp_path, capsys):
    landscape.run(options(tiny_pair, tmp_path, directions=2))
    record = only_record(tmp_path)
    assert len(record.rows) == len(of_kind(record.rows, "grid")) == 2 * 25
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
        assert surfaces.surface(record.rows, 0, seed).centre == pytest.approx(total / count, rel=1e-6)
    first, second = (surfaces.surface(record.rows, 0, seed).loss for seed in (0, 1))
    assert (first != second).sum() == 24  # all but the centre
    printed = capsys.readouterr().out
    assert "filter-normalised" in printed and "one picture does not show that a method is flatter" in printed


def test_the_teacher_as_its_own_student_sits_in_a_minimum(tiny_pair, tmp_path):
    landscape.run(options(tiny_pair, tmp_path, student=(str(tiny_pair.teacher),)))
    surface = surfaces.surface(only_record(tmp_path).rows, 0, 0)
    assert surface.centre == pytest.approx(0, abs=1e-6)
    assert (surface.loss >= -1e-6).all() and surface.loss.max() > 0.01


def test_students_share_directions_and_differ_in_loss_only(tiny_pair, tmp_path):
    loaded = pair.load_model(str(tiny_pair.student))
    twin = saved(tiny_llama(loaded.tokenizer, seed=9), loaded.tokenizer, tmp_path / "twin")
    both = (str(tiny_pair.student), twin, str(tiny_pair.student))
    landscape.run(options(tiny_pair, tmp_path / "out", student=both, grid=3, held_out=4))
    record = only_record(tmp_path / "out")
    first, other, again = (surfaces.surface(record.rows, index, 0) for index in range(3))
    assert (first.loss == again.loss).all() and (first.loss != other.loss).all()
    assert (first.held_out[:, :2] == other.held_out[:, :2]).all()
    assert len(set(record.facts["weights_sha256"])) == 2 and len(record.facts["zero_rows"]) == 3


def test_the_record_says_what_was_measured(tiny_pair, tmp_path):
    landscape.run(options(tiny_pair, tmp_path, radius=None, rise=0.5, moved="blocks", metric=("alpha",), held_out=3))
    record = only_record(tmp_path)
    facts = record.facts
    model = pair.load_model(str(tiny_pair.student)).model
    assert facts["weights_sha256"] == [fingerprint(dict(model.named_parameters()))]
    assert facts["moved"] == "blocks" and facts["metrics"] == ["alpha"] and facts["seeds"] == [0]
    assert facts["dtype"] == "float32" and facts["attention"] == "sdpa" and facts["share"] == ""
    assert set(facts["folded"]["folded"]) == {
        "model.layers.0.input_layernorm",
        "model.layers.0.post_attention_layernorm",
    }
    assert facts["folded"]["left"] == {"model.norm": "its reader is tied to the embedding"}
    assert "0.5 nats" in facts["radius_rule"]
    assert {len(facts[name]) for name in ("tokens_sha256", "teacher_sha256")} == {64}
    assert {row["kind"] for row in record.rows} >= {"probe", "grid", "held-out"}
    assert all("alpha_sum" in row for row in of_kind(record.rows, "grid", "held-out").values())


def test_the_automatic_radius_reaches_the_rise_on_the_axes(tiny_pair, tmp_path):
    loaded = pair.load_model(str(tiny_pair.teacher))
    near = [tiny_llama(loaded.tokenizer, layers=2, seed=0) for _ in range(2)]
    torch.manual_seed(0)
    for model, far in zip(near, (0.02, 0.05), strict=True):
        model.load_state_dict(loaded.model.state_dict())
        for parameter in model.parameters():
            parameter.data += far * torch.randn_like(parameter)
    names = tuple(saved(model, loaded.tokenizer, tmp_path / f"s{i}") for i, model in enumerate(near))
    landscape.run(options(tiny_pair, tmp_path / "out", student=names, radius=None, rise=0.4, grid=3, directions=2))
    record = only_record(tmp_path / "out")
    rises = [
        (surface.loss[[0, -1, 1, 1], [1, 1, 0, -1]] - surface.centre).mean()
        for index in range(2)
        for seed in (0, 1)
        for surface in [surfaces.surface(record.rows, index, seed)]
    ]
    assert sum(rises) / 4 == pytest.approx(0.4, rel=0.15)
    assert record.facts["radius"] == float(f"{record.facts['radius']:.1e}"), "two digits"


def test_metrics_and_bf16_have_surfaces_near_those_of_fp32(tiny_pair, tmp_path, capsys):
    found = {}
    for dtype in ("float32", "bfloat16"):
        given = options(tiny_pair, tmp_path / dtype, metric=("tar", "alpha", "accuracy"), dtype=dtype, radius=0.3)
        landscape.run(given)
        rows = only_record(tmp_path / dtype).rows
        found[dtype] = {what: surfaces.surface(rows, 0, 0, what).loss for what in ("loss", "tar", "alpha", "accuracy")}
    assert f"alpha {found['bfloat16']['alpha'][2, 2]:.3f} at the centre and " in capsys.readouterr().out
    for what in ("loss", "alpha"):
        exact, half = found["float32"][what], found["bfloat16"][what]
        assert 0 < abs(exact - half).max() < 0.02 * exact.max()
    assert all(((f >= 0) & (f <= 1)).all() for dtype in found.values() for what, f in dtype.items() if what != "loss")


def test_a_loss_that_is_not_finite_is_an_error_row_and_costs_only_its_cells(tiny_pair, untied, tmp_path, capsys):
    loaded = pair.load_model(untied)
    mlp = loaded.model.model.layers[-1].mlp
    with (
        torch.no_grad()
    ):  # inside the last block, products up to half of what fp32 can hold: farther out some do not fit
        seen: list[torch.Tensor] = []
        hook = mlp.down_proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        loaded.model(torch.arange(3, 60).unsqueeze(0))
        hook.remove()
        scale = (1.7e38 / float(seen[0].abs().max())) ** 0.5
        mlp.gate_proj.weight.mul_(scale)
        mlp.up_proj.weight.mul_(scale)
        mlp.down_proj.weight.mul_(1e-38)
    name = saved(loaded.model, loaded.tokenizer, tmp_path / "loud")
    landscape.run(options(tiny_pair, tmp_path / "out", student=(name,), held_out=8, grid=7, tolerance=0.5))
    record = only_record(tmp_path / "out")
    bad = [row for row in record.failed if row["kind"] == "grid"]
    assert 0 < len(bad) < 40 and all("not finite" in row["error"] and "a" in row for row in bad)
    surface = surfaces.surface(record.rows, 0, 0)
    assert surface.a.tolist() == surface.b.tolist() and len(surface.a) == 7 * surface.stride - surface.stride + 1
    assert surface.measured[:: surface.stride, :: surface.stride].sum() == 49 - len(bad)
    assert "–" in capsys.readouterr().out, "the rise at the edge is not known"


def test_a_student_without_one_finite_loss_is_dashes(tiny_pair, untied, tmp_path, capsys):
    loaded = pair.load_model(untied)
    with torch.no_grad():
        loaded.model.lm_head.weight[0, 0] = torch.nan
    name = saved(loaded.model, loaded.tokenizer, tmp_path / "broken")
    landscape.run(options(tiny_pair, tmp_path / "out", student=(name,), metric=("alpha",), held_out=2, grid=3))
    record = only_record(tmp_path / "out")
    assert not record.good and len(record.failed) == 9 + 2
    assert capsys.readouterr().out.splitlines()[1].split()[1:] == ["–"] * 6


# ---- one function, one landscape (reference: what filter normalisation alone does not undo) --------------------------


def same_surfaces(tiny_pair, out: Path, names: tuple[str, ...], tolerance: float) -> None:
    landscape.run(options(tiny_pair, out, student=names))
    rows = only_record(out).rows
    first, *others = (surfaces.surface(rows, index, 0).loss for index in range(len(names)))
    assert first.max() - first.min() > 0.1
    for other in others:
        assert abs(first - other).max() < tolerance


def test_gains_traded_against_the_matrices_that_read_them_change_nothing(tiny_pair, untied, tmp_path):
    loaded = pair.load_model(untied)
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in loaded.model.model.layers:
            for norm, readers in (
                (layer.input_layernorm, (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)),
                (layer.post_attention_layernorm, (layer.mlp.gate_proj, layer.mlp.up_proj)),
            ):
                c = torch.exp(torch.randn(32))
                norm.weight.mul_(c)
                for reader in readers:
                    reader.weight.div_(c)
        c = torch.exp(torch.randn(32))
        loaded.model.model.norm.weight.mul_(c)
        loaded.model.lm_head.weight.div_(c)
    other = saved(loaded.model, loaded.tokenizer, tmp_path / "traded")
    same_surfaces(tiny_pair, tmp_path / "out", (untied, other), 2e-5)


def test_a_matrix_scaled_up_and_the_next_one_down_change_nothing(tiny_pair, untied, tmp_path):
    loaded = pair.load_model(untied)
    with torch.no_grad():
        for layer in loaded.model.model.layers:
            layer.mlp.up_proj.weight.mul_(7)
            layer.mlp.down_proj.weight.div_(7)
    other = saved(loaded.model, loaded.tokenizer, tmp_path / "scaled")
    same_surfaces(tiny_pair, tmp_path / "out", (untied, other), 2e-5)


def test_the_gauge_of_a_lora_adapter_changes_nothing(tiny_pair, untied, tmp_path):
    peft = pytest.importorskip("peft")
    base = pair.load_model(untied)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj"])
    model = peft.get_peft_model(base.model, config)
    model.peft_config["default"].base_model_name_or_path = untied
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn_like(parameter)
    names = [saved(model, base.tokenizer, tmp_path / "adapter")]
    gauge = torch.diag(torch.logspace(1, -1, 4))
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "lora_A"):
                module.lora_A["default"].weight.copy_(gauge @ module.lora_A["default"].weight)
                module.lora_B["default"].weight.copy_(module.lora_B["default"].weight @ gauge.inverse())
    names.append(saved(model, base.tokenizer, tmp_path / "gauged"))
    assert (tmp_path / "gauged" / "adapter_config.json").exists()
    same_surfaces(tiny_pair, tmp_path / "out", tuple(names), 2e-5)


# ---- refusals ------------------------------------------------------------


def test_students_of_different_shape_are_refused(tiny_pair, tmp_path):
    with pytest.raises(InputError, match="one architecture"):
        landscape.run(options(tiny_pair, tmp_path, student=(str(tiny_pair.student), str(tiny_pair.teacher))))


@pytest.mark.parametrize(
    "wrong",
    [
        *({"grid": 4}, {"grid": 1}, {"radius": 0.0}, {"directions": 0}, {"sequences": 0}, {"held_out": -1}),
        *(
            {"rise": 0.0},
            {"tolerance": 0.0},
            {"scalars": -1},
            {"cache_mb": 0},
            {"k": 0},
            {"share": "3/2"},
            {"limit": 0},
        ),
    ],
    ids=str,
)
def test_impossible_requests_are_refused(tiny_pair, tmp_path, wrong):
    with pytest.raises(InputError):
        landscape.run(options(tiny_pair, tmp_path, **wrong))
    assert not list(tmp_path.glob("*.jsonl"))


def test_a_record_is_not_gone_on_with_under_other_tokens_or_another_teacher(tiny_pair, tmp_path):
    data, teacher = tmp_path / "data.jsonl", tmp_path / "teacher"
    data.write_bytes(tiny_pair.data.read_bytes())
    loaded = pair.load_model(str(tiny_pair.teacher))
    saved(loaded.model, loaded.tokenizer, teacher)
    given = options(tiny_pair, tmp_path / "out", data=str(data), teacher=str(teacher), radius=None, grid=3)
    landscape.run(given)
    (path,) = given.out.glob("*.jsonl")
    before = path.read_bytes()
    data.write_text(data.read_text().replace("red dog", "old dog"))
    with pytest.raises(InputError, match="data has changed"):
        landscape.run(given)
    data.write_bytes(tiny_pair.data.read_bytes())
    landscape.run(given)  # finished, and the same again
    saved(tiny_llama(loaded.tokenizer, layers=2, seed=77), loaded.tokenizer, teacher)
    with pytest.raises(InputError, match="teacher has changed"):
        landscape.run(given)
    assert path.read_bytes() == before


def test_a_distance_without_a_point_is_a_dash(tiny_pair, tmp_path, capsys):
    landscape.run(options(tiny_pair, tmp_path, grid=3, radius=0.5))
    header, line, *_ = capsys.readouterr().out.splitlines()
    assert "rise at |r| = 0.25  rise at |r| = 0.5  largest error at held-out points" in header
    near, far, off, points, seconds = line.split()[-5:]
    assert near == off == "–" and float(far) != 0 and points == "9" and float(seconds) > 0
