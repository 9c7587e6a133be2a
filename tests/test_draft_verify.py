"""The draft never changes the text, and the counters say what happened: against plain decoding, against
transformers' `generate`, against decoding without any cache, and against the exact distribution of a model
small enough to enumerate.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from conftest import tiny_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from transformers.modeling_outputs import CausalLMOutput

from selectkd_eval import draft_verify
from selectkd_eval.draft_verify import Sampling, plain, speculative
from selectkd_eval.errors import InputError

V = 24


@pytest.fixture(scope="module")
def models():
    """A target, a copy with little noise (accepts often), another model (accepts seldom), a wider head."""
    target = tiny_llama([], layers=2, seed=0, vocabulary=V).eval()
    near = tiny_llama([], layers=2, seed=0, vocabulary=V).eval()
    with torch.no_grad():
        for index, weight in enumerate(near.parameters()):
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(index))
    far = tiny_llama([], layers=1, seed=5, vocabulary=V).eval()
    wide = tiny_llama([], layers=1, seed=7, vocabulary=V + 8).eval()
    return {"target": target, "same": target, "near": near, "far": far, "wide": wide}


prompts = st.lists(st.integers(0, V - 1), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    prompt=prompts,
    gamma=st.integers(1, 8),
    new=st.integers(1, 24),
    who=st.sampled_from(["same", "near", "far", "wide"]),
)
def test_greedy_text_is_plain_decodings_text(models, prompt, gamma, new, who):
    alone = plain(models["target"], prompt, new_tokens=new, vocabulary=V)
    run = speculative(models["target"], models[who], prompt, gamma=gamma, new_tokens=new, vocabulary=V)
    assert run.tokens == alone.tokens
    assert len(run.tokens) - 1 == run.steps + sum(run.accepted)
    assert all(0 <= k <= d <= gamma for k, d in zip(run.accepted, run.drafted, strict=True))
    assert alone.steps == new - 1
    if who == "same":
        assert run.accepted == run.drafted


def test_plain_decoding_is_what_transformers_generates(models):
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    theirs = models["target"].generate(ids, do_sample=False, max_new_tokens=30, eos_token_id=None, pad_token_id=0)
    assert plain(models["target"], ids[0].tolist(), new_tokens=30, vocabulary=V).tokens == theirs[0, 5:].tolist()


@torch.inference_mode()
def _next(model, ids) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1, :V]


@pytest.mark.parametrize("who", ["near", "far", "wide"])
def test_counters_equal_those_of_decoding_without_a_cache(models, who):
    prompt, gamma, new = [2, 7, 1], 4, 30
    run = speculative(models["target"], models[who], prompt, gamma=gamma, new_tokens=new, vocabulary=V)
    text, drafted, accepted, tested = [int(_next(models["target"], prompt).argmax())], [], [], 0
    while len(text) < new:
        count = min(gamma, new - len(text) - 1)
        draft: list[int] = []
        for _ in range(count):
            draft.append(int(_next(models[who], prompt + text + draft).argmax()))
        kept = 0
        while kept < count and int(_next(models["target"], prompt + text + draft[:kept]).argmax()) == draft[kept]:
            kept += 1
        tested += kept + (kept < count)  # the refused one was looked at, those behind it were not
        text += [*draft[:kept], int(_next(models["target"], prompt + text + draft[:kept]).argmax())]
        drafted.append(count)
        accepted.append(kept)
    assert (run.tokens, run.drafted, run.accepted, run.tested) == (text, drafted, accepted, tested)


def test_sampled_overlap_equals_that_of_decoding_without_a_cache(models):
    """Every tested position follows accepted text, so text and trace suffice to compute sum min(p, q) again."""
    prompt = [2, 7, 1]
    sampling = Sampling(0.9, torch.Generator().manual_seed(0))
    run = speculative(models["target"], models["near"], prompt, gamma=3, new_tokens=40, vocabulary=V, sampling=sampling)
    at, overlap = 1, 0.0
    for drafted, accepted in zip(run.drafted, run.accepted, strict=True):
        for offset in range(min(accepted + 1, drafted)):
            context = prompt + run.tokens[: at + offset]
            p, q = ((_next(models[who], context) / 0.9).softmax(-1) for who in ("target", "near"))
            overlap += float(torch.minimum(p, q).sum())
        at += accepted + 1
    assert run.alpha_sum == pytest.approx(overlap, abs=1e-4)
    assert 0 < sum(run.accepted) < sum(run.drafted)


def test_sampling_from_identical_models_accepts_everything(models):
    sampling = Sampling(1.0, torch.Generator().manual_seed(0))
    run = speculative(models["target"], models["target"], [1], gamma=4, new_tokens=60, vocabulary=V, sampling=sampling)
    assert run.accepted == run.drafted
    assert run.alpha_sum == pytest.approx(sum(run.drafted), abs=1e-3)


class Markov(torch.nn.Module):
    """A language model whose next token depends on the last one alone, so that every text's probability is a
    product.
    """

    def __init__(self, seed: int, size: int = 5) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(1.5 * torch.randn(size, size, generator=torch.Generator().manual_seed(seed)))
        self.config = type("Config", (), {"max_position_embeddings": None})()
        self.device = torch.device("cpu")

    def forward(self, input_ids, logits_to_keep=0, **_):
        return CausalLMOutput(logits=self.logits[input_ids[:, -logits_to_keep:]])


def _goodness_of_fit(target: Markov, draft: Markov, temperature: float, runs: int) -> float:
    """p-value of the texts drawn against the target's exact distribution over all 5^3 texts of three tokens."""
    generator = torch.Generator().manual_seed(1)
    counts = np.zeros((5, 5, 5))
    for _ in range(runs):
        run = speculative(
            target, draft, [0], gamma=2, new_tokens=3, vocabulary=5, sampling=Sampling(temperature, generator)
        )
        counts[tuple(run.tokens)] += 1
    p = (target.logits.detach().double() / temperature).softmax(-1).numpy()
    expected = np.array([[[p[0, a] * p[a, b] * p[b, c] for c in range(5)] for b in range(5)] for a in range(5)]) * runs
    common = expected >= 5
    observed_cells = np.append(counts[common], counts[~common].sum())
    expected_cells = np.append(expected[common], expected[~common].sum())
    statistic = ((observed_cells - expected_cells) ** 2 / np.maximum(expected_cells, 1e-9)).sum()
    return float(chi2.sf(statistic, len(expected_cells) - 1))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_text_has_the_targets_distribution(temperature):
    assert _goodness_of_fit(Markov(0), Markov(1), temperature, runs=3000) > 1e-3


