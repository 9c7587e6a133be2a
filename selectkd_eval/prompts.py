"""What is asked, and how does a model see it? Prompt sets, and the one place where text becomes tokens.

A prompt is known by the hash of its text: records are joined by it, training text is de-duplicated by it. Sets
come by name (the embedded families, and those of `prompt_sets`), from a JSON or JSONL file (`prompt_files`), or from an
`answer` record, whose answers then are the reference text.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from selectkd_eval import prompt_sets, records
from selectkd_eval.errors import InputError, choose
from selectkd_eval.prompt_files import (
    TURNS,
    Prompt,
    as_prompt,
    later_turns,
    prompt_id,  # noqa: F401  where a prompt's identity is asked for
    read_json_rows,
    uncompressed,
)
from selectkd_eval.prompt_sets import PROMPT_SETS

EMBEDDED_SETS = {
    f"{family}{part}": f"{family}{part or ':test'}"
    for family in ("mini-gsm", "mini-stories")
    for part in ("", ":test", ":labelled", ":train", ":validation")
}
NAMED = (*EMBEDDED_SETS, *PROMPT_SETS)


@dataclass(frozen=True)
class PromptSet:
    """A named list of prompts and the digest of all its text. `files` holds the sha256 of every named set's file."""

    name: str
    prompts: list[Prompt]
    files: dict[str, str] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for prompt in self.prompts:
            said = [prompt.text, prompt.answer, *later_turns(prompt)]
            digest.update(json.dumps(said, ensure_ascii=False).encode())
        return digest.hexdigest()

    def facts(self) -> dict[str, Any]:
        """For a record's header."""
        files = {"files": dict(self.files)} if self.files else {}
        return {"name": self.name, "sha256": self.sha256, "n": len(self.prompts)} | files


def unasked(prompts: Iterable[Prompt]) -> str:
    """A sentence on the turns that are left out where only the prompts themselves are asked; empty if none is."""
    count = sum(len(later_turns(prompt)) for prompt in prompts)
    return f"note: {count} later turns of conversations are not asked, only the first of each" if count else ""


def load_prompts(name: str, limit: int | None = None, prompt_dir: Path | None = None) -> PromptSet:
    """The prompts of a named set, a file, an answer record, or several of these joined by commas.

    `limit` keeps the first N of each, and of each task where questions name their task (Spec-Bench). Prompts with the
    same text are kept once, or once per answer where their answers differ. Of several sets each prompt's `source` is
    its set's name; in a single one, and wherever questions name their task, it is what the set says of it (AlpacaEval:
    its data set). `prompt_dir` holds the files of sets that are not embedded. When such a file is not the published
    one, a note on stderr says so.
    """
    parts = [part.strip() for part in name.split(",") if part.strip()]
    if not parts:
        raise InputError("the prompt set has no name: give a file, or one of " + ", ".join(NAMED))
    found, files = [], {}
    for part in parts:
        prompts, sha256 = _load_one(part, prompt_dir)
        own = list(_unique(prompts, limit))
        if sha256:
            files[part] = sha256
        # The embedded prompts name their family already.
        whole = len(parts) > 1 and part not in EMBEDDED_SETS
        named = _set_name(part)
        found += [replace(prompt, source=named) if whole and TURNS not in prompt.meta else prompt for prompt in own]
    if not found:
        raise InputError(f"{name} holds no prompts: give a file with one per line, or a named set")
    return PromptSet(name, list(_unique(found, None)), files)


def _set_name(part: str) -> str:
    return part if part in NAMED else Path(part).name


