"""What do the landscapes say in sentences? Only what paired intervals support, for the findings.

Every method is held against its plain method: the rise of the loss at half of the plane's radius and at its edge, since
the order can flip between them, and the curvature where it was measured. A smaller rise is called that, and nothing
more: flat in random directions does not mean better.
"""

from __future__ import annotations

from collections.abc import Sequence

from analysis.landscape_intervals import bases, paired, paired_scalar
from analysis.landscapes import Landscapes, landscapes
from analysis.load import Library, Method
from analysis.table_ir import difference, number, verdict
from selectkd_eval.errors import InputError
from selectkd_eval.stats import Estimate

_RISES = ("rises more than", "rises less than", "is not told apart from")
_CURVES = ("curvature is larger", "curvature is smaller", "curvature is not told apart")


def lines(library: Library) -> list[str]:
    """One sentence per method that has its base beside it; none where no landscapes can be compared."""
    try:
        land = landscapes(library)
    except InputError:
        return []  # the figure of them is refused with the reason
    found = [_sentence(library, land, method, base) for method, base in bases(library, land.methods).items()]
    said = [line for line in found if line]
    if len(land.methods) > 1 and found and not said:
        return [
            "The landscapes do not say which student lies in a flatter place: no two methods share training seeds and "
            "several direction seeds, and along one pair of directions the order is an accident."
        ]
    return said


def _sentence(library: Library, land: Landscapes, method: Method, base: Method) -> str:
    """Rise at two distances, curvature, and what the intervals cover; empty along fewer than two directions."""
    names = library.label(method), library.label(base)
    found = paired(land.students(method), land.students(base))
    if found is None or len(found.directions) < 2:
        return ""
    estimates = found.estimates()
    known = [ring for ring in range(1, len(estimates)) if estimates[ring].value == estimates[ring].value]
    if not known:
        return ""
    rings = sorted({known[(len(known) - 1) // 2], known[-1]})
    parts = [(verdict(estimates[ring], 0.0, _RISES), found.distances[ring], estimates[ring]) for ring in rings]
    said = _joined_parts(parts, names[1])
    curvature = paired_scalar(land, method, base, "curvature")
    if curvature is not None and curvature.spread:
        said += f"; its {verdict(curvature, 0.0, _CURVES)} ({_signed(curvature)})"
    seeds = len(found.seeds)
    limits = (
        f"{len(found.directions)} pairs of directions, {seeds} training seeds"
        if seeds > 1
        else f"{len(found.directions)} pairs of directions, one student each: another training seed may differ by more"
    )
    return f"Loss landscape: {names[0]} {said} ({limits})."


def _joined_parts(parts: Sequence[tuple[str, float, Estimate]], other: str) -> str:
    """One verb where both distances agree, two where the order changes between them."""
    at = [f"at distance {number(distance, 2)} ({_signed(estimate)})" for _, distance, estimate in parts]
    if len({verb for verb, _, _ in parts}) == 1:
        return f"{parts[0][0]} {other} {' and '.join(at)}"
    return " but ".join(
        f"{verb} {other if place == 0 else 'it'} {where}"
        for place, ((verb, _, _), where) in enumerate(zip(parts, at, strict=True))
    )


def _signed(estimate: Estimate) -> str:
    """Difference and interval in as many digits as tell the limits apart."""
    return difference(estimate, digits_of(estimate.half_width))


def digits_of(half_width: float) -> int:
    """Decimals that show two digits of a half-width, between 2 and 6."""
    return next((digits for digits in range(2, 6) if half_width >= 0.95 * 10 ** (1 - digits)), 6)
