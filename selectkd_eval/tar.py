"""`tar`: how many of the student's proposals does the teacher accept on held-out text? The paper's Eq. 13 and
Figure 4a.

Teacher and students read the same held-out tokens; every student is scored against one teacher pass. Per
prompt the record holds sums over its response tokens, so any mean (Eq. 13's mean over sequences, or pooled
over tokens) and its interval can be taken later: the greedy Top-k acceptance (Eq. 9, and its k = 1), the
exact Spec-k acceptance ``1 - TV^k`` (Eqs. 10-12), alpha = ``1 - TV``, and the losses beside them. The acceptances
also stand broken down by the teacher's entropy and by the place in the response.

Acceptance is the verifier's indicator, never "weight = 1": at beta = 1 every weight is 1. The contexts are those
of the given text: the data's, or a student's own where the text is the record of its answers. This is not the
acceptance rate of a speculative decoder (see `speedup`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from selectkd_eval import environment, measures, pair, prompts, records, verifiers
from selectkd_eval.divergences import fkl, nll, tvd
from selectkd_eval.errors import InputError
from selectkd_eval.teacher_forced import Batch, batches, digest, encode, log_probs, per_sequence
from selectkd_eval.verbs import TarOptions

ACCEPTANCES = ("greedy", "spec", "alpha")
# Inner edges of the bins. A teacher's entropy (nats) is near 0 at most tokens; places double, from the first token on.
ENTROPY_EDGES = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
POSITION_EDGES = tuple(2**power for power in range(10))
GIVEN = "the given text (teacher forcing)"


def run(options: TarOptions) -> int | None:
    """Measure (or finish measuring) every student, and print a line for each."""
    verifiers.check_gate(options.k, 0.0)
    if options.batch_size < 1:
        raise InputError(f"--batch-size must be at least 1, not {options.batch_size}")
    environment.set_threads(options.threads)
    device = environment.device(options.device)
    teacher = pair.load_model(options.teacher, device)
    students = [pair.load_model(name, device) for name in expand(options.student)]
    vocabulary = [pair.common_vocabulary(teacher, student) for student in students]
    chosen = prompts.load_prompts(options.data, options.limit)
    examples = encode(teacher.tokenizer, chosen, teacher.model, *(student.model for student in students))
    with records.open_record(
        "tar",
        options,
        inputs={
            "teacher": teacher.card.fingerprint,
            "data": digest(examples),
            **{f"student {index}": student.card.fingerprint for index, student in enumerate(students)},
        },
        facts={
            "teacher": teacher.card.as_dict(),
            "students": [student.card.as_dict() | {"step": step_of(student.card)} for student in students],
            "prompts": chosen.facts() | {"used": len(examples)},
            "k": options.k,
            "vocabulary": vocabulary,
            "context": f"{GIVEN}; the end token is a response token; temperature 1",
            "written_by": authors(options.data),
            "entropy_edges": ENTROPY_EDGES,
            "position_edges": POSITION_EDGES,
        },
    ) as record:
        pad = teacher.tokenizer.pad_token_id or 0
        if not record.complete:
            every = list(batches(examples, options.batch_size, pad, device))
            for batch in tqdm(every, desc="tar", disable=None):
                _measure(record, options.k, teacher, students, vocabulary, batch)
            record.finish()
        print("\n".join(_summary(record, options, students)))
    return None


def _measure(
    record: records.Writer,
    k: int,
    teacher: pair.LoadedModel,
    students: Sequence[pair.LoadedModel],
    vocabulary: Sequence[int],
    batch: Batch,
) -> None:
    """One teacher pass, and every student that still lacks a row of this batch."""
    missing = {
        index: [key for key in batch.keys if f"{index}/{key}" not in record.done] for index in range(len(students))
    }
    if not any(missing.values()):
        return
    widest = log_probs(teacher.model, batch, max(vocabulary))
    counts = per_sequence(torch.ones_like(batch.row, dtype=torch.float64), batch).tolist()
    for index, student in enumerate(students):
        if not missing[index]:
            continue
        log_p = widest[:, : vocabulary[index]]
        if log_p.shape[-1] < widest.shape[-1]:
            log_p = log_p.log_softmax(-1)
        found = quantities(log_p, log_probs(student.model, batch, vocabulary[index]), batch.targets, k)
        sums = {name: per_sequence(values, batch).tolist() for name, values in found.items()}
        broken_down = breakdowns(found, batch) if "entropy_edges" in record.facts else {}
        for place, key in enumerate(batch.keys):
            if key in missing[index]:
                row: dict[str, Any] = {name: values[place] for name, values in [*sums.items(), *broken_down.items()]}
                record.write(
                    f"{index}/{key}",
                    student=index,
                    step=step_of(student.card),
                    prompt=key,
                    n_tokens=int(counts[place]),
                    **row,
                )


def quantities(log_p: Tensor, log_q: Tensor, targets: Tensor, k: int) -> dict[str, Tensor]:
    """Everything measured per position: log-probabilities ``(N, V)`` and the tokens ``(N,)`` to values
    ``(N,)``.
    """
    return {
        "greedy": verifiers.top_k(log_p, log_q, k),
        "greedy1": verifiers.top_k(log_p, log_q, 1),
        "spec": verifiers.spec_k_expected(log_p, log_q, k),
        "alpha": 1 - tvd(log_p, log_q),
        "fkl": fkl(log_p, log_q),
        "nll": nll(log_q, targets),
        "hellinger": verifiers.hellinger(log_p, log_q),
        "teacher_entropy": -(log_p.exp() * log_p.clamp_min(-1e30)).sum(-1),
    }


def breakdowns(found: Mapping[str, Tensor], batch: Batch) -> dict[str, list[dict[str, list[float]]]]:
    """The acceptances of `quantities` per sequence in bins of the teacher's entropy and of the place in the response.

    `by_entropy` and `by_position`: for every sequence the tokens `n` and the sums per bin.
    """
    first = torch.searchsorted(batch.row, batch.row)  # rows ascend, so this is where a token's own sequence begins
    place = torch.arange(batch.row.numel(), device=batch.row.device) - first
    return {
        "by_entropy": _in_bins(found, batch, found["teacher_entropy"], ENTROPY_EDGES),
        "by_position": _in_bins(found, batch, place, POSITION_EDGES),
    }


def _in_bins(
    found: Mapping[str, Tensor], batch: Batch, value: Tensor, edges: Sequence[float]
) -> list[dict[str, list[float]]]:
    bins, sequences = len(edges) + 1, len(batch.keys)
    inner = torch.tensor(edges, dtype=torch.float64, device=value.device)
    cell = batch.row * bins + torch.bucketize(value.double(), inner, right=True)
    ones = torch.ones_like(value, dtype=torch.float64)
    columns = torch.stack([ones, *(found[name].double() for name in ACCEPTANCES)])
    sums = torch.zeros(len(columns), sequences * bins, dtype=torch.float64, device=value.device)
    sums.index_add_(1, cell, columns)
    table = sums.view(len(columns), sequences, bins).cpu()
    # Six decimals: the values are fp32, and a row stays short.
    return [
        {"n": table[0, at].long().tolist()}
        | {name: [round(x, 6) for x in row.tolist()] for name, row in zip(ACCEPTANCES, table[1:, at], strict=True)}
        for at in range(sequences)
    ]


def authors(data: str) -> list[dict[str, str]]:
    """Who wrote the held-out text, where it is the record of an `answer` run (or several): names and weights."""
    paths = [Path(part.strip()) for part in data.split(",")]
    found = [records.read(path, verb="answer").facts for path in paths if path.is_file() and records.is_record(path)]
    models = [facts.get("model") or {} for facts in found]
    return [{name: str(model.get(name) or "") for name in ("name", "method", "fingerprint")} for model in models]


def expand(names: Iterable[str]) -> list[str]:
    """Each name, or the checkpoints it stands for in order of their steps, and then the final student.

    A train record, or the directory of a trained student, stands for all the checkpoints kept in it; one with
    the final student's own weights is left out.
    """
    found: list[str] = []
    for name in names:
        directory = pair.locate(name) if name.endswith(".jsonl") else Path(name)
        checkpoints = sorted(Path(directory).glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
        is_model = any((Path(directory) / file).exists() for file in ("config.json", "adapter_config.json"))
        final = _weights(Path(directory))
        found += [str(path) for path in checkpoints if final is None or _weights(path) != final]
        if is_model or not checkpoints:
            found.append(name)
    if not found:
        raise InputError("--student names no model: give directories, train records or embedded:NAME")
    return found


def _weights(directory: Path) -> str | None:
    """Digest of a directory's weights when they are one file."""
    file = directory / "model.safetensors"
    return environment.sha256_file(file) if file.exists() else None


