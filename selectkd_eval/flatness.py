"""How flat is it around a student? From a landscape's scalar rows to intervals.

Random directions are the sample: every measure that has one value per direction gets a t interval over directions.
That is the uncertainty of having drawn so many directions. Two students met the same ones, so they are compared
direction by direction: `by_direction` has the values, `settings` says whether they are the same. Which student another
training seed would have given is not in it, and the spread over training seeds is often the larger one: compare several
students of each method.

Flat in random directions does not mean better. Such directions find wide basins around nearly every large model, worst
directions find sharp walls around the same models (arXiv 2505.17646), and for transformers neither goes reliably with
generalisation (Andriushchenko et al. 2023, arXiv 2302.07011). The numbers describe the loss near a student; what it is
worth, other records say.

It draws no picture and runs no model: `curvature` and `hessian` measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from selectkd_eval.stats import Estimate, Floats, t_reach

Row = Mapping[str, Any]


def scalars(rows: Iterable[Row], student: int) -> dict[str, Estimate]:
    """Every scalar that was measured of a student; what was not measured is absent.

    Per direction, with t intervals over directions, n of them: "curvature", E[d'Hd], the filter-normalised trace of the
    Hessian, (L(h d) + L(-h d) - 2 L0) / h^2; "flatness r", the mean of L(r d) and L(-r d) minus L0, at half of the
    plane's radius, and "flatness 2r", at the radius. "sharpness rho": the highest loss found by one ascent within rho
    of the student, minus L0, a lower bound without an interval. "hessian_1", "hessian_2" ...: the largest eigenvalues
    of the Hessian as the weights are scaled, "normalised_hessian_1" ... in filter-normalised coordinates, each +-
    Lanczos' residual norm.
    """
    mine = _of(rows, student)
    found = {name: over_directions(list(values.values())) for name, values in by_direction(mine, student).items()}
    centre = _centre(mine)
    for row in mine:
        if row["name"] == "sharpness" and centre is not None:
            rise = max(row["loss_sums"]) / row["n_tokens"] - centre
            found["sharpness rho"] = Estimate(rise, rise, rise, 1, f"{len(row['loss_sums'])} ascent steps")
        if row["name"] == "hessian":
            kind = "hessian" if row["coordinates"] == "plain" else "normalised_hessian"
            for place, (value, error) in enumerate(zip(row["eigenvalues"], row["residuals"], strict=True), start=1):
                words = f"Lanczos, {row['products']} products, +- residual norm"
                found[f"{kind}_{place}"] = Estimate(value, value - error, value + error, 1, words)
    return found


def by_direction(rows: Iterable[Row], student: int) -> dict[str, dict[int, float]]:
    """Per measure, each direction's value: `{"curvature": {0: 1.3, 1: 1.4, ...}, ...}`.

    A direction of which a needed loss is missing or not finite has no value; a measure of none is absent.
    """
    mine = _of(rows, student)
    centre = _centre(mine)
    losses = {(row["n"], row["at"]): row["loss_sum"] / row["n_tokens"] for row in mine if row["name"] == "ray"}
    places = {row["at"]: float(row["t"]) for row in mine if row["name"] == "ray"}
    found: dict[str, dict[int, float]] = {}
    if centre is None:
        return found
    for name, at in (("curvature", "h"), ("flatness r", "r"), ("flatness 2r", "2r")):
        for n in sorted({n for n, _ in losses}):
            if (n, f"+{at}") in losses and (n, f"-{at}") in losses:
                rise = (losses[n, f"+{at}"] + losses[n, f"-{at}"]) / 2 - centre
                value = 2 * rise / places[f"+{at}"] ** 2 if name == "curvature" else rise
                found.setdefault(name, {})[n] = value
    return found


def settings(rows: Iterable[Row], student: int) -> dict[str, Any]:
    """What the scalars depend on beside student, loss and tokens: the directions' seed, h, r, 2r, rho, ascent steps."""
    found: dict[str, Any] = {}
    for row in _of(rows, student):
        if row["name"] == "ray":
            found |= {"seed": row["seed"], "n_tokens": row["n_tokens"], row["at"].lstrip("+-"): abs(row["t"])}
        if row["name"] == "sharpness":
            found |= {"rho": row["rho"], "steps": row["steps"], "n_tokens": row["n_tokens"]}
    return found


def over_directions(values: Iterable[float]) -> Estimate:
    """The mean with a t interval; one direction has no interval, none no mean."""
    sample: Floats = np.asarray(list(values), dtype=np.float64)
    n = len(sample)
    value = float(sample.mean()) if n else float("nan")
    if n < 2:
        return Estimate(value, value, value, n, "one direction" if n else "no data")
    half = float(t_reach(sample.std(ddof=1) / np.sqrt(n), n - 1))
    return Estimate(value, value - half, value + half, n, f"t over {n} directions")


def _of(rows: Iterable[Row], student: int) -> list[Row]:
    return [r for r in rows if r.get("kind") == "scalar" and r.get("student") == student and "error" not in r]


def _centre(rows: Iterable[Row]) -> float | None:
    """The loss of the student itself; None where it was not measured."""
    return next((row["loss_sum"] / row["n_tokens"] for row in rows if row["name"] == "centre"), None)
