"""What machine is this, and does it have what a feature needs?

The one place where optional backends are looked up, devices are chosen and files are fingerprinted.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from selectkd_eval.errors import InputError, SetupError

_REPORTED = ("torch", "transformers", "peft", "lm_eval", "vllm", "openai", "numpy")


def require(module: str, feature: str, extra: str) -> ModuleType:
    """Import an optional backend, or say which feature needs it and the exact command that brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.split(".", maxsplit=1)[0] != error.name.split(".")[0]:
            raise
        raise SetupError(
            f"{feature} needs the package {module.split('.', maxsplit=1)[0]!r}, which is not installed here: "
            f"pip install 'selectkd-eval[{extra}]'"
        ) from None


def device(name: str = "auto") -> str:
    """The torch device for `auto` (cuda when there is one), or `name` checked to exist."""
    torch = require("torch", "running a model", "train")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not (kind == "cuda" and index.isdigit())):
        raise InputError(f"there is no device {name!r}: use auto, cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise SetupError(f"--device {name} was asked for, but torch sees no GPU here: use --device cpu")
    if index and int(index) >= torch.cuda.device_count():
        raise SetupError(f"--device {name} was asked for, but torch sees {torch.cuda.device_count()} GPU: name another")
    return name


def set_threads(threads: int) -> int:
    """Fix torch's thread count and return it; 0 takes OMP_NUM_THREADS, or at most two.

    More threads than free cores make small models several times slower: the workers wait for each other.
    """
    torch = require("torch", "running a model", "train")
    asked = os.environ.get("OMP_NUM_THREADS", "")
    count = threads or (int(asked) if asked.isdigit() and int(asked) else min(2, available_cores()))
    torch.set_num_threads(count)
    return count


def expect_hub() -> None:
    """Tell the hub's client not to try where the hub's name does not resolve: it would for most of a minute.

    What it has fetched before is still found. Behind a proxy only the proxy knows the name, so nothing is done there.
    """
    # By its own name: the package shows it only once somebody has imported it.
    constants: Any = require("huggingface_hub.constants", "a model or data set from the hub", "train")
    proxies = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
    if constants.HF_HUB_OFFLINE or any(os.environ.get(name) for name in proxies):
        return
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except OSError:
        constants.HF_HUB_OFFLINE = True


def available_cores() -> int:
    """Cores this process may run on, which in a container is fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def sha256_file(path: str | Path) -> str:
    """Hex digest of a file's bytes; an InputError when it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; give a readable file") from None


def fingerprint_dir(path: str | Path) -> str:
    """Digest of what a saved model is: its weights, configuration and tokenizer files, whatever their dates."""
    kept = sorted(
        file
        for pattern in ("*.safetensors", "*.bin", "*.json", "*.model", "*.jinja")
        for file in Path(path).glob(pattern)
        if file.name not in ("selectkd.json", "trainer_state.json")
    )
    digest = hashlib.sha256()
    for file in kept:
        digest.update(f"{file.name} {sha256_file(file)}\n".encode())
    return digest.hexdigest()


def free_bytes(path: Path) -> int:
    """Free space on the disk that holds `path`, or its nearest existing parent."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def describe() -> dict[str, Any]:
    """The machine and the versions, for a record's header. Nothing that names a user or holds a secret."""
    versions = {}
    for name in _REPORTED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": available_cores(),
        "packages": versions,
    }


@lru_cache(maxsize=1)
def git_commit() -> str | None:
    """The commit this package's source stands at, with `+` when it was edited; None outside a checkout."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "HEAD")
    edited = git("status", "--porcelain", "--untracked-files=no")
    return f"{commit}{'+' if edited else ''}" if commit else None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"
