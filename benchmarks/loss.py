"""What does the loss cost at a vocabulary of 151,936, beside the matrix products that no loss can avoid?

Hidden states of a Qwen2-7B teacher (3,584 wide) and a Qwen2-1.5B student (1,536) through both heads to the gradient
of the student's hidden states and, where the head is trained, of its weight. Generalised JSD at 0.5 is what the peers
compute too: `chunked`, the plain loss on full logits, TRL's GKDTrainer.generalized_jsd_loss on full logits, Liger's
fused linear JSD. SelecTKD's own objective (forward KL, Spec-k gate, all statistics) is timed beside them. The measure
of time are the bare products: both heads forward, the gradient back through the student's.

Arms take turns in one process, CPU seconds (GPU: seconds between synchronisations), median. Peak memory is what one
call adds to weights and hidden states: on a GPU the allocator's peak, on a CPU the peak resident size of a process of
its own. Values are compared first. It says nothing about decoders, nor about a whole training step (`train.py`).

`python benchmarks/loss.py` measures what suits the machine; `--tokens 64 --precision bf16 --repeat 1` is a quick look.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from torch import Tensor

from selectkd_eval.chunked import chunked_loss
from selectkd_eval.heads import Head
from selectkd_eval.loss import token_loss
from selectkd_eval.objective import single
from selectkd_eval.token_stats import Rows

V, H_TEACHER, H_STUDENT = 151_936, 3584, 1536
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}
BARE, OURS, GATED, FULL = "matrix products alone", "chunked, JSD", "chunked, SelecTKD", "full logits, JSD"
TRL, LIGER = "TRL, JSD on full logits", "Liger, fused linear JSD"
JSD, SELECTKD = single("jsd", normaliser="valid_tokens"), single("fkl", verifier="spec-k", normaliser="valid_tokens")


@dataclass(frozen=True)
class Setting:
    """How many response tokens, in which precision, and whether the student's head is trained."""

    tokens: int
    precision: str
    trained: bool = False

    def __str__(self) -> str:
        return f"{self.tokens} tokens, {self.precision}, head {'trained' if self.trained else 'frozen'}"


ON_CPU = (
    Setting(512, "bf16"),
    Setting(1024, "bf16"),
    Setting(512, "bf16", trained=True),
    Setting(256, "fp32"),
)
ON_GPU = tuple(
    Setting(tokens, precision, trained)
    for precision in ("bf16", "fp32")
    for trained in (False, True)
    for tokens in (1024, 4096, 8192)
)


class Inputs:
    """Random hidden states and heads whose logits spread like a language model's (standard deviation 2.5)."""

    def __init__(self, setting: Setting) -> None:
        draw = torch.Generator(DEVICE).manual_seed(0)
        dtype = PRECISIONS[setting.precision]

        def normal(rows: int, width: int) -> Tensor:
            return torch.randn(rows, width, generator=draw, dtype=dtype, device=DEVICE)

        self.hidden_p, self.hidden_q = normal(setting.tokens, H_TEACHER), normal(setting.tokens, H_STUDENT)
        self.weight_p = normal(V, H_TEACHER).mul_(2.5 / math.sqrt(H_TEACHER))
        self.weight_q = normal(V, H_STUDENT).mul_(2.5 / math.sqrt(H_STUDENT))
        self.hidden_q.requires_grad_()
        self.weight_q.requires_grad_(setting.trained)
        targets = torch.randint(V, (setting.tokens,), generator=draw, device=DEVICE)
        self.rows = Rows(targets, torch.zeros_like(targets), torch.tensor([setting.tokens], device=DEVICE))

    def logits(self) -> tuple[Tensor, Tensor]:
        """All logits of teacher and student."""
        with torch.no_grad():
            z_p = self.hidden_p @ self.weight_p.T
        return z_p, self.hidden_q @ self.weight_q.T


def bare(inputs: Inputs) -> None:
    """The products alone: a logits tensor stands in for its gradient."""
    with torch.no_grad():
        _, z_q = inputs.logits()
        z_q @ inputs.weight_q
        if inputs.weight_q.requires_grad:
            z_q.T @ inputs.hidden_q


