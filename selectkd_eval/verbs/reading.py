"""The options of the verbs that only read: `table`, `figure`, `report`, `show`, `list`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from selectkd_eval.verbs.run import RECORDS


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """A paper-style table from records alone."""

    number: int
    """The paper's table: 1 win rates, 2 pass@1, 4 ablation, 5 speculative decoding."""
    records: Path = RECORDS
    """Directory of the records."""
    out: Path = Path("reports/tables")
    """Where the .md, .tex and .json go."""
    resamples: int = 10_000
    """Bootstrap resamples."""


@dataclass(frozen=True, kw_only=True)
class FigureOptions:
    """A figure from records alone."""

    what: Literal["tar", "landscape", "winrate", "passk", "speedup", "training"]
    """Which figure."""
    records: Path = RECORDS
    """Directory of the records."""
    out: Path = Path("reports/figures")
    """Where the .png, .svg and .pdf go."""
    resamples: int = 10_000
    """Bootstrap resamples."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """One self-contained HTML page from records alone."""

    records: Path = RECORDS
    """Directory of the records."""
    out: Path = Path("reports/report.html")
    """The page."""
    title: str = "selectkd-eval report"
    """Its heading."""
    resamples: int = 10_000
    """Bootstrap resamples."""


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """What one record holds."""

    record: Path
    """The record."""
    rows: int = 0
    """Also print the first N rows as JSON lines."""
    item: str = ""
    """One item in full: a row's key, or the beginning or end of one (HumanEval/3)."""


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """What there is to name."""

    what: Literal[
        "recipes", "divergences", "verifiers", "protocols", "prompts", "tasks", "graders", "models", "records"
    ]
    """Which names."""
    explain: str = ""
    """One name explained: source, formula, defaults."""
    records: Path = RECORDS
    """Directory of the records, for `list records`."""
