"""Answers with verdicts that others gave, for measuring graders."""

from __future__ import annotations

import gzip
import json
from pathlib import Path


def labelled_math(shared_data: Path) -> list[tuple[str, str, bool]]:
    """(completion, reference solution, Qwen's verdict) of 100 problems x 8."""
    with gzip.open(shared_data / "passk_validation" / "math_qwen_math_cot_100x8.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    return [
        (text, row["solution"], verdict)
        for row in rows
        for text, verdict in zip(row["code"], row["score"], strict=True)
    ]
