"""lm-eval's results and samples (`--output_path DIR --log_samples`), and lmms-eval's in the same layout, as `passk`.

One record per results file, which is one run of one model: a row per task and document, right or wrong by the metric
and filter that were chosen. The samples must be all of the run's and give the very number that its results file
states. Metrics that are no verdict on a single answer (BLEU, perplexity, judges' points) are not imported. Neither
tool writes token counts or why a text ended; rows have None there.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from selectkd_eval.errors import InputError
from selectkd_eval.exchange.foreign import Found, Row, card, content, digests, json_lines, origin, wants, whole_json
from selectkd_eval.records import canonical
from selectkd_eval.verbs import ImportOptions

ASKED = ("question", "problem", "prompt", "query", "input", "text", "instruction")  # of a document's fields
HASHES = ("doc_hash", "prompt_hash", "target_hash")
_RESULTS = re.compile(r"(?:results_(?P<old>.+)|(?P<new>.+)_results)\.json(?:\.gz)?")
_EXACT = 1e-9


@dataclass(frozen=True)
class Metric:
    """A metric under a filter, which lm-eval writes as "exact_match,strict-match"."""

    name: str
    filter: str

    def __str__(self) -> str:
        return f"{self.name},{self.filter}"


@dataclass(frozen=True)
class Results:
    """One results file: a run of one model."""

    path: Path
    content: Mapping[str, Any]

    @property
    def tool(self) -> str:
        # lmms-eval puts the time first in its files' names; it writes no version of its own before 0.3.
        return "lmms-eval" if self._date("new") is not None or "lmms_eval_version" in self.content else "lm-eval"

    @property
    def version(self) -> str | None:
        for name in ("lmms_eval_version", "lm_eval_version"):
            if self.content.get(name):
                return str(self.content[name])
        return None

    @property
    def model(self) -> str:
        config = self.content.get("config") or {}
        return str(self.content.get("model_name") or config.get("model_args") or config.get("model") or "unnamed")

    @cached_property
    def samples(self) -> dict[str, Path]:
        """The file of samples of every task of this run, by task."""
        folder, found = self.path.parent, {}
        for task in self.tasks:
            names = []
            if (date := self._date("old")) is not None:
                names.append(f"samples_{task}_{date}.jsonl")
            if (date := self._date("new")) is not None:
                names.append(f"{date}_samples_{task}.jsonl")
            for name in names:
                for path in (folder / name, folder / f"{name}.gz"):
                    if path.is_file():
                        found[task] = path
        return found

    @property
    def tasks(self) -> list[str]:
        """The tasks that have answers of their own; a group (mmlu) has those of its tasks."""
        groups = {name for name, inside in (self.content.get("group_subtasks") or {}).items() if inside}
        return [str(name) for name in self.content["results"] if name not in groups]

    def _date(self, kind: str) -> str | None:
        match = _RESULTS.fullmatch(self.path.name)
        return match[kind] if match else None


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


def fits(path: Path) -> bool:
    """Whether this is a results file or a file of samples."""
    try:
        if ".jsonl" in path.name:
            first = json.loads(content(path).partition("\n")[0])
            return isinstance(first, dict) and {"doc_id", "filtered_resps"} <= first.keys()
        value = json.loads(content(path))
        return isinstance(value, dict) and isinstance(value.get("results"), dict) and "configs" in value
    except (InputError, ValueError, RecursionError):
        return _RESULTS.fullmatch(path.name) is not None


def found(options: ImportOptions, paths: Sequence[Path]) -> list[Found]:
    """A record per results file; an InputError when two of them are of one model and one task."""
    runs = [Results(path, _results(path)) for path in paths if ".jsonl" not in path.name and fits(path)]
    if not runs:
        raise InputError(
            f"{paths[0]} has samples and no results: give the directory, with its results_*.json beside the samples"
        )
    if options.model and len(runs) > 1:
        raise InputError(f"--model names one model, and there are {len(runs)} results files: give them one by one")
    seen: dict[tuple[str, str], Path] = {}
    for run in runs:
        for task in run.tasks:
            if (other := seen.setdefault((run.model, task), run.path)) != run.path:
                raise InputError(
                    f"{other.name} and {run.path.name} both hold {task} by {run.model}: give the one that counts"
                )
    return [_record(options, run) for run in runs]


def _results(path: Path) -> Mapping[str, Any]:
    value = whole_json(path)
    if not isinstance(value, dict) or not isinstance(value.get("results"), dict) or not value["results"]:
        raise InputError(f"{path} has no results by task in it: give a results_*.json that lm-eval wrote")
    return value


def _record(options: ImportOptions, run: Results) -> Found:
    if lacking := [task for task in run.tasks if task not in run.samples]:
        raise InputError(
            f"{run.path} has no samples of {', '.join(lacking[:5])}{', ...' if len(lacking) > 5 else ''} beside it: "
            f"run {run.tool} with --log_samples, and keep its files together"
        )
    tasks = [_task(options, run, name, path) for name, path in run.samples.items()]
    inputs = digests([run.path, *run.samples.values()])
    options = replace(options, files=(run.path,), kind="lm-eval")
    model = card(options, run.model, str((run.content.get("config") or {}).get("model_sha") or ""))
    facts = {
        "model": model,
        "tasks": {task.name: _task_facts(run, task) for task in tasks},
        "generation": _generation(run, tasks),
        "graders": {str(task.metric): f"{run.tool} {run.version or ''}".strip() for task in tasks},
        "k": [1],
        "imported": {**origin(run.tool, run.version, run.path, inputs[run.path.name]), **_run_facts(run.content)},
    }
    rows = [row for task in tasks for row in task.rows]
    name = re.sub(r"[^\w.-]+", "-", model["name"]).strip("-")[-60:]
    return Found("passk", name, options, inputs, facts, rows, [line for task in tasks for line in _agrees(run, task)])


def _run_facts(results: Mapping[str, Any]) -> dict[str, Any]:
    """What the results file says of the run as a whole."""
    config = results.get("config") or {}
    kept = {name: results.get(name) for name in ("git_hash", "date", "chat_template_sha", "system_instruction_sha")}
    kept |= {name: config.get(name) for name in ("model", "model_args", "limit", "random_seed", "model_dtype")}
    return {name: value for name, value in kept.items() if value is not None}


def _task_facts(run: Results, task: Task) -> dict[str, Any]:
    config = (run.content.get("configs") or {}).get(task.name) or {}
    version = (run.content.get("versions") or {}).get(task.name)
    shots = (run.content.get("n-shot") or {}).get(task.name, config.get("num_fewshot"))
    asked = sorted([row["problem"], row["doc_hash"] or "", row["target_hash"] or ""] for row in task.rows)
    return {
        "n": len(task.rows),
        "kind": "answer",
        "sha256": hashlib.sha256(canonical(asked).encode()).hexdigest(),
        "version": f"{run.tool} version {version}" if version is not None else run.tool,
        "layout": "",
        "shots": shots,
        "grader": str(task.metric),
        "config": {name: config[name] for name in ("dataset_path", "dataset_name", "output_type") if name in config},
    }


def _generation(run: Results, tasks: Sequence[Task]) -> dict[str, Any]:
    decoding: dict[str, Any] = {}
    sampled = False
    for task in tasks:
        config = (run.content.get("configs") or {}).get(task.name) or {}
        given = config.get("generation_kwargs") or {}
        if config.get("output_type", "generate_until") != "generate_until":
            decoding[task.name] = {"temperature": None, "top_p": None, "max_new_tokens": None, "stops": []}
            continue
        greedy = given.get("do_sample") is False or not given.get("temperature")
        sampled |= not greedy
        stops = given.get("until") or []
        decoding[task.name] = {
            "temperature": 0.0 if greedy else given["temperature"],
            "top_p": given.get("top_p", 1.0),
            "max_new_tokens": given.get("max_gen_toks", given.get("max_new_tokens")),
            "stops": [stops] if isinstance(stops, str) else list(stops),
        }
    return {
        "backend": f"{run.tool} {run.content.get('model_source') or ''}".strip(),
        "chat": bool(run.content.get("chat_template")),
        "system": str(run.content.get("system_instruction") or ""),
        "decoding": decoding,
        "seeds": "as the run drew them" if sampled else "greedy, none",
    }


# ---- samples ------------------------------------------------------------


def _task(options: ImportOptions, run: Results, name: str, path: Path) -> Task:
    samples = json_lines(path)
    for number, sample in enumerate(samples, start=1):
        wants(sample, {"doc_id": (int, str), "filtered_resps": list}, f"sample {number} of {path}")
    stated = run.content["results"][name]
    metric = _chosen(options.metric, name, samples, stated, path)
    mine = [sample for sample in samples if sample.get("filter", metric.filter) == metric.filter]
    docs = [str(sample["doc_id"]) for sample in mine]
    if len(set(docs)) < len(docs):
        twice = next(doc for doc in docs if docs.count(doc) > 1)
        raise InputError(f"{path} holds document {twice} twice under the filter {metric.filter}: restore the file")
    meant = ((run.content.get("n-samples") or {}).get(name) or {}).get("effective")
    if meant is not None and meant != len(mine):
        raise InputError(
            f"{path} holds {len(mine):,} documents and {run.path.name} was computed on {meant:,}: the file was cut, or "
            "is of another run"
        )
    task = Task(name, [_row(name, sample, metric, path) for sample in mine], metric, _stated(stated, metric))
    if run.tool == "lm-eval" and task.stated is not None and abs(task.share - task.stated) > _EXACT:
        raise InputError(
            f"the samples in {path} give {metric} {task.share:.6f}, and {run.path.name} states {task.stated:.6f}: they "
            "are not of one run, or one of the files was changed"
        )
    return replace(task, rows=task.rows[: options.limit])


def _agrees(run: Results, task: Task) -> Iterator[str]:
    if task.stated is None:
        yield f"{task.name}: {run.path.name} states no {task.metric} to compare with"
    elif abs(task.share - task.stated) <= _EXACT:
        yield f"{task.name}: {run.tool} states {task.metric} {task.stated!r}, the same"
    else:
        yield f"{task.name}: {run.tool} states {task.metric} {task.stated!r}; the imported rows give {task.share!r}"


def _stated(results: Mapping[str, Any], metric: Metric) -> float | None:
    value = results.get(str(metric), results.get(metric.name))
    return float(value) if isinstance(value, int | float) else None


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
    names = {key.partition(",")[0] for key in stated} | {name for s in samples for name in s.get("metrics") or ()}
    values: dict[Metric, list[Any]] = {}
    for sample in samples:
        for name in sorted(names & sample.keys()):
            # Files of earlier versions have one filter and do not name it.
            values.setdefault(Metric(name, str(sample.get("filter", _only_filter(name, stated)))), []).append(
                sample[name]
            )
    verdicts = [metric for metric, some in values.items() if all(_is_verdict(value) for value in some)]
    return verdicts, [metric for metric in values if metric not in verdicts]


def _only_filter(name: str, stated: Mapping[str, Any]) -> str:
    return next((key.partition(",")[2] for key in stated if key.startswith(f"{name},")), "none")


def _is_verdict(value: Any) -> bool:
    return isinstance(value, bool | int | float) and value in (0, 1)


def _row(task: str, sample: Row, metric: Metric, path: Path) -> Row:
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
