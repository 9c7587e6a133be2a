"""Table 5 prints every acceptance under its name, ratios as ratios, what explains them, and the paper's own numbers."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import record_factory as make
from rewriting import rewrite

from analysis import paper, tables, writers
from analysis.load import Library, library
from analysis.speed_explanation import companions
from analysis.table_ir import Cell, Row, Table
from selectkd_eval import speeds
from selectkd_eval.errors import InputError
from selectkd_eval.stats import Estimate
from selectkd_eval.verbs import TableOptions

RESAMPLES = 200
PRINTED = Path(__file__).parents[1] / "reports" / "paper"


@pytest.fixture(scope="module")
def drafts(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The undistilled student and two distilled ones, on two tasks."""
    where = tmp_path_factory.mktemp("records")
    make.train(where, make.card("KD", 0), steps=2, every=1)
    cards = [make.card("Start"), make.card("KD", 0), make.card("KD + Spec-k", 0)]
    make.speedup(where, cards, n=20, tasks=("mini-gsm", "mini-stories"))
    return library(where)


@pytest.fixture(scope="module")
def table(drafts: Library) -> Table:
    return tables.build(5, drafts, RESAMPLES)


def cell(table: Table, row: Row, label: str) -> Cell:
    return row.cells[[column.label for column in table.columns].index(label)]


def test_every_number_stands_under_its_own_name(table: Table) -> None:
    assert [column.label for column in table.columns] == [
        "Speed-up",
        "Decode only",
        "mini-gsm",
        "mini-stories",
        "Predicted",
        "accepted / tested",
        "accepted / drafted",
        "tokens per target call",
    ]
    assert [row.label for row in table.blocks[0].rows] == ["Student before", "KD", "KD + Spec-k"]
    assert all(len(row.cells) == len(table.columns) for block in table.blocks for row in block.rows)
    assert all(one.present for block in table.blocks for row in block.rows for one in row.cells)


def test_the_cells_are_the_records_own_numbers(drafts: Library, table: Table) -> None:
    (record,) = drafts.of("speedup")
    row, arm = table.blocks[0].rows[1], speeds.Arm(1, 3)
    whole = speeds.speedup(record.rows, arm)
    shares = {task: speeds.speedup(record.rows, arm, task=task) for task in ("mini-gsm", "mini-stories")}
    wanted = {"Speed-up": whole, "Decode only": speeds.speedup(record.rows, arm, "decode"), **shares}
    wanted |= {speeds.ACCEPTANCE[name][2]: speeds.acceptance(record.rows, arm, name) for name in ("alpha", "block")}
    for label, terms in wanted.items():
        assert cell(table, row, label).value == terms.estimate(RESAMPLES)
    assert sum(len(terms.prompts) for terms in shares.values()) == len(whole.prompts) == 20


def test_a_speed_up_is_compared_by_its_ratio_to_the_reference(table: Table) -> None:
    assert table.blocks[0].title.endswith("γ = 3, ratios to Student before")
    start, kd, _ = table.blocks[0].rows
    assert start.cells[0].delta is None
    one = kd.cells[0]
    assert one.delta is not None and one.value is not None and start.cells[0].value is not None
    assert one.delta.value == pytest.approx(one.value.value / start.cells[0].value.value)
    assert f" (×{one.delta.value:.2f})" in [span.text for span in one.spans()]
    assert one.p <= one.p_holm < 0.05
    assert "*" in [span.text for span in one.spans()]


@pytest.mark.parametrize(("limits", "mark"), [((0.95, 1.2), "°"), ((1.05, 1.2), "*"), ((0.7, 0.9), "*")], ids=str)
def test_a_ratio_is_unsure_where_its_interval_contains_1(limits: tuple[float, float], mark: str) -> None:
    value, delta = Estimate(1.5, 1.4, 1.6, 9, "m"), Estimate(sum(limits) / 2, *limits, 9, "m")
    spans = Cell(value, delta=delta, p_holm=0.01, ratio=True, prefix="×").spans()
    assert [span.text for span in spans if span.style == "mark"] == [mark]
    difference = Cell(value, delta=delta, p_holm=0.01).spans()
    assert [span.text for span in difference if span.style == "mark"] == ["*"], "none of these intervals contains 0"


