"""The options of the verbs that only read: `table`, `figure`, `report`, `audit`, `show`, `list`."""

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
    protocol: str = ""
    """Judging protocol of the win rates, by name or hash, where the records follow several."""
    paper: bool = False
    """Set the published numbers beside ours; for table 5."""
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
    protocol: str = ""
    """Judging protocol of the win rates, by name or hash, where the records follow several."""
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
class AuditOptions:
    """Is a results table possible as it is printed? Sums, rounding grids, power, repeats, ceilings."""

    files: tuple[Path, ...]
    """Tables: CSV with a column `method` (and `base_method`, for differences), or the .json that `table` writes."""
    n: tuple[str, ...] = ()
    """Prompts behind a column, as COLUMN=N (evol_instruct=218 mbpp=378); known test sets need none."""
    protocol: Literal["all", "accuracy", "half-ties", "both-orders", "ties-excluded", "both-orders-excluded"] = "all"
    """How verdicts were counted: the rule whose rounding grid is looked at. All of them are tried by default."""
    seeds: tuple[int, ...] = (1, 3)
    """How many seeds a printed number may be the mean of."""
    digits: int | None = None
    """Printed decimals, for a file that lost its trailing zeros; by default those of a column's longest number."""
    sd: float = 0.4
    """Standard deviation of the paired difference of a prompt, for the smallest detectable difference."""
    out: Path | None = None
    """Also write the audit as Markdown."""


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
        "recipes", "divergences", "verifiers", "judges", "protocols", "prompts", "tasks", "graders", "models",
        "records",
    ]  # fmt: skip
    """Which names."""
    explain: str = ""
    """One name explained: source, formula, defaults."""
    records: Path = RECORDS
    """Directory of the records, for `list records`."""
    judge_file: Path = Path("judges.toml")
    """Judges of your own, for `list judges`."""
