"""How often is the first answer right? pass@1 on mathematics (the paper's Table 2), generated through lm-eval.

Generation and grading are apart: lm-eval writes the prompts and runs the model, every raw completion is stored
as soon as its batch is done, and `grading` reads the stored text. GSM8K and the embedded mini-GSM take the same
path: a file of questions and answers. The printed interval resamples problems, all answers to one problem
together.

Programs (HumanEval, MBPP) need a sandbox and are not measured here; symbolic answers (MATH) need another grader.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from selectkd_eval import environment, measures
from selectkd_eval.errors import InputError, choose
from selectkd_eval.grading import GRADERS, Grader
from selectkd_eval.pair import LoadedModel, load_model
from selectkd_eval.prompts import prompt_id, read_json_rows
from selectkd_eval.records import Writer, canonical, open_record
from selectkd_eval.verbs import PasskOptions


class Source(NamedTuple):
    """Where a task's problems come from when no file is given, and how its answers are graded."""

    grader: str
    hub: tuple[str, str] | None = None
    embedded: dict[str, str] | None = None


TASKS: dict[str, Source] = {
    "mini-gsm": Source("gsm8k-numeric", embedded={"test": "mini-gsm:test", "train": "mini-gsm:labelled"}),
    "gsm8k": Source("gsm8k-numeric", hub=("openai/gsm8k", "main")),
}


@dataclass(frozen=True)
class Task:
    """Few-shot examples as rows of `question` and `answer`, problems with `id` and `gold` as well, and a digest."""

    name: str
    problems: list[dict[str, str]]
    examples: list[dict[str, str]]
    sha256: str
    grader: Grader

    def facts(self, shots: int) -> dict[str, Any]:
        """For a record's header. The digest covers the whole set and the examples shown, whatever --limit says."""
        return {"n": len(self.problems), "sha256": self.sha256, "shots": shots, "grader": self.grader.name}


class Answer(NamedTuple):
    """One answer still to be written: which problem of which task, under which seed, the how-manieth sample."""

    task: Task
    place: int
    seed: int
    sample: int

    @property
    def problem(self) -> str:
        return self.task.problems[self.place]["id"]

    @property
    def key(self) -> str:
        return f"{self.task.name}/{self.problem}/{self.seed}/{self.sample}"

    def draw_seed(self, run_seed: int) -> int:
        """Seed of this answer's random numbers: a function of what it is, not of when it is written."""
        text = f"{self.task.sha256}/{self.problem}/{run_seed}/{self.seed}/{self.sample}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])


def run(options: PasskOptions) -> int:
    """Measure pass@1 on each task; prints the record's path and one line per task."""
    _check(options)
    tasks = [load_task(name, options) for name in dict.fromkeys(options.tasks)]
    environment.require("lm_eval", "pass@1", "bench")
    environment.set_threads(options.threads)
    loaded = load_model(options.model, environment.device(options.device))
    answers = [
        Answer(task, place, seed, sample)
        for task in tasks
        for place in range(len(task.problems))
        for seed in options.seeds
        for sample in range(options.samples)
    ]
    inputs = {"model": loaded.card.fingerprint, **{f"task {task.name}": task.sha256 for task in tasks}}
    facts = {
        "model": loaded.card.as_dict(),
        "tasks": {task.name: task.facts(options.shots) for task in tasks},
        "generation": _generation_facts(options, loaded),
    }
    with open_record("passk", options, inputs=inputs, facts=facts) as record:
        pending = [answer for answer in answers if answer.key not in record.done]
        if pending:
            _write_answers(pending, loaded, options, record, total=len(answers))
        record.finish()
        print(record.path)
        for task in tasks:
            print(_line(task, [record.done[a.key] for a in answers if a.task is task]))
    return 0


def load_task(name: str, options: PasskOptions) -> Task:
    """A task's problems from --data, the package or the hub; an InputError says what was looked for."""
    source = choose(name, TASKS, "task")
    rows = _rows(name, source, "test", options.data)
    examples = _rows(name, source, "train", options.data)[: options.shots] if options.shots else []
    if options.shots > len(examples):
        raise InputError(
            f"--shots {options.shots} asks for more solved examples than the {len(examples)} of {name}: ask for fewer"
        )
    digest = hashlib.sha256()
    for row in (*rows, *examples):
        digest.update(canonical([row["question"], row["answer"]]).encode() + b"\n")
    grader, seen = GRADERS[source.grader], Counter[str]()
    problems = []
    for row in rows[: options.limit]:
        identity = prompt_id(f"Question: {row['question']}\nAnswer:")
        seen[identity] += 1
        unique = identity if seen[identity] == 1 else f"{identity}-{seen[identity]}"
        problems.append({**row, "id": unique, "gold": grader.gold(row["answer"])})
    return Task(name, problems, examples, digest.hexdigest(), grader)


def _check(options: PasskOptions) -> None:
    if options.temperature == 0 and (len(options.seeds) > 1 or options.samples > 1):
        raise InputError(
            f"greedy decoding (--temperature 0) writes the same text for each of the {len(options.seeds)} seeds and "
            f"{options.samples} samples: use one of each, or sample with --temperature 0.8"
        )
    for flag, value in (
        ("--max-new-tokens", options.max_new_tokens or 1),
        ("--samples", options.samples),
        ("--batch-size", options.batch_size),
        ("--limit", 1 if options.limit is None else options.limit),
    ):
        if value < 1:
            raise InputError(f"{flag} is a count and must be at least 1, but {value} was given")
    if options.temperature < 0 or options.shots < 0:
        raise InputError(f"--temperature {options.temperature} and --shots {options.shots} must not be negative")


