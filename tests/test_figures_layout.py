"""Every figure on paper: exact widths, legible type, nothing cut off or on something else, the same bytes twice."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import record_factory as make
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from analysis import style
from analysis.figures import FIGURES, PAPER, draw, named
from analysis.load import Library, library
from analysis.style import Drawing, Settings

STYLED = ("winrate", "passk", "judges")  # the others know no dots
FORMS = [
    (name, Settings(50, columns, form))  # type: ignore[arg-type]
    for name in FIGURES
    for columns in (2, 1)
    for form in (("bars", "dots") if name in STYLED else ("bars",))
]
# Severity 1 of Machado, Oliveira and Fernandes (2009), on linear RGB.
BLIND = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Library]:
    demo = make.everything(tmp_path_factory.mktemp("demo"), n=30)
    judged = tmp_path_factory.mktemp("judged")
    for judge in ("deepseek-chat", "qwen-plus-2025-01-25", "gpt-4o", "moonshot-v1-8k"):
        for method in ("KD", "KD + Top-k", "KD + Spec-k"):
            make.winrate(judged, make.card(method, 0), make.card("SFT-control", 0), 40, kind="server", judge=judge)
    several = make.teachers(tmp_path_factory.mktemp("teachers"), n=30)
    return {"": library(demo), "judges": library(judged), "teachers": library(several)}


@pytest.fixture(scope="module", params=FORMS, ids=lambda form: _id(*form))
def drawing(request: pytest.FixtureRequest, libraries: dict[str, Library]) -> Iterator[tuple[str, Settings, Drawing]]:
    name, form = request.param
    made = draw(name, libraries.get(name, libraries[""]), form)
    yield name, form, made
    style.close(made)


def _id(name: str, form: Settings) -> str:
    return f"{name}-{form.columns}-{form.style}"


def test_a_figure_on_paper(drawing: tuple[str, Settings, Drawing]) -> None:
    name, form, made = drawing
    assert made.name == (name if form.columns == 2 else f"{name}-1col")
    assert made.figure.get_size_inches()[0] == {1: 3.25, 2: 6.75}[form.columns]
    assert made.figure.get_size_inches()[1] < 9.7, "no longer than a page"
    with style.styled():
        made.figure.draw_without_rendering()
        texts = [text for text in made.figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
        small = {text.get_text(): text.get_fontsize() for text in texts if text.get_fontsize() < 6}
        assert not small, "type below 6 points"
        assert not _cut_off(made), "cut off at the edge"
        assert not _on_each_other(made), "words on words"


@pytest.mark.parametrize("name", FIGURES)
def test_drawn_twice_it_is_the_same_bytes(name: str, libraries: dict[str, Library]) -> None:
    one, two = (draw(name, libraries.get(name, libraries[""]), Settings(50, 1)) for _ in range(2))
    for kind in style.FORMATS:
        assert style.encode(one, kind, 40) == style.encode(two, kind, 40), kind
    style.close(one)
    style.close(two)


def _cut_off(made: Drawing) -> list[str]:
    """What the figure draws beyond its edges, in inches."""
    width, height = made.figure.get_size_inches()
    box = made.figure.get_tightbbox()
    edges = {"left": -box.x0, "right": box.x1 - width, "below": -box.y0, "above": box.y1 - height}
    return [f"{side} {beyond:.3f} in" for side, beyond in edges.items() if beyond > 0.02]


def _on_each_other(made: Drawing) -> list[tuple[str, str]]:
    """Pairs of upright or level words that lie on each other by more than a hair."""
    found = []
    words = [(text, text.get_window_extent()) for text in _drawn_words(made)]
    for (one, box), (other, its) in combinations(words, 2):
        wide = min(box.x1, its.x1) - max(box.x0, its.x0)
        high = min(box.y1, its.y1) - max(box.y0, its.y0)
        # The extent of a line holds its ascenders and descenders, of which figures and capitals have one at most.
        if wide > 4 and high > 0.3 * min(box.height, its.height):
            found.append((one.get_text(), other.get_text()))
    return found


def _drawn_words(made: Drawing) -> list[Text]:
    words: list[Text] = []
    for axis in made.figure.axes:
        if not axis.axison or hasattr(axis, "get_zlim"):
            continue
        words += [*axis.texts, axis.title, axis._left_title, axis.xaxis.label, axis.yaxis.label]  # type: ignore[attr-defined]
        for side in (axis.xaxis, axis.yaxis):
            low, high = sorted(side.get_view_interval())
            words += [tick.label1 for tick in side.get_major_ticks() if low <= tick.get_loc() <= high]
    upright = [text for text in words if text.get_rotation() % 90 == 0]
    return [text for text in upright if text.get_visible() and text.get_text().strip()]


def test_the_papers_numbers_name_figures(libraries: dict[str, Library], tmp_path: Path) -> None:
    assert {named(number, libraries[""]) for number in PAPER} <= set(FIGURES)
    assert named("1", libraries[""]) == "winrate"
    assert named("1", libraries["teachers"]) == "passk", "where nothing was judged"


def _lab(rgb: Any, matrix: Any = None) -> np.ndarray:
    """CIE Lab of a colour as it is seen, perhaps without one kind of cone."""
    channel = np.asarray(rgb)
    linear = np.where(channel <= 0.04045, channel / 12.92, ((channel + 0.055) / 1.055) ** 2.4)
    if matrix is not None:
        linear = np.clip(np.asarray(matrix) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    scaled = np.cbrt(np.maximum(xyz / np.array([0.9505, 1.0, 1.089]), 0.008856))
    return np.array([116 * scaled[1] - 16, 500 * (scaled[0] - scaled[1]), 200 * (scaled[1] - scaled[2])])


@pytest.mark.parametrize("seen", ["all", *BLIND])
def test_colours_of_the_gates_are_told_apart_by_colour_blind_readers(seen: str) -> None:
    for one, other in combinations((*style._GATES.values(), style._CONTROL), 2):
        apart = _lab(to_rgb(one.colour), BLIND.get(seen)) - _lab(to_rgb(other.colour), BLIND.get(seen))
        # 2.3 is a just noticeable difference; what has another hatch needs a small one.
        assert np.linalg.norm(apart) > (5 if one.hatch != other.hatch else 12), (one, other, seen)


def test_no_two_gates_differ_in_colour_alone() -> None:
    looks = [*style._GATES.values(), style._CONTROL]
    for one, other in combinations(looks, 2):
        assert one.marker != other.marker
        assert str(one.line) != str(other.line)
        grey = abs(_lab(to_rgb(one.colour))[0] - _lab(to_rgb(other.colour))[0])
        assert one.hatch != other.hatch or grey > 15, "plain bars differ in grey"
