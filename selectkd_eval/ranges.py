"""Which numbers can no verb use? A negative limit, no seed at all, a temperature that is not a number.

Looked at once, when the command line has been read and before anything is loaded. What depends on a verb (the gate's
beta, an odd grid) is checked by that verb; a file, a model or a device by whatever opens it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from selectkd_eval.errors import InputError

# The smallest value of a whole number, where one name means the same for every verb that has it.
SMALLEST = {
    "limit": 1,
    "threads": 0,
    "workers": 0,
    "rows": 0,
    "resamples": 1,
    "batch_size": 1,
    "accumulation": 1,
    "concurrency": 1,
    "max_length": 2,
    "max_new_tokens": 0,
    "steps": 0,
    "eval_every": 0,
    "save_every": 0,
    "patience": 0,
    "keep_checkpoints": 0,
    "lora_rank": 0,
    "lora_alpha": 1,
    "chunk": 0,
    "generation_max_new_tokens": 1,
    "generation_batch_size": 1,
    "shots": 0,
    "samples": 1,
    "sequences": 1,
    "directions": 1,
    "repetitions": 1,
    "repeats": 1,
    "requests_per_minute": 0,
    "tokens_per_minute": 0,
    "held_out": 0,
    "scalars": 0,
    "items": 0,
    "cache_mb": 0,
}
NOT_NEGATIVE = (
    "temperature", "generation_temperature", "warmup", "weight_decay", "clip", "tie_band", "lora_dropout", "max_cost",
    "tolerance", "margin",
)  # fmt: skip
MAY_BE_EMPTY = ("--exclude", "--sandbox-packages")  # nothing excluded, no package beside the standard library
SHARES = ("warmup", "lora_dropout")
ABOVE_ZERO = ("cpu_seconds", "radius", "rise")


def check(options: Any) -> None:
    """Raise an InputError for the first field that no verb could use."""
    for field in dataclasses.fields(options):
        value, flag = getattr(options, field.name), f"--{field.name.replace('_', '-')}"
        if isinstance(value, tuple):
            # What has no default is no flag on the command line either: it stands there by itself.
            name = field.name.upper() if field.default is dataclasses.MISSING else flag
            _check_list(name, value, may_be_empty=field.default == () or flag in MAY_BE_EMPTY)
        elif isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{flag} {value} is not a finite number: give one")
        elif isinstance(value, int) and value < SMALLEST.get(field.name, value):
            raise InputError(f"{flag} must be at least {SMALLEST[field.name]}, but {value} was given")
        elif field.name in NOT_NEGATIVE and value is not None and value < 0:
            raise InputError(f"{flag} must not be negative, but {value} was given")
        elif field.name in ABOVE_ZERO and value is not None and value <= 0:
            raise InputError(f"{flag} must be above 0, but {value:g} was given")
        elif field.name in SHARES and value > 1:
            raise InputError(f"{flag} is a share and at most 1, but {value} was given")


def _check_list(flag: str, values: tuple[Any, ...], may_be_empty: bool) -> None:
    # Nothing can be measured with no prompt or no task.
    if not values and not may_be_empty:
        rest = ", or leave it out for the default" if flag.startswith("--") else ""
        raise InputError(f"{flag} was given without a value: give at least one{rest}")
    if len(set(values)) < len(values):
        raise InputError(f"{flag} names one value twice ({', '.join(map(str, values))}): give each once")
