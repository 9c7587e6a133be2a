"""What an audit of speed-ups must find: the paper's Table 5, planted rows, and nothing in runs that could have been."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import record_factory as make
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import audit, audit_arithmetic, audit_speed, audit_twin, load, tables, writers
from analysis.audit_section import Section, Settings, text
from analysis.audit_speed import DRAFTED, TESTED, most_ratio, tokens_per_call
from analysis.audit_table import Printed, read_csv
from selectkd_eval.errors import InputError

PAPER = Path(__file__).resolve().parents[1] / "reports" / "paper"
HEAD = "target,draft,method,"


def table(tmp_path: Path, content: str) -> Printed:
    path = tmp_path / "t.csv"
    path.write_text(content, encoding="utf-8")
    return read_csv(path)


def said(sections: list[Section]) -> str:
    return " ".join(" ".join(line for section in sections for line in text(section)).split())


def flags(sections: list[Section]) -> list[str]:
    return [row[-1] for section in sections for row in section.rows[1:]]


# --- the paper's Table 5 --------------------------------------------------------------------------------------------


def test_two_speed_ups_of_the_paper_lie_above_their_ceiling() -> None:
    (section,) = audit_speed.ceiling(read_csv(PAPER / "table5.csv"), Settings())
    assert [row[:4] for row in section.rows if row[-1] == "above"] == [
        ("Phi-3-medium, Llama-68m, DistiLLM-2", "1.97", "0.487", "1.949"),
        ("Phi-3-medium, Llama-68m, SelecTKD", "2.05", "0.492", "1.969"),
    ]


def test_the_papers_speed_ups_grow_by_more_than_its_acceptance_explains_at_any_draft_length() -> None:
    (section,) = audit_speed.ratios(read_csv(PAPER / "table5.csv"), Settings())
    found = {row[0]: row[1:] for row in section.rows[1:]}
    # By hand: 2.05 / 1.32, (1 - .412) / (1 - .492) and .492 / .412; 1.91 / 1.24, (1 - .397) / (1 - .534), .534 / .397.
    assert found["Phi-3-medium, Llama-68m: SFT to SelecTKD"] == ("1.553", "1.157", "1.194", "above both")
    assert found["Phi-3.5-mini, Llama-68m: SFT to SelecTKD"] == ("1.540", "1.294", "1.345", "above both")
    assert flags([section]) == ["above both"] * 8
    assert "8 of 8 speed-ups grow by more" in said([section])


def test_what_the_paper_does_not_print_is_not_checked() -> None:
    printed = read_csv(PAPER / "table5.csv")
    assert audit_speed.calls(printed, Settings()) == []
    assert audit_speed.costs(printed, Settings()) == []
    for number in (1, 2, 4, 6):
        other = read_csv(PAPER / f"table{number}.csv")
        assert [section for check in audit_speed.CHECKS for section in check(other, Settings())] == []


def test_at_a_draft_length_of_4_the_papers_rows_imply_costs_that_no_single_draft_has(tmp_path: Path) -> None:
    lines = (PAPER / "table5.csv").read_text().splitlines()
    content = [f"{lines[0]},gamma", *(f"{line},4" for line in lines[1:])]
    (section,) = audit_speed.costs(table(tmp_path, "\n".join(content)), Settings())
    found = {row[0]: row for row in section.rows[1:]}
    # By hand for accepted / drafted: (1 + 4 x .412) / 1.32 = 2.0061, less 1, by 4; (1 + 4 x .492) / 2.05 likewise.
    assert found["Phi-3-medium, Llama-68m, SFT, gamma 4"][3] == "0.252"
    assert found["Phi-3-medium, Llama-68m, SelecTKD, gamma 4"][3] == "0.112"
    assert "Phi-3-medium, Llama-68m, gamma 4: -0.017 to 0.068 by accepted / tested, 0.112 to 0.252" in said([section])


# --- the bounds themselves ------------------------------------------------------------------------------------------


@given(
    st.integers(1, 12).flatmap(
        lambda gamma: st.tuples(
            st.just(gamma),
            st.lists(
                st.integers(0, gamma).flatmap(lambda drafted: st.tuples(st.just(drafted), st.integers(0, drafted))),
                min_size=1,
                max_size=40,
            ),
        )
    )
)
def test_no_run_has_more_tokens_per_call_than_its_acceptance_allows(run: tuple[int, list[tuple[int, int]]]) -> None:
    gamma, steps = run
    drafted, accepted = sum(d for d, _ in steps), sum(k for _, k in steps)
    tested = sum(min(k + 1, d) for d, k in steps)
    tokens = 1 + Fraction(accepted, len(steps))
    assert tokens <= gamma + 1
    if drafted:
        assert tokens <= 1 + gamma * Fraction(accepted, drafted)
        assert Fraction(accepted, drafted) <= Fraction(accepted, tested)
        assert accepted == tested or tokens <= 1 / (1 - Fraction(accepted, tested))


@given(
    st.fractions(0, 1, max_denominator=1000),
    st.fractions(0, 1, max_denominator=1000),
    st.integers(1, 12),
    st.sampled_from([TESTED, DRAFTED]),
)
def test_no_draft_length_gives_a_larger_ratio_than_the_largest(
    old: Fraction, new: Fraction, gamma: int, definition: str
) -> None:
    here = tokens_per_call(new, gamma, definition) / tokens_per_call(old, gamma, definition)
    most = most_ratio(old, new, None, definition)
    assert most is None or here <= most
    assert most_ratio(old, new, gamma, definition) == here


@pytest.mark.parametrize("definition", [TESTED, DRAFTED])
def test_the_largest_ratio_is_nearly_reached(definition: str) -> None:
    better, worse = Fraction("0.5"), Fraction("0.4")
    for old, new, gamma in ((worse, better, 5000), (better, worse, 1)):
        most = most_ratio(old, new, None, definition)
        assert most is not None
        assert float(most) == pytest.approx(float(most_ratio(old, new, gamma, definition) or 0), rel=1e-3)
    assert most_ratio(better, Fraction(1), None, TESTED) is None
    assert most_ratio(Fraction(0), better, None, DRAFTED) is None


@settings(deadline=None)  # it writes files
@given(
    gamma=st.integers(1, 10),
    cost=st.fractions(0, 2, max_denominator=100),
    shares=st.lists(st.fractions(0, 1, max_denominator=10**6), min_size=2, max_size=5),
    definition=st.sampled_from([TESTED, DRAFTED]),
    told=st.booleans(),
)
def test_speed_ups_that_follow_the_formula_are_left_in_peace(
    tmp_path_factory: pytest.TempPathFactory,
    gamma: int,
    cost: Fraction,
    shares: list[Fraction],
    definition: str,
    told: bool,
) -> None:
    lines = [
        f"{HEAD}{'gamma,c,tau,' if told else ''}{'alpha' if definition == TESTED else 'accepted / drafted'},speedup"
    ]
    for place, share in enumerate(shares):
        tokens = tokens_per_call(share, gamma, definition)
        more = f"{gamma},{float(cost):.3f},{float(tokens):.2f}," if told else ""
        lines.append(f"T,D,m{place},{more}{float(share):.3f},{float(tokens / (gamma * cost + 1)):.2f}")
    path = tmp_path_factory.getbasetemp() / "formula.csv"
    path.write_text("\n".join(lines))
    printed = read_csv(path)
    found = [section for check in audit_speed.CHECKS for section in check(printed, Settings())]
    assert len(found) == (2 if definition == TESTED else 1) + 2 * told
    assert set(flags(found)) == {""}, said(found)


# --- planted rows and optional columns ------------------------------------------------------------------------------


def test_a_speed_up_above_its_tokens_and_tokens_above_their_limits_are_named(tmp_path: Path) -> None:
    content = f"{HEAD}gamma,speedup,acceptance,mean accepted tokens\n"
    content += "T,D,right,4,1.50,0.500,1.90\nT,D,fast,4,2.00,0.500,1.90\nT,D,many,4,1.50,0.500,3.10\n"
    content += "T,D,more,4,1.50,0.990,5.10\n"
    printed = table(tmp_path, content)
    assert flags(audit_speed.calls(printed, Settings())) == [
        "",
        "speed-up > tokens",
        "tokens > acceptance",
        "tokens > γ + 1",
    ]
    assert "mean accepted tokens" not in printed.averages
    assert audit_arithmetic.averages(printed) == []
    assert "3 of 4 rows exceed a limit" in said(audit_speed.calls(printed, Settings()))


@pytest.mark.parametrize(("speed", "flag"), [("1.904", ""), ("1.905", ""), ("1.906", "speed-up > tokens")])
def test_rounding_has_the_benefit_of_the_doubt(tmp_path: Path, speed: str, flag: str) -> None:
    # 1.90 tokens can be 1.905, and 1.905 can be 1.9045.
    printed = table(tmp_path, f"{HEAD}speedup,acceptance,tau\nT,D,A,{speed},0.900,1.90\n")
    assert flags(audit_speed.calls(printed, Settings())) == [flag]


def test_a_cost_that_cannot_be_is_named_and_printed_tokens_decide_it(tmp_path: Path) -> None:
    head = f"{HEAD}gamma,cost,speedup,acceptance"
    rows = "T,D,right,4,0.10,1.40,0.400\nT,D,cheap,4,0.10,1.70,0.400\nT,D,gift,4,0.10,2.80,0.400\n"
    printed = table(tmp_path, f"{head}\n{rows}")
    assert flags(audit_speed.costs(printed, Settings())) == ["", "", "negative"]
    told = "".join(f"{line},{tokens}\n" for line, tokens in zip(rows.splitlines(), (2.0, 1.8, 2.2), strict=True))
    (section,) = audit_speed.costs(table(tmp_path, f"{head},tau\n{told}"), Settings())
    assert flags([section]) == ["", "below the printed c", "negative"]
    assert section.rows[2][4] == "0.015", "(1.8 / 1.7 - 1) / 4"


def test_rows_of_another_draft_length_or_temperature_are_not_set_against_each_other(tmp_path: Path) -> None:
    content = f"{HEAD}gamma,temperature,speedup,acceptance\n"
    content += "T,D,A,2,0,1.2,0.5\nT,D,A,8,0,1.9,0.5\nT,D,A,2,1,1.1,0.5\nT,D,B,2,0,1.8,0.5\n"
    (section,) = audit_speed.ratios(table(tmp_path, content), Settings())
    assert [row[0] for row in section.rows[1:]] == ["T, D, gamma 2, temperature 0: A to B"]
    assert "at their draft length where it is printed" in said([section])


def test_a_known_draft_length_explains_less(tmp_path: Path) -> None:
    # accepted / drafted from .2 to .4: twice the tokens at an endless draft, 1.4 / 1.2 at one token.
    rows = "T,D,A{0},1.00,0.200\nT,D,B{0},1.50,0.400\n"
    some = audit_speed.ratios(table(tmp_path, f"{HEAD}speedup,accepted / drafted\n{rows.format('')}"), Settings())
    assert some[0].rows[1][1:] == ("1.500", "—", "2.000", "")
    one = table(tmp_path, f"{HEAD}gamma,speedup,accepted / drafted\n{rows.format(',1')}")
    assert audit_speed.ratios(one, Settings())[0].rows[1][1:] == ("1.500", "—", "1.167", "above")


def test_acceptance_in_percent_is_the_same_acceptance(tmp_path: Path) -> None:
    share = table(tmp_path, f"{HEAD}speedup,acceptance\nT,D,A,1.32,0.412\nT,D,B,2.05,0.492\n")
    first = [check(share, Settings())[0].rows[1][-2:] for check in (audit_speed.ceiling, audit_speed.ratios)]
    percent = table(tmp_path, f"{HEAD}speedup,acceptance\nT,D,A,1.32x,41.2 %\nT,D,B,2.05x,49.2 %\n")
    assert [check(percent, Settings())[0].rows[1][-2:] for check in (audit_speed.ceiling, audit_speed.ratios)] == first


WILD = ["", "0", "-1", "0.5", "1", "2.5", "41.2", "100", "999999999", "0.000000001"]
HEADS = ["speedup", "acceptance", "alpha", "accepted / drafted", "gamma", "c", "tau", "temperature"]


@settings(deadline=None)  # it writes files, and the first check loads scipy
@given(
    head=st.lists(st.sampled_from(HEADS), unique=True, min_size=2),
    cells=st.lists(st.lists(st.sampled_from(WILD), min_size=8, max_size=8), min_size=1, max_size=4),
)
def test_any_numbers_are_audited_without_a_crash(
    tmp_path_factory: pytest.TempPathFactory, head: list[str], cells: list[list[str]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "wild.csv"
    rows = [f"m{place},1,{','.join(row[: len(head)])}" for place, row in enumerate(cells)]
    path.write_text("\n".join([f"method,x,{','.join(head)}", *rows]))
    printed = read_csv(path)
    for check in audit.CHECKS:
        for section in check(printed, Settings()):
            assert list(text(section))


# --- our own Table 5 ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Table 5 of a made-up record: three drafts, two draft lengths, two tasks."""
    out = tmp_path_factory.mktemp("records")
    drafts = [make.card("Start"), make.card("KD", 0), make.card("KD + Spec-k", 0)]
    make.speedup(out, drafts, n=16, tasks=("mini-gsm", "mini-stories"))
    return writers.twin(tables.build(5, load.library(out), 300))


