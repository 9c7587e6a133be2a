"""The draft never changes the text, and the counters say what happened: against plain decoding, against
transformers' `generate`, against decoding without any cache, and against the exact distribution of a model small
enough to enumerate.
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
from transformers import LlamaConfig
from transformers.modeling_outputs import CausalLMOutput

from selectkd_eval.errors import InputError
from selectkd_eval.sampling import GREEDY, Sampling, draw
from selectkd_eval.speculation import draft_verify
from selectkd_eval.speculation.draft_verify import ReferenceEngine, Verdict, plain, speculative
from selectkd_eval.speculation.engine import Request
from selectkd_eval.speeds import PLAIN, Arm

V = 24


def noisy(model, noise: float):
    """The model with noise on its weights."""
    with torch.no_grad():
        for index, weight in enumerate(model.parameters()):
            weight += noise * torch.randn(weight.shape, generator=torch.Generator().manual_seed(index))
    return model


@pytest.fixture(scope="module")
def models():
    """A target, a copy with little noise (accepts often), another model (accepts seldom), a wider head."""
    target = tiny_llama([], layers=2, seed=0, vocabulary=V).eval()
    near = noisy(tiny_llama([], layers=2, seed=0, vocabulary=V).eval(), 0.02)
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
    alone = plain(models["target"], prompt, new, vocabulary=V)
    run = speculative(models["target"], models[who], prompt, new, gamma, vocabulary=V)
    assert run.tokens == alone.tokens
    assert len(run.tokens) == run.first + run.steps + sum(run.accepted)
    assert all(0 <= k <= d <= gamma for k, d in zip(run.accepted, run.drafted, strict=True))
    assert alone.steps == alone.decode_tokens == run.decode_tokens == new - 1
    assert run.overlap is None and sum(alone.drafted) == 0
    if who == "same":
        assert run.accepted == run.drafted


@torch.inference_mode()
def _next(model, ids) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1, :V]


@pytest.mark.parametrize("who", ["near", "far", "wide"])
def test_counters_equal_those_of_decoding_without_a_cache(models, who):
    prompt, gamma, new = [2, 7, 1], 4, 30
    run = speculative(models["target"], models[who], prompt, new, gamma, vocabulary=V)
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


@pytest.mark.parametrize("rule", [Sampling(0.9), Sampling(1.2, 0.8), Sampling(1.0, 1.0, 5)])
def test_sampled_overlap_equals_that_of_decoding_without_a_cache(models, rule):
    """Every tested position follows accepted text, so text and trace suffice to compute sum min(p, q) again."""
    prompt = [2, 7, 1]
    run = speculative(models["target"], models["near"], prompt, 40, 3, vocabulary=V, sampling=rule)
    at, overlap = 1, []
    for drafted, accepted in zip(run.drafted, run.accepted, strict=True):
        for offset in range(min(accepted + 1, drafted)):
            context = prompt + run.tokens[: at + offset]
            p, q = (rule.probabilities(_next(models[who], context)[None]) for who in ("target", "near"))
            overlap.append(float(torch.minimum(p, q).sum()))
        at += accepted + 1
    assert run.overlap == pytest.approx(overlap, abs=1e-4)
    assert len(overlap) == run.tested
    assert 0 < sum(run.accepted) < sum(run.drafted)


@pytest.mark.parametrize("rule", [Sampling(1.0), Sampling(0.8, 0.7), Sampling(1.0, 1.0, 3)])
def test_sampling_from_identical_models_accepts_everything(models, rule):
    run = speculative(models["target"], models["target"], [1], 60, 4, vocabulary=V, sampling=rule)
    assert run.accepted == run.drafted
    assert run.overlap == pytest.approx([1] * sum(run.drafted), abs=1e-4)


def test_as_many_draws_are_accepted_as_the_overlaps_expect(models):
    """Given the text before it, a draw is kept with probability sum min(p, q), so the differences add up to a sum
    of mean 0 whose variance is the sum of a (1 - a).
    """
    accepted = expected = variance = 0.0
    for seed in range(15):
        rule = Sampling(1.5)
        run = speculative(models["target"], models["far"], [1], 40, 3, vocabulary=V, sampling=rule, seed=seed)
        accepted += sum(run.accepted)
        expected += sum(run.overlap)
        variance += sum(a * (1 - a) for a in run.overlap)
    assert variance > 25
    assert abs(accepted - expected) < 4 * variance**0.5


def test_greedy_stays_greedy_under_any_cut(models):
    alone = plain(models["target"], [3, 4], 20, vocabulary=V)
    cut = Sampling(0.0, 0.5, 4)
    assert plain(models["target"], [3, 4], 20, vocabulary=V, sampling=cut).tokens == alone.tokens
    run = speculative(models["target"], models["near"], [3, 4], 20, 3, vocabulary=V, sampling=cut)
    assert run.tokens == alone.tokens


@pytest.mark.parametrize("arm", [PLAIN, Arm(0, 3)])
def test_a_seed_says_which_text_and_earlier_runs_do_not(models, arm):
    rule, request = Sampling(1.0, 0.95), Request([1, 2], 25, seed=7)
    engine = ReferenceEngine(models["target"], [models["near"]], V)
    text = engine.decode(request, arm, rule).tokens
    engine.decode(Request([5] * 30, 40, seed=1), Arm(0, 8), rule)
    engine.decode(Request([5], 3), PLAIN, GREEDY)
    torch.rand(3)  # nor does anybody's global generator
    assert engine.decode(request, arm, rule).tokens == text
    assert engine.decode(request._replace(seed=8), arm, rule).tokens != text
    fresh = ReferenceEngine(models["target"], [models["near"]], V)
    assert fresh.decode(request, arm, rule).tokens == text


@pytest.mark.parametrize("arm", [PLAIN, Arm(0, 4)])
def test_the_stages_explain_the_decoding_time(models, arm):
    engine = ReferenceEngine(models["target"], [models["near"]], V)
    runs = [engine.decode(Request([1, 2, 3], 60), arm, GREEDY) for _ in range(3)]
    for run in runs:
        stages = (run.draft_s, run.verify_s, run.accept_s, run.crop_s)
        assert all(seconds >= 0 for seconds in stages) and run.prefill_s > 0
        assert sum(stages) <= run.decode_s * (1 + 1e-9)
        assert (run.draft_s > 0) == (not arm.plain)
    assert max((run.draft_s + run.verify_s + run.accept_s + run.crop_s) / run.decode_s for run in runs) > 0.97


class Markov(torch.nn.Module):
    """A language model whose next token depends on the last one alone, so that every text's probability is a product.

    A head wider than the vocabulary has surplus entries, which would take nearly all the mass if they were not cut off.
    """

    def __init__(self, seed: int, size: int = 5, surplus: int = 0) -> None:
        super().__init__()
        logits = 1.5 * torch.randn(size, size, generator=torch.Generator().manual_seed(seed))
        self.logits = torch.nn.Parameter(torch.cat((logits, torch.full((size, surplus), 9.0)), dim=1))
        self.config = LlamaConfig(num_hidden_layers=1)
        self.device = torch.device("cpu")

    def forward(self, input_ids, past_key_values=None, logits_to_keep=0, **_):
        return CausalLMOutput(logits=self.logits[input_ids[:, -logits_to_keep:]])


def _goodness_of_fit(target: Markov, draft: Markov | None, rule: Sampling, runs: int) -> float:
    """p-value of the texts drawn against the target's exact distribution over all 5^3 texts of three tokens."""
    counts = np.zeros((5, 5, 5))
    for seed in range(runs):
        if draft is None:
            run = plain(target, [0], 3, vocabulary=5, sampling=rule, seed=seed)
        else:
            run = speculative(target, draft, [0], 3, 2, vocabulary=5, sampling=rule, seed=seed)
        counts[tuple(run.tokens)] += 1
    p = rule.probabilities(target.logits.detach()[:, :5]).double().numpy()
    expected = np.array([[[p[0, a] * p[a, b] * p[b, c] for c in range(5)] for b in range(5)] for a in range(5)]) * runs
    assert counts[expected == 0].sum() == 0
    common = expected >= 5
    observed_cells, expected_cells = counts[common], expected[common]
    if expected[~common].sum() >= 1:
        observed_cells = np.append(observed_cells, counts[~common].sum())
        expected_cells = np.append(expected_cells, expected[~common].sum())
    statistic = ((observed_cells - expected_cells) ** 2 / expected_cells).sum()
    return float(chi2.sf(statistic, len(expected_cells) - 1))


