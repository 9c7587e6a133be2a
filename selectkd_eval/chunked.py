"""The loss of `loss.token_loss` without the logits: from hidden states and the two heads, a chunk of tokens at a time.

At 152k entries one fp32 logit tensor of 8,192 tokens takes 4.6 GiB, and plain autograd keeps six to eight of them. Here
a chunk's products with both heads go into two buffers that every chunk uses again; log-probabilities, gate, statistics,
divergences and their analytic gradients are made from them, and the gradient goes through the head at once. Nothing is
computed twice: two products with the heads, one with the gradient (two where the head is trained). ``backward`` only
multiplies by what comes from above.

Inside a chunk the elementwise work goes by blocks of few rows, which stay in a CPU's cache (`blocks`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from selectkd_eval import blocks
from selectkd_eval.errors import InputError
from selectkd_eval.heads import Head, add_weight_gradient_
from selectkd_eval.loss import described, require_targets, temperatures
from selectkd_eval.objective import LossSpec
from selectkd_eval.responses import Responses
from selectkd_eval.token_stats import Rows, TokenStats, Weighed, stats_of, summed

# Bytes of the two product buffers together, and elements of a block's rows. On a CPU a row of 152k entries and the
# few tensors made of it just fit the second-level cache; on a GPU a block should outlast its launches.
CHUNK_BYTES = {"cpu": 256 * 2**20, "cuda": 320 * 2**20}
BLOCK_ELEMENTS = {"cpu": 2**17, "cuda": 2**22}


def chunked_loss(
    hidden_p: Tensor | None,
    head_p: Head | None,
    hidden_q: Tensor,
    head_q: Head,
    rows: Rows,
    spec: LossSpec,
    denominator: float | None = None,
    chunk: int = 0,
    *,
    watch: Responses | None = None,
) -> tuple[Tensor, TokenStats]:
    """The loss of N response tokens and its statistics, as `loss.token_loss` on the logits of the same hidden states.

    ``hidden_p``: teacher's ``(N, H_p)`` or None; ``hidden_q``: student's ``(N, H_q)``; heads of different vocabulary
    sizes are cut to the common part. ``denominator``: the normaliser's count for the whole update; by default these
    tokens' own. ``chunk``: tokens at a time; 0 chooses from vocabulary, precision and device. Gradients reach
    ``hidden_q`` and the weight and bias of ``head_q`` where they ask for one; a half-precision weight's gradient is
    summed over the chunks in its own precision, as over micro-batches. ``rows`` need their plan where the
    specification asks for one: these tokens have been looked at before (`survey`).
    """
    if (hidden_p is None or head_p is None) and spec.needs_teacher:
        raise InputError(f"the objective {described(spec)} asks a teacher, but no teacher was given; pass --teacher")
    require_targets(rows, *(head.weight.T for head in (head_p, head_q) if head is not None))
    assert rows.plan is not None or not spec.needs_reading, "the update must be surveyed before its loss"
    leaves = hidden_q, head_q.weight, head_q.bias
    # The same tensors would be said to need gradients where nobody will ask for any.
    hidden, weight, bias = (torch.is_grad_enabled() and x is not None and x.requires_grad for x in leaves)
    sweep = _Sweep(hidden_p, head_p, hidden_q, head_q, rows.targets.numel(), chunk)
    objective = _Objective(sweep, rows, spec, watch is not None, (hidden, weight, bias))
    with torch.autocast(hidden_q.device.type, enabled=False):
        total = _Gradient.apply(*leaves, objective)
    stats = stats_of(summed(rows, spec, objective.divergence, objective.weighed), rows, watch is not None)
    if watch is not None:
        watch.take(rows, spec.k, objective.weighed)
    return total / (denominator or stats.denominator(spec.normaliser)), stats


class _Products:
    """Products of hidden states ``(N, H)`` with one head, for one chunk of tokens at a time, in one buffer."""

    def __init__(self, hidden: Tensor, head: Head) -> None:
        self.hidden, self.head = hidden.detach(), head
        self.buffer = hidden.new_empty(0)

    def reserve(self, chunk: int) -> None:
        """Make room for `chunk` rows of products."""
        self.buffer = self.hidden.new_empty(chunk, self.head.weight.shape[0], dtype=self.head.product_dtype)

    def fill(self, start: int, stop: int) -> None:
        """The products of the tokens from `start` to `stop`."""
        self.head.products_(self.hidden[start:stop], self.buffer[: stop - start])


class _Sweep:
    """One way through N tokens with both heads: chunks of products, and in each chunk blocks of rows."""

    def __init__(
        self, hidden_p: Tensor | None, head_p: Head | None, hidden_q: Tensor, head_q: Head, tokens: int, chunk: int
    ) -> None:
        width = head_q.weight.shape[0] if head_p is None else min(head_q.weight.shape[0], head_p.weight.shape[0])
        self.student = _Products(hidden_q, _prepared(head_q, width))
        self.teacher = None
        if hidden_p is not None and head_p is not None:
            self.teacher = _Products(hidden_p, _prepared(head_p, width))
        self.tokens, self.width = tokens, width
        sides = [side for side in (self.student, self.teacher) if side is not None]
        device = hidden_q.device.type
        per_token = width * sum(side.head.product_dtype.itemsize for side in sides)
        self.chunk = _even(tokens, chunk or max(1, CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"]) // per_token))
        block = max(1, BLOCK_ELEMENTS.get(device, BLOCK_ELEMENTS["cuda"]) // width)
        # Softmax runs its rows in parallel: every thread needs one.
        self.block = min(self.chunk, max(block, torch.get_num_threads()) if device == "cpu" else block)
        for side in sides:
            side.reserve(self.chunk)

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Fill the buffers with one chunk of tokens after the other."""
        for start in range(0, self.tokens, self.chunk):
            stop = min(start + self.chunk, self.tokens)
            for side in (self.student, self.teacher):
                if side is not None:
                    side.fill(start, stop)
            yield start, stop

    def blocks(self, start: int, stop: int) -> Iterator[tuple[slice, slice]]:
        """The blocks of a chunk: where among all tokens, where in the buffers."""
        for at in range(0, stop - start, self.block):
            end = min(at + self.block, stop - start)
            yield slice(start + at, start + end), slice(at, end)


