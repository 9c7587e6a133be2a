"""The verb `report`: one HTML page with everything the records show, and nothing else.

Findings in sentences first, then tables, figures, how each number is computed, and where each comes from. The page
is self-contained: styles inline, pictures as data, a content policy that forbids every request, no script. The
same records give the same bytes.
"""

from __future__ import annotations

import base64
import sys
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from analysis import writers
from analysis.figures import FIGURES, draw
from analysis.files import put
from analysis.findings import findings, summary_lines
from analysis.load import Library, library
from analysis.protocols import protocols, under
from analysis.speed_explanation import companions
from analysis.style import Settings, close, encode
from analysis.summary import one_screen
from analysis.tables import JUDGED, build
from selectkd_eval import __version__, stats
from selectkd_eval.environment import sha256_file
from selectkd_eval.errors import InputError
from selectkd_eval.records import Record
from selectkd_eval.verbs import ReportOptions

__all__ = ["page", "run", "summary_lines"]

_TABLES = {1: "winrate", 2: "passk", 4: "train", 5: "speedup"}
_FIGURES = {"passk": "passk", "winrate": "winrate", "training": "train", "tar": "tar", "speedup": "speedup"}
_FIGURES |= {"landscape": "landscape"}
_PIXELS = 130  # CSS pixels per inch of figure
_DPI = 140  # sharp enough on a phone's screen, and the page stays under a megabyte

METHODS: tuple[tuple[str, str, str], ...] = (
    (
        "passk",
        "pass@1",
        "Correct answers / answers, problem by problem; lm-eval's prompts, the grader named in the table.",
    ),
    (
        "winrate",
        "Win rate",
        "Wins / comparisons under the protocol's tie rule, prompt by prompt. Comparisons without a verdict are in "
        "neither sum and are listed below the table.",
    ),
    (
        "tar",
        "Token acceptance",
        "TAR (Eq. 13) by the acceptance indicator, mean over sequences of per-sequence means: greedy Top-k is a rank "
        "test of the student's argmax under the teacher; Spec-k is its exact expectation 1 − TV^k; α is 1 − TV.",
    ),
    (
        "speedup",
        "Speed-up",
        "Per prompt the median over repetitions of plain and of speculative decoding, over as many tokens and all "
        "in turns; the ratio of their sums. Printed only when the text is unchanged. Two drafts are compared by the "
        "ratio of their speed-ups, paired by prompt. The predicted speed-up of decoding comes from the target's own "
        "text, read again by both models, and the cost of a call; Table 5, explained, says what lies between it, the "
        "formula of Leviathan et al. (2023) and the clock.",
    ),
    (
        "landscape",
        "Landscape",
        "Unweighted forward KL on one token batch along Gaussian directions scaled to every output row's norm (Li et "
        "al. 2018); the same noise, tokens and radius for every student.",
    ),
)
INTERVALS = (
    "Intervals are 95 % percentile bootstraps that resample prompts with all seeds, samples and orders of a prompt "
    f"together (Wilson's where fewer than {stats.RARE} prompts succeed, fail or differ). Differences are paired by "
    "prompt. They hold for the students that were trained; the spread over training seeds is shown beside them."
)


class Picture(NamedTuple):
    """A figure as the page holds it."""

    name: str
    source: str
    caption: str
    alt: str
    width: int


def run(options: ReportOptions) -> int | None:
    """Write the page; print what it comes to on one screen, and its path."""
    records = library(options.records)
    put(options.out, page(records, options.title, options.resamples))
    print(one_screen(records, options.resamples))
    print(f"report: {options.out}")
    return None


def page(records: Library, title: str, resamples: int = stats.RESAMPLES) -> str:
    """The page as text."""
    left_out: list[str] = [f"{path.name} is unfinished" for path in sorted(records.unfinished)]
    environment = Environment(
        loader=PackageLoader("analysis"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    verbs = _measured(records)
    return environment.get_template("report.html.j2").render(
        title=title,
        findings=findings(records, resamples),
        tables=_tables(records, resamples, left_out),
        pictures=_pictures(records, resamples, left_out),
        methods=[(name, text) for verb, name, text in METHODS if verb in verbs],
        intervals=INTERVALS,
        machines=_machines(records),
        provenance=[_origin(record) for record in records.records],
        left_out=left_out,
        version=__version__,
        resamples=f"{resamples:,}",
    )


def _measured(records: Library) -> set[str]:
    """What was measured, by verb; answers that were graded again are pass@1 like those of the first time."""
    return {"passk" if record.verb == "regrade" else record.verb for record in records.records}


def _tables(records: Library, resamples: int, left_out: list[str]) -> list[Markup]:
    """Every table that the records can fill, as HTML; the writers have escaped it."""
    made = []
    for number, verb in _TABLES.items():
        if verb not in _measured(records):
            continue
        for part in _by_protocol(records) if number in JUDGED else [records]:
            try:
                made.append(Markup(writers.html(build(number, part, resamples))))
                if number == 5:
                    made += [Markup(writers.html(table)) for table in companions(part, resamples)]
            except InputError as error:
                left_out.append(f"Table {number}: {error}")
    return made


def _by_protocol(records: Library) -> list[Library]:
    """The records once for every judging protocol in them: two never share a table or a figure."""
    return [under(records, protocol) for protocol in protocols(records)] or [records]


def _pictures(records: Library, resamples: int, left_out: list[str]) -> list[Picture]:
    made = []
    for name, verb in _FIGURES.items():
        assert name in FIGURES
        if verb not in _measured(records):
            continue
        for part in _by_protocol(records) if name == "winrate" else [records]:
            try:
                made.append(_picture(name, part, resamples))
            except InputError as error:
                left_out.append(f"Figure {name}: {error}")
    return made


def _picture(name: str, records: Library, resamples: int) -> Picture:
    drawing = draw(name, records, Settings(resamples))
    print(f"drew {name}", file=sys.stderr)
    width = round(_PIXELS * float(drawing.figure.get_size_inches()[0]))
    data = base64.b64encode(encode(drawing, "png", _DPI)).decode()
    close(drawing)
    return Picture(name, f"data:image/png;base64,{data}", drawing.caption, drawing.alt, width)


def _origin(record: Record) -> dict[str, Any]:
    """Where a number comes from: the record, its digest, the code and the seed."""
    header = record.header
    return {
        "name": record.path.name,
        "verb": record.verb,
        "sha256": sha256_file(record.path),
        "git": (header.get("git") or "not in a checkout")[:13],
        "version": header.get("version") or "unknown",
        "rows": f"{len(record.good):,}",
        "failed": f"{len(record.failed):,}",
        "seed": record.options.get("seed", "–"),
    }


def _machines(records: Library) -> list[str]:
    """The machines and versions that measured, each once."""
    found = set()
    for record in records.records:
        env = record.header.get("environment") or {}
        packages = ", ".join(f"{name} {version}" for name, version in sorted((env.get("packages") or {}).items()))
        machine = f"{env.get('processor', 'unknown processor')}, {env.get('cores', '?')} cores, {env.get('system', '')}"
        found.add(f"{machine}; Python {env.get('python', '?')}; {packages}")
    return sorted(found)
