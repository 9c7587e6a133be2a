"""Head and hidden states give the model's own logits, for every family that does something after its head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from selectkd_eval.chunked import chunked_loss
from selectkd_eval.errors import SetupError
from selectkd_eval.heads import Head, add_weight_gradient_, decoder, explains_head, head_of, hidden_states
from selectkd_eval.loss import token_loss
from selectkd_eval.objective import single
from selectkd_eval.token_stats import Rows

SIZES = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.5,
}
GPT2_SIZES = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8}

# family -> what its configuration says, and what its head must become: (soft cap, scale, has a bias)
FAMILIES: dict[str, tuple[dict[str, Any], tuple[float | None, float, bool]]] = {
    "Llama": ({}, (None, 1.0, False)),
    "Qwen2": ({}, (None, 1.0, False)),
    "Gemma2": ({**GEMMA, "final_logit_softcapping": 3.0}, (3.0, 1.0, False)),
    "Gemma3Text": ({**GEMMA, "final_logit_softcapping": 3.0}, (3.0, 1.0, False)),
    "RecurrentGemma": ({"logits_soft_cap": 3.0, "num_hidden_layers": 3}, (3.0, 1.0, False)),
    "Cohere": ({"logit_scale": 0.25}, (None, 0.25, False)),
    "Cohere2": ({"logit_scale": 0.3}, (None, 0.3, False)),
    "Granite": ({"logits_scaling": 4.0}, (None, 0.25, False)),
    "HyperCLOVAX": ({"logits_scaling": 4.0}, (None, 4.0, False)),
    "GPT2": (GPT2_SIZES, (None, 1.0, False)),
    "GPTNeoX": ({}, (None, 1.0, False)),
    "Phi3": ({}, (None, 1.0, False)),
    "Phi": ({}, (None, 1.0, True)),
    "GPTJ": ({**GPT2_SIZES, "rotary_dim": 4}, (None, 1.0, True)),
}


def model_of(family: str, *, tied: bool = False, **changes: Any) -> Any:
    """A random model of a family; its head's bias, which would start at 0, is random too."""
    torch.manual_seed(0)
    name = {"GPT2": ("GPT2", "GPT2LMHeadModel"), "Gemma3Text": ("Gemma3Text", "Gemma3ForCausalLM")}
    config, model = name.get(family, (family, f"{family}ForCausalLM"))
    options = {**SIZES, **FAMILIES[family][0], "tie_word_embeddings": tied, **changes}
    built = getattr(transformers, model)(getattr(transformers, f"{config}Config")(**options))
    if (bias := built.get_output_embeddings().bias) is not None:
        nn.init.normal_(bias)
    return built.eval()


