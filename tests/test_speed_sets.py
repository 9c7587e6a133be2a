"""Speed-ups are pooled over training seeds and nothing else, and a clock that disagrees with itself is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import record_factory as make

from analysis import speed, tables
from analysis.figures import draw
from analysis.findings import findings
from analysis.load import library
from analysis.style import close

RESAMPLES = 200


def sentences(where: Path) -> list[str]:
    return [line for line in findings(library(where), RESAMPLES) if line.startswith("Speculative decoding")]


def drawn(where: Path) -> tuple[str, dict[str, dict[str, dict[str, float]]], list[str]]:
    drawing = draw("speedup", library(where), RESAMPLES)
    close(drawing)
    values = [text.get_text() for axis in drawing.figure.axes for text in axis.texts]
    return drawing.caption, drawing.data, values


def test_other_prompts_are_never_pooled_with_these(tmp_path: Path) -> None:
    make.speedup(tmp_path, make.card("KD", 0), n=10)
    make.speedup(tmp_path, make.card("KD", 0), n=20)
    make.speedup(tmp_path, make.card("KD", 0), n=10, prompts="gsm8k")
    assert len(speed.speed_sets(library(tmp_path))) == 3
    blocks = tables.build(5, library(tmp_path), RESAMPLES).blocks
    sizes = [cell.value.n for block in blocks for row in block.rows for cell in row.cells[:1] if cell.value]
    assert sorted(sizes) == [10, 10, 10, 10, 20, 20]
    assert len({block.title for block in blocks}) == 6
    assert len(sentences(tmp_path)) == 3
    _, data, _ = drawn(tmp_path)
    assert sorted(numbers["speed"]["n"] for numbers in data.values()) == [10, 10, 10, 10, 20, 20]


def test_sets_that_differ_in_their_digest_alone_have_different_titles(tmp_path: Path) -> None:
    make.speedup(tmp_path, make.card("KD", 0))
    other = make.speedup(tmp_path, make.card("KD", 1))
    other.path.write_text(other.path.read_text().replace(make.digest("mini-gsm12"), "f" * 64))
    titles = [block.title for block in tables.build(5, library(tmp_path), RESAMPLES).blocks]
    assert len(set(titles)) == len(titles) == 4
    assert "prompts ffffffff" in " ".join(titles)


def test_training_seeds_of_a_draft_are_one_number(tmp_path: Path) -> None:
    for seed in (0, 1):
        make.speedup(tmp_path, make.card("KD", seed))
    (line,) = sentences(tmp_path)
    (chosen,) = speed.speed_sets(library(tmp_path))
    ((_, found),) = chosen.drafts.items()
    assert len(found) == 2
    assert line.count("KD ×") == 1
    _, data, _ = drawn(tmp_path)
    assert data["KD, γ = 5"]["speed"]["value"] == pytest.approx(speed.speedup(found, "gamma5").value)


def test_a_clock_that_disagrees_with_itself_settles_nothing(tmp_path: Path) -> None:
    make.speedup(tmp_path, make.card("KD", 0), drift=1.2)
    make.speedup(tmp_path, make.card("SFT-control", 0))
    (line,) = sentences(tmp_path)
    control, kd = line.split("; ")[1:]
    assert "timing not settled: plain decoding timed twice differs from itself, ×1.2" in kd
    assert "faster" not in kd
    assert "(faster)" in control
    notes = {note.split(":")[0]: note for note in tables.build(5, library(tmp_path), RESAMPLES).notes}
    assert "this timing is not settled" in notes["KD"]
    assert "not settled" not in notes["SFT-control"]
    caption, _, values = drawn(tmp_path)
    assert "KD (?): timing not settled" in caption
    assert [value.endswith("?") for value in values] == [False, True, False, True]


def test_a_draft_that_changed_the_text_under_one_seed_has_no_speedup(tmp_path: Path) -> None:
    make.speedup(tmp_path, make.card("KD", 0))
    make.speedup(tmp_path, make.card("KD", 1), violation=True)
    assert sentences(tmp_path) == []
    assert "changed the text on 1 prompts" in " ".join(findings(library(tmp_path), RESAMPLES))
