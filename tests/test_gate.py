"""The gate sees every fault, and a right engine passes it: engines with one fault each, real models, real caches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import wrong_engines as wrong
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutput

from selectkd_eval import lossless, pair, prompts
from selectkd_eval.errors import InputError
from selectkd_eval.sampling import GREEDY, Sampling
from selectkd_eval.speculation import gate, rounding
from selectkd_eval.speculation.draft_verify import ReferenceEngine
from selectkd_eval.speculation.engine import Decoded, Request
from selectkd_eval.speeds import PLAIN, Arm

V = 24
WARM = Sampling(1.0)
LOW = Sampling(0.6)  # a temperature that can be forgotten
CUT = Sampling(1.0, top_p=0.9, top_k=4)


class Models(NamedTuple):
    """A target, a draft that is a noisy copy of it, their vocabulary and the prompts that they continue."""

    target: Any
    draft: Any
    vocabulary: int
    asked: list[list[int]]


def small(seed: int = 3, noise: float = 0.0) -> Any:
    """A Llama whose next token depends on more than the last one."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.6,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for index, weight in enumerate(model.parameters()):
            weight += noise * torch.randn(weight.shape, generator=torch.Generator().manual_seed(index))
    return model


@pytest.fixture(scope="module")
def models() -> Models:
    return Models(small(), small(noise=0.1), V, [[1 + i, 2, 3] for i in range(16)])


@pytest.fixture(scope="module")
def embedded() -> Models:
    target, draft = pair.load_model("embedded:teacher"), pair.load_model("embedded:draft")
    asked = [prompts.prompt_ids(target.tokenizer, one.text) for one in prompts.load_prompts("mini-gsm", 16).prompts]
    return Models(target.model, draft.model, pair.common_vocabulary(target, draft), asked)


def rows(
    engine_of: Any, models: Models, sampling: Sampling, length: int = 48, gammas: Sequence[int] = (2, 4), seed: int = 0
) -> Iterator[dict[str, Any]]:
    """The gate's rows of one engine, prompt by prompt: a gate row and a sampled row in one."""
    target, draft, vocabulary, asked = models
    engine = engine_of(target, [draft], vocabulary)
    right = wrong.Plainly(target, [draft], vocabulary)
    for number, ids in enumerate(asked):
        outcomes, arms = [{"outcome": "identical", "draft": 0, "gamma": 2}], []
        if sampling.greedy:
            reference = right.decode(Request(ids, length), PLAIN, GREEDY).tokens
            outcomes = []
        for gamma in gammas:
            place = {"draft": 0, "gamma": gamma}
            request = Request(ids, length, 1000 * seed + 100 * gamma + number)
            run = engine.decode(request, Arm(**place), sampling)
            if sampling.greedy:
                outcome = gate.greedy_outcome(target, vocabulary, ids, reference, run.tokens)
                outcomes.append(place | outcome | gate.greedy_trace(draft, vocabulary, ids, run))
            else:
                how = {"seed": request.seed, "drafts": engine.facts["proposals"]}
                arms.append(place | gate.sampled_evidence(target, draft, vocabulary, ids, run, sampling, **how))
        yield {"key": f"gate/{number}", "outcomes": outcomes, "arms": arms}


def caught(engine_of: Any, models: Models, sampling: Sampling, **how: Any) -> lossless.Verdict | None:
    """The verdict that fails, asked for after 4, 8 and 16 prompts; None when all of them pass."""
    found = []
    for row in rows(engine_of, models, sampling, **how):
        found.append(row)
        if len(found) in (4, 8, 16) and not (verdict := lossless.verdict(found)).passed:
            return verdict
    return None


# ---- faults ------------------------------------------------------------


@pytest.mark.parametrize("fault", wrong.GREEDY_FAULTS, ids=lambda fault: fault.__name__)
def test_the_gate_sees_a_fault_in_greedy_decoding(models, fault):
    assert caught(fault, models, GREEDY)


@pytest.mark.parametrize("fault", wrong.SAMPLED_FAULTS, ids=lambda fault: fault.__name__)
def test_the_gate_sees_a_fault_in_sampling(models, fault):
    assert caught(fault, models, WARM)


@pytest.mark.parametrize("fault", wrong.TEMPERATURE_FAULTS, ids=lambda fault: fault.__name__)
def test_the_gate_sees_a_forgotten_temperature(models, fault):
    assert caught(fault, models, LOW)


@pytest.mark.parametrize("fault", wrong.CUT_FAULTS, ids=lambda fault: fault.__name__)
def test_the_gate_sees_a_cut_that_is_not_everywhere(models, fault):
    assert caught(fault, models, CUT)


