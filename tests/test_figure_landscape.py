"""Figure 4b: one scale, the typical picture, panels that say what their bands cover, readable in grey and small."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import record_factory as make
from landscape_rows import bowl
from matplotlib.text import Text
from PIL import Image
from rewriting import rewrite

from analysis import style
from analysis.figure_landscape import quality, typical
from analysis.figures import draw
from analysis.landscape_panels import FINE, levels, norm_of
from analysis.landscapes import landscapes
from analysis.load import Library, library
from analysis.style import Drawing, Settings
from selectkd_eval.surfaces import Surface

METHODS = ("SFT-control", "KD", "KD + Top-k", "KD + Spec-k")
TWO, ONE = Settings(50), Settings(50, columns=1)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Four methods with three training seeds, three direction seeds, two metrics, scalars."""
    out = tmp_path_factory.mktemp("records")
    students = [make.card(method, seed) for method in METHODS for seed in (0, 1, 2)]
    more: dict[str, Any] = {"grid": 7, "directions": 3, "metrics": ("tar", "accuracy"), "scalars": 4, "held_out": 4}
    make.landscape(out, students, **more)
    return library(out)


@pytest.fixture(scope="module")
def drawings(full: Library) -> Iterator[dict[int, Drawing]]:
    made = {settings.columns: draw("landscape", full, settings) for settings in (ONE, TWO)}
    yield dict(made)
    for drawing in made.values():
        style.close(drawing)


@pytest.mark.parametrize("columns", [1, 2])
def test_it_is_the_same_bytes_twice(full: Library, drawings: dict[int, Drawing], columns: int) -> None:
    again = draw("landscape", full, {1: ONE, 2: TWO}[columns])
    for form in style.FORMATS:
        one, two = (style.encode(d, form, dpi=60) for d in (drawings[columns], again))
        assert hashlib.sha256(one).hexdigest() == hashlib.sha256(two).hexdigest(), form
    style.close(again)


@pytest.mark.parametrize("columns", [1, 2])
def test_it_is_exactly_as_wide_as_its_columns_and_small(drawings: dict[int, Drawing], columns: int) -> None:
    wanted = {1: style.ONE_COLUMN, 2: style.TWO_COLUMNS}[columns]
    assert float(drawings[columns].figure.get_size_inches()[0]) == pytest.approx(wanted)
    assert len(style.encode(drawings[columns], "pdf")) < 500_000, "surfaces are pixels inside the PDF"


@pytest.mark.parametrize("columns", [1, 2])
def test_no_label_lies_off_the_page_or_on_another(drawings: dict[int, Drawing], columns: int) -> None:
    figure = drawings[columns].figure
    with style.styled():
        figure.draw_without_rendering()  # labels stand where the last drawing, of other dots per inch, has put them
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    page = figure.bbox
    titles = [text.get_window_extent(renderer) for text in figure.texts]
    for index, box in enumerate(titles):
        assert page.x0 <= box.x0 < box.x1 <= page.x1
        assert not any(box.overlaps(other) for other in titles[:index])
    for axis in figure.axes:
        if hasattr(axis, "get_zlim"):
            continue
        labels = [text for text in axis.texts if text.get_text()] if not axis.collections or axis.lines else []
        # An annotation's own extent holds its leader; leaders may cross.
        boxes = [Text.get_window_extent(text, renderer) for text in labels if text.get_fontsize() == 7]
        everything = [*boxes, *([axis.yaxis.label.get_window_extent(renderer)] if axis.get_ylabel() else [])]
        for box in everything:
            assert page.x0 <= box.x0 < box.x1 <= page.x1
            assert page.y0 <= box.y0 < box.y1 <= page.y1
        for index, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:index])


def test_all_surfaces_have_one_height_and_one_norm(drawings: dict[int, Drawing]) -> None:
    surfaces = [axis for axis in drawings[2].figure.axes if hasattr(axis, "get_zlim")]
    assert len(surfaces) == 4
    assert len({axis.get_zlim() for axis in surfaces}) == 1
    shaded = [c for axis in drawings[2].figure.axes[:8] for c in axis.collections if c.get_array() is not None]
    assert len({c.get_clim() for c in shaded if getattr(c, "filled", True)}) == 1


def test_the_data_are_the_hand_computed_numbers(drawings: dict[int, Drawing]) -> None:
    data = drawings[2].data
    assert set(data["profiles"]) == set(METHODS)
    assert set(data["differences"]) == {"KD + Top-k − KD", "KD + Spec-k − KD"}
    assert data["profiles"]["KD"]["students"] == data["profiles"]["KD"]["directions"] == 3
    # Students number 3, 4, 5 lie at .2 + .02 s.
    assert data["profiles"]["KD"]["centre"] == pytest.approx(0.2 + 0.02 * 4)
    assert data["metrics"]["tar"]["KD"]["value"][0] == pytest.approx(0.9 - 0.28 / 5)
    each = data["profiles"]["KD"]["training_seeds"]
    assert np.mean(each, axis=0) == pytest.approx(data["profiles"]["KD"]["rise"])
    rise = {name: data["profiles"][name]["rise"][-1] for name in ("KD", "KD + Spec-k")}
    assert data["differences"]["KD + Spec-k − KD"]["rise"][-1] == pytest.approx(rise["KD + Spec-k"] - rise["KD"])
    assert set(data["scalars"]["KD"]) == {"curvature", "flatness r", "flatness 2r", "sharpness rho"}
    json.dumps(json.loads(json.dumps(data)))


