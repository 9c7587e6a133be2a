"""Agreement of judges against scikit-learn, statsmodels, published examples and hand arithmetic."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, cohen_kappa_score, precision_recall_fscore_support
from statsmodels.stats.inter_rater import cohens_kappa
from verdict_rows import FIRST, SECOND, in_both_orders, row, said

from judges import agreement as agreeing
from judges import replay
from judges.agreement import agreement, classification, self_consistency
from judges.ratings import by_sample, majority, ratings
from judges.resampling import Resampling
from selectkd_eval.errors import InputError

FEW = Resampling(200)
LETTERS = st.sampled_from("cbt")


def of(*raters: str, how: Resampling = FEW) -> agreeing.Agreement:
    return agreement(ratings({f"r{i}": said(verdicts) for i, verdicts in enumerate(raters)}), how)


@given(st.lists(st.tuples(LETTERS, LETTERS), min_size=2, max_size=60))
@settings(deadline=None)
def test_kappa_and_agreement_are_scikit_learns(verdicts: list[tuple[str, str]]) -> None:
    a, b = ("".join(side) for side in zip(*verdicts, strict=True))
    pair = of(a, b).pairs[0]
    assert pair.observed.value == pytest.approx(accuracy_score(list(a), list(b)))
    if len(set(a + b)) > 1:
        assert pair.kappa.value == pytest.approx(cohen_kappa_score(list(a), list(b)))
    else:
        assert math.isnan(pair.kappa.value) and pair.why == "all verdicts are one word"


def test_kappa_is_statsmodels_kappa_and_the_interval_near_its_normal_one() -> None:
    table = np.array([[200, 30, 10], [20, 250, 15], [12, 8, 60]])
    a, b = "", ""
    for i, j in itertools.product(range(3), range(3)):
        a, b = a + "cbt"[i] * int(table[i, j]), b + "cbt"[j] * int(table[i, j])
    ours, theirs = of(a, b, how=Resampling()).pairs[0].kappa, cohens_kappa(table)
    assert ours.value == pytest.approx(theirs.kappa)
    assert (ours.low, ours.high) == pytest.approx((theirs.kappa_low, theirs.kappa_upp), abs=0.004)


def test_ac1_and_kappa_of_gwets_example_where_one_word_is_frequent() -> None:
    # Gwet 2008: two raters agree on 118 of 125, kappa is below 0 and AC1 is 0.94.
    pair = of("b" * 118 + "b" * 5 + "c" * 2, "b" * 118 + "c" * 5 + "b" * 2).pairs[0]
    assert pair.observed.value == 118 / 125
    chance = 2 * (243 / 250) * (7 / 250)
    assert pair.ac1.value == pytest.approx((118 / 125 - chance) / (1 - chance)) == pytest.approx(0.9408, abs=1e-4)
    assert pair.kappa.value == pytest.approx(-0.0234, abs=1e-4)


def test_alpha_of_krippendorffs_binary_example() -> None:
    # Krippendorff, "Computing Krippendorff's Alpha-Reliability", section A: alpha = 0.095.
    assert of("bcbbbbbbcb", "cccbbcbbbb").alpha.value == pytest.approx(0.095, abs=5e-4)


def alpha_by_pairs(raters: list[str]) -> float:
    """Krippendorff's alpha from its definition: disagreement within units over disagreement of all values."""
    units = [[v for v in unit if v in "cbt"] for unit in zip(*raters, strict=True)]
    units = [unit for unit in units if len(unit) > 1]
    values = [v for unit in units for v in unit]
    n = len(values)
    within = sum(sum(a != b for a, b in itertools.permutations(unit, 2)) / (len(unit) - 1) for unit in units) / n
    overall = sum(a != b for a, b in itertools.permutations(values, 2)) / (n * (n - 1))
    return 1 - within / overall


@given(st.lists(st.tuples(*[st.sampled_from("cbtu-")] * 3), min_size=2, max_size=25))
@settings(deadline=None)
def test_alpha_with_missing_verdicts_is_its_definition(verdicts: list[tuple[str, str, str]]) -> None:
    raters = ["".join(side) for side in zip(*verdicts, strict=True)]
    paired = [v for unit in verdicts for v in unit if v in "cbt" and sum(w in "cbt" for w in unit) > 1]
    found = of(*raters).alpha
    if len(set(paired)) > 1:
        assert found.value == pytest.approx(alpha_by_pairs(raters))
    else:
        assert math.isnan(found.value)


