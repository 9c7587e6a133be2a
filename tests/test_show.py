"""One record in words: state, what was asked, what it is made of, its number."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import record_factory as make

from analysis.show import lines, run
from selectkd_eval import measures
from selectkd_eval.errors import InputError
from selectkd_eval.records import Record
from selectkd_eval.verbs import ShowOptions


def shown(record: Record) -> str:
    return "\n".join(lines(record))


def test_a_pass_record_shows_its_number_and_only_changed_options(tmp_path: Path) -> None:
    record = make.passk(tmp_path, make.card("KD", 0), n=20)
    text = shown(record)
    share = 100 * measures.pass_at_1(record.rows).value
    assert "(finished)" in text
    assert "rows: 20 measured, 0 failed" in text
    assert f"\nmini-gsm  {share:8.2f}  " in text
    assert "  model: students/KD-0\n" in text
    assert "max_new_tokens" not in text, "an option at its default is no news"


def test_failures_are_counted_with_their_reasons(tmp_path: Path) -> None:
    facts = {"model": make.card("KD", 0), "tasks": {}}
    rows = [{"key": f"t/{i}", "error": "timed out"} for i in range(3)] + [{"key": "t/9", "error": "refused"}]
    text = shown(make.write("passk", make.PasskOptions(out=tmp_path), facts, rows))
    assert "rows: 0 measured, 4 failed" in text
    assert "3 x timed out" in text


@pytest.mark.parametrize("kind", ["winrate", "tar", "speedup", "landscape", "train"])
def test_every_verbs_number_is_shown(tmp_path: Path, kind: str) -> None:
    kd, base = make.card("KD", 0), make.card("SFT-control", 0)
    record, said = {
        "winrate": lambda: (make.winrate(tmp_path, kd, base), "not a human or LLM preference"),
        "tar": lambda: (make.tar(tmp_path, [kd], [0], n=10), "greedy TAR 0."),
        "speedup": lambda: (
            make.speedup(tmp_path, kd),
            "plain decoding on 12 prompts: 12 identical",
        ),
        "landscape": lambda: (make.landscape(tmp_path, [kd], grid=5), "loss 0.2000, rising by"),
        "train": lambda: (make.train(tmp_path, kd), "validation loss: 0."),
    }[kind]()
    assert said in shown(record)


def test_a_landscape_shows_its_interpolation_and_scalars(tmp_path: Path) -> None:
    kd = make.card("KD", 0)
    text = shown(make.landscape(tmp_path, [kd], grid=5, directions=1, held_out=4, scalars=4))
    assert "radius 0.500 of row norms, as asked" in text
    # 3 (a^2 + .7 b^2 + .3 ab) over the ring of eight points one step of .25 from the student.
    assert f"loss 0.2000, rising by {3 * 0.0625 * 1.7 * 6 / 8:.4f} at distance 0.30 and" in text
    (off,) = re.findall(r"off by at most (\S+) \(\S+ % of its range\) at 4 points", text)
    assert float(off) < 1e-12, "a cubic spline is exact on a quadratic bowl"
    assert "KD-0: curvature 5.1 [" in text
    assert "t over 4 directions" in text


def test_a_share_of_a_landscape_has_no_number_of_its_own(tmp_path: Path) -> None:
    text = shown(make.landscape(tmp_path, [make.card("KD", 0)], grid=5, share="1/2"))
    assert "share 1/2 of a landscape" in text
    assert "rising" not in text


def test_an_unfinished_record_is_shown_without_a_number(tmp_path: Path) -> None:
    facts = {"model": make.card("KD", 0), "tasks": {"t": {"n": 1}}}
    rows = [{"key": "t/a/0/0", "task": "t", "problem": "a", "correct": 1}]
    text = shown(make.write("passk", make.PasskOptions(out=tmp_path), facts, rows, finish=False))
    assert f"unfinished: finish it with selectkd-eval passk --out {tmp_path}" in text
    assert "pass@1" not in text


def test_rows_follow_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = make.passk(tmp_path, make.card("KD", 0), n=5)
    run(ShowOptions(record=record.path, rows=2))
    last = capsys.readouterr().out.splitlines()[-2:]
    assert [json.loads(line)["problem"] for line in last] == ["p0", "p1"]


def test_a_file_that_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(InputError, match="no header line"):
        run(ShowOptions(record=tmp_path / "x.jsonl"))
