"""Which landscape can a reader turn? The surfaces of Figure 4b as data for the page's own small renderer.

The same surfaces, direction seed and colour scale as in the figure, on 51 x 51 points in single precision: some 14 kB
a student. `templates/landscape.js` draws them on a canvas; without script the figure's picture stays. Nothing here is
HTML: names go through JSON and are written as text.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from analysis.figure_landscape import title, typical
from analysis.landscape_panels import FINE, norm_of
from analysis.landscapes import landscapes
from analysis.load import Library
from analysis.table_ir import number
from selectkd_eval.errors import InputError
from selectkd_eval.surfaces import Surface


def scene(library: Library) -> dict[str, Any] | None:
    """The JSON of a canvas, None where no landscapes can be compared.

    `points` per axis; `radius`: the axes run from minus to plus it; `low`, `high`: the ends of the logarithmic colour
    scale; `students`: each with `name`, `text` (what it shows, in words) and `loss`, base64 of little-endian float32
    ``(points, points)``, direction 1 first, NaN where nothing was measured.
    """
    try:
        land = landscapes(library)
        shown = typical(land)
    except InputError:
        return None  # the figure of them is refused with the reason
    norm = norm_of(shown.surfaces)
    students = [
        {"name": title(library, plane), "text": _words(surface), "loss": _packed(surface)}
        for plane, surface in zip(shown.planes, shown.surfaces, strict=True)
    ]
    return {
        "points": FINE,
        "radius": float(land.facts["radius"]),
        "low": float(norm.vmin or 0),
        "high": float(norm.vmax or 1),
        "students": students,
    }


def _packed(surface: Surface) -> str:
    return base64.b64encode(np.asarray(surface.fine(FINE).loss, dtype="<f4").tobytes()).decode()


def _words(surface: Surface) -> str:
    highest = float(np.nanmax(surface.loss))
    return f"loss {number(surface.centre, 3)} at the student, {number(highest, 3)} at the highest point of the plane"
