"""Which text does an update train on? The policies of the paper's methods, from ground truth to the student's own text.

Before every update a policy is given this rank's examples and returns those to train on: as they are, or with responses
written at that moment (`author`, `interleaved`, `pairs`). Every draw depends on the run's seed, the update and the
prompt, and a policy's memory is saved with the checkpoint, so a resumed run trains on the text it would have had.

It computes no loss, and what a recipe minimises on which source is a row of `recipe_table`.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from selectkd_eval.archive import Archive, Ledger
from selectkd_eval.author import Author, Written, share
from selectkd_eval.batches import Example
from selectkd_eval.controllers import Moment
from selectkd_eval.errors import InputError, choose
from selectkd_eval.interleaved import interleave
from selectkd_eval.pairs import Pairs
from selectkd_eval.ranks import from_all, rank
from selectkd_eval.sampling import Sampling


class TextPolicy(Protocol):
    """What the trainer asks of a policy."""

    def update(self, examples: Sequence[Example], moment: Moment) -> list[Example]:
        """The texts of one update on this rank, all micro-batches together. Every rank calls it once per update."""

    def validated(self, loss: float) -> None:
        """A held-out loss, the same on every rank."""

    def readings(self) -> dict[str, float]:
        """What the record's row says about the last update; a name is missing where there was nothing to measure."""

    def state_dict(self) -> dict[str, Any]:
        """This rank's memory, as JSON."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""

    def finish(self) -> None:
        """The training is over: the records of its text are whole."""

    def close(self) -> None:
        """Release the records, finished or not."""


CONSTANTS: dict[str, dict[str, float]] = {
    "dataset": {},
    "teacher": {},
    "student": {},
    "mixed-examples": {"base": 200.0},
    "mixed-steps": {"lambda": 0.5},
    "replay": {"phi": 0.0, "phi_step": 0.1, "epsilon": 0.1, "capacity": 1000.0, "decreasing": 1.0},
    "interleaved": {"top_k": 25.0, "teacher_temperature": 0.2, "teacher_top_p": 0.5},
    "pairs": {},
}
"""Every policy's own numbers, as their papers have them."""


def text_policy(
    name: str,
    constants: Mapping[str, float],
    author: Author,
    *,
    archive: Archive | None = None,
    training: Sequence[Example] = (),
    ready: Sequence[Path] = (),
) -> TextPolicy:
    """The policy of a recipe; `constants` may hold others' numbers too.

    `archive` keeps what is written; `pairs` needs it, and `training`, all examples of all ranks. `ready` are answer
    records that `pairs` takes instead of writing, one per epoch, the last one repeated. Raises InputError for numbers
    that make no policy, and where a policy would have to decode with a sharded student.
    """
    check_constants(name, constants)
    numbers = {key: float(constants.get(key, value)) for key, value in CONSTANTS[name].items()}
    if name in ("dataset", "teacher"):
        return Unchanged()
    if author.sharded and not (name == "pairs" and ready):
        raise InputError(
            f"the policy {name} lets the student write during training, and a student sharded over the ranks (FSDP, "
            "ZeRO-3) cannot: use DDP, or write its text beforehand with `answer` and give that as --student-text "
            "(recipe distillm2) or --data"
        )
    if name == "interleaved" and author.teacher is None:
        raise InputError(
            "in interleaved text the teacher replaces tokens, and this objective loads none: name --teacher"
        )
    if name == "pairs":
        return Pairs(author, training, archive=archive, ready=ready)
    policies = {
        "student": Rollouts,
        "mixed-examples": MixedExamples,
        "mixed-steps": MixedSteps,
        "replay": Replay,
        "interleaved": Interleaved,
    }
    return policies[name](author, numbers, archive)


