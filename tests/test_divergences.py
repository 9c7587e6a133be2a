"""The divergences against what can be checked by hand: oracles, bounds, identities and gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import rel_entr
from torch import Tensor

from selectkd_eval.divergences import (
    DIVERGENCES,
    Divergence,
    akl,
    fkl,
    head_weight,
    imitation,
    jsd,
    nckd,
    rkl,
    skl,
    srkl,
    tckd,
    tvd,
)
from selectkd_eval.errors import InputError

PAIRED = [d for d in DIVERGENCES.values() if d.needs_teacher]
NAMES = [d.name for d in PAIRED]
# Imitation takes the teacher's likeliest token for the truth: -log q of it is not 0 for q = p.
DISTANCES = [d for d in PAIRED if d.name != "imitation"]


def pair(
    seed: int = 0, shape: tuple[int, ...] = (2, 3, 7), dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Two independent random log-distributions."""
    generator = torch.Generator().manual_seed(seed)
    p, q = (3 * torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
    return p.log_softmax(-1), q.log_softmax(-1)


def evaluate(divergence: Divergence, log_p: Tensor, log_q: Tensor) -> Tensor:
    return divergence(log_p, log_q, torch.zeros(log_q.shape[:-1], dtype=torch.long))


@pytest.mark.parametrize("divergence", DISTANCES, ids=lambda d: d.name)
def test_equal_distributions_are_at_distance_zero(divergence: Divergence) -> None:
    log_p, _ = pair()
    value = evaluate(divergence, log_p, log_p)
    assert value.shape == (2, 3)
    torch.testing.assert_close(value, torch.zeros_like(value), atol=1e-12, rtol=0)


def test_scipy_agrees_on_every_definition() -> None:
    log_p, log_q = pair()
    p, q = log_p.exp().numpy(), log_q.exp().numpy()

    def kl(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return rel_entr(a, b).sum(-1)

    m = 0.3 * p + 0.7 * q
    expected = {
        "fkl": (fkl(log_p, log_q), kl(p, q)),
        "rkl": (rkl(log_p, log_q), kl(q, p)),
        "skl": (skl(log_p, log_q, alpha=0.2), kl(p, 0.2 * p + 0.8 * q)),
        "srkl": (srkl(log_p, log_q, alpha=0.2), kl(q, 0.8 * p + 0.2 * q)),
        "jsd": (jsd(log_p, log_q, beta_jsd=0.3), 0.3 * kl(p, m) + 0.7 * kl(q, m)),
        "tvd": (tvd(log_p, log_q), 0.5 * np.abs(p - q).sum(-1)),
    }
    for name, (ours, oracle) in expected.items():
        np.testing.assert_allclose(ours.numpy(), oracle, rtol=1e-10, err_msg=name)


def test_nll_is_the_cross_entropy_of_torch() -> None:
    _, log_q = pair()
    targets = torch.tensor([[0, 3, 6], [2, 2, 1]])
    ours = DIVERGENCES["nll"](None, log_q, targets)
    oracle = torch.nn.functional.nll_loss(log_q.flatten(0, 1), targets.flatten(), reduction="none")
    torch.testing.assert_close(ours.flatten(), oracle)


def test_imitation_is_the_cross_entropy_with_the_teachers_choice() -> None:
    p = torch.tensor([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2]])
    q = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.5, 0.375]])
    torch.testing.assert_close(imitation(p.log(), q.log()), torch.tensor([math.log(4), math.log(8)]))


def test_scipy_agrees_on_the_halves_of_the_forward_kl() -> None:
    log_p, log_q = pair(shape=(4, 7))
    targets = torch.tensor([0, 6, 3, 3])
    p, q = log_p.exp().numpy(), log_q.exp().numpy()
    for i, y in enumerate(targets.tolist()):
        coin_p, coin_q = np.array([p[i, y], 1 - p[i, y]]), np.array([q[i, y], 1 - q[i, y]])
        rest_p, rest_q = (np.delete(x[i], y) / (1 - x[i, y]) for x in (p, q))
        target, rest = rel_entr(coin_p, coin_q).sum(), rel_entr(rest_p, rest_q).sum()
        assert tckd(log_p, log_q, targets)[i].item() == pytest.approx(target, rel=1e-10)
        assert nckd(log_p, log_q, targets)[i].item() == pytest.approx(rest, rel=1e-10)
        assert fkl(log_p, log_q)[i].item() == pytest.approx(target + (1 - p[i, y]) * rest, rel=1e-10)


