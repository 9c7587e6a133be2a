"""What does a loss landscape cost, per point and as a whole, and is what is drawn between the points right?

One thread, CPU time, all arms in turns in one process, at the same points along the same directions; an arm whose loss
differs from ours ends the run. Per point, on a student of 4.0 million parameters (4 layers, 256 wide, vocabulary 2000),
a teacher of 6 layers, 320 wide, and 8 x 128 tokens (random weights and tokens: the arithmetic does not look at them):

- reload: what `set_states` of tomgoldstein/loss-landscape does at every point, written again here as its code has it
  (the state dict copied, both directions added from NumPy arrays, loaded), then the loss from both models' logits.
- reload, teacher kept: the same with the teacher's log-probabilities kept. The public code has no teacher: who adds one
  decides between these two.
- set weights, teacher kept: its `set_weights`, the cheaper of its two ways.
- loss-landscapes: the package of that name itself (PyPI 3.0.6), where it can be imported, with the teacher kept. It
  moves in place, which is cheap, and wrong: the last table shows where its rows lie.
- ours, and ours with the forward pass in bfloat16.

The surface: all 51 x 51 points against what `selectkd-eval landscape` measures by default (11 x 11, 16 points off the
grid, cells halved where the interpolation is off), on the embedded pair with 16 sequences. The error is over all 2601
points, as a share of their range.

`pip install --no-deps loss-landscapes==3.0.6` (or PYTHONPATH) brings the package; without it its lines are left out.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from selectkd_eval import pair, prompts, records, surfaces
from selectkd_eval.directions import Plane
from selectkd_eval.landscapes.loss import CommonLoss
from selectkd_eval.landscapes.students import Students
from selectkd_eval.landscapes.walk import Walk
from selectkd_eval.stats import Estimate, ratio
from selectkd_eval.teacher_forced import Example, batches, digest, encode
from selectkd_eval.verbs import LandscapeOptions

VOCABULARY, SEQUENCES, LENGTH = 2000, 8, 128
OURS, HALF = "ours", "ours, bfloat16"
RADIUS = 0.5
TIGHTER = (0.002,)  # of the range: tolerances below the default half a per cent
PACKAGE = "loss_landscapes"


class Setting(NamedTuple):
    """A student, its teacher, the text, and one plane's directions in both layouts."""

    teacher: Any
    student: Any
    loss: CommonLoss
    plane: Plane
    half: Plane
    by_state: list[list[np.ndarray]]


def llama(layers: int, width: int, heads: int, kept: int, seed: int) -> Any:
    """A random Llama in evaluation mode."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kept,
        max_position_embeddings=512,
    )
    return LlamaForCausalLM(config).eval()


def setting() -> Setting:
    """The models and the text of the first table."""
    teacher, student = llama(6, 320, 5, 5, seed=0), llama(4, 256, 4, 2, seed=1)
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(VOCABULARY, (SEQUENCES, LENGTH), generator=generator)
    examples = [Example(str(n), tuple(row.tolist()), (True,) * LENGTH) for n, row in enumerate(ids)]
    plane, half = Plane(student, 0), Plane(student, 0, dtype=torch.bfloat16)
    by_state = []
    for axis in (plane.d1, plane.d2):
        sizes = [parameter.numel() for parameter in plane.parameters.values()]
        moved = dict(zip(plane.parameters, axis.split(sizes), strict=True))
        states = student.state_dict()
        by_state.append([moved.get(k, torch.zeros_like(v)).reshape(v.shape).numpy() for k, v in states.items()])
    return Setting(
        teacher, student, CommonLoss(teacher, list(batches(examples, 8, 0, "cpu")), 2000), plane, half, by_state
    )


def reload(net: nn.Module, states: dict[str, Tensor], directions: list[list[np.ndarray]], step: list[float]) -> None:
    """`set_states` of the public code."""
    changes = [d0 * step[0] + d1 * step[1] for d0, d1 in zip(*directions, strict=True)]
    new_states = copy.deepcopy(states)
    for v, d in zip(new_states.values(), changes, strict=True):
        d = torch.tensor(d)
        v.add_(d.type(v.type()))
    net.load_state_dict(new_states)


def set_weights(net: nn.Module, weights: list[Tensor], directions: list[list[np.ndarray]], step: list[float]) -> None:
    """`set_weights` of the public code."""
    changes = [d0 * step[0] + d1 * step[1] for d0, d1 in zip(*directions, strict=True)]
    for p, w, d in zip(net.parameters(), weights, changes, strict=True):
        p.data = w + torch.Tensor(d).type(type(w))


def logits_of(model: nn.Module, ids: Tensor) -> Tensor:
    """Logits that predict a token of the text."""
    return model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)


def kl(log_p: Tensor, model: nn.Module, ids: Tensor) -> float:
    """The same loss as a user of the public code would write it."""
    return float(
        nn.functional.kl_div(logits_of(model, ids).log_softmax(-1), log_p, reduction="sum", log_target=True)
    ) / len(log_p)


Arm = Callable[[float, float], float]


def arms(case: Setting) -> dict[str, Arm]:
    """By name, the mean loss at a point of the plane."""
    (batch,) = case.loss.text
    log_p = logits_of(case.teacher, batch.ids).log_softmax(-1)
    net = copy.deepcopy(case.student)
    states, weights = copy.deepcopy(net.state_dict()), [p.data.clone() for p in net.parameters()]

    def again(a: float, b: float) -> float:
        reload(net, states, case.by_state, [a, b])
        return kl(logits_of(case.teacher, batch.ids).log_softmax(-1), net, batch.ids)

    def kept(a: float, b: float) -> float:
        reload(net, states, case.by_state, [a, b])
        return kl(log_p, net, batch.ids)

    def written(a: float, b: float) -> float:
        set_weights(net, weights, case.by_state, [a, b])
        return kl(log_p, net, batch.ids)

    def ours(plane: Plane) -> Arm:
        def at(a: float, b: float) -> float:
            plane.move(a, b)
            return case.loss.loss(plane.model)

        return at

    return {
        "reload, teacher run again": again,
        "reload, teacher kept": kept,
        "set weights, teacher kept": written,
        OURS: ours(case.plane),
        HALF: ours(case.half),
    }


def per_point(case: Setting, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of every arm at `rounds` points, in turns."""
    spent: dict[str, list[float]] = {}
    draw = random.Random(0)
    every = arms(case)
    # Both of our planes lend the same model: each is entered for its turn, outside the clock as in a walk over a grid.
    lent = {OURS: case.plane, HALF: case.half}
    for number in range(-1, rounds):
        a, b = draw.uniform(-RADIUS, RADIUS), draw.uniform(-RADIUS, RADIUS)
        losses = {}
        for name in draw.sample(list(every), len(every)):
            if name in lent:
                with lent[name].on():
                    losses[name], seconds = timed(every[name], a, b)
            else:
                losses[name], seconds = timed(every[name], a, b)
            if number >= 0:  # the first point warms up
                spent.setdefault(name, []).append(seconds)
        for name, value in losses.items():
            if abs(value / losses[OURS] - 1) > (0.02 if name == HALF else 1e-5):
                raise SystemExit(f"{name} has loss {value:.7f} at ({a:.3f}, {b:.3f}), ours is {losses[OURS]:.7f}")
    return {name: spent[name] for name in every}


