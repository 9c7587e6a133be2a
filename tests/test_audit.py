"""What an audit must find, and what it must leave in peace.

The paper's tables give figures that were computed by hand before this program existed; planted slips are named; a rate
from real counts always lies on its own grid.
"""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import audit, audit_claims, audit_twin
from analysis.audit_arithmetic import averages, differences
from analysis.audit_grid import fit, groups, rounding_grid, tries
from analysis.audit_lattice import RULES, Grid, nearest, on_grid, reachable
from analysis.audit_section import Section, Settings, text
from analysis.audit_table import Printed, decimal, read_csv
from selectkd_eval.cli import main
from selectkd_eval.errors import InputError
from selectkd_eval.verbs import AuditOptions

REPORTS = Path(__file__).resolve().parents[1] / "reports"
PAPER = REPORTS / "paper"
HEAD = "pair,method,base_method,alpacaeval,evol_instruct,avg,delta_evol_instruct\n"


def table(tmp_path: Path, content: str, digits: int | None = None) -> Printed:
    path = tmp_path / "t.csv"
    path.write_text(content, encoding="utf-8")
    return read_csv(path, digits)


def said(sections: list[Section]) -> str:
    return " ".join(" ".join(line for section in sections for line in text(section)).split())


def counted(printed: Printed, column: str, grid: Grid) -> dict[str, tuple[int, int, float]]:
    found = [fit(printed, column, grid, group) for group in groups(printed)]
    return {one.group.name: (one.on, one.of, round(one.expected, 1)) for one in found}


# --- the paper's tables ---------------------------------------------------------------------------------------------


def test_the_papers_averages_and_all_84_differences_follow_from_its_digits() -> None:
    printed = read_csv(PAPER / "table1.csv")
    assert len(averages(printed)) == 48
    assert len(differences(printed)) == 84
    assert all(found.exact and not found.fails for found in averages(printed) + differences(printed))
    assert [found.exact for found in averages(read_csv(PAPER / "table2.csv"))] == [True] * 32


def test_17_of_27_inherited_evol_instruct_rates_lie_on_the_half_tie_grid_and_2_of_21_others() -> None:
    printed = read_csv(PAPER / "table1.csv")
    found = counted(printed, "evol_instruct", Grid(RULES["both-orders"], 218, 1))
    assert found["no base"] == (17, 27, 2.4)
    assert found["with base"] == (2, 21, 1.8)
    assert found["teacher"][:2] == (2, 3)
    assert found["student before"][:2] == (3, 3)


def test_pass_rates_of_the_paper_lie_on_the_grids_of_gsm8k_and_mbpp_plus_without_selectkd_only() -> None:
    printed = read_csv(PAPER / "table2.csv")
    for column, n, without in (("gsm8k", 1319, 10), ("math", 5000, 10), ("mbpp", 378, 9), ("humaneval", 164, 6)):
        found = counted(printed, column, Grid(RULES["accuracy"], n, 1))
        assert found["no base"][:2] == (without, 10)
        assert found["with base"][:2] == (3 if column == "math" else 0, 6)
    off = said(rounding_grid(printed, Settings()))
    assert "53.65 (88/164 = 53.659, cut off)" in off
    assert "The groups differ on k/378: 9 of 10 no base against 0 of 6 with base" in off


def test_the_reported_tests_are_the_binomial_and_fishers_adjusted_by_holm_over_the_table() -> None:
    tried, _ = tries(read_csv(PAPER / "table1.csv"), Settings())
    line = next(one for one in tried if one.grid == Grid(RULES["both-orders"], 218, 1))
    # P(X >= 17) of Binomial(27, 873 / 10001), written out.
    share = 873 / 10001
    more = sum(math.comb(27, k) * share**k * (1 - share) ** (27 - k) for k in range(17, 28))
    assert line.tested[0].p == pytest.approx(2 * more, rel=1e-9)
    count = sum(not math.isnan(p) for one in tried for p in (*(f.p for f in one.fits), one.p))
    assert line.tested[0].p_holm == pytest.approx(count * line.tested[0].p), "the smallest is multiplied by all"
    # Hypergeometric tail on both sides for 17 of 27 against 2 of 21.
    ways = [math.comb(27, a) * math.comb(21, 19 - a) for a in range(20)]
    assert line.p == pytest.approx(sum(w for w in ways if w <= ways[17]) / math.comb(48, 19), rel=1e-9)


