"""Blocks per teacher-student pair, all rows together, and where intervals stand: by hand and against brute force."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import record_factory as make
from paper_records import Of, model

from analysis import aggregate, tables, writers
from analysis.load import Library, library
from analysis.table_ir import Block, Cell, Ci, Column, Row, Table, finish
from selectkd_eval.measures import Terms
from selectkd_eval.stats import Estimate, holm
from selectkd_eval.verbs import PasskOptions

FORMS: tuple[Ci, ...] = ("inline", "row", "none")
SKILLS = (("KD", 0.5, 0.85), ("KD + Top-k", 0.62, 0.8), ("KD + Spec-k", 0.75, 0.6))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Two teachers of one start; the gate helps the students of the first and harms those of the second."""
    where = tmp_path_factory.mktemp("records")
    for place, of in enumerate((Of(where), Of(where, teacher="Qwen/Qwen2-72B-Instruct"))):
        of.solved(model(of.teacher), "mini-gsm", 60, 0.9)
        for method, *skills in SKILLS:
            of.solved(of.student(method), "mini-gsm", 60, skills[place])
    Of(where).solved(model("Qwen/Qwen2-1.5B"), "mini-gsm", 60, 0.3)
    return library(where)


@pytest.fixture(scope="module")
def table(two: Library) -> Table:
    return tables.build(2, two, 300)


def test_every_pair_is_a_block_with_its_own_teacher_and_the_shared_start(table: Table) -> None:
    assert [block.title for block in table.blocks] == [
        "Qwen2-72B-Instruct → Qwen2-1.5B",
        "Qwen2-7B-Instruct → Qwen2-1.5B",
    ]
    labels = ["Teacher", "Student before", "KD", "KD + Top-k", "KD + Spec-k"]
    assert [[row.label for row in block.rows] for block in table.blocks] == [labels, labels]
    starts = [block.rows[1].cells[0].records for block in table.blocks]
    assert starts[0] == starts[1]
    assert table.blocks[0].rows[0].cells[0].records != table.blocks[1].rows[0].cells[0].records


def test_the_best_is_that_of_its_block(table: Table) -> None:
    best = [[row.label for row in block.rows if row.cells[0].best] for block in table.blocks]
    assert best == [["KD"], ["KD + Spec-k"]]


def test_a_difference_is_to_the_base_of_the_same_pair(table: Table) -> None:
    bases = set()
    for block in table.blocks:
        base, *gates = (row.cells[0] for row in block.rows[2:])
        assert base.value is not None and base.delta is None
        bases.add(base.value.value)
        for cell in gates:
            assert cell.value is not None and cell.delta is not None
            assert cell.delta.value == pytest.approx(cell.value.value - base.value.value)
            assert cell.base == base.value.value
    assert len(bases) == 2, "the two bases are far apart, so that a difference to the wrong one would show"


def test_a_base_that_asks_no_teacher_is_the_base_of_every_teachers_gate(tmp_path: Path) -> None:
    for of, skill in ((Of(tmp_path), 0.8), (Of(tmp_path, teacher="Qwen/Qwen2-72B-Instruct"), 0.6)):
        of.solved(of.student("SFT + Top-k", verifier="top-k"), "mini-gsm", 60, skill)
    alone = Of(tmp_path)
    alone.solved(
        alone.student("SFT") | {"training": {**alone.student("SFT")["training"], "teacher": None}}, "mini-gsm", 60
    )
    table = tables.build(2, library(tmp_path), 300)
    assert len(table.blocks) == 2
    for block in table.blocks:
        base, gate = (row.cells[0] for row in block.rows)
        assert base.value is not None and gate.value is not None and gate.delta is not None
        assert gate.delta.value == pytest.approx(gate.value.value - base.value.value)


def test_the_family_of_holm_is_the_block(table: Table) -> None:
    for block in table.blocks:
        cells = [cell for row in block.rows for cell in row.cells]
        assert [cell.p_holm for cell in cells] == pytest.approx(holm([cell.p for cell in cells]), nan_ok=True)
        tested = [cell for cell in cells if not np.isnan(cell.p)]
        assert len(tested) == 2
        assert min(cell.p_holm for cell in tested) == pytest.approx(min(1, 2 * min(cell.p for cell in tested)))


def terms(correct: np.ndarray, prompts: tuple[str, ...]) -> Terms:
    return Terms(prompts, correct.astype(float), np.ones(len(correct)), proportion=True)


