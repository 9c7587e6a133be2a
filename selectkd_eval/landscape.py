"""`landscape`: does selection end in a flatter place? The paper's Figure 4b.

A filter-normalised plane (Li et al., arXiv 1712.09913) around every student: the same noise, the same tokens,
the same teacher and the same loss for all of them (`landscapes.loss`), norm gains folded into the matrices that read
them (`landscapes.folding`), one radius where the loss has risen by as much (`landscapes.radius`). Eleven points per
axis, some off the grid to see how far the interpolation is off, and more where it is (`landscapes.points`); the
directions are in `directions.py`, the scalars beside the picture in `curvature.py`.

One pair of directions is one picture; which of two students looks flatter can change with the pair and with
the radius, so compare over several (`--directions`), and over several training seeds. A point that was not measured is
absent. Shares of one landscape (`--share`) are records of their own; the same command without it takes their rows over
and measures what they lack: points where the interpolation is off, and whatever a share did not come to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from selectkd_eval import environment, flatness, pair, prompts, records, surfaces
from selectkd_eval.errors import InputError
from selectkd_eval.landscapes import folding, loss, points
from selectkd_eval.landscapes.students import Seen, Students
from selectkd_eval.landscapes.walk import Walk, seeds
from selectkd_eval.teacher_forced import batches, digest, encode
from selectkd_eval.verbs import LandscapeOptions


def run(options: LandscapeOptions) -> int | None:
    """Measure (or finish measuring) every point of every student, and print how the loss rises."""
    _check(options)
    environment.set_threads(options.threads)
    device = environment.device(options.device)
    teacher = pair.load_model(options.teacher, device)
    limit = options.sequences if options.limit is None else min(options.limit, options.sequences)
    chosen = prompts.load_prompts(options.data, limit)
    ids = torch.tensor([encode(teacher.tokenizer, chosen, teacher.model)[0].ids], device=device)
    with Students(options.student, teacher, ids, device=device, moved=options.moved) as students:
        examples = encode(teacher.tokenizer, chosen, teacher.model, *students.seen)
        inputs = {
            "teacher": teacher.card.fingerprint,
            "data": digest(examples),
            **{f"student {index}": seen.card.fingerprint for index, seen in enumerate(students.seen)},
        }
        text = list(batches(examples, options.batch_size, teacher.tokenizer.pad_token_id or 0, device))
        walk = Walk(options, teacher, students, text)
        found, probes = walk.radius(inputs)
        facts = {
            "prompts": chosen.facts() | {"used": len(examples)},
            "tokens_sha256": inputs["data"],
            "teacher_sha256": loss.teacher_digest(teacher.model, inputs["data"], walk.vocabulary),
            "radius": found.value,
            "radius_rule": found.rule,
            **walk.facts(),
        }
        with records.open_record("landscape", options, inputs=inputs, facts=facts) as record:
            if not record.complete:
                walk.measure(record, probes)
                record.finish()
            print("\n".join(_summary(record, options, walk)))
    return None


def _summary(record: records.Writer, options: LandscapeOptions, walk: Walk) -> list[str]:
    lines = [] if walk.shares > 1 else _table(record, options, walk)
    if walk.shares > 1:
        lines.append(
            f"share {options.share}: its part of the points of every student, nothing refined; run the other shares "
            "into the same directory, then the same command without --share: it takes their points over and refines"
        )
    r, rule = record.facts["radius"], record.facts["radius_rule"]
    taken = f" ({walk.taken} of them taken over from shares)" if walk.taken else ""
    return [
        *lines,
        f"radius {r:g}: {rule}",
        f"{folding.described(walk.students.seen[0].folded)}; {loss.WORDS}, teacher kept as {walk.kept}",
        f"{len(record.done)} rows{taken}, {options.directions} pair(s) of filter-normalised directions; "
        "one picture does not show that a method is flatter",
        f"record: {record.path}",
    ]


def _table(record: records.Writer, options: LandscapeOptions, walk: Walk) -> list[str]:
    rows, r = records.read(record.path).rows, float(record.facts["radius"])
    radii = (r / 2, r)
    heads = ["student", "KL(p, q) at the centre", *(f"rise at |r| = {radius:g}" for radius in radii)]
    table = [[*heads, "largest error at held-out points", "points", "s/point"]]
    known, worst = [], 0.0  # students with a finite loss somewhere
    for index, student in enumerate(walk.students.seen):
        try:
            planes = [surfaces.surface(rows, index, seed) for seed in seeds(options)]
        except InputError:
            table.append([_name(student), *["–"] * 6])
            continue
        known.append(index)
        cells = [f"{planes[0].centre:.4f}", *(_spread(planes, radius) for radius in radii)]
        off = [plane.residual / plane.range for plane in planes if plane.range > 0 and np.isfinite(plane.residual)]
        worst = max([worst, *off])
        spent = walk.seconds[index]
        cells += [f"{100 * max(off):.2g} % of range" if off else "–", str(sum(plane.n_measured for plane in planes))]
        table.append([_name(student), *cells, f"{np.mean(spent):.3g}" if spent else "–"])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in table]
    if worst > options.tolerance:
        lines.append(
            f"between the points the interpolation is further off than --tolerance {options.tolerance:g} of the range, "
            "refined as far as it goes: --grid 21 measures more points"
        )
    for index in known:
        found = flatness.scalars(rows, index)
        parts = [
            f"{name} {value.value:.4g}" + (f" [{value.low:.4g}, {value.high:.4g}]" if value.low < value.high else "")
            for name, value in found.items()
        ]
        parts += [_metric(rows, index, name, options, r) for name in options.metric]
        if parts:
            lines.append(f"{_name(walk.students.seen[index])}: {', '.join(parts)}")
    return lines


def _name(student: Seen) -> str:
    """The method, with the training seed where there is one."""
    card = student.card
    return card.method if card.seed is None else f"{card.method}, seed {card.seed}"


def _metric(rows: Sequence[Any], index: int, name: str, options: LandscapeOptions, radius: float) -> str:
    """A metric at the student and at the plane's edge, a mean over direction seeds."""
    planes = [surfaces.surface(rows, index, seed, name) for seed in seeds(options)]
    there = [plane.centre + rise for plane in planes if (rise := _rise(plane, radius)) is not None]
    edge = f"{np.mean(there):.3f}" if there else "–"
    return f"{name} {planes[0].centre:.3f} at the centre and {edge} at |r| = {radius:g}"


