"""Models that write what a test decides: their next token is read off the last one, by weights set by hand.

Attention and feed-forward layers add nothing, every token has a direction of its own, and the head maps the direction
of a token to the one that follows it. The rest is a real Llama: loaded, templated, batched and decoded like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from conftest import tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

OPEN, AGAIN = "<open>", "<again>"
TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}"
    f"{{% if messages | length > 2 %}}{AGAIN}{{% else %}}{OPEN}{{% endif %}}"
    "{% endif %}"
)


def scripted(
    directory: Path,
    follows: Mapping[str, str],
    *,
    words: Sequence[str] = (),
    template: str | None = TEMPLATE,
    positions: int = 4096,
    strength: float = 50.0,
) -> str:
    """Save a model in which `follows[token]` comes after token, and the end token after every other one.

    `words` are tokens of their own beside <open> (after a first question) and <again> (after a second one). With a
    low `strength` other tokens are drawn now and then.
    """
    tokenizer = tiny_tokenizer(["a dog"])
    tokenizer.add_tokens([OPEN, AGAIN, *words])
    tokenizer.chat_template = template
    size = len(tokenizer)
    width = 64 * (size // 64 + 1)  # vLLM knows only some sizes of an attention head
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=width,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=positions,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for part in (model.model.layers[0].self_attn.o_proj, model.model.layers[0].mlp.down_proj):
            part.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size, width))
        model.lm_head.weight.zero_()
        # The norm makes a token's direction sqrt(width) long.
        head = model.lm_head.weight
        after = {tokenizer.convert_tokens_to_ids(a): tokenizer.convert_tokens_to_ids(b) for a, b in follows.items()}
        for token in range(size):
            head[after.get(token, tokenizer.eos_token_id), token] = strength / width**0.5
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)
