"""Energy, memory and load are read from files as Linux writes them; bytes are those of real weights and caches."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen3Config,
)

from selectkd_eval.speculation import machine
from selectkd_eval.speculation.machine import Load, Meter

CPU = torch.device("cpu")
RANGE = 262_143_328_850  # microjoules, as an Intel server has it


def zone(root: Path, directory: str, name: str, energy: int, wraps: int = RANGE) -> Path:
    """One RAPL zone on disk; returns its counter."""
    path = root / "class" / "powercap" / directory
    path.mkdir(parents=True)
    for file, content in (("name", name), ("energy_uj", energy), ("max_energy_range_uj", wraps)):
        (path / file).write_text(f"{content}\n")
    return path / "energy_uj"


def server(root: Path) -> dict[str, Path]:
    """Two sockets with cores and memory, and the zones that count the same energy again."""
    (root / "class" / "powercap" / "intel-rapl").mkdir(parents=True)  # the control type: no counter of its own
    zones = {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:0:1": "dram",
        "intel-rapl:1": "package-1",
        "intel-rapl:2": "psys",
        "intel-rapl-mmio:0": "package-0",
    }
    return {directory: zone(root, directory, name, 1_000_000) for directory, name in zones.items()}


def test_packages_and_memory_count_once_each_and_their_parts_do_not(tmp_path: Path) -> None:
    counters = server(tmp_path)
    meter = Meter(CPU, tmp_path)
    assert meter.words == "RAPL, package-0, dram, package-1, all that runs on them"
    meter.start()
    for directory, joules in (("intel-rapl:0", 5), ("intel-rapl:0:1", 2), ("intel-rapl:1", 3)):
        counters[directory].write_text(f"{1_000_000 + joules * 1_000_000}\n")
    for directory in ("intel-rapl:0:0", "intel-rapl:2", "intel-rapl-mmio:0"):
        counters[directory].write_text("900000000\n")
    assert meter.joules() == pytest.approx(10)


def test_a_counter_that_wraps_goes_on_from_its_range(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", RANGE - 1_000_000)
    meter = Meter(CPU, tmp_path)
    meter.start()
    counter.write_text("2000000\n")
    assert meter.joules() == pytest.approx(3)
    meter.start()
    assert meter.joules() == 0


def test_energy_that_cannot_be_read_is_none_and_words_say_why(tmp_path: Path) -> None:
    meter = Meter(CPU, tmp_path)
    meter.start()
    assert (meter.joules(), meter.words) == (None, "not available: this machine shows no RAPL counters")
    (tmp_path / "class" / "powercap" / "intel-rapl:0").mkdir(parents=True)
    assert "intel-rapl:0 of this machine cannot be read" in Meter(CPU, tmp_path).words
    assert Meter(CPU, tmp_path).joules() is None, "nothing was begun"


def test_one_zone_that_cannot_be_read_leaves_no_sum_of_the_others(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 1)
    zone(tmp_path, "intel-rapl:1", "package-1", 1).write_text("none\n")
    sources, words = machine.rapl(tmp_path)
    assert sources == []
    assert words.startswith("not available: intel-rapl:1")


@contextmanager
def somebody_else() -> Iterator[None]:
    """Whoever runs this test, without an administrator's rights."""
    if os.geteuid() != 0:
        yield
        return
    try:
        os.seteuid(65534)
    except PermissionError:
        pytest.skip("this administrator may not become somebody else")
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_counter_that_only_the_administrator_reads_is_said_to_be_one() -> None:
    # Not pytest's own directory, which nobody else may enter.
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        zone(root, "intel-rapl:0", "package-0", 1).chmod(0)
        root.chmod(0o755)
        with somebody_else():
            words = machine.rapl(root)[1]
    assert words == "not available: intel-rapl:0/energy_uj of this machine can be read by its administrator alone"


