"""Points where they belong, gaps left missing, and an interpolation whose error is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import record_factory as make

from selectkd_eval import surfaces
from selectkd_eval.errors import InputError
from selectkd_eval.landscapes import points


def test_surface_places_points_by_coordinate_and_leaves_gaps_missing(tmp_path: Path) -> None:
    record = make.landscape(tmp_path, [make.card("KD", 0)], grid=5, directions=1)
    rows = [row for row in record.rows if not (row["i"] == 4 and row["j"] == 0)]
    found = surfaces.surface(list(reversed(rows)), 0, 0)
    assert np.isnan(found.loss[4, 0])
    assert np.isfinite(found.loss).sum() == 24
    assert found.centre == pytest.approx(0.2)


def test_profile_of_a_round_bowl_is_its_parabola(tmp_path: Path) -> None:
    bowl = make.landscape(tmp_path, [make.card("KD", 0)], directions=1, loss=lambda s, a, b: 1 + a * a + b * b)
    radii, rises = surfaces.surface(bowl.rows, 0, 0).profile()
    assert radii[0] == rises[0] == 0
    assert len(radii) == 6
    # Within a ring the mean of r squared is a little above the square of the mean r.
    assert np.all((rises - radii**2 >= -1e-12) & (rises - radii**2 < 0.002))


def test_a_loss_that_is_not_finite_leaves_its_ring_without_a_rise(tmp_path: Path) -> None:
    record = make.landscape(tmp_path, [make.card("KD", 0)], grid=5, directions=1)
    # The whole edge a = radius: the axis must keep its length, or every distance would be another.
    rows = [
        {**{k: v for k, v in row.items() if k != "loss_sum"}, "error": "not finite"} if row["i"] == 4 else row
        for row in record.rows
    ]
    found = surfaces.surface(rows, 0, 0)
    assert found.a.tolist() == found.b.tolist() == [-0.5, -0.25, 0, 0.25, 0.5]
    radii, rises = found.profile()
    assert np.isfinite(radii).all()
    assert np.isfinite(rises).tolist() == [True, True, False]


# ---- between the points ------------------------------------------------------------


def lay(function, grid=11, radius=1.0, held=(), refined=(), student=0):
    """Rows of a surface that is known everywhere, in the form of a landscape record's."""
    place = {"student": student, "seed": 0, "n_tokens": 7}
    chosen = [{"kind": "grid", "a": p.a, "b": p.b} for p in points.grid_points(radius, grid)]
    chosen += [{"kind": "held-out", "a": a, "b": b} for a, b in held]
    chosen += [{"kind": "refined", "a": p.a, "b": p.b, "level": p.place["level"]} for p in refined]
    return [{**place, **row, "loss_sum": 7 * function(row["a"], row["b"])} for row in chosen]


def held_out(count=64, radius=1.0, seed=0):
    return [(p.a, p.b) for p in points.held_out_points(radius, count, seed)]


@pytest.mark.parametrize("power", [1, 2, 3])
def test_a_polynomial_up_to_cubic_is_met_exactly_between_the_points(power):
    found = surfaces.surface(lay(lambda a, b: 1 + (a - 0.3 * b) ** power + b**power, held=held_out()), 0, 0)
    assert len(found.errors) == 64
    assert found.residual < 1e-12


def test_the_residual_is_the_largest_difference_at_the_points_held_out():
    def bump(a, b):
        return 1 + a * a + b * b + 0.5 * np.exp(-40 * ((a - 0.37) ** 2 + (b + 0.21) ** 2))

    held = held_out()
    found = surfaces.surface(lay(bump, held=held), 0, 0)
    alone = surfaces.surface(lay(bump), 0, 0)
    assert np.isnan(alone.residual), "nothing was held out"
    a, b = np.array(held).T
    expected = np.abs(alone.at(a, b) - bump(a, b)).max()
    assert found.residual == pytest.approx(expected) and expected > 1e-3
    assert np.array_equal(found.at(a, b), alone.at(a, b)), "points held out are not interpolated through"
    assert found.range == pytest.approx(alone.loss.max() - alone.loss.min())