def twin(tmp_path: Path, content: str) -> audit_twin.Twin:
    (tmp_path / "table5.json").write_text(content)
    return audit_twin.read(tmp_path / "table5.json")


def test_our_table_keeps_every_limit_and_its_ratios_follow_from_its_speed_ups(tmp_path: Path, ours: str) -> None:
    found = twin(tmp_path, ours)
    (section,) = audit_twin.sections(found)
    assert all(row[-1] == "0" for row in section.rows[1:]), said([section])
    counted = {row[0]: int(row[1]) for row in section.rows[1:]}
    # Two blocks of three drafts: two speed-ups, both acceptances, the length and what each acceptance allows.
    assert counted["limits of drafting"] == 2 * 3 * 6
    assert counted["differences and ratios"] == 2 * 2, "of every draft to the first, in both blocks"


def change(content: str, column: str, part: str, by: Callable[[float], float | None]) -> str:
    """The table with one number of its second draft changed; `part` is a path in the cell."""
    table = json.loads(content)
    place = [one["label"] for one in table["columns"]].index(column)
    cell = table["blocks"][0]["rows"][1]["cells"][place]
    *path, last = part.split(".")
    for name in path:
        cell = cell[name]
    cell[last] = by(cell[last])
    return json.dumps(table)


@pytest.mark.parametrize(
    ("column", "part", "by", "words"),
    [
        ("Decode only", "value.low", lambda _: 9.0, "a speed-up of"),
        ("tokens per target call", "value.value", lambda _: 4.01, r"more than γ \+ 1 = 4"),
        ("accepted / drafted", "value.value", lambda x: x / 2, "which accepted / drafted allows"),
        ("accepted / tested", "value.value", lambda x: x / 2, "which accepted / tested allows"),
        ("accepted / drafted", "value.value", lambda _: 0.999, "more than accepted / tested"),
        ("Speed-up", "delta.value", lambda x: x + 0.001, "the ratio is"),
    ],
    ids=["decode", "tokens", "drafted", "tested", "both", "ratio"],
)
def test_a_number_of_our_table_that_cannot_be_is_named(
    tmp_path: Path, ours: str, column: str, part: str, by: Callable[[float], float | None], words: str
) -> None:
    found = audit_twin.sections(twin(tmp_path, change(ours, column, part, by)))
    assert re.search(words, said(found)), said(found)


