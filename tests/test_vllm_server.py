"""vLLM as an engine, against a real server's recorded replies: texts, exact steps, what is asked, every failure."""

from __future__ import annotations

import json
import select
import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm_replay import KEY, ReplayServer, recorded, replaying

from selectkd_eval.errors import InputError, SetupError
from selectkd_eval.pair import load_model
from selectkd_eval.sampling import GREEDY, Sampling
from selectkd_eval.speculation.draft_verify import ReferenceEngine
from selectkd_eval.speculation.engine import Request
from selectkd_eval.speculation.vllm_endpoint import Endpoint
from selectkd_eval.speculation.vllm_models import padded
from selectkd_eval.speculation.vllm_replies import Told, decoded, ngram_lookup, told
from selectkd_eval.speculation.vllm_server import VllmEngine, open_vllm
from selectkd_eval.speeds import PLAIN, Arm
from selectkd_eval.verbs import SpeedupOptions

GAMMA3 = Arm(0, 3)
ASKED = [one["request"]["prompt"] for one in recorded("plain")]


@pytest.fixture
def servers() -> Iterator[dict[str, ReplayServer]]:
    with replaying("plain") as plain, replaying("gamma3") as gamma3, replaying("ngram") as ngram:
        yield {"plain": plain, "gamma3": gamma3, "ngram": ngram}


@pytest.fixture
def engine(servers: dict[str, ReplayServer]) -> Iterator[VllmEngine]:
    made = engine_of(servers, "gamma3")
    yield made
    made.close()


def engine_of(servers: dict[str, ReplayServer], drafting: str, key: str = KEY) -> VllmEngine:
    addresses = {(-1, 0): servers["plain"], (0, 3): servers[drafting]}
    endpoints = {place: Endpoint(f"gamma {place[1]}", server.url, key) for place, server in addresses.items()}
    return VllmEngine(endpoints, {}, ngram=drafting == "ngram")


@pytest.fixture(scope="module")
def reference() -> ReferenceEngine:
    target, draft = load_model("embedded:teacher"), load_model("embedded:draft")
    return ReferenceEngine(target.model, [draft.model], 649)


def test_texts_and_steps_are_those_of_the_reference_engine(engine: VllmEngine, reference: ReferenceEngine) -> None:
    for ids in ASKED:
        request = Request(ids, 40)
        for arm in (PLAIN, GAMMA3):
            mine, theirs = engine.decode(request, arm, GREEDY), reference.decode(request, arm, GREEDY)
            assert mine.tokens == theirs.tokens
            assert (mine.drafted, mine.accepted, mine.first) == (theirs.drafted, theirs.accepted, 1)


def test_ngram_lookup_leaves_the_text_and_its_empty_steps_are_counted(servers: dict[str, ReplayServer]) -> None:
    engine = engine_of(servers, "ngram")
    for ids in ASKED:
        request = Request(ids, 40)
        found = engine.decode(request, GAMMA3, GREEDY)
        assert found.tokens == engine.decode(request, PLAIN, GREEDY).tokens
        assert len(found.tokens) == 1 + found.steps + sum(found.accepted)
        assert 0 in found.drafted  # steps that vLLM does not tell of
    engine.close()


def test_seconds_are_the_servers_own(engine: VllmEngine) -> None:
    for place, ids in enumerate(ASKED):
        metrics = recorded("gamma3")[place]["reply"]["metrics"]
        found = engine.decode(Request(ids, 40), GAMMA3, GREEDY)
        assert found.prefill_s == metrics["time_to_first_token_ms"] / 1000
        assert found.decode_s == metrics["generation_time_ms"] / 1000
        assert (found.decode_tokens, found.draft_s, found.overlap) == (39, None, None)


def test_greedy_requests_send_no_seed_and_sampled_ones_all_of_the_rule(
    engine: VllmEngine, servers: dict[str, ReplayServer]
) -> None:
    engine.decode(Request(ASKED[0], 40, seed=5), GAMMA3, GREEDY)
    engine.decode(Request(ASKED[0], 40, seed=5), GAMMA3, Sampling(0.7, 0.9, 4))
    greedy, sampled = servers["gamma3"].asked
    assert greedy == recorded("gamma3")[0]["request"]
    assert (greedy["temperature"], greedy["ignore_eos"], greedy["max_tokens"]) == (0, True, 40)
    assert sampled == {**greedy, "temperature": 0.7, "top_p": 0.9, "top_k": 4, "seed": 5}


def test_texts_of_a_batch_are_asked_for_together(engine: VllmEngine, servers: dict[str, ReplayServer]) -> None:
    servers["gamma3"].together = threading.Barrier(len(ASKED))  # nobody is answered before all have asked
    found = engine.together([Request(ids, 40) for ids in ASKED], GAMMA3, GREEDY)
    tokens = [one["reply"]["choices"][0]["token_ids"] for one in recorded("gamma3")]
    assert [each.tokens for each in found] == tokens