def test_the_distribution_test_detects_a_wrong_rule(monkeypatch):
    """After a refusal, drawing from p instead of norm(max(0, p - q)) is the classic mistake."""

    def wrong(run, logits, proposal, q, sampling):
        p = sampling.probabilities(logits)
        accepted = 0
        for token in proposal[0].tolist():
            if float(torch.rand((), generator=sampling.generator)) * q[accepted, token] >= p[accepted, token]:
                break
            accepted += 1
        return [*proposal[0, :accepted].tolist(), int(sampling.draw(p[accepted]))]

    monkeypatch.setattr(draft_verify, "_accept_sampled", wrong)
    assert _goodness_of_fit(Markov(0), Markov(1), 1.0, runs=3000) < 1e-6


def test_markov_texts_are_enumerated_completely():
    p = Markov(0).logits.detach().double().softmax(-1)
    total = sum(float(p[0, a] * p[a, b] * p[b, c]) for a, b, c in product(range(5), repeat=3))
    assert total == pytest.approx(1)


@pytest.mark.parametrize("wrong", [{"gamma": 0}, {"new_tokens": 0}, {"new_tokens": 600}])
def test_impossible_requests_are_refused_in_one_sentence(models, wrong):
    asked = {"gamma": 2, "new_tokens": 4, "vocabulary": V} | wrong
    with pytest.raises(InputError):
        speculative(models["target"], models["far"], [1, 2], **asked)
