"""What may be said of token acceptance, in sentences? For the report's findings and the demo's screen.

Whether acceptance rose from the first checkpoint to the last; whether Theorem 1 holds on the runs that were measured,
plainly; and, only where an interval supports it, whether the teacher accepts less where it is unsure itself and on
which side of that line a gate changes anything. The line is drawn at one nat, before looking.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from analysis.acceptance import Breakdown, TarSet, tar_sets
from analysis.acceptance_runs import HELD_OUT, Judged, in_words, judged
from analysis.load import Library, Method
from analysis.table_ir import difference, number, signed, verdict
from selectkd_eval import measures

UNSURE = 1.0  # nats of the teacher's entropy


def lines(library: Library, resamples: int) -> list[str]:
    """The sentences of every text, in the order of the figures."""
    sets = tar_sets(library)
    told = [line for chosen in sets if (line := _risen(library, chosen, resamples))]
    told += _theorem(library, resamples)
    for chosen in sets:
        part = chosen.breakdown("by_entropy")
        if part is not None and UNSURE in part.edges:
            told += _unsure(library, chosen, part, resamples)
    return told


def _risen(library: Library, chosen: TarSet, resamples: int) -> str:
    """From the first to the last checkpoint, on one definition that suits every method: alpha."""
    parts = []
    for method in chosen.methods:
        steps = chosen.steps(method)
        if len(steps) < 2:
            continue
        first, last = (chosen.points[method, step]["alpha"] for step in (steps[0], steps[-1]))
        change, _ = measures.delta(last, first, resamples)
        verb = verdict(change, 0.0, ("rises", "falls", "does not clearly change"))
        parts.append(
            f"{library.label(method)} {verb} from {number(first.value, 3)} at step {steps[0]} to "
            f"{number(last.value, 3)} at step {steps[-1]} ({difference(change, 3)})"
        )
    n = len(next(iter(chosen.points.values()))["alpha"].prompts)
    return f"Acceptance α = 1 − TV on {chosen.text}, n = {n:,} prompts: {'; '.join(parts)}." if parts else ""


def _theorem(library: Library, resamples: int) -> Iterator[str]:
    """One sentence for each text: what Theorem 1 promises, and what the runs of every gated method did."""
    every = judged(library, resamples)
    for text in dict.fromkeys(panel.text for panel in every):
        told = [_judged(library, panel) for panel in every if panel.text == text]
        where = "in the validation of training" if text == HELD_OUT else f"on {text}"
        yield (
            f"Theorem 1 (TAR rises at every update by at least η κ (1 − TAR), κ > 0) {where}, from one evaluation to "
            f"the next: {'; '.join(told)}."
        )


def _judged(library: Library, panel: Judged) -> str:
    label = f"{library.label(panel.method)} ({panel.name}):"
    falls = [drop for fit in panel.fits for drop in fit.drops]
    unit = "per unit of cumulative learning rate" if panel.runs[0].by_rate else "per step"
    told = f"{label} {in_words(panel.fits)}"
    worst = min(falls, key=lambda drop: drop.change.value, default=None)
    if worst is not None:
        size = difference(worst.change, 4) if worst.change.n else signed(worst.change.value, 4)
        intervals = sum(len(fit.kappas) for fit in panel.fits)
        told += f", TAR fell over {len(falls)} of {intervals} intervals, at worst by {size}"
    if panel.kappa_max > 0:  # NaN is not
        told += f", largest valid κ {number(panel.kappa_max, 2)} {unit}"
    if panel.left_out:
        told += f", {panel.left_out} more without known learning rates left out"
    reasons = dict.fromkeys(fit.reason for fit in panel.fits if fit.reason)
    return told + (f", because {'; '.join(reasons)}" if reasons else "")


def _unsure(library: Library, chosen: TarSet, part: Breakdown, resamples: int) -> Iterator[str]:
    """Acceptance above and below one nat of the teacher's entropy, and what a gate changes on either side."""
    contrasts, gains = [], []
    for method in part.terms:
        unsure, sure = _sides(part, method)
        change, _ = measures.delta(unsure, sure, resamples)
        if change.excludes(0):
            contrasts.append(f"{library.label(method)} {number(unsure.value, 3)} ({difference(change, 3)})")
        base = library.base_of(method, list(part.terms)) if method.base else None
        if base is None:
            continue
        for side, where in enumerate((f"where it is at least {UNSURE:g} nat", "where it is less")):
            gain, _ = measures.delta(_sides(part, method)[side], _sides(part, base)[side], resamples)
            if gain.excludes(0):
                verb = "more" if gain.value > 0 else "less"
                name, other = library.label(method), library.label(base)
                gains.append(f"{verb} of {name} than of {other} {where} ({difference(gain, 3)})")
    if contrasts:
        first = next(iter(part.terms))
        unsure, sure = _sides(part, first)
        share = 100 * float(unsure.den.sum()) / float(unsure.den.sum() + sure.den.sum())
        yield (
            f"Acceptance α on {chosen.text} where the teacher's entropy is at least {UNSURE:g} nat ({number(share, 0)} "
            f"% of the tokens), and how far from where it is less: {'; '.join(contrasts)}."
        )
    if gains:
        yield f"By the teacher's entropy on {chosen.text}, it accepts {'; '.join(gains)}."


def _sides(part: Breakdown, method: Method) -> tuple[measures.Terms, measures.Terms]:
    return part.between(method, "alpha", UNSURE, None), part.between(method, "alpha", None, UNSURE)


def not_drawn(names: Iterable[str]) -> str:
    """What a figure has no room for, for its caption; empty where all is drawn."""
    told = list(dict.fromkeys(names))
    return f" Not drawn, for want of room: {', '.join(told)}." if told else ""
