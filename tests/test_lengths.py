"""Lengths by hand; the length-adjusted rate against statsmodels, scipy and simulated judges."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from verdict_rows import FIRST, SECOND, row

from judges import lengths as report
from judges import replay
from judges.length_adjusted import RIDGE, adjusted, fit, pairs
from judges.lengths import by_ratio, lengths
from judges.resampling import Resampling, resampled_weights
from selectkd_eval.win_rates import win_rate_terms

FEW = Resampling(300)
MIRRORED = {"candidate": "baseline", "baseline": "candidate"}


def sigma(z: Any) -> Any:
    return 1 / (1 + np.exp(-np.asarray(z, dtype=float)))


def judged(
    n: int, theta: float, psi: float, seed: int, shift: float = 0.0, sd: float = 200.0, seeds: int = 1
) -> tuple[list[dict[str, Any]], np.random.Generator]:
    """Comparisons by a judge that follows the model; `shift` is how much longer the candidate's answers are."""
    rng = np.random.default_rng(seed)
    baseline = rng.integers(400, 900, (n, seeds))
    candidate = np.maximum(1, baseline + rng.normal(shift, sd, (n, seeds)).round().astype(int))
    shorter = baseline - candidate
    x = np.tanh(shorter / shorter.std(ddof=1))
    won = rng.random((n, seeds)) < sigma(theta + psi * x)
    rows = [
        row(
            i,
            "c" if won[i, s] else "b",
            seed=s,
            candidate_chars=int(candidate[i, s]),
            baseline_chars=int(baseline[i, s]),
        )
        for i in range(n)
        for s in range(seeds)
    ]
    return rows, rng


