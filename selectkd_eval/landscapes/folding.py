"""Two models of one function, one landscape: norm gains are multiplied into the matrices that read them.

A gain ``g`` before a matrix ``W`` can be moved into it, ``W diag(g)``, without changing the function; filter
normalisation then sees other rows, and the same student looks up to nine times sharper. So before any direction is
drawn, every gain becomes 1 (0 where the model computes ``1 + w``, as Gemma) and its readers take it. Which matrices
read a norm is not looked up by name but watched on real tokens; afterwards the logits must be the same, otherwise that
gain is put back and the reason recorded.

A gain stays where no matrix reads it (the norms of queries and keys, norms behind a block) and where its reader is tied
to the embedding: there it cannot be traded against the matrix, so nothing is ambiguous. Folding is done in memory and
for the time of the measurement alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from selectkd_eval.directions import fingerprint

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # of the largest logit; experts may round into other routes
_LEFT_BEHIND = "its readers change the function"


@dataclass(frozen=True)
class Reader:
    """A matrix whose input is a norm's output. `dimension`: the one that runs over the input."""

    name: str
    weight: Tensor
    dimension: int


@dataclass
class Norm:
    """A norm's gain, by the module's name; `offset`: the module multiplies by ``1 + weight``."""

    name: str
    module: Any
    offset: bool
    readers: list[Reader] = field(default_factory=list)

    @property
    def gain(self) -> Tensor:
        """What the module multiplies by ``(H,)``."""
        weight = self.module.weight.detach()
        return 1 + weight if self.offset else weight


@contextmanager
def folded(model: Any, ids: Tensor) -> Iterator[dict[str, Any]]:
    """Fold the gains of `model` for the time of the block; ``(1, T)`` real token ids say who reads what.

    Yields what went where: ``{"folded": {norm: [readers]}, "left": {norm: reason}}``. The model's own tensors are set
    aside, not written to, and are back afterwards whatever happens; a RuntimeError says if they were not.
    """
    own = {name: parameter.data for name, parameter in model.named_parameters()}
    before = fingerprint(own)
    try:
        yield _fold_all(model, ids)
    finally:
        for name, parameter in model.named_parameters():
            parameter.data = own[name]
        after = fingerprint({name: parameter.data for name, parameter in model.named_parameters()})
    if after != before:
        raise RuntimeError("the model's weights were not restored after folding its norms: its loss cannot be trusted")


def described(facts: dict[str, Any]) -> str:
    """What was folded, in one line."""
    reasons: dict[str, int] = {}
    for reason in facts["left"].values():
        reasons[reason] = reasons.get(reason, 0) + 1
    left = "; ".join(f"{count} left: {reason}" for reason, count in reasons.items())
    return f"{len(facts['folded'])} norm gains folded into the matrices that read them" + (f"; {left}" if left else "")


@torch.no_grad()
def _fold_all(model: Any, ids: Tensor) -> dict[str, Any]:
    norms = _watched(model, ids)
    embedding = model.get_input_embeddings().weight.data_ptr()
    left: dict[str, str] = {}
    able: list[Norm] = []
    for norm in norms:
        if not norm.readers:
            left[norm.name] = "no matrix reads it"
        elif any(reader.weight.data_ptr() == embedding for reader in norm.readers):
            left[norm.name] = "its reader is tied to the embedding"
        elif getattr(norm.module, "bias", None) is not None and bool((norm.gain == 0).any()):
            left[norm.name] = "a gain of 0 stands before a bias"
        else:
            able.append(norm)
    reference = _logits(model, ids)
    saved = {norm.name: _fold(norm) for norm in able}
    if not _same(reference, _logits(model, ids)):
        # One norm that something else reads too must not cost the others their folding.
        for norm in able:
            _put_back(saved[norm.name])
        for norm in list(able):
            back = _fold(norm)
            if not _same(reference, _logits(model, ids)):
                _put_back(back)
                able.remove(norm)
                left[norm.name] = _LEFT_BEHIND
    return {"folded": {norm.name: [reader.name for reader in norm.readers] for norm in able}, "left": left}


