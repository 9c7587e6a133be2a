"""How is a prompt written in a file? JSON and JSONL, gzipped or not, in the shapes that data sets have.

A field of text, a conversation of one turn, or a question with its user's turns as Spec-Bench and MT-bench have it. A
prompt is known by the hash of its text. Which sets and files there are is for `prompts` to say.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selectkd_eval.errors import InputError

PROMPT_FIELDS = ("prompt", "instruction", "question", "text")
ANSWER_FIELDS = ("answer", "output", "response", "completion", "generated_text")  # the last one is DistiLLM-2's
CONVERSATION_FIELDS = ("messages", "conversations")
TURNS = "turns"  # of a Spec-Bench or MT-bench question: what the user says, one text after the other
# MT-bench's own categories. Spec-Bench counts them as one task, beside five of its own.
MT_BENCH = {"writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"}
_HALF = re.compile("[\ud800-\udfff]")  # JSON can spell it, and no file can hold it


@dataclass(frozen=True)
class Prompt:
    """One prompt; `answer` is its reference text, if it has one."""

    text: str
    answer: str | None = None
    source: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return prompt_id(self.text)


def prompt_id(text: str) -> str:
    """The identity of a prompt: 16 hex digits of the sha256 of its text without surrounding blanks."""
    return hashlib.sha256(text.strip().encode()).hexdigest()[:16]


def later_turns(prompt: Prompt) -> list[str]:
    """What the user says after the model has answered the prompt, turn by turn; mostly nothing."""
    return list(prompt.meta.get(TURNS, ())[1:])


def as_prompt(row: dict[str, Any], where: str, source: str) -> Prompt:
    """One entry as a prompt: a text field, a conversation of one turn, or a question with its user's turns.

    `where` names the entry in an InputError, `source` is what the prompt belongs to unless the entry says more.

    An `input` beside an `instruction` follows it after a blank line, as in AlpacaFarm.
    """
    if isinstance(row.get(TURNS), list) and not any(name in row for name in PROMPT_FIELDS):
        return _question(row, where, source)
    if not any(name in row for name in (*PROMPT_FIELDS, *CONVERSATION_FIELDS)):
        row = {name.lower(): value for name, value in row.items()}  # WizardLM writes Instruction
    texts = [row[name] for name in PROMPT_FIELDS if isinstance(row.get(name), str)]
    turns = next((row[n] for n in (*CONVERSATION_FIELDS, *PROMPT_FIELDS) if isinstance(row.get(n), list)), None)
    answer = next((row[name] for name in ANSWER_FIELDS if isinstance(row.get(name), str)), None)
    text = next((text for text in texts if text.strip()), None)
    more = row.get("input")
    if isinstance(more, str) and more.strip() and text is not None and text == row.get("instruction"):
        text = f"{text}\n\n{more}"
    if text is None and turns is not None:
        text, reply = _single_turn(turns, where)
        answer = reply if answer is None else answer
    if text is None and texts:
        raise InputError(f"the prompt of {where} is empty: write it or remove the entry")
    if text is None:
        looked = (*PROMPT_FIELDS, *CONVERSATION_FIELDS, TURNS)
        found = ", ".join(f"{name}, which is no text" if name in looked else name for name in row)
        raise InputError(
            f"{where} has no prompt (looked for {', '.join(looked)}; found {found or 'nothing'}): rename its field"
        )
    _whole("prompt", text, where)
    _whole("answer", answer or "", where)
    return Prompt(text, answer, str(row.get("dataset") or source))


def _whole(what: str, written: str, where: str) -> None:
    if _HALF.search(written):
        raise InputError(f"the {what} of {where} holds half a character (\\ud800 to \\udfff alone): correct it")


def _question(row: dict[str, Any], where: str, source: str) -> Prompt:
    """An entry of Spec-Bench or MT-bench: `turns`, `category`, `question_id`.

    Its `reference`, a list of some answers to some turns, is no answer of anybody's and is left out.
    """
    turns = row[TURNS]
    if not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise InputError(f"the turns of {where} must be texts, at least one and none empty: write them")
    for turn in turns:
        _whole("prompt", turn, where)
    category = str(row.get("category") or source)
    meta = {TURNS: list(turns), "category": category, "question_id": row.get("question_id")}
    return Prompt(turns[0], None, "mt_bench" if category in MT_BENCH else category, meta)


_ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's words


def _single_turn(turns: Sequence[Any], where: str) -> tuple[str, str | None]:
    """The user's text of a conversation of one turn, and the reply if it holds one."""
    said = [turn if isinstance(turn, dict) else {} for turn in turns]
    roles = [str(turn.get("role") or turn.get("from") or "?") for turn in said]
    roles = [_ROLES.get(role, role) for role in roles]
    texts = [turn.get("content") or turn.get("value") for turn in said]
    if roles not in (["user"], ["user", "assistant"]) or not all(isinstance(text, str) for text in texts):
        raise InputError(
            f"{where} is a conversation of {', '.join(roles) or 'no turns'}, and only one user turn, with or without "
            f"its reply, is a prompt here: split it, and give a system prompt with --system"
        )
    if not str(texts[0]).strip():
        raise InputError(f"the prompt of {where} is empty: write it or remove the entry")
    return str(texts[0]), str(texts[1]) if len(texts) > 1 else None


def read_json_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a .json list or a .jsonl file, gzipped or not; an InputError names the line that is broken."""
    try:
        text = uncompressed(path).decode("utf-8-sig")  # Windows puts a mark at the front
    except UnicodeDecodeError as error:
        raise _unreadable(path, error) from None
    if text.lstrip().startswith("["):
        rows = _parse_json(text, f"{path}")
    else:
        rows = [_parse_json(line, f"line {n} of {path}") for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise InputError(f"entry {number} of {path} is {type(row).__name__}, not a JSON object: one per prompt")
    return list(rows)


def uncompressed(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"cannot read {path} as UTF-8 text ({error}): give a .json or .jsonl file")


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at")
        raise InputError(f"{where} is not valid JSON ({what} at column {error.colno}): mend or remove it") from None
    except (RecursionError, ValueError):
        raise InputError(f"{where} is nested too deeply or holds a number of thousands of digits: mend it") from None
