"""How were the embedded models made?  By this file, from two synthetic families, with the seeds written here.
Four small Llama models share one tokenizer: the *teacher*; the *student*, fine-tuned on a limited number of
labelled examples and therefore clearly weaker; the one-layer *draft* for speculative decoding; the *judge*,
which has seen stories only, from another stream, so it neither taught nor was taught by any other. The
paper's pairs are pretrained models of billions of parameters; these exist so that every verb has really
trained models to work on without a network.

Distillation is not here (`train`); this is plain supervised training on gold answers, prompt tokens excluded.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from selectkd_eval.demo import corpus
from selectkd_eval.errors import choose

CONTEXT = 2048
"""`max_position_embeddings`: real GSM8K prompts are mostly spelled in bytes, so they are long."""

IGNORED = -100

Encoded = tuple[list[int], int]
"""Token ids of prompt, answer and end of text; number of prompt tokens."""
Batch = tuple[torch.Tensor, torch.Tensor]
"""Ids and labels, each (B, T), right-padded; labels are IGNORED where there is no loss."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides the weights of one model."""

    width: int
    layers: int
    feedforward: int
    data: str
    """`labelled` (the labelled sets) or the name of a training stream of `corpus.training_corpus`."""
    gsm: int
    stories: int
    steps: int
    seed: int
    heads: int = 4
    batch: int = 32
    lr_matrices: float = 0.02
    lr_others: float = 3e-3
    warmup: int = 20


MODELS = {
    "teacher": Settings(96, 6, 256, data="teacher", gsm=28000, stories=12000, steps=1400, seed=11),
    "student": Settings(64, 2, 160, data="labelled", gsm=800, stories=400, steps=600, seed=12),
    "draft": Settings(64, 1, 256, data="teacher", gsm=28000, stories=12000, steps=1400, seed=23, heads=8),
    "judge": Settings(64, 2, 160, data="judge", gsm=0, stories=12000, steps=375, seed=14),
}


def save_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """Writes the shared tokenizer as transformers loads it, and returns it."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=corpus.build_tokenizer(),
        bos_token=corpus.END,
        eos_token=corpus.END,
        pad_token=corpus.PAD,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(directory)
    return tokenizer


def build(out_dir: Path, seed: int = 0, only: Sequence[str] | None = None) -> dict[str, Any]:
    """Trains the embedded models into `out_dir/NAME` and returns their cards (also written as `README.json`).

    Args:
        out_dir: a model whose directory there is finished and was made with the same settings is kept.
        seed: added to every model's recorded seed; 0 gives the shipped weights.
        only: names out of `MODELS`; all when None.
    """
    cards: dict[str, Any] = {}
    for name in only or MODELS:
        settings = choose(name, MODELS, "embedded model")
        rows = training_rows(settings)
        card = asdict(settings) | {"seed": settings.seed + seed, "corpus_sha256": corpus.corpus_sha256(rows)}
        cards[name] = _finished(out_dir / name, card) or _make(out_dir / name, name, settings, rows, card)
    cards_file = out_dir / "README.json"
    kept = json.loads(cards_file.read_text(encoding="utf-8")) if cards_file.exists() else {}
    cards_file.write_text(json.dumps(kept | cards, indent=1) + "\n", encoding="utf-8")
    return cards


def training_rows(settings: Settings) -> list[dict[str, Any]]:
    """The examples a model learns from."""
    if settings.data != "labelled":
        return corpus.training_corpus(settings.gsm, settings.stories, settings.data)
    labelled = corpus.examples("mini-gsm:labelled")[: settings.gsm]
    return labelled + corpus.examples("mini-stories:labelled")[: settings.stories]


def _finished(directory: Path, card: dict[str, Any]) -> dict[str, Any] | None:
    """The card of a finished directory made with these settings, or None."""
    path = directory / "card.json"
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found if all(found.get(key) == value for key, value in card.items()) else None


def _make(
    directory: Path, name: str, settings: Settings, rows: list[dict[str, Any]], card: dict[str, Any]
) -> dict[str, Any]:
    """Trains one model, rounds it to fp16, measures it and puts the directory in place in one move."""
    unfinished = directory.with_name(directory.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    tokenizer = save_tokenizer(unfinished)
    model = new_model(settings, len(tokenizer), card["seed"], tokenizer)
    train(model, encode(rows, tokenizer), settings, card["seed"], label=f"training the {name}")
    save_model(model, unfinished)
    card |= measure(model.float(), tokenizer, gsm=settings.gsm > 0, label=f"measuring the {name}")
    (unfinished / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(directory, ignore_errors=True)
    unfinished.rename(directory)
    return card


def save_model(model: LlamaForCausalLM, directory: Path) -> None:
    """Writes fp16 weights under a configuration that asks for fp32, so that every loader computes in fp32."""
    model.half().save_pretrained(directory)
    model.config.dtype = torch.float32
    model.config.save_pretrained(directory)


def new_model(settings: Settings, vocabulary: int, seed: int, tokenizer: Any) -> LlamaForCausalLM:
    """A randomly initialised fp32 Llama with tied embeddings."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=settings.width,
        intermediate_size=settings.feedforward,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


