"""lm-eval's results and samples (`--output_path DIR --log_samples`), and lmms-eval's in the same layout, as `passk`.

One record per results file, which is one run of one model: a row per task and document, right or wrong by the metric
and filter that were chosen. The samples must be all of the run's and give the very number that its results file
states. Metrics that are no verdict on a single answer (BLEU, perplexity, judges' points) are not imported. Neither
tool writes token counts or why a text ended; rows have None there.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from selectkd_eval.errors import InputError
from selectkd_eval.exchange import lm_eval_samples
from selectkd_eval.exchange.foreign import Found, card, content, digests, origin, whole_json
from selectkd_eval.exchange.lm_eval_samples import Task
from selectkd_eval.records import canonical
from selectkd_eval.verbs import ImportOptions

_RESULTS = re.compile(r"(?:results_(?P<old>.+)|(?P<new>.+)_results)\.json(?:\.gz)?")
_EXACT = 1e-9


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
        config = self.part("config")
        # A model that was handed over as an object has a name drawn at random; where it was loaded from is told apart.
        named = [self.content.get("model_name"), config.get("model")]
        return str(next(filter(None, named if config.get("model_args") else named[::-1]), "unnamed"))

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
        groups = {name for name, inside in self.part("group_subtasks").items() if inside}
        return [str(name) for name in self.content["results"] if name not in groups]

    def part(self, *names: str) -> Mapping[str, Any]:
        """What stands under these names, one in the other; empty where it is not there or no mapping."""
        found: Any = self.content
        for name in names:
            found = found.get(name) if isinstance(found, dict) else None
        return found if isinstance(found, dict) else {}

    def _date(self, kind: str) -> str | None:
        match = _RESULTS.fullmatch(self.path.name)
        return match[kind] if match else None


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
    named = [path for path in paths if ".jsonl" not in path.name]
    runs = [Results(path, _results(path)) for path in named if _RESULTS.fullmatch(path.name) or fits(path)]
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
    results = value.get("results") if isinstance(value, dict) else None
    if not isinstance(results, dict) or not results or not all(isinstance(one, dict) for one in results.values()):
        raise InputError(f"{path} has no results by task in it: give a results_*.json that lm-eval wrote")
    return value


def _record(options: ImportOptions, run: Results) -> Found:
    if lacking := [task for task in run.tasks if task not in run.samples]:
        raise InputError(
            f"{run.path} has no samples of {', '.join(lacking[:5])}{', ...' if len(lacking) > 5 else ''} beside it: "
            f"run {run.tool} with --log_samples, and keep its files together"
        )
    tasks = [_task(options, run, name, path) for name, path in run.samples.items()]
    kept = [replace(task, rows=task.rows[: options.limit]) for task in tasks]
    inputs = digests([run.path, *run.samples.values()])
    options = replace(options, files=(run.path,), kind="lm-eval")
    model = card(options, run.model, str(run.part("config").get("model_sha") or ""))
    facts = {
        "model": model,
        "tasks": {task.name: _task_facts(run, task) for task in kept},
        "generation": _generation(run, tasks),
        "graders": {str(task.metric): f"{run.tool} {run.version or ''}".strip() for task in tasks},
        "k": [1],
        "imported": {**origin(run.tool, run.version, run.path, inputs[run.path.name]), **_run_facts(run)},
    }
    rows = [row for task in kept for row in task.rows]
    name = re.sub(r"[^\w.-]+", "-", model["name"]).strip("-")[-60:]
    return Found("passk", name, options, inputs, facts, rows, [line for task in tasks for line in _agrees(run, task)])


def _run_facts(run: Results) -> dict[str, Any]:
    """What the results file says of the run as a whole."""
    config = run.part("config")
    kept = {name: run.content.get(name) for name in ("git_hash", "date", "chat_template_sha", "system_instruction_sha")}
    kept |= {name: config.get(name) for name in ("model", "model_args", "limit", "random_seed", "model_dtype")}
    return {name: value for name, value in kept.items() if value is not None}


def _task_facts(run: Results, task: Task) -> dict[str, Any]:
    config = run.part("configs", task.name)
    version = run.part("versions").get(task.name)
    shots = run.part("n-shot").get(task.name, config.get("num_fewshot"))
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
        config = run.part("configs", task.name)
        given = run.part("configs", task.name, "generation_kwargs")
        if config.get("output_type", "generate_until") != "generate_until":
            decoding[task.name] = {"temperature": None, "top_p": None, "max_new_tokens": None, "stops": []}
            continue
        greedy = given.get("do_sample") is False or not given.get("temperature")
        sampled |= not greedy
        stops = given.get("until")
        decoding[task.name] = {
            "temperature": 0.0 if greedy else _number(given.get("temperature")),
            "top_p": _number(given.get("top_p", 1.0)),
            "max_new_tokens": _number(given.get("max_gen_toks", given.get("max_new_tokens"))),
            "stops": [stops] if isinstance(stops, str) else stops if isinstance(stops, list) else [],
        }
    return {
        "backend": f"{run.tool} {run.content.get('model_source') or ''}".strip(),
        "chat": bool(run.content.get("chat_template")),
        "system": str(run.content.get("system_instruction") or ""),
        "decoding": decoding,
        "seeds": "as the run drew them" if sampled else "greedy, none",
    }


def _number(value: Any) -> float | int | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _task(options: ImportOptions, run: Results, name: str, path: Path) -> Task:
    """A task's rows, all of them: --limit comes later, for the number must be the one that the run states."""
    meant = run.part("n-samples", name).get("effective")
    task = lm_eval_samples.read(name, path, run.content["results"][name], options.metric, meant)
    if run.tool == "lm-eval" and task.stated is not None and abs(task.share - task.stated) > _EXACT:
        raise InputError(
            f"the samples in {path} give {task.metric} {task.share:.6f}, and {run.path.name} states {task.stated:.6f}: "
            "they are not of one run, or one of the files was changed"
        )
    return task


def _agrees(run: Results, task: Task) -> Iterator[str]:
    if task.stated is None:
        yield f"{task.name}: {run.path.name} states no {task.metric} to compare with"
    elif abs(task.share - task.stated) <= _EXACT:
        yield f"{task.name}: {run.tool} states {task.metric} {task.stated!r}, the same"
    else:
        yield f"{task.name}: {run.tool} states {task.metric} {task.stated!r}; its samples give {task.share!r}"
