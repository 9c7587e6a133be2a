"""What is to be concluded from landscapes? The panels below the pictures of Figure 4b.

The radial profile of every method with its band, the paired difference of a gated method from its plain one, profiles
of metrics where they were measured at every point, and scalars with intervals. It says where each panel stands and
keeps the drawn numbers; `landscape_panels` draws.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from analysis import landscape_panels as panels
from analysis.fitting import END_LINE
from analysis.landscape_intervals import SCALARS, Profile, Scalar, bases, covered, paired, profile, scalars
from analysis.landscape_panels import Page
from analysis.landscapes import Landscapes
from analysis.load import Library, Method
from analysis.style import Look, Settings, width

_METRICS = {"tar": "greedy TAR", "alpha": "α = 1 − TV", "accuracy": "accuracy"}
_LETTER = 0.056  # inches of a letter of a label
_LEFT = 0.74  # inches left of a curve's axes
_LONGEST = 24  # letters of a label's line


class Row(NamedTuple):
    """Panels side by side, by name; `width` of the page, `height` of the row, in inches."""

    panels: tuple[str, ...]
    width: float
    height: float
    across: int


class Evidence(NamedTuple):
    """Profiles by "loss" and metric, every gated method's base with the paired differences, scalars."""

    methods: list[Method]
    profiles: dict[str, dict[Method, Profile]]
    differences: dict[Method, tuple[Method, Profile]]
    scalars: dict[Method, dict[str, Scalar]]

    @staticmethod
    def of(library: Library, land: Landscapes) -> Evidence:
        """What the planes hold."""
        found: dict[str, dict[Method, Profile]] = {}
        for what in ("loss", *land.metrics):
            each = {method: profile(land.students(method), what) for method in land.methods}
            found[what] = {method: one for method, one in each.items() if one is not None}
        pairs = {
            method: (base, one)
            for method, base in bases(library, land.methods).items()
            if (one := paired(land.students(method), land.students(base))) is not None
        }
        numbers = {method: scalars(land, method) for method in land.methods}
        return Evidence(land.methods, found, pairs, {method: values for method, values in numbers.items() if values})

    @property
    def names(self) -> list[str]:
        """Scalars that any method has."""
        return [name for name in SCALARS if any(name in values for values in self.scalars.values())]

    def rows(self, settings: Settings, labels: Mapping[Method, str]) -> list[Row]:
        """Curves, then scalars, as many side by side as the page holds."""
        pairs = ["difference"] if self.differences else []
        curves = ["loss", *pairs, *(what for what in self.profiles if what != "loss")]
        across, dots = (1, 2) if settings.columns == 1 else (2, 6)
        lines = sum(1 + label.count("\n") for label in wrapped(labels).values())
        tall = max(1.85, 0.6 + END_LINE * lines)
        rows = [
            Row(tuple(curves[i : i + across]), width(settings), tall, across) for i in range(0, len(curves), across)
        ]
        per_row = min(dots, len(self.names))
        for i in range(0, len(self.names), max(per_row, 1)):
            some = tuple(self.names[i : i + per_row])
            rows.append(Row(some, width(settings), 0.75 + max(0.17 * len(self.methods), END_LINE * lines), per_row))
        return rows

    def draw(
        self, page: Page, top: float, rows: list[Row], looks: Mapping[Method, Look], labels: Mapping[Method, str]
    ) -> None:
        """Every row below the last, from `top` on."""
        named = wrapped(labels)
        room = 0.12 + _LETTER * max(len(line) for label in named.values() for line in label.splitlines())
        for row in rows:
            dotted = row.panels[0] in SCALARS
            each = (row.width - (room if dotted else 0.0)) / (row.across if dotted else len(row.panels))
            for place, name in enumerate(row.panels):
                left = place * each + (room if dotted else _LEFT)
                if dotted:
                    axis = page.axes(left, top + 0.42, each - 0.14, row.height - 0.75)
                    self._dots(axis, name, looks, named if place == 0 else None)
                else:
                    axis = page.axes(left, top + 0.08, each - _LEFT - room - 0.08, row.height - 0.55)
                    self._curve(axis, name, looks, named)
            top += row.height

    def _curve(self, axis: Any, what: str, looks: Mapping[Method, Look], labels: Mapping[Method, str]) -> None:
        if what == "difference":
            found = {method: one for method, (_, one) in self.differences.items()}
            panels.profiles(axis, found, looks, labels, zero=True)
            axis.set_ylabel(textwrap.fill(between(self.differences, labels), 26))
        elif what == "loss":
            panels.profiles(axis, self.profiles[what], looks, labels, floor=True)
            axis.set_ylabel("rise of the loss")
        else:
            panels.profiles(axis, self.profiles[what], looks, labels)
            axis.set_ylabel(_METRICS[what])

    def _dots(self, axis: Any, name: str, looks: Mapping[Method, Look], labels: Mapping[Method, str] | None) -> None:
        mine = {method: values[name] for method, values in self.scalars.items() if name in values}
        panels.dots(axis, mine, looks, self.methods, textwrap.fill(SCALARS[name], 15))
        if labels:
            axis.set_yticklabels([labels[method] for method in reversed(self.methods)], fontsize=7)

    def data(self, land: Landscapes, labels: Mapping[Method, str]) -> dict[str, Any]:
        """What was drawn, as plain numbers."""
        centre = {
            method: float(np.mean([p.surfaces[d].centre for p in land.students(method) for d in land.directions]))
            for method in land.methods
        }
        loss = self.profiles["loss"]
        return {
            "profiles": {labels[m]: {**_plain(one), "centre": centre[m]} for m, one in loss.items()},
            "differences": {f"{labels[m]} − {labels[b]}": _plain(one) for m, (b, one) in self.differences.items()},
            "metrics": {
                what: {labels[m]: _plain(one, "value") for m, one in found.items()}
                for what, found in self.profiles.items()
                if what != "loss"
            },
            "scalars": {
                labels[m]: {name: {**one.estimate.__dict__, "students": one.students} for name, one in values.items()}
                for m, values in self.scalars.items()
            },
        }


def wrapped(labels: Mapping[Method, str]) -> dict[Method, str]:
    """Names in lines that leave room for what they name."""
    return {method: textwrap.fill(label, _LONGEST) for method, label in labels.items()}


def between(differences: Mapping[Method, tuple[Method, Profile]], labels: Mapping[Method, str]) -> str:
    """What is subtracted from what, in words; empty without a difference."""
    found = {labels[base] for base, _ in differences.values()}
    if len(found) == 1:
        return f"rise minus that of {next(iter(found))}"
    return "rise minus that of the plain method" if found else ""


def _plain(found: Profile, word: str = "rise") -> dict[str, Any]:
    estimates = found.estimates()
    return {
        "radii": found.distances.tolist(),
        word: [estimate.value for estimate in estimates],
        "half_width": [estimate.half_width for estimate in estimates],
        "directions": len(found.directions),
        "students": len(found.seeds),
        "training_seeds": found.values.mean(axis=1).tolist(),
        "interval": covered(len(found.seeds), len(found.directions)),
    }
