"""A real OpenAI-compatible server on loopback whose texts are a tiny model's: chat and plain completions, seeds, stops.

`engine` is what its list of models says (vllm, llamacpp ...; empty: it has no list). `troubles` maps a word in the
prompt to a status code; `honours_seeds` False makes every sampled text differ; `gone` hangs up on every request;
everything asked is kept in `asked`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

from selectkd_eval.generate import generate
from selectkd_eval.pair import load_model
from selectkd_eval.sampling import Sampling


class TextServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, model: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.loaded = load_model(str(model))
        self.lock = threading.Lock()
        self.engine = ""
        self.troubles: dict[str, int] = {}
        self.error: dict[str, Any] = {"code": None}
        self.reply: dict[str, Any] = {}
        self.honours_seeds = True
        self.gone = False
        self.delay_s = 0.0
        self.asked: list[dict[str, Any]] = []
        self.in_flight = self.most_in_flight = 0
        self.unseeded = count(10**9)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def text(self, prompt: str, body: dict[str, Any]) -> tuple[str, str, int]:
        """Text, finish reason and number of tokens of the model's continuation of the prompt."""
        temperature = body["temperature"]
        seed = body.get("seed", 0) if self.honours_seeds else next(self.unseeded)
        with self.lock:
            done = generate(
                self.loaded.model,
                self.loaded.tokenizer,
                [prompt],
                max_new_tokens=body.get("max_tokens") or body["max_completion_tokens"],
                sampling=Sampling(temperature, body.get("top_p", 1.0)),
                seeds=[seed],
                stop=body.get("stop", ()),
            )[0]
        return done.text, "length" if done.finish == "length" else "stop", len(done.tokens)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: TextServer

    def do_GET(self) -> None:
        model = {"id": "tiny", "object": "model", "created": 0, "owned_by": self.server.engine, "max_model_len": 40}
        if self.server.engine:
            return self._send(200, {"object": "list", "data": [model]})
        return self._send(404, {"error": {"message": "no such page"}})

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.asked.append(body)
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
        try:
            time.sleep(server.delay_s)
            if server.gone:
                self.close_connection = True
                self.connection.shutdown(2)
            else:
                self._answer(body)
        finally:
            with server.lock:
                server.in_flight -= 1

    def _answer(self, body: dict[str, Any]) -> None:
        server, chat = self.server, self.path.endswith("/chat/completions")
        prompt = "\n".join(m["content"] for m in body["messages"]) if chat else body["prompt"]
        for word, status in server.troubles.items():
            if word in prompt:
                message = f"no: {self.headers['Authorization']}"
                return self._send(status, {"error": {"message": message, **server.error}})
        text, finish, n_tokens = server.text(prompt, body)
        said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        usage = {"prompt_tokens": 3, "completion_tokens": n_tokens, "total_tokens": 3 + n_tokens}
        choice = {"index": 0, "finish_reason": finish, **said, **server.reply}
        kind = "chat.completion" if chat else "text_completion"
        return self._send(
            200, {"id": "1", "object": kind, "created": 0, "model": "tiny", "choices": [choice], "usage": usage}
        )

    def _send(self, status: int, body: dict[str, Any]) -> None:
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_: object) -> None:
        """Silence: the tests read stderr."""


@contextmanager
def serving(model: Path) -> Iterator[TextServer]:
    """A running server on a free port."""
    with TextServer(model) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