def check_constants(policy: str, constants: Mapping[str, float]) -> None:
    """InputError for a number that makes no policy; `constants` may hold others' numbers too."""
    numbers = {name: float(constants[name]) for name in choose(policy, CONSTANTS, "text policy") if name in constants}
    for name in ("lambda", "phi", "phi_step", "teacher_top_p"):
        if not 0 <= numbers.get(name, 0) <= 1:
            raise InputError(f"{name} lies in [0, 1], but {numbers[name]:g} was given")
    for name in ("base", "capacity", "top_k"):
        if not numbers.get(name, 1) >= 1:
            raise InputError(f"{name} must be at least 1, but {numbers[name]:g} was given")
    if numbers.get("teacher_top_p") == 0:
        raise InputError("a nucleus holds at least one token: teacher_top_p lies above 0")


class Unchanged:
    """The text as it stands in the data."""

    def update(self, examples: Sequence[Example], moment: Moment) -> list[Example]:
        """The same examples."""
        return list(examples)

    def validated(self, loss: float) -> None:
        """Nothing depends on it."""

    def readings(self) -> dict[str, float]:
        """None."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Empty: there is no memory."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """There is nothing to load."""

    def finish(self) -> None:
        """There is no record."""

    def close(self) -> None:
        """There is no record."""


class Rollouts(Unchanged):
    """The student's own responses, written anew for every update. The policies below differ in which examples they
    write (`chosen`) and in who writes (`_write`).
    """

    def __init__(self, author: Author, numbers: Mapping[str, float], archive: Archive | None = None) -> None:
        self.author = author
        self.numbers = numbers
        self.ledger = Ledger(archive, **self._decoding())
        self._readings: dict[str, float] = {}

    def chosen(self, examples: Sequence[Example], moment: Moment) -> list[bool]:
        """Which examples get a new response."""
        return [True] * len(examples)

    def update(self, examples: Sequence[Example], moment: Moment) -> list[Example]:
        """The examples, with new responses to the chosen ones, in their order."""
        new = self.chosen(examples, moment)
        written = self._write([example for example, mine in zip(examples, new, strict=True) if mine], moment)
        texts = iter(written)
        return [next(texts).example if mine else example for example, mine in zip(examples, new, strict=True)]

    def readings(self) -> dict[str, float]:
        """How many responses were written for this update, their mean length in tokens, and the share cut at the
        limit.
        """
        return self._readings

    def finish(self) -> None:
        """The record of the rollouts is whole."""
        self.ledger.finish()

    def close(self) -> None:
        """Release the record of the rollouts."""
        self.ledger.close()

    def _write(self, examples: Sequence[Example], moment: Moment) -> list[Written]:
        written = self._respond(examples, moment) if examples else []
        self.ledger.keep(moment.step, written)
        own = [(len(one.generation.tokens), one.generation.finish == "length", one.kept) for one in written]
        self._readings = self._measured(from_all(own))
        return written

    def _measured(self, texts: Sequence[tuple[int, bool, float]]) -> dict[str, float]:
        """Of every rank's texts: tokens, whether cut at the limit, share that the student proposed."""
        if not texts:
            return {"rollouts": 0}
        tokens, cut, _ = zip(*texts, strict=True)
        return {"rollouts": len(texts), "rollout_tokens": fmean(tokens), "rollout_cut": fmean(cut)}

    def _respond(self, examples: Sequence[Example], moment: Moment) -> list[Written]:
        return self.author.write(examples, moment.step)

    def _decoding(self) -> dict[str, Any]:
        return {}


class MixedExamples(Rollouts):
    """ImitKD (arXiv 2009.07253): at update i (from 0) of N each example keeps its text with probability
    ``base^(-i/N)``; the others are the student's.
    """

    def chosen(self, examples: Sequence[Example], moment: Moment) -> list[bool]:
        """One draw per example."""
        kept = self.numbers["base"] ** (-(moment.step - 1) / moment.steps)
        return [share("mix", self.author.seed, moment.step, example.prompt) >= kept for example in examples]


class MixedSteps(Rollouts):
    """GKD (arXiv 2306.13649, Algorithm 1): all responses of an update are the student's with probability `lambda`."""

    def chosen(self, examples: Sequence[Example], moment: Moment) -> list[bool]:
        """One draw per update, the same on every rank."""
        return [share("mix", self.author.seed, moment.step) <= self.numbers["lambda"]] * len(examples)


