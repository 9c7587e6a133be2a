"""Where a number comes from: the command in the page is the one that was run, and what is shared is told once."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import record_factory as make
from hypothesis import given
from hypothesis import strategies as st

from analysis.load import library
from analysis.provenance import ids, of_verbs, provenance, ranges, repeat, sources
from analysis.tables import build
from selectkd_eval.cli import parse
from selectkd_eval.environment import sha256_file
from selectkd_eval.records import all_options, record_path


def test_the_command_of_every_record_names_that_record(tmp_path: Path) -> None:
    """Parsed again, the words give options under which a run would go on with this very file."""
    found = library(make.everything(tmp_path, n=8))
    for record in found.records:
        words = shlex.split(repeat(record))
        assert words[0] == "selectkd-eval"
        options = parse(words[1:])
        assert all_options(options) == record.options
        assert record_path(record.verb, options) == record.path


def test_every_record_has_an_id_a_digest_and_its_rows(tmp_path: Path) -> None:
    found = library(make.everything(tmp_path, n=8))
    told = provenance(found)
    assert [origin.id for origin in told.records] == [f"R{i}" for i in range(1, len(found.records) + 1)]
    for origin, record in zip(told.records, found.records, strict=True):
        assert (origin.name, origin.rows, origin.failed) == (record.path.name, len(record.good), len(record.failed))
        assert origin.sha256 == sha256_file(record.path)
        assert all(1 <= place <= len(told.prompts) for place in origin.prompts)
        assert 1 <= origin.maker <= len(told.makers)
    assert len(told.makers) == 1
    assert ("mini-gsm", make.digest("mini-gsm")) in told.prompts


def test_the_records_of_a_row_are_those_of_its_models(tmp_path: Path) -> None:
    names = {}
    for method in ("Start", "SFT-control", "KD", "KD + Spec-k"):
        for seed in (0, 1) if method != "Start" else (None,):
            record = make.passk(tmp_path, make.card(method, seed), n=10)
            names.setdefault(method, set()).add(record.path.name)
    found = library(tmp_path)
    known = ids(found)
    rows = {row.label: row for row in sources(build(2, found, 50), known)}
    for method in ("SFT-control", "KD", "KD + Spec-k"):
        (_, records), *_ = rows[method].columns
        assert {known[name] for name in names[method]} <= set(records)
    assert of_verbs(found, ["passk"], known) == tuple(known.values())
    assert of_verbs(found, ["tar"], known) == ()


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["R2"], [("R2", "R2")]),
        (["R2", "R3"], [("R2", "R2"), ("R3", "R3")]),
        (["R4", "R2", "R3", "R9"], [("R2", "R2–R4"), ("R9", "R9")]),
        ([], []),
    ],
)
def test_neighbours_are_told_as_a_range(names: list[str], told: list[tuple[str, str]]) -> None:
    assert ranges(names) == told


@given(places=st.sets(st.integers(1, 40)))
def test_ranges_cover_exactly_the_records(places: set[int]) -> None:
    covered = []
    for target, text in ranges(f"R{place}" for place in places):
        first, _, last = text.partition("–")
        assert target == first
        covered += range(int(first[1:]), int((last or first)[1:]) + 1)
    assert covered == sorted(places)
