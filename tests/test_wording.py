"""Lines of a report: within the page, nothing lost, numbers whole."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from judges import wording
from selectkd_eval.stats import Estimate

NONE = Estimate(math.nan, math.nan, math.nan, 0, "no data")


@given(st.lists(st.text("abc12.%[],()", min_size=1, max_size=30), min_size=1, max_size=60))
def test_a_line_is_wrapped_within_the_page_and_keeps_every_word(words: list[str]) -> None:
    found = wording.line("label", " ".join(words))
    assert " ".join(found).split() == ["label", *words]
    assert found[0].startswith("  label        ") and all(line.startswith(" " * 15) for line in found[1:])


def test_an_interval_is_not_torn_from_its_number() -> None:
    one = wording.share(Estimate(0.5, 0.4, 0.6, 10, "")) + " (n 10)"
    found = wording.line("rates", ", ".join([one] * 12))
    assert sum(line.count("50.00 % [40.00, 60.00] (n 10)") for line in found) == 12
    assert max(map(len, found)) <= 120


def test_a_missing_value_is_a_dash_and_a_missing_interval_no_brackets() -> None:
    assert wording.share(NONE) == wording.points(NONE) == wording.number(NONE) == "–"
    assert wording.number(Estimate(0.5, math.nan, math.nan, 3, ""), 1) == "0.5"
    assert wording.points(Estimate(-0.01, -0.02, 0.0, 3, "")) == "-1.00 points [-2.00, +0.00]"
