"""The one loss that every student of a landscape is measured by: plain forward KL(p || q) on one fixed token batch.

Each method's own training loss would not do for the paper's Figure 4b: a gate that drops tokens lowers the number
without moving the model. The teacher is asked once. What it said is kept as probabilities where they fit, otherwise as
its last hidden states, from which its head makes the same probabilities again a chunk at a time.

    KL(p || q) = sum p log p - sum p log q

with the first sum kept. A point of the landscape costs the student's forward pass, one product with its head at the
response positions, one fused log-softmax and one reduction, a chunk of positions at a time. (With log q spelled out as
z - logsumexp(z) the product <p, z> is no faster, and in fp32 it is off by 1e-3 nats at 32,000 entries: matrix kernels
add up in one go what a reduction adds up in a tree.) Nothing here moves weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from selectkd_eval.directions import fingerprint
from selectkd_eval.errors import SetupError
from selectkd_eval.heads import Head, explains_head, head_of, hidden_states
from selectkd_eval.teacher_forced import Batch
from selectkd_eval.verifiers import top_k

WORDS = "forward KL(p || q), unweighted, mean over response tokens"
# Elements of one chunk of logits: a CPU's cache holds the few tensors made of it, a GPU should outlast its launches.
CHUNK = {"cpu": 2**22, "cuda": 2**26}


class Chunk(NamedTuple):
    """Some response positions of one batch: the teacher's p ``(C, V)`` and sum p log p ``(C,)``."""

    p: Tensor
    negentropy: Tensor


