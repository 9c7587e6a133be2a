"""How far is the paper reproduced? Every table and figure of it, with what was measured here and by which command.

The state that `report` writes as a README: reproduced where the models, prompts and protocol are the paper's, at
smaller scale where records fill the table or figure with other ones, not attempted where none do. Tables are matched
number by number, by the same rules by which one stands beside ours; the figures' numbers are not published, so that
with the paper's models (and judges) they are reproduced in part at most. Reproduced says what was measured, not that
the numbers agree: that is to be seen in the tables with `--paper`.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from analysis import figures, paper, style
from analysis.files import put
from analysis.load import Library
from analysis.pairs import Pair, Pairs, plain
from analysis.protocols import protocols, under
from analysis.table_ir import Table
from analysis.tables import JUDGED, build
from analysis.writers import markdown_text
from selectkd_eval.errors import InputError
from selectkd_eval.records import Record, imported

REPRODUCED, PART = "reproduced", "reproduced in part"
SMALLER, NOT = "at smaller scale", "not attempted"
_RESAMPLES = 20  # intervals are not shown here; the cells are the same with any number
_PAIR = ("qwen2-7b", "qwen2-1.5b")  # of Figures 1 and 3 to 5
_JUDGES = ("gpt-4o", "deepseek-chat", "qwen-plus-2025-01-25", "moonshot-v1-8k")  # of Figure 5
_PASSES, _TRAINED = ("passk", "regrade"), ("train", "tar")
_NEEDS = "needs GPUs and the paper's models"
_ASKS = f"{_NEEDS}, and its judges' API keys"

_FIRST = "# Reports\n"  # every state begins so, and is known by it
FOLDERS = f"""{_FIRST}
| where | what | made by |
|---|---|---|
| `paper/table1.csv` ... `table6.csv` | the published numbers, typed from the paper | by hand; tests recompute \
averages and differences |
| `tables/`, `figures/` | the embedded pair's tables and figures, with full-precision JSON twins | `make demo`, then \
`selectkd-eval table N` and `figure NAME` on `reports/demo/records` |
| `tables/methods/` | every recipe with and without a gate on the embedded pair | \
`bash reports/reproduce/methods.sh` |
| `reproduce/` | the paper's Tables 1 to 6 as scripts for a GPU machine, every number with its source, and what they \
do not cover | by hand; `DRY_RUN=1` checks every option |
| `demo/` | records, students, logs and page of your own run (not in the repository) | `make demo` |
| `records/` | records of your own commands (not in the repository) | every measuring verb, unless `--out` says \
otherwise |

Tables and figures are functions of records alone: the same records give the same bytes.
"""
_INTRO = """## State of reproduction

Written by `selectkd-eval report`. Reproduced: measured here with the paper's models, prompts and, where it judges,
judges and protocol; whether the numbers agree is for the table to say (`--paper` sets both beside each other). At
smaller scale: measured here with other models or prompts. The figures' numbers are not published: of them only the
models and judges are compared, so that none is called more than reproduced in part.
"""


class Item(NamedTuple):
    """A table or figure of the paper: what is in it, from which verbs' records it comes, and how it would be made."""

    name: str
    what: str
    verbs: tuple[str, ...]
    script: str
    lacks: str


class State(NamedTuple):
    """What there is of one item; `command` makes it, from records or from nothing."""

    item: Item
    state: str
    measured: str
    command: str
    machines: str


TABLES: dict[int, Item] = {
    number: Item(f"Table {number}", what, verbs, f"bash reports/reproduce/table{number}.sh", lacks)
    for number, (what, verbs, lacks) in {
        1: ("win rates", ("winrate",), _ASKS),
        2: ("pass@1", _PASSES, _NEEDS),
        3: (
            "vision-language benchmarks",
            _PASSES,
            "nothing here runs models with images: measure elsewhere and selectkd-eval import the samples",
        ),
        4: ("ablation of the gate", ("winrate", *_PASSES), _ASKS),
        5: ("speculative decoding", ("speedup",), _NEEDS),
        6: ("ablation of the gate, all of it", ("winrate", *_PASSES), _ASKS),
    }.items()
}
_TRAINING = TABLES[1].script
FIGURES: dict[str, Item] = {
    "1": Item("Figure 1", "win rates by loss", ("winrate",), _TRAINING, f"{_ASKS}, and one training per loss"),
    "3a": Item("Figure 3a", "methods during training", _TRAINED, _TRAINING, _NEEDS),
    "3b": Item(
        "Figure 3b",
        "larger teachers",
        ("winrate", *_PASSES),
        "selectkd-eval train --teacher LARGER",
        f"{_NEEDS}; which teachers it had is in the picture alone",
    ),
    "4a": Item("Figure 4a", "validation loss and TAR", _TRAINED, f"{_TRAINING}; selectkd-eval tar", _NEEDS),
    "4b": Item("Figure 4b", "loss landscapes", ("landscape",), f"{_TRAINING}; selectkd-eval landscape", _NEEDS),
    "5": Item("Figure 5", "losses under four judges", ("winrate",), f"JUDGE=... {_TRAINING}", _ASKS),
}


