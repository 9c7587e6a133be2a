"""No speed-up without the target's own text; every arm timed on every prompt; a run that stops goes on where
it was.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import TinyPair, tiny_llama

from selectkd_eval import draft_verify, measures, pair, prompts, records, speedup
from selectkd_eval.errors import InputError
from selectkd_eval.verbs import SpeedupOptions


def options(tiny_pair: TinyPair, out: Path, **changes) -> SpeedupOptions:
    given = {
        "target": str(tiny_pair.teacher),
        "draft": str(tiny_pair.student),
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


def test_every_arm_is_timed_and_counted_on_every_prompt(tiny_pair, tmp_path, capsys):
    assert speedup.run(options(tiny_pair, tmp_path)) is None
    record = only_record(tmp_path)
    gates = [row for row in record.rows if row["key"].startswith("gate/")]
    timed = [row for row in record.rows if "arm" in row]
    assert [row["outcome"] for row in gates] == ["identical"] * 3
    assert len(timed) == 3 * 2 * 3
    for row in timed:
        assert row["wall_s"] >= row["decode_wall_s"] > 0
        assert row["tokens"] == row["steps"] + row["accepted"] == 7
        assert row["accepted"] <= row["tested"] <= row["drafted"]
    assert measures.speedup_arms(record.rows) == ["gamma2"]
    assert measures.acceptance(record.rows, "ar", "tokens").value == 1
    shown = capsys.readouterr().out
    assert "3 identical" in shown and "gamma2" in shown and "ar2" in shown


def test_the_answer_ends_with_the_first_end_token():
    assert speedup.answer_length([5, 9, 2, 7, 2], frozenset({2})) == 3
    assert speedup.answer_length([5, 9, 7], frozenset({2})) == 3
    assert speedup.answer_length([2, 9, 7], frozenset({2})) == 2  # the prefill's token alone is no decoding


def test_every_arm_decodes_the_length_of_the_targets_answer(tiny_pair, tmp_path):
    """With the fourth token of the target's answer as its end token, every arm decodes four tokens."""
    target = pair.load_model(str(tiny_pair.teacher))
    (prompt,) = prompts.load_prompts(str(tiny_pair.data), 1).prompts
    ids = prompts.prompt_ids(target.tokenizer, prompt.text)
    text = draft_verify.plain(target.model, ids, new_tokens=8, vocabulary=len(target.tokenizer)).tokens
    end = next(place for place in range(2, 8) if text[place] not in text[:place])
    target.model.generation_config.eos_token_id = text[end]
    target.model.save_pretrained(tmp_path / "ends")
    target.tokenizer.save_pretrained(tmp_path / "ends")
    chosen = {"target": str(tmp_path / "ends"), "limit": 1, "repetitions": 1}
    speedup.run(options(tiny_pair, tmp_path / "out", **chosen))
    assert {row["tokens"] for row in only_record(tmp_path / "out").rows if "arm" in row} == {end}
    speedup.run(options(tiny_pair, tmp_path / "all", **chosen, ignore_end=True))
    assert {row["tokens"] for row in only_record(tmp_path / "all").rows if "arm" in row} == {7}


def test_identical_models_sampled_accept_every_draft(tiny_pair, tmp_path, capsys):
    same = options(tiny_pair, tmp_path, draft=str(tiny_pair.teacher), temperature=1.0, repetitions=1)
    speedup.run(same)
    rows = only_record(tmp_path).rows
    assert measures.acceptance(rows, "gamma2", "alpha").value == 1
    assert measures.acceptance(rows, "gamma2", "overlap").value == pytest.approx(1, abs=1e-4)
    assert "draws accepted" in capsys.readouterr().out


def test_a_draft_that_changes_the_text_gets_no_speedup(tiny_pair, tmp_path, monkeypatch, capsys):
    """A cache that keeps refused tokens is the bug every implementation has once: the gate must see it."""
    monkeypatch.setattr(draft_verify.Cached, "rewind", lambda self, length: setattr(self, "length", length))
    assert speedup.run(options(tiny_pair, tmp_path)) == 1
    record = only_record(tmp_path)
    assert measures.lossless_counts(record.rows)["violation"] > 0
    assert not [row for row in record.rows if "arm" in row]
    assert "no speed-up to report" in capsys.readouterr().out


def test_the_gap_is_zero_for_greedy_text_and_large_for_other_text(tiny_pair):
    model = pair.load_model(str(tiny_pair.teacher)).model
    width = model.config.vocab_size
    text = draft_verify.plain(model, [5, 6], new_tokens=6, vocabulary=width).tokens
    assert speedup.gap_in_ulps(model, [5, 6], text, width) < 64
    text[3] = (text[3] + 1) % width
    assert speedup.gap_in_ulps(model, [5, 6], text, width) > 1e4


def test_a_wider_draft_head_is_cut_to_the_common_vocabulary(tiny_pair, tmp_path):
    loaded = pair.load_model(str(tiny_pair.student))
    wide = tiny_llama(loaded.tokenizer, seed=3, vocabulary=len(loaded.tokenizer) + 13)
    wide.save_pretrained(tmp_path / "wide")
    loaded.tokenizer.save_pretrained(tmp_path / "wide")
    assert speedup.run(options(tiny_pair, tmp_path / "out", draft=str(tmp_path / "wide"), repetitions=1)) is None
    assert only_record(tmp_path / "out").facts["vocabulary"] == len(loaded.tokenizer)


def test_a_stopped_run_measures_only_what_is_missing(tiny_pair, tmp_path):
    speedup.run(options(tiny_pair, tmp_path))
    path = only_record(tmp_path).path
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:9]) + lines[9][:20])
    speedup.run(options(tiny_pair, tmp_path))
    again = path.read_text().splitlines(keepends=True)
    assert again[:9] == lines[:9]
    keys = [json.loads(line).get("key") for line in again]
    assert len(keys) == len(lines) and len(set(keys)) == len(keys) - 1  # header and end line have none


@pytest.mark.parametrize(
    "wrong",
    [{"gamma": (0,)}, {"gamma": ()}, {"repetitions": 0}, {"max_new_tokens": 1}, {"temperature": -1.0}, {"limit": 0}],
)
def test_impossible_requests_are_refused(tiny_pair, tmp_path, wrong):
    with pytest.raises(InputError):
        speedup.run(options(tiny_pair, tmp_path, **wrong))
