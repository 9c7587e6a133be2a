"""The page: complete in itself, safe with hostile names, the same twice, and honest whichever side wins."""

from __future__ import annotations

import base64
import hashlib
import random
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest
import record_factory as make
from rewriting import rewrite

from analysis.figures import FIGURES
from analysis.inline import SCRIPTS
from analysis.load import Library, library
from analysis.report import page, run, summary_lines
from selectkd_eval.verbs import PasskOptions, ReportOptions

RESAMPLES = 100


class Tags(HTMLParser):
    """Every tag with its attributes, and whether all that was opened was closed."""

    VOID = frozenset({"meta", "link", "img", "br", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for tag, attrs in self.found if tag == name]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return library(make.everything(tmp_path_factory.mktemp("records"), n=30))


@pytest.fixture(scope="module")
def text(full: Library) -> str:
    return page(full, "A report", RESAMPLES)


def test_nothing_on_the_page_is_fetched(text: str) -> None:
    tags = Tags(text)
    for tag, attrs in tags.found:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attrs.get(name)
            assert value is None or value.startswith(("#", "data:")), f"{tag} {name}={value}"
    assert "@import" not in text
    assert "url(" not in text
    assert str(policy(tags)).startswith("default-src 'none'; img-src data:; style-src 'sha256-")


def policy(tags: Tags) -> str:
    return str(next(m for m in tags.all("meta") if m.get("http-equiv") == "Content-Security-Policy")["content"])


def test_only_scripts_and_styles_whose_hashes_the_policy_names_can_run(text: str) -> None:
    said = policy(Tags(text))
    assert "unsafe" not in said
    blocks = re.findall(r"<(script|style)([^>]*)>(.*?)</\1>", text, re.DOTALL)
    running = [(tag, body) for tag, attributes, body in blocks if not attributes]
    assert len(running) == 1 + len(SCRIPTS)
    for tag, body in running:
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in said.split(f"{tag}-src")[1].split(";")[0]
    data = [attributes for _, attributes, _ in blocks if attributes]
    assert all('type="application/' in attributes and "javascript" not in attributes for attributes in data)


def test_no_script_writes_markup() -> None:
    for name in SCRIPTS:
        code = (files("analysis") / "templates" / name).read_text(encoding="utf-8")
        for way in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "fetch(",
        ):
            assert way not in code


def test_every_tag_is_closed_and_every_picture_described(text: str) -> None:
    tags = Tags(text)
    assert tags.open == []
    pictures = tags.all("img")
    assert {"winrate", "passk", "training", "tar", "landscape", "speedup"} <= figures(tags)
    assert len(pictures) == len(figures(tags))
    assert all(len(picture["alt"] or "") > 60 for picture in pictures)
    assert all(head.get("scope") for head in tags.all("th"))
    assert len(tags.all("caption")) == len(tags.all("table"))
    assert {"table1", "table2", "table4", "table5"} <= {table.get("id") for table in tags.all("table")}
    ids = [attrs["id"] for _, attrs in tags.found if "id" in attrs]
    assert len(ids) == len(set(ids))


def figures(tags: Tags) -> set[str]:
    return {str(figure["id"]).removeprefix("figure-") for figure in tags.all("figure")}


def test_a_figure_is_on_the_page_or_its_reason_is(text: str) -> None:
    shown = figures(Tags(text))
    for name in FIGURES:
        assert name in shown or f"Figure {name}: " in text


def test_every_link_leads_to_a_place_on_the_page(text: str) -> None:
    tags = Tags(text)
    ids = {attrs["id"] for _, attrs in tags.found if "id" in attrs}
    links = [str(link["href"])[1:] for link in tags.all("a")]
    assert len(links) > 60
    assert set(links) <= ids


