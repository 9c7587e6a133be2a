"""vLLM as an engine of speculative decoding, through its OpenAI-compatible server.

One server per arm, all up at once: a server has one proposer and one draft length, and arms are timed in turns. They
are started here, or their addresses are given (`--server plain=URL gamma3=URL`). Token ids go in and come out, so no
tokenizer stands between, and prefix caches are off, so that a prompt costs as much the second time.

vLLM drafts greedily by default whatever the temperature; above 0 its draft is told to sample from q instead, which it
does at p's temperature but without top-k and top-p. Whether its text then has the target's distribution is not known
here: on a CPU vLLM 0.32 has a fault in this (vllm-project/vllm#55005), which the gate must find.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tqdm import tqdm

from selectkd_eval.errors import InputError
from selectkd_eval.sampling import GREEDY, Sampling
from selectkd_eval.speculation.engine import Decoded, Request, check_request
from selectkd_eval.speculation.vllm_endpoint import Endpoint
from selectkd_eval.speculation.vllm_models import Files, files_for
from selectkd_eval.speculation.vllm_process import Server, find
from selectkd_eval.speculation.vllm_replies import Lookup, decoded, ngram_lookup, told
from selectkd_eval.speeds import PLAIN, Arm
from selectkd_eval.verbs import SpeedupOptions

LONGEST, SHORTEST = 3, 1  # n-grams looked up: vLLM's prompt_lookup_max and _min
MEMORY = 0.9  # of what is free on a GPU, shared by all servers
MOST = 1024  # texts decoded together: one thread each, started when needed


class VllmEngine:
    """Arms served by one vLLM server each. `close` ends whatever was started for it."""

    name = "vllm"
    batches = True

    def __init__(
        self,
        endpoints: Mapping[tuple[int, int], Endpoint],
        facts: Mapping[str, Any],
        *,
        ngram: bool = False,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self.facts = facts
        self._endpoints, self._ngram, self._close = dict(endpoints), ngram, close
        self._threads = ThreadPoolExecutor(MOST, "vllm")
        try:
            self._models = {arm: endpoint.model() for arm, endpoint in self._endpoints.items()}
        except BaseException:
            self.close()
            raise

    def decode(self, request: Request, arm: Arm, sampling: Sampling) -> Decoded:
        """Exactly `request.new_tokens` tokens. Errors are the server's, in its words."""
        endpoint, body = self._asked(request, arm, sampling)
        return self._told(endpoint.complete(body), request, arm)

    def together(self, requests: Sequence[Request], arm: Arm, sampling: Sampling) -> list[Decoded]:
        """Several texts, all asked for at once; the server decodes them as one batch."""
        asked = [self._asked(request, arm, sampling) for request in requests]
        replies = list(self._threads.map(lambda one: one[0].complete(one[1]), asked))
        return [self._told(reply, request, arm) for reply, request in zip(replies, requests, strict=True)]

    def warm(self) -> None:
        """One short text at every arm: a server's first takes seconds, in which it makes its kernels ready."""
        for draft, gamma in tqdm(self._endpoints, desc="warming vLLM", disable=None):
            self.decode(Request([0] * 8, 2 * gamma + 4), Arm(draft, gamma), GREEDY)

    def close(self) -> None:
        self._threads.shutdown()
        for endpoint in self._endpoints.values():
            endpoint.close()
        self._close()

    def _asked(self, request: Request, arm: Arm, sampling: Sampling) -> tuple[Endpoint, dict[str, Any]]:
        """Which server is asked what. At temperature 0 nothing is drawn, so no seed is sent."""
        place = (arm.draft, arm.gamma)
        if place not in self._endpoints:
            raise InputError(f"no vLLM server decodes with gamma {arm.gamma}: add it to --gamma or --server")
        name, positions = self._models[place]
        check_request(request.ids, request.new_tokens)
        if positions is not None and len(request.ids) + request.new_tokens > positions:
            raise InputError(  # vLLM itself would write fewer tokens and not say so
                f"a prompt of {len(request.ids)} tokens and {request.new_tokens} new ones do not fit the {positions} "
                "positions that vLLM gives a text: lower --max-new-tokens, or give its cache more room "
                "(VLLM_CPU_KVCACHE_SPACE on a CPU)"
            )
        body = {
            "model": name,
            "prompt": list(request.ids),
            "max_tokens": request.new_tokens,
            "temperature": sampling.temperature,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        if not sampling.greedy:
            body |= {"top_p": sampling.top_p, "top_k": sampling.top_k, "seed": request.seed}
        return self._endpoints[place], body

    def _told(self, reply: Any, request: Request, arm: Arm) -> Decoded:
        lookup: Lookup | None = ngram_lookup(LONGEST, SHORTEST, arm.gamma) if self._ngram else None
        return decoded(told(reply), request.ids, request.new_tokens, arm.gamma, lookup)


def open_vllm(options: SpeedupOptions) -> VllmEngine:
    """Servers for every arm that `options` ask for, up and warm."""
    check(options)
    with ExitStack() as stack:
        if options.server:
            endpoints = given(options.server, options.gamma)
            facts: dict[str, Any] = {"version": endpoints[PLAIN[:2]].version(), "started": "by somebody else"}
        else:
            endpoints, facts = _started(options, stack)
        facts |= {"proposer": options.proposer, "proposals": proposals(options)}
        if options.proposer == "ngram":
            facts["ngram"] = [SHORTEST, LONGEST]
        engine = VllmEngine(endpoints, facts, ngram=options.proposer == "ngram", close=stack.pop_all().close)
    try:
        engine.warm()
    except BaseException:
        engine.close()
        raise
    return engine


def check(options: SpeedupOptions) -> None:
    """Refuse drafts that the proposer does not take."""
    if options.server and len(options.draft) > 1:
        raise InputError(
            f"--server names one server per gamma, and {len(options.draft)} drafts were given: measure one draft at a "
            "time, or leave --server out"
        )


def proposals(options: SpeedupOptions) -> str:
    """How the draft chooses its tokens, in the gate's words: `sampled` from q, `tempered` (sampled from a q that top-k
    and top-p did not cut), or `greedy`, which is what servers started by somebody else are taken to do.
    """
    if options.temperature == 0 or options.proposer == "ngram" or options.server:
        return "greedy"
    return "tempered" if options.top_p < 1 or options.top_k else "sampled"


def given(servers: Sequence[str], gammas: Sequence[int]) -> dict[tuple[int, int], Endpoint]:
    """Servers that run already: ARM=URL for plain decoding and every gamma. Their key is VLLM_API_KEY, if it is set."""
    named = {"plain": PLAIN[:2]} | {f"gamma{gamma}": (0, gamma) for gamma in gammas}
    key = os.environ.get("VLLM_API_KEY", "")
    found: dict[tuple[int, int], Endpoint] = {}
    for word in servers:
        arm, _, url = word.partition("=")
        if arm not in named or named[arm] in found:
            raise InputError(f"--server {word} names no arm, or one twice: give each of {', '.join(named)} one =URL")
        found[named[arm]] = Endpoint(arm, url, key)
    if missing := [arm for arm, place in named.items() if place not in found]:
        raise InputError(f"--server lacks {', '.join(missing)}: every arm is timed, so each needs a server of its own")
    return found


def _started(options: SpeedupOptions, stack: ExitStack) -> tuple[dict[tuple[int, int], Endpoint], dict[str, Any]]:
    """Servers of our own, which end with `stack`, and what the record says of them."""
    installed = find(options.vllm_python)
    target = _files(options.target, stack)
    drafts = [] if options.proposer == "ngram" else [_files(name, stack, options.proposer) for name in options.draft]
    places = [PLAIN[:2], *((draft, gamma) for draft in range(len(drafts) or 1) for gamma in options.gamma)]
    share = None if installed.on_cpu else MEMORY * _free(options.device) / len(places)
    logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="selectkd-vllm-")))
    servers: dict[tuple[int, int], Server] = {}
    for draft, gamma in tqdm(places, desc="starting vLLM", disable=None):
        arm = "plain decoding" if gamma == 0 else f"gamma {gamma}" + (f" with draft {draft}" if len(drafts) > 1 else "")
        words = arguments(options, str(target.where), share)
        if gamma:
            words += speculation(options, str(drafts[draft].where) if drafts else "", gamma)
        log = logs / f"{draft}-{gamma}.log"
        server = Server(installed, arm, words, log, surroundings(options, [target, *drafts]))
        stack.callback(server.close)
        servers[draft, gamma] = server
        if not installed.on_cpu:
            server.wait()  # each looks how much of the GPU is free: one after the other
    for server in servers.values():
        server.wait()
    facts: dict[str, Any] = {
        "version": installed.version,
        "distribution": installed.distribution,
        "started": "one server per arm, all up at once",
        "eager": installed.on_cpu,
        "prefix_caching": False,
    }
    names = ["target", *(f"draft {place}" for place in range(len(drafts)))]
    if padded := {name: f.heads for name, f in zip(names, [target, *drafts], strict=True) if f.heads}:
        facts["heads"] = padded
    return {place: server.endpoint for place, server in servers.items()}, facts


