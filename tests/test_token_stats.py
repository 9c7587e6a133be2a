"""Places, quarters, shares and sums of an update's tokens, by hand."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest
import torch

from selectkd_eval.batches import Example as Text
from selectkd_eval.batches import draws, rows_of_batch, tensors
from selectkd_eval.loss import token_loss
from selectkd_eval.objective import SOURCES, LossSpec, Term
from selectkd_eval.token_stats import Rows, TokenPlan, TokenStats

SEVEN = Rows(
    targets=torch.zeros(7, dtype=torch.long),
    sequence=torch.tensor([0, 0, 0, 0, 2, 2, 2]),
    lengths=torch.tensor([4, 0, 3]),
)


def two_tokens(p: list[float], q: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits ``(N, 2)`` of teacher and student, from their probabilities of the first token."""
    return tuple(torch.tensor([[x, 1 - x] for x in side], dtype=torch.float64).log() for side in (p, q))  # type: ignore[return-value]


def test_places_and_shares_of_tokens_in_their_own_response() -> None:
    assert SEVEN.place.tolist() == pytest.approx([0, 1 / 4, 2 / 4, 3 / 4, 0, 1 / 3, 2 / 3])
    assert SEVEN.share.tolist() == pytest.approx([1 / 4] * 4 + [1 / 3] * 3)


def test_quarters_of_the_loss_by_hand() -> None:
    # -log q[y] of 1, 2, 4, 8 and 16, 32, 64 nats: each token can be told apart.
    nats = [1.0, 2, 4, 8, 16, 32, 64]
    _, z_q = two_tokens([0.5] * 7, [math.exp(-x) for x in nats])
    _, stats = token_loss(None, z_q, SEVEN, LossSpec(terms=(Term("nll"),)))
    assert stats.loss_by_quarter == pytest.approx([(1 + 16) / 127, (2 + 32) / 127, (4 + 64) / 127, 8 / 127])
    assert stats.mean_nll == pytest.approx(127 / 7)
    assert (stats.sequences, stats.tokens) == (2, 7), "a text without a response is not counted"
    assert stats.loss("per_seq_mean") == pytest.approx((15 / 4 + 112 / 3) / 2)
    assert stats.loss("valid_tokens") == pytest.approx(127 / 7)


def test_shares_of_the_loss_on_accepted_tokens_and_removed_by_the_gate() -> None:
    # The student's first choice is the teacher's where it gives the first token more than half.
    p = [0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9]
    q = [0.8, 0.7, 0.4, 0.6, 0.3, 0.2, 0.8]
    accepted = [1, 1, 0, 1, 0, 0, 1]
    z_p, z_q = two_tokens(p, q)
    _, stats = token_loss(z_p, z_q, SEVEN, LossSpec(verifier="top-k", k=1, beta=0.25))
    d = [a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b)) for a, b in zip(p, q, strict=True)]
    v = [1 if a else 0.25 for a in accepted]
    weighted = [x * y for x, y in zip(v, d, strict=True)]
    on_accepted = sum(x for x, a in zip(weighted, accepted, strict=True) if a)
    assert stats.accepted_loss == pytest.approx(on_accepted / sum(weighted))
    assert stats.bite == pytest.approx(1 - sum(weighted) / sum(d))
    assert stats.mean_weight == pytest.approx(sum(v) / 7)
    assert stats.tar == pytest.approx((3 / 4 + 1 / 3) / 2)
    assert stats.tar_pooled == pytest.approx(4 / 7)
    assert stats.alpha == pytest.approx(1 - sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 7)
    assert stats.teacher_entropy == pytest.approx(-(0.9 * math.log(0.9) + 0.1 * math.log(0.1)))
    assert stats.student_entropy == pytest.approx(sum(-b * math.log(b) - (1 - b) * math.log(1 - b) for b in q) / 7)


def test_in_closed_form_a_token_is_accepted_in_part() -> None:
    z_p, z_q = two_tokens([0.9, 0.9], [0.5, 0.8])
    rows = Rows(torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.long), torch.tensor([2]))
    _, stats = token_loss(z_p, z_q, rows, LossSpec(verifier="spec-k", k=2, beta=0.5))
    accepted = [1 - 0.4**2, 1 - 0.1**2]
    d = [0.9 * math.log(0.9 / q) + 0.1 * math.log(0.1 / (1 - q)) for q in (0.5, 0.8)]
    weighted = [(0.5 + 0.5 * a) * x for a, x in zip(accepted, d, strict=True)]
    assert stats.tar == pytest.approx(sum(accepted) / 2)
    assert stats.accepted_loss == pytest.approx(
        sum(a * x for a, x in zip(accepted, weighted, strict=True)) / sum(weighted)
    )


