"""An engine's samples against a distribution that is written down cell by cell."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import wrong_engines as wrong
from scipy.stats import binom

from selectkd_eval.sampling import Sampling
from selectkd_eval.speculation import enumeration
from selectkd_eval.speculation.assisted import AssistedEngine
from selectkd_eval.speculation.draft_verify import ReferenceEngine
from selectkd_eval.speculation.engine import Request
from selectkd_eval.speeds import Arm


def test_the_law_is_a_product_of_conditionals_and_sums_to_one():
    target, _ = enumeration.tiny_models()
    sampling = Sampling(0.8, top_k=5)
    law = enumeration.exact_law(target, sampling, length=3)
    assert law.shape == (8, 8, 8) and law.sum() == pytest.approx(1)
    text = [5, 0, 2]
    chance = 1.0
    for place, token in enumerate(text):
        ids = torch.tensor([[*enumeration.PROMPT, *text[:place]]])
        with torch.inference_mode():
            chance *= float(sampling.probabilities(target(input_ids=ids).logits[0, -1:])[0, token])
    assert law[tuple(text)] == pytest.approx(chance, rel=1e-5)
    assert enumeration.last_three(enumeration.exact_law(target, sampling, length=4)).sum() == pytest.approx(1)


def test_the_draft_is_neither_the_target_nor_a_stranger():
    """Drafts are both kept and refused often enough for either path to be counted."""
    target, draft = enumeration.tiny_models()
    engine = ReferenceEngine(target, [draft], enumeration.VOCABULARY)
    runs = [engine.decode(Request(enumeration.PROMPT, 5, seed), Arm(0, 3), Sampling(1.0)) for seed in range(80)]
    kept = sum(sum(run.accepted) for run in runs) / sum(run.tested for run in runs)
    assert 0.5 < kept < 0.75


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.7, top_p=0.95, top_k=50)], ids=["whole softmax", "cut"])
@pytest.mark.parametrize("engine", [ReferenceEngine, AssistedEngine], ids=lambda engine: engine.name)
def test_a_right_engine_has_the_law_of_the_target(engine, sampling):
    row = enumeration.enumerated(engine, sampling, seed=1, texts=400)
    assert row["p"] > 1e-3 and row["n"] == 400 and row["top_k"] == min(sampling.top_k, 4)
    assert row["tv"] < 2 * row["tv_expected"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [wrong.DrawsFromPAfterARefusal, wrong.GreedyDraftSoftmaxRatio, wrong.KeepsAThirdMore],
    ids=lambda fault: fault.__name__,
)
def test_a_wrong_rule_has_another_law(fault):
    """Also one that is lenient by a third, which the texts of sixteen prompts do not show."""
    assert enumeration.enumerated(fault, Sampling(1.0), seed=1, texts=800)["p"] < 1e-6


def test_a_text_that_the_cut_excludes_is_enough():
    row = enumeration.enumerated(wrong.ForgetsTheCutOfP, Sampling(1.0, top_k=2), seed=0, texts=60)
    assert row["p"] == 0


def test_cells_are_pooled_until_each_expects_ten():
    expected = np.array([40.0, 3.0, 5.0, 0.5, 30.0, 2.0])
    observed = np.array([41.0, 2.0, 5.0, 1.0, 29.0, 1.5])
    counts, cells = enumeration.pooled(observed, expected)
    assert cells.tolist() == [40.0, 30.0, 10.5] and counts.tolist() == [41.0, 29.0, 9.5]
    counts, cells = enumeration.pooled(observed[:4], expected[:4])  # what is left is too little for a cell of its own
    assert cells.tolist() == [48.5] and counts.tolist() == [49.0]


def test_chance_alone_gives_the_total_variation_that_is_named():
    law = np.random.default_rng(0).dirichlet(np.full(60, 0.4))
    n = 300
    draws = np.random.default_rng(1).multinomial(n, law, size=400)
    named = enumeration.goodness_of_fit(draws[0], law)["tv_expected"]
    assert named == pytest.approx((np.abs(draws / n - law).sum(1) / 2).mean(), rel=0.03)
    for p in (0.003, 0.2, 0.5, 0.999):
        k = np.arange(n + 1)
        brute = (np.abs(k - n * p) * binom.pmf(k, n, p)).sum()
        assert enumeration._mean_deviation(n, p) == pytest.approx(brute)
    assert enumeration._mean_deviation(n, 1.0) == 0
    tails = [enumeration.goodness_of_fit(draw, law)["p"] for draw in draws]
    assert sum(p < 0.05 for p in tails) <= binom.isf(1e-4, 400, 0.05)
