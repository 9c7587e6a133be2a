"""Which landscapes stand on one scale: shares put together, everything that differs named, old records readable."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import record_factory as make
from rewriting import rewrite

from analysis.landscapes import differences, landscapes
from analysis.load import library
from selectkd_eval.errors import InputError
from selectkd_eval.records import Record

PAIR = [make.card("KD", 0), make.card("KD + Spec-k", 0)]


def shares(out: Path, of: int, **more: Any) -> list[Record]:
    return [make.landscape(out, PAIR, grid=5, share=f"{k}/{of}", **more) for k in range(1, of + 1)]


def test_shares_are_the_landscape_that_one_command_measures(tmp_path: Path) -> None:
    whole = landscapes(library(make.landscape(tmp_path / "a", PAIR, grid=5, scalars=3, held_out=4).path.parent))
    shares(tmp_path / "b", 3, scalars=3, held_out=4)
    parted = landscapes(library(tmp_path / "b"))
    assert len(parted.sources) == 3
    for one, other in zip(whole.planes, parted.planes, strict=True):
        assert one.method == other.method
        assert all((one.surfaces[s].loss == other.surfaces[s].loss).all() for s in (0, 1))
        assert [one.surfaces[s].residual for s in (0, 1)] == [other.surfaces[s].residual for s in (0, 1)]
    assert {r["key"]: r for r in whole.rows} == {r["key"]: r for r in parted.rows}


def test_a_missing_share_is_named(tmp_path: Path) -> None:
    for record in shares(tmp_path, 4)[1:3]:
        record.path.unlink()
    with pytest.raises(InputError, match=r"share 2/4, 3/4 of a landscape is missing .* --share 2/4 and so on"):
        landscapes(library(tmp_path))


def test_shares_with_other_facts_are_refused_with_all_of_them(tmp_path: Path) -> None:
    make.landscape(tmp_path, PAIR, grid=5, share="1/2")
    make.landscape(tmp_path, PAIR, grid=5, share="2/2", radius=1.0, tolerance=0.1)
    with pytest.raises(InputError, match="are not shares of one landscape: ") as caught:
        landscapes(library(tmp_path))
    assert re.findall(r"their (\w+) differs", str(caught.value)) == ["radius", "tolerance"]


def test_two_records_of_one_share_are_refused(tmp_path: Path) -> None:
    first = shares(tmp_path, 2)[0]
    (tmp_path / "copy.jsonl").write_text(first.path.read_text())
    with pytest.raises(InputError, match="share 1/2 more than once"):
        landscapes(library(tmp_path))


def test_everything_that_differs_is_named_with_its_records(tmp_path: Path) -> None:
    one = make.landscape(tmp_path, [PAIR[0]], grid=5)
    two = make.landscape(tmp_path, [PAIR[1]], grid=7, tokens="other", moved="blocks", folded={"folded": {}, "left": {}})
    with pytest.raises(InputError, match="cannot be compared") as caught:
        landscapes(library(tmp_path))
    said = str(caught.value)
    assert re.findall(r"their (\w+) differs", said) == ["tokens_sha256", "moved", "folded", "grid"]
    assert f"5 in {one.path.name}; 7 in {two.path.name}" in said


@pytest.mark.parametrize("fact", ["teacher_sha256", "dtype", "attention", "vocabulary", "params_zeroed"])
def test_one_other_fact_is_enough(tmp_path: Path, fact: str) -> None:
    records = [make.landscape(tmp_path, [PAIR[0]], grid=5), make.landscape(tmp_path, [PAIR[1]], grid=5, **{fact: "x"})]
    (said,) = differences([(record.path.name, record.facts) for record in records])
    assert said.startswith(f"their {fact} differs")


def test_how_the_radius_was_found_and_how_finely_was_measured_do_not_matter(tmp_path: Path) -> None:
    make.landscape(tmp_path, [PAIR[0]], grid=5, held_out=4, metrics=("tar",))
    make.landscape(tmp_path, [PAIR[1]], grid=5, radius_rule="automatic", tolerance=0.1)
    found = landscapes(library(tmp_path))
    assert [plane.method.label for plane in found.planes] == ["KD", "KD + Spec-k"]
    assert found.metrics == [], "a metric of one student alone compares nothing"


def test_direction_seeds_of_two_commands_are_one_students(tmp_path: Path) -> None:
    record = make.landscape(tmp_path, PAIR, grid=5, directions=2)
    text = record.path.read_text().replace('"seed":1,', '"seed":7,')
    text = re.sub(r'"key":"(\d)/1/', r'"key":"\1/7/', text).replace('"seeds":[0,1]', '"seeds":[0,7]')
    rewrite(tmp_path / "more.jsonl", text)
    found = landscapes(library(tmp_path))
    assert len(found.planes) == 2
    assert found.directions == [0, 1, 7]
    assert len([row for row in found.rows if row["student"] == 0 and row["seed"] == 0]) == 25, "a point counts once"


def test_scalars_of_two_commands_do_not_mix(tmp_path: Path) -> None:
    record = make.landscape(tmp_path, PAIR, grid=5, scalars=2)
    rewrite(tmp_path / "more.jsonl", record.path.read_text().replace('"n":1,', '"n":9,').replace("ray/1", "ray/9"))
    rays = {row["n"] for row in landscapes(library(tmp_path)).rows if row.get("name") == "ray"}
    assert rays in ({0, 1}, {0, 9})


def test_records_without_the_newer_facts_are_read_alone(tmp_path: Path) -> None:
    record = make.landscape(tmp_path, PAIR, grid=5)
    text = record.path.read_text().replace('"kind":"grid",', "")
    for fact in ("teacher_sha256", "moved", "folded", "dtype", "attention", "radius_rule", "share", "seeds"):
        text = re.sub(rf'"{fact}":(\{{"folded":.*?\}},"left":\{{\}}\}}|\[.*?\]|"[^"]*"),', "", text, count=1)
        assert f'"{fact}":' not in text.partition("\n")[0].partition('"facts":')[2].partition('"options":')[0], fact
    rewrite(record.path, text)
    found = landscapes(library(tmp_path))
    assert found.planes[0].surfaces[0].centre == pytest.approx(0.2)
    make.landscape(tmp_path, [make.card("GKD", 0)], grid=5)
    with pytest.raises(InputError, match=r"their dtype differs \(float32 in .*; not stated in "):
        landscapes(library(tmp_path))


def test_a_landscape_that_is_finite_nowhere_says_what_to_do(tmp_path: Path) -> None:
    record = make.landscape(tmp_path, [PAIR[0]], grid=3, directions=1)
    rewrite(record.path, re.sub(r'"loss_sum":[^,}]+', '"error":"the loss is not finite here"', record.path.read_text()))
    with pytest.raises(InputError, match="give a smaller --radius"):
        landscapes(library(tmp_path))
