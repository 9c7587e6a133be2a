"""What must a backend do? Render a task's prompts and complete them, one seed per answer.

Prompts are lm-eval's own (few-shot layout, chat template, delimiters), whatever writes the answer. A completion says
why it ended, how long it was and whether its prompt lost its beginning. Grading is not here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, Protocol

from selectkd_eval.tasks.task import Task

Finish = Literal["eos", "stop", "length"]


@dataclass(frozen=True)
class Decoding:
    """How an answer is drawn. Temperature 0 is greedy; `stops` end the text and are not part of it."""

    max_new_tokens: int
    temperature: float
    top_p: float
    stops: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Asked(NamedTuple):
    """One answer to be written: the rendered prompt (text, or lm-eval's JSON of chat messages for a server)."""

    prompt: str
    seed: int
    decoding: Decoding


class Completion(NamedTuple):
    """One answer: its text before the end, tokens drawn (the end included; None where a server does not say), what
    ended it, whether the prompt lost its beginning, and the prompt's tokens. `error` instead of an answer."""

    text: str
    n_tokens: int | None
    finish: Finish
    prompt_cut: bool
    n_prompt_tokens: int | None = None
    error: str = ""


class Backend(Protocol):
    """A model that answers. `card` is the ModelCard as a dictionary; `identity` is everything about model and engine
    that can change an answer (fingerprint, adapter, tokenizer and chat-template digests, engine, versions, dtype),
    and goes into the key under which answers are kept; `seeds` is the sentence that a record prints on what a seed
    guarantees here; `chat` whether prompts go through a chat template, and `opens` whether a layout's prefix really
    opens the model's turn."""

    chat: bool
    opens: bool
    card: dict[str, Any]
    identity: dict[str, Any]

    @property
    def seeds(self) -> str: ...

    def room(self, asked: int) -> int:
        """The longest answer when `asked` tokens are wanted: the prompt needs room too."""

    def prompts(self, task: Task) -> list[str]:
        """One rendered prompt per problem, in the task's order."""

    def complete(self, asked: Sequence[Asked]) -> Iterator[tuple[int, Completion]]:
        """(place in `asked`, completion) as they are done; in any order, batch by batch."""