def test_every_number_of_a_table_leads_to_the_records_behind_it(full: Library, text: str) -> None:
    """From a cell of Table 2 to its row in the list, from there to the record's row, which has its name and command."""
    table = text[text.index('<table id="table2"') :]
    row = table[table.index('<th scope="row" class="indent">KD + Spec-k') :]
    place = row[row.index('href="#') + 7 : row.index('" tabindex')]
    entry = re.search(rf'<li id="{place}"><strong>KD \+ Spec-k</strong>(.*?)</li>', text)
    assert entry
    targets = re.findall(r'href="#(R\d+)"', entry[1])
    assert targets
    names = {record.path.name for record in full.of("passk") if record.facts["model"]["method"] == "KD + Spec-k"}
    first = text[text.index(f'<tr id="{targets[0]}">') :]
    first = first[: first.index("</tr>")]
    assert any(name in first for name in names)
    assert "selectkd-eval passk " in first


def test_two_protocols_are_two_tables_and_two_figures_with_ids_of_their_own(tmp_path: Path) -> None:
    make.passk(tmp_path, make.card("Start"), n=8)
    for protocol in ("selectkd", "other"):
        make.winrate(tmp_path, make.card("KD", 0), make.card("Start"), n=20, protocol=protocol)
    tags = Tags(page(library(tmp_path), "two", 50))
    ids = [str(attrs["id"]) for _, attrs in tags.found if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {"table1", "table1-2"} <= set(ids)
    assert {"winrate", "winrate-2"} <= figures(tags)


def test_the_page_stays_under_a_megabyte(text: str) -> None:
    assert len(text.encode()) < 1_000_000


def test_the_same_records_give_the_same_page(full: Library, text: str) -> None:
    assert page(library(full.records[0].path.parent), "A report", RESAMPLES) == text


def test_every_record_is_named_with_its_digest(full: Library, text: str) -> None:
    from selectkd_eval.environment import sha256_file

    for record in full.records:
        assert record.path.name in text
        assert sha256_file(record.path) in text


def test_a_hostile_name_stays_text(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>\"'&"
    make.passk(tmp_path, make.card("KD", 0), n=8)
    make.passk(tmp_path, make.card("KD", 0) | {"method": name, "training": {"recipe": name}}, n=8, skill=0.5)
    made = page(library(tmp_path), name, 50)
    assert "alert(1)" not in "".join(re.findall(r"<script[^>]*>(.*?)</script>", made, re.DOTALL))
    assert "&lt;script&gt;" in made


def test_what_html_forbids_is_replaced_and_the_page_can_be_written(tmp_path: Path) -> None:
    record = make.passk(tmp_path, make.card("KD", 0), n=8)
    # JSON can say half of a surrogate pair and a NUL; neither can stand in a page.
    text = record.path.read_text(encoding="utf-8").replace('"method":"KD"', '"method":"KD\\u0000\\u202e"')
    text = text.replace('"completion":" ', '"completion":"\\ud800 ')
    rewrite(record.path, text)
    out = tmp_path / "page" / "report.html"
    run(ReportOptions(records=tmp_path, out=out, resamples=50))
    made = out.read_bytes()
    assert b"\x00" not in made
    assert "KD\ufffd" in made.decode("utf-8")


def test_the_likelihood_judge_is_called_one_beside_its_numbers(text: str, full: Library) -> None:
    assert "not a human or LLM preference" in text
    lines = [line for line in summary_lines(full.records, RESAMPLES) if "win rate" in line.lower()]
    assert lines
    assert all("likelihood judge" in line.lower() for line in lines)


def both(path: Path, skill: float, base: float, n: int = 60) -> list[str]:
    make.passk(path, make.card("KD", 0), n=n, skill=base)
    make.passk(path, make.card("KD + Spec-k", 0), n=n, skill=skill)
    return [line for line in summary_lines(library(path).records, 500) if line.startswith("KD + Spec-k")]


@pytest.mark.parametrize(
    ("skill", "said"), [(0.95, "beats KD"), (0.2, "is worse than KD"), (0.66, "is not told apart from KD")]
)
def test_a_sentence_says_what_the_interval_supports(tmp_path: Path, skill: float, said: str) -> None:
    (line,) = both(tmp_path, skill, 0.72)
    assert f"KD + Spec-k {said} on mini-gsm" in line
    assert "n = 60 prompts" in line


def test_the_sentence_and_the_table_give_one_number(full: Library) -> None:
    from analysis.tables import build

    line = next(x for x in summary_lines(full.records, RESAMPLES) if x.startswith("KD beats SFT-control"))
    rows = {row.label: row.cells[0].value for row in build(2, full, RESAMPLES).blocks[0].rows}
    kd, control = rows["KD"], rows["SFT-control"]
    assert kd is not None
    assert control is not None
    assert f"pass@1 {kd.value:.1f} % against {control.value:.1f} %, +{kd.value - control.value:.1f} points" in line


def test_a_changed_text_is_said_and_has_no_speedup(tmp_path: Path) -> None:
    make.speedup(tmp_path, make.card("KD", 0), violation=True)
    (line,) = summary_lines(library(tmp_path).records, 50)
    assert "changed the text on 1 prompts" in line
    assert "×" not in line


@pytest.mark.parametrize("verb", ["passk", "winrate", "train", "tar", "speedup", "landscape"])
def test_any_one_kind_of_record_makes_a_page(full: Library, verb: str) -> None:
    made = page(Library(full.of(verb)), "part", 50)
    assert Tags(made).open == []
    assert "Provenance" in made


def test_items_are_left_out_on_request_and_a_cut_is_said(tmp_path: Path) -> None:
    make.passk(tmp_path, make.card("KD", 0), n=30)
    found = library(tmp_path)
    assert 'id="items"' not in page(found, "part", 50, items=0)
    assert "30 answers and verdicts on 30 of 30 prompts and problems." in page(found, "part", 50)
    assert "10 answers and verdicts on 10 of 30 prompts and problems, taken evenly." in page(
        found, "part", 50, items=10
    )


def test_texts_that_would_make_the_page_a_megabyte_are_cut_and_that_is_said(tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = [make.answer_row("t", f"p{i}", completion=f"{draw.getrandbits(12_000):x}") for i in range(600)]
    facts = make.passk_facts(make.card("KD", 0), {"t": make.task_facts("t")})
    make.write("passk", PasskOptions(out=tmp_path, tasks=("t",)), facts, rows)
    made = page(library(tmp_path), "part", 50)
    assert 900_000 < len(made.encode()) < 1_000_000
    told = re.search(r"holds the texts of (\d+) of them, taken evenly, and the outcomes of all", made)
    assert told
    assert 300 < int(told[1]) < 600


def test_an_unfinished_record_is_named_on_the_page(full: Library) -> None:
    made = page(Library(full.of("speedup"), [Path("reports/records/passk-torn.jsonl")]), "part", 50)
    assert "passk-torn.jsonl is unfinished" in made


def test_landscapes_that_cannot_be_compared_are_left_out_with_the_reason(tmp_path: Path) -> None:
    make.passk(tmp_path, make.card("KD", 0), n=8)
    for radius in (0.5, 1.0):
        make.landscape(tmp_path, [make.card("KD", 0)], grid=5, radius=radius)
    made = page(library(tmp_path), "part", 50)
    assert "radius" in made
    assert "figure-landscape" not in made


def test_the_verb_writes_the_page_and_prints_one_screen_and_its_path(
    full: Library, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "report.html"
    run(ReportOptions(records=full.of("passk")[0].path.parent, out=out, resamples=50))
    assert out.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == f"report: {out}"
    assert len(said.splitlines()) < 50
    for line in summary_lines(full.records, 50):
        if " beats " in line or " is worse than " in line:
            assert " ".join(line.split()) in " ".join(said.split())
    assert "not a human or LLM preference" in said


def test_the_screen_and_the_table_give_one_number(full: Library) -> None:
    from analysis.summary import one_screen
    from analysis.tables import build

    shown = {line.split("  ")[0]: line for line in one_screen(full, RESAMPLES).splitlines() if "[" in line}
    for row in build(2, full, RESAMPLES).blocks[0].rows:
        cell = row.cells[0].value
        assert cell is not None
        assert f"{cell.value:.1f} [{cell.low:.1f}, {cell.high:.1f}]" in shown[row.label]


def test_reading_needs_no_torch_and_no_network() -> None:
    """The reading half works with the base dependencies, and cannot talk to anyone."""
    code = (
        "import sys, analysis.tables, analysis.figures, analysis.report, analysis.show\n"
        "heavy = {'torch', 'transformers', 'openai', 'lm_eval', 'requests', 'httpx', 'judges'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
