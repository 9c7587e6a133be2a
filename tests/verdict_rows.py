"""Rows of judged comparisons for the tests of agreement, positions and lengths."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

FIRST, SECOND = "candidate-first", "baseline-first"
LETTERS = {"c": "candidate", "b": "baseline", "t": "tie", "u": "unreadable", "-": "failed"}


def row(
    prompt: object, verdict: str, order: str = FIRST, seed: int = 0, sample: int = 0, **more: Any
) -> dict[str, Any]:
    """One row of a winrate record; `verdict` may be its first letter, "-" a failed call."""
    word = LETTERS.get(verdict, verdict)
    failure = {"error": "no reply"} if word == "failed" else {}
    return {
        "prompt": f"{prompt:05d}" if isinstance(prompt, int) else str(prompt),
        "seed": seed,
        "order": order,
        "sample": sample,
        "task": "",
        "verdict": word,
        "asked": True,
        "candidate_chars": 100,
        "baseline_chars": 100,
        **failure,
        **more,
    }


def said(verdicts: Iterable[str], **more: Any) -> list[dict[str, Any]]:
    """One row per verdict, of prompts 0, 1, 2 ..."""
    return [row(prompt, verdict, **more) for prompt, verdict in enumerate(verdicts)]


def in_both_orders(pairs: Sequence[str], **more: Any) -> list[dict[str, Any]]:
    """Two rows per pair of letters: the verdict with the candidate first, then with the baseline first."""
    return [
        row(prompt, verdict, order, **more)
        for prompt, pair in enumerate(pairs)
        for verdict, order in zip(pair, (FIRST, SECOND), strict=True)
    ]