def test_a_teacher_that_knows_only_the_target_says_nothing_of_the_others() -> None:
    log_p = torch.tensor([[0.0, -math.inf, -math.inf]])
    z = torch.tensor([[1.0, 2.0, 0.0]], requires_grad=True)
    log_q = z.log_softmax(-1)
    value = nckd(log_p, log_q, torch.tensor([0]))
    value.backward()
    assert value.item() == 0
    assert z.grad is not None
    assert not z.grad.any()
    torch.testing.assert_close(tckd(log_p, log_q, torch.tensor([0])), fkl(log_p, log_q))


@pytest.mark.parametrize(
    ("head", "crossing", "tokens"),
    [(0.5, True, 2), (0.4, True, 1), (0.1, True, 1), (0.0, True, 1), (1.0, True, 4), (0.5, False, 1), (0.7, False, 2)],
)
def test_the_head_is_the_smallest_set_that_reaches_the_threshold(head: float, crossing: bool, tokens: int) -> None:
    """p = .4 .3 .2 .1 in another order; the gaps to q are .25 .05 .1 .1, together .5."""
    order = torch.tensor([2, 0, 3, 1])
    p = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)[order]
    q = torch.tensor([0.15, 0.35, 0.3, 0.2], dtype=torch.float64)[order]
    w = [0.25, 0.3, 0.4, 0.5][tokens - 1] / 0.5
    assert head_weight(p, q, head, crossing).item() == pytest.approx(w, rel=1e-12)
    expected = w * fkl(p.log(), q.log()) + (1 - w) * rkl(p.log(), q.log())
    torch.testing.assert_close(akl(p.log(), q.log(), head, crossing), expected)


@pytest.mark.parametrize("vocabulary", [100, 128, 3000, 6000])
def test_a_head_of_thousands_of_equal_tokens_goes_by_their_ids(vocabulary: int) -> None:
    """A uniform teacher, and a student off at two tokens of the first half: all of the gap is in the head."""
    p = torch.full((2, vocabulary), 1 / vocabulary, dtype=torch.float64)
    q = p.clone()
    q[:, 0], q[:, vocabulary // 2 - 3] = 1.5 / vocabulary, 0.5 / vocabulary
    q[1] = q[1].flip(-1)  # the second row is off in the second half
    torch.testing.assert_close(head_weight(p, q), torch.tensor([1.0, 0.0], dtype=torch.float64))


def test_the_weights_of_the_adaptive_kl_carry_no_gradient() -> None:
    log_p, log_q = pair(shape=(3, 7))
    z = log_q.clone().requires_grad_()
    akl(log_p, z.log_softmax(-1)).sum().backward()
    w = head_weight(log_p.exp(), log_q.exp()).unsqueeze(-1)
    q = log_q.exp()
    reverse = q * (log_q - log_p - rkl(log_p, log_q).unsqueeze(-1))
    torch.testing.assert_close(z.grad, w * (q - log_p.exp()) + (1 - w) * reverse)


@pytest.mark.parametrize("divergence", [d for d in PAIRED if d.bound], ids=lambda d: d.name)
def test_bounds_hold_even_for_disjoint_distributions(divergence: Divergence) -> None:
    log_p = torch.tensor([0.0, -math.inf]).log_softmax(-1).reshape(1, 1, 2)
    log_q = log_p.flip(-1)
    value = evaluate(divergence, log_p, log_q).item()
    assert divergence.bound is not None
    assert value == pytest.approx(divergence.bound(divergence.parameters), rel=1e-6)


def test_published_bounds() -> None:
    assert DIVERGENCES["skl"].bound({"alpha": 0.1}) == pytest.approx(math.log(10))  # type: ignore[misc]
    assert DIVERGENCES["jsd"].bound({"beta_jsd": 0.5}) == pytest.approx(math.log(2))  # type: ignore[misc]


def test_limits_of_the_skewed_and_mixed_forms() -> None:
    log_p, log_q = pair()
    torch.testing.assert_close(skl(log_p, log_q, alpha=0.0), fkl(log_p, log_q))
    torch.testing.assert_close(srkl(log_p, log_q, alpha=0.0), rkl(log_p, log_q))
    torch.testing.assert_close(jsd(log_p, log_q, 1e-6) / 1e-6, fkl(log_p, log_q), rtol=1e-2, atol=0)
    torch.testing.assert_close(jsd(log_p, log_q, 1 - 1e-6) / 1e-6, rkl(log_p, log_q), rtol=1e-2, atol=0)


@pytest.mark.parametrize("divergence", [d for d in PAIRED if d.name != "akl"], ids=lambda d: d.name)
def test_gradient_is_the_finite_difference(divergence: Divergence) -> None:
    """Not for AKL: its weight depends on q and carries no gradient (`test_gradients` holds the weight still)."""
    log_p, start = pair(seed=4, shape=(1, 2, 5))
    logits = start.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: evaluate(divergence, log_p, z.log_softmax(-1)), (logits,))


