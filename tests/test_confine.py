"""A locked process can compute, and can do nothing else: on every Landlock version, in containers, as root or not."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest

from selectkd_eval.sandbox import identity, landlock, seccomp

DRIVER = Path(__file__).with_name("confining.py")
PACKAGES = str(Path(numpy.__file__).parents[1])
pytestmark = pytest.mark.skipif(
    not (landlock.abi() and seccomp.supported()), reason="this kernel has no Landlock or no seccomp"
)

# Free of arguments that could do harm if the wall were not there; each must be refused as "operation not permitted".
REFUSED = {
    "fork": "os.fork()",
    "vfork or clone": "call('clone', 17, None, None, None, 0)",
    "clone into a namespace": "call('clone', 0x00010000 | 0x20000000, None, None, None, 0)",
    "exec": "os.execv('/bin/true', ['true'])",
    "exec by descriptor": "call('execveat', -1, b'', None, None, 0)",
    "spawn": "import subprocess; subprocess.run(['/bin/true'])",
    "new session": "os.setsid()",
    "new group": "os.setpgid(0, 0)",
    "socket": "import socket; socket.socket()",
    "unix socket": "import socket; socket.socket(socket.AF_UNIX)",
    "raw socket": "call('socket', 17, 3, 0)",
    "datagram pair": "import socket; socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
    "kill the parent": "os.kill(parent, 0)",
    "kill the group": "os.kill(0, 0)",
    "kill everybody": "os.kill(-1, 0)",
    "kill the parent's thread": "call('tgkill', parent, parent, 0)",
    "queue a signal": "call('rt_sigqueueinfo', os.getpid(), 0, bytes(128))",
    "signal by file owner": "import fcntl; fcntl.fcntl(report, fcntl.F_SETOWN, parent)",
    "signal choice": "import fcntl; fcntl.fcntl(report, fcntl.F_SETSIG, 9)",
    "push into a terminal": "call('ioctl', 0, 0x5412, b'x')",
    "flags of a file": "call('ioctl', report, 0x40086602, bytes(8))",
    "trace the parent": "call('ptrace', 16, parent, 0, 0)",
    "raise a limit": "call('prlimit64', 0, 1, b'\\xff' * 16, None)",
    "lower a limit of the parent": "call('prlimit64', parent, 7, bytes(16), None)",
    "ask a limit of the parent": "call('prlimit64', parent, 7, None, bytes(16))",
    "outlive the parent": "call('prctl', 1, 0, 0, 0, 0)",
    "be dumped": "call('prctl', 4, 1, 0, 0, 0)",
    "priority": "os.setpriority(os.PRIO_PROCESS, parent, 19)",
    "processors of the parent": "os.sched_setaffinity(parent, {0})",
    "mode": "os.chmod('.', 0o777)",
    "mode by descriptor": "os.fchmod(os.open('own', os.O_CREAT | os.O_RDWR), 0o777)",
    "owner": "os.chown('.', -1, -1)",
    "times": "os.utime('.', (1, 1))",
    "attribute": "os.setxattr('.', 'user.a', b'b')",
    "truncate by path": "os.truncate('own', 0)",
    "empty a file for reading": "os.open(readable, os.O_RDONLY | os.O_TRUNC)",
    "open with the fourth mode": "os.open(readable, 3 | os.O_TRUNC)",
    "named pipe": "os.mkfifo('pipe')",
    "root": "os.chroot('.')",
    "user": "os.setuid(0)",
    "anonymous file": "os.memfd_create('x')",
    "timer off": "call('timer_delete', 0)",
}
# No permission: the wall of files, or the owner's.
HIDDEN = {
    "read a secret": "open(secret).read()",
    "change a secret": "open(secret, 'a')",
    "write beside": "open(secret + '2', 'w')",
    "remove": "os.unlink(secret)",
    "make a directory": "os.mkdir(secret + 'd')",
    "link into": "os.link(secret, 'linked')",
    "through a link": "os.symlink(secret, 'way'); open('way').read()",
    "move out": "open('mine', 'w').close(); os.rename('mine', secret + '3')",
    "remove the own directory": "os.rmdir(os.getcwd())",
    "list the root": "os.listdir('/')",
    "list the parent": "os.listdir('..')",
    "own process": "open('/proc/self/status').read()",
    "parent's environment": "open(f'/proc/{parent}/environ').read()",
    "shared memory": "open('/dev/shm/x', 'w')",
    "system": "os.listdir('/sys')",
    "write where one reads": "open(readable, 'a')",
    "users": "open('/etc/passwd').read()",
}
# The first version of Landlock can only refuse every move between directories.
MOVE = """
os.mkdir('p'); open('f', 'w').close()
try: os.rename('f', 'p/f')
except OSError as error: assert abi == 1 and error.errno == 18
"""
WORKS = {
    "own file": "open('a', 'w').write('text'); os.rename('a', 'b'); value = open('b').read(); os.remove('b')",
    "read": "value = open(readable).read()",
    "directories": "import tempfile\nwith tempfile.TemporaryDirectory(dir='.') as d: open(d + '/x', 'w').write('y')",
    "move between own directories": MOVE,
    "devices": "open('/dev/null', 'w').write('x'); value = len(open('/dev/urandom', 'rb').read(8))",
    "threads": "import concurrent.futures as c\nwith c.ThreadPoolExecutor(8) as p: value = sum(p.map(int, range(100)))",
    "sleep": "import time; time.sleep(0.001); time.monotonic()",
    "own signal": "import signal as s; s.signal(10, lambda *a: None); os.kill(os.getpid(), 10); s.raise_signal(10)",
    "alarm": "import signal; signal.setitimer(signal.ITIMER_REAL, 10); signal.setitimer(signal.ITIMER_REAL, 0)",
    "limits asked": "import resource; value = resource.getrlimit(resource.RLIMIT_CORE)",
    "asyncio": "import asyncio\nasync def f(): await asyncio.sleep(0); return 7\nvalue = asyncio.run(f())",
    "imports": "import sqlite3, zoneinfo, decimal, colorsys, unittest, pickle; value = zoneinfo.ZoneInfo('UTC').key",
    "ctypes": "import ctypes; f = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 5); value = f()",
    "memory": "import mmap; m = mmap.mmap(-1, 1 << 20); m[0] = 1; value = len(bytearray(100 << 20))",
    "numpy": "sys.path.append(packages); import numpy; value = float((numpy.eye(40) @ numpy.ones(40)).sum())",
    "terminal": "value = os.isatty(1)",
}


def confined(directory: Path, attempts: dict[str, str], **order: Any) -> dict[str, Any]:
    """Run the driver: what each attempt came to (`found`), how the process ended, and the jail's facts."""
    order = {"limits": {"cpu_seconds": 10}, "abi": 0, "read": [], **order}
    (directory / "own").mkdir(exist_ok=True)
    order |= {"directory": str(directory / "own"), "attempts": attempts}
    ran = subprocess.run(
        [sys.executable, "-B", str(DRIVER)],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    result: dict[str, Any] = json.loads(ran.stdout)
    assert "broken" not in result["found"], result["found"]["broken"]
    return result


def everything(directory: Path, **order: Any) -> dict[str, Any]:
    """All attempts at once; asserts that each ends as it must and that nothing outside has changed."""
    secret, readable = directory / "secret", directory / "readable"
    secret.write_text("secret")
    readable.write_text("data")
    readable.chmod(0o666)
    given = {"secret": str(secret), "readable": str(readable), "packages": PACKAGES, "abi": order.get("abi", 0)}
    names = "".join(f"{name} = {value!r}\n" for name, value in given.items())
    attempts = {name: names + text for name, text in {**WORKS, **HIDDEN, **REFUSED}.items()}
    result = confined(directory, attempts, read=[str(readable), PACKAGES], **order)
    found = result["found"]
    assert {name: found[name] for name in WORKS if not found[name].startswith("done")} == {}
    refused = f"PermissionError {errno.EPERM}"
    assert {name: found[name] for name in REFUSED if found[name] != refused} == {}
    no_entry = {f"PermissionError {errno.EACCES}", refused, f"OSError {errno.EXDEV}"}
    assert {name: found[name] for name in HIDDEN if found[name] not in no_entry} == {}
    assert found["asyncio"] == "done: 7" and found["read"] == "done: 'data'" and found["numpy"] == "done: 40.0"
    assert secret.read_text() == "secret" and readable.read_text() == "data"
    assert {path.name for path in directory.iterdir()} == {"own", "secret", "readable"}
    return result


@pytest.mark.parametrize("abi", range(1, landlock.NEWEST + 1))
def test_every_landlock_version_holds(tmp_path: Path, abi: int) -> None:
    if abi > landlock.abi():
        pytest.skip(f"this kernel's Landlock is {landlock.abi()}")
    assert everything(tmp_path, abi=abi)["facts"]["landlock"] == abi


def test_a_default_container_holds(tmp_path: Path) -> None:
    result = everything(tmp_path, deny_namespaces=True, capabilities=0xA80425FB)
    user = int(re.findall(r"uid (\d+)", result["facts"]["user"])[0])
    assert user >= identity.NOBODY if os.geteuid() == 0 else user == os.getuid()


def test_a_container_without_capabilities_holds(tmp_path: Path) -> None:
    result = everything(tmp_path, deny_namespaces=True, capabilities=0)
    assert result["facts"]["user"] == f"uid {os.geteuid()}, no capabilities"


def test_every_call_that_is_not_on_the_list_is_refused(tmp_path: Path) -> None:
    found = confined(
        tmp_path,
        {
            "all": """
from selectkd_eval.sandbox import seccomp
value = {}
for name in syscalls.NUMBERS:
    # The two of the kernel's own probes pass by every filter; made by hand they end the process.
    if name not in [*seccomp.FREE, *seccomp.CHECKED, 'uretprobe', 'uprobe']:
        try: value[name] = call(name, 0, 0, 0, 0, 0, 0)
        except OSError as error: value[name] = error.errno
value = [name for name, got in value.items() if got != (38 if name in seccomp.ABSENT else 1)]
""",
            "unknown number": "import ctypes; syscalls._SYSCALL(777, *[0] * 6); value = ctypes.get_errno()",
        },
    )["found"]
    assert found == {"all": "done: []", "unknown number": f"done: {errno.ENOSYS}"}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the other instruction sets of x86-64")
@pytest.mark.parametrize("what", ["int 0x80", "x32"])
def test_another_instruction_set_s_call_ends_the_process(tmp_path: Path, what: str) -> None:
    by_hand = """
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=7)
code.write(bytes.fromhex('b814000000cd80c3'))  # mov eax, getpid of i386; int 0x80; ret
ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
"""
    text = by_hand if what == "int 0x80" else "syscalls._SYSCALL(0x40000000 | 39, *[0] * 6)"
    result = confined(tmp_path, {"foreign": text})
    assert result["found"] == {} and os.WTERMSIG(result["status"]) == signal.SIGSYS


@pytest.mark.parametrize("limit", [0.2, 1.1])
def test_cpu_time_ends_the_process_to_a_tick(tmp_path: Path, limit: float) -> None:
    text = """
import signal, threading
signal.setitimer(signal.ITIMER_PROF, 0)
for number in set(signal.valid_signals()) - {9, 19}:
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
def spin():
    while True: pass
threading.Thread(target=spin).start()
spin()
"""
    result = confined(tmp_path, {"spin": text}, limits={"cpu_seconds": limit})
    assert os.WTERMSIG(result["status"]) == signal.SIGKILL
    # A little was used before the clock was set, and ticks come late on a busy machine; RLIMIT_CPU takes a second more.
    assert limit <= result["cpu"] < limit + 0.5


def test_sleeping_costs_no_cpu_time(tmp_path: Path) -> None:
    found = confined(tmp_path, {"sleep": "import time; time.sleep(0.6)"}, limits={"cpu_seconds": 0.3})
    assert found["found"]["sleep"].startswith("done")


def test_memory_files_and_descriptors_are_limited(tmp_path: Path) -> None:
    attempts = {
        "memory": "bytearray(600 << 20)",
        "some memory": "value = len(bytearray(200 << 20))",
        "file": "open('big', 'wb').write(bytes(3 << 20))",
        "some file": "value = open('small', 'wb').write(bytes(1 << 20))",
        "descriptors": "value = [os.open('/dev/null', 0) for _ in range(100)]",
        "core": "import resource; value = resource.getrlimit(resource.RLIMIT_CORE)",
    }
    found = confined(tmp_path, attempts, limits={"memory_bytes": 512 << 20, "file_bytes": 2 << 20})["found"]
    assert found["memory"] == "MemoryError: " and found["some memory"] == f"done: {200 << 20}"
    assert found["file"] == f"OSError {errno.EFBIG}" and found["some file"] == f"done: {1 << 20}"
    assert found["descriptors"] == f"OSError {errno.EMFILE}" and found["core"] == "done: (0, 0)"
    assert (tmp_path / "own" / "big").stat().st_size == 2 << 20


def test_threads_are_many_but_not_without_end(tmp_path: Path) -> None:
    text = """
import threading
threading.stack_size(32 << 10)
gate, value = threading.Event(), 0
try:
    while value < 5000:
        threading.Thread(target=gate.wait, daemon=True).start()
        value += 1
except RuntimeError: pass
gate.set()
"""
    result = confined(tmp_path, {"bomb": text})
    started = int(result["found"]["bomb"].removeprefix("done: "))
    if result["facts"]["user"].startswith("uid 0"):
        pytest.skip("the kernel does not count root's threads, and this root cannot become anybody else")
    assert 64 < started <= result["facts"]["rlimits"]["NPROC"]


def test_the_child_dies_with_its_parent(tmp_path: Path) -> None:
    """The driver's own process ends while its child is asleep in the lock."""
    text = "open('asleep', 'w').close(); import time; time.sleep(60)"
    directory = tmp_path / "own"
    directory.mkdir()
    before = f"""
import threading, time
def end_when_asleep():
    while not os.path.exists({str(directory / "asleep")!r}): time.sleep(0.01)
    os._exit(9)
threading.Thread(target=end_when_asleep, daemon=True).start()
"""
    order = {
        "limits": {},
        "abi": 0,
        "read": [],
        "directory": str(directory),
        "attempts": {"sleep": text},
        "before": before,
    }
    with subprocess.Popen([sys.executable, "-B", str(DRIVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as driver:
        out, _ = driver.communicate(json.dumps(order).encode(), timeout=30)  # ends only when no process holds the pipe
    assert driver.returncode == 9 and out == b""


def tcp_and_scopes(abi: int) -> dict[str, str]:
    """What a process under Landlock alone, of this version, reaches of a port, an abstract socket and its parent."""
    with socket.socket() as server, socket.socket(socket.AF_UNIX) as abstract:
        server.bind(("127.0.0.1", 0))
        server.listen()
        abstract.bind(b"\0confine-test-%d" % os.getpid())
        abstract.listen()
        script = f"""
import os, socket, sys
sys.path.insert(0, {str(DRIVER.parents[1])!r})
from selectkd_eval.sandbox import confine, landlock, syscalls
rules = landlock.ruleset(confine.python_paths(), [], version={abi})
syscalls.call('prctl', 38, 1, 0, 0, 0)
landlock.enforcement(rules).run()
def tried(name, do):
    try: do(); print(name, 'reached')
    except OSError as error: print(name, error.errno)
tried('tcp', lambda: socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 5))
tried('abstract', lambda: socket.socket(socket.AF_UNIX).connect({abstract.getsockname()!r}))
tried('signal', lambda: os.kill(os.getppid(), 0))
"""
        ran = subprocess.run(
            [sys.executable, "-B", "-c", script], capture_output=True, text=True, timeout=60, check=True
        )
    return dict(line.split() for line in ran.stdout.splitlines())


def test_landlock_alone_refuses_what_its_version_knows() -> None:
    """The same three attempts succeed under an older version: it is Landlock, not the machine, that refuses."""
    reached = dict.fromkeys(("tcp", "abstract", "signal"), "reached")
    assert tcp_and_scopes(3) == reached
    if landlock.abi() >= 4:
        assert tcp_and_scopes(4) == reached | {"tcp": str(errno.EACCES)}
    if landlock.abi() >= 6:
        refused = {"tcp": str(errno.EACCES), "abstract": str(errno.EPERM), "signal": str(errno.EPERM)}
        assert tcp_and_scopes(6) == refused
