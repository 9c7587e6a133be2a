"""The closed-form gradients against autograd, finite differences and what can be said by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from selectkd_eval.divergences import DIVERGENCES, LOG_ZERO, fkl, head_weight, rkl
from selectkd_eval.errors import InputError
from selectkd_eval.gradients import GRADIENTS, value_and_gradient

Parameters = Mapping[str, float | bool]

CASES: list[tuple[str, Parameters]] = [
    *[(name, {}) for name in DIVERGENCES],
    *[("skl", {"alpha": alpha}) for alpha in (0.0, 1e-40, 0.7, 1.0)],
    *[("srkl", {"alpha": alpha, "detach_mixture": d}) for alpha in (0.0, 1e-40, 0.7, 1.0) for d in (False, True)],
    ("srkl", {"detach_mixture": True}),
    *[("jsd", {"beta_jsd": b}) for b in (0.0, 0.1, 0.9, 1.0)],
    ("akl", {"head": 0.9}),
    ("akl", {"crossing": False}),
]
each_case = pytest.mark.parametrize(
    ("name", "parameters"), CASES, ids=["-".join([name, *map(str, parameters.values())]) for name, parameters in CASES]
)


def rows(count: int = 40, vocabulary: int = 23, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    """Teacher logits, student logits and targets."""
    generator = torch.Generator().manual_seed(seed)
    logits = [3 * torch.randn(count, vocabulary, generator=generator, dtype=dtype) for _ in range(2)]
    return [*logits, torch.randint(vocabulary, (count,), generator=generator)]


def closed_form(name: str, z_p: Tensor, z_q: Tensor, targets: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
    log_p, log_q = z_p.log_softmax(-1).clamp_min(LOG_ZERO), z_q.log_softmax(-1).clamp_min(LOG_ZERO)
    return value_and_gradient(name, log_p, log_q, log_p.exp(), log_q.exp(), targets, parameters)


def autograd(name: str, z_p: Tensor, z_q: Tensor, targets: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
    z = z_q.clone().requires_grad_()
    value = DIVERGENCES[name](z_p.log_softmax(-1), z.log_softmax(-1), targets, **parameters)
    (gradient,) = torch.autograd.grad(value.sum() + 0 * z.sum(), z)  # SKL with alpha = 1 does not know z at all
    return value.detach(), gradient


def test_every_divergence_has_its_gradient() -> None:
    assert set(GRADIENTS) == set(DIVERGENCES)


@each_case
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
def test_autograd_agrees(name: str, parameters: Parameters, dtype: torch.dtype, tolerance: float) -> None:
    z_p, z_q, targets = rows(dtype=dtype)
    ours, theirs = (f(name, z_p, z_q, targets, parameters) for f in (closed_form, autograd))
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    # Adding a constant to all logits changes no distribution.
    torch.testing.assert_close(ours[1].sum(-1), torch.zeros_like(ours[0]), rtol=0, atol=10 * tolerance)


def frozen(name: str, z_p: Tensor, z_q: Tensor, parameters: Parameters) -> Callable[[Tensor], Tensor]:
    """The value as a function of the student's logits, with what carries no gradient held at its place."""
    row = DIVERGENCES[name]
    filled = {**row.parameters, **parameters}
    log_p, log_q = z_p.log_softmax(-1), z_q.log_softmax(-1)
    if name == "akl":
        w = head_weight(log_p.exp(), log_q.exp(), float(filled["head"]), bool(filled["crossing"]))
        return lambda z: w * fkl(log_p, z.log_softmax(-1)) + (1 - w) * rkl(log_p, z.log_softmax(-1))
    if filled.get("detach_mixture"):
        alpha = float(filled["alpha"])
        log_m = (alpha * log_q.exp() + (1 - alpha) * log_p.exp()).log()
        return lambda z: rkl(log_m, z.log_softmax(-1))
    return lambda z: row(log_p, z.log_softmax(-1), rows(len(z))[2], **parameters)


@each_case
def test_finite_differences_agree(name: str, parameters: Parameters) -> None:
    z_p, z_q, targets = rows()
    value = frozen(name, z_p, z_q, parameters)
    step = 1e-5
    differences = torch.stack(
        [(value(z_q + step * e) - value(z_q - step * e)) / (2 * step) for e in torch.eye(z_q.shape[-1]).double()], -1
    )
    _, gradient = closed_form(name, z_p, z_q, targets, parameters)
    torch.testing.assert_close(gradient, differences, rtol=1e-7, atol=1e-8)


