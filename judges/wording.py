"""How does an estimate read on a line of `winrate`'s report? A label, a value with its interval, a dash for none.

The page is 120 columns wide; a label has up to twelve letters. Nothing is computed here.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence

from selectkd_eval.stats import Estimate

_WIDTH = 120
_LABEL = 15  # two blanks, twelve letters, one blank
_NO_BREAK = "\N{NO-BREAK SPACE}"
_BOUND = re.compile(r" (?=%|\[|\(n )|(?<=\(n) |(?<=\d:) |(?<=,) (?=[-+]?[\d.]+\])")  # "12 %", "12 % [10, 14]", "(n 805"


def line(label: str, text: str) -> list[str]:
    """A label and its text, wrapped under itself where the page ends; a number keeps its unit and interval."""
    start = f"  {label:<12} "
    bound = _BOUND.sub(_NO_BREAK, text)
    found = textwrap.wrap(bound, _WIDTH, initial_indent=start, subsequent_indent=" " * _LABEL, break_on_hyphens=False)
    return [one.replace(_NO_BREAK, " ") for one in found]


def share(estimate: Estimate) -> str:
    """12.34 % [10.00, 14.60], or a dash."""
    return number(estimate.scaled(100), 2, " %")


def points(estimate: Estimate) -> str:
    """+1.23 points [-0.50, +2.96], or a dash: a difference of two shares."""
    if math.isnan(estimate.value):
        return "–"
    scaled = estimate.scaled(100)
    text = f"{scaled.value:+.2f} points"
    return text if math.isnan(scaled.low) else f"{text} [{scaled.low:+.2f}, {scaled.high:+.2f}]"


def number(estimate: Estimate, digits: int = 3, unit: str = "") -> str:
    """A value and its interval; a dash where there is no value, and no brackets where there is no interval."""
    if math.isnan(estimate.value):
        return "–"
    text = f"{estimate.value:.{digits}f}{unit}"
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return text
    return f"{text} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def some(count: int, what: str, plural: str = "") -> str:
    """1 comparison, 3 comparisons."""
    return f"{count:,} {what if count == 1 else plural or what + 's'}"


def listed(parts: Sequence[str]) -> str:
    """The parts that say something, with commas."""
    return ", ".join(part for part in parts if part)
