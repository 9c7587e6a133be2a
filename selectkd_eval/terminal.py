"""What may a terminal be shown, and how do numbers stand under each other there?

A model's answer is text that somebody else wrote: an escape sequence in it could clear the screen, retitle the window
or hide what follows. `visible` spells such characters out. No number is computed here.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

WIDTH = 120  # characters of a line

# Control characters but tab and line feed (ESC, CR, backspace, the C1 range with its one-character CSI), marks that
# turn the writing direction round or stand unseen between letters, other line ends, and halves of surrogate pairs.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """The text with every character that a terminal would obey, or not show, as its \\u escape (JSON's spelling)."""
    return _UNSEEN.sub(_spelled, text)


def _spelled(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x10000:
        return f"\\u{code:04x}"
    high, low = 0xD800 + (code - 0x10000 >> 10), 0xDC00 + (code - 0x10000 & 0x3FF)
    return f"\\u{high:04x}\\u{low:04x}"


def aligned(table: Sequence[Sequence[str]], words: Sequence[int] = (0,)) -> list[str]:
    """Rows of cells under each other, two spaces apart: the columns `words` from the left, numbers from the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place in words else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def bullets(sentences: Sequence[str]) -> list[str]:
    """Sentences as a list, wrapped to the width of a line."""
    return [
        line
        for text in sentences
        for line in textwrap.wrap(
            f"- {text}", WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
    ]
