"""Norm gains move into whatever reads them: the function stays, the rows become those of one canonical model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from selectkd_eval.directions import Plane, fingerprint
from selectkd_eval.landscapes.folding import described, folded

V = 48
SMALL = {
    "vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
HEADS = {"head_dim": 8}
# config, its further options, folded gains, gains left with the embedding, gains left that no matrix reads
FAMILIES = {
    "Llama": (HEADS, 5, 0, 0),
    "Qwen2": ({}, 5, 0, 0),
    "Qwen3": (HEADS, 5, 0, 4),  # the norms of queries and keys
    "Mistral": (HEADS, 5, 0, 0),
    "Phi3": ({}, 5, 0, 0),  # one matrix for queries, keys and values
    "Gemma": (HEADS, 4, 1, 0),  # multiplies by 1 + w; tied
    "Gemma2": (HEADS, 4, 1, 4),  # norms behind attention and MLP
    "Olmo2": ({}, 1, 0, 8),
    "GPT2": ({}, 4, 1, 0),  # LayerNorm with bias, transposed layers, tied
    "Cohere": ({}, 2, 1, 0),  # one norm before attention and MLP
    "Qwen3Moe": (HEADS | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}, 5, 0, 4),
    "Qwen2Moe": ({"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}, 5, 0, 0),
    "GptOss": (HEADS | {"num_local_experts": 4}, 5, 0, 0),  # experts [E, in, out]
}


def model_of(family: str, **more: Any) -> Any:
    """A random model whose gains and biases are far from 1 and 0."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, f"{family}Config")(**SMALL | FAMILIES[family][0] | more)
    )
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data = parameter.data + 0.4 * torch.randn_like(parameter)
    return model.eval()


def token_ids() -> torch.Tensor:
    return torch.randint(3, V, (1, 24), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_folding_keeps_the_function_and_leaves_no_gain_before_a_matrix(family):
    model, ids = model_of(family), token_ids()
    before, own = model(ids).logits.detach(), fingerprint(dict(model.named_parameters()))
    with folded(model, ids) as facts:
        after = model(ids).logits.detach()
        assert torch.allclose(after, before, rtol=0, atol=1e-4 * float(before.abs().max()))
        for name in facts["folded"]:
            gain = dict(model.named_parameters())[f"{name}.weight"]
            assert (gain == (0 if family.startswith("Gemma") else 1)).all()
    reasons = list(facts["left"].values())
    counts = (len(facts["folded"]), *(sum(what in r for r in reasons) for what in ("embedding", "no matrix")))
    assert counts == FAMILIES[family][1:]
    assert sum(counts) == len(facts["folded"]) + len(reasons), "nothing had to be put back"
    assert fingerprint(dict(model.named_parameters())) == own
    assert torch.equal(model(ids).logits, before)


def test_readers_of_a_mixture_are_router_experts_and_shared_expert():
    with folded(model_of("Qwen2Moe"), token_ids()) as facts:
        readers = set(facts["folded"]["model.layers.1.post_attention_layernorm"])
    names = ("gate.weight", "experts.gate_up_proj", "shared_expert.gate_proj.weight", "shared_expert.up_proj.weight")
    assert readers == {f"model.layers.1.mlp.{name}" for name in (*names, "shared_expert_gate.weight")}
    assert described(facts).startswith("5 norm gains folded")


def test_an_untied_head_takes_the_final_gain_and_a_tied_one_leaves_it():
    for tied, where in ((False, "folded"), (True, "left")):
        model = model_of("Llama", tie_word_embeddings=tied)
        with folded(model, token_ids()) as facts:
            assert "model.norm" in facts[where]
            assert (model.model.norm.weight == 1).all() == (not tied)


@pytest.mark.parametrize("failure", [ZeroDivisionError, KeyboardInterrupt])
def test_weights_are_back_after_a_failure_inside_a_plane_inside_a_folding(failure):
    model, ids = model_of("Llama"), token_ids()
    own = fingerprint(dict(model.named_parameters()))
    addresses = {name: p.data_ptr() for name, p in model.named_parameters()}
    with pytest.raises(failure), folded(model, ids), torch.no_grad(), Plane(model, 0).on() as plane:
        plane.move(1.0, 1.0)
        raise failure
    assert fingerprint(dict(model.named_parameters())) == own
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == addresses


def test_a_weight_written_to_while_folded_is_found_out():
    model = model_of("Llama")
    down = model.model.layers[0].mlp.down_proj.weight.data
    with pytest.raises(RuntimeError, match="not restored"), folded(model, token_ids()):
        down[0, 0] += 1


class Toy(nn.Module):
    """An embedding, a norm that a matrix and the residual stream both read, and a norm before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(V, 16)
        self.shared, self.last = nn.RMSNorm(16), nn.RMSNorm(16)
        self.layer, self.head = nn.Linear(16, 16), nn.Linear(16, V)
        for norm in (self.shared, self.last):
            norm.weight.data = 1 + 0.4 * torch.randn(16)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> Any:
        normed = self.shared(self.embed(input_ids))
        return SimpleNamespace(logits=self.head(self.last(normed + self.layer(normed))))


def test_a_norm_that_more_than_matrices_reads_is_left_and_the_others_are_not():
    torch.manual_seed(0)
    model, ids = Toy(), token_ids()
    before = model(ids).logits.detach()
    with folded(model, ids) as facts:
        assert facts == {"folded": {"last": ["head.weight"]}, "left": {"shared": "its readers change the function"}}
        assert torch.allclose(model(ids).logits, before, atol=1e-5)
    assert torch.equal(model(ids).logits, before)
