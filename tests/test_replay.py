"""Published judgements must give the published numbers."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from judges import replay
from selectkd_eval import records, win_rates
from selectkd_eval.cli import main
from selectkd_eval.errors import InputError

PUBLISHED = {
    "alpaca_eval_gpt4": "alpaca_eval_gpt4_leaderboard.csv",
    "weighted_alpaca_eval_gpt4_turbo": "weighted_alpaca_eval_gpt4_turbo_leaderboard.csv",
}
FILES = (
    "alpaca-7b__alpaca_eval_gpt4",
    "text_davinci_001__alpaca_eval_gpt4",
    "ghost-7b-alpha__alpaca_eval_gpt4",
    "claude-2.1__weighted_alpaca_eval_gpt4_turbo",
)


@pytest.mark.parametrize("name", FILES)
def test_published_rows_are_reproduced(
    name: str, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shared_data / "judge" / "alpaca_eval"
    file = root / "annotations_full" / f"{name}.annotations.json.gz"
    model, annotator = name.split("__")
    with (root / "leaderboards" / PUBLISHED[annotator]).open() as table:
        published = next(row for row in csv.DictReader(table) if row[""] == model)
    ours = replay.leaderboard_row([j.preference for j in replay.load(file).judgements])
    for figure, value in ours.items():
        assert value == pytest.approx(float(published[figure]), abs=1e-9), figure

    assert main(["winrate", "--judge", f"replay:{file}", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert f"win_rate {ours['win_rate']!r}" in printed
    record = records.read(next(tmp_path.glob("winrate-*.jsonl")))
    assert win_rates.win_rate(record).value * 100 == pytest.approx(float(published["win_rate"]), abs=1e-9)
    counts = win_rates.verdict_counts(record.rows)
    assert counts["candidate"] == ours["n_wins"] and counts["unreadable"] == 805 - ours["n_total"]


def test_the_arithmetic_by_hand() -> None:
    row = replay.leaderboard_row([2, 1, 1, 0, 1.5, None, -1])
    # value = 1, 0, 0, .5, .5: mean .4, squared deviations .36 + .16 + .16 + .01 + .01 = .7
    assert row["win_rate"] == pytest.approx(40)
    assert row["standard_error"] == pytest.approx(100 * (0.7 / 4 / 5) ** 0.5)
    assert (row["n_wins"], row["n_wins_base"], row["n_draws"], row["n_total"]) == (1, 2, 2, 5)
    assert replay.leaderboard_row([1.4, 1.6, 2.0])["discrete_win_rate"] == pytest.approx(100 * 2 / 3)


def test_distillm2_counts_by_the_mean_of_both_orders(shared_data: Path) -> None:
    counts = json.loads((shared_data / "judge" / "distillm2" / "issue6_counts.json").read_text())
    rows = []
    for name, order in (("order1", "candidate-first"), ("order2", "baseline-first")):
        words = [("candidate", "win"), ("baseline", "lose"), ("tie", "tie")]
        spelled = [word for word, key in words for _ in range(counts[name][key])]
        rows += [{"prompt": str(i), "order": order, "verdict": word} for i, word in enumerate(spelled)]
    rate = win_rates.win_rate_terms(rows, "half-per-order").value
    assert rate == pytest.approx(counts["avg_weighted_wr"], abs=1e-9)


@pytest.mark.parametrize(
    ("number", "word"),
    [
        (1, "baseline"),
        (2, "candidate"),
        (1.5, "tie"),
        (0, "tie"),
        (None, "unreadable"),
        (-1, "failed"),
        (1.51, "candidate"),
    ],
)
def test_alpacaevals_codes_become_words(number: float | None, word: str) -> None:
    assert replay.verdict_of(number).word == word


def _annotation(**changes: object) -> dict[str, object]:
    row = {"instruction": "Q", "output_1": "a", "output_2": "b", "preference": 2}
    return {**row, "generator_1": "base", "generator_2": "model", "annotator": "judge", **changes}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[{]", "not valid JSON"),
        ("[]", "holds no annotations"),
        (json.dumps([{"instruction": "Q"}]), "has no output_1 or output_2 or preference"),
        (json.dumps([_annotation(preference=3)]), "preference 3"),
        (json.dumps([_annotation(preference="2")]), "no number"),
        (json.dumps([_annotation(), _annotation(generator_2="other")]), "several generator_2"),
    ],
)
def test_a_wrong_file_is_refused_in_one_sentence(
    content: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "annotations.json"
    file.write_text(content)
    assert main(["winrate", "--judge", f"replay:{file}", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_a_missing_file_is_named() -> None:
    with pytest.raises(InputError, match=r"no annotation file nowhere\.json"):
        replay.load(Path("nowhere.json"))


def test_a_repeated_instruction_keeps_both_judgements(tmp_path: Path) -> None:
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps([_annotation(), _annotation(preference=1)]))
    judgements = replay.load(file).judgements
    assert len({(j.prompt, j.seed) for j in judgements}) == 2
