"""What does a model on this machine reply? transformers or vLLM, one seed per reply, prompts that are never cut.

`answer` asks it prompts, and a local judge (`judges.local`) comparisons. A reply depends on its conversation and its
seed: not on the batch, the machine's memory or what was asked before (in another batch the rounding of the matrix
products can change a token). It knows nothing of prompt sets and verdicts; `backends` asks the same models in lm-eval's
manner for pass@1.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from accelerate.utils.memory import should_reduce_batch_size

from selectkd_eval import environment
from selectkd_eval.backends import identity
from selectkd_eval.backends.vllm_engine import WAVE, Engine
from selectkd_eval.errors import InputError, SetupError
from selectkd_eval.generate import continue_ids, end_tokens
from selectkd_eval.pair import LoadedModel, load_model, load_tokenizer
from selectkd_eval.prompts import answer_text, render_conversation, rendered_ids, takes_system
from selectkd_eval.reasoning import split
from selectkd_eval.sampling import Sampling
from selectkd_eval.served import Reply

Message = dict[str, str]


class Asked(NamedTuple):
    """A conversation that ends with the user's turn, and the seed of its reply."""

    messages: Sequence[Message]
    seed: int


class Decoding(NamedTuple):
    """How a reply is drawn; temperature 0 is greedy."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0


class Rendered(NamedTuple):
    """A conversation as the model reads it."""

    text: str
    ids: list[int]
    seed: int


class LocalChat(ABC):
    """A model that replies. `card` is its ModelCard as a dictionary, `facts` what else can change a text: engine,
    versions, number format, chat template, what ends a text. `wave` is how many are best asked at once.
    """

    card: dict[str, Any]
    facts: dict[str, Any]
    tokenizer: Any
    positions: int
    wave: int

    def room(self, asked: int) -> int:
        """`asked`, but at most half of the model's positions: the prompt needs room too."""
        return min(asked, self.positions // 2)

    def replies(self, asked: Sequence[Asked], decoding: Decoding) -> Iterator[tuple[int, Reply]]:
        """(place in `asked`, reply) as they are done, in any order. A conversation that leaves no room for
        `decoding.max_new_tokens` is a reply with an error. Reasoning is split off (`Reply.reasoning`).
        """
        fitting: dict[int, Rendered] = {}
        for place, one in enumerate(asked):
            text = render_conversation(self.tokenizer, one.messages)
            ids = rendered_ids(self.tokenizer, text)
            if len(ids) + decoding.max_new_tokens > self.positions:
                new = decoding.max_new_tokens
                yield (
                    place,
                    Reply(error=f"the prompt's {len(ids)} tokens and {new} new ones exceed {self.positions} positions"),
                )
            else:
                fitting[place] = Rendered(text, ids, one.seed)
        places = list(fitting)
        for at, text, finish, length in self._write(list(fitting.values()), decoding):
            read = fitting[places[at]]
            if finish not in ("eos", "length"):
                yield places[at], Reply(error=f"the engine ended with {finish!r}")
                continue
            parts = split(answer_text(self.tokenizer, text), read.text)
            yield places[at], Reply(parts.answer, finish, length, len(read.ids), reasoning=parts.reasoning)

    @abstractmethod
    def _write(self, rendered: Sequence[Rendered], decoding: Decoding) -> Iterator[tuple[int, str, str, int]]:
        """(place, text, what ended it, tokens drawn)."""

    def _template_facts(self) -> dict[str, Any]:
        return {
            "chat_template": bool(self.tokenizer.chat_template),
            "chat_template_sha256": identity.template_digest(self.tokenizer),
            "tokenizer": identity.tokenizer_digest(self.tokenizer),
        }


class HuggingFaceChat(LocalChat):
    """A model run by transformers: on a GPU in the number format it was saved in, on a CPU in float32."""

    def __init__(self, model: str, device: str, threads: int, batch_size: int) -> None:
        environment.set_threads(threads)
        device = environment.device(device)
        loaded: LoadedModel = load_model(model, device, torch.float32 if device == "cpu" else None)
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.batch_size = self.wave = batch_size
        self.card = loaded.card.as_dict()
        self.positions = int(getattr(self.model.config, "max_position_embeddings", None) or sys.maxsize)
        self.facts = {
            "engine": "transformers",
            "versions": identity.versions("torch", "transformers"),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": self.model.device.type,
            "attention": self.model.config._attn_implementation,
            **self._template_facts(),
            "ends": self.tokenizer.convert_ids_to_tokens(sorted(end_tokens(self.model, self.tokenizer))),
        }

    def _write(self, rendered: Sequence[Rendered], decoding: Decoding) -> Iterator[tuple[int, str, str, int]]:
        """The longest prompts first: what does not fit into memory fails at once, and is tried in halves."""
        places = sorted(range(len(rendered)), key=lambda place: len(rendered[place].ids), reverse=True)
        while places:
            batch = places[: self.batch_size]
            done = self._batch([rendered[place] for place in batch], decoding)
            if done is None:
                continue
            for at, generation in done:
                yield batch[at], generation.text, generation.finish, len(generation.tokens)
            places = places[len(batch) :]

    def _batch(self, batch: Sequence[Rendered], decoding: Decoding) -> list[tuple[int, Any]] | None:
        """The batch's texts; None when the memory did not hold it, and the next one is to be half as large."""
        try:
            return list(
                continue_ids(
                    self.model,
                    self.tokenizer,
                    [one.ids for one in batch],
                    limits=[decoding.max_new_tokens] * len(batch),
                    sampling=Sampling(decoding.temperature, decoding.top_p),
                    seeds=[one.seed for one in batch],
                    batch_size=len(batch),
                )
            )
        except (RuntimeError, MemoryError) as error:
            if not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
                raise
            if len(batch) == 1:
                raise SetupError(
                    f"one prompt of {len(batch[0].ids)} tokens with {decoding.max_new_tokens} new ones does not fit "
                    f"into the memory of {self.model.device}: use a smaller model, shorter replies or another "
                    f"--device; what was written is kept"
                ) from None
        # Outside the handler, where the traceback no longer holds the batch's tensors.
        self.batch_size = len(batch) // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None


class VLLMChat(LocalChat):
    """A model run by vLLM, on the device that vLLM finds."""

    def __init__(self, model: str, batch_size: int, feature: str) -> None:
        environment.require("vllm", feature, "vllm")
        self.tokenizer = load_tokenizer(model)
        self.engine = Engine(model, self.tokenizer, batch_size, feature)
        self.card, self.positions = self.engine.card.as_dict(), self.engine.positions
        self.wave = WAVE * batch_size
        self.facts = {
            "engine": "vLLM",
            "versions": {"vllm": self.engine.version, **identity.versions("torch", "transformers")},
            "dtype": self.engine.dtype,
            "device": self.engine.device,
            "attention": "vLLM's choice",
            **self._template_facts(),
            "ends": "the tokenizer's end token and those of the model's generation config",
        }

    def _write(self, rendered: Sequence[Rendered], decoding: Decoding) -> Iterator[tuple[int, str, str, int]]:
        """In waves of some batches, the longest prompts first; the engine makes its own batches of each wave."""
        places = sorted(range(len(rendered)), key=lambda place: len(rendered[place].ids), reverse=True)
        for start in range(0, len(places), self.wave):
            wave = places[start : start + self.wave]
            rules = [self.engine.rule(*decoding, seed=rendered[place].seed) for place in wave]
            outputs = self.engine.write([rendered[place].ids for place in wave], rules)
            for place, output in zip(wave, outputs, strict=True):
                finish = "eos" if output.finish_reason == "stop" else str(output.finish_reason)
                yield place, output.text, finish, len(output.token_ids)


def check_system(system: str, model: str) -> None:
    """An InputError when --system would not reach the model as a system prompt; only the tokenizer is loaded."""
    tokenizer = load_tokenizer(model) if system else None
    if tokenizer is not None and not (tokenizer.chat_template and takes_system(tokenizer, system)):
        found = "its chat template takes none" if tokenizer.chat_template else "it has no chat template"
        raise InputError(
            f"--system was given, but {model} would not see a system prompt ({found}): leave --system out, or write "
            f"it into the prompts"
        )


def open_chat(backend: str, model: str, device: str, threads: int, batch_size: int, feature: str) -> LocalChat:
    """The model behind `backend` ("hf" or "vllm"); `feature` is what asks for it. SetupError when vLLM is missing."""
    if backend == "vllm":
        return VLLMChat(model, batch_size, feature)
    return HuggingFaceChat(model, device, threads, batch_size)


@lru_cache(maxsize=1)
def opened(backend: str, model: str, device: str, threads: int, batch_size: int, feature: str) -> LocalChat:
    """As `open_chat`, kept: whoever asks for the card and then for replies loads the model once."""
    return open_chat(backend, model, device, threads, batch_size, feature)