def test_the_twin_says_which_deltas_are_ratios(table: Table) -> None:
    twin = json.loads(writers.twin(table))
    rows = twin["blocks"][0]["rows"]
    assert [row["cells"][0].get("ratio") for row in rows] == [None, True, True]


def test_a_number_without_an_interval_prints_none() -> None:
    spans = Cell(Estimate(1.25, math.nan, math.nan, 0, "computed"), prefix="×").spans()
    assert [span.text for span in spans] == ["×1.25"]


def test_notes_tell_the_gate_the_clock_the_best_length_and_what_goes_with_what(table: Table) -> None:
    notes = "\n".join(table.notes)
    assert "KD: text identical to plain decoding on 20 prompts, a numerical tie on 0, changed on 0" in notes
    assert "of γ = 1 to 5, 5 is predicted to be the fastest" in notes
    assert "Plain decoding timed twice gives ×" in notes
    assert "correlation with tokens per target call over 3 drafts at γ = 5" in notes
    assert "engine reference" in table.blocks[0].title


def test_what_an_engine_does_not_tell_is_a_dash(tmp_path: Path) -> None:
    make.speedup(tmp_path, make.card("KD", 0), engine="vllm", batches=(4,), text=False)
    made = tables.build(5, library(tmp_path), RESAMPLES)
    (row,) = made.blocks[0].rows
    assert cell(made, row, "Speed-up").present
    assert [cell(made, row, label).spans()[0].text for label in ("Decode only", "Predicted")] == ["—", "—"]
    assert companions(library(tmp_path), RESAMPLES) == [], "only single texts are explained"


def test_a_draft_that_changed_the_text_has_words_and_no_number(tmp_path: Path) -> None:
    make.speedup(tmp_path, make.card("KD", 0), violation=True)
    made = tables.build(5, library(tmp_path), RESAMPLES)
    for block in made.blocks:
        assert [one.spans()[0].text for one in block.rows[0].cells] == ["text changed", *"—" * (len(made.columns) - 1)]
    assert "changed on 1" in " ".join(made.notes)
    assert companions(library(tmp_path), RESAMPLES) == []


def test_the_explanation_multiplies_out(drafts: Library) -> None:
    """Leviathan's value times the three factors is the measured speed-up."""
    _, why = companions(drafts, RESAMPLES)
    for block in why.blocks:
        for row in block.rows:
            values = [one.value.value for one in row.cells if one.value]
            assert len(values) == len(why.columns)
            leviathan, measured, factors = values[6], values[9], values[10:13]
            assert leviathan * math.prod(factors) == pytest.approx(measured)
            assert values[8] == pytest.approx(measured, rel=0.1), "the prediction knows the costs that made the rows"


def test_no_acceptance_goes_without_its_name(drafts: Library) -> None:
    accepted, _ = companions(drafts, RESAMPLES)
    (record,) = drafts.of("speedup")
    assert len({(column.group, column.label) for column in accepted.columns}) == len(accepted.columns) == 11
    row, arm = accepted.blocks[1].rows[1], speeds.Arm(1, 5)
    assert row.label == "KD, seed 0"
    named = zip(accepted.columns, row.cells, strict=True)
    values = {(column.group, column.label): one.value.value for column, one in named if one.value}
    for name in ("alpha", "block", "share", "tokens", "accepted"):
        label = speeds.ACCEPTANCE[name][2]
        assert values["In the runs", label] == speeds.acceptance(record.rows, arm, name).value
    text = [value for (group, _), value in values.items() if group != "In the runs"]
    assert text == [speeds.text(record.rows, 1, name).value for name in ("agreement", "top5", "overlap")]
    positions = speeds.positions(record.rows, arm, resamples=1)
    assert row.cells[-2].text == " ".join(f"{place.survival.value:.2f}" for place in positions)
    assert row.cells[-1].text == " ".join(f"{place.conditional.value:.2f}" for place in positions)
    assert len(positions) == 5


def test_the_verb_writes_the_explanation_beside_the_table(
    drafts: Library, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables.run(TableOptions(number=5, records=drafts.records[0].path.parent, out=tmp_path, resamples=50))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        f"{name}.{form}"
        for name in ("table5-acceptance", "table5-explained", "table5")
        for form in ("html", "json", "md", "tex")
    ]
    texts = [(tmp_path / f"{name}.md").read_text() for name in ("table5", "table5-acceptance", "table5-explained")]
    assert capsys.readouterr().out == "\n".join(texts)


