"""No speed-up without the target's own text; every arm timed on every prompt; a run that stops goes on where
it was.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import TinyPair, tiny_llama

from selectkd_eval import lossless, pair, prompts, records, speeds, speedup
from selectkd_eval.errors import InputError
from selectkd_eval.sampling import GREEDY, Sampling
from selectkd_eval.speculation import asking, draft_verify, forced
from selectkd_eval.speculation.engine import Request
from selectkd_eval.speeds import PLAIN, Arm
from selectkd_eval.verbs import SpeedupOptions


def options(tiny_pair: TinyPair, out: Path, **changes: Any) -> SpeedupOptions:
    given = {
        "target": str(tiny_pair.teacher),
        "draft": (str(tiny_pair.student),),
        "prompts": str(tiny_pair.data),
        "limit": 3,
        "gamma": (2,),
        "max_new_tokens": 8,
        "repetitions": 2,
        "threads": 1,
        "device": "cpu",
        "out": out,
    }
    return SpeedupOptions(**given | changes)


def only_record(out: Path) -> records.Record:
    (path,) = out.glob("speedup-*.jsonl")
    return records.read(path)


def of_kind(record: records.Record, kind: str) -> list[dict[str, Any]]:
    return [row for row in record.rows if row["key"].startswith(f"{kind}/")]


def plain_text(model: Any, ids: list[int], length: int) -> list[int]:
    engine = draft_verify.ReferenceEngine(model, [], model.config.vocab_size)
    return engine.decode(Request(ids, length), PLAIN, GREEDY).tokens


def test_every_arm_is_timed_and_counted_on_every_prompt(tiny_pair, tmp_path, capsys):
    two = (str(tiny_pair.student), str(tiny_pair.teacher))
    assert speedup.run(options(tiny_pair, tmp_path, draft=two)) is None
    record = only_record(tmp_path)
    gates, timed = of_kind(record, "gate"), of_kind(record, "time")
    assert [[one["outcome"] for one in row["outcomes"]] for row in gates] == [["identical"] * 2] * 3
    assert len(timed) == len(of_kind(record, "text")) == len(of_kind(record, "cost")) == 3
    for row in timed:
        assert len(row["runs"]) == 2 * 4  # repetitions times plain, plain again, two drafts
        for rep in range(2):
            assert sorted(run["place"] for run in row["runs"] if run["rep"] == rep) == [0, 1, 2, 3]
        for run in row["runs"]:
            assert run["wall_s"] >= run["decode_s"] > 0
            assert run["tokens"] == run["steps"] + run["accepted"] == row["length"] - 1
            assert run["accepted"] <= run["tested"] <= run["drafted"]
            assert sum(run["drafted_per_step"]) == run["drafted"]
    assert speeds.arms(record.rows) == [Arm(0, 2), Arm(1, 2)]
    assert speeds.acceptance(record.rows, Arm(1, 2), "alpha").value == 1  # the target as its own draft
    shown = capsys.readouterr().out
    assert "3 identical" in shown and "plain decoding, again" in shown and "× acceptance" in shown


def test_the_answer_ends_with_the_first_end_token():
    assert asking.answer_length([5, 9, 2, 7, 2], frozenset({2})) == 3
    assert asking.answer_length([5, 9, 7], frozenset({2})) == 3
    assert asking.answer_length([2, 9, 7], frozenset({2})) == 2  # the prefill's token alone is no decoding


def test_every_arm_decodes_the_length_of_the_targets_answer(tiny_pair, tmp_path):
    """With the fourth token of the target's answer as its end token, every arm decodes four tokens."""
    target = pair.load_model(str(tiny_pair.teacher))
    (prompt,) = prompts.load_prompts(str(tiny_pair.data), 1).prompts
    ids = prompts.prompt_ids(target.tokenizer, prompt.text)
    text = plain_text(target.model, ids, 8)
    end = next(place for place in range(2, 8) if text[place] not in text[:place])
    target.model.generation_config.eos_token_id = text[end]
    target.model.save_pretrained(tmp_path / "ends")
    target.tokenizer.save_pretrained(tmp_path / "ends")
    chosen = {"target": str(tmp_path / "ends"), "limit": 1, "repetitions": 1}
    for folder, ignore, tokens in (("out", False, end), ("all", True, 7)):
        speedup.run(options(tiny_pair, tmp_path / folder, **chosen, ignore_end=ignore))
        (row,) = of_kind(only_record(tmp_path / folder), "time")
        assert {run["tokens"] for run in row["runs"]} == {tokens}


