"""What in a text would a reader of replies take for a verdict, or a judge for a delimiter of ours?

One place knows the marks, so that whatever `verdicts` can read in a judge's reply `neutralise` breaks up in an
answer before a judge sees it. Marks are looked for in a folded text: compatibility forms, lookalike letters and
brackets become plain ones and invisible characters go, because a judge reads a full-width or a Cyrillic label like a
plain one. It does not judge what a text says: an answer that asks for a good grade in words keeps its words.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_MARKUP = r"[\s*_`\"']*"
# [[A]], also **[[ a ]]**, [[**A**]], \[\[A\]\] or \boxed{[[A]]}. One letter or the word tie: [[1]] is a citation.
LABEL = re.compile(
    rf"(?P<open>\[|\\\[)(?P=open){_MARKUP}(?P<label>[A-Za-z]|tie){_MARKUP}(?:\]\]|\\\]\\\])", re.IGNORECASE
)
# What names a model in an entry of a ranking: 'model': 'model_1', quotes single or double.
RANKED = re.compile(r"""(?P<key>["'])model(?P=key)\s*:\s*(?P<value>["'])model(?P<label>_[12])(?P=value)""")
# Taken whole or not at all, so that a line of a thousand equal signs is not tried from each of them.
DELIMITER = re.compile(r"(?<!=)={3,}+(?=\s*(?:BEGIN|END)\b)", re.IGNORECASE)

_LOOKALIKES = {
    # Cyrillic and Greek letters that look like those of BEGIN, END, tie and the labels.
    **dict(zip("\u0410\u0412\u0421\u0415\u0406\u0422", "ABCEIT", strict=True)),
    **dict(zip("\u0430\u0441\u0435\u0456", "acei", strict=True)),
    **dict(zip("\u0391\u0392\u0395\u0399\u039d\u03a4", "ABEINT", strict=True)),
    **dict.fromkeys("\u3010\u3014\u3016\u2772", "["),
    **dict.fromkeys("\u3011\u3015\u3017\u2773", "]"),
    **dict.fromkeys("\u27e6\u301a", "[["),
    **dict.fromkeys("\u27e7\u301b", "]]"),
    **dict.fromkeys("\u2550\u2e40\u30a0\ua4ff\u1400", "="),
    **dict.fromkeys("\u2018\u2019", "'"),
    **dict.fromkeys("\u201c\u201d", '"'),
}
_INVISIBLE = ("Cf", "Mn", "Me")  # format characters (zero-width space, joiners) and marks that sit on a letter
# Blanks that Unicode counts as letters and symbols: Hangul fillers, the empty Braille cell.
_BLANKS = "\u115f\u1160\u2800\u3164\uffa0"


def folded(text: str) -> str:
    """The text as a reader of marks sees it."""
    return text if text.isascii() else "".join(map(_fold, text))


def neutralise(text: str) -> str:
    """Break up with blanks what could pass for a delimiter or a verdict of ours; everything else stays as it was."""
    # One pass may leave a mark that overlapped another; a blank never brings a new one together.
    while at := _breaks(folded(text)):
        text = _broken(text, at)
    return text


def _breaks(plain: str) -> set[int]:
    """Between which characters of a folded text a blank breaks a mark."""
    at = {match.end("open") for match in LABEL.finditer(plain)}
    at |= {match.start("label") for match in RANKED.finditer(plain)}
    for match in DELIMITER.finditer(plain):
        at.update(range(match.start() + 1, match.end()))
    return at


def _broken(text: str, at: set[int]) -> str:
    """The text with blanks at positions of its folded form; a character that folds into two signs is spelled out."""
    out, position = [], 0
    for char in text:
        parts = char if char.isascii() else _fold(char)
        inside = any(place in at for place in range(position + 1, position + len(parts)))
        # An invisible character has no position of its own: the blank goes before the next visible one.
        before = " " if parts and position in at else ""
        out.append(before + (" ".join(parts) if inside else char))
        position += len(parts)
    return "".join(out)


@lru_cache(maxsize=8192)
def _fold(char: str) -> str:
    if char in _LOOKALIKES:
        return _LOOKALIKES[char]
    if char in _BLANKS or unicodedata.category(char) in _INVISIBLE:
        return ""
    return "".join(_LOOKALIKES.get(part, part) for part in unicodedata.normalize("NFKC", char))
