"""Where do the keys and values of the text so far lie, and which models can forget the end of it?

Draft-and-verify writes more than it keeps. Here each layer has one block of memory with room for the whole run: new
positions are written into it and forgotten by counting back, so that nothing is copied as the text grows. (The cache
that transformers makes by default joins old and new in fresh memory at every call.)

A window of attention is the mask's business, so layers that attend to a window keep everything here and any end of
the text can be forgotten. The state of linear attention and state-space layers cannot be taken back (transformers
issue 49036: its `crop` leaves recurrent states as they are), so models with such layers are refused.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from selectkd_eval.errors import InputError


class RoomyLayer(DynamicLayer):
    """Keys and values ``(1, heads, length, d)`` of one layer, as views of memory with room for more."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.length = room, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take memory of the states' type and place; what was there is lost."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self._keys = key_states.new_empty((*key_states.shape[:2], self.room, key_states.shape[3]))
        self._values = value_states.new_empty((*value_states.shape[:2], self.room, value_states.shape[3]))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write new states behind the others; all states so far."""
        start, new = self.length, key_states.shape[2]
        end = start + new
        if not self.is_initialized or end > self.room:
            self._grow(end, key_states, value_states)
        self._keys.narrow(2, start, new).copy_(key_states)
        self._values.narrow(2, start, new).copy_(value_states)
        self.length = end
        self.keys, self.values = self._keys.narrow(2, 0, end), self._values.narrow(2, 0, end)
        return self.keys, self.values

    def _grow(self, needed: int, key_states: Tensor, value_states: Tensor) -> None:
        old = (self._keys, self._values) if self.is_initialized else ()
        self.room = max(self.room, needed if not old else 2 * needed)
        self.lazy_initialization(key_states, value_states)
        for new, before in zip((self._keys, self._values), old, strict=False):
            new.narrow(2, 0, self.length).copy_(before.narrow(2, 0, self.length))

    def get_seq_length(self) -> int:
        """Positions held."""
        return self.length

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` positions, as transformers counts them."""
        if self.is_initialized:  # a layer that borrows from another holds nothing
            self.length += tokens_to_remove


def room_for(model: Any, length: int) -> Cache:
    """A cache for ``length`` positions of one text (more make it grow).

    Raises InputError for a model whose cache cannot be taken back or that needs more than one text.
    """
    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"speculative decoding needs models that only decode, and this {config.model_type} also has an encoder: "
            "name another model"
        )
    layers = DynamicCache(config=config).layers
    # By their exact class: those derived from these keep more than keys and values.
    strange = {type(layer).__name__ for layer in layers} - {DynamicLayer.__name__, DynamicSlidingWindowLayer.__name__}
    if "past_key_values" not in inspect.signature(type(model).forward).parameters:
        strange = {"a state of its own"}
    if strange:
        raise InputError(
            f"the cache of a {config.model_type} model ({', '.join(sorted(strange))}) cannot be taken back after a "
            "refused draft token, so its text would be wrong: name a model that has attention in every layer"
        )
    return Cache(layers=[RoomyLayer(length) for _ in layers])
