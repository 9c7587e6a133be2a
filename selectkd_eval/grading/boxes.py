"""Where in a text is the answer? The last `\\boxed{}`, found in linear time whatever the text holds.

Knows no rule of equality: `symbolic` and `published` compare what is found here.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from selectkd_eval.errors import InputError

_OPEN = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
_WORD = re.compile(r"[^\s$]*")
_JOINT = re.compile(r"(?:[\s$,;]|\\[()\[\],;]|\\q?quad|\b(?:and|or)\b|\\text\{\s*(?:and|or)\s*\}|[a-z]\s*=)*")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace opens and closes nothing


class Box(NamedTuple):
    """One box: where its command begins and where it ends in the text, and what it holds."""

    start: int
    end: int
    content: str


def boxes(text: str) -> list[Box]:
    """Every closed `\\boxed{}` and `\\fbox{}`, in order; of nested ones only the innermost.

    `\\boxed 5` holds what follows up to the next space or dollar sign. A box that is never closed, as in a text that
    was cut, is none. Linear: one pass with a stack, because a model in a loop opens thousands.
    """
    starts = {match.end(): match.start() for match in _OPEN.finditer(text)}
    found = []
    stack: list[tuple[int, int] | None] = []
    closed = -1
    for match in _BRACES.finditer(text) if starts else ():
        if match[0] == "{":
            begin = starts.get(match.start())
            stack.append(None if begin is None else (begin, match.end()))
        elif match[0] == "}" and stack and (opened := stack.pop()) is not None and opened[0] > closed:
            found.append(Box(opened[0], match.end(), text[opened[1] : match.start()]))
            closed = opened[0]
    for end, begin in starts.items():
        if text[end - 1].isspace() and text[end : end + 1] not in ("{", ""):
            word = _WORD.match(text, end, end + 200)
            found.append(Box(begin, word.end() if word else end, word[0] if word else ""))
    return sorted(box for box in found if box.content.strip())


def last_box(text: str) -> str | None:
    """The content of the last closed box that holds something, or None."""
    found = boxes(text)
    return found[-1].content.strip() if found else None


def last_boxes(text: str) -> list[str]:
    """The last box and those right before it that only "and", "or" or a comma part from it: "$\\boxed{1}$ and ..."."""
    found = boxes(text)
    run = found[-1:]
    for box in reversed(found[:-1]):
        if not _JOINT.fullmatch(text, box.end, min(run[0].start, box.end + 60)) or run[0].start > box.end + 60:
            break
        run.insert(0, box)
    return [box.content.strip() for box in run]


def boxed_gold(reference: str) -> str:
    """The answer of a MATH reference solution: its last box, also where several stand ("- OR -"), as all published
    graders of MATH read it; an InputError where there is none.
    """
    gold = last_box(reference)
    if gold is None:
        raise InputError(
            f"the reference answer {reference[-60:]!r} has no \\boxed{{}} as MATH's solutions do: add it, "
            f"or give a task whose answers are numbers"
        )
    return gold.strip()
