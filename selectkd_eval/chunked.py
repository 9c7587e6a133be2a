"""The loss of `loss.token_loss` without the logits: from hidden states and the two heads, a chunk of tokens at a time.

At 152k entries one fp32 logit tensor of 8,192 tokens takes 4.6 GiB, and plain autograd keeps six to eight of them. Here
a chunk's products with both heads go into two buffers that every chunk uses again; log-probabilities, gate, statistics,
divergences and their analytic gradients (`gradients`) are made from them, and the gradient goes through the head at
once. Nothing is computed twice: two products with the heads, one with the gradient (two where the head is trained).
``backward`` only multiplies by what comes from above.

Inside a chunk the elementwise work goes by blocks of few rows, which stay in a CPU's cache. Semantics are not decided
here: gate and statistics are `token_stats.weigh`'s, temperatures, coefficients and shares the rows' and the
specification's, as in the plain loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from selectkd_eval.divergences import DIVERGENCES
from selectkd_eval.errors import InputError
from selectkd_eval.gradients import value_and_gradient
from selectkd_eval.heads import Head, add_weight_gradient_
from selectkd_eval.loss import LOG_ZERO, described, require_targets, rolled, temperatures
from selectkd_eval.objective import LossSpec, Term
from selectkd_eval.token_stats import Rows, TokenStats, Weighed, stats_of, summed, weigh

# Bytes of the two product buffers together, and elements of a block's rows. On a CPU a row of 152k entries and the
# few tensors made of it just fit the second-level cache; on a GPU a block should outlast its launches.
CHUNK_BYTES = {"cpu": 256 * 2**20, "cuda": 320 * 2**20}
BLOCK_ELEMENTS = {"cpu": 2**17, "cuda": 2**22}

# log p, log q, p, q of a block, (R, V) each; the teacher's None where there is none.
_Distributions = tuple[Tensor | None, Tensor, Tensor | None, Tensor]


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
    watch: bool = False,
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
    sweep = _Sweep(hidden_p, head_p, hidden_q, head_q, rows, chunk)
    objective = _Objective(sweep, spec, watch)
    with torch.autocast(hidden_q.device.type, enabled=False):
        total = _Gradient.apply(hidden_q, head_q.weight, head_q.bias, objective)
    stats = stats_of(summed(rows, spec, objective.divergence, objective.weighed), rows, watch)
    return total / (denominator or stats.denominator(spec.normaliser)), stats


class _Products:
    """Products of hidden states ``(N, H)`` with one head, for one chunk of tokens at a time, in one buffer."""

    def __init__(self, hidden: Tensor, head: Head) -> None:
        self.hidden, self.head = hidden.detach(), head
        # Only a bias can close an entry altogether, with minus infinity; products of numbers are numbers.
        self.closed = head.bias is not None
        self.buffer = self.scratch = hidden.new_empty(0)

    def reserve(self, chunk: int, block: int) -> None:
        """Make room for `chunk` rows of products, and for `block` rows in full precision where they are less."""
        width, dtype = self.head.weight.shape[0], self.head.product_dtype
        self.buffer = self.hidden.new_empty(chunk, width, dtype=dtype)
        if dtype not in (torch.float32, torch.float64):
            self.scratch = self.hidden.new_empty(block, width, dtype=torch.float32)

    def fill(self, start: int, stop: int) -> None:
        """The products of the tokens from `start` to `stop`."""
        self.head.products_(self.hidden[start:stop], self.buffer[: stop - start])

    def logits(self, at: slice) -> Tensor:
        """Logits of a block of the chunk in full precision; they may be overwritten."""
        rows = self.buffer[at]
        if self.scratch.numel():
            rows = self.scratch[: rows.shape[0]].copy_(rows)
        return self.head.finish_(rows)


class _Sweep:
    """One way through N tokens with both heads: chunks of products, and in each chunk blocks of logits."""

    def __init__(
        self, hidden_p: Tensor | None, head_p: Head | None, hidden_q: Tensor, head_q: Head, rows: Rows, chunk: int
    ) -> None:
        width = head_q.weight.shape[0] if head_p is None else min(head_q.weight.shape[0], head_p.weight.shape[0])
        self.student = _Products(hidden_q, _prepared(head_q, width))
        self.teacher = None
        if hidden_p is not None and head_p is not None:
            self.teacher = _Products(hidden_p, _prepared(head_p, width))
        self.rows, self.width = rows, width
        sides = [side for side in (self.student, self.teacher) if side is not None]
        device, tokens = hidden_q.device.type, rows.targets.numel()
        per_token = width * sum(side.head.product_dtype.itemsize for side in sides)
        self.chunk = _even(tokens, chunk or max(1, CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"]) // per_token))
        block = max(1, BLOCK_ELEMENTS.get(device, BLOCK_ELEMENTS["cuda"]) // width)
        # Softmax runs its rows in parallel: every thread needs one.
        self.block = min(self.chunk, max(block, torch.get_num_threads()) if device == "cpu" else block)
        for side in sides:
            side.reserve(self.chunk, self.block)

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Fill the buffers with one chunk of tokens after the other."""
        tokens = self.rows.targets.numel()
        for start in range(0, tokens, self.chunk):
            stop = min(start + self.chunk, tokens)
            for side in (self.student, self.teacher):
                if side is not None:
                    side.fill(start, stop)
            yield start, stop

    def blocks(self, start: int, stop: int) -> Iterator[tuple[slice, slice]]:
        """The blocks of a chunk: where among all tokens, where in the buffers."""
        for at in range(0, stop - start, self.block):
            end = min(at + self.block, stop - start)
            yield slice(start + at, start + end), slice(at, end)

    def log_probabilities(self, here: slice, at: slice) -> tuple[Tensor | None, Tensor, Tensor | float]:
        """``log p``, ``log q`` of a block, made in place of its logits, and the slope of the student's head."""
        log_p = None
        if self.teacher is not None:
            shifts = None if self.rows.shifts is None else self.rows.shifts[here]
            log_p = _log_softmax_(rolled(self.teacher.logits(at), shifts), self.teacher.closed)
        z_q = self.student.logits(at)
        slope = self.student.head.slope(z_q)
        return log_p, _log_softmax_(z_q, self.student.closed), slope


