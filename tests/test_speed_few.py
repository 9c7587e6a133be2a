"""Of few prompts, or of waves of them, no more is said than they show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import record_factory as make

from analysis import speed, speed_words, tables
from analysis.load import library
from analysis.speed import Way
from analysis.table_ir import Cell
from selectkd_eval import speed_summary, speeds
from selectkd_eval.records import Record
from selectkd_eval.speeds import Arm

RESAMPLES = 500
CARDS = [make.card("Start"), make.card("KD", 0)]


def shown(record: Record) -> str:
    return "\n".join(speed_summary.lines(record.facts, record.rows, RESAMPLES))


def test_one_prompt_has_numbers_and_no_interval(tmp_path: Path) -> None:
    record = make.speedup(tmp_path, CARDS, n=1)
    one = speeds.speedup(record.rows, Arm(1, 3)).estimate(RESAMPLES)
    assert one.value > 1.2 and one.low == one.high and not one.spread and not one.excludes(1)
    text = shown(record)
    assert f"{one.value:.3f}" in text and "95 % over 1 prompt," in text
    assert "resamples" not in text, "every resample of one prompt is that prompt"
    assert not re.search(r"\[\d", text), "an interval without width claims to be certain"
    table = tables.build(5, library(tmp_path), RESAMPLES)
    cells: list[Cell] = [cell for block in table.blocks for row in block.rows for cell in row.cells]
    assert any(cell.present for cell in cells)
    assert not any(span.style == "interval" for cell in cells for span in cell.spans())
    said = speed_words.lines(library(tmp_path), RESAMPLES)
    assert any("(not settled)" in line for line in said) and not any("[" in line or "(faster)" in line for line in said)


@pytest.mark.parametrize(("n", "told"), [(5, False), (6, True)], ids=str)
def test_nothing_is_called_faster_on_fewer_than_six_prompts(tmp_path: Path, n: int, told: bool) -> None:
    make.speedup(tmp_path, CARDS, n=n)
    said = speed_words.lines(library(tmp_path), RESAMPLES)
    assert any("(faster)" in line for line in said) is told
    assert any("As a draft KD is faster than embedded:student" in line for line in said) is told
    assert any("is not told apart from" in line for line in said) is not told


def test_a_draft_that_never_fits_has_no_interval_of_its_tokens() -> None:
    plain = speeds.terms([(f"p{i}", 30.0, 30.0) for i in range(8)]).estimate(RESAMPLES)
    assert plain.value == 1 and not plain.spread and not plain.excludes(0.9)


def test_waves_are_not_counted_as_prompts(tmp_path: Path) -> None:
    record = make.speedup(tmp_path, CARDS, n=16, engine="vllm", batches=(1, 4))
    assert "95 % over 16 prompts, 4 waves of 4, medians of 3 repetitions" in shown(record)


@pytest.mark.parametrize(("drift", "settled"), [(1.0, True), (1.2, False)], ids=str)
def test_the_command_itself_says_that_a_clock_disagrees_with_itself(
    tmp_path: Path, drift: float, settled: bool
) -> None:
    text = shown(make.speedup(tmp_path, CARDS, drift=drift))
    assert ("this timing is not settled" in text) is not settled


def test_another_length_in_another_record_moves_no_p_value(tmp_path: Path) -> None:
    """The shorter record has no seconds at this length, and must not halve those of the other."""
    make.speedup(tmp_path, CARDS, gammas=(3,), skills=[0.70, 0.72])

    def compared() -> object:
        (chosen,) = speed.speed_sets(library(tmp_path))
        (kd,) = (method for method in chosen.drafts if method != chosen.reference)
        return speed.compared(chosen, kd, chosen.reference, Way(1, 3), 10_000)

    before = compared()
    make.speedup(tmp_path, CARDS[1], gammas=(5,), skills=[0.72])
    assert compared() == before


def test_a_gpu_is_named_where_it_decoded_with_its_own_memory(tmp_path: Path) -> None:
    record = make.speedup(tmp_path, CARDS, n=6)
    on_cpu = shown(record)
    assert "float32, 1 thread;" in on_cpu and "on the GPU" not in on_cpu
    rows = [row | {"peak_gpu_bytes": 37_000_000} if row["key"] == "machine" else row for row in record.rows]
    text = "\n".join(speed_summary.lines({**record.facts, "device": "NVIDIA H200"}, rows, RESAMPLES))
    assert "float32, NVIDIA H200;" in text and "on the GPU 37 MB" in text
