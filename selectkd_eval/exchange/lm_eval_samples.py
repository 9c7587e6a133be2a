"""One task's samples of lm-eval or lmms-eval: which answer is right, by which metric under which filter?

A metric decides where each of its values is 0 or 1. Several filters or metrics of that kind are several scores, and
only the reader of the table can say which is meant. Documents keep lm-eval's number and its hashes, so that two
models' answers to one document are found together.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selectkd_eval.errors import InputError
from selectkd_eval.exchange.foreign import Row, json_lines, wants

ASKED = ("question", "problem", "prompt", "query", "input", "text", "instruction")  # of a document's fields
HASHES = ("doc_hash", "prompt_hash", "target_hash")


@dataclass(frozen=True)
class Metric:
    """A metric under a filter, which lm-eval writes as "exact_match,strict-match"."""

    name: str
    filter: str

    def __str__(self) -> str:
        return f"{self.name},{self.filter}"


@dataclass(frozen=True)
class Task:
    """One task's samples under one metric."""

    name: str
    rows: list[Row]
    metric: Metric
    stated: float | None

    @property
    def share(self) -> float:
        """The share of right answers."""
        return sum(row["correct"] for row in self.rows) / len(self.rows)


def read(name: str, path: Path, stated: Mapping[str, Any], wanted: Sequence[str], meant: int | None) -> Task:
    """The samples of one task as rows; an InputError when the file is damaged, cut, or has no one verdict.

    `stated` are the task's results, `wanted` the metrics that may decide, `meant` how many documents the run had.
    """
    samples = json_lines(path)
    for number, sample in enumerate(samples, start=1):
        wants(sample, {"doc_id": (int, str), "filtered_resps": list}, f"sample {number} of {path}")
    metric = _chosen(wanted, name, samples, stated, path)
    mine = [sample for sample in samples if sample.get("filter", metric.filter) == metric.filter]
    if lacking := next((sample for sample in mine if metric.name not in sample), None):
        raise InputError(
            f"document {lacking['doc_id']} in {path} has no {metric.name}, and others have: restore the file"
        )
    docs = Counter(str(sample["doc_id"]) for sample in mine)
    if twice := next((doc for doc, count in docs.items() if count > 1), None):
        raise InputError(f"{path} holds document {twice} twice under the filter {metric.filter}: restore the file")
    if meant is not None and meant != len(mine):
        raise InputError(
            f"{path} holds {len(mine):,} documents, and its results were computed on {meant}: the file was cut, or is "
            "of another run"
        )
    value = stated.get(str(metric), stated.get(metric.name))
    known = float(value) if isinstance(value, int | float) else None
    return Task(name, [_row(name, sample, metric) for sample in mine], metric, known)


def _chosen(wanted: Sequence[str], task: str, samples: Sequence[Row], stated: Mapping[str, Any], path: Path) -> Metric:
    """The metric and filter that decide what is right: the only verdict there is, or the first one wanted."""
    verdicts, others = _metrics(samples, stated)
    for words in wanted:
        matching = [metric for metric in verdicts if words in (str(metric), metric.name)]
        if len(matching) == 1:
            return matching[0]
        if matching:
            raise InputError(f"--metric {words} of {task} has several filters: say {_or(matching)}")
    if len(verdicts) == 1 and not wanted:
        return verdicts[0]
    if not verdicts:
        raise InputError(
            f"{path} has no metric that is right or wrong answer by answer (found {_or(others) or 'none'}): only such "
            "can be imported"
        )
    asked = f"none of --metric {' '.join(wanted)}" if wanted else "several verdicts on each answer"
    raise InputError(f"{task} has {asked}: give --metric {_or(verdicts)}")


def _or(metrics: Sequence[Metric]) -> str:
    return " or ".join(map(str, metrics))


def _metrics(samples: Sequence[Row], stated: Mapping[str, Any]) -> tuple[list[Metric], list[Metric]]:
    """Metrics whose every value is 0 or 1, and the others."""
    names = {key.partition(",")[0] for key in stated} | {str(name) for s in samples for name in _flat(s.get("metrics"))}
    values: dict[Metric, list[Any]] = {}
    for sample in samples:
        for name in sorted(names & sample.keys()):
            # Files of earlier versions have one filter and do not name it.
            metric = Metric(name, str(sample.get("filter", _only_filter(name, stated))))
            values.setdefault(metric, []).append(sample[name])
    verdicts = [metric for metric, some in values.items() if all(_is_verdict(value) for value in some)]
    return verdicts, [metric for metric in values if metric not in verdicts]


def _only_filter(name: str, stated: Mapping[str, Any]) -> str:
    return next((key.partition(",")[2] for key in stated if key.startswith(f"{name},")), "none")


def _is_verdict(value: Any) -> bool:
    return isinstance(value, bool | int | float) and value in (0, 1)


def _row(task: str, sample: Row, metric: Metric) -> Row:
    problem = str(sample["doc_id"])
    doc: Any = sample.get("doc") if isinstance(sample.get("doc"), dict) else {}
    question = next((str(doc[name]) for name in ASKED if isinstance(doc.get(name), str)), "")
    if not question and isinstance(sample.get("input"), str):
        question = sample["input"]
    said, extracted = _said(sample)
    right = int(sample[metric.name])
    hashes = {name: str(sample[name]) if sample.get(name) else None for name in HASHES}
    return {
        "key": f"{task}/{problem}/0/0",
        **{"task": task, "problem": problem, "seed": 0, "sample": 0},
        "question": question,
        "completion": said,
        "extracted": extracted,
        "gold": str(sample.get("target", "")),
        "kind": "answer",
        "correct": right,
        "outcome": "right" if right else "wrong",
        "detail": "",
        **hashes,
        "prompt_sha256": hashes["prompt_hash"],
        "finish": None,
        "n_tokens": None,
        "n_prompt_tokens": None,
        "prompt_cut": None,
        "strata": {},
    }


def _said(sample: Row) -> tuple[str, str]:
    """What the model wrote and what the filter made of it; of choices scored by likelihood, their log-likelihoods."""
    responses = sample.get("resps", sample["filtered_resps"])
    texts = [text for text in _flat(responses) if isinstance(text, str)]
    filtered = [text for text in _flat(sample["filtered_resps"]) if isinstance(text, str)]
    scores = [_score(one) for one in sample["filtered_resps"]]
    if scores and all(score is not None for score in scores):
        return "log-likelihoods of the choices: " + ", ".join(f"{score:.4f}" for score in scores), ""
    return (texts[0] if texts else ""), (filtered[0] if filtered else "")


def _score(response: Any) -> float | None:
    """The log-likelihood in a scored choice, [log-likelihood, whether it was the greedy text]; they may be strings."""
    if not isinstance(response, list) or len(response) != 2 or str(response[1]) not in ("True", "False"):
        return None
    try:
        return value if math.isfinite(value := float(response[0])) else None
    except (TypeError, ValueError):
        return None


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for item in value:
            yield from _flat(item)
    else:
        yield value