@given(st.lists(st.tuples(LETTERS, LETTERS), min_size=3, max_size=40), st.permutations("cbt"))
@settings(deadline=None, max_examples=40)
def test_neither_the_raters_order_nor_the_words_names_matter(
    verdicts: list[tuple[str, str]], renamed: list[str]
) -> None:
    a, b = ("".join(side) for side in zip(*verdicts, strict=True))
    names = str.maketrans("cbt", "".join(renamed))
    one, other = of(a, b), of(b.translate(names), a.translate(names))
    for coefficient in ("observed", "kappa", "ac1"):
        ours, theirs = (getattr(report.pairs[0], coefficient).value for report in (one, other))
        assert ours == pytest.approx(theirs, nan_ok=True)
    assert one.alpha.value == pytest.approx(other.alpha.value, nan_ok=True)


def test_a_judge_agrees_with_itself_and_the_interval_is_not_a_point() -> None:
    found = of("cbt" * 30, "cbt" * 30)
    pair = found.pairs[0]
    assert (pair.observed.value, pair.kappa.value, pair.ac1.value, found.alpha.value) == (1, 1, 1, 1)
    # Ninety comparisons without a disagreement leave room for a few in a hundred.
    assert 0.95 < pair.observed.low < 1 and pair.kappa.low < pair.observed.low and pair.kappa.high == 1


def test_one_word_alone_has_full_ac1_no_kappa_and_says_why() -> None:
    found = of("b" * 50, "b" * 50)
    assert found.pairs[0].ac1.value == 1
    assert math.isnan(found.alpha.value)
    text = "\n".join(agreeing.lines(found))
    assert "kappa – (all verdicts are one word)" in text and "alpha        –" in text


def test_three_copies_of_every_comparison_do_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(0)
    a = rng.choice(list("cbt"), 200)
    b = np.where(rng.random(200) < 0.7, a, rng.choice(list("cbt"), 200))
    once = agreement(ratings({"a": said(a), "b": said(b)}), Resampling(4000))
    thrice = {
        name: [one for seed in range(3) for one in said(verdicts, seed=seed)] for name, verdicts in (("a", a), ("b", b))
    }
    again = agreement(ratings(thrice), Resampling(4000))
    assert again.comparisons == 3 * once.comparisons and again.alpha.n == once.alpha.n == 200
    for coefficient in ("observed", "kappa", "ac1"):
        ours, theirs = (getattr(report.pairs[0], coefficient) for report in (once, again))
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_the_interval_is_that_of_resampled_prompts_drawn_one_by_one() -> None:
    rng = np.random.default_rng(1)
    prompts = np.repeat(np.arange(120), 3)
    skill = rng.beta(2, 1, 120)[prompts]
    a = rng.choice(list("cbt"), 360, p=[0.5, 0.4, 0.1])
    b = np.where(rng.random(360) < skill, a, rng.choice(list("cbt"), 360))
    rows = {
        name: [row(int(p), v, seed=i % 3) for i, (p, v) in enumerate(zip(prompts, verdicts, strict=True))]
        for name, verdicts in (("a", a), ("b", b))
    }
    ours = agreement(ratings(rows), Resampling(4000)).pairs[0].kappa
    draws = []
    for _ in range(1500):
        chosen = (rng.integers(120, size=120)[:, None] * 3 + np.arange(3)).ravel()
        draws.append(cohen_kappa_score(a[chosen], b[chosen]))
    assert (ours.low, ours.high) == pytest.approx(tuple(np.percentile(draws, [2.5, 97.5])), abs=0.012)


