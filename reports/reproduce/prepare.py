"""What the paper trains on and asks about, as files of prompt and answer; and the student a pair starts from.

Hub data sets become JSON lines with `prompt` and `answer`. Which prompts are drawn depends on their text and the seed
alone, so another version or order of a data set changes only what changed in it. The three judged sets come with
DistiLLM-2's release, because nothing else holds the gpt-3.5-turbo answers that the paper compares with; their digests
are checked. A file that is there is kept.

    python reports/reproduce/prepare.py ultrachat --out runs/reproduce/data
    python reports/reproduce/prepare.py start --model Qwen/Qwen2-1.5B --tokenizer Qwen/Qwen2-7B-Instruct --out DIR
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, str]

RELEASE = "https://raw.githubusercontent.com/jongwooko/distillm-2/fe4cf9bfbb4f83219dd1d69219800164b59685fa/eval"
JUDGED = {  # file: path in the release, sha256
    "alpaca_eval.json": (
        "alpacaeval/alpaca_eval.json",
        "15595b68d7f29fce0c64b8694236fb3de1e03ec3df20bb177a705980760771f4",
    ),
    "evol_inst_eval.json": (
        "evol-instruct/evol_inst_eval.json",
        "c721d66df27a6246e31939c6fcb3d96a12bd2c374ac4464750292edea56e3300",
    ),
    "ultrafeedback_eval.json": (
        "ultrafeedback/ultrafeedback_eval.json",
        "da641333e5dcbbb5e3d4c3d75593e09f5a8329f80e1296c812feea1d0550d0e0",
    ),
}
MATH_SUBJECTS = (
    *("algebra", "counting_and_probability", "geometry", "intermediate_algebra"),
    *("number_theory", "prealgebra", "precalculus"),
)


class Source(NamedTuple):
    """A data set on the hub: its configurations (empty: the only one), its split, and a row's prompt and answer."""

    path: str
    split: str
    read: Callable[[Any], tuple[str, str]]
    configs: tuple[str, ...] = ("",)


def _first_turn(row: Any) -> tuple[str, str]:
    return row["messages"][0]["content"], row["messages"][1]["content"]


TRAINING = {
    "ultrachat": Source("HuggingFaceH4/ultrachat_200k", "train_sft", _first_turn),
    "metamath": Source("meta-math/MetaMathQA", "train", lambda row: (row["query"], row["response"])),
    "wizardcoder": Source(
        "nickrosh/Evol-Instruct-Code-80k-v1", "train", lambda row: (row["instruction"], row["output"])
    ),
}
ASKED = {
    "gsm8k": Source("openai/gsm8k", "test", lambda row: (row["question"], row["answer"]), ("main",)),
    "math": Source("EleutherAI/hendrycks_math", "test", lambda row: (row["problem"], row["solution"]), MATH_SUBJECTS),
    "humaneval": Source("openai/openai_humaneval", "test", lambda row: (row["prompt"], row["canonical_solution"])),
    "mbpp": Source("google-research-datasets/mbpp", "test", lambda row: (row["text"], row["code"]), ("full",)),
}


def rows_of(source: Source, path: str = "") -> Iterator[Row]:
    """Prompts and answers of a data set, from the hub or from a local copy of it at `path`."""
    from datasets import load_dataset

    for config in source.configs:
        for row in load_dataset(path or source.path, config or None, split=source.split):
            prompt, answer = source.read(row)
            yield {"prompt": prompt, "answer": answer}


def usable(rows: Iterable[Row], characters: int) -> list[Row]:
    """Rows with a prompt and an answer, the prompt no longer than `characters` (0: any), each prompt once."""
    found: dict[str, Row] = {}
    for row in rows:
        prompt = row["prompt"].strip()
        if prompt and row["answer"].strip() and (not characters or len(prompt) <= characters):
            found.setdefault(prompt, row)
    return list(found.values())


def draw(rows: Iterable[Row], prompts: int, held_out: int, seed: int) -> tuple[list[Row], list[Row]]:
    """`prompts` rows at random (0: all), the last `held_out` of them apart: (training, validation).

    A row's place is the digest of its prompt and the seed, so a draw of fewer is the beginning of a draw of more.
    """
    order = sorted(rows, key=lambda row: hashlib.sha256(f"{seed} {row['prompt'].strip()}".encode()).digest())
    # The validation rows come first in the order: with more prompts they stay the same.
    validation, rest = order[:held_out], order[held_out : prompts or None]
    return rest, validation


