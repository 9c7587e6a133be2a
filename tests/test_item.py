"""One row in full: found by its key or a part of it, shown whole, harmless to the terminal."""

from __future__ import annotations

from pathlib import Path

import pytest
import record_factory as make

from analysis.item import full, item_lines, matching
from analysis.show import run
from selectkd_eval.errors import InputError
from selectkd_eval.records import Record
from selectkd_eval.verbs import ShowOptions

KEYS = [f"humaneval/HumanEval/{i}/{seed}/0" for i in (3, 13, 31) for seed in (0, 1)] + ["mbpp/Mbpp/3/0/0"]


@pytest.fixture
def record(tmp_path: Path) -> Record:
    rows = [make.program_row("humaneval", f"HumanEval/{i}", "wrong" if i == 3 else "pass") for i in (3, 13, 31)]
    rows[0] |= {
        "completion": "def f():\n    return '\x1b[2J\x1b]0;owned\x07'\r\n",
        "detail": "AssertionError: 7 != 8",
        "output": "printed\n",
        "strata": {"level": "Level 3"},
    }
    rows[0]["other"] = {"mode": "official", "outcome": "error", "correct": 0, "detail": "NameError"}
    facts = make.passk_facts(make.card("KD", 0), {"humaneval": make.task_facts("humaneval", "code")})
    return make.write("passk", make.PasskOptions(out=tmp_path, tasks=("humaneval",)), facts, rows)


@pytest.mark.parametrize(
    ("wanted", "places"),
    [
        ("humaneval/HumanEval/13/1/0", [3]),
        ("HumanEval/3", [0, 1]),  # not 31, not 13
        ("HumanEval/3/1", [1]),
        ("Mbpp/3", [6]),
        ("mbpp/", [6]),
        ("HumanEval/1", [2, 3]),
        ("/1/0", [1, 3, 5]),
        ("uman", [0, 1, 2, 3, 4, 5]),
        ("absent", []),
    ],
)
def test_keys_are_found_whole_then_by_parts_then_by_ends_then_inside(wanted: str, places: list[int]) -> None:
    assert matching(KEYS, wanted) == [KEYS[place] for place in places]


def test_one_item_is_shown_with_every_field(record: Record) -> None:
    lines = list(item_lines(record, "HumanEval/3"))
    row = record.rows[0]
    names = {line.strip().split(":")[0].split(" (")[0] for line in lines if not line.startswith("  ")}
    assert names == set(row)
    assert lines[0] == "key: humaneval/HumanEval/3/0/0"
    at = lines.index(f"completion ({len(row['completion'])} characters):")
    assert lines[at + 1] == "  | def f():"
    at = lines.index(f"extracted ({len(row['extracted'])} characters):")
    assert lines[at + 1 : at + 3] == ["  | def f():", "  |     return 7"]
    assert "outcome: wrong" in lines
    assert "detail: AssertionError: 7 != 8" in lines
    at = lines.index("other:")
    assert set(lines[at + 1 : at + 5]) == {
        "  mode: official",
        "  outcome: error",
        "  correct: 0",
        "  detail: NameError",
    }


def test_escape_sequences_of_a_model_do_not_reach_the_terminal(
    record: Record, capsys: pytest.CaptureFixture[str]
) -> None:
    for options in (
        ShowOptions(record=record.path, item="HumanEval/3"),
        ShowOptions(record=record.path, rows=3),
    ):
        run(options)
        shown = capsys.readouterr().out
        assert "\\u001b" in shown
        assert not set(shown) & {"\x1b", "\x07", "\r"}


def test_several_matches_are_listed_with_what_became_of_them(record: Record) -> None:
    assert list(item_lines(record, "HumanEval")) == [
        "3 items match HumanEval:",
        "  humaneval/HumanEval/3/0/0  wrong",
        "  humaneval/HumanEval/13/0/0  pass",
        "  humaneval/HumanEval/31/0/0  pass",
    ]


def test_no_match_names_what_there_is(record: Record) -> None:
    with pytest.raises(InputError, match=r"matches 'HumanEvil/3'; its keys look like humaneval/HumanEval/3/0/0"):
        list(item_lines(record, "HumanEvil/3"))


@pytest.mark.parametrize("kind", ["winrate", "tar", "speedup", "train", "landscape"])
def test_every_verbs_rows_can_be_shown(tmp_path: Path, kind: str) -> None:
    kd, base = make.card("KD", 0), make.card("SFT-control", 0)
    made = {
        "winrate": lambda: make.winrate(tmp_path, kd, base, n=3),
        "tar": lambda: make.tar(tmp_path, [kd], [0], n=3),
        "speedup": lambda: make.speedup(tmp_path, kd, n=2),
        "train": lambda: make.train(tmp_path, kd, steps=10),
        "landscape": lambda: make.landscape(tmp_path, [kd], grid=5),
    }[kind]()
    for row in made.rows:
        lines = list(item_lines(made, row["key"]))
        assert lines == list(full(row))
        assert len(lines) >= len(row)


def test_runs_stand_on_a_line_each_and_their_traces_are_cut(tmp_path: Path) -> None:
    made = make.speedup(tmp_path, make.card("KD", 0), n=2, skills=[0.1])
    row = next(row for row in made.rows if row["key"] == "time/p0")
    lines = list(item_lines(made, "time/p0"))
    at = lines.index(f"runs ({len(row['runs'])}):")
    shown = lines[at + 1 : at + 1 + len(row["runs"])]
    assert all(line.startswith("  - rep ") for line in shown)
    trace = next(run["drafted_per_step"] for run in row["runs"] if len(run["drafted_per_step"]) > 12)
    cut = ",".join(map(str, trace[:12]))
    assert any(f"drafted_per_step [{cut},... {len(trace)} in all]" in line for line in shown)
    gate = list(item_lines(made, "gate/p0"))
    assert "outcomes (2):" in gate
    assert sum(line.startswith("  - draft 0, gamma 3, outcome identical, ") for line in gate) == 1


def test_an_unfinished_records_failure_can_be_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = make.passk_facts(make.card("KD", 0), {"t": make.task_facts("t")})
    rows = [{"key": "t/a/0/0", "task": "t", "problem": "a", "error": "refused\x1b[0m"}]
    made = make.write("passk", make.PasskOptions(out=tmp_path), facts, rows, finish=False)
    run(ShowOptions(record=made.path, item="a"))
    assert capsys.readouterr().out == "key: t/a/0/0\ntask: t\nproblem: a\nerror: refused\\u001b[0m\n"
