"""The speed figure: a row per draft and length, ratios filled as their intervals say, the prediction as a curve."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import record_factory as make
from matplotlib.axes import Axes

from analysis import speed, style
from analysis.figures import draw
from analysis.load import Library, library
from analysis.style import Drawing, Settings

RESAMPLES = 200
SETTINGS = Settings(RESAMPLES)
NAMES = ("Start", "SFT-control", "KD", "KD + Top-k", "KD + Spec-k")


def drafts() -> list[dict[str, Any]]:
    plain = make.card("Start") | {"name": "embedded:draft", "fingerprint": "d", "method": "embedded:draft"}
    return [make.card(name, None if name == "Start" else 0) for name in NAMES] + [plain]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Six drafts at two lengths on two tasks."""
    where = tmp_path_factory.mktemp("records")
    make.train(where, make.card("KD", 0), steps=2, every=1)
    made = drafts()
    make.speedup(where, made, n=20, tasks=("mini-gsm", "mini-stories"), skills=[0.6, 0.6, 0.85, 0.8, 0.86, 0.3])
    return library(where)


@pytest.fixture(scope="module")
def drawing(records: Library) -> Iterator[Drawing]:
    made = draw("speedup", records, SETTINGS)
    yield made
    style.close(made)


def points(axis: Axes) -> list[Any]:
    """The measured points of a panel, in the order they were drawn."""
    return [line for line in axis.lines if len(line.get_xdata()) == 1 and line.get_marker() not in ("None", "|", "_")]


def test_every_draft_has_a_row_for_every_length(drawing: Drawing) -> None:
    left, middle, right = drawing.figure.axes
    names = [label.get_text() for label in left.get_yticklabels()]
    assert names[:4] == ["Student before,  γ = 3", "γ = 5", "embedded:draft,  γ = 3", "γ = 5"]
    assert len(names) == len(points(left)) == len(points(right)) == 12
    assert len(points(middle)) == 10, "the reference draft has no ratio to itself"
    places = list(left.get_yticks())
    assert places == sorted(places, reverse=True)


def test_the_drawn_points_are_the_numbers_of_the_twin(drawing: Drawing, records: Library) -> None:
    (chosen,) = speed.speed_sets(records)
    found = next(found for method, found in chosen.drafts.items() if method.label == "KD")
    way = chosen.ways[0]
    numbers = drawing.data["KD, γ = 3"]
    assert numbers["speed"]["value"] == speed.speedup(found, way).value
    assert numbers["decode"]["value"] == speed.speedup(found, way, "decode").value
    assert set(numbers["tasks"]) == {"mini-gsm", "mini-stories"}
    drawn = [float(point.get_xdata()[0]) for point in points(drawing.figure.axes[0])]
    assert numbers["speed"]["value"] in drawn
    assert f"KD, γ = 3: ×{numbers['speed']['value']:.2f} ({numbers['ratio']['value']:.2f} of Student" in drawing.alt


def test_a_ratio_is_filled_only_where_its_interval_leaves_1_out(drawing: Drawing) -> None:
    ratios = [one["ratio"] for name, one in drawing.data.items() if "predicted" not in name and one["ratio"]]
    filled = [point.get_markerfacecolor() != "white" for point in points(drawing.figure.axes[1])]
    assert filled == [one["low"] > 1 or one["high"] < 1 for one in ratios]
    assert set(filled) == {True, False}


def test_the_curve_is_the_prediction_and_passes_its_points(drawing: Drawing) -> None:
    curve = dict(drawing.data["KD: predicted by γ"])
    assert list(curve) == [1, 2, 3, 4, 5]
    for gamma in (3, 5):
        measured = drawing.data[f"KD, γ = {gamma}"]
        assert measured["predicted"]["value"] == curve[gamma]
        assert curve[gamma] == pytest.approx(measured["decode"]["value"], rel=0.1)
    lines = [list(line.get_ydata()) for line in drawing.figure.axes[2].lines if len(line.get_xdata()) == 5]
    assert list(curve.values()) in lines


def test_the_same_records_give_the_same_bytes(drawing: Drawing, records: Library) -> None:
    again = draw("speedup", records, SETTINGS)
    for form in style.FORMATS:
        one, two = (hashlib.sha256(style.encode(one, form, 50)).hexdigest() for one in (drawing, again))
        assert one == two, form
    style.close(again)


def test_no_two_drafts_look_alike_and_students_keep_their_colours(tmp_path: Path) -> None:
    cards = [*drafts(), *(make.card("Start") | {"fingerprint": name, "method": name} for name in ("hub/a", "hub/b"))]
    make.speedup(tmp_path, cards, n=4)
    methods = library(tmp_path).methods
    looks = style.told_apart(methods)
    assert len({look.marker for look in looks.values()}) == len({style.ink(look) for look in looks.values()}) == 8
    for method in methods:
        if method.role == "student":
            assert looks[method].colour == style.looks(methods)[method].colour
    assert not {look.marker for look in looks.values()} & {"x", "+", "|"}, "every marker can be open or filled"


def test_engines_have_rows_of_panels_of_their_own(tmp_path: Path) -> None:
    make.speedup(tmp_path, drafts()[1:3], n=8)
    make.speedup(tmp_path, drafts()[1:3], n=8, engine="vllm", batches=(1, 4))
    drawing = draw("speedup", library(tmp_path), SETTINGS)
    titles = [axis.get_title(loc="left") for axis in drawing.figure.axes if axis.get_title(loc="left")]
    style.close(drawing)
    assert titles == ["engine reference", "engine vllm"]
    assert len(drawing.figure.axes) == 6
    assert "KD, γ = 3, batch 4, engine vllm" in drawing.data


def test_one_draft_has_no_ratio_and_an_engine_without_timers_no_curve(tmp_path: Path) -> None:
    make.speedup(tmp_path, make.card("KD", 0), n=8, engine="vllm", batches=(4,), text=False)
    drawing = draw("speedup", library(tmp_path), SETTINGS)
    style.close(drawing)
    assert len(drawing.figure.axes) == 1
    assert "Middle" not in drawing.caption and "Right" not in drawing.caption
    assert drawing.data["KD, γ = 3, batch 4"]["decode"] is None


def test_a_long_sweep_stays_on_the_page(tmp_path: Path) -> None:
    """Six drafts at eight lengths: names beside their rows, the legend above the panels."""
    make.speedup(tmp_path, drafts(), n=4, gammas=tuple(range(1, 9)))
    drawing = draw("speedup", library(tmp_path), Settings(50))
    figure = drawing.figure
    figure.canvas.draw()
    left = figure.axes[0]
    boxes = [label.get_window_extent() for label in left.get_yticklabels()]
    assert all(box.x0 >= figure.bbox.x0 for box in boxes)
    assert all(upper.y0 >= lower.y1 - 1 for upper, lower in itertools.pairwise(boxes)), "no name on another"
    assert figure.legends[0].get_window_extent().y0 >= left.get_window_extent().y1 - 1
    style.close(drawing)


def test_a_draft_alone_has_no_axis_of_ratios_beside_others_that_have(tmp_path: Path) -> None:
    """Nor ticks that lie on each other for want of a point."""
    make.speedup(tmp_path, [make.card("Start"), make.card("KD", 0)], n=12)
    make.speedup(tmp_path, make.card("KD", 0), n=14)
    made = draw("speedup", library(tmp_path), SETTINGS)
    shown = [row.axison for row in made.figure.axes[1::3]]
    style.close(made)
    assert shown == [True, False]
