"""Curvature, flatness and worst case of losses whose derivatives are known; what was measured is not measured again."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from bowls import Bowl, Exact, Matrix, tiny_loss

from selectkd_eval import flatness, records
from selectkd_eval.curvature import FIRST_AXIS, RHO, STEP, Around, keys, measure, sharpness
from selectkd_eval.directions import fingerprint, noise
from selectkd_eval.verbs import LandscapeOptions

WEIGHT = [[3.0, 4.0], [0.0, 1.0]]  # rows of norms 5 and 1
SLOPE = [1.0, 1.0, 1.0, 1.0]
HESSIAN = [[2.0, 0.0, 0.0, 0.0], [0.0, 6.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.5], [0.0, 0.0, 0.5, 3.0]]


def record(out: Path) -> records.Writer:
    return records.open_record("landscape", LandscapeOptions(out=out), inputs={}, facts={})


def drawn(n: int, seed: int = 0) -> torch.Tensor:
    """Direction n of the matrix above: noise, each row brought to the length of its row."""
    raw = noise(seed, 3 + n, "weight", torch.Size([2, 2])).double()
    return (raw / raw.norm(dim=1, keepdim=True) * torch.tensor([[5.0], [1.0]])).flatten()


def test_a_bowls_curvature_is_d_h_d_and_its_rise_half_of_that_times_r_squared(tmp_path):
    loss = Bowl(SLOPE, HESSIAN)
    with record(tmp_path) as written:
        measure(written, 0, Around(Matrix(WEIGHT), loss, 0), radius=0.8, directions=3)
        values = flatness.by_direction(written.done.values(), 0)
    for n in range(3):
        d = drawn(n)
        bend = float(d @ loss.hessian @ d)
        assert values["curvature"][n] == pytest.approx(bend, rel=1e-6)
        assert values["flatness r"][n] == pytest.approx(0.4**2 * bend / 2, rel=1e-6)
        assert values["flatness 2r"][n] == pytest.approx(0.8**2 * bend / 2, rel=1e-6)


def test_rows_hold_what_was_measured_and_say_where(tmp_path):
    with record(tmp_path) as written:
        measure(written, 1, Around(Matrix(WEIGHT), Bowl(SLOPE, HESSIAN), 5), radius=0.8, directions=2)
        rows = written.done
    assert sorted(rows) == sorted(keys(1, 2))
    w = torch.tensor(WEIGHT, dtype=torch.float64).flatten()
    row = rows["scalar/1/ray/1/-2r"]
    at = w - 0.8 * drawn(1, seed=5)
    value = float(at.sum() + at @ torch.tensor(HESSIAN, dtype=torch.float64) @ at / 2)
    assert row["loss_sum"] == pytest.approx(10 * value)
    assert {name: row[name] for name in ("kind", "student", "name", "n", "at", "t", "seed", "axis", "n_tokens")} == {
        **{"kind": "scalar", "student": 1, "name": "ray", "n": 1, "at": "-2r", "t": -0.8},
        **{"seed": 5, "axis": FIRST_AXIS + 1, "n_tokens": 10},
    }
    assert rows["scalar/1/ray/0/+h"]["t"] == STEP and rows["scalar/1/centre"]["t"] == 0


def test_no_direction_of_the_scalars_is_one_of_a_plane():
    around = Around(Matrix(WEIGHT), Bowl(SLOPE, HESSIAN), 0)
    mine = [around.plane.direction(0, FIRST_AXIS + n) for n in range(4)]
    planes = [around.plane.direction(seed, axis) for seed in range(4) for axis in (1, 2)]
    every = mine + planes
    assert not any(torch.equal(a, b) for i, a in enumerate(every) for b in every[:i])


def test_the_mean_curvature_is_the_filter_normalised_trace():
    # E[d d'] of a row is |w|^2 / n times the identity: 25/2 (2 + 6) + 1/2 (1 + 3) = 102.
    around = Around(Matrix(WEIGHT), loss := Bowl(SLOPE, HESSIAN), 0)
    assert float((around.row_norms(per_entry=True) ** 2) @ loss.hessian.diagonal()) == pytest.approx(102)
    sample = [float(d @ loss.hessian @ d) for d in (around.plane.direction(0, 3 + n) for n in range(400))]
    estimate = flatness.over_directions(sample)
    assert abs(estimate.value - 102) < 2 * estimate.half_width


def test_the_worst_case_of_a_plain_slope_is_rho_times_the_slope_in_units_of_rows():
    around = Around(Matrix(WEIGHT), Bowl(SLOPE, [[0.0] * 4] * 4), 0)
    with around.lent():
        found = sharpness(around)
        here = around.loss_sum(around.plane.w0, 0.0)
    rise = (max(found["loss_sums"]) - here) / 10
    assert rise == pytest.approx(RHO * math.sqrt(25 + 25 + 1 + 1))
    assert found["gradient_norms"] == pytest.approx([math.sqrt(52)] * 3)


def test_the_worst_case_of_a_bowl_lies_between_slope_and_slope_with_largest_eigenvalue():
    around = Around(Matrix(WEIGHT), loss := Bowl(SLOPE, HESSIAN), 0)
    scale = around.row_norms()
    top = float(torch.linalg.eigvalsh(scale[:, None] * loss.hessian * scale)[-1])
    with around.lent():
        slope = float((around.gradient(scale, 0.0) * scale).norm())
        here = around.loss_sum(scale, 0.0)
        rises = [(value - here) / 10 for value in sharpness(around, rho=0.3, steps=6)["loss_sums"]]
    assert 0.3 * slope <= rises[0] <= max(rises) <= 0.3 * slope + 0.3**2 * top / 2
    assert all(later >= earlier - 1e-9 for earlier, later in pairwise(rises))
    # No point of the same sphere along a random direction is worse.
    directions = torch.randn(500, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    w = torch.tensor(WEIGHT, dtype=torch.float64).flatten()
    for u in directions:
        at = w + scale * u * 0.3 / u.norm()
        assert float(loss.slope @ at + at @ loss.hessian @ at / 2) - here / 10 <= max(rises) + 1e-3


def test_where_there_is_no_slope_the_ascent_says_so(tmp_path):
    with record(tmp_path) as written:
        measure(written, 0, Around(Matrix(WEIGHT), Bowl([0.0] * 4, [[0.0] * 4] * 4), 0), radius=1.0, directions=1)
        assert "scalar/0/sharpness" not in written.done
    (row,) = (row for row in records.read(written.path, unfinished_ok=True).failed)
    assert "there is no way up" in row["error"]


def test_central_differences_are_the_exact_second_derivative_to_a_per_cent():
    model, loss = tiny_loss()
    around = Around(model, loss, 0)
    with around.lent():
        d = torch.stack([around.plane.direction(0, FIRST_AXIS + n) for n in range(4)])
        around.move(d[0], 0.0)
        exact = Exact(model, loss, list(around.plane.parameters.values()))
        bends = [float(v @ exact.product(v)) for v in d]
        here = around.loss_sum(d[0], 0.0)
        for v, bend in zip(d, bends, strict=True):
            both = around.loss_sum(v, STEP) + around.loss_sum(v, -STEP)
            assert (both - 2 * here) / STEP**2 / loss.n_tokens == pytest.approx(bend, rel=0.01)


def test_a_half_precision_student_is_measured_in_full_precision():
    model, loss = tiny_loss(torch.float32)
    half = model.to(torch.bfloat16)
    around = Around(half, loss, 0)
    with around.lent():
        measured = around.loss_sum(around.plane.direction(0, 3), 1e-4)
        gradient = around.gradient(around.plane.w0, 0.0)
    full = Around(half.float(), loss, 0)
    with full.lent():
        assert measured == pytest.approx(full.loss_sum(full.plane.direction(0, 3), 1e-4), rel=1e-6)
        assert torch.allclose(gradient, full.gradient(full.plane.w0, 0.0), atol=1e-5)


def test_a_resumed_run_measures_only_what_is_missing_and_gets_the_same_rows(tmp_path):
    whole = Bowl(SLOPE, HESSIAN)
    with record(tmp_path / "whole") as written:
        measure(written, 0, Around(Matrix(WEIGHT), whole, 0), radius=0.8, directions=3)
        expected = dict(written.done)
    assert whole.asked == 1 + 3 * 6 + 3
    asked = 0
    for stop in (5, 1, 9, -1):
        loss = Bowl(SLOPE, HESSIAN)
        loss.fails_at = stop
        with record(tmp_path / "part") as written:
            try:
                measure(written, 0, Around(Matrix(WEIGHT), loss, 0), radius=0.8, directions=3)
            except KeyboardInterrupt:
                assert stop >= 0
            found = dict(written.done)
        asked += loss.asked
    assert found == expected
    assert asked == whole.asked


def test_shares_together_are_the_whole(tmp_path):
    with record(tmp_path / "whole") as written:
        measure(written, 0, Around(Matrix(WEIGHT), Bowl(SLOPE, HESSIAN), 0), radius=0.8, directions=3)
        expected = dict(written.done)
    found = {}
    every = keys(0, 3)
    for share in range(3):
        with record(tmp_path / str(share)) as written:
            around = Around(Matrix(WEIGHT), Bowl(SLOPE, HESSIAN), 0)
            measure(written, 0, around, radius=0.8, directions=3, mine=set(every[share::3]).__contains__)
            assert len(written.done) == len(every[share::3])
            found |= written.done
    assert found == expected


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_weights_and_settings_are_the_models_own_after_a_failure(error):
    model, loss = tiny_loss(torch.float32)
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    before = fingerprint(dict(model.named_parameters())), [p.requires_grad for p in parameters]
    around = Around(model, loss, 0)

    def fail() -> None:
        with around.lent():
            around.gradient(around.plane.direction(0, 3), 0.5)
            raise error

    with pytest.raises(error):
        fail()
    assert (fingerprint(dict(model.named_parameters())), [p.requires_grad for p in parameters]) == before
    assert all(parameter.grad is None for parameter in parameters)
