"""vLLM itself, on loopback: its texts and steps are the reference engine's, and its known fault is caught by the gate.

Minutes, and only where there is a vLLM: the python named by SELECTKD_VLLM_PYTHON, or the one of `make vllm-env`. Run as
a program, this file records the replies that the fast tests are made with.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from vllm_replay import RESPONSES, recorded

from selectkd_eval import lossless, prompts
from selectkd_eval.errors import InputError
from selectkd_eval.pair import load_model
from selectkd_eval.sampling import GREEDY, Sampling
from selectkd_eval.speculation import gate
from selectkd_eval.speculation.draft_verify import ReferenceEngine
from selectkd_eval.speculation.engine import Request
from selectkd_eval.speculation.vllm_models import padded
from selectkd_eval.speculation.vllm_process import ENVIRONMENT
from selectkd_eval.speculation.vllm_server import VllmEngine, open_vllm
from selectkd_eval.speeds import PLAIN, Arm
from selectkd_eval.verbs import SpeedupOptions

PYTHON = Path(os.environ.get("SELECTKD_VLLM_PYTHON") or Path(__file__).parents[1] / ENVIRONMENT)
GAMMA3 = Arm(0, 3)
WORDS = 649  # tokens of the embedded models

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not PYTHON.exists(), reason="no vLLM here: make vllm-env, or name one in SELECTKD_VLLM_PYTHON"),
]


def opened(**changes: Any) -> VllmEngine:
    options = SpeedupOptions(engine="vllm", gamma=(3,), vllm_python=PYTHON, batch=(1, 4))
    return open_vllm(dataclasses.replace(options, **changes))


@pytest.fixture(scope="module")
def reference() -> ReferenceEngine:
    return ReferenceEngine(load_model("embedded:teacher").model, [load_model("embedded:draft").model], WORDS)


@pytest.fixture(scope="module")
def asked() -> list[list[int]]:
    tokenizer = load_model("embedded:teacher").tokenizer
    return [prompts.prompt_ids(tokenizer, prompt.text) for prompt in prompts.load_prompts("mini-gsm", 8).prompts]


@pytest.fixture(scope="module")
def engine() -> Iterator[VllmEngine]:
    made = opened()
    yield made
    made.close()


def test_the_recorded_replies_are_what_vllm_says(engine: VllmEngine) -> None:
    for arm, place in (("plain", PLAIN), ("gamma3", GAMMA3)):
        for one in recorded(arm):
            request = Request(one["request"]["prompt"], 40)
            endpoint, body = engine._asked(request, place, GREEDY)
            assert body == one["request"]
            reply = endpoint.complete(body)
            assert reply["choices"][0]["token_ids"] == one["reply"]["choices"][0]["token_ids"]
            mine, theirs = (each["metrics"]["speculative_decoding"] for each in (reply, one["reply"]))
            assert mine == theirs


def test_text_and_steps_are_the_reference_engines(
    engine: VllmEngine, reference: ReferenceEngine, asked: list[list[int]]
) -> None:
    for ids in asked:
        request = Request(ids, 48)
        for arm in (PLAIN, GAMMA3):
            mine, theirs = engine.decode(request, arm, GREEDY), reference.decode(request, arm, GREEDY)
            found = gate.greedy_outcome(reference.target, WORDS, ids, theirs.tokens, mine.tokens)
            assert found["outcome"] != "violation"
            assert len(mine.tokens) == 48 == mine.first + mine.steps + sum(mine.accepted)
            if found["outcome"] == "identical":
                assert abs(sum(mine.accepted) - sum(theirs.accepted)) <= 3  # a tie of the draft's moves a step
            assert mine.prefill_s is not None
            assert mine.prefill_s > 0
            assert mine.decode_s is not None
            assert mine.decode_s > 0


def test_a_batch_is_the_same_texts(engine: VllmEngine, reference: ReferenceEngine, asked: list[list[int]]) -> None:
    requests = [Request(ids, 32) for ids in asked[:4]]
    for arm in (PLAIN, GAMMA3):
        for request, found in zip(requests, engine.together(requests, arm, GREEDY), strict=True):
            alone = reference.decode(request, PLAIN, GREEDY).tokens
            assert (
                gate.greedy_outcome(reference.target, WORDS, request.ids, alone, found.tokens)["outcome"] != "violation"
            )


def test_servers_listen_on_loopback_alone(engine: VllmEngine) -> None:
    """Every listening socket of every process that has one of our servers' keys."""
    keys = [f"VLLM_API_KEY={endpoint._key}".encode() for endpoint in engine._endpoints.values()]
    processes = [entry for key in keys for entry in having(key)]
    assert len(processes) >= 4  # two servers, each with an engine
    links = [read(link) for entry in processes for link in (entry / "fd").iterdir()]
    sockets = {link[8:-1] for link in links if link.startswith("socket:")}
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in sockets:
                listening.append(words[1].split(":")[0])
    assert len(listening) >= 2
    assert set(listening) == {"0100007F"}


