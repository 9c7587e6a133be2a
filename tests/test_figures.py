"""Figures: the same bytes twice, one scale where scales are compared, and words that match the numbers."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import record_factory as make
from matplotlib.colors import to_rgb
from rewriting import rewrite

from analysis import style
from analysis.acceptance import tar_sets
from analysis.figures import FIGURES, draw, run
from analysis.load import Library, Method, library
from analysis.style import Drawing, Settings
from selectkd_eval.errors import InputError
from selectkd_eval.verbs import FigureOptions

RESAMPLES = 100
SETTINGS = Settings(RESAMPLES)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return library(make.everything(tmp_path_factory.mktemp("records"), n=30))


@pytest.fixture(scope="module")
def drawings(full: Library) -> Iterator[dict[str, Drawing]]:
    made = {name: draw(name, full, SETTINGS) for name in FIGURES if name != "teachers"}  # all students have one
    yield made
    for drawing in made.values():
        style.close(drawing)


@pytest.mark.parametrize("what", ["passk", "tar", "landscape"])
def test_drawn_twice_it_is_the_same_bytes(full: Library, drawings: dict[str, Drawing], what: str) -> None:
    again = draw(what, full, SETTINGS)
    for form in style.FORMATS:
        one, two = (style.encode(d, form, dpi=60) for d in (drawings[what], again))
        assert hashlib.sha256(one).hexdigest() == hashlib.sha256(two).hexdigest(), form
    style.close(again)


def test_no_file_holds_a_date(drawings: dict[str, Drawing]) -> None:
    for form in ("svg", "pdf"):
        data = style.encode(drawings["passk"], form)
        assert b"CreationDate" not in data
        assert b"<dc:date>" not in data


def test_a_users_own_settings_do_not_change_the_picture(full: Library, drawings: dict[str, Drawing]) -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        other = draw("speedup", full, SETTINGS)
        assert style.encode(other, "png", 50) == style.encode(drawings["speedup"], "png", 50)
    style.close(other)


def test_every_figure_says_in_words_what_it_shows(drawings: dict[str, Drawing]) -> None:
    for name, drawing in drawings.items():
        assert len(drawing.alt) > 60, name
        assert any(c.isdigit() for c in drawing.alt), name
        assert "nan" not in drawing.alt.lower().replace("finance", ""), name
    data = drawings["passk"].data["mini-gsm"]
    assert f"KD {data['KD']['value']:.1f} %" in drawings["passk"].alt


def test_bars_start_at_zero(drawings: dict[str, Drawing]) -> None:
    for name in ("passk", "winrate"):
        assert drawings[name].figure.axes[0].get_ylim()[0] == 0


def test_a_difference_is_filled_only_when_its_interval_excludes_zero(drawings: dict[str, Drawing]) -> None:
    data = drawings["passk"].data["mini-gsm"]
    wanted = {}
    for name, values in data.items():
        for key, delta in values.items():
            if key.startswith("difference"):
                wanted[name] = delta["low"] > 0 or delta["high"] < 0
    axis = drawings["passk"].figure.axes[1]
    markers = [line for line in axis.lines if line.get_marker() not in ("None", "", "_") and len(line.get_xdata()) == 1]
    filled = [line.get_markerfacecolor() != "white" for line in markers]
    assert filled == list(wanted.values())
    assert set(wanted) == {"KD", "KD + Top-k", "KD + Spec-k"}


def test_a_likelihood_judge_is_called_one(drawings: dict[str, Drawing]) -> None:
    assert "not a human or LLM preference" in drawings["winrate"].caption
    assert "by a likelihood judge" in drawings["winrate"].alt
    titles = [axis.get_title() for axis in drawings["winrate"].figure.axes if axis.get_title()]
    assert titles
    assert all("(likelihood judge)" in title for title in titles), "a picture can be cut out of its page"


def test_methods_are_told_apart_without_colour(full: Library) -> None:
    looks = {style.look(method) for method in full.methods if method.role == "student"}
    assert len({look.hatch for look in looks}) == 3, (
        "the control and the plain method are both unhatched, and differ in grey"
    )
    assert len({look.marker for look in looks}) == len({str(look.line) for look in looks}) == 4
    plain = [look for look in looks if not look.hatch]
    grey = [float(np.dot(to_rgb(look.colour), (0.2126, 0.7152, 0.0722))) for look in plain]
    assert abs(grey[0] - grey[1]) > 0.15


def test_gates_on_the_control_are_grey_and_have_their_own_hatch_line_and_marker() -> None:
    plain = style.look(Method("SFT-control"))
    for verifier in ("top-k", "spec-k"):
        gate = style.look(Method("KD + gate", base="KD", setting=(("verifier", verifier),)))
        grey = style.look(Method("SFT-control + gate", base="SFT-control", setting=(("verifier", verifier),)))
        assert grey.colour == plain.colour != gate.colour
        assert (grey.hatch, grey.line, grey.marker) == (gate.hatch, gate.line, gate.marker)
        assert grey.hatch != plain.hatch


def test_landscapes_share_one_scale(drawings: dict[str, Drawing]) -> None:
    figure = drawings["landscape"].figure
    surfaces = [axis for axis in figure.axes if hasattr(axis, "get_zlim")]
    assert len(surfaces) == 2
    assert len({axis.get_zlim() for axis in surfaces}) == 1
    shaded = [c for axis in figure.axes[:4] for c in axis.collections if c.get_array() is not None]
    # Contour lines are white; their levels are chosen, not scaled.
    limits = {c.get_clim() for c in shaded if getattr(c, "filled", True)}
    assert len(limits) == 1


def test_the_flatter_student_rises_less(drawings: dict[str, Drawing]) -> None:
    profiles = drawings["landscape"].data["profiles"]
    assert profiles["KD"]["rise"][-1] > profiles["KD + Spec-k"]["rise"][-1]
    assert profiles["KD"]["directions"] == 2


@pytest.mark.parametrize(
    ("change", "said"), [({"tokens": "other"}, "tokens_sha256 differs"), ({"radius": 1.0}, "radius differs")]
)
def test_landscapes_that_cannot_be_compared_are_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    make.landscape(tmp_path, [make.card("KD", 0)], grid=5)
    make.landscape(tmp_path, [make.card("KD + Spec-k", 0)], grid=5, **change)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=said):
        draw("landscape", library(tmp_path), SETTINGS)


@pytest.mark.parametrize(
    ("said", "fact", "other"),
    [("directions", '"directions":"Gaussian', '"directions":"uniform'), ("params_zeroed", 'zeroed":5', 'zeroed":6')],
)
def test_other_directions_are_refused_too(tmp_path: Path, said: str, fact: str, other: str) -> None:
    make.landscape(tmp_path, [make.card("KD", 0)], grid=5)
    record = make.landscape(tmp_path, [make.card("KD + Spec-k", 0)], grid=5)
    text = record.path.read_text()
    assert fact in text
    rewrite(record.path, text.replace(fact, other))
    with pytest.raises(InputError, match=f"their {said} differs"):
        draw("landscape", library(tmp_path), SETTINGS)


def test_a_losing_teacher_is_refused_too(tmp_path: Path) -> None:
    make.landscape(tmp_path, [make.card("KD", 0)], grid=5)
    record = make.landscape(tmp_path, [make.card("KD + Spec-k", 0)], grid=5)
    rewrite(record.path, record.path.read_text().replace(make.card("Teacher")["fingerprint"], "another"))
    with pytest.raises(InputError, match="teacher differs"):
        draw("landscape", library(tmp_path), SETTINGS)


def test_training_seeds_make_a_band_and_one_divergence_a_panel(drawings: dict[str, Drawing]) -> None:
    data = drawings["training"].data
    assert data["KD: validation loss (unweighted)"]["seeds"] == 3
    assert "SFT-control: validation loss (unweighted)" not in data, "a loss against labels is not on that scale"
    assert "SFT-control: training loss (each method's own)" in data


def test_losses_averaged_or_skewed_otherwise_are_not_on_one_scale(tmp_path: Path) -> None:
    own: dict[str, dict[str, Any]] = {
        "KD": {"normaliser": "per_seq_mean"},
        "TAID": {"normaliser": "per_seq_mean", "constants": {"alpha": 0.0005}},
        "AdaSPEC": {"normaliser": "selected_tokens"},
        "KD-SKL": {"normaliser": "per_seq_mean", "divergence": "skl", "parameters": {"alpha": 0.1}},
    }
    for method, training in own.items():
        make.train(tmp_path, make.card(method, 0, **training))
    drawing = draw("training", library(tmp_path), SETTINGS)
    compared = {name.split(":")[0] for name in drawing.data if "validation loss" in name}
    style.close(drawing)
    assert compared == {"KD", "TAID"}


def test_colours_tell_families_apart_and_lines_the_gates(tmp_path: Path) -> None:
    bases = {"KD": "", "KD + Spec-k": "KD", "GKD": "", "GKD + Spec-k": "GKD"}
    for method, base in bases.items():
        verifier = "spec-k" if base else "none"
        make.train(tmp_path, make.card(method, 0, verifier=verifier) | {"base_method": base})
    found = {method.label: look for method, look in style.looks(library(tmp_path).methods).items()}
    assert found["KD"].colour == found["KD + Spec-k"].colour != found["GKD"].colour == found["GKD + Spec-k"].colour
    assert found["KD"].line == found["GKD"].line != found["GKD + Spec-k"].line


def test_a_legend_of_many_methods_stays_on_the_page(tmp_path: Path) -> None:
    for number in range(30):
        make.train(tmp_path, make.card(f"A method with a long name, number {number}", 0), steps=2, every=1)
    drawing = draw("training", library(tmp_path), SETTINGS)
    drawing.figure.canvas.draw()
    [legend] = drawing.figure.legends
    box, page = legend.get_window_extent(), drawing.figure.bbox
    panel = drawing.figure.axes[0].get_window_extent()
    style.close(drawing)
    assert page.x0 <= box.x0 < box.x1 <= page.x1
    assert panel.height > 0.1 * page.height


def test_tar_on_other_tokens_is_another_set(tmp_path: Path) -> None:
    make.tar(tmp_path, [make.card("KD", 0)], [10], n=12)
    other = make.tar(tmp_path, [make.card("KD", 1)], [10], n=12)
    # The same prompts, cut to another model's positions.
    rewrite(other.path, other.path.read_text().replace('"inputs":{', '"inputs":{"data":"cut",'))
    assert len(tar_sets(library(tmp_path))) == 2


def test_a_landscape_with_a_gap_is_drawn_as_far_as_it_is_known(tmp_path: Path) -> None:
    record = make.landscape(tmp_path, [make.card("KD", 0), make.card("KD + Spec-k", 0)], grid=5)
    lines = record.path.read_text().splitlines(keepends=True)
    gap = next(i for i, line in enumerate(lines) if '"key":"0/1/4/2"' in line)
    lines[gap] = re.sub(r'"loss_sum":[^,]+', '"error":"not finite"', lines[gap])
    rewrite(record.path, "".join(lines))
    drawing = draw("landscape", library(tmp_path), SETTINGS)
    style.encode(drawing, "png")
    style.close(drawing)
    assert "nan" not in drawing.alt
    assert np.isfinite(drawing.data["profiles"]["KD"]["rise"]).tolist() == [True, True, False]
    assert np.isfinite(drawing.data["profiles"]["KD + Spec-k"]["rise"]).all()


def test_set_ups_that_were_only_trained_are_told_apart(tmp_path: Path) -> None:
    for seed, k in ((0, 3), (1, 5)):
        make.train(tmp_path, make.card("KD + Spec-k", seed, k=k))
    make.tar(tmp_path, [make.card("KD + Spec-k", seed, k=k) for seed, k in ((0, 3), (1, 5))] * 2, [10, 10, 20, 20])
    for what in ("training", "tar"):
        drawing = draw(what, library(tmp_path), SETTINGS)
        assert {k for name in drawing.data for k in ("k=3", "k=5") if k in name} == {"k=3", "k=5"}, what
        style.close(drawing)


def test_checkpoints_belong_to_the_run_that_kept_them(tmp_path: Path) -> None:
    one, runs = make.card("KD", 0), ("train-a-1111111111.jsonl", "train-b-2222222222.jsonl")
    cards = []
    for source, place in zip(runs, ("a", "b"), strict=True):
        training = one["training"] | {"record": source}
        make.passk(tmp_path, one | {"name": f"{place}/final", "fingerprint": place, "training": training}, n=10)
        name = f"{place}/final/checkpoint-10"
        cards += [one | {"name": name, "fingerprint": f"{place}10", "training": training | {"step": 10}}]
        cards += [one | {"name": f"{place}/final", "fingerprint": place, "training": training}]
    make.tar(tmp_path, cards, [10, 20, 10, 20], n=12)
    (found,) = tar_sets(library(tmp_path))
    assert [library(tmp_path).label(method) for method in found.methods] == [
        "KD (final 11111111)",
        "KD (final 22222222)",
    ]
    assert all(found.steps(method) == [10, 20] for method in found.methods)


def test_the_verb_writes_every_format(full: Library, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = full.records[0].path.parent
    run(FigureOptions(what="speedup", records=where, out=tmp_path / "f", resamples=50))
    assert sorted(p.suffix for p in (tmp_path / "f").iterdir()) == [".json", ".pdf", ".png", ".svg"]
    assert capsys.readouterr().out.startswith("Speed-up:")


@pytest.mark.parametrize("what", sorted(FIGURES))
def test_a_figure_without_its_records_says_what_to_run(tmp_path: Path, what: str) -> None:
    make.write("answer", make.PasskOptions(out=tmp_path), {"model": make.card("KD", 0)}, [])
    with pytest.raises(InputError, match="record"):
        draw(what, library(tmp_path), SETTINGS)
