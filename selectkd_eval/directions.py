"""Along which directions is a landscape drawn? Filter-normalised noise that is the same for every model
compared.

Li et al. (arXiv 1712.09913) as it applies to transformers: Gaussian noise per parameter tensor, each output
row scaled to the norm of the weights' own row; norm gains and biases untouched. The noise depends on
the seed, the axis and the parameter's *name*, through a counter-based generator (Philox) on the CPU in fp32,
not on one stream over all parameters: so neither the order of the parameters, nor the device, nor an extra
tensor in one of the models changes what the others get.

Filter normalisation does not undo every reparametrisation: gains of a norm moved into the next matrix with
unequal factors, or adapters (A, B) against (A G, G^-1 B), change the picture of an unchanged function. LoRA
students are therefore merged before, and gains folded (`landscapes.folding`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

RULES = (
    "noise N(0, 1) from Philox(sha256(seed/axis/parameter name)), CPU fp32; scaled per output row to the weights' "
    "row norm; gains, biases and buffers untouched; tied tensors once; LoRA merged; norm gains folded first"
)


def noise(seed: int, axis: int, name: str, shape: torch.Size) -> Tensor:
    """Standard normal fp32 noise on the CPU, a function of the arguments alone."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{axis}/{name}".encode()).digest()[:16], "big")
    generator = np.random.Generator(np.random.Philox(key=key))
    return torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32))


def normalised(direction: Tensor, weight: Tensor, inputs: tuple[int, ...] | None = None) -> Tensor:
    """The direction with every output row scaled to the norm of the weight's row.

    `inputs`: the dimensions that a row runs over; by default all behind the first.
    """
    over = tuple(range(1, weight.dim())) if inputs is None else inputs
    own, drawn = (torch.linalg.vector_norm(x, dim=over, keepdim=True) for x in (weight, direction))
    return direction * (own / drawn.clamp_min(1e-10))


def perturbed(model: Any, moved: str = "all") -> dict[str, nn.Parameter]:
    """The parameters that move: matrices and beyond, a tied tensor once, under its first name.

    `moved="blocks"` leaves embeddings and the output layer. Biases that are kept per expert have two dimensions and
    stay all the same.
    """
    outer: set[int] = set()
    if moved == "blocks":
        layers = [module for module in model.modules() if isinstance(module, nn.Embedding)]
        layers += [layer for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer]
        outer = {parameter.data_ptr() for layer in layers for parameter in layer.parameters()}
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or name.endswith("bias") or {parameter.data_ptr()} & (outer | seen):
            continue
        seen.add(parameter.data_ptr())
        found[name] = parameter
    return found


def row_dimensions(model: Any) -> dict[str, tuple[int, ...]]:
    """Over which dimensions an output row of every parameter runs.

    Behind the first for matrices and convolutions; the last for experts kept in one tensor ``[E, out, in]``; the
    transposed layouts (GPT-2's ``Conv1D``, experts ``[E, in, out]``) the other way round.
    """
    found = {}
    for prefix, module in model.named_modules():
        convolution = type(module).__module__.startswith("torch.nn.modules.conv")
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() < 2:
                continue
            if parameter.dim() == 3 and not convolution:
                over: tuple[int, ...] = (1,) if getattr(module, "is_transposed", False) else (2,)
            elif type(module).__name__ == "Conv1D":
                over = (0,)
            else:
                over = tuple(range(1, parameter.dim()))
            found[f"{prefix}.{name}" if prefix else name] = over
    return found


def left_out(model: Any, moved: str = "all") -> dict[str, int]:
    """What does not move: parameters without rows (gains, biases) or outside the blocks, and rows of zeros."""
    chosen, over = perturbed(model, moved), row_dimensions(model)
    norms = [torch.linalg.vector_norm(w.detach(), dim=over[name]) for name, w in chosen.items()]
    return {
        "params_zeroed": len({parameter.data_ptr() for parameter in model.parameters()}) - len(chosen),
        "zero_rows": sum(int((norm == 0).sum()) for norm in norms),
    }


