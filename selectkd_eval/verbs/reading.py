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
    """The paper's table: 1 win rates, 2 pass@1, 3 vision tasks (imported), 4 and 6 ablation, 5 speculative decoding."""
    records: Path = RECORDS
    """Directory of the records."""
    out: Path = Path("reports/tables")
    """Where the .md, .tex, .html and .json go."""
    protocol: str = ""
    """Judging protocol of the win rates, by name or hash, where the records follow several."""
    paper: bool = False
    """Set the published numbers beside ours where models and protocol are the paper's."""
    ci: Literal["inline", "row", "none"] = "inline"
    """Where the 95 % intervals stand: behind the number, in a row below it, or in the JSON alone."""
    siunitx: bool = False
    """LaTeX with siunitx columns, aligned at the decimal point."""
    resamples: int = 10_000
    """Bootstrap resamples."""


@dataclass(frozen=True, kw_only=True)
class FigureOptions:
    """A figure from records alone."""

    what: Literal[
        "winrate", "passk", "curves", "training", "teachers", "tar", "theorem", "breakdown", "landscape", "speedup",
        "judges",
        "1", "3a", "3b", "4a", "4b", "5",
    ]  # fmt: skip
    """Which figure, by name or by its number in the paper."""
    records: Path = RECORDS
    """Directory of the records."""
    out: Path = Path("reports/figures")
    """Where the .png, .svg, .pdf and .json go."""
    columns: Literal[1, 2] = 2
    """Width for one or for two columns of a page."""
    style: Literal["bars", "dots"] = "bars"
    """Rates as bars from 0, or as dots on an axis that may begin elsewhere."""
    margin: float = 2.0
    """Points within which two methods count as equivalent; for the judges' figure."""
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
    items: int = 20_000
    """Rows of the item explorer at most, and no more than keep the page below a megabyte; 0 leaves it out."""
    state: Path | None = None
    """Where the state of reproduction goes; by default README.md beside the page."""
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
