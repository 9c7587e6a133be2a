"""What happened to one item? A row of any record in full: `show RECORD --item ID`.

Short fields stand on a line each, texts as blocks with their own line breaks, so that an answer can be read beside its
verdict; of a list of runs each has a line, of a long list of numbers its beginning is shown. Whoever prints the lines
spells out what a terminal would obey (`terminal.visible`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from selectkd_eval.errors import InputError
from selectkd_eval.records import Record, canonical
from selectkd_eval.terminal import visible

_SHORT = 80  # characters of a text that still stands on one line
_LISTED = 50  # keys listed when several match
_CUT = 12  # numbers of a list (a trace step by step) that are shown
# The order in which a person asks: which item, what was said, what was made of it, what should it have been.
_FIRST = ("key", "task", "problem", "prompt", "seed", "sample", "order", "arm", "rep", "prompt_sha256")
_LAST = (
    "completion",
    "text",
    "reply",
    "extracted",
    "gold",
    "outcome",
    "correct",
    "verdict",
    "mode",
    "detail",
    "output",
)
_END = ("other", "base", "error")
_RUN = ("rep", "place", "draft", "gamma", "batch", "control", "outcome", "wall_s")  # of one of a row's runs


def item_lines(record: Record, wanted: str) -> Iterator[str]:
    """The row whose key is `wanted`, or begins or ends with it, or has it inside; several are listed by key.

    InputError when no row matches.
    """
    rows = {str(row["key"]): row for row in record.rows}
    found = matching(list(rows), wanted)
    if not found:
        near = difflib.get_close_matches(wanted, rows, n=3, cutoff=0.4) or list(rows)[:3]
        hint = f"; its keys look like {', '.join(near)}" if near else ", for it has no rows yet"
        raise InputError(visible(f"no item of {record.path} matches {wanted!r}{hint}"))
    if len(found) > 1:
        yield f"{len(found):,} items match {wanted}:"
        yield from (f"  {key}{_told(rows[key])}" for key in found[:_LISTED])
        if len(found) > _LISTED:
            yield f"  and {len(found) - _LISTED:,} more: say more of the key"
        return
    yield from full(rows[found[0]])


def matching(keys: Sequence[str], wanted: str) -> list[str]:
    """Keys that are `wanted`; else those with it as whole parts between slashes (HumanEval/3 is not HumanEval/31); else
    those that begin or end with it; else those that have it anywhere.
    """
    inside = f"/{wanted.strip('/')}/"
    for suits in (
        lambda key: key == wanted,
        lambda key: inside in f"/{key}/",
        lambda key: key.startswith(wanted) or key.endswith(wanted),
        lambda key: wanted in key,
    ):
        if found := [key for key in keys if suits(key)]:
            return found
    return []


def full(row: Mapping[str, Any]) -> Iterator[str]:
    """Every field of a row."""
    rest = [name for name in row if name not in (*_FIRST, *_LAST, *_END)]
    order = [name for name in (*_FIRST, *rest, *_LAST, *_END) if name in row]
    for name in order:
        yield from _field(name, row[name])


def _field(name: str, value: Any, indent: str = "") -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        yield f"{indent}{name}:"
        for part, inner in value.items():
            yield from _field(str(part), inner, f"{indent}  ")
    elif isinstance(value, str) and (len(value) > _SHORT or "\n" in value):
        lines = value.split("\n")
        ending = "" if value.endswith("\n") else ", no line end"
        yield f"{indent}{name} ({len(value):,} characters{ending}):"
        yield from (f"{indent}  | {line}" for line in (lines[:-1] if value.endswith("\n") else lines))
    elif isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        yield f"{indent}{name} ({len(value):,}):"
        for one in value:
            parts = [part for part in _RUN if part in one] + [part for part in one if part not in _RUN]
            yield f"{indent}  - {', '.join(f'{part} {_brief(one[part])}' for part in parts)}"
    elif isinstance(value, list):
        yield f"{indent}{name}: {_brief(value)}"
    else:
        text = value if isinstance(value, str) else canonical(value)
        yield f"{indent}{name}: {text}" if text else f"{indent}{name}: (empty)"


def _brief(value: Any) -> str:
    """A value on one line; of a long list of numbers the beginning and the count. `--rows` has it whole."""
    numbers = isinstance(value, list) and all(isinstance(one, int | float) for one in value)
    if numbers and len(value) > _CUT:
        return f"[{','.join(map(canonical, value[:_CUT]))},... {len(value):,} in all]"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else canonical(value)


def _told(row: Mapping[str, Any]) -> str:
    """What became of an item, in a word."""
    word = row.get("outcome") or row.get("verdict") or row.get("event")
    if "error" in row:
        word = "failed"
    elif word is None and "correct" in row:
        word = "right" if row["correct"] else "wrong"
    return f"  {word}" if word is not None else ""
