"""How does lm-eval ask a local model? Its Hugging Face backend, with a seed per answer and a finish reason.

pass@1 numbers are compared across papers, so the generation loop is lm-eval's own. Three things are added to its
HFLM, none of which changes a greedy text: every sampled answer has its own stream of random numbers, so it survives
another batch size, --limit or a resume; a row that met a stop string no longer runs on until the slowest row of its
batch has ended; and each answer says how many tokens it took, why it ended and whether its prompt was cut to fit.

The prompts come from `tasks`; nothing is graded here.
"""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from accelerate.utils.memory import should_reduce_batch_size
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from selectkd_eval import environment
from selectkd_eval.backends import identity
from selectkd_eval.backends.backend import Asked, Completion, Decoding, Finish
from selectkd_eval.backends.chat import chat_wanted, check_system
from selectkd_eval.errors import SetupError
from selectkd_eval.generate import end_tokens
from selectkd_eval.pair import load_model
from selectkd_eval.sampling import Sampling, pick, uniforms
from selectkd_eval.tasks.task import Task
from selectkd_eval.verbs import PasskOptions

logging.getLogger("lm_eval").setLevel(logging.ERROR)


class HuggingFace:
    """A model run by transformers. On a GPU it runs in the number format it was saved in, on a CPU in float32."""

    opens = True
    seeds = (
        "every answer has its own stream of random numbers: its text does not depend on --batch-size, --limit or a "
        "resume (up to rounding in the matrix products)"
    )

    def __init__(self, options: PasskOptions) -> None:
        device = environment.device(options.device)
        model, tokenizer, card = load_model(options.model, device, torch.float32 if device == "cpu" else None)
        self.chat = chat_wanted(options.chat, tokenizer, options.model)
        if self.chat:
            check_system(options.system, tokenizer, options.model)
        self.card = card.as_dict()
        self.system = options.system
        self.batch_size = options.batch_size
        commit = getattr(model.config, "_commit_hash", None)
        self.identity = {
            "backend": "lm-eval HFLM",
            **identity.weights(options.model, card.fingerprint, commit),
            "tokenizer": identity.tokenizer_digest(tokenizer),
            "chat": self.chat,
            "chat_template": identity.template_digest(tokenizer) if self.chat else "",
            "system": options.system,
            "versions": identity.versions("lm_eval", "torch", "transformers"),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": model.device.type,
            "attention": model.config._attn_implementation,
            "repetition_penalty": getattr(model.generation_config, "repetition_penalty", None) or 1.0,
        }
        self.lm = SeededHFLM(model, tokenizer)

    def room(self, asked: int) -> int:
        """`asked`, but at most half of the model's positions: the prompt needs room too."""
        return min(asked, self.lm.max_length // 2)

    def prompts(self, task: Task) -> list[str]:
        """lm-eval's prompts, through the chat template where there is one and --chat does not say no."""
        from selectkd_eval.tasks.lm_task import rendered

        return rendered(
            task,
            system=self.system,
            template=self.lm.apply_chat_template if self.chat else None,
            tokenizer_name=self.lm.tokenizer_name if self.chat else "",
        )

    def complete(self, asked: Sequence[Asked]) -> Iterator[tuple[int, Completion]]:
        """Batch by batch, the longest prompts first: what does not fit into memory fails at once, and is halved."""
        for decoding in dict.fromkeys(one.decoding for one in asked):
            places = [place for place, one in enumerate(asked) if one.decoding == decoding]
            places.sort(key=lambda place: len(asked[place].prompt), reverse=True)
            while places:
                batch = places[: self.batch_size]
                done = self._batch([asked[place] for place in batch], decoding)
                if done is None:
                    continue
                yield from zip(batch, done, strict=True)
                places = places[len(batch) :]

    def _batch(self, asked: Sequence[Asked], decoding: Decoding) -> list[Completion] | None:
        """The batch's answers; None when the memory did not hold it, and the next one is to be half as large."""
        try:
            return self.lm.complete(asked, decoding)
        except (RuntimeError, MemoryError) as error:
            if not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
                raise
            if len(asked) == 1:
                raise SetupError(
                    f"one prompt of {len(asked[0].prompt)} characters with {decoding.max_new_tokens} new tokens does "
                    f"not fit into the memory of {self.lm.device}: use a smaller model, fewer --shots or another "
                    f"--device; what was answered is kept"
                ) from None
        # Outside the handler, where the traceback no longer holds the batch's tensors.
        self.batch_size = len(asked) // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None


class _End(NamedTuple):
    n_tokens: int
    finish: Finish
    cut: bool
    n_prompt: int


class SeededHFLM(HFLM):
    """lm-eval's HFLM whose rows draw from their own generators and report how they ended."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=1)
        if model.generation_config is not None:
            model.generation_config.max_new_tokens = None  # it would win over the length that is asked for
        self._sampling = Sampling()
        self._contexts: list[str] = []
        self._lengths: list[tuple[bool, int]] = []
        self._seeds: dict[str, deque[int]] = defaultdict(deque)
        self._ends: dict[str, deque[_End]] = defaultdict(deque)

    def complete(self, asked: Sequence[Asked], decoding: Decoding) -> list[Completion]:
        """One batch, answers in the order asked, each sampled from its own seed (unused when greedy)."""
        # generate_until reorders by length, stably: equal prompts (several samples of one) keep their order, so
        # what belongs to a request is found again by its text, first come first served.
        self._seeds.clear()
        self._ends.clear()
        for one in asked:
            self._seeds[one.prompt].append(one.seed)
        self._sampling = Sampling(decoding.temperature, decoding.top_p)
        self.batch_size_per_gpu = len(asked)
        # The draws are ours, so for lm-eval and transformers all decoding is greedy.
        rule = {"until": list(decoding.stops), "max_gen_toks": decoding.max_new_tokens, "do_sample": False}
        requests = [
            Instance(request_type="generate_until", doc={}, arguments=(one.prompt, rule), idx=0) for one in asked
        ]
        texts = self.generate_until(requests, disable_tqdm=True)
        ends = [self._ends[one.prompt].popleft() for one in asked]
        return [
            Completion(text, end.n_tokens, end.finish, end.cut, end.n_prompt)
            for text, end in zip(texts, ends, strict=True)
        ]

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """As HFLM's, noting whose batch it is and which prompts lost their beginning."""
        ids, mask = super().tok_batch_encode(strings, padding_side, None, truncation)
        room = left_truncate_len or ids.shape[1]
        self._contexts = list(strings)
        self._lengths = [(length > room, min(length, room)) for length in mask.sum(dim=1).tolist()]
        return ids[:, -room:], mask[:, -room:]

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **kwargs: Any) -> Tensor:
        for name in ("temperature", "do_sample"):
            kwargs.pop(name, None)
        seeds = [self._seeds[text].popleft() for text in self._contexts]
        start = context.shape[1]
        watch = _RowEnds(self.tokenizer, end_tokens(self.model, self.tokenizer), stop, start, len(seeds))
        sampled = self._sampling.temperature > 0
        draws = [_RowDraws(self._sampling, seeds, start, max_length - start)] if sampled else []
        with torch.inference_mode():
            # The draw is made by the processor, which leaves one possible token: greedy decoding then takes it.
            tokens: Tensor = self.model.generate(
                input_ids=context,
                max_length=max_length,
                do_sample=False,
                logits_processor=LogitsProcessorList(draws),
                stopping_criteria=StoppingCriteriaList([watch]),
                pad_token_id=self.tokenizer.pad_token_id,
                use_cache=True,
                **kwargs,
            )
        for text, prompt, end in zip(self._contexts, self._lengths, watch.ends, strict=True):
            n_tokens, finish = end or (tokens.shape[1] - start, "length")
            self._ends[text].append(_End(n_tokens, finish, *prompt))
        return tokens