def arguments(options: SpeedupOptions, target: str, share: float | None) -> list[str]:
    """What every server is started with; `share` is its part of the GPU's memory, None on a CPU."""
    words = ["--model", target, "--served-model-name", "target", "--dtype", options.dtype]
    words += ["--max-model-len", "auto", "--max-num-seqs", str(max(options.batch)), "--no-enable-prefix-caching"]
    words += ["--generation-config", "vllm"]  # no sampling defaults but those of the request
    words += ["--enable-per-request-metrics", "--disable-uvicorn-access-log"]
    if share is None:
        return [*words, "--enforce-eager"]  # compiling C++ for a minute or two buys a small model nothing
    return [*words, "--gpu-memory-utilization", f"{share:.3f}"]


def _free(device: str) -> float:
    """The free part of a GPU's memory: the gate's own models are there already."""
    import torch

    if not torch.cuda.is_available():
        return 1.0
    free, total = torch.cuda.mem_get_info(None if device in ("auto", "cpu") else device)
    return free / total


def speculation(options: SpeedupOptions, draft: str, gamma: int) -> list[str]:
    """What makes a server speculate, and tell of it."""
    how: dict[str, Any] = {"num_speculative_tokens": gamma}
    if options.proposer == "ngram":
        how |= {"method": "ngram", "prompt_lookup_max": LONGEST, "prompt_lookup_min": SHORTEST}
    else:
        how |= {"method": options.proposer.replace("-", "_"), "model": draft}
        if proposals(options) != "greedy":
            how["draft_sample_method"] = "probabilistic"
    return ["--speculative-config", json.dumps(how), "--per-request-spec-decode-metrics", "detailed"]


def surroundings(options: SpeedupOptions, files: Sequence[Files]) -> dict[str, str]:
    """Environment of a server. What the user set for vLLM stays."""
    wanted = {
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB of each server
        # On a CPU a worker apart from the engine spins for a second after every text, on the next arm's core.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "NUMBA_NUM_THREADS": "1",  # n-gram lookup; its threads wait for each other on one core, 0.2 s a step
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "3600",  # no text is timed with a new connection
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }
    if all(isinstance(each.where, Path) for each in files):
        wanted["HF_HUB_OFFLINE"] = "1"
    if options.device.startswith("cuda:"):
        wanted["CUDA_VISIBLE_DEVICES"] = options.device.removeprefix("cuda:")
    found = {name: value for name, value in wanted.items() if name not in os.environ}
    return found | ({"OMP_NUM_THREADS": str(options.threads)} if options.threads else {})


def _files(model: str, stack: ExitStack, proposer: str = "") -> Files:
    found = files_for(model, head=proposer == "eagle")
    if found.holder is not None:
        stack.callback(found.holder.cleanup)
    return found