class CommonLoss:
    """The summed forward KL over all response tokens of `text`, and metrics beside it, for any student.

    `metrics`: tar (greedy Top-k acceptance), alpha (1 - TV), accuracy (the likeliest token is the text's).
    """

    def __init__(
        self,
        teacher: Any,
        text: Sequence[Batch],
        vocabulary: int,
        *,
        metrics: Sequence[str] = (),
        k: int = 5,
        cache_mb: float = 2048,
    ) -> None:
        self.text, self.vocabulary, self.metrics, self.k = list(text), vocabulary, tuple(metrics), k
        # No mask where nothing is padded: attention is then plainly causal, which is faster. Looked at once, because
        # looking waits for the device.
        self.masks = [None if bool(batch.attention.all()) else batch.attention for batch in self.text]
        self.n_tokens = sum(len(batch.row) for batch in self.text)
        device = self.text[0].ids.device.type
        self.chunk = max(1, CHUNK.get(device, CHUNK["cuda"]) // vocabulary)
        self._whole_head: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
        self._teacher = _Teacher(teacher, self, self.n_tokens * vocabulary * 4 <= cache_mb * 2**20)

    @property
    def kept(self) -> str:
        """What is kept of the teacher, in words."""
        return self._teacher.kept

    @torch.no_grad()
    def sums(self, model: Any) -> dict[str, float]:
        """``loss_sum`` and ``METRIC_sum`` of every metric, over all response tokens: what a point's row holds."""
        total = torch.zeros(1 + len(self.metrics), dtype=torch.float64, device=self.text[0].ids.device)
        for index, batch in enumerate(self.text):
            for at, z in self._student(model, index):
                chunk = self._teacher.chunk(index, at)
                total[0] += divergence(chunk, z).sum(dtype=torch.float64)
                for place, values in enumerate(self._metrics(chunk, z, batch.targets[at]), start=1):
                    total[place] += values.sum(dtype=torch.float64)
        return dict(zip((f"{name}_sum" for name in ("loss", *self.metrics)), total.tolist(), strict=True))

    def loss(self, model: Any) -> float:
        """The mean loss per response token."""
        return self.sums(model)["loss_sum"] / self.n_tokens

    def means(self, model: Any) -> Iterator[Tensor]:
        """The mean loss in differentiable summands, one per batch, so that each can be differentiated and let go."""
        for index in range(len(self.text)):
            yield (
                torch.stack(
                    [divergence(self._teacher.chunk(index, at), z).sum() for at, z in self._student(model, index)]
                ).sum()
                / self.n_tokens
            )

    def mean(self, model: Any) -> Tensor:
        """The differentiable mean loss; the graph of the whole text is held at once."""
        return torch.stack(list(self.means(model))).sum()

    def _metrics(self, chunk: Chunk, z: Tensor, targets: Tensor) -> Iterator[Tensor]:
        for name in self.metrics:
            if name == "tar":
                yield top_k(chunk.p, z, self.k)  # compares ranks only, and those of p are those of log p
            elif name == "alpha":
                yield 1 - (chunk.p - z.softmax(-1)).abs().sum(-1) / 2
            else:
                yield z.argmax(-1) == targets

    def _student(self, model: Any, index: int) -> Iterator[tuple[slice, Tensor]]:
        """The student's logits ``(C, V)`` in full precision, a chunk of response positions at a time."""
        if self.split(model):
            head, hidden = head_of(model), self.hidden(model, index)
            for at in self.slices(len(hidden)):
                yield at, head.logits(hidden[at], self.vocabulary)
        else:
            logits = self.logits(model, index)
            for at in self.slices(len(logits)):
                yield at, full(logits[at])

    def hidden(self, model: Any, index: int) -> Tensor:
        """Last hidden states ``(N, H)`` at the positions of one batch that predict response tokens."""
        batch = self.text[index]
        states = hidden_states(model, input_ids=batch.ids, attention_mask=self.masks[index])
        return states[batch.row, batch.position]

    def logits(self, model: Any, index: int) -> Tensor:
        """The model's own logits ``(N, vocabulary)`` there, in its own precision."""
        batch = self.text[index]
        used, place = batch.position.unique(return_inverse=True)
        inputs = {"input_ids": batch.ids, "attention_mask": self.masks[index], "logits_to_keep": used}
        logits = model(**inputs, use_cache=False).logits
        return torch.as_tensor(logits[batch.row, place, : self.vocabulary])

    def split(self, model: Any) -> bool:
        """Whether hidden states and head give this model's own logits, tried once per model on real tokens."""
        if model not in self._whole_head:
            self._whole_head[model] = explains_head(model, self.text[0].ids[:1, :16])
        return self._whole_head[model]

    def slices(self, count: int) -> Iterator[slice]:
        """Positions that are looked at together."""
        for start in range(0, count, self.chunk):
            yield slice(start, min(start + self.chunk, count))


class _Teacher:
    """What the teacher said at every response position."""

    def __init__(self, model: Any, loss: CommonLoss, fits: bool) -> None:
        self.vocabulary = loss.vocabulary
        self.head: Head | None = None
        self.cached: list[Chunk] = []
        self.hidden: list[Tensor] = []
        if not fits and not loss.split(model):
            raise SetupError(
                f"the teacher's log-probabilities take {loss.n_tokens * loss.vocabulary * 4 / 2**20:,.0f} MB, and its "
                "hidden states do not explain its logits: give a larger --cache-mb, or fewer --sequences"
            )
        with torch.no_grad():
            for index in range(len(loss.text)):
                if fits:
                    logits = loss.logits(model, index)
                    self.cached.append(_join([described(full(logits[at])) for at in loss.slices(len(logits))]))
                else:
                    self.hidden.append(loss.hidden(model, index))
        if not fits:
            self.head = head_of(model)
            self.head = Head(self.head.weight.detach(), self.head.bias, self.head.softcap, self.head.scale)

    @property
    def kept(self) -> str:
        return "hidden states" if self.cached == [] else "log-probabilities"

    def chunk(self, index: int, at: slice) -> Chunk:
        """The teacher's side of the positions `at` of one batch."""
        if self.head is None:
            return Chunk(*(value[at] for value in self.cached[index]))
        with torch.no_grad():
            return described(self.head.logits(self.hidden[index][at], self.vocabulary))


def described(z: Tensor) -> Chunk:
    """The teacher's side from its logits ``(C, V)``."""
    log_p = z.log_softmax(-1)
    p = log_p.exp()
    # p log p is 0 where p is: an entry at minus infinity must not become NaN.
    return Chunk(p, (p * log_p.clamp_min(torch.finfo(p.dtype).min)).sum(-1))


def divergence(chunk: Chunk, z: Tensor) -> Tensor:
    """``KL(p || q)`` per position ``(C,)`` from the student's logits ``(C, V)``."""
    p, log_q = chunk.p.to(z.dtype), z.log_softmax(-1)
    products = log_q * p if log_q.requires_grad else log_q.mul_(p)
    return chunk.negentropy - products.sum(-1)


def teacher_digest(model: Any, tokens: str, vocabulary: int) -> str:
    """sha256 of what the teacher's answers are made of: its weights, the tokens and the common vocabulary.

    Not of the answers themselves: their last bits differ between devices, and shares measured on several must fit.
    """
    weights = fingerprint(dict(model.named_parameters()))
    return hashlib.sha256(f"{weights}/{tokens}/{vocabulary}".encode()).hexdigest()


def full(z: Tensor) -> Tensor:
    """Half precision as fp32; fp32 and fp64 as they are."""
    return z if z.dtype == torch.float64 else z.float()


def _join(chunks: Sequence[Chunk]) -> Chunk:
    return Chunk(*(torch.cat(values) for values in zip(*chunks, strict=True)))
