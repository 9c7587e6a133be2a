"""A process that has moved out of this machine sees nothing of it, as root and as a plain user."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from selectkd_eval.sandbox import identity, namespaces

REPOSITORY = Path(__file__).resolve().parents[1]
HEAD = f"""
import json, os, socket, struct, sys, time
sys.dont_write_bytecode = True
sys.path[:0] = [{str(REPOSITORY)!r}, {str(REPOSITORY / "tests")!r}]
from selectkd_eval.sandbox import confine, identity, landlock, namespaces, syscalls
import confining
"""
# In process 1 of the new machine. `given` comes from the test.
INSIDE = """
namespaces.enter([*confine.python_paths(), *given['read']], '/slot', 1 << 20)
ours, theirs = os.pipe()
child = os.fork()
if child:
    os.close(theirs)
    sys.stdout.write(os.fdopen(ours).read())
    os.waitpid(child, 0)
    sys.exit()
try:
    def tried(do):
        try: return f'done: {do()}'
        except OSError as error: return type(error).__name__ + ' ' + os.strerror(error.errno)
    held = confining.ctypes.create_string_buffer(24)
    syscalls.call('capget', identity.HEADER, held)
    found = {
        'pid': os.getpid(), 'parent': os.getppid(), 'user': os.getresuid(), 'capabilities': any(held.raw),
        'host': os.uname().nodename, 'root': sorted(os.listdir('/')), 'dev': sorted(os.listdir('/dev')),
        'secret': tried(lambda: open(given['secret']).read()),
        'shown': tried(lambda: open(given['read'][0]).read()),
        'change shown': tried(lambda: open(given['read'][0], 'w')),
        'change python': tried(lambda: open(os.__file__, 'a')),
        'tcp': tried(lambda: socket.create_connection(('127.0.0.1', given['port']), 5)),
        'abstract': tried(lambda: socket.socket(socket.AF_UNIX).connect(given['abstract'].encode())),
        'kill': tried(lambda: os.kill(given['pid'], 0)),
        'mount': tried(lambda: namespaces._mount('tmpfs', '/slot', 'tmpfs', 0)),
        'new root file': tried(lambda: open('/x', 'w')),
        'work': tried(lambda: open('/slot/a', 'wb').write(b'x' * 1000)),
        'too much': tried(lambda: open('/slot/b', 'wb').write(b'x' * (2 << 20))),
        'null': tried(lambda: open('/dev/null', 'w').write('x')),
        'random': tried(lambda: len(open('/dev/urandom', 'rb').read(8))),
        'import': tried(lambda: __import__('sqlite3').__name__),
    }
    if landlock.abi():
        os.remove('/slot/b')
        os.mkdir('/slot/own')
        jail = confine.prepare(confining.Limits(), '/slot/own', confine.python_paths())
        first, second = os.pipe()
        if os.fork() == 0:
            attempts = {'write': "open('x', 'w').write('y')", 'beside': "open('/slot/z', 'w')", 'fork': 'os.fork()'}
            confining.locked(jail, {'attempts': attempts}, second)
        os.close(second)
        found['locked'] = json.loads(os.fdopen(first).read())
        os.wait()
    os.write(theirs, json.dumps(found).encode())
except BaseException as error:
    os.write(theirs, json.dumps({'broken': repr(error)}).encode())
finally:
    os._exit(0)
