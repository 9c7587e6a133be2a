"""The chunked loss is the plain one: value, statistics and every gradient, whatever the objective and the chunks."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from selectkd_eval.chunked import chunked_loss
from selectkd_eval.divergences import DIVERGENCES
from selectkd_eval.errors import InputError
from selectkd_eval.heads import Head
from selectkd_eval.loss import token_loss
from selectkd_eval.objective import NORMALISERS, LossSpec, Term, single
from selectkd_eval.responses import Responses
from selectkd_eval.selection import planned, read, scores
from selectkd_eval.token_stats import Rows, TokenPlan, TokenStats
from selectkd_eval.verifiers import VERIFIERS

V, V_TEACHER, N = 37, 41, 14
GATES = [(name, "expected") for name in VERIFIERS] + [("spec-k", "sampled")]


@dataclass
class Case:
    """Hidden states, heads of unequal padding (the student's with a bias) and rows of 3 sequences, one empty."""

    hidden_p: Tensor
    head_p: Head
    hidden_q: Tensor
    head_q: Head
    rows: Rows

    @property
    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        assert self.head_q.bias is not None
        return self.hidden_q, self.head_q.weight, self.head_q.bias


def case(dtype: torch.dtype = torch.float64, seed: int = 0, size: float = 0.7, **head: float) -> Case:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return (size * torch.randn(shape, generator=draw, dtype=torch.float64)).to(dtype)

    lengths = torch.tensor([6, 0, 8])
    rows = Rows(
        targets=torch.randint(V, (N,), generator=draw),
        sequence=torch.repeat_interleave(torch.arange(3), lengths),
        lengths=lengths,
        source=torch.arange(N) % 4,
        uniform=torch.rand(N, generator=draw, dtype=torch.float64),
    )
    weight, bias = normal(V, 6).requires_grad_(), normal(V).requires_grad_()
    return Case(
        normal(N, 9), Head(normal(V_TEACHER, 9)), normal(N, 6).requires_grad_(), Head(weight, bias, **head), rows
    )


def plain(c: Case, spec: LossSpec, **options: object) -> tuple[Tensor, TokenStats, tuple[Tensor, ...]]:
    loss, stats = token_loss(c.head_p.logits(c.hidden_p), c.head_q.logits(c.hidden_q), c.rows, spec, **options)
    return loss, stats, torch.autograd.grad(loss, c.leaves)


def chunked(c: Case, spec: LossSpec, **options: object) -> tuple[Tensor, TokenStats, tuple[Tensor, ...]]:
    loss, stats = chunked_loss(c.hidden_p, c.head_p, c.hidden_q, c.head_q, c.rows, spec, **options)
    return loss, stats, torch.autograd.grad(loss, c.leaves)


def with_plan(c: Case, spec: LossSpec, z_r: Tensor | None = None) -> Case:
    """The case with what the plain loss reads from its own tokens where the rows have no plan."""
    if not spec.needs_reading:
        return c
    with torch.no_grad():
        z_p, z_q = c.head_p.logits(c.hidden_p, V), c.head_q.logits(c.hidden_q)
        log_r = None if z_r is None else z_r.log_softmax(-1)
        found = scores(spec, z_p.log_softmax(-1), z_q.log_softmax(-1), c.rows.targets, log_r)
    return replace(c, rows=replace(c.rows, plan=planned(spec, read(spec, found), found)))


def assert_equal(c: Case, spec: LossSpec, rtol: float = 1e-9, chunk: int = 5, **options: object) -> None:
    expected, found = plain(c, spec, **options), chunked(with_plan(c, spec), spec, chunk=chunk, **options)
    torch.testing.assert_close(found[0], expected[0], rtol=rtol, atol=rtol)
    assert asdict(found[1]) == pytest.approx(asdict(expected[1]), rel=rtol, abs=rtol)
    for ours, autograd in zip(found[2], expected[2], strict=True):
        assert ours.dtype == autograd.dtype
        largest = float(autograd.abs().max())
        torch.testing.assert_close(ours, autograd, rtol=rtol, atol=rtol * max(largest, 1e-3))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_every_divergence_with_every_gate_and_normaliser(divergence: str) -> None:
    c = case()
    for (verifier, mode), normaliser in itertools.product(GATES, NORMALISERS):
        spec = single(divergence, verifier=verifier, spec_mode=mode, normaliser=normaliser, k=2, beta=0.1)
        assert_equal(c, spec)


def test_what_validation_keeps_of_every_response_is_the_same_in_chunks_and_its_mean_is_the_statistic() -> None:
    c = case()
    for verifier, mode in GATES:
        spec = single("fkl", verifier=verifier, spec_mode=mode, k=2, beta=0.1)
        one, other = Responses(), Responses()
        expected, found = plain(c, spec, watch=one)[1], chunked(c, spec, chunk=5, watch=other)[1]
        assert asdict(found) == pytest.approx(asdict(expected), rel=1e-9, abs=1e-9)
        kept = one.row()
        assert kept == other.row() and kept["n_tokens"] == c.rows.lengths.tolist()
        n = np.array(kept["n_tokens"])
        for name in ("tar_top_k", "tar_spec_k"):
            assert np.mean(np.array(kept[name])[n > 0]) == pytest.approx(getattr(expected, name), abs=1e-6)
        assert np.average(kept["alpha"], weights=n) == pytest.approx(expected.alpha, abs=1e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 2.0},
        {"temperature": 0.5, "tau_squared": False},
        {"target": 0.3},
        {"target": 0.01},
        {"target": 0.6, "temperature": 3.0},
        {"idts": 0.5},
        {"idts": 0.5, "tau_squared": False, "selection": "hardest", "share": 0.5, "idts_median": "selected"},
    ],
    ids=str,
)
def test_temperatures_and_moving_targets(divergence: str, options: dict[str, object]) -> None:
    assert_equal(case(seed=1), single(divergence, verifier="spec-k", **options))


