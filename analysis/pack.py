"""`pack`: every row of every record as Parquet, one file per verb, for pandas, polars or DuckDB.

A copy for questions that no table here answers; the records stay what counts. The same records give the same bytes.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from analysis.files import put
from analysis.load import library
from analysis.row_columns import Columns, columns, verbs
from selectkd_eval.environment import require
from selectkd_eval.errors import InputError
from selectkd_eval.verbs import PackOptions


def run(options: PackOptions) -> int:
    """Write the files and print, for each, its path, rows and size."""
    require("pyarrow", "pack", "pack")  # before anything is read
    found = library(options.records)
    for verb in verbs(found):
        table = columns(found, verb, options.texts)
        rows = len(table["record"])
        content = parquet(table, verb)
        path = put(Path(options.out) / f"{verb}.parquet", content)
        print(f"{path}  {rows:,} rows, {len(table)} columns, {len(content) / 1e6:.2f} MB")
    return 0


def parquet(table: Columns, name: str) -> bytes:
    """Columns as the bytes of a Parquet file (zstd)."""
    pa: Any = require("pyarrow", "pack", "pack")
    pq: Any = require("pyarrow.parquet", "pack", "pack")
    arrays: dict[str, Any] = {}
    for column, values in table.items():
        try:
            # A column without a value has no type of its own; text is what most readers expect of it.
            empty = all(value is None for value in values)
            arrays[column] = pa.array(values, type=pa.string() if empty else None)
        except (pa.ArrowInvalid, OverflowError, UnicodeEncodeError) as error:
            raise InputError(
                f"the field {column} of the {name} records does not fit into Parquet ({error}): look at its rows with "
                "`show --rows`"
            ) from None
    buffer = io.BytesIO()
    pq.write_table(pa.table(arrays), buffer, compression="zstd", compression_level=9)
    return buffer.getvalue()
