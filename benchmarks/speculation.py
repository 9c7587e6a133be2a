"""What does speculation cost and gain in our reference engine, and in Hugging Face's assisted generation?

Greedy, batch 1, one thread, the same pair, token ids and lengths in one process. Per prompt: every arm once to warm it,
then all arms (plain decoding and every draft length, in both engines) in an order drawn anew for each repetition. What
counts is the ratio: sums over prompts of each prompt's median CPU seconds, with an interval over prompts.

Ours is then held against what the formulas promise, from the acceptance of the same runs and from costs of single calls
measured apart, with half of the answer in the cache: Leviathan et al. (arXiv 2211.17192), for whom verifying costs one
call, and the same with the measured cost v of verifying. The formulas know no prefill, so their ratio is of decoding
alone: a run's CPU seconds by the part of its time that came after the prefill.

The embedded pair shows what an engine adds to calls of about a millisecond. The larger pair (33 million and 10 million
parameters, drawn here from a seed; the target is the draft and layers above it that change little) has calls of 20
milliseconds, in which the models' arithmetic counts. Its text means nothing.

Hugging Face's first step drafts before the target has read the prompt and so may save one target call a text, which
counts in texts as short as these. It is not taken out.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from selectkd_eval.pair import load_pair
from selectkd_eval.prompts import load_prompts, prompt_ids
from selectkd_eval.sampling import GREEDY
from selectkd_eval.speculation.asking import Asked, Asking
from selectkd_eval.speculation.assisted import AssistedEngine
from selectkd_eval.speculation.costs import seconds_of_calls
from selectkd_eval.speculation.draft_verify import ReferenceEngine
from selectkd_eval.speculation.engine import Decoded, Engine, Request
from selectkd_eval.speculation.quiet import quiet
from selectkd_eval.speed_model import leviathan, with_cost
from selectkd_eval.speeds import PLAIN, Arm
from selectkd_eval.stats import Estimate, ratio

GAMMAS = range(1, 9)
ARMS = (PLAIN, *(Arm(0, gamma) for gamma in GAMMAS))
OURS, THEIRS = 0, 1
LAYERS, WIDTH, VOCABULARY, ABOVE = (18, 5), 384, 4096, 0.08
CPU = torch.device("cpu")


class Case(NamedTuple):
    """A target, its draft, what to decode, and how many tokens of it."""

    target: Any
    draft: Any
    vocabulary: int
    prompts: list[list[int]]
    tokens: int


class Run(NamedTuple):
    """One timed decoding: CPU and wall seconds, and what the engine says of it."""

    cpu: float
    wall: float
    decoded: Decoded

    @property
    def decode_cpu(self) -> float:
        """CPU seconds after the prefill."""
        prefill, decode = self.decoded.prefill_s, self.decoded.decode_s
        assert prefill is not None and decode is not None  # both engines tell
        return self.cpu * decode / (prefill + decode)

    @property
    def beside_calls(self) -> float:
        """The accept rule's and the caches' part of the time after the prefill; the reference engine's alone."""
        accept, crop, decode = self.decoded.accept_s, self.decoded.crop_s, self.decoded.decode_s
        assert accept is not None and crop is not None and decode is not None
        return (accept + crop) / decode


Runs = dict[tuple[int, Arm], list[list[Run]]]  # by engine and arm: per prompt its repetitions
Costs = dict[str | int, float]  # CPU seconds of a draft call ("draft") and of a target call with n rows


def embedded(prompts: int) -> Case:
    """The package's own teacher and draft on its own problems."""
    pair = load_pair("embedded:teacher", "embedded:draft")
    chosen = load_prompts("mini-gsm", prompts).prompts
    ids = [prompt_ids(pair.teacher.tokenizer, prompt.text) for prompt in chosen]
    return Case(pair.teacher.model, pair.student.model, pair.vocabulary, ids, 40)


def larger(prompts: int) -> Case:
    """Two random Llamas: the draft's layers are the target's lowest, and the layers above add little to its stream."""
    torch.manual_seed(0)
    target, draft = (
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=WIDTH,
                intermediate_size=1024,
                num_hidden_layers=layers,
                num_attention_heads=6,
                num_key_value_heads=6,
                max_position_embeddings=512,
                tie_word_embeddings=True,
                initializer_range=0.06,
            )
        ).eval()
        for layers in LAYERS
    )
    with torch.no_grad():
        for layer in target.model.layers[LAYERS[1] :]:
            layer.self_attn.o_proj.weight *= ABOVE
            layer.mlp.down_proj.weight *= ABOVE
    weights = target.state_dict()
    draft.load_state_dict({name: weights[name] for name in draft.state_dict()})
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(VOCABULARY, (32,), generator=generator).tolist() for _ in range(prompts)]
    return Case(target, draft, VOCABULARY, ids, 32)


