"""How does lm-eval ask a model? Its tasks and its Hugging Face backend, with a seed per answer and a finish reason.

pass@1 numbers are compared across papers, so the prompts (few-shot layout, chat templates, delimiters) and the
generation loop are lm-eval's own. Three things are added to its HFLM, none of which changes a greedy text: every
sampled answer has its own stream of random numbers, so it survives another batch size, --limit or a resume; a row
that met a stop string no longer runs on until the slowest row of its batch has ended; and each answer says
how many tokens it took, why it ended and whether its prompt was cut to fit.

Grading is not here: a task's metric calls the grader it is given, and `passk` grades the stored text itself.
"""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from selectkd_eval.generate import Finish, Sampling, end_tokens, pick
from selectkd_eval.grading import Grader
from selectkd_eval.pair import LoadedModel

logging.getLogger("lm_eval").setLevel(logging.ERROR)

STOPS = ("Question:", "</s>", "<|im_end|>")
"""The stop strings of lm-eval's own gsm8k task."""


class Completion(NamedTuple):
    """One answer: text before the end or stop string, tokens drawn (the end included), and what cut it short."""

    text: str
    n_tokens: int
    finish: Finish
    prompt_cut: bool


def question_task(
    name: str,
    problems: Sequence[dict[str, str]],
    examples: Sequence[dict[str, str]],
    shots: int,
    max_new_tokens: int,
    temperature: float,
    grader: Grader,
) -> ConfigurableTask:
    """An lm-eval task over rows of `question` and `answer`, in the layout of its gsm8k; shots are the first examples.

    Built from a dictionary: lm-eval's scan of its 14,683 task names would take half a minute.
    """
    splits = {"test": Dataset.from_list([dict(row) for row in problems])}
    if shots:
        splits["train"] = Dataset.from_list([dict(row) for row in examples[:shots]])
    return ConfigurableTask(
        config={
            "task": name,
            "custom_dataset": lambda **_: splits,
            "output_type": "generate_until",
            "test_split": "test",
            "fewshot_split": "train" if shots else None,
            "fewshot_config": {"sampler": "first_n"} if shots else None,
            "num_fewshot": shots,
            "doc_to_text": "Question: {{question}}\nAnswer:",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {
                "until": list(STOPS),
                "max_gen_toks": max_new_tokens,
                "do_sample": temperature > 0,
                "temperature": temperature,
            },
            "process_results": lambda doc, results: {
                "pass@1": float(grader.correct(results[0], grader.gold(doc["answer"])))
            },
            "metric_list": [{"metric": "pass@1", "aggregation": "mean", "higher_is_better": True}],
            "metadata": {"version": 1.0},
        }
    )


def requests(task: ConfigurableTask, lm: HFLM) -> list[Instance]:
    """One request per problem, in the task's order, through the chat template when the tokenizer has one."""
    chat = bool(lm.tokenizer.chat_template)
    task.build_all_requests(
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        chat_template=lm.apply_chat_template if chat else None,
        tokenizer_name=lm.tokenizer_name if chat else "",
    )
    return list(task.instances)


class SeededHFLM(HFLM):
    """lm-eval's HFLM whose rows draw from their own generators and report how they ended."""

    def __init__(self, loaded: LoadedModel, batch_size: int, positions: int) -> None:
        super().__init__(
            pretrained=loaded.model,
            tokenizer=loaded.tokenizer,
            batch_size=batch_size,
            max_length=positions,
        )
        self._contexts: list[str] = []
        self._cut: list[bool] = []
        self._seeds: dict[str, deque[int]] = defaultdict(deque)
        self._ends: dict[str, deque[tuple[int, Finish, bool]]] = defaultdict(deque)

    def complete(self, asked: Sequence[Instance], seeds: Sequence[int]) -> list[Completion]:
        """Answers in the order asked, answer i sampled from seed i (unused when greedy)."""
        # generate_until reorders by length, stably: equal prompts (several samples of one) keep their order, so
        # what belongs to a request is found again by its text, first come first served.
        for instance, seed in zip(asked, seeds, strict=True):
            self._seeds[instance.args[0]].append(seed)
        texts = self.generate_until(list(asked), disable_tqdm=True)
        ends = [self._ends[instance.args[0]].popleft() for instance in asked]
        return [Completion(text, *end) for text, end in zip(texts, ends, strict=True)]

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
        self._cut = (mask.sum(dim=1) > room).tolist()
        return ids[:, -room:], mask[:, -room:]

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **kwargs: Any) -> Tensor:
        temperature = float(kwargs.pop("temperature", None) or 0.0)
        kwargs.pop("do_sample", None)
        seeds = [self._seeds[text].popleft() for text in self._contexts]
        start = context.shape[1]
        watch = _RowEnds(self.tokenizer, end_tokens(self.model, self.tokenizer), stop, start, len(seeds))
        draws = [_RowDraws(temperature, seeds, start, max_length - start)] if temperature > 0 else []
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
        for text, cut, end in zip(self._contexts, self._cut, watch.ends, strict=True):
            n_tokens, finish = end or (tokens.shape[1] - start, "length")
            self._ends[text].append((n_tokens, finish, cut))
        return tokens


class _RowDraws(LogitsProcessor):
    """Leaves the drawn token of each row as the only possible one; number t of a row's stream decides token t."""

    def __init__(self, temperature: float, seeds: Sequence[int], start: int, length: int) -> None:
        self.sampling = Sampling(temperature)
        self.start = start
        self.uniform = torch.stack(
            [torch.rand(length, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        )

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
            self.may_end[token] = not self.last.isdisjoint(self.tokenizer.decode([token]))
        if self.may_end[token]:
            tail = self.tokenizer.decode(written[-self.window :].tolist())
            if any(word in tail for word in self.stop):
                return "stop"
        return None
