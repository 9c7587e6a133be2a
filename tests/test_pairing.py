"""Joining two sets of answers: by prompt, seed by seed, and never silently smaller."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from judging import answer_record

from judges import pairing
from judges.families import kin
from selectkd_eval.errors import InputError
from selectkd_eval.prompts import prompt_id


def both(
    tmp_path: Path, one: dict[str, list[str]], two: dict[str, list[str]]
) -> tuple[pairing.Answers, pairing.Answers]:
    paths = answer_record(tmp_path, "one", one), answer_record(tmp_path, "two", two)
    return pairing.load_answers(str(paths[0])), pairing.load_answers(str(paths[1]))


def test_records_are_joined_by_prompt_not_by_position(tmp_path: Path) -> None:
    one, two = both(tmp_path, {"p": ["1p"], "q": ["1q"]}, {"q": ["2q"], "p": ["2p"]})
    found = {(c.text, c.candidate, c.baseline) for c in pairing.join(one, two)}
    assert found == {("p", "1p", "2p"), ("q", "1q", "2q")}


def test_seeds_meet_their_own_seed(tmp_path: Path) -> None:
    one, two = both(tmp_path, {"p": ["a0", "a1"]}, {"p": ["b0", "b1"]})
    assert [(c.seed, c.candidate, c.baseline) for c in pairing.join(one, two)] == [(0, "a0", "b0"), (1, "a1", "b1")]


def test_one_baseline_answer_serves_every_seed(tmp_path: Path) -> None:
    one, two = both(tmp_path, {"p": ["a0", "a1", "a2"]}, {"p": ["b"]})
    assert [c.baseline for c in pairing.join(one, two)] == ["b", "b", "b"]


def test_a_seed_without_partner_is_an_error(tmp_path: Path) -> None:
    one, two = both(tmp_path, {"p": ["a0", "a1", "a2"]}, {"p": ["b0", "b1"]})
    with pytest.raises(InputError, match="no answer of seed 2"):
        pairing.join(one, two)


def test_different_prompts_are_an_error_with_counts(tmp_path: Path) -> None:
    one, two = both(tmp_path, {"p": ["a"], "q": ["a"]}, {"q": ["b"], "r": ["b"], "s": ["b"]})
    with pytest.raises(InputError, match="1 only in the first, 2 only in the second, 1 in both"):
        pairing.join(one, two)


def test_limit_takes_the_candidates_first_prompts(tmp_path: Path) -> None:
    one, two = both(tmp_path, {"p": ["a"], "q": ["a"]}, {"r": ["b"], "q": ["b"], "p": ["b"]})
    with pytest.raises(InputError, match="--limit 2"):
        pairing.join(one, two)
    assert [c.text for c in pairing.join(one, two, limit=1)] == ["p"]
    assert [c.text for c in pairing.join(one, two, limit=9)] == ["p", "q"]


@pytest.mark.parametrize("fields", [("instruction", "output"), ("prompt", "response"), ("prompt", "generated_text")])
def test_a_file_of_answers_is_a_baseline(fields: tuple[str, str], tmp_path: Path) -> None:
    rows = [dict(zip(fields, ("p", "theirs"), strict=True))]
    plain, packed = tmp_path / "b.jsonl", tmp_path / "b.json.gz"
    plain.write_text("".join(json.dumps(row) + "\n" for row in rows))
    packed.write_bytes(gzip.compress(json.dumps(rows).encode()))
    one = pairing.load_answers(str(answer_record(tmp_path, "one", {"p": ["mine"]})))
    for file in (plain, packed):
        assert pairing.join(one, pairing.load_answers(str(file)))[0].baseline == "theirs"


@pytest.mark.parametrize(("name", "n"), [("alpaca_eval", 805), ("evol_inst_eval", 218), ("ultrafeedback_eval", 2000)])
def test_distillm2s_own_baselines_are_read_whole(name: str, n: int, shared_data: Path) -> None:
    file = shared_data / "judge" / "distillm2" / f"{name}.json.gz"
    answers = pairing.load_answers(str(file))
    texts = {row.get("prompt", row.get("instruction")) for row in json.loads(gzip.decompress(file.read_bytes()))}
    assert set(answers.text) == {prompt_id(text) for text in texts}
    assert len(answers.text) + answers.card["repeated_prompts"] == n
    assert answers.card["repeated_prompts"] == (1 if name == "evol_inst_eval" else 0)


def test_a_question_asked_twice_is_judged_once_and_never_taken_for_a_seed(tmp_path: Path) -> None:
    file = tmp_path / "b.jsonl"
    file.write_text('{"prompt": "p", "answer": "first"}\n{"prompt": "p ", "answer": "second"}\n')
    one = pairing.load_answers(str(answer_record(tmp_path, "one", {"p": ["a0", "a1", "a2"]})))
    assert [c.baseline for c in pairing.join(one, pairing.load_answers(str(file)))] == ["first"] * 3


def test_a_file_without_answers_cannot_be_a_baseline(tmp_path: Path) -> None:
    file = tmp_path / "b.jsonl"
    file.write_text('{"prompt": "p"}\n')
    with pytest.raises(InputError, match="cannot be the baseline"):
        pairing.load_answers(str(file))


def test_an_unfinished_record_is_refused(tmp_path: Path) -> None:
    path = answer_record(tmp_path, "one", {"p": ["a"]}, finish=False)
    with pytest.raises(InputError, match="unfinished"):
        pairing.load_answers(str(path))
    with pytest.raises(InputError, match=r"no finished answer record in .*1 unfinished.*selectkd-eval answer"):
        pairing.newest_record(tmp_path)


def test_the_baseline_of_a_named_set_is_called_after_who_wrote_it(shared_data: Path) -> None:
    found = pairing.load_answers("evol-instruct", shared_data / "judge" / "distillm2")
    assert (found.name, found.card["name"], found.card["method"]) == ("evol-instruct", "gpt-3.5-turbo", "gpt-3.5-turbo")
    both = pairing.load_answers("alpaca-eval, evol-instruct", shared_data / "judge" / "distillm2")
    assert both.card["name"] == "gpt-3.5-turbo and text-davinci-003"
    assert "the baseline (gpt-3.5-turbo)" in kin("gpt-4o", {"name": "student"}, found.card)
