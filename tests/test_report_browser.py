"""The page in a real browser, opened as a file: nothing fetched, nothing complained about, all of it usable by
keyboard, on a narrow screen, in the dark and on paper.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import record_factory as make
from browser import CHROMIUM, Browser, Tab, chromium
from test_explorer import answers

from analysis.load import Library, library
from analysis.report import page
from selectkd_eval.verbs import PasskOptions, WinrateOptions

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
READY = "document.querySelector('#explorer').dataset.ready"
HOSTILE = "</script><img src=x onerror=alert(1)>\x00\x1b[2J\u202egnp.exe <!-- <script> ${1} {{ 7*7 }} ' \" &"
# The Nu checker's jar and axe-core, where somebody has put them: neither is shipped with this program.
NU, AXE = (os.environ.get(name, "") for name in ("SELECTKD_EVAL_VNU_JAR", "SELECTKD_EVAL_AXE"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every section."""
    out = tmp_path_factory.mktemp("records")
    make.everything(out, n=30)
    for model in (make.card("KD", 0), make.card("Start")):
        answers(out, model, n=30)
    return written(library(out), out / "report.html")


def written(records: Library, path: Path, title: str = "A report") -> Path:
    path.write_text(page(records, title, 50), encoding="utf-8")
    return path


@pytest.fixture
def tab(browser: Browser, html: Path) -> Iterator[Tab]:
    found = Tab(browser, html)
    found.wait(READY)
    yield found
    found.close()


def test_nothing_is_requested_and_nothing_is_complained_about(tab: Tab) -> None:
    for anchor in ("findings", "tables", "figures", "items", "methods", "provenance"):
        assert tab.run(f"document.getElementById('{anchor}').getBoundingClientRect().height > 0"), anchor
    tab.run("document.querySelector('#explorer li button').click()")
    assert tab.run("[...document.images].every((image) => image.complete && image.naturalWidth > 300)")
    assert tab.requests == []
    assert tab.complaints == []


def test_the_watch_sees_a_request_and_a_violation(browser: Browser, html: Path, tmp_path: Path) -> None:
    """The tests above could not fail if nothing were seen."""
    spoilt = tmp_path / "spoilt.html"
    spoilt.write_text(html.read_text().replace("<h1>", "<img src='https://127.0.0.1:9/x.png' alt='x'><h1>"))
    tab = Tab(browser, spoilt)
    assert any("img-src" in line for line in tab.complaints)
    bare = tmp_path / "bare.html"
    bare.write_text("<!DOCTYPE html><title>x</title><img src='http://127.0.0.1:9/x.png' alt='x'>")
    assert Tab(browser, bare).requests == ["http://127.0.0.1:9/x.png"]


def column(tab: Tab, place: int) -> list[str]:
    rows = f"[...document.querySelectorAll('#table2 tbody tr:not(.block)')].map((r) => r.cells[{place}].textContent)"
    return list(tab.run(rows))


def values(tab: Tab) -> list[float]:
    rows = "[...document.querySelectorAll('#table2 tbody tr:not(.block)')].map((r) => Number(r.cells[1].dataset.value))"
    return list(tab.run(rows))


def test_tab_and_enter_sort_a_table_by_the_full_value(tab: Tab) -> None:
    printed, heard = column(tab, 0), "document.querySelectorAll('#table2 thead tr:last-child th')[1].ariaSort"
    tab.run("document.querySelectorAll('#table2 button.sort')[0].focus()")
    tab.key("Tab")
    assert tab.run("document.activeElement === document.querySelectorAll('#table2 button.sort')[1]")
    assert tab.run(heard) == "none"
    tab.key("Enter")
    assert tab.run(heard) == "descending"
    assert values(tab) == sorted(values(tab), reverse=True)
    assert column(tab, 0) != printed
    tab.key("Enter")
    assert tab.run(heard) == "ascending"
    assert values(tab) == sorted(values(tab))
    tab.key("Enter")
    assert column(tab, 0) == printed


def test_blocks_stay_together_when_a_table_is_sorted(tab: Tab) -> None:
    blocks = (
        "[...document.querySelectorAll('#table5 tbody')].map((body) => [body.rows[0].textContent, body.rows.length, "
        "[...body.rows].slice(1).map((row) => row.cells[0].textContent).sort()])"
    )
    before = tab.run(blocks)
    tab.run("document.querySelectorAll('#table5 button.sort')[1].click()")
    assert tab.run(blocks) == before


