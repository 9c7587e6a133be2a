"""What did the machine spend while it decoded, and what else did it do: energy, memory, cores, load?

A speed-up (the paper's Table 5) is bought with a second model's memory and, per token, with more or less energy; and a
clock is only as good as the quiet around it. Everything is read where Linux or the driver tells it: RAPL, NVML, /proc.
What cannot be read is None, and words say why; nothing is estimated from a rated power. What is read is the whole
machine's or the whole GPU's, so that a neighbour's work is in it.
"""

from __future__ import annotations

import importlib
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

SYS = Path("/sys")
PROC = Path("/proc")
_MICRO, _MILLI = 1e-6, 1e-3
# Layer types of transformers' configurations whose cache grows by one key and one value per token.
_GROWING = {"full_attention", "sliding_attention", "chunked_attention", "attention"}


class Source(NamedTuple):
    """A counter of energy: its `name`, how to `read` it in joules, and where it `wraps` round to 0 (0: never)."""

    name: str
    read: Callable[[], float]
    wraps: float = 0.0


class Meter:
    """Energy between two moments: `start()`, then `joules()`. `words` say for the record what is counted, or why not.

    On a GPU the energy of the GPU counts, and that of the processors as far as it can be read; without the GPU's own
    figure there is none, because the processors' alone would pass for the whole.
    """

    def __init__(self, device: torch.device, root: Path = SYS) -> None:
        self._sources, self.words = rapl(root)
        if device.type == "cuda":
            gpu, words = nvml(device)
            self._sources = gpu + self._sources if gpu else []
            self.words = f"{words}; processors: {self.words}"
        self._before: list[float] | None = None

    def start(self) -> None:
        """Begin to count."""
        self._before = self._read()

    def joules(self) -> float | None:
        """Joules since `start`; None where they cannot be read. More than one wrap of a counter cannot be seen."""
        before, after = self._before, self._read()
        if not before or not after:
            return None
        spent = 0.0
        for source, old, new in zip(self._sources, before, after, strict=True):
            if new < old and not source.wraps:
                return None  # the driver was loaded anew in between
            spent += new - old if new >= old else new - old + source.wraps
        return spent

    def _read(self) -> list[float] | None:
        try:
            return [source.read() for source in self._sources]
        except (OSError, ValueError):
            return None


def rapl(root: Path = SYS) -> tuple[list[Source], str]:
    """The processors' packages and memory as RAPL counts them, and what that is in words.

    Cores and graphics are parts of a package; `psys` and the `mmio` zones count the same energy once more.
    """
    sources, refused = [], ""
    for zone in sorted((root / "class" / "powercap").glob("*rapl*:*")):
        try:
            name = (zone / "name").read_text().strip()
            if "mmio" in zone.name or not name.startswith(("package", "dram")):
                continue
            source = Source(name, _microjoules(zone / "energy_uj"), _MICRO * _number(zone / "max_energy_range_uj"))
            source.read()
        except PermissionError:
            refused = f"not available: {zone.name}/energy_uj of this machine can be read by its administrator alone"
        except (OSError, ValueError) as error:
            refused = f"not available: {zone.name} of this machine cannot be read ({type(error).__name__})"
        else:
            sources.append(source)
    if refused or not sources:
        return [], refused or "not available: this machine shows no RAPL counters"
    return sources, f"RAPL, {', '.join(source.name for source in sources)}, all that runs on them"


def nvml(device: torch.device) -> tuple[list[Source], str]:
    """The GPU's own energy counter, and what that is in words. Needs the package nvidia-ml-py.

    The driver moves the counter on about ten times a second (an idle H200 in steps of 11.7 J), so that of short runs
    only a sum over many tells anything.
    """
    try:
        pynvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return [], "not available: the GPU's energy is read through the package nvidia-ml-py, which is not installed"
    try:
        pynvml.nvmlInit()
        # CUDA_VISIBLE_DEVICES renumbers GPUs for torch and not for NVML: the UUID is the same in both.
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode())

        def read() -> float:
            try:
                return _MILLI * float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
            except pynvml.NVMLError as error:
                raise OSError(str(error)) from error

        read()
    except (pynvml.NVMLError, OSError) as error:
        return [], f"not available: NVML does not tell this GPU's energy ({error})"
    return [Source("GPU", read)], "NVML, the whole GPU"


def _microjoules(path: Path) -> Callable[[], float]:
    return lambda: _MICRO * _number(path)


def _number(path: Path) -> int:
    return int(path.read_text())


def peaks(device: torch.device) -> dict[str, int | None]:
    """Most memory that this process has held so far: `peak_rss_bytes`, and `peak_gpu_bytes` of torch on a GPU."""
    gpu = int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else None
    return {"peak_rss_bytes": peak_rss(), "peak_gpu_bytes": gpu}


def peak_rss(root: Path = PROC) -> int:
    """Bytes. `ru_maxrss` counts what the process was before it became this program, so VmHWM goes first."""
    try:
        for line in (root / "self" / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def affinity() -> list[int]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def governor(root: Path = SYS) -> str | None:
    """How this process's cores choose their clock (`performance`, `powersave` ...); None where the machine hides it."""
    found = set()
    for core in affinity():
        try:
            found.add((root / f"devices/system/cpu/cpu{core}/cpufreq/scaling_governor").read_text().strip())
        except OSError:
            return None
    return ", ".join(sorted(found)) or None


class Load:
    """What else ran: `since()` tells of the time since the last call, or since this was made."""

    def __init__(self, root: Path = PROC) -> None:
        self._root = root
        self._before = self._ticks()

    def since(self) -> dict[str, float | None]:
        """`load`: runnable processes, the kernel's mean of a minute. `steal`: share of all cores' time that the
        hypervisor gave to others. None where it cannot be read, or where no time has passed.
        """
        before, self._before = self._before, self._ticks()
        steal = None
        if before and self._before and (passed := self._before[0] - before[0]) > 0:
            steal = (self._before[1] - before[1]) / passed
        return {"load": self._minute(), "steal": steal}

    def _minute(self) -> float | None:
        try:
            return float((self._root / "loadavg").read_text().split()[0])
        except (OSError, ValueError, IndexError):
            return None

    def _ticks(self) -> tuple[int, int] | None:
        """(all, stolen) clock ticks of all cores since the machine started."""
        try:
            # user nice system idle iowait irq softirq steal; a guest's ticks, which follow, are in user already.
            counts = [int(word) for word in (self._root / "stat").read_text().split("\n", 1)[0].split()[1:9]]
        except (OSError, ValueError):
            return None
        return (sum(counts), counts[7]) if len(counts) == 8 else None


def model_bytes(model: Any) -> int:
    """Bytes of a model's weights and buffers; weights that two layers share count once."""
    return sum(part.numel() * part.element_size() for parts in (model.parameters(), model.buffers()) for part in parts)


def cache_bytes_per_token(model: Any) -> int | None:
    """Bytes that every further token adds to a model's key-value cache, from its configuration.

    Layers x 2 x key-value heads x head size x bytes of an element. Layers with a window stop growing at its length, and
    layers with a recurrent state do not grow. None where the configuration does not say (a latent cache, no heads).
    """
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    if not heads or getattr(config, "kv_lora_rank", None):
        return None
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    kinds = getattr(config, "layer_types", None)
    layers = sum(kind in _GROWING for kind in kinds) if kinds else config.num_hidden_layers
    return int(layers * 2 * (getattr(config, "num_key_value_heads", None) or heads) * size * model.dtype.itemsize)
