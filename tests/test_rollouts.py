"""Text policies: whose text an update trains on, by draws that depend on seed, update and prompt alone."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TinyPair, tiny_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from writing import at, prompt_file, responses, tiny_archive, tiny_author, training_set

from judges.pairing import newest_record
from selectkd_eval import records
from selectkd_eval.author import Author, share
from selectkd_eval.batches import Example
from selectkd_eval.errors import InputError
from selectkd_eval.prompts import load_prompts
from selectkd_eval.recipes import POLICIES, RECIPES
from selectkd_eval.rollouts import CONSTANTS, Replay, text_policy
from selectkd_eval.sampling import Sampling

REPLAY = CONSTANTS["replay"]


@pytest.fixture(scope="module")
def author(tiny_pair: TinyPair) -> Author:
    return tiny_author(tiny_pair)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prompt_file(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def examples(author: Author, data: Path) -> list[Example]:
    return training_set(author, load_prompts(str(data)))


def test_every_policy_and_constant_of_the_recipes_is_known() -> None:
    assert CONSTANTS.keys() == POLICIES.keys()
    for recipe in RECIPES.values():
        if recipe.policy not in ("dataset", "teacher"):
            assert {name: recipe.constants[name] for name in CONSTANTS[recipe.policy]} == CONSTANTS[recipe.policy]


def test_text_of_the_data_stays_as_it_is(author: Author, examples: list[Example]) -> None:
    for name in ("dataset", "teacher"):
        assert text_policy(name, {}, author).update(examples, at(1)) == examples


@settings(max_examples=6, deadline=None)
@given(batch_size=st.integers(1, 10), order=st.permutations(range(10)), cut=st.integers(0, 10))
def test_a_rollout_depends_on_its_prompt_and_update_alone(
    author: Author, examples: list[Example], batch_size: int, order: list[int], cut: int
) -> None:
    whole = text_policy("student", {}, author).update(examples, at(3))
    policy = text_policy("student", {}, replace(author, batch_size=batch_size))
    policy.update(examples[:2], at(2))  # an earlier update leaves no trace
    parts = [[examples[i] for i in order[:cut]], [examples[i] for i in order[cut:]]]  # two ranks, or two runs
    pieces = [text for part in parts for text in policy.update(part, at(3))]
    assert pieces == [whole[i] for i in order]


def test_other_updates_and_seeds_give_other_rollouts(author: Author, examples: list[Example]) -> None:
    first, later = (text_policy("student", {}, author).update(examples, at(step)) for step in (1, 2))
    other = text_policy("student", {}, replace(author, seed=1)).update(examples, at(1))
    assert responses(first) != responses(later)
    assert responses(first) != responses(other)


def test_writing_leaves_modes_and_random_state_alone(author: Author, examples: list[Example]) -> None:
    author.student.train()
    author.student.model.layers[0].eval()  # a part that somebody froze
    modes = [module.training for module in author.student.modules()]
    state = torch.get_rng_state()
    text_policy("student", {}, author).update(examples, at(1))
    assert [module.training for module in author.student.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    author.student.train()
    loss = author.student(input_ids=torch.tensor([examples[0].ids])).logits.sum()
    loss.backward()  # what was made while decoding can be differentiated through
    assert author.student.model.embed_tokens.weight.grad is not None
    author.student.zero_grad()


def test_the_end_token_stays_where_it_was_written_and_a_cut_text_has_none(
    author: Author, examples: list[Example]
) -> None:
    # An end token that is likely: some texts end, others are cut.
    bias = torch.zeros(len(author.tokenizer))
    bias[author.tokenizer.eos_token_id] = 4.0
    student = author.student
    hook = student.lm_head.register_forward_hook(lambda module, inputs, output: output + bias)
    try:
        texts = text_policy("student", {}, replace(author, max_new_tokens=6)).update(examples * 4, at(1))
        texts += text_policy("student", {}, replace(author, max_new_tokens=6)).update(examples * 4, at(2))
    finally:
        hook.remove()
    end = author.tokenizer.eos_token_id
    ended = [text for text in responses(texts) if text[-1] == end]
    cut = [text for text in responses(texts) if text[-1] != end]
    assert ended
    assert cut
    assert all(end not in text[:-1] for text in ended)
    assert all(len(text) == 6 and end not in text for text in cut)


def test_prompt_and_answer_are_never_longer_than_longest(author: Author, examples: list[Example]) -> None:
    longest = max(len(example.prompt_ids) for example in examples) + 2
    texts = text_policy("student", {}, replace(author, longest=longest)).update(examples, at(1))
    assert max(len(text.ids) for text in texts) == longest
    for text, example in zip(texts, examples, strict=True):
        assert text.prompt_ids == example.prompt_ids
        assert (text.source, text.index, text.prompt) == ("student", -1, example.prompt)
        assert sum(text.response) == len(responses([text])[0]) > 0


def test_a_padded_student_writes_only_tokens_that_both_models_have(author: Author, examples: list[Example]) -> None:
    width = len(author.tokenizer)
    padded = tiny_llama(author.tokenizer, seed=3, vocabulary=width + 64)
    flat = Sampling(temperature=50.0)  # nearly uniform over the head
    wide = text_policy("student", {}, replace(author, student=padded, sampling=flat)).update(examples, at(1))
    cut = replace(author, student=padded, sampling=flat, vocabulary=width)
    assert max(map(max, responses(wide))) >= width  # else the test shows nothing
    assert max(map(max, responses(text_policy("student", {}, cut).update(examples, at(1))))) < width


def test_imitkd_keeps_each_example_with_probability_base_to_the_minus_i_over_n(author: Author) -> None:
    policy = text_policy("mixed-examples", {"base": 200.0}, author)
    many = [Example([1, 5, 2], [False, True, True], f"{i:016x}") for i in range(4000)]
    steps = 100
    for step in (1, 26, 51, 100):
        beta = 200 ** (-(step - 1) / steps)
        rolled = policy.chosen(many, at(step, steps))
        assert 1 - sum(rolled) / len(many) == pytest.approx(beta, abs=4 * (beta * (1 - beta) / len(many)) ** 0.5 + 1e-9)


def test_imitkd_mixes_within_an_update_and_keeps_the_order(author: Author, examples: list[Example]) -> None:
    policy = text_policy("mixed-examples", {"base": 200.0}, author)
    texts = policy.update(examples, at(3))
    assert {text.source for text in texts} == {"dataset", "student"}
    assert [text.prompt for text in texts] == [example.prompt for example in examples]
    assert all(text == example for text, example in zip(texts, examples, strict=True) if text.source == "dataset")
    assert policy.update(examples, at(1)) == examples  # beta_0 = 1
    assert policy.readings() == {"rollouts": 0}


def test_gkd_draws_once_per_update_for_all_ranks(author: Author, examples: list[Example]) -> None:
    policy = text_policy("mixed-steps", {"lambda": 0.5}, author)
    rolled = []
    for step in range(1, 401):
        halves = [policy.chosen(part, at(step, 400)) for part in (examples[:3], examples[3:])]
        assert len({choice for half in halves for choice in half}) == 1
        rolled.append(halves[0][0])
    assert sum(rolled) / 400 == pytest.approx(0.5, abs=4 * 0.025)
    for share_of_student, source in ((0.0, "dataset"), (1.0, "student")):
        texts = text_policy("mixed-steps", {"lambda": share_of_student}, author).update(examples, at(1))
        assert {text.source for text in texts} == {source}


def test_phi_rises_when_the_held_out_loss_has_risen_by_epsilon(author: Author) -> None:
    policy = Replay(author, REPLAY)
    heard = [2.0, 1.5, 2.05, 2.1, 2.15, 2.3, 1.0, 2.4]
    phis = []
    for loss in heard:
        policy.validated(loss)
        phis.append(round(policy.phi, 10))
    # 2.0 is what is compared with until 2.1 >= 2.0 + 0.1; then 2.1 until 2.3; then 2.3 until 2.4.
    assert phis == [0, 0, 0, 0.1, 0.1, 0.2, 0.2, 0.3]
    top = Replay(author, {**REPLAY, "phi": 0.95})
    top.validated(1.0)
    top.validated(2.0)
    assert top.phi == 1.0


@pytest.mark.parametrize("decreasing", [1.0, 0.0])
def test_replay_by_hand(author: Author, examples: list[Example], decreasing: float) -> None:
    steps, phi, capacity = 40, 0.7, 12
    policy = Replay(author, {**REPLAY, "phi": phi, "capacity": capacity, "decreasing": decreasing})
    buffer: list[Example] = []
    seen = set()
    for step in range(1, steps + 1):
        batch = [examples[(3 * step + i) % 10] for i in range(3)]
        r = share("replay", author.seed, step)
        texts = policy.update(batch, at(step, steps))
        if r < phi * ((1 - step / steps) if decreasing else 0.5) or (r < phi and len(buffer) < capacity):
            seen.add("new")
            assert texts == text_policy("student", {}, author).update(batch, at(step, steps))
            buffer = (buffer + texts)[-capacity:]
        elif r < phi:
            seen.add("replayed")
            assert texts == random.Random(f"replay/{author.seed}/{step}/0").sample(buffer, 3)
        else:
            seen.add("data")
            assert texts == batch
        assert policy.readings()["buffer"] == len(buffer)
    assert seen == {"new", "replayed", "data"}


def test_the_first_update_is_one_of_t_in_the_falling_threshold(author: Author, examples: list[Example]) -> None:
    """Between phi (1 - t/T) and phi (1 - (t - 1)/T) the buffer answers: t counts from 1, as in the released code."""
    step = next(t for t in range(1, 20) if 1 - t / 20 <= share("replay", author.seed, t) < 1 - (t - 1) / 20)
    policy = Replay(author, {**REPLAY, "phi": 1.0, "capacity": 1})
    policy.buffer.append(examples[0].answered([7], "student"))
    assert policy.update(examples[1:2], at(step, 20)) == [examples[0].answered([7], "student")]


def test_a_resumed_replay_goes_on_as_it_would_have(author: Author, examples: list[Example]) -> None:
    numbers = {**REPLAY, "phi": 0.6, "capacity": 8.0}
    policy, resumed = Replay(author, numbers), Replay(author, numbers)
    policy.validated(1.0)
    for step in range(1, 9):
        policy.update(examples[:4], at(step, 16))
    resumed.load_state_dict(json.loads(json.dumps(policy.state_dict())))
    for one in (policy, resumed):
        one.validated(1.2)
    assert resumed.readings()["phi"] == policy.readings()["phi"] == pytest.approx(0.7)
    for step in range(9, 17):
        assert resumed.update(examples[4:8], at(step, 16)) == policy.update(examples[4:8], at(step, 16))
    assert resumed.state_dict() == policy.state_dict()


def test_a_buffer_smaller_than_an_update_is_drawn_from_with_repetition(author: Author, examples: list[Example]) -> None:
    policy = Replay(author, {**REPLAY, "phi": 1.0, "capacity": 2})
    last = at(10)  # 1 - t/T = 0: only the unfilled buffer asks for new text
    policy.update(examples, last)
    drawn = policy.update(examples, at(10))
    assert len(drawn) == 10
    assert {text.prompt for text in drawn} <= {example.prompt for example in examples[-2:]}


def test_rollouts_are_an_answer_record_without_duplicates(
    author: Author, examples: list[Example], data: Path, tmp_path: Path
) -> None:
    archive = tiny_archive(author, data, tmp_path)
    policy = text_policy("student", {}, author, archive=archive)
    for step in (1, 2):
        policy.update(examples[:5], at(step))
    policy.close()  # killed, and continued from a checkpoint of the first update
    policy = text_policy("student", {}, author, archive=archive)
    for step in (2, 3):
        texts = policy.update(examples[:5], at(step))
    policy.finish()
    path = next(tmp_path.glob("answer-run-rollouts-*.jsonl"))
    lines = path.read_text().splitlines()
    assert len(lines) == 1 + 15 + 1
    rows = {row["key"]: row for row in records.read(path, verb="answer").rows}
    assert len(rows) == 15
    for text in texts:
        row = rows[f"{text.prompt}/3"]
        written = responses([text])[0]
        assert row["n_tokens"] == len(written)
        assert row["answer"] == author.tokenizer.decode(written, skip_special_tokens=True).removeprefix(" ")
    again = load_prompts(str(path))  # as --data
    assert {prompt.id for prompt in again.prompts} == {example.prompt for example in examples[:5]}
    with pytest.raises(InputError, match="no finished answer record"):  # the bare `winrate` does not mean this text
        newest_record(tmp_path)


def test_a_lora_student_writes(author: Author, examples: list[Example], tiny_pair: TinyPair) -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(tiny_author(tiny_pair).student, LoraConfig(r=2, target_modules=["q_proj"])).train()
    texts = text_policy("student", {}, replace(author, student=adapted)).update(examples, at(1))
    assert texts == text_policy("student", {}, author).update(examples, at(1))  # a fresh adapter changes nothing


@pytest.mark.parametrize(
    ("name", "constants", "sentence"),
    [
        ("mixed-steps", {"lambda": 1.5}, r"lambda lies in \[0, 1\], but 1.5"),
        ("replay", {"capacity": 0}, "capacity must be at least 1, but 0"),
        ("interleaved", {"top_k": 0.5}, "top_k must be at least 1"),
        ("on-policy", {}, "no text policy called 'on-policy'"),
    ],
)
def test_impossible_numbers_are_refused(author: Author, name: str, constants: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        text_policy(name, constants, author)


def test_a_sharded_student_is_not_asked_to_write(author: Author) -> None:
    for name in ("student", "mixed-steps", "replay", "interleaved", "pairs"):
        with pytest.raises(InputError, match="use DDP"):
            text_policy(name, {}, replace(author, sharded=True))
    text_policy("dataset", {}, replace(author, sharded=True))
