"""How does a server write the answers? Any OpenAI-compatible one, by chat messages or, with --chat no, by plain text.

The conversation is lm-eval's (few-shot turns, system prompt), the chat template the server's own. What a server may do
otherwise than a local model, and what is done about it:

* It takes four stop strings. The rest are cut off here.
* An opening of the answer (`prefix` of a layout) is the beginning of the assistant's turn. vLLM and SGLang continue one
  when told to, llama.cpp always does, and for them it is sent. Others would begin a new turn after it, so for them it
  is left out, as EvalPlus does, and the answer holds it itself.
* It may ignore seeds. That is tried before sampling, and the record says what came of it.
* A prompt that is too long is refused, never cut: that answer is an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from selectkd_eval.backends.backend import Asked, Completion, Finish
from selectkd_eval.errors import InputError, SetupError
from selectkd_eval.served import STOPS, Reply, Served
from selectkd_eval.tasks.task import Task
from selectkd_eval.verbs import PasskOptions

CONTINUES: dict[str, dict[str, Any]] = {
    "vllm": {"add_generation_prompt": False, "continue_final_message": True},
    "sglang": {"continue_final_message": True},
    "llamacpp": {},
}
"""What makes a server continue the assistant's turn, by its `owned_by` in the list of models."""


class Server:
    """A model behind an OpenAI-compatible server."""

    def __init__(self, options: PasskOptions) -> None:
        self.served = Served(
            options.base_url, options.model, options.key_variable, options.batch_size, "passk --backend server"
        )
        self.chat = options.chat != "no"
        self.system, self.temperature = options.system, options.temperature
        self.card = self.served.card
        about = self.served.about()
        self.positions = about.get("max_model_len")
        self.engine = str(about.get("owned_by") or "")
        self.opens = not self.chat or self.engine in CONTINUES
        self.identity = {
            "backend": "OpenAI-compatible server",
            "weights": f"{self.card['fingerprint']}@{about.get('root') or ''}",
            "engine": self.engine or "unknown",
            "chat": self.chat,
            "system": options.system,
            "positions": self.positions,
        }

    def room(self, asked: int) -> int:
        """`asked`, but at most half of the model's positions where the server tells them: the prompt needs room too."""
        return min(asked, self.positions // 2) if isinstance(self.positions, int) else asked

    @cached_property
    def seeds(self) -> str:
        """What came of asking one prompt twice with one seed and once with another; three short requests."""
        text = "Write a random number of twelve digits:"
        ask = {
            "prompt": [{"role": "user", "content": text}] if self.chat else text,
            "max_tokens": 16,
            "temperature": max(self.temperature, 0.8),
        }
        texts: dict[int, Reply] = {}
        # What ends the run is said when the answers themselves are asked for; a finished record needs no server.
        with suppress(InputError, SetupError):
            texts.update(self.served.replies([{**ask, "seed": seed} for seed in (1, 1, 2)]))
        return _verdict([texts[place] for place in sorted(texts)])

    def prompts(self, task: Task) -> list[str]:
        """lm-eval's prompts: the messages as JSON, or plain text with --chat no."""
        from selectkd_eval.tasks.lm_task import rendered

        return rendered(task, system=self.system, template=_as_json if self.chat else None)

    def complete(self, asked: Sequence[Asked]) -> Iterator[tuple[int, Completion]]:
        """As replies arrive; a failed prompt is a completion with an `error`, and the others go on."""
        for place, reply in self.served.replies(map(self._request, asked)):
            yield place, _completion(reply, asked[place].decoding.stops)

    def _request(self, one: Asked) -> dict[str, Any]:
        rule = one.decoding
        request: dict[str, Any] = {
            "prompt": one.prompt,
            "max_tokens": rule.max_new_tokens,
            "temperature": rule.temperature,
        }
        if rule.stops:
            request["stop"] = list(rule.stops[:STOPS])
        if rule.temperature > 0:
            request |= {"top_p": rule.top_p, "seed": one.seed & 0x7FFFFFFF}
        return request | self._conversation(one.prompt) if self.chat else request

    def _conversation(self, prompt: str) -> dict[str, Any]:
        messages: list[dict[str, str]] = json.loads(prompt)
        if messages[-1]["role"] != "assistant":
            return {"prompt": messages}
        if self.engine in CONTINUES:
            return {"prompt": messages, "extra_body": CONTINUES[self.engine]}
        return {"prompt": messages[:-1]}


def _as_json(history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
    """lm-eval's conversation as it is: its last message is the assistant's when an answer is opened."""
    return json.dumps(list(history), ensure_ascii=False)


def _completion(reply: Reply, stops: Sequence[str]) -> Completion:
    if reply.finish == "content_filter" and not reply.error:
        return Completion("", None, "stop", False, error="the server withheld the answer (content_filter)")
    cut = min((at for word in stops if word and (at := reply.text.find(word)) >= 0), default=-1)
    text = reply.text if cut < 0 else reply.text[:cut]
    # Most servers do not tell an end token from a stop string, which they cut off themselves: both are "eos" then.
    finish: Finish = "stop" if cut >= 0 or reply.stop_reason else "length" if reply.finish == "length" else "eos"
    return Completion(text, reply.n_tokens, finish, False, reply.n_prompt_tokens, reply.error)


def _verdict(replies: Sequence[Reply]) -> str:
    """The sentence for the record."""
    if len(replies) < 3 or any(reply.error for reply in replies):
        return "every answer is sent its own seed; whether the server honours seeds could not be tried"
    first, again, other = (reply.text for reply in replies)
    if first != again:
        return (
            "the server does not honour seeds (one prompt asked twice with one seed gave two texts): sampled answers "
            "cannot be had a second time, those kept are the record's"
        )
    if first == other:
        return "every answer is sent its own seed; the server gave one text for two seeds, so it may ignore them"
    return (
        "every answer is sent its own seed, and the server honours seeds (one prompt asked twice with one seed gave "
        "one text, and another with another seed)"
    )
