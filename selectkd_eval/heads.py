"""What stands between a model's last hidden state and its logits, so that a loss can apply it piece by piece.

At a vocabulary of 152k the logits of one sequence weigh more than the model. `chunked` therefore works on hidden
states ``h`` and on the head alone:

    z = softcap * tanh(scale * (W h + b) / softcap)

Gemma caps its logits, Cohere and Granite scale them; a fused loss that forgets this trains another objective without
a sign of it. `head_of` reads the head from a Hugging Face model, PEFT adapters included, and refuses what it does
not know; `explains_head` checks on real tokens that hidden states and head give the model's own logits. No loss is
computed here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from selectkd_eval.errors import SetupError

# config attribute -> whether logits are multiplied by it (or divided). HyperCLOVA X multiplies where Granite divides.
_SCALES = {"logit_scale": True, "logits_scaling": False, "lm_head_multiplier": True, "output_multiplier": True}
_CAPS = ("final_logit_softcapping", "logits_soft_cap")

SLAB = 8192  # vocabulary entries of a weight gradient at a time


@dataclass(frozen=True)
class Head:
    """``z = softcap * tanh(scale * (W h + b) / softcap)``: weight ``(V, H)``, bias ``(V,)`` or None.

    Products are taken in the weight's precision (the hidden state is brought to it, never the weight), everything
    after them in fp32; fp64 stays.
    """

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0

    def cut(self, width: int | None = None, dtype: torch.dtype | None = None) -> Head:
        """The first `width` entries of the vocabulary as views (padded heads differ in size), in another precision."""
        weight = self.weight[:width].to(dtype or self.weight.dtype)
        return replace(self, weight=weight, bias=None if self.bias is None else self.bias[:width])

    def logits(self, hidden: Tensor, width: int | None = None) -> Tensor:
        """Logits ``(N, width)`` in fp32 for hidden states ``(N, H)``; autograd passes through."""
        head = self.cut(width)
        z = hidden.to(head.weight.dtype) @ head.weight.T
        z = z if z.dtype == torch.float64 else z.float()
        z = self.scale * (z if head.bias is None else z + head.bias.to(z.dtype))
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)

    @property
    def product_dtype(self) -> torch.dtype:
        """Half-precision products are kept in the fp32 they were summed in, where the device hands them out."""
        half = self.weight.dtype in (torch.bfloat16, torch.float16)
        return torch.float32 if half and sums_in_fp32(self.weight.device.type) else self.weight.dtype

    def products_(self, hidden: Tensor, out: Tensor) -> Tensor:
        """``h W^T`` into `out` ``(N, V)`` of `product_dtype`."""
        hidden = hidden.to(self.weight.dtype)
        if out.dtype != self.weight.dtype:
            return torch.mm(hidden, self.weight.T, out_dtype=out.dtype, out=out)
        return torch.mm(hidden, self.weight.T, out=out)

    def finish_(self, products: Tensor) -> Tensor:
        """From products in full precision to logits, in place: bias, scale, soft cap."""
        if self.bias is not None:
            products = products.add_(self.bias.to(products.dtype))
        if self.softcap is not None:
            return products.mul_(self.scale / self.softcap).tanh_().mul_(self.softcap)
        return products if self.scale == 1 else products.mul_(self.scale)

    def slope(self, logits: Tensor) -> Tensor | float:
        """``dz / d(W h + b)`` at these logits: a number where there is no soft cap."""
        if self.softcap is None:
            return float(self.scale)
        return (logits / self.softcap).square_().neg_().add_(1).mul_(self.scale)

    def pull_(self, gradient: Tensor, out: Tensor) -> Tensor:
        """``dL/dh`` into `out` ``(N, H)`` from ``dL/d(W h + b)`` ``(N, V)``, both in the weight's precision."""
        return torch.mm(gradient, self.weight, out=out)


