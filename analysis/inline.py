"""How do styles and scripts come onto a page that may fetch nothing? Inline, each allowed by its own hash.

The content policy names the hashes, so nothing else on the page can run: an answer that closes a tag stays text.
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files
from typing import NamedTuple

from markupsafe import Markup

SCRIPTS = ("sort.js", "explorer.js", "landscape.js")
# What no page may hold: control characters but tab and line feed, halves of surrogate pairs, non-characters.
_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


class Inline(NamedTuple):
    """A text that stands in the page, and what the policy calls it."""

    text: Markup
    digest: str


def style() -> Inline:
    """The page's style."""
    return _inline("page.css")


def scripts() -> list[Inline]:
    """The page's scripts, those that the package has, in the order in which they run."""
    return [_inline(name) for name in SCRIPTS if (files("analysis") / "templates" / name).is_file()]


def clean(text: str) -> str:
    """The page without characters that HTML forbids; each becomes the replacement character."""
    return _FORBIDDEN.sub("\ufffd", text)


def _inline(name: str) -> Inline:
    text = (files("analysis") / "templates" / name).read_text(encoding="utf-8").rstrip("\n")
    assert "</s" not in text.lower()
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Inline(Markup(text), f"'sha256-{digest}'")
