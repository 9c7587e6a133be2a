"""What `winrate` prints of a record is true of every record, also of the smallest and the most one-sided."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from verdict_rows import FIRST, SECOND, in_both_orders, row, said

from judges import compare, summary
from selectkd_eval import records
from selectkd_eval.records import Record
from selectkd_eval.verbs import WinrateOptions


def record(
    directory: Path, rows: Iterable[Mapping[str, Any]], ties: str = "excluded", name: str = "student", **judge: Any
) -> Record:
    facts = {
        "judge": {"name": "gpt-4o", "kind": "server", "note": "n", **judge},
        "protocol": {"name": ties, "sha256": ties, "order": "both", "ties": ties},
        "candidate": {"name": name, "method": name, "fingerprint": name, "seed": None, "training": {}},
        "baseline": {"name": "base", "method": "base", "fingerprint": "base"},
        "prompts": {"name": "set", "sha256": "0", "n": 1},
    }
    options = WinrateOptions(out=directory, candidate=name, judge="gpt-4o", protocol=ties)
    with records.open_record("winrate", options, inputs={}, facts=facts) as writer:
        for one in rows:
            writer.write(f"{one['prompt']}/{one['seed']}/{one['order']}/{one['sample']}", **one)
        writer.finish()
        return records.read(writer.path)


def printed(found: Record) -> str:
    """The report with its lines joined."""
    return " ".join("\n".join(summary.lines(found, 200)).split())


@pytest.mark.parametrize("ties", ["excluded", "half", "half-per-order", "agreement"])
@pytest.mark.parametrize("pattern", ["cc", "bb", "tt", "cb", "uu", "--", "c-", "tu"])
@pytest.mark.parametrize("n", [1, 2, 12])
def test_no_record_is_too_small_or_too_one_sided_to_report(n: int, pattern: str, ties: str, tmp_path: Path) -> None:
    rows = [
        {**one, "sample": sample, "task": f"task {place % 3}"}
        for sample in (0, 1)
        for place, one in enumerate(in_both_orders([pattern] * n))
    ]
    one, other = (record(tmp_path, rows, ties, name) for name in ("one", "other"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = printed(one) + "\n".join(compare.lines(one, [other], 200))
    assert "nan" not in text and "inf" not in text.replace("information", "")
    assert " 0.0 points" not in text, "no number of prompts settles any difference at all"
    assert "[50.00, 50.00]" not in text and "[100.00, 100.00]" not in text and "[+0.00, +0.00]" not in text


def test_seeds_that_few_prompts_have_are_not_crossed(tmp_path: Path) -> None:
    rows = [*said("cb" * 20), *(row(prompt, "c", seed=1) for prompt in range(3))]
    assert "seeds 2 answers to 3 of 40 prompts, fewer to the others (50.00, 100.00); too few to cross" in printed(
        record(tmp_path, rows)
    )
    rows += [row(prompt, "c", seed=1) for prompt in range(3, 12)]
    assert "crossed with prompts on these 12, the conservative interval: 75.00 %" in printed(
        record(tmp_path, rows, "half")
    )


def test_a_seed_without_a_decided_comparison_has_no_rate(tmp_path: Path) -> None:
    rows = [*said("cb" * 20), *said("t" * 40, seed=1)]
    assert "2 answers to every prompt (50.00, –); crossed with prompts, the" in printed(record(tmp_path, rows))


def test_small_tasks_are_said_to_be_together(tmp_path: Path) -> None:
    rows = [
        {**one, "task": task}
        for one, task in zip(said("cb" * 20), ["a"] * 15 + ["b"] * 15 + ["c"] * 6 + ["d"] * 4, strict=True)
    ]
    assert "4 tasks, small ones together, 3 strata" in printed(record(tmp_path, rows))
    even = [{**one, "task": "ab"[place % 2]} for place, one in enumerate(said("cbbc" * 10))]
    assert "2 tasks as strata" in printed(record(tmp_path, even, "half"))


def test_the_other_rule_says_what_else_it_leaves_out(tmp_path: Path) -> None:
    both = in_both_orders(["cc"] * 10 + ["bb"] * 20 + ["cb"] * 10)
    assert "other rule 37.50 %" in (text := printed(record(tmp_path, both, "agreement")))
    assert "where ties excluded, every verdict by itself" in text
    weighed = [{**one, "preference": 0.9} for one in said("c" * 40)]
    assert "where ties excluded, by words alone" in printed(record(tmp_path, weighed, "half"))


def test_an_order_without_any_verdict_is_no_mean_of_two(tmp_path: Path) -> None:
    rows = in_both_orders(["cu"] * 12 + ["bu"] * 12)
    assert "warning not one verdict baseline-first: the rate is that of the other order alone" in printed(
        record(tmp_path, rows, "half-per-order")
    )
    assert "not one verdict" not in printed(record(tmp_path, in_both_orders(["cb"] * 12), "half-per-order"))


def test_a_prompt_that_went_alike_in_two_records_is_neither_better_nor_worse(tmp_path: Path) -> None:
    one = record(tmp_path, in_both_orders(["ub"] * 5 + ["cb"] * 45), "half-per-order", "one")
    other = record(tmp_path, in_both_orders(["cb"] * 50), "half-per-order", "other")
    found = compare.pair(one, other, 200)
    assert (found.better, found.worse) == (0, 5)


def test_a_record_and_its_replay_have_one_judge(tmp_path: Path) -> None:
    judge = {"name": "gpt-4o", "base_url": "https://api", "kind": "server", "note": "n"}
    one = record(tmp_path, said("cb"), name="one", base_url="https://api")
    again = record(tmp_path, said("cb"), name="two", kind="replay", original=judge)
    assert compare.differences(one, again) == []


def test_positions_are_resampled_within_strata_that_can_vary(tmp_path: Path) -> None:
    """A task of one prompt has no spread of its own: 30 such tasks must not make the difference certain."""
    rows = [
        row(prompt, "cb"[prompt % 3 == 0], order, task=f"t{prompt}")
        for prompt in range(60)
        for order in (FIRST, SECOND)
    ]
    rows = [
        {**one, "verdict": "baseline" if one["order"] == SECOND and one["prompt"] < "00030" else one["verdict"]}
        for one in rows
    ]
    text = printed(record(tmp_path, rows, "half"))
    low, high = text.split("first minus second ")[1].split("[")[1].split("]")[0].split(", ")
    assert float(high) - float(low) > 10


def test_one_position_alone_says_nothing_of_positions(tmp_path: Path) -> None:
    text = printed(record(tmp_path, said("cb" * 20), "half"))
    assert "one position alone shows nothing" in text and "the answer shown first won" not in text
