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
from selectkd_eval.objective import LossSpec, single
from selectkd_eval.token_stats import Rows, Weighed, weigh
from selectkd_eval.verifiers import hellinger, spec_k_expected, top_k

GATES = ["top-k", "spec-k"]


def pair(seed: int = 0, shape: tuple[int, ...] = (2, 4, 9), scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    p, q = (scale * torch.randn(shape, generator=generator) for _ in range(2))
    return p.log_softmax(-1), q.log_softmax(-1)


def k_draws(log_p: Tensor, log_q: Tensor, k: int, seed: int = 0) -> Tensor:
    """Algorithm 1 by the letter: k tokens drawn from q, each accepted where r < p / q (Eqs. 10-12). (N, V) -> (N,)."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.multinomial(log_q.exp(), k, replacement=True, generator=generator)
    ratio = (log_p.gather(-1, draws) - log_q.gather(-1, draws)).exp()
    return (torch.rand(draws.shape, generator=generator) < ratio).any(-1).float()


def gate(log_p: Tensor, log_q: Tensor, spec: LossSpec, uniform: Tensor | None = None) -> Weighed:
    """The gate of training on N tokens, ``(N, V)``."""
    n = log_q.shape[0]
    rows = Rows(torch.zeros(n, dtype=torch.long), torch.zeros(n, dtype=torch.long), torch.tensor([n]), uniform=uniform)
    return weigh(log_p, log_q, log_p.exp(), log_q.exp(), rows, spec)


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
def test_sampled_spec_k_and_algorithm_1_accept_as_often_as_the_closed_form_says(k: int) -> None:
    log_p, log_q = pair(seed=1, shape=(1, 6))
    n = 20_000
    many_p, many_q = log_p.expand(n, 6), log_q.expand(n, 6)
    coins = torch.rand(n, generator=torch.Generator().manual_seed(2))
    sampled = gate(many_p, many_q, single("fkl", verifier="spec-k", k=k, spec_mode="sampled"), coins).acceptance
    expected = spec_k_expected(log_p, log_q, k).item()
    assert expected == pytest.approx(1 - tvd(log_p, log_q).item() ** k)
    error = math.sqrt(expected * (1 - expected) / n)
    assert error < 0.004
    assert sampled is not None
    assert set(sampled.tolist()) == {0.0, 1.0}
    for frequency in (sampled.mean().item(), k_draws(many_p, many_q, k).mean().item()):
        assert abs(frequency - expected) < 4.5 * error


def test_closed_form_by_hand() -> None:
    log_p, log_q = probabilities(0.5, 0.5, 0.0), probabilities(0.2, 0.3, 0.5)
    assert tvd(log_p, log_q).item() == pytest.approx(0.5)
    assert spec_k_expected(log_p, log_q, 5).item() == pytest.approx(1 - 0.5**5)


def test_disjoint_models_are_always_rejected_and_equal_ones_always_accepted() -> None:
    log_p, log_q = probabilities(1.0, 0.0), probabilities(0.0, 1.0)
    for accept in (spec_k_expected(log_p, log_q, 5), top_k(log_p, log_q, 1), k_draws(log_p[0], log_q[0], 5)):
        assert accept.item() == 0
    log_p, _ = pair()
    for accept in (spec_k_expected(log_p, log_p, 1), top_k(log_p, log_p, 1), k_draws(log_p[0], log_p[0], 1)):
        assert (accept == 1).all()


def test_hellinger_is_the_distance_of_equation_7() -> None:
    log_p, log_q = pair()
    direct = (log_p.double().exp().sqrt() - log_q.double().exp().sqrt()).norm(dim=-1) / math.sqrt(2)
    torch.testing.assert_close(hellinger(log_p, log_q).double(), direct, atol=1e-6, rtol=1e-5)
    assert hellinger(log_p, log_p).max() < 1e-3
    assert hellinger(probabilities(1.0, 0.0), probabilities(0.0, 1.0)).item() == 1


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("beta", [0.0, 0.01, 1.0])
def test_weights_run_from_beta_to_one(name: str, beta: float) -> None:
    log_p, log_q = pair(shape=(8, 9))
    found = gate(log_p, log_q, single("fkl", verifier=name, k=2, beta=beta))
    assert found.acceptance is not None
    torch.testing.assert_close(found.weight, beta + (1 - beta) * found.acceptance)
    assert found.weight.min() >= beta
    assert found.weight.max() <= 1


def test_hellinger_score_has_neither_acceptance_nor_beta() -> None:
    log_p, log_q = pair(shape=(8, 9))
    found = [gate(log_p, log_q, single("fkl", verifier="hellinger", beta=beta)) for beta in (0.0, 1.0)]
    torch.testing.assert_close(found[0].weight, found[1].weight)
    assert found[0].acceptance is None


@pytest.mark.parametrize("name", ["none", "hellinger", *GATES])
def test_weights_carry_no_gradient(name: str) -> None:
    log_p, start = pair(shape=(8, 9))
    assert not gate(log_p, start.clone().requires_grad_(), single("fkl", verifier=name)).weight.requires_grad


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
    with pytest.raises(InputError, match=message):
        LossSpec(verifier="top-k", k=k, beta=beta)