def ids() -> torch.Tensor:
    return torch.randint(3, 61, (2, 7), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_head_and_hidden_states_give_the_logits(family: str, tied: bool) -> None:
    model = model_of(family, tied=tied)
    head = head_of(model)
    assert (head.softcap, head.scale, head.bias is not None) == FAMILIES[family][1]
    with torch.no_grad():
        logits = model(input_ids=ids()).logits
        ours = head.logits(hidden_states(model, input_ids=ids()))
    torch.testing.assert_close(ours, logits, rtol=1e-5, atol=1e-5)
    assert explains_head(model, ids())
    assert explains_head(model.to(torch.bfloat16), ids())


@pytest.mark.parametrize("family", ["Gemma2", "Cohere", "Granite", "Phi"])
def test_a_forgotten_operation_is_noticed(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(family)
    bare = Head(model.get_output_embeddings().weight)
    monkeypatch.setattr("selectkd_eval.heads.head_of", lambda _: bare)
    assert not explains_head(model, ids())
    assert not explains_head(model.to(torch.bfloat16), ids())


def test_the_probe_leaves_dropout_as_it_was() -> None:
    model = model_of("GPT2", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5).train()
    model.transformer.drop.eval()
    modes = [module.training for module in model.modules()]
    assert explains_head(model, ids())
    assert [module.training for module in model.modules()] == modes


def test_adapters_are_part_of_the_decoder() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model_of("Llama"), LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    assert explains_head(model, ids())
    assert decoder(model) is model.base_model.model.model
    with torch.no_grad(), model.disable_adapter():
        without = hidden_states(model, input_ids=ids())
    assert (hidden_states(model, input_ids=ids()) - without).abs().max() > 0.01


@pytest.mark.parametrize(
    "options",
    [{"target_modules": ["q_proj", "lm_head"]}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}],
)
def test_a_wrapped_head_is_refused_with_the_reason(options: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model_of("Llama"), LoraConfig(**options))
    with pytest.raises(SetupError, match=r"wrapped by an adapter .* or merge it first"):
        head_of(model)
    assert not explains_head(model, ids())


def test_a_learned_prompt_is_refused() -> None:
    from peft import PromptTuningConfig, get_peft_model

    model = get_peft_model(model_of("Llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(SetupError, match="learns a prompt"):
        head_of(model)


def test_a_head_that_is_no_linear_layer_is_refused() -> None:
    model = model_of("Llama")
    model.lm_head = nn.Sequential(model.lm_head)
    with pytest.raises(SetupError, match="a Sequential, not a plain linear layer"):
        head_of(model)


@pytest.mark.parametrize("head", [{}, {"scale": 0.3}, {"softcap": 2.0, "scale": 1.7}], ids=str)
def test_pieces_in_place_are_the_whole(head: dict[str, float]) -> None:
    draw = torch.Generator().manual_seed(2)
    weight, bias, hidden = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in ((9, 4), (9,), (5, 4)))
    whole = Head(weight.requires_grad_(), bias, **head)
    z = whole.logits(hidden.requires_grad_(), 7)
    above = torch.randn(z.shape, generator=draw, dtype=z.dtype)
    expected = torch.autograd.grad(z, (hidden, weight), above)
    with torch.no_grad():
        cut = whole.cut(7)
        assert cut.weight.data_ptr() == weight.data_ptr()
        logits = cut.finish_(cut.products_(hidden, torch.empty(5, 7, dtype=z.dtype)))
        torch.testing.assert_close(logits, z)
        raw = above * cut.slope(logits)
        torch.testing.assert_close(cut.pull_(raw, torch.empty_like(hidden)), expected[0])
        total = torch.zeros_like(weight)
        add_weight_gradient_(total[:7], raw, hidden)
        torch.testing.assert_close(total, expected[1])


def test_full_weight_gradients_from_half_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selectkd_eval.heads.SLAB", 4)
    draw = torch.Generator().manual_seed(3)
    gradient, hidden = (torch.randn(shape, generator=draw).bfloat16() for shape in ((5, 9), (5, 4)))
    total = torch.ones(9, 4)
    add_weight_gradient_(total, gradient, hidden)
    torch.testing.assert_close(total, 1 + gradient.float().T @ hidden.float(), rtol=0.01, atol=0.01)


def test_a_tied_head_gets_the_gradient_of_both_its_uses() -> None:
    """Through a real model: decoder, chunked loss and backward give what the model's own logits give."""
    model, tokens = model_of("Gemma2", tied=True).double(), ids()
    rows = Rows(tokens[:, 1:].reshape(-1), torch.arange(2).repeat_interleave(6), torch.tensor([6, 6]))
    teacher = torch.randn(12, 61, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    wide = Head(torch.eye(61, dtype=torch.float64))  # hidden states that are logits
    spec = single("fkl", verifier="spec-k")
    full, _ = token_loss(teacher, model(input_ids=tokens).logits[:, :-1].flatten(0, 1), rows, spec)
    names = dict(model.named_parameters())
    expected = torch.autograd.grad(full, tuple(names.values()))
    hidden = hidden_states(model, input_ids=tokens)[:, :-1].flatten(0, 1)
    loss, _ = chunked_loss(teacher, wide, hidden, head_of(model), rows, spec, chunk=5)
    found = torch.autograd.grad(loss, tuple(names.values()))
    for name, ours, autograd in zip(names, found, expected, strict=True):
        assert (ours - autograd).abs().max() <= 1e-5 * max(float(autograd.abs().max()), 1e-3), name
