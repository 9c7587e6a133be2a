"""Who writes the training text, and by which draws? The student, in the middle of its own training.

On-policy methods (ImitKD, GKD, DistiLLM, SKD, DistiLLM-2) train on what the student writes now. An `Author` holds the
models and the decoding rule; its draws depend on the run's seed, the occasion (an update, an epoch) and the prompt, and
on nothing else: not on the rank, the neighbours in the batch, the accumulation or a resume. Torch's own random state,
dropout and the models' modes are as they were when it has written.

It does not decide when text is written or what becomes of it: that is a text policy's part (`rollouts`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from selectkd_eval.batches import Example
from selectkd_eval.generate import Generation, continue_ids
from selectkd_eval.sampling import Sampling


class Written(NamedTuple):
    """One response: the example that it makes, its text, and the share of its tokens that the student proposed."""

    example: Example
    generation: Generation
    kept: float = 1.0


@dataclass(frozen=True)
class Author:
    """The student (bare, not wrapped by DDP), how it decodes, and the teacher where both write together.

    `longest`: prompt and response together, in tokens; a prompt must be shorter. `vocabulary`: the width of the output
    layer that both models have, since a token beyond it could not be compared. `bf16`: decode under autocast, as the
    training runs. `sharded`: the student's weights are spread over the ranks (FSDP, ZeRO-3), so that no rank can decode
    at its own pace.
    """

    student: Any
    tokenizer: Any
    sampling: Sampling
    max_new_tokens: int
    longest: int
    seed: int = 0
    batch_size: int = 64
    vocabulary: int | None = None
    teacher: Any = None
    bf16: bool = False
    sharded: bool = False

    def write(self, examples: Sequence[Example], occasion: int | str) -> list[Written]:
        """The student's response to the prompt of every example, in their order.

        The end token belongs to the response where the student wrote one; a text cut at the limit has none. Examples of
        one prompt get one text: it is decoded once.
        """
        prompts = list({example.prompt: example for example in examples}.values())
        ids = [example.prompt_ids for example in prompts]
        with decoding(self.student, bf16=self.bf16):
            written = dict(
                continue_ids(
                    self.student,
                    self.tokenizer,
                    ids,
                    limits=self.limits(ids),
                    sampling=self.sampling,
                    seeds=self.seeds(prompts, occasion),
                    batch_size=self.batch_size,
                    vocabulary=self.vocabulary,
                )
            )
        by_prompt = {example.prompt: written[index] for index, example in enumerate(prompts)}
        return [
            Written(example.answered(by_prompt[example.prompt].tokens, "student"), by_prompt[example.prompt])
            for example in examples
        ]

    def limits(self, ids: Sequence[Sequence[int]]) -> list[int]:
        """The largest number of new tokens after each prompt."""
        return [min(self.max_new_tokens, self.longest - len(prompt)) for prompt in ids]

    def seeds(self, examples: Sequence[Example], occasion: int | str, writer: str = "student") -> list[int]:
        """The seed of each example's stream of draws; teacher and student have streams of their own."""
        return [int(share(writer, self.seed, occasion, example.prompt) * 2**53) for example in examples]


def share(*words: int | str) -> float:
    """A uniform number in [0, 1) that depends on the words alone: 53 bits of their sha256."""
    digest = hashlib.sha256("/".join(map(str, words)).encode()).digest()
    return (int.from_bytes(digest[:8]) >> 11) / 2**53


@contextmanager
def decoding(*models: Any, bf16: bool = False) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    device = models[0].device.type
    for model in models:
        model.eval()
    try:
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=bf16):
            yield
    finally:
        for module, training in modes:
            module.training = training