@pytest.mark.parametrize("engine", [wrong.Plainly, ReferenceEngine, *wrong.HARMLESS], ids=lambda one: one.__name__)
@pytest.mark.parametrize("sampling", [GREEDY, WARM, CUT], ids=["greedy", "warm", "cut"])
def test_what_leaves_the_text_the_targets_passes(models, engine, sampling):
    found = list(rows(engine, models._replace(asked=models.asked[:8]), sampling))
    assert lossless.passed(found)
    assert lossless.lossless_counts(found) == {"identical": 8, "tie": 0, "violation": 0}


EMBEDDED_FAULTS = (
    *(wrong.KeepsByQ, wrong.NeverVerifiesTheLast, wrong.VerifiesAgainstTheRowBefore, wrong.MixesTheDraftIn),
    *(wrong.DrawsFromPAfterARefusal, wrong.EmitsTheBonusTwice, wrong.UninitialisedTemperature),
    *(wrong.RewindsOneTooFar, wrong.MisplacesAVerification, wrong.RewindsTheDraftTooLittle, wrong.MovesClaims),
)


@pytest.mark.slow
@pytest.mark.parametrize("fault", EMBEDDED_FAULTS, ids=lambda fault: fault.__name__)
def test_sixteen_prompts_of_the_embedded_pair_are_enough(embedded, fault):
    """One draft length, 16 texts of 48 tokens; a right engine passes on the same."""
    assert caught(fault, embedded, WARM, gammas=(3,))


@pytest.mark.slow
def test_a_right_engine_passes_on_the_embedded_pair(embedded):
    assert caught(ReferenceEngine, embedded, WARM, gammas=(3,)) is None
    itself = embedded._replace(draft=embedded.target, asked=embedded.asked[:8])
    assert caught(ReferenceEngine, itself, WARM, gammas=(3,)) is None


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.9, top_p=0.95)], ids=["greedy", "sampled"])
def test_rounding_of_half_precision_is_no_violation(embedded, sampling):
    half = embedded._replace(
        target=pair.load_model("embedded:teacher", dtype=torch.bfloat16).model,
        draft=pair.load_model("embedded:draft", dtype=torch.bfloat16).model,
    )
    assert caught(ReferenceEngine, half, sampling, gammas=(3,)) is None


# ---- false alarms ------------------------------------------------------------


class Markov(torch.nn.Module):
    """A language model whose next token depends on the last one alone: quick enough for hundreds of runs."""

    def __init__(self, seed: int, near: torch.Tensor | None = None, size: int = 12) -> None:
        super().__init__()
        logits = 1.5 * torch.randn(size, size, generator=torch.Generator().manual_seed(seed))
        self.logits = torch.nn.Parameter(logits if near is None else near + 0.3 * logits)
        self.config = type("Config", (), {"max_position_embeddings": None})()
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def forward(self, input_ids, logits_to_keep=0, **_):
        return CausalLMOutput(logits=self.logits[input_ids[:, -logits_to_keep:]])


def test_right_engines_are_seldom_accused():
    """At a level of 0.001 for a whole run, 250 runs have a quarter of a false alarm; three would be one in 400."""
    target = Markov(0)
    pair_of = Models(target, Markov(1, target.logits.detach()), 12, [[0], [5]])
    verdicts = [
        lossless.verdict(rows(wrong.Plainly, pair_of, WARM, length=40, gammas=(3,), seed=seed)) for seed in range(250)
    ]
    assert sum(not verdict.passed for verdict in verdicts) < 3
    for name in ("surprise", "likeness", "accepted", "given"):
        small = [check.p <= 0.05 for verdict in verdicts for check in verdict.checks if check.name == name]
        assert sum(small) <= binom.isf(1e-4, 250, 0.05), name
        spread = np.std([c.statistic for verdict in verdicts for c in verdict.checks if c.name == name])
        assert 0.85 < spread < 1.15, name  # the variance that is claimed is the one there is


# ---- greedy texts ------------------------------------------------------------


