"""Figures 1, 3a, 3b and 5: what is drawn is what was measured, and what is said follows from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import record_factory as make

from analysis import style
from analysis.figures import draw, run
from analysis.fitting import apart, wrapped
from analysis.load import library
from analysis.style import Settings
from analysis.teacher_sizes import size_name
from selectkd_eval.errors import InputError
from selectkd_eval.verbs import FigureOptions

FEW = Settings(200)


def data_of(what: str, records: Path, settings: Settings = FEW) -> tuple[dict[str, Any], str]:
    drawing = draw(what, library(records), settings)
    style.close(drawing)
    return drawing.data, drawing.caption


def test_dots_show_the_bars_numbers_on_an_axis_that_says_where_it_starts(tmp_path: Path) -> None:
    for method in ("KD", "KD + Spec-k"):
        make.passk(tmp_path, make.card(method, 0), 40)
    bars, dots = (draw("passk", library(tmp_path), Settings(200, style=form)) for form in ("bars", "dots"))  # type: ignore[arg-type]
    assert bars.data == dots.data
    assert bars.figure.axes[0].get_ylim()[0] == 0
    rates = dots.figure.axes[0]
    assert rates.get_xlim()[0] > 0
    assert "not from 0" in rates.get_xlabel()
    for drawing in (bars, dots):
        style.close(drawing)


def test_sixteen_methods_on_three_tasks_fill_a_page_and_no_more(tmp_path: Path) -> None:
    for task in ("gsm8k", "math-500", "humaneval"):
        for number in range(16):
            make.passk(tmp_path, make.card(f"Method {number}", 0), 20, skill=0.3 + 0.03 * number, task=task)
    for form in (Settings(50), Settings(50, 1), Settings(50, 2, "dots"), Settings(50, 1, "dots")):
        drawing = draw("passk", library(tmp_path), form)
        assert drawing.figure.get_size_inches()[1] < 9.7
        assert [len(panel) for panel in drawing.data.values()] == [16, 16, 16]
        style.close(drawing)


def test_curves_follow_tested_checkpoints_before_anything_else(tmp_path: Path) -> None:
    for method in ("KD", "KD + Spec-k"):
        card = make.card(method, 0, steps=40)
        make.train(tmp_path, card)
        for step, skill in ((20, 0.5), (None, 0.8)):
            kept = card | {
                "name": f"{card['name']}/{step}",
                "training": card["training"] | ({"step": step} if step else {}),
            }
            make.passk(tmp_path, kept, 40, skill=skill)
    data, caption = data_of("curves", tmp_path)
    assert "pass@1 (%)" in caption.replace("Pass@1", "pass@1")
    assert "passk records of checkpoints" in caption
    assert data["KD"]["at"] == [20, 40], "the final student stands at its last step"
    assert data["KD"]["band"] == "95 % over prompts, of one student"
    assert data["KD"]["mean"][0] < data["KD"]["mean"][1]


@pytest.mark.parametrize(("seeds", "band"), [(3, "smallest to the largest"), (5, "Student's t")])
def test_bands_are_the_range_of_few_seeds_and_t_of_more(tmp_path: Path, seeds: int, band: str) -> None:
    for seed in range(seeds):
        make.train(tmp_path, make.card("KD", seed))
    data, caption = data_of("curves", tmp_path)
    assert band in caption
    values = _validation(tmp_path, "alpha")
    line = data["KD"]
    assert line["mean"] == pytest.approx(values.mean(axis=0).tolist())
    if seeds == 3:
        assert line["high"] == pytest.approx(values.max(axis=0).tolist())
    else:
        reach = 2.776445 * values.std(axis=0, ddof=1) / np.sqrt(seeds)  # t of 4 degrees of freedom, from a table
        assert line["high"] == pytest.approx((values.mean(axis=0) + reach).tolist(), rel=1e-6)


def _validation(records: Path, what: str) -> np.ndarray:
    return np.array(
        [[row[what] for row in record.rows if row["event"] == "validation"] for record in library(records).of("train")]
    )


def test_other_batches_are_drawn_over_tokens(tmp_path: Path) -> None:
    make.train(tmp_path, make.card("KD", 0, batch=16))
    make.train(tmp_path, make.card("KD + Spec-k", 0, batch=32))
    drawing = draw("curves", library(tmp_path), FEW)
    style.close(drawing)
    assert drawing.figure.axes[0].get_xlabel() == "training tokens (millions)"
    assert drawing.data["KD"]["at"][0] == pytest.approx(10 * 1200 / 1e6)


def test_another_teachers_acceptance_is_another_number(tmp_path: Path) -> None:
    other = make.card("Teacher") | {"name": "other", "fingerprint": "other"}
    make.train(tmp_path, make.card("KD", 0))
    make.train(tmp_path, make.card("KD + Spec-k", 0))
    make.train(tmp_path, make.card("KD + Top-k", 0, teacher="other"), teacher=other)
    data, caption = data_of("curves", tmp_path)
    assert sorted(data) == ["KD", "KD + Spec-k"]
    assert "of another teacher or text: KD + Top-k" in caption


def test_a_trend_over_teachers_is_tested(tmp_path: Path) -> None:
    data, caption = data_of("teachers", make.teachers(tmp_path, n=80))
    assert list(data["KD"]) == ["1500000000", "7000000000", "72000000000"]
    assert "KD + Spec-k: rises (Page's trend test over 80 prompts" in caption
    assert "no step down" in caption.split("KD + Spec-k")[1]
    assert "largest step down 7B to 72B" in caption.split("KD + Spec-k")[0]
    assert data["student alone"]["value"] < data["KD"]["1500000000"]["value"]


def test_two_teachers_of_one_size_are_not_one_point(tmp_path: Path) -> None:
    for rank, size in enumerate((1_000_000, 7_000_000, 7_000_000)):
        teacher = make.card("Teacher") | {"name": f"teacher-{rank}", "fingerprint": f"t{rank}", "parameters": size}
        student = make.card("KD", 0, teacher=f"t{rank}") | {"name": f"students/{rank}"}
        make.train(tmp_path, student, teacher=teacher)
        make.passk(tmp_path, student, 10)
    with pytest.raises(InputError, match=r"one size taught the same method \(KD from 7M\)"):
        draw("teachers", library(tmp_path), FEW)


def test_teachers_are_ticks_named_by_size(tmp_path: Path) -> None:
    drawing = draw("teachers", library(make.teachers(tmp_path, seeds=(0,), n=20)), FEW)
    labels = [label.get_text() for label in drawing.figure.axes[0].get_xticklabels()]
    style.close(drawing)
    assert labels == ["1.5B", "7B", "72B"]
    assert [size_name(size) for size in (727_104, 136_064, 51_000, 1_543_000_000)] == ["0.7M", "0.1M", "51K", "1.5B"]


def test_one_teacher_is_refused_in_a_sentence(tmp_path: Path) -> None:
    make.train(tmp_path, make.card("KD", 0, teacher=make.card("Teacher")["fingerprint"]))
    make.passk(tmp_path, make.card("KD", 0, teacher=make.card("Teacher")["fingerprint"]), 10)
    with pytest.raises(InputError, match=r"know 1 teacher size \(0.7M\): train the method from another teacher"):
        draw("teachers", library(tmp_path), FEW)


def judged(out: Path, judges: tuple[str, ...], n: int = 60, methods: tuple[str, ...] = ("KD", "KD + Spec-k")) -> Path:
    for judge in judges:
        for method in methods:
            make.winrate(out, make.card(method, 0), make.card("SFT-control", 0), n, kind="server", judge=judge)
    return out


def test_one_panel_a_judge_on_one_scale(tmp_path: Path) -> None:
    drawing = draw("judges", library(judged(tmp_path, ("a", "b", "c"))), FEW)
    style.close(drawing)
    panels = drawing.figure.axes
    assert [axis.get_title() for axis in panels] == ["a", "b", "c"]
    assert len({axis.get_ylim() for axis in panels}) == 1
    assert panels[0].get_ylim()[0] == 0
    assert sorted(drawing.data["agreement"]["cohen_kappa"]) == ["a and b", "a and c", "b and c"]
    assert "Kendall's W of 3 judges over 2 methods" in drawing.caption


def test_a_wide_margin_makes_methods_equivalent_and_none_does_not(tmp_path: Path) -> None:
    judged(tmp_path, ("a", "b"))
    wide, caption = data_of("judges", tmp_path, Settings(200, margin=60))
    assert {pair["verdict"] for pairs in wide["pairs"].values() for pair in pairs} == {"equivalent"}
    assert "within ±60 points" in caption
    none, _ = data_of("judges", tmp_path, Settings(200, margin=0))
    assert "equivalent" not in {pair["verdict"] for pairs in none["pairs"].values() for pair in pairs}


def test_a_method_that_a_judge_never_saw_is_named_and_left_out(tmp_path: Path) -> None:
    judged(tmp_path, ("a", "b"))
    judged(tmp_path, ("a",), methods=("KD + Top-k",))
    data, caption = data_of("judges", tmp_path)
    assert "not judged by all: KD + Top-k" in caption
    assert all("KD + Top-k" not in panel for name, panel in data.items() if "judge" in name)


def test_two_protocols_never_share_the_judges_figure(tmp_path: Path) -> None:
    judged(tmp_path, ("a",))
    for method in ("KD", "KD + Spec-k"):
        make.winrate(
            tmp_path, make.card(method, 0), make.card("SFT-control", 0), protocol="half", ties="half", judge="b"
        )
    with pytest.raises(InputError, match="--protocol"):
        draw("judges", library(tmp_path), FEW)
    run(FigureOptions(what="5", records=tmp_path, out=tmp_path / "f", protocol="half", resamples=50))
    assert (tmp_path / "f" / "judges.pdf").exists()


def test_names_keep_their_distance_and_their_order() -> None:
    placed = apart([0.5, 0.5, 0.9, 0.52], 0.1, 0, 1)
    order = sorted(placed)
    assert np.diff(order).min() >= 0.1 - 1e-12
    assert placed[0] < placed[1] < placed[3] < placed[2]
    assert apart([0.2, 0.8], 0.1, 0, 1) == pytest.approx([0.2, 0.8]), "no name moves without need"
    assert min(apart([0.0, 0.0, 0.0], 0.1, 0, 1)) >= 0


def test_words_break_at_hyphens_and_spaces() -> None:
    assert wrapped("SFT-control", 0.5, 7.5) == "SFT-\ncontrol"
    assert wrapped("KD", 0.1, 7.5) == "KD"