class Interleaved(Rollouts):
    """SKD (arXiv 2410.11325): student and teacher write every response together, see `interleaved`."""

    def readings(self) -> dict[str, float]:
        """As for rollouts, and the mean share of tokens that the student proposed."""
        return self._readings

    def _respond(self, examples: Sequence[Example], moment: Moment) -> list[Written]:
        top = int(self.numbers["top_k"])
        teacher = Sampling(self.numbers["teacher_temperature"], self.numbers["teacher_top_p"])
        return interleave(self.author, examples, moment.step, top=top, teacher_sampling=teacher)

    def _measured(self, texts: Sequence[tuple[int, bool, float]]) -> dict[str, float]:
        own = {"kept_tokens": fmean(kept for _, _, kept in texts)} if texts else {}
        return super()._measured(texts) | own

    def _decoding(self) -> dict[str, Any]:
        return {"interleaved": dict(self.numbers)}


class Replay(Rollouts):
    """DistiLLM's adaptive off-policy text (arXiv 2402.03898, section 4).

    `phi` grows by `phi_step` (to at most 1) when the held-out loss is at least `epsilon` above the one at which it last
    grew (at first: the first one heard); the loss compared with moves only then. An update draws one number r for all
    ranks: the student writes anew when ``r < phi (1 - t/T)``, or when r < phi and this rank's buffer of `capacity`
    responses is not yet full; otherwise they come from the buffer when r < phi, and from the data when not.
    `decreasing` 0 is the released code's constant share: ``phi / 2`` in the place of ``phi (1 - t/T)``.
    """

    def __init__(self, author: Author, numbers: Mapping[str, float], archive: Archive | None = None) -> None:
        super().__init__(author, numbers, archive)
        self.phi = numbers["phi"]
        self.previous: float | None = None
        self.buffer: deque[Example] = deque(maxlen=int(numbers["capacity"]))

    def update(self, examples: Sequence[Example], moment: Moment) -> list[Example]:
        """All texts new, all from the buffer, or all from the data."""
        r = share("replay", self.author.seed, moment.step)
        fade = 1 - moment.step / moment.steps if self.numbers["decreasing"] else 0.5
        full = len(self.buffer) == self.buffer.maxlen
        if r < self.phi * fade or (r < self.phi and not full):
            texts = [one.example for one in self._write(examples, moment)]
            self.buffer.extend(texts)
            return texts
        self._write([], moment)
        return self._drawn(len(examples), moment.step) if r < self.phi else list(examples)

    def validated(self, loss: float) -> None:
        """Raise phi when the held-out loss has risen."""
        if self.previous is None:
            self.previous = loss
        elif loss >= self.previous + self.numbers["epsilon"]:
            self.phi = min(self.phi + self.numbers["phi_step"], 1.0)
            self.previous = loss

    def readings(self) -> dict[str, float]:
        """As for rollouts, and phi and the number of responses in this rank's buffer after the update."""
        return {**self._readings, "phi": self.phi, "buffer": len(self.buffer)}

    def state_dict(self) -> dict[str, Any]:
        """phi, the loss it is compared with, and the buffer as token ids."""
        buffer = [
            [example.prompt, example.prompt_ids, example.ids[len(example.prompt_ids) :]] for example in self.buffer
        ]
        return {"phi": self.phi, "previous": self.previous, "buffer": buffer}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.phi, self.previous = state["phi"], state["previous"]
        self.buffer.clear()
        for prompt, before, response in state["buffer"]:
            self.buffer.append(Example([*before], [False] * len(before), prompt).answered(response, "student"))

    def _drawn(self, count: int, step: int) -> list[Example]:
        draw = random.Random(f"replay/{self.author.seed}/{step}/{rank()}")
        kept = list(self.buffer)
        # Without repetition, as the released code draws, unless the buffer holds less than an update.
        return draw.sample(kept, count) if count <= len(kept) else draw.choices(kept, k=count)