def contrasts() -> list[aggregate.Contrast]:
    """Three differences: two on the same 40 prompts with one base, one on 30 others."""
    draw = np.random.default_rng(3)
    first, second = (tuple(f"{name}{i:02}" for i in range(n)) for name, n in (("a", 40), ("b", 30)))
    rates = [draw.random(len(names)) < rate for names, rate in ((first, 0.5), (first, 0.65), (first, 0.7))]
    rates += [draw.random(30) < rate for rate in (0.5, 0.6)]
    base, top, spec = (terms(correct, first) for correct in rates[:3])
    return [(top, base), (spec, base), (terms(rates[4], second), terms(rates[3], second))]


def test_all_rows_together_are_their_mean_and_resample_shared_prompts_once() -> None:
    found = contrasts()
    result = aggregate.overall(found, 20_000)
    assert result is not None
    by_hand = [a.num.mean() - b.num.mean() for a, b in found]
    assert result.value == pytest.approx(np.mean(by_hand))
    assert result.differences == 3
    draw, means = np.random.default_rng(1), []
    for _ in range(8_000):
        one, other = draw.integers(40, size=40), draw.integers(30, size=30)
        picked = (one, one, other)
        means.append(np.mean([(a.num[i] - b.num[i]).mean() for (a, b), i in zip(found, picked, strict=True)]))
    assert (result.low, result.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.012)
    p = 2 * min(np.mean(np.array(means) <= 0), np.mean(np.array(means) >= 0))
    assert result.p == pytest.approx(p, abs=0.015)
    apart = np.sqrt(sum(np.var(a.num - b.num) / len(a.num) for a, b in found)) / 3
    assert result.high - result.low > 2.2 * 1.96 * apart, "as independent rows they would look surer than they are"


def test_two_sets_of_one_size_do_not_move_together() -> None:
    (top, base), *_ = contrasts()
    apart = tuple(f"z{prompt}" for prompt in top.prompts)  # the same outcomes, on prompts of another name
    widths = []
    for other in (top.prompts, apart):
        again = [terms(side.num, other) for side in (top, base)]
        result = aggregate.overall([(top, base), (again[0], again[1])], 20_000)
        assert result is not None
        widths.append(result.high - result.low)
    assert widths[1] / widths[0] == pytest.approx(2**-0.5, rel=0.05), "a mean of two independent ones is that narrower"


def test_one_difference_is_no_mean_and_no_difference_has_no_small_p() -> None:
    found = contrasts()
    assert aggregate.overall(found[:1], 100) is None
    same = aggregate.overall([(b, b) for _, b in found], 100)
    assert same is not None
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_the_table_says_what_all_rows_say(table: Table) -> None:
    (note,) = (note for note in table.notes if note.startswith("All rows:"))
    deltas = [cell.delta.value for block in table.blocks for row in block.rows for cell in row.cells if cell.delta]
    shown = f"{np.mean(deltas):+.2f}".replace("-", "−")
    assert f"over 4 differences of a gate and its base the mean is {shown} points [" in note


def estimate(value: float) -> Estimate:
    return Estimate(value, value - 1, value + 1, 9, "by hand")


@pytest.mark.parametrize(
    ("value", "base", "said"),
    [
        (50.004, 49.996, "a, x: 50.00 less 50.00, printed +0.01"),
        (50.006, 49.994, "a, x: 50.01 less 49.99, printed +0.01"),
        (50.0, 49.0, ""),
    ],
)
def test_a_note_names_differences_that_the_printed_numbers_do_not_give(value: float, base: float, said: str) -> None:
    cells = (Cell(estimate(value), delta=estimate(value - base), base=base),)
    made = finish(Table("t", "T.", "c", (Column("x"),), (Block("", (Row("a", cells),)),)))
    found = [note for note in made.notes if note.startswith("Differences are rounded after they are taken")]
    assert found[0].endswith(f": {said}.") if said else not found, found