class _Objective:
    """Values, statistics and gradients of one specification over a sweep."""

    def __init__(self, sweep: _Sweep, spec: LossSpec, watch: bool) -> None:
        self.sweep, self.spec, self.watch = sweep, spec, watch
        rows, student = sweep.rows, sweep.student
        self.coefficients = rows.coefficients(spec)
        self.tau = None if sweep.teacher is None else temperatures(rows, spec)
        self.moving = sweep.teacher is not None and spec.target < 1
        full = torch.promote_types(student.head.product_dtype, torch.float32)
        share = rows.normaliser_share(spec.normaliser)
        self.share = None if share is None else share.to(full)
        sides = 1 if sweep.teacher is None else 2
        self.probabilities = student.hidden.new_empty(sides, sweep.block, sweep.width, dtype=full)
        self.divergence: Tensor
        self.weighed: Weighed
        self.d_hidden: Tensor | None = None
        self.d_weight: Tensor | None = None
        self.d_bias: Tensor | None = None

    def run(self, weight: Tensor, hidden: bool, trained: bool, biased: bool) -> Tensor:
        """``sum_t share_t V_t D_t``, and beside it the gradients of the hidden states, of the head's whole `weight` and
        of its bias, as asked.
        """
        sweep, student = self.sweep, self.sweep.student
        low = student.head.weight.dtype
        asked = hidden or trained or biased
        # The gradient takes the place of the products it came from: a block's rows are read before they are written,
        # and a half-precision gradient of an fp32 row lies in its first half.
        gradient = student.buffer.view(low)[:, : sweep.width] if asked else None
        d_hidden = torch.empty_like(student.hidden, dtype=low) if hidden else None
        d_weight = torch.zeros_like(weight) if trained else None
        d_bias = weight.new_zeros(weight.shape[0], dtype=torch.promote_types(low, torch.float32)) if biased else None
        found = []
        for start, stop in sweep.chunks():
            for here, at in sweep.blocks(start, stop):
                found.append(self._block(here, at, None if gradient is None else gradient[at]))
            if gradient is None:
                continue
            rows = gradient[: stop - start]
            if d_hidden is not None:
                student.head.pull_(rows, d_hidden[start:stop])
            if d_weight is not None:
                add_weight_gradient_(d_weight[: sweep.width], rows, student.hidden[start:stop].to(low))
            if d_bias is not None:
                d_bias[: sweep.width].add_(rows.sum(0, dtype=d_bias.dtype))
        values, weighed = zip(*found, strict=True)
        self.divergence = torch.cat(values)
        columns = zip(*weighed, strict=True)
        self.weighed = Weighed(*(None if column[0] is None else torch.cat(column) for column in columns))  # type: ignore[arg-type]
        self.d_hidden, self.d_weight, self.d_bias = d_hidden, d_weight, d_bias
        weighted = self.weighed.weight * self.divergence
        return (weighted if self.share is None else weighted * self.share).sum()

    def _block(self, here: slice, at: slice, gradient: Tensor | None) -> tuple[Tensor, Weighed]:
        """Divergence and statistics of a block's tokens; `gradient` takes that of the products."""
        rows = self.sweep.rows.cut(here.start, here.stop)
        log_p, log_q, slope = self.sweep.log_probabilities(here, at)
        count = log_q.shape[0]
        q = torch.exp(log_q, out=self.probabilities[0, :count])
        p = None if log_p is None else torch.exp(log_p, out=self.probabilities[1, :count])
        weighed = weigh(log_p, log_q, p, q, rows, self.spec, self.watch)
        factor = weighed.weight if self.share is None else weighed.weight * self.share[here]
        value, pulls = self._terms(here, rows, (log_p, log_q, p, q), gradient is not None)
        if gradient is not None:
            _write_(gradient, pulls, factor, slope)
        return value, weighed

    def _terms(
        self, here: slice, rows: Rows, plain: _Distributions, gradients: bool
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor | float]]]:
        """``sum_m c_m D_m`` per token, and every term's gradient on the logits with the factor it counts by."""
        warm, tau = self._tempered(plain, here)
        total, pulls = plain[1].new_zeros(plain[1].shape[0]), []
        for term, coefficients in zip(self.spec.terms, self.coefficients, strict=True):
            chosen = coefficients[here].to(total.dtype) if isinstance(coefficients, Tensor) else None
            if chosen is not None and chosen.device.type == "cpu" and not chosen.any():
                continue  # elsewhere asking would stall the device
            tempered = DIVERGENCES[term.divergence].needs_teacher
            value, gradient = _value_and_gradient(term, warm if tempered else plain, rows.targets, gradients)
            if chosen is not None:  # a coefficient of 0 silences even an infinite divergence
                value.masked_fill_(chosen == 0, 0.0)
                if gradient is not None and gradient.shape[0] > 1:
                    gradient.masked_fill_((chosen == 0).unsqueeze(-1), 0.0)
            factor = term.coefficient if chosen is None else chosen
            if tau is not None and tempered:
                total += factor * (value * tau**2 if self.spec.tau_squared else value)
                factor = factor * tau if self.spec.tau_squared else factor / tau
            else:
                total += factor * value
            if gradient is not None:
                pulls.append((gradient, factor))
        return total, pulls

    def _tempered(self, plain: _Distributions, here: slice) -> tuple[_Distributions, Tensor | None]:
        """The distributions that the terms see, and their temperatures. Softmax does not mind that it is given
        log-probabilities in the logits' place.
        """
        log_p, log_q, _, q = plain
        if log_p is None or (self.tau is None and not self.moving):
            return plain, None
        if self.moving:
            log_p = torch.lerp(log_q, log_p, self.spec.target)
        tau = None
        if self.tau is not None:
            tau = self.tau[here].to(log_q.dtype)
            log_p, log_q = log_p / tau.unsqueeze(-1), _log_softmax_(log_q / tau.unsqueeze(-1))
            q = log_q.exp()
        log_p = _log_softmax_(log_p)
        return (log_p, log_q, log_p.exp(), q), tau


