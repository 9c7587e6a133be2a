"""Small landscape runs on the tiny pair, and their records."""

from __future__ import annotations

from pathlib import Path

from conftest import TinyPair

from selectkd_eval import records
from selectkd_eval.verbs import LandscapeOptions


def options(tiny_pair: TinyPair, out: Path, **changes) -> LandscapeOptions:
    given = {
        "teacher": str(tiny_pair.teacher),
        "student": (str(tiny_pair.student),),
        "data": str(tiny_pair.data),
        "sequences": 4,
        "grid": 5,
        "radius": 1.0,
        "held_out": 0,
        "scalars": 0,
        "threads": 1,
        "device": "cpu",
        "out": out,
    }
    return LandscapeOptions(**given | changes)


def only_record(out: Path) -> records.Record:
    (path,) = out.glob("landscape-*.jsonl")
    return records.read(path)


def of_kind(rows, *kinds: str) -> dict[str, dict]:
    return {row["key"]: row for row in rows if row["kind"] in kinds}


def saved(model, tokenizer, where: Path) -> str:
    model.save_pretrained(where)
    tokenizer.save_pretrained(where)
    return str(where)