def _rows(name: str, source: Source, split: str, data: Path | None) -> list[dict[str, str]]:
    if data is not None:
        names = [f"{name}_{split}.jsonl{ending}" for ending in ("", ".gz")]
        if path := next((data / file for file in names if (data / file).is_file()), None):
            return _read(path)
        if not source.embedded:
            raise InputError(f"{name} needs {' or '.join(names)} in {data}, and neither is there: give its --data DIR")
    if source.embedded:
        from selectkd_eval.demo.corpus import write_task_file

        with tempfile.TemporaryDirectory() as directory:
            return _read(write_task_file(source.embedded[split], Path(directory) / f"{name}_{split}.jsonl"))
    return _from_hub(name, source, split)


def _read(path: Path) -> list[dict[str, str]]:
    rows = read_json_rows(path)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get("question"), str) or not isinstance(row.get("answer"), str):
            raise InputError(
                f"entry {number} of {path} lacks a text `question` or `answer` (it has {', '.join(row) or 'nothing'}): "
                f"a task file has both in every line, as GSM8K's"
            )
    if not rows:
        raise InputError(f"the task file {path} is empty: give one problem per line")
    return [{"question": row["question"], "answer": row["answer"]} for row in rows]


def _from_hub(name: str, source: Source, split: str) -> list[dict[str, str]]:
    environment.expect_hub()
    datasets = environment.require("datasets", f"the task {name}", "bench")
    assert source.hub is not None
    path, configuration = source.hub
    try:
        rows = datasets.load_dataset(path, configuration, split=split)
    except (OSError, RuntimeError, ValueError) as error:
        first = str(error).strip().split("\n", 1)[0][:160]
        raise InputError(
            f"{name} could not be fetched from the hub's {path} ({type(error).__name__}: {first}): "
            f"give --data DIR with {name}_{split}.jsonl or {name}_{split}.jsonl.gz"
        ) from None
    return [{"question": str(row["question"]), "answer": str(row["answer"])} for row in rows]


def _generation_facts(options: PasskOptions, loaded: LoadedModel) -> dict[str, Any]:
    return {
        "backend": "lm-eval HFLM",
        "max_new_tokens": _new_tokens(options, loaded),
        "temperature": options.temperature,
        "chat_template": bool(loaded.tokenizer.chat_template),
        "seeds": "one stream of random numbers per answer" if options.temperature > 0 else "greedy, none",
    }


def _positions(loaded: LoadedModel) -> int:
    """Positions the model has for prompt and answer together; 2048 where its configuration does not say."""
    for field in ("max_position_embeddings", "n_positions", "n_ctx"):
        if isinstance(value := getattr(loaded.model.config, field, None), int):
            return value
    return 2048


def _new_tokens(options: PasskOptions, loaded: LoadedModel) -> int:
    """--max-new-tokens or its default, at most half the model's positions: the prompt needs room too.

    Toy models answer their own family within 60 tokens and repeat one token for ever on foreign text: 512 of those
    for each of GSM8K's 1,319 problems would keep one core busy for a quarter of an hour.
    """
    default = 128 if loaded.card.parameters < 10_000_000 else 512
    return min(options.max_new_tokens or default, _positions(loaded) // 2)


def _write_answers(
    pending: list[Answer], loaded: LoadedModel, options: PasskOptions, record: Writer, total: int
) -> None:
    """Generate batch by batch; each batch is graded and in the record before the next one starts."""
    from selectkd_eval import lm_backend

    lm = lm_backend.SeededHFLM(loaded, options.batch_size, _positions(loaded))
    room = _new_tokens(options, loaded)
    asked = {}
    for task in {answer.task.name: answer.task for answer in pending}.values():
        lm_task = lm_backend.question_task(
            task.name, task.problems, task.examples, options.shots, room, options.temperature, task.grader
        )
        asked[task.name] = lm_backend.requests(lm_task, lm)
    bar = tqdm(total=total, initial=total - len(pending), desc="passk", unit="answer", file=sys.stderr)
    with bar:
        for batch in _batches(pending, options.batch_size, lambda a: len(asked[a.task.name][a.place].args[0])):
            completions = lm.complete(
                [asked[answer.task.name][answer.place] for answer in batch],
                [answer.draw_seed(options.seed) for answer in batch],
            )
            for answer, completion in zip(batch, completions, strict=True):
                _write(record, answer, completion)
            bar.update(len(batch))


def _batches(pending: list[Answer], size: int, length: Any) -> Iterator[list[Answer]]:
    """Prompts of similar length together, the longest first: what does not fit in memory fails at once."""
    order = sorted(pending, key=length, reverse=True)
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _write(record: Writer, answer: Answer, completion: Any) -> None:
    gold = answer.task.problems[answer.place]["gold"]
    extracted = answer.task.grader.extract(completion.text)
    record.write(
        answer.key,
        task=answer.task.name,
        problem=answer.problem,
        seed=answer.seed,
        sample=answer.sample,
        completion=completion.text,
        extracted=extracted,
        gold=gold,
        correct=int(extracted == gold),
        finish=completion.finish,
        n_tokens=completion.n_tokens,
        prompt_cut=completion.prompt_cut,
    )


def _line(task: Task, rows: list[dict[str, Any]]) -> str:
    """One task's result: value, interval and everything needed to compare it with another run."""
    score = measures.pass_at_1(rows, task.name).estimate().scaled(100)
    cut, truncated = (sum(row["prompt_cut"] for row in rows), sum(row["finish"] == "length" for row in rows))
    return (
        f"{task.name} pass@1 {score.value:.2f} % [{score.low:.2f}, {score.high:.2f}] "
        f"(n = {score.n} problems, {len(rows)} answers, 95 % by {score.method}; {truncated} answers cut at the "
        f"token limit, {cut} prompts cut; task sha256 {task.sha256[:12]}, grader {task.grader.name})"
    )