def encode(rows: list[dict[str, Any]], tokenizer: Any) -> list[Encoded]:
    """Prompts and answers as tokens; the answer follows after a space and the end of text is part of it."""
    prompts = tokenizer([row["prompt"] for row in rows], add_special_tokens=False)["input_ids"]
    answers = tokenizer([" " + row["answer"] for row in rows], add_special_tokens=False)["input_ids"]
    end = [tokenizer.eos_token_id]
    return [(p + a + end, len(p)) for p, a in zip(prompts, answers, strict=True)]


def batches(sequences: list[Encoded], size: int, seed: int, pad: int) -> Iterator[Batch]:
    """Endless batches of similar lengths; every epoch in another order."""
    generator = torch.Generator().manual_seed(seed)
    pool = size * 16
    while True:
        order = torch.randperm(len(sequences), generator=generator).tolist()
        for start in range(0, len(order), pool):
            chunk = sorted(order[start : start + pool], key=lambda index: len(sequences[index][0]))
            starts = torch.arange(0, len(chunk) - size + 1, size)
            for first in starts[torch.randperm(len(starts), generator=generator)].tolist():
                picked = [sequences[index] for index in chunk[first : first + size]]
                length = max(len(ids) for ids, _ in picked)
                ids = torch.full((size, length), pad)
                labels = torch.full((size, length), IGNORED)
                for row, (tokens, prompt) in enumerate(picked):
                    ids[row, : len(tokens)] = torch.tensor(tokens)
                    labels[row, prompt : len(tokens)] = torch.tensor(tokens[prompt:])
                yield ids, labels


def train(model: LlamaForCausalLM, sequences: list[Encoded], settings: Settings, seed: int, label: str) -> None:
    """Cross-entropy on answer tokens; Muon for matrices, AdamW for the rest, linear warm-up and decay.

    No attention mask is needed: padding is on the right, attention is causal, padding carries no loss.
    """
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=settings.lr_matrices),
        torch.optim.AdamW(others, lr=settings.lr_others, weight_decay=0.0),
    ]

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / settings.warmup) * (1 - step / settings.steps)

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, rate) for optimizer in optimizers]
    stream = batches(sequences, settings.batch, seed, model.config.pad_token_id)
    model.train()
    for _ in (progress := tqdm(range(settings.steps), desc=label, mininterval=1.0)):
        ids, labels = next(stream)
        wanted = labels[:, 1:] != IGNORED
        hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state[wanted]  # logits only where there is a loss
        loss = cross_entropy(model.lm_head(hidden), labels[:, 1:][wanted])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.eval()


@torch.no_grad()
def measure(model: LlamaForCausalLM, tokenizer: Any, gsm: bool, label: str) -> dict[str, Any]:
    """Held-out figures: greedy pass@1 on mini-GSM with n, and nats per answer token of the families known."""
    model.eval()
    found: dict[str, Any] = {}
    families = ["mini-gsm", "mini-stories"] if gsm else ["mini-stories"]
    for family in families:
        sequences = encode(corpus.examples(f"{family}:test"), tokenizer)
        total = count = 0.0
        for ids, labels in _once(sequences, tokenizer.pad_token_id):
            logits = model(input_ids=ids[:, :-1]).logits
            total += cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum").item()
            count += (labels[:, 1:] != IGNORED).sum().item()
        found[f"{family}:test cross-entropy"] = round(total / count, 4)
    if gsm:
        rows = corpus.examples("mini-gsm:test")
        texts = greedy(model, tokenizer, [row["prompt"] for row in rows], label=label)
        gold = [str(row["meta"]["result"]) for row in rows]
        right = sum(text.split("####")[-1].strip() == g for text, g in zip(texts, gold, strict=True))
        found |= {"mini-gsm:test pass@1": right / len(rows), "n": len(rows)}
    return found


def _once(sequences: list[Encoded], pad: int) -> Iterator[Batch]:
    ordered = sorted(sequences, key=lambda pair: len(pair[0]))
    size = math.gcd(len(ordered), 50)
    for start in range(0, len(ordered), size):
        yield next(batches(ordered[start : start + size], size, 0, pad))


@torch.no_grad()
def greedy(model: LlamaForCausalLM, tokenizer: Any, prompts: list[str], label: str, new_tokens: int = 64) -> list[str]:
    """Greedy completions; prompts of equal token length are decoded together, so no padding is involved."""
    groups: dict[int, list[int]] = {}
    encoded = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    for index, ids in enumerate(encoded):
        groups.setdefault(len(ids), []).append(index)
    texts = [""] * len(prompts)
    for length, members in tqdm(groups.items(), desc=label, mininterval=1.0):
        made = model.generate(
            torch.tensor([encoded[index] for index in members]),
            attention_mask=torch.ones(len(members), length, dtype=torch.long),
            max_new_tokens=new_tokens,
            do_sample=False,
        )
        for index, ids in zip(members, made, strict=True):
            texts[index] = tokenizer.decode(ids[length:], skip_special_tokens=True)
    return texts
