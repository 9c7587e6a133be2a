"""The pictures of acceptance: marks stand where the numbers say, verdicts above them, the same bytes twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import record_factory as make
from matplotlib.colors import to_hex, to_rgb
from matplotlib.legend import Legend

from analysis import style
from analysis.figure_breakdown import labels
from analysis.figures import draw
from analysis.load import Library, library
from analysis.style import Drawing, Settings
from selectkd_eval import theorem

RESAMPLES = 200
WIDE, NARROW = Settings(resamples=RESAMPLES), Settings(resamples=RESAMPLES, columns=1)
NAMES = ("tar", "theorem", "breakdown")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Two gates and the plain method with three checkpoints each, and their training."""
    out = tmp_path_factory.mktemp("records")
    students: list[dict[str, Any]] = [make.card("Start")]
    for method in ("KD", "KD + Top-k", "KD + Spec-k"):
        card = make.card(method, 0, start=make.card("Start")["fingerprint"])
        record = make.train(out, card)
        card = card | {"training": card["training"] | {"record": record.path.name}}
        students += [card | {"fingerprint": f"{method}{step}"} for step in (20, 40, 60)]
    planted(out, students, [None] + [20, 40, 60] * 3)
    return library(out)


def planted(out: Path, students: list[dict[str, Any]], steps: list[int | None]) -> None:
    """Acceptance that rises with the step, but at step 40 falls: much for Top-k, by chance for Spec-k."""
    record = make.tar(out / "made", students, steps, n=60)
    level = {None: 0.5, 20: 0.6, 40: 0.65, 60: 0.8}
    rows = []
    for row in record.rows:
        rng = np.random.default_rng([row["student"], int(row["prompt"][1:])])
        method = students[row["student"]]["method"]
        rate = level[row["step"]] + 0.05 * rng.normal()
        if row["step"] == 40:
            rate += {"KD + Top-k": -0.15, "KD + Spec-k": -0.055}.get(method, 0.0)
        total = row["n_tokens"] * float(np.clip(rate, 0, 1))
        rows.append(row | dict.fromkeys(("greedy", "spec", "alpha"), total))
    make.write("tar", make.TarOptions(out=out), record.facts, rows)
    record.path.unlink()


@pytest.fixture(scope="module")
def drawings(full: Library) -> Iterator[dict[str, Drawing]]:
    made = {f"{name}{settings.columns}": draw(name, full, settings) for name in NAMES for settings in (WIDE, NARROW)}
    yield made
    for drawing in made.values():
        style.close(drawing)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("settings", [WIDE, NARROW], ids=["two columns", "one column"])
def test_drawn_twice_it_is_the_same_bytes_and_as_wide_as_asked(
    full: Library, drawings: dict[str, Drawing], name: str, settings: Settings
) -> None:
    again = draw(name, full, settings)
    first = drawings[f"{name}{settings.columns}"]
    for form in style.FORMATS:
        assert style.encode(first, form, dpi=60) == style.encode(again, form, dpi=60), form
    assert again.figure.get_size_inches()[0] == style.width(settings)
    assert first.data == again.data
    style.close(again)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("columns", [1, 2])
def test_every_word_stays_on_the_page(drawings: dict[str, Drawing], name: str, columns: int) -> None:
    figure = drawings[f"{name}{columns}"].figure
    with style.styled():  # ticks are made as they are drawn
        figure.canvas.draw()
    page = figure.bbox
    texts = [text for axis in figure.axes for text in (axis.title, axis.xaxis.label, axis.yaxis.label)]
    texts += [text for legend in figure.findobj(Legend) for text in legend.get_texts()]
    shown = [text for text in texts if text.get_text().strip()]
    assert len(shown) > 6
    for text in shown:
        box = text.get_window_extent()
        assert page.x0 - 1 <= box.x0 <= box.x1 <= page.x1 + 1, text.get_text()
        assert page.y0 - 1 <= box.y0 <= box.y1 <= page.y1 + 1, text.get_text()


def marks(axis: Any) -> list[Any]:
    return [line for line in axis.lines if line.get_marker() == "v" and line.get_markeredgecolor() == style.INK]


def test_hollow_triangles_stand_where_tar_fell_and_are_counted(drawings: dict[str, Drawing]) -> None:
    drawing = drawings["tar2"]
    data = drawing.data["loss and TAR"]
    falls = [i for i in range(1, len(data["tar"]["mean"])) if data["tar"]["mean"][i] < data["tar"]["mean"][i - 1]]
    assert falls, "the factory's noise makes TAR fall somewhere"
    hollow = [line for axis in drawing.figure.axes for line in axis.lines if line.get_markerfacecolor() == "none"]
    (line,) = [line for line in hollow if line.get_marker() == "v"]
    assert line.get_xdata().tolist() == [data["tar"]["steps"][i] for i in falls]
    title = next(axis.get_title() for axis in drawing.figure.axes if "TAR fell" in axis.get_title())
    assert f"TAR fell at {len(falls)} of {len(data['tar']['mean']) - 1} evaluations" in title


