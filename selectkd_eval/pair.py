"""Which models are these? Loading teacher p and student q, and checking that they can be compared token by token.

A model is named by a directory, a hub name, `embedded:NAME` (the small models shipped with the package) or a train
record (its final student). Every measuring record stores the model's card: the fingerprint of its weights and, for
a student trained here, the method, base method and seed that tables group by.

Distilling across different tokenizers is not done here: the loss compares p and q entry by entry.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as hf_logging

from selectkd_eval import records
from selectkd_eval.environment import expect_hub, fingerprint_dir, require
from selectkd_eval.errors import InputError, SetupError, choose

EMBEDDED = Path(__file__).parent / "demo" / "weights"
TRAINING_CARD = "selectkd.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class ModelCard:
    """What a record says about a model. `method`, `base_method` and `seed` come from its training, if it was here."""

    name: str
    fingerprint: str
    parameters: int
    method: str
    base_method: str = ""
    seed: int | None = None
    training: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class LoadedModel(NamedTuple):
    """A model in evaluation mode, its tokenizer and its card."""

    model: Any
    tokenizer: Any
    card: ModelCard


class Pair(NamedTuple):
    """Teacher p and student q over the same tokens. Logits are cut to the first `vocabulary` entries of both."""

    teacher: LoadedModel
    student: LoadedModel
    vocabulary: int


def load_model(
    name: str, device: str = "cpu", dtype: torch.dtype | None = torch.float32, attention: str | None = None
) -> LoadedModel:
    """Load a model for inference. An InputError says what was looked for when it is not there."""
    hf_logging.disable_progress_bar()
    where = locate(name)
    tokenizer = load_tokenizer(name)
    how = {"dtype": dtype or "auto"} | ({"attn_implementation": attention} if attention else {})
    try:
        if isinstance(where, Path) and (where / "adapter_config.json").exists():
            peft = require("peft", "a LoRA student", "train")
            model = peft.AutoPeftModelForCausalLM.from_pretrained(where, **how).merge_and_unload()
        else:
            model = AutoModelForCausalLM.from_pretrained(where, **how)
    except ImportError as error:
        if attention is None or not attention.startswith("flash"):
            raise
        raise SetupError(f"--attention {attention} cannot be used here ({error}): use --attention sdpa") from None
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise _not_loadable(name, error) from None
    model.to(device).eval()
    return LoadedModel(model, tokenizer, card(name, model))


def load_tokenizer(name: str) -> Any:
    """The model's tokenizer, with a padding token when it has none of its own."""
    where = locate(name)
    if isinstance(where, Path) and not any((where / file).exists() for file in TOKENIZER_FILES):
        raise InputError(
            f"the model directory {name} holds no tokenizer (no tokenizer.json): save the model's tokenizer there too"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(where)
    except (OSError, ValueError, KeyError) as error:
        raise _not_loadable(name, error) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_pair(teacher: str, student: str, device: str = "cpu", dtype: torch.dtype | None = torch.float32) -> Pair:
    """Load both models and check that entry i of p and of q is the same token."""
    p, q = load_model(teacher, device, dtype), load_model(student, device, dtype)
    return Pair(p, q, common_vocabulary(p, q))


def common_vocabulary(p: LoadedModel, q: LoadedModel) -> int:
    """Entries that both output layers have; an InputError when they do not mean the same tokens.

    Heads of one family are padded to different widths (Qwen2: 152,064 and 151,936); the surplus rows are cut off.
    """
    width = min(_head_width(p.model), _head_width(q.model))
    mine, yours = _tokens_below(p.tokenizer, width), _tokens_below(q.tokenizer, width)
    shared = mine.keys() & yours.keys()
    different = sum(mine[i] != yours[i] for i in shared) + len(mine.keys() ^ yours.keys())
    if different:
        raise InputError(
            f"{p.card.name} and {q.card.name} have different tokenizers ({different} of the first {width} entries "
            f"differ), and p and q are compared entry by entry: choose a pair of one model family"
        )
    return width


def locate(name: str) -> Path | str:
    """Where a model name points: a directory, or a hub name left as it is."""
    if name.startswith("embedded:"):
        shipped = {path.name: path for path in sorted(EMBEDDED.glob("*")) if (path / "config.json").exists()}
        return choose(name.removeprefix("embedded:"), shipped, "embedded model")
    if name.endswith(".jsonl"):
        where = Path(records.read(name, verb="train").facts["save"])
        where = Path(name).parent / where  # seen from the record; an absolute path stays as it is
        if not (where / "config.json").exists() and not (where / "adapter_config.json").exists():
            raise InputError(f"the student of {name} should lie in {where} but is not there: train it again")
        return where
    path = Path(name)
    if path.is_dir():
        if not any((path / file).exists() for file in ("config.json", "adapter_config.json")):
            raise InputError(f"the directory {name} holds no model (no config.json): give a saved model's directory")
        return path
    if path.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise InputError(f"there is no model directory {name}: give a saved model's directory or a hub name")
    expect_hub()
    return name


def card(name: str, model: Any) -> ModelCard:
    """The card of a loaded model."""
    where = locate(name)
    training: dict[str, Any] = {}
    if isinstance(where, Path):
        fingerprint = fingerprint_dir(where)
        if (where / TRAINING_CARD).exists():
            training = _training_card(where / TRAINING_CARD)
    else:
        fingerprint = f"hub:{getattr(model.config, '_commit_hash', None) or 'unknown revision'}"
    return ModelCard(
        name=name,
        fingerprint=fingerprint,
        parameters=sum(p.numel() for p in model.parameters()),
        method=training.get("method") or name,
        base_method=training.get("base_method", ""),
        seed=training.get("seed"),
        training=training,
    )


def _training_card(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{path}, which says how the student was trained, is damaged: train it again")
    return found


def _head_width(model: Any) -> int:
    return int(model.get_output_embeddings().weight.shape[0])


def _tokens_below(tokenizer: Any, width: int) -> dict[int, str]:
    # Ids beyond the narrower head are not compared; below it, an id that only one tokenizer names counts as different.
    return {index: token for token, index in tokenizer.get_vocab().items() if index < width}


def _not_loadable(name: str, error: Exception) -> InputError:
    first = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return InputError(
        f"the model {name!r} could not be loaded ({first}): give a saved model's directory, embedded:teacher, "
        f"embedded:student, or a hub name that this machine can reach"
    )
