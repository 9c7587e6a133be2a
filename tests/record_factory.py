"""Records with the fields that the verbs write, filled with synthetic rows: for tests of reading and layout.

The rows are made up from a seed; nothing here is a measurement. Files go through `records.open_record`, so their
headers, names and end lines are the real ones.
"""

from __future__ import annotations

import hashlib
import math
import random
from pathlib import Path
from typing import Any

from landscape_rows import LANDSCAPE_FACTS, Loss, landscape_rows
from speed_rows import Made

from selectkd_eval.records import Record, open_record, read, record_path
from selectkd_eval.verbs import (
    LandscapeOptions,
    PasskOptions,
    SpeedupOptions,
    TarOptions,
    TrainOptions,
    WinrateOptions,
)

GATES = {"SFT-control": "none", "KD": "none", "KD + Top-k": "top-k", "KD + Spec-k": "spec-k"}
JUDGES = ("likelihood:embedded:judge", "gpt-4o")
SKILL = {"Teacher": 0.92, "Start": 0.5, "SFT-control": 0.58, "KD": 0.72, "KD + Top-k": 0.69, "KD + Spec-k": 0.73}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def card(method: str, seed: int | None = None, **training: Any) -> dict[str, Any]:
    """The card of the teacher, of the untrained student, or of a student trained by `method`."""
    if method in ("Teacher", "Start"):
        name = {"Teacher": "embedded:teacher", "Start": "embedded:student"}[method]
        return {
            "name": name,
            "fingerprint": digest(name),
            "parameters": 700_000 if method == "Teacher" else 120_000,
            "method": name,
            "base_method": "",
            "seed": None,
            "training": {},
        }
    facts = {
        "method": method,
        "base_method": "KD" if method.startswith("KD +") else "",
        "recipe": "sft" if method.startswith("SFT") else "kd",
        "divergence": "nll" if method.startswith("SFT") else "fkl",
        "verifier": GATES.get(method, "none"),
        "k": 5,
        "beta": 0.01,
        "seed": seed,
        **training,
    }
    return {
        "name": f"students/{method}-{seed}",
        "fingerprint": digest(f"{method}{seed}{sorted(training.items())}"),
        "parameters": 120_000,
        "method": method,
        "base_method": facts["base_method"],
        "seed": seed,
        "training": facts,
    }


def write(verb: str, options: Any, facts: dict[str, Any], rows: list[dict[str, Any]], finish: bool = True) -> Record:
    """One record of `rows`, each with its key."""
    with open_record(verb, options, inputs={"model": digest(str(sorted(facts)))}, facts=facts) as record:
        for row in rows:
            record.write(**row)
        if finish:
            record.finish()
    return read(record_path(verb, options), unfinished_ok=True)


def passk(out: Path, model: dict[str, Any], n: int = 60, skill: float | None = None, task: str = "mini-gsm") -> Record:
    skill = SKILL[_kind(model)] if skill is None else skill
    rng = random.Random(f"{model['method']}{model['seed']}{task}")
    rows = []
    for problem in range(n):
        # One difficulty per problem, shared by all methods: paired differences are narrower than unpaired ones.
        hard = random.Random(f"{task}{problem}").random()
        correct = int(0.7 * hard + 0.3 * rng.random() < skill)
        rows.append(
            {
                "key": f"{task}/p{problem}/0/0",
                "task": task,
                "problem": f"p{problem}",
                "seed": 0,
                "sample": 0,
                "completion": f" #### {correct}",
                "extracted": str(correct),
                "gold": "1",
                "correct": correct,
                "finish": "eos",
                "n_tokens": 35,
            }
        )
    facts = {"model": model, "tasks": {task: {"n": n, "sha256": digest(task), "shots": 0, "grader": "number"}}}
    return write("passk", PasskOptions(out=out, model=model["name"], tasks=(task,)), facts, rows)


def task_facts(task: str, kind: str = "answer", **more: Any) -> dict[str, Any]:
    """A task as a header names it."""
    grader = "sandbox" if kind == "code" else "gsm8k-numeric"
    facts = {"n": 40, "kind": kind, "sha256": digest(task), "version": "test", "layout": "plain", "shots": 0}
    return {**facts, "grader": grader, **more}


