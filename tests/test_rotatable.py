"""A landscape that a reader turns: the data that the page holds, and the renderer in a real browser."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import record_factory as make
from browser import CHROMIUM, Browser, Tab, chromium

from analysis import inline, style
from analysis.figures import draw
from analysis.load import library
from analysis.rotatable import scene
from analysis.style import Settings

NAME = 'Own </script><img src=x onerror="alert(1)">'
CANVAS = "document.querySelector('canvas')"
# The share of pixels that are not clear, and a digest of all of them.
PIXELS = f"""(() => {{
  const canvas = {CANVAS}, copy = new OffscreenCanvas(canvas.width || 1, canvas.height || 1);
  const context = copy.getContext("2d", {{ willReadFrequently: true }});
  if (canvas.width) context.drawImage(canvas, 0, 0);
  const all = context.getImageData(0, 0, copy.width, copy.height).data;
  let painted = 0, sum = 0;
  for (let i = 0; i < all.length; i += 4) {{
    if (all[i + 3]) painted += 1;
    sum = (sum * 31 + all[i] * 7 + all[i + 1] * 5 + all[i + 2] * 3 + all[i + 3]) % 1000000007;
  }}
  return [painted / (all.length / 4), sum];
}})()"""
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("records")
    make.landscape(out, [make.card("KD", 0), make.card(NAME, 0)], grid=7)
    return out


@pytest.fixture(scope="module")
def page(records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The canvas as the report holds it: data as JSON, the script allowed by its hash and nothing else."""
    [script] = [one for one in inline.scripts() if "canvas.landscape" in one.text]
    look = inline.style()
    data = json.dumps(scene(library(records))).replace("<", "\\u003c")
    policy = (
        f"default-src 'none'; style-src {look.digest}; script-src {script.digest}; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(
        f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>t</title><link rel="icon" href="data:,">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><style>{look.text}</style>'
        f'<figure><canvas class="landscape" data-scene="scene" hidden></canvas></figure>'
        f'<script type="application/json" id="scene">{data}</script><script>{script.text}</script></html>',
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


def test_the_scene_is_the_figures_own_surface(records: Path) -> None:
    found = scene(library(records))
    assert found is not None
    loss = np.frombuffer(base64.b64decode(found["students"][0]["loss"]), dtype="<f4").reshape(51, 51)
    middle = 51 // 2
    assert loss[middle, middle] == pytest.approx(0.2)
    corner = 0.2 + 3.0 * 0.25 * (1 + 0.7 + 0.3)
    factor = {0: 1.0, 1: 1.05}[draw_seed(records)]
    assert loss[-1, -1] == pytest.approx(corner * factor, rel=1e-6)
    assert loss[-1, 0] < loss[-1, -1], "direction 1 is the first axis: the mixed term is smaller where signs differ"
    assert found["low"] == pytest.approx(0.2)
    assert len(json.dumps(found)) < 2 * 15_000, "some 14 kB a student"


def draw_seed(records: Path) -> int:
    """The direction seed that the figure shows."""
    drawing = draw("landscape", library(records), Settings(50))
    seed = int(drawing.data["seed"])
    style.close(drawing)
    return seed


def test_there_is_no_scene_of_landscapes_that_cannot_be_compared(tmp_path: Path) -> None:
    make.passk(tmp_path, make.card("KD", 0), n=5)
    assert scene(library(tmp_path)) is None
    for radius in (0.5, 1.0):
        make.landscape(tmp_path, [make.card("KD", 0)], grid=5, radius=radius)
    assert scene(library(tmp_path)) is None


def test_the_script_has_nothing_that_a_strict_policy_forbids() -> None:
    [script] = [one.text for one in inline.scripts() if "canvas.landscape" in one.text]
    for word in ("eval(", "innerHTML", "outerHTML", "document.write", "fetch(", "import(", "http:", "https:", "<"):
        assert word not in script.replace(" < ", "").replace("<canvas", "").replace("<script", ""), word


@needs_chromium
def test_it_is_drawn_without_complaint_and_names_stay_text(browser: Browser, page: Path) -> None:
    tab = Tab(browser, page)
    tab.wait(f"{PIXELS}[0] > 0.1")
    assert tab.complaints == []
    assert tab.requests == []
    assert tab.run(f"{CANVAS}.hidden") is False
    assert tab.run("[...document.querySelectorAll('option')].map(o => o.textContent)") == [
        "KD, seed 0",
        f"{NAME}, seed 0",
    ]
    assert tab.run("document.querySelectorAll('figure img').length") == 0, "a name is never HTML"
    assert tab.run(f"[{CANVAS}.getAttribute('role'), {CANVAS}.tabIndex]") == ["img", 0]
    assert "loss 0.200 at the student" in tab.run(f"{CANVAS}.getAttribute('aria-label')")
    tab.close()


@needs_chromium
def test_dragging_keys_zoom_and_reset_change_the_picture(browser: Browser, page: Path) -> None:
    tab = Tab(browser, page)
    tab.wait(f"{PIXELS}[0] > 0.1")
    first = tab.run(PIXELS)[1]
    box = tab.run(f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({CANVAS}.getBoundingClientRect())")
    mouse = {"button": "left", "clickCount": 1}
    tab.call("Input.dispatchMouseEvent", type="mousePressed", x=box[0], y=box[1], **mouse)
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0] + 80, y=box[1] + 30, button="left")
    tab.call("Input.dispatchMouseEvent", type="mouseReleased", x=box[0] + 80, y=box[1] + 30, **mouse)
    tab.wait(f"{PIXELS}[1] !== {first}")
    dragged = tab.run(PIXELS)[1]
    tab.run(f"{CANVAS}.focus()")
    tab.key("ArrowLeft")
    tab.wait(f"{PIXELS}[1] !== {dragged}")
    turned, share = tab.run(PIXELS)[1], tab.run(PIXELS)[0]
    tab.key("+")
    tab.wait(f"{PIXELS}[1] !== {turned}")
    assert tab.run(PIXELS)[0] > share, "nearer, it covers more"
    tab.run("[...document.querySelectorAll('button')].find(b => b.textContent === 'Reset view').click()")
    tab.wait(f"{PIXELS}[1] === {first}")
    assert tab.complaints == []
    tab.close()


