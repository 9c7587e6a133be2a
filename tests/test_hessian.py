"""Lanczos' eigenvalues against those of the whole Hessian, products by differences against two passes back."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from bowls import Bowl, Exact, Matrix, tiny_loss

from selectkd_eval import flatness, hessian, records
from selectkd_eval.curvature import Around
from selectkd_eval.directions import fingerprint
from selectkd_eval.verbs import LandscapeOptions


@cache
def exact(dtype: torch.dtype) -> torch.Tensor:
    """The whole Hessian of the small model, two passes back for each of its columns."""
    model, loss = tiny_loss(dtype)
    around = Around(model, loss, 0)
    with around.lent():
        around.move(around.plane.w0, 0.0)
        return Exact(model, loss, list(around.plane.parameters.values())).whole()


@pytest.mark.parametrize("normalised", [False, True], ids=["plain", "normalised"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_the_largest_eigenvalues_are_those_of_the_whole_matrix(normalised, dtype):
    model, loss = tiny_loss(dtype)
    around = Around(model, loss, 0)
    with around.lent():
        found = hessian.largest(around, normalised=normalised)
    whole = exact(dtype).double().numpy()
    assert len(whole) == 736
    scale = around.row_norms(per_entry=True).double().numpy() if normalised else np.ones(len(whole))
    whole = scale[:, None] * (whole + whole.T) / 2 * scale
    expected = np.linalg.eigvalsh(whole)[::-1][:3]
    np.testing.assert_allclose(found["eigenvalues"], expected, rtol=3e-3)
    assert 20 <= found["products"] <= 100
    assert max(found["residuals"]) < 0.01 * expected[0]
    assert found["products"] == around.gradients // 2


def test_a_product_by_differences_is_the_product_by_two_passes_back_in_every_direction():
    model, loss = tiny_loss(torch.float32)
    around = Around(model, loss, 0)
    generator = torch.Generator().manual_seed(0)
    with around.lent():
        around.move(around.plane.w0, 0.0)
        twice = Exact(model, loss, list(around.plane.parameters.values()))
        values, vectors = torch.linalg.eigh(exact(torch.float32))
        random = torch.randn(len(values), generator=generator)
        for v in (vectors[:, -1], vectors[:, -2], random / random.norm()):
            expected = twice.product(v)
            step = hessian.product_step(float(values[-1]))
            found = hessian.product(around, v, step)
            assert float((found - expected).norm()) < 2e-3 * float(values[-1])
            scale = around.row_norms(per_entry=True)
            scaled = scale * twice.product(scale * v)
            found = hessian.product(around, v, step / float((scale * v).norm()), scale)
            assert float((found - scaled).norm()) < 5e-3 * float(scaled.norm())


def test_a_bowls_eigenvalues_by_hand(tmp_path):
    # Rows of norms 5 and 1, two weights each: S = diag(5, 5, 1, 1) / sqrt(2), and H is diagonal.
    diagonal = [2.0, 6.0, 1.0, 8.0]
    loss = Bowl([1.0] * 4, [[value if i == j else 0.0 for j in range(4)] for i, value in enumerate(diagonal)])
    around = Around(Matrix([[3.0, 4.0], [0.0, 1.0]]), loss, 0)
    with records.open_record("landscape", LandscapeOptions(out=tmp_path), inputs={}, facts={}) as written:
        hessian.measure(written, 0, around)
        assert sorted(written.done) == sorted(hessian.keys(0))
        products = around.gradients
        hessian.measure(written, 0, around)
        assert around.gradients == products  # nothing is measured twice
        found = flatness.scalars(written.done.values(), 0)
    plain = [found[f"hessian_{place}"].value for place in (1, 2, 3)]
    assert plain == pytest.approx([8, 6, 2], rel=1e-3)
    scaled = [found[f"normalised_hessian_{place}"].value for place in (1, 2, 3)]
    assert scaled == pytest.approx([6 * 12.5, 2 * 12.5, 8 / 2], rel=1e-3)


@pytest.mark.parametrize("value", [0.0, float("nan")], ids=["zero", "not finite"])
def test_a_hessian_that_has_no_largest_eigenvalue_is_a_row_that_says_so(tmp_path, value):
    around = Around(Matrix([[3.0, 4.0], [0.0, 1.0]]), Bowl([1.0] * 4, [[value] * 4] * 4), 0)
    with records.open_record("landscape", LandscapeOptions(out=tmp_path), inputs={}, facts={}) as written:
        hessian.measure(written, 0, around)
        assert not written.done
    failed = records.read(written.path, unfinished_ok=True).failed
    assert [row["error"] for row in failed] == ["the largest eigenvalues were not found"] * 2


def test_a_rescaled_row_changes_plain_eigenvalues_and_no_normalised_one():
    # up_proj times c, down_proj's matching columns over c: the same function; columns are no rows, so c must be common.
    values = {}
    for c in (1.0, 3.0):
        model, loss = tiny_loss()
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight *= c
            model.model.layers[0].mlp.down_proj.weight /= c
        around = Around(model, loss, 0)
        with around.lent():
            for normalised in (False, True):
                values[c, normalised] = hessian.largest(around, normalised=normalised)["eigenvalues"][0]
    assert values[3.0, True] == pytest.approx(values[1.0, True], rel=2e-3)
    assert abs(values[3.0, False] / values[1.0, False] - 1) > 0.05


def test_weights_are_back_when_a_product_fails():
    model, loss = tiny_loss()
    before = fingerprint(dict(model.named_parameters()))
    around = Around(model, loss, 0)
    means, calls = loss.means, []

    def dying(model):
        calls.append(1)
        if len(calls) == 12:
            raise MemoryError
        return means(model)

    loss.means = dying
    with pytest.raises(MemoryError), around.lent():
        hessian.largest(around, normalised=False)
    assert fingerprint(dict(model.named_parameters())) == before
