"""Tasks: the problems are those of the data, whatever file they come in, and the digest knows what decides a score."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selectkd_eval.demo.corpus import examples
from selectkd_eval.errors import InputError
from selectkd_eval.prompts import prompt_id
from selectkd_eval.records import canonical
from selectkd_eval.sandbox.program import Program
from selectkd_eval.tasks.files import _age
from selectkd_eval.tasks.rows import read_row
from selectkd_eval.tasks.sources import load_task
from selectkd_eval.tasks.table import TASKS, find
from selectkd_eval.tasks.task import Task

GSM8K = [{"question": f"What is {n} + {n}?", "answer": f"{n} and {n} make {2 * n}.\n#### {2 * n}"} for n in range(12)]
MATH = [
    {"problem": f"Find ${n}^2$.", "solution": f"$\\boxed{{{n * n}}}$", "level": f"Level {1 + n % 5}", "type": "Algebra"}
    for n in range(6)
]
HUMANEVAL = {
    "task_id": "HumanEval/7",
    "prompt": 'def double(x):\n    """ Twice x """\n',
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}
MBPP = {
    "task_id": 12,
    "text": "Write a function to double.",
    "code": "def half(x):\n  return x / 2\ndef double(x):\r\n  return 4 * half(x)",
    "test_list": ["assert double(1) == 2", "assert double(2) == 4", "assert double(3) == 6"],
    "test_setup_code": "y = 1",
    "challenge_test_list": ["assert double(0) == 0"],
}
PLUS = {
    "task_id": "Mbpp/12",
    "prompt": '"""\nWrite a function to double.\nassert double(1) == 2\n"""\n',
    "entry_point": "double",
    "canonical_solution": "def double(x):\n  return 2 * x\n",
    "base_input": [[1], [2]],
    "plus_input": [[3.5], [-1]],
    "atol": 0,
    "assertion": "\nassert double(1) == 2\nassert double(\n  2) == 4\n",
}


def write(path: Path, rows: list[dict]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path.parent


def load(
    name: str,
    data: Path | None = None,
    *,
    limit: int | None = None,
    shots: int | None = 0,
    layout: str = "",
    chat=False,
) -> Task:
    return load_task(name, data, limit, shots, layout, chat, lambda reference: reference)


# ---- the real data


def test_the_sizes_are_the_published_ones(shared_data: Path) -> None:
    for name, row in TASKS.items():
        task = load(name, None if row.embedded else shared_data / "tasks", shots=None)
        assert len(task.problems) == row.problems, name
        assert len({problem.id for problem in task.problems}) == row.problems, "an id names one problem"
        assert (task.kind, task.grader, task.max_new_tokens) == (row.kind, row.grader, row.max_new_tokens)


def test_math_is_broken_down_by_level_and_subject(shared_data: Path) -> None:
    whole, few = load("math", shared_data / "tasks"), load("math500", shared_data / "tasks")
    levels = Counter(problem.strata["level"] for problem in few.problems)
    assert [levels[str(level)] for level in range(1, 6)] == [43, 90, 105, 128, 134]
    assert sorted(Counter(problem.strata["subject"] for problem in whole.problems).values()) == [
        *(474, 479, 540, 546, 871, 903, 1187)
    ]
    by_id = {problem.id: problem for problem in whole.problems}
    for problem in few.problems:
        same = by_id[problem.id]
        assert (same.fields["problem"], same.strata) == (problem.fields["problem"], problem.strata)


def test_math500_by_index_alone_is_the_same_task(shared_data: Path, tmp_path: Path) -> None:
    there = shared_data / "tasks"
    rows = [{"math_idx": int(p.id.removeprefix("math/"))} for p in load("math500", there).problems]
    write(tmp_path / "math500.jsonl", rows)
    (tmp_path / "math_test_5000.jsonl.gz").symlink_to(there / "math_test_5000.jsonl.gz")
    assert [p.id for p in load("math500", tmp_path).problems] == [p.id for p in load("math500", there).problems]
    write(tmp_path / "math500.jsonl", [{"math_idx": 5001}])
    with pytest.raises(InputError, match="math_idx 5001"):
        load("math500", tmp_path)


def test_every_program_task_fits_the_sandbox(shared_data: Path) -> None:
    for name in ("humaneval", "mbpp-full", "mbpp-sanitized", "humaneval-plus", "mbpp-plus"):
        for problem in load(name, shared_data / "tasks").problems:
            fixed = {key: value for key, value in problem.program.items() if key != "prompt"}
            program = Program(id=problem.id, code="", **fixed)
            assert program.test or program.plus
            assert problem.fields["entry_point"], problem.id


def test_the_tested_function_is_evalplus_own(shared_data: Path) -> None:
    """The sanitized file does not name it: it is found in the reference and its test."""
    named = {p.id: p.fields["entry_point"] for p in load("mbpp-plus", shared_data / "tasks").problems}
    found = {p.id: p.fields["entry_point"] for p in load("mbpp-sanitized", shared_data / "tasks").problems}
    assert named.items() <= found.items()


def test_mbpp_prompt_for_evalplus_is_its_own(shared_data: Path) -> None:
    """The docstring made of question and first test; EvalPlus removed a web address from 18 of the 378 questions."""
    theirs = {p.id: p.fields["prompt"] for p in load("mbpp-plus", shared_data / "tasks").problems}
    ours = {p.id: p.fields["prompt"] for p in load("mbpp-sanitized", shared_data / "tasks").problems}
    differ = [name for name, prompt in theirs.items() if ours[name] != prompt]
    assert len(differ) == 18
    assert all("https://" in ours[name] or "http" in ours[name] for name in differ)


def test_plus_versions_are_chosen_by_name_and_the_newest_release_by_default(shared_data: Path) -> None:
    data = shared_data / "tasks"
    newest, head = load("humaneval-plus", data), load("humaneval-plus@HEAD-2024-05-01", data)
    assert (newest.version, head.version) == ("v0.1.10", "HEAD-2024-05-01")
    assert (newest.name, head.name) == ("humaneval-plus", "humaneval-plus@HEAD-2024-05-01")
    assert newest.sha256 != head.sha256
    assert load("humaneval-plus@v0.1.10", data).sha256 == newest.sha256
    inputs = [sum(len(p.program["plus"]["plus"]) for p in task.problems) for task in (newest, head)]
    assert inputs == [123_739, 122_683]
    assert [len(load(f"mbpp-plus@{version}", data).problems) for version in ("v0.1.0", "v0.2.0")] == [399, 378]
    with pytest.raises(InputError, match=r"v9\.9, but .* has HEAD-2024-05-01, v0\.1\.10"):
        load("humaneval-plus@v9.9", data)


def test_the_base_tests_are_those_of_plus(shared_data: Path) -> None:
    base, plus = load("mbpp-base", shared_data / "tasks"), load("mbpp-plus", shared_data / "tasks")
    for mine, theirs in zip(base.problems, plus.problems, strict=True):
        assert mine.program["plus"] == {**theirs.program["plus"], "plus": []}
        assert mine.program["plus"]["base"]


# ---- the digest


def test_embedded_digest_is_that_of_questions_and_answers_in_order() -> None:
    """Numbers recorded before this file existed stay comparable."""
    rows = [[row["meta"]["question"], row["answer"]] for row in examples("mini-gsm:test")]
    shown = [[row["meta"]["question"], row["answer"]] for row in examples("mini-gsm:labelled")]
    for shots in (0, 3):
        lines = "".join(canonical(row) + "\n" for row in rows + shown[:shots])
        task = load("mini-gsm", shots=shots)
        assert task.sha256 == hashlib.sha256(lines.encode()).hexdigest()
        assert [p.id for p in task.problems] == [prompt_id(f"Question: {question}\nAnswer:") for question, _ in rows]
        assert [p.gold for p in task.problems] == [answer for _, answer in rows]
        assert task.examples == [{"question": question, "answer": answer} for question, answer in shown[:shots]]


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".json"])
def test_packing_key_order_and_limit_do_not_change_the_digest(tmp_path: Path, ending: str) -> None:
    whole = load("gsm8k", write(tmp_path / "a" / "gsm8k_test.jsonl", GSM8K))
    turned = [{"source": "x", "answer": row["answer"], "question": row["question"]} for row in GSM8K]
    path = tmp_path / "b" / f"gsm8k_test{ending}"
    write(path, turned)
    if ending == ".json":
        path.write_text(json.dumps(turned, indent=1))
    same = load("gsm8k", path.parent, limit=5)
    assert same.sha256 == whole.sha256
    assert same.problems == whole.problems[:5]


@pytest.mark.parametrize(
    ("name", "file", "row", "field", "other"),
    [
        ("gsm8k", "gsm8k_test", GSM8K[1], "answer", "#### 3"),
        ("math", "math_test", MATH[1], "solution", "$\\boxed{3}$"),
        ("humaneval", "HumanEval", HUMANEVAL, "test", "def check(candidate):\n    pass\n"),
        ("mbpp-full", "mbpp_full", MBPP, "test_setup_code", "y = 2"),
        ("mbpp-full", "mbpp_full", MBPP, "test_list", ["assert True"]),
        ("mbpp-plus", "MbppPlus", PLUS, "plus_input", [[3.5]]),
        ("mbpp-plus", "MbppPlus", PLUS, "atol", 0.1),
    ],
)
def test_whatever_decides_the_score_changes_the_digest(tmp_path, name, file, row, field, other) -> None:
    before = load(name, write(tmp_path / "a" / f"{file}.jsonl", [row])).sha256
    after = load(name, write(tmp_path / "b" / f"{file}.jsonl", [{**row, field: other}])).sha256
    unrelated = load(name, write(tmp_path / "c" / f"{file}.jsonl", [{**row, "challenge_test_list": ["x"]}])).sha256
    assert before != after
    assert before == unrelated


def test_drawn_examples_count_as_they_are_shown(tmp_path: Path) -> None:
    """The layout that draws: other examples, another digest; examples that nobody sees do not count."""
    write(tmp_path / "gsm8k_test.jsonl", GSM8K[:2])
    pool = [{"question": f"q{n}", "answer": f"#### {n}"} for n in range(400)]
    write(tmp_path / "gsm8k_train.jsonl", pool)
    before = load("gsm8k", tmp_path, shots=3)
    assert before.examples == pool
    draws = random.Random(1234)
    shown = {place for _ in range(2) for place in draws.sample(range(400), 3)}
    hidden = next(n for n in range(400) if n not in shown)
    for place, same in ((hidden, True), (min(shown), False)):
        write(
            tmp_path / "gsm8k_train.jsonl",
            [{**row, "answer": "x"} if i == place else row for i, row in enumerate(pool)],
        )
        assert (load("gsm8k", tmp_path, shots=3).sha256 == before.sha256) is same


# ---- rows


def test_one_problem_under_its_many_names() -> None:
    full = read_row("mbpp", MBPP, "entry 1")
    sanitized = {"task_id": 12, "prompt": MBPP["text"], "code": MBPP["code"], "test_list": MBPP["test_list"]}
    assert read_row("mbpp", sanitized, "entry 1").fields == full.fields
    assert full.fields["entry_point"] == "double"
    assert full.program == {"test": "\n".join(MBPP["test_list"]), "setup": "y = 1", "imports": ""}
    local = read_row("math", {**MATH[0], "idx": 3}, "entry 1")
    hub = read_row("math", {"problem": "Find $0^2$.", "answer": "0", "subject": "Algebra", "level": 1}, "entry 1")
    assert (local.id, hub.id) == ("math/3", prompt_id("Find $0^2$."))
    assert local.strata == hub.strata == {"level": "1", "subject": "Algebra"}
    assert hub.reference == "\\boxed{0}"
    worked = read_row("math", {"problem": "Find $0^2$.", "solution": "It is 0.", "answer": "0"}, "entry 1")
    assert worked.reference == "\\boxed{0}"


def test_evalplus_rows_of_both_forms() -> None:
    row = read_row("mbpp-plus", PLUS, "entry 1")
    assert row.fields["text"] == "Write a function to double."
    assert row.fields["test_list"] == ["assert double(1) == 2", "assert double(\n  2) == 4"]
    assert row.program["plus"] == {
        "task": "Mbpp/12",
        "entry_point": "double",
        "canonical": PLUS["prompt"] + PLUS["canonical_solution"],
        "base": [[1], [2]],
        "plus": [[3.5], [-1]],
        "atol": 0,
    }
    texts = {**PLUS, "base_input": "[[1], [2]]", "plus_input": "[[3.5], [-1]]"}
    assert read_row("mbpp-plus", texts, "entry 1") == row
    hub = {"task_id": 12, "prompt": MBPP["text"], "code": MBPP["code"], "test_list": MBPP["test_list"]}
    written = "for inp, exp in zip(inputs, results):\n    assertion(double(*inp), exp, 0)\n"
    found = read_row("mbpp-plus", {**hub, "test_imports": ["import math"], "test": written}, "entry 1")
    assert found.program == {"test": written, "imports": "import math"}
    assert found.fields["text"] == MBPP["text"]
    with pytest.raises(InputError, match=r"entry 1 has neither .* MbppPlus-VERSION"):
        read_row("mbpp-plus", {**hub, "test": "assert True"}, "entry 1")
    with pytest.raises(InputError, match="plus_input"):
        read_row("mbpp-plus", {k: v for k, v in PLUS.items() if k != "plus_input"}, "entry 1")


def test_what_a_program_may_count_on() -> None:
    row = read_row("humaneval", HUMANEVAL, "entry 1")
    assert row.program == {"test": HUMANEVAL["test"], "entry_point": "double", "given": HUMANEVAL["prompt"]}
    plus = {**PLUS, "task_id": "HumanEval/7", "prompt": HUMANEVAL["prompt"], "test": "unused"}
    assert set(read_row("humaneval-plus", plus, "entry 1").program) == {"given", "plus"}


texts = st.sampled_from(
    ["", "def f(x): pass", "assert f(1)", "\\boxed{1}", "[[1]]", "]", '"""', "\ud800", "Level 5", "7"]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=5,
)