def test_every_control_is_reached_by_tab_and_seen_when_it_is(tab: Tab) -> None:
    seen = []
    tab.run("document.activeElement.blur()")
    for _ in range(400):
        tab.key("Tab")
        told = tab.run(
            "(() => { const e = document.activeElement; const s = getComputedStyle(e);"
            "return [e.id || e.dataset.part || e.className || e.tagName, s.outlineStyle !== 'none', "
            "e === document.body] })()"
        )
        if told[2]:
            break
        seen.append(told)
    names = [name for name, _, _ in seen]
    assert [name for name in names if name.startswith("explorer-")] == [
        f"explorer-{name}" for name in ("search", "task", "model", "fate", "other")
    ]
    assert "sort" in names
    assert "on" in names
    assert [name for name, outlined, _ in seen if not outlined and not name.startswith("explorer-")] == []


def test_the_explorer_finds_filters_and_shows_by_keyboard_alone(tab: Tab, html: Path) -> None:
    status = "document.querySelector('[data-part=status]').textContent"
    assert str(tab.run(status)).startswith("60 of 60 items; page 1 of 3")
    tab.run("document.querySelector('#explorer-search').focus()")
    tab.write('"write about 7."')
    tab.key("Enter")
    assert str(tab.run(status)).startswith("1 of 60 items")
    for _ in range(20):
        tab.key("Tab")
        if tab.run("document.activeElement.dataset.item !== undefined"):
            break
    opened = tab.run("document.activeElement.dataset.item")
    tab.key("Enter")
    item = "document.querySelector('[data-part=item]')"
    assert tab.run(f"{item}.hidden") is False
    assert tab.run(f"document.activeElement === {item}.querySelector('h3')")
    text = str(tab.run(f"{item}.innerText"))
    links = tab.run(
        f"[...{item}.querySelectorAll('a.source')].map((link) => document.querySelector(link.hash) !== null)"
    )
    assert len(links) == 2 + len(library(html.parent).of("winrate"))
    assert all(links)
    for part in ("s7", "Write about 7.", "KD 7 word", "likelihood:embedded:judge", "selectkd-eval show answer-"):
        assert part in text
    tab.key("Escape")
    assert tab.run(f"{item}.hidden")
    assert tab.run("document.activeElement.dataset.item") == opened


def test_the_list_changes_while_a_reader_is_in_it_and_keeps_the_focus(tab: Tab) -> None:
    status = "document.querySelector('[data-part=status]').textContent"
    focus = "document.activeElement.dataset.item"
    # Typing filters a moment later; by then this reader is in the list.
    third = "document.querySelectorAll('#explorer li button')[2]"
    text = tab.run(f"{third}.querySelector('.start').textContent")
    tab.run("document.querySelector('#explorer-search').focus()")
    tab.write(f'"{text}"')
    tab.run(f"{third}.focus()")
    item = tab.run(focus)
    tab.wait(f"{status}.startsWith('1 of 60 items')")
    assert item is not None and tab.run(focus) == item
    # An item that is found no more leaves the reader at the search.
    tab.run("(() => { document.querySelector('#explorer-search').value = 'no such words'; })()")
    tab.run("document.querySelector('#explorer-task').dispatchEvent(new Event('change'))")
    assert tab.run("document.activeElement.id") == "explorer-search"


def test_the_keyboard_is_not_lost_on_the_last_page_nor_on_the_first(tab: Tab) -> None:
    part = "document.activeElement.dataset.part"
    tab.run("document.querySelector('[data-part=on]').focus()")
    for _ in range(2):
        assert tab.run(part) == "on"
        tab.key("Enter")
    for _ in range(2):
        assert tab.run(part) == "back"
        tab.key("Enter")
    assert tab.run(part) == "on"
    assert str(tab.run("document.querySelector('[data-part=status]').textContent")).endswith("page 1 of 3")


def test_a_search_that_was_sent_off_is_not_done_a_second_time(tab: Tab) -> None:
    tab.run("document.querySelector('#explorer-search').focus()")
    tab.write('"write about 7."')
    tab.key("Enter")
    tab.run("window.first = document.querySelector('#explorer li button')")
    tab.browser.settle(0.5)  # typing's own delay is 0.12
    assert tab.run("window.first !== null && window.first.isConnected")