def _watched(model: Any, ids: Tensor) -> list[Norm]:
    """Every norm with a gain, and the matrices that take its output, seen in one forward pass."""
    names = {module: name for name, module in model.named_modules()}
    norms = {
        module: Norm(name, module, _adds_one(module)) for module, name in names.items() if _is_norm(module) and name
    }
    outputs: list[tuple[Tensor, Norm]] = []  # kept alive, so that no other tensor takes their place in memory

    def note(module: Any, _: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            outputs.append((output, norms[module]))

    def look(module: Any, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        tensors = [value for value in (*inputs, *keywords.values()) if isinstance(value, Tensor)]
        if not tensors:
            return
        for output, norm in outputs:
            if tensors[0].data_ptr() == output.data_ptr() and tensors[0].shape[-1] == output.shape[-1]:
                known = {reader.name for reader in norm.readers}
                norm.readers += [reader for reader in _readers(module, names[module]) if reader.name not in known]

    hooks = [module.register_forward_hook(note) for module in norms]
    hooks += [
        module.register_forward_pre_hook(look, with_kwargs=True)
        for module, name in names.items()
        if _readers(module, name)
    ]
    try:
        _logits(model, ids)
    finally:
        for hook in hooks:
            hook.remove()
    return list(norms.values())


def _readers(module: Any, name: str) -> list[Reader]:
    """The matrices of a module that are multiplied with its input: linear layers, routers, experts in one tensor."""
    if isinstance(module, nn.Linear):
        return [Reader(f"{name}.weight", module.weight, 1)]
    experts = getattr(module, "gate_up_proj", None)
    if isinstance(experts, nn.Parameter) and experts.dim() == 3:
        return [Reader(f"{name}.gate_up_proj", experts, 1 if getattr(module, "is_transposed", False) else 2)]
    weight, kind = getattr(module, "weight", None), type(module).__name__
    if (kind == "Conv1D" or "Router" in kind) and isinstance(weight, nn.Parameter) and weight.dim() == 2:
        return [Reader(f"{name}.weight", weight, 0 if kind == "Conv1D" else 1)]
    return []


def _is_norm(module: Any) -> bool:
    weight = getattr(module, "weight", None)
    return "norm" in type(module).__name__.lower() and isinstance(weight, nn.Parameter) and weight.dim() == 1


@torch.no_grad()
def _adds_one(module: Any) -> bool:
    """Whether a weight of 0 lets the input through: the module multiplies by ``1 + weight``."""
    own = module.weight.data
    probe = torch.linspace(-1, 1, own.numel(), dtype=own.dtype, device=own.device).reshape(1, 1, -1)
    try:
        module.weight.data = torch.zeros_like(own)
        out = module(probe)
    except (TypeError, RuntimeError):  # a norm that wants more than its input (a gate, a group) has no plain gain
        return False
    finally:
        module.weight.data = own
    bias = getattr(module, "bias", None)
    return bool(((out if bias is None else out - bias) != 0).any())


def _fold(norm: Norm) -> list[tuple[Tensor, Tensor]]:
    """Move the gain into its readers; returns what the parameters looked at before."""
    gain, module = norm.gain, norm.module
    changed = [module.weight, *(reader.weight for reader in norm.readers)]
    if (bias := getattr(module, "bias", None)) is not None:
        changed.append(bias)
    before = [(parameter, parameter.data) for parameter in changed]
    for reader in norm.readers:
        shape = [1] * reader.weight.dim()
        shape[reader.dimension] = -1
        reader.weight.data = reader.weight.data * gain.view(shape)
    if bias is not None:
        bias.data = bias.data / gain
    module.weight.data = torch.full_like(gain, 0.0 if norm.offset else 1.0)
    return before


def _put_back(before: list[tuple[Tensor, Tensor]]) -> None:
    for parameter, data in before:
        parameter.data = data


def _logits(model: Any, ids: Tensor) -> Tensor:
    return torch.as_tensor(model(input_ids=ids, use_cache=False).logits)


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(((a - b).abs().max() <= _TOLERANCE.get(a.dtype, 2e-2) * a.abs().max()).item())
