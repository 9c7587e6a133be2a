"""The options of the verbs that measure a model: `passk`, `regrade`, `tar`, `speedup`, `landscape`, and of `demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from selectkd_eval.verbs.run import ModelRun, Run, runtime


@dataclass(frozen=True, kw_only=True)
class PasskOptions(ModelRun):
    """pass@k on mathematics and code: generated through lm-eval, graded apart, programs run in a sandbox."""

    model: str = "embedded:student"
    """The model measured: a directory, a hub name, a train record, embedded:NAME, or a server's name for it."""
    tasks: tuple[str, ...] = ("mini-gsm",)
    """Tasks by name: `list tasks` shows them."""
    data: Path | None = None
    """Directory with the tasks' own files (gsm8k_test.jsonl.gz ...); without it they come from the hub."""
    backend: Literal["hf", "vllm", "server"] = "hf"
    """What runs the model: Hugging Face transformers, vLLM, or the OpenAI-compatible server at --base-url."""
    base_url: str = ""
    """The server's /v1 address; implies --backend server."""
    key_variable: str = runtime("OPENAI_API_KEY")
    """Environment variable that holds the server's key, if it needs one."""
    chat: Literal["auto", "yes", "no"] = "auto"
    """Ask through the chat template; auto: when the tokenizer has one (a server: yes)."""
    system: str = ""
    """System prompt, for a chat template that takes one."""
    shots: int | None = None
    """Solved examples before each question; by default the task's own number."""
    layout: str = ""
    """How the task is worded, by name; by default the task's own for chat or plain models (`list tasks`)."""
    max_new_tokens: int = 0
    """Longest answer in tokens; 0 means the task's own, or 128 for a model of less than 10 million parameters."""
    temperature: float = 0.0
    """0 is greedy decoding."""
    top_p: float = 1.0
    """Draw from the smallest set of tokens with this probability."""
    samples: int = 1
    """Answers per problem and seed."""
    k: tuple[int, ...] = (1,)
    """pass@k by the unbiased estimator, for each of these k; k answers per problem are needed."""
    seeds: tuple[int, ...] = ()
    """Sampling seeds; by default 0 1 2 when sampling and 0 for greedy decoding."""
    grader: str = ""
    """Another grader than the task's own, so that a published number can be matched (`list graders`)."""
    verdict: Literal["isolated", "official"] = "isolated"
    """Programs: tests apart from the candidate, or all in one interpreter as human-eval does. Both are measured."""
    sandbox: Literal["auto", "namespaces", "bubblewrap", "landlock", "external"] = runtime("auto")
    """How programs are confined; external: you vouch that this whole process already is."""
    sandbox_packages: tuple[str, ...] = ("numpy",)
    """Installed packages that programs may import beside the standard library."""
    cpu_seconds: float = 10.0
    """CPU seconds that a program may take; a timeout is run once more, alone."""
    workers: int = runtime(0)
    """Processes that grade; 0 means one per core."""
    compare: Path | None = runtime(None)
    """An earlier passk record: print the paired difference to it."""
    answers: Path | None = runtime(None)
    """File that keeps every finished answer; by default answers.sqlite beside the records."""
    batch_size: int = runtime(64)
    """Prompts decoded together, or requests in flight at once."""


@dataclass(frozen=True, kw_only=True)
class RegradeOptions(Run):
    """Grade the stored answers of a passk record again, without a model."""

    record: Path
    """The passk record."""
    data: Path | None = None
    """Directory with the tasks' files, when programs or references must be read again; by default the record's."""
    grader: str = ""
    """Another grader than the record's (`list graders`)."""
    verdict: Literal["isolated", "official"] = "isolated"
    """Programs: tests apart from the candidate, or all in one interpreter. Both are measured."""
    sandbox: Literal["auto", "namespaces", "bubblewrap", "landlock", "external"] = runtime("auto")
    """How programs are confined; external: you vouch that this whole process already is."""
    sandbox_packages: tuple[str, ...] = ("numpy",)
    """Installed packages that programs may import beside the standard library."""
    cpu_seconds: float = 10.0
    """CPU seconds that a program may take; a timeout is run once more, alone."""
    workers: int = runtime(0)
    """Processes that grade; 0 means one per core."""


@dataclass(frozen=True, kw_only=True)
class TarOptions(ModelRun):
    """Token Acceptance Rate of students or checkpoints on a fixed held-out set (Eq. 13)."""

    teacher: str = "embedded:teacher"
    """Teacher p."""
    student: tuple[str, ...] = ("embedded:student",)
    """Students q: directories, train records (all their kept checkpoints), embedded:NAME."""
    data: str = "mini-stories:validation"
    """Held-out text on which both models are run, as `train --data`."""
    k: int = 5
    """Ranks (greedy) or proposals (Spec-k)."""
    batch_size: int = runtime(32)
    """Sequences per forward pass."""