def state(library: Library, where: str | Path, drawn: Collection[str] | None = None) -> str:
    """The README of reports: its folders, and the state of every table and figure, in Markdown.

    `where` is the directory of the records as a command names it. `drawn` names the figures (as `figures.FIGURES` does)
    that the records fill, where the caller knows; otherwise each is tried. The same records give the same text.
    """
    lines = [
        FOLDERS,
        _INTRO,
        "| of the paper | state | measured here, or what it needs | command | on |",
        "|---|---|---|---|---|",
    ]
    for one in states(library, where, drawn):
        told = (f"{one.item.name}, {one.item.what}", one.state, one.measured)
        command = f"`{one.command.replace('|', chr(92) + '|')}`" if one.command else "—"
        lines.append(f"| {' | '.join(map(markdown_text, told))} | {command} | {markdown_text(one.machines)} |")
    return "\n".join(lines) + "\n"


def write(library: Library, where: Path, page: Path, asked: Path | None, drawn: Collection[str] | None = None) -> str:
    """Write the state where it was asked for, else as README.md beside the page; return the line that says so.

    A README of somebody else beside the page is left alone, and the line says that.
    """
    path = asked or page.with_name("README.md")
    if asked is None and path.is_file() and not path.read_bytes().startswith(_FIRST.encode()):
        return f"state of reproduction: not written, {path} is not one of ours; give --state"
    return f"state of reproduction: {put(path, state(library, where, drawn))}"


def states(library: Library, where: str | Path, drawn: Collection[str] | None = None) -> list[State]:
    """Every table and figure of the paper, in its order; Figure 2 is a drawing of the method."""
    told = [_table(library, number, item, str(where)) for number, item in TABLES.items()]
    pictures = [_figure(library, number, item, str(where), drawn) for number, item in FIGURES.items()]
    overview = State(
        Item("Figure 2", "overview of the method", (), "", ""),
        "not a measurement",
        "a drawing: nothing to make",
        "",
        "—",
    )
    return [*told, pictures[0], overview, *pictures[1:]]


def _table(library: Library, number: int, item: Item, where: str) -> State:
    """A table's state, from the table that the records give."""
    made: list[Table] = []
    for part in _parts(library, number in JUDGED):
        try:
            made.append(build(number, part, _RESAMPLES, paper=True))
        except InputError:
            continue
    used = [record for record in library.records if record.verb in item.verbs and made]
    if not used:
        return State(item, NOT, item.lacks, item.script, "—")
    rows = [row for table in made for block in table.blocks for row in block.rows]
    behind = {name for row in rows for cell in row.cells for name in cell.records}
    used = [record for record in used if record.path.name in behind]
    total = sum(_numbers(number, row) for row in paper.published(number))
    found = min(total, sum(_counterparts(number, table, total) for table in made))
    word = SMALLER if not found else REPRODUCED if found == total else PART
    count = f"{found} of {total} published {'rows' if number == 5 else 'numbers'} have a counterpart" if found else ""
    command = f"selectkd-eval table {number} --records {shlex.quote(where)} --paper"
    return State(item, word, "; ".join(filter(None, (count, _told(library, used)))), command, _machines(used))


def _parts(library: Library, judged: bool) -> list[Library]:
    """The library once for every judging protocol in it, for what never mixes two."""
    found = protocols(library) if judged else []
    return [under(library, protocol) for protocol in found] or [library]


def _numbers(number: int, row: paper.Row) -> int:
    """How many numbers a published row holds; Table 2 prints a task a row, and Table 5 is counted by rows."""
    named = ("pair", "method", "base_method", "model")
    wide = [name for name in row if name not in named and not name.startswith("delta_")]
    return len(wide) if number in (1, 3) else 1


def _counterparts(number: int, table: Table, total: int) -> int:
    """How many numbers of the paper (rows of Table 5) have one of ours beside them."""
    if number == 5:
        # Its published rows that were not measured stand in blocks of their own.
        left = sum(len(block.rows) for block in table.blocks if block.title.startswith(paper.TITLE))
        return total - left
    places = [place for place, column in enumerate(table.columns) if column.group == paper.GROUP]
    rows = [(block.title, row) for block in table.blocks for row in block.rows]
    return len({(title, row.label, place) for title, row in rows for place in places if row.cells[place].text})


def _figure(library: Library, number: str, item: Item, where: str, drawn: Collection[str] | None) -> State:
    """A figure's state, from what it would be drawn from."""
    name = figures.named(number, library)
    verbs = _PASSES if name == "passk" else item.verbs
    used = [record for record in library.records if record.verb in verbs]
    if number == "5" and len({_judge(record) for record in used}) < 2:
        used = []  # one judge does not say whether the judge matters
    parts = _parts(library, name in figures.JUDGED) if used and drawn is None else []
    if not used or not (any(_draws(name, part) for part in parts) if drawn is None else name in drawn):
        return State(item, NOT, item.lacks, item.script, "—")
    same = _of_the_paper(library, used) and _CONDITIONS.get(number, _any)(library, used)
    command = f"selectkd-eval figure {number} --records {shlex.quote(where)}"
    told = _told(library, used)
    if same:
        # What is drawn in the paper's picture is not published: neither all of its methods nor its prompts are known.
        told += "; its models, but whether every line of it is here is not compared"
    return State(item, PART if same else SMALLER, told, command, _machines(used))