def data(n: int = 150, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Wins, comparisons and the length term of n pairs, fractions included."""
    rng = np.random.default_rng(seed)
    x = np.tanh(rng.normal(0.3, 1, n))
    den = rng.choice([0.5, 1.0, 2.0], n)
    num = den * np.clip(sigma(0.4 - 1.5 * x) + rng.normal(0, 0.2, n), 0, 1)
    return num, den, x


# ---- the regression ------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_without_a_ridge_the_fit_is_statsmodels_binomial_glm() -> None:
    num, den, x = data()
    theirs = sm.GLM(num / den, sm.add_constant(x), family=sm.families.Binomial(), var_weights=den).fit(tol=1e-12)
    theta, psi = fit(num[None], den[None], x, ridge=0.0)
    assert (theta[0], psi[0]) == pytest.approx(tuple(theirs.params), abs=1e-6)


def test_with_a_ridge_the_fit_is_the_minimum_that_scipy_finds() -> None:
    num, den, x = data(seed=1)

    def loss(at: np.ndarray, ridge: float) -> float:
        z = at[0] + at[1] * x
        return float((den * np.logaddexp(0, z) - num * z).sum() + ridge / 2 * at[1] ** 2)

    for ridge in (RIDGE, 5.0):
        theirs = scipy.optimize.minimize(loss, [0, 0], args=(ridge,), method="BFGS", options={"gtol": 1e-8}).x
        theta, psi = fit(num[None], den[None], x, ridge=ridge)
        assert (theta[0], psi[0]) == pytest.approx(tuple(theirs), abs=1e-5)


def test_many_fits_at_once_are_the_fits_one_by_one() -> None:
    num, den, x = data(60, seed=2)
    weights = np.concatenate(list(resampled_weights(60, Resampling(50))))
    theta, psi = fit(weights * num, weights * den, x, start=(0.3, -1.0))
    for b in range(50):
        alone = fit((weights[b] * num)[None], (weights[b] * den)[None], x)
        assert (theta[b], psi[b]) == pytest.approx((alone[0][0], alone[1][0]), abs=1e-6)


@given(
    st.lists(st.tuples(st.booleans(), st.floats(-1, 1)), min_size=1, max_size=30), st.floats(-3, 3), st.floats(-3, 3)
)
@settings(deadline=None)
def test_every_data_set_settles_at_a_point_of_no_slope(
    entries: list[tuple[bool, float]], theta0: float, psi0: float
) -> None:
    won, x = (np.array(side, dtype=float) for side in zip(*entries, strict=True))
    theta, psi = fit(won[None], np.ones((1, len(won))), x, start=(theta0, psi0))
    if won.all() or not won.any():
        assert theta[0] == (math.inf if won.all() else -math.inf) and math.isnan(psi[0])
        return
    left = won - sigma(theta[0] + psi[0] * x)
    assert left.sum() == pytest.approx(0, abs=1e-5)
    assert left @ x == pytest.approx(RIDGE * psi[0], abs=1e-5)


def test_perfect_separation_by_length_keeps_psi_finite() -> None:
    x = np.linspace(-1, 1, 40)
    theta, psi = fit((x < 0).astype(float)[None], np.ones((1, 40)), x)
    assert -60 < psi[0] < -5 and abs(theta[0]) < 1


# ---- the adjusted rate ------------------------------------------------------------


def test_a_judge_that_loves_length_is_corrected() -> None:
    # Equal answers (theta = 0), but the candidate writes more and the judge pays for it.
    rows, _ = judged(2000, theta=0.0, psi=-2.0, seed=3, shift=150)
    found = adjusted(pairs(rows, "excluded"), FEW)
    assert found.plain > 0.6
    assert found.rate.low < 0.5 < found.rate.high and found.rate.high - found.rate.low < 0.08
    assert found.psi.low < -2.0 < found.psi.high
    assert report.in_words(found) == "longer answers win more often than shorter"


def test_a_judge_that_loves_brevity_is_corrected_too() -> None:
    rows, _ = judged(2000, theta=0.0, psi=2.0, seed=4, shift=150)
    found = adjusted(pairs(rows, "excluded"), FEW)
    assert found.plain < 0.4 and found.rate.low < 0.5 < found.rate.high
    assert report.in_words(found) == "shorter answers win more often than longer"


def test_without_an_effect_of_length_the_plain_rate_stands() -> None:
    rows, _ = judged(1500, theta=0.6, psi=0.0, seed=5, shift=100)
    found = adjusted(pairs(rows, "excluded"), FEW)
    assert found.rate.value == pytest.approx(found.plain, abs=0.02)
    assert report.in_words(found) == "no effect of length can be seen"


def test_the_refitted_interval_covers() -> None:
    truth, covered = float(sigma(0.3)), 0
    for seed in range(120):
        rows, _ = judged(150, theta=0.3, psi=-1.5, seed=100 + seed, shift=80)
        found = adjusted(pairs(rows, "excluded"), Resampling(400, seed)).rate
        covered += found.low <= truth <= found.high
    assert 108 <= covered <= 119  # of 120; 114 are due


def test_the_standard_error_of_fitted_values_would_not_cover() -> None:
    # AlpacaEval prints sd(fitted) / sqrt(n); with one length for all it is 0 while the rate is as uncertain as ever.
    rows, _ = judged(300, theta=0.3, psi=0.0, seed=6)
    found = adjusted(pairs(rows, "excluded"), FEW).rate
    data_ = pairs(rows, "excluded")
    theta, psi = fit(data_.num[None], data_.den[None], data_.x)
    fitted = sigma(theta[0] + psi[0] * data_.x)
    assert (found.high - found.low) / 2 > 5 * 1.96 * fitted.std() / math.sqrt(300)


def test_the_interval_is_that_of_refits_with_statsmodels() -> None:
    rows, rng = judged(120, theta=0.2, psi=-1.0, seed=7, seeds=2)
    ours = adjusted(pairs(rows, "excluded"), Resampling(4000), ridge=1e-9)
    found = pairs(rows, "excluded")
    draws = []
    for _ in range(400):
        chosen = np.concatenate([np.flatnonzero(found.prompt == p) for p in rng.integers(120, size=120)])
        model = sm.GLM(found.num[chosen], sm.add_constant(found.x[chosen]), family=sm.families.Binomial())
        draws.append(sigma(model.fit().params[0]))
    # The spread of 400 draws is known to 4 %.
    width = np.subtract(*np.percentile(draws, [97.5, 2.5]))
    assert ours.rate.high - ours.rate.low == pytest.approx(width, rel=0.15)
    assert (ours.rate.low + ours.rate.high) / 2 == pytest.approx(np.mean(draws), abs=0.01)


def test_copies_of_a_prompts_comparisons_do_not_narrow_the_interval() -> None:
    rows, _ = judged(200, theta=0.2, psi=-1.0, seed=8)
    thrice = [{**one, "seed": seed} for one in rows for seed in range(3)]
    once, again = (adjusted(pairs(part, "excluded"), Resampling(2000), ridge=1e-9) for part in (rows, thrice))
    assert once.rate.value == pytest.approx(again.rate.value, abs=1e-3)
    assert once.rate.high - once.rate.low == pytest.approx(again.rate.high - again.rate.low, rel=0.03)


def test_swapped_sides_mirror_the_adjusted_rate() -> None:
    rows, _ = judged(300, theta=0.4, psi=-1.0, seed=9, shift=60)
    swapped = [
        {
            **one,
            "verdict": MIRRORED[one["verdict"]],
            "candidate_chars": one["baseline_chars"],
            "baseline_chars": one["candidate_chars"],
        }
        for one in rows
    ]
    one, other = (adjusted(pairs(part, "half"), FEW) for part in (rows, swapped))
    assert one.rate.value == pytest.approx(1 - other.rate.value)
    assert one.psi.value == pytest.approx(other.psi.value)
    assert (one.rate.low, one.rate.high) == pytest.approx((1 - other.rate.high, 1 - other.rate.low))


def test_ties_and_probabilities_are_soft_labels_under_the_records_rule() -> None:
    rows = [row(i, "cbt"[i % 3], candidate_chars=100 + i, baseline_chars=130 - i) for i in range(30)]
    assert len(pairs(rows, "excluded").num) == 20
    half = pairs(rows, "half")
    assert len(half.num) == 30 and sorted(set(half.num.tolist())) == [0, 0.5, 1]
    soft = pairs([{**one, "preference": 0.8} for one in rows], "half")
    assert set(soft.num.tolist()) == {0.8}
    # Under agreement the two orders of a pair are one comparison; each rule sums to the record's win rate.
    both = [
        {**one, "order": order, "verdict": verdict}
        for one in rows
        for order, verdict in ((FIRST, one["verdict"]), (SECOND, "candidate"))
    ]
    for ties in ("half", "half-per-order", "agreement", "excluded"):
        found, whole = pairs(both, ties), win_rate_terms(both, ties)
        assert found.num.sum() / found.den.sum() == pytest.approx(whole.value)
    assert pairs(both, "agreement").den.tolist() == [1] * 30


def test_where_nothing_can_be_adjusted_the_report_says_why() -> None:
    alike = [row(i, "c" if i % 3 else "b") for i in range(60)]
    found = adjusted(pairs(alike, "half"), FEW)
    assert found.rate.value == pytest.approx(2 / 3) and found.why == "the lengths differ by nothing"
    shifted = [{**one, "candidate_chars": 150} for one in alike]
    found = adjusted(pairs(shifted, "half"), FEW)
    assert math.isnan(found.rate.value) and found.why == "the lengths differ alike"
    won = [row(i, "c", candidate_chars=90 + i) for i in range(60)]
    found = adjusted(pairs(won, "half"), FEW)
    assert found.rate.value == 1 and found.rate.low < 0.95 and found.why == "one side won everything"
    assert adjusted(pairs([row(0, "u")], "half"), FEW).why == "nothing was decided"


def test_a_candidate_that_is_always_longer_is_extrapolated_to_equal_length() -> None:
    rows, _ = judged(200, theta=0.0, psi=-1.0, seed=10, shift=900)
    assert "extrapolated: the candidate's answer is shorter or as long on 0 prompts only" in "\n".join(
        report.lines(found) if (found := lengths(rows, "half", FEW)) else []
    )


@pytest.mark.filterwarnings("ignore")
def test_at_the_edge_the_interval_holds_statsmodels_normal_one_on_the_log_odds() -> None:
    rows = [row(i, "c" if i % 24 == 0 else "b", candidate_chars=100 + i % 7, baseline_chars=103) for i in range(120)]
    found, used = adjusted(pairs(rows, "excluded"), FEW), pairs(rows, "excluded")
    theirs = sm.GLM(used.num, sm.add_constant(used.x), family=sm.families.Binomial()).fit()
    low, high = sigma(theirs.conf_int()[0])
    assert "at the edge" in found.rate.method
    assert 0 < found.rate.low <= low + 1e-4 and found.rate.high >= high - 1e-3


def test_the_interval_covers_where_wins_are_few() -> None:
    truth, covered, n = float(sigma(-3.0)), 0, 100
    for seed in range(n):
        rows, _ = judged(218, theta=-3.0, psi=-1.5, seed=300 + seed, shift=80)
        found = adjusted(pairs(rows, "excluded"), Resampling(400, seed)).rate
        covered += found.low <= truth <= found.high
    assert covered >= 88  # in the long run percentiles of the refits cover 87 in 100, BCa 92


# ---- lengths and ratios by hand ------------------------------------------------------------


def test_mean_lengths_count_an_answer_once_however_often_it_was_judged() -> None:
    rows = [
        row(prompt, "c", order, sample=sample, candidate_chars=chars, baseline_chars=200)
        for prompt, chars, repeats in ((0, 100, 3), (1, 500, 1))
        for order in (FIRST, SECOND)
        for sample in range(repeats)
    ]
    found = lengths(rows, "half", FEW)
    assert found is not None
    assert (found.candidate.value, found.baseline.value, found.ratio) == (300, 200, 1.5)


def test_the_longer_answer_wins_among_decided_comparisons_of_unequal_length() -> None:
    given_ = [("c", 200, 100), ("b", 200, 100), ("b", 100, 200), ("t", 200, 100), ("c", 100, 100), ("u", 300, 100)]
    rows = [row(i, v, candidate_chars=c, baseline_chars=b) for i, (v, c, b) in enumerate(given_)]
    found = lengths(rows, "half", FEW)
    assert found is not None
    assert (found.longer_wins.value, found.longer_wins.n) == (pytest.approx(2 / 3), 3)


def test_ranges_of_the_length_ratio_are_half_open_and_hold_every_comparison() -> None:
    chars = [(10, 100), (50, 100), (80, 100), (100, 100), (125, 100), (200, 100), (5, 0), (0, 0)]
    rows = [row(i, "c", candidate_chars=c, baseline_chars=b) for i, (c, b) in enumerate(chars)]
    assert [one.rate.n for one in by_ratio(rows, "half", FEW)] == [1, 1, 3, 1, 2]
    won = [row(i, "c" if i % 2 else "b", candidate_chars=40, baseline_chars=100) for i in range(10)]
    first, *others = by_ratio(won, "half", FEW)
    assert first.rate.value == 0.5 and all(math.isnan(one.rate.value) for one in others)


def test_what_was_settled_without_a_judge_is_in_the_mean_lengths_alone() -> None:
    rows, _ = judged(60, theta=0.0, psi=-1.0, seed=11)
    settled = [row(500 + i, "b", asked=False, candidate_chars=0, baseline_chars=600) for i in range(60)]
    with_, without = lengths(rows + settled, "half", FEW), lengths(rows, "half", FEW)
    assert with_ is not None and without is not None
    assert (with_.adjusted, with_.longer_wins, with_.bins) == (without.adjusted, without.longer_wins, without.bins)
    assert with_.candidate.value == pytest.approx(without.candidate.value / 2)


def test_rows_that_tell_no_lengths_have_no_report() -> None:
    rows = [{name: value for name, value in row(i, "c").items() if not name.endswith("chars")} for i in range(4)]
    assert lengths(rows, "half", FEW) is None


def test_the_lines_fit_the_page() -> None:
    rows, _ = judged(400, theta=0.0, psi=-1.0, seed=12, shift=100)
    found = lengths(rows, "half", FEW)
    assert found is not None
    text = report.lines(found)
    assert max(map(len, text)) <= 120
    assert any("length-adjusted win rate" in line for line in text)
    assert not any("LC" in line for line in text)


def test_alpaca_evals_judge_pays_for_length_as_its_published_weights_say(shared_data: Path) -> None:
    name = "claude-2.1__weighted_alpaca_eval_gpt4_turbo.annotations.json.gz"
    rows = replay.open_file(shared_data / "judge/alpaca_eval/annotations_full" / name).rows
    found = lengths(rows, "half", Resampling(1000))
    assert found is not None
    # AlpacaEval's own fit has psi = -1.81 beside an instruction difficulty, which this one lacks, and a rate of 25.25.
    assert found.adjusted.psi.value == pytest.approx(-1.81, abs=0.5)
    assert found.adjusted.plain < 0.16 and found.adjusted.rate.value > 0.25
    assert found.candidate.value < found.baseline.value and found.longer_wins.value > 0.8
