"""How often is the answer right? pass@k on mathematics and code (the paper's Table 2), generated through lm-eval.

Generation and grading are apart. A backend writes raw texts under lm-eval's prompts; each is kept in the answer store
as soon as it is done, so that no other command ever pays for it again; `marking` compares it or runs it; the row goes
into the record. The printed interval resamples problems, all answers to one problem together.

What a task asks stands in `tasks`, what is right in `grading` and `sandbox`, the printed table in `passk_table`.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from queue import Empty, Queue
from threading import Event
from typing import Any, NamedTuple

from tqdm import tqdm

from selectkd_eval import environment, passk_table, records
from selectkd_eval.backends import open_backend
from selectkd_eval.backends.answer_store import AnswerStore, answer_key
from selectkd_eval.backends.backend import Asked, Backend, Completion, Decoding
from selectkd_eval.errors import InputError
from selectkd_eval.marking import SANDBOX, Item, Marker, check_grader
from selectkd_eval.records import Record, Writer, open_record
from selectkd_eval.tasks.sources import load_task
from selectkd_eval.tasks.table import find
from selectkd_eval.tasks.task import Problem, Task
from selectkd_eval.verbs import PasskOptions

SMALL = 10_000_000  # parameters below which a model is a toy
ASKED = ("question", "problem", "prompt", "text")  # of a problem's fields, what a reader needs to see
TOGETHER = 64  # answers graded at once, at most


class Answer(NamedTuple):
    """One answer: which problem of which task, under which seed, the how-manieth sample."""

    task: Task
    place: int
    seed: int
    sample: int

    @property
    def problem(self) -> Problem:
        return self.task.problems[self.place]

    @property
    def key(self) -> str:
        return f"{self.task.name}/{self.problem.id}/{self.seed}/{self.sample}"

    def draw_seed(self, run_seed: int) -> int:
        """31 bits (what every server takes) from what the answer is, not from when or beside what it is written."""
        text = f"{self.task.sha256}/{self.problem.id}/{run_seed}/{self.seed}/{self.sample}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1


class Written(NamedTuple):
    """An answer, what the model wrote and the prompt it was written to."""

    answer: Answer
    completion: Completion
    prompt: str


def run(options: PasskOptions) -> int:
    """Measure pass@k on each task; prints the record's path and one table. Exit code 1 if some answers failed."""
    given, options = options, resolved(options)
    environment.require("lm_eval", "pass@k", "bench")
    names = list(dict.fromkeys(options.tasks))
    earlier = _earlier(options.compare, names) if options.compare else None
    with ExitStack() as stack:
        marker = stack.enter_context(
            Marker(
                {find(name)[0].kind for name in names},
                verdict=options.verdict,
                tier=options.sandbox,
                packages=options.sandbox_packages,
                cpu_seconds=options.cpu_seconds,
                workers=options.workers,
            )
        )
        environment.set_threads(options.threads)
        # Read first: a missing file is told before a large model is loaded.
        tasks = [task_of(name, options, marker, chat=False) for name in names]
        marker.check(tasks)
        backend = open_backend(options)
        if backend.chat:
            tasks = [task_of(name, options, marker, chat=True) for name in names]
        answers = [
            Answer(task, place, seed, sample)
            for task in tasks
            for place in range(len(task.problems))
            for seed in options.seeds
            for sample in range(options.samples)
        ]
        inputs = {"model": backend.card["fingerprint"], **{f"task {task.name}": task.sha256 for task in tasks}}
        record = stack.enter_context(
            open_record("passk", given, inputs=inputs, facts=_facts(options, tasks, backend, marker))
        )
        pending = [answer for answer in answers if answer.key not in record.done]
        if pending:
            with AnswerStore(options.answers or Path(options.out) / "answers.sqlite") as store:
                _measure(pending, backend, store, marker, options, record, total=len(answers))
        rows = [record.done[answer.key] for answer in answers if answer.key in record.done]
        if rows:
            record.finish()
        print(record.path)
        failed = len(answers) - len(rows)
        print("\n".join(passk_table.lines({**record.facts, "failed": failed}, rows, options.k)))
        if earlier is not None:
            print("\n".join(passk_table.compare_lines(record.facts, rows, earlier.facts, earlier.rows)))
    return 1 if failed else 0


def resolved(options: PasskOptions) -> PasskOptions:
    """The options with their defaults filled in; an InputError for those that contradict each other."""
    for name in options.tasks:
        find(name)
    check_grader(options.tasks, options.grader)
    if options.base_url:
        options = replace(options, backend="server")
    seeds = options.seeds or ((0, 1, 2) if options.temperature > 0 else (0,))
    if options.temperature == 0 and (len(seeds) > 1 or options.samples > 1):
        raise InputError(
            f"greedy decoding (--temperature 0) writes one text, whatever the seed, and --seeds and --samples ask for "
            f"{len(seeds) * options.samples}: leave them out, or sample with --temperature 0.8"
        )
    if not 0 < options.top_p <= 1:
        raise InputError(f"--top-p lies in (0, 1], but {options.top_p} was given")
    if min(options.k) < 1 or max(options.k) > len(seeds) * options.samples:
        raise InputError(
            f"--k {' '.join(map(str, options.k))} lies between 1 and the answers per problem, which are "
            f"{len(seeds) * options.samples} (seeds x samples): give another --k, or --temperature and more --samples"
        )
    return replace(options, seeds=seeds)


