"""Where does an answer hold code? Its fenced blocks, or what stands in their place, in linear time.

Only text is looked at here; which block is the solution, and what it lacks, is `extraction`'s question.
"""

from __future__ import annotations

import re
import textwrap
from typing import NamedTuple

_ENDS = re.compile(
    r"<[|｜](?:im_end|im_start|endoftext|endofmask|eot_id|eom_id|end|end_of_text|end▁of▁sentence|EOT)[|｜]>|</s>\s*\Z"
)
_FENCE = re.compile(r"^([ \t>]*)(`{3,}+|~{3,}+)[ \t]*+([^\s`{]*+)[^\n`]*+$", re.MULTILINE)
_INLINE = re.compile(r"```+(?:[ \t]*(python3?|py)\b)?")
_TAGS = re.compile(r"\[(PYTHON|CODE|BEGIN)\]")
_CLOSINGS = {"PYTHON": "[/PYTHON]", "CODE": "[/CODE]", "BEGIN": "[DONE]"}
_LONGEST = 1_000_000  # characters of an answer that are looked at
_MOST = 64  # blocks of an answer that are looked at
_PYTHON = ("", "python", "python3", "py", "py3", "python2", "ipython", "pycon", "code", "sage")
_SESSION = re.compile(r"^[ \t]*(?:>>>|\.\.\.)(?: |$)", re.MULTILINE)


class Block(NamedTuple):
    """A piece of an answer that is marked as code. `closed` is false where the text ended first."""

    language: str
    code: str
    closed: bool = True

    @property
    def python(self) -> bool:
        return self.language.lower().strip("{}.") in _PYTHON


def cleaned(text: str) -> str:
    """The answer proper: after the last thought, before the end of the turn, with plain line ends and no mark."""
    text = text[:_LONGEST]
    end = _ENDS.search(text)
    text = (text[: end.start()] if end else text).removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    _, thought, answer = text.rpartition("</think>")
    if thought:
        return answer
    return "" if text.lstrip().startswith("<think>") else text  # cut while it was still thinking


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a cleaned answer in order; without any, what tags like [PYTHON] enclose."""
    found = _fenced(text) or _tagged(text) or _inline(text)
    typed = [block._replace(code=without_prompts(block.code)) for block in found[:_MOST]]
    return [block for block in typed if block.code.strip()]


def _fenced(text: str) -> list[Block]:
    """Fences at the start of a line. A fence with a language inside an open block opens the next one: some answers
    forget to close.
    """
    found = []
    opened: re.Match[str] | None = None
    for match in _FENCE.finditer(text):
        if opened is None:
            opened = match
        elif match[2][0] == opened[2][0] and len(match[2]) >= len(opened[2]):
            found.append(_block(opened, text[opened.end() : match.start()]))
            opened = match if match[3] else None
    if opened is not None:
        found.append(_block(opened, text[opened.end() :], closed=False))
    return found


def _block(opened: re.Match[str], code: str, closed: bool = True) -> Block:
    if indent := len(opened[1]):
        # A block inside a list item is indented as its fence is; a quoted one has its marks.
        code = "\n".join(line[indent:] if not line[:indent].strip(" \t>") else line for line in code.split("\n"))
    return Block(opened[3], code.removeprefix("\n"), closed)


def _tagged(text: str) -> list[Block]:
    found = []
    at = 0
    while match := _TAGS.search(text, at):
        closing = _CLOSINGS[match[1]]
        end = text.find(closing, match.end())
        at = len(text) if end < 0 else end + len(closing)
        found.append(Block("", text[match.end() : len(text) if end < 0 else end].lstrip("\n"), closed=end >= 0))
    if not found and "[DONE]" in text:
        found.append(Block("", text.partition("[DONE]")[0].lstrip("\n")))
    return found


def _inline(text: str) -> list[Block]:
    """Fences in the middle of a line: "the code: ```def f(): ...```"."""
    marks = list(_INLINE.finditer(text))
    ends = [*marks[1::2], None] if len(marks) % 2 else marks[1::2]
    return [
        Block(mark[1] or "", text[mark.end() : end.start() if end else len(text)].strip(" "), closed=end is not None)
        for mark, end in zip(marks[::2], ends, strict=True)
    ]


def without_prompts(code: str) -> str:
    """An interpreter session as the code that was typed; code whose docstrings show sessions stays as it is."""
    first = next((line for line in code.split("\n") if line.strip()), "")
    if not _SESSION.match(first):
        return code
    typed = [line for line in code.split("\n") if _SESSION.match(line)]
    return textwrap.dedent("\n".join(_SESSION.sub("", line, count=1) for line in typed))