@dataclass(frozen=True, kw_only=True)
class SpeedupOptions(ModelRun):
    """Speculative decoding: what the student buys as a draft for the target."""

    target: str = "embedded:teacher"
    """The verifying model, whose text must not change."""
    draft: tuple[str, ...] = ("embedded:draft",)
    """Drafting models. Several are timed in turns on every prompt and compared with each other."""
    engine: Literal["reference", "transformers", "vllm"] = "reference"
    """What decodes: our engine, Hugging Face's assisted generation, or vLLM through its server."""
    prompts: str = "mini-gsm"
    """Named sets (spec-bench and others) or files of prompts, joined by commas; each is a task of its own."""
    prompt_dir: Path | None = None
    """Directory with the files of named sets that are not embedded."""
    limit: int | None = 40
    """Only the first N prompts of each set, and of each task where questions name their task (Spec-Bench)."""
    gamma: tuple[int, ...] = (3, 5)
    """Draft lengths to time."""
    max_new_tokens: int = 64
    """Longest answer. Every arm decodes as many tokens as the target's own greedy answer has, end token included."""
    ignore_end: bool = False
    """Decode --max-new-tokens on every prompt, past the end of the answer."""
    temperature: float = 0.0
    """0 is greedy; above it both models are sampled at this temperature."""
    top_p: float = 1.0
    """Both models draw from the smallest set of tokens with this probability."""
    top_k: int = 0
    """Both models draw from their N likeliest tokens; 0 means all."""
    repetitions: int = 3
    """Timed repetitions of every arm on every prompt."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of both models."""
    batch: tuple[int, ...] = (1,)
    """Texts decoded together; above 1 with --engine vllm alone."""
    threads: int = 1
    """torch threads. They decide the times, so that another number is another record; 0 means at most two."""
    proposer: Literal["draft-model", "ngram", "eagle"] = "draft-model"
    """How vLLM drafts: with --draft as a model, from the text so far (no --draft), or with --draft as an EAGLE head."""
    vllm_python: Path | None = runtime(None)
    """Python of vLLM's own environment; by default .venv-vllm/bin/python where `make vllm-env` made it."""
    server: tuple[str, ...] = ()
    """vLLM servers that run already, as ARM=URL: plain=http://..., gamma3=http://... (one for every --gamma)."""


@dataclass(frozen=True, kw_only=True)
class LandscapeOptions(ModelRun):
    """Filter-normalised loss landscape (Li et al. 2018; the paper's Figure 4b)."""

    teacher: str = "embedded:teacher"
    """Teacher p of the common loss."""
    student: tuple[str, ...] = ("embedded:student",)
    """Students compared: same architecture, same directions, same tokens, same unweighted loss."""
    data: str = "mini-gsm:validation"
    """Text of the fixed token batch."""
    sequences: int = 32
    """Sequences in the batch."""
    grid: int = 11
    """Points per axis; odd, so that the model itself is on the grid. 51 measures every point of a picture."""
    radius: float | None = None
    """Half-width of the plane in units of the weights' own row norms, the same for every student; by default where the
    loss has risen by --rise."""
    rise: float = 1.0
    """The automatic radius: the students' mean rise of the loss, in nats, at the plane's edge."""
    directions: int = 1
    """Direction seeds: one plane per seed, starting at --seed."""
    moved: Literal["all", "blocks"] = "all"
    """Which matrices move: all of them, or those of the blocks alone (embedding and output layer stay)."""
    held_out: int = 16
    """Off-grid points per plane that are measured to see how far the interpolation is off."""
    tolerance: float = 0.005
    """Refine the grid where it matters until the interpolation is off by no more than this share of the range."""
    metric: tuple[Literal["tar", "alpha", "accuracy"], ...] = ()
    """Measured at every point beside the loss: greedy TAR, alpha, or how often the likeliest token is the text's."""
    scalars: int = 16
    """Directions of the scalars (curvature, flatness at two radii, sharpness); 0 leaves them out."""
    hessian: bool = False
    """Also the Hessian's largest eigenvalues, by Lanczos."""
    k: int = 5
    """Ranks of --metric tar."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the students' forward passes; weights are moved in float32 either way."""
    share: str = ""
    """K/N: measure share K (from 1) of N, each a record of its own, on as many processes or GPUs as there are."""
    batch_size: int = runtime(32)
    """Sequences per forward pass."""
    cache_mb: int = runtime(2048)
    """Keep the teacher's log-probabilities up to so many MB; above it its hidden states, a product dearer each time."""


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """The whole job on the embedded pair: train, measure, report. CPU, no network."""

    out: Path = Path("reports/demo")
    """Directory of the demo's records, students and report."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Training seeds of every arm."""
    noisy_teacher: bool = False
    """Distil from a teacher that is confidently wrong at 30 % of the positions: the regime in which gating helps."""
    from_scratch: bool = False
    """Train the embedded models again instead of using the shipped weights."""
    quick: bool = False
    """A few steps and prompts only: does everything run?"""
    workers: int = 0
    """Verbs run side by side; 0 means one per core, at most two."""
