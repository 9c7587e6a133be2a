"""How does the student's forward pass become a loss without its logits ever standing in memory?

The student stays the plain model that the Trainer, PEFT and `save_pretrained` know. `teachable` gives it a second way
to be called: with a `Question`, its decoder runs as always and the loss is computed inside the head's own forward. So
whatever a wrapper does around those calls (DDP's and FSDP's hooks, autocast) happens, and the head's weight is whole
when it is needed.

A question is a plain object on purpose: a wrapper that maps over dataclasses and tuples would cast what is in it to the
forward pass's precision. The statistics come back in it; forward returns the loss alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MethodType
from typing import Any

from torch import Tensor

from selectkd_eval.chunked import chunked_loss
from selectkd_eval.heads import Head, decoder, head_of
from selectkd_eval.loss import require_finite, token_loss
from selectkd_eval.objective import LossSpec
from selectkd_eval.responses import Responses
from selectkd_eval.teacher import Teacher
from selectkd_eval.token_stats import Rows, TokenStats


class Question:
    """What is asked of one micro-batch; answered, it holds `stats`.

    The teacher's hidden rows are fetched when they are first needed and kept until `forget`. `resolve` sees the
    student's hidden rows ``(N, H)`` and its head, without gradient, before the loss: what depends on them is filled in
    then. With `look_only` that is all that happens.
    """

    def __init__(self, batch: Mapping[str, Tensor], rows: Rows, spec: LossSpec, teacher: Teacher | None = None) -> None:
        self.batch = batch
        self.rows = rows
        self.spec = spec
        self.teacher = teacher
        self.denominator: float | None = None
        self.watch: Responses | None = None
        self.where = "validation"
        self.resolve: Callable[[Tensor, Head], None] | None = None
        self.look_only = False
        self.stats = TokenStats()
        self._hidden_p: Tensor | None = None

    @property
    def hidden_p(self) -> Tensor | None:
        """The teacher's hidden rows ``(N, H)``; None without a teacher."""
        if self._hidden_p is None and self.teacher is not None:
            self._hidden_p = self.teacher.rows(self.batch)
        return self._hidden_p

    def forget(self) -> None:
        """Let go of the teacher's rows."""
        self._hidden_p = None

    @property
    def kept(self) -> Tensor:
        """Positions of ``input_ids[:, 1:]`` that are response tokens."""
        return self.batch["response_mask"][:, 1:]

    def inputs(self) -> dict[str, Tensor]:
        """What the decoder reads. No attention mask: padding stands on the right, attention is causal, and padding
        carries no loss; packed texts are told apart by their positions.
        """
        return {name: self.batch[name] for name in ("input_ids", "position_ids") if name in self.batch}

    def answer(self, hidden: Tensor, head_q: Head, chunk: int, full: bool) -> Tensor:
        """The loss of hidden states ``(B, T, H)``."""
        rows = hidden[:, :-1][self.kept]
        if self.resolve is not None:
            self.resolve(rows.detach(), head_q)
        if self.look_only:
            return hidden.new_zeros(())
        if rows.shape[0] == 0:
            # A rank without a text in this update still has to meet the others in the backward pass.
            return hidden.sum() * 0 + sum(w.sum() * 0 for w in (head_q.weight, head_q.bias) if w is not None)
        head_p = None if self.teacher is None else self.teacher.head
        known, watch = self.denominator, self.watch
        if full:
            z_p = None if head_p is None or self.hidden_p is None else head_p.logits(self.hidden_p).detach()
            z_q = head_q.logits(rows)
            loss, self.stats = token_loss(z_p, z_q, self.rows, self.spec, denominator=known, watch=watch)
        else:
            pair = (self.hidden_p, head_p, rows, head_q)
            loss, self.stats = chunked_loss(*pair, self.rows, self.spec, denominator=known, chunk=chunk, watch=watch)
        require_finite(self.stats, self.where)
        return loss


def teachable(model: Any, *, chunk: int = 0, full: bool = False) -> Any:
    """Give the model, or the model behind a PEFT adapter, a forward that answers questions; all other calls stay as
    they were. `chunk`: tokens per chunk of the loss, 0 by the vocabulary; `full`: all logits at once.
    """
    template, body = head_of(model), decoder(model)
    head, plain = model.get_output_embeddings(), model.forward
    project = head.forward

    def forward(self: Any, *args: Any, question: Question | None = None, **kwargs: Any) -> Any:
        if question is None:
            return plain(*args, **kwargs)
        hidden = body(**question.inputs(), use_cache=False).last_hidden_state
        return head(hidden, question=question)

    def head_forward(self: Any, hidden: Tensor, question: Question | None = None) -> Any:
        if question is None:
            return project(hidden)
        # Read here and not before: under FSDP the weight is whole only now.
        own = replace(template, weight=self.weight, bias=self.bias)
        return question.answer(hidden, own, chunk, full)

    model.forward = MethodType(forward, model)
    head.forward = MethodType(head_forward, head)
    return model
