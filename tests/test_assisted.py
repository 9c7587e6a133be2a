"""Assisted generation writes the target's text, and what it did is counted from outside exactly: against the reference
engine, against what transformers itself counts, and against the exact distribution of a model small enough to
enumerate.
"""

from __future__ import annotations

import logging
import time
from itertools import product

import numpy as np
import pytest
import torch
import transformers
from conftest import tiny_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from transformers import GenerationConfig, MambaConfig, MambaForCausalLM
from transformers.generation import candidate_generator

from selectkd_eval.errors import InputError
from selectkd_eval.sampling import GREEDY, Sampling
from selectkd_eval.speculation.assisted import AssistedEngine, Warped
from selectkd_eval.speculation.draft_verify import ReferenceEngine
from selectkd_eval.speculation.engine import Request
from selectkd_eval.speeds import PLAIN, Arm

V = 24
SAME, NEAR, FAR = range(3)
WARPED = Sampling(0.7, 0.9, 5)


def disturbed(model, noise: float):
    """The model with a little noise on its weights: a draft that is often right."""
    with torch.no_grad():
        for index, weight in enumerate(model.parameters()):
            weight += noise * torch.randn(weight.shape, generator=torch.Generator().manual_seed(index))
    return model.eval()


@pytest.fixture(scope="module")
def models():
    """A target; a draft that is the target itself, one that is often right, one that is seldom."""
    target = tiny_llama([], layers=2, seed=0, vocabulary=V).eval()
    near = disturbed(tiny_llama([], layers=2, seed=0, vocabulary=V), 0.02)
    return target, [target, near, tiny_llama([], layers=1, seed=5, vocabulary=V).eval()]


@pytest.fixture(scope="module")
def engine(models):
    return AssistedEngine(*models, V)


@pytest.fixture(scope="module")
def reference(models):
    return ReferenceEngine(*models, V)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    prompt=st.lists(st.integers(0, V - 1), min_size=1, max_size=12),
    gamma=st.integers(1, 8),
    new=st.integers(1, 20),
    who=st.sampled_from([SAME, NEAR, FAR]),
)
def test_greedy_text_is_the_reference_engines_in_as_many_target_calls_or_one_fewer(
    engine, reference, prompt, gamma, new, who
):
    """Here the first step drafts before the target has read the prompt; the reference engine has a call for the prompt.

    A step that begins later never ends earlier, and the reference engine's first begins after one token: it needs as
    many steps beside that call, or one fewer.
    """
    request = Request(prompt, new)
    theirs, ours = (which.decode(request, Arm(who, gamma), GREEDY) for which in (engine, reference))
    assert theirs.tokens == ours.tokens == reference.decode(request, PLAIN, GREEDY).tokens
    assert len(theirs.tokens) == theirs.first + theirs.steps + sum(theirs.accepted) == new
    assert all(0 <= k <= d <= gamma for k, d in zip(theirs.accepted, theirs.drafted, strict=True))
    assert theirs.steps - ours.steps in (0, 1)
    if who == SAME:
        assert theirs.accepted == theirs.drafted


@pytest.mark.parametrize("gamma", [1, 2, 3, 4, 5])
def test_every_step_drafts_gamma_tokens_until_fewer_can_be_used(engine, gamma):
    run = engine.decode(Request([3, 1, 4], 24), Arm(NEAR, gamma), GREEDY)
    there = np.cumsum([0, *(k + 1 for k in run.accepted)])[:-1]
    assert run.drafted == [min(gamma, 24 - begun - 1) for begun in there]
    assert 0 < sum(run.accepted) < sum(run.drafted)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.0), WARPED], ids=["greedy", "T1", "warped"])
@pytest.mark.parametrize("arm", [Arm(NEAR, 1), Arm(NEAR, 4), Arm(FAR, 3)], ids=["near1", "near4", "far3"])
def test_counts_are_those_that_transformers_keeps_for_itself(engine, monkeypatch, sampling, arm):
    private = []
    counted = candidate_generator.AssistedCandidateGenerator.update_candidate_strategy

    def spy(self, input_ids, scores, num_matches):
        private.append((scores.shape[1] - 1, int(num_matches)))
        return counted(self, input_ids, scores, num_matches)

    monkeypatch.setattr(candidate_generator.AssistedCandidateGenerator, "update_candidate_strategy", spy)
    run = engine.decode(Request([3, 1, 4], 24, seed=1), arm, sampling)
    assert list(zip(run.drafted, run.accepted, strict=True)) == private