def passk_facts(model: dict[str, Any], tasks: dict[str, dict[str, Any]], **more: Any) -> dict[str, Any]:
    """The header facts of a passk record with these tasks."""
    decoding = {"max_new_tokens": 512, "temperature": 0.0, "top_p": 1.0, "stops": []}
    facts = {
        "model": model,
        "tasks": tasks,
        "generation": {"engine": "hf", "decoding": {task: dict(decoding) for task in tasks}, "seeds": "greedy, none"},
        "graders": {"gsm8k-numeric": "1"},
        "k": [1],
    }
    if any(task["kind"] == "code" for task in tasks.values()):
        limits = {"cpu_seconds": 10.0, "memory_bytes": 1 << 30}
        facts["sandbox"] = {"verdict": "isolated", "tier": "landlock", "limits": limits, "packages": {"numpy": "2.3"}}
    return {**facts, **more}


def answer_row(task: str, problem: str, word: str = "right", seed: int = 0, sample: int = 0, **more: Any) -> Any:
    """One graded answer to a question."""
    row = {"task": task, "problem": problem, "seed": seed, "sample": sample, "prompt_sha256": digest(problem)}
    row |= {"completion": "So it is 7.", "finish": "eos", "n_tokens": 5, "n_prompt_tokens": 60, "prompt_cut": False}
    row |= {"kind": "answer", "outcome": word, "correct": int(word == "right"), "detail": "", "strata": {}}
    return {"key": f"{task}/{problem}/{seed}/{sample}", **row, "extracted": "7", "gold": "7", **more}


def program_row(
    task: str, problem: str, word: str = "pass", other: str | None = None, seed: int = 0, **more: Any
) -> dict[str, Any]:
    """One program run in both modes; `other` is the official outcome where it is another."""
    row = answer_row(task, problem, word, seed)
    del row["gold"]
    row |= {"kind": "code", "correct": int(word == "pass"), "extracted": "def f():\n    return 7\n", "mode": "isolated"}
    row |= {"fallback": False, "cpu_seconds": 0.01, "again": False, "output": ""}
    word = other or word
    row["other"] = {"mode": "official", "outcome": word, "correct": int(word == "pass"), "detail": ""}
    return {**row, **more}


def winrate(
    out: Path,
    candidate: dict[str, Any],
    baseline: dict[str, Any],
    n: int = 60,
    kind: str = "likelihood",
    ties: str = "excluded",
    protocol: str = "selectkd",
    judge: str = "",
    prompts: str = "mini-stories",
) -> Record:
    """`judge` names another judge, with a mind of its own on close answers."""
    judge = judge or ("likelihood:embedded:judge" if kind == "likelihood" else "gpt-4o")
    rng = random.Random(f"{candidate['method']}{candidate['seed']}win{'' if judge in JUDGES else judge}")
    edge = 0.3 + 0.5 * (SKILL.get(_kind(candidate), 0.6) - 0.5) + 0.2
    rows = []
    for prompt in range(n):
        hard = random.Random(f"story{prompt}").random()
        draw = 0.5 * hard + 0.5 * rng.random()
        verdict = "tie" if abs(draw - edge) < 0.03 else "candidate" if draw < edge else "baseline"
        order = rng.choice(["candidate-first", "baseline-first"])
        row = {"key": f"s{prompt}/{order}", "prompt": f"s{prompt}", "order": order, "verdict": verdict}
        rows.append({**row, "seed": 0, "candidate_chars": 120, "baseline_chars": 110, "reason": ""})
    facts = {
        "judge": {"name": judge, "kind": kind, "note": ""},
        "protocol": {"name": protocol, "sha256": digest(protocol), "order": "random", "ties": ties},
        "candidate": candidate,
        "baseline": baseline,
        "prompts": {"name": prompts, "sha256": digest(prompts.removeprefix("mini-")), "n": n},
    }
    options = WinrateOptions(
        out=out,
        candidate=candidate["name"],
        baseline=baseline["name"],
        judge=facts["judge"]["name"],
        protocol=protocol,
    )
    return write("winrate", options, facts, rows)


