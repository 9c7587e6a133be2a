"""SKD's text: the student's proposals that the teacher ranks in its top K, and the teacher's samples in between."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TinyPair
from hypothesis import given
from hypothesis import strategies as st
from writing import at, prompt_file, responses, tiny_author, training_set

from selectkd_eval.author import Author
from selectkd_eval.batches import Example
from selectkd_eval.interleaved import interleave, propose_and_verify
from selectkd_eval.prompts import load_prompts
from selectkd_eval.rollouts import CONSTANTS, text_policy
from selectkd_eval.sampling import Sampling, pick, uniforms

STUDENT, TEACHER = Sampling(0.5, 0.5), Sampling(0.2, 0.5)


@pytest.fixture(scope="module")
def author(tiny_pair: TinyPair) -> Author:
    return tiny_author(tiny_pair, sampling=STUDENT, batch_size=4)


@pytest.fixture(scope="module")
def examples(author: Author, tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    return training_set(author, load_prompts(str(prompt_file(tmp_path_factory.mktemp("text")))))


def test_with_the_whole_vocabulary_it_is_the_students_own_rollout(author: Author, examples: list[Example]) -> None:
    written = interleave(author, examples, 1, top=len(author.tokenizer), teacher_sampling=TEACHER)
    alone = author.write(examples, 1)
    assert responses([w.example for w in written]) == responses([w.example for w in alone])
    assert {w.kept for w in written} == {1.0}
    assert {w.example.source for w in written} == {"mixed"}


def test_with_one_token_and_a_greedy_teacher_it_is_the_teachers_greedy_text(
    author: Author, examples: list[Example]
) -> None:
    for sampling in (Sampling(), Sampling(2.0)):
        together = replace(author, sampling=sampling)
        written = interleave(together, examples, 1, top=1, teacher_sampling=Sampling())
        alone = replace(author, student=author.teacher, sampling=Sampling()).write(examples, 1)
        assert responses([w.example for w in written]) == responses([w.example for w in alone])


def test_every_token_is_a_verified_proposal_or_the_teachers_sample(author: Author, examples: list[Example]) -> None:
    """Checked against both models run once over the finished text, without caches or padding."""
    top, kept, replaced = 60, 0, 0
    for one in interleave(author, examples, 7, top=top, teacher_sampling=TEACHER):
        before, text = one.example.prompt_ids, responses([one.example])[0]
        ids, own = torch.tensor([one.example.ids]), 0
        with torch.no_grad():
            author.student.eval()
            q, p = (model(ids).logits[0, len(before) - 1 : -1] for model in (author.student, author.teacher))
            author.student.train()
        draws = [
            uniforms(author.seeds([one.example], 7, writer)[0], author.max_new_tokens)
            for writer in ("student", "teacher")
        ]
        for place, token in enumerate(text):
            proposal = int(pick(q[place : place + 1], STUDENT, draws[0][place : place + 1]))
            if int((p[place] > p[place, proposal]).sum()) < top:
                assert token == proposal
                own += 1
            else:
                assert token == int(pick(p[place : place + 1], TEACHER, draws[1][place : place + 1]))
                replaced += 1
        assert one.kept == pytest.approx(own / len(text))
        kept += own
    assert kept > 10  # else the test shows nothing
    assert replaced > 10


@given(u=st.floats(0, 0.999), v=st.floats(0, 0.999), top=st.integers(1, 6), seed=st.integers(0, 99))
def test_one_step_by_hand(u: float, v: float, top: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, p = torch.randn(2, 1, 6, generator=generator)
    draws = torch.tensor([[u], [v]])
    token, kept = propose_and_verify(q, p, Sampling(1.0), Sampling(1.0), draws, top)
    proposal = int(pick(q, Sampling(1.0), draws[0]))
    allowed = p[0].argsort(descending=True)[:top].tolist()
    assert bool(kept) == (proposal in allowed)
    assert int(token) == (proposal if proposal in allowed else int(pick(p, Sampling(1.0), draws[1])))


def test_it_depends_on_neither_batch_nor_order_nor_resume(author: Author, examples: list[Example]) -> None:
    whole = text_policy("interleaved", CONSTANTS["interleaved"], author).update(examples, at(3))
    for batch_size in (1, 3, 10):
        policy = text_policy("interleaved", {}, replace(author, batch_size=batch_size))
        assert policy.update(examples[::-1], at(3)) == whole[::-1]
    assert text_policy("interleaved", {}, author).update(examples, at(4)) != whole


def test_the_row_says_how_much_the_student_kept(author: Author, examples: list[Example], tmp_path: Path) -> None:
    few, many = (text_policy("interleaved", {"top_k": top}, author) for top in (1, 200))
    for policy in (few, many):
        policy.update(examples, at(1))
    assert 0 <= few.readings()["kept_tokens"] < many.readings()["kept_tokens"] <= 1
