"""How is one check of an audit said: in a terminal, and in Markdown?

A section is a title, an aligned table and sentences. The checks fill it; the two writers here only spell it. A check
is a function from a printed table and its settings to sections, none where it has nothing to look at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from analysis.table_ir import MISSING
from analysis.writers import markdown_text
from selectkd_eval.terminal import aligned, bullets, visible

WIDEST = 36  # characters of a label in a table


@dataclass(frozen=True)
class Section:
    """What one check found: the first of `rows` is the head; `words` are the columns of text."""

    title: str
    rows: tuple[tuple[str, ...], ...] = ()
    sentences: tuple[str, ...] = ()
    words: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Settings:
    """What a check is told: numbers of prompts by plain column name, the rule to try, seeds averaged, the paired sd."""

    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    protocol: str = "all"
    seeds: tuple[int, ...] = (1, 3)
    sd: float = 0.4


def short(text: str, width: int = WIDEST) -> str:
    """A label that fits a table: the end tells methods apart, so the middle goes."""
    keep = width - 1
    return text if len(text) <= width else f"{text[: keep // 2]}…{text[-(keep - keep // 2) :]}"


def p_text(p: float) -> str:
    """A p-value at two digits; a dash where there was no test."""
    return MISSING if math.isnan(p) else "1" if p >= 0.995 else f"{p:.2f}" if p >= 0.095 else f"{p:.2g}"


def text(section: Section) -> Iterator[str]:
    """The section for a terminal."""
    yield section.title
    if section.rows:
        yield from aligned([tuple(map(visible, row)) for row in section.rows], section.words)
    yield from bullets([visible(sentence) for sentence in section.sentences])


def markdown(section: Section) -> Iterator[str]:
    """The section for a page."""
    yield from (f"### {markdown_text(section.title)}", "")
    if section.rows:
        head, *body = section.rows
        yield "| " + " | ".join(map(markdown_text, head)) + " |"
        yield "|" + "|".join(":--" if place in section.words else "--:" for place in range(len(head))) + "|"
        yield from ("| " + " | ".join(map(markdown_text, row)) + " |" for row in body)
        yield ""
    if section.sentences:
        yield from (f"- {markdown_text(sentence)}" for sentence in section.sentences)
        yield ""