"""


def run(script: str, python: str = sys.executable) -> str:
    ran = subprocess.run([python, "-B", "-c", HEAD + script], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def seen_inside(directory: Path, preamble: str = "", python: str = sys.executable) -> dict[str, Any]:
    (directory / "secret").write_text("secret")
    (directory / "shown").write_text("shown")
    with socket.socket() as server, socket.socket(socket.AF_UNIX) as abstract:
        server.bind(("127.0.0.1", 0))
        server.listen()
        name = f"\0namespaces-test-{os.getpid()}"
        abstract.bind(name)
        abstract.listen()
        given = {"read": [str(directory / "shown")], "secret": str(directory / "secret"), "pid": os.getpid()}
        given |= {"port": server.getsockname()[1], "abstract": name}
        found: dict[str, Any] = json.loads(run(f"given = {given!r}\n{preamble}{INSIDE}", python))
    assert "broken" not in found, found["broken"]
    assert (directory / "shown").read_text() == "shown"
    return found


def check(found: dict[str, Any]) -> None:
    assert found["pid"] == 1 and found["parent"] == 0 and found["host"] == "sandbox" and not found["capabilities"]
    assert "proc" not in found["root"] and "sys" not in found["root"]
    assert set(found["dev"]) <= {"null", "zero", "random", "urandom"}
    assert found["secret"] == "FileNotFoundError No such file or directory" and found["shown"] == "done: shown"
    assert found["change shown"] in ("OSError Read-only file system", "PermissionError Permission denied")
    assert found["change python"] in ("OSError Read-only file system", "PermissionError Permission denied")
    assert found["tcp"] == "OSError Network is unreachable"
    assert found["abstract"] == "ConnectionRefusedError Connection refused"
    assert found["kill"] == "ProcessLookupError No such process"
    assert found["mount"].startswith("PermissionError") or "Operation not permitted" in found["mount"]
    assert not found["new root file"].startswith("done")
    assert found["work"] == "done: 1000" and found["too much"] == "OSError No space left on device"
    assert found["null"] == "done: 1" and found["random"] == "done: 8" and found["import"] == "done: sqlite3"
    if "locked" in found:
        assert found["locked"] == {"write": "done: None", "beside": "PermissionError 13", "fork": "PermissionError 1"}


def need_namespaces() -> None:
    if reason := json.loads(run("print(json.dumps(namespaces.available()))")):
        pytest.skip(reason)


def test_nothing_of_this_machine_is_seen(tmp_path: Path) -> None:
    need_namespaces()
    found = seen_inside(tmp_path)
    check(found)
    if os.geteuid() == 0:
        assert len(set(found["user"])) == 1 and found["user"][0] >= identity.NOBODY


def test_a_plain_user_can_do_the_same(tmp_path: Path) -> None:
    """With a user namespace of his own. As root this needs a Python that others may read: the system's."""
    need_namespaces()
    if os.geteuid() != 0:
        pytest.skip("this is a plain user: the test above did it")
    python = next(
        (name for name in ("/usr/bin/python3", "/usr/local/bin/python3") if Path(name).exists()), sys.executable
    )
    base, version = subprocess.check_output(
        [python, "-c", "import sys; print(sys.base_prefix, sys.version_info >= (3, 11))"], text=True
    ).split()
    if version != "True" or not identity.open_to_all([base, str(REPOSITORY / "tests" / "confining.py")]):
        pytest.skip("no Python 3.11 and checkout that a plain user may read")
    for up in (tmp_path, *tmp_path.parents[:3]):
        if up != Path("/tmp"):
            up.chmod(0o755)
    become = "os.setgroups([]); os.setresgid(12345, 12345, 12345); os.setresuid(12345, 12345, 12345)\n"
    found = seen_inside(tmp_path, become, python)
    check(found)
    assert found["user"] == [12345] * 3


def test_a_refusal_is_told_with_its_step() -> None:
    """In a container's default profile, and where user namespaces are switched off, nothing is entered by halves."""
    said = run("confining.deny_namespaces()\nconfining.keep_capabilities(0)\nprint(namespaces.available())")
    assert said.startswith("unshare: ")


def test_user_namespaces_switched_off_are_named() -> None:
    """The switch is turned off inside a user namespace of the test's own, where it counts for that one only."""
    need_namespaces()
    said = run("""
user = os.getuid()
syscalls.call('unshare', 0x10000000)
open('/proc/self/setgroups', 'w').write('deny')
open('/proc/self/uid_map', 'w').write(f'{user} {user} 1')
open('/proc/sys/user/max_user_namespaces', 'w').write('0')
print(namespaces.available())
""")
    assert said.strip() == "unshare: No space left on device (user.max_user_namespaces is 0)"


def test_the_caller_is_left_as_it_was() -> None:
    script = """
before = (os.getcwd(), os.getresuid(), os.listdir('/'), os.readlink('/proc/self/ns/mnt'))
namespaces.available()
after = (os.getcwd(), os.getresuid(), os.listdir('/'), os.readlink('/proc/self/ns/mnt'))
print(before == after, end='')
"""
    assert run(script) == "True"


def test_who_may_read_what(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    tmp_path.joinpath("a").chmod(0o700)
    inner.chmod(0o755)
    assert not identity.open_to_all([str(inner)])
    assert identity.open_to_all([str(inner)], way=False)
    assert identity.open_to_all([str(tmp_path / "missing")])
    inner.chmod(0o750)
    assert not identity.open_to_all([str(inner)], way=False)


def test_names_of_what_is_missing_are_left_out() -> None:
    need_namespaces()
    assert run("print(namespaces.available([*confine.python_paths(), '/no/such/place']))").strip() == "None"
    assert namespaces._reason("x").startswith("x")
