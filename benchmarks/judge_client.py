"""How much of what a server gives does the judge's client take, and at what price in processor time?

A server of fixed latency runs in a process of its own, so that it costs the client nothing. Measured are calls per
second as a share of workers / latency, milliseconds of processor time per call, and, where a limit per minute is
given, the share of it that is used. Ours is the whole path from comparisons to verdicts with the cache on disk. Beside
it in the same process: the SDK called from threads, which keeps nothing. With --alpaca-eval PYTHON (an environment
with that package) its `openai_completions` is measured against the same server too.

    python benchmarks/judge_client.py [--alpaca-eval /path/to/python] [--seconds 10] [--rounds 2]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

WORKERS_AND_LATENCY = ((16, 0.2), (64, 0.5), (64, 0.2))
LIMIT = 1200  # requests a minute
LETTERS = 2000  # of either answer: a request of 6 kB
_REPLY = {
    "id": "x",
    "object": "chat.completion",
    "created": 0,
    "model": "judge",
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "Answer A is clearer and complete. " * 20 + "\n[[A]]"},
        }
    ],
    "usage": {"prompt_tokens": 1500, "completion_tokens": 150, "total_tokens": 1650},
}


class Answering(asyncio.Protocol):
    """HTTP/1.1 with keep-alive, as little of it as a client needs: the same reply after a fixed time."""

    def __init__(self, latency: float) -> None:
        self.latency, self.buffer = latency, b""
        body = json.dumps(_REPLY).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.reply = head.encode() + body

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            if len(self.buffer) < end + 4 + length:
                return
            self.buffer = self.buffer[end + 4 + length :]
            asyncio.get_running_loop().call_later(self.latency, self.answer)

    def answer(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(self.reply)  # type: ignore[attr-defined]


async def serve(latency: float) -> None:
    """Print the address, then answer until killed."""
    server = await asyncio.get_running_loop().create_server(lambda: Answering(latency), "127.0.0.1", 0, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


@contextmanager
def serving(latency: float) -> Iterator[str]:
    """The address of a server in another process."""
    line = [sys.executable, __file__, "--serve", str(latency)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def ours(url: str, workers: int, calls: int, limit: int, aiohttp: bool) -> None:
    """Comparisons to verdicts through the client, its limits and its cache."""
    from judges.cache import Cache
    from judges.client import Client
    from judges.judge import Judge
    from judges.pairing import Comparison
    from judges.protocols import PROTOCOLS
    from judges.served import judge_all
    from judges.tasks import Task

    served = replace(Judge(name="judge", model="judge", base_url=url), requests_per_minute=limit)
    text = "An answer of some length. " * (LETTERS // 26)
    tasks = [Task(Comparison(f"{i}", f"Question {i}", 0, text, text[1:]), "candidate-first") for i in range(calls)]
    verdicts = []

    async def go(cache: Cache) -> None:
        async with Client(served, "k", PROTOCOLS["selectkd"], cache, concurrency=workers, aiohttp=aiohttp) as client:
            await judge_all(tasks, client, workers, lambda outcome: verdicts.append(outcome.verdict.word))

    with tempfile.TemporaryDirectory() as directory, Cache(Path(directory) / "cache.sqlite") as cache:
        asyncio.run(go(cache))
    assert verdicts == ["candidate"] * calls


def threads(url: str, workers: int, calls: int) -> None:
    """The SDK's blocking client in as many threads: no cache, no limits, no verdicts."""
    import openai

    client = openai.OpenAI(base_url=url, api_key="k")
    content = "An answer of some length. " * (2 * LETTERS // 26)

    def one(i: int) -> str:
        message = {"role": "user", "content": f"Question {i} {content}"}
        reply = client.chat.completions.create(model="judge", messages=[message], temperature=0.0)  # type: ignore[list-item]
        return reply.choices[0].message.content or ""

    with ThreadPoolExecutor(workers) as pool:
        assert all("[[A]]" in text for text in pool.map(one, range(calls)))


def alpaca_eval(url: str, workers: int, calls: int) -> None:
    """AlpacaEval's own function; this runs in the environment where it is installed."""
    from alpaca_eval.decoders.openai import openai_completions  # type: ignore[import-not-found]

    content = "An answer of some length. " * (2 * LETTERS // 26)
    prompts = [f"<|im_start|>user\nQuestion {i} {content}<|im_end|>" for i in range(calls)]
    found = openai_completions(
        prompts,
        "judge",
        num_procs=workers,
        temperature=0.0,
        openai_api_base=url,
        openai_api_keys=["k"],
        price_per_token=0,
    )
    assert all("[[A]]" in text for text in found["completions"])


def measured(run: Callable[[], None]) -> dict[str, float]:
    """Wall and processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def elsewhere(python: str, url: str, workers: int, calls: int) -> dict[str, float]:
    """AlpacaEval's client in its own environment, measured there, without what its import takes."""
    line = [python, __file__, "--peer", url, str(workers), str(calls)]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def report(name: str, found: list[dict[str, float]], calls: int, ideal: float) -> None:
    """One line, of the fastest round: calls per second, share of the ideal, processor time per call."""
    best = min(found, key=lambda one: one["wall"])
    rate, cpu = calls / best["wall"], 1000 * best["cpu"] / calls
    print(f"  {name:<26} {rate:8.1f} calls/s {rate / ideal:7.1%} of {ideal:.0f} {cpu:8.2f} ms CPU per call", flush=True)


def compare(python: str, seconds: float, rounds: int) -> None:
    """Every setting: ours with both transports, the SDK in threads, AlpacaEval's client where it is given."""
    with serving(0.0) as url:  # first use of everything: imports, code caches
        ours(url, 4, 40, 0, True)
        ours(url, 4, 40, 0, False)
        threads(url, 4, 40)
    for workers, latency in WORKERS_AND_LATENCY:
        ideal, calls = workers / latency, workers * max(2, round(seconds / latency))
        few = 4 * workers  # AlpacaEval's client makes a client per call
        print(f"{workers} workers, {latency * 1000:.0f} ms, {calls} calls (load {os.getloadavg()[0]:.1f})", flush=True)
        found: dict[str, list[dict[str, float]]] = {}
        for _ in range(rounds):  # in turns, so that a busy minute of the machine meets all of them
            with serving(latency) as url:
                contenders = {
                    "selectkd-eval, aiohttp": partial(ours, url, workers, calls, 0, True),
                    "selectkd-eval, httpx2": partial(ours, url, workers, calls, 0, False),
                    "openai SDK in threads": partial(threads, url, workers, calls),
                }
                for name, run in contenders.items():
                    found.setdefault(name, []).append(measured(run))
                if python:
                    found.setdefault("alpaca_eval", []).append(elsewhere(python, url, workers, few))
        for name, times in found.items():
            report(name, times, few if name == "alpaca_eval" else calls, ideal)
    calls = round(LIMIT / 60 * 2 * seconds)
    print(f"64 workers, 50 ms, {calls} calls, at most {LIMIT} requests a minute", flush=True)
    with serving(0.05) as url:
        report("selectkd-eval, aiohttp", [measured(partial(ours, url, 64, calls, LIMIT, True))], calls, LIMIT / 60)


def main() -> None:
    """Parse the command line; two of its forms are for the processes that this one starts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alpaca-eval", default="", metavar="PYTHON")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--peer", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        asyncio.run(serve(options.serve))
    elif options.peer:
        url, workers, calls = options.peer
        alpaca_eval(url, 2, 4)
        print(json.dumps(measured(lambda: alpaca_eval(url, int(workers), int(calls)))))
    else:
        compare(options.alpaca_eval, options.seconds, options.rounds)


if __name__ == "__main__":
    main()
