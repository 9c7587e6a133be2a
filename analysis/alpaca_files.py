"""Answers and verdicts as AlpacaEval's own files: model_outputs.json and annotations.json.

So that AlpacaEval can judge our answers, and its leaderboard code can count our verdicts. Verdict rows hold no texts;
the two answers come from the `answer` records that lie beside them, or from the files that were judged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.files import put
from analysis.load import Library
from selectkd_eval.errors import InputError
from selectkd_eval.prompts import load_prompts
from selectkd_eval.records import Record
from selectkd_eval.verbs import ExportOptions

Answered = Mapping[tuple[str, int], Mapping[str, Any]]


def export(library: Library, options: ExportOptions) -> list[str]:
    """A folder per record with its file; an InputError when there is neither an answer nor a verdict."""
    files: list[tuple[str, list[dict[str, Any]]]] = []
    for record in library.of("answer"):
        files.append((f"{record.path.stem}/model_outputs.json", outputs(record)))
    for record in library.of("winrate"):
        files.append((f"{record.path.stem}/annotations.json", judgements(library, record)))
    if not files:
        raise InputError("there is no answer and no winrate record here: nothing of AlpacaEval's can be made of others")
    lines = []
    for name, entries in files:
        path = put(Path(options.out) / name, json.dumps(entries, indent=2, ensure_ascii=False) + "\n")
        lines.append(f"{path}  {len(entries):,} entries")
    return lines


def outputs(record: Record) -> list[dict[str, Any]]:
    """The entries of model_outputs.json; prompts that failed are left out."""
    name = _name(record.facts.get("model"))
    return [
        {"dataset": row.get("source") or "", "instruction": row["text"], "output": row["answer"], "generator": name}
        for row in record.good
    ]


def judgements(library: Library, record: Record) -> list[dict[str, Any]]:
    """The entries of annotations.json, one per verdict: output_1 is the baseline's answer, 2 the candidate's."""
    facts = record.facts
    ours, theirs = (_answers(library, record, side) for side in ("candidate", "baseline"))
    entries = []
    for row in record.rows:
        key = (str(row["prompt"]), int(row.get("seed") or 0))
        said = ours.get(key) or {}
        against = theirs.get(key) or theirs.get((key[0], 0)) or {}
        if not said or not against:
            raise InputError(
                f"the answers to prompt {key[0]} that {record.path.name} judged are not among the answer records here: "
                "put both sides' answer records beside it"
            )
        entries.append(
            {
                "instruction": said["text"],
                "dataset": row.get("task") or said.get("source") or "",
                "output_1": against["answer"],
                "generator_1": _name(facts.get("baseline")),
                "output_2": said["answer"],
                "generator_2": _name(facts.get("candidate")),
                "annotator": str((facts.get("judge") or {}).get("name") or "unnamed"),
                "preference": preference(row),
            }
        )
    return entries


def preference(row: Mapping[str, Any]) -> float | None:
    """AlpacaEval's number of a verdict: 1 the baseline, 2 the candidate, 1.5 a tie, between where a judge gave a
    probability; null for a reply that could not be read, -1 for a call that failed.
    """
    if row.get("error") or row["verdict"] == "failed":
        return -1.0
    raw = row.get("raw")
    if isinstance(raw, int | float) and not isinstance(raw, bool):
        return float(raw)
    if row["verdict"] == "unreadable":
        return None
    if (share := row.get("preference")) is not None:
        return 1.0 + float(share)
    return {"candidate": 2.0, "baseline": 1.0, "tie": 1.5}[row["verdict"]]


def _answers(library: Library, record: Record, side: str) -> Answered:
    """The answers of one side, by prompt and seed."""
    named = str(record.options.get(side) or "")
    wanted = (record.facts.get(side) or {}).get("fingerprint")
    among = [one for one in library.of("answer") if one.path.name == Path(named).name]
    among = among or [one for one in library.of("answer") if one.facts["model"].get("fingerprint") == wanted]
    found = {(str(row["prompt"]), int(row["seed"])): row for one in among for row in one.good}
    if not found and named:
        directory = record.options.get("prompt_dir")
        prompts = load_prompts(named, None, Path(directory) if directory else None).prompts
        found = {(one.id, 0): {"text": one.text, "answer": one.answer, "source": one.source} for one in prompts}
    return found


def _name(card: Any) -> str:
    return str((card or {}).get("name") or "unnamed")