@settings(deadline=None, max_examples=300)
@given(
    case=st.sampled_from(
        [
            ("gsm8k", GSM8K[0]),
            ("math", MATH[0]),
            ("humaneval", HUMANEVAL),
            ("mbpp", MBPP),
            ("mbpp-plus", PLUS),
            ("humaneval-plus", {**PLUS, "task_id": "HumanEval/7"}),
            ("mbpp-plus", {**MBPP, "prompt": "Double.", "test": "assertion(1, 1, 0)"}),
        ]
    ),
    broken=st.dictionaries(
        st.sampled_from(sorted({*GSM8K[0], *MATH[0], *HUMANEVAL, *MBPP, *PLUS, "test_imports"})),
        json_values,
        max_size=3,
    ),
)
def test_any_row_is_a_problem_or_a_sentence(case: tuple[str, dict], broken: dict) -> None:
    reader, row = case
    try:
        found = read_row(reader, {**row, **broken}, "entry 1 of x.jsonl")
    except InputError as error:
        assert str(error).startswith("entry 1 of x.jsonl ")
    else:
        assert found.id
        assert found.decides.endswith(b"\n")


# ---- choosing


def test_layouts_by_chat_and_by_name(tmp_path: Path) -> None:
    write(tmp_path / "math_test.jsonl", MATH)
    write(tmp_path / "HumanEval.jsonl", [HUMANEVAL])
    write(tmp_path / "mbpp.jsonl", [MBPP])
    assert (load("math", tmp_path, shots=None).layout.name, load("math", tmp_path, shots=None).shots) == ("minerva", 4)
    assert (load("math", tmp_path, shots=None, chat=True).layout.name) == "boxed"
    assert [load(n, tmp_path, chat=True).layout.name for n in ("humaneval", "mbpp")] == ["evalplus", "evalplus"]
    assert [load(n, tmp_path).layout.name for n in ("humaneval", "mbpp")] == ["completion", "begin-done"]
    assert load("math", tmp_path, layout="hendrycks", chat=True).layout.text.startswith("Problem: ")
    with pytest.raises(InputError, match=r"no layout called 'minervva'; did you mean 'minerva'"):
        load("math", tmp_path, layout="minervva")
    assert "prompt" not in load("mbpp", tmp_path).problems[0].program
    continued = load("mbpp", tmp_path, layout="evalplus-completion").problems[0].program["prompt"]
    assert continued == PLUS["prompt"]


