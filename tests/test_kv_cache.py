"""Whatever a model keeps of its text, taking back the end of it leaves no trace, or the model is refused."""

from __future__ import annotations

from copy import deepcopy
from functools import cache

import pytest
import torch
from conftest import tiny_llama
from transformers import AutoConfig, AutoModelForCausalLM

from selectkd_eval.errors import InputError
from selectkd_eval.sampling import GREEDY
from selectkd_eval.speculation.draft_verify import Cached, ReferenceEngine, plain, speculative
from selectkd_eval.speculation.engine import Request
from selectkd_eval.speeds import PLAIN, Arm

V = 24


def noisy(model, noise: float):
    """The model with noise on its weights."""
    with torch.no_grad():
        for index, weight in enumerate(model.parameters()):
            weight += noise * torch.randn(weight.shape, generator=torch.Generator().manual_seed(index))
    return model


WINDOW = {"sliding_window": 8}
KINDS = {
    "llama": {},
    "qwen2": {},
    "mistral": {"sliding_window": None},
    "mistral with a window": WINDOW,
    "gemma2": {**WINDOW, "head_dim": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {**WINDOW, "head_dim": 8, "query_pre_attn_scalar": 8},
    "qwen3": {"head_dim": 8},
    "phi3": {"original_max_position_embeddings": 128},
    "gpt2": {},
    "gpt_neox": {},
    "bloom": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
}


@cache
def tiny(kind: str):
    """A random model of a kind, loud enough that its text is not one token again and again."""
    sizes = {
        "vocab_size": V,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    if kind not in ("gpt2", "gpt_neox", "bloom", "opt"):
        sizes["num_key_value_heads"] = 2
    torch.manual_seed(3)
    config = AutoConfig.for_model(kind.split(maxsplit=1)[0], **sizes, **KINDS[kind])
    model = AutoModelForCausalLM.from_config(config).eval()
    return model if kind == "opt" else noisy(model, 0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_writes_what_transformers_generates(kind):
    """Learned and rotary positions, ALiBi, grouped heads, capped logits, windows shorter than the text."""
    target = tiny(kind)
    draft = noisy(deepcopy(target), 0.03)
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    theirs = target.generate(ids, do_sample=False, max_new_tokens=30, eos_token_id=None, pad_token_id=0)[0, 5:].tolist()
    assert len(set(theirs)) > 3
    engine = ReferenceEngine(target, [draft], V)
    request = Request(ids[0].tolist(), 30)
    assert engine.decode(request, PLAIN, GREEDY).tokens == theirs
    for gamma in (1, 4):
        run = engine.decode(request, Arm(0, gamma), GREEDY)
        assert run.tokens == theirs
        assert sum(run.accepted) > 0


@pytest.mark.parametrize("kind", ["mamba", "jamba", "lfm2", "recurrent_gemma", "rwkv"])
def test_models_whose_state_cannot_be_taken_back_are_refused(kind):
    strange = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            kind,
            vocab_size=V,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            **({"use_mamba_kernels": False, "attn_layer_period": 2, "attn_layer_offset": 1} if kind == "jamba" else {}),
            **({"full_attn_idxs": [1]} if kind == "lfm2" else {}),
            **({"attention_hidden_size": 32} if kind == "rwkv" else {}),
        )
    )
    with pytest.raises(InputError, match=r"cannot be taken back .*: name a model"):
        speculative(tiny("llama"), strange, [1, 2], 4, 2, vocabulary=V)
    with pytest.raises(InputError, match=r"cannot be taken back .*: name a model"):
        plain(strange, [1, 2], 4, vocabulary=V)


def test_logits_after_a_rewind_are_those_of_a_text_that_never_went_on():
    target = tiny("llama")
    ids = torch.tensor([[1, 5, 9, 2, 7, 7, 3]])
    with torch.inference_mode():
        whole = target(input_ids=ids, use_cache=False).logits[0]
        for room in (0, 3, 7, 100):  # where there is too little room the cache grows
            cached = Cached(target, V, room)
            assert torch.allclose(cached.feed(ids[:, :4]), whole[:4], atol=1e-5)
            cached.feed(torch.tensor([[8, 8, 8]]))
            cached.rewind(4)
            cached.rewind(4)
            assert torch.allclose(cached.feed(ids[:, 4:5]), whole[4:5], atol=1e-5)
            cached.rewind(2)
            assert torch.allclose(cached.feed(ids[:, 2:], keep=1), whole[-1:], atol=1e-5)


def test_text_that_fits_the_target_but_not_the_draft_is_refused():
    with pytest.raises(InputError, match="do not fit the model's 128 positions"):
        speculative(tiny_llama([], vocabulary=V), tiny("llama"), [1, 2], 140, 2, vocabulary=V)


def test_text_across_the_turn_of_a_long_rotary_embedding_is_refused_and_beside_it_right():
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32}
    config = deepcopy(tiny("llama").config)
    config.rope_parameters = rope | {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    model = AutoModelForCausalLM.from_config(config).eval()
    for prompt, new in (([1] * 10, 22), ([1] * 33, 30)):
        alone = plain(model, prompt, new, vocabulary=V)
        assert speculative(model, model, prompt, new, 3, vocabulary=V).tokens == alone.tokens
    with pytest.raises(InputError, match="pass position 32"):
        plain(model, [1] * 10, 23, vocabulary=V)
