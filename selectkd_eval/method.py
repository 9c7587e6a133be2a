"""What makes one method's update: its objective, its text, its schedules, and the frozen models it asks.

A recipe is a row of data; this is the same row at work. It has the state that training adds to a method (a policy's
buffer, a schedule's memory) and nothing of the loop: the trainer asks it before and after every update.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from selectkd_eval.controllers import Anchor, Controller, Moment
from selectkd_eval.errors import InputError
from selectkd_eval.heads import Head
from selectkd_eval.objective import LossSpec
from selectkd_eval.ranks import from_all
from selectkd_eval.rollouts import TextPolicy
from selectkd_eval.selection import joined, planned, read
from selectkd_eval.student import Question
from selectkd_eval.survey import Findings, Frozen, survey
from selectkd_eval.teacher import Teacher
from selectkd_eval.token_stats import TokenPlan

STATE = "selectkd_state_{rank}.json"  # of policy and controllers, beside the Trainer's own files in a checkpoint


@dataclass
class Method:
    """`passes`: forward passes into which an update is cut on each rank; `packed`: texts of a pass in one row."""

    spec: LossSpec
    policy: TextPolicy
    controllers: list[Controller] = field(default_factory=list)
    teacher: Teacher | None = None
    reference: Teacher | None = None
    passes: int = 1
    packed: bool = False

    @property
    def surveys(self) -> bool:
        """Whether the whole update is looked at before it is learned from."""
        chooses = self.spec.needs_reading or bool(self.spec.selection)
        return chooses or any(controller.needs_anchors for controller in self.controllers)

    def objective(self, moment: Moment, anchors: Sequence[Anchor]) -> LossSpec:
        """This update's specification: the recipe's, moved on by every schedule."""
        spec = self.spec
        for controller in self.controllers:
            spec = controller.apply(spec, moment, anchors)
        return spec

    def look(self, question: Question, hidden: Tensor, head: Head) -> Findings:
        """What this rank's micro-batch looks like; `hidden`: the student's rows ``(N, H)``."""
        if self.teacher is None or question.hidden_p is None:
            raise InputError("choosing tokens asks a teacher, but no teacher was given; pass --teacher")
        reference = None
        if self.reference is not None:
            reference = Frozen(self.reference.rows(question.batch), self.reference.head)
        teacher = Frozen(question.hidden_p, self.teacher.head)
        return survey(self.spec, question.rows, teacher, Frozen(hidden, head), reference)

    def decide(self, found: Sequence[Findings], moment: Moment) -> tuple[LossSpec, list[TokenPlan]]:
        """The objective and each micro-batch's plan, from what all micro-batches on all ranks look like."""
        everywhere = from_all([part for part in found if part.anchors])
        spec = self.objective(moment, [anchor for part in everywhere for anchor in part.anchors])
        if not spec.needs_reading:
            return spec, [TokenPlan()] * len(found)
        reading = read(spec, joined([part.scores for part in everywhere]))
        return spec, [planned(spec, reading, part.scores) for part in found]

    def readings(self) -> dict[str, float]:
        """What the schedules and the text policy have to say in the record's row."""
        found: dict[str, float] = {}
        for controller in self.controllers:
            found |= controller.readings()
        return self.policy.readings() | found

    def flush(self) -> None:
        """Make the frozen models' rows on disk last."""
        for frozen in (self.teacher, self.reference):
            if frozen is not None:
                frozen.flush()

    def finish(self) -> None:
        """The training is over."""
        self.policy.finish()
        self.flush()

    def remember(self, path: Path) -> None:
        """Write the state of policy and schedules."""
        states = [controller.state_dict() for controller in self.controllers]
        path.write_text(json.dumps({"policy": self.policy.state_dict(), "controllers": states}))

    def recall(self, path: Path) -> None:
        """Go on from a state written by `remember`; InputError when it is not there."""
        if not path.exists():
            raise InputError(
                f"the checkpoint {path.parent} holds no {path.name}: it was saved by another number of processes; "
                "resume with as many as before, or delete the student's directory to train again"
            )
        state: dict[str, Any] = json.loads(path.read_text())
        self.policy.load_state_dict(state["policy"])
        for controller, own in zip(self.controllers, state["controllers"], strict=True):
            controller.load_state_dict(own)
