"""A real OpenAI-compatible server on loopback, for the judge client's tests.

It judges by rule: the longer answer wins, equal lengths tie; so the expected record can be worked out by hand. It
counts the requests that it answered, by their content. `script` lists troubles that come first, one per request;
a header `X-Test` is not needed, so the client under test is the client of the user.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_ANSWER = re.compile(r"=== BEGIN ANSWER ([AB]) ===\n(.*?)\n=== END ANSWER \1 ===", re.DOTALL)
AGAIN = "held no verdict"


@dataclass
class JudgeServer:
    """What the server does and what it saw. Troubles are consumed in order, one per request."""

    script: list[str] = field(default_factory=list)
    always: str = ""
    delay_s: float = 0.0
    answered: Counter[str] = field(default_factory=Counter)
    requests: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next_trouble(self) -> str:
        with self.lock:
            return self.script.pop(0) if self.script else self.always


def longer_wins(request: dict[str, Any]) -> str:
    """The rule: [[A]], [[B]] or [[C]] by the length of the two answers shown."""
    text = "\n".join(message["content"] for message in request["messages"])
    answers = dict(_ANSWER.findall(text))
    first, second = len(answers["A"]), len(answers["B"])
    return "[[C]]" if first == second else "[[A]]" if first > second else "[[B]]"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: JudgeServer

    def do_POST(self) -> None:
        state = self.state
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        trouble = state.next_trouble()
        with state.lock:
            state.requests.append(request)
            state.times.append(time.monotonic())
            state.in_flight += 1
            state.most_in_flight = max(state.most_in_flight, state.in_flight)
        try:
            if state.delay_s:
                time.sleep(state.delay_s)
            self._answer(request, trouble)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client was killed
        finally:
            with state.lock:
                state.in_flight -= 1

    def _answer(self, request: dict[str, Any], trouble: str) -> None:
        key = self.headers["Authorization"].removeprefix("Bearer ")
        if trouble == "429":
            return self._error(429, "slow down", headers={"Retry-After": "0.4"})
        if trouble == "quota":
            return self._error(429, "you exceeded your quota", code="insufficient_quota")
        if trouble in ("400", "401", "403", "404", "500"):
            return self._error(int(trouble), f"no: the key was {key}")
        if trouble == "cut":
            self.close_connection = True
            self.connection.shutdown(2)
            return None
        if trouble == "not json":
            return self._send(200, b'{"choices": [')
        said, finish = longer_wins(request), "stop"
        if trouble == "no label" and AGAIN not in request["messages"][-1]["content"]:
            said = "Both have merit."
        elif trouble == "never a label":
            said = "I cannot choose."
        elif trouble == "length":
            finish = "length"
        elif trouble == "echo key":
            said = f"your key is {key}. {said}"
        body = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "judge-2026-01-01",
            "system_fingerprint": "fp",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": finish}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105},
        }
        with self.state.lock:
            self.state.answered[hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()] += 1
        return self._send(200, json.dumps(body).encode())

    def _error(self, status: int, message: str, code: str = "x", headers: dict[str, str] | None = None) -> None:
        body = {"error": {"message": message, "type": "x", "code": code}}
        self._send(status, json.dumps(body).encode(), headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Silence: the tests read stderr."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True


@contextmanager
def serving(**settings: Any) -> Iterator[JudgeServer]:
    """A running server on a free port; `state.url` is its base URL."""
    state = JudgeServer(**settings)
    handler = type("Handler", (_Handler,), {"state": state})
    with _Server(("127.0.0.1", 0), handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
