"""How fast does the loss rise around a student, in numbers? What stands beside the pictures of a landscape.

Three measures, all of the common loss on the common tokens, all blind to a change of a row's scale that the next layer
undoes, none with a second derivative (so any attention kernel will do):

- along filter-normalised random directions d, the loss at +-h, +-r and +-2r. From these `flatness` makes the curvature
  E[d'Hd] (the primary number: the filter-normalised trace of the Hessian, two losses a direction) and the average rise
  at r and 2r.
- the worst case nearby (Foret et al. 2021, arXiv 2010.01412; rows as the unit: Kwon et al. 2021, arXiv 2102.11600): the
  highest loss that a few ascent steps find on the sphere where the changes of all rows, each relative to its row, have
  the norm rho. It is a lower bound of the true worst case.
- the largest eigenvalues of the Hessian: `hessian`.

Rows hold losses as they were measured, one per point, and no derived number. Directions are keyed like the planes', by
seed, axis and name: the planes have axes 1 and 2, direction n has axis 3 + n, so no plane and no other direction shares
its noise, and all students meet the same.

The paper has none of this; its Figure 4b is one picture. A flat student need not be a good one: see `flatness`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from selectkd_eval.directions import Plane, row_dimensions
from selectkd_eval.landscapes.loss import CommonLoss

FIRST_AXIS = 3
STEP = 0.01  # h; on three trained students the mean of 16 is .04 to .24 % off the exact d'Hd, at .05 .8 to 4.7 %
RHO = 0.1  # of row norms, root of the sum of squares over all rows
ASCENT_STEPS = 3
RULES = (
    f"directions as the planes', axes {FIRST_AXIS} and up; curvature by central differences at h = {STEP:g}; worst "
    f"case over sqrt(sum over rows of |eps_i|^2 / |w_i|^2) <= {RHO:g} by {ASCENT_STEPS} ascent steps; float32"
)


class Around:
    """The common loss and its gradient at ``w0 + t v``, for any flat direction v of a model's moving parameters.

    Always in float32 (or the model's float64): a second difference of half-precision losses is rounding.
    """

    def __init__(self, model: Any, loss: CommonLoss, seed: int, moved: str = "all") -> None:
        half = next(model.parameters()).element_size() < torch.float32.itemsize
        self.plane = Plane(model, seed, moved, torch.float32 if half else None)
        self.model, self.loss, self.seed = model, loss, seed
        self.gradients = 0

    @contextmanager
    def lent(self) -> Iterator[Around]:
        """Inside, the model may move and has gradients; afterwards weights and settings are its own again."""
        parameters = list(self.model.parameters())
        asked = [parameter.requires_grad for parameter in parameters]
        moving = {id(parameter) for parameter in self.plane.parameters.values()}
        try:
            for parameter in parameters:
                parameter.requires_grad_(id(parameter) in moving)
            with torch.inference_mode(False), torch.no_grad(), self.plane.on():
                yield self
        finally:
            for parameter, before in zip(parameters, asked, strict=True):
                parameter.requires_grad_(before)

    def move(self, direction: Tensor, t: float) -> None:
        """Set the weights to ``w0 + t direction``."""
        self.plane.d2 = direction
        self.plane.move(0.0, t)

    def loss_sum(self, direction: Tensor, t: float) -> float:
        """Summed loss at ``w0 + t direction``."""
        self.move(direction, t)
        return self.loss.sums(self.model)["loss_sum"]

    def gradient(self, direction: Tensor, t: float) -> Tensor:
        """Gradient of the mean loss at ``w0 + t direction``, flat, a batch's activations at a time."""
        self.move(direction, t)
        parameters = list(self.plane.parameters.values())
        total = torch.zeros_like(self.plane.w0)
        with torch.enable_grad():
            for part in self.loss.means(self.model):
                found = torch.autograd.grad(part, parameters, allow_unused=True, materialize_grads=True)
                total += torch.cat([gradient.flatten() for gradient in found])
        self.gradients += 1
        return total

    def row_norms(self, *, per_entry: bool = False) -> Tensor:
        """Each weight's row norm |w_i|, flat; with `per_entry` |w_i| / sqrt(n_i), the spread of a direction's
        entries in a row of n_i weights.
        """
        over, start, parts = row_dimensions(self.model), 0, []
        for name, parameter in self.plane.parameters.items():
            weight = self.plane.w0[start : start + parameter.numel()].view(parameter.shape)
            norm = torch.linalg.vector_norm(weight, dim=over[name], keepdim=True).expand_as(weight)
            entries = math.prod(weight.shape[dimension] for dimension in over[name]) if per_entry else 1
            parts.append((norm / math.sqrt(entries)).flatten())
            start += parameter.numel()
        return torch.cat(parts)


def points(radius: float) -> dict[str, float]:
    """Where the loss is measured along a direction: r is half of the plane's radius, 2r all of it."""
    r = radius / 2
    return {"+h": STEP, "-h": -STEP, "+r": r, "-r": -r, "+2r": radius, "-2r": -radius}


def keys(student: int, directions: int) -> list[str]:
    """The record's keys of a student's scalar rows (without the Hessian's)."""
    along = [f"scalar/{student}/ray/{n}/{at}" for n in range(directions) for at in points(1.0)]
    return [f"scalar/{student}/centre", *along, f"scalar/{student}/sharpness"] if directions else []


def measure(
    record: Any,
    student: int,
    around: Around,
    *,
    radius: float,
    directions: int,
    mine: Callable[[str], bool] = lambda key: True,
    advance: Callable[[], object] = lambda: None,
) -> None:
    """Write the scalar rows of a student that its record lacks, each as soon as it is measured.

    `record` has `done` and `write`; `mine` says which keys fall to this share; `advance` is called after every row.
    """
    missing = [key for key in keys(student, directions) if key not in record.done and mine(key)]
    if not missing:
        return
    where = points(radius)
    with around.lent():
        last: tuple[int, Tensor] | None = None
        for key in missing:
            what, *rest = key.split("/")[2:]
            place: dict[str, Any] = {"kind": "scalar", "student": student, "name": what}
            if what == "sharpness":
                _write(record, key, place | sharpness(around))
            elif what == "centre":
                _write(record, key, place | _loss(around, around.plane.w0, 0.0))
            else:
                n, at = int(rest[0]), rest[1]
                if last is None or last[0] != n:
                    last = n, around.plane.direction(around.seed, FIRST_AXIS + n)
                place |= {"n": n, "at": at, "seed": around.seed, "axis": FIRST_AXIS + n}
                _write(record, key, place | _loss(around, last[1], where[at]))
            advance()


def sharpness(around: Around, rho: float = RHO, steps: int = ASCENT_STEPS) -> dict[str, Any]:
    """Losses on the sphere of radius rho around the student, after 1..steps ascent steps.

    In units of the rows' norms, ``eps_i = |w_i| u_i``: every step goes to the point of the sphere that the gradient at
    the last one points to (the first is SAM's own; on a quadratic bowl with its middle at w0 they are the power
    iteration). `loss_sums`, one per step; `gradient_norms` in the same units, before each. A gradient that is exactly
    zero or not finite ends the ascent.
    """
    scale = around.row_norms()
    eps = torch.zeros_like(scale)
    sums: list[float] = []
    norms: list[float] = []
    for _ in range(steps):
        slope = around.gradient(eps, 1.0) * scale
        norm = float(slope.norm())
        norms.append(norm)
        if not 0 < norm < math.inf:
            break
        eps = scale * slope * (rho / norm)
        sums.append(around.loss_sum(eps, 1.0))
    return {"rho": rho, "steps": steps, "loss_sums": sums, "gradient_norms": norms, "n_tokens": around.loss.n_tokens}


def _loss(around: Around, along: Tensor, t: float) -> dict[str, Any]:
    return {"t": t, "loss_sum": around.loss_sum(along, t), "n_tokens": around.loss.n_tokens}


def _write(record: Any, key: str, row: dict[str, Any]) -> None:
    """The row, or an error row where a loss is not finite or no step could be taken."""
    losses: Sequence[float] = row["loss_sums"] if "loss_sums" in row else [row["loss_sum"]]
    if losses and all(math.isfinite(loss) for loss in losses):
        record.write(key, **row)
    else:
        kept = {name: value for name, value in row.items() if name not in ("loss_sum", "loss_sums", "gradient_norms")}
        why = "the loss is not finite here" if losses else "the gradient is zero or not finite: there is no way up"
        record.write(key, **kept, error=why)