def test_a_number_without_an_interval_is_a_number_and_half_an_interval_is_none(tmp_path: Path, ours: str) -> None:
    bare = change(change(ours, "Decode only", "value.low", lambda _: None), "Decode only", "value.high", lambda _: None)
    whole, less = audit_twin.intervals(twin(tmp_path, ours)), audit_twin.intervals(twin(tmp_path, bare))
    assert (less.count, less.failures) == (whole.count - 1, ())
    with pytest.raises(InputError, match="a cell of Decode only lacks a number"):
        twin(tmp_path, change(ours, "Decode only", "value.low", lambda _: None))


def test_limits_hold_for_counts_of_any_run(tmp_path: Path) -> None:
    draw = random.Random(0)
    for _ in range(200):
        gamma = draw.randint(1, 8)
        steps = [(d := draw.randint(0, gamma), draw.randint(0, d)) for _ in range(draw.randint(1, 30))]
        drafted, accepted = sum(d for d, _ in steps), sum(k for _, k in steps)
        tested = sum(min(k + 1, d) for d, k in steps)
        if not drafted:
            continue
        numbers = {"accepted / tested": accepted / tested, "accepted / drafted": accepted / drafted}
        numbers["tokens per target call"] = 1 + accepted / len(steps)
        columns = [{"label": name, "group": "", "better": None} for name in numbers]
        cells = [{"value": {"value": x, "low": x, "high": x, "n": 1}, "delta": None} for x in numbers.values()]
        rows = [{"label": "run", "ranked": True, "cells": cells}]
        content = {"title": "T", "columns": columns, "blocks": [{"title": f"x, γ = {gamma}", "rows": rows}]}
        check = audit_twin.drafting(twin(tmp_path, json.dumps(content)))
        assert check.count == 3 + (accepted < tested)
        assert check.failures == ()
