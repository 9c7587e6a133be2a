"""Where and how fast must not decide what is learned: chunks, packing, cached teacher rows give the same training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TinyPair, tiny_llama
from training import assert_same, results, six_updates, steps, train

from selectkd_eval import pair
from selectkd_eval.batches import Example, micro_batches, tensors
from selectkd_eval.errors import InputError
from selectkd_eval.materials import _packs
from selectkd_eval.teacher import Teacher
from selectkd_eval.updates import Updates
from selectkd_eval.verbs import TrainOptions


@pytest.fixture
def base(tiny_pair: TinyPair, tmp_path: Path) -> TrainOptions:
    return dataclasses.replace(six_updates(tiny_pair, tmp_path), verifier="spec-k", k=1, lr=1e-3, steps=4)


RECIPES = [
    {"recipe": "kd"},
    {"recipe": "adakd", "set": ("warmup=0.0", "epsilon=0.0")},
    {"recipe": "atkd"},
    {"recipe": "taid", "temperature": 2.0},
]


@pytest.mark.parametrize("changes", RECIPES, ids=lambda changes: changes["recipe"])
def test_all_logits_or_chunks_of_seven_tokens(base: TrainOptions, changes: dict[str, Any]) -> None:
    full, weights = train(base, head="full", out=base.out / "full", **changes)
    chunked, others = train(base, chunk=7, out=base.out / "chunked", **changes)
    for a, b in zip(steps(full), steps(chunked), strict=True):
        for quantity in ("loss", "grad_norm", "tar", "alpha", "bite", "teacher_entropy", "loss_by_quarter"):
            assert a[quantity] == pytest.approx(b[quantity], rel=1e-4, abs=1e-6), quantity
    assert_same(weights, others, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_packed_or_padded(base: TrainOptions, accumulation: int) -> None:
    padded, weights = train(base, out=base.out / "padded")
    packed, others = train(base, pack=True, accumulation=accumulation, out=base.out / "packed")
    for a, b in zip(steps(padded), steps(packed), strict=True):
        assert (a["tokens"], a["loss"]) == (b["tokens"], pytest.approx(b["loss"], rel=1e-4))
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    assert_same(weights, others, rtol=1e-3, atol=1e-4)


def test_a_model_whose_packed_texts_see_each_other_is_found_out(tiny_pair: TinyPair) -> None:
    model = pair.load_model(str(tiny_pair.student)).model
    few = [Example([1, 9, 10, 11], [False, True, True, True], "ab"), Example([1, 20, 21], [False, True, True], "cd")]
    assert _packs(model, few)
    original = model.model.forward

    def forgetful(*args: Any, position_ids: torch.Tensor | None = None, **kwargs: Any) -> Any:
        return original(*args, **kwargs)  # as a model that ignores where a text begins

    model.model.forward = forgetful
    assert not _packs(model, few)


def test_cached_rows_train_the_same_and_ask_the_teacher_once(
    base: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = dataclasses.replace(base, steps=15)  # 40 texts in updates of 8: three epochs
    plain, weights = train(options, out=base.out / "plain")
    teachers: list[Teacher] = []
    born = Teacher.__init__

    def watched(self: Teacher, *args: Any, **kwargs: Any) -> None:
        born(self, *args, **kwargs)
        teachers.append(self)

    monkeypatch.setattr(Teacher, "__init__", watched)
    cached, others = train(options, teacher_cache=tmp_path / "cache", out=base.out / "cached")
    assert "the teacher cache takes" in capsys.readouterr().err, "the size is told before it is written"
    for a, b in zip(steps(plain), steps(cached), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    assert_same(weights, others, rtol=1e-3, atol=1e-4)
    once = teachers[0].forwards
    longer, _ = train(options, seed=1, teacher_cache=tmp_path / "cache", out=base.out / "again")
    assert len(steps(longer)) == 15
    assert teachers[1].forwards == 0, "another seed finds every row"
    assert once > 0
    assert teachers[0].cache is not None
    assert teachers[0].cache.complete


def test_a_cache_of_one_training_is_not_used_for_another_text(base: TrainOptions, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    train(base, teacher_cache=cache, steps=1)
    train(base, teacher_cache=cache, steps=1, limit=9)
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 2


def test_a_head_that_is_more_than_linear_is_refused(
    base: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if an architecture scaled its logits under a name that is not known here.
    monkeypatch.setattr("selectkd_eval.materials.explains_head", lambda model, ids: False)
    with pytest.raises(InputError, match="cannot be trained here"):
        train(base)


def test_an_update_is_the_same_texts_for_any_number_of_ranks() -> None:
    alone = list(Updates(23, 8, seed=3))
    for ranks in (2, 3, 4):
        shares = [list(Updates(23, 8, seed=3, rank=rank, ranks=ranks)) for rank in range(ranks)]
        for update, together in enumerate(alone):
            assert sorted(index for share in shares for index in share[update]) == sorted(together)
    assert sorted(index for update in alone for index in update) == list(range(23))
    later = Updates(23, 8, seed=3)
    later.set_epoch(1)
    assert list(later) != alone
    assert list(Updates(23, 8, seed=4)) != alone


def test_micro_batches_hold_every_text_once_and_similar_lengths() -> None:
    texts = [Example([0] * length, [False] + [True] * (length - 1), f"{length:x}") for length in (3, 9, 4, 8, 5, 7, 6)]
    groups = micro_batches(texts, 3)
    assert [[len(text.ids) for text in group] for group in groups] == [[9, 8, 7], [6, 5], [4, 3]]
    padding = sum(max(len(t.ids) for t in group) * len(group) for group in groups) - sum(len(t.ids) for t in texts)
    assert padding == 5


def test_padded_and_packed_tensors_by_hand() -> None:
    texts = [Example([5, 6, 7], [False, True, True], "a"), Example([8, 9], [False, True], "b", source="student")]
    padded, packed = tensors(texts, pad=0), tensors(texts, pad=0, packed=True)
    assert padded["input_ids"].tolist() == [[5, 6, 7], [8, 9, 0]]
    assert packed["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert packed["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert packed["segment"].tolist() == [[0, 0, 0, 1, 1]]
    assert packed["response_mask"].tolist() == [[False, True, True, False, True]]
    assert packed["source"].tolist() == padded["source"].tolist() == [0, 2]


def test_gradient_checkpointing_changes_memory_only(base: TrainOptions) -> None:
    plain, weights = train(base, steps=2, out=base.out / "plain")
    spared, others = train(base, steps=2, gradient_checkpointing=True, out=base.out / "spared")
    assert results(plain) == results(spared)
    assert_same(weights, others)


def test_an_untied_head_and_the_embedding_are_both_trained(base: TrainOptions, tmp_path: Path) -> None:
    tokenizer = pair.load_tokenizer(base.student)
    model = tiny_llama(tokenizer, seed=4)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.save_pretrained(tmp_path / "untied")
    tokenizer.save_pretrained(tmp_path / "untied")
    before = pair.load_model(str(tmp_path / "untied")).model.state_dict()
    _, weights = train(base, student=str(tmp_path / "untied"), steps=1)
    changed = {name for name in weights if not torch.equal(weights[name], before[name])}
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= changed
