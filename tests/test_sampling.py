"""Which token follows: the cuts are transformers' own, and a draw lands where the cumulative mass says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from selectkd_eval.sampling import Sampling, draw, uniform_rows

rules = st.builds(
    Sampling,
    temperature=st.floats(0.2, 3.0),
    top_p=st.sampled_from([1.0, 0.95, 0.7, 0.3, 0.01]),
    top_k=st.sampled_from([0, 1, 3, 10, 5000]),
)


def warped(logits: torch.Tensor, rule: Sampling) -> torch.Tensor:
    """What transformers' generate would draw from."""
    logits = TemperatureLogitsWarper(rule.temperature)(None, logits)
    if rule.top_k:
        logits = TopKLogitsWarper(rule.top_k)(None, logits)
    if rule.top_p < 1:
        logits = TopPLogitsWarper(rule.top_p)(None, logits)
    return logits.softmax(-1)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(rule=rules, seed=st.integers(0, 1000), width=st.sampled_from([7, 60, 3000]), scale=st.sampled_from([0.5, 4.0]))
def test_the_distribution_is_that_of_transformers_warpers(rule, seed, width, scale):
    logits = scale * torch.randn(3, width, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(rule.probabilities(logits), warped(logits, rule), atol=1e-5)


@pytest.mark.parametrize(("scale", "short"), [(4.0, True), (0.01, False)])
def test_a_head_that_is_too_short_for_top_p_is_not_used(scale, short):
    """3,000 tokens: at scale 4 a few of them hold 0.9 of the mass, nearly uniform ones need some 2,700."""
    logits = scale * torch.randn(2, 3000, generator=torch.Generator().manual_seed(0))
    p = Sampling(1.0, top_p=0.9).probabilities(logits)
    assert torch.allclose(p, warped(logits, Sampling(1.0, top_p=0.9)), atol=1e-6)
    assert bool(((p > 0).sum(-1) < 512).all()) is short


def test_equal_distributions_are_cut_alike_whatever_stands_beside_them():
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)).round()  # many ties
    for rule in (Sampling(1.0, top_k=7), Sampling(0.7, top_p=0.6), Sampling(1.3, 0.8, 9)):
        together = rule.probabilities(logits)
        assert all(torch.equal(rule.probabilities(logits[i : i + 1]), together[i : i + 1]) for i in range(5))


def test_a_token_that_was_cut_off_is_never_drawn_even_at_the_ends_of_the_unit_interval():
    p = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0, 0.0]])
    for u, token in [(0.0, 1), (0.25 - 1e-12, 1), (0.25, 3), (1 - 2.0**-50, 3)]:
        assert int(draw(p, torch.tensor([u], dtype=torch.float64))) == token
    tiny = p * 1e-30  # a residual need not sum to 1
    assert int(draw(tiny, torch.tensor([1 - 2.0**-50], dtype=torch.float64))) == 3


def test_draws_have_the_distribution():
    p = torch.tensor([0.5, 0.2, 0.0, 0.2, 0.06, 0.04])
    u = uniform_rows((20_000, 1), torch.Generator().manual_seed(0))[:, 0]
    assert float(u.min()) >= 0 and float(u.max()) < 1 and u.dtype == torch.float64
    counts = np.bincount(draw(p.expand(20_000, 6), u)[:, 0].numpy(), minlength=6)
    assert counts[2] == 0
    expected = p.numpy()[p > 0] * 20_000
    statistic = ((counts[counts > 0] - expected) ** 2 / expected).sum()
    assert chi2.sf(statistic, 4) > 1e-3
