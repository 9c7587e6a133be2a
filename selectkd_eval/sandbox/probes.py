"""Is the jail real here? What a hostile program would try first, tried at every worker's start.

The attempts run as candidates of both modes, through the same fork-server, lock and pipes as any program. They are
harmless where they succeed: signal 0, a canary file of ours, a listening socket of ours. An attempt that succeeds, or
whose result is missing, makes the sandbox refuse to start (client), except where the user vouches (tier external).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

NAMES = {
    "read": "read a file outside its directory",
    "write": "write a file in the home directory",
    "tcp": "connect to a TCP socket on the loopback interface",
    "unix": "connect to an abstract unix socket",
    "socket": "make a network socket",
    "fork": "start another process",
    "execve": "run another program",
    "kill": "send a signal to the process above it",
    "ptrace": "trace the process above it",
    "memory": "open the memory of the process above it",
    "environment": "see the environment of the caller",
}
"""Every attempt, and what it says about the jail when it succeeds."""

ENVIRONMENT = (
    *("HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_BIND_NOW", "PATH", "PWD", "OLDPWD"),
    *("PYTHONHASHSEED", "PYTHONDONTWRITEBYTECODE", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"),
    "container",
)
"""The names that a program may find in its environment; any other has leaked from the caller."""

_CODE = """
import ctypes, os, socket
canaries = {canaries!r}
libc = ctypes.CDLL(None, use_errno=True)
def read():
    with open(canaries["file"]) as file:
        return file.read()
def write():
    with open(canaries["home"], "a"):
        pass
def tcp():
    with socket.create_connection(("127.0.0.1", canaries["port"]), timeout=1):
        pass
def unix():
    with socket.socket(socket.AF_UNIX) as unix:
        unix.connect(chr(0) + canaries["abstract"])
def internet():
    socket.socket().close()
def fork():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
def execve():
    try:
        os.execve("/no/such/program", ["none"], {{}})
    except FileNotFoundError:
        pass
def kill():
    os.kill(os.getppid(), 0)
def ptrace():
    if libc.ptrace(0x4206, os.getppid(), None, None) < 0:
        raise OSError(ctypes.get_errno(), "ptrace")
def memory():
    os.close(os.open("/proc/%d/mem" % os.getppid(), os.O_RDONLY))
def environment():
    if not set(os.environ) - set(canaries["environment"]):
        raise OSError(0, "nothing of the caller's")
attempts = dict(read=read, write=write, tcp=tcp, unix=unix, socket=internet, fork=fork, execve=execve,
                kill=kill, ptrace=ptrace, memory=memory, environment=environment)
for name, attempt in attempts.items():
    try:
        attempt()
        found = "reached"
    except BaseException as error:
        found = "blocked"
    print("{token}", name, found, flush=True)
"""


def run(
    execute: Callable[[dict[str, Any], str], dict[str, Any]], canaries: dict[str, Any]
) -> dict[str, dict[str, str]]:
    """mode -> attempt -> `blocked`, `reached` or `no answer`, for a function that runs one program in one mode."""
    found = {}
    for mode in ("isolated", "official"):
        token = os.urandom(8).hex()
        code = _CODE.format(canaries=canaries | {"environment": ENVIRONMENT}, token=token)
        program = {"id": f"probe/{mode}", "code": code, "test": "assert True", "setup": "", "imports": ""}
        outcome = execute(program | {"entry_point": "", "plus": None, "given": ""}, mode)
        answers = {
            words[1]: words[2]
            for line in outcome["output"].splitlines()
            if len(words := line.split()) == 3 and words[0] == token
        }
        found[mode] = {name: answers.get(name, "no answer") for name in NAMES}
    return found


def failures(found: dict[str, dict[str, str]]) -> list[str]:
    """What a program could do, in words; empty when every attempt was blocked in both modes."""
    return [
        f"a program could {NAMES[name]}" if answer == "reached" else f"the probe {name!r} gave no answer"
        for answers in found.values()
        for name, answer in answers.items()
        if answer != "blocked"
    ]