def test_most_differences_of_the_paper_are_below_what_their_prompts_can_tell() -> None:
    (section,) = audit_claims.power(read_csv(PAPER / "table1.csv"), Settings())
    rows = {row[0]: row for row in section.rows}
    assert rows["evol_instruct"][1:7] == ("218", "21", "+0.09", "+3.45", "7.6", "21 of 21")
    assert rows["alpacaeval"][5] == "3.9"
    assert rows["ultrafeedback"][5:7] == ("2.5", "18 of 21")
    assert rows["avg"][1] == "805+218+2000"
    assert "63 of 63 benchmark differences are above 0" in said([section])


def test_numbers_that_stand_in_two_blocks_are_listed_neutrally() -> None:
    found = said(audit_claims.repeats(read_csv(PAPER / "table1.csv"), Settings()))
    assert "ultrafeedback 58.18, one method in several blocks: Qwen2-7B-Inst -> Qwen2-1.5B, DistiLLM; Mistral" in found
    assert "ultrafeedback 57.74" in found
    assert "3 pairs of equal numbers" in found


# --- planted slips --------------------------------------------------------------------------------------------------


def test_a_planted_difference_and_a_planted_average_are_caught_and_named(tmp_path: Path) -> None:
    lines = (PAPER / "table1.csv").read_text().splitlines()
    for old, new in (
        ("0.88,1.12,0.87,0.96", "0.88,1.15,0.87,0.96"),
        ("42.51,16.74,26.60,28.62", "42.51,16.74,26.60,28.64"),
    ):
        lines = [line.replace(old, new) for line in lines]
    printed = table(tmp_path, "\n".join(lines))
    assert [found.where for found in differences(printed) if found.fails] == [
        "Qwen2-7B-Inst -> Qwen2-1.5B, GKD + SelecTKD"
    ]
    assert [found.where for found in averages(printed) if found.fails] == [
        "Gemma-2-9B-Inst -> Gemma-2-2B, Student before"
    ]
    (section,) = audit.arithmetic(printed, Settings())
    assert [row[-1] for row in section.rows[1:]] == ["1", "1"]
    assert "delta_evol_instruct is printed as 1.15, but its cells give 1.1200" in said([section])


@pytest.mark.parametrize(
    ("delta", "exact", "fails"),
    [
        ("1.00", True, False),
        ("1.01", False, False),
        ("0.99", False, False),
        ("1.02", False, True),
        ("0.98", False, True),
    ],
)
def test_a_difference_may_be_off_by_what_its_three_roundings_explain(
    tmp_path: Path, delta: str, exact: bool, fails: bool
) -> None:
    # 50.00 and 51.00 stand for 0.99 to 1.01 between them; printed with two decimals that is 0.985 to 1.015.
    printed = table(tmp_path, f"{HEAD}P,A,,60.00,50.00,55.00,\nP,A + x,A,61.00,51.00,56.00,{delta}\n")
    (found,) = differences(printed)
    assert (found.exact, found.fails) == (exact, fails)


@pytest.mark.parametrize(("average", "exact"), [("55.00", True), ("55.01", True), ("55.02", False), ("54.99", False)])
def test_a_half_may_be_rounded_either_way_in_an_average(tmp_path: Path, average: str, exact: bool) -> None:
    (found,) = averages(table(tmp_path, f"{HEAD}P,A,,60.00,50.01,{average},\n"))  # the mean is 55.005
    assert found.exact is exact


def test_a_base_that_is_not_there_is_said(tmp_path: Path) -> None:
    printed = table(tmp_path, f"{HEAD}P,A,,60.00,50.00,55.00,\nP,A + x,B,61.00,51.00,56.00,1.00\n")
    assert differences(printed) == []
    assert "P, A + x names a base method that its block does not hold" in said(audit.arithmetic(printed, Settings()))


def test_rows_of_two_tables_with_the_same_words_must_agree(tmp_path: Path) -> None:
    other = (PAPER / "table6.csv").read_text().replace("42.98", "42.89")
    (tmp_path / "t.csv").write_text(other)
    tables = [read_csv(PAPER / "table4.csv"), read_csv(tmp_path / "t.csv")]
    found = said(audit_claims.across(tables))
    assert "12 of 13 shared numbers are equal" in found
    assert "SelecTKD (G), top-k, k 3, beta 0.01, avg_win_rate: 42.98 in table4.csv; 42.89 in t.csv" in found


