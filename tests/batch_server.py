"""A real server with a Batch API on loopback: it takes files, begins batches, and answers when it has been polled.

It judges as `judge_server` does, the longer answer wins, so the expected record can be worked out by hand and is the
live judge's. `paid` counts every completion that it made, by custom_id: that is what a user would be billed for.
Troubles are named by the moment they strike; at a moment in `hold_at` the server stands still until `release`, which is
when a test kills the client.
"""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from judge_server import AGAIN, longer_wins, on_loopback


@dataclass
class BatchServer:
    """What the server holds, did and saw.

    `creates` are troubles of the calls that begin a batch, one each: 429, 500, cut before, cut after, 401. `ends` are
    troubles of batches, one each: expired, cancelled, failed, crowded, gone (the output file). `lines` gives the
    trouble of a request by its position in its batch: a status, "no label", "malformed", "missing", "echo key",
    "separator", "no choices".
    """

    polls: int = 1
    creates: list[str] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    lines: dict[int, str] = field(default_factory=dict)
    lasting: bool = False  # whether troubles of lines strike every batch, or the first alone
    most_waiting: int = 0  # requests that may wait at once; 0 is no limit
    away: set[int] = field(default_factory=set)  # the polls, by number, whose connection is cut
    named: bool = True  # whether it keeps a batch's metadata
    offered: bool = True  # whether there is a Batch API at all
    hold_at: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    paid: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    reached: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    url: str = ""
    lock: threading.RLock = field(default_factory=threading.RLock)

    def at(self, moment: str) -> None:
        """Stand still here if a test wants it."""
        if moment == self.hold_at:
            self.reached.set()
            self.release.wait(30)

    def store(self, content: bytes) -> str:
        with self.lock:
            number = f"file-{len(self.files) + 1}"
            self.files[number] = content
        return number

    def begin(self, request: dict[str, Any], key: str) -> dict[str, Any]:
        with self.lock:
            requests = [json.loads(line) for line in self.files[request["input_file_id"]].split(b"\n") if line]
            waiting = sum(
                batch["request_counts"]["total"] for batch in self.batches.values() if batch["status"] == "in_progress"
            )
            crowded = self.most_waiting and waiting + len(requests) > self.most_waiting
            batch = {
                "id": f"batch_{len(self.batches) + 1}",
                "object": "batch",
                "endpoint": request["endpoint"],
                "completion_window": request["completion_window"],
                "input_file_id": request["input_file_id"],
                "metadata": request.get("metadata") if self.named else None,
                "created_at": int(time.time()),
                "status": "in_progress",
                "request_counts": {"total": len(requests), "completed": 0, "failed": 0},
                "_end": "crowded" if crowded else self.ends.pop(0) if self.ends else "completed",
                "_polls": 0,
                "_key": key,
            }
            if crowded:
                batch["request_counts"] = {"total": 0, "completed": 0, "failed": 0}
            self.batches[batch["id"]] = batch
        return batch

    def bill(self) -> Counter[str]:
        """How often each request was answered once every batch has run to its end, asked after or not."""
        with self.lock:
            for batch in self.batches.values():
                if batch["status"] == "in_progress":
                    self.end(batch)
        return self.paid

    def poll(self, batch: dict[str, Any]) -> None:
        with self.lock:
            batch["_polls"] += 1
            if batch["status"] == "in_progress" and batch["_polls"] > self.polls:
                self.end(batch)

    def end(self, batch: dict[str, Any]) -> None:
        """Answer every request, or those that the trouble lets through."""
        how = batch["_end"]
        batch["status"] = {"crowded": "failed", "gone": "completed"}.get(how, how)
        if batch["status"] == "failed":
            code = "token_limit_exceeded" if how == "crowded" else "invalid_json_line"
            said = f"Enqueued token limit reached; the key was {batch['_key']}"
            batch["errors"] = {"object": "list", "data": [{"code": code, "message": said}]}
            return
        requests = [json.loads(line) for line in self.files[batch["input_file_id"]].split(b"\n") if line]
        troubles, self.lines = self.lines, self.lines if self.lasting else {}
        good, bad = [], []
        for position, request in enumerate(requests):
            if how in ("expired", "cancelled") and position >= len(requests) // 2:
                error = {"code": f"batch_{how}", "message": "not reached"}
                bad.append(json.dumps({"custom_id": request["custom_id"], "response": None, "error": error}))
                continue
            line, is_good = self.answer(request, troubles.get(position, ""), batch["_key"])
            (good if is_good else bad).append(line)
        random.Random(0).shuffle(good)
        batch["request_counts"] = {"total": len(requests), "completed": len(good), "failed": len(bad)}
        batch["output_file_id"] = self.store("".join(line + "\n" for line in good if line).encode())
        if bad:
            batch["error_file_id"] = self.store("".join(line + "\n" for line in bad).encode())
        if how == "gone":
            del self.files[batch["output_file_id"]]

    def answer(self, request: dict[str, Any], trouble: str, key: str) -> tuple[str, bool]:
        """One line of a result file, and whether it belongs into the output."""
        body = request["body"]
        self.bodies.append(body)
        if trouble.isdigit() or trouble == "filter":
            code = "content_filter" if trouble == "filter" else "x"
            error = {"error": {"message": f"no: the key was {key}", "code": code, "type": "x"}}
            response = {"status_code": 400 if trouble == "filter" else int(trouble), "request_id": "r", "body": error}
            return json.dumps({"custom_id": request["custom_id"], "response": response, "error": None}), False
        said = longer_wins(body)
        if trouble == "no label" and AGAIN not in body["messages"][-1]["content"]:
            said = "Both have merit."
        elif trouble == "echo key":
            said = f"your key is {key}. {said}"
        elif trouble == "separator":
            said = f"one\u2028two\x85three {said}"
        self.paid[request["custom_id"]] += 1
        completion: dict[str, Any] = {
            "model": "judge-2026-01-01",
            "system_fingerprint": "fp",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105},
        }
        if trouble == "no choices":
            completion["choices"] = []
        response = {"status_code": 200, "request_id": "r", "body": completion}
        line = {"id": "x", "custom_id": request["custom_id"], "response": response, "error": None}
        text = json.dumps(line, ensure_ascii=False)
        return {"malformed": text[:-9], "missing": ""}.get(trouble, text), True


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: BatchServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = urlsplit(self.path).path.removeprefix("/v1")
        self.state.calls[f"POST {path}"] += 1
        try:
            if not self.state.offered:
                self._error(404, "nothing here")
            elif path == "/files":
                self._upload(body)
            elif path == "/batches":
                self._create(json.loads(body))
            else:
                self._error(404, "nothing here")
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client was killed

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path = parts.path.removeprefix("/v1")
        self.state.calls[f"GET {re.sub('[0-9]+', 'N', path)}"] += 1
        try:
            if not self.state.offered:
                self._error(404, "nothing here")
            elif content := re.fullmatch(r"/files/([^/]+)/content", path):
                self._content(content[1])
            elif path == "/batches":
                self._list(parse_qs(parts.query))
            elif (one := re.fullmatch(r"/batches/([^/]+)", path)) and one[1] in self.state.batches:
                if self.state.calls["GET /batches/batch_N"] in self.state.away:
                    self.close_connection = True
                    self.connection.shutdown(2)
                    return
                batch = self.state.batches[one[1]]
                self.state.poll(batch)
                self.state.at("polling")
                self._json(_shown(batch))
            else:
                self._error(404, "nothing here")
        except (BrokenPipeError, ConnectionResetError):
            pass

    def _upload(self, body: bytes) -> None:
        self.state.at("before upload")
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        fields = {}
        for part in BytesParser(policy=HTTP).parsebytes(head + body).iter_parts():
            fields[part.get_param("name", header="content-disposition")] = part
        assert fields["purpose"].get_payload(decode=True) == b"batch"
        content = fields["file"].get_payload(decode=True)
        name = str(fields["file"].get_filename())
        number = self.state.store(content)
        self.state.at("after upload")
        shown = {"id": number, "object": "file", "bytes": len(content), "created_at": 0, "filename": name}
        self._json({**shown, "purpose": "batch", "status": "processed"})

    def _create(self, request: dict[str, Any]) -> None:
        state = self.state
        with state.lock:
            trouble = state.creates.pop(0) if state.creates else ""
        if trouble == "429":
            return self._error(429, "slow down", {"Retry-After": "0.2"})
        if trouble.isdigit():
            return self._error(int(trouble), f"no: the key was {self._key()}")
        state.at("before create")
        if trouble != "cut before":
            batch = state.begin(request, self._key())
            state.at("after create")
        if trouble.startswith("cut"):
            self.close_connection = True
            self.connection.shutdown(2)
            return None
        return self._json(_shown(batch))

    def _list(self, query: dict[str, list[str]]) -> None:
        batches = list(reversed(self.state.batches.values()))  # the newest first, as OpenAI lists them
        names = [batch["id"] for batch in batches]
        start = names.index(query["after"][0]) + 1 if "after" in query else 0
        page = batches[start : start + 2]  # small pages, so that a second one is asked for
        more = start + 2 < len(batches)
        self._json({"object": "list", "data": [_shown(batch) for batch in page], "has_more": more})

    def _content(self, file: str) -> None:
        if file not in self.state.files:
            return self._error(404, "no such file")
        content = self.state.files[file]
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        self.state.at("downloading")
        self.wfile.write(content[len(content) // 2 :])
        self.wfile.flush()
        self.state.at("downloaded")
        return None

    def _key(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _json(self, body: dict[str, Any]) -> None:
        self._send(200, json.dumps(body).encode())

    def _error(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps({"error": {"message": message, "type": "x", "code": "x"}}).encode(), headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Silence: the tests read stderr."""


def _shown(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if not name.startswith("_")}


@contextmanager
def batch_serving(**settings: Any) -> Iterator[BatchServer]:
    """A running server with a Batch API; `state.url` is its base URL."""
    state = BatchServer(**settings)
    with on_loopback(type("Handler", (_Handler,), {"state": state})) as state.url:
        try:
            yield state
        finally:
            state.release.set()
