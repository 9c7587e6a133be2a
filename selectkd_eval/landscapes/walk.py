"""The way through a landscape's points: every row that a record lacks, in an order that a killed run takes up again.

Here the parts meet: planes around every student, the common loss, the radius, the grid and the points off it, cells
halved where the interpolation is off, and the scalars beside the picture. Which student is flatter is not said here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from tqdm import tqdm

from selectkd_eval import curvature, hessian, pair, records, surfaces
from selectkd_eval.directions import RULES, Plane
from selectkd_eval.errors import InputError
from selectkd_eval.landscapes import loss, points
from selectkd_eval.landscapes.points import Point
from selectkd_eval.landscapes.radius import Probe, Radius, automatic
from selectkd_eval.landscapes.students import Students
from selectkd_eval.verbs import LandscapeOptions

Probed = tuple[int, int, float, float, float]  # student, direction seed, a, b, mean loss
_KEPT_PLANES = 2**30  # bytes of planes kept between the probes and the walk; a larger one is drawn again


def seeds(options: LandscapeOptions) -> list[int]:
    """Direction seeds of this run."""
    return [options.seed + offset for offset in range(options.directions)]


class Walk:
    """The students, their common loss, and the way through the points that a record lacks."""

    def __init__(
        self,
        options: LandscapeOptions,
        teacher: pair.LoadedModel,
        students: Students,
        text: Sequence[Any],
    ) -> None:
        self.options, self.teacher, self.students, self.text = options, teacher, students, text
        self.vocabulary = min(seen.vocabulary for seen in students.seen)
        self.dtype = torch.bfloat16 if options.dtype == "bfloat16" else None
        self.share, self.shares = points.share_of(options.share)
        self.seconds: dict[int, list[float]] = {index: [] for index in range(len(students))}
        self._failed: list[dict[str, Any]] = []
        self._planes: dict[tuple[int, int], Plane] = {}
        self._plane_bytes = 0
        self.taken = 0  # rows of shares

    @cached_property
    def loss(self) -> loss.CommonLoss:
        """Made when it is first asked: a finished record needs no teacher."""
        common = loss.CommonLoss(
            self.teacher.model,
            self.text,
            self.vocabulary,
            metrics=self.options.metric,
            k=self.options.k,
            cache_mb=self.options.cache_mb,
        )
        self.teacher.model.to("cpu")  # what is kept of it stays where it was made
        return common

    @property
    def kept(self) -> str:
        """What was kept of the teacher in this run."""
        return self.loss.kept if "loss" in vars(self) else "it was measured before"

    def facts(self) -> dict[str, Any]:
        """What the record's reader needs to know of the measurement."""
        options, seen = self.options, self.students.seen
        return {
            "teacher": self.teacher.card.as_dict(),
            "students": [student.card.as_dict() for student in seen],
            "weights_sha256": [student.weights_sha256 for student in seen],
            "folded": seen[0].folded,
            "seeds": seeds(options),
            "loss": loss.WORDS,
            "grid": options.grid,
            "moved": options.moved,
            "directions": RULES,
            "params_zeroed": seen[0].left_out["params_zeroed"],
            "zero_rows": [student.left_out["zero_rows"] for student in seen],
            "vocabulary": self.vocabulary,
            "dtype": options.dtype,
            "attention": getattr(seen[0].config, "_attn_implementation", None),
            "metrics": list(options.metric),
            "k": options.k,
            "held_out": options.held_out,
            "tolerance": options.tolerance,
            "share": options.share,
            "scalars": curvature.RULES if options.scalars else "",
        }

    def radius(self, inputs: dict[str, str]) -> tuple[Radius, list[Probed]]:
        """The radius that was asked for, that an earlier run or another share resolved, or the automatic one.

        With it the probes that were taken now.
        """
        if self.options.radius is not None:
            return Radius(self.options.radius, "as asked"), []
        for begun in self._begun():
            if begun.header["inputs"] == inputs:
                return Radius(float(begun.facts["radius"]), str(begun.facts["radius_rule"])), []
        common = self.loss
        planes = [(index, seed) for index in range(len(self.students)) for seed in seeds(self.options)]
        bar = tqdm(desc="landscape radius", unit="point", disable=None)

        def probe(index: int, seed: int) -> Probe:
            def losses(places: Sequence[tuple[float, float]]) -> list[float]:
                found = []
                with torch.no_grad(), self.plane(index, seed).on() as plane:
                    for a, b in places:
                        plane.move(a, b)
                        found.append(common.loss(plane.model))
                        bar.update()
                return found

            return losses

        with bar:
            found = automatic([probe(*plane) for plane in planes], self.options.rise, self.vocabulary)
        return found, [(*planes[which], a, b, value) for which, a, b, value in found.probes]

    def _begun(self) -> Iterator[records.Record]:
        """Records of this command that lie in --out, finished or not: of the whole landscape, or of a share."""
        for path in sorted(self.options.out.glob("landscape-*.jsonl")):
            try:
                found = records.read(path, unfinished_ok=True)
            except InputError:
                continue
            share = str(found.facts.get("share", ""))
            if found.verb == "landscape" and path == records.record_path(
                "landscape", replace(self.options, share=share)
            ):
                yield found

    def plane(self, index: int, seed: int) -> Plane:
        """One student's plane, kept while planes are small."""
        if (index, seed) not in self._planes and self._plane_bytes * (len(self._planes) + 1) > _KEPT_PLANES:
            self._planes.clear()  # before the next student is loaded, not after
        model = self._model(index)
        found = self._planes.get((index, seed))
        if found is None or found.model is not model:  # the student was let go meanwhile, and has its own gains back
            found = self._planes[index, seed] = Plane(model, seed, self.options.moved, self.dtype)
            self._plane_bytes = 5 * found.w0.nbytes  # the weights, two directions, a row's sum and what is lent
        return found

    def _model(self, index: int) -> Any:
        """A student's model, whose head was tried on its own weights: later they may be moved ones."""
        model = self.students[index].model
        self.loss.split(model)
        return model

    def measure(self, record: records.Writer, probes: Sequence[Probed]) -> None:
        """Every row that the record lacks: probes, planes, refinement, scalars. What shares hold is taken over."""
        if self.shares == 1:
            self._take_over(record)
        r, n_tokens = float(record.facts["radius"]), self.loss.n_tokens
        for index, seed, a, b, value in probes:
            key = f"probe/{index}/{seed}/{a:g}/{b:g}"
            if key not in record.done:
                place = {"kind": "probe", "student": index, "seed": seed, "a": a, "b": b}
                self._write(record, key, place, {"loss_sum": value * n_tokens, "n_tokens": n_tokens})
        options = self.options
        mine = {}
        for seed in seeds(options):
            chosen = points.grid_points(r, options.grid) + points.held_out_points(r, options.held_out, seed)
            mine[seed] = [point for place, point in enumerate(chosen) if place % self.shares == self.share]
        self._points(record, mine)
        if self.shares == 1:
            self._refine(record, r)
        self._planes.clear()
        for index in range(len(self.students)):
            self._scalars(record, index, r)

    def _take_over(self, record: records.Writer) -> None:
        same = records.canonical(record.facts)
        for share in self._begun():
            if share.facts.get("share") and records.canonical({**share.facts, "share": ""}) == same:
                for row in share.good:
                    if row["key"] not in record.done:
                        record.write(**row)
                        self.taken += 1

    def _points(self, record: records.Writer, chosen: Mapping[int, Sequence[Point]]) -> None:
        """These points by direction seed, student after student: each is loaded once."""
        for index in range(len(self.students)):
            for seed, some in chosen.items():
                if missing := [point for point in some if point.key(index, seed) not in record.done]:
                    self._points_of(record, index, seed, missing)

    def _points_of(self, record: records.Writer, index: int, seed: int, missing: Sequence[Point]) -> None:
        name = f"landscape {self.students.seen[index].card.method or index} seed {seed} {missing[0].kind}"
        with torch.no_grad(), self.plane(index, seed).on() as plane:
            for point in tqdm(missing, desc=name, unit="point", disable=None):
                begun = time.perf_counter()
                plane.move(point.a, point.b)
                sums = self.loss.sums(plane.model)
                sums["n_tokens"] = self.loss.n_tokens
                self._write(record, point.key(index, seed), point.row(index, seed), sums)
                self.seconds[index].append(time.perf_counter() - begun)

    def _refine(self, record: records.Writer, r: float) -> None:
        """Halve cells, the same for every student, until the interpolation is good enough or may go no further."""
        options = self.options
        within: dict[int, list[Point]] = {seed: [] for seed in seeds(options)}
        for level in range(1, surfaces.LEVELS + 1):
            rows = self.rows(record)
            for seed, before in list(within.items()):
                try:
                    now = [_up_to(rows, index, seed, level - 1) for index in range(len(self.students))]
                except InputError:  # not one point of a student is finite
                    del within[seed]
                    continue
                within[seed] = points.refined_points(now, options.tolerance, r, options.grid, level, before)
            self._points(record, within)

    def rows(self, record: records.Writer) -> list[dict[str, Any]]:
        """All rows, those without a finite loss among them: the axes keep their length."""
        return [*record.done.values(), *self._failed]

    def _write(self, record: records.Writer, key: str, place: dict[str, Any], sums: dict[str, float]) -> None:
        """One row: sums, or an error where the loss is not finite."""
        if math.isfinite(sums["loss_sum"]):
            record.write(key, **place, **sums)
        else:
            failed = {**place, "error": "the loss is not finite here"}
            record.write(key, **failed)
            self._failed.append(failed)

    def _scalars(self, record: records.Writer, index: int, r: float) -> None:
        """The numbers beside the pictures, in float32 whatever the planes were measured in."""
        options = self.options
        keys = curvature.keys(index, options.scalars) + (hessian.keys(index) if options.hessian else [])
        mine = {key for place, key in enumerate(keys) if place % self.shares == self.share} - set(record.done)
        if not mine:
            return
        around = curvature.Around(self._model(index), self.loss, options.seed, options.moved)
        name = f"landscape {self.students.seen[index].card.method} scalars"
        with tqdm(total=len(mine), desc=name, disable=None) as bar:
            how: dict[str, Any] = {"mine": mine.__contains__, "advance": bar.update}
            curvature.measure(record, index, around, radius=r, directions=options.scalars, **how)
            if options.hessian:
                hessian.measure(record, index, around, **how)


def _up_to(rows: Sequence[dict[str, Any]], index: int, seed: int, level: int) -> surfaces.Surface:
    """The surface as it was before the next level, so that a killed run chooses the same cells again."""
    return surfaces.surface([row for row in rows if row.get("level", 0) <= level], index, seed)