def _earlier(path: Path, names: Sequence[str]) -> Record:
    """The record to compare with; an InputError, before anything is measured, when there is nothing to compare."""
    record = records.read(path)
    if record.verb not in ("passk", "regrade"):
        raise InputError(f"--compare {path} is the record of {record.verb}: give one of passk or regrade")
    if not set(names) & set(record.facts["tasks"]):
        raise InputError(
            f"--compare {path} holds {', '.join(record.facts['tasks'])} and none of {', '.join(names)}: give a record "
            "of the same tasks"
        )
    return record


def task_of(name: str, options: PasskOptions, marker: Marker, chat: bool) -> Task:
    """The task as this command asks it: --shots, --layout and --grader applied."""
    source, _ = find(name)
    grader = SANDBOX if source.kind == "code" else options.grader or source.grader
    gold = None if source.kind == "code" else marker.grader(grader).gold
    task = load_task(name, options.data, options.limit, options.shots, options.layout, chat, gold)
    return replace(task, grader=grader)


def _facts(options: PasskOptions, tasks: Sequence[Task], backend: Backend, marker: Marker) -> dict[str, Any]:
    return {
        "model": backend.card,
        "tasks": {task.name: task.facts() for task in tasks},
        "generation": {
            **backend.identity,
            "opens": backend.opens,
            "decoding": {task.name: _decoding(task, options, backend).as_dict() for task in tasks},
            "seeds": backend.seeds if options.temperature > 0 else "greedy, none",
        },
        **marker.facts(tasks),
        "k": list(options.k),
    }


def _decoding(task: Task, options: PasskOptions, backend: Backend) -> Decoding:
    """How the answers to a task are drawn.

    Toy models answer their own family within 60 tokens and repeat one token for ever on foreign text: 512 of those
    for each of GSM8K's 1,319 problems would keep one core busy for a quarter of an hour.
    """
    toy = (backend.card.get("parameters") or SMALL) < SMALL
    wanted = options.max_new_tokens or (min(128, task.max_new_tokens) if toy else task.max_new_tokens)
    return Decoding(backend.room(wanted), options.temperature, options.top_p, task.layout.stops)


def _measure(
    pending: Sequence[Answer],
    backend: Backend,
    store: AnswerStore,
    marker: Marker,
    options: PasskOptions,
    record: Writer,
    total: int,
) -> None:
    """Generate here, grade and record in a thread beside it: neither waits for the other."""
    written: Queue[Written | None] = Queue()
    stop = Event()
    bar = tqdm(total=total, initial=total - len(pending), desc="passk", unit="answer", file=sys.stderr)
    with bar, ThreadPoolExecutor(1) as pool:
        grading = pool.submit(_grade, written, stop, marker, backend.opens, record, bar)
        try:
            for part in _written(pending, backend, store, options):
                if grading.done():  # it failed, and says why below
                    break
                written.put(part)
            written.put(None)
            grading.result()
        except KeyboardInterrupt:
            stop.set()
            marker.stop()  # else whoever interrupts waits for the programs of a whole batch, at ten seconds each
            raise
        finally:
            written.put(None)


def _grade(
    written: Queue[Written | None], stop: Event, marker: Marker, opened: bool, record: Writer, bar: tqdm[Any]
) -> None:
    """Write a row for every answer that arrives, whatever there is at once; ends at a None."""
    rows, more = list(record.done.values()), True
    while more and not stop.is_set():
        batch = [written.get()]
        with contextlib.suppress(Empty):
            while len(batch) < TOGETHER:
                batch.append(written.get_nowait())
        more = None not in batch
        parts = [part for part in batch if part is not None]
        good = [part for part in parts if not part.completion.error]
        marked = marker.mark([Item(a.task, a.problem, c.text, c.finish, opened) for a, c, _ in good])
        for part, verdict in zip(good, marked, strict=True):
            record.write(part.answer.key, **_row(part), **verdict)
            rows.append(record.done[part.answer.key])
        for part in parts:
            if part.completion.error:
                record.write(part.answer.key, **_place(part.answer), error=part.completion.error)
        bar.set_postfix_str(passk_table.running(rows), refresh=False)
        bar.update(len(parts))


def _written(
    pending: Sequence[Answer], backend: Backend, store: AnswerStore, options: PasskOptions
) -> Iterator[Written]:
    """Every pending answer with its prompt: those that an earlier command left in the store, then new ones."""
    prompts, decodings = {}, {}
    for task in {answer.task.name: answer.task for answer in pending}.values():
        prompts[task.name] = backend.prompts(task)
        decodings[task.name] = _decoding(task, options, backend)
    missing: list[tuple[Answer, Asked, str]] = []
    for answer in pending:
        asked = Asked(
            prompts[answer.task.name][answer.place], answer.draw_seed(options.seed), decodings[answer.task.name]
        )
        key = answer_key(backend.identity, asked)
        if (kept := store.get(key)) is not None:
            yield Written(answer, kept, asked.prompt)
        else:
            missing.append((answer, asked, key))
    if missing:
        for place, completion in backend.complete([asked for _, asked, _ in missing]):
            answer, asked, key = missing[place]
            if not completion.error:
                store.put(key, completion)
            yield Written(answer, completion, asked.prompt)


def _place(answer: Answer) -> dict[str, Any]:
    return {"task": answer.task.name, "problem": answer.problem.id, "seed": answer.seed, "sample": answer.sample}


def _row(part: Written) -> dict[str, Any]:
    fields = part.answer.problem.fields
    return {
        **_place(part.answer),
        "question": next((str(fields[name]) for name in ASKED if name in fields), ""),
        "prompt_sha256": hashlib.sha256(part.prompt.encode()).hexdigest(),
        "completion": part.completion.text,
        "finish": part.completion.finish,
        "n_tokens": part.completion.n_tokens,
        "n_prompt_tokens": part.completion.n_prompt_tokens,
        "prompt_cut": part.completion.prompt_cut,
    }
