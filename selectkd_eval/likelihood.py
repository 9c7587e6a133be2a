"""How likely does a local model find an answer? The number behind the likelihood judge.

Mean log-likelihood per character, log p(answer | prompt) / characters, so that answers of different length and
models with different tokenizers are on one scale. It is no preference: bland text is likely text. The paper judges
with GPT-4o; this stands in for it where there is no network, and says so wherever its number is shown.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from selectkd_eval import environment
from selectkd_eval.pair import LoadedModel, load_model
from selectkd_eval.prompts import completion_text, prompt_ids

BATCH = 32


def score_answers(
    model_name: str, prompts: list[str], answers: list[str], device: str = "auto", threads: int = 0
) -> list[float]:
    """Mean log-likelihood per character of each answer given its prompt, in nats.

    The end token is not scored: an answer cut at the length limit has none. NaN where the prompt and answer do not
    fit into the model's context. Raises ValueError for an answer without characters.
    """
    if len(prompts) != len(answers):
        raise ValueError(f"{len(prompts)} prompts for {len(answers)} answers")
    if not all(answer.strip() for answer in answers):
        raise ValueError("an empty answer has no likelihood per character")
    judge = _loaded(model_name, environment.device(device), threads)
    answers = [answer.strip() for answer in answers]
    encoded = [_encode(judge.tokenizer, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    longest = getattr(judge.model.config, "max_position_embeddings", None) or 2**31
    fitting = [index for index, (ids, _) in enumerate(encoded) if len(ids) <= longest]
    fitting.sort(key=lambda index: len(encoded[index][0]))
    scores = [float("nan")] * len(answers)
    for start in range(0, len(fitting), BATCH):
        batch = fitting[start : start + BATCH]
        sums = _log_likelihoods(judge.model, [encoded[index] for index in batch])
        for index, total in zip(batch, sums, strict=True):
            scores[index] = total / len(answers[index])
    return scores


def judge_card(model_name: str, device: str = "auto", threads: int = 0) -> dict[str, Any]:
    """The card of the judging model, for the record's header."""
    return _loaded(model_name, environment.device(device), threads).card.as_dict()


@lru_cache(maxsize=1)
def _loaded(model_name: str, device: str, threads: int) -> LoadedModel:
    environment.set_threads(threads)
    return load_model(model_name, device)


def _encode(tokenizer: Any, prompt: str, answer: str) -> tuple[list[int], int]:
    """Token ids of prompt and answer, and where the answer begins."""
    before = prompt_ids(tokenizer, prompt)
    after = tokenizer(completion_text(tokenizer, answer), add_special_tokens=False)["input_ids"]
    return before + list(after), len(before)


@torch.inference_mode()
def _log_likelihoods(model: Any, examples: list[tuple[list[int], int]]) -> list[float]:
    """Summed log-likelihood of each answer's tokens. Padding lies on the right, where no answer token sees it."""
    width = max(len(ids) for ids, _ in examples)
    tokens = torch.zeros(len(examples), width, dtype=torch.long)
    scored = torch.zeros(len(examples), width, dtype=torch.bool)
    mask = torch.zeros(len(examples), width, dtype=torch.long)
    for row, (ids, begin) in enumerate(examples):
        tokens[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = 1
        scored[row, begin : len(ids)] = True
    tokens, scored, mask = (tensor.to(model.device) for tensor in (tokens, scored, mask))
    logits = model(input_ids=tokens, attention_mask=mask).logits[:, :-1].float()
    log_p = torch.log_softmax(logits, dim=-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return [float(value) for value in (log_p * scored[:, 1:]).double().sum(dim=1)]
