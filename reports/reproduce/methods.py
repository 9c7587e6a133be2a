"""What is each method worth on the embedded pair, with and without a gate? Recipes x {none, Top-k, Spec-k} x seeds.

One student goes on for the same number of updates of the same number of prompts under every method, and is measured on
the same held-out problems. The set-up is the demo's (`selectkd_eval/demo/plan.py`): SFT learns from the labelled text,
everything else starts from what the teacher wrote to other prompts. Two epochs of that, because some methods change
with the epoch.

Every command is one that could be typed; they run side by side in processes that keep torch loaded, in an order in
which a whole seed is done before the next begins. What is finished is skipped. SpecKD has a gate of its own, so
without one it is KD and is not run twice.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from check import finished

from selectkd_eval import measures, records
from selectkd_eval.cli import main as command_line
from selectkd_eval.demo.job import logged, one_thread
from selectkd_eval.demo.plan import LABELLED, VALIDATION, Job
from selectkd_eval.errors import SetupError
from selectkd_eval.recipes import RECIPES
from selectkd_eval.verbs import AnswerOptions, PasskOptions, TableOptions, TarOptions, TrainOptions

GATES = ("none", "top-k", "spec-k")
WRITTEN = {"mini-gsm": 480, "mini-stories": 160}  # prompts that the teacher answers
PROMPTS, UPDATES = 16, 80  # 80 x 16 prompts: two passes over what the teacher wrote
LONGEST = 96  # tokens of an answer
LAST = ("adaspec", "distillspec", "skd")  # needs the plain KD student of its seed; write anew for every update, slowly


@dataclass(frozen=True)
class Task:
    """Commands that belong together, one after the other; `needs` are tasks that come before."""

    name: str
    jobs: list[Job]
    needs: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True)
class Comparison:
    """All commands, in order."""

    out: Path
    seeds: tuple[int, ...]
    recipes: tuple[str, ...] = field(default_factory=lambda: tuple(RECIPES))

    @property
    def records(self) -> Path:
        return self.out / "records"

    def tasks(self) -> Iterator[Task]:
        """The teacher's text; the models that are not trained here; every method, seed by seed."""
        yield Task("teacher's text", [self.text(family) for family in WRITTEN])
        for name in ("teacher", "student"):
            yield Task(name, self.measured(name, f"embedded:{name}"))
        order = sorted(self.recipes, key=lambda name: (LAST.index(name) if name in LAST else -1, name != "kd"))
        for seed in self.seeds:
            for recipe in order:
                for gate in GATES:
                    if recipe == "speckd" and gate == "none":
                        continue
                    name = self.name(recipe, gate, seed)
                    needs = ("teacher's text", *([self.name("kd", "none", seed)] if recipe == "adaspec" else []))
                    jobs = [self.train(recipe, gate, seed), *self.measured(name, str(self.student(name)))]
                    yield Task(name, jobs, needs, seed)

    def name(self, recipe: str, gate: str, seed: int) -> str:
        """One run's name."""
        return f"{recipe}-{gate}-seed{seed}"

    def student(self, name: str) -> Path:
        """The trained student's directory."""
        return self.out / "students" / name

    def text(self, family: str) -> Job:
        """The teacher's answers to prompts that have no label."""
        options = AnswerOptions(
            out=self.out / "text",
            name=family,
            model="embedded:teacher",
            prompts=f"{family}:train",
            temperature=0.7,
            top_p=1.0,
            max_new_tokens=LONGEST,
            batch_size=256,
            limit=WRITTEN[family],
            threads=1,
        )
        return Job("answer", options)

    def train(self, recipe: str, gate: str, seed: int) -> Job:
        """One student."""
        name = self.name(recipe, gate, seed)
        options = TrainOptions(
            out=self.records,
            name=name,
            recipe=recipe,
            verifier=gate,  # type: ignore[arg-type]
            reference=str(self.student(self.name("kd", "none", seed))) if recipe == "adaspec" else "",
            generation_max_new_tokens=LONGEST,
            data=LABELLED if recipe == "sft" else ",".join(str(self.text(family).record) for family in WRITTEN),
            validation=VALIDATION,
            seed=seed,
            steps=UPDATES,
            batch_size=PROMPTS,
            lr=3e-3,
            schedule="linear",
            warmup=0.125,
            max_length=160,
            eval_every=UPDATES // 4,
            save_every=UPDATES // 2,
            keep_checkpoints=1,
            save=self.student(name),
            threads=1,
        )
        return Job("train", options)

    def measured(self, name: str, model: str) -> list[Job]:
        """pass@1 on held-out arithmetic, and acceptance by the teacher on both families."""
        every: dict[str, Any] = {"out": self.records, "name": name, "threads": 1}
        passk = PasskOptions(model=model, max_new_tokens=LONGEST, batch_size=256, **every)
        jobs = [Job("passk", passk)]
        if model != "embedded:teacher":
            jobs.append(Job("tar", TarOptions(student=(model,), data=VALIDATION, limit=75, **every)))
        return jobs

    def table(self) -> Job:
        """pass@1 by method, each gate against the method without it."""
        return Job("table", TableOptions(number=2, records=self.records, out=Path("reports/tables/methods")))


