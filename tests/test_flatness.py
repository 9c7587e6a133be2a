"""Scalars beside a landscape, by hand: means, t intervals over directions, differences direction by direction."""

from __future__ import annotations

import math

import pytest

from selectkd_eval.flatness import by_direction, scalars, settings

N, H, R = 10, 0.5, 1.0
T_2 = 4.302653  # the 97.5 % point of t with 2 degrees of freedom


def rows(student: int, curvatures: list[float], *, centre: float = 1.0, seed: int = 7, tilt: float = 0.3) -> list[dict]:
    """A student whose loss along direction n is centre + tilt t + curvatures[n] t^2 / 2, on N tokens."""
    found = [{"kind": "scalar", "student": student, "name": "centre", "t": 0.0, "loss_sum": centre * N, "n_tokens": N}]
    for n, bend in enumerate(curvatures):
        for at, t in {"+h": H, "-h": -H, "+r": R, "-r": -R, "+2r": 2 * R, "-2r": -2 * R}.items():
            loss = centre + tilt * t + bend * t * t / 2
            place = {"kind": "scalar", "student": student, "name": "ray", "n": n, "at": at, "seed": seed}
            found.append(place | {"t": t, "loss_sum": loss * N, "n_tokens": N})
    return found


def test_three_directions_give_a_mean_and_students_interval():
    found = scalars(rows(0, [1.0, 2.0, 3.0]), 0)
    assert list(found) == ["curvature", "flatness r", "flatness 2r"]
    for name, value in (("curvature", 2.0), ("flatness r", 1.0), ("flatness 2r", 4.0)):
        half = T_2 * (value / 2) / math.sqrt(3)
        assert found[name].value == pytest.approx(value)
        assert found[name].high - found[name].value == pytest.approx(half, rel=1e-6)
        assert found[name].value - found[name].low == pytest.approx(half, rel=1e-6)
        assert (found[name].n, found[name].method) == (3, "t over 3 directions")


def test_the_slope_at_the_student_changes_no_scalar():
    flat, tilted = (scalars(rows(0, [1.0, 2.0], tilt=tilt), 0) for tilt in (0.0, 5.0))
    for name in flat:
        assert flat[name].value == pytest.approx(tilted[name].value)


def test_one_direction_has_no_interval_and_an_unmeasured_scalar_is_absent():
    one = scalars(rows(0, [1.0]), 0)["curvature"]
    assert (one.n, one.spread) == (1, False)
    assert scalars(rows(0, [1.0]), 1) == {}
    assert scalars(rows(0, [1.0])[1:], 0) == {}  # without the centre there is no rise


def test_a_direction_with_a_loss_that_is_not_finite_is_left_out_of_that_scalar_alone():
    given = rows(0, [1.0, 2.0, 3.0])
    (bad,) = (row for row in given if row.get("n") == 1 and row["at"] == "-2r")
    del bad["loss_sum"]
    bad["error"] = "the loss is not finite here"
    found = by_direction(given, 0)
    assert sorted(found["flatness 2r"]) == [0, 2]
    assert sorted(found["curvature"]) == [0, 1, 2]
    assert scalars(given, 0)["flatness 2r"].n == 2


def test_sharpness_and_eigenvalues_stand_beside():
    given = [
        *rows(0, [1.0, 2.0]),
        {"kind": "scalar", "student": 0, "name": "sharpness", "rho": 0.1, "steps": 3, "n_tokens": N}
        | {"loss_sums": [15.0, 18.0, 17.0]},
        {"kind": "scalar", "student": 0, "name": "hessian", "coordinates": "plain", "eigenvalues": [5.0, 2.0]}
        | {"residuals": [0.1, 0.2], "products": 28},
        {"kind": "scalar", "student": 0, "name": "hessian", "coordinates": "normalised", "eigenvalues": [0.5]}
        | {"residuals": [0.01], "products": 20},
    ]
    found = scalars(given, 0)
    assert list(found) == [
        *("curvature", "flatness r", "flatness 2r", "sharpness rho"),
        *("hessian_1", "hessian_2", "normalised_hessian_1"),
    ]
    assert found["sharpness rho"].value == pytest.approx(0.8)  # the highest of the three, less the centre
    assert (found["hessian_1"].low, found["hessian_1"].high) == (pytest.approx(4.9), pytest.approx(5.1))
    assert found["normalised_hessian_1"].value == 0.5
    assert settings(given, 0) == {"seed": 7, "n_tokens": N, "h": H, "r": R, "2r": 2 * R, "rho": 0.1, "steps": 3}