@each_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_equal_distributions_pull_nowhere(name: str, parameters: Parameters, dtype: torch.dtype) -> None:
    z_p, _, targets = rows(dtype=dtype)
    value, gradient = closed_form(name, z_p, z_p, targets, parameters)
    if name in ("nll", "imitation"):
        token = targets if name == "nll" else z_p.argmax(-1)
        expected = z_p.softmax(-1) - torch.nn.functional.one_hot(token, z_p.shape[-1])
        torch.testing.assert_close(gradient, expected)
        torch.testing.assert_close(value, -z_p.log_softmax(-1).gather(-1, token[:, None]).squeeze(-1))
    else:
        rounding = 20 * torch.finfo(dtype).eps
        torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=rounding)
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=rounding)


wild = st.floats(-1e4, 1e4, width=32) | st.sampled_from([0.0, -1e4, 1e4, -200.0, -100.0, -88.0, -17.0])
logit_pairs = hnp.arrays(np.float32, st.tuples(st.just(2), st.integers(2, 9)), elements=wild)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@settings(max_examples=200, deadline=None)
@given(logit_pairs, st.sampled_from(CASES))
def test_wild_logits_agree_with_autograd(dtype: torch.dtype, logits: np.ndarray, case: tuple[str, Parameters]) -> None:
    """Where probabilities underflow the linear mixture still equals ``logaddexp``; nothing is NaN or infinite."""
    z_p, z_q = torch.from_numpy(logits).to(dtype).unsqueeze(1)
    targets = torch.zeros(1, dtype=torch.long)
    ours, theirs = (f(case[0], z_p, z_q, targets, case[1]) for f in (closed_form, autograd))
    for tensor in ours:
        assert torch.isfinite(tensor).all()
    # A log-ratio of 1e4 is itself known to eps * 1e4 only.
    spread = max(float(z.log_softmax(-1).abs().max()) for z in (z_p, z_q))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    slack = 4 * torch.finfo(dtype).eps * spread
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance + slack)


@each_case
def test_exact_zeros_stay_finite(name: str, parameters: Parameters) -> None:
    """One-hot teacher and student with log 0 clamped: equal ones agree, different ones meet their bound."""
    certain = torch.tensor([[0.0, LOG_ZERO, LOG_ZERO]])
    targets = torch.tensor([0])
    value, gradient = value_and_gradient(name, certain, certain, certain.exp(), certain.exp(), targets, parameters)
    torch.testing.assert_close((value, gradient), (torch.zeros(1), torch.zeros(1, 3)))
    elsewhere = certain.roll(1, -1)
    value, gradient = value_and_gradient(name, certain, elsewhere, certain.exp(), elsewhere.exp(), targets, parameters)
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()
    bound = DIVERGENCES[name].bound
    limit = math.inf if bound is None else bound({**DIVERGENCES[name].parameters, **parameters})
    if limit < math.inf:
        torch.testing.assert_close(value, torch.tensor([limit]), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("depth", [40.0, 200.0, 9000.0])
def test_a_certain_target_keeps_what_the_others_say(depth: float) -> None:
    """p_y and q_y round to 1 (then p underflows), but the rest of the distribution is as known as ever."""
    rest_p, rest_q = torch.tensor([[0.0, -1.0]]), torch.tensor([[2.0, 0.0]])
    z_p, z_q = (torch.cat([torch.full((1, 1), depth), rest], -1) for rest in (rest_p, rest_q))
    value, gradient = closed_form("nckd", z_p, z_q, torch.tensor([0]), {})
    torch.testing.assert_close(value, fkl(rest_p.log_softmax(-1), rest_q.log_softmax(-1)), atol=2e-3, rtol=1e-5)
    expected = torch.cat([torch.zeros(1, 1), rest_q.softmax(-1) - rest_p.softmax(-1)], -1)
    torch.testing.assert_close(gradient, expected, atol=2e-3, rtol=1e-5)
    # An undecided teacher against that student: KL of the coins (1/2, 1/2) and (1, exp(-depth)-ish).
    z_p = torch.cat([rest_p.logsumexp(-1, keepdim=True), rest_p], -1)
    value, gradient = closed_form("tckd", z_p, z_q, torch.tensor([0]), {})
    log_rest = rest_q.logsumexp(-1) - depth
    torch.testing.assert_close(value, -math.log(2) - 0.5 * log_rest, atol=2e-3, rtol=1e-5)
    expected = torch.cat([torch.full((1, 1), 0.5), -0.5 * rest_q.softmax(-1)], -1)
    torch.testing.assert_close(gradient, expected, atol=2e-3, rtol=1e-5)


def test_a_distribution_without_others_is_no_distribution() -> None:
    """log 0 everywhere but at the target: such a teacher asks for nothing, such a student counts as uniform."""
    certain, open_minded = torch.tensor([[0.0, LOG_ZERO, LOG_ZERO]]), torch.tensor([[0.5, 0.2, 0.3]]).log()
    target = torch.tensor([0])
    value, gradient = value_and_gradient("nckd", certain, open_minded, certain.exp(), open_minded.exp(), target, {})
    assert not value.any()
    assert not gradient.any()
    value, gradient = value_and_gradient("nckd", open_minded, certain, open_minded.exp(), certain.exp(), target, {})
    torch.testing.assert_close(value, torch.tensor([0.4 * math.log(0.8) + 0.6 * math.log(1.2)]))
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.1, -0.1]]))