TERMS = {
    "by source": (Term("skl", source="teacher"), Term("srkl", {"alpha": 0.2}, 0.5, source="student")),
    "by part": (
        Term("nckd", coefficient=0.2, part="easy"),
        Term("tckd", coefficient=0.8, part="hard"),
        Term("nckd", coefficient=0.8, part="hard"),
    ),
    "both": (Term("fkl", source="mixed", part="hard"), Term("jsd", {"beta_jsd": 0.9}, source="dataset")),
    "with nll": (Term("fkl"), Term("nll", coefficient=0.3)),
    "nobody's": (Term("fkl", source="teacher", coefficient=0.0),),
}


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_sums_of_terms(terms: tuple[Term, ...], temperature: float) -> None:
    for normaliser in NORMALISERS:
        assert_equal(case(seed=2), LossSpec(terms, verifier="top-k", normaliser=normaliser, temperature=temperature))


@pytest.mark.parametrize("head", [{"softcap": 1.5}, {"scale": 0.3}, {"softcap": 2.0, "scale": 1.7}], ids=str)
def test_soft_caps_and_scales_of_either_head(head: dict[str, float]) -> None:
    c = case(seed=3, **head)
    assert_equal(replace(c, head_p=replace(c.head_p, **head)), single("srkl", verifier="hellinger"))


