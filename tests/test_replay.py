"""Published judgements must give the published numbers."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rewriting import rewrite

from judges import replay
from judges.cache import Cache
from judges.protocols import BOTH_ORDERS, in_words
from judges.replay import alpaca_eval
from selectkd_eval import records, win_rates
from selectkd_eval.cli import main
from selectkd_eval.errors import InputError
from selectkd_eval.records import Record, canonical
from selectkd_eval.verbs import WinrateOptions

PUBLISHED = {
    "alpaca_eval_gpt4": "alpaca_eval_gpt4_leaderboard.csv",
    "weighted_alpaca_eval_gpt4_turbo": "weighted_alpaca_eval_gpt4_turbo_leaderboard.csv",
}
FILES = {
    "alpaca-7b__alpaca_eval_gpt4": 0,
    "text_davinci_001__alpaca_eval_gpt4": 0,
    "ghost-7b-alpha__alpaca_eval_gpt4": 805,
    "claude-2.1__weighted_alpaca_eval_gpt4_turbo": 805,
}


def recorded(found: replay.Published, directory: Path) -> Record:
    """The record that these judgements make."""
    options = WinrateOptions(out=directory, judge="replay:file")
    with records.open_record("winrate", options, inputs={"judgements": found.sha256}, facts=found.facts()) as record:
        for row in found.rows:
            record.write(**row)
        record.finish()
    return records.read(record.path)


def written(directory: Path, content: Any, name: str = "annotations.json") -> Path:
    file = directory / name
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def annotation(**changes: object) -> dict[str, object]:
    row = {"instruction": "Q", "output_1": "a", "output_2": "b", "preference": 2}
    return {**row, "generator_1": "base", "generator_2": "model", "annotator": "judge", **changes}


@pytest.mark.parametrize("name", FILES)
def test_published_rows_are_reproduced(name: str, shared_data: Path, tmp_path: Path) -> None:
    root = shared_data / "judge" / "alpaca_eval"
    model, annotator = name.split("__")
    with (root / "leaderboards" / PUBLISHED[annotator]).open() as table:
        published = next(row for row in csv.DictReader(table) if row[""] == model)
    found = replay.open_file(root / "annotations_full" / f"{name}.annotations.json.gz")
    assert (found.candidate["name"], found.judge["name"]) == (model, annotator)
    assert found.weighted == annotator.startswith("weighted")

    record = recorded(found, tmp_path)
    first, _, *again = replay.lines(record)
    figures = dict(part.rsplit(" ", 1) for part in first.removeprefix("  AlpacaEval   ").split(", "))
    assert len(figures) == 7
    for figure, value in figures.items():
        assert float(value) == pytest.approx(float(published[figure]), abs=1e-9), figure
    assert win_rates.win_rate(record).value * 100 == pytest.approx(float(published["win_rate"]), abs=1e-9)
    counts = win_rates.verdict_counts(record.rows)
    assert counts["candidate"] == int(published["n_wins"]) and sum(counts.values()) == 805
    assert counts["unreadable"] == 805 - int(published["n_total"])
    # Every reply that is logged says what was published, read with AlpacaEval's order and rules.
    logged = [row for row in record.rows if "read_again" in row]
    assert (f"{len(logged)} of {len(logged)} logged" in again[0]) if logged else not again
    assert len(logged) >= 0.9 * FILES[name]


def test_rows_keep_no_texts(shared_data: Path) -> None:
    folder = shared_data / "judge" / "alpaca_eval" / "annotations_full"
    file = folder / "claude-2.1__weighted_alpaca_eval_gpt4_turbo.annotations.json.gz"
    rows = replay.open_file(file).rows
    assert len(canonical(rows)) < 400 * len(rows)
    assert {row["task"] for row in rows} == {"helpful_base", "koala", "oasst", "selfinstruct", "vicuna"}
    assert all(row["candidate_chars"] > 0 and row["baseline_chars"] > 0 for row in rows)


def test_the_arithmetic_by_hand() -> None:
    row = replay.leaderboard_row([2, 1, 1, 0, 1.5, None, -1, float("nan")])
    # value = 1, 0, 0, .5, .5: mean .4, squared deviations .36 + .16 + .16 + .01 + .01 = .7
    assert row["win_rate"] == pytest.approx(40)
    assert row["standard_error"] == pytest.approx(100 * (0.7 / 4 / 5) ** 0.5)
    assert (row["n_wins"], row["n_wins_base"], row["n_draws"], row["n_total"]) == (1, 2, 2, 5)
    assert replay.leaderboard_row([1.4, 1.6, 2.0])["discrete_win_rate"] == pytest.approx(100 * 2 / 3)


codes = st.one_of(st.sampled_from([None, float("nan"), -1, 0, 1, 1.5, 2, 1.0, 2.0]), st.floats(1, 2))


@given(st.lists(codes, min_size=1, max_size=30))
def test_any_mixture_of_codes_gives_what_pandas_gives(numbers: list[float | None]) -> None:
    row = replay.leaderboard_row(numbers)
    series = pd.Series(numbers, dtype="float64").replace({0.0: 1.5})
    value = series[series.between(1, 2)] - 1
    assert row["n_total"] == len(value)
    assert np.allclose(row["win_rate"], value.mean() * 100, equal_nan=True, atol=1e-9)
    assert np.allclose(row["standard_error"], value.sem() * 100, equal_nan=True, atol=1e-9)
    assert row["n_wins"] + row["n_wins_base"] + row["n_draws"] == len(value)
    words = [replay.verdict_of(number).word for number in numbers]
    assert [words.count(word) for word in win_rates.DECIDED] == [row["n_wins"], row["n_wins_base"], row["n_draws"]]


@given(st.lists(codes, min_size=2, max_size=12))
def test_the_rate_of_the_rows_is_alpacaevals(numbers: list[float | None]) -> None:
    entries = [annotation(instruction=str(i), preference=number) for i, number in enumerate(numbers)]
    rows = alpaca_eval.load(entries, Path("file"), "").rows
    expected = replay.leaderboard_row(numbers)["win_rate"]
    assert np.allclose(win_rates.win_rate_terms(rows, "half").value * 100, expected, equal_nan=True, atol=1e-9)
    assert alpaca_eval.lines(rows)[0].startswith(f"  AlpacaEval   win_rate {expected!r}, ")


@pytest.mark.parametrize(
    ("number", "word"),
    [
        (1, "baseline"),
        (2, "candidate"),
        (1.5, "tie"),
        (0, "tie"),
        (None, "unreadable"),
        (float("nan"), "unreadable"),
        (-1, "failed"),
        (1.51, "candidate"),
    ],
)
def test_alpacaevals_codes_become_words(number: float | None, word: str) -> None:
    assert replay.verdict_of(number).word == word


def test_fields_that_some_files_lack_are_not_needed(tmp_path: Path) -> None:
    bare = [{key: annotation()[key] for key in ("instruction", "output_1", "output_2", "preference")}]
    bare.append({"instruction": "P", "output_1": None, "output_2": "same", "extra": [1]})
    found = replay.open_file(written(tmp_path, bare))
    assert (found.candidate["name"], found.judge["name"]) == ("unnamed", "unnamed")
    assert [row["verdict"] for row in found.rows] == ["candidate", "unreadable"]
    assert found.rows[1]["baseline_chars"] == 0 and found.rows[1]["task"] == ""
    # A name that is missing in some rows is the name of the others.
    some = [annotation(), annotation(instruction="P", generator_2=None)]
    assert replay.open_file(written(tmp_path, some)).candidate["name"] == "model"


def test_identical_answers_are_ties_that_nobody_was_asked_about(tmp_path: Path) -> None:
    entries = [annotation(output_2="a", preference=1.5), annotation(instruction="P", preference=1.5)]
    same, different = replay.open_file(written(tmp_path, entries)).rows
    assert same["verdict"] == different["verdict"] == "tie"
    assert same["asked"] is False and same["reason"] == "identical answers" and "asked" not in different


def test_an_annotator_that_does_not_shuffle_shows_the_baseline_first(tmp_path: Path) -> None:
    def orders(annotator: str) -> list[str]:
        entries = [annotation(instruction=str(i), annotator=annotator) for i in range(20)]
        return [row["order"] for row in replay.open_file(written(tmp_path, entries)).rows]

    assert set(orders("lmsys_gpt4")) == {"baseline-first"}
    assert orders("judge") == [replay.shown_order(str(i)) for i in range(20)] and len(set(orders("judge"))) == 2


def test_a_repeated_instruction_keeps_both_judgements(tmp_path: Path) -> None:
    rows = replay.open_file(written(tmp_path, [annotation(), annotation(preference=1)])).rows
    assert len({row["key"] for row in rows}) == 2 and len({row["prompt"] for row in rows}) == 1


@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "annotations"])
def test_the_format_is_told_by_the_content_and_not_by_the_name(name: str, tmp_path: Path) -> None:
    entries = [annotation(), annotation(instruction="P", preference=float("nan"))]
    as_list, as_lines = json.dumps(entries), "\n".join(map(json.dumps, entries)) + "\n"
    for text, pack in itertools.product((as_list, as_lines, "\ufeff" + as_list), (gzip.compress, bytes)):
        (tmp_path / name).write_bytes(pack(text.encode()))
        found = replay.open_file(tmp_path / name)
        assert found.format == "alpaca_eval" and [row["raw"] for row in found.rows] == [2.0, None]


def _likely(**logprobs: float) -> dict[str, object]:
    top = [{"token": token, "logprob": value} for token, value in logprobs.items()]
    return {"logprobs": {"content": [{"token": "x", "top_logprobs": []}, {"token": "m", "top_logprobs": top}]}}


@pytest.mark.parametrize(
    ("reply", "shown"),
    [
        ("[{'model': 'model_1', 'rank': 1}, {'model': 'model_2', 'rank': 2}]", 1),
        ("[\n  {'model': 'model_2', 'rank': 1},\n  {'model': 'model_1', 'rank': 2}\n]", 2),
        ("[{'model': 'model_1', 'rank': 3}]", None),
        ("[{'model': 'model_1', 'rank': __import__('os').getpid()}]", None),
        ("I rank model_1 first", None),
        ("[" * 5000, None),
        ('{"ordered_models": [{"model": "m", "rank": 2}, {"model": "M", "rank": 1}]}', 2),
        ({"concise_explanation": "", "ordered_models": [{"model": "m", "rank": 1}, {"model": "M", "rank": 2}]}, 1),
        (_likely(m=0.0, M=0.0), 1.5),
        (_likely(m=np.log(0.3), M=np.log(0.1)), 1.25),
        (_likely(M=-0.5, The=-0.1), 2),
        (_likely(The=-0.1), None),
    ],
)
def test_logged_replies_are_read_by_alpacaevals_rules(reply: object, shown: float | None) -> None:
    straight = alpaca_eval.read_again(reply, "baseline-first", weighted=True)
    switched = alpaca_eval.read_again(reply, "candidate-first", weighted=True)
    assert straight == (None if shown is None else pytest.approx(shown))
    assert switched == (None if shown is None else pytest.approx(3 - shown))


def test_a_logged_reply_that_says_something_else_is_counted(tmp_path: Path) -> None:
    entries: list[object] = []
    for i in range(4):
        first = replay.shown_order(f"{i}") == "candidate-first"
        ranks = (1, 2) if first else (2, 1)  # the candidate wins
        reply = [{"model": name, "rank": rank} for name, rank in zip(("model_1", "model_2"), ranks, strict=True)]
        entries.append(annotation(instruction=f"{i}", preference=1 if i == 0 else 2, raw_completion=str(reply)))
    found = replay.open_file(written(tmp_path, entries))
    assert "3 of 4 logged replies" in alpaca_eval.lines(found.rows)[-1]


def test_distillm2_counts_by_the_mean_of_both_orders(shared_data: Path, tmp_path: Path) -> None:
    file = shared_data / "judge" / "distillm2" / "issue6_counts.json"
    stated = json.loads(file.read_text())
    record = recorded(replay.open_file(file), tmp_path)
    assert win_rates.win_rate(record).value == pytest.approx(stated["avg_weighted_wr"], abs=1e-9)
    (line,) = replay.lines(record)
    values = [float(part.split()[-1]) for part in line.split(", ")]
    assert values == pytest.approx([0.350917, 0.243119, 0.297018], abs=1e-6)
    assert len({row["prompt"] for row in record.rows}) == 218 and len(record.rows) == 436


def test_counts_are_laid_out_for_the_widest_interval(tmp_path: Path) -> None:
    counts = {
        "order1": {"win": 1, "lose": 1, "tie": 2},
        "order2": {"win": 2, "lose": 1, "tie": 0, "n": 3},
        "n_prompts": 4,
    }
    rows = replay.open_file(written(tmp_path, counts)).rows
    share = {"candidate": 1.0, "tie": 0.5, "baseline": 0.0, "unreadable": np.nan}
    one, two = ([share[row["verdict"]] for row in rows if row["order"] == order] for order in BOTH_ORDERS)
    assert sorted(one) == [0, 0.5, 0.5, 1] and sorted(two[:3]) == [0, 1, 1] and np.isnan(two[3])
    sums = [np.var(np.add(one[:3], other)) for other in itertools.permutations(two[:3])]
    assert np.var(np.add(one[:3], two[:3])) == pytest.approx(max(sums))


def test_two_files_of_counts_share_no_prompt(tmp_path: Path) -> None:
    order = {"win": 1, "lose": 1, "tie": 0}
    files = [{"order1": order, "order2": order, "name": name} for name in "ab"]
    one, two = ({r["prompt"] for r in replay.open_file(written(tmp_path, file)).rows} for file in files)
    assert len(one) == len(two) == 2 and not one & two


def test_pandalms_labels_are_three_raters_of_the_same_pairs(shared_data: Path) -> None:
    root = shared_data / "judge" / "pandalm"
    people, *judges = (
        replay.open_file(root / f"{name}.json.gz")
        for name in ("testset-v1", "gpt-3.5-turbo-testset-v1", "pandalm-7b-testset-v1")
    )
    assert people.judge["raters"] == ["annotator1", "annotator2", "annotator3"]
    assert len({row["key"] for row in people.rows}) == len(people.rows) == 3 * 999
    votes: dict[str, list[str]] = {}
    for row in people.rows:
        votes.setdefault(row["prompt"], []).append(row["verdict"])
    majority = {prompt: max(words, key=words.count) for prompt, words in votes.items()}
    # The published counts of 0, 1 and 2, and the published accuracy; PandaLM scores what it could not read as a tie.
    assert [list(majority.values()).count(word) for word in ("tie", "baseline", "candidate")] == [105, 422, 472]
    for judge, name, accuracy, garbage in zip(
        judges, ("gpt-3.5-turbo", "pandalm-7b"), (71.07, 66.77), (25, 0), strict=True
    ):
        words = {row["prompt"]: row["verdict"] for row in judge.rows}
        assert judge.judge["name"] == name and words.keys() == majority.keys()
        assert list(words.values()).count("unreadable") == garbage
        right = sum(("tie" if word == "unreadable" else word) == majority[prompt] for prompt, word in words.items())
        assert round(100 * right / len(words), 2) == accuracy


def test_a_record_is_replayed_with_its_facts_and_without_texts(tmp_path: Path) -> None:
    entries = [annotation(), annotation(instruction="P", preference=-1), annotation(instruction="R", preference=1.25)]
    first = recorded(replay.open_file(written(tmp_path, entries)), tmp_path / "one")
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(first.path.read_bytes()))
    for path in (first.path, packed):
        again = replay.open_file(path)
        assert again.rows == first.rows and again.protocol == first.facts["protocol"] and again.weighted
        assert again.judge["kind"] == "replay" and again.judge["original"] == first.facts["judge"]
        second = recorded(again, tmp_path / f"two-{path.name}")
        assert replay.lines(second) == replay.lines(first)
        assert replay.open_file(second.path).judge["original"] == first.facts["judge"]
    rows = [{**row, "raw": "what the judge said"} for row in first.rows]
    spoken = recorded(replay.Published(**{**vars(replay.open_file(first.path)), "rows": rows}), tmp_path / "three")
    assert all("raw" not in row for row in replay.open_file(spoken.path).rows)


def test_the_command_makes_a_record_of_a_file_once_and_keeps_how_the_answers_were_decoded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = [annotation(instruction=word, preference=1 + (word != "P")) for word in "PQR"]
    decoded = {"candidate": {"temperature": 0.8}, "baseline": None}
    found = replay.Published(
        **{**vars(replay.open_file(written(tmp_path, entries))), "generation": decoded, "format": "record"}
    )
    line = ["winrate", "--judge", f"replay:{recorded(found, tmp_path / 'first').path}", "--limit", "2"]
    line += ["--out", str(tmp_path / "out"), "--resamples", "10"]
    for _ in range(2):
        assert main(line) == 0
        assert capsys.readouterr().out.startswith("win rate 50.00 %")  # P lost, Q won, R is one too many
    (path,) = (tmp_path / "out").iterdir()
    again = records.read(path)
    assert len(again.rows) == 2 == again.facts["prompts"]["n"] and again.facts["generation"] == decoded


def test_an_unfinished_record_is_refused_by_its_own_name(tmp_path: Path) -> None:
    path = recorded(replay.open_file(written(tmp_path, [annotation()])), tmp_path / "one").path
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match="unfinished") as error:
        replay.open_file(path)
    assert str(path) in str(error.value)


def test_a_judge_cache_is_told_apart_and_needs_the_answers(tmp_path: Path) -> None:
    with Cache(tmp_path / "cache.sqlite") as cache:
        path = cache.path
    assert replay.is_cache(path) and not replay.is_cache(tmp_path / "none")
    with pytest.raises(InputError, match="two sets of answers"):
        replay.open_file(path)


def test_every_format_names_a_protocol_that_can_be_said_in_words(tmp_path: Path) -> None:
    order = {"win": 1, "lose": 1, "tie": 0}
    contents: list[Any] = [[annotation()], {"order1": order, "order2": order}, [{"idx": 0, "x_result": "Tie"}]]
    found = [replay.open_file(written(tmp_path, content)) for content in contents]
    assert [item.format for item in found] == ["alpaca_eval", "distillm2-counts", "pandalm"]
    assert all(in_words(item.protocol) and len(item.protocol["sha256"]) == 64 for item in found)
    assert len({item.protocol["sha256"] for item in found}) == 3
    assert all(item.judge["kind"] == "replay" and item.judge["name"] for item in found)


ORDER = {"win": 1, "lose": 1, "tie": 0}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "not valid JSON"),
        ("[{]", "not valid JSON"),
        ('{"a": 1}\n{', "line 2 of"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "holds no judgements"),
        ("7", "first entry: a int"),
        ('[{"a": 1}]', "first entry: fields a"),
        ([{"instruction": "Q"}], "has no output_1 or output_2 or preference"),
        ([annotation(), {"instruction": "Q"}], "entry 2 of"),
        ([annotation(preference=3)], "preference 3"),
        ([annotation(preference=float("inf"))], "preference inf"),
        ([annotation(preference="2")], "no number"),
        ([annotation(preference=True)], "no number"),
        ([annotation(), annotation(generator_2="other")], "several generator_2 (model, other)"),
        ([annotation(), annotation(annotator="other")], "several annotator (judge, other)"),
        ({"order1": ORDER}, "for order2"),
        ({"order1": ORDER, "order2": {**ORDER, "tie": -1}}, "for order2"),
        ({"order1": ORDER, "order2": {**ORDER, "n": 3}}, "add up to 2"),
        ({"order1": ORDER, "order2": ORDER, "n_prompts": 1}, "n_prompts, 1"),
        ([{"idx": 0, "x_result": 3}], "x_result 3"),
        ([{"idx": 0, "x_result": 1}, {"idx": 1}], "has no x_result"),
        ([{"idx": 0, "x_result": 1}, {"idx": "0", "x_result": 1}], "repeats idx 0"),
        ([{"idx": 0, "x_result": 1, "y_result": 2}], "several judges"),
    ],
)
def test_a_wrong_file_is_refused_in_one_sentence(content: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        replay.open_file(written(tmp_path, content))
    assert says in str(error.value) and "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe\x00", b"\x1f\x8b not gzip", gzip.compress(b"[]", mtime=0)[:-9]],
    ids=["UTF-16", "no gzip", "half a gzip"],
)
def test_a_file_that_is_no_text_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InputError, match=r"give a \.json or \.jsonl file"):
        replay.open_file(tmp_path / "file")


def test_a_missing_file_is_named() -> None:
    with pytest.raises(InputError, match=r"no file of judgements nowhere\.json"):
        replay.open_file(Path("nowhere.json"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("verdict", "banana"),
        ("verdict", None),
        ("preference", 7),
        ("preference", "half"),
        ("prompt", [1]),
        ("prompt", None),
        ("seed", "x"),
        ("sample", -1),
        ("order", "sideways"),
        ("candidate_chars", -5),
    ],
)
def test_a_row_that_no_command_writes_is_refused_by_name(name: str, value: object, tmp_path: Path) -> None:
    path = recorded(replay.open_file(written(tmp_path, [annotation()])), tmp_path / "one").path
    header, row, *rest = path.read_text().splitlines()
    rewrite(path, "\n".join([header, json.dumps({**json.loads(row), name: value}), *rest]) + "\n")
    with pytest.raises(InputError, match=f"has {name} .*, which no winrate command writes"):
        replay.open_file(path)


@pytest.mark.parametrize("name", ["judge", "protocol", "candidate", "baseline", "prompts"])
def test_a_record_without_a_fact_is_refused(name: str, tmp_path: Path) -> None:
    path = recorded(replay.open_file(written(tmp_path, [annotation()])), tmp_path / "one").path
    header, *rest = path.read_text().splitlines()
    edited = json.loads(header)
    del edited["facts"][name]
    rewrite(path, "\n".join([canonical(edited), *rest]) + "\n")
    with pytest.raises(InputError, match=f"does not say its {name}"):
        replay.open_file(path)
    del edited["facts"]
    rewrite(path, "\n".join([canonical(edited), *rest]) + "\n")
    with pytest.raises(InputError, match="has no facts: the file is damaged"):
        replay.open_file(path)
