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
            target, drafts = seconds_of_calls(engine, one, how, most, repetitions)
            record.write(key, **one.place, target=target, draft=drafts)


Seconds = dict[str, list[float]]
PLAIN_CALLS = 4  # one after the other, as in plain decoding


def seconds_of_calls(
    engine: ReferenceEngine, one: Asked, how: Asking, most: int, repetitions: int
) -> tuple[Seconds, Seconds]:
    """By number of rows, and by draft. Calls stand as they do in decoding: a call with one row follows another, a
    verification follows its draft's calls, for what a call finds in the processor's caches is what the one before left
    there. The first call of each shape warms it and is not counted.
    """
    context = [*one.ids, *one.reference[: one.length // 2]]
    rest = (one.reference[one.length // 2 :] or one.reference) * (most + PLAIN_CALLS)
    target, *drafts = (Cached(model, engine.vocabulary) for model in (engine.target, *engine.drafts))
    limits = [getattr(cached.model.config, "max_position_embeddings", None) for cached in (target, *drafts)]
    room = min((limit - len(context) for limit in limits if limit), default=len(rest))
    device = engine.target.device
    row = torch.tensor([context + rest], device=device)
    calls: Seconds = {str(count): [] for count in range(1, min(most + 1, room) + 1)}
    drafting: Seconds = {str(index): [] for index in range(len(drafts))}
    turns = [(index, gamma) for index in range(len(drafts)) for gamma in range(1, min(most, room - 1) + 1)]
    turns += [(-1, min(PLAIN_CALLS, room))]
    start = len(context)
    with torch.inference_mode(), quiet(device):
        for cached in (target, *drafts):
            cached.feed(row[:, :start], keep=1)
        for rep in range(repetitions + 1):
            random.Random(f"{how.seed}/{one.id}/{rep}").shuffle(turns)
            for index, count in turns:
                cached = target if index < 0 else drafts[index]
                each = [
                    _call(cached, row[:, start + place : start + place + 1], how.sampling, device)
                    for place in range(count)
                ]
                cached.rewind(start)
                verified = [] if index < 0 else [_call(target, row[:, start : start + count + 1], how.sampling, device)]
                target.rewind(start)
                if rep:
                    (calls["1"] if index < 0 else drafting[str(index)]).extend(each)
                    if verified:
                        calls[str(count + 1)] += verified
    return calls, drafting


def _call(cached: Cached, ids: torch.Tensor, sampling: Sampling, device: torch.device) -> float:
    """Seconds of one call and of what is made of its logits, the device's work included."""
    now = clock(device)
    started = now()
    logits = cached.feed(ids)
    _ = logits.argmax(-1) if sampling.greedy else sampling.probabilities(logits)
    return now() - started


def clock(device: torch.device) -> Callable[[], float]:
    """Processor time on one thread of a CPU: a neighbour that takes the core now and then meets long calls more often
    than short ones, and moves no median of these. Otherwise wall time, after the device has done its work.
    """
    if device.type == "cpu":
        return time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def settled() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return settled
