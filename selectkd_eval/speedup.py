"""`speedup`: what does a distilled student buy as a draft for its teacher? The paper's Table 5.

First the gate: greedy speculative text must be plain decoding's text, or differ only where two logits tie
numerically. A draft that changes the text has no speed-up, so none is measured. Then the clock: every arm
(plain decoding twice, and each gamma) reads the same token ids and decodes as many tokens as the target's own
greedy answer has, in an order shuffled per repetition, garbage collection off, one thread unless told
otherwise. The number is the ratio of summed per-prompt medians; plain decoding against itself (`ar2`) must
come out at 1.

Batch 1 only, and no server: throughput under load is another question.
"""

from __future__ import annotations

import gc
import hashlib
import math
import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from selectkd_eval import environment, measures, pair, prompts, records
from selectkd_eval.draft_verify import GREEDY, Decoded, Sampling, plain, speculative
from selectkd_eval.errors import InputError
from selectkd_eval.generate import end_tokens
from selectkd_eval.stats import Estimate
from selectkd_eval.verbs import SpeedupOptions

# Two logits this many units in the last place apart are a tie. One row and gamma + 1 rows go through
# different matrix kernels: in half precision that is worth an ulp or two per logit; in fp32 the last bits of
# every layer add up. A wrong cache or accept rule misses by orders of magnitude more.
TIE_ULPS = {torch.float32: 128, torch.bfloat16: 4}


class Arms(NamedTuple):
    """Both models and what every arm decodes with."""

    target: Any
    draft: Any
    vocabulary: int
    ends: frozenset[int]

    def decode(self, ids: Sequence[int], gamma: int, length: int, sampling: Sampling = GREEDY) -> Decoded:
        """One run of exactly ``length`` new tokens; gamma 0 is plain decoding."""
        same: dict[str, Any] = {"new_tokens": length, "vocabulary": self.vocabulary, "sampling": sampling}
        if gamma == 0:
            return plain(self.target, ids, **same)
        return speculative(self.target, self.draft, ids, gamma=gamma, **same)


def run(options: SpeedupOptions) -> int | None:
    """Measure (or finish measuring) and print the result; 1 when the draft changes the target's text."""
    _check(options)
    threads = environment.set_threads(options.threads or 1)
    device = environment.device(options.device)
    both = pair.load_pair(options.target, options.draft, device, getattr(torch, options.dtype))
    chosen = prompts.load_prompts(options.prompts, options.limit)
    if not chosen.prompts:
        raise InputError(f"{options.prompts} with --limit {options.limit} leaves no prompt to decode: raise the limit")
    ids = {prompt.id: prompts.prompt_ids(both.teacher.tokenizer, prompt.text) for prompt in chosen.prompts}
    ends = frozenset() if options.ignore_end else end_tokens(both.teacher.model, both.teacher.tokenizer)
    arms = Arms(both.teacher.model, both.student.model, both.vocabulary, ends)
    with records.open_record(
        "speedup",
        options,
        inputs={
            "target": both.teacher.card.fingerprint,
            "draft": both.student.card.fingerprint,
            "prompts": chosen.sha256,
        },
        facts={
            "target": both.teacher.card.as_dict(),
            "draft": both.student.card.as_dict(),
            "prompts": chosen.facts(),
            "gammas": list(options.gamma),
            "temperature": options.temperature,
            "dtype": options.dtype,
            "threads": threads,
            "vocabulary": both.vocabulary,
            "rules": "batch 1; every arm decodes as many tokens as the target's greedy answer has, end token "
            "included, or max_new_tokens if that is less or --ignore-end; `tokens` and decode_wall_s leave out the "
            "prefill and its one token; `steps` counts target calls after the prefill; gate: a tie is a logit gap of "
            f"at most {TIE_ULPS[getattr(torch, options.dtype)]} ulp",
        },
    ) as record:
        lossless = _gate(record, arms, ids, options)
        if lossless and not record.complete:
            _time(record, arms, chosen.prompts, ids, options)
        record.finish()
        print("\n".join(_summary(record, options, lossless)))
    return None if lossless else 1


