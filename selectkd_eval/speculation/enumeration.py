"""Does an engine sample from the target's distribution, where that can be written down?

On a vocabulary of 8 tokens the law of three tokens has 512 cells, each a product of the target's conditionals: 1500
texts against it by chi-square, and their total variation beside what chance alone gives. Whatever is wrong
with an accept rule, a residual, a cache or a temperature is wrong here too, and here nothing but the law is compared.

The models are real transformers models, tiny, with random weights, and the engine decodes them as it decodes any
other. It says nothing of large vocabularies and long texts (`gate` looks at those) nor of speed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from selectkd_eval.lossless import chi2_tail
from selectkd_eval.sampling import Sampling
from selectkd_eval.speculation.engine import Engine, Request
from selectkd_eval.speeds import Arm

VOCABULARY = 8
PROMPT = (3, 1, 4)
TEXTS = 1500
GAMMA = 3
# The last step can draft GAMMA tokens and emit one more; the last three tokens hold drafted ones, the token after a
# refusal and the one after a step in which all were kept.
LENGTH = 5
# Expected texts in a cell, at least. Of a million runs of a right engine simulated, 1.9e-4 had p below 1e-4 with the
# usual 5 in a cell, and 1.5e-4 with 10; a wrong rule shows as clearly with either.
CELL = 10.0

EngineOf = Callable[[Any, Sequence[Any], int], Engine]


def enumerated(engine_of: EngineOf, sampling: Sampling, seed: int, texts: int = TEXTS) -> dict[str, Any]:
    """A record's `enumeration` row for the engine that `engine_of` makes of a target, its drafts and the vocabulary.

    `sampling` is the run's own; its top-k is at most 4, so that it cuts something off.
    """
    rule = sampling._replace(top_k=min(sampling.top_k, VOCABULARY // 2))
    target, draft = tiny_models()
    law = last_three(exact_law(target, rule))
    engine = engine_of(target, [draft], VOCABULARY)
    counts = np.zeros(law.shape)
    try:
        for text in range(texts):
            request = Request(PROMPT, LENGTH, seed * 1_000_003 + text)
            counts[tuple(engine.decode(request, Arm(0, GAMMA), rule).tokens[-3:])] += 1
    finally:
        engine.close()
    return {**goodness_of_fit(counts, law), **rule._asdict()}


def tiny_models() -> tuple[Any, Any]:
    """A target and a draft that knows some of it: about two draws in three are accepted at temperature 1."""
    models = []
    for _ in range(2):
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=32,
            initializer_range=0.6,
            tie_word_embeddings=False,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=None,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(11)
            models.append(LlamaForCausalLM(config).eval())
    with torch.no_grad():
        for index, weight in enumerate(models[1].parameters()):
            weight += 0.15 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(index))
    return models[0], models[1]


@torch.inference_mode()
def exact_law(model: Any, sampling: Sampling, length: int = LENGTH) -> np.ndarray:
    """Probability of every text of ``length`` tokens after the prompt, ``(8,) * length``, in fp64."""
    law = np.ones(1)
    contexts = torch.tensor([PROMPT])
    for _ in range(length):
        rows = [model(input_ids=some, use_cache=False).logits[:, -1, :VOCABULARY] for some in contexts.split(1024)]
        p = sampling.probabilities(torch.cat(rows)).double().numpy()
        law = (law[:, None] * (p / p.sum(-1, keepdims=True))).reshape(-1)
        following = torch.arange(VOCABULARY).repeat(len(contexts))[:, None]
        contexts = torch.cat((contexts.repeat_interleave(VOCABULARY, dim=0), following), dim=1)
    return law.reshape((VOCABULARY,) * length)


def last_three(law: np.ndarray) -> np.ndarray:
    """Of the law of a text, that of its last three tokens, ``(8, 8, 8)``."""
    return law.sum(axis=tuple(range(law.ndim - 3)))


def goodness_of_fit(counts: np.ndarray, law: np.ndarray) -> dict[str, Any]:
    """Chi-square over cells pooled until each expects enough, and total variation over all of them.

    `tv_expected` is its mean when the counts are draws from the law: every cell is binomial. A text in a cell of
    probability 0 is as wrong as can be: p is then 0.
    """
    n = int(counts.sum())
    observed, expected = pooled(counts.reshape(-1), n * law.reshape(-1))
    chi2 = float(((observed - expected) ** 2 / expected).sum())
    df = len(expected) - 1
    excluded = counts[law == 0].sum() > 0
    return {
        "n": n,
        "cells": len(expected),
        "chi2": chi2,
        "df": df,
        "p": 0.0 if excluded else chi2_tail(chi2, df) if df else 1.0,
        "tv": float(np.abs(counts / n - law).sum() / 2),
        "tv_expected": float(sum(_mean_deviation(n, p) for p in law[law > 0]) / (2 * n)),
    }


def pooled(observed: np.ndarray, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts in cells of at least CELL expected texts: rarer cells together, from the commonest of them down."""
    order = np.argsort(-expected, kind="stable")
    cells: list[list[float]] = [[0.0, 0.0]]
    for index in order:
        if cells[-1][1] >= CELL:
            cells.append([0.0, 0.0])
        cells[-1][0] += observed[index]
        cells[-1][1] += expected[index]
    if len(cells) > 1 and cells[-1][1] < CELL:
        rest = cells.pop()
        cells[-1] = [cells[-1][0] + rest[0], cells[-1][1] + rest[1]]
    table = np.array(cells)
    return table[:, 0], table[:, 1]


def _mean_deviation(n: int, p: float) -> float:
    """E|X - np| of a binomial X (de Moivre): 2 k (1 - p) P(X = k) with k the first whole number above np."""
    k = math.floor(n * p) + 1
    if k > n:
        return 0.0
    log = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(p) + (n - k) * math.log1p(-p)
    return 2 * k * (1 - p) * math.exp(log)
