"""What does a draft gain in Hugging Face's assisted generation? The engine most readers have at hand, counted exactly.

`generate(assistant_model=...)` of transformers, seen from outside: the rows of each target call tell what was
drafted, what is streamed tells what was accepted. It stands beside the reference engine as the second opinion on the
text, the counts and the speed-up. Nothing in it is replaced; only its settings are those that a measurement needs:

- The draft length stands on the assistant's generation config, schedule "constant", confidence threshold 0. Passed to
  `generate` it is ignored, and the default threshold of 0.4 ends most drafts after a token.
- p and q are warped by a processor that is passed in. Given as temperature, top_k and top_p, transformers 5.23 hands
  the assistant the target's warpers besides its own, so that q is warped twice.
- Both generation configs are blank during a run: no end token stops or masks anything, and no repetition penalty or
  default top_k of 50 changes what is measured.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from selectkd_eval.errors import InputError
from selectkd_eval.sampling import Sampling
from selectkd_eval.speculation.engine import Decoded, Request, check_length
from selectkd_eval.speculation.stages import Stages
from selectkd_eval.speeds import Arm

SCHEDULE, THRESHOLD = "constant", 0.0
INNER_CALL = "Passing `generation_config` together with"  # transformers warns of how it calls itself


class AssistedEngine:
    """Assisted generation at batch 1, and plain `generate` beside it.

    Its first step drafts before the target has read the prompt, so every token comes from a step: `first` is 0, in
    plain decoding too. Raises InputError for models whose vocabularies differ, which transformers takes for different
    tokenizers.
    """

    name = "transformers"
    batches = False

    def __init__(self, target: Any, drafts: Sequence[Any], vocabulary: int) -> None:
        _same_width([target, *drafts], vocabulary)
        self.target = target
        # A model that drafts for itself would call its own hooks, and draft and target calls could not be told apart.
        self.drafts = [copy.deepcopy(draft) if draft is target else draft for draft in drafts]
        self.facts = {
            "version": transformers.__version__,
            "schedule": SCHEDULE,
            "threshold": THRESHOLD,
            "proposals": "sampled",
        }

    def decode(self, request: Request, arm: Arm, sampling: Sampling) -> Decoded:
        """Exactly `request.new_tokens` tokens; the draws depend on the request's seed alone.

        Raises InputError for gamma < 0, text longer than a model's positions, or models that `generate` refuses.
        """
        draft = None if arm.plain else self.drafts[arm.draft]
        if arm.gamma < 0:
            raise InputError(f"gamma is the number of tokens drafted per target call, at least 1, not {arm.gamma}")
        for model in [self.target] if draft is None else [self.target, draft]:
            check_length(model, request.ids, request.new_tokens)
        watch = Watch(len(request.ids), self.target.device)
        with (
            torch.inference_mode(),
            _seeded(request.seed, self.target.device),
            _quiet_inside(),
            _blank(self.target, draft, arm.gamma),
            watch.on(self.target, draft),
        ):
            output = self._generate(request, draft, sampling, watch)
        return watch.decoded(output[0, len(request.ids) :].tolist())

    def _generate(self, request: Request, draft: Any, sampling: Sampling, watch: Watch) -> Tensor:
        ids = torch.tensor([list(request.ids)], device=self.target.device)
        config = GenerationConfig(max_new_tokens=request.new_tokens, do_sample=False)
        rule = LogitsProcessorList()
        if not sampling.greedy:
            # The processor is the whole rule: at these values transformers adds no warper of its own.
            config.update(do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
            rule.append(Warped(sampling))
        assistant = {} if draft is None else {"assistant_model": draft}
        try:
            output: Tensor = self.target.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=config,
                logits_processor=rule,
                streamer=watch,
                **assistant,
            )
        except ValueError as error:
            why = str(error).partition("\n")[0].rstrip(".")
            raise InputError(
                f"--engine transformers was asked to decode and generate refuses these models ({why}): choose another "
                "pair or another engine"
            ) from error
        return output

    def together(self, requests: Sequence[Request], arm: Arm, sampling: Sampling) -> list[Decoded]:
        """Refused: assisted generation decodes one text at a time."""
        raise InputError(
            f"assisted generation decodes one text at a time, not {len(requests)} together: use --engine vllm"
        )

    def close(self) -> None:
        """Nothing is held beyond the models."""


class Warped(LogitsProcessor):
    """This project's decoding rule as the one processor of both models, so that ties are cut as everywhere else."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``(n, V)`` logits to logits whose softmax is the rule's distribution."""
        if self.sampling.cuts:
            return self.sampling.probabilities(scores).log()
        return scores / self.sampling.temperature


class Watch(BaseStreamer):
    """What one call of `generate` lets be seen: rows of each target call, tokens streamed after it, and the clock.

    Until the first step is streamed everything counts as prefill; afterwards the clock tells the draft's calls, the
    target's, and the rest.
    """

    def __init__(self, prompt: int, device: torch.device) -> None:
        self.prompt = prompt
        self.rows: list[int] = []
        self.streamed: list[int] = []
        self.stages = Stages(device)

    def put(self, value: Tensor) -> None:
        """Called with the prompt, then once a step with its tokens."""
        self._mark("end")
        self.streamed.append(value.numel())

    def end(self) -> None:
        """Called when the text is there."""
        self._mark("end")

    def _mark(self, stage: str) -> None:
        prefilled = len(self.streamed) > 1  # the prompt is streamed too
        self.stages.mark(stage if prefilled else "prefill")

    @contextmanager
    def on(self, target: Any, draft: Any) -> Iterator[None]:
        """Hooks on both models for the length of a run."""

        def called(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
            self.rows.append(kwargs["input_ids"].shape[1])
            self._mark("end")

        with ExitStack() as hooks:
            for handle in (
                target.register_forward_pre_hook(called, with_kwargs=True),
                target.register_forward_hook(lambda *_: self._mark("verify")),
            ):
                hooks.callback(handle.remove)
            if draft is not None:
                for handle in (
                    draft.register_forward_pre_hook(lambda *_: self._mark("end")),
                    draft.register_forward_hook(lambda *_: self._mark("draft")),
                ):
                    hooks.callback(handle.remove)
            yield

    def decoded(self, tokens: list[int]) -> Decoded:
        """The run's trace. The first target call has the prompt before the draft, the others the last token."""
        steps = self.streamed[1:]
        before = [self.prompt] + [1] * (len(self.rows) - 1)
        run = Decoded(
            tokens,
            drafted=[rows - known for rows, known in zip(self.rows, before, strict=True)],
            accepted=[count - 1 for count in steps],
            first=0,
            decode_tokens=len(tokens) - steps[0],
        )
        self.stages.fill(run)
        run.accept_s = run.crop_s = None  # neither is a call of a model, and nothing else can be seen
        return run


