"""What does speculation gain in vLLM, one text at a time and four together, and in our engine beside it?

The embedded teacher and draft, greedy, the same token ids and lengths, wall-clock seconds: vLLM computes in processes
of its own. Per group of prompts (one, or a batch of four) every arm once to warm it, then all arms of all engines in an
order drawn anew for each repetition. What counts is the ratio: sums over groups of the median seconds of plain decoding
by those of the arm, of the same engine at the same batch, with an interval over groups. Texts are compared first.

It shows that the path works and what it costs with calls of a millisecond; what speculation gains in vLLM with a model
worth serving needs a GPU. Without vLLM (`make vllm-env`) there is nothing to measure, and it says so.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from selectkd_eval.errors import SetupError
from selectkd_eval.pair import load_pair
from selectkd_eval.prompts import load_prompts, prompt_ids
from selectkd_eval.sampling import GREEDY
from selectkd_eval.speculation import gate
from selectkd_eval.speculation.draft_verify import ReferenceEngine
from selectkd_eval.speculation.engine import Decoded, Engine, Request
from selectkd_eval.speculation.quiet import quiet
from selectkd_eval.speculation.vllm_server import open_vllm
from selectkd_eval.speeds import PLAIN, Arm
from selectkd_eval.stats import ratio
from selectkd_eval.verbs import SpeedupOptions

GAMMAS, BATCHES = (2, 4), (1, 4)
PROMPTS, TOKENS, REPETITIONS = 16, 40, 5
CPU = torch.device("cpu")


class Way(NamedTuple):
    """An engine, how many texts it decodes together, and the arm."""

    engine: str
    batch: int
    gamma: int

    @property
    def arm(self) -> Arm:
        return PLAIN._replace(batch=self.batch) if self.gamma == 0 else Arm(0, self.gamma, self.batch)


def decode(engine: Engine, requests: Sequence[Request], arm: Arm) -> list[Decoded]:
    """One text, or several together."""
    return engine.together(requests, arm, GREEDY) if arm.batch > 1 else [engine.decode(requests[0], arm, GREEDY)]


def measure(engines: dict[str, Engine], ways: Sequence[Way], groups: Sequence[Sequence[Request]]) -> None:
    """Time the ways on every group in turns, and print them."""
    seconds: dict[Way, list[float]] = defaultdict(list)
    steps: dict[Way, list[tuple[int, int]]] = defaultdict(list)
    for place, requests in enumerate(groups):
        runs: dict[Way, list[float]] = defaultdict(list)
        for way in ways:
            found = decode(engines[way.engine], requests, way.arm)
            steps[way] += [(len(one.tokens) - one.first, one.steps) for one in found]
        for repetition in range(REPETITIONS):
            for way in random.Random(f"{place}/{repetition}").sample(list(ways), len(ways)):
                with quiet(CPU):
                    started = time.perf_counter()
                    decode(engines[way.engine], requests, way.arm)
                    runs[way].append(time.perf_counter() - started)
        for way in ways:
            seconds[way].append(statistics.median(runs[way]))
    for way in ways:
        gain = ratio(seconds[way._replace(gamma=0)], seconds[way])
        tokens, calls = (sum(part) for part in zip(*steps[way], strict=True))
        each = 1000 * sum(seconds[way]) / (len(groups) * way.batch * TOKENS)
        print(
            f"{way.engine:<10} {way.batch:>5} {way.gamma:>5}  {each:>12.2f}  {tokens / calls:>21.2f}  "
            + (f"{gain.value:.2f} [{gain.low:.2f}, {gain.high:.2f}]" if way.gamma else "1")
        )


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    named = os.environ.get("SELECTKD_VLLM_PYTHON")
    pair = load_pair("embedded:teacher", "embedded:draft")
    target, width = pair.teacher.model, pair.vocabulary
    ours = ReferenceEngine(target, [pair.student.model], width)
    options = SpeedupOptions(
        engine="vllm", gamma=GAMMAS, batch=BATCHES, threads=1, vllm_python=Path(named) if named else None
    )
    try:
        served = open_vllm(options)
    except SetupError as error:
        print(f"nothing is measured: {error}")
        return
    engines: dict[str, Engine] = {"vLLM": served, "reference": ours}
    prompts = load_prompts("mini-gsm", PROMPTS).prompts
    requests = [Request(prompt_ids(pair.teacher.tokenizer, prompt.text), TOKENS) for prompt in prompts]
    try:
        outcomes = []
        for request in requests:
            alone = ours.decode(request, PLAIN, GREEDY).tokens
            for gamma in (0, *GAMMAS):
                found = served.decode(request, Way("vLLM", 1, gamma).arm, GREEDY).tokens
                outcomes.append(gate.greedy_outcome(target, width, request.ids, alone, found)["outcome"])
        said = ", ".join(f"{outcomes.count(word)} {word}" for word in ("identical", "tie", "violation"))
        print(f"vLLM {served.facts['version']} ({served.facts['distribution']}): texts against ours: {said}")
        print("engine     batch gamma  ms per token  tokens per target call  speed-up")
        for batch in BATCHES:
            groups = [requests[first : first + batch] for first in range(0, PROMPTS, batch)]
            names = ["vLLM"] if batch > 1 else list(engines)
            measure(engines, [Way(name, batch, gamma) for name in names for gamma in (0, *GAMMAS)], groups)
    finally:
        served.close()


if __name__ == "__main__":
    main()
