"""Speed-ups are pooled over training seeds and nothing else, and a clock that disagrees with itself is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import record_factory as make
from rewriting import rewrite

from analysis import speed, speed_words, tables
from analysis.figures import draw
from analysis.findings import findings
from analysis.load import library
from analysis.speed import Way
from analysis.style import Settings, close
from analysis.summary import one_screen
from selectkd_eval import speeds
from selectkd_eval.errors import InputError
from selectkd_eval.records import Record

RESAMPLES = 200


def sentences(where: Path, start: str = "Speculative decoding") -> list[str]:
    return [line for line in findings(library(where), RESAMPLES) if line.startswith(start)]


def drawn(where: Path) -> tuple[str, dict[str, Any], list[str]]:
    """The figure's caption, its numbers and the names of its rows."""
    drawing = draw("speedup", library(where), Settings(RESAMPLES))
    close(drawing)
    names = [label.get_text() for axis in drawing.figure.axes for label in axis.get_yticklabels()]
    return drawing.caption, drawing.data, [name for name in names if "γ" in name]


def change(record: Record, **facts: Any) -> None:
    """Header facts of a record, as another run would have written them."""
    head, *rest = record.path.read_text().splitlines(keepends=True)
    header = json.loads(head)
    header["facts"] |= facts
    rewrite(record.path, json.dumps(header) + "\n" + "".join(rest))


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
    assert sorted(numbers["speed"]["n"] for name, numbers in data.items() if "predicted" not in name) == sorted(sizes)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"engine": {"name": "transformers", "version": "5"}}, "engine transformers"),
        ({"engine": {"name": "reference", "version": "another"}}, "engine version another"),
        ({"temperature": 1.0, "top_k": 20}, "temperature 1, top-k 20"),
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"threads": 2}, "threads 2"),
        ({"prompts": {"name": "mini-gsm", "n": 12, "sha256": "f" * 64}}, "prompts ffffffff"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_setting_is_another_block(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    make.speedup(tmp_path, make.card("KD", 0))
    change(make.speedup(tmp_path, make.card("KD", 1)), **changed)
    titles = [block.title for block in tables.build(5, library(tmp_path), RESAMPLES).blocks]
    assert len(set(titles)) == len(titles) == 4
    assert sum(said in title for title in titles) == 2


def test_training_seeds_of_a_draft_are_one_number(tmp_path: Path) -> None:
    for seed in (0, 1):
        make.speedup(tmp_path, make.card("KD", seed))
    (line,) = sentences(tmp_path)
    (chosen,) = speed.speed_sets(library(tmp_path))
    ((_, found),) = chosen.drafts.items()
    assert len(found) == 2
    assert line.count("KD ×") == 1
    pooled, parts = speed.speedup(found, Way(1, 5)), [speed.speedup([one], Way(1, 5)) for one in found]
    assert pooled.value == pytest.approx(sum(p.num.sum() for p in parts) / sum(p.den.sum() for p in parts))
    _, data, _ = drawn(tmp_path)
    assert data["KD, γ = 5"]["speed"]["value"] == pytest.approx(pooled.value)


def test_seeds_in_one_record_and_in_records_of_their_own_are_the_same_method(tmp_path: Path) -> None:
    make.speedup(tmp_path, [make.card("KD", seed) for seed in (0, 1)])
    (chosen,) = speed.speed_sets(library(tmp_path))
    ((_, found),) = chosen.drafts.items()
    assert [(one.place, one.card["seed"]) for one in found] == [(0, 0), (1, 1)]
    rows = found[0].record.rows
    each = [speeds.speedup(rows, one.arm(Way(1, 3))).value for one in found]
    assert speed.by_seed(found, Way(1, 3)) == ((0, each[0]), (1, each[1]))


def test_the_ratio_of_two_drafts_is_that_of_their_seconds(tmp_path: Path) -> None:
    """Both are held against the same plain decoding, which cancels."""
    record = make.speedup(tmp_path, [make.card("SFT-control", 0), make.card("KD", 0)])
    (chosen,) = speed.speed_sets(library(tmp_path))
    control, kd = chosen.drafts
    found = speed.compared(chosen, kd, control, Way(1, 3), RESAMPLES)
    assert found is not None
    spent = {}
    for draft in (0, 1):
        arm = speeds.Arm(draft, 3)
        spent[draft] = sum(seconds for row in speeds.timed(record.rows) if (seconds := speeds.seconds(row, arm)))
    assert found[0].value == pytest.approx(spent[0] / spent[1])
    same, _ = speeds.compared(record.rows, speeds.Arm(1, 3), speeds.Arm(0, 3), resamples=RESAMPLES)
    assert (found[0].low, found[0].high) == pytest.approx((same.low, same.high))


def test_drafts_are_held_against_the_student_they_were_trained_from(tmp_path: Path) -> None:
    drafts = [make.card("KD", 0), make.card("SFT-control", 0), make.card("Start")]
    make.speedup(tmp_path, drafts[:2], n=10)
    (chosen,) = speed.speed_sets(library(tmp_path))
    assert chosen.reference.label == "SFT-control"  # the first of the order
    make.train(tmp_path, make.card("KD", 0))  # which says who the student before was
    make.speedup(tmp_path, drafts, n=12)
    chosen = next(one for one in speed.speed_sets(library(tmp_path)) if "n = 12" in one.words)
    assert chosen.reference.role == "start"


def test_a_sentence_says_faster_only_where_the_interval_does(tmp_path: Path) -> None:
    """The drafts are made to agree with the target more, as often, and less than the first."""
    names = ("KD", "GKD", "TAID", "AKL")
    make.speedup(tmp_path, [make.card(name, 0) for name in names], skills=[0.6, 0.9, 0.6, 0.2], costs=[0.1] * 4)
    said = " ".join(sentences(tmp_path, "As a draft"))
    assert "As a draft GKD is faster than KD: ×1." in said
    assert "As a draft TAID is not told apart from KD" in said
    assert "As a draft AKL is slower than KD: ×0." in said


def test_a_gate_is_held_against_its_base_too(tmp_path: Path) -> None:
    make.speedup(tmp_path, [make.card(name, 0) for name in ("SFT-control", "KD", "KD + Spec-k")])
    said = sentences(tmp_path, "As a draft KD + Spec-k")
    assert [line.split(":")[0].rpartition("than ")[2].rpartition("from ")[2] for line in said] == ["SFT-control", "KD"]
    assert all(line in " ".join(one_screen(library(tmp_path), RESAMPLES).split()) for line in said)


def test_a_clock_that_disagrees_with_itself_settles_nothing(tmp_path: Path) -> None:
    make.speedup(tmp_path, make.card("KD", 0), drift=1.2)
    make.speedup(tmp_path, make.card("SFT-control", 0))
    (line,) = sentences(tmp_path)
    control, kd = line.split("; ")[1:]
    assert "timing not settled: plain decoding timed twice differs from itself, ×1.2" in kd
    assert "faster" not in kd
    assert "(faster)" in control
    (compared,) = sentences(tmp_path, "As a draft")
    assert "timing not settled" in compared and "faster" not in compared and "slower" not in compared
    notes = [note for note in tables.build(5, library(tmp_path), RESAMPLES).notes if "timed twice" in note]
    assert ["this timing is not settled" in note for note in notes] == [note.startswith("KD: ") for note in notes]
    assert len(notes) == 2
    caption, _, names = drawn(tmp_path)
    assert "KD (?): timing not settled" in caption
    assert [name.endswith("?") for name in names] == [False, False, True, True]
    assert "γ=5?" in one_screen(library(tmp_path), RESAMPLES)


def test_drafts_of_one_run_share_its_clock(tmp_path: Path) -> None:
    make.speedup(tmp_path, [make.card("KD", 0), make.card("SFT-control", 0)], drift=1.2)
    (chosen,) = speed.speed_sets(library(tmp_path))
    (note,) = speed_words.clock(chosen, library(tmp_path), RESAMPLES)
    assert note.startswith("Plain decoding timed twice gives ×1.2")


def test_a_draft_that_changed_the_text_under_one_seed_has_no_speedup(tmp_path: Path) -> None:
    make.speedup(tmp_path, make.card("KD", 0))
    make.speedup(tmp_path, make.card("KD", 1), violation=True)
    assert sentences(tmp_path) == []
    assert "changed the text on 1 prompts" in " ".join(findings(library(tmp_path), RESAMPLES))
    with pytest.raises(InputError, match="no speed-up to draw"):
        draw("speedup", library(tmp_path), Settings(RESAMPLES))


def test_a_draft_beside_one_that_changed_the_text_was_not_timed(tmp_path: Path) -> None:
    record = make.speedup(tmp_path, [make.card("KD", 0), make.card("GKD", 0)], violation=True)
    lines = record.path.read_text().splitlines()
    for place, line in enumerate(lines):
        row = json.loads(line)
        for one in row.get("outcomes", ()):
            if one["draft"] == 1:
                one |= {"outcome": "identical", "gap_ulps": None}
        lines[place] = json.dumps(row) if "outcomes" in row else line
    rewrite(record.path, "\n".join(lines) + "\n")
    (chosen,) = speed.speed_sets(library(tmp_path))
    assert [speed.refused(found) for found in chosen.drafts.values()] == ["text changed", "not timed"]
    said = " ".join(findings(library(tmp_path), RESAMPLES))
    assert "KD as a draft for Teacher changed the text" in said
    assert "GKD as a draft for Teacher was not timed" in said
    assert "×" not in said


def test_a_record_of_an_earlier_version_says_so_and_stops_no_report(tmp_path: Path) -> None:
    record = make.speedup(tmp_path, make.card("KD", 0))
    head, *rest = record.path.read_text().splitlines(keepends=True)
    header = json.loads(head)
    header["facts"]["draft"] = header["facts"].pop("drafts")[0]
    rewrite(record.path, json.dumps(header) + "\n" + "".join(rest))
    with pytest.raises(InputError, match=r"speedup-.*\.jsonl was measured by an earlier version.*run `speedup` again"):
        tables.build(5, library(tmp_path), RESAMPLES)
    (line,) = [line for line in findings(library(tmp_path), RESAMPLES) if "speed-up" in line]
    assert "was measured by an earlier version" in line
    assert "×" not in one_screen(library(tmp_path), RESAMPLES)


def test_texts_decoded_together_stand_in_blocks_of_their_own(tmp_path: Path) -> None:
    make.speedup(tmp_path, make.card("KD", 0), engine="vllm", batches=(1, 4))
    table = tables.build(5, library(tmp_path), RESAMPLES)
    assert [block.title.partition("tokens, ")[2] for block in table.blocks] == [
        "γ = 3",
        "γ = 5",
        "γ = 3, batch 4",
        "γ = 5, batch 4",
    ]
    counts = [block.rows[0].cells[0].value.n for block in table.blocks if block.rows[0].cells[0].value]
    assert counts == [12, 12, 3, 3], "prompts, then waves of four"


def test_one_screen_numbers_the_settings_it_tells_apart(tmp_path: Path) -> None:
    make.speedup(tmp_path, make.card("KD", 0))
    make.speedup(tmp_path, make.card("KD", 0), engine="vllm")
    lines = one_screen(library(tmp_path), RESAMPLES).splitlines()
    assert lines[0].split() == ["speed-up", "as", "draft", "(1)", "speed-up", "as", "draft", "(2)"]
    assert lines[1].count("×") == 2
    assert [line for line in lines if line.startswith("(")] == ["(1) engine reference", "(2) engine vllm"]
    assert max(map(len, lines)) <= 100


def test_one_screen_of_many_settings_is_no_wider_than_a_line(tmp_path: Path) -> None:
    for n in range(8, 20):
        make.speedup(tmp_path, [make.card("Start"), make.card("KD", 0)], n=n)
    lines = one_screen(library(tmp_path), RESAMPLES).splitlines()
    assert max(map(len, lines)) <= 120
    heads = [line for line in lines if "speed-up as draft (" in line]
    assert len(heads) > 1 and all(sum(f"draft ({place})" in line for line in heads) == 1 for place in range(1, 13))
    assert sum(line.startswith("KD  ") for line in lines) == len(heads)


def test_a_prompt_that_fits_no_model_is_not_counted(tmp_path: Path) -> None:
    path = make.speedup(tmp_path, make.card("KD", 0), n=12).path
    lines = path.read_text().splitlines(keepends=True)
    place, row = next((i, json.loads(line)) for i, line in enumerate(lines) if '"key":"gate/' in line)
    name = row["prompt"]
    kept = [line for line in lines if name not in line]
    kept.insert(
        place, json.dumps({"key": row["key"], "prompt": name, "error": "too long"}, separators=(",", ":")) + "\n"
    )
    rewrite(path, "".join(kept))
    (chosen,) = speed.speed_sets(library(tmp_path))
    assert "n = 11" in chosen.words
