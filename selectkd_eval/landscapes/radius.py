"""How far out is a landscape drawn? One radius for all students: where the loss has risen by so much, on average.

Filter normalisation makes the unit the weights' own norm, in which a language model's useful range is small and differs
between models: a fixed radius shows a flat floor or a cliff. So the loss is probed at plus and minus r along both axes
of every plane, at a ladder of r, until the mean rise over students and direction seeds lies between two rungs.

The answer is rounded to two digits, so that shares measured on different devices agree on it. The probes go into the
record as rows; they are taken before it is begun, because its header names the radius. A run killed before that probes
again, afterwards never.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

RUNGS = (0.25, 0.5, 1.0)
SMALLEST, LARGEST = 1 / 64, 8.0
DIRECTIONS = ((1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0))
FALLBACK = 1.0

# A plane's mean loss at points (a, b), in their order: NaN where it is not finite.
Probe = Callable[[Sequence[tuple[float, float]]], list[float]]


@dataclass(frozen=True)
class Radius:
    """The radius, the rule that gave it in words, and the mean loss at every probe: (plane, a, b, loss)."""

    value: float
    rule: str
    probes: tuple[tuple[int, float, float, float], ...] = ()


def automatic(planes: Sequence[Probe], rise: float, vocabulary: int) -> Radius:
    """Probe every plane until the mean rise is bracketed.

    The aim is `rise` nats, or where that is less what is left up to log(vocabulary), the loss of one who knows nothing.
    A loss that is not finite counts as above every aim.
    """
    probes: list[tuple[int, float, float, float]] = []
    centres: list[float] = []
    rises: dict[float, float] = {}
    aim = rise
    rungs: tuple[float, ...] = RUNGS
    while rungs:
        # With the first rungs, for a plane's student may have to be loaded for every turn.
        first = [] if centres else [(0.0, 0.0)]
        for index, plane in enumerate(planes):
            points = first + [(r * x, r * y) for r in rungs for x, y in DIRECTIONS]
            losses = plane(points)
            probes += [(index, a, b, loss) for (a, b), loss in zip(points, losses, strict=True)]
            centres += losses[: len(first)]
            around = losses[len(first) :]
            for place, r in enumerate(rungs):
                mine = around[4 * place : 4 * place + 4]
                gain = float(np.mean(mine)) - centres[index]
                rises[r] = rises.get(r, 0.0) + (gain if math.isfinite(gain) else math.inf) / len(planes)
        room = math.log(vocabulary) - float(np.mean(centres))
        aim = min(rise, room) if room > 0 else rise
        rungs = _more(rises, aim)
    value = _crossing(rises, aim)
    words = f"{aim:.3g} nat{'' if aim == 1 else 's'}"
    over = f"{len(planes)} plane{'' if len(planes) == 1 else 's'}"
    capped = f" (log V - L0; {rise:g} asked)" if aim < rise else ""
    if value is None:
        where = f"between {min(rises):g} and {max(rises):g}"
        rule = f"{FALLBACK:g}, because the mean rise does not cross {words}{capped} {where}"
        return Radius(FALLBACK, rule, tuple(probes))
    return Radius(
        value,
        f"where the mean rise along both axes over {over} is {words}{capped}, to two digits",
        tuple(probes),
    )


def two_digits(value: float) -> float:
    """The value to two significant digits."""
    return float(f"{value:.1e}")


def _more(rises: dict[float, float], aim: float) -> tuple[float, ...]:
    """The next rungs, outward or inward; none when the aim is bracketed or the ladder ends."""
    low, high = min(rises), max(rises)
    if rises[low] >= aim and low > SMALLEST:
        return (low / 4, low / 2)
    if max(rises.values()) < aim and high < LARGEST:
        return (high * 2, high * 4) if high * 4 <= LARGEST else (high * 2,)
    return ()


def _crossing(rises: dict[float, float], aim: float) -> float | None:
    """Where the rise first reaches the aim, between two rungs; a rise is close to a power of the radius."""
    rungs = sorted(rises)
    for low, high in pairwise(rungs):
        if rises[low] < aim <= rises[high]:
            if rises[low] <= 0 or not math.isfinite(rises[high]):
                return two_digits(math.sqrt(low * high))
            slope = math.log(rises[high] / rises[low]) / math.log(high / low)
            return two_digits(low * (aim / rises[low]) ** (1 / slope))
    return None
