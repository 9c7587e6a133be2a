"""Every recipe trains on a real pair, does not care how an update is cut, and continues bit for bit.

Three tiny trainings per recipe, through the same `run` as the command line. What a recipe minimises is held by
`test_recipes`, `test_selection` and `test_loss`; here it is the loop.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TinyPair, tiny_llama
from training import Weights, assert_same, results, six_updates, steps, train

from selectkd_eval import pair, records
from selectkd_eval.recipes import RECIPES
from selectkd_eval.verbs import TrainOptions

# What an update's numbers may differ by when it is cut into passes: sums in another order.
CLOSE = {"rel": 2e-4, "abs": 1e-6}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes")


@pytest.fixture(scope="module")
def base(tiny_pair: TinyPair, home: Path) -> TrainOptions:
    """The teacher has answered beforehand and always ends its answers; the student is half-way to it."""
    options = six_updates(tiny_pair, home)
    return dataclasses.replace(
        options,
        verifier=None,
        lr=2e-3,
        steps=4,
        batch_size=6,
        generation_max_new_tokens=6,
        data=str(_answered(options)),
        student=str(_half_way(options, home)),
    )


def _half_way(options: TrainOptions, home: Path) -> Path:
    """A student with one layer of the teacher's: close enough that gates, selections and schedules have work."""
    teacher, tokenizer = pair.load_model(options.teacher).model, pair.load_tokenizer(options.teacher)
    student = tiny_llama(tokenizer, layers=1, seed=1)
    student.load_state_dict({name: teacher.state_dict()[name] for name in student.state_dict()})
    student.save_pretrained(home / "half-way")
    tokenizer.save_pretrained(home / "half-way")
    return home / "half-way"


def _answered(options: TrainOptions) -> Path:
    """The training text as an answer record of the teacher."""
    from selectkd_eval.verbs import AnswerOptions

    answers = AnswerOptions(model=options.teacher, prompts=options.data, out=options.out)
    card = {"name": "teacher", "fingerprint": "0", "parameters": 0, "method": "teacher"}
    with records.open_record("answer", answers, inputs={}, facts={"model": card}) as record:
        for number, line in enumerate(Path(options.data).read_text().splitlines()[:24]):
            row = json.loads(line)
            record.write(
                f"{number}/0",
                prompt=str(number),
                text=row["prompt"],
                answer=row["answer"],
                seed=0,
                finish="eos",
                n_tokens=8,
            )
        record.finish()
    return records.record_path("answer", answers)


@pytest.fixture(scope="module")
def reference(base: TrainOptions) -> str:
    """AdaSPEC's third model: the student after plain distillation."""
    record, _ = train(base, recipe="kd", steps=2, name="reference")
    return str(record.path)


def changes_of(recipe: str, reference: str) -> dict[str, Any]:
    """What makes every part of a recipe move within four updates."""
    extra: dict[str, dict[str, Any]] = {
        "adaspec": {"reference": reference},
        "adakd": {"set": ("warmup=0.0", "epsilon=0.0", "delta=0.3")},
        "distillm": {"set": ("phi=0.9", "decreasing=0")},
        "gkd": {"set": ("lambda=0.6",)},
        "imitkd": {"set": ("base=20",)},
    }
    return {"recipe": recipe, **extra.get(recipe, {})}


@pytest.fixture(scope="module", params=RECIPES)
def whole(request: pytest.FixtureRequest, base: TrainOptions, reference: str) -> Iterator[Any]:
    """Four updates in one go: options, record, weights."""
    options = dataclasses.replace(base, save_every=2, keep_checkpoints=0, **changes_of(request.param, reference))
    record, weights = train(options, name="whole")
    yield options, record, weights
    shutil.rmtree(record.path.with_suffix(""))


def test_it_trains_and_says_what_it_did(whole: tuple[TrainOptions, records.Record, Weights]) -> None:
    options, record, weights = whole
    rows = steps(record)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    before = pair.load_model(options.student).model.state_dict()
    assert any(not torch.equal(weights[name], before[name]) for name in weights)
    recipe = RECIPES[options.recipe]
    policy_writes = recipe.policy not in ("dataset", "teacher")
    assert any(row["own_text"] > 0 for row in rows) == policy_writes
    assert record.facts["training"]["recipe"] == options.recipe
    moved = {"adakd": "share", "taid": "target", "distillm2": "beta_c", "distillm": "buffer"}.get(options.recipe)
    if moved:
        assert len({row[moved] for row in rows}) > 1, f"{moved} never moved"
    if recipe.verifier != "none" or recipe.selection:
        assert any(row["bite"] > 0 for row in rows)


def test_an_update_does_not_depend_on_how_it_is_cut(whole: tuple[TrainOptions, records.Record, Weights]) -> None:
    options, record, weights = whole
    cut, cut_weights = train(options, name="cut", accumulation=3)
    for one, other in zip(steps(record), steps(cut), strict=True):
        for quantity in ("loss", "grad_norm", "alpha", "bite", "tokens", "own_text"):
            if one[quantity] is not None:
                assert one[quantity] == pytest.approx(other[quantity], **CLOSE), (one["step"], quantity)
    assert_same(weights, cut_weights, rtol=1e-3, atol=2e-4)


def test_it_continues_bit_for_bit(whole: tuple[TrainOptions, records.Record, Weights]) -> None:
    options, record, weights = whole
    path = records.record_path("train", dataclasses.replace(options, name="resumed"))
    train(options, name="resumed")
    # As after a kill in update 4: the last whole checkpoint is that of update 2, update 3 is in the record.
    directory = path.with_suffix("")
    shutil.rmtree(directory / "checkpoint-4")
    for file in directory.iterdir():
        if file.is_file():
            file.unlink()
    lines = path.read_text().splitlines(keepends=True)
    last = next(n for n, line in enumerate(lines) if '"key":"step/4"' in line)
    path.write_text("".join(lines[:last]))
    resumed, again = train(options, name="resumed")
    assert_same(again, weights)
    assert results(resumed) == results(record)
