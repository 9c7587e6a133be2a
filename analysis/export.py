"""`export`: records in the format of another tool.

Training curves for a tracker (`trackers`), results as every-eval-ever JSON (`every_eval_ever`), answers and verdicts
as AlpacaEval's files (`alpaca_files`), rows as CSV. Every file is written whole or not at all, and exporting again
writes the same.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from analysis import alpaca_files, every_eval_ever, trackers
from analysis.files import put
from analysis.load import Library, library
from analysis.row_columns import columns, verbs
from selectkd_eval.errors import choose
from selectkd_eval.verbs import ExportOptions


def run(options: ExportOptions) -> int:
    """Write what was asked for and print a line per file or run."""
    write = choose(options.to, FORMATS, "export format")
    for line in write(library(options.records), options):
        print(line)
    return 0


def _csv(found: Library, options: ExportOptions) -> list[str]:
    """One file per verb, its columns those of `pack`."""
    import pandas as pd

    lines = []
    for verb in verbs(found):
        table = pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns(found, verb).items()})
        text = io.StringIO()
        table.to_csv(text, index=False, lineterminator="\n")
        path = put(Path(options.out) / f"{verb}.csv", text.getvalue())
        lines.append(f"{path}  {len(table):,} rows")
    return lines


FORMATS: dict[str, Callable[[Library, ExportOptions], list[str]]] = {
    "tensorboard": trackers.tensorboard,
    "wandb": trackers.wandb,
    "trackio": trackers.trackio,
    "every-eval-ever": every_eval_ever.export,
    "alpaca-eval": alpaca_files.export,
    "csv": _csv,
}