def test_plain_decoding_is_a_step_per_token_and_the_reference_engines_text(engine, reference):
    run = engine.decode(Request([3, 1, 4, 1, 5], 20), PLAIN, GREEDY)
    assert run.tokens == reference.decode(Request([3, 1, 4, 1, 5], 20), PLAIN, GREEDY).tokens
    assert (run.first, run.drafted, run.accepted) == (0, [0] * 20, [0] * 20)
    assert run.decode_tokens == 19


@pytest.mark.parametrize("arm", [PLAIN, Arm(NEAR, 3)], ids=["plain", "near3"])
def test_stages_lie_within_decoding_and_decoding_within_the_run(engine, arm):
    begun = time.perf_counter()
    run = engine.decode(Request([3, 1, 4], 20), arm, GREEDY)
    wall = time.perf_counter() - begun
    assert 0 < run.verify_s <= run.verify_s + run.draft_s <= run.decode_s
    assert 0 < run.prefill_s <= run.prefill_s + run.decode_s <= wall
    assert (run.draft_s > 0) == (not arm.plain)
    assert run.decode_tokens == 20 - run.accepted[0] - 1
    assert run.accept_s is run.crop_s is run.overlap is None


def test_what_the_models_generation_configs_say_changes_nothing(models, engine):
    """An end token that the text has, a penalty, a length, another draft length: all are left out, and come back."""
    target, drafts = models
    request, arm = Request([3, 1, 4], 20), Arm(NEAR, 3)
    text = [engine.decode(request, PLAIN, GREEDY).tokens, engine.decode(request, arm, GREEDY)]
    sampled = engine.decode(request, arm, WARPED).tokens
    mine = {model: model.generation_config for model in (target, drafts[NEAR])}
    odd = {
        model: GenerationConfig(eos_token_id=text[0][4], pad_token_id=0, repetition_penalty=2.0, max_length=9)
        for model in mine
    }
    for config in odd.values():
        config.update(num_assistant_tokens=7, assistant_confidence_threshold=0.9, no_repeat_ngram_size=2)
    before = {model: config.to_dict() for model, config in odd.items()}
    try:
        for model, config in odd.items():
            model.generation_config = config
        assert engine.decode(request, PLAIN, GREEDY).tokens == text[0]
        again = engine.decode(request, arm, GREEDY)
        assert (again.tokens, again.drafted) == (text[1].tokens, text[1].drafted)
        assert engine.decode(request, arm, WARPED).tokens == sampled
        with pytest.raises(IndexError):
            engine.decode(Request([3, V], 20), arm, GREEDY)
        for model, config in odd.items():
            assert model.generation_config is config
            assert model.generation_config.to_dict() == before[model]
    finally:
        for model, config in mine.items():
            model.generation_config = config


