"""Which answer does a local model find more likely? The judge for a machine without a network.

It compares the mean log-likelihood per character of the two answers. Answers closer than the tie band tie. It sees
one answer at a time, so the order in which a protocol would show them cannot matter. It is not a human's or a
language model's preference, it rewards bland text, and its label says so wherever its number appears.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from judges.pairing import Comparison
from judges.verdicts import Verdict
from selectkd_eval.environment import require

CHUNK = 32  # comparisons scored between two writes to the record


def scorer(feature: str = "a likelihood judge") -> Any:
    """The module that holds the model; the only way from here to torch."""
    require("torch", feature, "train")
    from selectkd_eval import likelihood

    return likelihood


def label(model: str) -> str:
    """What the number is, in the words that go beside it."""
    return f"a likelihood under {model}, not a human or LLM preference; rewards bland text"


def verdict(candidate: float, baseline: float, tie_band: float) -> Verdict:
    """The verdict between two mean log-likelihoods per character, in nats."""
    if math.isnan(candidate) or math.isnan(baseline):
        return Verdict("failed", "prompt and answer do not fit into the judge's context")
    difference = candidate - baseline
    if abs(difference) <= tie_band:
        return Verdict("tie", "within the tie band")
    return Verdict("candidate" if difference > 0 else "baseline")


def judge(
    comparisons: Sequence[Comparison], model: str, tie_band: float, device: str, threads: int
) -> Iterator[tuple[Comparison, Verdict, dict[str, float]]]:
    """Verdicts with both scores, in the order given, a chunk at a time. The answers must not be empty."""
    score = scorer().score_answers
    for chunk in _chunks(comparisons):
        prompts = [comparison.text for comparison in chunk]
        sides = [c.candidate for c in chunk] + [c.baseline for c in chunk]
        scores = score(model, prompts + prompts, sides, device, threads)
        for comparison, candidate, baseline in zip(chunk, scores[: len(chunk)], scores[len(chunk) :], strict=True):
            found = {"candidate_score": candidate, "baseline_score": baseline}
            yield comparison, verdict(candidate, baseline, tie_band), found


def _chunks(comparisons: Sequence[Comparison]) -> Iterable[Sequence[Comparison]]:
    return (comparisons[start : start + CHUNK] for start in range(0, len(comparisons), CHUNK))
