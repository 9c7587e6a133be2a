"""Files in Spec-Bench's form, written from real runs of the reference engine: its times, its counts, its texts."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from selectkd_eval import lossless, records, speeds
from selectkd_eval.cli import main
from selectkd_eval.errors import InputError
from selectkd_eval.exchange.importing import run
from selectkd_eval.measures import Row
from selectkd_eval.speeds import PLAIN, Arm
from selectkd_eval.verbs import ImportOptions

GAMMA = 4
CATEGORIES = ("writing", "math", "translation", "qa")


def wrote(model_id: str, draft: str | None, choices: int = 1) -> tuple[list[dict[str, Any]], list[list[int]]]:
    """Answers as evaluation/eval.py dumps them, and how many draft tokens each step of the first choices accepted."""
    from selectkd_eval.pair import load_model
    from selectkd_eval.prompts import load_prompts, prompt_ids
    from selectkd_eval.sampling import GREEDY
    from selectkd_eval.speculation.draft_verify import ReferenceEngine
    from selectkd_eval.speculation.engine import Request

    target = load_model("embedded:teacher")
    drafts = [load_model(draft).model] if draft else []
    engine = ReferenceEngine(target.model, drafts, target.model.config.vocab_size)
    arm = Arm(0, GAMMA) if draft else PLAIN
    rows, accepted = [], []
    for number, prompt in enumerate(load_prompts("mini-gsm", 6).prompts):
        made, steps = [], []
        for index in range(choices):
            turns = {"turns": [], "decoding_steps": [], "new_tokens": [], "wall_time": [], "accept_lengths": []}
            for new in (12, 16):  # two turns
                began = time.perf_counter()
                found = engine.decode(Request(prompt_ids(target.tokenizer, prompt.text), new), arm, GREEDY)
                turns["wall_time"].append(time.perf_counter() - began)
                turns["turns"].append(target.tokenizer.decode(found.tokens))
                turns["new_tokens"].append(len(found.tokens))
                # The prefill is a call that emits one token, as in Spec-Bench's own loops.
                lengths = [1, *(kept + 1 for kept in found.accepted)]
                turns["decoding_steps"].append(len(lengths))
                turns["accept_lengths"] += lengths
                steps += found.accepted if index == 0 else []
            made.append({"index": index, **turns})
        accepted.append(steps)
        head = {"question_id": 81 + number, "category": CATEGORIES[number % 4], "answer_id": "x", "model_id": model_id}
        rows.append({**head, "choices": made, "tstamp": 0.0})
    return rows, accepted


@pytest.fixture(scope="module")
def runs() -> dict[str, tuple[list[dict[str, Any]], list[list[int]]]]:
    return {
        "plain": wrote("toy-vanilla-float32-temp-0.0", None),
        "draft": wrote("toy-sps-68m-float32-temp-0.0", "embedded:draft"),
        "student": wrote("toy-eagle-float32", "embedded:student", choices=2),
    }


@pytest.fixture
def files(runs, tmp_path: Path) -> dict[str, Path]:
    folder = tmp_path / "model_answer"
    folder.mkdir()
    found = {}
    for name, (rows, _) in runs.items():
        found[name] = folder / f"{rows[0]['model_id']}.jsonl"
        write(found[name], rows)
    return found


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def change(path: Path, **fields: Any) -> None:
    """Other values in the first question's first choice."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["choices"][0] |= fields
    write(path, rows)


def imported(files: dict[str, Path], out: Path, *names: str, **more: Any) -> records.Record:
    options = ImportOptions(files=tuple(files[name] for name in names), baseline=files["plain"], out=out, **more)
    assert run(options) == 0
    (record,) = records.read_all(out, "speedup")[0]
    return record


def arm_of(record: records.Record, draft: int) -> Arm:
    return Arm(draft, record.facts["gammas"][0])


def test_seconds_and_acceptance_are_those_of_the_files(runs, files: dict[str, Path], tmp_path: Path) -> None:
    record = imported(files, tmp_path / "r", "draft", "student")
    rows = record.rows
    for index, name in enumerate(("draft", "student")):
        answers, accepted = runs[name]
        lengths = [choice["accept_lengths"] for row in answers for choice in row["choices"]]
        steps, tokens = sum(map(len, lengths)), sum(map(sum, lengths))
        arm = arm_of(record, index)
        assert speeds.acceptance(rows, arm, "tokens").value == tokens / steps
        assert speeds.acceptance(rows, arm, "accepted").value == tokens / steps - 1
        one = [run["accepted"] for row in speeds.timed(rows) for run in speeds.runs_of(row, arm) if run["rep"] == 0]
        assert one == [sum(kept) for kept in accepted], "the engine's own counts"
        plain = sum(sum(row["choices"][0]["wall_time"]) for row in runs["plain"][0])
        medians = sum(sum(sum(c["wall_time"]) for c in row["choices"]) / len(row["choices"]) for row in answers)
        assert speeds.speedup(rows, arm).value == pytest.approx(plain / medians)
    assert record.facts["gammas"] == [max(max(kept) for name in ("draft", "student") for kept in runs[name][1])]


