"""The verb `report`: one HTML page with everything the records show, and nothing else.

Findings in sentences first, then tables, figures, every item, how each number is computed, and where each comes from.
The page is self-contained: styles and scripts inline and allowed by their hashes, pictures and items as data, a content
policy that forbids every request. Without scripts nothing is lost but sorting, turning and searching. The same records
give the same bytes.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from analysis import inline, reproduction, writers
from analysis.explorer import Explorer, explorer
from analysis.figures import FIGURES
from analysis.figures import JUDGED as JUDGED_FIGURES
from analysis.files import put
from analysis.findings import findings, summary_lines
from analysis.load import Library, library
from analysis.pictures import Picture, picture
from analysis.protocols import protocols, under
from analysis.provenance import Sources, ids, of_verbs, provenance, ranges, sources
from analysis.rotatable import scene
from analysis.speed_explanation import companions
from analysis.style import Settings
from analysis.summary import one_screen
from analysis.table_ir import Table
from analysis.tables import JUDGED, build
from selectkd_eval import __version__, stats
from selectkd_eval.errors import InputError
from selectkd_eval.records import unfinished
from selectkd_eval.verbs import ReportOptions

__all__ = ["page", "run", "summary_lines"]

PAGE = 1_000_000  # bytes of the page: what is cut for it are the explorer's texts
ITEMS = 20_000  # rows of the explorer
_TABLES = {1: "winrate", 2: "passk", 4: "train", 5: "speedup"}
_TRAINED = ("train", "tar")
_JUDGED = ("winrate",)
_DRAWN_FROM = {
    "winrate": _JUDGED,
    "judges": _JUDGED,
    "passk": ("passk", "regrade"),
    "teachers": ("passk", "regrade", "winrate"),
    "curves": _TRAINED,
    "training": ("train",),
    "tar": _TRAINED,
    "theorem": _TRAINED,
    "breakdown": ("tar",),
    "landscape": ("landscape",),
    "speedup": ("speedup",),
}

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


class Shown(NamedTuple):
    """A table as the page holds it: its HTML, and the records behind every row."""

    name: str
    title: str
    text: Markup
    sources: list[Sources]


def run(options: ReportOptions) -> int | None:
    """Write the page and the state of reproduction; print what it comes to on one screen, and where they are."""
    records = library(options.records)
    drawn: list[str] = []
    put(options.out, page(records, options.title, options.resamples, options.items, drawn))
    told = reproduction.write(records, options.records, options.out, options.state, drawn)
    print(one_screen(records, options.resamples))
    print(told)
    print(f"report: {options.out}")
    return None


def page(
    records: Library,
    title: str,
    resamples: int = stats.RESAMPLES,
    items: int = ITEMS,
    drawn: list[str] | None = None,
) -> str:
    """The page as text, with at most `items` rows in its explorer; the names of its figures are put into `drawn`."""
    left_out = [unfinished(path).replace(str(path), path.name, 1) for path in sorted(records.unfinished)]
    left_out += records.copies.values()
    verbs = _measured(records)
    tables, pictures = _tables(records, resamples, left_out), _pictures(records, resamples, left_out)
    if drawn is not None:
        drawn += [name for name in FIGURES if any(one.name.partition("-")[0] == name for one in pictures)]
    content: dict[str, Any] = {
        "title": title,
        "findings": findings(records, resamples),
        "tables": tables,
        "pictures": pictures,
        "methods": [(name, text) for verb, name, text in METHODS if verb in verbs],
        "intervals": INTERVALS,
        "provenance": provenance(records),
        "scene": scene(records),
        "left_out": left_out,
        "version": __version__,
        "resamples": f"{resamples:,}",
        "style": inline.style(),
        "scripts": inline.scripts(),
    }
    environment = Environment(
        loader=PackageLoader("analysis"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["ranges"] = ranges
    template = environment.get_template("report.html.j2")
    if not items:
        return inline.clean(template.render(content, explorer=None))
    bare = template.render(content, explorer=Explorer("", 0, 0, 0, 0))
    found = explorer(records, items, PAGE - len(inline.clean(bare).encode()) - 500)
    if found is None and any(verb in verbs for verb in ("passk", "winrate", "answer")):
        left_out.append("Items: the page has no room for them; selectkd-eval show RECORD --item ID has them all")
    return inline.clean(template.render(content, explorer=found))


def _measured(records: Library) -> set[str]:
    """What was measured, by verb; answers that were graded again are pass@1 like those of the first time."""
    return {"passk" if record.verb == "regrade" else record.verb for record in records.records}


def _tables(records: Library, resamples: int, left_out: list[str]) -> list[Shown]:
    """Every table that the records can fill, as HTML; the writers have escaped it."""
    made: list[Table] = []
    for number, verb in _TABLES.items():
        if verb not in _measured(records):
            continue
        for part in _by_protocol(records) if number in JUDGED else [records]:
            try:
                made.append(build(number, part, resamples))
                if number == 5:
                    made += companions(part, resamples)
            except InputError as error:
                left_out.append(f"Table {number}: {error}")
    known, names = ids(records), [table.name for table in made]
    shown = []
    for place, table in enumerate(made):
        # A table has as many versions as there are protocols, and an id on a page is there once.
        again = names[:place].count(table.name)
        named = dataclasses.replace(table, name=f"{table.name}-{again + 1}") if again else table
        text = Markup(writers.html(named, linked=True))
        shown.append(Shown(named.name, named.title, text, sources(named, known)))
    return shown


def _by_protocol(records: Library) -> list[Library]:
    """The records once for every judging protocol in them: two never share a table or a figure."""
    return [under(records, protocol) for protocol in protocols(records)] or [records]


def _pictures(records: Library, resamples: int, left_out: list[str]) -> list[Picture]:
    """Every figure that the records can fill."""
    made: list[Picture] = []
    for name in FIGURES:
        for part in _by_protocol(records) if name in JUDGED_FIGURES else [records]:
            try:
                one = picture(name, part, Settings(resamples))
            except InputError as error:
                left_out.append(f"Figure {name}: {error}")
                continue
            print(f"drew {name}", file=sys.stderr)
            again = sum(other.name.partition("-")[0] == name for other in made)
            behind = of_verbs(part, _DRAWN_FROM.get(name, ()), ids(records))
            made.append(one._replace(name=f"{name}-{again + 1}" if again else name, records=behind))
    return made
