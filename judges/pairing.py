"""Whose answers are compared? Two sets of answers, joined by the prompt's hash and never by position.

The candidate is an `answer` record; the baseline is another one, a JSON or JSONL file with an answer per prompt, or
the reference answers of a named prompt set. A prompt that only one side has is an error with counts, not a smaller
denominator. Several answers per prompt (seeds) are compared seed by seed.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selectkd_eval import records
from selectkd_eval.environment import sha256_file
from selectkd_eval.errors import InputError
from selectkd_eval.prompt_sets import PROMPT_SETS
from selectkd_eval.prompts import NAMED, Prompt, load_prompts


@dataclass(frozen=True)
class Answers:
    """One side: for every prompt id its text and its answers by seed, in the order of the source."""

    name: str
    sha256: str
    card: dict[str, Any]
    prompts: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] | None = None  # how it was decoded; None for a file of answers
    text: dict[str, str] = field(default_factory=dict)
    by_seed: dict[str, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))
    failed: dict[tuple[str, int], str] = field(default_factory=dict)  # (prompt, seed) without an answer, and why
    task: dict[str, str] = field(default_factory=dict)  # the data set that a prompt comes from, where it is told
    prompt_dir: Path | None = None  # where the files of its prompt set lay


@dataclass(frozen=True)
class Comparison:
    """Two answers to one prompt. `task` is the stratum: the data set of the prompt, empty where all have the same.

    `lacking` says whose answer is missing and why, where --allow-missing lets such a comparison through: it is failed.
    """

    prompt: str
    text: str
    seed: int
    candidate: str
    baseline: str
    task: str = ""
    lacking: str = ""


def load_answers(name: str, prompt_dir: Path | None = None, missing_ok: bool = False) -> Answers:
    """The answers of a record, a file, a named set, or sets and files with commas; an InputError says what is missing.

    `prompt_dir` is where the files of named sets lie. A record in which a prompt's answer failed is refused, unless
    `missing_ok`.
    """
    path = Path(name)
    if path.is_file() and records.is_record(path):
        return _from_record(path, missing_ok)
    if path.is_file():
        prompts = load_prompts(name).prompts
        return _references(name, sha256_file(path), prompts)
    if not any(part.strip() in NAMED or Path(part.strip()).is_file() for part in name.split(",")):
        raise InputError(
            f"there are no answers {name!r}: give an answer record, a .json or .jsonl file of answers, or a named set "
            f"({', '.join(NAMED)})"
        )
    found = load_prompts(name, None, prompt_dir)
    return _references(name, found.sha256, found.prompts)


def newest_record(directory: Path) -> str:
    """The finished answer record that was written last, or an InputError with the command that makes one.

    Text that a student wrote in the middle of its training (`written_in`) is not what anyone means by its answers.
    """
    finished, unfinished = records.read_all(directory, "answer")
    finished = [record for record in finished if "written_in" not in record.facts]
    if not finished:
        also = f" ({len(unfinished)} unfinished)" if unfinished else ""
        raise InputError(
            f"there is no finished answer record in {directory}{also} to judge: "
            f"selectkd-eval answer --model MODEL --prompts PROMPTS --out {directory} makes one"
        )
    newest = max(finished, key=lambda record: (record.path.stat().st_mtime_ns, record.path.name))
    if len(finished) > 1:
        what = f"{newest.facts['model']['name']} on {newest.facts['prompts']['name']}"
        print(
            f"judging {newest.path}, the newest of {len(finished)} finished answer records ({what}); "
            f"--candidate names another",
            file=sys.stderr,
        )
    return str(newest.path)


def join(candidate: Answers, baseline: Answers, limit: int | None = None) -> list[Comparison]:
    """Every comparison, prompt by prompt and seed by seed.

    With `limit`, the candidate's first N prompts are judged and the baseline may have more. Otherwise both must
    cover the same prompts. A baseline with one answer per prompt serves every seed of the candidate.
    """
    wanted = list(candidate.text)[:limit]
    missing = [prompt for prompt in wanted if prompt not in baseline.text]
    surplus = [] if limit is not None else [prompt for prompt in baseline.text if prompt not in candidate.text]
    if missing or surplus:
        shared = len(wanted) - len(missing)
        hint = f", or judge the candidate's prompts alone with --limit {len(wanted)}" if not missing else ""
        raise InputError(
            f"{candidate.name} and {baseline.name} do not answer the same prompts ({len(missing)} only in the first, "
            f"{len(surplus)} only in the second, {shared} in both): answer one prompt set with both{hint}"
        )
    if not wanted:
        raise InputError(f"{candidate.name} holds no answers to judge: run its answer command again")
    tasks = {prompt: candidate.task.get(prompt) or baseline.task.get(prompt) or "" for prompt in wanted}
    several = len(set(tasks.values())) > 1
    return [
        _comparison(candidate, baseline, prompt, seed, tasks[prompt] if several else "")
        for prompt in wanted
        for seed in sorted({*candidate.by_seed[prompt], *(at for of, at in candidate.failed if of == prompt)})
    ]


def _comparison(candidate: Answers, baseline: Answers, prompt: str, seed: int, task: str) -> Comparison:
    mine, theirs = candidate.by_seed[prompt].get(seed), _partner(baseline, prompt, seed)
    lacking = [
        f"the {side} has no answer: {answers.failed.get((prompt, at), 'not asked')}"
        for side, answers, text, at in (("candidate", candidate, mine, seed), ("baseline", baseline, theirs, seed))
        if text is None
    ]
    return Comparison(prompt, candidate.text[prompt], seed, mine or "", theirs or "", task, "; ".join(lacking))


def _partner(baseline: Answers, prompt: str, seed: int) -> str | None:
    """The baseline's answer of this seed, or its only one; None where it failed."""
    answers = baseline.by_seed[prompt]
    if len(answers) == 1 and (prompt, seed) not in baseline.failed:
        return next(iter(answers.values()))
    if seed not in answers and (prompt, seed) not in baseline.failed:
        raise InputError(
            f"{baseline.name} has no answer of seed {seed} to prompt {prompt} (it has seeds "
            f"{', '.join(map(str, sorted(answers)))}): answer with the same --seeds on both sides"
        )
    return answers.get(seed)