@needs_chromium
def test_one_finger_turns_and_two_zoom(browser: Browser, page: Path) -> None:
    tab = Tab(browser, page)
    tab.wait(f"{PIXELS}[0] > 0.1")
    tab.call("Emulation.setTouchEmulationEnabled", enabled=True)
    first, share = tab.run(PIXELS)[1], tab.run(PIXELS)[0]
    x, y = tab.run(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({CANVAS}.getBoundingClientRect())")

    def touch(kind: str, *fingers: float) -> None:
        points = [{"x": x + at, "y": y, "id": number} for number, at in enumerate(fingers)]
        tab.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)

    touch("touchStart", 0)
    for step in (20, 40, 60):
        touch("touchMove", step)
    touch("touchEnd")
    tab.wait(f"{PIXELS}[1] !== {first}")
    turned = tab.run(PIXELS)[1]
    touch("touchStart", -30, 30)
    for step in (40, 60, 80):
        touch("touchMove", -step, step)
    touch("touchEnd")
    tab.wait(f"{PIXELS}[1] !== {turned} && {PIXELS}[0] > {share}")
    assert tab.complaints == []
    tab.close()


@needs_chromium
def test_another_student_is_another_picture_and_another_text(browser: Browser, page: Path) -> None:
    tab = Tab(browser, page)
    tab.wait(f"{PIXELS}[0] > 0.1")
    first = tab.run(PIXELS)[1]
    tab.run("(s => { s.value = '1'; s.dispatchEvent(new Event('change')); })(document.querySelector('select'))")
    tab.wait(f"{PIXELS}[1] !== {first}")
    assert f"{NAME}, seed 0: loss 0.220 at the student" in tab.run(f"{CANVAS}.getAttribute('aria-label')")
    tab.close()


@needs_chromium
def test_it_fits_a_narrow_dense_screen_and_the_dark(browser: Browser, page: Path) -> None:
    tab = Tab(browser, page)
    tab.wait(f"{PIXELS}[0] > 0.1")
    light = tab.run(PIXELS)[1]
    tab.scheme("dark")
    tab.wait(f"{PIXELS}[1] !== {light}")
    tab.size(360, 700, scale=2)
    tab.wait(f"{CANVAS}.width === 2 * {CANVAS}.clientWidth && {CANVAS}.clientWidth < 360")
    tab.wait(f"{PIXELS}[0] > 0.05")
    assert tab.run("document.documentElement.scrollWidth") <= 360
    assert math.isclose(tab.run(f"{CANVAS}.height / {CANVAS}.clientHeight"), 2, rel_tol=0.01)
    assert tab.complaints == []
    tab.close()
