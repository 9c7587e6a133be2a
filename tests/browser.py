"""A small driver of a real headless Chromium over its debugging pipe: no port, no further package.

Everything that the page does is watched from before it loads: requests, console messages, exceptions, violations of
the content policy.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
_FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio"),
    *("--disable-background-networking", "--disable-extensions", "--disable-sync", "--force-color-profile=srgb"),
    *("--hide-scrollbars", "--remote-debugging-pipe"),
)
_WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (e) => {
  violations.push(`${e.violatedDirective} ${e.blockedURI} ${e.sample}`);
});
"""
_KEYS = {
    **{"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "ArrowUp": 38, "ArrowDown": 40, "ArrowLeft": 37},
    **{"ArrowRight": 39, "+": 187, "-": 189},
}


class Browser:
    """One Chromium process. A call that is not answered within `timeout` seconds is a TimeoutError."""

    def __init__(self, profile: Path, timeout: float = 60.0) -> None:
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        self._timeout, self._buffer, self._number = timeout, b"", 0
        self.events: list[dict[str, Any]] = []

        def plumb() -> None:  # the pipe's ends are descriptors 3 and 4 by agreement
            low = [os.dup2(to_read, 100), os.dup2(to_write, 101)]
            os.dup2(low[0], 3)
            os.dup2(low[1], 4)

        self._process = subprocess.Popen(
            [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=plumb,  # noqa: PLW1509
        )
        os.close(to_read)
        os.close(to_write)

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """One command and its result; what happens meanwhile is kept in `events`."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": params, **({"sessionId": session} if session else {})}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next(self._timeout)
            if found.get("id") == number:
                assert "error" not in found, f"{method}: {found['error']}"
                return dict(found["result"])
            self.events.append(found)

    def settle(self, seconds: float) -> None:
        """Take in what happens within so many seconds."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                self.events.append(self._next(left))
            except TimeoutError:
                return

    def _next(self, seconds: float) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._from], [], [], left)[0]:
                raise TimeoutError("Chromium did not answer")
            got = os.read(self._from, 1 << 20)
            if not got:
                raise EOFError("Chromium has ended")
            self._buffer += got
        line, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(line))

    def close(self) -> None:
        """End the process that was started here."""
        try:
            self.call("Browser.close")
        except (OSError, EOFError, TimeoutError):
            self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._to)
        os.close(self._from)


class Tab:
    """One page, opened by file://, and everything that it did."""

    def __init__(self, browser: Browser, path: Path, width: int = 1100, height: int = 900, dark: bool = False) -> None:
        self.browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.target = target
        self.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.call(f"{domain}.enable")
        self.call("Page.addScriptToEvaluateOnNewDocument", source=_WATCH)
        self.size(width, height)
        self.scheme("dark" if dark else "light")
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait("document.readyState === 'complete'")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **params)

    def run(self, expression: str) -> Any:
        """The value of an expression in the page; promises are awaited."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, condition: str, seconds: float = 30.0) -> None:
        """Until the expression is true."""
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({condition})"):
            if time.monotonic() > end:
                raise TimeoutError(f"never true: {condition}")
            self.browser.settle(0.02)

    def size(self, width: int, height: int, scale: float = 1) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )

    def scheme(self, name: str, media: str = "") -> None:
        """Light or dark, and the medium: "print" or the screen."""
        features = [
            {"name": "prefers-color-scheme", "value": name},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)

    def key(self, name: str, shift: bool = False) -> None:
        """Press and let go a key, as a person does."""
        code = _KEYS[name]
        text = {"Enter": "\r", " ": " ", "+": "+", "-": "-"}.get(name, "")
        told = {"key": name, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        self.call(
            "Input.dispatchKeyEvent",
            type="keyDown" if text else "rawKeyDown",
            **told,
            **({"text": text} if text else {}),
        )
        self.call("Input.dispatchKeyEvent", type="keyUp", **told)

    def write(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def picture(self, path: Path, whole: bool = True) -> Path:
        """A screenshot."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))
        return path

    def pdf(self) -> bytes:
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"])

    def _happened(self, method: str) -> Iterator[dict[str, Any]]:
        self.run("0")
        for event in self.browser.events:
            if event.get("sessionId") == self.session and event.get("method") == method:
                yield event["params"]

    @property
    def requests(self) -> list[str]:
        """What was asked for, without the page itself and what it holds."""
        asked = [event["request"]["url"] for event in self._happened("Network.requestWillBeSent")]
        return [url for url in asked[1:] if not url.startswith(("data:", "blob:"))]

    @property
    def complaints(self) -> list[str]:
        """Errors and warnings of the console, exceptions, and violations of the content policy."""
        said = [str(event["exceptionDetails"]) for event in self._happened("Runtime.exceptionThrown")]
        said += [
            str(event["args"])
            for event in self._happened("Runtime.consoleAPICalled")
            if event["type"] in ("error", "warning", "assert")
        ]
        said += [
            event["entry"]["text"]
            for event in self._happened("Log.entryAdded")
            if event["entry"]["level"] in ("error", "warning")
        ]
        return said + list(self.run("window.violations"))

    def close(self) -> None:
        self.browser.call("Target.closeTarget", targetId=self.target)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser with a fresh profile, ended and tidied away afterwards."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(Path(profile))
        try:
            yield browser
        finally:
            browser.close()