def step_of(card: pair.ModelCard) -> int | None:
    """The training step of a student: from its checkpoint directory's name, or what its training wrote down."""
    folder = Path(card.name).name
    if folder.startswith("checkpoint-"):
        return int(folder.split("-")[1])
    step = card.training.get("steps")
    return int(step) if step is not None else None


def _summary(record: records.Writer, options: TarOptions, students: Sequence[pair.LoadedModel]) -> list[str]:
    names = {
        "greedy": f"TAR greedy-{options.k}",
        "greedy1": "TAR greedy-1",
        "spec": f"TAR spec-{options.k}",
        "alpha": "alpha = 1 - TV",
        "fkl": "KL(p, q)",
    }
    pooled = {name: names[name] for name in ACCEPTANCES}
    prompts_measured = len({row["prompt"] for row in record.done.values()})
    text = f"teacher {options.teacher}, text {options.data}{_written(record, students)}"
    return [
        *_table(record, students, names, macro=True),
        f"mean over {prompts_measured} sequences of per-sequence means (Eq. 13), [ ] 95 % over sequences; {text}",
        *_table(record, students, pooled, macro=False),
        "pooled over all response tokens, in which long sequences count for more; [ ] 95 % over sequences",
        f"record: {record.path}",
    ]


def _table(
    record: records.Writer, students: Sequence[pair.LoadedModel], names: Mapping[str, str], macro: bool
) -> list[str]:
    rows = list(record.done.values())
    table = [["student", "step", *names.values()]]
    for index, student in enumerate(students):
        step = step_of(student.card)
        cells = [measures.tar(rows, index, what, macro).estimate() for what in names]
        text = [f"{cell.value:.4f} [{cell.low:.4f}, {cell.high:.4f}]" for cell in cells]
        table.append([student.card.method, "-" if step is None else str(step), *text])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in table]


def _written(record: records.Writer, students: Sequence[pair.LoadedModel]) -> str:
    """Whose contexts these are, where a model wrote the text: of its own student they are on-policy."""
    wrote = record.facts.get("written_by") or []
    if not wrote:
        return ""
    own = [student.card.name for student in students if {student.card.fingerprint} == {w["fingerprint"] for w in wrote}]
    return f", written by {', '.join(w['name'] for w in wrote)}" + (f": on-policy for {', '.join(own)}" if own else "")