def chunked_jsd(inputs: Inputs) -> Tensor:
    """Ours, what the peers compute."""
    heads = Head(inputs.weight_p), Head(inputs.weight_q)
    return chunked_loss(inputs.hidden_p, heads[0], inputs.hidden_q, heads[1], inputs.rows, JSD)[0]


def chunked_selectkd(inputs: Inputs) -> Tensor:
    """Ours, what the paper computes."""
    heads = Head(inputs.weight_p), Head(inputs.weight_q)
    return chunked_loss(inputs.hidden_p, heads[0], inputs.hidden_q, heads[1], inputs.rows, SELECTKD)[0]


def full_jsd(inputs: Inputs) -> Tensor:
    """The plain loss, which the chunked one is held to."""
    z_p, z_q = inputs.logits()
    return token_loss(z_p, z_q, inputs.rows, JSD)[0]


def trl_jsd(inputs: Inputs) -> Tensor:
    """TRL's static method, on logits as a model returns them."""
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

    z_p, z_q = inputs.logits()
    return GKDTrainer.generalized_jsd_loss(z_q[None], z_p[None], labels=inputs.rows.targets[None], beta=0.5)


def liger_jsd(inputs: Inputs) -> Tensor:
    """Liger's chunked loss with its defaults; compiled on a GPU only."""
    from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.5, compiled=GPU)
    return loss(inputs.hidden_q, inputs.weight_q, inputs.hidden_p, inputs.weight_p, inputs.rows.targets)


ARMS: dict[str, Callable[[Inputs], Tensor]] = {
    OURS: chunked_jsd,
    GATED: chunked_selectkd,
    FULL: full_jsd,
    TRL: trl_jsd,
    LIGER: liger_jsd,
}


def present() -> dict[str, Callable[[Inputs], Tensor]]:
    """The arms whose packages are installed; says which are not."""
    missing = [arm for arm, package in {TRL: "trl", LIGER: "liger_kernel"}.items() if find_spec(package) is None]
    for arm in missing:
        print(f"{arm}: not installed, left out (pip install trl==1.16.0 liger-kernel==0.8.5)", file=sys.stderr)
    return {name: arm for name, arm in ARMS.items() if name not in missing}


def once(arm: Callable[[Inputs], Tensor], inputs: Inputs) -> float:
    """Loss and gradients; the value."""
    inputs.hidden_q.grad = inputs.weight_q.grad = None
    loss = arm(inputs)
    loss.backward()
    return float(loss.detach())


