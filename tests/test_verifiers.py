"""The gates: who is accepted, how often, and with which weight."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from selectkd_eval.divergences import tvd
from selectkd_eval.errors import InputError
from selectkd_eval.verifiers import (
    hellinger,
    spec_k_expected,
    spec_k_sampled,
    token_weights,
    top_k,
)

GATES = ["top-k", "spec-k"]


def pair(seed: int = 0, shape: tuple[int, ...] = (2, 4, 9), scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    p, q = (scale * torch.randn(shape, generator=generator) for _ in range(2))
    return p.log_softmax(-1), q.log_softmax(-1)


def probabilities(*values: float) -> Tensor:
    return torch.tensor(values).log().reshape(1, 1, -1)


@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_top_k_agrees_with_sorting_the_teacher(k: int) -> None:
    log_p, log_q = pair()
    best = log_p.topk(k, dim=-1).indices
    expected = (best == log_q.argmax(-1, keepdim=True)).any(-1).float()
    torch.testing.assert_close(top_k(log_p, log_q, k), expected)


def test_ties_are_pinned() -> None:
    tied_student = probabilities(0.2, 0.4, 0.4)  # proposes token 1, the lower id
    assert top_k(probabilities(0.1, 0.6, 0.3), tied_student, 1).item() == 1
    assert top_k(probabilities(0.1, 0.3, 0.6), tied_student, 1).item() == 0
    tied_teacher = probabilities(0.25, 0.25, 0.5)  # tokens 0 and 1 share the second place
    for proposal in (probabilities(0.8, 0.1, 0.1), probabilities(0.1, 0.8, 0.1)):
        assert top_k(tied_teacher, proposal, 2).item() == 1
        assert top_k(tied_teacher, proposal, 1).item() == 0


@pytest.mark.parametrize("k", [1, 3])
def test_sampled_spec_k_accepts_as_often_as_the_closed_form_says(k: int) -> None:
    log_p, log_q = pair(seed=1, shape=(1, 3, 6))
    n = 20_000
    many_p, many_q = log_p.expand(n, 3, 6), log_q.expand(n, 3, 6)
    frequency = spec_k_sampled(many_p, many_q, k, torch.Generator().manual_seed(0)).mean(0)
    expected = spec_k_expected(log_p, log_q, k)[0]
    error = (expected * (1 - expected) / n).sqrt()
    assert ((frequency - expected).abs() < 4.5 * error).all()
    assert (error < 0.004).all()


def test_closed_form_by_hand() -> None:
    log_p, log_q = probabilities(0.5, 0.5, 0.0), probabilities(0.2, 0.3, 0.5)
    assert tvd(log_p, log_q).item() == pytest.approx(0.5)
    assert spec_k_expected(log_p, log_q, 5).item() == pytest.approx(1 - 0.5**5)


def test_disjoint_models_are_always_rejected_and_equal_ones_always_accepted() -> None:
    log_p, log_q = probabilities(1.0, 0.0), probabilities(0.0, 1.0)
    generator = torch.Generator().manual_seed(0)
    for accept in (
        spec_k_expected(log_p, log_q, 5),
        spec_k_sampled(log_p, log_q, 5, generator),
        top_k(log_p, log_q, 1),
    ):
        assert accept.item() == 0
    log_p, _ = pair()
    for accept in (
        spec_k_expected(log_p, log_p, 1),
        spec_k_sampled(log_p, log_p, 1, generator),
        top_k(log_p, log_p, 1),
    ):
        assert (accept == 1).all()


def test_one_generator_per_sentence_makes_gates_independent_of_the_batch() -> None:
    log_p, log_q = pair(seed=5, shape=(4, 6, 9))

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in range(4)]

    together = spec_k_sampled(log_p, log_q, 1, generators())
    alone = [spec_k_sampled(log_p[i : i + 1], log_q[i : i + 1], 1, [g]) for i, g in enumerate(generators())]
    torch.testing.assert_close(together, torch.cat(alone))
    assert 0 < together.mean() < 1


def test_hellinger_is_the_distance_of_equation_7() -> None:
    log_p, log_q = pair()
    direct = (log_p.double().exp().sqrt() - log_q.double().exp().sqrt()).norm(dim=-1) / math.sqrt(2)
    torch.testing.assert_close(hellinger(log_p, log_q).double(), direct, atol=1e-6, rtol=1e-5)
    assert hellinger(log_p, log_p).max() < 1e-3
    assert hellinger(probabilities(1.0, 0.0), probabilities(0.0, 1.0)).item() == 1


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("beta", [0.0, 0.01, 1.0])
def test_weights_run_from_beta_to_one(name: str, beta: float) -> None:
    log_p, log_q = pair()
    weight, acceptance = token_weights(name, log_p, log_q, k=2, beta=beta)
    assert acceptance is not None
    torch.testing.assert_close(weight, beta + (1 - beta) * acceptance)
    assert weight.min() >= beta
    assert weight.max() <= 1


def test_hellinger_score_has_neither_acceptance_nor_beta() -> None:
    log_p, log_q = pair()
    weights = [token_weights("hellinger", log_p, log_q, k=5, beta=beta) for beta in (0.0, 1.0)]
    torch.testing.assert_close(weights[0][0], weights[1][0])
    assert weights[0][1] is None


@pytest.mark.parametrize("name", ["none", "hellinger", *GATES])
def test_weights_carry_no_gradient(name: str) -> None:
    log_p, start = pair()
    log_q = start.clone().requires_grad_()
    weight, _ = token_weights(name, log_p, log_q, k=5, beta=0.01)
    assert not weight.requires_grad


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.floats(0.01, 1e4))
def test_acceptance_grows_with_k_and_stays_a_probability(seed: int, k: int, scale: float) -> None:
    log_p, log_q = pair(seed, (1, 3, 12), scale)
    for accept in (top_k, spec_k_expected):
        fewer, more = accept(log_p, log_q, k), accept(log_p, log_q, k + 1)
        assert (fewer <= more + 1e-6).all()
        assert ((fewer >= 0) & (more <= 1)).all()
    assert (top_k(log_p, log_q, 12) == 1).all()


@pytest.mark.parametrize(
    ("k", "beta", "message"),
    [(0, 0.1, "k counts"), (5, -0.1, "beta is the weight"), (5, 1.1, "beta is the weight")],
)
def test_a_gate_that_cannot_be_meant_is_refused(k: int, beta: float, message: str) -> None:
    log_p, log_q = pair()
    with pytest.raises(InputError, match=message):
        token_weights("top-k", log_p, log_q, k=k, beta=beta)


def test_a_gate_without_a_teacher_is_refused() -> None:
    with pytest.raises(InputError, match="teacher"):
        token_weights("spec-k", None, pair()[1], k=5, beta=0.1)