def _value_and_gradient(
    term: Term, given: _Distributions, targets: Tensor, gradient: bool
) -> tuple[Tensor, Tensor | None]:
    log_p, log_q, p, q = given
    if gradient:
        return value_and_gradient(term.divergence, log_p, log_q, p, q, targets, term.parameters)
    return DIVERGENCES[term.divergence](log_p, log_q, targets, **term.parameters), None


def _write_(out: Tensor, pulls: list[tuple[Tensor, Tensor | float]], weight: Tensor, slope: Tensor | float) -> None:
    """``slope * weight * sum_m factor_m G_m`` into `out` ``(R, V)``; the gradients may be overwritten."""
    if not pulls:
        out.zero_()
        return
    if isinstance(slope, float):
        weight = weight * slope
    (total, factor), *others = pulls
    if not others and isinstance(slope, float) and out.dtype == total.dtype:
        torch.mul(total, (weight * factor).unsqueeze(-1), out=out)
        return
    total.mul_((weight * factor).unsqueeze(-1))
    for gradient, factor in others:
        total.addcmul_(gradient, (weight * factor).unsqueeze(-1))
    out.copy_(total.mul_(slope) if isinstance(slope, Tensor) else total)


class _Gradient(torch.autograd.Function):
    """Carries gradients that were made on the way forward back to where autograd wants them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, objective: _Objective) -> Tensor:
        asked = ctx.needs_input_grad[:3]
        total = objective.run(weight, *asked)
        ctx.save_for_backward(objective.d_hidden, objective.d_weight, objective.d_bias)
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


def _log_softmax_(logits: Tensor, closed: bool = True) -> Tensor:
    """`loss.log_softmax` in place; where no entry is `closed`, all are finite as they are."""
    log_x = torch.log_softmax(logits, -1, out=logits)
    return log_x.clamp_min_(LOG_ZERO) if closed else log_x