def timed(arm: Arm, a: float, b: float) -> tuple[float, float]:
    """The loss at a point and the CPU seconds it took."""
    begun = time.process_time()
    return arm(a, b), time.process_time() - begun


def package_points(case: Setting, rounds: int) -> tuple[list[float], list[float]]:
    """CPU seconds per point of the package's own plane, and of ours, block by block in turns."""
    import loss_landscapes

    (batch,) = case.loss.text
    log_p = logits_of(case.teacher, batch.ids).log_softmax(-1)
    theirs, mine = [], []
    ours = arms(case)[OURS]
    for _ in range(max(2, rounds // 4)):
        ends: list[float] = []

        def metric(wrapper: Any, ends: list[float] = ends) -> float:
            value = kl(log_p, wrapper.modules[0], batch.ids)
            ends.append(time.process_time())
            return value

        loss_landscapes.random_plane(case.student, metric, 1, 3, "filter", deepcopy_model=True)
        theirs.append(statistics.median(np.diff(ends)))
        with case.plane.on():
            mine.append(statistics.median(timed(ours, 0.1 * n, 0.05 * m)[1] for n in range(3) for m in range(3)))
    return theirs, mine


def package_rows(steps: int = 6) -> list[tuple[float, float]]:
    """Where the package's rows lie: the first and last coordinate along its second direction, row by row, in steps."""
    import loss_landscapes

    torch.manual_seed(0)
    model = nn.Linear(5, 4, bias=False)
    seen: list[np.ndarray] = []

    def metric(wrapper: Any) -> float:
        seen.append(wrapper.modules[0].weight.detach().numpy().ravel().astype(float).copy())
        return float(len(seen) - 1)  # the point's number, so that the result says where it was put

    where = np.asarray(loss_landscapes.random_plane(model, metric, 1, steps, "filter", deepcopy_model=True))
    point = [[seen[int(number)] for number in row] for row in where]
    along = point[0][1] - point[0][0]
    across = (point[2][0] - point[0][0]) / 2
    centre = model.weight.detach().numpy().ravel().astype(float)
    basis = np.stack([across, along], axis=1)
    places = [[np.linalg.lstsq(basis, one - centre, rcond=None)[0][1] for one in row] for row in point]
    return [(row[0], row[-1]) for row in places]


def report_points(case: Setting, rounds: int) -> None:
    """The first table."""
    spent = per_point(case, rounds)
    million = sum(p.numel() for p in case.student.parameters()) / 1e6
    print(f"per point: {million:.2f} million parameters, {case.loss.n_tokens} tokens, {rounds} points, CPU time")
    print(f"{'arm':<28} | ms per point | times ours         | 51 x 51")
    for name, seconds in spent.items():
        each = statistics.mean(seconds)
        print(f"{name:<28} | {1000 * each:12.1f} | {show(ratio(seconds, spent[OURS])):<18} | {2601 * each:5.0f} s")
    if importlib.util.find_spec(PACKAGE):
        theirs, mine = package_points(case, rounds)
        each = statistics.mean(theirs)
        name = "loss-landscapes, kept"
        print(f"{name:<28} | {1000 * each:12.1f} | {show(ratio(theirs, mine)):<18} | {2601 * each:5.0f} s")
    else:
        print("loss-landscapes is not installed: pip install --no-deps loss-landscapes==3.0.6")


def show(estimate: Estimate) -> str:
    """A ratio with its interval."""
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def report_surface(teacher_name: str, student_name: str, sequences: int, seed: int) -> None:
    """The second table: the whole lattice against what is measured by default."""
    teacher = pair.load_model(teacher_name)
    chosen = prompts.load_prompts("mini-gsm:validation", sequences)
    examples = encode(teacher.tokenizer, chosen, teacher.model)
    text = list(batches(examples, 32, teacher.tokenizer.pad_token_id or 0, "cpu"))
    with (
        tempfile.TemporaryDirectory() as out,
        Students((student_name,), teacher, torch.tensor([examples[0].ids])) as students,
    ):
        default = LandscapeOptions(student=(student_name,), sequences=sequences, scalars=0, out=Path(out), seed=seed)
        probed = Walk(default, teacher, students, text)
        inputs = {"data": digest(examples)}
        r = probed.radius(inputs)[0].value

        def measured(name: str, **changes: Any) -> tuple[surfaces.Surface, int, float]:
            given = {"student": (student_name,), "sequences": sequences, "radius": r, "scalars": 0, "seed": seed}
            options = LandscapeOptions(**given | {"out": Path(out) / name} | changes)
            walk = Walk(options, teacher, students, text)
            walk.plane(0, seed)
            assert walk.loss.n_tokens  # the teacher is asked before the clock starts, for both
            with records.open_record("landscape", options, inputs=inputs, facts={"radius": r}) as record:
                begun = time.process_time()
                walk.measure(record, [])
                spent = time.process_time() - begun
                return surfaces.surface(walk.rows(record), 0, seed), len(record.done), spent

        first = measured("first")
        full, n_full, cpu_full = measured("full", grid=51, held_out=0)
        second = measured("second")
        plain, n_plain, cpu_plain = measured("plain", held_out=0)
        strict = [measured(f"strict {share}", tolerance=share) for share in TIGHTER]
    where = f"{student_name}, direction seed {seed}, {sequences} sequences"
    print(f"\nsurface: {where}, radius {r:g}, range {full.range:.3f} nats")
    print(
        "measured                     |  points |  CPU s | times the points | times the CPU | max error |    p99 | mean"
    )
    print(f"{'51 x 51':<28} | {n_full:7} | {cpu_full:6.2f} |")
    rows = [("11 x 11 alone", plain, n_plain, cpu_plain)]
    rows.append(("11 x 11, held out, refined", first[0], first[1], (first[2] + second[2]) / 2))
    rows += [(f"the same, tolerance {100 * share:g} %", *found) for share, found in zip(TIGHTER, strict, strict=True)]
    a, b = (axis.ravel() for axis in np.meshgrid(full.a, full.b, indexing="ij"))
    for name, surface, n, cpu in rows:
        error = np.abs(surface.at(a, b) - full.loss.ravel()) / full.range * 100
        print(
            f"{name:<28} | {n:7} | {cpu:6.2f} | {n_full / n:16.1f} | {cpu_full / cpu:13.1f} | {error.max():7.3f} % | "
            f"{np.quantile(error, 0.99):.3f} % | {error.mean():.4f} %"
        )
    held = first[0].residual / first[0].range * 100
    print(f"largest error at the {len(first[0].held_out)} held-out points, which the record itself knows: {held:.3f} %")


def report_rows() -> None:
    """The third table: where the public package's rows lie."""
    if not importlib.util.find_spec(PACKAGE):
        return
    print("\nloss-landscapes 3.0.6, 6 x 6 points: coordinates along the second direction, in steps from the model")
    for number, (low, high) in enumerate(package_rows()):
        print(f"row {number}: {low:+.2f} to {high:+.2f}")
    print("rows of one grid should start at one place; these are a full step apart in turns")


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12, help="points of the first table")
    parser.add_argument("--sequences", type=int, default=16, help="of the surface")
    parser.add_argument("--teacher", default="embedded:teacher")
    parser.add_argument("--student", nargs="+", default=["embedded:student"], help="whose surfaces are measured")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="direction seeds of the surfaces")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.perf_counter()
    with torch.no_grad():
        report_points(setting(), options.rounds)
        for student in options.student:
            for seed in options.seeds:
                report_surface(options.teacher, student, options.sequences, seed)
        report_rows()
    took, load = time.perf_counter() - begun, os.getloadavg()[0]
    print(f"\none thread; {took:.0f} s; 1-minute load at the end {load:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
