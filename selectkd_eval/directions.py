"""Along which directions is a landscape drawn? Filter-normalised noise that is the same for every model
compared.

Li et al. (arXiv 1712.09913) as it applies to transformers: Gaussian noise per parameter tensor, each output
row scaled to the norm of the weights' own row; norm gains and biases (1-D) untouched. The noise depends on
the seed, the axis and the parameter's *name*, through a counter-based generator (Philox) on the CPU in fp32,
not on one stream over all parameters: so neither the order of the parameters, nor the device, nor an extra
tensor in one of the models changes what the others get.

Filter normalisation does not undo every reparametrisation: gains of a norm moved into the next matrix with
unequal factors, or adapters (A, B) against (A G, G^-1 B), change the picture of an unchanged function. LoRA
students are therefore merged before; gains are compared as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

RULES = (
    "noise N(0, 1) from Philox(sha256(seed/axis/parameter name)), CPU fp32; scaled per output row to the weights' "
    "row norm; 1-D parameters and buffers untouched; tied tensors once; LoRA merged; norm gains not folded"
)


def noise(seed: int, axis: int, name: str, shape: torch.Size) -> Tensor:
    """Standard normal fp32 noise on the CPU, a function of the arguments alone."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{axis}/{name}".encode()).digest()[:16], "big")
    generator = np.random.Generator(np.random.Philox(key=key))
    return torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32))


def normalised(direction: Tensor, weight: Tensor) -> Tensor:
    """The direction with every row (everything behind dimension 0) scaled to the norm of the weight's row."""
    rows, own = direction.flatten(1), weight.flatten(1)
    scale = own.norm(dim=1, keepdim=True) / rows.norm(dim=1, keepdim=True).clamp_min(1e-10)
    return (rows * scale).view_as(direction)


def perturbed(model: Any) -> dict[str, torch.nn.Parameter]:
    """The parameters that move: matrices and beyond, a tied tensor once, under its first name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.dim() > 1}


def left_out(model: Any) -> dict[str, int]:
    """What does not move: parameters without rows (gains, biases), and rows of zeros (their norm is 0)."""
    moved = perturbed(model).values()
    return {
        "params_zeroed": sum(1 for _ in model.parameters()) - len(moved),
        "zero_rows": sum(int((weight.detach().flatten(1).norm(dim=1) == 0).sum()) for weight in moved),
    }


class Plane:
    """The weights ``w0 + a d1 + b d2`` of one model, in one flat buffer that the model's parameters look
    into.

    ``w0``, ``d1`` and ``d2`` are fp32 masters; nothing is ever added to an already moved weight, so there is
    no drift. The model's own tensors are never written to: ``on`` lends it the buffer and puts its tensors
    back.
    """

    def __init__(self, model: Any, seed: int) -> None:
        self.parameters = perturbed(model)
        device = next(model.parameters()).device
        weights = [parameter.detach().float() for parameter in self.parameters.values()]
        self.w0 = torch.cat([weight.flatten() for weight in weights])
        self.d1, self.d2 = (
            torch.cat(
                [
                    normalised(noise(seed, axis, name, weight.shape).to(device), weight).flatten()
                    for name, weight in zip(self.parameters, weights, strict=True)
                ]
            )
            for axis in (1, 2)
        )
        self._row, self._flat = torch.empty_like(self.w0), torch.empty_like(self.w0)
        self._row_a: float | None = None

    @contextmanager
    def on(self) -> Iterator[Plane]:
        """Lend the model the buffer; whatever happens inside, its own weights are back afterwards."""
        own = {name: parameter.data for name, parameter in self.parameters.items()}
        before = fingerprint(own)
        self._lent = torch.empty_like(self._flat, dtype=next(iter(own.values())).dtype)
        start = 0
        try:
            for parameter in self.parameters.values():
                count = parameter.numel()
                parameter.data = self._lent[start : start + count].view(parameter.shape)
                start += count
            self.move(0.0, 0.0)
            yield self
        finally:
            for name, parameter in self.parameters.items():
                parameter.data = own[name]
            after = fingerprint({name: parameter.data for name, parameter in self.parameters.items()})
        if after != before:
            raise RuntimeError("the model's weights were not restored after the landscape: its loss cannot be trusted")

    def move(self, a: float, b: float) -> None:
        """Set the lent weights to ``w0 + a d1 + b d2``."""
        if a != self._row_a:
            torch.add(self.w0, self.d1, alpha=a, out=self._row)
            self._row_a = a
        torch.add(self._row, self.d2, alpha=b, out=self._flat)
        self._lent.copy_(self._flat)


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """sha256 of the tensors' bytes, by name."""
    result = hashlib.sha256()
    for name, tensor in tensors.items():
        result.update(name.encode())
        result.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return result.hexdigest()