class _RowDraws(LogitsProcessor):
    """Leaves the drawn token of each row as the only possible one; number t of a row's stream decides token t."""

    def __init__(self, sampling: Sampling, seeds: Sequence[int], start: int, length: int) -> None:
        self.sampling = sampling
        self.start = start
        self.uniform = torch.stack([uniforms(seed, length) for seed in seeds])

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.start
        drawn = pick(scores.float(), self.sampling, self.uniform[:, step].to(scores.device))
        return torch.full_like(scores, float("-inf")).scatter(1, drawn[:, None], 0.0)


class _RowEnds(StoppingCriteria):
    """Ends each row by itself, at the end token or a stop string; `ends` holds (tokens, reason), None while running."""

    def __init__(self, tokenizer: Any, end_ids: frozenset[int], stop: Sequence[str], start: int, rows: int) -> None:
        self.tokenizer, self.end_ids, self.start = tokenizer, end_ids, start
        self.stop = [word for word in stop if word]
        # A token holds at least one byte, so this many tokens hold every spelling of a stop string.
        self.window = max((len(word.encode()) for word in self.stop), default=0) + 2
        self.last = {word[-1] for word in self.stop}
        self.may_end: dict[int, bool] = {}
        self.ends: list[tuple[int, Finish] | None] = [None] * rows

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        written = input_ids[:, self.start :]
        for row, token in enumerate(written[:, -1].tolist()):
            if self.ends[row] is None and (reason := self._reason(written[row], token)):
                self.ends[row] = (written.shape[1], reason)
        return torch.tensor([end is not None for end in self.ends], device=input_ids.device)

    def _reason(self, written: Tensor, token: int) -> Finish | None:
        if token in self.end_ids:
            return "eos"
        if token not in self.may_end:
            # A token may be part of a character, and a space at its beginning may be lost on its own.
            word = self.tokenizer.decode([token])
            self.may_end[token] = not self.last.isdisjoint(word) or "\ufffd" in word or " " in self.last
        if self.may_end[token]:
            tail = self.tokenizer.decode(written[-self.window :].tolist())
            if any(word in tail for word in self.stop):
                return "stop"
        return None