def test_the_interpolation_goes_through_every_measured_point():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(11, 11))
    axis = np.linspace(-1, 1, 11)
    found = surfaces.Surface(axis, axis, values, np.ones((11, 11), dtype=bool))
    a, b = (x.ravel() for x in np.meshgrid(axis, axis, indexing="ij"))
    assert np.allclose(found.at(a, b), values.ravel(), atol=1e-12)
    assert np.isnan(found.at(np.array([1.1, 0, -1.01]), np.array([0, 1.1, -1.01]))).all(), "nothing outside the plane"


def test_a_missing_point_leaves_its_four_cells_empty_and_the_rest_interpolated():
    rows = lay(lambda a, b: 1 + a * a + 0.5 * b * b)
    broken = [
        {k: v for k, v in row.items() if k != "loss_sum"} | {"error": "x"}
        if (row["a"], row["b"]) == (0.2, 0.4)
        else row
        for row in rows
    ]
    found = surfaces.surface(broken, 0, 0)
    assert found.n_measured == 120
    near = found.at(np.array([0.1, 0.3, 0.1, 0.3]), np.array([0.3, 0.3, 0.5, 0.5]))
    assert np.isnan(near).all()
    a, b = np.array([-0.5, 0.05, 0.71]), np.array([-0.33, 0.93, 0.11])
    assert np.allclose(found.at(a, b), 1 + a * a + 0.5 * b * b, atol=0.02)
    fine = found.fine(51)
    a, b = np.meshgrid(fine.a, fine.b, indexing="ij")
    hole = (np.abs(a - 0.2) < 0.199) & (np.abs(b - 0.4) < 0.199)
    assert np.isnan(fine.loss[hole]).all() and hole.sum() > 50
    assert np.isfinite(fine.loss[(np.abs(a - 0.2) > 0.201) | (np.abs(b - 0.4) > 0.201)]).all()
    assert np.nanmax(fine.loss) <= np.nanmax(found.loss)


def test_the_fine_surface_stays_within_what_was_measured_and_is_marked_as_not_measured():
    found = surfaces.surface(lay(lambda a, b: np.tanh(20 * (a + b))), 0, 0)
    a, b = (x.ravel() for x in np.meshgrid(np.linspace(-1, 1, 51), np.linspace(-1, 1, 51), indexing="ij"))
    assert np.abs(found.at(a, b)).max() > 1.02, "the spline overshoots"
    fine = found.fine(51)
    assert fine.loss.shape == (51, 51) and np.abs(fine.loss).max() <= 1
    assert not fine.measured.any()
    whole = surfaces.surface(lay(lambda a, b: a + b, grid=51), 0, 0)
    assert whole.fine(51) is whole, "a surface that was measured whole is drawn as it is"


def test_a_metric_has_its_own_surface_and_one_not_measured_is_refused():
    rows = [{**row, "tar_sum": 7 * row["a"]} for row in lay(lambda a, b: 1.0)]
    assert surfaces.surface(rows, 0, 0, "tar").loss[-1, 0] == pytest.approx(1.0)
    with pytest.raises(InputError, match="--metric alpha"):
        surfaces.surface(rows, 0, 0, "alpha")
    with pytest.raises(InputError, match="no landscape point of student 1"):
        surfaces.surface(rows, 1, 0)


# ---- further points where the surface bends ------------------------------------------------------------


def ridge(a, b):
    """Smooth but for one sharp bump, as beside a wall of a basin."""
    return 1 + 0.3 * (a * a + b * b) + np.exp(-60 * ((a - 0.5) ** 2 + (b - 0.5) ** 2))


def refine(functions, tolerance=0.005, held=None):
    """Refine as the verb does; the surfaces after every level, and the points of all levels."""
    held = held_out(200) if held is None else held
    chosen: list[points.Point] = []
    within: list[points.Point] = []
    steps = []
    for level in range(1, surfaces.LEVELS + 2):
        now = [surfaces.surface(lay(function, held=held, refined=chosen), 0, 0) for function in functions]
        steps.append(now)
        within = points.refined_points(now, tolerance, 1.0, 11, level, within)
        chosen += within
    return steps, chosen


