"""All tables compile as LaTeX, whatever a model is called, and nothing sticks out of the page."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import record_factory as make
from paper_records import SETS, Of, model

from analysis import paper, tables, writers
from analysis.load import library
from analysis.speed_explanation import companions
from analysis.table_ir import Block, Cell, Ci, Column, Row, Table, finish
from selectkd_eval.stats import Estimate

HOSTILE = {
    "a command": r"\input{/etc/passwd}",
    "signs": r"50% & more_or_less #1 ~ ^ {a} [b] <c> |d|",
    "mathematics": r"$x^2$ and \frac{1}{2} \\ \newline",
    "an open group": r"{{{ \begin{document} %",
    "emoji": "best 🚀 model ∞ β≥γ",
    "right to left": "מודל نموذج \u202eledom",
    "control characters": "one\r\n\u2028two\x00\x1b[2J--three---four",
    "very long": "a-very-long-model-name-" * 4,
}
WIDE = 5.0  # points that a line may stick out: less than the space between two columns
MADE = ("inline", "row", "none")
PREAMBLE = (
    "\\documentclass[a4paper]{article}\\usepackage[margin=2.5cm]{geometry}\n"
    "\\usepackage{booktabs,graphicx,rotating,siunitx,xcolor}\n\\begin{document}\n"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Table]:
    """Tables 1 to 6 with their companions: two pairs, published numbers, and hostile names of models and tasks."""
    where = tmp_path_factory.mktemp("records")
    for of in (Of(where), Of(where, r"lab/50%_\teacher{#1}", "start & $x$")):
        for one in (of.teacher, of.start):
            of.solved(model(one), "mini-gsm", 20)
        for seed, method in enumerate(("KD", "KD + Spec-k", "KD + Top-k")):
            card = of.student(method, seed)
            of.solved(card, "mini-gsm", 20)
            for name in SETS:
                of.judged(card, name, n=20)
    for name in ("InternVL2-2B", *HOSTILE.values()):
        for task in paper.VISION:
            make.passk(where, model(name), n=9, task=task, skill=0.5)
    cards = [make.card("Start"), make.card("KD", 0), make.card("KD + Spec-k", 0) | {"method": HOSTILE["signs"]}]
    make.speedup(where, cards, n=20, tasks=("mini-gsm", "mini-stories"))
    found = library(where)
    return [*(tables.build(n, found, 20, paper=True) for n in range(1, 7)), *companions(found, 20), _hostile()]


def _hostile() -> Table:
    """Hostile text wherever a table has text."""
    rows = tuple(Row(text, (Cell(Estimate(1, 0.5, 1.5, 9, "m")), Cell(text=text))) for text in HOSTILE.values())
    columns = (Column(HOSTILE["signs"][:20], HOSTILE["a command"]), Column("words", better=None))
    table = Table("t", "Table 1. T.", "caption", columns, (Block(HOSTILE["mathematics"], rows),))
    every = " ".join(HOSTILE.values())
    return replace(finish(table), title=every, caption=every, notes=tuple(HOSTILE.values()), stub=HOSTILE["emoji"])


def compiled(source: str, where: Path) -> str:
    """pdflatex's report; the test is skipped where there is none."""
    if not shutil.which("pdflatex"):
        pytest.skip("pdflatex is not installed")
    found = ["kpsewhich", "booktabs.sty", "rotating.sty", "siunitx.sty"]
    if subprocess.run(found, capture_output=True, check=False).returncode:
        pytest.skip("booktabs, rotating and siunitx are not all installed")
    (where / "t.tex").write_text(source, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "t.tex"]
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout


def test_every_table_compiles_in_every_form_and_fits_its_page(made: list[Table], tmp_path: Path) -> None:
    forms: list[tuple[Ci, bool]] = [(ci, siunitx) for ci in MADE for siunitx in (False, True)]  # type: ignore[misc]
    pages = [writers.latex(table, ci, siunitx) for table in made for ci, siunitx in forms]
    said = compiled(PREAMBLE + "\\clearpage\n".join(pages) + "\\end{document}\n", tmp_path)
    out = [float(points) for points in re.findall(r"Overfull \\hbox \(([\d.]+)pt", said)]
    assert max(out, default=0.0) <= WIDE
    assert "Missing character" not in (tmp_path / "t.log").read_text(errors="replace")
    assert "passwd" not in {path.name for path in tmp_path.iterdir()}
    assert "root:" not in said


@pytest.mark.parametrize("siunitx", [False, True])
def test_the_first_line_names_every_package_that_is_needed(made: list[Table], siunitx: bool, tmp_path: Path) -> None:
    texts = [writers.latex(made[1], "inline", siunitx), writers.latex(made[4], "inline", siunitx)]
    assert "sidewaystable" not in texts[0]
    assert "sidewaystable" in texts[1], "Table 5 is too wide to be read upright"
    for place, text in enumerate(texts):
        needed = text.splitlines()[0].removeprefix("% needs ")
        where = tmp_path / str(place)
        where.mkdir()
        compiled(f"\\documentclass{{article}}{needed}\\begin{{document}}{text}\\end{{document}}\n", where)


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_name_is_text(name: str) -> None:
    text = writers.latex_text(name)
    assert not re.search(r"\\(input|frac|begin|newline)\b", text)
    assert "\n" not in text and "\x1b" not in text
    assert not re.search(r"(?<!\\)[%&#_]", text)
