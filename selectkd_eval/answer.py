"""What does a model answer? Its answers to a prompt set, as a record that a judge, a trainer or a person can read.

The paper's win rates compare such answers (Table 1, decoded as DistiLLM-2 does: temperature 0.8, top-p 0.95), and
SeqKD trains on a teacher's. A local model decodes through `generate`; any OpenAI-compatible server answers through
its chat endpoint. Every (prompt, seed) has its own sampling seed, so an answer is the same with another batch size,
with --limit, and after a resume (a server may promise less: it is sent the seed).

It judges nothing: see `winrate` and `passk`.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tqdm import tqdm

from selectkd_eval import environment
from selectkd_eval.errors import InputError, SetupError
from selectkd_eval.prompts import Prompt, answer_text, load_prompts, prompt_ids
from selectkd_eval.records import Writer, open_record
from selectkd_eval.verbs import AnswerOptions


class Question(NamedTuple):
    """One prompt under one seed."""

    prompt: Prompt
    seed: int

    @property
    def key(self) -> str:
        return f"{self.prompt.id}/{self.seed}"

    def draw_seed(self, run_seed: int) -> int:
        """31 bits (what every server takes) that depend on the prompt and the seeds, not on what is asked beside it."""
        text = f"{self.prompt.id}/{run_seed}/{self.seed}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1


@dataclass(frozen=True)
class Reply:
    """An answer, why it ended and its length in tokens (None: the server did not say); or the error instead."""

    answer: str = ""
    finish: str = ""
    n_tokens: int | None = None
    error: str = ""


def run(options: AnswerOptions) -> int:
    """Answer every prompt under every seed; prints the record's path and one line. Exit code 1 if some failed."""
    _check(options)
    prompts = load_prompts(options.prompts, options.limit)
    # Sets with several reference answers to one prompt hold it several times; it is asked once.
    asked = list({prompt.id: prompt for prompt in prompts.prompts}.values())
    questions = [Question(prompt, seed) for seed in options.seeds for prompt in asked]
    source = _Server(options) if options.base_url else _Local(options)
    facts = {"model": source.card, "prompts": prompts.facts(), "generation": source.generation}
    inputs = {"model": source.card["fingerprint"], "prompts": prompts.sha256}
    with open_record("answer", options, inputs=inputs, facts=facts) as record:
        # A finished record with failures in it is gone through again: only its failed prompts are asked.
        pending = [question for question in questions if question.key not in record.done]
        failed = _ask(source, pending, options, record, total=len(questions))
        rows = [record.done[question.key] for question in questions if question.key in record.done]
        if rows:
            record.finish()
        print(record.path)
        print(_line(rows, failed))
    return 1 if failed else 0


def _ask(source: _Local | _Server, pending: list[Question], options: AnswerOptions, record: Writer, total: int) -> int:
    """Write a row per reply as it comes; returns how many are errors."""
    failed = 0
    with tqdm(total=total, initial=total - len(pending), desc="answer", unit="answer", file=sys.stderr) as bar:
        for question, reply in source.replies(pending) if pending else ():
            row: dict[str, Any] = {"prompt": question.prompt.id, "text": question.prompt.text, "seed": question.seed}
            if reply.error:
                failed += 1
                record.write(question.key, **row, error=reply.error)
            else:
                row |= {"answer": reply.answer, "finish": reply.finish, "n_tokens": reply.n_tokens}
                record.write(question.key, **row)
            bar.update()
    if failed:
        print(
            f"{failed} of {len(pending)} prompts failed; run the same command again to ask only those again",
            file=sys.stderr,
        )
    return failed