def test_a_counter_that_vanishes_while_it_counts_gives_none(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    meter = Meter(CPU, tmp_path)
    meter.start()
    counter.unlink()
    assert meter.joules() is None


def test_a_gpu_whose_energy_cannot_be_read_has_none_though_the_processors_have(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    server(tmp_path)
    # Without the package, without a driver or without a GPU: each is a reason in words, and none is an error.
    meter = Meter(torch.device("cuda:0"), tmp_path)
    meter.start()
    assert meter.joules() is None
    assert meter.words.startswith("not available: ")


def test_this_machine_tells_its_energy_or_why_not() -> None:
    meter = Meter(CPU)
    meter.start()
    sum(i * i for i in range(200_000))
    joules = meter.joules()
    assert (joules is None) == meter.words.startswith("not available: ")
    assert joules is None or 0 <= joules < 1000


def test_the_share_that_was_stolen_is_that_of_all_ticks_in_between(tmp_path: Path) -> None:
    (tmp_path / "loadavg").write_text("1.50 0.90 0.40 2/97 13406\n")
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 0 50 800 10 0 20 20 7 0\ncpu0 100 0 50 800 10 0 20 20 7 0\n")
    load = Load(tmp_path)
    assert load.since() == {"load": 1.5, "steal": None}, "no time has passed"
    stat.write_text("cpu  130 0 60 840 10 0 20 40 99 0\n")  # 100 ticks more, 20 of them stolen; a guest's are in user
    assert load.since() == {"load": 1.5, "steal": 0.2}
    stat.write_text("cpu  230 0 60 840 10 0 20 40 99 0\n")
    assert load.since()["steal"] == 0


@pytest.mark.parametrize("content", [None, "", "cpu  1 2 3\n", "cpu  a b c d e f g h\n"])
def test_load_that_cannot_be_read_is_none(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "stat").write_text(content)
        (tmp_path / "loadavg").write_text("")
    load = Load(tmp_path)
    assert load.since() == {"load": None, "steal": None}


def test_the_governor_is_that_of_the_cores_in_use_or_none(tmp_path: Path) -> None:
    assert machine.governor(tmp_path) is None
    for core in machine.affinity():
        path = tmp_path / f"devices/system/cpu/cpu{core}/cpufreq/scaling_governor"
        path.parent.mkdir(parents=True)
        path.write_text("powersave\n")
    assert machine.governor(tmp_path) == "powersave"


def test_the_peak_is_this_programs_own_and_not_its_parents() -> None:
    held = bytearray(400 << 20)
    held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])
    code = "from selectkd_eval.speculation import machine; print(machine.peak_rss())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    own = machine.peaks(CPU)
    assert own["peak_gpu_bytes"] is None
    assert own["peak_rss_bytes"] is not None
    assert own["peak_rss_bytes"] - int(done.stdout) > len(held) / 2, "the parent's 400 MB are not the child's"
    again = subprocess.run(
        [sys.executable, "-c", f"held = bytearray(100 << 20); held[::4096] = b'x' * 25600\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(again.stdout) - int(done.stdout) == pytest.approx(100 << 20, rel=0.1)


CONFIGS: dict[str, PretrainedConfig] = {
    "every head its own keys": LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4
    ),
    "heads share keys": LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    "heads wider than their share": Qwen3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
    ),
    "a window not yet full": MistralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=64,
    ),
    "other words for the sizes": GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "no words for shared keys": GPTNeoXConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    ),
}


def tiny(name: str, dtype: torch.dtype) -> Any:
    return AutoModelForCausalLM.from_config(CONFIGS[name]).to(dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_cache_grows_by_just_these_bytes_per_token(name: str, dtype: torch.dtype) -> None:
    model = tiny(name, dtype)
    cache = DynamicCache()
    with torch.inference_mode():
        model(input_ids=torch.ones((1, 7), dtype=torch.long), past_key_values=cache, use_cache=True)
    held = sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))
    assert machine.cache_bytes_per_token(model) == held / 7


def test_layers_with_a_state_do_not_grow_and_a_latent_cache_is_not_guessed() -> None:
    model = tiny("every head its own keys", torch.float32)
    whole = machine.cache_bytes_per_token(model)
    assert whole == 3 * 2 * 32 * 4
    model.config.layer_types = ["full_attention", "linear_attention", "full_attention"]
    assert machine.cache_bytes_per_token(model) == 2 * 2 * 32 * 4
    model.config.kv_lora_rank = 8
    assert machine.cache_bytes_per_token(model) is None


def test_shared_weights_are_held_once() -> None:
    tied, own = tiny("heads share keys", torch.float32), tiny("every head its own keys", torch.bfloat16)
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight
    norms = 2 * 2 * 32 + 32
    layers = 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48)
    buffers = sum(buffer.nbytes for buffer in tied.buffers())
    assert machine.model_bytes(tied) == 4 * (64 * 32 + layers + norms) + buffers
    assert machine.model_bytes(own) == 2 * own.num_parameters() + sum(buffer.nbytes for buffer in own.buffers())
