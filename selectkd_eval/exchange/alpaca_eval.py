"""AlpacaEval's files: model_outputs.json as an `answer` record, annotations.json as a `winrate` record.

The judgements are read by the replay of `judges`, which is found by name as its verb is, for this package never
imports it. An annotations file holds the two answers that were judged; they become `answer` records too, so that
another judge can be asked about them and the file can be written again. Nothing is judged anew.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from selectkd_eval.environment import sha256_file
from selectkd_eval.errors import InputError
from selectkd_eval.exchange.foreign import Found, Row, card, content, origin, wants, whole_json
from selectkd_eval.prompt_files import prompt_id
from selectkd_eval.records import canonical
from selectkd_eval.verbs import ImportOptions

TOOL = "AlpacaEval"


def fits(path: Path) -> bool:
    """Whether the file begins as model outputs or as annotations do."""
    try:
        value = json.loads(content(path))
    except (InputError, ValueError, RecursionError):
        return path.name.removesuffix(".gz") in ("model_outputs.json", "annotations.json")
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and "instruction" in first and bool({"output", "preference"} & first.keys())


def found(options: ImportOptions, paths: Sequence[Path]) -> list[Found]:
    """One record per file of outputs, three per file of annotations."""
    files = [path for path in paths if fits(path)]
    if not files:
        raise InputError(f"{paths[0]} is neither AlpacaEval's model_outputs.json nor its annotations.json: give one")
    if len(files) > 1 and (options.model or options.method):
        raise InputError(f"--model and --method name one model, and there are {len(files)} files: give them one by one")
    records: list[Found] = []
    for path in files:
        value = whole_json(path)
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value) or not value:
            raise InputError(f"{path} is no list of entries: AlpacaEval writes a JSON list, one entry per instruction")
        one = replace(options, files=(path,), kind="alpaca-eval")
        if any("preference" in entry for entry in value):
            records += _annotations(one, path, value)
        else:
            records.append(_answers(one, path, value, "output", "generator"))
    return records


def _annotations(options: ImportOptions, path: Path, entries: Sequence[Mapping[str, Any]]) -> list[Found]:
    replay: Any = importlib.import_module("judges.replay")
    published = replay.open_file(path)
    if published.format != "alpaca_eval":
        raise InputError(f"{path} holds judgements of another kind: read it with winrate --judge replay:{path}")
    prompts = set(list(dict.fromkeys(row["prompt"] for row in published.rows))[: options.limit])
    rows = [row for row in published.rows if row["prompt"] in prompts]
    sides = {"candidate": card(options, published.candidate["name"])}
    plain = replace(options, model="", method="", base_method="", training_seed=None)
    sides["baseline"] = card(plain, published.baseline["name"])
    facts = {
        **published.facts(),
        **sides,
        "prompts": {**published.prompts, "n": len(prompts)},
        "imported": origin(TOOL, None, path, published.sha256),
    }
    name = _word(sides["candidate"]["name"])
    ours = _answers(options, path, entries, "output_2", "generator_2")
    # The baseline's card has nothing of the candidate's --method. Its name says what it is, for a model may have been
    # judged against itself. The candidate's answers come later: `winrate` takes the newest.
    theirs = _answers(options, path, entries, "output_1", "generator_1", plain)
    theirs = replace(theirs, name=f"{theirs.name}-baseline")
    return [theirs, ours, Found("winrate", name, options, {"judgements": published.sha256}, facts, rows)]


def _answers(
    options: ImportOptions,
    path: Path,
    entries: Sequence[Mapping[str, Any]],
    text: str,
    generator: str,
    carded: ImportOptions | None = None,
) -> Found:
    """The answers of one model; an instruction that stands in the file again has the next seed."""
    kind = (str, type(None))  # pandas writes null for an empty text
    seen: Counter[str] = Counter()
    rows: list[Row] = []
    for number, entry in enumerate(entries, start=1):
        wants(entry, {"instruction": str, text: kind}, f"entry {number} of {path}")
        prompt = prompt_id(entry["instruction"])
        if prompt not in seen and options.limit is not None and len(seen) >= options.limit:
            continue
        row = {"prompt": prompt, "text": entry["instruction"], "seed": seen[prompt]}
        row |= {"source": str(entry.get("dataset") or path.name), "answer": entry[text] or ""}
        rows.append({"key": f"{prompt}/{seen[prompt]}", **row, "finish": None, "n_tokens": None})
        seen[prompt] += 1
    names = sorted({str(entry[generator]) for entry in entries if entry.get(generator)})
    if len(names) > 1 and not options.model:
        raise InputError(f"{path} mixes answers of {', '.join(names[:4])}: give one file per model, or say its --model")
    model = card(carded or options, names[0] if names else "unnamed")
    sha256 = sha256_file(path)
    asked = hashlib.sha256(canonical([[row["text"], row["source"]] for row in rows]).encode()).hexdigest()
    facts = {
        "model": model,
        "prompts": {"name": path.name, "sha256": asked, "n": len(seen)},
        "generation": {"backend": "imported, not told"},
        "engine": {"engine": "imported"},
        "imported": origin(TOOL, None, path, sha256),
    }
    return Found("answer", _word(model["name"]), options, {"answers": sha256}, facts, rows)


def _word(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-")[-60:]