def _gate(record: records.Writer, arms: Arms, ids: dict[str, list[int]], options: SpeedupOptions) -> bool:
    """Greedy decoding of every prompt with every gamma, against plain decoding; False when a text was
    changed.
    """
    for prompt, tokens in tqdm(ids.items(), desc="lossless?", disable=None):
        key = f"gate/{prompt}"
        if key in record.done:
            continue
        reference = arms.decode(tokens, 0, options.max_new_tokens).tokens
        length = answer_length(reference, arms.ends)
        outcome, worst = "identical", 0.0
        for gamma in options.gamma:
            found = arms.decode(tokens, gamma, length).tokens
            if found != reference[:length]:
                worst = max(worst, gap_in_ulps(arms.target, tokens, found, arms.vocabulary))
                outcome = "tie"
        if worst > TIE_ULPS[arms.target.dtype]:
            outcome = "violation"
        record.write(key, prompt=prompt, outcome=outcome, gap_ulps=worst, length=length)
    return not measures.lossless_counts(record.done.values())["violation"]


def answer_length(tokens: Sequence[int], ends: frozenset[int]) -> int:
    """Tokens up to and including the first end token, but at least 2: the first comes from the prefill."""
    first = next((place for place, token in enumerate(tokens, start=1) if token in ends), len(tokens))
    return max(first, 2)


@torch.inference_mode()
def gap_in_ulps(target: Any, prompt: Sequence[int], text: Sequence[int], vocabulary: int) -> float:
    """How far, at worst, a token of ``text`` lies below the target's best choice after the same prefix.

    In units in the last place of the largest logit, in the target's own precision: 0 when every token is a
    greedy choice.
    """
    ids = torch.tensor([[*prompt, *text]], device=target.device)
    logits = target(input_ids=ids, use_cache=False, logits_to_keep=len(text) + 1).logits[0, :-1, :vocabulary]
    best = logits.max(-1).values
    taken = logits.gather(-1, ids[0, len(prompt) :, None])[:, 0]
    ulp = torch.finfo(logits.dtype).eps * torch.exp2(best.float().abs().clamp_min(1e-6).log2().floor())
    return float(((best.float() - taken.float()) / ulp).max())


def _time(
    record: records.Writer,
    arms: Arms,
    chosen: Sequence[prompts.Prompt],
    ids: dict[str, list[int]],
    options: SpeedupOptions,
) -> None:
    """Every arm on every prompt, `repetitions` times, in a shuffled order that depends on the seed only."""
    gammas = {"ar": 0, "ar2": 0} | {f"gamma{gamma}": gamma for gamma in options.gamma}
    for gamma in gammas.values():
        arms.decode(ids[chosen[0].id], gamma, options.max_new_tokens, _sampling(options, "warm-up", 0, arms))
    for prompt in tqdm(chosen, desc="timing", disable=None):
        keys = [f"{prompt.id}/{rep}/{arm}" for rep in range(options.repetitions) for arm in gammas]
        if all(key in record.done for key in keys):
            continue
        length = record.done[f"gate/{prompt.id}"]["length"]
        arms.decode(ids[prompt.id], 0, length)  # this prompt length's kernels and memory
        for rep in range(options.repetitions):
            order = list(gammas)
            random.Random(f"{options.seed}/{prompt.id}/{rep}").shuffle(order)
            for arm in order:
                if (key := f"{prompt.id}/{rep}/{arm}") in record.done:
                    continue
                sampling = _sampling(options, prompt.id, rep, arms)
                with _quiet(arms.target.device):
                    wall, cpu = time.perf_counter(), time.process_time()
                    decoded = arms.decode(ids[prompt.id], gammas[arm], length, sampling)
                    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                place = {
                    "prompt": prompt.id,
                    "task": prompt.source,
                    "rep": rep,
                    "arm": arm,
                    "gamma": gammas[arm],
                }
                record.write(key, **place, wall_s=wall, cpu_s=cpu, **_counts(decoded))


