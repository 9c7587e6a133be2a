"""The options of the verbs between our records and other tools' files: `import`, `export`, `pack`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from selectkd_eval.verbs.run import RECORDS, Run, runtime


@dataclass(frozen=True, kw_only=True)
class ImportOptions(Run):
    """Other tools' results as records, so that tables and figures can hold them."""

    files: tuple[Path, ...]
    """What to read: files, or a directory that such a tool wrote."""
    kind: Literal["auto", "lm-eval", "alpaca-eval", "spec-bench"] = "auto"
    """Whose files they are; auto looks into them."""
    model: str = ""
    """Name of the model, where the files do not say it."""
    method: str = ""
    """Method that the model stands for in tables; by default its name."""
    base_method: str = ""
    """The method without the gate, for differences."""
    training_seed: int | None = None
    """Training seed of the model."""
    baseline: Path | None = None
    """Spec-Bench: the results of plain decoding. AlpacaEval annotations need none."""
    metric: tuple[str, ...] = ()
    """lm-eval: what counts as right where its results have several verdicts, e.g. exact_match,strict-match; of several
    the first that a task has."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Records in the format of another tool."""

    to: Literal["tensorboard", "wandb", "trackio", "every-eval-ever", "alpaca-eval", "csv"]
    """Training curves for a tracker, results as every-eval-ever JSON, answers as AlpacaEval's, or rows as CSV."""
    records: Path = RECORDS
    """A record, or a directory of them."""
    out: Path = Path("reports/exported")
    """Where the files go."""
    project: str = "selectkd-eval"
    """Project name at a tracker."""


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """All rows of all records as Parquet, one file per verb, for pandas, polars or DuckDB."""

    records: Path = RECORDS
    """A record, or a directory of them."""
    out: Path = Path("reports/packed")
    """Where the .parquet files go."""
    texts: bool = runtime(True)
    """Keep prompts, answers and replies; --no-texts leaves them out."""