def test_two_methods_that_disagree_are_found_as_the_records_have_them(tab: Tab, html: Path) -> None:
    records = library(html.parent)
    right: dict[str, dict[str, list[int]]] = {}
    for record in records.of("passk"):
        for row in record.rows:
            right.setdefault(record.facts["model"]["method"], {}).setdefault(row["problem"], []).append(row["correct"])
    for row in (row for record in records.of("winrate") for row in record.rows):
        assert row["prompt"].startswith("s")
    differing = [p for p, told in right["KD"].items() if sum(told) != sum(right["KD + Top-k"][p])]
    assert 0 < len(differing) < 30
    choose = (
        "(() => { for (const [name, value] of [['task', 'mini-gsm'], ['model', 'sKD'], ['other', 'sKD + Top-k']]) {"
        "const box = document.querySelector(`#explorer-${name}`); box.value = value;"
        "box.dispatchEvent(new Event('change')); } })()"
    )
    tab.run(choose)
    assert str(tab.run("document.querySelector('[data-part=status]').textContent")).startswith(
        f"{len(differing)} of 60 items"
    )


@pytest.mark.parametrize("opened", [False, True], ids=["as loaded", "everything opened"])
def test_a_narrow_screen_scrolls_no_way_but_down(tab: Tab, opened: bool) -> None:
    tab.size(360, 800)
    if opened:
        tab.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        tab.run("document.querySelector('#explorer li button').click()")
    assert tab.run("document.documentElement.scrollWidth") <= 360


CONTRAST = """(() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] === 1) return c; } return [255, 255, 255]; };
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || !e.getClientRects().length) continue;
    if (e.disabled || e.closest("script")) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < 4.5) found.push([e.tagName, e.className, ratio]);
  }
  return found;
})()"""


@pytest.mark.parametrize(("scheme", "medium"), [("light", ""), ("dark", ""), ("light", "print"), ("dark", "print")])
def test_every_text_stands_out_from_its_ground(tab: Tab, scheme: str, medium: str) -> None:
    tab.scheme(scheme, medium)
    tab.run("document.querySelector('#explorer li button').click()")
    tab.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert tab.run(CONTRAST) == []


