"""What is one question to a judge, and what comes of it? The same for a server, a batch and a local model.

A task is one comparison, shown in one order, asked for the n-th time. A reply without a readable verdict is asked
about once more in the same conversation. Who is asked, and how, is not known here. A judgement has one form of row,
whether a judge was asked or a file was read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from judges import verdicts
from judges.pairing import Comparison
from judges.protocols import Message, Order, Protocol
from judges.replies import Reply
from judges.verdicts import Verdict

TRIES = 2  # the question, and one more for a reply without a readable verdict


@dataclass(frozen=True)
class Task:
    """One comparison in one order, and which asking of the judge it is."""

    comparison: Comparison
    order: Order
    sample: int = 0

    @property
    def key(self) -> str:
        """The key of its row."""
        return _key(self.comparison.prompt, self.comparison.seed, self.order, self.sample)


@dataclass(frozen=True)
class Outcome:
    """What came of a task. `replies` holds every reply, the readable one last.

    `asked` is False where a failure is not the server's: nothing was sent, or what was sent was too long for it.
    """

    task: Task
    verdict: Verdict
    replies: tuple[Reply, ...] = ()
    asked: bool = True

    def usage(self) -> dict[str, int]:
        """Tokens of all replies together."""
        total: Counter[str] = Counter()
        for reply in self.replies:
            total.update(reply.usage)
        return dict(total)


def question(task: Task, protocol: Protocol, replies: Sequence[Reply] = ()) -> list[Message]:
    """What to ask about a task, after the replies that held no readable verdict."""
    shown = task.comparison
    messages = protocol.messages(shown.text, shown.candidate, shown.baseline, task.order)
    for reply in replies:
        messages = protocol.messages_again(messages, verdicts.strip_reasoning(reply.text))
    return messages


def settled(task: Task, protocol: Protocol, replies: Sequence[Reply]) -> Outcome | None:
    """What comes of a task with these replies; None when it is to be asked about (again)."""
    if not replies:
        return None
    found = verdicts.verdict_in(replies[-1], protocol, task.order)
    if found.word == "unreadable" and protocol.ask_again and len(replies) < TRIES:
        return None
    return Outcome(task, found, tuple(replies))


def row(
    prompt: str, seed: int, order: Order, verdict: Verdict, *, sample: int = 0, task: str = "", **more: Any
) -> dict[str, Any]:
    """One row of a win-rate record: its key, what identifies it, the verdict, and `more`."""
    found = {
        "key": _key(prompt, seed, order, sample),
        "prompt": prompt,
        "seed": seed,
        "order": order,
        "sample": sample,
        "task": task,
        "verdict": verdict.word,
        "reason": verdict.reason,
        **more,
    }
    if verdict.preference is not None:
        found["preference"] = verdict.preference
    if verdict.word == "failed":
        found["error"] = verdict.reason
    return found


def _key(prompt: str, seed: int, order: Order, sample: int) -> str:
    return f"{prompt}/{seed}/{order}" + (f"/{sample}" if sample else "")