def test_near_full_agreement_the_interval_still_covers() -> None:
    rng = np.random.default_rng(2)
    law = np.array([[100, 0.6, 0.2], [0.6, 90, 0.2], [0.2, 0.2, 8]])
    law /= law.sum()
    chance = (law.sum(axis=0) * law.sum(axis=1)).sum()
    truth = (np.trace(law) - chance) / (1 - chance)
    covered = 0
    for _ in range(150):
        drawn = rng.choice(9, size=218, p=law.ravel())
        a, b = ("".join("cbt"[i] for i in side) for side in (drawn // 3, drawn % 3))
        found = of(a, b).pairs[0].kappa
        covered += found.low <= truth <= found.high
    assert covered >= 141  # 94 %: the bootstrap alone covers 90 % here


def test_tasks_keep_their_numbers_of_prompts() -> None:
    # One task agrees always, the other never: within tasks there is nothing left to vary.
    a = said("cb" * 20, task="one") + [row(100 + i, "c", task="two") for i in range(40)]
    b = said("cb" * 20, task="one") + [row(100 + i, "b", task="two") for i in range(40)]
    found = agreement(ratings({"a": a, "b": b}), FEW).pairs[0].observed
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)
    mixed = [{**one, "task": ""} for one in a], [{**one, "task": ""} for one in b]
    loose = agreement(ratings(dict(zip("ab", mixed, strict=True))), FEW).pairs[0].observed
    assert loose.low < 0.45 and loose.high > 0.55


# ---- joining ------------------------------------------------------------


def test_raters_are_joined_by_comparison_and_not_by_place() -> None:
    rows = said("cbtcb")
    found = ratings({"a": rows, "b": rows[::-1]})
    assert (found.codes[:, 0] == found.codes[:, 1]).all()


def test_judges_that_saw_one_order_each_are_joined_and_both_orders_are_kept_apart() -> None:
    one, other = said("cb", order=FIRST), said("cb", order=SECOND)
    assert len(ratings({"a": one, "b": other}).units) == 2
    both = in_both_orders(["cb", "bb"])
    assert len(ratings({"a": both, "b": both}).units) == 4
    assert len(ratings({"a": both, "b": one}).units) == 2


def test_a_missing_verdict_is_counted_for_its_rater_and_in_no_coefficient() -> None:
    found = of("cbtu-", "cbbcc", "ccccc")
    assert found.missing == {"r0": 2, "r1": 0, "r2": 0}
    assert [pair.comparisons for pair in found.pairs] == [3, 3, 5]
    assert found.comparisons == 5


def test_comparisons_settled_without_a_judge_are_left_out_and_said() -> None:
    settled = [row(100 + i, "t", asked=False) for i in range(7)]
    found = agreement(ratings({"a": said("cbcb") + settled, "b": said("cbbb") + settled}), FEW)
    assert (found.comparisons, found.settled, found.pairs[0].observed.value) == (4, 7, 0.75)
    assert "7 comparisons settled without a judge" in "\n".join(agreeing.lines(found))
    nothing = agreement(ratings({"a": settled, "b": settled}), FEW)
    assert nothing.comparisons == 0 and math.isnan(nothing.alpha.value)


def test_nothing_in_common_and_twice_the_same_are_refused_in_a_sentence() -> None:
    with pytest.raises(InputError, match="a and b judged no comparison in common"):
        ratings({"a": [row("x", "c")], "b": [row("y", "c")]})
    with pytest.raises(InputError, match=r"a judged the comparison x/0/0/candidate-first twice"):
        ratings({"a": [row("x", "c"), row("x", "b")], "b": [row("x", "c")]})


def test_the_majority_needs_more_votes_than_any_other_word() -> None:
    raters = {"a": said("ccbt"), "b": said("cbbb"), "c": said("btbc")}
    assert [(one["prompt"], one["verdict"]) for one in majority(raters)] == [
        ("00000", "candidate"),
        ("00002", "baseline"),
    ]


# ---- one judge again, and against a reference ------------------------------------------------------------


def test_self_consistency_by_hand() -> None:
    # Three askings of four prompts: ccc agrees whole, ccb on 1 of 3 pairs, cbt on none, "cu-" was read once.
    rows = [
        row(p, v, sample=s) for p, askings in enumerate(("ccc", "ccb", "cbt", "cu-")) for s, v in enumerate(askings)
    ]
    found = self_consistency(rows, FEW)
    assert (found.repeats, found.comparisons, found.missing) == (3, 3, 2)
    assert found.unanimous.value == pytest.approx(1 / 3)
    assert found.pairwise.value == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert found.alpha.value == pytest.approx(alpha_by_pairs(["cccc", "ccbu", "cbt-"]))
    assert "2 askings without a verdict" in "\n".join(agreeing.consistency_lines(found))


def test_two_askings_agree_as_a_pair_of_judges_would() -> None:
    rng = np.random.default_rng(3)
    a = "".join(rng.choice(list("cbt"), 80))
    b = "".join(v if rng.random() < 0.6 else "c" for v in a)
    found = self_consistency([*said(a), *said(b, sample=1)], FEW)
    assert found.unanimous.value == found.pairwise.value == of(a, b).pairs[0].observed.value
    assert found.alpha.value == of(a, b).alpha.value


def test_a_judge_asked_once_has_no_consistency() -> None:
    with pytest.raises(InputError, match="--repeats 2"):
        self_consistency(said("cbt"))


@given(st.lists(st.tuples(LETTERS, LETTERS), min_size=1, max_size=60))
@settings(deadline=None)
def test_classification_is_scikit_learns_macro_average(verdicts: list[tuple[str, str]]) -> None:
    judged, real = ("".join(side) for side in zip(*verdicts, strict=True))
    found = classification(said(judged), said(real), how=FEW)
    theirs = precision_recall_fscore_support(list(real), list(judged), average="macro", zero_division=0)[:3]
    assert (found.precision.value, found.recall.value, found.f1.value) == pytest.approx(theirs)
    assert found.accuracy.value == pytest.approx(accuracy_score(list(real), list(judged)))


def test_an_unread_reply_is_left_out_unless_it_stands_for_a_word() -> None:
    judged, real = said("cbuu-"), said("cbtct")
    assert (classification(judged, real, how=FEW).comparisons, classification(judged, real, how=FEW).missing) == (2, 3)
    found = classification(judged, real, unread_as="tie", how=FEW)
    assert (found.comparisons, found.missing, found.accuracy.value) == (4, 1, 0.75)


# ---- PandaLM's published figures ------------------------------------------------------------


@pytest.fixture(scope="module")
def annotators(shared_data: Path) -> dict[str, list]:
    found = replay.open_file(shared_data / "judge/pandalm/testset-v1.json.gz")
    return by_sample(found.rows, ("one", "two", "three"))


def test_pandalms_annotators_agree_as_published(annotators: dict[str, list]) -> None:
    found = agreement(ratings(annotators), Resampling(1000))
    assert [round(pair.kappa.value, 3) for pair in found.pairs] == [0.852, 0.879, 0.862]
    assert round(found.alpha.value, 4) == 0.8642
    assert found.comparisons == found.alpha.n == 999
    counts = Counter(one["verdict"] for one in majority(annotators))
    assert (counts["tie"], counts["baseline"], counts["candidate"]) == (105, 422, 472)


@pytest.mark.parametrize(
    ("judge", "published"),
    [("gpt-3.5-turbo", [71.07, 58.79, 57.36, 57.55]), ("pandalm-7b", [66.77, 57.38, 57.50, 57.43])],
)
def test_pandalms_judges_are_as_right_as_published(
    judge: str, published: list[float], annotators: dict[str, list], shared_data: Path
) -> None:
    rows = replay.open_file(shared_data / f"judge/pandalm/{judge}-testset-v1.json.gz").rows
    found = classification(rows, majority(annotators), unread_as="tie", how=FEW)
    ours = (found.accuracy, found.precision, found.recall, found.f1)
    assert [round(one.value * 100, 2) for one in ours] == published
    strict = classification(rows, majority(annotators), how=FEW)
    assert strict.missing == (25 if judge == "gpt-3.5-turbo" else 0)


def test_the_lines_fit_the_page() -> None:
    names = {
        f"a-judge-with-a-rather-long-name-{i}": said(v) for i, v in enumerate(("cbtcb" * 9, "cbbub" * 9, "cbccb" * 9))
    }
    report = agreement(ratings(names), FEW)
    text = agreeing.lines(report) + agreeing.classification_lines(
        classification(said("cbt" * 9), said("cbb" * 9), how=FEW), "a judge", "the majority of three annotators"
    )
    assert max(len(line) for line in text) <= 120
    assert all(line.startswith("  ") for line in text)
    assert any("2 gave no verdict on 9" in line for line in text)