# --- grids ----------------------------------------------------------------------------------------------------------


@given(
    rule=st.sampled_from(sorted(RULES)),
    n=st.integers(1, 300),
    seeds=st.integers(1, 3),
    digits=st.integers(0, 4),
    percent=st.booleans(),
    up=st.booleans(),
    data=st.data(),
)
def test_a_rate_of_real_counts_lies_on_the_grid_of_its_rule_however_halves_are_rounded(
    rule: str, n: int, seeds: int, digits: int, percent: bool, up: bool, data: st.DataObject
) -> None:
    grid = Grid(RULES[rule], n, seeds)
    if grid.rule.open:
        wins = data.draw(st.integers(0, grid.most))
        losses = data.draw(st.integers(0 if wins else 1, max(grid.most - wins, 0 if wins else 1)))
        rate = Fraction(wins, wins + losses)
    else:
        # Verdicts in half wins per prompt, order and seed, added up as a judge's record has them.
        halves = 1 if grid.rule.step == 1 else 2
        orders = grid.rule.step // halves
        points = data.draw(st.integers(0, n * seeds * orders * halves))
        rate = Fraction(points, halves) / (n * seeds * orders)
    units = rate * (100 if percent else 1) * 10**digits
    printed = (units + Fraction(1, 2)).__floor__() if up else -((Fraction(1, 2) - units).__floor__())
    assert on_grid(Fraction(printed, 10**digits), grid, digits, percent)


@pytest.mark.parametrize("rule", sorted(RULES))
@pytest.mark.parametrize(("n", "digits"), [(7, 1), (16, 1), (40, 2), (3, 0)])
def test_the_reachable_share_is_that_of_the_printable_values_on_the_grid(rule: str, n: int, digits: int) -> None:
    grid = Grid(RULES[rule], n, 1)
    values = [Fraction(v, 10**digits) for v in range(100 * 10**digits + 1)]
    assert reachable(grid, digits) == pytest.approx(np.mean([on_grid(value, grid, digits) for value in values]))


def test_halves_go_both_ways_and_no_further() -> None:
    grid = Grid(RULES["accuracy"], 8, 1)  # 1/8 = 12.5 %
    assert [v for v in range(101) if on_grid(Fraction(v), grid, 0)][:5] == [0, 12, 13, 25, 37]
    assert reachable(Grid(RULES["accuracy"], 218, 1), 2) == 219 / 10001


def test_a_value_that_is_not_printed_so_or_no_rate_is_on_no_grid() -> None:
    grid = Grid(RULES["accuracy"], 4, 1)
    assert not on_grid(Fraction("100.01"), grid, 2)
    assert not on_grid(Fraction("-0.01"), grid, 2)
    assert not on_grid(Fraction("25.001"), grid, 2)
    assert on_grid(Fraction("0.25"), grid, 2, percent=False)


def test_the_nearest_counts_stand_on_either_side() -> None:
    assert [k for _, k in nearest(Fraction("53.65"), Grid(RULES["accuracy"], 164, 1))] == [87, 88]


def test_where_nearly_every_value_can_be_reached_nothing_is_counted(tmp_path: Path) -> None:
    printed = table(tmp_path, "method,ultrafeedback\nA,12.34\nB,56.78\n")
    tried, silent = tries(printed, Settings(protocol="ties-excluded"))
    assert tried == []
    assert all(share > 0.99 for *_, share in silent)
    assert "the grid says nothing: one order, ties excluded" in said(
        rounding_grid(printed, Settings(protocol="ties-excluded"))
    )


def test_a_share_is_read_as_a_share_and_known_sizes_can_be_replaced(tmp_path: Path) -> None:
    printed = table(tmp_path, "method,gsm8k\nA,0.25\nB,0.50\nC,0.33\n")
    found = counted(printed, "gsm8k", Grid(RULES["accuracy"], 4, 1))
    assert found["all rows"][:2] == (2, 3)
    tried, _ = tries(printed, Settings(sizes={"gsm8k": (4,)}, seeds=(1,)))
    assert [line.grid.n for line in tried] == [4]


# --- reading --------------------------------------------------------------------------------------------------------