def _draws(name: str, library: Library) -> bool:
    """Whether the records fill a figure."""
    try:
        drawing = figures.draw(name, library, style.Settings(_RESAMPLES))
    except InputError:
        return False
    style.close(drawing)
    return True


def _of_the_paper(library: Library, used: Iterable[Record]) -> bool:
    """Whether a student among these records has the figures' teacher and start."""
    found = _pairs(library, used)
    return any((paper.model_name(pair.teacher), paper.model_name(pair.student)) == _PAIR for pair in found)


def _pairs(library: Library, used: Iterable[Record]) -> list[Pair]:
    """The pairs of the students among these records."""
    pairs, used = Pairs(library), list(used)
    methods = {library.method(card) for record in used for card in _cards(record)}
    methods |= {library.trained(record) for record in used if record.verb == "train"}
    found = {pair for method in methods if method.role == "student" for pair in pairs.of(method)}
    return sorted(found)


def _any(library: Library, used: Iterable[Record]) -> bool:
    return True


def _losses(library: Library, used: Iterable[Record]) -> bool:
    """Several losses, on Evol-Instruct under GPT-4o."""
    kept = [r for r in used if _prompts(r) and _prompts(r)[0][0] == "evol-instruct" and _judge(r).startswith("gpt-4o")]
    divergences = {(card.get("training") or {}).get("divergence") for record in kept for card in _cards(record)} - {
        None
    }
    return len(divergences) > 1


def _teachers(library: Library, used: Iterable[Record]) -> bool:
    """Several teachers of one student."""
    teachers = {pair.teacher for pair in _pairs(library, used) if paper.model_name(pair.student) == _PAIR[1]}
    return len(teachers) > 1


def _judges(library: Library, used: Iterable[Record]) -> bool:
    """All four judges."""
    return {_judge(record) for record in used} >= set(_JUDGES)


def _gated(library: Library, used: Iterable[Record]) -> bool:
    """A gated student, and one without a gate."""
    trainings = [card.get("training") or {} for record in used for card in _cards(record)]
    trainings += [record.facts.get("training") or {} for record in library.of("train")]
    gates = {str(training.get("verifier") or "none") for training in trainings if training}
    return "none" in gates and len(gates) > 1


_CONDITIONS: dict[str, Callable[[Library, Iterable[Record]], bool]] = {
    "1": _losses,
    "3a": _gated,
    "3b": _teachers,
    "4a": _gated,
    "4b": _gated,
    "5": _judges,
}


def _told(library: Library, used: Iterable[Record]) -> str:
    """Models, prompts with their numbers, seeds and judges of these records."""
    used = list(used)
    cards = [card for record in used for card in _cards(record)]
    names = sorted({plain(str(card.get("name"))) for card in cards})
    pairs = list(dict.fromkeys(pair.title for pair in _pairs(library, used))) or names
    asked = sorted({f"{name} n = {n:,}" for record in used for name, n in _prompts(record)})
    seeds = {card["seed"] for card in cards if isinstance(card.get("seed"), int)}
    seeds |= {record.options["seed"] for record in used if record.verb == "train" and "seed" in record.options}
    judges = sorted({_judge(record) for record in used} - {""})
    parts = [_some(pairs), _some(asked), f"{len(seeds)} training seed{'s' * (len(seeds) > 1)}" if seeds else ""]
    return "; ".join(filter(None, [*parts, f"judge {', '.join(judges)}" if judges else ""]))


def _some(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _cards(record: Record) -> Iterator[dict[str, Any]]:
    """The cards of the models that a record measured."""
    for name in ("model", "candidate", "drafts", "students"):
        found = record.facts.get(name) or []
        yield from found if isinstance(found, list) else [found]


def _prompts(record: Record) -> list[tuple[str, int]]:
    """The prompt sets of a record, or its tasks, each with how many prompts."""
    if tasks := record.facts.get("tasks"):
        return [(task, int(facts.get("n") or 0)) for task, facts in tasks.items()]
    prompts = record.facts.get("prompts") or {}
    if not isinstance(prompts, dict) or not prompts.get("name"):
        return []
    return [(str(prompts["name"]), int(prompts.get("n") or 0))]


def _judge(record: Record) -> str:
    return str((record.facts.get("judge") or {}).get("name") or "")


def _machines(used: Iterable[Record]) -> str:
    """The machines that measured, from the records' headers, each once."""
    found = set()
    for record in used:
        if origin := imported(record.facts):
            found.add(f"not known, imported from {origin}")
            continue
        env, device = record.header.get("environment") or {}, str(record.facts.get("device") or "cpu")
        words = [] if device == "cpu" else [device]
        words += [str(env.get("processor") or "unknown processor"), f"{env.get('cores') or '?'} cores"]
        found.add(", ".join(words))
    return "; ".join(sorted(found)) or "—"
