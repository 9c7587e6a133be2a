"""Which line is which method? One legend above all panels of a figure, in as many columns as its width allows."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from matplotlib.lines import Line2D

from analysis.load import Library, Method
from analysis.style import Look, ink

_LETTER, _HANDLE = 0.055, 0.5  # inches of a letter at the legend's size, and of a line with its gaps


def columns(library: Library, styles: Mapping[Method, Look], inches: float) -> int:
    """How many names stand side by side, by the longest."""
    longest = max(len(library.label(method)) for method in styles)
    return max(1, min(len(styles), int(inches / (_HANDLE + _LETTER * longest))))


def lines(library: Library, styles: Mapping[Method, Look], inches: float) -> int:
    """How many lines the legend takes."""
    return -(-len(styles) // columns(library, styles, inches)) if styles else 0


def method_legend(figure: Any, library: Library, styles: Mapping[Method, Look], inches: float) -> None:
    """The legend above a figure (or the topmost part of one) of this width."""
    handles = [
        Line2D([], [], color=ink(style), linestyle=style.line, marker=style.marker, label=library.label(method))
        for method, style in styles.items()
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.legend(handles=handles, loc="outside upper center", ncols=columns(library, styles, inches))
