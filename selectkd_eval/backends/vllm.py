"""How does vLLM write the answers? Its engine, asked directly, because lm-eval's wrapper gives a run only one seed.

Prompts and rules are lm-eval's: the same rendered text, the same rule for the first token, prompts that are too long
lose their beginning, stop strings are cut off. Every answer has its own seed, end reason and token counts. The engine
itself is `vllm_engine`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from selectkd_eval import environment
from selectkd_eval.backends import identity
from selectkd_eval.backends.backend import Asked, Completion, Finish
from selectkd_eval.backends.chat import chat_wanted, check_system, template_of
from selectkd_eval.backends.vllm_engine import WAVE, Engine
from selectkd_eval.pair import load_tokenizer
from selectkd_eval.tasks.task import Task
from selectkd_eval.verbs import PasskOptions


class VLLM:
    """A model run by vLLM on this machine; its number format is vLLM's choice on a GPU, and float32 on a CPU."""

    opens = True

    def __init__(self, options: PasskOptions) -> None:
        environment.require("vllm", "passk --backend vllm", "vllm")
        self.system, self.batch_size = options.system, options.batch_size
        self.tokenizer = load_tokenizer(options.model)
        self.chat = chat_wanted(options.chat, self.tokenizer, options.model)
        if self.chat:
            check_system(options.system, self.tokenizer, options.model)
        self.engine = Engine(options.model, self.tokenizer, options.batch_size, "passk --backend vllm")
        self.llm, self.positions = self.engine.llm, self.engine.positions
        self.card = self.engine.card.as_dict()
        self.seeds = (
            "every answer has its own vLLM sampling seed: its text does not depend on --limit or a resume; in another "
            "batch the rounding of the matrix products can change a token"
        )
        self.identity = {
            "backend": "vLLM",
            **self.engine.weights,
            "tokenizer": identity.tokenizer_digest(self.tokenizer),
            "chat": self.chat,
            "chat_template": identity.template_digest(self.tokenizer) if self.chat else "",
            "system": options.system,
            "versions": {"vllm": self.engine.version, **identity.versions("lm_eval", "torch", "transformers")},
            "dtype": self.engine.dtype,
            "device": self.engine.device,
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
            outputs = self.engine.write(
                [some[-room:] for some, room in zip(ids, rooms, strict=True)],
                [self._rule(one) for one in wave],
            )
            for at, (some, room, output) in enumerate(zip(ids, rooms, outputs, strict=True)):
                yield order[start + at], _completion(output, len(some), room)

    def _ids(self, prompt: str) -> list[int]:
        # lm-eval's rule: a chat template has written the first token already.
        begun = bool(self.tokenizer.bos_token) and prompt.startswith(self.tokenizer.bos_token)
        ids: list[int] = self.tokenizer(prompt, **({"add_special_tokens": False} if begun else {})).input_ids
        return ids

    def _rule(self, one: Asked) -> Any:
        rule = one.decoding
        return self.engine.rule(rule.max_new_tokens, rule.temperature, rule.top_p, one.seed, rule.stops)


def _completion(output: Any, n_prompt: int, room: int) -> Completion:
    finish: Finish = "length" if output.finish_reason == "length" else "eos"
    if isinstance(output.stop_reason, str):
        finish = "stop"
    error = "" if output.finish_reason in ("stop", "length") else f"vLLM ended with {output.finish_reason!r}"
    return Completion(output.text, len(output.token_ids), finish, n_prompt > room, min(n_prompt, room), error)