def _same_width(models: Sequence[Any], vocabulary: int) -> None:
    widths = [int(model.config.get_text_config().vocab_size) for model in models]
    if set(widths) != {vocabulary}:
        found = f"the target's vocab_size is {widths[0]}, the drafts' {', '.join(map(str, widths[1:])) or 'none'}"
        raise InputError(
            f"assisted generation takes models of one vocab_size, and {found}: use --engine reference, which reads the "
            f"first {min(vocabulary, *widths)} entries of both"
        )


@contextmanager
def _blank(target: Any, draft: Any, gamma: int) -> Iterator[None]:
    """Nothing but the draft length on the generation configs of both models; the old ones return in any case."""
    kept = [(model, model.generation_config) for model in (target, draft) if model is not None]
    target.generation_config = GenerationConfig()
    if draft is not None:
        draft.generation_config = GenerationConfig(
            num_assistant_tokens=gamma,
            num_assistant_tokens_schedule=SCHEDULE,
            assistant_confidence_threshold=THRESHOLD,
        )
    try:
        yield
    finally:
        for model, config in kept:
            model.generation_config = config


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """`generate` draws from the global stream: a seeded one for the length of the run."""
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def _quiet_inside() -> Iterator[None]:
    """Leave out the one warning that transformers gives about its own call of the assistant; others are shown."""
    log = logging.getLogger("transformers.generation.utils")

    def others(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(INNER_CALL)

    log.addFilter(others)
    try:
        yield
    finally:
        log.removeFilter(others)
