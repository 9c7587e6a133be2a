"""A process that locks itself up and tries things, for the tests of the sandbox's walls. Run as a script.

Reads one JSON object from stdin: the directory, what to read, the Landlock version to use, preparations of the parent
and attempts (name -> Python text). Prints name -> what came of it, from inside the lock.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import sys
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from selectkd_eval.sandbox import confine, identity, syscalls
from selectkd_eval.sandbox.program import Limits

CONTAINER_CAPABILITIES = 0xA80425FB  # what a container has by default


def deny_namespaces() -> None:
    """What the default profile of containers does: no new namespaces, no mounts, no clone3."""
    allow, refuse, absent = 0x7FFF0000, 0x50001, 0x50026
    load, test, bits, give = 0x20, 0x15, 0x45, 0x06
    numbers = syscalls.NUMBERS
    steps: list[tuple[int, int, int, int]] = [(load, 0, 0, 0)]
    for name in ("unshare", "setns", "mount", "umount2", "pivot_root", "mount_setattr"):
        steps += [(test, 0, 1, numbers[name]), (give, 0, 0, refuse)]
    steps += [(test, 0, 1, numbers["clone3"]), (give, 0, 0, absent)]
    steps += [(test, 0, 3, numbers["clone"]), (load, 0, 0, 16), (bits, 0, 1, 0x7E020000), (give, 0, 0, refuse)]
    steps += [(give, 0, 0, allow)]
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    buffer = ctypes.create_string_buffer(code, len(code))
    syscalls.call("prctl", 38, 1, 0, 0, 0)
    syscalls.call("seccomp", 1, 0, struct.pack("@HP", len(steps), ctypes.addressof(buffer)))


def keep_capabilities(kept: int) -> None:
    """Hold these capabilities, as far as they are held now, and no others."""
    held = ctypes.create_string_buffer(24)
    syscalls.call("capget", identity.HEADER, held)
    effective, permitted, *_ = struct.unpack("=6I", held.raw)
    low = permitted & kept
    syscalls.call("capset", identity.HEADER, struct.pack("=6I", effective & low, low, 0, 0, 0, 0))


def attempt(text: str, names: dict[str, Any]) -> str:
    """`done: value`, or the exception: `PermissionError 1`."""
    try:
        exec(text, names)
        return f"done: {names.get('value')!r}"
    except OSError as error:
        return f"{type(error).__name__} {error.errno}"
    except BaseException as error:  # whatever the attempt ends with is the answer
        return f"{type(error).__name__}: {error}"


def locked(jail: confine.Jail, order: dict[str, Any], report: int) -> None:
    """In the child: lock, try everything, report. Never returns."""
    try:
        os.setsid()
        parent = os.getppid()
        jail.lock()
        found = {}
        for name, text in order["attempts"].items():
            found[name] = attempt(text, {**globals(), "parent": parent, "call": syscalls.call, "report": report})
        data = json.dumps(found).encode()
        while data:
            data = data[os.write(report, data) :]
    except BaseException:  # into the test's message
        os.write(report, json.dumps({"broken": traceback.format_exc()}).encode())
    finally:
        os._exit(0)


def main() -> None:
    """Prepare, fork, wait; prints what the child found, how it ended, and the jail's own facts."""
    order = json.load(sys.stdin)
    if "capabilities" in order:
        keep_capabilities(order["capabilities"])
    if order.get("deny_namespaces"):
        deny_namespaces()
    exec(order.get("before", ""), globals())
    read = [*confine.python_paths(), *order["read"]]
    jail = confine.prepare(Limits(**order["limits"]), order["directory"], read, abi=order["abi"])
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        locked(jail, order, theirs)
    os.close(theirs)
    with os.fdopen(ours, "rb") as stream:
        said = stream.read()
    _, status, usage = os.wait4(child, 0)
    found = json.loads(said or b"{}")
    cpu = usage.ru_utime + usage.ru_stime
    print(json.dumps({"found": found, "status": status, "cpu": cpu, "facts": jail.facts}))


if __name__ == "__main__":
    main()
