"""What is a task? Problems, the layout in which a model sees them, and what decides whether an answer is right.

No file is read and no model known here: `sources` fills these classes, `layouts` words the prompts, `passk` asks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["answer", "code"]
"""`answer`: the text holds a final answer, a grader compares it with the gold one. `code`: it holds a program, the
sandbox runs it."""


@dataclass(frozen=True)
class Problem:
    """One problem. `fields` is the row that the layout's template reads, `gold` the reference in the grader's form
    (empty for programs), `strata` what results are broken down by (MATH: level and subject), `program` the fixed
    part of the sandbox's Program (test, setup, imports, entry_point, plus) and, where answers continue it, `prompt`.
    """

    id: str
    fields: dict[str, Any]
    gold: str = ""
    strata: dict[str, str] = field(default_factory=dict)
    program: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """How a problem is put to a model, in lm-eval's terms: Jinja templates over a problem's fields.

    `shots` is the number of solved examples when the command does not say; `examples` are the layout's own
    (chain-of-thought prompts), otherwise they come from the training split. `sampler` is lm-eval's: `first_n` shows
    the same first examples before every problem, `default` draws others for each, in order, from its seed 1234.
    `delimiter` joins an example's question and answer in plain text. `prefix` opens the answer (lm-eval's gen_prefix).
    `continues` says that a completion continues the prompt's code.
    """

    name: str
    text: str
    target: str
    stops: tuple[str, ...]
    shots: int = 0
    examples: tuple[dict[str, Any], ...] = ()
    system: str = ""
    sampler: Literal["first_n", "default"] = "first_n"
    delimiter: str = " "
    prefix: str = ""
    continues: bool = False
    source: str = ""  # whose wording this is


@dataclass(frozen=True)
class Task:
    """A named task, ready to be asked. `examples` are the solved ones to show or, for a layout that draws, to draw
    from. `sha256` digests every problem and every solved example shown, whatever --limit says; `version` names the
    data set's own version or split.
    """

    name: str
    kind: Kind
    problems: list[Problem]
    examples: list[dict[str, Any]]
    layout: Layout
    shots: int
    grader: str
    sha256: str
    version: str
    max_new_tokens: int
    problems_sha256: str = ""

    def facts(self) -> dict[str, Any]:
        """For a record's header."""
        return {
            "n": len(self.problems),
            "kind": self.kind,
            "sha256": self.sha256,
            "problems_sha256": self.problems_sha256,
            "version": self.version,
            "layout": self.layout.name,
            "shots": self.shots,
            "grader": self.grader,
        }