def time_all(case: Case, repetitions: int) -> tuple[Runs, Costs]:
    """Every arm of both engines on every prompt, in turns, and by each prompt's text what single calls cost.

    Texts that differ from plain decoding's end the run. A call's cost is the mean over prompts of its median seconds,
    measured as `selectkd-eval speedup` does, and prompt by prompt, for a machine does not stay equally fast.
    """
    ours = ReferenceEngine(case.target, [case.draft], case.vocabulary)
    engines: Sequence[Engine] = (ours, AssistedEngine(case.target, [case.draft], case.vocabulary))
    how = Asking(ARMS, case.tokens, GREEDY, 0, "sampled")
    runs: Runs = defaultdict(list)
    costs: dict[str | int, list[float]] = defaultdict(list)
    for number, ids in enumerate(case.prompts):
        request = Request(ids, case.tokens)
        sides = [(which, arm) for which in (OURS, THEIRS) for arm in ARMS]
        texts = {side: engines[side[0]].decode(request, side[1], GREEDY).tokens for side in sides}
        if different := [side for side in sides if texts[side] != texts[OURS, PLAIN]]:
            raise SystemExit(f"prompt {number} has another text in {different}: nothing is timed")
        for side in sides:
            runs[side].append([])
        for rep in range(repetitions):
            random.Random(f"{number}/{rep}").shuffle(sides)
            for which, arm in sides:
                runs[which, arm][-1].append(timed(engines[which], request, arm))
        asked = Asked(str(number), str(number), "", ids, texts[OURS, PLAIN])
        target, draft = seconds_of_calls(ours, asked, how, max(GAMMAS), repetitions=6)
        costs["draft"].append(statistics.median(draft["0"]))
        for rows, values in target.items():
            costs[int(rows)].append(statistics.median(values))
    return runs, {name: statistics.mean(values) for name, values in costs.items()}


def timed(engine: Engine, request: Request, arm: Arm) -> Run:
    """One decoding under both clocks."""
    with quiet(CPU):
        wall, cpu = time.perf_counter(), time.process_time()
        decoded = engine.decode(request, arm, GREEDY)
        return Run(time.process_time() - cpu, time.perf_counter() - wall, decoded)


def medians(runs: list[list[Run]], of: str) -> list[float]:
    """One median per prompt."""
    return [statistics.median(getattr(run, of) for run in some) for some in runs]


def show(estimate: Estimate) -> str:
    """A ratio with its interval."""
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def report(name: str, case: Case, runs: Runs, cost: Costs) -> None:
    """Two tables: ours against Hugging Face's, and ours against the formulas."""
    sizes = [sum(weight.numel() for weight in model.parameters()) / 1e6 for model in (case.target, case.draft)]
    count = len(case.prompts)
    print(f"\n{name}: {sizes[0]:.2f} and {sizes[1]:.2f} million parameters, {count} prompts, {case.tokens} tokens each")
    print("gamma | CPU ms per token: ours, HF | HF / ours, CPU   | HF / ours, wall  | speed-up: ours   | HF")
    cpu, wall = ({side: medians(some, of) for side, some in runs.items()} for of in ("cpu", "wall"))
    for arm in ARMS:
        each = [1000 * sum(cpu[which, arm]) / count / case.tokens for which in (OURS, THEIRS)]
        cells = [f"{each[0]:15.2f} {each[1]:10.2f}"]
        cells += [show(ratio(values[THEIRS, arm], values[OURS, arm])) for values in (cpu, wall)]
        if not arm.plain:
            cells += [show(ratio(cpu[which, PLAIN], cpu[which, arm])) for which in (OURS, THEIRS)]
        print(f"{arm.gamma or 'plain':>5} | " + " | ".join(cells))
    print(f"a draft call costs c = {cost['draft'] / cost[1]:.3f} of a target call of {1000 * cost[1]:.2f} CPU ms")
    print("gamma | alpha   tau | v(gamma) | Leviathan  with v | ours, decoding    | share of each     | accept + crop")
    base = medians(runs[OURS, PLAIN], "decode_cpu")
    for gamma in GAMMAS:
        arm = Arm(0, gamma)
        traces = [some[0].decoded for some in runs[OURS, arm]]
        accepted, steps = sum(sum(one.accepted) for one in traces), sum(one.steps for one in traces)
        alpha, tau = accepted / sum(one.tested for one in traces), 1 + accepted / steps
        drafted = sum(sum(one.drafted) for one in traces) / steps
        c = cost["draft"] / cost[1]
        # Steps near the end draft fewer than gamma: each is charged for the rows it had.
        v = sum(cost[count + 1] for one in traces for count in one.drafted) / steps / cost[1]
        promised = leviathan(alpha, gamma, c), with_cost(tau, drafted, c, v)
        got = ratio(base, medians(runs[OURS, arm], "decode_cpu"))
        shares = " ".join(f"{100 * got.value / value:6.0f} %" for value in promised)
        extra = medians(runs[OURS, arm], "beside_calls")
        print(
            f"{gamma:>5} | {alpha:.3f}  {tau:.2f} | {cost[gamma + 1] / cost[1]:8.2f} | {promised[0]:9.2f} "
            f"{promised[1]:7.2f} | {show(got)} | {shares} | {100 * statistics.mean(extra):6.2f} %"
        )


def main() -> None:
    """Measure the pairs asked for and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", choices=("embedded", "larger", "all"), default="all")
    parser.add_argument("--prompts", type=int, help="of each pair (default: 12 embedded, 4 larger)")
    parser.add_argument("--repetitions", type=int, default=3, help="timed runs of each arm on each prompt")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.perf_counter()
    for name, make, prompts in (("embedded", embedded, 12), ("larger", larger, 4)):
        if options.pair in (name, "all"):
            case = make(options.prompts or prompts)
            report(name, case, *time_all(case, options.repetitions))
    took, load = time.perf_counter() - begun, os.getloadavg()[0]
    print(f"\none thread; {took:.0f} s; 1-minute load at the end {load:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
