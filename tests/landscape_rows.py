"""Rows of a landscape record with made-up losses: bowls that anyone can compute by hand."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

Loss = Callable[[int, float, float], float]
N_TOKENS = 1000
# Facts that every landscape here shares; who is measured on what, the caller says.
LANDSCAPE_FACTS: dict[str, Any] = {
    "loss": "token-mean forward KL",
    "radius_rule": "as asked",
    "moved": "all",
    "directions": "Gaussian, normalised per output row",
    "params_zeroed": 5,
    "folded": {"folded": {"norm": ["head"]}, "left": {}},
    "vocabulary": 512,
    "dtype": "float32",
    "attention": "sdpa",
    "k": 5,
    "tolerance": 0.005,
}


def bowl(student: int, a: float, b: float) -> float:
    """A tilted bowl; each further student lies higher and flatter."""
    return 0.2 + 0.02 * student + (3.0 - 0.3 * student) * (a * a + 0.7 * b * b + 0.3 * a * b)


def landscape_rows(
    students: int,
    grid: int,
    radius: float,
    directions: int,
    loss: Loss | None = None,
    metrics: tuple[str, ...] = (),
    scalars: int = 0,
    held_out: int = 0,
) -> list[dict[str, Any]]:
    """Grid, held-out points, and scalars along so many directions. Along direction seed s
    the loss is a tenth of s steeper; a metric is 0.9 minus a fifth of the loss.
    """
    shape = loss or bowl
    axis = [radius * (2 * i / (grid - 1) - 1) for i in range(grid)]
    rng = random.Random("held out")
    places: list[tuple[str, dict[str, int], float, float]] = [
        (f"{i}/{j}", {"i": i, "j": j}, a, b) for i, a in enumerate(axis) for j, b in enumerate(axis)
    ]
    places += [(str(n), {"n": n}, radius * rng.uniform(-1, 1), radius * rng.uniform(-1, 1)) for n in range(held_out)]
    rows = []
    for student in range(students):
        for seed in range(directions):
            for at, place, a, b in places:
                kind, prefix = ("grid", "") if "i" in place else ("held-out", "held/")
                value = shape(student, a, b) * (1 + 0.1 * seed * (a * a + b * b))
                row = {"key": f"{prefix}{student}/{seed}/{at}", "kind": kind, "student": student, "seed": seed}
                sums = {f"{name}_sum": N_TOKENS * (0.9 - value / 5) for name in metrics}
                rows.append(
                    {**row, **place, "a": a, "b": b, "loss_sum": N_TOKENS * value, **sums, "n_tokens": N_TOKENS}
                )
        rows += _scalars(student, scalars, radius, shape)
    return rows


def _scalars(student: int, directions: int, radius: float, loss: Loss) -> list[dict[str, Any]]:
    """Losses along rays in the plane, and one ascent; none without directions."""
    place = {"kind": "scalar", "student": student, "n_tokens": N_TOKENS}
    rows: list[dict[str, Any]] = []
    for n in range(directions):
        angle = math.pi * n / directions
        for at, t in (("h", 0.02), ("r", radius / 2), ("2r", radius)):
            for sign, letter in ((1, "+"), (-1, "-")):
                value = loss(student, sign * t * math.cos(angle), sign * t * math.sin(angle))
                row = {**place, "name": "ray", "n": n, "at": letter + at, "seed": 0, "axis": 3 + n, "t": sign * t}
                rows.append({**row, "key": f"scalar/{student}/ray/{n}/{letter}{at}", "loss_sum": N_TOKENS * value})
    if directions:
        centre = N_TOKENS * loss(student, 0.0, 0.0)
        rows.append({**place, "key": f"scalar/{student}/centre", "name": "centre", "t": 0.0, "loss_sum": centre})
        ascent = {"rho": 0.1, "steps": 3, "loss_sums": [centre + 100, centre + 150, centre + 160]}
        rows.append({**place, "key": f"scalar/{student}/sharpness", "name": "sharpness", **ascent})
    return rows