def _load_one(name: str, prompt_dir: Path | None) -> tuple[Iterable[Prompt], str]:
    """Its prompts and, where its file is one of `prompt_sets`, the sha256 of that."""
    if name in EMBEDDED_SETS:
        from selectkd_eval.demo.corpus import examples

        return [
            Prompt(row["prompt"], row.get("answer"), row["source"], row.get("meta", {}))
            for row in examples(EMBEDDED_SETS[name])
        ], ""
    if name in PROMPT_SETS:
        return _named_set(name, prompt_sets.locate(name, prompt_dir))
    path = Path(name)
    if path.is_file():
        return _from_file(path), ""
    if path.is_dir():
        raise InputError(f"{name} is a directory where a prompt file is needed: name a .jsonl or .json file in it")
    if path.suffix or "/" in name:
        raise InputError(f"there is no prompt file {name}: give a .jsonl or .json file, or a named set")
    choose(name, dict.fromkeys(NAMED), "prompt set")
    return [], ""


def _named_set(name: str, path: Path) -> tuple[list[Prompt], str]:
    sha256 = prompt_sets.digest(uncompressed(path))
    rows = read_json_rows(path)
    prompts = [as_prompt(row, f"entry {number} of {path}", name) for number, row in enumerate(rows, start=1)]
    for note in prompt_sets.notes(name, sha256, PromptSet(name, prompts).sha256, len(prompts)):
        print(note, file=sys.stderr)
    return prompts, sha256


def _from_file(path: Path) -> Iterator[Prompt]:
    if records.is_record(path):
        for row in records.read(path, verb="answer").good:
            source = str(row.get("source") or path)
            yield Prompt(row["text"], row["answer"], source, {"seed": row["seed"], "finish": row["finish"]})
        return
    for number, row in enumerate(read_json_rows(path), start=1):
        yield as_prompt(row, f"entry {number} of {path}", path.name)


def _unique(prompts: Iterable[Prompt], limit: int | None) -> Iterator[Prompt]:
    seen: set[tuple[str, str | None]] = set()
    kept: Counter[str] = Counter()
    for prompt in prompts:
        task = prompt.source if TURNS in prompt.meta else ""
        if limit is not None and kept[task] >= limit:
            if not task:
                return
            continue
        if (key := (prompt.id, prompt.answer)) not in seen:
            seen.add(key)
            kept[task] += 1
            yield prompt


def render(tokenizer: Any, text: str) -> str:
    """The prompt as the model reads it: in its chat template when it has one, as it is when it has none."""
    return render_conversation(tokenizer, [{"role": "user", "content": text}])


def render_conversation(tokenizer: Any, messages: Sequence[dict[str, str]]) -> str:
    """A conversation as the model reads it: in its chat template, open for the assistant's turn.

    A template that takes no system prompt (Gemma's) gets it at the head of the first user turn. Without a template
    the texts follow one another with a blank line between, which is all that a base model can be told.
    """
    if not tokenizer.chat_template:
        return "\n\n".join(message["content"] for message in messages)
    if messages[0]["role"] == "system" and not takes_system(tokenizer, messages[0]["content"]):
        system, first = messages[0]["content"], messages[1]
        messages = [{**first, "content": f"{system}\n\n{first['content']}"}, *messages[2:]]
    return _templated(tokenizer, messages)


def takes_system(tokenizer: Any, system: str) -> bool:
    """Whether the chat template shows a system prompt: some refuse it, and some leave it out in silence."""
    from jinja2 import TemplateError

    try:
        turns = [{"role": "system", "content": system}, {"role": "user", "content": "?"}]
        return system.strip() in _templated(tokenizer, turns)
    except TemplateError:
        return False


def _templated(tokenizer: Any, messages: Sequence[dict[str, str]]) -> str:
    return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))


def prompt_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a rendered prompt. A chat template writes its own special tokens; otherwise the tokenizer does."""
    return rendered_ids(tokenizer, render(tokenizer, text))


def rendered_ids(tokenizer: Any, rendered: str) -> list[int]:
    """Token ids of what `render` or `render_conversation` made, without an end token behind them."""
    ids = tokenizer(rendered, add_special_tokens=not tokenizer.chat_template)["input_ids"]
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
