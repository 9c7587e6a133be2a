"""Where does a thinking model's reasoning end and its answer begin?

What stands between `<think>` and `</think>` at the head of a text is no part of the answer: it is neither judged nor
trained on, and it is kept beside it. A block in the middle of a text belongs to the text.
"""

from __future__ import annotations

import re
from typing import NamedTuple

FACT = "a <think> block at the head of a text is kept as `reasoning`, and is no part of the answer"
TAGS = "think|thinking|thought|reasoning"
_OPEN = re.compile(rf"\s*<({TAGS})>", re.IGNORECASE)
_CLOSE = re.compile(rf"</({TAGS})>", re.IGNORECASE)
_ANY_OPEN = re.compile(rf"<({TAGS})>", re.IGNORECASE)
_OPENED = re.compile(rf"<({TAGS})>\s*\Z", re.IGNORECASE)


class Parts(NamedTuple):
    """An answer, and the reasoning before it; both without the tags."""

    answer: str
    reasoning: str


def split(text: str, prompt: str | None) -> Parts:
    """Answer and reasoning of a written text. A block that is not closed leaves an empty answer.

    `prompt` is what stood before the text: chat templates of thinking models open the block themselves, and then the
    text holds only its end. None where that is not known (a server's template): then an end without a beginning ends
    a block that the template began.
    """
    opened, begun = _OPENED.search(prompt or ""), _OPEN.match(text)
    start = begun.end() if begun else 0
    end = _CLOSE.search(text, start)
    swallowed = prompt is None and end is not None and not _ANY_OPEN.search(text, 0, end.start())
    if not (opened or begun or swallowed):
        return Parts(text, "")
    if end is None:
        return Parts("", text[start:].strip())
    return Parts(text[end.end() :].lstrip(), text[start : end.start()].strip())
