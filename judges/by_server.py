"""`winrate --judge gpt-4o`: a served model judges, and every verdict is in the record as soon as it is there.

What a command lacks (the package, the key, an address, a price) is said before anything is read. Replies go through
the cache beside the records, so nothing is paid for twice; a run that is killed, stopped by a refusal or by
--max-cost is gone on with by the same command. The Batch API is `judges.batch`; what a verdict is worth is not known
here.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from judges import costs, presets
from judges.cache import Cache
from judges.judge import Judge, key_for
from judges.protocols import Protocol
from judges.replies import FatalError, OverBudgetError
from judges.tasks import Outcome, Task
from judges.verdicts import Verdict
from selectkd_eval.environment import require
from selectkd_eval.errors import InputError, SetupError
from selectkd_eval.records import Writer
from selectkd_eval.served import checked_url
from selectkd_eval.verbs import WinrateOptions

if TYPE_CHECKING:
    from judges.client import Client

CACHE = "judge-cache.sqlite"
REPLAY = "replay:"

Write = Callable[[Task, Verdict, Mapping[str, Any]], None]
"""write(task, verdict, said): one row of the record; `said` is what `said` below keeps of the replies."""


def prepare(options: WinrateOptions, protocol: Protocol) -> tuple[WinrateOptions, Session]:
    """The options with a tidy address, and the judge ready to be asked; fails on whatever is missing.

    `--judge replay:CACHE` takes replies from a cache file and asks nobody. A dry run needs neither package nor key.
    """
    for flag, number in (("concurrency", options.concurrency), ("repeats", options.repeats)):
        if number < 1:
            raise InputError(f"--{flag} {number} would ask nothing: give 1 or more")
    options = replace(options, base_url=checked_url(options.base_url))
    if not options.dry_run:
        require("openai", f"the judge {options.judge!r}", "judge")
    return options, Session(options, protocol)


class Session:
    """A served judge under a protocol. `facts` is what a record says of it, `inputs` what its verdicts depend on."""

    def __init__(self, options: WinrateOptions, protocol: Protocol) -> None:
        self.options, self.protocol = options, protocol
        self.calling = not options.judge.startswith(REPLAY)
        if self.calling:
            self.served, self.cache = presets.find(options), options.out / CACHE
        else:
            self.cache = Path(options.judge.removeprefix(REPLAY))
            self.served = judge_of_cache(options, self.cache)
        self.served.decoding(protocol)  # refuses a protocol that needs what the judge lacks
        self.facts = self.served.facts(protocol)
        if not self.calling:
            self.facts |= {"kind": "replay", "note": f"replies of {self.served.name} from a cache, without a call"}
        if options.batch:
            self.facts["kind"] = "batch"  # who asks that way is `judges.by_batch`
        self.inputs = {"judge": self.served.sha256}
        self.costs = costs.Budget(self.served, options.max_cost)
        self._key = ""
        if self.calling and not options.dry_run:
            self._key = key_for(self.served.base_url, self.served.key_variable, os.environ)

    def plan(self, todo: Sequence[Task]) -> list[str]:
        """What judging these would take: calls, tokens and money. Asks nothing, and writes nothing."""
        if not self.cache.is_file():
            return costs.lines(costs.estimate(todo, self.served, self.protocol))
        with Cache(self.cache, reading=True) as cache:
            return costs.lines(costs.estimate(todo, self.served, self.protocol, cache))

    def judge(self, record: Writer, todo: Sequence[Task], write: Write) -> bool:
        """Have every task judged and written; True, because nothing is left to come.

        Raises SetupError when it had to stop; what was judged until then is in the record.
        """
        rows = record.done.values()
        self.costs.spent = sum(costs.price(self.served, row.get("usage") or {}) or 0.0 for row in rows)
        if self.calling and (pace := presets.limits(self.served)) and self.served.limited:
            print(f"{self.served.name}: at most {pace}; --requests-per-minute, --tokens-per-minute", file=sys.stderr)
        name, reading = self.options.judge, not self.calling
        with Cache(self.cache, reading=reading) as cache, Progress(name, len(todo), rows, self.costs) as bar:
            try:
                asyncio.run(self._ask(todo, cache, bar, write))
            except OverBudgetError:
                raise SetupError(
                    f"stopped at {costs.dollars(self.costs.spent)} of {costs.dollars(self.costs.most or 0)}: "
                    f"{bar.judged} of {bar.judged + bar.left} comparisons are judged and kept in {record.path}, and "
                    f"the next one may cost up to {costs.dollars(self.costs.refused)}; raise --max-cost and give the "
                    f"same command to go on"
                ) from None
            except FatalError as error:
                raise SetupError(
                    f"{error}; {len(record.done)} comparisons are kept in {record.path}, and the same command goes on"
                ) from None
        return True

    def client(self, cache: Cache) -> Client:
        """What talks to the server; an async context manager."""
        from judges.client import Client

        most, calling = self.options.concurrency, self.calling
        return Client(
            self.served, self._key, self.protocol, cache, concurrency=most, budget=self.costs, calling=calling
        )

    async def _ask(self, todo: Sequence[Task], cache: Cache, bar: Progress, write: Write) -> None:
        from judges.served import judge_all

        async with self.client(cache) as client:

            def keep(outcome: Outcome) -> None:
                write(outcome.task, outcome.verdict, said(outcome))
                bar.saw(outcome, client.paid)

            await judge_all(todo, client, self.options.concurrency, keep)


def judge_of_cache(options: WinrateOptions, cache: Path) -> Judge:
    """The one judge whose replies a cache holds. Raises InputError when there are none, or several."""
    if not cache.is_file():
        raise InputError(f"there is no judge cache {cache}: give the {CACHE} beside the records")
    with Cache(cache, reading=True) as kept:
        models = kept.models()
    if len(models) != 1:
        held = f"of {len(models)} judges ({', '.join(models)})" if models else "of no judge"
        raise InputError(f"{cache} holds replies {held}, and one is needed: judge with --judge NAME as before instead")
    return presets.find(replace(options, judge=models[0]))


def said(outcome: Outcome) -> dict[str, Any]:
    """What a row keeps of the replies."""
    last = outcome.replies[-1] if outcome.replies else None
    return {
        "asked": True,
        "raw": last.text if last else "",
        "finish": last.finish_reason if last else None,
        "judge_model": last.model if last else "",
        "judge_fingerprint": last.fingerprint if last else "",
        "usage": outcome.usage(),
        "replies": len(outcome.replies),
    }


class Progress:
    """The line on the screen: how far, who leads so far, at what price and pace."""

    def __init__(self, name: str, total: int, done: Iterable[Mapping[str, Any]], spending: costs.Budget) -> None:
        self._words = Counter(str(row.get("verdict")) for row in done)
        self.judged, self.left = sum(self._words.values()), total
        self._spending = spending
        self._cached, self._paid, self._start = 0, 0, time.monotonic()
        self._bar = tqdm(total=total, desc=name, unit="judged")

    def saw(self, outcome: Outcome, paid: int) -> None:
        """One more task has ended, after so many replies that were paid for."""
        self._words[outcome.verdict.word] += 1
        if outcome.verdict.word != "failed":
            self.judged, self.left = self.judged + 1, self.left - 1
        self._cached, self._paid = self._cached + sum(reply.cached for reply in outcome.replies), paid
        self._bar.set_postfix_str(self.line(), refresh=False)
        self._bar.update()

    def line(self) -> str:
        """W, L and T of the record so far, money, calls per second, replies from the cache."""
        won, lost, tied = (self._words[word] for word in ("candidate", "baseline", "tie"))
        parts = [f"{won / (won + lost):.1%} won" if won + lost else "", f"{won} W {lost} L {tied} T"]
        if other := sum(self._words.values()) - won - lost - tied:
            parts.append(f"{other} without a verdict")
        if costs.price(self._spending.judge, {}) is not None:
            parts.append(costs.dollars(self._spending.spent))
        seconds = max(1e-9, time.monotonic() - self._start)
        parts.append(f"{self._paid / seconds:.1f} calls/s" if self._paid else "")
        parts.append(f"{self._cached} cached" if self._cached else "")
        return ", ".join(part for part in parts if part)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