def test_the_chunks_do_not_show() -> None:
    spec = single("jsd", verifier="spec-k")
    whole = chunked(case(seed=4), spec, chunk=N)
    for chunk in (0, 1, 3, 100):
        parts = chunked(case(seed=4), spec, chunk=chunk)
        for a, b in zip((whole[0], *whole[2]), (parts[0], *parts[2]), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
        assert asdict(parts[1]) == pytest.approx(asdict(whole[1]), rel=1e-12)


def test_gradients_are_finite_differences() -> None:
    c = case(seed=5, softcap=2.0)
    spec = single("skl", verifier="spec-k", temperature=1.5)
    found = chunked(c, spec, chunk=4)[2]
    # The gate's weight carries no gradient, so it is held: once as a plan on an objective without a gate.
    weight = 0.01 + 0.99 * (1 - (1 - _overlap(c)) ** 5)
    held = replace(c, rows=replace(c.rows, plan=TokenPlan(selection=weight)))
    ungated = replace(spec, verifier="none")
    draw, step = torch.Generator().manual_seed(0), 1e-6
    for leaf, gradient in zip(c.leaves, found, strict=True):
        direction = torch.randn(leaf.shape, generator=draw, dtype=leaf.dtype)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                leaf += sign * step * direction
                moved = chunked_loss(held.hidden_p, held.head_p, held.hidden_q, held.head_q, held.rows, ungated)
                values.append(float(moved[0]))
                leaf -= sign * step * direction
        assert float((gradient * direction).sum()) == pytest.approx((values[0] - values[1]) / 2 / step, rel=1e-6)


def _overlap(c: Case) -> Tensor:
    with torch.no_grad():
        z_p, z_q = c.head_p.logits(c.hidden_p, V), c.head_q.logits(c.hidden_q)
        return torch.minimum(z_p.softmax(-1), z_q.softmax(-1)).sum(-1)


def test_gradcheck_of_the_hidden_states() -> None:
    c = case(seed=6)
    frozen = Head(c.head_q.weight.detach(), c.head_q.bias.detach(), softcap=3.0)

    def loss(hidden: Tensor) -> Tensor:
        return chunked_loss(c.hidden_p, c.head_p, hidden, frozen, c.rows, single("rkl"), chunk=5)[0]

    assert torch.autograd.gradcheck(loss, (c.hidden_q,))


@pytest.mark.parametrize("divergence", ["fkl", "srkl", "jsd", "tvd"])
def test_fp32_to_rounding(divergence: str) -> None:
    assert_equal(case(torch.float32, seed=7), single(divergence, verifier="spec-k"), rtol=2e-5)


@pytest.mark.parametrize("divergence", ["fkl", "srkl", "jsd"])
def test_bf16_to_rounding(divergence: str) -> None:
    """Both round logits once and differ in where the gradient is rounded: 2 % of the largest entry."""
    c, spec = case(torch.bfloat16, seed=8), single(divergence, verifier="spec-k")
    expected, found = plain(c, spec), chunked(c, spec, chunk=5)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-6)
    for ours, autograd in zip(found[2], expected[2], strict=True):
        assert ours.dtype == torch.bfloat16
        assert float((ours - autograd).abs().max()) <= 0.02 * float(autograd.abs().max())


