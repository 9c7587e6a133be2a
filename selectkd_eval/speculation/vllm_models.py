"""Which files does vLLM load? The model's own directory, or a copy that its kernels can read.

vLLM takes no adapters here, so an adapter is merged (`backends.vllm_engine`). Its attention kernels know heads from 32
wide on, and the small models shipped with this package have narrower ones: their heads are padded with zeros. The
padded model has the same logits up to rounding, for the padding changes no product, the query weights make up for the
other scale, and the base of the rotary positions is chosen so that every frequency stays what it was.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from selectkd_eval.backends.vllm_engine import model_directory
from selectkd_eval.pair import load_model, locate

NARROWEST = 32  # the smallest head among vLLM's kernels, on a CPU and on a GPU


class Files(NamedTuple):
    """`where` vLLM is to look, `heads` what was padded ("" if nothing), `holder` the temporary directory, if any."""

    where: Path | str
    heads: str
    holder: tempfile.TemporaryDirectory[str] | None


def files_for(model: str, head: bool = False) -> Files:
    """The directory or hub name that vLLM is to load for a model's name; an EAGLE `head` is taken as it is."""
    if head:
        return Files(locate(model), "", None)
    where, holder = model_directory(model)
    if not isinstance(where, Path) or not (width := _too_narrow(where)):
        return Files(where, "", holder)
    if holder is not None:
        holder.cleanup()
    loaded = load_model(model, "cpu", None)
    holder = tempfile.TemporaryDirectory(prefix="selectkd-padded-")
    padded(loaded.model, NARROWEST).save_pretrained(holder.name)
    loaded.tokenizer.save_pretrained(holder.name)
    return Files(Path(holder.name), f"padded from {width} to {NARROWEST}", holder)


def padded(model: Any, width: int) -> Any:
    """A LLaMA model whose heads are `width` wide and whose logits are those of `model`.

    Rotary positions turn dimension i of a head together with i + d/2, by theta^(-2i/d): the halves are padded each for
    itself, and theta^(width/d) is the base that gives i < d/2 the same angles among `width` dimensions.
    """
    narrow = _head_width(model.config)
    config = copy.deepcopy(model.config)
    config.head_dim = width
    rope = dict(config.rope_parameters)
    config.rope_parameters = {**rope, "rope_theta": rope["rope_theta"] ** (width / narrow)}
    wide = type(model)(config).to(model.dtype)
    weights = model.state_dict()
    for name, weight in weights.items():
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            # The kernels divide by the root of the width that they see.
            factor = (width / narrow) ** 0.5 if "q_proj" in name else 1.0
            weights[name] = _pad_rows(weight * factor, narrow, width)
        elif name.endswith("o_proj.weight"):
            weights[name] = _pad_rows(weight.T, narrow, width).T.contiguous()
    wide.load_state_dict(weights)
    wide.generation_config = model.generation_config
    return wide.eval()


def _pad_rows(weight: Any, narrow: int, width: int) -> Any:
    """``(heads * narrow, n)`` to ``(heads * width, n)``: zeros behind each half of a head."""
    halves = weight.view(-1, 2, narrow // 2, weight.shape[1])
    wide = halves.new_zeros(halves.shape[0], 2, width // 2, weight.shape[1])
    wide[:, :, : narrow // 2] = halves
    return wide.reshape(-1, weight.shape[1])


def _too_narrow(where: Path) -> int:
    """The width of a model's heads when vLLM's kernels lack it and `padded` knows how to mend it, else 0."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(where)
    if config.model_type != "llama" or getattr(config, "attention_bias", False):
        return 0
    if (config.rope_parameters or {}).get("rope_type", "default") != "default":
        return 0
    width = _head_width(config)
    return width if width < NARROWEST and width % 2 == 0 else 0


def _head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
