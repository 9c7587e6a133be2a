"""The automatic radius: where the mean rise is as asked, the same for all, and nothing probed twice."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selectkd_eval.landscapes.radius import FALLBACK, LARGEST, SMALLEST, automatic, two_digits

V = 10**9  # log V is far above every aim


def bowl(scale, power=2.0, floor=0.1, seen=None):
    def losses(points):
        if seen is not None:
            seen.extend(points)
        return [floor + scale * math.hypot(a, b) ** power for a, b in points]

    return losses


@given(st.floats(0.05, 500), st.floats(1.5, 3.5), st.floats(0.1, 5))
def test_the_rise_at_the_radius_is_the_one_asked_to_the_rounding_of_the_radius(scale, power, rise):
    exact = (rise / scale) ** (1 / power)
    found = automatic([bowl(scale, power)], rise, V)
    if SMALLEST < exact < LARGEST:
        assert found.value == two_digits(exact) or found.value == pytest.approx(exact, rel=0.051)
        assert "where the mean rise" in found.rule


def test_one_radius_for_all_students_where_their_mean_rises_by_so_much():
    found = automatic([bowl(1.0), bowl(3.0), bowl(8.0)], 1.0, V)
    assert found.value == 0.5  # (1 + 3 + 8) / 3 r^2 = 1


def test_it_is_not_the_radius_of_an_axis_that_falls():
    def tilted(points):
        return [1 + 5 * a + 4 * (a * a + b * b) for a, b in points]

    assert automatic([tilted], 1.0, V).value == 0.5  # plus and minus: the slope cancels


def test_no_point_is_probed_twice_and_few_are_when_the_first_rungs_hold_the_answer():
    seen: list[tuple[float, float]] = []
    automatic([bowl(4.0, seen=seen)], 1.0, V)
    assert len(seen) == len(set(seen)) == 1 + 3 * 4
    for scale in (0.01, 1000.0):
        seen.clear()
        found = automatic([bowl(scale, seen=seen)], 1.0, V)
        assert len(seen) == len(set(seen)) <= 1 + 9 * 4
        assert found.probes == tuple((0, a, b, 0.1 + scale * math.hypot(a, b) ** 2) for a, b in seen)


def test_the_aim_is_no_higher_than_knowing_nothing():
    found = automatic([bowl(4.0, floor=2.0)], 50.0, 16)
    room = math.log(16) - 2
    assert found.value == pytest.approx(math.sqrt(room / 4), rel=0.05)
    assert "log V - L0" in found.rule and "50 asked" in found.rule


@pytest.mark.parametrize("scale", [0.0, -1.0, 1e-9])
def test_a_loss_that_never_rises_so_far_is_said_to(scale):
    found = automatic([bowl(scale)], 1.0, V)
    assert found.value == FALLBACK
    assert "does not cross 1 nat between 0.25 and 8" in found.rule


def test_a_loss_that_is_not_finite_counts_as_high():
    def wall(points):
        return [0.1 if math.hypot(a, b) < 0.3 else math.nan for a, b in points]

    assert 0.25 < automatic([wall], 1.0, V).value < 0.5


@given(st.floats(-3e-6, 3e-6))
def test_devices_that_differ_in_the_last_bits_agree(error):
    exact = automatic([bowl(3.7), bowl(2.1)], 1.0, V).value
    assert automatic([bowl(3.7 * (1 + error)), bowl(2.1)], 1.0, V).value == exact
