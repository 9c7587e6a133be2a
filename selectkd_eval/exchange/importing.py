"""`import`: what another tool has measured, as records that tables, figures and the page can hold.

The files say by their content whose they are. Everything is read and checked before the first record is begun, so a
damaged file leaves nothing behind. The same command on the same files writes nothing a second time.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from selectkd_eval import passk_table, records, speed_summary
from selectkd_eval.errors import InputError
from selectkd_eval.exchange import alpaca_eval, lm_eval, spec_bench
from selectkd_eval.exchange.foreign import Found
from selectkd_eval.records import Record, open_record
from selectkd_eval.terminal import visible
from selectkd_eval.verbs import ImportOptions

# kind: whether a file is such a tool's, and the records that its files make
KINDS: dict[str, tuple[Callable[[Path], bool], Callable[[ImportOptions, list[Path]], list[Found]]]] = {
    "lm-eval": (lm_eval.fits, lm_eval.found),
    "alpaca-eval": (alpaca_eval.fits, alpaca_eval.found),
    "spec-bench": (spec_bench.fits, spec_bench.found),
}
KNOWN = (
    "lm-eval's results_*.json with samples_*.jsonl beside it (--log_samples), AlpacaEval's model_outputs.json or "
    "annotations.json, Spec-Bench's answers (.jsonl, with --baseline)"
)


def run(options: ImportOptions) -> int:
    """Write the records and print, for each, its path and its numbers. Returns 0; errors are raised."""
    paths = _files(options)
    kind = options.kind if options.kind != "auto" else _kind(paths)
    if options.baseline is not None and kind != "spec-bench":
        raise InputError(f"--baseline belongs to Spec-Bench's answers, and these are {kind}'s: leave it out")
    if options.metric and kind != "lm-eval":
        raise InputError(f"--metric belongs to lm-eval's results, and these are {kind}'s: leave it out")
    try:
        wanted = KINDS[kind][1](options, paths)
    except InputError as error:
        # A name that a foreign file gives may hold line ends, and what is said is one line.
        raise InputError(" ".join(str(error).split())) from None
    # All of them before a line is printed: whoever looks at the first lines alone (`| head`) loses no record.
    written = [(_write(found, len(wanted) > 1), found.lines) for found in wanted]
    for record, lines in written:
        print(record.path)
        print(visible("\n".join([*_lines(record), *lines])))
    return 0


def _files(options: ImportOptions) -> list[Path]:
    """The files that were named, and those below the directories that were."""
    found: list[Path] = []
    for path in map(Path, options.files):
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file() and _known_ending(file))
            if not inside:
                raise InputError(f"{path} holds no .json or .jsonl file: give a directory with {KNOWN}")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise InputError(f"there is no file or directory {path}: give {KNOWN}")
    return list(dict.fromkeys(found))


def _known_ending(path: Path) -> bool:
    return path.name.removesuffix(".gz").endswith((".json", ".jsonl"))


def _kind(paths: list[Path]) -> str:
    """Whose files these are, by their content; an InputError when nobody's here, or of several tools."""
    whose = {kind for path in paths for kind, (fits, _) in KINDS.items() if fits(path)}
    if not whose:
        shown = ", ".join(path.name for path in paths[:3]) + (", ..." if len(paths) > 3 else "")
        raise InputError(f"{shown}: of no tool that is known here; give {KNOWN}")
    if len(whose) > 1:
        raise InputError(
            f"these are files of {' and '.join(sorted(whose))}: import them apart, or say which with --kind"
        )
    return whose.pop()


def _write(found: Found, several: bool) -> Record:
    """The finished record; rows that an earlier run of the command wrote are kept as they are."""
    words = (found.options.name, found.name) if several else (found.options.name or found.name,)
    name = "-".join(word for word in words if word)
    with open_record(found.verb, found.options, inputs=found.inputs, facts=found.facts, name=name) as writer:
        for row in () if writer.complete else found.rows:
            if row["key"] not in writer.done:
                writer.write(**row)
        writer.finish()
    return records.read(writer.path)


def _lines(record: Record) -> Iterator[str]:
    """The record's numbers, as its verb would print them."""
    if record.verb == "passk":
        yield from passk_table.lines(record.facts, record.rows)
    elif record.verb == "speedup":
        yield from speed_summary.lines(record.facts, record.rows)
    elif record.verb == "winrate":
        # Judging imports this package and not the other way; its words are found by name, as its verb is.
        summary: Any = importlib.import_module("judges.summary")
        yield from summary.lines(record)
    else:
        empty = sum(not str(row["answer"]).strip() for row in record.good)
        yield f"{len(record.good):,} answers of {record.facts['model']['name']}" + (f", {empty} empty" if empty else "")
