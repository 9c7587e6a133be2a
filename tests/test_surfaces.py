"""Points where they belong, gaps left missing, and an interpolation whose error is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import record_factory as make

from selectkd_eval import surfaces


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