def _from_record(path: Path, missing_ok: bool) -> Answers:
    record = records.read(path, verb="answer")
    answers = Answers(
        name=path.name,
        sha256=sha256_file(path),
        card=dict(record.facts["model"]),
        prompts=dict(record.facts.get("prompts") or {}),
        generation=record.facts.get("generation"),
        prompt_dir=Path(where) if (where := record.options.get("prompt_dir")) else None,
    )
    for row in record.rows:
        answers.text[row["prompt"]] = row["text"]
        if "error" in row:
            answers.failed[row["prompt"], int(row["seed"])] = row["error"]
            continue
        answers.by_seed[row["prompt"]][int(row["seed"])] = row["answer"]
        answers.task[row["prompt"]] = str(row.get("source") or "")
    if answers.failed and not missing_ok:
        why = next(iter(answers.failed.values()))
        raise InputError(
            f"{path} has {len(answers.failed)} prompts without an answer ({why}): run its answer command again, or "
            f"judge with --allow-missing, and they stand as failed"
        )
    return answers


def _author(name: str) -> str:
    """Who wrote the references of named sets (a judge may be their kin); empty where a part is no such set."""
    sets = [PROMPT_SETS.get(part.strip()) for part in name.split(",")]
    return " and ".join(sorted({one.references for one in sets if one})) if all(sets) else ""


def _references(name: str, sha256: str, prompts: list[Prompt]) -> Answers:
    label, author = Path(name).name, _author(name) or Path(name).name
    answers = Answers(label, sha256, card={"name": author, "fingerprint": sha256, "method": author})
    for prompt in prompts:
        if prompt.answer is None:
            raise InputError(
                f"{name} has no answer to the prompt {prompt.text[:60]!r}, so it cannot be the baseline: give a file "
                f"whose entries have answer, output or response"
            )
        answers.text.setdefault(prompt.id, prompt.text)
        answers.by_seed[prompt.id].setdefault(0, prompt.answer)
        answers.task.setdefault(prompt.id, prompt.source)
    # DistiLLM-2's Evol-Instruct file asks one question twice; a prompt is judged once, against its first answer.
    answers.card["repeated_prompts"] = len(prompts) - len(answers.text)
    return answers
