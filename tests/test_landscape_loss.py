"""The fast loss is the plain one: full softmax, sums over positions, nothing cached, weights set by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import tiny_llama
from torch import Tensor

from selectkd_eval import pair, prompts, tar
from selectkd_eval.directions import Plane, noise
from selectkd_eval.errors import SetupError
from selectkd_eval.landscapes import loss
from selectkd_eval.landscapes.loss import CommonLoss, described, divergence
from selectkd_eval.teacher_forced import batches, encode, log_probs


@pytest.fixture(scope="module")
def models(tiny_pair):
    return pair.load_model(str(tiny_pair.teacher)), pair.load_model(str(tiny_pair.student))


@pytest.fixture(scope="module")
def examples(tiny_pair, models):
    return encode(models[0].tokenizer, prompts.load_prompts(str(tiny_pair.data), 6), *(m.model for m in models))


@pytest.fixture(scope="module")
def text(examples):
    return list(batches(examples, 4, 0, "cpu"))


def width(models) -> int:
    return pair.common_vocabulary(*models)


def plain_loss(teacher, student, examples, vocabulary: int) -> Tensor:
    """Mean forward KL over response tokens: one sequence at a time, full log-softmax of both."""
    total, count = torch.zeros(()), 0
    for example in examples:
        log_p, log_q = (
            m(torch.tensor([example.ids])).logits[0, :, :vocabulary].log_softmax(-1) for m in (teacher, student)
        )
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)[:-1]
        chosen = torch.tensor(example.response)[1:]
        total, count = total + kl[chosen].sum(), count + int(chosen.sum())
    return total / count


def by_hand(model, seed: int, a: float, b: float) -> dict[str, Tensor]:
    """``W + a d1 + b d2`` for every matrix, row by row in numpy; everything else as it is."""
    moved = {}
    for name, parameter in model.named_parameters():
        weight = parameter.detach().numpy().astype(np.float64)
        if weight.ndim == 2:
            for axis, distance in ((1, a), (2, b)):
                drawn = noise(seed, axis, name, parameter.shape).numpy().astype(np.float64)
                for row in range(len(drawn)):
                    own = np.linalg.norm(parameter.detach().numpy()[row].astype(np.float64))
                    drawn[row] *= own / np.linalg.norm(drawn[row])
                weight = weight + distance * drawn
        moved[name] = torch.from_numpy(weight)
    return moved


@torch.no_grad()
@pytest.mark.parametrize("dtype, error", [(torch.float64, 1e-10), (torch.float32, 1e-6)], ids=str)
def test_every_point_equals_a_direct_evaluation(models, text, examples, dtype, error):
    teacher, student = (pair.load_model(m.card.name, dtype=dtype).model for m in models)
    judge, moved = (pair.load_model(m.card.name, dtype=torch.float64).model for m in models)
    common = CommonLoss(teacher, text, width(models))
    points = [(a, b) for a in (-0.6, -0.2, 0.0, 0.3) for b in (-0.5, 0.0, 0.1, 0.7)]
    with Plane(student, 3).on() as plane:
        found = []
        for a, b in points:
            plane.move(a, b)
            found.append(common.loss(student))
    for (a, b), value in zip(points, found, strict=True):
        moved.load_state_dict(by_hand(student.double(), 3, a, b), strict=False)
        moved.tie_weights()
        direct = float(plain_loss(judge, moved, examples, width(models)))
        assert value == pytest.approx(direct, abs=error), (a, b)
    assert len({round(value, 6) for value in found}) == len(points)


def test_batching_does_not_change_the_loss(models, examples):
    losses = []
    for size in (1, 4):
        common = CommonLoss(models[0].model, list(batches(examples, size, 0, "cpu")), width(models))
        losses.append(common.loss(models[1].model))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_kept_hidden_states_give_the_kept_log_probabilities_loss(models, text):
    teacher, student = (m.model for m in models)
    whole = CommonLoss(teacher, text, width(models), metrics=("tar", "alpha", "accuracy"))
    small = CommonLoss(teacher, text, width(models), metrics=("tar", "alpha", "accuracy"), cache_mb=1e-6)
    assert (whole.kept, small.kept) == ("log-probabilities", "hidden states")
    a, b = whole.sums(student), small.sums(student)
    assert a.keys() == b.keys() == {"loss_sum", "tar_sum", "alpha_sum", "accuracy_sum"}
    assert a == pytest.approx(b, rel=1e-5)


def test_chunks_of_positions_add_up(models, text, monkeypatch):
    one = CommonLoss(models[0].model, text, width(models), metrics=("alpha",)).sums(models[1].model)
    monkeypatch.setitem(loss.CHUNK, "cpu", 3 * width(models))
    common = CommonLoss(models[0].model, text, width(models), metrics=("alpha",))
    assert common.chunk == 3
    assert common.sums(models[1].model) == pytest.approx(one, rel=1e-6)
    assert common.mean(models[1].model).item() == pytest.approx(one["loss_sum"] / common.n_tokens, rel=1e-6)


def test_a_teacher_whose_hidden_states_do_not_explain_it_must_fit(models, text):
    teacher = pair.load_model(models[0].card.name).model
    forward = teacher.forward
    teacher.forward = lambda **inputs: type(out := forward(**inputs))(logits=out.logits * 2)
    with pytest.raises(SetupError, match="--cache-mb"):
        CommonLoss(teacher, text, width(models), cache_mb=1e-6)
    doubled = CommonLoss(teacher, text, width(models))  # then its own logits are kept
    with torch.no_grad():
        assert not doubled.split(teacher)
        assert doubled.loss(teacher) == pytest.approx(0, abs=1e-6)


@torch.no_grad()
def test_metrics_are_those_of_the_tar_verb(models, text):
    common = CommonLoss(models[0].model, text, width(models), metrics=("tar", "alpha", "accuracy"), k=7)
    expected = dict.fromkeys(("loss_sum", "tar_sum", "alpha_sum", "accuracy_sum"), 0.0)
    for batch in text:
        log_p, log_q = (log_probs(m.model, batch, width(models)) for m in models)
        found = tar.quantities(log_p, log_q, batch.targets, 7)
        for name, what in (("loss_sum", "fkl"), ("tar_sum", "greedy"), ("alpha_sum", "alpha")):
            expected[name] += float(found[what].sum())
        expected["accuracy_sum"] += float((log_q.argmax(-1) == batch.targets).sum())
    assert common.sums(models[1].model) == pytest.approx(expected, rel=1e-5)


def test_the_mean_has_the_gradient_of_the_plain_loss(models, text, examples):
    teacher, student = (m.model for m in models)
    common = CommonLoss(teacher, text, width(models))
    weights = list(student.parameters())
    ours = torch.autograd.grad(common.mean(student), weights)
    parts = [torch.autograd.grad(part, weights) for part in common.means(student)]
    assert len(parts) == len(text) > 1
    plain = torch.autograd.grad(plain_loss(teacher, student, examples, width(models)), weights)
    for mine, whole, *several in zip(ours, plain, *parts, strict=True):
        assert torch.allclose(mine, whole, atol=1e-5 * float(whole.abs().max()))
        assert torch.allclose(sum(several), whole, atol=1e-5 * float(whole.abs().max()))


@pytest.mark.parametrize("vocabulary", [1000, 32_000])
def test_rounding_leaves_no_bias_at_large_vocabularies(vocabulary):
    generator = torch.Generator().manual_seed(0)
    z_p, noise_q = (torch.randn(20, vocabulary, generator=generator) for _ in range(2))
    for far in (0.05, 1.0):
        z_q = 3 * z_p + far * noise_q
        log_p, log_q = (3 * z_p).double().log_softmax(-1), z_q.double().log_softmax(-1)
        exact = (log_p.exp() * (log_p - log_q)).sum(-1)
        found = divergence(described(3 * z_p), z_q).double()
        assert float((found - exact).mean().abs()) < 2e-6
        assert float((found - exact).abs().max()) < 1e-5
        assert torch.allclose(divergence(described(3 * z_p), z_q + 100).double(), exact, atol=2e-4)


def test_tokens_that_the_teacher_rules_out_cost_nothing():
    z_p, z_q = torch.randn(5, 30), torch.randn(5, 30)
    z_p[:, 7] = -torch.inf
    kept = torch.arange(30) != 7
    log_p, log_q = z_p.log_softmax(-1), z_q.log_softmax(-1)
    expected = (log_p.exp() * (log_p - log_q))[:, kept].sum(-1)
    assert torch.allclose(divergence(described(z_p), z_q), expected, atol=1e-6)


def test_the_teachers_digest_is_of_weights_tokens_and_vocabulary():
    model, same, other = (tiny_llama([], vocabulary=24, seed=seed) for seed in (0, 0, 1))
    digest = loss.teacher_digest(model, "tokens", 24)
    assert digest == loss.teacher_digest(same, "tokens", 24)
    others = [(other, "tokens", 24), (model, "other tokens", 24), (model, "tokens", 23)]
    assert digest not in {loss.teacher_digest(*given) for given in others}
