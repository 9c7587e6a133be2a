"""What is asked, and how does a model see it? Prompt sets, and the one place where text becomes tokens.

A prompt is known by the hash of its text: records are joined by it, training text is de-duplicated by it. Sets
come by name (the embedded families), from a JSON or JSONL file, or from an `answer` record, whose answers then
are the reference text.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selectkd_eval import records
from selectkd_eval.errors import InputError, choose

PROMPT_FIELDS = ("prompt", "instruction", "question", "text")
ANSWER_FIELDS = ("answer", "output", "response", "completion")

EMBEDDED_SETS = {
    f"{family}{part}": f"{family}{part or ':test'}"
    for family in ("mini-gsm", "mini-stories")
    for part in ("", ":test", ":labelled", ":train", ":validation")
}


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


@dataclass(frozen=True)
class PromptSet:
    """A named list of prompts and the digest of all its text."""

    name: str
    prompts: list[Prompt]

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for prompt in self.prompts:
            digest.update(json.dumps([prompt.text, prompt.answer], ensure_ascii=False).encode())
        return digest.hexdigest()

    def facts(self) -> dict[str, Any]:
        """For a record's header."""
        return {"name": self.name, "sha256": self.sha256, "n": len(self.prompts)}


def prompt_id(text: str) -> str:
    """The identity of a prompt: 16 hex digits of the sha256 of its text without surrounding blanks."""
    return hashlib.sha256(text.strip().encode()).hexdigest()[:16]


def load_prompts(name: str, limit: int | None = None) -> PromptSet:
    """The prompts of a named set, a file, an answer record, or several of these joined by commas.

    `limit` keeps the first N of each. Prompts with the same text are kept once.
    """
    parts = [part.strip() for part in name.split(",") if part.strip()]
    if not parts:
        raise InputError("the prompt set has no name: give a file, or one of " + ", ".join(EMBEDDED_SETS))
    found = [prompt for part in parts for prompt in _unique(_load_one(part), limit)]
    if not found:
        raise InputError(f"{name} holds no prompts: give a file with one per line, or a named set")
    return PromptSet(name, list(_unique(found, None)))


def _load_one(name: str) -> Iterable[Prompt]:
    if name in EMBEDDED_SETS:
        from selectkd_eval.demo.corpus import examples

        return [
            Prompt(row["prompt"], row.get("answer"), row["source"], row.get("meta", {}))
            for row in examples(EMBEDDED_SETS[name])
        ]
    path = Path(name)
    if path.is_file():
        return _from_file(path)
    if path.is_dir():
        raise InputError(f"{name} is a directory where a prompt file is needed: name a .jsonl or .json file in it")
    if path.suffix or "/" in name:
        raise InputError(f"there is no prompt file {name}: give a .jsonl or .json file, or a named set")
    choose(name, EMBEDDED_SETS, "prompt set")
    return []


def _from_file(path: Path) -> Iterator[Prompt]:
    if _is_record(path):
        for row in records.read(path, verb="answer").good:
            yield Prompt(row["text"], row["answer"], str(path), {"seed": row["seed"], "finish": row["finish"]})
        return
    rows = read_json_rows(path)
    for number, row in enumerate(rows, start=1):
        texts = [row[name] for name in PROMPT_FIELDS if isinstance(row.get(name), str)]
        text = next((text for text in texts if text.strip()), None)
        if texts and text is None:
            raise InputError(f"the prompt of entry {number} of {path} is empty: write it or remove the entry")
        if text is None:
            raise InputError(
                f"entry {number} of {path} has no prompt (looked for {', '.join(PROMPT_FIELDS)}; found "
                f"{', '.join(map(str, row)) or 'nothing'}): rename its field"
            )
        answer = next((row[name] for name in ANSWER_FIELDS if isinstance(row.get(name), str)), None)
        yield Prompt(text, answer, str(row.get("dataset") or path.name))


def _is_record(path: Path) -> bool:
    with path.open("rb") as file:
        first = file.readline()
    return first.startswith(b"{") and b'"type":"header"' in first


def read_json_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a .json list or a .jsonl file, gzipped or not; an InputError names the line that is broken."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = raw.decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path} as UTF-8 text ({error}): give a .json or .jsonl file") from None
    if text.lstrip().startswith("["):
        rows = _parse_json(text, f"{path}")
    else:
        rows = [_parse_json(line, f"line {n} of {path}") for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise InputError(f"entry {number} of {path} is {type(row).__name__}, not a JSON object: one per prompt")
    return list(rows)


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at")
        raise InputError(f"{where} is not valid JSON ({what} at column {error.colno}): mend or remove it") from None


def _unique(prompts: Iterable[Prompt], limit: int | None) -> Iterator[Prompt]:
    seen: set[tuple[str, str | None]] = set()
    for prompt in prompts:
        if limit is not None and len(seen) >= limit:
            return
        if (key := (prompt.id, prompt.answer)) not in seen:
            seen.add(key)
            yield prompt


def render(tokenizer: Any, text: str) -> str:
    """The prompt as the model reads it: in its chat template when it has one, as it is when it has none."""
    if not tokenizer.chat_template:
        return text
    messages = [{"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def prompt_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a rendered prompt. A chat template writes its own special tokens; otherwise the tokenizer does."""
    ids = tokenizer(render(tokenizer, text), add_special_tokens=not tokenizer.chat_template)["input_ids"]
    return list(ids[:-1]) if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else list(ids)


def completion_text(tokenizer: Any, answer: str) -> str:
    """The answer as the model writes it: without a chat template it follows the prompt after a space."""
    return answer if tokenizer.chat_template or answer[:1].isspace() else f" {answer}"


def answer_text(tokenizer: Any, completion: str) -> str:
    """What a model wrote, as an answer: without the space that separates a base model's completion from its prompt."""
    return completion if tokenizer.chat_template else completion.removeprefix(" ")


def encode_example(tokenizer: Any, prompt: str, answer: str, max_length: int) -> tuple[list[int], list[bool]]:
    """Prompt and answer as one sequence, and which tokens are the response.

    The end token belongs to the response: a student that never learns to stop is worth little. Tokens beyond
    `max_length` are cut from the answer's end. Returns (ids, response), both of the same length.
    """
    before = prompt_ids(tokenizer, prompt)
    after = tokenizer(completion_text(tokenizer, answer), add_special_tokens=False)["input_ids"] if answer else []
    ids = (before + list(after) + [tokenizer.eos_token_id])[:max_length]
    return ids, [position >= len(before) for position in range(len(ids))]