@pytest.mark.parametrize(("samples", "warned"), [(400, True), (1, False)])
def test_a_warning_stands_below_a_table_that_few_prompts_decide(tmp_path: Path, samples: int, warned: bool) -> None:
    """One problem of sixty was answered four hundred times: whether it is drawn decides the rate."""
    card, rows = make.card("KD", 0), []
    for problem in range(60):
        word = "right" if problem % 2 else "wrong"
        times = samples if problem == 0 else 1
        rows += [make.answer_row("mini-gsm", f"p{problem}", word, sample=sample) for sample in range(times)]
    facts = make.passk_facts(card, {"mini-gsm": make.task_facts("mini-gsm", n=60)})
    make.write("passk", PasskOptions(out=tmp_path, model=card["name"], tasks=("mini-gsm",)), facts, rows)
    found = [note for note in tables.build(2, library(tmp_path), 2000).notes if note.startswith("Cross-check")]
    assert bool(found) == warned
    assert all("KD on mini-gsm: the bootstrap interval is" in note and "with 60 prompts" in note for note in found)


class Nesting(HTMLParser):
    """Refuses a tag that is closed out of turn, an id that stands twice, and keeps what was opened."""

    VOID = ("meta", "br", "link", "img")

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[str] = []
        self.ids: list[str] = []
        self.outward: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.outward += [value or "" for name, value in attrs if name in ("src", "href", "onclick", "onload")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("ci", FORMS)
def test_the_page_is_nested_alone_and_has_no_script(table: Table, ci: Ci) -> None:
    text = writers.page(table, ci)
    page = Nesting()
    page.feed(text)
    page.close()
    assert text.startswith("<!DOCTYPE html>\n<html lang=")
    assert page.open == [] and page.outward == []
    assert [page.seen.count(tag) for tag in ("html", "title", "h1", "main", "table", "caption")] == [1] * 6
    assert "script" not in page.seen
    assert len(page.ids) == len(set(page.ids))
    assert text.count('scope="rowgroup"') == 2


@pytest.mark.parametrize("form", [writers.markdown, writers.latex, writers.html, writers.page])
def test_intervals_stand_behind_the_number_below_it_or_nowhere(two: Library, table: Table, form: object) -> None:
    assert callable(form)
    inline, row, none = (form(table, ci) for ci in FORMS)
    cell = table.blocks[1].rows[4].cells[0]
    assert cell.value is not None and cell.delta is not None
    number, words = f"{cell.value.value:.2f}", f"{cell.value.low:.1f}, {cell.value.high:.1f}"
    delta = f"{cell.delta.low:.1f}, {cell.delta.high:.1f}".replace("-", "−")
    spelled = delta.replace("−", "$-$") if form is writers.latex else delta
    at = {text: next(line for line in text.splitlines() if number in line) for text in (inline, row, none)}
    assert words in at[inline] and words not in at[row] and words not in none
    assert words in row.splitlines()[row.splitlines().index(at[row]) + 1]
    assert spelled in row and spelled not in inline, "the difference's own interval has room below alone"
    told = (
        "Brackets: 95 ",
        "Below each number, and in parentheses below its difference: 95 ",
        "In the JSON twin alone",
    )
    assert all(words in text for words, text in zip(told, (inline, row, none), strict=True))


def test_the_twin_has_everything_at_full_precision_whatever_is_printed(table: Table, tmp_path: Path) -> None:
    texts = set()
    for ci in FORMS:
        tables.write(table, tmp_path / ci, ci, siunitx=ci == "row")
        assert sorted(path.suffix for path in (tmp_path / ci).iterdir()) == [".html", ".json", ".md", ".tex"]
        texts.add((tmp_path / ci / "table2.json").read_text())
    (text,) = texts
    for block, told in zip(table.blocks, json.loads(text)["blocks"], strict=True):
        assert told["title"] == block.title
        for row, line in zip(block.rows, told["rows"], strict=True):
            cell, found = row.cells[0], line["cells"][0]
            assert cell.value is not None
            for name, number in (("value", cell.value), ("delta", cell.delta)):
                if number is None:
                    assert found[name] is None
                    continue
                assert [found[name][key] for key in ("value", "low", "high", "n", "method")] == [
                    *(number.value, number.low, number.high, number.n, number.method)
                ]
            assert found["value"]["standard_error"] == cell.error
            assert (found["best"], found["second"], found["records"]) == (cell.best, cell.second, list(cell.records))
            assert found["p"] == (None if np.isnan(cell.p) else cell.p)
            assert found["p_holm"] == (None if np.isnan(cell.p_holm) else cell.p_holm)
            assert [(seed["seed"], seed["value"]) for seed in found["seeds"]] == list(cell.seeds)
