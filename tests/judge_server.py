"""A real OpenAI-compatible server on loopback, for the judge client's tests.

It judges by rule: the longer answer wins, equal lengths tie; so the expected record can be worked out by hand. It
counts the requests that it answered, by their content. `script` lists troubles that come first, one per request; a
trouble whose name is followed by a colon and a number takes that number, as in "429:0.4". `delay_s` is what an answer
takes; a trouble comes at once. `window` is a limit of so many requests in so many seconds, counted as a provider counts
them.
"""

from __future__ import annotations

import email.utils
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

_ANSWER = re.compile(r"=== BEGIN ANSWER (?:OF )?(\S+) ===\n(.*?)\n=== END ANSWER (?:OF )?\1 ===", re.DOTALL)
AGAIN = "held no verdict"


@dataclass
class JudgeServer:
    """What the server does and what it saw. Troubles are consumed in order, one per request."""

    script: list[str] = field(default_factory=list)
    always: str = ""
    delay_s: float = 0.0
    window: tuple[int, float] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    usage: dict[str, Any] = field(
        default_factory=lambda: {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105}
    )
    turned_away: int = 0
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

    def to_wait(self) -> float:
        """Seconds until the window has room, as of the request that was counted last; 0 when it has."""
        if self.window is None:
            return 0.0
        most, seconds = self.window
        with self.lock:
            now = self.times[-1]
            recent = [time for time in self.times if now - time < seconds]
            return 0.0 if len(recent) <= most else recent[0] + seconds - now


def longer_wins(request: dict[str, Any]) -> str:
    """The rule, in the form that the request asks for: [[A]], [[B]] or [[C]], a ranking, or one model's name."""
    text = "\n".join(message["content"] for message in request["messages"])
    shown = _ANSWER.findall(text)[:2]
    (one, first), (two, second) = shown
    better, worse = (one, two) if len(first) >= len(second) else (two, one)
    if one == "A":
        return "[[C]]" if len(first) == len(second) else f"[[{better}]]"
    if one == "m":
        return better
    return f"[{{'model': '{better}', 'rank': 1}}, {{'model': '{worse}', 'rank': 2}}]"


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
            if state.delay_s and not trouble:
                time.sleep(state.delay_s)
            self._answer(request, trouble)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client was killed
        finally:
            with state.lock:
                state.in_flight -= 1

    def _answer(self, request: dict[str, Any], trouble: str) -> None:
        key = self.headers["Authorization"].removeprefix("Bearer ")
        if wait := self.state.to_wait():
            self.state.turned_away += 1
            return self._error(429, "too many requests", headers={"Retry-After": f"{wait:.3f}"})
        if self._refused(trouble, key):
            return None
        body = json.dumps(self._completion(request, trouble, key)).encode()
        if trouble == "echo key escaped":
            body = body.replace(b"/", rb"\/")
        if trouble == "cut body":
            return self._send(200, body[: len(body) // 2], length=len(body))
        with self.state.lock:
            self.state.answered[hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()] += 1
        return self._send(200, body, self.state.headers)

    def _refused(self, trouble: str, key: str) -> bool:
        """Whether the trouble leaves no completion; then it was answered, or cut."""
        name, _, number = trouble.partition(":")
        date = email.utils.formatdate(time.time() + float(number or 0), usegmt=True)
        headers = {
            "429": {"Retry-After": number} if number else {},
            "429 ms": {"Retry-After-Ms": number},
            "429 date": {"Retry-After": date},
            "503": {"Retry-After": number} if number else {},
        }
        codes = {
            "quota": (429, "insufficient_quota", None),
            "unsupported": (400, "unsupported_parameter", "temperature"),
            "inspected": (400, "data_inspection_failed", None),
            "too long": (400, "context_length_exceeded", "messages"),
        }
        if name in headers:
            self._error(int(name[:3]), "slow down", headers=headers[name])
        elif name in codes:
            status, code, param = codes[name]
            self._error(status, f"no: {name}", code, param=param)
        elif name in ("400", "401", "402", "403", "404", "500"):
            self._error(int(name), f"no: the key was {key}")
        elif name == "cut":
            self.close_connection = True
            self.connection.shutdown(2)
        elif name == "not json":
            self._send(200, b'{"choices": [')
        elif name == "login page":
            self._send(200, f"<html>Log in, {key}\x1b[2J</html>".encode(), {"Content-Type": "text/html"})
        else:
            return False
        return True

    def _completion(self, request: dict[str, Any], trouble: str, key: str) -> dict[str, Any]:
        said, finish, extra = longer_wins(request), "stop", {}
        if trouble == "no label" and AGAIN not in request["messages"][-1]["content"]:
            said = "Both have merit."
        elif trouble == "never a label":
            said = "I cannot choose."
        elif trouble in ("length", "content_filter"):
            finish = trouble
        elif trouble in ("echo key", "echo key escaped"):
            said = f"your key is {key}. {said}"
        elif trouble == "tags":
            said = f"<think>At first sight [[A]] or [[B]]?</think>{said}"
        elif trouble == "thinking apart":
            extra = {"reasoning_content": f"I was asked with {key}. [[C]]"}
        message = {"role": "assistant", "content": said, **extra}
        model = "judge\x1b[2J\x1b]0;owned\x07\u202e" if trouble == "escapes" else "judge-2026-01-01"
        choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": finish}
        if request.get("logprobs"):
            other = {"m": "M", "M": "m"}[said]
            first = {"token": said, "logprob": -0.1, "top_logprobs": [{"token": other, "logprob": -2.5}]}
            choice["logprobs"] = {"content": [first]}
        return {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": model,
            "system_fingerprint": "fp",
            "choices": [choice],
            "usage": self.state.usage,
        }

    def _error(
        self,
        status: int,
        message: str,
        code: str = "x",
        headers: dict[str, str] | None = None,
        param: str | None = None,
    ) -> None:
        body = {"error": {"message": message, "type": "x", "code": code, "param": param}}
        self._send(status, json.dumps(body).encode(), headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        if length is not None:
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(2)

    def log_message(self, *args: Any) -> None:
        """Silence: the tests read stderr."""


@contextmanager
def on_loopback(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """A running server on a free port; gives its base URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def serving(**settings: Any) -> Iterator[JudgeServer]:
    """A running judge; `state.url` is its base URL."""
    state = JudgeServer(**settings)
    with on_loopback(type("Handler", (_Handler,), {"state": state})) as state.url:
        yield state
