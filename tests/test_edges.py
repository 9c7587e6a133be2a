"""Where nearly all prompts say the same, an interval still has a width, and covers what it claims."""

from __future__ import annotations

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from selectkd_eval import edges, measures, stats
from selectkd_eval.measures import Terms


def shares(values: list[float]) -> Terms:
    return Terms(tuple(f"{i:04}" for i in range(len(values))), np.array(values), np.ones(len(values)), True)


@pytest.mark.parametrize("n", [1, 9, 10, 200])
def test_all_tied_is_not_known_to_be_one_half_exactly(n: int) -> None:
    found = shares([0.5] * n).estimate(200)
    assert found.low < 0.5 - 0.3 / n and found.high > 0.5 + 0.3 / n and found.method == "Wilson"
    assert shares([0.5] * (n + 1)).estimate(200).half_width < found.half_width, "one more prompt tells more"


def test_of_prompts_that_are_all_tied_each_side_has_wilsons_limit_of_none() -> None:
    none = proportion_confint(0, 40, method="wilson")[1]
    low, high = edges.edge_limits(np.full(40, 0.5), np.ones(40))
    assert (0.5 - low, high - 0.5) == pytest.approx(2 * [0.5 * none])


def test_few_wins_or_losses_have_wilsons_own_limits() -> None:
    for values in ([1.0] * 3 + [0.0] * 27, [1.0] * 27 + [0.0] * 3, [0.0] * 30):
        found = shares(values).estimate(200)
        assert (found.low, found.high) == pytest.approx(proportion_confint(sum(values), 30, method="wilson"))


def test_a_prompt_without_a_denominator_makes_nothing_surer() -> None:
    num, den = np.zeros(60), np.repeat([1.0, 0.0], 30)
    assert stats.ratio(num, den, proportion=True) == stats.wilson(0, 30)
    assert stats.crossed(np.stack([num] * 2, 1), np.stack([den] * 2, 1), proportion=True) == stats.wilson(0, 30)


def test_seeds_that_all_won_leave_the_crossed_interval_a_width() -> None:
    found = measures.crossed([shares([1.0] * 30)] * 2, 200)
    assert (found.value, found.high) == (1, 1) and found.low < 0.9


@pytest.mark.parametrize(("a", "b", "value"), [(1.0, 1.0, 0.0), (1.0, 0.0, 1.0), (0.5, 1.0, -0.5)])
@pytest.mark.parametrize("n", [1, 30])
def test_two_models_that_differ_alike_everywhere_have_a_difference_with_a_width(
    a: float, b: float, value: float, n: int
) -> None:
    found, _ = measures.delta(shares([a] * n), shares([b] * n), 200)
    assert found.value == value and -1 <= found.low <= value <= found.high <= 1
    assert 0.05 < found.half_width < (1.1 if n == 1 else 0.2)


def test_many_differing_prompts_are_resampled() -> None:
    one, two = shares([1.0] * 15 + [0.0] * 15), shares([0.0] * 10 + [1.0] * 10 + [0.0] * 10)
    assert measures.delta(one, two, 200)[0].method.startswith("paired bootstrap")
    assert one.estimate(200).method.startswith("bootstrap")


@pytest.mark.parametrize(("up", "down", "n"), [(0.03, 0.03, 60), (0.05, 0.0, 100), (0.02, 0.02, 150)])
def test_limits_of_few_that_differ_cover(up: float, down: float, n: int) -> None:
    rng = np.random.default_rng(3)
    alone = together = 0
    for _ in range(500):
        gaps = rng.choice([1.0, -1.0, 0.0], p=[up, down, 1 - up - down], size=n)
        low, high = edges.edge_limits((1 + gaps) / 2, np.ones(n))
        alone += low <= (1 + up - down) / 2 <= high
        found = edges.paired_edge_limits((1 + gaps) / 2, np.ones(n), (1 - gaps) / 2, np.ones(n))
        together += found is None or found[0] <= up - down <= found[1]
    assert alone / 500 > 0.93 and together / 500 > 0.93