class Plane:
    """The weights ``w0 + a d1 + b d2`` of one model, in one flat buffer that the model's parameters look
    into.

    ``w0``, ``d1`` and ``d2`` are full-precision masters; nothing is ever added to an already moved weight, so there is
    no drift. The model's own tensors are never written to: ``on`` lends it the buffer and puts its tensors
    back. `dtype`: arithmetic of the model while it is lent; its own by default.
    """

    def __init__(self, model: Any, seed: int, moved: str = "all", dtype: torch.dtype | None = None) -> None:
        self.model, self.seed, self.dtype = model, seed, dtype
        self.parameters = perturbed(model, moved)
        self._rows = row_dimensions(model)
        first = next(iter(self.parameters.values()))
        self.master = torch.promote_types(first.dtype, torch.float32)
        self.w0 = self.flat({name: parameter.detach() for name, parameter in self.parameters.items()})
        self._row, self._flat = self.w0, torch.empty_like(self.w0)
        self._row_a: float | None = None

    @cached_property
    def d1(self) -> Tensor:
        """The first direction, flat; drawn when the model first moves along it."""
        return self.direction(self.seed, 1)

    @cached_property
    def d2(self) -> Tensor:
        """The second direction."""
        return self.direction(self.seed, 2)

    @cached_property
    def _sum(self) -> Tensor:
        return torch.empty_like(self.w0)

    def flat(self, tensors: dict[str, Tensor]) -> Tensor:
        """Tensors of the moving parameters, end to end in the masters' precision."""
        return torch.cat([tensors[name].to(self.master).flatten() for name in self.parameters])

    def direction(self, seed: int, axis: int) -> Tensor:
        """One filter-normalised direction, flat; drawn from the masters, so that a moved model has the same.

        Tensors are drawn side by side, on as many threads as torch has: each has a generator of its own.
        """
        direction, start = torch.empty_like(self.w0), 0
        places: list[tuple[str, int]] = []
        for name, parameter in self.parameters.items():
            places.append((name, start))
            start += parameter.numel()

        def fill(place: tuple[str, int]) -> None:
            name, first = place
            shape = self.parameters[name].shape
            part = slice(first, first + shape.numel())
            weight = self.w0[part].view(shape)
            direction[part] = normalised(noise(seed, axis, name, shape).to(weight), weight, self._rows[name]).flatten()

        with ThreadPoolExecutor(torch.get_num_threads()) as workers:
            list(workers.map(fill, places))
        return direction

    @contextmanager
    def on(self) -> Iterator[Plane]:
        """Lend the model the buffer; whatever happens inside, its own weights are back afterwards."""
        every = list(self.model.parameters())
        aliases = dict(self.model.named_parameters(remove_duplicate=False))
        own = {name: parameter.data for name, parameter in aliases.items()}
        before = fingerprint(own)
        dtype = self.dtype or next(iter(self.parameters.values())).dtype
        # In the masters' own precision the model looks into the sum itself, and nothing is copied.
        self._lent = self._flat if dtype == self._flat.dtype else torch.empty_like(self._flat, dtype=dtype)
        try:
            self._lend(every, dtype)
            self._row_a = None
            self.move(0.0, 0.0)
            yield self
        finally:
            for name, parameter in aliases.items():
                parameter.data = own[name]
            after = fingerprint({name: parameter.data for name, parameter in aliases.items()})
        if after != before:
            raise RuntimeError("the model's weights were not restored after the landscape: its loss cannot be trusted")

    def move(self, a: float, b: float) -> None:
        """Set the lent weights to ``w0 + a d1 + b d2``."""
        if a != self._row_a:
            self._row = self.w0 if a == 0 else torch.add(self.w0, self.d1, alpha=a, out=self._sum)
            self._row_a = a
        if b == 0:
            self._flat.copy_(self._row)
        else:
            torch.add(self._row, self.d2, alpha=b, out=self._flat)
        if self._lent is not self._flat:
            self._lent.copy_(self._flat)

    def _lend(self, every: list[nn.Parameter], dtype: torch.dtype) -> None:
        """Moving parameters look into the buffer, tied ones together; the others are brought to the same precision."""
        places: dict[int, tuple[int, torch.Size]] = {}
        start = 0
        for parameter in self.parameters.values():
            places[parameter.data_ptr()] = (start, parameter.shape)
            start += parameter.numel()
        for parameter in every:
            if parameter.data_ptr() in places:
                start, shape = places[parameter.data_ptr()]
                parameter.data = self._lent[start : start + shape.numel()].view(shape)
            elif parameter.is_floating_point() and self.dtype is not None:
                parameter.data = parameter.data.to(dtype)


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """sha256 of the tensors' bytes, by name."""
    result = hashlib.sha256()
    for name, tensor in tensors.items():
        result.update(name.encode())
        result.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return result.hexdigest()
