"""Run these programs safely and say what became of each: the sandbox as the rest of the project sees it.

`Sandbox` keeps every worker busy, runs a timeout once more when nothing else runs, replaces a worker that died. It
judges nothing itself (supervisor, ends) and runs no program in this process.
"""

from __future__ import annotations

import selectors
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, get_args

from selectkd_eval.environment import available_cores
from selectkd_eval.errors import InputError, SetupError
from selectkd_eval.sandbox.program import Limits, Mode, Outcome, Program
from selectkd_eval.sandbox.tiers import Launcher, open_tier
from selectkd_eval.sandbox.workers import Worker

_AHEAD = 2  # programs sent to a worker: the one that runs and the next
_ATTEMPTS = 2  # runs of a program under which its worker died
_SILENCE = 120.0  # s beyond the longest that a program and its tests may take, after which a worker counts as dead


class Sandbox:
    """Workers in a jail, for as long as the `with` block lasts.

    `workers` 0 takes one per available core. `tier` is a name of `tiers.TIERS`. `packages` are importable beside the
    standard library, anything else is `import-missing`. `hash_seed` fixes the programs' string hashes. SetupError
    when isolation is not real on this machine, with the reason and the fix. `run` may be called from any thread, from
    one at a time.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        workers: int = 0,
        tier: str = "auto",
        packages: Sequence[str] = ("numpy",),
        hash_seed: int = 0,
    ) -> None:
        self.limits = limits or Limits()
        if min(self.limits.cpu_seconds, self.limits.wall_factor, self.limits.memory_bytes) <= 0:
            raise InputError(f"the sandbox's limits must be above 0: {self.limits}")
        if workers < 0:
            raise InputError(f"the sandbox was asked for {workers} workers: give 0 (one per core) or more")
        self.facts: dict[str, Any] = {}
        self._count = workers or available_cores()
        self._tier = tier
        self._packages = tuple(packages)
        self._hash_seed = hash_seed
        self._workers: list[Worker] = []
        self._busy = threading.Lock()
        self._patience = 0.0  # s for a worker that says nothing

    def __enter__(self) -> Self:
        self._launcher = Launcher(self.limits, self._packages, self._hash_seed)
        try:
            self._workers, found = open_tier(self._launcher, self._tier, self._count)
        except BaseException:
            self._launcher.close()
            raise
        packages = {package.name: package.version for package in self._launcher.packages}
        self.facts = {**found, "workers": self._count, "packages": packages, "hash_seed": self._hash_seed}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for worker in self._workers:
            worker.stop()
        self._workers = []
        self._launcher.close()

    def run(self, programs: Sequence[Program], mode: Mode) -> Iterator[tuple[int, Outcome]]:
        """(index, outcome) of every program as it is done, in any order; timeouts last, after their second run.

        Raises SetupError when a program's worker dies twice: that is a defect of the sandbox, never a verdict.
        """
        if mode not in get_args(Mode):
            raise InputError(f"there is no sandbox mode {mode!r}; known: {', '.join(get_args(Mode))}")
        for program in programs:
            if program.plus and mode == "official":
                raise InputError(f"the program {program.id!r} compares outputs (plus), which only `isolated` mode does")
            inputs = program.plus and (program.plus.get("base") or program.plus.get("plus"))
            if not (program.test.strip() or inputs):
                raise InputError(f"the program {program.id!r} has neither tests nor inputs to compare: give one")
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("this sandbox is running programs already: one thread at a time")
        self._patience = self.limits.longest_wall(any(program.plus for program in programs)) + _SILENCE
        try:
            slow = []
            for place, outcome in self._pass(programs, range(len(programs)), mode):
                if outcome.word == "timeout":
                    slow.append(place)
                else:
                    yield place, outcome
            for place in slow:  # one at a time: nothing else runs on any worker
                for _, outcome in self._pass(programs, [place], mode):
                    yield place, replace(outcome, again=True)
        finally:
            self._busy.release()

    def _pass(self, programs: Sequence[Program], places: Sequence[int], mode: Mode) -> Iterator[tuple[int, Outcome]]:
        """One run of each program in `places`, spread over the workers."""
        waiting = deque(places)
        deaths: dict[int, int] = {}
        try:
            self._complete()
            while waiting or any(worker.outstanding for worker in self._workers):
                self._feed(waiting, programs, mode)
                for worker in self._ready():
                    messages = worker.receive()
                    if messages is None:
                        self._bury(worker, waiting, deaths, programs)
                        continue
                    for message in messages:
                        place = worker.outstanding.popleft()
                        yield place, Outcome(**message["outcome"])
        finally:
            # Whoever stops early (an exception, Ctrl-C, `break`) leaves no program running.
            for worker in [worker for worker in self._workers if worker.outstanding]:
                self._drop(worker)

    def _feed(self, waiting: deque[int], programs: Sequence[Program], mode: Mode) -> None:
        """Give every worker a program, then each one more to go on with, as long as there are enough."""
        for ahead in range(1, _AHEAD + 1):
            if ahead > 1 and len(waiting) <= len(self._workers):
                return  # near the end a program waits for the first free worker, not behind a slow one
            for worker in self._workers:
                if waiting and len(worker.outstanding) < ahead:
                    place = waiting.popleft()
                    worker.submit(place, {"place": place, "mode": mode, "program": programs[place].as_dict()})

    def _ready(self) -> list[Worker]:
        """Wait for replies, writing whatever pipes take meanwhile; a worker silent for too long is killed first."""
        with selectors.PollSelector() as selector:
            for worker in self._workers:
                selector.register(worker.replies, selectors.EVENT_READ, worker)
                if not worker.flush():
                    selector.register(worker.requests, selectors.EVENT_WRITE, worker)
            events = selector.select(timeout=10.0)
        ready = [key.data for key, event in events if event & selectors.EVENT_READ]
        for worker in self._workers:
            silent = worker not in ready and time.monotonic() - worker.since > self._patience
            if worker.outstanding and silent:
                worker.process.kill()
        return ready

    def _bury(self, worker: Worker, waiting: deque[int], deaths: dict[int, int], programs: Sequence[Program]) -> None:
        """Put a new worker in a dead one's place and its programs back into the queue, the suspect alone counted."""
        if worker.outstanding:
            suspect = worker.outstanding[0]
            deaths[suspect] = deaths.get(suspect, 0) + 1
            if deaths[suspect] >= _ATTEMPTS:
                raise SetupError(
                    f"the sandbox's worker died twice under the program {programs[suspect].id!r} "
                    f"({worker.last_words() or 'without a message'}): this is a defect of the sandbox, not a verdict; "
                    "please report it with the program"
                )
            waiting.extendleft(reversed(worker.outstanding))
        self._drop(worker)
        self._complete()

    def _drop(self, worker: Worker) -> None:
        worker.outstanding.clear()
        self._workers.remove(worker)
        worker.stop()

    def _complete(self) -> None:
        """Start the workers that are missing, in the same tier."""
        if missing := self._count - len(self._workers):
            self._workers += self._launcher.start(self.facts["tier"], missing)[0]