RULES = [Sampling(1.0), Sampling(0.7), Sampling(1.0, 1.0, 3), Sampling(1.0, 0.8), Sampling(1.3, 0.9, 4)]


@pytest.mark.parametrize("rule", RULES, ids=lambda r: f"temperature {r.temperature}, top-p {r.top_p}, top-k {r.top_k}")
def test_sampled_text_has_the_targets_distribution(rule):
    assert _goodness_of_fit(Markov(0), Markov(1), rule, runs=2000) > 1e-3


def test_surplus_entries_of_either_head_take_no_mass():
    assert _goodness_of_fit(Markov(0, surplus=3), Markov(1), Sampling(1.0), runs=2000) > 1e-3
    assert _goodness_of_fit(Markov(0), Markov(1, surplus=3), Sampling(1.0), runs=2000) > 1e-3


def test_plain_sampling_has_the_same_distribution():
    assert _goodness_of_fit(Markov(0), None, Sampling(1.0, 0.9), runs=2000) > 1e-3


def test_a_draft_that_proposes_what_the_target_never_says_costs_nothing_but_time():
    """Disjoint supports: everything is refused and the residual is p itself."""
    target, draft = Markov(0), Markov(1)
    with torch.no_grad():
        target.logits[:, 3:] = -1e9
        draft.logits[:, :3] = -1e9
    run = speculative(target, draft, [0], 30, 3, vocabulary=5, sampling=Sampling(1.0))
    assert sum(run.accepted) == 0 and run.overlap == pytest.approx([0] * run.tested, abs=1e-6)
    assert set(run.tokens) <= {0, 1, 2}


