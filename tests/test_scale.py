"""Two processes are one: the same losses, gates and student as a single process, under DDP and under FSDP.

Every case is trained twice, by `run` in this process and by the command line in two processes that `accelerate launch`
starts (once for all cases: this file is also what they run). The total batch is the same, the texts have different
lengths, the last update of an epoch has a single text, so that one of the two processes has none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import REPOSITORY, TinyPair
from safetensors.torch import load_file
from test_interrupted_training import cut_back
from training import Weights, assert_same, six_updates, steps, train
from transformers import AutoModelForCausalLM, AutoTokenizer

from selectkd_eval import records
from selectkd_eval.verbs import TrainOptions

LORA = {"lora_rank": 2, "lora_dropout": 0.0}
NORMALISERS = ("per_seq_mean", "valid_tokens", "selected_tokens")
HALVES = {"recipe": "atkd", "verifier": "none", "normaliser": "class_mean"}
SCHEDULED = {"recipe": "adakd", "verifier": "spec-k", "set": ("ema=0.5", "epsilon=0.01", "delta=0.3")}
WRITING = {"recipe": "gkd", "generation_max_new_tokens": 8, "generation_batch_size": 4}


class Case(NamedTuple):
    """`changes` of the options; `sharded`: FSDP instead of DDP; `after`: a finished case, killed shortly after update
    `killed` (of six: before the student was saved) and continued; `refused`: in these words.
    """

    changes: dict[str, Any]
    sharded: bool = False
    after: str = ""
    killed: int = 4
    refused: str = ""


CASES = {
    **{f"ddp-{normaliser}": Case({"normaliser": normaliser}) for normaliser in NORMALISERS},
    "ddp-lora": Case(LORA),
    **{f"ddp-lora-{normaliser}": Case({"normaliser": normaliser, **LORA}) for normaliser in NORMALISERS[1:]},
    "ddp-class_mean": Case(HALVES),
    "ddp-lora-class_mean": Case({**HALVES, **LORA}),
    "ddp-two-passes": Case({"normaliser": "selected_tokens", "accumulation": 2}),
    "ddp-sampled-gate": Case({"verifier": "spec-k", "spec_sampled": True}),
    "ddp-controller": Case(SCHEDULED),
    "ddp-controller-two-passes": Case({**SCHEDULED, "accumulation": 2}),
    "ddp-student-text": Case(WRITING),
    "fsdp-per_seq_mean": Case({"normaliser": "per_seq_mean"}, sharded=True),
    "fsdp-two-passes": Case({"normaliser": "selected_tokens", "accumulation": 2}, sharded=True),
    "fsdp-controller": Case(SCHEDULED, sharded=True),
    "fsdp-lora": Case(LORA, sharded=True),
    "fsdp-lora-untied": Case({"student": "untied", **LORA}, sharded=True),
    "fsdp-student-text": Case(WRITING, sharded=True, refused="a student sharded over the ranks"),
    "ddp-continued": Case(SCHEDULED, after="ddp-controller"),
    "fsdp-continued": Case(SCHEDULED, sharded=True, after="fsdp-controller"),
    "fsdp-lora-saved-late": Case(LORA, sharded=True, after="fsdp-lora", killed=6),
    "fsdp-saved-late": Case(SCHEDULED, sharded=True, after="fsdp-controller", killed=6),
}
TRAINED = {name: case for name, case in CASES.items() if not case.refused}
# A second run of the same command in the same number of processes is the same to the bit.
ROUNDING = {"rtol": 0.0, "atol": 2e-4}
COSTS = ("seconds", "tokens_per_s", "rows_per_s", "peak_gb")


class Outcome(NamedTuple):
    record: records.Record
    weights: Weights


@pytest.fixture(scope="module")
def base(tiny_pair: TinyPair, tmp_path_factory: pytest.TempPathFactory) -> TrainOptions:
    """Six updates on 25 texts of one to four sentences: updates of 8, 8, 8 and 1 text."""
    directory = tmp_path_factory.mktemp("scale")
    rows = [json.loads(line) for line in tiny_pair.data.read_text().splitlines()[:25]]
    data = directory / "data.jsonl"
    long = [row | {"answer": " ".join([row["answer"]] * (1 + i % 4))} for i, row in enumerate(rows)]
    data.write_text("".join(json.dumps(row) + "\n" for row in long))
    untied = AutoModelForCausalLM.from_pretrained(tiny_pair.student, tie_word_embeddings=False)
    untied.lm_head.weight.data.mul_(1.1)
    untied.save_pretrained(directory / "untied")
    AutoTokenizer.from_pretrained(tiny_pair.student).save_pretrained(directory / "untied")
    return dataclasses.replace(six_updates(tiny_pair, directory), data=str(data), beta=0.3, keep_checkpoints=0)


@pytest.fixture(scope="module")
def outcomes(base: TrainOptions) -> dict[str, tuple[Outcome, Outcome]]:
    """For each case what one process makes of it, and what two make of it."""
    work = base.out.parent
    halved = {name: (changed(base, case, batch_size=4, out=work / name), case) for name, case in CASES.items()}
    (work / "cases.pickle").write_bytes(pickle.dumps(halved))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0"]
    launch += ["--config_file", str(REPOSITORY / "reports/reproduce/accelerate/fsdp.yaml"), __file__, str(work)]
    with (work / "launch.log").open("w") as log:
        two = subprocess.Popen(launch, stdout=log, stderr=subprocess.STDOUT, cwd=REPOSITORY)
        try:
            alone: list[tuple[Case, Outcome]] = []
            for name, case in TRAINED.items():
                if not any(case.changes == known.changes for known, _ in alone):
                    alone.append((case, Outcome(*train(changed(base, case, out=work / "alone" / name)))))
            two.wait(timeout=300)
        finally:
            two.terminate()  # of a launcher that hangs; one that has ended does not hear it
    assert two.returncode == 0, (work / "launch.log").read_text()[-6000:]
    return {
        name: (next(one for known, one in alone if known.changes == case.changes), outcome_of(halved[name][0]))
        for name, case in TRAINED.items()
    }


def changed(base: TrainOptions, case: Case, **more: Any) -> TrainOptions:
    options = dataclasses.replace(base, **case.changes, **more)
    known = {"untied": str(base.out.parent / "untied")}
    return dataclasses.replace(options, student=known.get(options.student, options.student))


def outcome_of(options: TrainOptions) -> Outcome:
    record = records.read(records.record_path("train", options))
    return Outcome(record, load_file(record.path.with_suffix("") / "model.safetensors"))


@pytest.mark.parametrize("name", TRAINED)
def test_two_processes_train_the_student_of_one(name: str, outcomes: dict[str, tuple[Outcome, Outcome]]) -> None:
    one, two = outcomes[name]
    assert [row["step"] for row in steps(two.record)] == list(range(1, 7))
    for ours, theirs in zip(two.record.rows, one.record.rows, strict=True):
        assert measured(ours) == pytest.approx(measured(theirs), rel=2e-4, abs=1e-5, nan_ok=True)
    assert_same(two.weights, one.weights, **ROUNDING)
    start = load_file(Path(two.record.options["student"]) / "model.safetensors")
    learned = max(float((weight - start[key]).abs().max()) for key, weight in two.weights.items())
    assert learned > 50 * ROUNDING["atol"]


def measured(row: dict[str, Any]) -> dict[str, float]:
    """All numbers of a row but its costs, those in lists one by one."""
    numbers: dict[str, float] = {}
    for column, value in row.items():
        values = value if isinstance(value, list) else [value]
        numbers |= {f"{column} {at}": each for at, each in enumerate(values) if isinstance(each, int | float)}
    return {column: value for column, value in numbers.items() if column.split()[0] not in COSTS}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.after])
def test_a_killed_run_goes_on_to_the_same_student(name: str, outcomes: dict[str, tuple[Outcome, Outcome]]) -> None:
    whole, continued = outcomes[CASES[name].after][1], outcomes[name][1]
    assert list(map(measured, continued.record.rows)) == list(map(measured, whole.record.rows))
    assert_same(continued.weights, whole.weights)


def test_the_schedule_moved(outcomes: dict[str, tuple[Outcome, Outcome]]) -> None:
    shares = [row["share"] for row in steps(outcomes["fsdp-continued"][1].record)]
    assert shares[3] < 1 and shares[5] < shares[3]


def test_one_process_had_no_text_in_the_last_update_of_the_epoch(outcomes: dict[str, tuple[Outcome, Outcome]]) -> None:
    tokens = [row["tokens"] for row in steps(outcomes["ddp-valid_tokens"][1].record)]
    assert tokens[3] < min(tokens[:3]) / 2 and not any(math.isnan(count) for count in tokens)


def train_every_case(work: Path) -> None:
    """What each of the two processes does."""
    import torch
    from accelerate.state import AcceleratorState, GradientState

    from selectkd_eval.cli import main
    from selectkd_eval.demo.plan import Job

    torch.set_num_threads(1)
    let_cpus_shard()
    for name, (options, case) in pickle.loads((work / "cases.pickle").read_bytes()).items():
        AcceleratorState._reset_state(reset_partial_state=False)
        GradientState._reset_state()
        os.environ["ACCELERATE_USE_FSDP"] = str(case.sharded).lower()
        if case.after and os.environ["RANK"] == "0":
            shutil.copytree(work / case.after, options.out)
            cut_back(records.read(records.record_path("train", options)), to=case.killed)
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        print(name, flush=True)
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            status = main(Job("train", options).arguments)
        print(said.getvalue(), file=sys.stderr)
        if status != (2 if case.refused else 0) or case.refused not in said.getvalue():
            sys.exit(f"{name} ended with {status}")
        assert torch.distributed.get_world_size() == 2
    torch.distributed.destroy_process_group()


def let_cpus_shard() -> None:
    """accelerate takes FSDP for a matter of GPUs and falls back to DDP on CPUs, though the sharding itself runs there:
    say at the place where it decides that these processes shard. All that follows is accelerate's and torch's own.
    """
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    begin = AcceleratorState.__init__

    def begin_sharded(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = begin_sharded


if __name__ == "__main__":
    train_every_case(Path(sys.argv[1]))