def test_the_two_layouts_give_the_same_table(tmp_path: Path) -> None:
    wide = table(tmp_path, "pair,method,base_method,gsm8k,math\nP,A,,83.93,41.28\nP,B,A,84.00,41.30\n")
    long = table(
        tmp_path,
        "pair,method,base_method,task,pass_at_1\nP,A,,gsm8k,83.93\nP,B,A,gsm8k,84.00\nP,A,,math,41.28\nP,B,A,math,41.30\n",
    )
    assert wide.lines == long.lines
    assert wide.columns == long.columns == ("gsm8k", "math")


def test_signs_units_and_gaps_of_a_printed_cell_are_understood(tmp_path: Path) -> None:
    printed = table(tmp_path, "method,x,delta_x\nA,59.72 %,—\nB,1.5x,(+2.23)\nC,,−0.10\nD,n/a,-0.1\n")
    assert [dict(line.cells) for line in printed.lines] == [
        {"x": Fraction("59.72")},
        {"x": Fraction("1.5"), "delta_x": Fraction("2.23")},
        {"delta_x": Fraction("-0.1")},
        {"delta_x": Fraction("-0.1")},
    ]
    assert printed.digits == {"x": 2, "delta_x": 2}


def test_lost_trailing_zeros_can_be_told(tmp_path: Path) -> None:
    content = "method,gsm8k,math,avg\nA,60.5,50,55.2\n"
    assert averages(table(tmp_path, content))[0].exact
    assert not averages(table(tmp_path, content, digits=2))[0].exact
    assert averages(table(tmp_path, content, digits=2))[0].fails


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "holds 0 lines"),
        ("method,x\n", "holds 1 lines"),
        ("row,x\nA,1.0\n", "has no column 'method' (found: row, x)"),
        ("method,note\nA,good\n", "has no column of results"),
        ("method,k\nA,5\n", "has no column of results"),
        ("method,x,x\nA,1.0,2.0\n", "different name over every column"),
        ("method,x\nA,1.0,2.0\n", "line 2 has 3 cells under 2 column names"),
        ('method,x\n"A,1.0\n', "is no CSV in UTF-8"),
        ("method,x\nA,1.0\nB,2.0\nC,59;72\n", "line 4: x holds '59;72', which is no number"),
        ("method,x\nA,1.0\nA,2.0\n", "line 3: A has x a second time"),
        ("method,x\nA,1.01234567891\n", "printed with 11 decimals, but at most 9"),
    ],
)
def test_what_is_no_results_table_is_refused_in_one_sentence(tmp_path: Path, content: str, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        table(tmp_path, content)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=200))
def test_any_text_is_a_table_or_an_input_error(tmp_path_factory: pytest.TempPathFactory, content: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(("method,x\n" + content).encode())
    try:
        printed = read_csv(path)
    except InputError:
        return
    for check in audit.CHECKS:
        check(printed, Settings())


@given(st.fractions(min_value=-100, max_value=100), st.integers(0, 6))
def test_an_exact_number_is_spelled_as_python_spells_it(value: Fraction, digits: int) -> None:
    shown = decimal(value, digits)
    assert abs(Fraction(shown) - value) <= Fraction(1, 2 * 10**digits)
    assert len(shown.partition(".")[2]) == digits


# --- our own tables -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", sorted((REPORTS / "tables").rglob("*.json")), ids=lambda path: path.parent.name + path.stem
)
def test_our_own_tables_follow_from_their_own_numbers(path: Path) -> None:
    found = audit_twin.sections(audit_twin.read(path))
    assert all(row[-1] == "0" for section in found for row in section.rows[1:]), said(found)


def planted(tmp_path: Path, change: str, value: object) -> audit_twin.Twin:
    """Table 1's twin with one number of its row "KD + Top-k" changed."""
    content = json.loads((REPORTS / "tables" / "table1.json").read_text())
    cell = next(row["cells"][0] for row in content["blocks"][0]["rows"] if row["label"] == "KD + Top-k")
    *path, last = change.split(".")
    for name in path:
        cell = cell[int(name) if name.isdigit() else name]
    # A mark is turned round, whichever way the table of today has it.
    value = not cell[last] if isinstance(value, bool) else value
    assert cell[last] != value
    cell[last] = value
    (tmp_path / "table1.json").write_text(json.dumps(content))
    return audit_twin.read(tmp_path / "table1.json")


