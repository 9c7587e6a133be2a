"""Tables: the numbers are those of the rows, and each format spells them safely."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import record_factory as make
from rewriting import rewrite

from analysis import tables, writers
from analysis.load import Library, Method, library
from analysis.table_ir import Block, Cell, Column, Row, Table, finish, number, signed
from selectkd_eval.errors import InputError
from selectkd_eval.stats import Estimate
from selectkd_eval.verbs import TableOptions

PAPER = Path(__file__).resolve().parents[1] / "reports" / "paper"
NASTY = r"[x] KD_50% & #1 {$x^2$} ~ \ <b>|*`" + "\r\n\u2028\x00"


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return library(make.everything(tmp_path_factory.mktemp("records"), n=40))


def estimate(value: float, half: float = 1.0) -> Estimate:
    return Estimate(value, value - half, value + half, 10, "by hand")


def small(*rows: Row, better: str = "higher") -> Table:
    return Table("t", "Table 1. T.", "caption", (Column("x", better=better),), (Block("", rows),))  # type: ignore[arg-type]


def row(table: Table, label: str) -> Row:
    return next(r for block in table.blocks for r in block.rows if r.label == label)


def test_pass_rates_and_differences_are_those_of_the_rows(full: Library) -> None:
    table = tables.build(2, full, 300)
    gate = row(table, "KD + Spec-k").cells[0]
    by_seed = {
        method: {
            r.facts["model"]["seed"]: 100 * sum(x["correct"] for x in r.rows) / len(r.rows)
            for r in full.of("passk")
            if r.facts["model"]["method"] == method
        }
        for method in ("KD", "KD + Spec-k")
    }
    means = {method: sum(values.values()) / 3 for method, values in by_seed.items()}
    assert gate.value is not None
    assert gate.delta is not None
    assert gate.value.value == pytest.approx(means["KD + Spec-k"])
    assert gate.delta.value == pytest.approx(means["KD + Spec-k"] - means["KD"])
    assert dict(gate.seeds) == pytest.approx(by_seed["KD + Spec-k"])
    assert gate.value.n == 40, "three seeds of one problem are one unit"


def test_a_variant_stands_behind_the_method_that_it_varies() -> None:
    rows = [Method("AdaKD"), Method("GKD"), Method("KD (code)"), Method("A new one"), Method("KD")]
    assert [row.label for row in sorted(rows, key=lambda row: row.order)] == [
        *("KD", "KD (code)", "GKD", "AdaKD", "A new one")
    ]


def test_rows_stand_in_the_papers_order(full: Library) -> None:
    table = tables.build(2, full, 50)
    labels = [r.label for r in table.blocks[0].rows]
    assert labels == ["Teacher", "Student before", "SFT-control", "KD", "KD + Top-k", "KD + Spec-k"]
    assert [r.indent for r in table.blocks[0].rows] == [False] * 4 + [True] * 2


def test_the_teacher_does_not_compete(full: Library) -> None:
    table = tables.build(2, full, 50)
    assert not row(table, "Teacher").cells[0].best
    assert sum(r.cells[0].best for r in table.blocks[0].rows) == 1


def test_equal_at_printed_precision_is_equally_best() -> None:
    rows = [Row(str(v), (Cell(estimate(v)),)) for v in (50.001, 50.004, 49.0, 10.0)]
    cells = [r.cells[0] for r in finish(small(*rows)).blocks[0].rows]
    assert [c.best for c in cells] == [True, True, False, False]
    assert [c.second for c in cells] == [False, False, True, False]


def test_lower_can_be_better() -> None:
    table = finish(small(Row("a", (Cell(estimate(1)),)), Row("b", (Cell(estimate(2)),)), better="lower"))
    assert [r.cells[0].best for r in table.blocks[0].rows] == [True, False]


def test_a_missing_number_is_a_dash_in_every_format() -> None:
    table = finish(small(Row("a", (Cell(),)), Row("b", (Cell(estimate(float("nan"))),))))
    assert writers.markdown(table).count("—") == 2
    assert writers.html(table).count("—") == 2
    assert writers.latex(table).count("---") == 2
    assert "nan" not in (writers.markdown(table) + writers.html(table) + writers.latex(table)).lower()
    assert json.loads(writers.twin(table))["blocks"][0]["rows"][0]["cells"] == [None]


def test_marks_say_whether_a_difference_is_settled() -> None:
    sure, unsure = estimate(5, 1), estimate(0.09, 1)
    rows = [Row("a", (Cell(estimate(60), delta=sure, p=0.001),)), Row("b", (Cell(estimate(50), delta=unsure, p=0.8),))]
    text = writers.markdown(finish(small(*rows)))
    assert r"**60.00** (+5.00)\* " in text
    assert "<u>50.00</u> (+0.09)° " in text


def test_holm_is_over_the_whole_block() -> None:
    delta = estimate(5, 1)
    rows = [Row(str(i), (Cell(estimate(i), delta=delta, p=0.02),)) for i in range(3)]
    table = finish(small(*rows))
    assert [r.cells[0].p_holm for r in table.blocks[0].rows] == pytest.approx([0.06] * 3)
    assert r"\*" not in writers.markdown(table), "each alone would have held"


def test_rounding_to_nothing_has_no_sign() -> None:
    assert number(-0.001, 2) == "0.00"
    assert signed(-0.001, 2) == "0.00"
    assert signed(2.234, 2) == "+2.23"
    assert signed(-2.234, 2) == "−2.23"


def test_a_models_name_is_data_in_every_format() -> None:
    table = finish(small(Row(NASTY, (Cell(estimate(1)),))))
    assert "<b>" not in writers.html(table)
    assert "&lt;b&gt;" in writers.html(table)
    body = writers.markdown(table).splitlines()[4]
    assert body.replace(r"\|", "").count("|") == 3, "a bar in a name must not open a column"
    assert r"KD\_50\% \& \#1 \{\$x\textasciicircum{}2\$\}" in writers.latex(table)


def test_the_twin_has_full_precision_and_its_records(full: Library) -> None:
    table = tables.build(2, full, 50)
    twin = json.loads(writers.twin(table))
    cell = next(r for r in twin["blocks"][0]["rows"] if r["label"] == "KD")["cells"][0]
    value = row(table, "KD").cells[0].value
    assert value is not None
    assert cell["value"]["value"] == value.value
    assert len(cell["records"]) == 3
    assert {seed["seed"] for seed in cell["seeds"]} == {0, 1, 2}


def test_the_same_records_give_the_same_bytes(full: Library) -> None:
    again = library(full.records[0].path.parent)
    for n in (1, 2, 4, 5, 6):
        one, two = (tables.build(n, lib, 200) for lib in (full, again))
        for writer in (writers.markdown, writers.latex, writers.html, writers.twin):
            assert writer(one) == writer(two)


def test_a_likelihood_judge_is_called_one(full: Library) -> None:
    for n in (1, 4):
        assert "not a human or LLM preference" in writers.markdown(tables.build(n, full, 50))


def test_the_ablation_shows_verifier_k_and_beta(full: Library) -> None:
    table = tables.build(4, full, 50)
    assert [cell.text for cell in row(table, "KD + Spec-k").cells[:3]] == ["Non-greedy Spec-k", "5", "0.01"]
    assert [cell.text for cell in row(table, "KD").cells[:3]] == ["None", "–", "1"]


def test_two_set_ups_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for k in (3, 5):
        make.passk(tmp_path, make.card("KD + Top-k", 0, k=k) | {"name": f"s{k}"}, n=10)
    labels = [r.label for r in tables.build(2, library(tmp_path), 50).blocks[0].rows]
    assert labels == ["KD + Top-k (k=3)", "KD + Top-k (k=5)"]


def test_seeds_trained_at_other_learning_rates_are_not_pooled(tmp_path: Path) -> None:
    for seed, lr in ((0, 1e-3), (1, 1e-4)):
        make.passk(tmp_path, make.card("KD", seed, lr=lr), n=10)
    labels = [r.label for r in tables.build(2, library(tmp_path), 50).blocks[0].rows]
    assert labels == ["KD (lr=0.0001)", "KD (lr=0.001)"]


def test_seeds_trained_with_other_constants_or_another_variant_are_not_pooled(tmp_path: Path) -> None:
    for seed, share in ((0, 0.5), (1, 1.0)):
        constants = {"base": 200.0, "lambda": share}
        card = make.card("GKD", seed, recipe="gkd", parameters={"beta_jsd": 0.5}, constants=constants)
        make.passk(tmp_path, card, n=10, skill=0.5)
    for seed, variant in ((0, ""), (1, "code")):
        make.passk(tmp_path, make.card("Ours", seed, recipe="adakd", variant=variant), n=10, skill=0.5)
    labels = [r.label for block in tables.build(2, library(tmp_path), 50).blocks for r in block.rows]
    assert labels == ["GKD (constant lambda=0.5)", "GKD (constant lambda=1.0)", "Ours", "Ours (variant=code)"]


def test_two_students_of_one_seed_are_not_pooled(tmp_path: Path) -> None:
    one = make.card("KD", 0)
    make.passk(tmp_path, one | {"name": "first"}, n=10)
    make.passk(tmp_path, one | {"name": "second", "fingerprint": "other"}, n=10)
    labels = [r.label for r in tables.build(2, library(tmp_path), 50).blocks[0].rows]
    assert labels == ["KD (first)", "KD (second)"]


def test_two_students_of_one_directory_name_are_not_pooled(tmp_path: Path) -> None:
    one = make.card("KD", 0)
    make.passk(tmp_path, one | {"name": "first/final"}, n=10)
    make.passk(tmp_path, one | {"name": "second/final", "fingerprint": "other"}, n=10)
    found = tables.build(2, library(tmp_path), 50).blocks[0].rows
    assert [len(r.cells[0].records) for r in found] == [1, 1]
    assert len({r.label for r in found}) == 2


def test_a_checkpoint_is_not_its_final_student_and_its_gate_is_held_against_the_same_step(tmp_path: Path) -> None:
    for method in ("KD", "KD + Top-k"):
        for step in (None, 10):
            kept = {} if step is None else {"step": step}
            student = make.card(method, 0, **kept)
            make.passk(tmp_path, student | {"name": f"{method}{step}"}, n=20, skill=0.4 if step else 0.8)
    table = tables.build(2, library(tmp_path), 100)
    early = row(table, "KD + Top-k (step=10)").cells[0]
    base = row(table, "KD (step=10)").cells[0]
    assert early.value is not None
    assert base.value is not None
    assert early.delta is not None
    assert early.delta.value == pytest.approx(early.value.value - base.value.value)
    late, final = (row(table, label).cells[0] for label in ("KD + Top-k", "KD"))
    assert late.value is not None
    assert final.value is not None
    assert late.delta is not None
    assert late.delta.value == pytest.approx(late.value.value - final.value.value)


@pytest.mark.parametrize(
    ("fact", "other"),
    [
        ('"kind":"likelihood"', '"kind":"likelihood","tie_band":0.5'),
        ('"kind":"likelihood"', '"kind":"likelihood","model":{"fingerprint":"other"}'),
        (make.digest("stories"), make.digest("other stories")),
        ('"judge":{', '"generation":{"candidate":{"temperature":0.8}},"judge":{'),
    ],
    ids=["another tie band", "another judge's weights", "other prompts", "another decoding"],
)
def test_another_judge_or_decoding_is_another_column(tmp_path: Path, fact: str, other: str) -> None:
    make.winrate(tmp_path, make.card("KD", 0), make.card("Start"), n=10)
    record = make.winrate(tmp_path, make.card("KD", 1), make.card("Start"), n=10)
    rewrite(record.path, record.path.read_text().replace(fact, other))
    assert len(tables.build(1, library(tmp_path), 50).columns) == 3, "two win rates and their average"


def test_other_prompts_are_another_column(tmp_path: Path) -> None:
    make.passk(tmp_path, make.card("KD", 0), n=10)
    make.passk(tmp_path, make.card("KD + Top-k", 0), n=12)
    table = tables.build(2, library(tmp_path), 50)
    assert [column.label for column in table.columns] == ["mini-gsm (n 10)", "mini-gsm (n 12)", "AVG"]
    assert row(table, "KD + Top-k").cells[1].delta is None
    assert not row(table, "KD").cells[2].present, "an average needs every column"


def test_an_average_is_the_mean_of_its_columns(tmp_path: Path) -> None:
    for method in ("KD", "KD + Top-k"):
        for task, skill in (("mini-gsm", 0.8), ("gsm8k", 0.3)):
            make.passk(tmp_path, make.card(method, 0), n=20, skill=skill, task=task)
    cells = row(tables.build(2, library(tmp_path), 100), "KD + Top-k").cells
    values = [cell.value.value for cell in cells if cell.value]
    assert values[2] == pytest.approx((values[0] + values[1]) / 2)


@pytest.mark.parametrize(("asked", "said"), [(3, "vision-language"), (9, "no table 9")])
def test_tables_that_are_not_ours(full: Library, asked: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        tables.build(asked, full, 50)


def test_a_table_without_its_records_says_what_to_run(tmp_path: Path) -> None:
    make.passk(tmp_path, make.card("KD", 0), n=5)
    with pytest.raises(InputError, match=r"winrate records.*of passk only"):
        tables.build(1, library(tmp_path), 50)


def test_an_unfinished_record_is_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make.passk(tmp_path, make.card("KD", 0), n=5)
    torn = make.passk(tmp_path, make.card("KD", 1), n=5).path
    torn.write_text("".join(torn.read_text().splitlines(keepends=True)[:-1]))
    found = library(tmp_path)
    assert found.unfinished == [torn]
    assert torn.name in capsys.readouterr().err
    assert len(found.records) == 1


def test_no_records_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no finished record"):
        library(tmp_path)
    with pytest.raises(InputError, match="no directory"):
        library(tmp_path / "absent")


def test_the_verb_writes_four_files_and_prints_markdown(
    full: Library, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables.run(TableOptions(number=2, records=full.records[0].path.parent, out=tmp_path / "t", resamples=50))
    names = sorted(p.name for p in (tmp_path / "t").iterdir())
    assert names == ["table2.html", "table2.json", "table2.md", "table2.tex"]
    assert capsys.readouterr().out == (tmp_path / "t" / "table2.md").read_text()


def rows_of(name: str) -> list[dict[str, str]]:
    with (PAPER / name).open() as file:
        return list(csv.DictReader(file))


def test_the_papers_table_1_adds_up() -> None:
    rows = rows_of("table1.csv")
    assert len(rows) == 48
    sets = ("alpacaeval", "evol_instruct", "ultrafeedback")
    values = {(r["pair"], r["method"]): r for r in rows}
    for r in rows:
        assert float(r["avg"]) == pytest.approx(sum(float(r[s]) for s in sets) / 3, abs=0.0051)
        for column in (*sets, "avg"):
            if r["base_method"]:
                base = values[r["pair"], r["base_method"]]
                assert float(r[column]) - float(base[column]) == pytest.approx(float(r[f"delta_{column}"]), abs=1e-9)


def test_the_papers_table_2_averages() -> None:
    cells: dict[tuple[str, str], dict[str, float]] = {}
    for r in rows_of("table2.csv"):
        cells.setdefault((r["pair"], r["method"]), {})[r["task"]] = float(r["pass_at_1"])
    assert len(cells) == 32
    for found in cells.values():
        average = found.pop("avg")
        assert average == pytest.approx(sum(found.values()) / 2, abs=0.0051)


def test_the_papers_ablation_agrees_with_itself() -> None:
    """Table 6 repeats every row of Table 4, and k = 5, beta = 0.01 is Table 1's KD + SelecTKD."""
    short, long = ({tuple(r.values()) for r in rows_of(name)} for name in ("table4.csv", "table6.csv"))
    assert short < long
    assert len(long) == 16
    best = max(rows_of("table6.csv"), key=lambda r: float(r["avg_win_rate"]))
    table1 = next(r for r in rows_of("table1.csv") if r["method"] == "KD + SelecTKD")
    assert (best["verifier"], best["k"], best["beta"]) == ("spec-k", "5", "0.01")
    assert best["avg_win_rate"] == table1["avg"]