def test_connections_are_kept_and_one_that_was_closed_is_replaced(
    engine: VllmEngine, servers: dict[str, ReplayServer]
) -> None:
    server = servers["gamma3"]
    for _ in range(3):
        engine.decode(Request(ASKED[0], 40), GAMMA3, GREEDY)
    assert server.connections == 1
    server.fault = "hangs up after the reply"
    for _ in range(3):
        engine.decode(Request(ASKED[0], 40), GAMMA3, GREEDY)
        (idle,) = engine._endpoints[0, 3]._idle
        assert select.select([idle.sock], [], [], 10)[0]  # its end has arrived
    assert server.connections == 3
    assert len(server.asked) == 6


@pytest.mark.parametrize(
    ("fault", "kind", "sentence"),
    [
        ("cut", SetupError, "gave no whole reply"),
        ("garbage", SetupError, 'replied "<html>a proxy\'s page</html>", which is no JSON'),
        ("401", InputError, "refused the key .*VLLM_API_KEY"),
        ("404", InputError, "knows no such model or path"),
        ("400", InputError, r"refused the request \(400: EngineCore said no to \(the key\)\)"),
        ("500", SetupError, r"failed \(500: EngineCore said no to \(the key\)\)"),
        ('{"choices": []}', SetupError, "holds no token ids"),
        ('["no object"]', SetupError, "holds no token ids"),
        ('{"choices": [{"token_ids": [1, 2]}]}', SetupError, "asked for 40 tokens .* and wrote 2"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 9 else "",
)
def test_a_failure_is_one_sentence_and_never_shows_the_key(
    engine: VllmEngine, servers: dict[str, ReplayServer], fault: str, kind: type[Exception], sentence: str
) -> None:
    servers["gamma3"].fault = fault
    with pytest.raises(kind, match=sentence) as raised:
        engine.decode(Request(ASKED[0], 40), GAMMA3, GREEDY)
    assert KEY not in str(raised.value)
    assert len(servers["gamma3"].asked) == 1  # a text that may have been written is not asked for again


def test_a_server_that_is_gone_is_named(servers: dict[str, ReplayServer]) -> None:
    with replaying("gamma3") as server:
        url = server.url
    with pytest.raises(SetupError, match=rf"no vLLM server answers at {url} \(gamma 3\): start it"):
        Endpoint("gamma 3", url).model()
    with pytest.raises(SetupError, match=r"no vLLM server answers.*: it ran out of memory"):
        Endpoint("gamma 3", url, reason=lambda: "it ran out of memory").model()
    with pytest.raises(InputError, match="refused the key"):
        engine_of(servers, "gamma3", key="wrong")


def test_text_beyond_the_servers_positions_is_refused_before_it_is_asked_for(
    engine: VllmEngine, servers: dict[str, ReplayServer]
) -> None:
    with pytest.raises(InputError, match="a prompt of 2040 tokens and 9 new ones do not fit the 2048 positions"):
        engine.decode(Request([5] * 2040, 9), GAMMA3, GREEDY)
    with pytest.raises(InputError, match="no vLLM server decodes with gamma 4"):
        engine.decode(Request(ASKED[0], 9), Arm(0, 4), GREEDY)
    with pytest.raises(InputError, match="needs a prompt"):
        engine.decode(Request([], 9), GAMMA3, GREEDY)
    assert servers["gamma3"].asked == []


def spoiled(**changes: Any) -> dict[str, Any]:
    """The first recorded reply of gamma 3 with other entries in its speculative metrics (None: without them)."""
    reply: dict[str, Any] = json.loads(json.dumps(recorded("gamma3")[0]["reply"]))
    reply["metrics"]["speculative_decoding"] |= changes
    return reply


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"per_step_drafted": None, "per_step_accepted": None}, "does not tell what each verification step did"),
        ({"per_step_accepted": [4] * 10}, "does not tell what each verification step did"),
        ({"per_step_accepted": [3] * 9}, "does not tell what each verification step did"),
        ({"per_step_accepted": ["3"] * 10}, "does not tell what each verification step did"),
        ({"per_step_drafted": [5] * 10}, "the server of gamma 3 drafts 5 tokens a step"),
        ({"per_step_accepted": [3] * 40, "per_step_drafted": [3] * 40, "num_spec_steps": 40}, "more verification"),
    ],
)
def test_metrics_that_cannot_be_true_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SetupError, match=sentence) as raised:
        decoded(told(spoiled(**changes)), ASKED[0], 40, 3, None)
    assert "--server" in str(raised.value)


