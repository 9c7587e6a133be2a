"""Equivalence, agreement and trend: by hand, against scipy, and by what an interval means."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from analysis.equivalence import cohen_kappa, compare, kendall_w
from analysis.trend import page, page_exact
from selectkd_eval.measures import Terms, terms


def coins(rng: np.random.Generator, share: float, n: int) -> Terms:
    return terms(((f"p{i:04}", float(rng.random() < share), 1.0) for i in range(n)), proportion=True)


def test_alike_is_equivalent_apart_is_different_and_few_prompts_settle_nothing() -> None:
    rng = np.random.default_rng(0)
    many = {"one": coins(rng, 0.5, 6000), "other": coins(rng, 0.5, 6000), "better": coins(rng, 0.7, 6000)}
    verdicts = {(c.first, c.second): c.verdict for c in compare(many, 4.0, 500)}
    assert verdicts["one", "other"] == "equivalent"
    assert verdicts["one", "better"] == "different"
    few = {"one": coins(rng, 0.5, 40), "other": coins(rng, 0.52, 40)}
    assert compare(few, 4.0, 500)[0].verdict == "not settled"


def test_the_90_percent_interval_lies_within_the_95_percent_one() -> None:
    rng = np.random.default_rng(1)
    found = compare({"a": coins(rng, 0.5, 300), "b": coins(rng, 0.6, 300)}, 2.0, 2000)[0]
    assert found.difference.low < found.low90 < found.difference.value < found.high90 < found.difference.high
    z = (found.high90 - found.low90) / (found.difference.high - found.difference.low)
    assert z == pytest.approx(1.645 / 1.96, rel=0.06)


def test_equal_answers_are_not_equivalent_on_the_strength_of_a_few_prompts() -> None:
    same = terms(((f"p{i}", 1.0, 1.0) for i in range(20)), proportion=True)
    found = compare({"a": same, "b": same}, 2.0, 500)[0]
    assert found.verdict == "not settled", "twenty equal answers do not bound a difference by 2 points"


def test_kendalls_w_by_hand() -> None:
    assert kendall_w([[3, 2, 1], [30, 20, 10], [9, 8, 7]]) == pytest.approx(1)
    assert kendall_w([[1, 2], [2, 1]]) == pytest.approx(0)
    # Ranks 1 2 3 and 2 1 3: sums 3 3 6, spread 6, most 4 * 24 / 12 = 8.
    assert kendall_w([[1, 2, 3], [2, 1, 3]]) == pytest.approx(6 / 8)
    assert np.isnan(kendall_w([[1, 2, 3]]))


def test_w_with_ties_is_friedmans_statistic() -> None:
    table = np.array([[1, 1, 2, 4], [3, 2, 2, 5], [1, 4, 4, 4], [0, 1, 2, 2]], dtype=float)
    friedman = scipy_stats.friedmanchisquare(*table.T).statistic
    assert kendall_w(table.tolist()) == pytest.approx(friedman / (4 * 3))


def test_kappa_by_hand_over_what_both_decided() -> None:
    words = [("candidate", "candidate")] * 20 + [("candidate", "baseline")] * 5 + [("baseline", "candidate")] * 10
    words += [("baseline", "baseline")] * 15 + [("candidate", "unreadable")] * 7
    one, other = ({i: (f"p{i}", pair[side]) for i, pair in enumerate(words)} for side in (0, 1))
    found = cohen_kappa(one, other, 500)
    assert found.value == pytest.approx(0.4)  # 0.7 observed, 0.5 by chance
    assert found.n == 50
    assert found.low < 0.4 < found.high


def test_kappa_of_one_word_has_no_value() -> None:
    one = {i: (f"p{i}", "candidate") for i in range(9)}
    assert np.isnan(cohen_kappa(one, one, 50).value)
    assert np.isnan(cohen_kappa(one, {}, 50).value)


def test_page_is_scipys_where_nothing_is_tied() -> None:
    values = np.random.default_rng(2).normal(size=(25, 4)) + 0.3 * np.arange(4)
    oracle = scipy_stats.page_trend_test(values, method="asymptotic")
    found = page(values)
    assert found.statistic == oracle.statistic
    assert found.p / 2 == pytest.approx(oracle.pvalue, rel=1e-9)
    few = values[:3]
    assert page_exact(few) == scipy_stats.page_trend_test(few, method="exact").pvalue


def test_pages_moments_with_ties_are_those_of_all_orders() -> None:
    rng = np.random.default_rng(3)
    values = rng.integers(0, 2, size=(40, 3)).astype(float)
    shuffled = np.array([page(rng.permuted(values, axis=1)).statistic for _ in range(4000)])
    found = page(values)
    assert (found.statistic - shuffled.mean()) / shuffled.std() == pytest.approx(found.z, abs=0.12)


def test_right_or_wrong_answers_show_a_trend_that_untied_ranks_miss() -> None:
    rng = np.random.default_rng(4)
    hard = rng.random(400)
    values = np.stack([(hard < share).astype(float) for share in (0.5, 0.52, 0.54)], axis=1)
    assert page(values).p < 0.001 < scipy_stats.page_trend_test(values, method="asymptotic").pvalue


def test_all_tied_is_no_trend() -> None:
    assert np.isnan(page(np.ones((5, 3))).p)
    assert np.isnan(page_exact(np.ones((5, 3))))
    assert np.isnan(page_exact(np.array([[1.0, 2.0]])))