def carry_out(task: Task, logs: Path) -> tuple[str, str]:
    """Run a task's commands in this process; ("", what it took) or (what went wrong, "")."""
    took = []
    try:
        for job in task.jobs:
            if finished(job.record, job.options):
                continue
            started = time.monotonic()
            logged(job, logs)
            took.append(f"{job.verb} {time.monotonic() - started:.0f} s")
    except SetupError as error:
        return str(error), ""
    return "", ", ".join(took) or "was there"


def measured_value(task: Task) -> str:
    """pass@1 of the task's model, for the progress line."""
    for job in task.jobs:
        if job.verb == "passk":
            return f"pass@1 {100 * measures.pass_at_1(records.read(job.record).rows, 'mini-gsm').value:.1f} %"
    return ""


def work(comparison: Comparison, jobs: int) -> int:
    """Everything that is not finished; returns how many tasks failed."""
    tasks = list(comparison.tasks())
    done = {task.name for task in tasks if all(finished(job.record, job.options) for job in task.jobs)}
    pending = [task for task in tasks if task.name not in done]
    failed: set[str] = set()
    began = time.monotonic()
    print(f"{len(tasks)} runs, {len(done)} finished before; logs in {comparison.out / 'logs'}", file=sys.stderr)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=one_thread) as pool:
        running: dict[Future[tuple[str, str]], Task] = {}
        while pending or running:
            while len(running) < jobs and (task := _next(pending, done)):
                pending.remove(task)
                running[pool.submit(carry_out, task, comparison.out / "logs")] = task
            if not running:  # what is left needs something that failed
                failed |= {task.name for task in pending}
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task, crash = running.pop(future), future.exception()
                if crash:  # a defect must be seen, and the other methods be compared all the same
                    traceback.print_exception(crash)
                error, took = (repr(crash), "") if crash else future.result()
                (failed if error else done).add(task.name)
                said = error or f"{measured_value(task)}  ({took})"
                minutes = (time.monotonic() - began) / 60
                print(f"[{len(done):3}/{len(tasks)}] {minutes:5.1f} min  {task.name}  {said}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} runs failed or could not begin: {', '.join(sorted(failed))}", file=sys.stderr)
    return len(failed)


def _next(pending: list[Task], done: set[str]) -> Task | None:
    return next((task for task in pending if done.issuperset(task.needs)), None)


def main() -> int:
    """Run, then write the table from what is finished."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("reports/records/methods"), help="records, students, logs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run nothing")
    parser.add_argument("--table-only", action="store_true", help="write the table from what is there")
    options = parser.parse_args()
    comparison = Comparison(options.out, tuple(options.seeds), tuple(options.recipes))
    if options.dry_run:
        for job in [*(job for task in comparison.tasks() for job in task.jobs), comparison.table()]:
            print("selectkd-eval", *job.arguments)
        return 0
    failed = 0 if options.table_only else work(comparison, options.jobs)
    return command_line(comparison.table().arguments) or int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
