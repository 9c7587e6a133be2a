"""A short real training of two tiny random Llamas, shared by the tests of `train` and of its interruptions."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from conftest import TinyPair
from safetensors.torch import load_file

from selectkd_eval import pair, records
from selectkd_eval.train import run
from selectkd_eval.verbs import TrainOptions

Weights = dict[str, torch.Tensor]


def six_updates(tiny_pair: TinyPair, tmp_path: Path) -> TrainOptions:
    """Six updates of KD with the Top-k gate; held-out text is another prompt for the same sentences."""
    held_out = tmp_path / "validation.jsonl"
    rows = [json.loads(line) for line in tiny_pair.data.read_text().splitlines()[:8]]
    held_out.write_text("".join(json.dumps(row | {"prompt": f"Held out: {row['prompt']}"}) + "\n" for row in rows))
    return TrainOptions(
        teacher=str(tiny_pair.teacher),
        student=str(tiny_pair.student),
        data=str(tiny_pair.data),
        validation=str(held_out),
        exclude=(),
        verifier="top-k",
        steps=6,
        batch_size=8,
        lr=1e-2,
        schedule="linear",
        warmup=0.0,
        eval_every=2,
        save_every=2,
        out=tmp_path / "records",
        device="cpu",
        threads=1,
    )


def train(options: TrainOptions, **changes: Any) -> tuple[records.Record, Weights]:
    """Run in this process; the finished record and the student's weights."""
    options = dataclasses.replace(options, **changes)
    run(options)
    record = records.read(records.record_path("train", options))
    return record, load_file(Path(pair.locate(str(record.path))) / "model.safetensors")


def assert_same(a: Weights, b: Weights, **tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], **(tolerance or {"rtol": 0, "atol": 0}))


def steps(record: records.Record) -> list[dict[str, Any]]:
    return [row for row in record.rows if row["event"] == "step"]


def results(record: records.Record) -> list[dict[str, Any]]:
    """The rows without what they cost, which differs from run to run."""
    costs = ("seconds", "tokens_per_s", "rows_per_s", "peak_gb")
    return [{name: value for name, value in row.items() if name not in costs} for row in record.rows]