def _line(rows: list[dict[str, Any]], failed: int) -> str:
    lengths = [row["n_tokens"] for row in rows if row["n_tokens"] is not None]
    mean = f"{sum(lengths) / len(lengths):.1f}" if lengths else "—"
    truncated = sum(row["finish"] == "length" for row in rows)
    return f"{len(rows)} answers, {failed} failed, {truncated} cut at the token limit, {mean} tokens on average"


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
        environment.set_threads(options.threads)
        from selectkd_eval.pair import load_model

        self.options = options
        self.model, self.tokenizer, card = load_model(options.model, environment.device(options.device))
        self.card = card.as_dict()
        self.positions = int(getattr(self.model.config, "max_position_embeddings", None) or sys.maxsize)
        self.room = min(options.max_new_tokens, self.positions // 2)
        self.generation = {
            "backend": "transformers",
            "max_new_tokens": self.room,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "chat_template": bool(self.tokenizer.chat_template),
        }

    def replies(self, questions: list[Question]) -> Iterator[tuple[Question, Reply]]:
        """Replies batch by batch; a prompt that leaves no room for an answer is an error, never cut in silence."""
        from selectkd_eval.generate import Sampling, stream

        fitting = []
        for question in questions:
            length = len(prompt_ids(self.tokenizer, question.prompt.text))
            if length + self.room > self.positions:
                error = f"the prompt's {length} tokens and {self.room} new ones exceed {self.positions} positions"
                yield question, Reply(error=error)
            else:
                fitting.append(question)
        generations = stream(
            self.model,
            self.tokenizer,
            [question.prompt.text for question in fitting],
            max_new_tokens=self.room,
            sampling=Sampling(self.options.temperature, self.options.top_p),
            seeds=[question.draw_seed(self.options.seed) for question in fitting],
            batch_size=self.options.batch_size,
        )
        for index, generation in generations:
            text = answer_text(self.tokenizer, generation.text)
            yield fitting[index], Reply(text, generation.finish, len(generation.tokens))


class _Server:
    """An OpenAI-compatible server. Its key stays in the environment: it is neither recorded nor printed."""

    def __init__(self, options: AnswerOptions) -> None:
        self.openai = environment.require("openai", "answer --base-url", "judge")
        address = urlsplit(options.base_url)
        if address.scheme not in ("http", "https") or not address.hostname or address.username or address.query:
            raise InputError(
                "--base-url takes a plain http(s) address such as http://localhost:8000/v1, because the record keeps "
                "it: put the key into an environment variable and name that with --key-variable"
            )
        self.options = options
        self.key = os.environ.get(options.key_variable, "")
        # Local servers take any key, but the client insists on one.
        self.client = self.openai.OpenAI(base_url=options.base_url, api_key=self.key or "none", max_retries=4)
        self.card: dict[str, Any] = {
            "name": options.model,
            "fingerprint": f"server:{options.base_url}:{options.model}",
            "parameters": None,
            "method": options.model,
            "base_method": "",
            "seed": None,
            "training": {},
        }
        self.generation = {
            "backend": "OpenAI-compatible server",
            "max_new_tokens": options.max_new_tokens,
            "temperature": options.temperature,
            "top_p": options.top_p,
        }

    def replies(self, questions: list[Question]) -> Iterator[tuple[Question, Reply]]:
        """Replies as they arrive. A refusal that asking again cannot mend stops the run, after what is in flight."""
        answered, refusal, waiting = 0, None, iter(questions)
        with ThreadPoolExecutor(self.options.batch_size) as pool:
            in_flight: dict[Future[Reply], Question] = {}
            while True:
                while refusal is None and len(in_flight) < self.options.batch_size and (q := next(waiting, None)):
                    in_flight[pool.submit(self._one, q)] = q
                if not in_flight:
                    break
                for future in wait(in_flight, return_when=FIRST_COMPLETED).done:
                    question, error = in_flight.pop(future), future.exception()
                    if error is None:
                        answered += 1
                        yield question, future.result()
                    elif refusal := refusal or self._refusal(error, answered):
                        continue
                    else:
                        yield question, Reply(error=self._describe(error))
        if refusal is not None:
            raise refusal

    def _one(self, question: Question) -> Reply:
        options = self.options
        reply = self.client.chat.completions.create(
            model=options.model,
            messages=[{"role": "user", "content": question.prompt.text}],
            max_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            seed=question.draw_seed(options.seed),
        )
        choices = getattr(reply, "choices", None)
        if not choices or choices[0].message is None:
            return Reply(error="the server's reply holds no answer: is this address its /v1?")
        if (text := choices[0].message.content) is None:
            return Reply(error=f"the server returned no text (finish reason {choices[0].finish_reason})")
        used = reply.usage.completion_tokens if reply.usage else None
        return Reply(text, "length" if choices[0].finish_reason == "length" else "stop", used)

    def _refusal(self, error: BaseException, answered: int) -> Exception | None:
        """The error that ends the run: key, permission, address, model or money; None for one prompt's mishap."""
        where, model, variable = self.options.base_url, self.options.model, self.options.key_variable
        kept = "what was answered is kept, and the same command goes on from there"
        if isinstance(error, self.openai.AuthenticationError):
            found = "was refused (401)" if self.key else "is not set, and the server asks for a key (401)"
            return SetupError(f"the key in ${variable} {found}: set it, or name another with --key-variable; {kept}")
        if isinstance(error, self.openai.PermissionDeniedError):
            return SetupError(f"{where} forbids the use of {model!r} with this key (403): use another of them; {kept}")
        if isinstance(error, self.openai.NotFoundError):
            return InputError(f"{where} is no /v1 address or has no model {model!r} (404): correct either; {kept}")
        if isinstance(error, self.openai.RateLimitError) and error.code == "insufficient_quota":
            return SetupError(f"{where} says that the account's quota is used up: raise it; {kept}")
        if isinstance(error, self.openai.APIConnectionError) and not answered:
            return InputError(f"no server answers at {where}: start it, or correct --base-url; {kept}")
        if isinstance(error, self.openai.OpenAIError | ValueError):
            return None
        # Anything else is a defect of ours and must be seen.
        raise error

    def _describe(self, error: BaseException) -> str:
        text = f"{type(error).__name__}: {error}"[:300]
        return text.replace(self.key, "[key]") if self.key else text