@pytest.mark.slow
def test_identical_models_sampled_accept_every_draft(tiny_pair, tmp_path, capsys):
    same = options(tiny_pair, tmp_path, draft=(str(tiny_pair.teacher),), temperature=1.0, repetitions=1)
    assert speedup.run(same) is None
    rows = only_record(tmp_path).rows
    assert speeds.acceptance(rows, Arm(0, 2), "alpha").value == 1
    assert speeds.acceptance(rows, Arm(0, 2), "overlap").value == pytest.approx(1, abs=1e-4)
    assert any(row["key"] == "enumeration" for row in rows)
    assert "sum min(p, q)" in capsys.readouterr().out


def test_a_draft_that_changes_the_text_gets_no_speedup(tiny_pair, tmp_path, monkeypatch, capsys):
    """A cache that keeps refused tokens is the bug every implementation has once: the gate must see it."""
    monkeypatch.setattr(draft_verify.Cached, "rewind", lambda self, length: setattr(self, "length", length))
    assert speedup.run(options(tiny_pair, tmp_path)) == 1
    record = only_record(tmp_path)
    assert not lossless.passed(record.rows)
    assert not of_kind(record, "time") and not of_kind(record, "text")
    assert "no speed-up" in capsys.readouterr().out


def test_a_wider_draft_head_is_cut_to_the_common_vocabulary(tiny_pair, tmp_path):
    loaded = pair.load_model(str(tiny_pair.student))
    wide = tiny_llama(loaded.tokenizer, seed=3, vocabulary=len(loaded.tokenizer) + 13)
    wide.save_pretrained(tmp_path / "wide")
    loaded.tokenizer.save_pretrained(tmp_path / "wide")
    assert speedup.run(options(tiny_pair, tmp_path / "out", draft=(str(tmp_path / "wide"),), repetitions=1)) is None
    assert only_record(tmp_path / "out").facts["vocabulary"] == len(loaded.tokenizer)


def test_a_stopped_run_measures_only_what_is_missing(tiny_pair, tmp_path):
    speedup.run(options(tiny_pair, tmp_path))
    path = only_record(tmp_path).path
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-3]) + lines[-3][:40])
    speedup.run(options(tiny_pair, tmp_path))
    again = path.read_text().splitlines(keepends=True)
    assert again[:-3] == lines[:-3]
    keys = [json.loads(line).get("key") for line in again]
    assert len(keys) == len(lines) and len(set(keys)) == len(keys) - 1  # header and end line have none


def test_times_of_other_threads_are_another_record(tiny_pair, tmp_path):
    for threads in (1, 2):
        speedup.run(options(tiny_pair, tmp_path, threads=threads, limit=1, repetitions=1))
    found = [records.read(path) for path in tmp_path.glob("speedup-*.jsonl")]
    assert sorted(record.facts["threads"] for record in found) == [1, 2]


@pytest.mark.parametrize("what, other", [("device", "NVIDIA H100"), ("threads", 7)])
def test_a_record_begun_on_another_clock_is_not_gone_on_with(tiny_pair, tmp_path, what, other):
    speedup.run(options(tiny_pair, tmp_path, limit=1, repetitions=1))
    path = only_record(tmp_path).path
    header, *rows = path.read_text().splitlines(keepends=True)
    begun = json.loads(header)
    begun["facts"][what] = other
    path.write_text(json.dumps(begun, separators=(",", ":")) + "\n" + "".join(rows[:-3]))
    before = path.read_bytes()
    with pytest.raises(InputError, match=f"was begun with {what} {other}, and now it is"):
        speedup.run(options(tiny_pair, tmp_path, limit=1, repetitions=1))
    assert path.read_bytes() == before


def test_a_second_turn_follows_the_targets_own_answer(tiny_pair, tmp_path):
    """Both turns are gated and timed, under the prompt that intervals resample."""
    asked = tmp_path / "question.jsonl"
    row = {"question_id": 1, "category": "writing", "turns": ["Say 1 :", "Say it again :"]}
    asked.write_text(json.dumps(row) + "\n")
    speedup.run(options(tiny_pair, tmp_path / "out", prompts=str(asked), repetitions=1))
    record = only_record(tmp_path / "out")
    first, second = of_kind(record, "gate")
    assert second["prompt"] == f"{first['prompt']}#2" and second["cluster"] == first["cluster"] == first["prompt"]
    target = pair.load_model(str(tiny_pair.teacher))
    said = target.tokenizer.decode(first["reference"], skip_special_tokens=True)
    ids = prompts.rendered_ids(target.tokenizer, f"Say 1 :\n\n{said}\n\nSay it again :")
    assert plain_text(target.model, ids, 8)[: second["length"]] == second["reference"]
    assert speeds.speedup(record.rows, Arm(0, 2)).prompts == (first["cluster"],)


