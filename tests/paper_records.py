"""Synthetic records named as the paper's models and benchmarks: for tests of what stands beside its numbers, and of
blocks per teacher-student pair. The rows are made up, as all of `record_factory`'s are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import record_factory as make

SETS = {
    "alpaca-eval": (805, "text-davinci-003", "gpt-4o"),
    "evol-instruct": (217, "gpt-3.5-turbo", "gpt-4o"),  # 218 entries, one of them twice
    "ultrafeedback": (2000, "gpt-3.5-turbo", "gpt-4o-mini"),
}


def model(name: str) -> dict[str, Any]:
    """The card of an untrained model."""
    return make.card("Start") | {"name": name, "method": name, "fingerprint": make.digest(name)}


@dataclass(frozen=True)
class Of:
    """Records of the students of one teacher and one start, in one directory."""

    out: Path
    teacher: str = "Qwen/Qwen2-7B-Instruct"
    start: str = "Qwen/Qwen2-1.5B"

    def student(self, method: str, seed: int = 0, **training: Any) -> dict[str, Any]:
        """A trained student's card; its training is recorded too, which makes the two models teacher and start."""
        names = {"teacher_name": self.teacher, "start_name": self.start}
        weights = {"teacher": make.digest(self.teacher), "start": make.digest(self.start)}
        base = {"base_method": method.partition(" + ")[0]} if " + " in method else {}
        card = make.card(method, seed, **weights, **names, **base, **training)
        card |= {"name": f"{self.teacher}-{self.start}-{method}-{seed}-{sorted(training.values(), key=str)}"}
        make.train(self.out, card, steps=2, every=1, teacher=model(self.teacher), start=model(self.start))
        return card

    def judged(self, card: dict[str, Any], prompts: str = "alpaca-eval", n: int | None = None, **said: Any) -> None:
        """A win rate under the paper's protocol, but for what is `said`."""
        size, baseline, judge = SETS[prompts]
        baseline = said.pop("baseline", baseline)
        told = {"kind": "server", "judge": judge, "prompts": prompts, **said}
        make.winrate(self.out, card, model(baseline), n=n or size, **told)

    def solved(self, card: dict[str, Any], task: str, n: int, skill: float = 0.6) -> None:
        """A pass rate."""
        make.passk(self.out, card, n=n, skill=skill, task=task)