def test_in_two_columns_axis_and_line_share_a_colour_and_in_one_they_stand_apart(drawings: dict[str, Drawing]) -> None:
    for columns, shared in ((2, True), (1, False)):
        axes = drawings[f"tar{columns}"].figure.axes
        loss, rate = (next(a for a in axes if word in a.get_ylabel()) for word in ("validation loss,", "held-out TAR"))
        for axis in (loss, rate):
            assert to_hex(axis.yaxis.label.get_color()) == to_hex(axis.lines[0].get_color())
        assert (loss.get_position().bounds == rate.get_position().bounds) is shared


def test_the_phase_plot_is_coloured_by_the_step(drawings: dict[str, Drawing]) -> None:
    drawing = drawings["tar2"]
    axis = next(a for a in drawing.figure.axes if "phase" in a.get_title())
    for scatter in axis.collections:
        steps = scatter.get_array().tolist()
        assert steps == sorted(steps)
        light = [float(np.dot(to_rgb(colour), (0.2126, 0.7152, 0.0722))) for colour in scatter.to_rgba(steps)]
        assert light == sorted(light), "later is lighter, in grey too"


def test_checkpoints_stand_by_all_definitions_macro_and_pooled(drawings: dict[str, Drawing]) -> None:
    data = drawings["tar2"].data
    for what in ("greedy", "spec", "alpha"):
        points = data[f"mini-stories:validation {what} KD"]
        assert [point["step"] for point in points] == [20, 40, 60]
        for point in points:
            for mean in ("macro", "pooled"):
                value, low, high = point[mean]
                assert low < value < high


def test_tar_over_checkpoints_of_two_methods_is_one_line_each(tmp_path: Path) -> None:
    cards = [make.card(method, seed) for method in ("KD", "KD + Spec-k") for seed in (0, 1) for _ in range(2)]
    make.tar(tmp_path, cards, [10, 20] * 4, n=12)
    drawing = draw("tar", library(tmp_path), WIDE)
    whats = ("alpha", "greedy", "spec")
    names = sorted(f"mini-stories:validation {what} {m}" for what in whats for m in ("KD", "KD + Spec-k"))
    assert sorted(drawing.data) == names
    assert [point["step"] for point in drawing.data[names[0]]] == [10, 20], "seeds are pooled"
    assert all(len(axis.containers) == 2 for axis in drawing.figure.axes)
    style.close(drawing)


def test_students_without_steps_stand_side_by_side(tmp_path: Path) -> None:
    make.tar(tmp_path, [make.card("KD", 0), make.card("KD + Spec-k", 0)], [None, None], n=12)
    drawing = draw("tar", library(tmp_path), WIDE)
    (axis,) = drawing.figure.axes
    assert [text.get_text() for text in axis.get_xticklabels()] == ["KD", "KD\n+ Spec-k"]
    assert len(axis.containers) == 3
    style.close(drawing)


def test_verdicts_stand_above_their_panels_and_marks_are_filled_where_significant(drawings: dict[str, Drawing]) -> None:
    drawing = drawings["theorem2"]
    found = {name.split(": ")[1]: value for name, value in drawing.data.items()}
    assert set(found) == {"KD + Top-k", "KD + Spec-k"}, "the plain method has no gate"
    assert found["KD + Top-k"]["verdict"] == "violated (1 significant fall)"
    assert found["KD + Top-k"]["clock"] == "learning rate"
    for method, value in found.items():
        axis = next(a for a in drawing.figure.axes if a.get_title().startswith(f"{method},"))
        assert value["verdict"] in axis.get_title()
        kappa = value["seed 0"][value["drawn"]]["kappa_max"]
        assert f"κ = {kappa:.2f}".replace("-", "−") in axis.get_title()
        drops = value["seed 0"][value["drawn"]]["drops"]
        filled = [line.get_markerfacecolor() != "white" for line in marks(axis)]
        assert filled == [drop[-1] < 0.05 for drop in drops]
        heights = [float(line.get_ydata()[0]) for line in marks(axis)]
        tar = value["seed 0"][value["drawn"]]["tar"]
        assert heights == pytest.approx([theorem.remaining(tar)[drop[0]] for drop in drops])


def test_the_largest_valid_kappas_line_lies_below_every_point(drawings: dict[str, Drawing]) -> None:
    for axis in drawings["theorem2"].figure.axes:
        points = next(line for line in axis.lines if len(line.get_xdata()) == 4)
        bound = next(line for line in axis.lines if line.get_linestyle() == ":" and len(line.get_xdata()) == 2)
        below = np.interp(points.get_xdata(), bound.get_xdata(), bound.get_ydata())
        assert (points.get_ydata() >= below - 1e-9).all()


def test_shares_are_of_all_tokens_and_bins_have_their_words(full: Library, drawings: dict[str, Drawing]) -> None:
    drawing = drawings["breakdown2"]
    bars = [axis for axis in drawing.figure.axes if axis.get_ylabel() == "tokens (%)"]
    assert [sum(bar.get_height() for bar in axis.patches) for axis in bars] == pytest.approx([100, 100])
    assert labels("by_entropy", (0.5, 1.0, 2.0)) == ["< 0.5", "0.5–1", "1–2", "≥ 2"]
    assert labels("by_position", (1, 2, 4)) == ["1", "2", "3–4", "5+"]
    for table in drawing.data.values():
        for name, value in table.items():
            if name != "bins":
                assert len(value["alpha"]) == len(value["tokens"]) == len(table["bins"])
                assert [cell is None for cell in value["alpha"]] == [n == 0 for n in value["tokens"]]
