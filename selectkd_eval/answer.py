"""What does a model answer? Its answers to a prompt set, as a record that a judge, a trainer or a person can read.

The paper's win rates compare such answers (Table 1, decoded as DistiLLM-2 does: temperature 0.8, top-p 0.95), and
SeqKD trains on a teacher's. A local model replies through `local_chat` (transformers or vLLM); any OpenAI-compatible
server through its chat endpoint. Every (prompt, seed) has its own sampling seed, so an answer is the same with another
batch size, with --limit, and after a resume (a server may promise less: it is sent the seed). What a thinking model
writes before its answer is kept beside it, as `reasoning`.

It judges nothing: see `winrate` and `passk`.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from tqdm import tqdm

from selectkd_eval import reasoning
from selectkd_eval.errors import InputError, commonest
from selectkd_eval.prompts import Prompt, load_prompts, unasked
from selectkd_eval.records import Writer, open_record
from selectkd_eval.served import Reply, Served
from selectkd_eval.terminal import visible
from selectkd_eval.verbs import AnswerOptions


class Question(NamedTuple):
    """One prompt under one seed."""

    prompt: Prompt
    seed: int

    @property
    def key(self) -> str:
        return f"{self.prompt.id}/{self.seed}"

    def messages(self, system: str) -> list[dict[str, str]]:
        """The conversation that the model is to continue."""
        before = [{"role": "system", "content": system}] if system else []
        return [*before, {"role": "user", "content": self.prompt.text}]

    def draw_seed(self, run_seed: int) -> int:
        """31 bits (what every server takes) that depend on the prompt and the seeds, not on what is asked beside it."""
        text = f"{self.prompt.id}/{run_seed}/{self.seed}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1


def run(options: AnswerOptions) -> int:
    """Answer every prompt under every seed; prints the record's path and one line. Exit code 1 if some failed."""
    _check(options)
    prompts = load_prompts(options.prompts, options.limit, options.prompt_dir)
    if note := unasked(prompts.prompts):
        print(note, file=sys.stderr)
    # Sets with several reference answers to one prompt hold it several times, and two sets may share one; it is asked
    # once, and belongs to the first.
    asked: dict[str, Prompt] = {}
    for prompt in prompts.prompts:
        asked.setdefault(prompt.id, prompt)
    questions = [Question(prompt, seed) for seed in options.seeds for prompt in asked.values()]
    source = _Server(options) if options.base_url else _Local(options)
    facts = {
        "model": source.card,
        "prompts": prompts.facts(),
        "generation": source.generation,
        "engine": {**source.engine, "reasoning": reasoning.FACT},
    }
    inputs = {"model": source.card["fingerprint"], "prompts": prompts.sha256}
    with open_record("answer", options, inputs=inputs, facts=facts) as record:
        # A finished record with failures in it is gone through again: only its failed prompts are asked.
        pending = [question for question in questions if question.key not in record.done]
        failed = _ask(source, pending, record, total=len(questions))
        rows = [record.done[question.key] for question in questions if question.key in record.done]
        if rows:
            record.finish()
        print(record.path)
        print(_line(rows, failed))
    return 1 if failed else 0


def _ask(source: _Local | _Server, pending: list[Question], record: Writer, total: int) -> int:
    """Write a row per reply as it comes; returns how many are errors."""
    reasons: Counter[str] = Counter()
    with tqdm(total=total, initial=total - len(pending), desc="answer", unit="answer", file=sys.stderr) as bar:
        for question, reply in source.replies(pending) if pending else ():
            prompt = question.prompt
            row: dict[str, Any] = {"prompt": prompt.id, "text": prompt.text, "seed": question.seed}
            row["source"] = prompt.source
            if reply.error:
                reasons[reply.error] += 1
                record.write(question.key, **row, error=reply.error)
            else:
                row |= {"answer": reply.text, "finish": reply.finish, "n_tokens": reply.n_tokens}
                row |= {"reasoning": reply.reasoning} if reply.reasoning else {}
                record.write(question.key, **row)
            bar.update()
    if reasons:
        why, often = commonest(reasons.elements())
        others = f" ({often} of them; the record has the others' reasons)" if often < reasons.total() else ""
        said = f"{reasons.total()} of {len(pending)} prompts failed: {visible(why)}{others}"
        print(f"{said}; run the same command again to ask only those again", file=sys.stderr)
    return reasons.total()