def test_a_selection_multiplies_the_gate_and_leaves_acceptance_alone() -> None:
    z_p, z_q = two_tokens([0.9] * 7, [0.8, 0.7, 0.4, 0.6, 0.3, 0.2, 0.8])
    chosen = torch.tensor([1.0, 0, 1, 0, 1, 0, 1])
    rows = Rows(**{**vars(SEVEN), "plan": TokenPlan(selection=chosen)})
    _, stats = token_loss(z_p, z_q, rows, LossSpec(verifier="top-k", k=1, beta=0.25))
    assert stats.weight == pytest.approx(1 + 0.25 + 0.25 + 1)
    assert stats.tar_pooled == pytest.approx(4 / 7)


def test_terms_look_at_their_own_source_and_part() -> None:
    spec = LossSpec(
        terms=(
            Term("fkl", coefficient=3.0),
            Term("fkl", coefficient=2.0, source="student"),
            Term("fkl", coefficient=0.5, part="easy"),
            Term("fkl", coefficient=0.7, source="teacher", part="hard"),
        )
    )
    source = torch.tensor([SOURCES.index(name) for name in ("dataset", "teacher", "student", "mixed")])
    plan = TokenPlan(hard=torch.tensor([True, True, False, False]))
    rows = Rows(torch.zeros(4, dtype=torch.long), torch.arange(4), torch.ones(4), source=source, plan=plan)
    everywhere, students, easy, hard = rows.coefficients(spec)
    assert everywhere == 3.0
    assert [x.tolist() for x in (students, easy)] == [[0, 0, 2, 0], [0, 0, 0.5, 0.5]]  # type: ignore[union-attr]
    assert hard.tolist() == pytest.approx([0, 0.7, 0, 0])  # type: ignore[union-attr]
    unknown = Rows(rows.targets, rows.sequence, rows.lengths).coefficients(spec)
    assert unknown[1].tolist() == [0] * 4, "text of unknown source is the data's"  # type: ignore[union-attr]


def test_own_text_is_what_the_student_wrote_alone_or_with_the_teacher() -> None:
    texts = [Text([5, 6, 7, 8], [False, True, True, True], f"{n:x}", source=name) for n, name in enumerate(SOURCES)]
    rows = rows_of_batch(tensors([*texts, texts[-1]], pad=0))
    z = torch.zeros(15, 9)
    _, stats = token_loss(None, z, rows, LossSpec(terms=(Term("nll"),)))
    assert stats.own_text_share == pytest.approx(3 / 5)


@pytest.mark.parametrize("packed", [False, True])
def test_nothing_predicts_the_first_token_of_a_text_without_a_prompt(packed: bool) -> None:
    texts = [Text([5, 6, 7], [True] * 3, "a"), Text([8, 9], [True] * 2, "b")]
    rows = rows_of_batch(tensors(texts, pad=0, packed=packed))
    assert (rows.targets.tolist(), rows.sequence.tolist(), rows.lengths.tolist()) == ([6, 7, 9], [0, 0, 1], [2, 1])


def test_statistics_add_up() -> None:
    a, b = TokenStats(sequences=1, tokens=3, weighted=2.0), TokenStats(sequences=2, tokens=4, weighted=0.5, nll=1.0)
    total = asdict(a + b)
    assert {name: value for name, value in total.items() if value} == {
        "sequences": 3,
        "tokens": 7,
        "weighted": 2.5,
        "nll": 1.0,
    }


@pytest.mark.parametrize("normaliser", ["per_seq_mean", "valid_tokens", "selected_tokens", "class_mean"])
def test_nothing_selected_is_no_loss_and_no_division_by_zero(normaliser: str) -> None:
    assert TokenStats().denominator(normaliser) == 1
    assert TokenStats().loss(normaliser) == 0


def test_a_texts_draws_are_its_own_wherever_it_stands() -> None:
    texts = [
        Text([5, 6, 7, 8], [False, False, True, True], "00000000000000aa"),
        Text([5, 6, 7], [False, True, True], "00000000000000bb", source="student"),
        Text([5, 6, 7], [False, True, True], "00000000000000bb", source="teacher"),
    ]

    def coins(order: list[int], packed: bool = False, seed: int = 1, step: int = 4) -> dict[int, list[float]]:
        batch = tensors([texts[n] for n in order], pad=0, packed=packed)
        parts = draws(seed, step, batch).split([2] * len(order))
        return {n: part.tolist() for n, part in zip(order, parts, strict=True)}

    apart = {n: coins([n])[n] for n in range(3)}
    assert coins([0, 1, 2]) == coins([2, 0, 1]) == coins([1, 2, 0], packed=True) == apart
    assert len({tuple(x) for x in apart.values()}) == 3, "texts of one prompt by two writers are two"
    for other in (coins([0], seed=2)[0], coins([0], step=5)[0]):
        assert other != apart[0]
    assert all(0 <= x < 1 for part in apart.values() for x in part)
