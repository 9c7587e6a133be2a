"""Intervals over direction and training seeds: by hand, at the claimed level, and in the words that rest on them."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import record_factory as make
from landscape_rows import bowl
from scipy import stats as scipy_stats

from analysis.landscape_intervals import bases, crossed_t, paired, paired_scalar, profile, scalars
from analysis.landscape_words import lines
from analysis.landscapes import Landscapes, landscapes
from analysis.load import library
from selectkd_eval import flatness

METHODS = ("KD", "KD + Spec-k")


def measured(out: Path, seeds: tuple[int, ...] = (0, 1), **more: Any) -> Landscapes:
    more = {"grid": 5, "directions": 3, "scalars": 4, **more}
    make.landscape(out, [make.card(method, seed) for method in METHODS for seed in seeds], **more)
    return landscapes(library(out))


def test_one_factor_alone_is_students_t() -> None:
    values = np.array([1.0, 2.0, 4.0, 9.0])
    low, high = scipy_stats.t.interval(0.95, 3, values.mean(), values.std(ddof=1) / 2)
    for shaped in (values[None, :], values[:, None]):
        found = crossed_t(shaped)
        assert (found.value, found.low, found.high) == pytest.approx((4.0, low, high))
    assert "direction" in crossed_t(values[None, :]).method
    assert "training" in crossed_t(values[:, None]).method
    assert flatness.over_directions(values.tolist()).low == pytest.approx(low), "the same as for one student's scalars"


def test_two_factors_add_their_variances() -> None:
    # Seeds at 0 and 2, directions at 0, 1 and 5, nothing else: every cell is their sum.
    values = np.array([0.0, 2.0])[:, None] + np.array([0.0, 1.0, 5.0])[None, :]
    found = crossed_t(values)
    over_seeds, over_directions = 2.0 / 2, 7.0 / 3
    freedom = (over_seeds + over_directions) ** 2 / (over_seeds**2 / 1 + over_directions**2 / 2)
    half = scipy_stats.t.ppf(0.975, freedom) * math.sqrt(over_seeds + over_directions)
    assert (found.value, found.half_width) == pytest.approx((3.0, half))


@pytest.mark.parametrize("shape", [(1, 8), (3, 3), (3, 8)], ids=str)
@pytest.mark.parametrize("spread", [(0.0, 1.0, 0.3), (1.0, 0.0, 0.3), (1.0, 1.0, 1.0)], ids=str)
def test_the_interval_covers_at_least_what_it_claims(
    shape: tuple[int, int], spread: tuple[float, float, float]
) -> None:
    """Both draws counted, seeds of spread[0], directions of spread[1], the rest spread[2]; a single seed is given."""
    rng = np.random.default_rng(0)
    covered, runs = 0, 1000
    for _ in range(runs):
        seeds = rng.normal(0, spread[0] if shape[0] > 1 else 0.0, (shape[0], 1))
        directions = rng.normal(0, spread[1], (1, shape[1]))
        found = crossed_t(seeds + directions + rng.normal(0, spread[2], shape))
        covered += found.low <= 0 <= found.high
    assert covered / runs > 0.95 - 3 * math.sqrt(0.95 * 0.05 / runs)


def test_one_value_and_equal_values_have_no_interval() -> None:
    assert not crossed_t([[2.0]]).spread
    assert crossed_t([[2.0]]).method == "one direction seed, no interval"
    assert not crossed_t(np.ones((2, 3))).spread
    assert math.isnan(crossed_t([[1.0, float("nan")]]).value)


def test_pairs_are_of_one_training_seed_and_one_direction(tmp_path: Path) -> None:
    land = measured(tmp_path)
    kd, gated = (land.students(method) for method in land.methods)
    found = paired(gated, kd)
    assert found is not None
    assert found.values.shape == (2, 3, 3)
    one, other = gated[1].surfaces[2].profile()[1], kd[1].surfaces[2].profile()[1]
    assert found.values[1, 2] == pytest.approx(one - other)
    assert bases(library(tmp_path), land.methods) == {land.methods[1]: land.methods[0]}
    assert paired(gated[:1], kd[1:]) is None, "no training seed in common"


def test_a_paired_band_is_narrower_than_the_two_bands(tmp_path: Path) -> None:
    land = measured(tmp_path, seeds=(0,))
    kd, gated = (land.students(method) for method in land.methods)
    difference, one = paired(gated, kd), profile(kd)
    assert difference is not None
    assert one is not None
    assert difference.estimates()[-1].half_width < 0.5 * one.estimates()[-1].half_width


def test_scalars_are_means_over_students_and_directions(tmp_path: Path) -> None:
    land = measured(tmp_path)
    found = scalars(land, land.methods[0])
    assert list(found) == ["curvature", "flatness r", "flatness 2r", "sharpness rho"]
    each = [flatness.scalars(land.rows, plane.index)["curvature"].value for plane in land.students(land.methods[0])]
    assert found["curvature"].students == pytest.approx(tuple(each))
    assert found["curvature"].estimate.value == pytest.approx(np.mean(each))
    # Its directions are many of one seed; what has a pair of each seed are the planes.
    assert found["curvature"].estimate.method == "95 % t interval over 4 random directions and 2 training seeds"
    # Twice the mean over four angles of c (cos^2 + .7 sin^2 + .3 cos sin), c = 3 and 2.7 for the two students.
    assert each == pytest.approx([2 * 3.0 * 0.85, 2 * 2.7 * 0.85], rel=1e-6)
    difference = paired_scalar(land, land.methods[1], land.methods[0], "curvature")
    assert difference is not None
    assert difference.value == pytest.approx(-2 * 0.6 * 0.85, rel=1e-6)
    assert paired_scalar(land, land.methods[1], land.methods[0], "sharpness rho") is None, "it has no directions"


@pytest.mark.parametrize("change", ["seed", "n_tokens"])
def test_scalars_measured_differently_are_not_compared(tmp_path: Path, change: str) -> None:
    land = measured(tmp_path)
    last = land.planes[-1].index
    rows = [
        {**row, change: 99} if row["kind"] == "scalar" and row["student"] == last and change in row else row
        for row in land.rows
    ]
    assert paired_scalar(land, land.methods[1], land.methods[0], "curvature") is not None
    other = dataclasses.replace(land, rows=rows)
    assert paired_scalar(other, land.methods[1], land.methods[0], "curvature") is None


def test_the_words_follow_the_intervals(tmp_path: Path) -> None:
    measured(tmp_path)
    (line,) = lines(library(tmp_path))
    assert line.startswith("Loss landscape: KD + Spec-k rises less than KD at distance 0.30 (−0.0479")
    assert "its curvature is smaller" in line
    assert line.endswith("(3 pairs of directions, 2 training seeds).")
    assert "better" not in line


def test_an_order_that_flips_with_the_distance_is_said(tmp_path: Path) -> None:
    def crossing(student: int, a: float, b: float) -> float:
        square = a * a + b * b
        return bowl(0, a, b) if student == 0 else bowl(0, a, b) + 0.3 * square - 3 * square * square

    measured(tmp_path, seeds=(0,), loss=crossing, grid=11, scalars=0)
    (line,) = lines(library(tmp_path))
    assert "rises more than KD at distance 0.3" in line
    assert "but rises less than it at distance 0.5" in line
    assert "one student each: another training seed may differ by more" in line


def test_one_pair_of_directions_says_nothing(tmp_path: Path) -> None:
    measured(tmp_path, directions=1, scalars=0)
    (line,) = lines(library(tmp_path))
    assert line.startswith("The landscapes do not say")


def test_no_landscapes_and_no_base_have_no_words(tmp_path: Path) -> None:
    make.passk(tmp_path, make.card("KD", 0), n=5)
    assert lines(library(tmp_path)) == []
    make.landscape(tmp_path, [make.card("KD", 0)], grid=5)
    assert lines(library(tmp_path)) == []