def test_the_caption_says_what_everything_rests_on(drawings: dict[int, Drawing]) -> None:
    said = drawings[2].caption
    for part in (
        "7 × 7 points",
        "radius 0.5 of the weights' row norms (as asked)",
        "the nearest to the mean profile of 3",
        "interpolated from 49 points, error at 4 held-out points at most",
        "95 % t interval over 3 direction seeds and 3 training seeds; thin lines: single training seeds",
        "rise minus that of KD, paired by direction and training seed",
        "curvature E[d'Hd]",
        "Flat in random directions does not mean better.",
    ):
        assert part in said, part
    assert "nan" not in said


def test_one_student_and_one_direction_claim_nothing(tmp_path: Path) -> None:
    make.landscape(tmp_path, [make.card("KD", 0), make.card("KD + Spec-k", 0)], grid=5, directions=1)
    drawing = draw("landscape", library(tmp_path), TWO)
    style.close(drawing)
    assert "One direction seed: no band; one student each, so what another training seed would give" in drawing.caption
    assert "how well was not measured" in drawing.caption
    assert set(drawing.data["profiles"]["KD"]["half_width"]) == {0.0}


def test_the_picture_is_of_the_seeds_nearest_to_the_mean(tmp_path: Path) -> None:
    """Direction seeds are 0, .1 and .2 of a quartic steeper: the middle one is shown. So is the middle student."""

    def by_student(student: int, a: float, b: float) -> float:
        return bowl(0, a, b) * (1.0, 1.5, 1.2)[student % 3]

    students = [make.card(method, seed) for method in ("KD", "KD + Spec-k") for seed in (0, 1, 2)]
    make.landscape(tmp_path, students, grid=5, directions=3, loss=by_student)
    shown = typical(landscapes(library(tmp_path)))
    assert shown.direction == 1
    assert [plane.seed for plane in shown.planes] == [2, 2]


def test_lines_and_dots_are_told_apart_in_grey(full: Library, drawings: dict[int, Drawing]) -> None:
    panel = next(axis for axis in drawings[2].figure.axes if axis.get_ylabel() == "rise of the loss")
    means = [line for line in panel.lines if line.get_marker() not in ("None", "")]
    assert len({(line.get_marker(), str(line.get_linestyle())) for line in means}) == 4
    assert {text.get_text() for text in panel.texts} == set(METHODS), "every line is labelled at its end"
    image = Image.open(io.BytesIO(style.encode(drawings[2], "png", 60))).convert("L")
    assert len(set(image.getdata())) > 60, "the surfaces' shades survive"
    low, high = (matplotlib.colormaps["viridis"](end)[:3] for end in (0.0, 1.0))
    grey = [float(np.dot(colour, (0.2126, 0.7152, 0.0722))) for colour in (low, high)]
    assert grey[1] - grey[0] > 0.6


def test_a_held_out_point_below_the_grid_leaves_no_hole(tmp_path: Path) -> None:
    """The bowl's bottom lies between the grid's points, where only a held-out point and the spline are."""

    def beside(student: int, a: float, b: float) -> float:
        return 0.1 + 4 * ((a - 0.12) ** 2 + (b + 0.12) ** 2)

    make.landscape(tmp_path, [make.card("KD", 0)], grid=5, directions=1, loss=beside, held_out=40)
    (surface,) = typical(landscapes(library(tmp_path))).surfaces
    fine = surface.fine(FINE)
    assert fine.loss.min() < surface.loss.min(), "the case at hand"
    norm = norm_of([surface])
    assert norm.vmin == pytest.approx(fine.loss.min())
    assert levels(norm, 24)[0] <= fine.loss.min(), "below the lowest level nothing is filled"


def test_quality_is_unknown_without_held_out_points() -> None:
    axis = np.linspace(-1, 1, 5)
    flat = Surface(axis, axis, np.ones((5, 5)), np.ones((5, 5), dtype=bool))
    assert quality(flat) == {"points": 25, "held_out": 0, "largest_error": None, "share_of_range": None}


def test_many_methods_of_long_names_stay_on_the_page(tmp_path: Path) -> None:
    students = [make.card(f"A method with a long name, number {n}", 0) for n in range(9)]
    make.landscape(tmp_path, students, grid=5, scalars=3, loss=lambda s, a, b: bowl(0, a, b) + 0.001 * s)
    for settings in (ONE, TWO):
        drawing = draw("landscape", library(tmp_path), settings)
        test_no_label_lies_off_the_page_or_on_another({settings.columns: drawing}, settings.columns)
        panel = next(axis for axis in drawing.figure.axes if axis.get_ylabel() == "rise of the loss")
        assert panel.get_position().width * drawing.figure.get_size_inches()[0] > 0.8
        style.close(drawing)


def test_a_hole_at_the_edge_ends_the_profile(tmp_path: Path) -> None:
    def cliff(student: int, a: float, b: float) -> float:
        return math.nan if student == 0 and a > 0.4 else bowl(student, a, b)

    record = make.landscape(tmp_path, [make.card("KD", 0), make.card("KD + Spec-k", 0)], grid=5, loss=cliff)
    text = record.path.read_text().replace('"loss_sum":null', '"error":"the loss is not finite here"')
    rewrite(record.path, text)
    drawing = draw("landscape", library(tmp_path), TWO)
    style.encode(drawing, "png", 60)
    style.close(drawing)
    assert np.isfinite(drawing.data["profiles"]["KD"]["rise"]).tolist() == [True, True, False]
    assert "nan" not in drawing.alt