def test_a_server_without_the_metrics_is_told_which_flag_it_needs() -> None:
    reply = recorded("plain")[0]["reply"]
    with pytest.raises(SetupError, match=r"vLLM 0\.32 or newer, started with --per-request-spec-decode-metrics"):
        decoded(told(reply), ASKED[0], 40, 3, None)
    with pytest.raises(SetupError, match="the server of plain decoding speculates"):
        decoded(told(recorded("gamma3")[0]["reply"]), ASKED[0], 40, 0, None)
    bare = {**reply, "metrics": None}  # started without --enable-per-request-metrics
    assert decoded(told(bare), ASKED[0], 40, 0, None).decode_s is None


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.lists(st.integers(0, 4), min_size=40, max_size=40))
def test_what_goes_past_the_end_of_the_text_is_not_counted(new: int, accepts: list[int]) -> None:
    """vLLM drafts 4 in every step, until the text is there."""
    steps, written = [], 1
    for accepted in accepts:
        if written >= new:
            break
        steps.append((4, accepted))
        written += accepted + 1
    found = decoded(Told(list(range(new)), steps, None, None), [0], new, 4, None)
    assert len(found.tokens) == new == 1 + found.steps + sum(found.accepted)
    assert found.steps == len(steps)
    assert found.accepted[:-1] == [accepted for _, accepted in steps[:-1]]
    assert all(k <= d <= 4 for k, d in zip(found.accepted, found.drafted, strict=True))
    left = new
    for d, k in zip(found.drafted, found.accepted, strict=True):
        left -= k + 1
        assert d <= left + k  # no more than could still be used


@pytest.mark.parametrize(
    ("text", "proposed"),
    [
        ([1, 2, 3], []),
        ([7, 8, 9, 1, 7], [8, 9]),
        ([1, 2, 5, 3, 2, 6, 1, 2], [5, 3]),  # two tokens that fit beat one
        ([1, 2, 5, 9, 1, 2, 6, 9, 1, 2], [5, 9]),  # of several the first counts
        ([4, 4], [4]),  # the text ends before two follow
        ([4, 4, 4], [4]),
    ],
)
def test_ngram_lookup_by_hand(text: list[int], proposed: list[int]) -> None:
    found = list(ngram_lookup(2, 1, 2)(text))
    assert found == proposed


def test_ngram_lookup_that_drafts_otherwise_than_expected_is_refused() -> None:
    reply = told(recorded("ngram")[0]["reply"])
    assert reply.steps is not None
    found = decoded(reply, ASKED[0], 40, 3, ngram_lookup(3, 1, 3))
    assert sum(found.drafted) <= sum(d for d, _ in reply.steps)
    with pytest.raises(SetupError, match="n-gram lookup drafted"):
        decoded(reply, ASKED[0], 40, 3, ngram_lookup(3, 2, 3))


def test_given_servers_are_one_for_every_arm(servers: dict[str, ReplayServer], monkeypatch: Any) -> None:
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    plain, gamma3 = f"plain={servers['plain'].url}", f"gamma3={servers['gamma3'].url}/v1/"
    for words, sentence in [
        ((plain,), "--server lacks gamma3"),
        ((plain, gamma3, "gamma5=http://127.0.0.1:9"), "gamma5=.* names no arm, or one twice: .* plain, gamma3"),
        ((plain, plain), "or one twice"),
        ((plain, "gamma3=127.0.0.1:80"), "is no address: write gamma3=http://HOST:PORT"),
        ((plain, "gamma3=http://[::"), "is no address"),
    ]:
        with pytest.raises(InputError, match=sentence):
            open_vllm(SpeedupOptions(engine="vllm", gamma=(3,), server=words))
    with pytest.raises(InputError, match="one draft at a time"):
        open_vllm(SpeedupOptions(engine="vllm", gamma=(3,), draft=("a", "b"), server=(plain, gamma3)))
    warm = {"prompt": [0] * 8}
    for server in (servers["plain"], servers["gamma3"]):
        reply = json.loads(json.dumps(recorded("plain" if server is servers["plain"] else "gamma3")[0]["reply"]))
        reply["choices"][0]["token_ids"] = reply["choices"][0]["token_ids"][: 4 if server is servers["plain"] else 10]
        if speculative := reply["metrics"]["speculative_decoding"]:
            speculative |= {"per_step_drafted": [3, 3, 3], "per_step_accepted": [3, 3, 0], "num_spec_steps": 3}
        server.replies[json.dumps(warm["prompt"])] = reply
    engine = open_vllm(SpeedupOptions(engine="vllm", gamma=(3,), server=(plain, gamma3)))
    assert engine.facts["version"] == "0.32.0"
    assert KEY not in json.dumps(engine.facts)
    assert engine.decode(Request(ASKED[1], 40), GAMMA3, GREEDY).steps == 10
    engine.close()


def test_padded_heads_leave_the_logits(reference: ReferenceEngine) -> None:
    for model in (reference.target, reference.drafts[0]):
        wide = padded(model, 32)
        assert wide.config.head_dim == 32 > model.config.head_dim
        ids = torch.randint(0, 649, (2, 300), generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            torch.testing.assert_close(wide(ids).logits, model(ids).logits, rtol=0, atol=1e-4)


def test_recorded_texts_differ_so_that_a_mix_up_would_show() -> None:
    tokens = [one["reply"]["choices"][0]["token_ids"] for one in recorded("plain")]
    assert all(one != other for one, other in pairwise(tokens))
