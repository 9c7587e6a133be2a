"""Rank correlations against scipy's, replicated points, and made-up drafts whose order is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import record_factory as make
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from selectkd_eval import speed_links

METHODS = ("SFT-control", "KD + Top-k", "KD")  # by skill
points = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 3)), min_size=3, max_size=12)


@settings(max_examples=60)
@given(points)
def test_points_that_occur_several_times_are_so_many_points(drawn: list[tuple[int, int, int]]) -> None:
    x, y, weights = np.array(drawn, dtype=float).T
    copies = weights.astype(int)
    found = speed_links.weighted_spearman(x, y, weights[None])[0]
    wide_x, wide_y = np.repeat(x, copies), np.repeat(y, copies)
    if len(set(wide_x)) < 2 or len(set(wide_y)) < 2:
        assert np.isnan(found)
        return
    expected = scipy.stats.spearmanr(wide_x, wide_y).statistic
    assert found == pytest.approx(expected)
    assert speed_links.spearman(wide_x[None], wide_y[None])[0] == pytest.approx(expected)


def test_the_better_draft_by_acceptance_needs_fewer_target_calls(tmp_path: Path) -> None:
    rows = make.speedup(tmp_path, [make.card(method, 0) for method in METHODS], n=40).rows
    found = {(link.what, link.over): link for link in speed_links.links(rows, resamples=200)}
    assert {what for what, _ in found} == set(speed_links.QUANTITIES)
    for (_, over), link in found.items():
        assert link.gamma == 5 and link.spearman is not None
        assert link.n == (3 if over == "drafts" else 120)
        assert link.spearman.value == 1 if over == "drafts" else 0.5 < link.spearman.low < link.spearman.high < 1
    shorter = speed_links.links(rows, gamma=3, resamples=50)
    assert {link.gamma for link in shorter} == {3}
    assert speed_links.links(rows, gamma=4) == []


def test_two_drafts_have_no_correlation(tmp_path: Path) -> None:
    rows = make.speedup(tmp_path, [make.card(method, 0) for method in METHODS[:2]]).rows
    assert [link.spearman for link in speed_links.links(rows, resamples=50)] == [None] * 8


def test_drafts_that_are_all_alike_have_no_correlation(tmp_path: Path) -> None:
    cards = [make.card("KD", seed) for seed in range(3)]  # of one skill, so of one trace
    found = speed_links.links(make.speedup(tmp_path, cards).rows, resamples=50)
    assert all(link.spearman is None for link in found if link.over == "drafts")


def test_drafts_whose_text_was_not_read_again_have_their_own_acceptance_alone(tmp_path: Path) -> None:
    rows = make.speedup(tmp_path, [make.card(method, 0) for method in METHODS], text=False).rows
    assert {link.what for link in speed_links.links(rows, resamples=50)} == {"alpha"}
    assert speed_links.links([]) == []