def write(path: Path, rows: Iterable[Row]) -> None:
    """JSON lines, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    part.replace(path)
    print(f"wrote {path}", file=sys.stderr)


def training_set(name: str, options: argparse.Namespace) -> None:
    """The drawn prompts, the held-out ones and the whole set (for SFT), each with the set's own answers."""
    paths = [options.out / f"{name}-{part}.jsonl" for part in ("train", "validation", "whole")]
    if all(path.exists() for path in paths):
        return
    rows = usable(rows_of(TRAINING[name], options.source), options.characters)
    train, validation = draw(rows, options.prompts, options.held_out, options.seed)
    if not train or options.prompts > len(rows):
        sys.exit(f"{name} holds {len(rows)} usable prompts, and {options.prompts} were asked for: ask for fewer")
    for path, part in zip(paths, (train, validation, rows), strict=True):
        write(path, part)


def evaluation(options: argparse.Namespace) -> None:
    """The three judged sets with their baseline answers, and the prompts of the pass@1 sets."""
    for name, (path, sha256) in JUDGED.items():
        file = options.out / name
        if file.exists():
            continue
        with urllib.request.urlopen(f"{options.release}/{path}", timeout=60) as reply:
            content = reply.read()
        found = hashlib.sha256(content).hexdigest()
        if found != sha256:
            sys.exit(
                f"{options.release}/{path} has sha256 {found[:12]}, not {sha256[:12]}: it is not the released file"
            )
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(file.name + ".part")
        part.write_bytes(content)
        part.replace(file)
    for name, source in ASKED.items():
        if not (file := options.out / f"{name}.jsonl").exists():
            write(file, rows_of(source))


def start(options: argparse.Namespace) -> None:
    """The base student under its teacher's tokenizer: one chat template, one end token, the same entries in both heads.

    Paper and DistiLLM-2 leave open how a base model without a chat template reads a prompt; a student that ends its
    turns with another token than its teacher would be taught two ends.
    """
    if (options.out / "config.json").exists():
        return
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    if options.end:
        if options.end not in tokenizer.get_vocab():
            sys.exit(f"{options.tokenizer} has no token {options.end!r}: give one of its own with --end")
        tokenizer.eos_token = options.end
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype="auto")
    if len(tokenizer) > model.get_output_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer))
    for config in (model.config, model.generation_config):
        config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    part = options.out.with_name(options.out.name + ".part")
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    part.rename(options.out)
    print(f"wrote {options.out}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    kinds = top.add_subparsers(dest="what", required=True)
    for name, source in TRAINING.items():
        kind = kinds.add_parser(name, help=source.path)
        kind.add_argument("--out", type=Path, required=True, help="directory of the files")
        kind.add_argument("--prompts", type=int, default=50_000, help="how many are drawn; 0: all")
        kind.add_argument("--held-out", type=int, default=1_000, help="how many of them are for validation")
        kind.add_argument("--characters", type=int, default=2_000, help="longest prompt; 0: any")
        kind.add_argument("--seed", type=int, default=0)
        kind.add_argument("--source", default="", help="a local copy of the data set instead of the hub's")
    kind = kinds.add_parser("evaluation", help="the judged sets and the prompts of the pass@1 sets")
    kind.add_argument("--out", type=Path, required=True)
    kind.add_argument("--release", default=RELEASE, help="where DistiLLM-2's eval directory lies")
    kind = kinds.add_parser("start", help="a base student under its teacher's tokenizer")
    kind.add_argument("--out", type=Path, required=True)
    kind.add_argument("--model", required=True)
    kind.add_argument("--tokenizer", required=True)
    kind.add_argument("--end", default="", help="the token that ends a turn, if it is not the tokenizer's end token")
    return top


def main() -> None:
    """One set, or one model."""
    options = parser().parse_args()
    if options.what in TRAINING:
        training_set(options.what, options)
    else:
        {"evaluation": evaluation, "start": start}[options.what](options)


if __name__ == "__main__":
    main()