def _counts(decoded: Decoded) -> dict[str, Any]:
    return {
        "decode_wall_s": decoded.decode_s,
        "draft_wall_s": decoded.draft_s,
        "tokens": len(decoded.tokens) - 1,
        "steps": decoded.steps,
        "drafted": sum(decoded.drafted),
        "accepted": sum(decoded.accepted),
        "tested": decoded.tested,
        # Greedy p and q are single tokens: their overlap is 1 where the draft was right and 0 where not.
        "alpha_sum": decoded.alpha_sum or float(sum(decoded.accepted)),
        "alpha_var": decoded.alpha_var,
        "accepted_per_step": decoded.accepted if any(decoded.drafted) else [],
        "load": round(os.getloadavg()[0], 2),
    }


def _sampling(options: SpeedupOptions, prompt: str, rep: int, arms: Arms) -> Sampling:
    digest = hashlib.sha256(f"{options.seed}/{prompt}/{rep}".encode()).digest()
    generator = torch.Generator(arms.target.device).manual_seed(int.from_bytes(digest[:7], "big"))
    return Sampling(options.temperature, generator)


@contextmanager
def _quiet(device: torch.device) -> Iterator[None]:
    """No garbage collection and no earlier GPU work inside the timed stretch."""
    gc.collect(0)
    enabled = gc.isenabled()
    gc.disable()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _summary(record: records.Writer, options: SpeedupOptions, lossless: bool) -> list[str]:
    rows = list(record.done.values())
    counts = measures.lossless_counts(rows)
    rule = "greedy" if options.temperature == 0 else f"sampled at temperature {options.temperature:g}"
    lines = [
        f"speed-up of {options.target} with {options.draft} as its draft, {rule}, {options.dtype}",
        f"greedy text against plain decoding on {sum(counts.values())} prompts: {counts['identical']} "
        f"identical, {counts['tie']} different at a numerical tie, {counts['violation']} violations",
    ]
    if not lossless:
        lines.append("The draft changes the target's text, so there is no speed-up to report.")
        return [*lines, f"record: {record.path}"]
    # Greedy p and q are single tokens, whose overlap says the same as accepted / tested.
    kinds = [what for what in measures.ACCEPTANCE if what != "overlap" or options.temperature > 0]
    table = [["arm", "speed-up", "decode only", "CPU time", *(measures.ACCEPTANCE[what][2] for what in kinds)]]
    for arm in ("ar2", *measures.speedup_arms(rows)):
        cells = [measures.speedup(rows, arm, clock).estimate() for clock in ("wall_s", "decode_wall_s", "cpu_s")]
        if arm != "ar2":
            cells += [measures.acceptance(rows, arm, what).estimate() for what in kinds]
        table.append([arm, *map(_cell, cells), *[""] * (len(table[0]) - 1 - len(cells))])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines += ["  ".join(map(str.ljust, line, widths)).rstrip() for line in table]
    if options.temperature > 0:
        lines += [_acceptance_check(rows, arm) for arm in measures.speedup_arms(rows)]
    lines.append(
        f"[ ] 95 % over {sum(counts.values())} prompts, medians of {options.repetitions} repetitions; "
        "ar2 is plain decoding against itself and should cover 1"
    )
    return [*lines, f"record: {record.path}"]


def _acceptance_check(rows: Sequence[dict[str, Any]], arm: str) -> str:
    """Accepted draws against their exact expectation: z beyond 3 would mean that the sampler is wrong."""
    mine = [row for row in rows if row.get("arm") == arm]
    accepted, expected = sum(row["accepted"] for row in mine), sum(row["alpha_sum"] for row in mine)
    spread = math.sqrt(sum(row["alpha_var"] for row in mine))
    z = (accepted - expected) / spread if spread else 0.0
    return f"{arm}: {accepted} draws accepted where sum min(p, q) expects {expected:.1f} (z = {z:+.2f})"


def _cell(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _check(options: SpeedupOptions) -> None:
    if not options.gamma or min(options.gamma) < 1 or len(set(options.gamma)) < len(options.gamma):
        raise InputError(f"--gamma takes different draft lengths of at least 1, not {list(options.gamma)}")
    if options.repetitions < 1:
        raise InputError(f"--repetitions must be at least 1, not {options.repetitions}")
    if options.max_new_tokens < 2:
        raise InputError(
            f"--max-new-tokens must be at least 2, the first comes from the prefill; not {options.max_new_tokens}"
        )
    if options.temperature < 0:
        raise InputError(f"--temperature must be 0 (greedy) or more, not {options.temperature}")
