"""Same noise for the same name, rows as long as the weights', tied tensors once, weights put back whatever happens."""

from __future__ import annotations

import pytest
import torch
import transformers
from conftest import tiny_llama

from selectkd_eval.directions import Plane, fingerprint, left_out, noise, normalised, perturbed, row_dimensions

V = 24


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


def test_rows_of_convolutions_experts_and_transposed_layers_are_the_output_ones():
    config = transformers.MixtralConfig(
        vocab_size=V, hidden_size=16, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=3,
    )  # fmt: skip
    mixtral = transformers.MixtralForCausalLM(config)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    experts = dict(mixtral.named_parameters())[name].detach()
    assert experts.shape == (3, 24, 16)
    over = row_dimensions(mixtral)[name]
    direction = normalised(noise(0, 1, name, experts.shape), experts, over)
    # 3 experts times 24 outputs: one row of 16 inputs each.
    assert torch.allclose(direction.norm(dim=2), experts.norm(dim=2), rtol=1e-5)

    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=V, n_embd=8, n_layer=1, n_head=2))
    assert row_dimensions(gpt2)["transformer.h.0.attn.c_attn.weight"] == (0,)  # [in, out]: an output is a column
    assert row_dimensions(gpt2)["transformer.wte.weight"] == (1,)
    oss = transformers.GptOssForCausalLM(
        transformers.GptOssConfig(
            vocab_size=V,
            hidden_size=16,
            intermediate_size=12,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_local_experts=3,
            head_dim=8,
        )
    )
    assert row_dimensions(oss)["model.layers.0.mlp.experts.gate_up_proj"] == (1,)  # [E, in, out]
    assert not [name for name in perturbed(oss) if name.endswith("bias")], "biases per expert are biases"
    assert row_dimensions(torch.nn.Sequential(torch.nn.Conv1d(2, 3, 5)))["0.weight"] == (1, 2)


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


def test_two_parameters_of_one_memory_move_together_and_once():
    model = tiny_llama([], vocabulary=V)
    model.lm_head.weight = torch.nn.Parameter(model.model.embed_tokens.weight.data)  # tied by memory alone
    assert "lm_head.weight" in dict(model.named_parameters())
    assert "lm_head.weight" not in perturbed(model)
    own = model.lm_head.weight.data_ptr()
    with torch.no_grad(), Plane(model, 0).on() as plane:
        plane.move(0.3, -0.2)
        assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr() == own


def test_blocks_alone_leave_embeddings_and_the_output_layer():
    torch.manual_seed(0)
    for tied in (True, False):
        model = tiny_llama([], vocabulary=V)
        if not tied:
            model.lm_head.weight = torch.nn.Parameter(torch.randn(V, 32))
        every, blocks = perturbed(model), perturbed(model, "blocks")
        assert set(every) - set(blocks) == {"model.embed_tokens.weight"} | (set() if tied else {"lm_head.weight"})
        assert all(".layers." in name for name in blocks)
        assert left_out(model, "blocks") == {"params_zeroed": 3 + len(every) - len(blocks), "zero_rows": 0}
        outer = model.lm_head.weight.detach().clone()
        with torch.no_grad(), Plane(model, 0, "blocks").on() as plane:
            plane.move(0.5, 0.5)
            assert torch.equal(model.lm_head.weight, outer)


@pytest.mark.parametrize("failure", [ZeroDivisionError, KeyboardInterrupt, None], ids=["error", "interrupt", "success"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_move_exactly_and_are_back_whatever_happens(dtype, failure):
    model = tiny_llama([], vocabulary=V).to(dtype)
    own = {name: p.detach().clone() for name, p in perturbed(model).items()}
    addresses = {name: p.data_ptr() for name, p in perturbed(model).items()}
    plane = Plane(model, 4)

    def walk() -> None:
        with torch.no_grad(), plane.on():
            for a, b in ((0.5, 0.5), (-0.5, 0.1), (0.25, -0.5)):
                plane.move(a, b)
            for name, p in perturbed(model).items():
                d1, d2 = (normalised(noise(4, axis, name, p.shape), own[name].float()) for axis in (1, 2))
                expected = own[name].float() + 0.25 * d1 - 0.5 * d2
                assert torch.allclose(
                    p.float(), expected.to(dtype).float(), atol=1e-6, rtol=1e-2 if dtype != torch.float32 else 1e-5
                )
            plane.move(0.0, 0.0)
            assert fingerprint(perturbed(model)) == fingerprint(own)
            plane.move(1.0, 1.0)
            assert fingerprint(perturbed(model)) != fingerprint(own)
            if failure is not None:
                raise failure

    if failure is None:
        walk()
    else:
        with pytest.raises(failure):
            walk()
    assert fingerprint(perturbed(model)) == fingerprint(own)
    assert {name: p.data_ptr() for name, p in perturbed(model).items()} == addresses


def test_a_weight_that_was_written_to_is_found_out():
    model = tiny_llama([], vocabulary=V)
    own = model.model.layers[0].mlp.up_proj.weight.data  # aliased before the buffer is lent
    with pytest.raises(RuntimeError, match="not restored"), torch.no_grad(), Plane(model, 0).on():
        own[0, 0] += 1


def test_bf16_moves_fp32_masters_and_computes_in_bf16():
    model = tiny_llama([], vocabulary=V)
    before = fingerprint(dict(model.named_parameters()))
    with torch.no_grad(), Plane(model, 4, dtype=torch.bfloat16).on() as plane:
        for _ in range(50):  # weights moved by increments would drift away
            plane.move(0.3, 0.1)
            plane.move(-0.2, 0.4)
        plane.move(0.25, -0.5)
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        assert plane.w0.dtype == torch.float32
        exact = plane.w0 + 0.25 * plane.d1 - 0.5 * plane.d2
        moved = torch.cat([p.flatten() for p in plane.parameters.values()])
        assert torch.allclose(moved.float(), exact, rtol=2**-8)
    assert fingerprint(dict(model.named_parameters())) == before
