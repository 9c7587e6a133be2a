"""Does a student gain from a larger teacher, with the gate and without? The paper's Figure 3b.

The student's number against the teacher's size on a log2 axis, a line per method with intervals over prompts, and the
student alone as a dashed line. The claim is a trend, so it is tested as one: Page's test over prompts, or with two
teachers their paired difference; how far it holds for other training seeds only more seeds can say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from analysis.fitting import at_line_ends, wrapped
from analysis.load import Library, Method
from analysis.rates import WORDS, plain
from analysis.style import ERROR, INK, Drawing, Look, Settings, ink, looks, reach, width
from analysis.table_ir import interval, number, signed
from analysis.teacher_sizes import Sized, Sizes, size_name, sizes
from analysis.trend import page, page_exact
from selectkd_eval import measures
from selectkd_eval.errors import InputError
from selectkd_eval.stats import Estimate


def teachers(library: Library, settings: Settings) -> Drawing:
    """The student's pass@1 or win rate by teacher size, one line per method."""
    found = sizes(library, settings.resamples)
    methods = [line.method for line in found.lines]
    names = {method: _name(method, methods) for method in methods}
    styles = looks(methods)
    tall = 2.4 if settings.columns == 1 else 3.0
    figure, axis = plt.subplots(figsize=(width(settings), tall))
    every = sorted({size for line in found.lines for size in line.pooled})
    data: dict[str, Any] = {}
    ends = []
    for place, line in enumerate(found.lines):
        # Side by side where intervals would lie on each other.
        shift = (place - (len(found.lines) - 1) / 2) * 0.025 * np.log2(every[-1] / every[0])
        estimates = {size: terms.estimate(settings.resamples).scaled(100) for size, terms in line.pooled.items()}
        ends.append(
            (*_drawn(axis, estimates, styles[line.method], shift), names[line.method], ink(styles[line.method]))
        )
        data[names[line.method]] = {str(size): plain(estimate) for size, estimate in estimates.items()}
    alone = found.alone.estimate(settings.resamples).scaled(100) if found.alone else None
    if alone is not None:
        axis.axhline(alone.value, color=INK, linewidth=0.9, linestyle="--", zorder=1)
        axis.axhspan(alone.low, alone.high, color="#888888", alpha=0.15, linewidth=0, zorder=0)
        ends.append((axis.get_xlim()[1], alone.value, "student alone", INK))
        data["student alone"] = plain(alone)
    _sizes_axis(axis, every)
    axis.set_ylabel(wrapped(f"{WORDS[found.kind]} (%) on {found.title}", 0.75 * tall, 8))
    if alone is not None:
        ends[-1] = (axis.get_xlim()[1], *ends[-1][1:])
    at_line_ends(axis, ends)
    trends = [f"{names[line.method]}: {_trend(line, settings.resamples)}" for line in found.lines]
    caption = _caption(found, trends, alone)
    return Drawing("teachers", figure, caption, f"{_words(found, data)} {'. '.join(trends)}.", data)


def _name(method: Method, among: Sequence[Method]) -> str:
    """The method's name, with the settings in which it differs from another line of that name."""
    twins = [other for other in among if other.label == method.label]
    names = dict.fromkeys(name for twin in twins for name, _ in twin.setting)
    words = [f"{name}={method.get(name)}" for name in names if len({str(twin.get(name)) for twin in twins}) > 1]
    return f"{method.label} ({', '.join(words)})" if words else method.label


def _drawn(axis: Axes, estimates: Mapping[int, Estimate], style: Look, shift: float) -> tuple[float, float]:
    """One line with its intervals; where it ends."""
    at = [size * 2**shift for size in estimates]
    values = [one.value for one in estimates.values()]
    errors = np.hstack([reach(one) for one in estimates.values()])
    colour = ink(style)
    axis.errorbar(
        *(at, values),
        yerr=errors,
        color=colour,
        linestyle=style.line,
        marker=style.marker,
        **ERROR | {"ecolor": colour},
    )
    return at[-1], values[-1]


def _sizes_axis(axis: Axes, every: Sequence[int]) -> None:
    """A log2 axis whose ticks are the teachers, named by size; where two lie too close, every second line is lower."""
    axis.set_xscale("log", base=2)
    axis.set_xlim(every[0] / 2**0.35, every[-1] * 2**0.35)
    axis.set_xticks(list(every), [size_name(size) for size in every])
    axis.minorticks_off()
    axis.set_xlabel("teacher's parameters")


def _trend(line: Sized, resamples: int) -> str:
    """What the test says of one line, in words."""
    steps = []
    for (small, low), (large, high) in pairwise(line.pooled.items()):
        try:
            step = measures.delta(high, low, resamples)[0].scaled(100)
        except InputError:
            return "its prompts differ between teachers, so no trend is tested"
        steps.append((f"{size_name(small)} to {size_name(large)}", step))
    if len(steps) == 1:
        where, step = steps[0]
        verdict = "not settled" if not step.excludes(0) else "rises" if step.value > 0 else "falls"
        return f"{verdict} ({where} {signed(step.value, 1)} points {interval(step, 1)})"
    found = page(_per_prompt(line))
    verdict = "no trend is settled" if not found.p < 0.05 else "rises" if found.z > 0 else "falls"
    where, fall = min(steps, key=lambda step: step[1].value)
    worst = (
        "no step down" if fall.value >= 0 else f"largest step down {where} {signed(fall.value, 1)} {interval(fall, 1)}"
    )
    test = f"Page's trend test over {found.blocks:,} prompts, z = {number(found.z, 1)}, p {_p(found.p)}"
    exact = page_exact(_per_seed(line))
    seeds = "" if np.isnan(exact) else f"; exact over training seeds, for a rise, p {_p(exact)}"
    return f"{verdict} ({test}{seeds}; {worst})"


def _p(p: float) -> str:
    return "< .001" if p < 0.001 else f"= {number(p, 3).lstrip('0')}"


def _per_prompt(line: Sized) -> Any:
    """Every prompt's rate by teacher size, (prompts, teachers); prompts that count under every teacher."""
    num, den = (np.stack([getattr(terms, what) for terms in line.pooled.values()], axis=1) for what in ("num", "den"))
    counted = (den > 0).all(axis=1)
    return num[counted] / den[counted]


def _per_seed(line: Sized) -> Any:
    """Every seed's rate by teacher size, (seeds, teachers); the seeds that all teachers have."""
    common = sorted(set.intersection(*(set(own) for own in line.seeds.values())), key=str)
    rates = [[own[seed].value for own in line.seeds.values()] for seed in common]
    return np.array(rates).reshape(len(common), len(line.seeds))


def _caption(found: Sizes, trends: Sequence[str], alone: Estimate | None) -> str:
    dashed = " Dashed: the untrained student." if alone else ""
    return (
        f"{WORDS[found.kind].capitalize()} of the student on {found.title} by the size of its teacher, with 95 % "
        f"intervals over prompts; training seeds pooled.{dashed} {'. '.join(trends)}. The tests hold for these "
        "students: prompts are resampled, training runs are not."
    )


def _words(found: Sizes, data: Mapping[str, Any]) -> str:
    parts = []
    for name, own in data.items():
        if name == "student alone":
            parts.append(f"{name} {number(own['value'], 1)} %")
        else:
            told = (f"{size_name(int(size))} teacher {number(one['value'], 1)} %" for size, one in own.items())
            parts.append(f"{name} {', '.join(told)}")
    return f"Line chart of {WORDS[found.kind]} by teacher size: {'; '.join(parts)}."
