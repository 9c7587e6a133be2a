"""How is one vLLM server asked? Token ids in, a reply out, over connections that are kept.

The standard library's client: a request is timed from outside, and nothing may stand between. Connections stay open
between requests, and one that the server has closed meanwhile is replaced before it is used, never after a request was
sent. Every failure is one sentence with the server's own words, in which the key is not shown.
"""

from __future__ import annotations

import http.client
import json
import select
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from selectkd_eval.errors import InputError, SetupError

TIMEOUT_S = 600.0


class Endpoint:
    """One server. `arm` names it in errors; `reason` tells why it is gone, where somebody knows."""

    def __init__(self, arm: str, url: str, key: str = "", reason: Callable[[], str] = str) -> None:
        self.arm, self.url, self._key, self._reason = arm, url, key, reason
        try:
            parts, port = urlsplit(url), urlsplit(url).port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"--server {arm}={url} is no address: write {arm}=http://HOST:PORT")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._open = lambda: kind(parts.hostname or "", port, timeout=TIMEOUT_S)
        self._path = parts.path.rstrip("/").removesuffix("/v1")
        self._idle: deque[http.client.HTTPConnection] = deque()

    def complete(self, body: Mapping[str, Any]) -> Any:
        """The JSON reply to a request of /v1/completions."""
        return self._json("POST", "/v1/completions", json.dumps(body).encode())

    def model(self) -> tuple[str, int | None]:
        """The name under which the server knows its model, and how many positions it gives a text, if it says so."""
        listed = self._json("GET", "/v1/models")
        models = listed.get("data") if isinstance(listed, Mapping) else None
        first = models[0] if isinstance(models, list) and models else None
        if not isinstance(first, Mapping) or "id" not in first:
            raise SetupError(f"the server at {self.url} lists no model: is this address a vLLM server's?")
        positions = first.get("max_model_len")
        return str(first["id"]), positions if isinstance(positions, int) else None

    def version(self) -> str:
        """vLLM's version as the server tells it."""
        told = self._json("GET", "/version")
        if not isinstance(told, Mapping) or "version" not in told:
            raise SetupError(f"the server at {self.url} does not tell its version: is this address a vLLM server's?")
        return str(told["version"])

    def healthy(self) -> bool:
        """Whether the server answers; never raises."""
        try:
            return self._ask("GET", "/health", None)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _json(self, method: str, path: str, body: bytes | None = None) -> Any:
        try:
            status, content = self._ask(method, path, body)
        except ConnectionRefusedError:
            raise SetupError(f"no vLLM server answers at {self.url} ({self.arm}): {self._gone('start it')}") from None
        except (OSError, http.client.HTTPException) as error:
            said = str(error) or type(error).__name__
            raise SetupError(
                f"the vLLM server at {self.url} ({self.arm}) gave no whole reply ({said}): {self._gone('is it up?')}"
            ) from None
        if status != 200:
            raise self._refusal(status, content)
        try:
            return json.loads(content)
        except ValueError:
            raise SetupError(
                f"the server at {self.url} ({self.arm}) replied {self._said(content)!r}, which is no JSON: is this "
                "address a vLLM server's?"
            ) from None

    def _ask(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        connection = self._connection()
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            connection.request(method, self._path + path, body, headers)
            response = connection.getresponse()
            content = response.read()
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)
        return response.status, content

    def _connection(self) -> http.client.HTTPConnection:
        """A connection that the server has not closed: a closed one has an end of file waiting to be read."""
        while self._idle:
            connection = self._idle.pop()
            if connection.sock is not None and not select.select([connection.sock], [], [], 0)[0]:
                return connection
            connection.close()
        return self._open()

    def _refusal(self, status: int, content: bytes) -> InputError | SetupError:
        said = self._said(content)
        where = f"the vLLM server at {self.url} ({self.arm})"
        if status in (401, 403):
            return InputError(f"{where} refused the key ({status}): put the right one into VLLM_API_KEY")
        if status == 404:
            return InputError(f"{where} knows no such model or path ({said}): give the address without /v1/completions")
        if status < 500:
            return InputError(f"{where} refused the request ({status}: {said}): give what it asks for")
        return SetupError(f"{where} failed ({status}: {said}): {self._gone('its own messages say more')}")

    def _gone(self, otherwise: str) -> str:
        return self._reason() or otherwise

    def _said(self, content: bytes) -> str:
        """A server's words: its error message where it has one, else the beginning of what came."""
        try:
            told = json.loads(content)
        except ValueError:
            told = content.decode("utf-8", "replace")
        for name in ("error", "message"):
            told = told.get(name, told) if isinstance(told, Mapping) else told
        words = " ".join(str(told).split())
        return (words.replace(self._key, "(the key)") if self._key else words)[:300]
