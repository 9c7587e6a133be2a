"""Spec-Bench's answer files (model_answer/*.jsonl) as one `speedup` record: methods against plain decoding.

Read as hemingkx/Spec-Bench writes them (evaluation/eval.py): per question and choice the texts, seconds, new tokens
and target calls of every turn, and how many tokens each call emitted, the target's own included. A question is a
prompt, a choice a repetition. Text counts as unchanged where it is plain decoding's, character by character; the files
hold no logits, so that a numerical tie cannot be told from a fault and counts as one.

The files tell no draft lengths, so nothing is known of refused tokens: alpha and accepted / drafted stay unknown. The
record's gamma is the most draft tokens that one call accepted, which no draft length is below.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selectkd_eval.errors import InputError
from selectkd_eval.exchange.foreign import Found, Row, card, content, digests, json_lines, origin, wants
from selectkd_eval.prompt_files import MT_BENCH
from selectkd_eval.records import canonical
from selectkd_eval.verbs import ImportOptions

TOOL = "Spec-Bench"
ERROR = "ERROR"  # what evaluation/eval.py writes for a turn that failed
RULES = (
    "a question's turns are one prompt; accepted tokens are what each target call emitted less its own one; the files "
    "tell no draft length, and γ here is the most draft tokens that one call accepted; text is compared as characters"
)
_UNKNOWN = (
    *("cpu_s", "decode_s", "decode_tokens", "drafted", "tested", "draft_s", "verify_s", "accept_s", "crop_s"),
    *("drafted_per_step", "overlap", "load", "joules"),
)


@dataclass(frozen=True)
class Answers:
    """One file: the answers of one way of decoding, by question."""

    path: Path
    model: str
    questions: dict[str, Row]


def fits(path: Path) -> bool:
    """Whether the file's first line is an answer of Spec-Bench's."""
    try:
        first = json.loads(content(path).partition("\n")[0])
    except (InputError, ValueError, RecursionError):
        return False
    return isinstance(first, dict) and {"question_id", "choices"} <= first.keys()


def found(options: ImportOptions, paths: Sequence[Path]) -> list[Found]:
    """One record: every file is a draft of it, timed against --baseline."""
    if options.baseline is None:
        raise InputError("a speed-up needs the seconds of plain decoding: give Spec-Bench's file of them as --baseline")
    files = [path for path in paths if path.resolve() != options.baseline.resolve()]
    if not files:
        raise InputError(f"{paths[0]} is the --baseline itself: give the answers of a speculative method too")
    if len(files) > 1 and (options.model or options.method):
        raise InputError(f"--model and --method name one draft, and there are {len(files)}: leave them out")
    plain, drafts = _read(options.baseline), [_read(path) for path in files]
    names = [one.model for one in drafts]
    if len(set(names)) < len(names):
        raise InputError(f"two files are of {max(names, key=names.count)}: import runs of one method one by one")
    for one in (plain, *drafts):
        _expect_greedy(one)
    questions = list(plain.questions)
    for one in drafts:
        if apart := one.questions.keys() ^ plain.questions.keys():
            raise InputError(
                f"{one.path} and {plain.path} differ in {len(apart)} questions ({', '.join(sorted(apart)[:5])}): a "
                "speed-up needs the same questions under both"
            )
    if options.limit is not None:
        questions = _first(plain, options.limit)
    return [_record(replace(options, files=tuple(files), kind="spec-bench"), plain, drafts, questions)]


def _record(options: ImportOptions, plain: Answers, drafts: Sequence[Answers], questions: Sequence[str]) -> Found:
    gamma = max(max(_accepted(one.questions[q])) for one in drafts for q in questions)
    if gamma < 1:
        raise InputError(f"no call in {drafts[0].path} accepted a draft token: that is plain decoding, not a draft's")
    inputs = digests([*(one.path for one in drafts), plain.path])
    counted = [_task(plain.questions[q]) for q in questions]
    asked = [[q, _task(plain.questions[q]), plain.questions[q]["choices"][0]["turns"]] for q in sorted(questions)]
    first = drafts[0]
    target = replace(options, model="", method="", base_method="", training_seed=None)
    facts = {
        "engine": {"name": TOOL, "version": None},
        "target": card(target, plain.model),
        "drafts": [card(options, one.model) for one in drafts],
        "prompts": {
            "name": "spec-bench",
            "sha256": hashlib.sha256(canonical(asked).encode()).hexdigest(),
            "n": len(questions),
            "tasks": {task: counted.count(task) for task in dict.fromkeys(counted)},
        },
        "gammas": [gamma],
        "batches": [1],
        "first": 0,
        "rules": RULES,
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": 0,
        "dtype": _dtype(plain.model),
        "device": "unknown device",
        **dict.fromkeys(("threads", "affinity", "vocabulary", "memory")),
        "imported": origin(TOOL, None, first.path, inputs[first.path.name]),
    }
    rows = [_gate(q, plain, drafts, gamma) for q in questions]
    rows += [_timed(q, plain, drafts, gamma) for q in questions]
    name = re.sub(r"[^\w.-]+", "-", first.model if len(drafts) == 1 else plain.model).strip("-")[-60:]
    changed = sum(any(one["outcome"] == "violation" for one in row.get("outcomes", ())) for row in rows)
    return Found("speedup", name, options, inputs, facts, rows, list(_own(plain, drafts, questions, changed)))


def _gate(question: str, plain: Answers, drafts: Sequence[Answers], gamma: int) -> Row:
    """Is each method's text plain decoding's?"""
    reference = plain.questions[question]
    outcomes = []
    for index, one in enumerate(drafts):
        same = _texts(one.questions[question]) == _texts(reference)
        outcome = {"draft": index, "gamma": gamma, "outcome": "identical" if same else "violation"}
        outcomes.append({**outcome, "gap_ulps": 0.0 if same else None, "at": None})
    return {"key": f"gate/{question}", **_place(reference), "length": _length(reference), "outcomes": outcomes}


def _timed(question: str, plain: Answers, drafts: Sequence[Answers], gamma: int) -> Row:
    runs = []
    for index, one in enumerate((plain, *drafts), start=-1):
        for rep, choice in enumerate(one.questions[question]["choices"]):
            calls = [length - 1 for length in choice["accept_lengths"]]
            run = {"rep": rep, "place": index + 1, "draft": index, "gamma": gamma if index >= 0 else 0, "batch": 1}
            run |= {"control": False, "wall_s": sum(choice["wall_time"])}
            run |= {"tokens": sum(choice["accept_lengths"]), "steps": len(calls)}
            run |= {"accepted": sum(calls)}
            steps = {"accepted_per_step": calls if index >= 0 else []}
            runs.append({**dict.fromkeys(_UNKNOWN), **run, **steps})
    reference = plain.questions[question]
    return {"key": f"time/{question}", **_place(reference), "length": _length(reference), "runs": runs}


def _place(row: Mapping[str, Any]) -> Row:
    question = str(row["question_id"])
    return {"prompt": question, "cluster": question, "task": _task(row)}


def _task(row: Mapping[str, Any]) -> str:
    category = str(row.get("category") or "")
    return "mt_bench" if category in MT_BENCH else category


def _length(row: Mapping[str, Any]) -> int:
    return int(sum(row["choices"][0]["new_tokens"]))


def _texts(row: Mapping[str, Any]) -> set[tuple[str, ...]]:
    """The texts of all choices: one, for greedy decoding has no other."""
    return {tuple(choice["turns"]) for choice in row["choices"]}


def _accepted(row: Mapping[str, Any]) -> list[int]:
    return [length - 1 for choice in row["choices"] for length in choice["accept_lengths"]] or [0]


def _first(plain: Answers, limit: int) -> list[str]:
    """The first questions of every task."""
    kept: dict[str, list[str]] = {}
    for question, row in plain.questions.items():
        kept.setdefault(_task(row), []).append(question)
    return [question for questions in kept.values() for question in questions[:limit]]


def _expect_greedy(one: Answers) -> None:
    """Spec-Bench puts temperature and arithmetic into the model id that it passes (eval.sh)."""
    told = re.search(r"temp-([0-9.]+)", one.model)
    if told and float(told[1].rstrip(".") or 0) > 0:
        raise InputError(
            f"{one.path} was sampled ({one.model}): sampled texts cannot be held against plain decoding's; import "
            "greedy answers"
        )


def _dtype(model: str) -> str:
    return next((name for name in ("bfloat16", "float16", "float32", "float64") if name in model), "unknown dtype")


def _read(path: Path) -> Answers:
    """A file of answers; of a question that was answered twice the last one counts, as in reorg_answer_file."""
    if not path.is_file():
        raise InputError(f"there is no file {path}: give a .jsonl of Spec-Bench's model_answer")
    rows = json_lines(path)
    questions: dict[str, Row] = {}
    for number, row in enumerate(rows, start=1):
        where = f"line {number} of {path}"
        wants(row, {"question_id": (int, str), "choices": list}, where)
        if not row["choices"]:
            raise InputError(f"{where} has no answer in it: run that question again")
        for choice in row["choices"]:
            _check(choice, where)
        questions[str(row["question_id"])] = row
    models = sorted({str(row.get("model_id") or path.name.partition(".jsonl")[0]) for row in rows})
    if len(models) > 1:
        raise InputError(f"{path} mixes answers of {', '.join(models[:4])}: give one file per method")
    return Answers(path, models[0], questions)


def _check(choice: Any, where: str) -> None:
    if not isinstance(choice, dict):
        raise InputError(f"{where} has a choice that is no JSON object: restore the file")
    kinds: dict[str, type] = dict.fromkeys(("turns", "new_tokens", "wall_time", "accept_lengths"), list)
    wants(choice, kinds, where)
    if ERROR in choice["turns"]:
        raise InputError(f"{where} is a question that failed (its text is {ERROR}): run it again, or take its line out")
    # A call emits the target's own token at the least.
    least = [(choice["new_tokens"], 0), (choice["accept_lengths"], 1)]
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= low for counts, low in least for n in counts):
        raise InputError(f"{where} has tokens that are no counts: restore the file")
    seconds = choice["wall_time"]
    if not all(isinstance(value, int | float) and value > 0 for value in seconds) or not seconds:
        raise InputError(f"{where} has a wall_time that is no time: restore the file")
    if not all(isinstance(text, str) for text in choice["turns"]) or not sum(choice["new_tokens"]):
        raise InputError(f"{where} holds no text: run that question again")


def _own(plain: Answers, drafts: Sequence[Answers], questions: Sequence[str], changed: int) -> Iterator[str]:
    """Spec-Bench's own figures (evaluation/speed.py), but for tokens, which it counts anew with a tokenizer."""
    if changed:
        yield (
            f"{changed} of {len(questions)} questions have another text than plain decoding. In float16 that happens "
            "at numerical ties too, which these files cannot tell from faults: run Spec-Bench with --dtype float32"
        )
        return
    base = _rate(plain, questions)
    for one in drafts:
        lengths = [n for q in questions for n in one.questions[q]["choices"][0]["accept_lengths"]]
        rate = _rate(one, questions)
        yield (
            f"{TOOL}'s way, {one.model}: {rate:.2f} over {base:.2f} tokens per second, means over questions, is "
            f"×{rate / base:.3f}; mean accepted tokens {sum(lengths) / len(lengths):.3f}, the target's own included"
        )


def _rate(one: Answers, questions: Sequence[str]) -> float:
    choices = [one.questions[q]["choices"][0] for q in questions]
    return sum(sum(choice["new_tokens"]) / sum(choice["wall_time"]) for choice in choices) / len(choices)
