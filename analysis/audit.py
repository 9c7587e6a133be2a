"""The verb `audit`: is a results table possible as it is printed?

For tables of papers, such as the CSVs in reports/paper, and for the JSON twins that `table` writes. Sums, rounding
grids, power, repeats and speed-ups beside their acceptance, each in a file of its own: a check is one function in
CHECKS. It reads what is printed and nothing else; a finding is a question to the authors, never a verdict, and no
error: the exit code is 0 whenever the checks could run.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from analysis import audit_speed, audit_twin
from analysis.audit_arithmetic import arithmetic
from analysis.audit_claims import across, power, repeats
from analysis.audit_grid import rounding_grid
from analysis.audit_section import Section, Settings, markdown, text
from analysis.audit_table import Printed, plain, read_csv
from analysis.files import put
from analysis.writers import markdown_text
from selectkd_eval.errors import InputError
from selectkd_eval.terminal import WIDTH, visible
from selectkd_eval.verbs import AuditOptions

CHECKS: tuple[Callable[[Printed, Settings], list[Section]], ...] = (
    arithmetic,
    rounding_grid,
    power,
    *audit_speed.CHECKS,
    repeats,
)
MOST_SEEDS = 100
_SIZE = re.compile(r"(.+)=([1-9][0-9]{0,4})")


def run(options: AuditOptions) -> int | None:
    """Check every table and print what was found."""
    found = audit(options)
    for title, sections in found:
        print(textwrap.fill(visible(title), WIDTH, subsequent_indent="  ", break_on_hyphens=False))
        for section in sections:
            print()
            print("\n".join(text(section)))
        print()
    if options.out is not None:
        put(options.out, page(found))
    return None


def audit(options: AuditOptions) -> list[tuple[str, list[Section]]]:
    """The sections of every file, under its name; an InputError for a file that holds no table."""
    if options.digits is not None and not 0 <= options.digits <= 9:
        raise InputError(f"--digits is the count of printed decimals, 0 to 9, but {options.digits} was given")
    if not 1 <= min(options.seeds) <= max(options.seeds) <= MOST_SEEDS:
        given = " ".join(map(str, options.seeds))
        raise InputError(f"--seeds are counts from 1 to {MOST_SEEDS}, but {given} was given: give --seeds 1 3")
    if options.sd <= 0:
        raise InputError(f"--sd is a standard deviation above 0, but {options.sd:g} was given: give --sd 0.4")
    tables = [_read(path, options.digits) for path in options.files]
    printed = [table for table in tables if isinstance(table, Printed)]
    settings = Settings(sizes(options.n, printed), options.protocol, options.seeds, options.sd)
    found = []
    for table in tables:
        if isinstance(table, Printed):
            sections = [section for check in CHECKS for section in check(table, settings)]
            title = f"{table.path}: {len(table.lines)} rows, {', '.join(table.columns)}"
        else:
            sections = audit_twin.sections(table)
            title = f"{table.path}: {table.title}"
        found.append((title, sections or [Section("Nothing to check", (), ("No check applies to these columns.",))]))
    if len(printed) > 1 and (shared := across(printed)):
        found.append(("All files", shared))
    return found


def _read(path: Path, digits: int | None) -> Printed | audit_twin.Twin:
    return audit_twin.read(path) if path.suffix == ".json" else read_csv(path, digits)


def sizes(words: Iterable[str], tables: Sequence[Printed]) -> Mapping[str, tuple[int, ...]]:
    """`COLUMN=N` by plain column name, several numbers for one if need be; an InputError for a column not there."""
    found: dict[str, tuple[int, ...]] = {}
    columns = sorted({column for table in tables for column in table.results})
    for word in words:
        match = _SIZE.fullmatch(word)
        if match is None:
            raise InputError(
                f"--n takes COLUMN=NUMBER below 100,000, such as evol_instruct=218, but {word!r} was given"
            )
        name = plain(match[1])
        if name not in map(plain, columns):
            raise InputError(f"--n {word}: no table has a column {match[1]!r}; there are: {', '.join(columns)}")
        found[name] = (*found.get(name, ()), int(match[2]))
    return found


def page(found: Iterable[tuple[str, Sequence[Section]]]) -> str:
    """The audit as Markdown."""
    lines = [
        "# Audit",
        "",
        "Made by `selectkd-eval audit`. Findings are questions to a table's authors, not verdicts.",
        "",
    ]
    for title, sections in found:
        lines += [f"## {markdown_text(title)}", ""]
        lines += [line for section in sections for line in markdown(section)]
    return "\n".join(lines).rstrip() + "\n"
