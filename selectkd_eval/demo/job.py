"""Does all of it work, here and now? Runs the plan's commands, two at a time, and ends with a page and a summary.

Every command goes through the command line's own entry point, in worker processes that keep torch loaded. What a
command prints goes to a log of its own; its record resumes, so a demo that was killed goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Never

from tqdm import tqdm

from selectkd_eval.cli import main
from selectkd_eval.demo.plan import Job, Plan, Stage
from selectkd_eval.environment import available_cores
from selectkd_eval.errors import InputError, SetupError
from selectkd_eval.verbs import DemoOptions


def run(options: DemoOptions) -> int:
    """Run everything; the exit code is the report's, and a command that fails ends the demo with its log's end."""
    started = time.monotonic()
    plan = Plan(options)
    try:
        plan.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write into {plan.root}: {error.strerror}; give a writable --out") from None
    if plan.weights:
        from selectkd_eval.demo.build import build

        build(plan.weights)
    stages = list(plan.stages())
    commands = sum(len(stage.jobs) for stage in stages)
    workers = options.workers or min(2, available_cores())
    print(f"{commands} commands, {workers} at a time; logs in {plan.root / 'logs'}", file=sys.stderr)
    context = multiprocessing.get_context("spawn")
    # One progress bar over all commands; each stage names itself on it.
    with (
        ProcessPoolExecutor(workers, mp_context=context, initializer=one_thread) as pool,
        tqdm(total=commands, file=sys.stderr, unit="command") as bar,
    ):
        for stage in stages:
            began = time.monotonic()
            bar.set_description(stage.title)
            _run_stage(pool, stage, plan.root / "logs", bar)
            bar.write(f"  {time.monotonic() - began:5.0f} s  {stage.title} ({len(stage.jobs)} commands)", sys.stderr)
    code = main(plan.report().arguments)
    print(f"{(time.monotonic() - started) / 60:.1f} minutes")
    return code


def _run_stage(pool: ProcessPoolExecutor, stage: Stage, logs: Path, bar: tqdm[Never]) -> None:
    """All commands of a stage; the first failure stops the demo."""
    # Commands that measure time must not run beside each other.
    batches = [[job] for job in stage.jobs] if stage.alone else [stage.jobs]
    try:
        for batch in batches:
            for done in as_completed([pool.submit(logged, job, logs) for job in batch]):
                done.result()
                bar.update()
    except BrokenProcessPool:
        raise SetupError(
            f"a worker of the demo was killed while {stage.title!r} ran, perhaps for memory: "
            "run the same command again to go on, with --workers 1 if it happens again"
        ) from None
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def logged(job: Job, logs: Path) -> None:
    """Run one command with its output in a file of its own."""
    log = logs / f"{job.verb}-{getattr(job.options, 'name', '') or 'all'}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file, _redirected(file.fileno()):
        print("$ selectkd-eval", *job.arguments, flush=True)
        code = main(job.arguments)
    if code:
        end = "\n".join(log.read_text(encoding="utf-8").splitlines()[-8:])
        raise SetupError(f"this command of the demo failed with exit code {code} (all of it in {log}):\n{end}")


@contextlib.contextmanager
def _redirected(target: int) -> Iterator[None]:
    """Standard output and error of this process, and of what it starts, into `target`."""
    saved = [os.dup(1), os.dup(2)]
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(target, 1)
    os.dup2(target, 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, number)
            os.close(copy)


def one_thread() -> None:
    """Two workers with two threads each on two cores wait for each other more than they work."""
    os.environ["OMP_NUM_THREADS"] = "1"