def _line(rows: list[dict[str, Any]], failed: int) -> str:
    lengths = [row["n_tokens"] for row in rows if row["n_tokens"] is not None]
    mean = f"{sum(lengths) / len(lengths):.1f}" if lengths else "—"
    truncated = sum(row["finish"] == "length" for row in rows)
    said = f"{len(rows)} answers, {failed} failed, {truncated} cut at the token limit, {mean} tokens on average"
    # An empty answer loses every comparison: whoever wrote it should know.
    empty = sum(not row["answer"].strip() for row in rows)
    return said + (f", {empty} empty" if empty else "")


def _check(options: AnswerOptions) -> None:
    if options.temperature == 0 and len(options.seeds) > 1:
        raise InputError(
            f"greedy decoding (--temperature 0) writes the same answer for each of the {len(options.seeds)} seeds: "
            f"give one seed, or a temperature above 0"
        )
    if options.temperature < 0:
        raise InputError(f"--temperature must not be negative, but {options.temperature} was given")
    if not 0 < options.top_p <= 1:
        raise InputError(f"--top-p lies in (0, 1], but {options.top_p} was given")
    for flag, value in (("--max-new-tokens", options.max_new_tokens), ("--batch-size", options.batch_size)):
        if value < 1:
            raise InputError(f"{flag} is a count and must be at least 1, but {value} was given")


class _Local:
    """A model on this machine."""

    def __init__(self, options: AnswerOptions) -> None:
        from selectkd_eval import local_chat

        local_chat.check_system(options.system, options.model)
        self.options = options
        how = (options.device, options.threads, options.batch_size, "answer --backend vllm")
        self.chat = local_chat.open_chat(options.backend, options.model, *how)
        self.card, self.engine = self.chat.card, self.chat.facts
        self.decoding = local_chat.Decoding(self.chat.room(options.max_new_tokens), options.temperature, options.top_p)
        self.generation = {
            "backend": self.chat.facts["engine"],
            **self.decoding._asdict(),
            "chat_template": self.chat.facts["chat_template"],
            **_system_fact(options),
        }

    def replies(self, questions: list[Question]) -> Iterator[tuple[Question, Reply]]:
        """Replies batch by batch; a prompt that leaves no room for an answer is an error, never cut in silence."""
        from selectkd_eval.local_chat import Asked

        asked = [Asked(one.messages(self.options.system), one.draw_seed(self.options.seed)) for one in questions]
        for place, reply in self.chat.replies(asked, self.decoding):
            yield questions[place], reply


class _Server:
    """A model behind an OpenAI-compatible server."""

    def __init__(self, options: AnswerOptions) -> None:
        self.options = options
        self.served = Served(
            options.base_url, options.model, options.key_variable, options.batch_size, "answer --base-url"
        )
        self.card = self.served.card
        self.engine = {"engine": "OpenAI-compatible server"}
        self.generation = {
            "backend": "OpenAI-compatible server",
            "max_new_tokens": options.max_new_tokens,
            "temperature": options.temperature,
            "top_p": options.top_p,
            **_system_fact(options),
        }

    def replies(self, questions: list[Question]) -> Iterator[tuple[Question, Reply]]:
        """Replies as they arrive. A refusal that asking again cannot mend stops the run, after what is in flight."""
        for place, reply in self.served.replies(self._request(question) for question in questions):
            # A server without a parser of its own leaves the reasoning in the text.
            parts = reasoning.split(reply.text, None)
            thoughts = "\n".join(filter(None, (reply.reasoning, parts.reasoning)))
            # Servers have more words than two for why a text ended ("content_filter" leaves none and is an error).
            finish = "length" if reply.finish == "length" else "stop"
            yield questions[place], replace(reply, text=parts.answer, finish=finish, reasoning=thoughts)

    def _request(self, question: Question) -> dict[str, Any]:
        return {
            "prompt": question.messages(self.options.system),
            "max_tokens": self.options.max_new_tokens,
            "temperature": self.options.temperature,
            "top_p": self.options.top_p,
            "seed": question.draw_seed(self.options.seed),
        }


def _system_fact(options: AnswerOptions) -> dict[str, str]:
    return {"system": options.system} if options.system else {}
