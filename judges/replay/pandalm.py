"""What do PandaLM's files say? Its labelled test set as three raters, its judges' verdicts as one.

The test set holds the labels of three people per pair of responses, a judge's file one verdict per `idx`. Response 2
is the candidate here and response 1 the baseline, which was shown first; 1 and 2 name the better response, 0 or "Tie"
neither, and "garbage" is a reply that PandaLM could not read. Rows are keyed by `idx`, so that raters and judges of the
same pairs can be compared. The pairs come from several models: a win rate over them says little about any one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from judges.replay.published import Published, Row, card, judge, protocol
from judges.tasks import row
from judges.verdicts import Verdict
from selectkd_eval.errors import InputError
from selectkd_eval.prompts import prompt_id

FORMAT = "pandalm"
_LABEL = re.compile(r"annotator\d+")
_RESULT = re.compile(r"(\w+)_result")
_WORDS = {"0": Verdict("tie"), "tie": Verdict("tie"), "1": Verdict("baseline"), "2": Verdict("candidate")}
_GARBAGE = "garbage"


def fits(entries: Sequence[Any]) -> bool:
    """Whether the entries are pairs with labels, or verdicts on them."""
    first = entries[0]
    return isinstance(first, dict) and "idx" in first and bool(_voices(first))


def load(entries: Sequence[Mapping[str, Any]], path: Path, sha256: str) -> Published:
    """The labels or verdicts of one file; an InputError says what is wrong with it."""
    voices = _voices(entries[0])
    if len(voices) > 1 and any(_RESULT.fullmatch(name) for name in voices):
        raise InputError(f"{path} holds the verdicts of several judges ({', '.join(voices)}): give one file per judge")
    rows: list[Row] = []
    seen: set[str] = set()
    for number, entry in enumerate(entries, start=1):
        where = f"entry {number} of {path}"
        if not isinstance(entry, Mapping) or (absent := [name for name in ("idx", *voices) if name not in entry]):
            raise InputError(f"{where} has no {' or '.join(absent)}, and every pair needs the same fields: restore it")
        index = str(entry["idx"])
        if index in seen:
            raise InputError(f"{where} repeats idx {index}: restore the file")
        seen.add(index)
        rows += [_row(entry, index, name, sample, where) for sample, name in enumerate(voices)]
    labelled = _LABEL.fullmatch(voices[0])
    name = "PandaLM's annotators" if labelled else _judge(path, voices[0])
    return Published(
        format=FORMAT,
        sha256=sha256,
        judge=judge(name, raters=voices) if labelled else judge(name),
        protocol=protocol("pandalm", "fixed", "half", "PandaLM: response 1 always first; a tie is offered"),
        candidate=card("response 2"),
        baseline=card("response 1"),
        prompts={"name": "PandaLM testset-v1", "sha256": sha256},
        rows=rows,
    )


def _voices(entry: Mapping[str, Any]) -> list[str]:
    """The fields that hold somebody's verdict: those of the annotators, or a judge's."""
    labels = sorted(name for name in entry if _LABEL.fullmatch(name))
    return labels or sorted(name for name in entry if _RESULT.fullmatch(name))


def _judge(path: Path, field: str) -> str:
    """A judge's name: the file's, which says more than the field's, where the file is named as PandaLM names it."""
    stem, found, _ = path.name.partition("-testset")
    return stem if found and stem else field.removesuffix("_result")


def _row(entry: Mapping[str, Any], index: str, name: str, sample: int, where: str) -> Row:
    said = str(entry[name]).strip().lower()
    verdict = Verdict("unreadable", "garbage in the file") if said == _GARBAGE else _WORDS.get(said)
    if verdict is None:
        raise InputError(f"{where} has {name} {entry[name]!r}, which is not 0, 1, 2, Tie or garbage: restore the file")
    texts = {"candidate_chars": entry.get("response2"), "baseline_chars": entry.get("response1")}
    lengths: dict[str, Any] = {field: len(text) for field, text in texts.items() if isinstance(text, str)}
    return row(prompt_id(f"pandalm-{index}"), 0, "baseline-first", verdict, sample=sample, **lengths)