def having(variable: bytes) -> list[Path]:
    """Processes with this in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if variable in (entry / "environ").read_bytes():
                found.append(entry)
    return found


def read(link: Path) -> str:
    with contextlib.suppress(OSError):
        return str(link.readlink())
    return ""


def test_ngram_lookup_leaves_the_text_and_every_step_is_counted(
    reference: ReferenceEngine, asked: list[list[int]]
) -> None:
    engine = opened(proposer="ngram")
    try:
        for ids in asked:
            found = engine.decode(Request(ids, 48), GAMMA3, GREEDY)  # which repeats the lookup and compares
            alone = reference.decode(Request(ids, 48), PLAIN, GREEDY).tokens
            assert gate.greedy_outcome(reference.target, WORDS, ids, alone, found.tokens)["outcome"] != "violation"
            assert len(found.tokens) == 1 + found.steps + sum(found.accepted)
    finally:
        engine.close()


def test_an_eagle_head_of_random_weights_drafts_and_leaves_the_text(
    reference: ReferenceEngine, asked: list[list[int]], tmp_path: Path
) -> None:
    engine = opened(proposer="eagle", draft=(str(eagle_head(tmp_path / "head")),))
    try:
        for ids in asked[:4]:
            found = engine.decode(Request(ids, 32), GAMMA3, GREEDY)
            alone = reference.decode(Request(ids, 32), PLAIN, GREEDY).tokens
            assert gate.greedy_outcome(reference.target, WORDS, ids, alone, found.tokens)["outcome"] != "violation"
            assert sum(found.drafted) > 3 * sum(found.accepted)  # it knows nothing
    finally:
        engine.close()


def eagle_head(where: Path) -> Path:
    """An EAGLE-1 head for the embedded teacher: one layer over the target's state and the next token's embedding."""
    wide = padded(load_model("embedded:teacher").model, 32)
    where.mkdir()
    config = json.loads(wide.config.to_json_string()) | {"num_hidden_layers": 1}
    (where / "config.json").write_text(json.dumps(config))
    draws = torch.Generator().manual_seed(0)
    weights = {"fc.weight": torch.randn(96, 192, generator=draws) / 10}
    for name, weight in wide.state_dict().items():
        if name.startswith("model.layers.0.") and "input_layernorm" not in name:  # EAGLE leaves that one out
            weights[name.removeprefix("model.")] = torch.randn(weight.shape, generator=draws) / 10
    save_file(weights, where / "model.safetensors")
    return where


def test_the_gate_sees_by_itself_whether_sampled_text_has_the_targets_distribution(
    reference: ReferenceEngine, asked: list[list[int]]
) -> None:
    """On a CPU, vLLM 0.32 reads a temperature that nobody wrote (vllm-project/vllm#55005): its acceptance falls to a
    tenth. Plain decoding is sound. Once that is mended the gate passes, and so does this test.
    """
    engine = opened(temperature=1.0)
    sampling = Sampling(1.0)
    try:
        verdicts, alpha = {}, {}
        for arm in (PLAIN, GAMMA3):
            rows, accepted, tested = [], 0, 0
            for place, ids in enumerate(asked):
                request = Request(ids, 40, seed=place)
                found = engine.decode(request, arm, sampling)
                accepted, tested = accepted + sum(found.accepted), tested + found.tested
                evidence = gate.sampled_evidence(
                    reference.target, None if arm.plain else reference.drafts[0], WORDS, ids, found, sampling,
                    seed=place, drafts="sampled",
                )  # fmt: skip
                row = {"key": f"sampled/{place}", "prompt": str(place), "cluster": str(place), "task": ""}
                rows.append({**row, "arms": [{"draft": arm.draft, "gamma": arm.gamma, **evidence}]})
            verdicts[arm.gamma] = not lossless.verdict(rows).failed
            alpha[arm.gamma] = accepted / max(tested, 1)
        assert verdicts[0]
        # The reference engine keeps nine of ten; a fault that the gate does not see would be a fault of the gate.
        assert verdicts[3] == (alpha[3] > 0.8), alpha
    finally:
        engine.close()


def test_a_draft_of_another_vocabulary_is_pointed_to_the_reference_engine(tmp_path: Path) -> None:
    wide = padded(load_model("embedded:draft").model, 32)
    wide.resize_token_embeddings(700)
    wide.save_pretrained(tmp_path / "wider")
    load_model("embedded:draft").tokenizer.save_pretrained(tmp_path / "wider")
    with pytest.raises(InputError, match=r"vocab_size is not the target's .*vocab_size=700.*--engine reference"):
        opened(draft=(str(tmp_path / "wider"),))


def test_kill_9_of_the_measuring_process_ends_every_vllm_process(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from selectkd_eval.speculation.vllm_server import open_vllm\n"
        "from selectkd_eval.verbs import SpeedupOptions; import time\n"
        f"open_vllm(SpeedupOptions(engine='vllm', proposer='ngram', gamma=(3,), vllm_python=Path({str(PYTHON)!r})))\n"
        "print('up', flush=True); time.sleep(600)"
    )
    mark = f"SELECTKD_TEST_MARK={tmp_path.name}".encode()
    environment = {**os.environ, "SELECTKD_TEST_MARK": tmp_path.name}
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "up\n"
    assert len(having(mark)) > 4
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while having(mark) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not having(mark)


def record() -> None:
    """Write `vllm_responses` anew, all but others.json."""
    asked = [one["request"]["prompt"] for one in recorded("plain")]
    for proposer, names in (("draft-model", {"plain": PLAIN, "gamma3": GAMMA3}), ("ngram", {"ngram": GAMMA3})):
        engine = opened(proposer=proposer)
        for name, arm in names.items():
            found = []
            for ids in asked:
                endpoint, body = engine._asked(Request(ids, 40), arm, GREEDY)
                found.append({"request": body, "reply": endpoint.complete(body)})
            (RESPONSES / f"{name}.json").write_text(json.dumps(found, separators=(",", ":")) + "\n")
        engine.close()


if __name__ == "__main__":
    record()
