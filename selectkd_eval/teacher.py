"""What does a frozen model make of these tokens? Its last hidden states where they predict response tokens.

The teacher p of every recipe, and any other model that only speaks and does not learn (AdaSPEC's reference). Its head
is not run here: the loss does that chunk by chunk (`chunked`), or at once where the vocabulary is small. Rows come from
its forward pass or, for text of the training set, from disk (`teacher_cache`).

It does not know the student, and it changes nothing about the text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selectkd_eval.heads import decoder, head_of, hidden_states
from selectkd_eval.teacher_cache import TeacherCache, Text


class Teacher:
    """A frozen causal language model, on its device already: `head`, and the hidden rows its head reads.

    `forwards` counts the tokens that went through the model, padding included. `autocast` runs it in bf16 mixed
    precision, as the student is in `train --bf16`.
    """

    def __init__(self, model: Any, *, cache: TeacherCache | None = None, autocast: bool = False) -> None:
        self.head = head_of(model)
        self.autocast = autocast
        self.forwards = 0
        self._model: Any = model.eval().requires_grad_(False)
        self._cache: TeacherCache | None = None
        if cache is not None:
            self.use(cache)

    @property
    def width(self) -> int:
        """Entries of a hidden row, H."""
        return int(self.head.weight.shape[1])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the rows: that of the head's weight, which is what the head would make of them anyway."""
        return self.head.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the rows are needed: where the head is."""
        return self.head.weight.device

    @property
    def cache(self) -> TeacherCache | None:
        """The rows kept on disk, if any are."""
        return self._cache

    def use(self, cache: TeacherCache) -> None:
        """Read rows from `cache` where it has them, and write there what it lacks."""
        if (cache.width, cache.dtype) != (self.width, self.dtype):
            raise ValueError(f"a cache of {cache.width} x {cache.dtype} is none of {self.width} x {self.dtype}")
        self._cache = cache

    def keep_in(self, root: Path, fingerprint: str, examples: Sequence[Text]) -> TeacherCache:
        """Open the cache of this model on `examples` below `root` and use it; errors as `TeacherCache.open`.

        `examples` is the training set: what the batches' `index` counts. `fingerprint` says which model this is.
        """
        who = f"{fingerprint} autocast" if self.autocast else fingerprint
        cache = TeacherCache.open(root, fingerprint=who, examples=examples, width=self.width, dtype=self.dtype)
        self.use(cache)
        return cache

    @torch.no_grad()
    def rows(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The hidden rows ``(N, H)`` of a micro-batch's response tokens, in the order of
        ``response_mask[:, 1:].nonzero()``, on the head's device.

        `batch`: `input_ids`, `response_mask` and `segment` ``(B, T)``, padded on the right; `index` ``(S,)``, the place
        of each sequence in the training set or -1; with `position_ids` ``(1, T)`` several sequences stand packed in one
        row. Rows of the training set are equal on every visit to the bit with a cache, and to rounding without one:
        matrix products round by the shape of their batch.
        """
        indices: list[int] = batch["index"].tolist()
        missing = [number for number, index in enumerate(indices) if not self._has(index)]
        if not missing and self._cache is not None:
            return self._read(indices)
        whole = len(missing) == len(indices) or "position_ids" in batch
        chosen = list(range(len(indices))) if whole else missing
        parts = self._run(batch, chosen)
        for number in missing:
            if self._cache is not None and indices[number] >= 0 and not self._cache.has(indices[number]):
                self._cache.store(indices[number], parts[number])
        for number, index in enumerate(indices):
            if number not in parts:
                parts[number] = self._read([index])
        return torch.cat([parts[number] for number in range(len(indices))])

    def flush(self) -> None:
        """Make what the cache got so far last."""
        if self._cache is not None:
            self._cache.flush()

    def drop_backbone(self) -> None:
        """Free everything but the head, once the cache holds all rows; text that it lacks is an error from then on."""
        if self._cache is None or not self._cache.complete:
            raise ValueError("the teacher is still needed: its cache does not hold the whole training set")
        if self._model is not None:
            # Whoever else holds the model holds no memory with it either; the head keeps a weight it shares with the
            # embedding.
            decoder(self._model).to("meta")
            self._model = None

    def _has(self, index: int) -> bool:
        return self._cache is not None and index >= 0 and self._cache.has(index)

    def _read(self, indices: Sequence[int]) -> Tensor:
        assert self._cache is not None
        pin = self.device.type == "cuda"
        return self._cache.rows(indices, pin=pin).to(self.device, non_blocking=pin)

    def _run(self, batch: Mapping[str, Tensor], chosen: Sequence[int]) -> dict[int, Tensor]:
        """The rows of the chosen sequences by a forward pass, by number; packed, all sequences are chosen."""
        if self._model is None:
            raise ValueError("the teacher was dropped, and its cache lacks a text of this batch")
        lines = slice(None) if "position_ids" in batch else torch.tensor(chosen, device=batch["input_ids"].device)
        # No attention mask: padding stands on the right, attention is causal, and padding carries no loss. Without a
        # mask the kernels take their fast causal path; packed sequences are told apart by their positions.
        inputs = {name: batch[name][lines] for name in ("input_ids", "position_ids") if name in batch}
        inputs = {name: tensor.to(self.device, non_blocking=True) for name, tensor in inputs.items()}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            hidden = hidden_states(self._model, **inputs, use_cache=False)
        self.forwards += inputs["input_ids"].numel()
        kept = batch["response_mask"][lines, 1:].to(self.device)
        counts = torch.bincount(batch["segment"][:, 1:][batch["response_mask"][:, 1:]], minlength=len(batch["index"]))
        rows = hidden[:, :-1][kept].to(self.dtype)
        return dict(zip(chosen, rows.split([int(counts[number]) for number in chosen]), strict=True))