def test_a_prompt_that_does_not_fit_is_left_out_and_counted(tiny_pair, tmp_path, capsys):
    asked = tmp_path / "prompts.jsonl"
    asked.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("Say 1 :", "word " * 600)))
    assert speedup.run(options(tiny_pair, tmp_path / "out", prompts=str(asked), repetitions=1)) is None
    record = only_record(tmp_path / "out")
    assert len(of_kind(record, "time")) == 1
    (failed,) = record.failed
    assert "do not fit the model's 512 positions" in failed["error"]
    assert "1 prompt" in capsys.readouterr().out
    asked.write_text(json.dumps({"prompt": "word " * 600}) + "\n")
    with pytest.raises(InputError, match="none of the 1 prompts fits"):
        speedup.run(options(tiny_pair, tmp_path / "none", prompts=str(asked)))


def test_what_a_draft_would_have_said_is_read_off_the_targets_text(tiny_pair):
    """Against greedy decoding of both models token by token."""
    target, draft = (pair.load_model(str(where)) for where in (tiny_pair.teacher, tiny_pair.student))
    ids, width = [5, 6, 7], len(target.tokenizer)
    text = plain_text(target.model, ids, 12)
    p, q = (forced.next_logits(one.model, ids, text, width) for one in (target, draft))
    found = forced.agreement(p, q, text[1:], GREEDY)
    alone = [plain_text(draft.model, ids + text[:place], 1)[0] for place in range(1, 12)]
    assert (
        found["agreement"]
        == found["chance"]
        == [int(mine == theirs) for mine, theirs in zip(alone, text[1:], strict=True)]
    )
    assert all(five >= one for five, one in zip(found["top5"], found["agreement"], strict=True))
    sampled = forced.agreement(p, q, text[1:], Sampling(0.8))
    assert all(0 < chance <= 1 for chance in sampled["chance"])
    assert forced.agreement(p, p, text[1:], Sampling(0.8, top_k=3))["overlap"] == pytest.approx([1.0] * 11)


def test_a_prompt_across_the_turn_of_a_long_rotary_embedding_is_left_out_too(tiny_pair, tmp_path):
    turning = tmp_path / "turning"
    shutil.copytree(tiny_pair.teacher, turning)
    across = "word " * 10
    turn = len(prompts.prompt_ids(pair.load_model(str(turning)).tokenizer, across)) + 4  # of 8 new tokens
    config = json.loads((turning / "config.json").read_text())
    half = config["hidden_size"] // config["num_attention_heads"] // 2
    factors = {"short_factor": [1.0] * half, "long_factor": [3.0] * half}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": turn, **factors}
    (turning / "config.json").write_text(json.dumps(config | {"rope_parameters": rope}))
    asked = tmp_path / "prompts.jsonl"
    asked.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("w", across)))
    few = {"target": str(turning), "prompts": str(asked), "repetitions": 1}
    assert speedup.run(options(tiny_pair, tmp_path / "out", **few)) is None
    record = only_record(tmp_path / "out")
    assert len(of_kind(record, "time")) == 1
    assert [f"pass position {turn}" in row["error"] for row in record.failed] == [True]


@pytest.mark.parametrize(
    "wrong",
    [
        {"gamma": (0,)},
        {"gamma": ()},
        {"gamma": (3, 3)},
        {"gamma": (2, 7)},  # of eight new tokens, the first from the prefill and the last the target's own
        {"repetitions": 0},
        {"max_new_tokens": 1},
        {"temperature": -1.0},
        {"limit": 0},
        {"top_p": 0.0},
        {"batch": (2,)},
        {"proposer": "ngram"},
        {"server": ("plain=http://127.0.0.1:1",)},
    ],
    ids=str,
)
def test_impossible_requests_are_refused(tiny_pair, tmp_path, wrong):
    with pytest.raises(InputError):
        speedup.run(options(tiny_pair, tmp_path, **wrong))