def test_two_near_certainties_are_told_apart() -> None:
    """p_y = 1 - 2e-10 and q_y = 1 - 1e-10 are both 1 in fp32; the target is pulled down by the difference."""
    z_p, z_q = (torch.tensor([[0.0, math.log(rest)]]) for rest in (2e-10, 1e-10))
    _, gradient = closed_form("tckd", z_p, z_q, torch.tensor([0]), {})
    torch.testing.assert_close(gradient, torch.tensor([[1e-10, -1e-10]]), rtol=1e-4, atol=0)


def test_the_two_halves_make_the_forward_kl() -> None:
    """ATKD's identity ``FKL = TCKD + (1 - p_y) NCKD``, in the value and in the gradient."""
    z_p, z_q, targets = rows()
    whole, target, rest = (closed_form(name, z_p, z_q, targets, {}) for name in ("fkl", "tckd", "nckd"))
    uncertainty = 1 - z_p.softmax(-1).gather(-1, targets[:, None])
    torch.testing.assert_close(whole[0], target[0] + uncertainty.squeeze(-1) * rest[0])
    torch.testing.assert_close(whole[1], target[1] + uncertainty * rest[1])


@each_case
def test_rows_do_not_see_each_other_and_inputs_stay(name: str, parameters: Parameters) -> None:
    """V = 50,000 passes in blocks of two rows on a CPU: five rows at once equal five alone, bit for bit."""
    z_p, z_q, targets = rows(5, 50_000, torch.float32)
    inputs = [z_p.log_softmax(-1), z_q.log_softmax(-1), z_p.softmax(-1), z_q.softmax(-1), targets]
    copies = [x.clone() for x in inputs]
    place = torch.empty_like(z_q)
    value, gradient = value_and_gradient(name, *inputs, parameters, out=place)
    assert gradient is place
    alone = [value_and_gradient(name, *(x[i : i + 1] for x in inputs), parameters) for i in range(5)]
    assert torch.equal(value, torch.cat([v for v, _ in alone]))
    assert torch.equal(gradient, torch.cat([g for _, g in alone]))
    assert all(torch.equal(x, copy) for x, copy in zip(inputs, copies, strict=True))


def test_no_teacher_is_needed_for_maximum_likelihood_alone() -> None:
    _, z_q, targets = rows()
    log_q = z_q.log_softmax(-1)
    value, gradient = value_and_gradient("nll", None, log_q, None, log_q.exp(), targets, {})
    z = z_q.clone().requires_grad_()
    torch.nn.functional.cross_entropy(z, targets, reduction="sum").backward()
    torch.testing.assert_close(gradient, z.grad)
    torch.testing.assert_close(value.sum(), torch.nn.functional.cross_entropy(z_q, targets, reduction="sum"))
    with pytest.raises(InputError, match="teacher"):
        value_and_gradient("akl", None, log_q, None, log_q.exp(), targets, {})
    with pytest.raises(InputError, match=r"did you mean 'srkl'"):
        value_and_gradient("srlk", log_q, log_q, log_q.exp(), log_q.exp(), targets, {})
    with pytest.raises(InputError, match=r"alpha must lie in \[0, 1\]"):
        value_and_gradient("skl", log_q, log_q, log_q.exp(), log_q.exp(), targets, {"alpha": -0.1})
