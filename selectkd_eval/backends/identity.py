"""What can change an answer besides prompt, decoding and seed? The weights, the tokenizer and the engine, as digests.

Answers are kept under these facts (`answer_store`), and a record prints them. Nothing is loaded or run here.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

from selectkd_eval.environment import fingerprint_dir
from selectkd_eval.pair import locate
from selectkd_eval.records import canonical


def weights(name: str, fingerprint: str, commit: str | None) -> dict[str, str]:
    """Whose weights: the fingerprint of a directory or of a hub commit, and for an adapter that of its base as well.

    `commit` is the one the hub gave for the loaded model, or for the base of an adapter.
    """
    where = locate(name)
    if not isinstance(where, Path):
        return {"weights": f"{name}@{commit or 'unknown revision'}"}
    adapter = where / "adapter_config.json"
    if not adapter.exists():
        return {"weights": fingerprint}
    base = str(json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path"))
    return {
        "weights": fingerprint_dir(base) if Path(base).is_dir() else f"{base}@{commit or 'unknown revision'}",
        "adapter": fingerprint,
    }


def tokenizer_digest(tokenizer: Any) -> str:
    """sha256 of how text becomes tokens and back; padding and truncation, which each call sets anew, are left out."""
    parts: dict[str, Any] = {"special": {name: str(word) for name, word in tokenizer.special_tokens_map.items()}}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        parts["tokenizer"] = {**json.loads(backend.to_str()), "padding": None, "truncation": None}
    else:
        parts["tokenizer"] = [type(tokenizer).__name__, tokenizer.get_vocab()]
    parts["bos"] = [getattr(tokenizer, "add_bos_token", None), getattr(tokenizer, "add_eos_token", None)]
    return hashlib.sha256(canonical(parts).encode()).hexdigest()


def template_digest(tokenizer: Any) -> str:
    """sha256 of the chat template; empty without one."""
    template = tokenizer.chat_template
    return hashlib.sha256(canonical(template).encode()).hexdigest() if template else ""


def versions(*packages: str) -> dict[str, str]:
    """Installed versions; a package without metadata is told by its module."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found
