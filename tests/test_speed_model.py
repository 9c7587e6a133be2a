"""Formulas against numbers worked out by hand; the replay against brute force and against the engine's own counts."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from conftest import tiny_llama
from hypothesis import example, given, settings
from hypothesis import strategies as st

from selectkd_eval import speed_model
from selectkd_eval.errors import InputError
from selectkd_eval.sampling import Sampling
from selectkd_eval.speculation import forced
from selectkd_eval.speculation.draft_verify import plain, speculative

V = 24
shares = st.floats(0, 1)


def test_the_formulas_by_hand() -> None:
    assert speed_model.expected_tokens(0.5, 3) == pytest.approx(1 + 0.5 + 0.25 + 0.125)
    assert speed_model.expected_tokens(1, 4) == 5
    assert speed_model.expected_tokens(0, 4) == 1
    assert speed_model.leviathan(0.8, 5, 0) == pytest.approx(3.69, abs=0.005)  # their Table 1
    assert speed_model.leviathan(0.5, 1, 0.25) == pytest.approx(1.5 / 1.25)
    assert speed_model.with_cost(3, 4, 0.2, 1.1, 0.1) == pytest.approx(3 / 2)
    assert speed_model.survival_tokens([0.5, 0.25]) == [1, 1.5, 1.75]


@given(shares, st.integers(1, 12), st.floats(0, 2))
def test_costs_as_leviathan_has_them_leave_their_formula(alpha: float, gamma: int, c: float) -> None:
    tokens = speed_model.expected_tokens(alpha, gamma)
    found = speed_model.leviathan(alpha, gamma, c)
    assert found == pytest.approx(speed_model.with_cost(tokens, gamma, c, 1, 0))
    if alpha < 0.999:
        assert found <= 1 / (1 - alpha) * (1 + 1e-12)  # the ceiling at any length, of a draft that costs nothing
        assert tokens == pytest.approx((1 - alpha ** (gamma + 1)) / (1 - alpha))


@pytest.mark.parametrize("wrong", [-0.1, 1.5, float("nan")])
def test_an_acceptance_in_percent_or_none_is_refused(wrong: float) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        speed_model.expected_tokens(wrong, 3)
    with pytest.raises(InputError, match="between 0 and 1"):
        speed_model.replay([0.5, wrong], 2)
    with pytest.raises(InputError, match="at least 1, not 0"):
        speed_model.replay([0.5], 0)


def run(accepts: tuple[int, ...] | list[int], gamma: int) -> tuple[int, int, int, int]:
    """Calls, drafted, tested and accepted of the loop itself, when it is settled which proposals would be accepted."""
    done, new = 1, len(accepts) + 1
    calls = drafted = tested = accepted = 0
    while done < new:
        count = min(gamma, new - done - 1)
        kept = 0
        while kept < count and accepts[done - 1 + kept]:
            kept += 1
        calls, drafted, accepted = calls + 1, drafted + count, accepted + kept
        tested += min(kept + 1, count)
        done += kept + 1
    return calls, drafted, tested, accepted


def test_two_steps_of_a_greedy_text_by_hand() -> None:
    """Yes yes no yes yes, two drafted at a time: two kept and a bonus; one drafted (the last needs none), kept."""
    found = speed_model.replay([1, 1, 0, 1, 1], 2)
    assert found[:4] == (2, 3, 3, 3)
    assert found.sizes.tolist() == [0, 1, 1]
    assert found.tokens == 5 / 2


@given(st.lists(st.integers(0, 1), max_size=40), st.integers(1, 9))
@example([], 3)
def test_a_greedy_replay_is_the_run_itself(accepts: list[int], gamma: int) -> None:
    found = speed_model.replay(accepts, gamma)
    assert found[:4] == run(accepts, gamma)
    assert found.sizes.sum() == found.calls and found.sizes @ np.arange(gamma + 1) == found.drafted


@given(st.lists(st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]), max_size=8), st.integers(1, 4))
def test_a_replay_is_the_mean_over_everything_that_can_happen(chances: list[float], gamma: int) -> None:
    expected = np.zeros(4)
    for accepts in product((0, 1), repeat=len(chances)):
        weight = np.prod([a if yes else 1 - a for a, yes in zip(chances, accepts, strict=True)])
        expected += weight * np.array(run(accepts, gamma))
    assert speed_model.replay(chances, gamma)[:4] == pytest.approx(tuple(expected))


@given(st.lists(st.lists(shares, max_size=12), min_size=1, max_size=4), st.sets(st.integers(1, 6), min_size=1))
def test_texts_and_draft_lengths_together_are_each_by_itself(texts: list[list[float]], lengths: set[int]) -> None:
    gammas = sorted(lengths)
    together = speed_model.replay_all(texts, gammas)
    for row, text in enumerate(texts):
        for column, gamma in enumerate(gammas):
            alone = speed_model.replay(text, gamma)
            assert alone[:4] == pytest.approx(tuple(values[row, column] for values in together[:4]))
            assert alone.sizes == pytest.approx(together.sizes[row, column, : gamma + 1])
            assert alone.calls + alone.accepted == pytest.approx(len(text))


@settings(max_examples=30)
@given(st.floats(0, 0.95), st.integers(1, 6))
def test_a_long_text_of_one_chance_needs_the_calls_of_the_formula(alpha: float, gamma: int) -> None:
    found = speed_model.replay([alpha] * 600, gamma)
    assert found.tokens == pytest.approx(speed_model.expected_tokens(alpha, gamma), rel=0.02)
    assert found.accepted / found.tested == pytest.approx(alpha, abs=0.01) if alpha else found.accepted == 0


@pytest.fixture(scope="module")
def models():
    """A target, and a draft that agrees with it now and then."""
    import torch

    target, near = (tiny_llama([], layers=2, seed=0, vocabulary=V).eval() for _ in range(2))
    with torch.no_grad():
        for index, weight in enumerate(near.parameters()):
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(index))
    return target, near


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, V - 1), min_size=1, max_size=8), st.integers(1, 8), st.integers(2, 30))
def test_reading_a_greedy_text_once_tells_the_engines_counts(models, prompt, gamma, new) -> None:
    target, draft = models
    text = plain(target, prompt, new, vocabulary=V).tokens
    p, q = (forced.next_logits(model, prompt, text, V) for model in models)
    chances = forced.agreement(p, q, text[1:], Sampling())["chance"]
    engine = speculative(target, draft, prompt, new, gamma, vocabulary=V)
    counts = (engine.steps, sum(engine.drafted), engine.tested, sum(engine.accepted))
    assert speed_model.replay(chances, gamma)[:4] == counts


def test_reading_sampled_texts_once_tells_the_engines_mean_counts(models) -> None:
    """Texts that plain decoding drew, read again, against the target calls of speculative runs that drew their own."""
    target, draft = models
    sampling, new, gamma, many = Sampling(0.8), 12, 3, 150
    expected, counted = np.zeros((2, many))
    for seed in range(many):
        text = plain(target, [3, 1], new, vocabulary=V, sampling=sampling, seed=seed).tokens
        p, q = (forced.next_logits(model, [3, 1], text, V) for model in models)
        chances = forced.agreement(p, q, text[1:], sampling)["chance"]
        expected[seed] = speed_model.replay(chances, gamma).calls
        run = speculative(target, draft, [3, 1], new, gamma, vocabulary=V, sampling=sampling, seed=10_000 + seed)
        counted[seed] = run.steps
    error = np.sqrt((expected.var() + counted.var()) / many)
    assert error < 0.25
    assert abs(expected.mean() - counted.mean()) < 3.5 * error
    assert expected.var() < counted.var()  # the expectation given a text varies less than a run does
