"""Who judges, and what does a record say about it? One `Way` per kind of judge that is really asked.

A served model (live, through its Batch API, or only by the replies that a cache holds), a local model that is asked
like one, and a local model's likelihood. Whatever a command lacks (package, key, address) is said here, before answers
are read. Published judgements need no way: see `judges.replay`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from typing import Protocol as Shape

from tqdm import tqdm

from judges import by_batch, by_server, likelihood
from judges.by_server import Write
from judges.pairing import Comparison
from judges.protocols import Protocol
from judges.tasks import Task
from selectkd_eval.errors import InputError
from selectkd_eval.records import Writer
from selectkd_eval.verbs import WinrateOptions

_UNPAID = ("likelihood", "hf", "vllm", "replay")


class Way(Shape):
    """A kind of judge. `options` are the command's with its address tidied; `facts` is the record's judge, and `inputs`
    the digests of what its verdicts depend on.
    """

    options: WinrateOptions
    facts: dict[str, Any]
    inputs: dict[str, str]

    def plan(self, todo: Sequence[Task]) -> list[str]:
        """What judging these would take, in lines; asks nothing."""

    def judge(self, record: Writer, todo: Sequence[Task], write: Write) -> bool:
        """Judge these, calling `write` with every verdict. False: handed in, and there is more to come."""


def way(options: WinrateOptions, protocol: Protocol) -> Way:
    """The way that --judge names; an InputError or SetupError for what it lacks."""
    kind, _, what = options.judge.partition(":")
    if kind in ("likelihood", "hf", "vllm") and not what:
        raise InputError(f"--judge {options.judge!r} names no model: {kind}:NAME")
    for flag, asked in (("--batch", options.batch), ("--max-cost", options.max_cost is not None)):
        if asked and kind in _UNPAID:
            raise InputError(f"{flag} is for a served judge that is paid, and {options.judge!r} is none: leave it out")
    if options.base_url and kind in ("likelihood", "hf", "vllm"):
        raise InputError(f"--base-url is for a served judge, and {options.judge!r} runs on this machine: leave it out")
    if kind == "likelihood":
        return _Likelihood(options, what)
    if kind in ("hf", "vllm"):
        return _Local(options, protocol)
    if options.batch:
        return _Batched(options, protocol)
    return by_server.prepare(options, protocol)[1]


class _Batched:
    """A served model through its Batch API."""

    def __init__(self, options: WinrateOptions, protocol: Protocol) -> None:
        self._protocol = protocol
        self.options, self._session = by_server.prepare(options, protocol)
        by_batch.check(self._session.served)
        self.facts, self.inputs, self.plan = self._session.facts, self._session.inputs, self._session.plan

    def judge(self, record: Writer, todo: Sequence[Task], write: Write) -> bool:
        return by_batch.judge(record, todo, self.options, self._protocol, write)


class _Local:
    """A chat model on this machine that is asked as a served one is."""

    def __init__(self, options: WinrateOptions, protocol: Protocol) -> None:
        from judges import local

        self.options, self._protocol = options, protocol
        self.facts = local.facts(options, protocol)
        self.inputs = {"judge": self.facts["model"]["fingerprint"]}

    def plan(self, todo: Sequence[Task]) -> list[str]:
        return _unpaid(self.options.judge, todo)

    def judge(self, record: Writer, todo: Sequence[Task], write: Write) -> bool:
        from judges import local

        local.judge(record, todo, self.options, self._protocol, write)
        return True


class _Likelihood:
    """A local model's log-likelihood of the two answers. The shown order and repeats cannot change it."""

    def __init__(self, options: WinrateOptions, model: str) -> None:
        if options.repeats > 1:
            raise InputError(
                f"--repeats {options.repeats} would ask {options.judge!r} the same again: a likelihood does not vary"
            )
        self.options, self._model = options, model
        card = likelihood.scorer().judge_card(model, options.device, options.threads)
        note = likelihood.label(model)
        self.facts = {"name": options.judge, "kind": "likelihood", "note": note, "model": card}
        self.facts["tie_band"] = options.tie_band
        self.inputs = {"judge": card["fingerprint"]}

    def plan(self, todo: Sequence[Task]) -> list[str]:
        return _unpaid(self.options.judge, todo)

    def judge(self, record: Writer, todo: Sequence[Task], write: Write) -> bool:
        together: dict[int, list[Task]] = {}
        for task in todo:
            together.setdefault(id(task.comparison), []).append(task)
        unique: list[Comparison] = [tasks[0].comparison for tasks in together.values()]
        options = self.options
        found = likelihood.judge(unique, self._model, options.tie_band, options.device, options.threads)
        for comparison, verdict, scores in tqdm(found, total=len(unique), desc="likelihood", unit="pair"):
            for task in together[id(comparison)]:
                write(task, verdict, {"asked": True, **scores})
        return True


def _unpaid(judge: str, todo: Sequence[Task]) -> list[str]:
    return [f"{len(todo):,} judgements by {judge} on this machine, which costs time and no money"]