# ---- the paper's own numbers ------------------------------------------------------------


def test_published_rows_that_nothing_here_matches_stand_in_blocks_of_their_own(drafts: Library) -> None:
    made = tables.build(5, drafts, RESAMPLES, paper=True)
    ours = len(tables.build(5, drafts, RESAMPLES).blocks)
    assert [block.title for block in made.blocks[ours:]] == [
        "Published, target Phi-3-medium, draft Llama-68m",
        "Published, target Phi-3.5-mini, draft Llama-68m",
    ]
    assert all(len(row.cells) == len(made.columns) for block in made.blocks for row in block.rows)
    first = made.blocks[ours].rows[0]
    assert (first.label, [one.text for one in first.cells[-2:]]) == ("SFT", ["×1.32", "0.412"])
    assert not any(one.present for one in first.cells)
    assert not any(row.cells[-1].text for block in made.blocks[:ours] for row in block.rows)
    assert "neither draft length nor prompts" in " ".join(made.notes)


def test_the_same_target_draft_and_method_stand_in_one_row(tmp_path: Path) -> None:
    card = make.card("SFT", 0) | {"name": "JackFram/llama-68m"}
    record = make.speedup(tmp_path, [card, make.card("GKD", 0)])
    text = record.path.read_text().replace("embedded:teacher", "microsoft/Phi-3-medium-4k-instruct")
    rewrite(record.path, text)
    made = tables.build(5, library(tmp_path), RESAMPLES, paper=True)
    sft, gkd = made.blocks[0].rows
    assert [one.text for one in sft.cells[-2:]] == ["×1.32", "0.412"]
    assert [one.text for one in gkd.cells[-2:]] == ["", ""], "another draft model"
    left = [row.label for block in made.blocks if block.title.startswith("Published") for row in block.rows]
    assert len(left) == 9
    assert left[0] == "GKD"


def test_a_student_is_of_the_model_that_it_was_trained_from(tmp_path: Path) -> None:
    student = make.card("GKD", 0, start=make.card("Start")["fingerprint"])
    train = make.train(tmp_path, student)
    record = make.speedup(tmp_path, student)
    for one, name, other in (
        (train, "embedded:student", "JackFram/llama-68m"),
        (record, "embedded:teacher", "microsoft/Phi-3.5-mini-instruct"),
    ):
        rewrite(one.path, one.path.read_text().replace(name, other))
    made = tables.build(5, library(tmp_path), RESAMPLES, paper=True)
    assert [one.text for one in made.blocks[0].rows[0].cells[-2:]] == ["×1.58", "0.443"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("microsoft/Phi-3-medium-4k-instruct", "phi-3-medium"),
        ("Phi-3-medium", "phi-3-medium"),
        ("/models/Llama-68m/", "llama-68m"),
        ("Phi-3.5-mini-instruct", "phi-3.5-mini"),
        ("Qwen2-7B", "qwen2-7b"),
    ],
)
def test_what_describes_a_release_is_no_part_of_a_name(text: str, name: str) -> None:
    assert paper.model_name(text) == name


@pytest.mark.parametrize(
    ("text", "name"), [("DistiLLM-2", "distillm2"), ("KD + Spec-k", "kd+speck"), ("SelecTKD", "selectkd")]
)
def test_a_gate_is_part_of_a_methods_name(text: str, name: str) -> None:
    assert paper.method_name(text) == name


def test_the_published_numbers_are_found_in_an_installed_package_and_in_a_checkout(tmp_path: Path) -> None:
    installed = tmp_path / "analysis" / "published"
    installed.mkdir(parents=True)
    shutil.copy(PRINTED / "table5.csv", installed)
    assert paper.published(5, (installed, tmp_path / "none")) == paper.published(5) != []
    assert paper.published(5, (tmp_path / "none", installed)) == paper.published(5)
    with pytest.raises(InputError, match=r"published numbers are in none of .*none/table5\.csv"):
        paper.published(5, (tmp_path / "none",))
    (installed / "table5.csv").write_text("method,speedup\nSFT,1.3\n")
    with pytest.raises(InputError, match="has the columns method, speedup where the published table has target, draft"):
        paper.published(5, (installed,))
