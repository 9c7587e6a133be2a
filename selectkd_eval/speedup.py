"""`speedup`: what does a distilled student buy as a draft for its teacher? The paper's Table 5.

First the gate: greedy speculative text must be plain decoding's text, or differ only where two logits tie numerically;
sampled text must have the target's distribution. A draft or an engine that changes the text has no speed-up, so none
is measured. Then one teacher-forced pass over the target's own text (`forced`), the cost of a call with n rows
(`costs`), and the clock (`timing`): plain decoding twice, and every draft at every length, in turns on each prompt.

The numbers are computed from the record's rows (`speeds`, `speed_explained`), so that the terminal, tables and figures
say the same.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch

from selectkd_eval import environment, lossless, prompts, records, speed_summary
from selectkd_eval.errors import InputError
from selectkd_eval.prompts import PromptSet
from selectkd_eval.sampling import Sampling
from selectkd_eval.speculation import costs, machine
from selectkd_eval.speculation.asking import Asking, ask
from selectkd_eval.speculation.engine import Engine
from selectkd_eval.speculation.engines import Cast, check, load_cast, open_engine
from selectkd_eval.speculation.enumeration import enumerated
from selectkd_eval.speculation.forced import force
from selectkd_eval.speculation.timing import Clock, time_all
from selectkd_eval.speeds import Arm
from selectkd_eval.verbs import SpeedupOptions

RULES = (
    "every arm decodes as many tokens as the target's greedy answer has, end token included, or max_new_tokens if that "
    "is less or --ignore-end; `tokens` are those that verification steps emitted: the reference engine's and vLLM's "
    "prefill gives one more, transformers' first step is the prefill; times are medians of the repetitions, summed "
    "over prompts"
)


def run(options: SpeedupOptions) -> int | None:
    """Measure (or finish measuring) and print the result; 1 when a draft changes the target's text."""
    check(options)
    threads = environment.set_threads(options.threads)
    device = environment.device(options.device)
    chosen = prompts.load_prompts(options.prompts, options.limit, options.prompt_dir)
    if not chosen.prompts:
        raise InputError(f"{options.prompts} with --limit {options.limit} leaves no prompt to decode: raise the limit")
    cast = load_cast(options, device)
    inputs = {"target": cast.target.card.fingerprint, "prompts": chosen.sha256}
    inputs |= {f"draft {index}": str(card["fingerprint"]) for index, card in enumerate(cast.cards)}
    with ExitStack() as stack:
        facts: Mapping[str, Any] = {}
        # A server takes a minute to start, and a finished record has nothing for it to do.
        if not (finished := records.is_finished(records.record_path("speedup", options))):
            engine = open_engine(options, cast)
            stack.callback(engine.close)
            facts = _facts(options, cast, engine, chosen, threads)
        record = stack.enter_context(records.open_record("speedup", options, inputs=inputs, facts=facts))
        if not finished:
            _expect_one_clock(record, facts)
            _measure(record, options, engine, cast, chosen, torch.device(device))
            record.finish()
        rows = list(record.done.values())
        failed = records.read(record.path).failed
        print("\n".join([*speed_summary.lines(record.facts, [*rows, *failed]), f"record: {record.path}"]))
    return None if lossless.passed(rows) else 1


def _expect_one_clock(record: records.Writer, facts: Mapping[str, Any]) -> None:
    """Refuse to go on with times that another device took, or another number of threads: its header names one."""
    for what in ("device", "threads"):
        if (before := record.facts[what]) != facts[what]:
            raise InputError(
                f"{record.path} was begun with {what} {before}, and now it is {facts[what]}: go on as it was begun, or "
                "delete that record, or give another --out"
            )


def _measure(
    record: records.Writer,
    options: SpeedupOptions,
    engine: Engine,
    cast: Cast,
    chosen: PromptSet,
    device: torch.device,
) -> None:
    sampling = Sampling(options.temperature, options.top_p, options.top_k)
    arms = [Arm(draft, gamma) for draft in range(len(cast.cards)) for gamma in options.gamma]
    how = Asking(arms, options.max_new_tokens, sampling, options.seed, engine.facts["proposals"])
    if not sampling.greedy and not engine.batches and "enumeration" not in record.done:
        record.write("enumeration", **enumerated(type(engine), sampling, options.seed))
    asked = list(ask(record, engine, cast, chosen.prompts, how))
    if not asked:
        raise InputError(f"none of the {len(chosen.prompts)} prompts fits the models: give shorter ones")
    if not lossless.passed(list(record.done.values())):
        return
    force(record, engine, cast, asked, how)
    costs.probe(record, engine, asked, how, max(options.gamma), options.repetitions)
    _warn_if_busy()
    clock = Clock(engine, device, machine.Meter(device), machine.Load(), options.repetitions)
    time_all(record, clock, asked, how, options.batch)
    if "machine" not in record.done:
        record.write("machine", **machine.peaks(device), energy=clock.meter.words)


def _facts(options: SpeedupOptions, cast: Cast, engine: Engine, chosen: PromptSet, threads: int) -> Mapping[str, Any]:
    models = {"target": cast.target.model} | {f"draft {i}": draft.model for i, draft in enumerate(cast.drafts)}
    return {
        "engine": {"name": engine.name, **engine.facts},
        "target": cast.target.card.as_dict(),
        "drafts": cast.cards,
        "prompts": chosen.facts() | {"tasks": dict(Counter(prompt.source for prompt in chosen.prompts))},
        "gammas": list(options.gamma),
        "batches": list(options.batch),
        "temperature": options.temperature,
        "top_p": options.top_p,
        "top_k": options.top_k,
        "dtype": options.dtype,
        "device": _device_name(cast.target.model.device),
        "threads": threads,
        "affinity": machine.affinity(),
        "governor": machine.governor(),
        "vocabulary": cast.vocabulary,
        "memory": {
            name: {"weights": machine.model_bytes(model), "cache_per_token": machine.cache_bytes_per_token(model)}
            for name, model in models.items()
        },
        "rules": RULES,
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _warn_if_busy() -> None:
    load, cores = os.getloadavg()[0], environment.available_cores()
    if load > cores:
        print(
            f"selectkd-eval: this machine is busy (load {load:.1f} on {cores} cores), so its clock is not to be "
            "trusted: the control shows by how much",
            file=sys.stderr,
        )
