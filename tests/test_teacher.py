"""The frozen teacher: rows in the loss's order, from its forward pass or from disk, and no pass it can do without."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_llama
from torch import Tensor

from selectkd_eval.batches import Example, rows_of_batch, tensors
from selectkd_eval.teacher import Teacher

DTYPES = [torch.float32, torch.bfloat16]


def model(seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    return tiny_llama([], layers=2, seed=seed, vocabulary=50).to(dtype)


def texts(count: int = 6) -> list[Example]:
    """Prompts and responses of unequal lengths; the third has two turns, the fifth no response."""
    draw = torch.Generator().manual_seed(1)
    made = []
    for i in range(count):
        ids = torch.randint(3, 50, (4 + 3 * (i % 4),), generator=draw).tolist()
        response = [i != 4 and place >= 2 + i % 2 and not (i == 2 and place == 5) for place in range(len(ids))]
        made.append(Example(ids, response, f"{i:016x}", i))
    return made


def alone(llm: Any, text: Example) -> Tensor:
    """The rows of one text by the model itself: the state at t - 1 for every response token t."""
    with torch.no_grad():
        states = llm(torch.tensor([text.ids]), output_hidden_states=True, use_cache=False).hidden_states[-1][0]
    return states[[place - 1 for place, wanted in enumerate(text.response) if wanted]]


@pytest.mark.parametrize("packed", [False, True])
def test_rows_are_the_states_before_each_response_token_in_order(packed: bool) -> None:
    llm, order = model(), [texts()[i] for i in (3, 0, 4, 2, 1)]
    teacher = Teacher(llm)
    batch = tensors(order, pad=0, packed=packed)
    rows = teacher.rows(batch)
    torch.testing.assert_close(rows, torch.cat([alone(llm, text) for text in order]), rtol=1e-4, atol=1e-5)
    assert len(rows) == len(rows_of_batch(batch).targets)
    assert teacher.forwards == batch["input_ids"].numel()


@pytest.mark.parametrize("packed", [False, True])
def test_the_head_turns_them_into_the_models_own_logits(packed: bool) -> None:
    llm, text = model(), texts()[1]
    rows = Teacher(llm).rows(tensors([text, texts()[0]], pad=0, packed=packed))
    own = llm(torch.tensor([text.ids])).logits[0, torch.tensor(text.response).roll(-1)]
    torch.testing.assert_close(Teacher(llm).head.logits(rows)[: len(own)], own, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_cached_rows_are_fresh_rows_bit_for_bit(tmp_path: Path, dtype: torch.dtype, packed: bool) -> None:
    order = texts()
    batches = [tensors(part, pad=0, packed=packed) for part in (order[:3], [order[3], order[5]])]
    fresh = [Teacher(model(dtype=dtype)).rows(batch) for batch in batches]
    teacher = Teacher(model(dtype=dtype))
    cache = teacher.keep_in(tmp_path, "t", texts())
    first = [teacher.rows(batch) for batch in batches]
    assert cache.complete
    seen = teacher.forwards
    second = [teacher.rows(batch) for batch in batches]
    assert teacher.forwards == seen == sum(batch["input_ids"].numel() for batch in batches)
    for a, b, c in zip(fresh, first, second, strict=True):
        assert a.dtype == b.dtype == c.dtype == dtype
        assert torch.equal(a, b) and torch.equal(b, c)
    # Another order and another composition than the ones they were computed in: still the same rows.
    mixed = teacher.rows(tensors([texts()[5], texts()[0]], pad=0, packed=not packed))
    with_response = [sum(text.response) for text in texts()]
    assert torch.equal(mixed, torch.cat([fresh[1][-with_response[5] :], fresh[0][: with_response[0]]]))
    assert teacher.forwards == seen


def test_a_later_run_or_seed_needs_no_forward_pass(tmp_path: Path) -> None:
    teacher = Teacher(model())
    teacher.keep_in(tmp_path, "t", texts())
    whole = teacher.rows(tensors(texts(), pad=0))
    teacher.flush()
    later = Teacher(model())
    later.keep_in(tmp_path, "t", texts())
    assert torch.equal(later.rows(tensors(texts(), pad=0)), whole)
    assert later.forwards == 0


@pytest.mark.parametrize("packed", [False, True])
def test_only_what_is_missing_goes_through_the_model(tmp_path: Path, packed: bool) -> None:
    llm, order = model(), texts()
    teacher = Teacher(llm)
    cache = teacher.keep_in(tmp_path, "t", order)
    teacher.rows(tensors(order[1:3], pad=0, packed=packed))
    before = teacher.forwards
    batch = tensors(order, pad=0, packed=packed)
    rows = teacher.rows(batch)
    torch.testing.assert_close(rows, torch.cat([alone(llm, text) for text in order]), rtol=1e-4, atol=1e-5)
    # The fifth text has no response, so nothing of it is ever missing.
    run = batch["input_ids"].numel() if packed else 3 * batch["input_ids"].shape[1]
    assert teacher.forwards - before == run
    assert cache.complete


def test_text_written_in_training_is_never_kept(tmp_path: Path) -> None:
    llm, order = model(), texts()
    teacher = Teacher(llm)
    cache = teacher.keep_in(tmp_path, "t", order)
    # The last text of the set: its place must not be taken for that of the others, which have none.
    written = [order[0].answered([7, 8, 9], "student"), order[5], order[1].answered([4], "student")]
    batch = tensors(written, pad=0)
    expected = torch.cat([alone(llm, text) for text in written])
    for run in (3, 2):
        before = teacher.forwards
        torch.testing.assert_close(teacher.rows(batch), expected, rtol=1e-4, atol=1e-5)
        assert teacher.forwards - before == run * batch["input_ids"].shape[1]
        teacher.flush()
    assert [cache.has(index) for index in range(6)] == [False, False, False, False, True, True]


def test_without_a_cache_every_visit_is_a_forward_pass() -> None:
    teacher, batch = Teacher(model()), tensors(texts(), pad=0)
    assert torch.equal(teacher.rows(batch), teacher.rows(batch))
    assert teacher.forwards == 2 * batch["input_ids"].numel()
    teacher.flush()
    with pytest.raises(ValueError, match="still needed"):
        teacher.drop_backbone()


def test_another_teacher_precision_or_text_has_its_own_cache(tmp_path: Path) -> None:
    plain = Teacher(model()).keep_in(tmp_path, "t", texts())
    others = [
        Teacher(model()).keep_in(tmp_path, "u", texts()),
        Teacher(model(), autocast=True).keep_in(tmp_path, "t", texts()),
        Teacher(model(dtype=torch.bfloat16)).keep_in(tmp_path, "t", texts()),
        Teacher(model()).keep_in(tmp_path, "t", texts(5)),
    ]
    assert len({cache.directory for cache in (plain, *others)}) == 5
    with pytest.raises(ValueError, match="a cache of 32"):
        Teacher(model(dtype=torch.bfloat16)).use(plain)


def test_the_backbone_goes_and_the_head_stays(tmp_path: Path) -> None:
    llm = model()
    teacher, batch = Teacher(llm), tensors(texts(), pad=0)
    teacher.keep_in(tmp_path, "t", texts())
    with pytest.raises(ValueError, match="still needed"):
        teacher.drop_backbone()
    rows = teacher.rows(batch)
    logits = teacher.head.logits(rows)
    weight = weakref.ref(llm.model.layers[0].mlp.up_proj.weight.untyped_storage())
    teacher.drop_backbone()
    teacher.drop_backbone()
    gc.collect()
    assert weight() is None
    # The embedding of this model is its head, so it must outlive the rest.
    assert torch.equal(teacher.head.logits(teacher.rows(batch)), logits)
    with pytest.raises(ValueError, match="was dropped"):
        teacher.rows(tensors([texts()[0].answered([5], "student")], pad=0))


def test_it_is_frozen_and_in_evaluation_mode() -> None:
    llm = model().train()
    llm.model.layers[0].self_attn.attention_dropout = 0.9
    teacher, batch = Teacher(llm), tensors(texts(), pad=0)
    assert torch.equal(teacher.rows(batch), teacher.rows(batch))
    assert not teacher.rows(batch).requires_grad
    assert not any(parameter.requires_grad for parameter in llm.parameters())


def test_mixed_precision_runs_the_model_in_bf16() -> None:
    batch = tensors(texts(), pad=0)
    plain, mixed = Teacher(model()).rows(batch), Teacher(model(), autocast=True).rows(batch)
    assert mixed.dtype == torch.float32
    assert not torch.equal(plain, mixed)
    torch.testing.assert_close(plain, mixed, rtol=0.1, atol=0.1)
