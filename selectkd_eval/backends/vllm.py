"""How does vLLM write the answers? Its engine, asked directly, because lm-eval's wrapper gives a run only one seed.

Prompts and rules are lm-eval's: the same rendered text, the same rule for the first token, prompts that are too long
lose their beginning, stop strings are cut off. Every answer has its own seed, end reason and token counts.

vLLM pins its own torch and transformers, so it lives in an environment of its own. Its engine takes no adapters here:
an adapter is merged into a temporary directory first.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from selectkd_eval import environment
from selectkd_eval.backends import identity
from selectkd_eval.backends.backend import Asked, Completion, Decoding, Finish
from selectkd_eval.backends.chat import chat_wanted, check_system, template_of
from selectkd_eval.errors import SetupError
from selectkd_eval.pair import card, load_model, load_tokenizer, locate
from selectkd_eval.tasks.task import Task
from selectkd_eval.verbs import PasskOptions

WAVE = 8  # batches handed over at once: what a killed run loses at most, and how seldom the engine runs dry


class VLLM:
    """A model run by vLLM on this machine; its number format is vLLM's choice on a GPU, and float32 on a CPU."""

    opens = True

    def __init__(self, options: PasskOptions) -> None:
        self._vllm = environment.require("vllm", "passk --backend vllm", "vllm")
        self.system, self.batch_size = options.system, options.batch_size
        self.tokenizer = load_tokenizer(options.model)
        self.chat = chat_wanted(options.chat, self.tokenizer, options.model)
        if self.chat:
            check_system(options.system, self.tokenizer, options.model)
        where, self._merged = _directory(options.model)
        platform = environment.require("vllm.platforms", "passk --backend vllm", "vllm").current_platform
        self.llm = _engine(self._vllm, options.model, str(where), platform.is_cpu(), options.batch_size)
        configured = self.llm.llm_engine.model_config
        self.positions = int(configured.max_model_len)
        bare = _without_weights(str(where))
        model_card = card(options.model, bare)
        self.card = model_card.as_dict()
        self.seeds = (
            "every answer has its own vLLM sampling seed: its text does not depend on --limit or a resume; in another "
            "batch the rounding of the matrix products can change a token"
        )
        self.identity = {
            "backend": "vLLM",
            **identity.weights(options.model, model_card.fingerprint, getattr(bare.config, "_commit_hash", None)),
            "tokenizer": identity.tokenizer_digest(self.tokenizer),
            "chat": self.chat,
            "chat_template": identity.template_digest(self.tokenizer) if self.chat else "",
            "system": options.system,
            "versions": {"vllm": str(self._vllm.__version__), **identity.versions("lm_eval", "torch", "transformers")},
            "dtype": str(configured.dtype).removeprefix("torch."),
            "device": str(platform.device_type),
            "attention": "vLLM's choice",
            "positions": self.positions,
            "repetition_penalty": 1.0,
        }

    def room(self, asked: int) -> int:
        """`asked`, but at most half of the engine's positions: the prompt needs room too."""
        return min(asked, self.positions // 2)

    def prompts(self, task: Task) -> list[str]:
        """lm-eval's prompts, through the chat template where there is one and --chat does not say no."""
        from selectkd_eval.tasks.lm_task import rendered

        return rendered(
            task,
            system=self.system,
            template=template_of(self.tokenizer) if self.chat else None,
            tokenizer_name=self.tokenizer.name_or_path if self.chat else "",
        )

    def complete(self, asked: Sequence[Asked]) -> Iterator[tuple[int, Completion]]:
        """In waves of some batches, the longest prompts first; the engine makes its own batches of each wave."""
        order = sorted(range(len(asked)), key=lambda place: len(asked[place].prompt), reverse=True)
        for start in range(0, len(order), WAVE * self.batch_size):
            wave = [asked[place] for place in order[start : start + WAVE * self.batch_size]]
            ids = [self._ids(one.prompt) for one in wave]
            rooms = [self.positions - one.decoding.max_new_tokens for one in wave]
            outputs = self.llm.generate(
                [{"prompt_token_ids": some[-room:]} for some, room in zip(ids, rooms, strict=True)],
                [self._rule(one.decoding, one.seed) for one in wave],
                use_tqdm=False,
            )
            for at, (some, room, output) in enumerate(zip(ids, rooms, outputs, strict=True)):
                yield order[start + at], _completion(output.outputs[0], len(some), room)

    def _ids(self, prompt: str) -> list[int]:
        # lm-eval's rule: a chat template has written the first token already.
        begun = bool(self.tokenizer.bos_token) and prompt.startswith(self.tokenizer.bos_token)
        ids: list[int] = self.tokenizer(prompt, **({"add_special_tokens": False} if begun else {})).input_ids
        return ids

    def _rule(self, decoding: Decoding, seed: int) -> Any:
        sampled = decoding.temperature > 0
        return self._vllm.SamplingParams(
            max_tokens=decoding.max_new_tokens,
            temperature=decoding.temperature,
            top_p=decoding.top_p if sampled else 1.0,
            seed=seed if sampled else None,
            stop=[word for word in (*decoding.stops, self.tokenizer.eos_token) if word],
        )


def _completion(output: Any, n_prompt: int, room: int) -> Completion:
    finish: Finish = "length" if output.finish_reason == "length" else "eos"
    if isinstance(output.stop_reason, str):
        finish = "stop"
    error = "" if output.finish_reason in ("stop", "length") else f"vLLM ended with {output.finish_reason!r}"
    return Completion(output.text, len(output.token_ids), finish, n_prompt > room, min(n_prompt, room), error)


def _directory(model: str) -> tuple[Path | str, tempfile.TemporaryDirectory[str] | None]:
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


def _engine(vllm: Any, model: str, where: str, on_cpu: bool, batch_size: int) -> Any:
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
            f"vLLM could not start with {model} ({said}): its own messages above say more; --backend hf needs no vLLM"
        ) from None


def _without_weights(where: str) -> Any:
    """The model's shape on no device: its parameters can be counted, and its configuration names the hub's commit."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(where))