def train(
    out: Path,
    student: dict[str, Any],
    steps: int = 60,
    every: int = 10,
    teacher: dict[str, Any] | None = None,
    start: dict[str, Any] | None = None,
) -> Record:
    teacher = teacher or card("Teacher")
    rng = random.Random(f"{student['method']}{student['seed']}train")
    gated = student["training"]["verifier"] != "none"
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        done = 1 - math.exp(-3 * step / steps)
        tar = 0.62 + 0.2 * done + rng.gauss(0, 0.008)
        rows.append(
            {
                "key": f"step/{step}",
                "event": "step",
                "step": step,
                "epoch": step / 30,
                "loss": 0.6 - 0.35 * done + rng.gauss(0, 0.01),
                "lr": 5e-4 * (1 - step / steps),
                "grad_norm": 1.0,
                "tar": tar if gated else 1.0,
                "tar_pooled": tar if gated else 1.0,
                "alpha": tar - 0.05,
                "bite": 0.3 * (1 - done) if gated else 0.0,
                "mean_weight": tar,
                "tokens": 1200,
            }
        )
        if step % every == 0:
            loss = 0.5 - 0.25 * done + rng.gauss(0, 0.004)
            row = {"event": "validation", "step": step, "loss": loss, "nll": loss + 0.9}
            rows.append({"key": f"validation/{step}", **row, "tar": tar, "tar_pooled": tar, "alpha": tar - 0.05})
    facts = {
        "method": student["method"],
        "base_method": student["base_method"],
        "training": student["training"],
        "teacher": teacher,
        "student": start or card("Start"),
        "data": {"sha256": digest("data"), "n": 1500, "dropped_duplicates": 0},
        "save": student["name"],
    }
    verifier = student["training"]["verifier"]
    options = TrainOptions(
        out=out, seed=student["seed"], verifier=verifier, method=student["method"], teacher=teacher["name"]
    )
    return write("train", options, facts, rows)


def tar(out: Path, students: list[dict[str, Any]], steps: list[int | None], n: int = 40) -> Record:
    rows = []
    for index, step in enumerate(steps):
        done = 0.3 + 0.7 * ((index + 1) / len(steps))
        for prompt in range(n):
            rng = random.Random(f"{prompt}")
            tokens = rng.randint(20, 45)
            alpha = min(0.98, 0.45 + 0.3 * done + rng.gauss(0, 0.05))
            sums = {
                "greedy": min(1, alpha + 0.12),
                "greedy1": alpha - 0.05,
                "spec": min(1, alpha + 0.2),
                "alpha": alpha,
            }
            sums |= {"fkl": 1.2 - 0.6 * done, "nll": 2.2 - 0.6 * done, "hellinger": 0.4, "teacher_entropy": 1.1}
            key = {"key": f"{index}/s{prompt}", "student": index, "step": step, "prompt": f"s{prompt}"}
            totals = {name: value * tokens for name, value in sums.items()}
            parts = {
                name: _binned(totals, tokens, bins, rng) for name, bins in (("by_entropy", 7), ("by_position", 11))
            }
            rows.append({**key, "n_tokens": tokens, **totals, **parts})
    facts = {
        "teacher": card("Teacher"),
        "students": students,
        "prompts": {"name": "mini-stories:validation", "sha256": digest("v"), "n": n},
        "k": 5,
        "entropy_edges": [0.1, 0.25, 0.5, 1.0, 2.0, 4.0],
        "position_edges": [2**power for power in range(10)],
    }
    return write("tar", TarOptions(out=out, student=tuple(s["name"] for s in students)), facts, rows)


def _binned(totals: dict[str, float], tokens: int, bins: int, rng: random.Random) -> dict[str, list[float]]:
    """Tokens thrown into bins, and in each its share of the acceptances."""
    counts = [0] * bins
    for _ in range(tokens):
        counts[min(bins - 1, int(rng.expovariate(0.5)))] += 1
    shares = {name: [totals[name] * n / tokens for n in counts] for name in ("greedy", "spec", "alpha")}
    return {"n": [float(n) for n in counts], **shares}


