"""Masking, weighting, normalising, accumulation: the places where distillation code goes silently wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from selectkd_eval.divergences import DIVERGENCES, fkl
from selectkd_eval.errors import InputError
from selectkd_eval.loss import gradient_repair, require_finite, rows_of, selective_loss
from selectkd_eval.objective import LossSpec, Term, single
from selectkd_eval.token_stats import TokenStats

B, T, V = 8, 10, 11
GATES = ["top-k", "spec-k"]
NORMALISERS = ["per_seq_mean", "valid_tokens", "selected_tokens"]


class Batch:
    """Eight sequences with prompts of 3 and answers of 1 to 6 tokens, right-padded."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.logits_p = 2 * torch.randn(B, T, V, generator=generator, dtype=dtype)
        self.logits_q = 2 * torch.randn(B, T, V, generator=generator, dtype=dtype)
        self.input_ids = torch.randint(V, (B, T), generator=generator)
        self.mask = torch.zeros(B, T, dtype=torch.bool)
        for i in range(B):
            self.mask[i, 3 : 4 + i % 6] = True


def run(batch: Batch, spec: LossSpec, **options: object) -> tuple[Tensor, TokenStats, Tensor]:
    logits = batch.logits_q.clone().requires_grad_()
    loss, stats = selective_loss(batch.logits_p, logits, batch.input_ids, batch.mask, spec, **options)  # type: ignore[arg-type]
    loss.backward()
    assert logits.grad is not None
    return loss.detach(), stats, logits.grad


def test_per_seq_mean_is_algorithm_1_written_as_loops() -> None:
    batch, beta = Batch(), 0.01
    total = 0.0
    for i in range(B):
        positions = batch.mask[i].nonzero().flatten().tolist()
        sequence = 0.0
        for t in positions:
            log_p = batch.logits_p[i, t - 1].log_softmax(-1)
            log_q = batch.logits_q[i, t - 1].log_softmax(-1)
            accepted = bool((log_p > log_p[log_q.argmax()]).sum() < 2)
            weight = beta + (1 - beta) * accepted
            sequence += weight * (log_p.exp() * (log_p - log_q)).sum().item()
        total += sequence / len(positions)
    loss, _, _ = run(batch, LossSpec(verifier="top-k", k=2, beta=beta))
    assert loss.item() == pytest.approx(total / B, rel=1e-6)


@pytest.mark.parametrize("normaliser", NORMALISERS)
@pytest.mark.parametrize("verifier", ["none", "hellinger", *GATES])
def test_eight_micro_batches_of_one_equal_one_batch_of_eight(normaliser: str, verifier: str) -> None:
    batch = Batch()
    spec = LossSpec(verifier=verifier, k=2, beta=0.1, normaliser=normaliser)
    whole_loss, whole_stats, whole_grad = run(batch, spec)

    known = TokenStats(sequences=B, tokens=float(batch.mask.sum()))
    used = known.denominator("valid_tokens" if normaliser == "selected_tokens" else normaliser)
    logits = batch.logits_q.clone().requires_grad_()
    stats = TokenStats()
    for i in range(B):
        row = slice(i, i + 1)
        loss, part = selective_loss(
            batch.logits_p[row], logits[row], batch.input_ids[row], batch.mask[row], spec, denominator=used
        )
        loss.backward()
        stats = stats + part
    assert logits.grad is not None
    repair = gradient_repair(spec, used, stats)
    torch.testing.assert_close(logits.grad * repair, whole_grad, rtol=1e-5, atol=1e-9)
    assert stats.loss(normaliser) == pytest.approx(whole_loss.item(), rel=1e-6)
    assert stats.tar == (None if whole_stats.tar is None else pytest.approx(whole_stats.tar))
    assert stats.bite == pytest.approx(whole_stats.bite, abs=1e-6)