class _Objective:
    """Values, statistics and gradients of one specification over a sweep.

    `asked`: which of the gradients of hidden states, weight and bias are wanted.
    """

    def __init__(self, sweep: _Sweep, rows: Rows, spec: LossSpec, watch: bool, asked: tuple[bool, bool, bool]) -> None:
        self.sweep, self.rows, self.spec, self.watch, self.asked = sweep, rows, spec, watch, asked
        self.coefficients = rows.coefficients(spec)
        self.tau = None if sweep.teacher is None else temperatures(rows, spec)
        share = rows.normaliser_share(spec.normaliser)
        self.full = torch.promote_types(sweep.student.head.product_dtype, torch.float32)
        self.share = None if share is None else share.to(self.full)
        self.divergence: Tensor
        self.weighed: Weighed

    def run(self, weight: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """``sum_t share_t V_t D_t``, and the gradients of the hidden states, of the head's whole `weight` and of its
        bias, as asked.
        """
        sweep, student, (hidden, trained, biased) = self.sweep, self.sweep.student, self.asked
        low = student.head.weight.dtype
        # The gradient takes the place of the products it came from: a block's rows are read before they are written,
        # and a half-precision gradient of an fp32 row lies in its first half.
        gradient = student.buffer.view(low)[:, : sweep.width] if any(self.asked) else None
        d_hidden = torch.empty_like(student.hidden, dtype=low) if hidden else None
        d_weight = torch.zeros_like(weight) if trained else None
        d_bias = weight.new_zeros(weight.shape[0], dtype=torch.promote_types(low, torch.float32)) if biased else None
        # Written into one place: small results left lying between a block's large temporaries would keep the heap from
        # using their room again, and it would grow by a row of logits per token.
        per_token = student.hidden.new_empty(1 + len(Weighed._fields), sweep.tokens, dtype=self.full)
        missing: set[int] = set()
        for start, stop in sweep.chunks():
            for here, at in sweep.blocks(start, stop):
                value, weighed, pull = self._block(here, at)
                for i, column in enumerate((value, *weighed)):
                    if column is None:
                        missing.add(i)
                    else:
                        per_token[i, here] = column
                if gradient is not None and pull is not None:
                    gradient[at].copy_(pull)
            if gradient is None:
                continue
            rows = gradient[: stop - start]
            if d_hidden is not None:
                student.head.pull_(rows, d_hidden[start:stop])
            if d_weight is not None:
                add_weight_gradient_(d_weight[: sweep.width], rows, student.hidden[start:stop].to(low))
            if d_bias is not None:
                d_bias[: sweep.width].add_(rows.sum(0, dtype=d_bias.dtype))
        self.divergence, *columns = (None if i in missing else column for i, column in enumerate(per_token))  # type: ignore[assignment]
        self.weighed = Weighed(*columns)  # type: ignore[arg-type]
        weighted = self.weighed.weight * self.divergence
        return (weighted if self.share is None else weighted * self.share).sum(), d_hidden, d_weight, d_bias

    def _block(self, here: slice, at: slice) -> blocks.Measured:
        student, teacher = self.sweep.student, self.sweep.teacher
        known = blocks.Known(
            rows=self.rows.cut(here.start, here.stop),
            coefficients=tuple(c[here] if isinstance(c, Tensor) else c for c in self.coefficients),
            tau=None if self.tau is None else self.tau[here],
            share=None if self.share is None else self.share[here],
        )
        products_p, head_p = (None, None) if teacher is None else (teacher.buffer[at], teacher.head)
        return blocks.measured(
            products_p, student.buffer[at], head_p, student.head, known, self.spec, self.watch, any(self.asked)
        )


class _Gradient(torch.autograd.Function):
    """Carries gradients that were made on the way forward back to where autograd wants them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, objective: _Objective) -> Tensor:
        total, *gradients = objective.run(weight)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = hidden.dtype, None if bias is None else bias.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors
        return (
            None if hidden is None else (hidden * above).to(ctx.dtypes[0]),
            # In place: it weighs as much as the head. A second pass over a retained graph is refused by autograd.
            None if weight is None else weight.mul_(above),
            None if bias is None else (bias * above).to(ctx.dtypes[1]),
            None,
        )


def _prepared(head: Head, width: int) -> Head:
    """The head cut to the common vocabulary, in autocast's precision where that is on, without gradient."""
    device, dtype = head.weight.device.type, head.weight.dtype
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    bias = None if head.bias is None else head.bias.detach()
    return replace(head, weight=head.weight.detach(), bias=bias).cut(width, dtype)


def _even(tokens: int, chunk: int) -> int:
    """Tokens of a chunk such that none is much smaller than the others."""
    return math.ceil(tokens / math.ceil(tokens / chunk))
