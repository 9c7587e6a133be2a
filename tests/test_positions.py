"""Position reports by hand, against statsmodels' and analytic intervals, and on a published judge's file."""

from __future__ import annotations

import gzip
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.proportion import confint_proportions_2indep
from verdict_rows import FIRST, SECOND, in_both_orders, row, said

from judges import positions as places
from judges import replay
from judges.positions import KINDS, both_orders, positions
from judges.resampling import Resampling
from selectkd_eval.win_rates import win_rate_terms

FEW = Resampling(200)
MIRRORED = {"candidate": "baseline", "baseline": "candidate", FIRST: SECOND, SECOND: FIRST}


def mirrored(rows: list[dict]) -> list[dict]:
    """The same judgements with candidate and baseline renamed into each other."""
    return [{**one, **{name: MIRRORED.get(one[name], one[name]) for name in ("verdict", "order")}} for one in rows]


def test_both_orders_fall_apart_into_their_kinds() -> None:
    pairs = ["cc", "cc", "bb", "tt", "cb", "cb", "cb", "bc", "ct", "tb", "cu", "-b"]
    found = both_orders(in_both_orders(pairs), FEW)
    assert found is not None
    assert found.counts == {"win": 2, "loss": 1, "tie": 1, "first": 3, "second": 1, "half-tie": 2}
    assert (found.n, found.incomplete) == (10, 2)
    assert (found.flipped.value, found.changed.value) == (0.4, 0.6)


@given(st.lists(st.text("cbtu-", min_size=2, max_size=2), min_size=1, max_size=40))
@settings(deadline=None)
def test_every_pair_is_of_one_kind_and_renaming_the_sides_keeps_positions(pairs: list[str]) -> None:
    rows = in_both_orders(pairs)
    one, other = both_orders(rows, FEW), both_orders(mirrored(rows), FEW)
    assert one is not None and other is not None
    assert one.n + one.incomplete == len(pairs) and set(one.counts) == set(KINDS)
    assert {**one.counts, "win": one.counts["loss"], "loss": one.counts["win"]} == other.counts
    ours, theirs = positions(rows, "half", FEW), positions(mirrored(rows), "half", FEW)
    assert ours.difference.value == pytest.approx(theirs.difference.value, nan_ok=True)
    assert ours.preference.value == pytest.approx(theirs.preference.value, nan_ok=True)
    assert ours.first.value == pytest.approx(1 - theirs.second.value, nan_ok=True)


def test_a_judge_that_always_takes_the_first_is_found_out() -> None:
    found = positions(in_both_orders(["cb"] * 60), "excluded", FEW)
    assert (found.first.value, found.second.value, found.difference.value, found.preference.value) == (1, 0, 1, 1)
    assert found.both is not None and found.both.flipped.value == 1
    # No interval is a point: sixty prompts do not prove "always".
    assert 0.8 < found.difference.low < 1 and found.both.flipped.low < 1
    assert "the judge favours the answer shown first" in "\n".join(places.lines(found))


def test_a_fair_judge_has_no_favoured_position() -> None:
    found = positions(in_both_orders(["cc", "bb", "tt", "cc"] * 20), "half", FEW)
    assert (found.difference.value, found.difference.low, found.difference.high) == (0, 0, 0)
    assert found.preference.value == 0.5
    assert "no favoured position can be seen" in "\n".join(places.lines(found))


def test_the_tie_rule_of_the_record_holds_in_each_position() -> None:
    rows = said("ccbtt", order=FIRST) + [row(10 + i, v, SECOND) for i, v in enumerate("cbbt")]
    assert positions(rows, "excluded", FEW).first.value == pytest.approx(2 / 3)
    for ties in ("half", "half-per-order", "agreement"):
        found = positions(rows, ties, FEW)
        assert (found.first.value, found.second.value) == (3 / 5, 1.5 / 4)
    assert found.both is None


def test_the_drawn_order_compares_two_groups_of_prompts() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random(400) < 0.3, rng.random(300) < 0.5
    rows = [row(i, "c" if won else "b", FIRST) for i, won in enumerate(first)]
    rows += [row(1000 + i, "c" if won else "b", SECOND) for i, won in enumerate(second)]
    found = positions(rows, "excluded", Resampling(4000))
    assert found.difference.value == pytest.approx(first.mean() - second.mean())
    error = math.sqrt(first.var() / 400 + second.var() / 300)
    assert (found.difference.high - found.difference.low) / 2 == pytest.approx(1.96 * error, rel=0.06)
    assert "other prompts" in found.difference.method and found.difference.n == 700