def seconds(work: Callable[[], object]) -> float:
    """Of one call."""
    if not GPU:
        started = time.process_time()
        work()
        return time.process_time() - started
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def times(setting: Setting, repeat: int) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of every arm, the bare products included, and by how much its loss and its gradient differ from
    those of the full logits, relative.
    """
    inputs, arms = Inputs(setting), present()
    gradients: dict[str, Tensor] = {}
    losses: dict[str, float] = {}
    for name in (FULL, *(name for name in arms if name not in (FULL, GATED))):
        losses[name] = once(arms[name], inputs)
        assert inputs.hidden_q.grad is not None
        gradients[name] = inputs.hidden_q.grad.double()
    # Peers that take log-probabilities in bf16 lose digits; they still must compute the same thing.
    allowed = 0.05 if setting.precision == "bf16" else 1e-4
    wrong = {name: loss for name, loss in losses.items() if abs(loss / losses[FULL] - 1) > allowed}
    if wrong:
        raise SystemExit(f"not the same loss at {setting}: {wrong}, but {losses[FULL]} on full logits")
    norm = gradients[FULL].norm()
    off = {name: float((found - gradients[FULL]).norm() / norm) for name, found in gradients.items()}
    gradients.clear()
    runs: dict[str, list[float]] = {name: [] for name in (BARE, *arms)}
    for turn in range(repeat + 1):
        for name, found in runs.items():
            inputs.hidden_q.grad = inputs.weight_q.grad = None
            gc.collect()
            work = (lambda: bare(inputs)) if name == BARE else (lambda arm=arms[name]: once(arm, inputs))
            spent = seconds(work)
            if turn:  # the first turn warms up
                found.append(spent)
    return {name: statistics.median(found) for name, found in runs.items()}, off


def peak(setting: Setting, arm: str) -> float:
    """MiB that one call of `arm` adds to its inputs at most, in this process."""
    inputs = Inputs(setting)
    gc.collect()
    if GPU:
        inputs.hidden_q.detach()[:2] @ inputs.weight_q.detach().T  # the library's own workspace
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        once(ARMS[arm], inputs)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = resident("VmRSS")
    once(ARMS[arm], inputs)
    return resident("VmHWM") - before


def resident(which: str, file: Path = Path("/proc/self/status")) -> float:
    """A line of /proc/self/status in MiB."""
    lines = file.read_text().splitlines()
    return int(next(line for line in lines if line.startswith(which)).split()[1]) / 1024


def peaks(setting: Setting) -> dict[str, float]:
    """`peak` of every arm, each in a process of its own."""
    found = {}
    for arm in present():
        command = [sys.executable, __file__, "--peak", arm, "--tokens", str(setting.tokens)]
        command += ["--precision", setting.precision, *(["--trained"] if setting.trained else [])]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found[arm] = json.loads(out.splitlines()[-1])
    return found


def fits(setting: Setting) -> bool:
    """Whether the largest arm (some 20 fp32 rows of logits per token) and the heads fit."""
    free = torch.cuda.mem_get_info()[0] if GPU else resident("MemAvailable", Path("/proc/meminfo")) * 2**20
    heads = V * (H_TEACHER + 2 * H_STUDENT) * PRECISIONS[setting.precision].itemsize
    return free > heads + 24 * 4 * V * setting.tokens


def report(setting: Setting, repeat: int) -> None:
    """One setting's lines of the table."""
    spent, off = times(setting, repeat)
    gc.collect()
    if GPU:
        torch.cuda.empty_cache()
    room = peaks(setting)
    for name, value in spent.items():
        memory = f"{room[name]:,.0f} | {room[name] / room[FULL]:.2f}" if name in room else "- | -"
        error = f"{off[name]:.1e}" if off.get(name) else "-"
        per_token = 1e6 * value / setting.tokens if GPU else 1e3 * value / setting.tokens
        print(f"| {setting} | {name} | {per_token:.2f} | {value / spent[BARE]:.2f} | {memory} | {error} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="*", help="response tokens (default: what suits the machine)")
    parser.add_argument("--precision", choices=PRECISIONS, nargs="*", default=None)
    parser.add_argument("--trained", action="store_true", help="with --tokens: train the student's head")
    parser.add_argument("--repeat", type=int, default=5, help="timed turns of every arm")
    parser.add_argument("--peak", choices=ARMS, help="only the peak memory of one arm, in this process")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    precisions = args.precision or list(PRECISIONS)
    settings = [s for s in (ON_GPU if GPU else ON_CPU) if s.precision in precisions]
    if args.tokens:
        settings = [Setting(tokens, precision, args.trained) for precision in precisions for tokens in args.tokens]
    if args.peak:
        print(json.dumps(peak(settings[0], args.peak)))
        return
    where = torch.cuda.get_device_name() if GPU else f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)"
    print(f"{where}, torch {torch.__version__}, V = {V:,}, widths {H_TEACHER} and {H_STUDENT}\n")
    unit = "us" if GPU else "CPU ms"
    print(f"| setting | what | {unit} per token | x bare products | peak MiB | x full logits | gradient off by |")
    print("|---|---|---|---|---|---|---|")
    for setting in settings:
        if fits(setting):
            report(setting, args.repeat)
        else:
            print(f"{setting}: left out, the full logits and what autograd keeps of them do not fit", file=sys.stderr)


if __name__ == "__main__":
    main()