def test_every_layout_names_its_source_and_is_alone_in_its_task() -> None:
    for name, row in TASKS.items():
        names = [layout.name for layout in row.layouts]
        assert len(set(names)) == len(names)
        assert {row.plain, row.chat} <= set(names)
        assert all(layout.source for layout in row.layouts)
        assert find(name) == (row, "")


@pytest.mark.parametrize(
    ("order", "newest"),
    [
        (["v0.1.9", "v0.1.10", "v0.2.0"], "v0.2.0"),
        (["v0.1.9", "v0.1.10"], "v0.1.10"),
        (["HEAD-2024-05-01", "v0.1.0"], "v0.1.0"),
        (["HEAD-2024-05-01", ""], "HEAD-2024-05-01"),
    ],
)
def test_newest_is_the_highest_release(order: list[str], newest: str) -> None:
    assert max(order, key=_age) == newest


@pytest.mark.parametrize(
    ("name", "shots", "files", "says"),
    [
        ("gsmk8", 0, [], "no task called 'gsmk8'; did you mean 'gsm8k'"),
        ("gsm8k@v1", 0, [], "only humaneval-plus, mbpp-plus, mbpp-base have"),
        ("gsm8k", 0, [], r"gsm8k needs gsm8k_test\.jsonl or gsm8k_test\.jsonl\.gz in .*, and none of them is there"),
        ("gsm8k", 5, ["gsm8k_test.jsonl"], r"need gsm8k_train\.jsonl .* --shots 0"),
        ("gsm8k", 13, ["gsm8k_test.jsonl", "gsm8k_train.jsonl"], "--shots 13 asks for more .* than the 12 of gsm8k"),
        ("math", 9, ["math_test.jsonl"], "than the 4 of math"),
        ("humaneval", 1, ["HumanEval.jsonl"], "layout completion of humaneval has no solved examples"),
        ("mbpp-plus", 0, [], r"MbppPlus\.jsonl .* MbppPlus-v0\.1\.0\.jsonl\.gz"),
        ("math500", 0, ["math_test.jsonl"], r"math500 needs math500_test\.jsonl"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, name: str, shots: int, files: list[str], says: str) -> None:
    rows = {"gsm8k": GSM8K, "math_": MATH, "Human": [HUMANEVAL]}
    for file in files:
        write(tmp_path / file, rows[file[:5]])
    with pytest.raises(InputError, match=says):
        load(name, tmp_path, shots=shots)


def test_no_directory_an_empty_file_and_a_broken_entry(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a directory"):
        load("gsm8k", tmp_path / "nowhere")
    write(tmp_path / "gsm8k_test.jsonl", [])
    with pytest.raises(InputError, match="is empty"):
        load("gsm8k", tmp_path)
    write(tmp_path / "gsm8k_test.jsonl", [GSM8K[0], {"question": "?", "answer": 4}])
    with pytest.raises(InputError, match=r"entry 2 of .* lacks a text `answer`"):
        load("gsm8k", tmp_path)


def test_equal_problems_have_ids_of_their_own(tmp_path: Path) -> None:
    task = load("gsm8k", write(tmp_path / "gsm8k_test.jsonl", [GSM8K[0], GSM8K[1], GSM8K[0]]))
    ids = [problem.id for problem in task.problems]
    assert ids == [ids[0], ids[1], f"{ids[0]}-2"]


def test_half_a_character_is_refused(tmp_path: Path) -> None:
    for name, file, row in (
        ("gsm8k", "gsm8k_test", {**GSM8K[0], "question": "\ud83d?"}),
        ("mbpp-full", "mbpp", {**MBPP, "test_list": ["assert '\udc00'"]}),
    ):
        with pytest.raises(InputError, match=r"entry 1 of .* half a character"):
            load(name, write(tmp_path / f"{file}.jsonl", [row]))


# ---- the hub


def test_rows_of_the_hub_come_by_configuration_and_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """datasets reads a directory of the hub's name as it reads the hub: the real reader, no network."""
    home = tmp_path / "google-research-datasets" / "mbpp"
    splits = {"train": 601, "test": 11, "validation": 511, "prompt": 1}
    for split, number in splits.items():
        rows = [{**MBPP, "task_id": number}, {**MBPP, "task_id": number + 1}]
        write(home / f"{split}.jsonl", rows)
    files = "".join(f"  - split: {split}\n    path: {split}.jsonl\n" for split in splits)
    (home / "README.md").write_text(f"---\nconfigs:\n- config_name: full\n  data_files:\n{files}---\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    assert [p.id for p in load("mbpp").problems] == ["Mbpp/11", "Mbpp/12"]
    assert [p.id for p in load("mbpp-full").problems] == [
        f"Mbpp/{number}" for number in (1, 2, 11, 12, 511, 512, 601, 602)
    ]
    local = write(tmp_path / "local" / "mbpp.jsonl", [{**MBPP, "task_id": number} for number in (11, 12)])
    assert load("mbpp", local).sha256 == load("mbpp").sha256
    with pytest.raises(InputError, match=r"gsm8k could not be fetched from the hub's openai/gsm8k .*gsm8k_test\.jsonl"):
        load("gsm8k")
    with pytest.raises(InputError, match=r"mbpp-base is not on the hub: give --data DIR with MbppPlus\.jsonl"):
        load("mbpp-base")
