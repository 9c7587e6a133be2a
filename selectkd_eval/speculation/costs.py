"""What does a call cost with n rows? The target's and the drafts', in place, apart from any speculation.

Leviathan et al. (arXiv 2211.17192) count every target call as one: `c` is a draft call over a target call, and
verifying gamma + 1 rows is free. On a processor it is not, so `v(gamma) = T(gamma + 1 rows) / T(1 row)` is measured
here, with each prompt and half of its answer in the cache, calls of all shapes in turns. With the acceptance read off
the target's own text (`forced`) that predicts the speed-up of every draft length before any is timed.

Only for the reference engine: the calls are its own.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

import torch
from tqdm import tqdm

from selectkd_eval import records
from selectkd_eval.sampling import Sampling
from selectkd_eval.speculation.asking import Asked, Asking
from selectkd_eval.speculation.draft_verify import Cached, ReferenceEngine
from selectkd_eval.speculation.engine import Engine
from selectkd_eval.speculation.quiet import quiet


def probe(
    record: records.Writer, engine: Engine, asked: Sequence[Asked], how: Asking, most: int, repetitions: int
) -> None:
    """A row for every text: seconds of a target call with 1 to `most` + 1 rows, and of each draft's call with one."""
    if not isinstance(engine, ReferenceEngine):
        return
    for one in tqdm(asked, desc="cost of a call", disable=None):
        if (key := f"cost/{one.id}") not in record.done:
            target, drafts = _seconds(engine, one, how, most, repetitions)
            record.write(key, **one.place, target=target, draft=drafts)


Seconds = dict[str, list[float]]


def _seconds(engine: ReferenceEngine, one: Asked, how: Asking, most: int, repetitions: int) -> tuple[Seconds, Seconds]:
    """By number of rows, and by draft; the first call of each shape warms it and is not counted."""
    context = [*one.ids, *one.reference[: one.length // 2]]
    rest = (one.reference[one.length // 2 :] or one.reference) * (most + 1)
    models = [Cached(model, engine.vocabulary) for model in (engine.target, *engine.drafts)]
    limits = [getattr(cached.model.config, "max_position_embeddings", None) for cached in models]
    room = min((limit - len(context) for limit in limits if limit), default=most + 1)
    device = engine.target.device
    row = torch.tensor([context + rest], device=device)
    target: Seconds = {str(count): [] for count in range(1, min(most + 1, room) + 1)}
    drafts: Seconds = {str(index): [] for index in range(len(engine.drafts))} if room else {}
    calls: list[tuple[list[float], Cached, int]] = [(target[count], models[0], int(count)) for count in target]
    calls += [(drafts[index], models[1 + int(index)], 1) for index in drafts]
    with torch.inference_mode(), quiet(device):
        for cached in models:
            cached.feed(row[:, : len(context)], keep=1)
        for rep in range(repetitions + 1):
            random.Random(f"{how.seed}/{one.id}/{rep}").shuffle(calls)
            for found, cached, count in calls:
                seconds = _call(cached, row[:, len(context) : len(context) + count], how.sampling, device)
                cached.rewind(len(context))
                if rep:
                    found.append(seconds)
    return target, drafts


def _call(cached: Cached, ids: torch.Tensor, sampling: Sampling, device: torch.device) -> float:
    """Seconds of one call and of what is made of its logits, the device's work included."""
    settle = _settle(device)
    settle()
    started = time.perf_counter()
    logits = cached.feed(ids)
    _ = logits.argmax(-1) if sampling.greedy else sampling.probabilities(logits)
    settle()
    return time.perf_counter() - started


def _settle(device: torch.device) -> Callable[[], None]:
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None
