"""`landscape`: does selection end in a flatter place? The paper's Figure 4b.

A filter-normalised plane (Li et al., arXiv 1712.09913) around every student: the same noise, the same tokens,
the same teacher and the same loss for all of them, namely the plain forward KL(p || q), a mean over response
tokens. Each method's own training loss would not do: a gate that drops tokens lowers the number without
moving the model. The directions are in `directions.py`.

One pair of directions is one picture; which of two students looks flatter can change with the pair and with
the radius, so compare over several (`--directions`). Nothing is smoothed or interpolated here, and a point
that was not measured is absent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from selectkd_eval import environment, pair, prompts, records, surfaces
from selectkd_eval.directions import RULES, Plane, left_out, perturbed
from selectkd_eval.divergences import fkl
from selectkd_eval.errors import InputError
from selectkd_eval.teacher_forced import Batch, batches, digest, encode, log_probs
from selectkd_eval.verbs import LandscapeOptions

LOSS = "forward KL(p || q), unweighted, mean over response tokens"
_CHUNK = 4096  # positions whose divergence is computed at once, to bound memory at large vocabularies


def run(options: LandscapeOptions) -> int | None:
    """Measure (or finish measuring) every grid point of every student, and print how the loss rises."""
    _check(options)
    environment.set_threads(options.threads)
    device = environment.device(options.device)
    teacher = pair.load_model(options.teacher, device)
    students = [pair.load_model(name, device) for name in options.student]
    _same_shapes(students)
    vocabulary = min(pair.common_vocabulary(teacher, student) for student in students)
    limit = options.sequences if options.limit is None else min(options.limit, options.sequences)
    chosen = prompts.load_prompts(options.data, limit)
    examples = encode(teacher.tokenizer, chosen, teacher.model, *(student.model for student in students))
    text = list(batches(examples, options.batch_size, teacher.tokenizer.pad_token_id or 0, device))
    tokens = digest(examples)
    with records.open_record(
        "landscape",
        options,
        inputs={
            "teacher": teacher.card.fingerprint,
            "data": tokens,
            **{f"student {index}": student.card.fingerprint for index, student in enumerate(students)},
        },
        facts={
            "teacher": teacher.card.as_dict(),
            "students": [student.card.as_dict() for student in students],
            "prompts": chosen.facts(),
            "radius": options.radius,
            "grid": options.grid,
            "seeds": seeds(options),
            "tokens_sha256": tokens,
            "loss": LOSS,
            "directions": RULES,
            **left_out(students[0].model),
            "vocabulary": vocabulary,
        },
    ) as record:
        if not record.complete:
            with torch.inference_mode():
                log_p = [log_probs(teacher.model, batch, vocabulary) for batch in text]
            for index, student in enumerate(students):
                for seed in seeds(options):
                    _walk(record, options, index, student.model, seed, text, log_p)
            record.finish()
        print("\n".join(_summary(record, options, students)))
    return None


def seeds(options: LandscapeOptions) -> list[int]:
    """Direction seeds of this run."""
    return [options.seed + offset for offset in range(options.directions)]


def coordinates(radius: float, grid: int) -> list[float]:
    """``grid`` points from -radius to radius; the middle one is exactly 0, so the model itself is on the
    grid.
    """
    half = (grid - 1) // 2
    return [radius * (i - half) / half for i in range(grid)]


def loss_sum(model: torch.nn.Module, text: Sequence[Batch], log_p: Sequence[Tensor]) -> float:
    """Summed forward KL over all response tokens, for teacher log-probabilities kept from one earlier pass."""
    total = 0.0
    for batch, teacher in zip(text, log_p, strict=True):
        log_q = log_probs(model, batch, teacher.shape[-1])
        for start in range(0, len(log_q), _CHUNK):
            stop = start + _CHUNK
            total += float(fkl(teacher[start:stop], log_q[start:stop]).sum(dtype=torch.float64))
    return total


def _walk(
    record: records.Writer,
    options: LandscapeOptions,
    index: int,
    model: torch.nn.Module,
    seed: int,
    text: Sequence[Batch],
    log_p: Sequence[Tensor],
) -> None:
    """The missing points of one plane, row by row."""
    axis = coordinates(options.radius, options.grid)
    missing = [
        (i, j) for i in range(options.grid) for j in range(options.grid) if f"{index}/{seed}/{i}/{j}" not in record.done
    ]
    if not missing:
        return
    n_tokens = sum(len(batch.row) for batch in text)
    with torch.inference_mode(), Plane(model, seed).on() as plane:
        for i, j in tqdm(missing, desc=f"landscape {index} seed {seed}", disable=None):
            plane.move(axis[i], axis[j])
            total = loss_sum(model, text, log_p)
            place = {"student": index, "seed": seed, "i": i, "j": j, "a": axis[i], "b": axis[j]}
            if math.isfinite(total):
                record.write(f"{index}/{seed}/{i}/{j}", **place, loss_sum=total, n_tokens=n_tokens)
            else:
                record.write(f"{index}/{seed}/{i}/{j}", **place, error="the loss is not finite here")


def _summary(record: records.Writer, options: LandscapeOptions, students: Sequence[pair.LoadedModel]) -> list[str]:
    rows = list(record.done.values())
    radii = (options.radius / 2, options.radius)
    table = [["student", "KL(p, q) at the centre", *(f"rise at |r| = {radius:g}" for radius in radii)]]
    for index, student in enumerate(students):
        planes = [surfaces.surface(rows, index, seed) for seed in seeds(options)]
        cells = [f"{planes[0].centre:.4f}"]
        for radius in radii:
            rises = [rise for plane in planes if (rise := _rise(plane, radius)) is not None]
            spread = f" (sd {np.std(rises, ddof=1):.4f} over directions)" if len(rises) > 1 else ""
            cells.append(f"{np.mean(rises):.4f}{spread}" if rises else "–")
        table.append([student.card.method, *cells])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        *("  ".join(map(str.ljust, line, widths)).rstrip() for line in table),
        f"{len(rows)} points, {options.directions} pair(s) of filter-normalised directions, {LOSS}; "
        "one picture does not show that a method is flatter",
        f"record: {record.path}",
    ]


def _rise(plane: surfaces.Surface, radius: float) -> float | None:
    """The rise at a distance from the student; None where no point lies within half a step of it, or one is missing."""
    distance, rise = plane.profile()
    nearest = int(np.abs(distance - radius).argmin())
    near = abs(distance[nearest] - radius) < (plane.a[1] - plane.a[0]) / 2 and distance[nearest] > 0
    return float(rise[nearest]) if near and np.isfinite(rise[nearest]) else None


def _same_shapes(students: Sequence[pair.LoadedModel]) -> None:
    shapes = [{name: tuple(p.shape) for name, p in perturbed(student.model).items()} for student in students]
    for student, mine in zip(students, shapes, strict=True):
        if mine != shapes[0]:
            raise InputError(
                f"{student.card.name} and {students[0].card.name} have different parameters, so no direction is the "
                f"same for both: compare students of one architecture"
            )


def _check(options: LandscapeOptions) -> None:
    if options.grid < 3 or options.grid % 2 == 0:
        raise InputError(
            f"--grid must be odd and at least 3, so that the model itself is a point of it; not {options.grid}"
        )
    if options.radius <= 0:
        raise InputError(f"--radius must be positive, not {options.radius}")
    if options.directions < 1 or options.sequences < 1 or options.batch_size < 1:
        raise InputError("--directions, --sequences and --batch-size must be at least 1")
