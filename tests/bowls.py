"""Losses whose derivatives are known: bowls over one matrix, and a tiny model's common loss with its exact Hessian."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from conftest import tiny_llama
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from selectkd_eval.landscapes.loss import CommonLoss
from selectkd_eval.teacher_forced import Example, batches

V = 12


class Matrix(nn.Module):
    """A model that is one matrix."""

    def __init__(self, weight: list[list[float]]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))


class Bowl:
    """``slope . w + w' H w / 2`` over the flat matrix, as the mean over ten tokens; counts how often it was asked."""

    n_tokens = 10

    def __init__(self, slope: list[float], hessian: list[list[float]]) -> None:
        self.slope, self.hessian = (torch.tensor(x, dtype=torch.float64) for x in (slope, hessian))
        self.asked = 0
        self.fails_at = -1

    def mean(self, model: Matrix) -> Tensor:
        w = model.weight.flatten()
        return self.slope @ w + w @ self.hessian @ w / 2

    def sums(self, model: Matrix) -> dict[str, float]:
        if self.asked == self.fails_at:
            raise KeyboardInterrupt
        self.asked += 1
        return {"loss_sum": float(self.mean(model)) * self.n_tokens}

    def means(self, model: Matrix) -> Iterator[Tensor]:
        yield self.mean(model) / 2
        yield self.mean(model) / 2


def tiny_loss(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, CommonLoss]:
    """A student of 736 weights in matrices, and its loss against another one on two texts."""
    teacher, student = (tiny_llama([], width=8, seed=seed, vocabulary=V).to(dtype).eval() for seed in (0, 1))
    generator = torch.Generator().manual_seed(0)
    examples = [
        Example(str(n), tuple(torch.randint(3, V, (length,), generator=generator).tolist()), (True,) * length)
        for n, length in enumerate((9, 6))
    ]
    return student, CommonLoss(teacher, list(batches(examples, 1, 0, "cpu")), V)


class Exact:
    """Second derivatives of a model's mean loss by two passes back, through attention written out."""

    def __init__(self, model: nn.Module, loss: CommonLoss, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
            first = torch.autograd.grad(loss.mean(model), parameters, create_graph=True)
            self.gradient = torch.cat([one.flatten() for one in first])

    def product(self, v: Tensor) -> Tensor:
        with torch.enable_grad():
            found = torch.autograd.grad(self.gradient @ v, self.parameters, retain_graph=True)
        return torch.cat([one.flatten() for one in found])

    def whole(self) -> Tensor:
        return torch.stack([self.product(row) for row in torch.eye(len(self.gradient), dtype=self.gradient.dtype)])
