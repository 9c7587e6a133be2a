"""One torch thread, no hub, and the small models that tests share."""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")

import json
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared" / "data"


class TinyPair(NamedTuple):
    """Directories of a random teacher and student over one tokenizer, and a small training file."""

    teacher: Path
    student: Path
    data: Path


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real test sets and judge annotations, where they lie beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("the real data sets do not lie beside this checkout (../shared/data)")
    return SHARED


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    """A 2-layer teacher and a 1-layer student with random weights: fast, and their text means nothing."""
    root = tmp_path_factory.mktemp("tiny")
    sentences = [
        f"the {a} {b} sees {n} {c}s ."
        for a in ("red", "old")
        for b in ("dog", "cat")
        for c in ("ball", "hat")
        for n in range(5)
    ]
    tokenizer = tiny_tokenizer(sentences)
    for name, layers, seed in (("teacher", 2, 0), ("student", 1, 1)):
        tiny_llama(tokenizer, layers=layers, seed=seed).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    data = root / "data.jsonl"
    rows = [{"prompt": f"Say {i} :", "answer": sentence} for i, sentence in enumerate(sentences)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TinyPair(root / "teacher", root / "student", data)


def tiny_tokenizer(sentences: list[str]):
    """A word-level-ish byte BPE trained on the sentences, with <s>, </s> and <pad>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(sentences, trainer)
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def tiny_llama(tokenizer, *, layers: int = 1, width: int = 32, seed: int = 0, vocabulary: int | None = None):
    """A random Llama; `vocabulary` pads its head beyond the tokenizer's length."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary or len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config)