def test_no_hook_stays_on_a_model(models, engine):
    target, drafts = models
    engine.decode(Request([3, 1, 4], 8), Arm(NEAR, 3), GREEDY)
    with pytest.raises(IndexError):
        engine.decode(Request([V], 8), Arm(NEAR, 3), GREEDY)
    for model in (target, *drafts):
        assert not model._forward_pre_hooks
        assert not model._forward_hooks


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.7]),
    top_p=st.sampled_from([0.5, 0.9, 1.0]),
    top_k=st.sampled_from([0, 1, 5]),
    tied=st.booleans(),
)
def test_the_processor_gives_the_rules_distribution_also_where_logits_tie(seed, temperature, top_p, top_k, tied):
    logits = 3 * torch.randn(2, V, generator=torch.Generator().manual_seed(seed))
    logits = logits.round() if tied else logits
    rule = Sampling(temperature, top_p, top_k)
    found = Warped(rule)(torch.zeros(2, 1, dtype=torch.long), logits).softmax(-1)
    torch.testing.assert_close(found, rule.probabilities(logits), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("sampling", [Sampling(0.5), WARPED], ids=["T0.5", "warped"])
def test_a_target_that_drafts_for_itself_is_always_accepted(engine, sampling):
    """Both are warped once. Settings passed by name would warp the draft twice, and tokens would be refused."""
    for seed in range(5):
        run = engine.decode(Request([3, 1, 4], 20, seed), Arm(SAME, 4), sampling)
        assert run.accepted == run.drafted


def test_the_same_seed_draws_the_same_text_and_leaves_the_global_draws_alone(engine):
    state = torch.get_rng_state()
    texts = [engine.decode(Request([3, 1, 4], 20, seed), Arm(NEAR, 3), Sampling(1.0)).tokens for seed in (5, 5, 6)]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(torch.get_rng_state(), state)


def goodness_of_fit(texts: np.ndarray, target, prompt: list[int], sampling: Sampling) -> float:
    """p-value of texts (N, 3) against the exact distribution over all texts of three tokens, by the chain rule."""
    width, length = target.config.vocab_size, texts.shape[1]
    every = torch.tensor(list(product(range(width), repeat=length)))
    with torch.inference_mode():
        logits = target(torch.cat([torch.tensor([prompt] * len(every)), every], dim=1), use_cache=False).logits
    log_p = torch.zeros(len(every), dtype=torch.float64)
    for place in range(length):
        p = sampling.probabilities(logits[:, len(prompt) - 1 + place]).double()
        log_p += p.gather(1, every[:, place, None])[:, 0].log()
    expected = len(texts) * log_p.exp().numpy()
    assert expected.sum() == pytest.approx(len(texts))
    cells = np.ravel_multi_index(texts.T, (width,) * length)
    counts = np.bincount(cells, minlength=len(expected))
    if counts[expected == 0].any():
        return 0.0
    common = expected >= 5
    seen, due = (np.append(values[common], values[~common].sum()) for values in (counts, expected))
    seen, due = seen[due > 0], due[due > 0]
    return float(chi2.sf(((seen - due) ** 2 / due).sum(), len(due) - 1))


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.7, 0.9, 5)], ids=["T1", "warped"])
def test_sampled_text_has_the_targets_distribution_and_no_other(sampling):
    """400 texts tell the rule that was asked for from one at a temperature a half higher."""
    target = tiny_llama([], layers=2, seed=0, vocabulary=8).eval()
    draft = disturbed(tiny_llama([], layers=2, seed=0, vocabulary=8), 0.05)
    engine = AssistedEngine(target, [draft], 8)
    runs = [engine.decode(Request([3], 3, seed), Arm(0, 2), sampling) for seed in range(400)]
    texts = np.array([run.tokens for run in runs])
    share = sum(sum(run.accepted) for run in runs) / sum(sum(run.drafted) for run in runs)
    assert 0.2 < share < 0.95  # both branches of the accept rule are taken
    assert goodness_of_fit(texts, target, [3], sampling) > 1e-3
    other = sampling._replace(temperature=1.5 * sampling.temperature)
    assert goodness_of_fit(texts, target, [3], other) < 1e-6


def test_nothing_is_said_on_the_terminal(models, engine):
    """Left to itself, transformers warns of how it calls its own assistant."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    root = transformers.utils.logging.get_logger("transformers")
    root.addHandler(handler)
    try:
        transformers.utils.logging.warning_once.cache_clear()
        for arm, sampling in ((PLAIN, GREEDY), (Arm(NEAR, 3), GREEDY), (PLAIN, WARPED), (Arm(NEAR, 3), WARPED)):
            engine.decode(Request([3, 1, 4], 8), arm, sampling)
        assert said == []
        transformers.utils.logging.warning_once.cache_clear()
        target, drafts = models
        config = GenerationConfig(max_new_tokens=4, do_sample=False)
        target.generate(torch.tensor([[3, 1]]), generation_config=config, assistant_model=drafts[NEAR])
        assert any("generation_config" in line for line in said)
    finally:
        root.removeHandler(handler)


def test_a_draft_of_another_width_is_refused_and_the_reference_engine_named(models):
    target, drafts = models
    wide = tiny_llama([], layers=1, seed=7, vocabulary=V + 8)
    with pytest.raises(InputError, match=rf"is {V}, the drafts' {V}, {V + 8}: use --engine reference, .* first {V} "):
        AssistedEngine(target, [drafts[NEAR], wide], V)


def test_a_model_that_cannot_take_a_draft_is_refused_in_one_sentence(models):
    config = MambaConfig(vocab_size=V, hidden_size=16, state_size=4, num_hidden_layers=1, eos_token_id=2)
    engine = AssistedEngine(MambaForCausalLM(config).eval(), models[1], V)
    assert len(engine.decode(Request([3, 1], 5), PLAIN, GREEDY).tokens) == 5
    with pytest.raises(InputError, match="not supported with stateful models"):
        engine.decode(Request([3, 1], 5), Arm(NEAR, 2), GREEDY)


@pytest.mark.parametrize(
    ("request_", "gamma"),
    [(Request([], 4), 2), (Request([1, 2], 0), 2), (Request([1, 2], 511), 2), (Request([1, 2], 4), -1)],
    ids=["no prompt", "no tokens", "too long", "gamma below 0"],
)
def test_impossible_requests_are_refused_in_one_sentence(engine, request_, gamma):
    with pytest.raises(InputError):
        engine.decode(request_, Arm(FAR, gamma), GREEDY)


def test_several_texts_together_are_refused(engine):
    with pytest.raises(InputError, match="one text at a time"):
        engine.together([Request([1], 4), Request([2], 4)], PLAIN, GREEDY)