def test_sampled_gates_do_not_depend_on_how_the_batch_is_cut() -> None:
    batch = Batch()
    spec = single("fkl", verifier="spec-k", k=1, spec_mode="sampled")
    rows = rows_of(batch.input_ids, batch.mask)
    coins = torch.rand(rows.targets.shape, generator=torch.Generator().manual_seed(0))
    _, whole, _ = run(batch, spec, rows=replace(rows, uniform=coins))
    stats = TokenStats()
    for i, own in enumerate(coins.split(rows.lengths.tolist())):
        row = slice(i, i + 1)
        args = (batch.logits_p[row], batch.logits_q[row], batch.input_ids[row], batch.mask[row])
        cut = replace(rows_of(*args[2:]), uniform=own)
        stats = stats + selective_loss(*args, spec, rows=cut)[1]
    assert stats.accepted == whole.accepted
    assert 0 < whole.accepted < whole.tokens


@pytest.mark.parametrize("normaliser", NORMALISERS)
@pytest.mark.parametrize(("verifier", "k", "beta"), [("top-k", 1, 1.0), ("spec-k", 1, 1.0), ("top-k", V, 0.01)])
def test_an_open_gate_is_plain_distillation(normaliser: str, verifier: str, k: int, beta: float) -> None:
    batch = Batch()
    loss, stats, grad = run(batch, LossSpec(verifier=verifier, k=k, beta=beta, normaliser=normaliser))
    plain_loss, _, plain_grad = run(batch, LossSpec(normaliser=normaliser))
    torch.testing.assert_close(loss, plain_loss)
    torch.testing.assert_close(grad, plain_grad)
    assert stats.bite == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("verifier", ["none", *GATES])
def test_equal_models_have_no_loss_and_full_acceptance(verifier: str) -> None:
    batch = Batch()
    batch.logits_q = batch.logits_p.clone()
    loss, stats, _ = run(batch, LossSpec(verifier=verifier, k=1))
    assert loss.item() == pytest.approx(0, abs=1e-9)
    assert (stats.tar, stats.tar_pooled, stats.alpha) == pytest.approx((1, 1, 1))
    assert stats.tar is not None
    assert stats.tar <= 1


def test_only_positions_that_predict_response_tokens_are_trained() -> None:
    batch = Batch()
    *_, grad = run(batch, LossSpec())
    trained = grad.abs().sum(-1) > 0
    expected = torch.zeros_like(trained)
    expected[:, :-1] = batch.mask[:, 1:]
    assert torch.equal(trained, expected)
    assert trained[:, 2].all(), "the last prompt position predicts the first response token"


def test_a_rejected_token_has_exactly_beta_of_its_gradient() -> None:
    batch = Batch()
    *_, plain = run(batch, LossSpec())
    *_, gated = run(batch, LossSpec(verifier="top-k", k=1, beta=0.25))
    ratio = gated.norm(dim=-1) / plain.norm(dim=-1)
    ratio = ratio[~ratio.isnan()]
    is_open, is_shut = (ratio - 1).abs() < 1e-6, (ratio - 0.25).abs() < 1e-6
    assert (is_open | is_shut).all()
    assert is_open.any()
    assert is_shut.any()


def test_bite_and_tar_are_what_they_say() -> None:
    batch = Batch()
    _, hard, _ = run(batch, LossSpec(verifier="top-k", k=1, beta=0.0))
    _, soft, _ = run(batch, LossSpec(verifier="top-k", k=1, beta=0.5))
    assert hard.bite is not None
    assert soft.bite == pytest.approx(hard.bite / 2, rel=1e-6)
    assert hard.tar == soft.tar, "acceptance does not depend on beta"
    assert hard.tar_pooled == pytest.approx(hard.accepted / int(batch.mask.sum()))
    assert hard.mean_weight == pytest.approx(hard.tar_pooled)
    per_sequence = []
    for i in range(B):
        row = slice(i, i + 1)
        args = (batch.logits_p[row], batch.logits_q[row], batch.input_ids[row], batch.mask[row])
        per_sequence.append(selective_loss(*args, LossSpec(verifier="top-k", k=1))[1].tar_pooled)
    assert hard.tar == pytest.approx(sum(per_sequence) / B)  # type: ignore[arg-type]


def test_what_was_not_measured_is_none() -> None:
    batch = Batch()
    spec = single("nll")
    _, stats = selective_loss(None, batch.logits_q, batch.input_ids, batch.mask, spec)
    assert stats.alpha is None
    assert stats.tar == 1
    assert stats.loss("valid_tokens") == pytest.approx(stats.mean_nll)
    _, scored, _ = run(batch, LossSpec(verifier="hellinger"))
    assert scored.tar is None
    assert scored.tar_pooled is None