def test_equal_logits_are_a_tie_whichever_is_taken(models):
    """`>` or `>=` in the choice: twins in the output layer have the same logit, bit by bit."""
    twins = small()
    with torch.no_grad():
        twins.lm_head.weight[V // 2 :] = twins.lm_head.weight[: V // 2]
    asked = models._replace(target=twins, draft=twins, asked=models.asked[:4])
    found = list(rows(wrong.ComparesWithGreaterOrEqual, asked, GREEDY))
    verdict = lossless.verdict(found)
    assert verdict.prompts == {"identical": 0, "tie": 4, "violation": 0} and verdict.largest_tie == 0


def test_an_outcome_says_where_and_by_how_much(models):
    target, ids = models.target, [1, 2, 3]
    text = wrong.Plainly(target, [], V).decode(Request(ids, 12), PLAIN, GREEDY).tokens
    same = gate.greedy_outcome(target, V, ids, text, list(text))
    assert same == {"outcome": "identical", "gap_ulps": 0.0, "at": None}
    other = [*text[:7], (text[7] + 1) % V, *text[8:]]
    changed = gate.greedy_outcome(target, V, ids, text, other)
    assert (
        changed["outcome"] == "violation"
        and changed["at"] == 7
        and changed["gap_ulps"] > rounding.TIE_ULPS[torch.float32]
    )
    short = gate.greedy_outcome(target, V, ids, text, text[:-1])
    assert short == {"outcome": "violation", "gap_ulps": 0.0, "at": 11}
    assert gate.greedy_outcome(target, V, ids, text, [])["outcome"] == "violation"


def test_the_gap_is_counted_in_units_of_the_last_place():
    """Logits 6 and 6 - 3 * 2^-5: in bf16 a unit at 6 is 2^-5, in fp32 2^-21."""
    model = Markov(0, size=2)
    for dtype, ulps in ((torch.bfloat16, 3), (torch.float32, 3 * 2**16)):
        model.logits.data = torch.tensor([[6.0, 6.0 - 3 * 2**-5]] * 2, dtype=dtype)
        model.dtype = dtype
        assert gate.gap_in_ulps(model, [0], [0, 0, 1, 0], 2) == ulps
    model.logits.data = torch.tensor([[1.0, float("nan")]] * 2)
    assert gate.greedy_outcome(model, 2, [0], [0, 0], [0, 1])["outcome"] == "violation"


# ---- sampled texts ------------------------------------------------------------


def test_tested_positions_follow_from_the_trace():
    # 1 token from the prefill; 3 drafted and 1 kept; 2 drafted and both kept; nothing drafted.
    run = Decoded(list(range(7)), drafted=[3, 2, 0], accepted=[1, 2, 0])
    assert gate.tested_positions(run) == ([1, 2, 3, 4], [True, False, True, True])
    assert gate.adds_up(run)
    assert not gate.adds_up(Decoded([0] * 6, drafted=[3, 2, 0], accepted=[1, 2, 0]))
    assert not gate.adds_up(Decoded([0] * 7, drafted=[0, 2, 3], accepted=[1, 2, 0]))
    # Verified together with the prompt: the first step's drafts begin the text.
    assert gate.tested_positions(Decoded([0] * 3, [2, 0], [1, 0], first=0)) == ([0, 1], [True, False])


def test_evidence_is_what_reading_the_text_token_by_token_gives(models):
    """Against one forward pass per position, without cache, in plain Python."""
    target, draft, _, _ = models
    ids, sampling = [4, 2], Sampling(0.8, top_k=6)
    run = ReferenceEngine(target, [draft], V).decode(Request(ids, 30, 5), Arm(0, 3), sampling)
    found = gate.sampled_evidence(target, draft, V, ids, run, sampling, seed=5)
    p, q = [], []
    with torch.inference_mode():
        for place in range(30):
            row = torch.tensor([ids + run.tokens[:place]])
            for model, rows_of in ((target, p), (draft, q)):
                rows_of.append(sampling.probabilities(model(input_ids=row).logits[0, -1:])[0].double().numpy())
    where, kept = gate.tested_positions(run)
    x = run.tokens
    alpha = [np.minimum(p[t], q[t]).sum() for t in where]
    assert found["accepted"]["seen"] == sum(run.accepted)
    assert found["accepted"]["expected"] == pytest.approx(sum(alpha), abs=1e-4)
    assert found["accepted"]["var"] == pytest.approx(sum(a * (1 - a) for a in alpha), abs=1e-4)
    assert found["accepted"]["expected"] == pytest.approx(sum(run.overlap), abs=1e-4) and found["overlap_off"] == 0
    chance = [min(1.0, q[t][x[t]] / p[t][x[t]]) for t in where]
    assert found["given"]["sum"] == pytest.approx(sum(kept) - sum(chance), abs=1e-4)
    like = [np.divide(b - a, a + b, out=np.zeros(V), where=a + b > 0) for a, b in zip(p, q, strict=True)]
    expected = [(a * s).sum() for a, s in zip(p, like, strict=True)]
    assert found["likeness"]["sum"] == pytest.approx(
        sum(s[t] - e for s, t, e in zip(like, x, expected, strict=True)), abs=1e-3
    )
    entropy = [-(a[a > 0] * np.log(np.maximum(a[a > 0], np.exp(-6)))).sum() for a in p]
    told = [min(6.0, -np.log(a[t])) for a, t in zip(p, x, strict=True)]
    assert found["surprise"]["sum"] == pytest.approx(sum(told) - sum(entropy), abs=1e-3)
    assert found["rarest"] == pytest.approx(
        min(a[a <= a[t] * (1 + 1e-6)].sum() for a, t in zip(p, x, strict=True)), abs=1e-5
    )
    assert (found["tokens"], found["impossible"], found["misplaced"], sum(found["ranks"])) == (30, 0, 0, 30)


@pytest.mark.parametrize("sampling", [Sampling(0.8, top_k=6), Sampling(1.0, top_p=0.8), WARM], ids=["k", "p", "warm"])
def test_evidence_does_not_depend_on_how_many_positions_are_looked_at_together(models, monkeypatch, sampling):
    target, draft, _, _ = models
    run = ReferenceEngine(target, [draft], V).decode(Request([4, 2], 30, 5), Arm(0, 3), sampling)
    found = []
    for rows in (1, 7, 1000):
        monkeypatch.setattr(gate, "ROWS", rows)
        found.append(gate.sampled_evidence(target, draft, V, [4, 2], run, sampling, seed=5))
    for other in found[1:]:
        for name, value in found[0].items():
            assert other[name] == pytest.approx(value, abs=1e-9), name


def test_a_token_that_the_cut_excludes_is_counted(models):
    run = wrong.Plainly(models.target, [], V).decode(Request([1], 20, 3), PLAIN, Sampling(1.0, top_k=4))
    p = CUT.probabilities(gate.text_logits(models.target, [1], run.tokens, V))
    last = int(p[-1].argmin())
    assert p[-1, last] == 0
    run.tokens[-1] = last
    found = gate.sampled_evidence(models.target, None, V, [1], run, Sampling(1.0, top_k=4), seed=0)
    assert found["impossible"] == 1 and found["tokens"] == 19


def test_an_overlap_that_is_not_the_models_is_seen(models):
    run = ReferenceEngine(models.target, [models.draft], V).decode(Request([1], 20, 3), Arm(0, 3), WARM)
    run.overlap[2] -= 0.05
    found = gate.sampled_evidence(models.target, models.draft, V, [1], run, WARM, seed=0)
    assert found["overlap_off"] == 1 and found["overlap_gap"] == pytest.approx(0.05, abs=1e-3)
    run.overlap.pop()
    assert gate.sampled_evidence(models.target, models.draft, V, [1], run, WARM, seed=0)["overlap_off"] == 2


def test_a_draft_that_is_no_model_leaves_the_text_to_be_tested(models):
    run = wrong.Plainly(models.target, [], V).decode(Request([1], 20, 3), PLAIN, WARM)
    found = gate.sampled_evidence(models.target, None, V, [1], run, WARM, seed=0)
    assert sum(found["ranks"]) == 20 and found["surprise"]["var"] > 0
    assert all(found[name] is None for name in ("likeness", "accepted", "given", "misplaced", "overlap_off"))
    with pytest.raises(InputError, match="way to choose draft tokens"):
        gate.sampled_evidence(models.target, models.draft, V, [1], run, WARM, seed=0, drafts="guessed")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    k=st.sampled_from([0, 1, 3, 7, 12, 20]),
    top_p=st.sampled_from([1.0, 0.95, 0.7, 0.3]),
    slack=st.sampled_from([0.0, 1e-3, 0.1]),
    coarse=st.booleans(),
    heads=st.sampled_from([(512, 8192), (3,), (5, 9)]),
)
def test_what_a_cut_may_keep_holds_whatever_rounding_does(seed, k, top_p, slack, coarse, heads):
    """Move every logit by up to half the slack: what is kept then lies between `sure` and `possible`."""
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(4, 12, generator=generator)
    scores = (2 * scores).round() / 2 if coarse else scores  # exact ties
    moved = scores + slack * (torch.rand(scores.shape, generator=generator) - 0.5)
    sampling = Sampling(1.0, top_p, k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounding, "HEADS", heads)
        possible, sure = rounding.supports(scores, sampling, torch.full((4, 1), slack + 1e-5))
    kept = sampling.probabilities(moved) > 0
    assert bool((kept <= possible).all()) and bool((sure <= kept).all())
    if not slack and not coarse:
        assert bool((sure == kept).all()) or top_p < 1