def test_the_distribution_test_detects_a_wrong_rule(monkeypatch):
    """After a refusal, drawing from p instead of norm(max(0, p - q)) is the classic mistake."""

    def wrong(p, proposal, u):
        drawn, q = proposal
        count = 0 if q is None else len(q)
        accepted = 0
        while accepted < count:
            token = drawn[0, accepted]
            if u[count + accepted] * q[accepted, token] >= p[accepted, token]:
                break
            accepted += 1
        following = draw(p[accepted : accepted + 1], u[-1:])
        return Verdict(accepted, torch.cat((drawn[:, :accepted], following), dim=1), [])

    monkeypatch.setattr(draft_verify, "accept_sampled", wrong)
    assert _goodness_of_fit(Markov(0), Markov(1), Sampling(1.0), runs=2000) < 1e-6


def test_markov_texts_are_enumerated_completely():
    p = Markov(0).logits.detach().double().softmax(-1)
    total = sum(float(p[0, a] * p[a, b] * p[b, c]) for a, b, c in product(range(5), repeat=3))
    assert total == pytest.approx(1)


@pytest.mark.parametrize("wrong", [{"gamma": 0}, {"new_tokens": 0}, {"new_tokens": 600}, {"prompt": []}])
def test_impossible_requests_are_refused_in_one_sentence(models, wrong):
    asked = {"prompt": [1, 2], "gamma": 2, "new_tokens": 4, "vocabulary": V} | wrong
    with pytest.raises(InputError):
        speculative(models["target"], models["far"], **asked)


def test_several_texts_at_once_are_refused(models):
    engine = ReferenceEngine(models["target"], [], V)
    with pytest.raises(InputError, match="one text at a time, not 2"):
        engine.together([Request([1], 3), Request([2], 3)], PLAIN, GREEDY)
