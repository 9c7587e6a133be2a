"""How sharp is the sharpest way up from a student? The largest eigenvalues of the loss's Hessian (`--hessian`).

Lanczos with full re-orthogonalisation (ARPACK through scipy: plain power iteration is far from converged after as many
products), twice: for H itself, which depends on how the weights are scaled, and for S H S in filter-normalised
coordinates, S = |w_i| / sqrt(n_i) for a row of n_i weights, whose trace is the curvature E[d'Hd] of `curvature`.

A product H v is the difference of two gradients: first derivatives only, so it works with every attention kernel (the
second derivative of fused attention does not exist), takes no memory beyond training's, and is exact to a few parts in
ten thousand in fp32. The step along v decides that: too long and the loss is no longer quadratic, too short and
rounding takes over. What suits is a small change of the loss, whatever the model; see `product_step`.

The moved matrices only; gains and biases have no share in H. Memory on the host: about 25 fp32 copies of the weights.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor

from selectkd_eval.curvature import Around
from selectkd_eval.directions import noise

COORDINATES = ("plain", "normalised")
EIGENVALUES = 3
RISE = 1e-6  # nats: half of v'Hv e^2 for the step e along v; twice this error at 1e-5, rounding below 1e-7
TOLERANCE = 1e-3  # of an eigenvalue; below it is the noise of differences
SUBSPACE = 20  # Lanczos vectors
RESTARTS = 20
WARM = 4  # power steps to learn the scale of H, for the step's length
FIRST_STEP = 1e-3  # as the sharpness' rho: in units of the rows' norms


def keys(student: int) -> list[str]:
    """The record's keys of a student's Hessian rows."""
    return [f"scalar/{student}/hessian/{coordinates}" for coordinates in COORDINATES]


def measure(
    record: Any,
    student: int,
    around: Around,
    *,
    mine: Callable[[str], bool] = lambda key: True,
    advance: Callable[[], object] = lambda: None,
) -> None:
    """Write the Hessian rows of a student that its record lacks."""
    for coordinates, key in zip(COORDINATES, keys(student), strict=True):
        if key in record.done or not mine(key):
            continue
        place = {"kind": "scalar", "student": student, "name": "hessian", "coordinates": coordinates}
        with around.lent():
            found = largest(around, normalised=coordinates == "normalised")
        if found["eigenvalues"] and np.isfinite(found["eigenvalues"] + found["residuals"]).all():
            record.write(key, **place, **found)
        else:
            record.write(key, **place, products=found["products"], error="the largest eigenvalues were not found")
        advance()


def largest(around: Around, *, normalised: bool, count: int = EIGENVALUES) -> dict[str, Any]:
    """The `count` largest eigenvalues, descending, of H or of S H S; to be called inside `around.lent()`.

    `residuals` are ``|H v - lambda v|`` of unit vectors v, from a product of its own each: an eigenvalue of H lies no
    farther from lambda, products being exact. `products` counts them all (two gradients each). Both lists are empty
    where Lanczos does not get there.
    """
    scale = around.row_norms(per_entry=True) if normalised else None
    before = around.gradients
    like, size = around.plane.w0, around.plane.w0.numel()
    start = noise(around.seed, 0, "lanczos", like.shape).to(like)
    first, step = _warm(around, start / start.norm(), scale)

    def apply(vector: NDArray[Any]) -> NDArray[Any]:
        v = torch.from_numpy(np.array(vector).ravel()).to(like)
        norm = float(v.norm())
        return np.asarray((norm * product(around, v / norm, step, scale) if norm else v).cpu())

    v0 = first.cpu().numpy()
    operator = LinearOperator(shape=(size, size), matvec=apply, dtype=v0.dtype)
    count = min(count, size - 1)
    vectors_kept = min(size, max(SUBSPACE, 2 * count + 1))
    values, vectors = np.empty(0), np.empty((size, 0))
    # A Hessian of zeros, or a loss that is not finite around the student, gives ARPACK nothing to work with; of a run
    # out of restarts the part that did converge is no list of the largest.
    with contextlib.suppress(ArpackError):
        values, vectors = eigsh(operator, count, which="LA", v0=v0, ncv=vectors_kept, tol=TOLERANCE, maxiter=RESTARTS)
    order = np.argsort(values)[::-1]
    residuals = [float(np.linalg.norm(apply(vectors[:, i]) - values[i] * vectors[:, i])) for i in order]
    return {
        "eigenvalues": [float(values[i]) for i in order],
        "residuals": residuals,
        "products": (around.gradients - before) // 2,
        "step": step,
        "tolerance": TOLERANCE,
    }


def product(around: Around, v: Tensor, step: float, scale: Tensor | None = None) -> Tensor:
    """``H v``, or ``S H S v`` with S = diag(scale), by a central difference of gradients `step` to each side."""
    along = v if scale is None else scale * v
    found = (around.gradient(along, step) - around.gradient(along, -step)) / (2 * step)
    return found if scale is None else scale * found


def product_step(curvature: float) -> float:
    """The step e along a unit vector for which half of `curvature` e^2 is RISE.

    Measured on this package's models, in random directions and the sharpest one alike: a few parts in 10,000.
    """
    return math.sqrt(2 * RISE / curvature)


def _warm(around: Around, v: Tensor, scale: Tensor | None) -> tuple[Tensor, float]:
    """A unit vector near the sharpest directions, and the step that suits them, from a few power steps."""
    norms = around.row_norms()
    relative = (v if scale is None else scale * v) / norms.clamp_min(1e-10) * (norms > 0)
    step = FIRST_STEP / max(float(relative.norm()), 1e-10)
    for _ in range(WARM):
        moved = product(around, v, step, scale)
        size = float(moved.norm())
        if not 0 < size < math.inf:
            return v, step
        v, step = moved / size, product_step(size)
    return v, step
