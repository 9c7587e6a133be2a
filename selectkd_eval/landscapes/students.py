"""The students of one landscape, each loaded and folded when its turn comes: as many stay in memory as fit.

Sixteen students of 1.5 billion parameters are 96 GB in float32, and twice that with their norm gains folded; measured
one after the other they need no more than one of them does. What must hold of all students together, and what the
record says of each, is looked at in one pass before anything is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from torch import Tensor

from selectkd_eval import pair
from selectkd_eval.directions import fingerprint, left_out, perturbed
from selectkd_eval.errors import InputError
from selectkd_eval.landscapes import folding

_KEPT = 4 * 2**30  # bytes of weights kept between their turns; a student beyond that is loaded again


@dataclass(frozen=True)
class Seen:
    """What is remembered of a student that may have been let go: its card, configuration and weights' hash, where its
    gains went (`folding.folded`), what does not move, and the entries that its head shares with the teacher's.
    """

    card: pair.ModelCard
    config: Any
    weights_sha256: str
    shapes: dict[str, tuple[int, ...]]
    folded: dict[str, Any]
    left_out: dict[str, int]
    vocabulary: int


class Students:
    """Folded students by their place in `names`. Use as a context manager: on leaving, every model that is still there
    has its own weights back.

    `ids` ``(1, T)`` are real tokens, which say who reads what (`folding.folded`). Raises InputError on entering where
    two students have different parameters or fold differently, for then no direction is the same for both.
    """

    def __init__(
        self, names: Sequence[str], teacher: pair.LoadedModel, ids: Tensor, *, device: str = "cpu", moved: str = "all"
    ) -> None:
        self.seen: list[Seen] = []
        self._names, self._teacher, self._ids, self._device, self._moved = names, teacher, ids, device, moved
        self._kept: dict[int, tuple[pair.LoadedModel, ExitStack]] = {}
        self._size = 0  # bytes of one student; all are of one size

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> pair.LoadedModel:
        """The student, loaded again if it was let go: a model of its own then."""
        if index not in self._kept:
            student = self._load(index)
            self._fold(index, student)
        return self._kept[index][0]

    def __enter__(self) -> Students:
        try:
            for index in range(len(self)):
                self.seen.append(self._look(index))
                _alike(self.seen[0], self.seen[-1])
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _look(self, index: int) -> Seen:
        student = self._load(index)
        own = dict(student.model.named_parameters())
        weights, self._size = fingerprint(own), sum(parameter.nbytes for parameter in own.values())
        shapes = {name: tuple(parameter.shape) for name, parameter in perturbed(student.model).items()}
        return Seen(
            card=student.card,
            config=student.model.config,
            weights_sha256=weights,
            shapes=shapes,
            folded=self._fold(index, student),
            left_out=left_out(student.model, self._moved),
            vocabulary=pair.common_vocabulary(self._teacher, student),
        )

    def _load(self, index: int) -> pair.LoadedModel:
        """Make room, then load."""
        if self._size * (len(self._kept) + 1) > _KEPT:
            self._close()
        return pair.load_model(self._names[index], self._device)

    def _fold(self, index: int, student: pair.LoadedModel) -> dict[str, Any]:
        """Fold and keep it."""
        stack = ExitStack()
        limit = getattr(student.model.config, "max_position_embeddings", None) or self._ids.shape[1]
        gains = stack.enter_context(folding.folded(student.model, self._ids[:, :limit]))
        self._kept[index] = student, stack
        return gains

    def _close(self) -> None:
        with ExitStack() as every:
            for _, stack in self._kept.values():
                every.push(stack)
            self._kept.clear()


def _alike(first: Seen, other: Seen) -> None:
    names = f"{other.card.name} and {first.card.name}"
    if other.shapes != first.shapes:
        raise InputError(
            f"{names} have different parameters, so no direction is the same for both: compare students of one "
            f"architecture"
        )
    if other.folded != first.folded:
        different = sorted({*other.folded["folded"]} ^ {*first.folded["folded"]})
        raise InputError(
            f"norm gains of {names} cannot be folded alike ({different[:3]}), so their directions would not be the "
            f"same: measure them apart"
        )
