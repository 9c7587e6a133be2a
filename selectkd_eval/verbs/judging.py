"""The options of `answer` and `winrate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from selectkd_eval.verbs.run import ModelRun, Run, runtime


@dataclass(frozen=True, kw_only=True)
class AnswerOptions(ModelRun):
    """Write a model's answers to a prompt set into a record."""

    model: str = "embedded:student"
    """The model that answers: a directory, a hub name, a train record, embedded:NAME, or a served model's name."""
    prompts: str = "mini-stories"
    """A named set (`selectkd-eval list prompts`), a file of prompts, or several with commas."""
    prompt_dir: Path | None = runtime(None)
    """Directory with the files of a named set (alpaca_eval.json ...) instead of the hub."""
    backend: Literal["hf", "vllm"] = "hf"
    """What runs a local model: transformers, or vLLM from an environment of its own."""
    system: str = ""
    """System prompt of a chat model."""
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
    """Answer record, a JSON/JSONL file with an answer per prompt, or a named set's references, to compare with."""
    prompt_dir: Path | None = runtime(None)
    """Directory with the files of a named set (alpaca_eval.json ...) instead of the hub."""
    allow_missing: bool = False
    """Judge although some prompts have no answer: they stand as failed, and the bounds say what that could change."""
    judge: str = "likelihood:embedded:judge"
    """A judge of `selectkd-eval list judges` (gpt-4o), any served model's name with --base-url, hf:MODEL or
    vllm:MODEL (a local model that is asked), likelihood:MODEL (its log-likelihood), or replay:FILE."""
    base_url: str = ""
    """Address of an OpenAI-compatible server; empty means the judge's own."""
    key_variable: str = ""
    """Environment variable that holds the server's key; empty means the judge's own (OPENAI_API_KEY)."""
    judge_file: Path = runtime(Path("judges.toml"))
    """Judges of your own, with address, limits and prices: see `selectkd-eval list judges --explain gpt-4o`."""
    protocol: str = "selectkd"
    """Prompt, order and tie rule of the judgement: see `selectkd-eval list protocols`."""
    repeats: int = 1
    """Ask about every comparison so many times: how often does the judge agree with itself?"""
    tie_band: float = 0.02
    """Likelihood judge: answers closer than this in mean log-likelihood per character tie."""
    concurrency: int = runtime(16)
    """Requests in flight at once, at most; for a judge on this machine, comparisons decoded together."""
    requests_per_minute: int = runtime(0)
    """At most so many requests a minute; 0 means the judge's own limit."""
    tokens_per_minute: int = runtime(0)
    """At most so many tokens a minute; 0 means the judge's own limit."""
    max_cost: float | None = runtime(None)
    """Stop before more than this is spent, in the unit of the judge's prices (US dollars): the record can go on."""
    batch: bool = runtime(False)
    """Ask through the server's Batch API: half the price, within a day; the same command collects the replies."""
    wait: bool = runtime(True)
    """With --batch: wait for the batch. With --no-wait, hand it in, or collect what is ready, and end."""
    dry_run: bool = runtime(False)
    """Say how many calls, tokens and how much money the command would take, and ask nothing."""
    compare: tuple[str, ...] = runtime(())
    """Win-rate records of other models on the same prompts: paired differences, Holm over all of them."""
    agreement: tuple[str, ...] = runtime(())
    """The same comparisons by other judges (win-rate records, or files as for replay:): kappa, AC1, alpha."""
    resamples: int = runtime(10_000)
    """Bootstrap resamples of the printed intervals."""
    device: str = runtime("auto")
    """Device of a judge on this machine."""
    threads: int = runtime(0)
    """torch threads of a judge on this machine; 0 means at most two."""
