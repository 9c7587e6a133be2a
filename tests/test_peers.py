"""What other trainers compute under the same name: TRL's and Liger's generalised JSD, in value and gradient.

How the conventions map, as read in trl 1.16.0 and liger-kernel 0.8.5:

* ``beta`` is our ``beta_jsd``: the teacher's share of the mixture and the weight of KL(teacher || M).
* At ``beta`` 0 and 1 both switch to the *unscaled* forward and reverse KL, the limits of ``jsd / b`` and
  ``jsd / (1 - b)``; our ``jsd`` goes to 0 there, as the formula says. So their 0 is our ``fkl``, their 1 our ``rkl``.
* Both divide the logits by ``temperature`` without the factor tau^2 that follows Hinton et al.
* Labels of -100 are left out. They are compared with the logits as given: the caller has shifted both.
* TRL divides by the number of labels that count ("batchmean") or by the update's count; Liger by the former only.
* Liger starts from hidden states and the two heads' weights, and adds ``weight_hard_loss`` times the mean NLL.

Liger's ``chunked_loss`` is plain PyTorch and runs here. Its Triton kernels need a GPU and are not tested.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from selectkd_eval.divergences import DIVERGENCES
from selectkd_eval.gradients import value_and_gradient

BETAS = (0.0, 0.1, 0.5, 0.9, 1.0)
# Logits of size 30 leave most tokens with probabilities below 1e-40, where a mixture of fp32 numbers underflows.
SCALES = (1.0, 30.0)


@pytest.fixture(scope="module")
def trl_jsd() -> Callable[..., Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")  # it warns that the module may move
        gkd = pytest.importorskip("trl.experimental.gkd", reason="TRL is not installed: pip install 'trl==1.16.0'")
    return gkd.GKDTrainer.generalized_jsd_loss


@pytest.fixture(scope="module")
def liger() -> type:
    """The fused loss as a module class."""
    reason = "Liger is not installed: pip install --no-deps 'liger-kernel==0.8.5'"
    return pytest.importorskip("liger_kernel.chunked_loss", reason=reason).LigerFusedLinearJSDLoss


def logits(scale: float, count: int = 12, vocabulary: int = 97) -> tuple[Tensor, Tensor, Tensor]:
    """Teacher, student ``(N, V)`` in fp32, and labels of which every fourth does not count."""
    generator = torch.Generator().manual_seed(7)
    z_p, z_q = (scale * torch.randn(count, vocabulary, generator=generator) for _ in range(2))
    labels = torch.randint(vocabulary, (count,), generator=generator)
    labels[::4] = -100
    return z_p, z_q, labels


def ours(beta: float, z_p: Tensor, z_q: Tensor) -> tuple[Tensor, Tensor]:
    """Our value and gradient per row of what the peers call JSD with this beta."""
    name, parameters = {0.0: ("fkl", {}), 1.0: ("rkl", {})}.get(beta, ("jsd", {"beta_jsd": beta}))
    log_p, log_q = z_p.log_softmax(-1), z_q.log_softmax(-1)
    targets = torch.zeros(len(z_q), dtype=torch.long)
    value, gradient = value_and_gradient(name, log_p, log_q, log_p.exp(), log_q.exp(), targets, parameters)
    torch.testing.assert_close(value, DIVERGENCES[name](log_p, log_q, targets, **parameters), rtol=1e-5, atol=1e-5)
    return value, gradient


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_trl_computes_the_same(trl_jsd: Callable[..., Tensor], beta: float, scale: float, temperature: float) -> None:
    z_p, z_q, labels = logits(scale)
    counts = labels != -100
    student = z_q.clone().requires_grad_()
    batch = (student.reshape(3, 4, -1), z_p.reshape(3, 4, -1), labels.reshape(3, 4))
    theirs = trl_jsd(*batch, beta=beta, temperature=temperature)
    theirs.backward()
    value, gradient = ours(beta, z_p / temperature, z_q / temperature)
    torch.testing.assert_close(theirs.detach(), value[counts].mean(), rtol=1e-5, atol=1e-5)
    expected = gradient * counts[:, None] / counts.sum() / temperature
    torch.testing.assert_close(student.grad, expected, rtol=1e-5, atol=1e-5)
    # The normaliser of a whole update: ours is called valid_tokens.
    per_update = trl_jsd(*batch, beta=beta, temperature=temperature, num_items_in_batch=100)
    torch.testing.assert_close(per_update.detach(), value[counts].sum() / 100, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("temperature", "hard"), [(1.0, 0.0), (2.0, 0.0), (1.0, 0.3)])
def test_liger_computes_the_same(liger: type, beta: float, scale: float, temperature: float, hard: float) -> None:
    """From hidden states, in chunks of 5 rows; the soft loss weighs 1 - hard."""
    generator = torch.Generator().manual_seed(3)
    hidden_p, head_p = torch.randn(12, 8, generator=generator), scale / 3 * torch.randn(97, 8, generator=generator)
    hidden_q, head_q = torch.randn(12, 6, generator=generator), scale / 3 * torch.randn(97, 6, generator=generator)
    labels = logits(1.0)[2]
    counts = labels != -100
    student, head = hidden_q.clone().requires_grad_(), head_q.clone().requires_grad_()
    loss = liger(
        weight_hard_loss=hard,
        weight_soft_loss=1 - hard,
        beta=beta,
        temperature=temperature,
        compiled=False,
        chunk_size=5,
    )
    theirs = loss(student, head, hidden_p, head_p, labels)
    theirs.backward()

    z_p, z_q = hidden_p @ head_p.T / temperature, hidden_q @ head_q.T / temperature
    value, gradient = ours(beta, z_p, z_q)
    log_q = z_q.log_softmax(-1)
    likelihood, towards = value_and_gradient("nll", None, log_q, None, log_q.exp(), labels.clamp_min(0), {})
    value, gradient = ((1 - hard) * soft + hard * nll for soft, nll in ((value, likelihood), (gradient, towards)))
    gradient = gradient * counts[:, None] / counts.sum() / temperature
    torch.testing.assert_close(theirs.detach(), value[counts].mean(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(student.grad, gradient @ head_q, rtol=1e-5, atol=1e-5 * scale)
    torch.testing.assert_close(head.grad, gradient.T @ hidden_q, rtol=1e-5, atol=1e-5)


def test_the_peers_jump_at_the_ends_where_ours_is_continuous(trl_jsd: Callable[..., Tensor]) -> None:
    """From beta = 0 to 0.01 TRL's loss falls by an order of magnitude: a sweep over beta changes the step size."""
    z_p, z_q, _ = logits(1.0)
    at_zero, near_zero = (trl_jsd(z_q, z_p, beta=beta, reduction="sum").item() for beta in (0.0, 0.01))
    log_p, log_q = z_p.log_softmax(-1), z_q.log_softmax(-1)
    targets = torch.zeros(len(z_q), dtype=torch.long)
    assert at_zero > 10 * near_zero
    assert DIVERGENCES["jsd"](log_p, log_q, targets, beta_jsd=0.0).sum().item() == pytest.approx(0, abs=1e-5)
    assert DIVERGENCES["jsd"](log_p, log_q, targets, beta_jsd=0.01).sum().item() == pytest.approx(near_zero, rel=1e-5)
