"""Names of tasks and graders, and what is said about each."""

from __future__ import annotations

import subprocess
import sys

import pytest

from selectkd_eval.errors import InputError
from selectkd_eval.grading.graders import GRADER_ROWS
from selectkd_eval.listing import run
from selectkd_eval.tasks.table import TASKS
from selectkd_eval.verbs import ListOptions


def printed(capsys: pytest.CaptureFixture[str], what: str, explain: str = "") -> str:
    assert run(ListOptions(what=what, explain=explain)) == 0  # type: ignore[arg-type]
    return capsys.readouterr().out


@pytest.mark.parametrize(("what", "table"), [("tasks", TASKS), ("graders", GRADER_ROWS)])
def test_every_name_has_a_line(capsys: pytest.CaptureFixture[str], what: str, table: dict[str, object]) -> None:
    lines = printed(capsys, what).splitlines()
    assert [line.split()[0] for line in lines] == list(table)
    assert all(len(line.split()) > 4 for line in lines), "a name alone says nothing"


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_explained_with_its_layouts_files_and_grader(capsys: pytest.CaptureFixture[str], name: str) -> None:
    said, row = printed(capsys, "tasks", name), TASKS[name]
    for layout in row.layouts:
        assert f"\n  {layout.name}: {layout.shots} solved example" in said
    assert f"grader {row.grader}" in said
    assert row.files[0] in said
    assert said.count("the default for") == len({row.chat, row.plain})


@pytest.mark.parametrize("name", GRADER_ROWS)
def test_a_grader_is_explained_with_its_error_rate(capsys: pytest.CaptureFixture[str], name: str) -> None:
    said = printed(capsys, "graders", name)
    assert f"measured: {GRADER_ROWS[name].measured}" in said
    assert any(character.isdigit() for character in GRADER_ROWS[name].measured)


@pytest.mark.parametrize(
    ("what", "name", "near"), [("tasks", "gsm9k", "gsm8k"), ("graders", "math-verfy", "math-verify")]
)
def test_a_wrong_name_names_the_nearest(what: str, name: str, near: str) -> None:
    with pytest.raises(InputError, match=f"did you mean '{near}'"):
        run(ListOptions(what=what, explain=name))  # type: ignore[arg-type]


@pytest.mark.parametrize("what", ["tasks", "graders"])
def test_lists_do_not_wait_for_torch(what: str) -> None:
    code = (
        "import sys; from selectkd_eval.listing import run; from selectkd_eval.verbs import ListOptions\n"
        f"run(ListOptions(what={what!r}))\n"
        "print(sorted({'torch', 'transformers', 'sympy', 'math_verify', 'datasets', 'lm_eval'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
