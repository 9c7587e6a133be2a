"""How long does every arm take? Plain decoding and every (draft, draft length), in turns on each prompt.

All arms read the same token ids and decode the same number of tokens, in an order shuffled within each repetition,
after a short run of each that warms its shapes, garbage collection off. Plain decoding stands in twice: its ratio to
itself must come out at 1. A prompt is one row, written when its last run is done, so a killed measurement times that
prompt anew and none is half from before and half from after.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from selectkd_eval import records
from selectkd_eval.errors import InputError
from selectkd_eval.speculation.asking import Asked, Asking
from selectkd_eval.speculation.engine import Decoded, Engine, Request
from selectkd_eval.speculation.machine import Load, Meter
from selectkd_eval.speculation.quiet import quiet
from selectkd_eval.speculation.stages import STAGES
from selectkd_eval.speeds import PLAIN, Arm


class Clock(NamedTuple):
    """What times: the engine, where its work is done, how energy is read and what else the machine did."""

    engine: Engine
    device: torch.device
    meter: Meter
    others: Load
    repetitions: int


def time_all(record: records.Writer, clock: Clock, asked: Sequence[Asked], how: Asking, batches: Sequence[int]) -> None:
    """One row for every prompt at batch 1, and for every wave of prompts at a larger batch."""
    for batch in batches:
        units = [[one] for one in asked] if batch == 1 else waves(asked, batch, how.seed)
        for number, unit in enumerate(
            tqdm(units, desc=f"timing, batch {batch}" if batch > 1 else "timing", disable=None)
        ):
            key = f"time/{unit[0].id}" if batch == 1 else f"batch{batch}/wave{number}"
            if key not in record.done:
                _time_unit(record, key, clock, unit, how, batch)


def waves(asked: Sequence[Asked], batch: int, seed: int) -> list[list[Asked]]:
    """Full waves of `batch` texts, of one task each where it has enough; what is left over fills no wave.

    Raises InputError when there are fewer texts than that.
    """
    ordered = sorted(asked, key=lambda one: one.id)
    random.Random(f"{seed}/waves/{batch}").shuffle(ordered)
    ordered.sort(key=lambda one: one.task)
    found = [ordered[start : start + batch] for start in range(0, len(ordered) - batch + 1, batch)]
    if not found:
        raise InputError(f"--batch {batch} needs as many prompts, and there are {len(asked)}: raise --limit")
    return found


def _time_unit(record: records.Writer, key: str, clock: Clock, unit: Sequence[Asked], how: Asking, batch: int) -> None:
    arms = [arm._replace(batch=batch) for arm in (PLAIN, PLAIN, *how.arms)]
    for arm in arms[1:]:
        shortest = min(one.length for one in unit)
        _decode(clock.engine, _requests(unit, how, "warm-up", min(shortest, 2 * arm.gamma + 3)), arm, how)
    runs = []
    clock.others.since()
    for rep in range(clock.repetitions):
        order = list(range(len(arms)))
        random.Random(f"{how.seed}/{key}/{rep}").shuffle(order)
        for place, index in enumerate(order):
            arm = arms[index]
            requests = _requests(unit, how, rep)
            with quiet(clock.device):
                clock.meter.start()
                wall, cpu = time.perf_counter(), time.process_time()
                decoded = _decode(clock.engine, requests, arm, how)
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                joules = clock.meter.joules()
            head = {"rep": rep, "place": place, **arm._asdict(), "control": index == 1, "wall_s": wall}
            head["cpu_s"] = None if clock.engine.batches else cpu
            runs.append(head | counts(decoded) | {"joules": joules})
    around = clock.others.since()
    record.write(key, **_place(key, unit), length=sum(one.length for one in unit), machine=around, runs=runs)


def _place(key: str, unit: Sequence[Asked]) -> dict[str, Any]:
    if len(unit) == 1:
        return unit[0].place
    wave = key.rpartition("/")[2]
    tasks = {one.task for one in unit}
    return {
        "prompt": wave,
        "cluster": wave,
        "task": tasks.pop() if len(tasks) == 1 else "",
        "prompts": [one.id for one in unit],
    }


def _requests(unit: Sequence[Asked], how: Asking, rep: int | str, most: int | None = None) -> list[Request]:
    return [how.request(one.ids, most or one.length, one.id, rep) for one in unit]


def _decode(engine: Engine, requests: Sequence[Request], arm: Arm, how: Asking) -> list[Decoded]:
    if len(requests) == 1:
        return [engine.decode(requests[0], arm, how.sampling)]
    return engine.together(requests, arm, how.sampling)


def counts(decoded: Sequence[Decoded]) -> dict[str, Any]:
    """What a run's row says of it beside the clock: sums over its texts, and the trace step by step."""
    drafted = [count for one in decoded for count in one.drafted]
    accepted = [count for one in decoded for count in one.accepted]
    overlaps = [one.overlap for one in decoded]
    known = [value for some in overlaps if some is not None for value in some]
    # Of several texts at once the stages overlap: the sum of their times is nobody's time.
    alone = decoded[0] if len(decoded) == 1 else None
    return {
        **{f"{stage}_s": getattr(alone, f"{stage}_s", None) for stage in ("decode", *STAGES)},
        "decode_tokens": sum(one.decode_tokens for one in decoded),
        "tokens": len(drafted) + sum(accepted),
        "steps": len(drafted),
        "drafted": sum(drafted),
        "accepted": sum(accepted),
        "tested": sum(one.tested for one in decoded),
        "drafted_per_step": drafted if any(drafted) else [],
        "accepted_per_step": accepted if any(drafted) else [],
        "overlap": None if None in overlaps else [round(value, 5) for value in known],
    }