def test_paper_has_no_controls_and_the_whole_of_the_tables(tab: Tab) -> None:
    tab.scheme("light", "print")
    assert tab.run("getComputedStyle(document.querySelector('#explorer')).display") == "none"
    assert tab.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert tab.run("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
    assert tab.pdf().startswith(b"%PDF")


def test_without_scripts_everything_but_the_items_is_there(browser: Browser, html: Path, tmp_path: Path) -> None:
    tab = Tab(browser, html)
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    tab.call("Page.reload")
    browser.settle(1.0)
    tab.call("Emulation.setScriptExecutionDisabled", value=False)
    assert tab.run("document.querySelectorAll('button.sort').length") == 0
    assert tab.run("document.querySelector('#explorer form').hidden")
    assert "JavaScript" in str(tab.run("document.querySelector('[data-part=status]').innerText"))
    assert tab.run("document.querySelectorAll('#tables table').length") > 3
    tab.close()


def test_a_browser_that_cannot_unpack_says_so(browser: Browser, html: Path, tmp_path: Path) -> None:
    old = Tab(browser, html)
    old.call("Page.addScriptToEvaluateOnNewDocument", source="delete window.DecompressionStream;")
    old.call("Page.reload")
    old.wait("document.querySelector('[data-part=status]')?.textContent.includes('lacks DecompressionStream')")
    assert old.complaints == []
    old.close()


def hostile(out: Path) -> Library:
    model = {**make.card("KD", 0), "name": HOSTILE, "method": HOSTILE}
    rows = [
        make.answer_row("t", HOSTILE, completion=HOSTILE, question=HOSTILE, extracted=HOSTILE, detail=HOSTILE),
        make.answer_row("t", "long", completion=f"{HOSTILE} {'x' * 1_000_000}"),
    ]
    facts = make.passk_facts(model, {"t": make.task_facts("t")})
    make.write("passk", PasskOptions(out=out, model="m", tasks=("t",)), facts, rows)
    verdict = {"key": "s0/0/candidate-first", "prompt": "s0", "order": HOSTILE, "verdict": "tie", "raw": HOSTILE}
    judge = {"judge": {"name": HOSTILE, "kind": "server"}, "protocol": {"name": HOSTILE, "sha256": "0"}}
    sides = {"candidate": model, "baseline": make.card("Start"), "prompts": {"name": HOSTILE, "sha256": "1", "n": 1}}
    options = WinrateOptions(out=out, candidate="a", baseline="b", judge="c")
    make.write("winrate", options, {**judge, **sides}, [{**verdict, "seed": 0, "sample": 0, "reason": HOSTILE}])
    return library(out)


def test_hostile_records_stay_text(browser: Browser, tmp_path: Path) -> None:
    tab = Tab(browser, written(hostile(tmp_path), tmp_path / "report.html", HOSTILE))
    tab.wait(READY)
    before = tab.run("document.images.length")
    for place in range(int(tab.run("document.querySelectorAll('#explorer li').length"))):
        tab.run(f"document.querySelectorAll('#explorer li button')[{place}].click()")
        text = str(tab.run("document.querySelector('[data-part=item]').innerText"))
        assert "\u202e" not in text
        assert "\x1b" not in text
    shown = str(tab.run("document.querySelector('#explorer').innerText"))
    assert "<img src=x onerror=alert(1)>" in shown
    assert "\\u202egnp.exe" in shown
    assert tab.run("document.images.length") == before
    assert tab.run("document.querySelector('img[src=x]')") is None
    assert tab.requests == []
    assert tab.complaints == []
    tab.close()


@pytest.mark.parametrize("verb", ["passk", "train"])
def test_a_library_of_one_record_makes_a_page_without_complaints(browser: Browser, tmp_path: Path, verb: str) -> None:
    {"passk": make.passk, "train": make.train}[verb](tmp_path, make.card("KD", 0))
    tab = Tab(browser, written(library(tmp_path), tmp_path / "report.html"))
    assert (tab.complaints, tab.requests) == ([], [])
    tab.close()


def test_twenty_thousand_rows_are_listed_in_two_seconds_and_filtered_in_a_fifth(
    browser: Browser, tmp_path: Path
) -> None:
    for method in ("KD", "KD + Spec-k"):
        answers(tmp_path, make.card(method, 0), n=10_000, length=400)
    path = written(library(tmp_path), tmp_path / "report.html")
    assert path.stat().st_size < 1_000_000
    assert "20,000 answers and verdicts on 10,000 of 10,000" in path.read_text(encoding="utf-8")
    tab = Tab(browser, path)
    tab.wait(READY)
    assert float(tab.run(READY)) < 2_000
    assert tab.run("document.querySelectorAll('#explorer li').length") <= 50
    times = []
    for name, value in (
        ("search", "spec-k 77 word"),
        ("search", "zzz"),
        ("search", ""),
        ("fate", "unknown"),
        ("fate", "all"),
    ):
        expression = (
            "(() => { const box = document.querySelector('[data-part=NAME]'); box.value = VALUE;"
            "const t = performance.now();"
            "box.dispatchEvent(new Event('change')); document.querySelector('#explorer form').requestSubmit();"
            "document.body.offsetHeight; return performance.now() - t; })()"
        )
        times.append(float(tab.run(expression.replace("NAME", name).replace("VALUE", json.dumps(value)))))
    assert max(times) < 200, times
    tab.close()


@pytest.mark.skipif(not (NU and shutil.which("java")), reason="SELECTKD_EVAL_VNU_JAR names no checker, or no java")
def test_the_nu_checker_finds_no_error(html: Path, tmp_path: Path) -> None:
    odd = written(hostile(tmp_path), tmp_path / "report.html", HOSTILE)
    for path in (html, odd):
        done = subprocess.run(
            ["java", "-jar", NU, "--format", "json", "--errors-only", str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert json.loads(done.stderr)["messages"] == []


@pytest.mark.skipif(not AXE, reason="SELECTKD_EVAL_AXE names no axe-core")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation(tab: Tab, scheme: str) -> None:
    tab.scheme(scheme)
    tab.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    tab.run("document.querySelector('#explorer li button').click()")
    tab.call("Runtime.evaluate", expression=Path(AXE).read_text(encoding="utf-8"))
    found: list[Any] = tab.run(
        "axe.run(document).then((r) => r.violations.map((v) => [v.id, v.nodes.map((n) => n.html)]))"
    )
    assert found == []