def add_weight_gradient_(total: Tensor, gradient: Tensor, hidden: Tensor) -> None:
    """Add ``G^T h`` to `total` ``(V, H)`` for G ``(N, V)`` and h ``(N, H)`` of one precision.

    An fp32 total of half-precision products takes them a slab of the vocabulary at a time.
    """
    if total.dtype == gradient.dtype:
        total.addmm_(gradient.T, hidden)
        return
    for start in range(0, total.shape[0], SLAB):
        total[start : start + SLAB].add_(gradient[:, start : start + SLAB].T @ hidden)


@cache
def sums_in_fp32(device: str) -> bool:
    """Whether this torch can multiply bf16 matrices into an fp32 result on that kind of device."""
    small = torch.ones(16, 16, dtype=torch.bfloat16, device=device)
    try:
        out = torch.empty(16, 16, device=device)
        return bool(torch.mm(small, small, out_dtype=torch.float32, out=out).eq(16).all())
    except (RuntimeError, TypeError):  # NotImplementedError of a device without the kernel is a RuntimeError
        return False


def head_of(model: Any) -> Head:
    """The head of a causal language model, adapters or not.

    Raises SetupError where the head is not one linear layer: wrapped by an adapter, quantised, or absent.
    """
    base = _base(model)
    layer = base.get_output_embeddings()
    if layer is None:
        raise SetupError(
            f"{_name(base)} has no output embeddings, so no loss can be computed from it; take another model"
        )
    if hasattr(layer, "base_layer") or hasattr(layer, "modules_to_save"):
        raise SetupError(
            f"the head of {_name(base)} is wrapped by an adapter ({_name(layer)}), so its weight alone does not give "
            "the logits; leave lm_head out of the adapter's modules, or merge it first"
        )
    weight = getattr(layer, "weight", None)
    if not isinstance(layer, nn.Linear) or weight is None or not weight.is_floating_point() or weight.dim() != 2:
        raise SetupError(f"the head of {_name(base)} is a {_name(layer)}, not a plain linear layer; take another model")
    config = base.config.get_text_config()
    caps = [cap for name in _CAPS if (cap := getattr(config, name, None))]
    scale = 1.0
    for name, multiplied in _SCALES.items():
        if (value := getattr(config, name, None)) is not None:
            scale *= value if multiplied or config.model_type.startswith("hyperclovax") else 1 / value
    return Head(weight, layer.bias, caps[0] if caps else None, scale)


def decoder(model: Any) -> Any:
    """The part of a causal language model that ends at the final norm; injected adapters (LoRA) are part of it."""
    base = _base(model)
    return base.get_decoder()


def hidden_states(model: Any, **inputs: Any) -> Tensor:
    """Last hidden state after the final norm ``(B, T, H)``; the head is not run. `inputs` as for the model itself."""
    return decoder(model)(**{"use_cache": False, **inputs}).last_hidden_state


@torch.no_grad()
def explains_head(model: Any, ids: Tensor) -> bool:
    """Whether `head_of` and `hidden_states` give the model's own logits for ``(B, T)`` token ids, to rounding.

    False also where `head_of` refuses; its message is the reason.
    """
    try:
        head = head_of(model)
    except SetupError:
        return False
    training = {module for module in model.modules() if module.training}
    model.eval()
    try:
        own = model(input_ids=ids, use_cache=False).logits
        ours = head.logits(hidden_states(model, input_ids=ids).flatten(0, -2)).view(*ids.shape, -1)
    finally:
        for module in training:
            module.training = True
    if own.shape != ours.shape:
        return False
    # bf16 soft caps are rounded three times in the model and not at all here; fp32 sums differ by their order.
    rounding = max(4 * torch.finfo(own.dtype).eps, 1e-5)
    largest = own.abs().amax(-1, keepdim=True).to(ours.dtype)
    return bool(((ours - own).abs() <= rounding * largest).all())


def _base(model: Any) -> Any:
    """The Hugging Face model inside a PEFT model."""
    if not hasattr(model, "get_base_model"):
        return model
    if model.active_peft_config.is_prompt_learning:
        raise SetupError(
            "an adapter that learns a prompt changes the input of the decoder, which the loss does not know; use LoRA"
        )
    return model.get_base_model()


def _name(thing: object) -> str:
    return type(thing).__name__
