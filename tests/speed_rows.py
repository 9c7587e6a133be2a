"""The rows of a speedup record, made up from a seed: drafts that agree with a target as often as told, and a clock
whose costs are known.

Every trace is what draft-and-verify decoding does with such a draft: the same tokens are accepted whatever the draft
length, and a run takes the time of its calls. So everything computed from these rows has a true value. Nothing here is
a measurement.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

TARGET_CALL = 0.005  # seconds of a target call with one row
ROW = 0.03  # what another row adds, in target calls
ACCEPT, CROP, PREFILL = 0.008, 0.004, 3.0  # in target calls


@dataclass(frozen=True)
class Made:
    """What the rows are made from: every draft's chance of agreement `skills` and cost of a call `costs` (in target
    calls), and the settings of the run.
    """

    skills: Sequence[float]
    costs: Sequence[float]
    n: int = 12
    gammas: Sequence[int] = (3, 5)
    tasks: Sequence[str] = ("mini-gsm",)
    batches: Sequence[int] = (1,)
    engine: str = "reference"
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetitions: int = 3
    drift: float = 1.0
    noise: float = 0.02
    violation: bool = False
    text: bool = True
    seed: str = "speed"
    texts: list[Text] = field(default_factory=list)

    def rows(self) -> list[dict[str, Any]]:
        """All rows in the order in which a run writes them; after a violation nothing follows the gate."""
        self.texts.extend(Text.make(self, number) for number in range(self.n))
        found = list(self._gates())
        if self.violation:
            return found
        if self.text:
            found += [one.read_again(self) for one in self.texts]
        if self.engine == "reference":
            found += [one.call_costs(self) for one in self.texts]
        for batch in self.batches:
            found += _timed(self, batch)
        memory = {"peak_rss_bytes": 600_000_000, "peak_gpu_bytes": None, "energy": "not available"}
        return [*found, {"key": "machine", **memory}]

    def _gates(self) -> Iterator[dict[str, Any]]:
        if self.temperature and self.engine == "reference":
            settings = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
            law = {"n": 2000, "cells": 120, "chi2": 118.0, "df": 119, "p": 0.51, "tv": 0.11, "tv_expected": 0.11}
            yield {"key": "enumeration", **law, **settings}
        for number, one in enumerate(self.texts):
            bad = self.violation and number == 0
            outcomes = [
                {
                    "draft": draft,
                    "gamma": gamma,
                    "outcome": "violation" if bad else "identical",
                    "gap_ulps": 4e4 if bad else 0.0,
                    "at": 3 if bad else None,
                    "miscounted": 0,
                    "misplaced": 0,
                }
                for draft in range(len(self.skills))
                for gamma in self.gammas
            ]
            reference = [(7 * place + number) % 50 for place in range(one.length)]
            row = {"key": f"gate/{one.name}", **one.place, "length": one.length, "reference": reference}
            yield {**row, "outcomes": outcomes}
            if self.temperature:
                arms = [(-1, 0), *((draft, gamma) for draft in range(len(self.skills)) for gamma in self.gammas)]
                found = [{"draft": draft, "gamma": gamma, **one.evidence(draft, gamma)} for draft, gamma in arms]
                yield {"key": f"sampled/{one.name}", **one.place, "arms": found}


@dataclass(frozen=True)
class Text:
    """One text: how slow the machine is on it, and per draft and token the chance that a proposal is accepted."""

    name: str
    task: str
    length: int
    slow: float
    chances: list[list[float]]

    @classmethod
    def make(cls, made: Made, number: int) -> Text:
        # A text is as hard for every draft: paired comparisons are narrower than unpaired ones.
        rng = random.Random(f"text{number}")
        hard, slow, length = rng.random(), 1 + 0.3 * rng.random(), rng.randint(30, 50)
        luck = [rng.random() for _ in range(length - 1)]
        easy = [min(0.99, max(0.01, skill + 0.2 * (0.5 - hard))) for skill in made.skills]
        if made.temperature:
            chances = [[round(min(1.0, 2 * a * (1 - u)), 5) for u in luck] for a in easy]
        else:
            chances = [[int(u < a) for u in luck] for a in easy]
        return cls(f"p{number}", made.tasks[number % len(made.tasks)], length, slow, chances)

    @property
    def place(self) -> dict[str, Any]:
        return {"prompt": self.name, "cluster": self.name, "task": self.task}

    def read_again(self, made: Made) -> dict[str, Any]:
        drafts = []
        for draft, chance in enumerate(self.chances):
            rng = random.Random(f"{self.name}again{draft}")
            same = [int(a > 0.5) for a in chance]
            top5 = [int(one or rng.random() < 0.4) for one in same]
            overlap = [round(0.1 + 0.8 * a, 5) for a in chance] if not made.temperature else chance
            drafts.append({"draft": draft, "agreement": same, "top5": top5, "overlap": overlap, "chance": chance})
        return {"key": f"text/{self.name}", **self.place, "drafts": drafts}

    def evidence(self, draft: int, gamma: int) -> dict[str, Any]:
        """Sums that an engine which samples rightly leaves, as if its tokens were drawn from the target."""
        rng = random.Random(f"{self.name}evidence{draft}/{gamma}")

        def martingale(variance: float) -> dict[str, float]:
            return {"sum": rng.gauss(0, variance**0.5), "var": variance, "up": 1.0, "down": 1.0}

        ranks = [0] * 20
        for _ in range(self.length):
            ranks[rng.randrange(20)] += 1
        found: dict[str, Any] = {"tokens": self.length, "edge": 0, "impossible": 0, "miscounted": 0, "ranks": ranks}
        found |= {"rarest": min(1 - rng.random() for _ in range(self.length)), "surprise": martingale(self.length / 2)}
        found |= dict.fromkeys(("likeness", "accepted", "given", "misplaced", "overlap_off", "overlap_gap"))
        if gamma:
            drafted, accepted = self.steps(draft, gamma, rng)
            tested = sum(min(k + 1, d) for d, k in zip(drafted, accepted, strict=True))
            kept = martingale(0.2 * tested)
            found |= {"likeness": martingale(0.1 * self.length), "given": {**martingale(0.2 * tested), "noise": 0.0}}
            seen = {"seen": sum(accepted), "expected": sum(accepted) - kept["sum"], "noise": 0.0}
            found |= {"accepted": {**kept, **seen}, "misplaced": 0, "overlap_off": 0, "overlap_gap": 0.0}
        return found

    def call_costs(self, made: Made) -> dict[str, Any]:
        rng = random.Random(f"{self.name}cost")

        def timed(calls: float) -> list[float]:
            return [TARGET_CALL * self.slow * calls * (1 + rng.gauss(0, made.noise)) for _ in range(made.repetitions)]

        target = {str(rows): timed(1 + ROW * (rows - 1)) for rows in range(1, max(made.gammas) + 2)}
        draft = {str(index): timed(cost) for index, cost in enumerate(made.costs)}
        return {"key": f"cost/{self.name}", **self.place, "target": target, "draft": draft}

    def steps(self, draft: int, gamma: int, rng: random.Random) -> tuple[list[int], list[int]]:
        """Drafted and accepted step by step; the last steps draft no more than can be used."""
        drafted, accepted, done = [], [], 1
        while done < self.length:
            count = min(gamma, self.length - done - 1)
            chance = self.chances[draft][done - 1 : done - 1 + count]
            kept = next((place for place, a in enumerate(chance) if not rng.random() < a), count)
            drafted.append(count)
            accepted.append(kept)
            done += kept + 1
        return drafted, accepted


def _timed(made: Made, batch: int) -> list[dict[str, Any]]:
    if batch == 1:
        units = [("time/" + one.name, one.place, [one]) for one in made.texts]
    else:
        units = []
        ordered = sorted(made.texts, key=lambda one: one.task)
        for wave, start in enumerate(range(0, made.n - batch + 1, batch)):
            unit, name = ordered[start : start + batch], f"wave{wave}"
            of = {one.task for one in unit}
            place = {"prompt": name, "cluster": name, "task": of.pop() if len(of) == 1 else ""}
            units.append((f"batch{batch}/{name}", {**place, "prompts": [one.name for one in unit]}, unit))
    arms = [(-1, 0, False), (-1, 0, True)]
    arms += [(draft, gamma, False) for draft in range(len(made.skills)) for gamma in made.gammas]
    rows = []
    for key, place, unit in units:
        rng, runs = random.Random(f"{made.seed}{key}{made.skills}"), []
        for rep in range(made.repetitions):
            order = list(arms)
            rng.shuffle(order)
            for at, (draft, gamma, second) in enumerate(order):
                head = {"rep": rep, "place": at, "draft": draft, "gamma": gamma, "batch": batch, "control": second}
                runs.append({**head, **_run(made, unit, draft, gamma, made.drift if second else 1.0, rng)})
        rows.append({"key": key, **place, "length": sum(one.length for one in unit), "runs": runs})
    return rows


def _run(made: Made, unit: Sequence[Text], draft: int, gamma: int, faster: float, rng: random.Random) -> dict[str, Any]:
    """One run's times and trace. Texts decoded together share a target call, which takes a little longer for each."""
    call = TARGET_CALL * sum(one.slow for one in unit) / len(unit) * (0.9 + 0.1 * len(unit)) / faster
    call *= 1 + rng.gauss(0, made.noise)
    traces = [one.steps(draft, gamma, rng) if gamma else ([0] * (one.length - 1),) * 2 for one in unit]
    longest = max(traces, key=lambda trace: len(trace[0]))[0]
    drafted = [count for trace in traces for count in trace[0]]
    accepted = [count for trace in traces for count in trace[1]]
    stages = {
        "draft_s": sum(longest) * call * made.costs[draft] if gamma else 0.0,
        "verify_s": sum(call * (1 + ROW * count) for count in longest),
        "accept_s": len(longest) * call * ACCEPT if gamma else 0.0,
        "crop_s": len(longest) * call * CROP if gamma else 0.0,
    }
    decode = sum(stages.values())
    wall = decode + PREFILL * call
    alone = len(unit) == 1
    timers = {name: value if made.engine == "reference" and alone else None for name, value in stages.items()}
    tested = sum(min(k + 1, d) for d, k in zip(drafted, accepted, strict=True))
    overlap = None
    if made.temperature and made.engine == "reference":
        mean = sum(accepted) / tested if tested else 0.0
        overlap = [round(mean, 5)] * tested
    return {
        "wall_s": wall,
        "cpu_s": None if made.engine == "vllm" else wall,
        "decode_s": decode if alone else None,
        "decode_tokens": len(drafted) + sum(accepted),
        **timers,
        "tokens": len(drafted) + sum(accepted),
        "steps": len(drafted),
        "drafted": sum(drafted),
        "accepted": sum(accepted),
        "tested": tested,
        "drafted_per_step": drafted if gamma else [],
        "accepted_per_step": accepted if gamma else [],
        "overlap": overlap,
        "load": 0.5,
        "joules": None,
    }
