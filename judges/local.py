"""What does a chat model on this machine say? The judge `hf:MODEL` (transformers) or `vllm:MODEL`.

It is asked exactly what a served judge is asked, through its own chat template (a base model gets the plain text), and
its reply is read in the same way: one more question when it holds no verdict. A protocol's temperature 0 is greedy;
otherwise every asking has a seed of its own, so that a resumed record is the undisturbed one. Comparisons are decoded
--concurrency at a time and written as they are read.

A prompt that does not fit is a failed comparison, never a shorter one. First-token probabilities are not read here.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from judges.by_server import Write, said
from judges.protocols import Protocol
from judges.replies import Reply
from judges.tasks import Outcome, Task, question, settled
from judges.verdicts import Verdict
from selectkd_eval.environment import require
from selectkd_eval.errors import InputError
from selectkd_eval.records import Writer
from selectkd_eval.verbs import WinrateOptions

TEMPERATURE = 1.0  # where a protocol leaves it to the server: what OpenAI's API does then
MAX_TOKENS = 2048  # where a protocol sets no limit


def facts(options: WinrateOptions, protocol: Protocol) -> dict[str, Any]:
    """What a record's header says about the judge; loads the model. InputError for what it cannot do."""
    if protocol.decoding.get("logprobs"):
        raise InputError(
            f"protocol {protocol.name!r} reads the judge's log-probabilities, which a judge on this machine does not "
            f"give here: take another protocol, or serve the model and give --base-url"
        )
    if options.concurrency < 1:
        raise InputError(f"--concurrency {options.concurrency} would ask nothing: give 1 or more")
    if options.repeats > 1 and protocol.decoding.get("temperature") == 0:
        raise InputError(
            f"--repeats {options.repeats} would ask {options.judge!r} the same again, because protocol "
            f"{protocol.name!r} has temperature 0, which is greedy here: leave it out, or take --protocol distillm2"
        )
    chat = _chat(options)
    return {
        "name": options.judge,
        "kind": "local",
        "note": "a language model's preference",
        "model": chat.card,
        "engine": chat.facts,
        "decoding": _decoding(chat, protocol)._asdict(),
    }


def judge(record: Writer, todo: Sequence[Task], options: WinrateOptions, protocol: Protocol, write: Write) -> None:
    """Judge every task; `write` gets each one's verdict and what was said, batch by batch, the longest first."""
    chat = _chat(options)
    tasks = sorted(todo, key=_length, reverse=True)
    words = Counter(str(row.get("verdict")) for row in record.done.values())
    done = words.total()
    with tqdm(total=done + len(tasks), initial=done, desc=options.judge, unit="judged", file=sys.stderr) as bar:
        for start in range(0, len(tasks), chat.wave):
            for outcome in _judged(tasks[start : start + chat.wave], chat, protocol, options.seed):
                write(outcome.task, outcome.verdict, said(outcome))
                words[outcome.verdict.word] += 1
                won, lost, tied = (words[word] for word in ("candidate", "baseline", "tie"))
                bar.set_postfix_str(f"{won} W {lost} L {tied} T", refresh=False)
                bar.update()


def _length(task: Task) -> int:
    return sum(map(len, (task.comparison.text, task.comparison.candidate, task.comparison.baseline)))


def _judged(tasks: Sequence[Task], chat: Any, protocol: Protocol, seed: int) -> Iterator[Outcome]:
    """The tasks' outcomes, each as it is known: after the first reply, or after the second where that held none."""
    again: list[tuple[Task, Reply]] = []
    for task, reply, error in _ask([(task, ()) for task in tasks], chat, protocol, seed):
        if reply is None:
            yield Outcome(task, Verdict("failed", error), asked=False)
        elif outcome := settled(task, protocol, (reply,)):
            yield outcome
        else:
            again.append((task, reply))
    first = {task.key: reply for task, reply in again}
    for task, reply, error in _ask([(task, (reply,)) for task, reply in again], chat, protocol, seed):
        if reply is None:
            # It has replied once, so it has not failed.
            yield Outcome(task, Verdict("unreadable", f"not asked again: {error}"), (first[task.key],))
        elif outcome := settled(task, protocol, (first[task.key], reply)):
            yield outcome


def _ask(
    asked: Sequence[tuple[Task, tuple[Reply, ...]]], chat: Any, protocol: Protocol, seed: int
) -> Iterator[tuple[Task, Reply | None, str]]:
    """(task, reply) of each after its earlier replies, or (task, None, why there is none)."""
    module = _module()
    conversations = [
        module.Asked(question(task, protocol, replies), _draw_seed(task, seed, len(replies))) for task, replies in asked
    ]
    for place, found in chat.replies(conversations, _decoding(chat, protocol)):
        task = asked[place][0]
        yield task, None if found.error else _reply(found, chat.card), found.error


def _draw_seed(task: Task, seed: int, attempt: int) -> int:
    """31 bits that depend on the comparison, the order, the repeat and the attempt, not on what is asked beside it."""
    return int.from_bytes(hashlib.sha256(f"{task.key}/{seed}/{attempt}".encode()).digest()[:4]) >> 1


def _reply(found: Any, card: Mapping[str, Any]) -> Reply:
    return Reply(
        text=found.text,
        finish_reason="length" if found.finish == "length" else "stop",
        model=card["name"],
        fingerprint=card["fingerprint"],
        usage={"prompt_tokens": found.n_prompt_tokens, "completion_tokens": found.n_tokens},
        reasoning=found.reasoning,
    )


def _decoding(chat: Any, protocol: Protocol) -> Any:
    rule = protocol.decoding
    longest = chat.room(int(rule.get("max_tokens", MAX_TOKENS)))
    return _module().Decoding(longest, float(rule.get("temperature", TEMPERATURE)), float(rule.get("top_p", 1.0)))


def _chat(options: WinrateOptions) -> Any:
    """The judging model, loaded once."""
    backend, _, model = options.judge.partition(":")
    feature = f"the judge {options.judge!r}"
    return _module(feature).opened(backend, model, options.device, options.threads, options.concurrency, feature)


def _module(feature: str = "a judge on this machine") -> Any:
    """The module that holds the model; the only way from here to torch."""
    require("torch", feature, "train")
    from selectkd_eval import local_chat

    return local_chat
