"""How is vLLM's engine started, and how is it asked for texts with a seed each?

`passk` (`backends.vllm`), `answer` and local judges (`local_chat`) share it. It takes token ids and knows nothing of
prompts, templates or grading. vLLM pins its own torch and transformers, so it lives in an environment of its own. Its
engine takes no adapters here: an adapter is merged into a temporary directory first.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selectkd_eval import environment
from selectkd_eval.backends import identity
from selectkd_eval.errors import SetupError
from selectkd_eval.pair import card, load_model, locate

WAVE = 8  # batches handed over at once: what a killed run loses at most, and how seldom the engine runs dry


class Engine:
    """vLLM with one model; its number format is vLLM's choice on a GPU, and float32 on a CPU.

    `feature` is what asks for it, for the message when vLLM is missing (SetupError).
    """

    def __init__(self, model: str, tokenizer: Any, batch_size: int, feature: str) -> None:
        self._vllm = environment.require("vllm", feature, "vllm")
        self.tokenizer, self.batch_size = tokenizer, batch_size
        where, self._merged = model_directory(model)
        platform = environment.require("vllm.platforms", feature, "vllm").current_platform
        self.llm = _start(self._vllm, model, str(where), platform.is_cpu(), batch_size)
        configured = self.llm.llm_engine.model_config
        self.positions = int(configured.max_model_len)
        bare = _without_weights(str(where))
        self.card = card(model, bare)
        self.weights = identity.weights(model, self.card.fingerprint, getattr(bare.config, "_commit_hash", None))
        self.version = str(self._vllm.__version__)
        self.dtype = str(configured.dtype).removeprefix("torch.")
        self.device = str(platform.device_type)

    def rule(self, max_new_tokens: int, temperature: float, top_p: float, seed: int, stop: Sequence[str] = ()) -> Any:
        """vLLM's rule for one text. Temperature 0 is greedy and needs no seed; the tokenizer's end ends the text."""
        sampled = temperature > 0
        return self._vllm.SamplingParams(
            max_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p if sampled else 1.0,
            seed=seed if sampled else None,
            stop=[word for word in (*stop, self.tokenizer.eos_token) if word],
        )

    def write(self, ids: Sequence[Sequence[int]], rules: Sequence[Any]) -> list[Any]:
        """vLLM's outputs (`text`, `token_ids`, `finish_reason`, `stop_reason`), one per prompt, in their order."""
        asked = [{"prompt_token_ids": list(some)} for some in ids]
        return [output.outputs[0] for output in self.llm.generate(asked, list(rules), use_tqdm=False)]


def model_directory(model: str) -> tuple[Path | str, tempfile.TemporaryDirectory[str] | None]:
    """What vLLM is to load: the model's directory or hub name, or a temporary one with an adapter merged in."""
    where = locate(model)
    if not isinstance(where, Path) or not (where / "adapter_config.json").exists():
        return where, None
    loaded = load_model(model, "cpu", None)
    needed = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    holder = tempfile.TemporaryDirectory(prefix="selectkd-merged-")
    if (free := environment.free_bytes(Path(holder.name))) < needed:
        holder.cleanup()
        raise SetupError(
            f"{model} is an adapter, and merging it for vLLM takes {needed / 1e9:.1f} GB in {tempfile.gettempdir()}, "
            f"where {free / 1e9:.1f} are free: set TMPDIR to another disk, or use --backend hf"
        )
    loaded.model.save_pretrained(holder.name)
    loaded.tokenizer.save_pretrained(holder.name)
    return Path(holder.name), holder


def _start(vllm: Any, model: str, where: str, on_cpu: bool, batch_size: int) -> Any:
    """The engine, with as many positions as its memory has room for; a SetupError with vLLM's own reason."""
    try:
        return vllm.LLM(
            model=where,
            dtype="float32" if on_cpu else "auto",
            enforce_eager=on_cpu,  # compiling C++ for a minute or two buys a small model nothing
            # A share of the whole memory, free at the start: a computer, unlike a GPU, is shared.
            gpu_memory_utilization=0.4 if on_cpu else 0.9,
            max_model_len=-1,
            max_num_seqs=batch_size,
            generation_config="vllm",  # no sampling defaults but those of the command
        )
    except (RuntimeError, ValueError, OSError) as error:
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise SetupError(
            f"vLLM could not start with {model} ({said}): its own messages above say more; --backend hf, or a judge "
            f"named hf:MODEL, needs no vLLM"
        ) from None


def _without_weights(where: str) -> Any:
    """The model's shape on no device: its parameters can be counted, and its configuration names the hub's commit."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(where))