def _spread(planes: Sequence[surfaces.Surface], radius: float) -> str:
    rises = [rise for plane in planes if (rise := _rise(plane, radius)) is not None]
    spread = f" (sd {np.std(rises, ddof=1):.4f} over directions)" if len(rises) > 1 else ""
    return f"{np.mean(rises):.4f}{spread}" if rises else "–"


def _rise(plane: surfaces.Surface, radius: float) -> float | None:
    """The rise at a distance from the student; None where no point lies within half a step of it, or one is missing."""
    distance, rise = plane.profile()
    nearest = int(np.abs(distance - radius).argmin())
    step = plane.a[plane.stride] - plane.a[0]
    near = abs(distance[nearest] - radius) < step / 2 and distance[nearest] > 0
    return float(rise[nearest]) if near and np.isfinite(rise[nearest]) else None


def _check(options: LandscapeOptions) -> None:
    if options.grid < 3 or options.grid % 2 == 0:
        raise InputError(
            f"--grid must be odd and at least 3, so that the model itself is a point of it; not {options.grid}"
        )
    if options.radius is not None and not 0 < options.radius < float("inf"):
        raise InputError(f"--radius must be positive, not {options.radius}: leave it out for the automatic one")
    for name in ("rise", "tolerance", "cache_mb"):
        if not getattr(options, name) > 0:
            raise InputError(f"--{name.replace('_', '-')} must be above 0, not {getattr(options, name)}")
    for name in ("directions", "sequences", "batch_size", "k"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(options, name)}")
    for name in ("held_out", "scalars"):
        if getattr(options, name) < 0:
            raise InputError(f"--{name.replace('_', '-')} must be at least 0, not {getattr(options, name)}")
    if options.limit is not None and options.limit < 1:
        raise InputError(f"--limit must be at least 1, not {options.limit}: leave it out to use --sequences")
    points.share_of(options.share)