@pytest.mark.parametrize(("wide", "narrow"), [("logits_p", "logits_q"), ("logits_q", "logits_p")])
def test_padded_heads_are_cut_to_the_common_vocabulary(wide: str, narrow: str) -> None:
    batch, plain = Batch(), Batch()
    padding = torch.full((B, T, 5), 7.0, dtype=torch.float64)
    setattr(batch, wide, torch.cat([getattr(batch, wide), padding], -1))
    loss, _, grad = run(batch, LossSpec(verifier="spec-k"))
    expected, _, expected_grad = run(plain, LossSpec(verifier="spec-k"))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grad[..., :V], expected_grad)
    assert (grad[..., V:] == 0).all()


def test_a_token_outside_the_common_vocabulary_is_refused() -> None:
    batch = Batch()
    batch.input_ids[0, 3] = V
    batch.logits_q = torch.cat([batch.logits_q, torch.zeros(B, T, 3, dtype=torch.float64)], -1)
    with pytest.raises(InputError, match=f"token id {V}"):
        run(batch, LossSpec())


def test_temperature_scales_the_divergence_and_leaves_the_gate_alone() -> None:
    batch, tau = Batch(), 2.0
    loss, hot, _ = run(batch, LossSpec(temperature=tau, normaliser="valid_tokens", verifier="top-k", k=1, beta=1))
    kept = batch.mask[:, 1:]
    log_p, log_q = ((x[:, :-1][kept] / tau).log_softmax(-1) for x in (batch.logits_p, batch.logits_q))
    assert loss.item() == pytest.approx(tau**2 * fkl(log_p, log_q).mean().item())
    _, cold, _ = run(batch, LossSpec(verifier="top-k", k=1, beta=1))
    assert (hot.tar, hot.alpha) == (cold.tar, cold.alpha)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_every_divergence_goes_with_every_gate(divergence: str) -> None:
    for verifier in ("none", "hellinger", *GATES):
        loss, stats, grad = run(Batch(), single(divergence, verifier=verifier))
        assert loss > 0
        assert torch.isfinite(grad).all()
        assert stats.bite is not None
        assert -1e-6 <= stats.bite <= 1


def test_half_precision_logits_are_reduced_in_fp32() -> None:
    batch = Batch(dtype=torch.bfloat16)
    loss, stats, _ = run(batch, LossSpec())
    assert loss.dtype == torch.float32
    wide = Batch(dtype=torch.bfloat16)
    wide.logits_p, wide.logits_q = wide.logits_p.float(), wide.logits_q.float()
    assert stats.divergence == run(wide, LossSpec())[1].divergence


def test_a_loss_that_is_no_number_stops_with_one_sentence() -> None:
    batch = Batch()
    batch.logits_q[0, 2, 0] = float("nan")
    _, stats = selective_loss(batch.logits_p, batch.logits_q, batch.input_ids, batch.mask, LossSpec())
    with pytest.raises(InputError, match="not a number at step 3: lower --lr"):
        require_finite(stats, "step 3")
    require_finite(TokenStats(), "step 1")


def test_a_gate_without_a_teacher_is_refused() -> None:
    batch = Batch()
    with pytest.raises(InputError, match="nll with the verifier spec-k asks a teacher"):
        selective_loss(None, batch.logits_q, batch.input_ids, batch.mask, single("nll", verifier="spec-k"))


def test_a_batch_without_response_tokens_is_refused() -> None:
    batch = Batch()
    batch.mask[:] = False
    with pytest.raises(InputError, match="no response token"):
        run(batch, LossSpec())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"terms": (Term("fkkl"),)}, "did you mean 'fkl'"),
        ({"terms": ()}, "at least one term"),
        ({"share": 0.0}, "share of the tokens"),
        ({"target": 1.5}, "share of the teacher"),
        ({"verifier": "topk"}, "did you mean 'top-k'"),
        ({"normaliser": "mean"}, "no normaliser"),
        ({"temperature": 0.0}, "temperature"),
        ({"k": 0}, "k counts"),
    ],
)
def test_a_wrong_specification_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LossSpec(**wrong)  # type: ignore[arg-type]
