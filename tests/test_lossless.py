"""From gate rows to a verdict: counts, tails, one family of tests, and the sentences that are printed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, chi2

from selectkd_eval import lossless


def gate_row(number: int, *outcomes: str, gap: float = 0.0, **more: Any) -> dict[str, Any]:
    """One prompt; its outcomes are those of gamma 1, 2, ..."""
    some = [
        {"draft": 0, "gamma": gamma, "outcome": outcome, "gap_ulps": gap, **more}
        for gamma, outcome in enumerate(outcomes, start=1)
    ]
    return {"key": f"gate/{number}", "prompt": str(number), "outcomes": some}


def sums(**changes: float) -> dict[str, float]:
    return {"sum": 0.0, "var": 50.0, "up": 1.0, "down": 1.0} | changes


def evidence(draft: int = 0, gamma: int = 3, **changes: Any) -> dict[str, Any]:
    """What one text of 400 tokens without a fault may tell."""
    return {
        "draft": draft,
        "gamma": gamma,
        **dict.fromkeys(("edge", "impossible", "miscounted", "misplaced", "overlap_off"), 0),
        "tokens": 400,
        "ranks": [20] * 20,
        "rarest": 0.01,
        "surprise": sums(),
        "likeness": sums(),
        "accepted": sums(seen=200, expected=200.0, noise=0.0),
        "given": sums(noise=0.0),
    } | changes


def sampled_row(*arms: dict[str, Any]) -> dict[str, Any]:
    return {"key": "sampled/0", "prompt": "0", "arms": list(arms)}


def test_a_prompt_counts_as_the_worst_that_a_draft_did_to_it():
    rows = [gate_row(0, "identical", "tie"), gate_row(1, "violation", "tie"), gate_row(2, "identical", "identical")]
    assert lossless.lossless_counts(rows) == {"identical": 1, "tie": 1, "violation": 1}
    arms = lossless.verdict(rows).arms
    assert arms[0, 1] == {"identical": 2, "tie": 0, "violation": 1}
    assert arms[0, 2] == {"identical": 1, "tie": 2, "violation": 0}
    assert not lossless.passed(rows) and lossless.passed([rows[0], rows[2]])


def test_nothing_looked_at_is_nothing_passed():
    assert not lossless.passed([])
    assert not lossless.passed([{"key": "gate/0", "prompt": "0", "error": "does not fit"}])
    assert not lossless.passed([sampled_row(evidence())])


def test_the_largest_gap_of_a_tie_is_said():
    rows = [gate_row(0, "tie", gap=2.5), gate_row(1, "tie", gap=1.0)]
    assert lossless.lines(rows) == [
        "greedy text against plain decoding on 2 prompts: 0 identical, 2 different at a numerical tie "
        "(at most 2.5 ulp), 0 violations"
    ]


def test_a_violation_names_its_draft_and_length():
    said = lossless.lines([gate_row(0, "identical", "violation")], names=["sft"])
    assert said[0].endswith("1 violations") and said[1] == "  sft, gamma 2: 1 violations"


@pytest.mark.parametrize("fault", ["impossible", "miscounted", "misplaced", "overlap_off"])
def test_one_case_is_one_too_many(fault):
    good = [gate_row(0, "identical"), sampled_row(evidence())]
    bad = [gate_row(0, "identical"), sampled_row(evidence(), evidence(gamma=5, **{fault: 1}))]
    assert lossless.passed(good)
    (check,) = lossless.verdict(bad).failed
    assert (check.name, check.draft, check.gamma, check.p) == (fault, 0, 5, None)
    assert check.about == ("text" if fault == "impossible" else "counts")
    assert any(line.startswith("FAILED: draft 0, gamma 5: 1 ") for line in lossless.lines(bad))


@pytest.mark.parametrize("fault", ["miscounted", "misplaced"])
def test_false_counts_of_greedy_texts_close_the_gate(fault):
    rows = [gate_row(0, "identical", **{fault: 0}), gate_row(1, "identical", **{fault: 2})]
    (check,) = lossless.verdict(rows).failed
    assert check.name == f"greedy {fault}" and check.statistic == 2


def test_sums_of_texts_add_up_and_bounds_do_not():
    one = evidence(likeness=sums(sum=3.0, up=0.5), rarest=0.2, overlap_off=None)
    two = evidence(likeness=sums(sum=-1.0, up=0.7), rarest=0.1, overlap_off=None, impossible=2, given=None)
    total = lossless.added([one, two])
    assert total["likeness"] == {"sum": 2.0, "var": 100.0, "up": 0.7, "down": 1.0}
    assert total["ranks"] == [40] * 20 and total["rarest"] == 0.1 and total["impossible"] == 2
    assert total["overlap_off"] is None and total["given"]["var"] == 50.0
    assert lossless.added([two])["given"] is None


def test_several_lengths_of_a_draft_are_also_tested_together():
    """Each deviates by 4 standard deviations, which alone is too little; together it is too much."""
    off = sums(sum=4 * math.sqrt(50), var=50.0, up=0.1, down=0.1)
    rows = [gate_row(0, "identical"), sampled_row(*(evidence(gamma=g, likeness=off) for g in (1, 2, 3)))]
    failed = lossless.verdict(rows).failed
    assert [(check.name, check.gamma) for check in failed] == [("likeness", None)]
    assert lossless.passed([rows[0], sampled_row(evidence(gamma=1, likeness=off), evidence(gamma=2))])


def test_all_tests_of_a_run_share_the_level():
    """A p-value of 0.0003 fails alone and passes among twenty."""
    z = math.sqrt(2 * math.log(2 / 0.0003))
    off = evidence(gamma=0, draft=-1, surprise=sums(sum=z * math.sqrt(50), up=1e-4, down=1e-4))
    alone = off | dict.fromkeys(("likeness", "accepted", "given")) | {"ranks": [1], "rarest": 1.0}
    found = [check.p for check in lossless.verdict([sampled_row(alone)]).checks if check.name == "surprise"]
    assert found == [pytest.approx(0.0003, rel=0.01)]
    others = [evidence(draft=draft) for draft in range(5)]
    assert lossless.passed([gate_row(0, "identical"), sampled_row(alone, *others)])
    assert not lossless.passed([gate_row(0, "identical"), sampled_row(alone)])


def test_ranks_need_enough_tokens_for_their_bins():
    """Below 20 expected in a bin neighbours are joined; below 100 tokens nothing is claimed."""
    for n, df in ((400, 19), (200, 9), (100, 4), (80, None)):
        rows = [sampled_row(evidence(tokens=n, ranks=[n // 20] * 20))]
        found = [check for check in lossless.verdict(rows).checks if check.name == "ranks"]
        assert [f"on {df} degrees" in check.words and check.statistic == 0 for check in found] == [True] * (
            df is not None
        )
    lopsided = [40, *[20] * 18, 0]
    (check,) = (c for c in lossless.verdict([sampled_row(evidence(ranks=lopsided))]).checks if c.name == "ranks")
    assert check.statistic == pytest.approx(2 * 20**2 / 20) and check.p == pytest.approx(chi2.sf(40, 19))


def test_an_impossibly_rare_token_fails_a_run_by_itself():
    rows = [gate_row(0, "identical"), sampled_row(evidence(rarest=1e-9))]
    assert [check.name for check in lossless.verdict(rows).failed] == ["rarest"]


def test_rounding_is_allowed_for_before_draws_are_counted():
    """Identical models in half precision: every draft should be kept, and a few are not."""
    certain = sums(sum=-3.0, var=0.0, up=0.0, down=1.0)
    assert not lossless.passed([gate_row(0, "identical"), sampled_row(evidence(given=certain | {"noise": 0.0}))])
    assert lossless.passed([gate_row(0, "identical"), sampled_row(evidence(given=certain | {"noise": 2.0}))])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(n=st.integers(1, 400), a=st.floats(0.002, 0.998), share=st.floats(0, 1))
def test_the_bound_is_never_below_the_exact_tail(n, a, share):
    """Bernoulli draws, where the exact two-sided tail is known."""
    k = round(share * n)
    distance = abs(k - n * a)
    exact = binom.sf(math.ceil(n * a + distance - 1e-9) - 1, n, a) if k >= n * a else binom.cdf(k, n, a)
    step = 1 - a if k >= n * a else a
    assert lossless.bennett(distance, n * a * (1 - a), step) >= min(1.0, exact) - 1e-12


def test_the_bound_is_nearly_the_normal_tail_where_that_holds():
    for z in (2.0, 4.0, 6.0):
        bound = lossless.bennett(z * 100.0, 100.0**2, 1.0)
        assert bound == pytest.approx(2 * math.exp(-z * z / 2), rel=0.5)
    assert lossless.bennett(0.0, 0.0, 0.0) == 1 and lossless.bennett(1.0, 0.0, 1.0) == 0


@given(statistic=st.floats(0, 500), df=st.integers(1, 300))
def test_the_chi_square_tail_is_scipys(statistic, df):
    assert lossless.chi2_tail(statistic, df) == pytest.approx(chi2.sf(statistic, df), rel=1e-9, abs=1e-300)


def test_the_enumeration_is_one_of_the_tests_and_is_said():
    row = {
        "key": "enumeration",
        "n": 2000,
        "cells": 92,
        "chi2": 97.2,
        "df": 91,
        "p": 0.31,
        "tv": 0.094,
        "tv_expected": 0.091,
    }
    said = lossless.lines([row, gate_row(0, "identical"), sampled_row(evidence())], names=["sft"])
    assert said[1] == (
        "exact law of 3 tokens of a tiny model, 2000 texts: chi-square 97.2 on 91 degrees of freedom (p = 0.31), "
        "total variation 0.094 where chance gives 0.091"
    )
    assert said[2] == "sft, gamma 3: 200 draws accepted where sum min(p, q) expects 200.0 (z = +0.00)"
    assert said[3].startswith("sampled text against the target's distribution: 7 tests, smallest p 0.31, 0 below")
    wrong = [row | {"p": 1e-9, "chi2": 400.0}, gate_row(0, "identical")]
    assert not lossless.passed(wrong) and lossless.lines(wrong)[-1].startswith("FAILED: exact law of 3 tokens")


def test_plain_decodings_own_text_is_tested_too():
    plain = evidence(draft=-1, gamma=0) | dict.fromkeys(("likeness", "accepted", "given", "misplaced", "overlap_off"))
    checks = lossless.verdict([sampled_row(plain | {"ranks": np.arange(20).tolist() * 1, "tokens": 190})]).checks
    assert {check.name for check in checks} == {"impossible", "miscounted", "ranks", "rarest", "surprise"}
    rows = [gate_row(0, "identical"), sampled_row(plain | {"impossible": 1})]
    assert any(line.startswith("FAILED: plain decoding: 1 tokens") for line in lossless.lines(rows))
