"""Decoding: Hugging Face's own text when greedy, the model's distribution when sampled, whatever the batch."""

from __future__ import annotations

import pytest
import torch
from conftest import TinyPair
from hypothesis import given, settings
from hypothesis import strategies as st

from selectkd_eval.generate import Prefixes, continue_ids, generate
from selectkd_eval.pair import LoadedModel, load_model
from selectkd_eval.prompts import prompt_ids
from selectkd_eval.sampling import Sampling, pick

PROMPTS = ["Say 1 :", "the red dog sees", "the", "Say something that is longer than all the others :", "old cat"]


@pytest.fixture(scope="module")
def teacher(tiny_pair: TinyPair) -> LoadedModel:
    return load_model(str(tiny_pair.teacher))


def test_greedy_text_is_hugging_faces_greedy_text(teacher: LoadedModel) -> None:
    ours = generate(teacher.model, teacher.tokenizer, PROMPTS, max_new_tokens=16, batch_size=3)
    for prompt, mine in zip(PROMPTS, ours, strict=True):
        ids = torch.tensor([prompt_ids(teacher.tokenizer, prompt)])
        theirs = teacher.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False)
        assert mine.tokens == theirs[0, ids.shape[1] :].tolist()


@settings(max_examples=8, deadline=None)
@given(batch_size=st.integers(1, 5), order=st.permutations(range(5)))
def test_a_prompts_draws_do_not_depend_on_its_neighbours(
    teacher: LoadedModel, batch_size: int, order: list[int]
) -> None:
    rule = {"max_new_tokens": 10, "sampling": Sampling(1.0, 0.95)}
    alone = [generate(teacher.model, teacher.tokenizer, [p], seeds=[i], **rule)[0] for i, p in enumerate(PROMPTS)]
    mixed = generate(
        teacher.model, teacher.tokenizer, [PROMPTS[i] for i in order], seeds=order, batch_size=batch_size, **rule
    )
    assert [mixed[order.index(i)].tokens for i in range(5)] == [g.tokens for g in alone]


def test_a_stop_string_ends_the_text_before_it(teacher: LoadedModel) -> None:
    text = generate(teacher.model, teacher.tokenizer, ["Say 1 :"], max_new_tokens=30)[0].text
    word = text[5:7]
    cut = generate(teacher.model, teacher.tokenizer, ["Say 1 :"], max_new_tokens=30, stop=[word])[0]
    assert (cut.text, cut.finish) == (text[: text.find(word)], "stop")


def test_picks_follow_the_softmax() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    draws = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    chosen = pick(logits.expand(20_000, 4).clone(), Sampling(temperature=0.7), draws)
    frequency = torch.bincount(chosen, minlength=4) / 20_000
    expected = torch.softmax(logits / 0.7, 0)
    assert torch.allclose(frequency, expected, atol=4 * (0.25 / 20_000) ** 0.5)


@given(u=st.floats(0, 1), top_k=st.integers(1, 4), top_p=st.floats(0.01, 1))
def test_picks_stay_inside_the_nucleus_and_top_k(u: float, top_k: int, top_p: float) -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    token = int(pick(logits, Sampling(1.0, top_p, top_k), torch.tensor([u])))
    ranked = [1, 3, 2, 0]
    p = torch.softmax(logits[0], 0)[ranked]
    assert ranked.index(token) < top_k
    before = float(p[: ranked.index(token)].sum() / p[:top_k].sum())
    assert before < top_p + 1e-6


def test_an_answer_also_ends_at_the_tokens_the_model_was_published_with(teacher: LoadedModel) -> None:
    whole = generate(teacher.model, teacher.tokenizer, ["Say 1 :"], max_new_tokens=12)[0]
    turn_end = whole.tokens[5]
    assert turn_end != teacher.tokenizer.eos_token_id
    before = teacher.model.generation_config.eos_token_id
    teacher.model.generation_config.eos_token_id = [before, turn_end]
    try:
        ended = generate(teacher.model, teacher.tokenizer, ["Say 1 :"], max_new_tokens=12)[0]
    finally:
        teacher.model.generation_config.eos_token_id = before
    assert (ended.finish, ended.tokens) == ("eos", whole.tokens[: whole.tokens.index(turn_end) + 1])


def test_every_row_has_its_own_limit(teacher: LoadedModel) -> None:
    ids = [prompt_ids(teacher.tokenizer, prompt) for prompt in PROMPTS]
    rule = {"sampling": Sampling(1.0), "seeds": list(range(5))}
    whole = dict(continue_ids(teacher.model, teacher.tokenizer, ids, limits=[12] * 5, **rule))
    limits = [3, 12, 1, 7, 5]
    for index, short in continue_ids(teacher.model, teacher.tokenizer, ids, limits=limits, **rule):
        assert short.tokens == whole[index].tokens[: limits[index]]
        assert short.finish == ("length" if len(short.tokens) == limits[index] else "eos")


def test_tokens_come_from_the_first_entries_of_the_head(teacher: LoadedModel) -> None:
    ids = [prompt_ids(teacher.tokenizer, prompt) for prompt in PROMPTS]
    rule = {"sampling": Sampling(50.0), "seeds": list(range(5)), "limits": [20] * 5}
    for width, within in ((None, False), (100, True)):
        written = dict(continue_ids(teacher.model, teacher.tokenizer, ids, vocabulary=width, **rule))
        assert (max(token for one in written.values() for token in one.tokens) < 100) is within


def test_the_head_runs_at_the_last_position_only(teacher: LoadedModel) -> None:
    ids = [prompt_ids(teacher.tokenizer, prompt) for prompt in PROMPTS]
    batch = Prefixes(teacher.model, ids, teacher.tokenizer.pad_token_id)
    lengths = []
    hook = teacher.model.lm_head.register_forward_hook(lambda module, inputs, output: lengths.append(output.shape[1]))
    try:
        logits = batch.logits()
    finally:
        hook.remove()
    assert lengths == [1]
    for row, sequence in enumerate(ids):
        alone = teacher.model(torch.tensor([sequence])).logits[0, -1]
        torch.testing.assert_close(logits[row], alone, rtol=1e-4, atol=1e-4)