def test_what_the_files_do_not_tell_is_unknown(files: dict[str, Path], tmp_path: Path) -> None:
    record = imported(files, tmp_path / "r", "draft")
    arm = arm_of(record, 0)
    for what in ("alpha", "block", "overlap"):
        assert not speeds.acceptance(record.rows, arm, what).den.sum()
    for clock in ("cpu_s", "decode"):
        assert not speeds.speedup(record.rows, arm, clock).den.sum()
    assert record.facts["threads"] is None
    assert record.facts["dtype"] == "float32"


def test_questions_of_mt_bench_are_one_task_and_show_says_where_it_is_from(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = imported(files, tmp_path / "r", "draft", "student")
    assert speeds.tasks(record.rows) == ["mt_bench", "translation", "qa"]
    capsys.readouterr()
    assert main(["show", str(record.path)]) == 0
    said = capsys.readouterr().out
    assert "6 identical" in said
    assert "imported, not measured here: Spec-Bench" in said.replace("\n  ", " ")


def test_the_printed_line_is_spec_benchs_own_arithmetic(
    runs, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """evaluation/speed.py: means over questions of tokens per second, and the mean of all accept lengths."""
    imported(files, tmp_path / "r", "draft")
    said = capsys.readouterr().out

    def rate(name: str) -> float:
        found = [sum(r["choices"][0]["new_tokens"]) / sum(r["choices"][0]["wall_time"]) for r in runs[name][0]]
        return sum(found) / len(found)

    lengths = [n for row in runs["draft"][0] for n in row["choices"][0]["accept_lengths"]]
    assert f"×{rate('draft') / rate('plain'):.3f}" in said
    assert f"mean accepted tokens {sum(lengths) / len(lengths):.3f}" in said


def test_another_text_closes_the_gate(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(files["draft"], turns=["another", "text"])
    record = imported(files, tmp_path / "r", "draft", "student")
    assert not lossless.passed(record.rows)
    assert lossless.verdict(record.rows).arms[tuple(arm_of(record, 1)[:2])]["violation"] == 0
    said = capsys.readouterr().out
    assert "1 of 6 questions have another text" in said
    assert "there is no speed-up to report" in said
    assert "×" not in said


def test_importing_twice_changes_nothing_and_a_limit_keeps_the_first_of_each_task(
    files: dict[str, Path], tmp_path: Path
) -> None:
    record = imported(files, tmp_path / "r", "draft")
    before = record.path.read_bytes()
    assert imported(files, tmp_path / "r", "draft").path.read_bytes() == before
    few = imported(files, tmp_path / "few", "draft", limit=1)
    assert [row["prompt"] for row in speeds.timed(few.rows)] == ["81", "83", "84"]
    directory = ImportOptions(files=(files["draft"].parent,), baseline=files["plain"], out=tmp_path / "all")
    run(directory)
    (whole,) = records.read_all(tmp_path / "all", "speedup")[0]
    assert len(whole.facts["drafts"]) == 2, "the baseline's own file is no draft"


def no_baseline(files: dict[str, Path]) -> None:
    files["plain"].unlink()


def other_questions(files: dict[str, Path]) -> None:
    files["draft"].write_text("".join(files["draft"].read_text().splitlines(keepends=True)[:-1]))


def half_a_line(files: dict[str, Path]) -> None:
    files["draft"].write_text(files["draft"].read_text()[:-30])


def a_failed_question(files: dict[str, Path]) -> None:
    change(files["draft"], turns=["ERROR", "fine"])


def no_time(files: dict[str, Path]) -> None:
    change(files["draft"], wall_time=[0.0, 1.0])


def odd_counts(files: dict[str, Path]) -> None:
    change(files["draft"], accept_lengths=[1, 2.5])


def an_empty_call(files: dict[str, Path]) -> None:
    change(files["draft"], accept_lengths=[1, 0, 3])


def no_lengths(files: dict[str, Path]) -> None:
    rows: list[Row] = [json.loads(line) for line in files["draft"].read_text().splitlines()]
    del rows[0]["choices"][0]["accept_lengths"]
    write(files["draft"], rows)


def sampled(files: dict[str, Path]) -> None:
    files["draft"].write_text(files["draft"].read_text().replace("temp-0.0", "temp-1.0"))


def plain_twice(files: dict[str, Path]) -> None:
    files["draft"].write_bytes(files["plain"].read_bytes())


DAMAGE = {
    no_baseline: "there is no file",
    other_questions: "differ in 1 questions",
    half_a_line: "not valid JSON",
    a_failed_question: "a question that failed",
    no_time: "a wall_time that is no time",
    odd_counts: "no counts",
    an_empty_call: "no counts",
    no_lengths: "has no accept_lengths",
    sampled: "was sampled",
    plain_twice: "accepted a draft token",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_damaged_files_are_refused_in_one_sentence_and_leave_nothing(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], damage
) -> None:
    damage(files)
    out = tmp_path / "r"
    assert main(["import", str(files["draft"]), "--baseline", str(files["plain"]), "--out", str(out)]) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    assert DAMAGE[damage] in said
    assert not out.exists()


def test_answers_without_plain_decodings_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give Spec-Bench's file of them as --baseline"):
        run(ImportOptions(files=(files["draft"],), out=tmp_path / "r"))
    with pytest.raises(InputError, match="is the --baseline itself"):
        run(ImportOptions(files=(files["plain"],), baseline=files["plain"], out=tmp_path / "r"))
