"""What did the judge say? One word per comparison, never a number.

`candidate`, `baseline` and `tie` are verdicts. `unreadable` is a reply that holds none, `truncated` one that was cut
by its token limit, `filtered` one that a content filter stopped, `failed` a comparison without any reply. The last
label wins, because an explanation may quote the others; when the last one was not offered ("[[A]] ... [[D]]") the
reply is unreadable, because to go back to an earlier label would be a guess. A reply that was cut off or filtered is
not searched for labels, and what a judge thinks before it answers does not count.

How a reply is read depends on the protocol: by its last label, as a ranking (AlpacaEval 1), or by the probabilities
of its first token (AlpacaEval 2). Text is searched with patterns, never evaluated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from judges.marks import LABEL, RANKED, folded
from judges.protocols import Order, Position, Protocol
from judges.replies import FILTERED, Reply
from selectkd_eval.reasoning import TAGS

Word = Literal["candidate", "baseline", "tie", "unreadable", "truncated", "filtered", "failed"]

_REASONING = re.compile(
    rf"<({TAGS})>.*?(?:</\1>|\Z)|\u25c1think\u25b7.*?(?:\u25c1/think\u25b7|\Z)", re.IGNORECASE | re.DOTALL
)
_REASONING_END = re.compile(rf"\A.*(?:</(?:{TAGS})>|\u25c1/think\u25b7)", re.IGNORECASE | re.DOTALL)
_ENTRY = re.compile(r"\{[^{}]*\}")
_RANK = re.compile(r"""(["'])rank\1\s*:\s*(["']?)([0-9]+)\2\s*[,}]""")


@dataclass(frozen=True)
class Verdict:
    """A word; for an unreadable or failed comparison the reason; for a judge of probabilities its `preference`.

    `preference` is the judge's probability in [0, 1] that the candidate's answer is the better one.
    """

    word: Word
    reason: str = ""
    preference: float | None = None


_CUT_OFF: dict[str, Verdict] = {
    "length": Verdict("truncated", "cut by the token limit"),
    "max_tokens": Verdict("truncated", "cut by the token limit"),
    "insufficient_system_resource": Verdict("truncated", "the server ran out of resources"),  # DeepSeek's word
    "content_filter": Verdict("filtered", FILTERED),
    "sensitive": Verdict("filtered", FILTERED),
}


def verdict_in(said: Reply, protocol: Protocol, order: Order) -> Verdict:
    """The verdict in a reply, by the protocol's reader, with positions turned back into candidate and baseline."""
    if protocol.reader == "first-token-probability":
        return _by_first_token(said, protocol.labels, order)
    return read(said.text, said.finish_reason, protocol.labels, order, protocol.reader)


def strip_reasoning(text: str) -> str:
    """The reply without its thinking, closed or not; also where the server swallowed the opening tag."""
    return _REASONING_END.sub("", _REASONING.sub("", text)).strip()


def read(
    text: str,
    finish_reason: str | None,
    labels: Mapping[str, Position],
    order: Order,
    reader: Literal["label", "ranking"] = "label",
) -> Verdict:
    """The verdict in the text of a reply. `labels` maps what was offered to the shown position that it names."""
    if finish_reason in _CUT_OFF:
        return _CUT_OFF[finish_reason]
    text = strip_reasoning(text)
    if not text:
        return Verdict("unreadable", "empty reply")
    found = _FINDERS[reader](folded(text), labels)
    return found if isinstance(found, Verdict) else _turned_back(found, order)


def without_judge(candidate: str, baseline: str) -> Verdict | None:
    """The verdict that needs no judge: identical answers tie, an empty answer loses. None when one is needed."""
    candidate, baseline = candidate.strip(), baseline.strip()
    if candidate == baseline:
        return Verdict("tie", "identical answers")
    if not candidate:
        return Verdict("baseline", "empty candidate answer")
    if not baseline:
        return Verdict("candidate", "empty baseline answer")
    return None


def ranking(text: str) -> dict[str, int]:
    """The ranks in a reply's list of {'model': ..., 'rank': ...}, of the last entry for each model."""
    ranks = {}
    for entry in _ENTRY.findall(text):
        model, rank = RANKED.search(entry), _RANK.search(entry)
        if model and rank:
            ranks["model" + model["label"]] = int(rank[3])
    return ranks


def first_share(logprobs: Mapping[str, float], first: str, second: str) -> float | None:
    """P(first) / (P(first) + P(second)) for two tokens; None when neither is among the likely ones.

    A token that is not listed counts as impossible, as AlpacaEval's weighted judge has it.
    """
    one, two = (logprobs.get(token, -math.inf) for token in (first, second))
    if one == two == -math.inf:
        return None
    difference = two - one
    return 0.0 if difference > 700 else 1 / (1 + math.exp(difference))


def _last_label(text: str, labels: Mapping[str, Position]) -> Position | Verdict:
    found = [match["label"].upper() for match in LABEL.finditer(text)]
    if not found:
        return Verdict("unreadable", "no label")
    if found[-1] not in labels:
        return Verdict("unreadable", f"label {found[-1]} was not offered")
    return labels[found[-1]]


def _ranked_first(text: str, labels: Mapping[str, Position]) -> Position | Verdict:
    ranks = ranking(text)
    if not ranks:
        return Verdict("unreadable", "no ranking")
    if sorted(ranks.values()) != list(range(1, len(labels) + 1)) or set(ranks) != set(labels):
        return Verdict("unreadable", "no ranking of the two answers as 1 and 2")
    return labels[min(ranks, key=ranks.__getitem__)]


_FINDERS: dict[str, Callable[[str, Mapping[str, Position]], Position | Verdict]] = {
    "label": _last_label,
    "ranking": _ranked_first,
}


def _by_first_token(said: Reply, labels: Mapping[str, Position], order: Order) -> Verdict:
    # The one token that is asked for always ends at its limit; only a filter is an end of another kind.
    cut = _CUT_OFF.get(said.finish_reason or "")
    if cut and cut.word == "filtered":
        return cut
    if not said.logprobs:
        return Verdict("unreadable", "no log-probabilities")
    first, second = (next(label for label, place in labels.items() if place == where) for where in ("first", "second"))
    share = first_share(said.logprobs[0], first, second)
    if share is None:
        return Verdict("unreadable", f"neither {first} nor {second} among the likely tokens")
    preference = share if order == "candidate-first" else 1 - share
    word: Any = "tie" if preference == 0.5 else "candidate" if preference > 0.5 else "baseline"
    return Verdict(word, preference=preference)


def _turned_back(position: Position, order: Order) -> Verdict:
    if position == "tie":
        return Verdict("tie")
    return Verdict("candidate" if (position == "first") == (order == "candidate-first") else "baseline")
