"""What is asked, and how does a model see it? Prompt sets, and the one place where text becomes tokens.

A prompt is known by the hash of its text: records are joined by it, training text is de-duplicated by it. Sets
come by name (the embedded families, and those of `prompt_sets`), from a JSON or JSONL file, or from an `answer`
record, whose answers then are the reference text.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from selectkd_eval import prompt_sets, records
from selectkd_eval.errors import InputError, choose
from selectkd_eval.prompt_sets import PROMPT_SETS

PROMPT_FIELDS = ("prompt", "instruction", "question", "text")
ANSWER_FIELDS = ("answer", "output", "response", "completion", "generated_text")  # the last one is DistiLLM-2's
CONVERSATION_FIELDS = ("messages", "conversations")

EMBEDDED_SETS = {
    f"{family}{part}": f"{family}{part or ':test'}"
    for family in ("mini-gsm", "mini-stories")
    for part in ("", ":test", ":labelled", ":train", ":validation")
}
NAMED = (*EMBEDDED_SETS, *PROMPT_SETS)
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
            digest.update(json.dumps([prompt.text, prompt.answer], ensure_ascii=False).encode())
        return digest.hexdigest()

    def facts(self) -> dict[str, Any]:
        """For a record's header."""
        files = {"files": dict(self.files)} if self.files else {}
        return {"name": self.name, "sha256": self.sha256, "n": len(self.prompts)} | files


def prompt_id(text: str) -> str:
    """The identity of a prompt: 16 hex digits of the sha256 of its text without surrounding blanks."""
    return hashlib.sha256(text.strip().encode()).hexdigest()[:16]


def load_prompts(name: str, limit: int | None = None, prompt_dir: Path | None = None) -> PromptSet:
    """The prompts of a named set, a file, an answer record, or several of these joined by commas.

    `limit` keeps the first N of each. Prompts with the same text are kept once, or once per answer where their
    answers differ. Of several sets each prompt's `source` is its set's name; in a single one it is what the set says
    of it (AlpacaEval: its data set). `prompt_dir` holds the files of sets that are not embedded. When such a file is
    not the published one, a note on stderr says so.
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
        found += [replace(prompt, source=_set_name(part)) for prompt in own] if whole else own
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
    sha256 = prompt_sets.digest(_uncompressed(path))
    rows = read_json_rows(path)
    prompts = [_prompt(row, f"entry {number} of {path}", name) for number, row in enumerate(rows, start=1)]
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
        yield _prompt(row, f"entry {number} of {path}", path.name)


def _prompt(row: dict[str, Any], where: str, source: str) -> Prompt:
    """One entry as a prompt: a text field, or a conversation of one turn.

    An `input` beside an `instruction` follows it after a blank line, as in AlpacaFarm.
    """
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
        looked = (*PROMPT_FIELDS, *CONVERSATION_FIELDS)
        found = ", ".join(f"{name}, which is no text" if name in looked else name for name in row)
        raise InputError(
            f"{where} has no prompt (looked for {', '.join(looked)}; found {found or 'nothing'}): rename its field"
        )
    for what, written in (("prompt", text), ("answer", answer or "")):
        if _HALF.search(written):
            raise InputError(f"the {what} of {where} holds half a character (\\ud800 to \\udfff alone): correct it")
    return Prompt(text, answer, str(row.get("dataset") or source))


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
        text = _uncompressed(path).decode("utf-8-sig")  # Windows puts a mark at the front
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


def _uncompressed(path: Path) -> bytes:
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
