"""How many updates per second does `train` make beside TRL's GKDTrainer, on the same texts and the same pair?

Off-policy distillation with full fine-tuning, AdamW, gradient clipping at 1 and a constant learning rate, in fp32 on
a CPU and in bf16 autocast on a GPU. Both sides are transformers Trainers and get the same token ids in the same
order; TRL gets them tokenised already, so that its collator only pads. Losses and gradient norms of every update are
compared first: two trainers that do not walk the same path are not worth timing.

Every run has its own process, for an honest peak of memory; the sides take turns. The random-weight pairs have the
proportions of real ones, and weights change nothing about speed; the embedded pair has the package's own weights and
text. It says nothing about the quality of a student.

`python benchmarks/train.py` measures every pair that suits the machine, `... 32k --repeat 1` one, and quickly.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from transformers.utils.logging import disable_progress_bar

from selectkd_eval.pair import load_model
from selectkd_eval.prompts import encode_example, load_prompts

QUIET = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "TQDM_DISABLE": "1"}
GPU = torch.cuda.is_available()
SAME = 2e-2 if GPU else 1e-4  # relative, for a loss or gradient norm: bf16 and fp32
TEACHER, STUDENT, TEXT, HELD_OUT, RESULT = "teacher", "student", "text.jsonl", "held-out.jsonl", "result.json"


@dataclass(frozen=True)
class Shape:
    """A pair and its batches. Widths and depths of 0 mean the embedded pair and its own text."""

    vocabulary: int = 0
    teacher: tuple[int, int] = (0, 0)  # width, layers
    student: tuple[int, int] = (0, 0)
    prompt: int = 0  # tokens
    answer: int = 0
    batch: int = 4  # sequences per update
    accumulation: int = 2  # forward passes it is cut into
    per_epoch: int = 4  # updates

    @property
    def texts(self) -> int:
        """How many texts an epoch has."""
        return self.batch * self.per_epoch

    @property
    def updates(self) -> int:
        """Two epochs."""
        return 2 * self.per_epoch


ON_CPU = {
    "32k": Shape(32_000, (512, 8), (256, 4), prompt=128, answer=128),
    "152k": Shape(151_936, (512, 8), (256, 4), prompt=128, answer=128, per_epoch=3),
    "embedded": Shape(batch=16, accumulation=2, per_epoch=10),
}
ON_GPU = {
    "152k": Shape(151_936, (2048, 24), (896, 24), prompt=512, answer=512, batch=16, accumulation=2, per_epoch=8),
    "embedded": Shape(batch=64, accumulation=2, per_epoch=10),
}


@dataclass(frozen=True)
class Arm:
    """One trainer with its settings. `options` go to our command line; None is TRL."""

    name: str
    divergence: str
    options: tuple[str, ...] | None = None
    cache: bool = False


def _kd(divergence: str, *more: str) -> tuple[str, ...]:
    return ("--recipe", "kd", "--divergence", divergence, *more)


TRL_BETA = {"fkl": 0.0, "jsd": 0.5}
ARMS = (
    Arm("TRL GKDTrainer", "fkl"),
    Arm("ours, full head", "fkl", _kd("fkl", "--head", "full")),
    Arm("ours, chunked head", "fkl", _kd("fkl", "--head", "chunked")),
    Arm("ours, teacher cache", "fkl", _kd("fkl", "--head", "chunked"), cache=True),
    Arm("TRL GKDTrainer", "jsd"),
    Arm("ours, chunked head", "jsd", _kd("jsd", "--beta-jsd", "0.5", "--head", "chunked")),
)


def prepare(shape: Shape, root: Path) -> None:
    """Write the pair and its text below `root`."""
    if shape.vocabulary:
        words = _tokenizer(root)
        _model(root / TEACHER, shape, *shape.teacher, seed=0)
        _model(root / STUDENT, shape, *shape.student, seed=1)
        draw = random.Random(0)

        def text(tokens: int) -> str:
            return " ".join(draw.choices(words, k=tokens))

        # The end token is the answer's last.
        rows = [{"prompt": text(shape.prompt), "answer": text(shape.answer - 1)} for _ in range(shape.texts + 2)]
    else:
        found = load_prompts("mini-gsm:labelled,mini-stories:labelled").prompts
        chosen = random.Random(0).sample(found, shape.texts + 2)
        rows = [{"prompt": prompt.text, "answer": prompt.answer or ""} for prompt in chosen]
    for name, part in ((TEXT, rows[:-2]), (HELD_OUT, rows[-2:])):
        (root / name).write_text("".join(json.dumps(row) + "\n" for row in part))


def _tokenizer(root: Path) -> list[str]:
    """A word-level tokenizer in both directories; its words. The heads of the models are wider: only shapes count."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [f"w{number}" for number in range(1000)]
    inner = Tokenizer(models.WordLevel({word: at for at, word in enumerate(["<pad>", "</s>", *words])}, "<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>")
    for name in (TEACHER, STUDENT):
        tokenizer.save_pretrained(root / name)
    return words


def _model(where: Path, shape: Shape, width: int, layers: int, seed: int) -> None:
    """A random Llama with a tied head."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=width,
        intermediate_size=int(8 * width / 3) // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=max(width // 128, 1),
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        initializer_range=width**-0.5,  # logits of unit variance, so that the divergences are not vanishing
    )
    disable_progress_bar()
    LlamaForCausalLM(config).save_pretrained(where)


def models(shape: Shape, root: Path) -> tuple[str, str]:
    """Names of teacher and student, as `train` takes them."""
    if shape.vocabulary:
        return str(root / TEACHER), str(root / STUDENT)
    return "embedded:teacher", "embedded:student"


class Clock(TrainerCallback):
    """Notes wall and CPU seconds of every update, and its loss and gradient norm."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []
        self.log: list[tuple[float, float]] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """The end of an update, on the device too."""
        if GPU:
            torch.cuda.synchronize()
        self.marks.append((time.perf_counter(), time.process_time()))

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        """What both sides must agree on."""
        if "grad_norm" in logs:
            self.log.append((float(logs["loss"]), float(logs["grad_norm"])))

    def seconds(self) -> list[tuple[float, float]]:
        """From the end of one update to the end of the next: the first update warms up and is not counted."""
        return [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(self.marks)]


def ours(shape: Shape, arm: Arm, root: Path, out: Path) -> Clock:
    """Train by our command line; the clock."""
    import transformers.trainer

    from selectkd_eval.cli import main

    watch = Clock()
    transformers.trainer.DEFAULT_CALLBACKS.append(watch)
    teacher, student = models(shape, root)
    words = ["train", "--teacher", teacher, "--student", student, "--data", str(root / TEXT)]
    words += ["--validation", str(root / HELD_OUT), "--exclude", "--out", str(out)]
    words += f"--batch-size {shape.batch} --accumulation {shape.accumulation} --steps {shape.updates}".split()
    words += ["--normaliser", "valid_tokens", "--lr", "1e-4", "--schedule", "constant", "--warmup", "0"]
    words += ["--weight-decay", "0", "--clip", "1", "--max-length", "2048", "--save-every", "1000000", "--threads", "1"]
    words += ["--bf16"] if GPU else []
    words += ["--teacher-cache", str(out / "cache")] if arm.cache else []
    with contextlib.redirect_stdout(sys.stderr):
        code = main([*words, *(arm.options or ())])
    if code:
        raise SystemExit(code)
    return watch


def trls(shape: Shape, arm: Arm, root: Path, out: Path) -> Clock:
    """Train the same texts with TRL's GKDTrainer; the clock. lmbda 0 is off-policy."""
    import datasets
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    teacher, student = models(shape, root)
    q = load_model(student, "cuda" if GPU else "cpu")
    p = load_model(teacher, "cuda" if GPU else "cpu", torch.bfloat16 if GPU else torch.float32)
    rows = []
    for prompt in load_prompts(str(root / TEXT)).prompts:
        ids, response = encode_example(q.tokenizer, prompt.text, prompt.answer or "", 2048)
        # With ids and the response's mask the collator asks neither for the text nor for a chat template.
        rows.append({"prompt": prompt.text, "input_ids": ids, "completion_mask": [int(r) for r in response]})
    settings: dict[str, Any] = {"per_device_train_batch_size": shape.batch // shape.accumulation}
    settings |= {"gradient_accumulation_steps": shape.accumulation, "max_steps": shape.updates, "max_length": 2048}
    settings |= {"learning_rate": 1e-4, "lr_scheduler_type": "constant", "weight_decay": 0.0, "max_grad_norm": 1.0}
    settings |= {"lmbda": 0.0, "beta": TRL_BETA[arm.divergence], "temperature": 1.0, "gradient_checkpointing": False}
    settings |= {"bf16": GPU, "use_cpu": not GPU, "seed": 0, "data_seed": 0, "logging_steps": 1}
    settings |= {"save_strategy": "no", "report_to": "none", "disable_tqdm": True}
    watch = Clock()
    GKDTrainer(
        model=q.model,
        teacher_model=p.model,
        args=GKDConfig(str(out), **settings),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=q.tokenizer,
        callbacks=[watch],
    ).train()
    return watch


def child(shape: Shape, arm: Arm, root: Path) -> None:
    """One run in this process; what was measured goes below `root`."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as out:
        run = trls if arm.options is None else ours
        watch = run(shape, arm, root, Path(out))
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if GPU:
        peak = torch.cuda.max_memory_allocated()
    (root / RESULT).write_text(json.dumps({"seconds": watch.seconds(), "log": watch.log, "peak": peak}))


def measure(name: str, shape: Shape, arms: list[Arm], repeat: int) -> dict[Arm, list[dict[str, Any]]]:
    """Run the arms in turns, each in its own process, for two epochs."""
    runs: dict[Arm, list[dict[str, Any]]] = {arm: [] for arm in arms}
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        prepare(shape, root)
        for _ in range(repeat):
            for arm in arms:
                words = [name, "--arm", str(ARMS.index(arm)), "--root", str(root)]
                done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(f"{arm.name} ({arm.divergence}) failed:\n{done.stderr[-3000:]}")
                runs[arm].append(json.loads((root / RESULT).read_text()))
                print(f"{name}: {arm.name} ({arm.divergence})", file=sys.stderr)
    return runs


def same_path(runs: dict[Arm, list[dict[str, Any]]], updates: int | None = None) -> float:
    """The largest relative difference in loss or gradient norm between runs of one divergence."""
    worst = 0.0
    first: dict[str, list[list[float]]] = {}
    for arm, found in runs.items():
        for run in found:
            reference = first.setdefault(arm.divergence, run["log"])
            for mine, theirs in zip(run["log"][:updates], reference[:updates], strict=True):
                worst = max(worst, *(abs(a - b) / abs(b) for a, b in zip(mine, theirs, strict=True)))
    return worst


def rows(shape: Shape, runs: dict[Arm, list[dict[str, Any]]]) -> list[str]:
    """A line per arm, and one per epoch where the teacher's cache makes them differ. The peer of its divergence is 1.

    Seconds of an update: the median over updates and runs. On a CPU they are CPU seconds, which other work on the
    machine hardly touches; with one thread they are wall seconds when nothing else runs.
    """
    lines = []
    base: dict[str, tuple[float, float]] = {}
    last = shape.per_epoch - 1  # the first update is not counted
    for arm, found in runs.items():
        peak = statistics.median(run["peak"] for run in found)
        parts = {"": slice(None)}
        if arm.cache:
            parts = {" (epoch 1)": slice(last), " (from epoch 2)": slice(last, None)}
        for label, part in parts.items():
            update = statistics.median(s[0 if GPU else 1] for run in found for s in run["seconds"][part])
            speed, memory = base.setdefault(arm.divergence, (update, peak))
            lines.append(
                f"| {arm.name}{label} | {arm.divergence} | {1 / update:.3g} | {speed / update:.2f} "
                f"| {peak / 2**20:,.0f} | {peak / memory:.2f} |"
            )
    return lines


def main() -> None:
    """Print a table per pair."""
    shapes = ON_GPU if GPU else ON_CPU
    parser = argparse.ArgumentParser(description="Updates per second beside TRL's GKDTrainer.")
    parser.add_argument("pairs", nargs="*", choices=list(shapes), help="which pairs; all by default")
    parser.add_argument("--repeat", type=int, default=3, help="processes per arm")
    parser.add_argument("--arm", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm is not None:
        child(shapes[options.pairs[0]], ARMS[options.arm], options.root)
        return
    os.environ.update(QUIET)
    peer = find_spec("trl") is not None
    if not peer:
        print("TRL is not installed (pip install trl==1.16.0): ours alone, and the first arm is 1", file=sys.stderr)
    for name in options.pairs or shapes:
        shape = shapes[name]
        runs = measure(name, shape, [arm for arm in ARMS if peer or arm.options is not None], options.repeat)
        print(f"\n{name}: {shape}\n{hardware()}")
        first, all_of_them = same_path(runs, 1), same_path(runs)
        print(f"largest difference in loss or gradient norm: {first:.0e} in update 1, {all_of_them:.0e} in all\n")
        if first > SAME:
            raise SystemExit("the trainers do not do the same work: their times are not compared")
        print("| trainer | divergence | updates / s | times the peer's | peak MiB | of the peer's |")
        print("|---|---|---|---|---|---|", *rows(shape, runs), sep="\n", flush=True)


def hardware() -> str:
    """Machine and versions."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    found = [line.split(":")[1].strip() for line in lines if "model name" in line] or [platform.machine()]
    where = torch.cuda.get_device_name() if GPU else f"{found[0]}, {len(found)} cores, one thread"
    versions = [f"{name} {version(name)}" for name in ("torch", "transformers", "trl") if find_spec(name)]
    return f"{where}; Python {platform.python_version()}, {', '.join(versions)}"


if __name__ == "__main__":
    main()
