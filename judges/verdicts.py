"""What did the judge say? One word per comparison, never a number.

`candidate`, `baseline` and `tie` are verdicts; `unreadable` is a reply that holds none; `failed` is a comparison
that got no reply at all. The last label wins, because an explanation may quote the others; a label that was not
offered is refused, not guessed at; a reply that was cut off or filtered is not searched for labels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from judges.protocols import Order

Word = Literal["candidate", "baseline", "tie", "unreadable", "failed"]

WORDS: tuple[Word, ...] = ("candidate", "baseline", "tie", "unreadable", "failed")

_REASONING = re.compile(r"<(think|thinking|reasoning)>.*?(?:</\1>|\Z)", re.IGNORECASE | re.DOTALL)
_REASONING_END = re.compile(r"\A.*</(?:think|thinking|reasoning)>", re.IGNORECASE | re.DOTALL)
_LABEL = re.compile(r"\[\[\s*([A-Za-z]|tie)\s*\]\]", re.IGNORECASE)
_CUT_OFF = {"length": "truncated", "content_filter": "filtered"}


@dataclass(frozen=True)
class Verdict:
    """A word, and for an unreadable or failed comparison the reason."""

    word: Word
    reason: str = ""


def strip_reasoning(text: str) -> str:
    """The reply without its thinking, closed or not; also where the server swallowed the opening tag."""
    return _REASONING_END.sub("", _REASONING.sub("", text)).strip()


def read(
    text: str, finish_reason: str | None, labels: Mapping[str, Literal["first", "second", "tie"]], order: Order
) -> Verdict:
    """The verdict in a judge's reply, with the shown positions turned back into candidate and baseline."""
    if finish_reason in _CUT_OFF:
        return Verdict("unreadable", _CUT_OFF[finish_reason])
    text = strip_reasoning(text)
    if not text:
        return Verdict("unreadable", "empty reply")
    found = _LABEL.findall(text)
    if not found:
        return Verdict("unreadable", "no label")
    label = found[-1].upper()
    if label not in labels:
        return Verdict("unreadable", f"label {label} was not offered")
    position = labels[label]
    if position == "tie":
        return Verdict("tie")
    return Verdict("candidate" if (position == "first") == (order == "candidate-first") else "baseline")


def without_judge(candidate: str, baseline: str) -> Verdict | None:
    """The verdict that needs no judge: identical answers tie, an empty answer loses. None when one is needed."""
    candidate, baseline = candidate.strip(), baseline.strip()
    if candidate == baseline:
        return Verdict("tie", "identical answers")
    if not candidate:
        return Verdict("baseline", "empty candidate answer")
    if not baseline:
        return Verdict("candidate", "empty baseline answer")
    return None