def test_half_precision_gradients_in_the_rows_of_fp32_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, which hands out the fp32 sums of bf16 products: gradients then lie in the first half of a row."""

    def products_(head: Head, hidden: Tensor, out: Tensor) -> Tensor:
        return torch.mm(hidden.float(), head.weight.float().T, out=out)

    monkeypatch.setattr(Head, "products_", products_)
    monkeypatch.setattr(Head, "product_dtype", torch.float32)
    c, spec = case(torch.bfloat16, seed=8), single("srkl", verifier="spec-k")
    loss, _, found = chunked(c, spec, chunk=5)
    leaves = [leaf.detach().float().requires_grad_() for leaf in c.leaves]
    exact = Case(c.hidden_p.float(), Head(c.head_p.weight.float()), leaves[0], Head(*leaves[1:]), c.rows)
    expected, _, gradients = plain(exact, spec)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    for ours, autograd in zip(found, gradients, strict=True):
        assert ours.dtype == torch.bfloat16
        assert float((ours - autograd).abs().max()) <= 0.01 * float(autograd.abs().max())


def test_autocast_multiplies_in_its_own_precision_and_returns_full_gradients() -> None:
    c, spec = case(torch.float32, seed=9), single("fkl", verifier="spec-k")
    full = chunked(c, spec)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, stats = chunked_loss(c.hidden_p, c.head_p, c.hidden_q, c.head_q, c.rows, spec, chunk=5)
    gradients = torch.autograd.grad(loss, c.leaves)
    assert 0 < abs(float((loss - full[0]).detach())) < 0.02 * float(full[0].detach())
    assert stats.overlap == pytest.approx(full[1].overlap, rel=0.01)
    for low, exact in zip(gradients, full[2], strict=True):
        assert low.dtype == torch.float32
        assert float((low - exact).abs().max()) <= 0.03 * float(exact.abs().max())


def test_without_a_teacher() -> None:
    c, spec = case(seed=10), single("nll", temperature=2.0)
    loss, stats = chunked_loss(None, None, c.hidden_q, c.head_q, c.rows, spec, chunk=4)
    expected, whole = token_loss(None, c.head_q.logits(c.hidden_q), c.rows, spec)
    torch.testing.assert_close(loss, expected)
    assert asdict(stats) == pytest.approx(asdict(whole))
    for ours, autograd in zip(*(torch.autograd.grad(x, c.leaves) for x in (loss, expected)), strict=True):
        torch.testing.assert_close(ours, autograd)
    with pytest.raises(InputError, match="fkl asks a teacher"):
        chunked_loss(None, None, c.hidden_q, c.head_q, c.rows, single("fkl"))


def test_a_rolled_teacher_and_a_given_denominator() -> None:
    c = case(seed=11)
    c.rows = replace(c.rows, shifts=torch.arange(N) % 3)
    assert_equal(c, single("fkl", verifier="top-k"), denominator=17.0)


def test_choosing_by_a_reference_model_comes_with_the_plan() -> None:
    c, third = case(seed=12), case(seed=13)
    spec = single("fkl", verifier="spec-k", selection="learnable", share=0.4)
    with pytest.raises(AssertionError, match="surveyed"):
        chunked(c, spec)
    z_r = third.head_p.logits(third.hidden_p, V)
    expected = plain(c, spec, z_r=z_r)
    found = chunked(with_plan(c, spec, z_r), spec, chunk=4)
    assert found[1].weight < 0.5 * N
    torch.testing.assert_close(found[0], expected[0])
    for ours, autograd in zip(found[2], expected[2], strict=True):
        torch.testing.assert_close(ours, autograd)


def test_frozen_parts_get_no_gradient() -> None:
    c = case(seed=14)
    frozen = replace(c.head_q, weight=c.head_q.weight.detach(), bias=c.head_q.bias.detach())
    loss, _ = chunked_loss(c.hidden_p, c.head_p, c.hidden_q, frozen, c.rows, single("fkl"), chunk=5)
    torch.testing.assert_close(torch.autograd.grad(loss, c.hidden_q)[0], plain(c, single("fkl"))[2][0])
    loss, _ = chunked_loss(c.hidden_p, c.head_p, c.hidden_q.detach(), c.head_q, c.rows, single("fkl"), chunk=5)
    torch.testing.assert_close(torch.autograd.grad(loss, c.head_q.weight)[0], plain(c, single("fkl"))[2][1])


def test_where_nobody_learns_no_gradient_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    c = case(seed=14)
    expected = plain(c, single("fkl"))[0].detach()
    monkeypatch.delattr("selectkd_eval.blocks.value_and_gradient")
    monkeypatch.delattr(Head, "pull_")
    with torch.no_grad():
        loss, _ = chunked_loss(c.hidden_p, c.head_p, c.hidden_q, c.head_q, c.rows, single("fkl"))
    frozen = Head(c.head_q.weight.detach(), c.head_q.bias.detach())
    other, _ = chunked_loss(c.hidden_p, c.head_p, c.hidden_q.detach(), frozen, c.rows, single("fkl"))
    assert not loss.requires_grad
    assert float(loss) == float(other) == pytest.approx(float(expected))


def test_nothing_selected_is_exactly_nothing() -> None:
    c = case(seed=15)
    c.rows = replace(c.rows, plan=TokenPlan(selection=torch.zeros(N)))
    loss, stats, gradients = chunked(c, single("fkl", normaliser="selected_tokens"))
    assert float(loss.detach()) == stats.weight == 0
    assert all(not gradient.any() for gradient in gradients)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_extreme_logits_give_numbers(divergence: str) -> None:
    c = case(torch.float32, seed=16, size=30.0)
    for verifier in VERIFIERS:
        loss, _, gradients = chunked(c, single(divergence, verifier=verifier))
        assert torch.isfinite(loss)
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
    # An entry that no hidden state can reach: minus infinity in both heads.
    closed = c.head_q.bias.detach().clone()
    closed[3] = -torch.inf
    barred = replace(
        c, head_p=replace(c.head_p, bias=torch.cat([closed, closed[:4]])), head_q=replace(c.head_q, bias=closed)
    )
    barred.rows = replace(c.rows, targets=c.rows.targets.masked_fill(c.rows.targets == 3, 4))
    loss, _ = chunked_loss(
        barred.hidden_p, barred.head_p, barred.hidden_q, barred.head_q, barred.rows, single(divergence), chunk=5
    )
    assert torch.isfinite(loss)
    assert torch.isfinite(torch.autograd.grad(loss, barred.hidden_q)[0]).all()


def test_a_token_outside_the_common_vocabulary_is_refused() -> None:
    c = case()
    c.rows = replace(c.rows, targets=torch.full((N,), V))
    with pytest.raises(InputError, match=f"token id {V}, outside the {V} entries"):
        chunked_loss(c.hidden_p, c.head_p, c.hidden_q, c.head_q, c.rows, single("fkl"))