@pytest.mark.parametrize(
    ("check", "change", "value"),
    [
        ("differences and ratios", "delta.value", -1.2),
        ("intervals", "value.low", 99.0),
        ("ratios of counts", "seeds.0.value", 81.7679),
        ("Holm's p-values", "p_holm", 0.5),
        ("marks of best and second", "best", True),
    ],
)
def test_a_number_of_ours_that_was_changed_is_caught(tmp_path: Path, check: str, change: str, value: object) -> None:
    (section,) = audit_twin.sections(planted(tmp_path, change, value))
    failing = {row[0]: row[-1] for row in section.rows[1:]}
    assert failing[check] == "1"
    assert "KD + Top-k" in said([section])


def test_an_average_of_ours_is_the_mean_of_its_columns(tmp_path: Path) -> None:
    def cell(value: float) -> dict[str, object]:
        return {"value": {"value": value, "low": value, "high": value, "n": 4}, "delta": None}

    columns = [{"label": label, "group": "", "better": "higher"} for label in ("a", "b", "AVG")]
    rows = [
        {"label": "right", "ranked": False, "cells": [cell(50.0), cell(75.0), cell(62.5)]},
        {"label": "wrong", "ranked": False, "cells": [cell(50.0), cell(75.0), cell(62.6)]},
        {"label": "partial", "ranked": False, "cells": [cell(50.0), None, cell(50.0)]},
    ]
    path = tmp_path / "table1.json"
    path.write_text(json.dumps({"title": "T", "columns": columns, "blocks": [{"title": "", "rows": rows}]}))
    found = audit_twin.averages(audit_twin.read(path))
    assert found.count == 3
    assert [sentence.split(",")[0] for sentence in found.failures] == ["wrong", "partial"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"title": "t", "columns": [], "blocks": [{}]}', '"x"', "nul"])
def test_json_that_is_no_table_of_ours_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"give the \.json that `table` wrote"):
        audit_twin.read(path)


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_prints_lines_of_a_terminals_width_and_writes_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(path) for path in sorted(PAPER.glob("table*.csv"))]
    assert main(["audit", *files, "--out", str(tmp_path / "audit.md")]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 120
    page = (tmp_path / "audit.md").read_text()
    assert "| evol\\_instruct | no base | k/872 | both orders, half ties, n = 218 | 17 of 27 | 2.4 |" in page
    assert page.count("## ") >= 5


def test_the_committed_audit_is_what_the_command_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPORTS.parent)
    files = tuple(Path("reports/paper") / f"table{number}.csv" for number in range(1, 7))
    assert audit.page(audit.audit(AuditOptions(files=files))) == (PAPER / "audit.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "at least one"),
        (["nowhere.csv"], "cannot read nowhere.csv"),
        (["TABLE", "--n", "evol"], "--n takes COLUMN=NUMBER"),
        (["TABLE", "--n", "evol=0"], "--n takes COLUMN=NUMBER"),
        (["TABLE", "--n", "gsm=5"], "no table has a column 'gsm'"),
        (["TABLE", "--digits", "1"], "printed with 2 decimals, but --digits 1"),
        (["TABLE", "--digits", "10"], "--digits is the count"),
        (["TABLE", "--seeds", "0"], "--seeds"),
        (["TABLE", "--sd", "0"], "--sd"),
    ],
)
def test_a_request_that_cannot_be_met_ends_with_2_and_one_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", *(str(PAPER / "table1.csv") if word == "TABLE" else word for word in words)]) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_one_rule_and_given_sizes_are_all_that_is_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--protocol", "both-orders", "--n", "Evol-Instruct=218", "--seeds", "1"]
    assert main(["audit", str(PAPER / "table1.csv"), *words]) == 0
    shown = capsys.readouterr().out
    assert "17/27 (2.4)" in shown
    assert "one order" not in shown
    assert "3 seeds" not in shown


def test_findings_are_no_errors_and_a_hostile_name_stays_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["method", "gsm8k", "math", "avg"], ["\x1b[2J|<b>", "50.00", "60.00", "99.00"]])
    assert main(["audit", str(path), "--out", str(tmp_path / "a.md")]) == 0
    shown = capsys.readouterr().out
    assert "avg is printed as 99.00, but its cells give 55.0000" in " ".join(shown.split())
    assert "\x1b" not in shown
    assert "<b>" not in (tmp_path / "a.md").read_text().replace("\\<b\\>", "")


def test_help_loads_no_scipy() -> None:
    code = "import sys\nfrom selectkd_eval.cli import main\ntry: main(['audit', '--help'])\nexcept SystemExit: pass\n"
    code += "print({'scipy', 'numpy'} & set(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "set()"