def test_detached_mixture_keeps_the_value_and_changes_the_gradient() -> None:
    log_p, start = pair()
    grads: list[Tensor] = []
    values: list[Tensor] = []
    for detach in (False, True):
        logits = start.clone().requires_grad_()
        value = srkl(log_p, logits.log_softmax(-1), detach_mixture=detach)
        value.sum().backward()
        values.append(value.detach())
        assert logits.grad is not None
        grads.append(logits.grad)
    torch.testing.assert_close(values[0], values[1])
    assert not torch.allclose(grads[0], grads[1])


extreme = st.floats(-1e4, 1e4, width=32) | st.sampled_from([0.0, -1e4, 1e4, -200.0, 88.0])
logit_pairs = hnp.arrays(np.float32, st.tuples(st.just(2), st.integers(2, 9)), elements=extreme)


@settings(max_examples=150, deadline=None)
@given(logit_pairs, st.sampled_from(NAMES))
def test_extreme_logits_give_neither_nan_nor_negative_values(logits: np.ndarray, name: str) -> None:
    divergence = DIVERGENCES[name]
    log_p = torch.from_numpy(logits[0]).log_softmax(-1).reshape(1, 1, -1)
    z = torch.from_numpy(logits[1]).reshape(1, 1, -1).requires_grad_()
    value = evaluate(divergence, log_p, z.log_softmax(-1))
    value.sum().backward()
    assert value.item() >= -1e-6
    assert torch.isfinite(value).all()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()
    if divergence.bound:
        assert value.item() <= divergence.bound(divergence.parameters) + 1e-5


@pytest.mark.parametrize("divergence", PAIRED, ids=NAMES)
def test_impossible_tokens_contribute_nothing(divergence: Divergence) -> None:
    """A token both models rule out (probability exactly 0) changes neither value nor gradient."""
    p, q = torch.tensor([[[1.0, 0.3, -2.0]]]), torch.tensor([[[0.1, 0.2, 0.5]]])
    never = torch.full((1, 1, 1), -math.inf)
    results = []
    for extra in (False, True):
        z = q.clone().requires_grad_()
        zp, zq = (torch.cat([p, never], -1), torch.cat([z, never], -1)) if extra else (p, z)
        value = evaluate(divergence, zp.log_softmax(-1), zq.log_softmax(-1))
        value.sum().backward()
        results.append((value.detach(), z.grad))
    torch.testing.assert_close(results[0], results[1])


def test_half_precision_input_is_computed_in_fp32() -> None:
    log_p, log_q = (x.to(torch.bfloat16) for x in pair(dtype=torch.float32))
    value = fkl(log_p, log_q)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, fkl(log_p.float(), log_q.float()))


def test_a_mixing_weight_outside_the_unit_interval_is_refused() -> None:
    log_p, log_q = pair()
    with pytest.raises(InputError, match=r"alpha must lie in \[0, 1\]"):
        skl(log_p, log_q, alpha=1.5)
    with pytest.raises(InputError, match="teacher"):
        DIVERGENCES["fkl"](None, log_q, torch.zeros(2, 3, dtype=torch.long))