def speedup(
    out: Path,
    drafts: dict[str, Any] | list[dict[str, Any]],
    n: int = 12,
    gammas: tuple[int, ...] = (3, 5),
    tasks: tuple[str, ...] = ("mini-gsm",),
    violation: bool = False,
    prompts: str = "mini-gsm",
    drift: float = 1.0,
    engine: str = "reference",
    batches: tuple[int, ...] = (1,),
    text: bool = True,
    temperature: float = 0.0,
    **made: Any,
) -> Record:
    """`drift`: plain decoding over plain decoding timed again; 1 on a machine that does nothing else. `made`: further
    fields of `speed_rows.Made`, e.g. noise, repetitions, or the drafts' skills and costs.
    """
    drafts = [drafts] if isinstance(drafts, dict) else drafts
    skills = [SKILL.get(_kind(draft), 0.2) + 0.1 for draft in drafts]
    costs = [draft["parameters"] / 700_000 for draft in drafts]
    settings: dict[str, Any] = {"n": n, "gammas": gammas, "tasks": tasks, "violation": violation, "drift": drift}
    settings |= {"engine": engine, "batches": batches, "text": text, "temperature": temperature}
    rows = Made(**{"skills": skills, "costs": costs, **settings, **made}).rows()
    sampling = {"temperature": temperature, "top_p": 1.0, "top_k": 0}
    facts = {
        "engine": {"name": engine, "version": "0"},
        "target": card("Teacher"),
        "drafts": drafts,
        "prompts": {
            "name": prompts,
            "sha256": digest(f"{prompts}{n}"),
            "n": n,
            "tasks": {task: len(range(index, n, len(tasks))) for index, task in enumerate(tasks)},
        },
        "gammas": list(gammas),
        "batches": list(batches),
        **sampling,
        "dtype": "float32",
        "threads": 1,
        "affinity": [0],
        "vocabulary": 512,
        "first": 1,
        "memory": {
            name: {"weights": 4 * one["parameters"], "cache_per_token": 2048}
            for name, one in {"target": card("Teacher"), **{f"draft {i}": d for i, d in enumerate(drafts)}}.items()
        },
        "rules": "made up",
    }
    names: dict[str, Any] = {"draft": tuple(draft["name"] for draft in drafts), "limit": n, "prompts": prompts}
    options = SpeedupOptions(out=out, **names, engine=engine, gamma=gammas, batch=batches, temperature=temperature)
    return write("speedup", options, facts, rows)


def landscape(
    out: Path,
    students: list[dict[str, Any]],
    grid: int = 11,
    radius: float = 0.5,
    directions: int = 2,
    tokens: str = "tokens",
    loss: Loss | None = None,
    *,
    metrics: tuple[str, ...] = (),
    scalars: int = 0,
    held_out: int = 0,
    share: str = "",
    **more: Any,
) -> Record:
    """`loss(student, a, b)`; direction seeds differ by a tenth of it. `more` are other facts than the usual ones."""
    rows = landscape_rows(len(students), grid, radius, directions, loss, metrics, scalars, held_out)
    first, _, of = share.partition("/")
    rows = [row for place, row in enumerate(rows) if not share or place % int(of) == int(first) - 1]
    facts = {
        "teacher": card("Teacher"),
        "students": students,
        "seeds": list(range(directions)),
        "tokens_sha256": digest(tokens),
        "teacher_sha256": digest("teacher"),
        "radius": radius,
        "grid": grid,
        "weights_sha256": [digest(student["fingerprint"]) for student in students],
        "metrics": list(metrics),
        "held_out": held_out,
        "share": share,
        **LANDSCAPE_FACTS,
        **more,
    }
    names: Any = tuple(student["name"] for student in students)
    options = LandscapeOptions(
        out=out, student=names, grid=grid, radius=radius, data=tokens, directions=directions, share=share
    )
    return write("landscape", options, facts, rows)


def everything(out: Path, seeds: tuple[int, ...] = (0, 1, 2), n: int = 60) -> Path:
    """One record of every kind that the demo writes."""
    passk(out, card("Teacher"), n)
    passk(out, card("Start"), n)
    for method in GATES:
        for seed in seeds:
            student = card(method, seed)
            train(out, student)
            passk(out, student, n)
            if method != "SFT-control":
                winrate(out, student, card("SFT-control", seed), n)
    tar(out, [card("KD + Spec-k", 0)] * 4, [0, 20, 40, 60])
    for method in ("SFT-control", "KD"):
        speedup(out, card(method, 0))
    landscape(out, [card("KD", 0), card("KD + Spec-k", 0)])
    return out


def teachers(out: Path, seeds: tuple[int, ...] = (0, 1, 2), n: int = 60) -> Path:
    """Students of three teachers by two methods, of which one loses with the largest, and the student alone."""
    passk(out, card("Start"), n)
    for rank, size in enumerate((1_500_000_000, 7_000_000_000, 72_000_000_000)):
        teacher = card("Teacher") | {"name": f"teacher-{size}", "fingerprint": f"teacher-{size}", "parameters": size}
        for method, skill in (("KD", (0.6, 0.7, 0.55)[rank]), ("KD + Spec-k", 0.6 + 0.08 * rank)):
            for seed in seeds:
                name = f"students/{method}-{size}-{seed}"
                student = card(method, seed, teacher=teacher["fingerprint"]) | {"name": name}
                train(out, student, teacher=teacher)
                passk(out, student, n, skill=skill)
    return out


def _kind(model: dict[str, Any]) -> str:
    return {"embedded:teacher": "Teacher", "embedded:student": "Start"}.get(model["name"], model["method"])