def test_both_orders_of_a_prompt_are_paired() -> None:
    rng = np.random.default_rng(1)
    ease = rng.beta(0.4, 0.4, 500)
    first, second = rng.random(500) < ease, rng.random(500) < ease
    rows = in_both_orders(["".join("bc"[int(won)] for won in pair) for pair in zip(first, second, strict=True)])
    unpaired = [{**one, "prompt": f"{one['prompt']}/{one['order']}"} for one in rows]
    paired, apart = (positions(some, "excluded", Resampling(4000)) for some in (rows, unpaired))
    differences = first.astype(float) - second
    half = 1.96 * differences.std() / math.sqrt(500)
    assert (paired.difference.high - paired.difference.low) / 2 == pytest.approx(half, rel=0.06)
    assert apart.difference.value == paired.difference.value
    assert apart.difference.high - apart.difference.low > 1.3 * (paired.difference.high - paired.difference.low)
    assert paired.both is not None and apart.both is None


def test_at_the_edge_the_difference_has_newcombes_limits() -> None:
    rows = said("c" * 2 + "b" * 38, order=FIRST) + [row(100 + i, v, SECOND) for i, v in enumerate("c" * 9 + "b" * 41)]
    found = positions(rows, "excluded", FEW).difference
    theirs = confint_proportions_2indep(2, 40, 9, 50, method="newcomb")
    assert (found.low, found.high) == pytest.approx(theirs)


def test_seeds_and_repeats_are_pairs_of_their_own_and_prompts_stay_whole() -> None:
    rows = [
        one
        for seed in range(2)
        for sample in range(3)
        for one in in_both_orders(["cb", "cc"], seed=seed, sample=sample)
    ]
    found = both_orders(rows, FEW)
    assert found is not None and found.n == 12 and found.flipped.n == 2
    assert found.counts["first"] == found.counts["win"] == 6


def test_what_was_settled_without_a_judge_is_in_the_rates_and_in_no_count_of_flips() -> None:
    rows = in_both_orders(["cb"] * 4)
    settled = [row(50 + i, "t", order, asked=False) for i in range(4) for order in (FIRST, SECOND)]
    found, without = positions(rows + settled, "half", FEW), positions(rows, "half", FEW)
    assert (found.both, found.preference) == (without.both, without.preference)
    assert (found.first.value, found.second.value) == (0.75, 0.25)


def test_the_rates_of_the_two_positions_are_the_parts_of_the_win_rate() -> None:
    rows = [*in_both_orders(["cb", "tc", "bb", "cc"]), row(9, "t", asked=False)]
    found, whole = positions(rows, "half", FEW), win_rate_terms(rows, "half")
    assert 5 * found.first.value + 4 * found.second.value == pytest.approx(whole.num.sum())


def test_a_judges_probability_counts_as_that_share() -> None:
    rows = [row(i, "c", FIRST, preference=0.75) for i in range(20)] + [
        row(30 + i, "b", SECOND, preference=0.25) for i in range(20)
    ]
    found = positions(rows, "half", FEW)
    assert (found.first.value, found.second.value, found.difference.value) == (0.75, 0.25, 0.5)
    assert found.preference.value == 1


def test_one_position_alone_and_no_verdict_at_all_are_dashes() -> None:
    one = positions(said("cbc"), "excluded", FEW)
    assert math.isnan(one.difference.value) and "shown second –" in "\n".join(places.lines(one))
    assert "one position alone shows nothing" in "\n".join(places.lines(one))
    none = positions(said("uu-"), "excluded", FEW)
    assert math.isnan(none.preference.value) and places.lines(none)


def test_the_lines_fit_the_page() -> None:
    found = positions(in_both_orders(["cb", "cc", "tu", "ct", "bc", "bb"] * 300), "half", FEW)
    text = places.lines(found)
    assert max(map(len, text)) <= 120 and any("flip rate" in line for line in text)


def test_alpaca_evals_judge_favours_the_second_answer_by_an_independent_count(shared_data: Path) -> None:
    path = (
        shared_data
        / "judge/alpaca_eval/annotations_full/claude-2.1__weighted_alpaca_eval_gpt4_turbo.annotations.json.gz"
    )
    found = positions(replay.open_file(path).rows, "half")
    # Again from the file alone: AlpacaEval draws the order from the instruction, and switches the model to the front.
    shares: dict[bool, list[float]] = {True: [], False: []}
    for entry in json.loads(gzip.decompress(path.read_bytes())):
        switched = random.Random("is_switched_outputs" + entry["instruction"] + "0").choices([False, True])[0]
        shares[switched].append(entry["preference"] - 1)
    first, second = np.mean(shares[True]), np.mean(shares[False])
    assert (found.first.n, found.second.n) == (len(shares[True]), len(shares[False]))
    assert (found.first.value, found.second.value) == pytest.approx((first, second))
    assert found.difference.value == pytest.approx(first - second) == pytest.approx(-0.144, abs=5e-4)
    error = math.sqrt(sum(np.var(side, ddof=1) / len(side) for side in shares.values()))
    assert (found.difference.low, found.difference.high) == pytest.approx(
        (first - second - 1.96 * error, first - second + 1.96 * error), abs=0.003
    )
    assert places.in_words(found) == "the judge favours the answer shown second"