def test_refinement_takes_down_the_residual_of_a_sharp_surface_with_few_points():
    steps, chosen = refine([ridge])
    off = [now[0].residual / now[0].range for now in steps]
    assert off[0] > 0.01 and off[1] < off[0] / 2 and off[2] < off[1], off
    assert {point.place["level"] for point in chosen} == {1, 2}
    assert len(chosen) < 300 < 41 * 41 - 121, "a fraction of the lattice"
    last = steps[-1][0]
    assert last.loss.shape == (41, 41) and last.stride == 4
    assert last.n_measured == 121 + len(chosen)
    assert np.allclose(last.loss[::4, ::4], steps[0][0].loss)
    # The profile is that of the grid, so that surfaces refined in different places have the same rings.
    assert np.array_equal(last.profile()[0], steps[0][0].profile()[0])
    assert np.allclose(last.profile()[1], steps[0][0].profile()[1])


def test_a_cell_is_in_doubt_where_the_true_error_is_and_not_where_the_surface_is_merely_steep():
    assert surfaces.surface(lay(lambda a, b: 9 * (a + b) ** 2 + a * a), 0, 0).doubt().max() < 1e-9
    found = surfaces.surface(lay(ridge), 0, 0)
    a, b = np.meshgrid(np.linspace(-1, 1, 201), np.linspace(-1, 1, 201), indexing="ij")
    off = np.abs(found.at(a.ravel(), b.ravel()).reshape(201, 201) - ridge(a, b))
    cells = np.array([[off[20 * i : 20 * i + 21, 20 * j : 20 * j + 21].max() for j in range(10)] for i in range(10)])
    worst, doubted = np.argsort(-cells, axis=None)[:15], np.argsort(-found.doubt(), axis=None)[:25]
    assert len(set(worst) & set(doubted)) >= 13
    rows = lay(ridge)
    (missing,) = (row for row in rows if np.allclose((row["a"], row["b"]), 0))
    del missing["loss_sum"]
    missing["error"] = "not finite"
    around = np.argwhere(np.isnan(surfaces.surface(rows, 0, 0).doubt())).tolist()
    # The four cells around it, and those below whose upper edge belongs to one of the four.
    assert around == [[3, 4], [3, 5], [4, 3], [4, 4], [4, 5], [5, 3], [5, 4], [5, 5]]


def test_a_smooth_surface_is_not_refined():
    for function in (lambda a, b: 1 + a * a + b * b, lambda a, b: 0 * a):
        steps, chosen = refine([function])
        assert not chosen and len({now[0].loss.shape for now in steps}) == 1


def test_without_points_held_out_nothing_says_that_refinement_is_needed():
    assert not refine([ridge], held=[])[1]


def test_all_students_are_refined_where_one_needs_it():
    def other(a, b):
        return 1 + 0.3 * (a * a + b * b)

    alone, together = refine([ridge])[1], refine([other, ridge])[1]
    assert together == alone


def test_points_of_a_finer_lattice_that_were_not_measured_take_the_coarser_splines_value():
    coarse = surfaces.surface(lay(ridge), 0, 0)
    finer = surfaces.halved(coarse, [(0.5, 0.5, 99.0)])
    untouched = surfaces.halved(coarse, [])
    a, b = (x.ravel() for x in np.meshgrid(np.linspace(-1, 1, 37), np.linspace(-1, 1, 37), indexing="ij"))
    assert np.allclose(untouched.at(a, b), coarse.at(a, b), atol=1e-9), "no further point, the same spline"
    assert finer.at(np.array([0.5]), np.array([0.5])) == pytest.approx(99.0)
    assert finer.n_measured == 122


def test_held_out_points_are_off_the_grid_spread_and_the_same_for_the_same_seed():
    found = points.held_out_points(0.4, 16, 3)
    assert found == points.held_out_points(0.4, 16, 3) != points.held_out_points(0.4, 16, 4)
    for axis in ("a", "b"):
        values = np.sort([getattr(p, axis) for p in found])
        assert np.array_equal(np.floor((values / 0.4 + 1) * 8), np.arange(16)), "one in every strip"
    assert points.held_out_points(0.4, 0, 3) == []


@pytest.mark.parametrize("share", ["0/2", "3/2", "1", "a/b", "1/", "-1/2", "1/2/3"])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(InputError, match="--share"):
        points.share_of(share)


def test_shares_count_from_one():
    assert [points.share_of(f"{k}/3") for k in (1, 2, 3)] == [(0, 3), (1, 3), (2, 3)]
    assert points.share_of("") == (0, 1)
