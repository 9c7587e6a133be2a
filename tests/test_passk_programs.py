"""Programs the whole way: asked of a real server on loopback, cut out of its answers, run, graded again."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rewriting import rewrite
from text_server import TextServer, serving

from selectkd_eval import passk, records, regrade
from selectkd_eval.errors import InputError
from selectkd_eval.verbs import PasskOptions, RegradeOptions

pytestmark = pytest.mark.slow

FORGED = "class Yes:\n    def __eq__(self, other):\n        return True\n\ndef {name}(n):\n    return Yes()"
SAID = {  # what the server answers to the problem about each function, and the outcome in isolated and official mode
    "double": ("Sure!\n```python\ndef double(n):\n    return 2 * n\n```\nThat doubles it.", "pass", "pass"),
    "triple": ("```python\ndef triple(n):\n    return 2 * n\n```", "wrong", "wrong"),
    "square": ("```python\n" + FORGED.format(name="square") + "\n```", "wrong", "pass"),
    "halve": ("```python\ndef halve(n):\n    while True:\n        pass\n```", "timeout", "timeout"),
    "negate": (
        "```python\nimport socket\ndef negate(n):\n    socket.socket()\n    return -n\n```",
        "forbidden",
        "forbidden",
    ),
    "same": ("I would rather not.", "no-code", None),
    "cube": ("```\ndef cube(n):\n    import torch\n    return n ** 3\n```", "import-missing", "import-missing"),
}


class Author(TextServer):
    """Answers by the function that the prompt asks for."""

    def text(self, prompt: str, body: dict) -> tuple[str, str, int]:
        name = re.findall(r"def (\w+)\(", prompt)[-1]
        return SAID[name][0], "stop", 20


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A HumanEval of seven problems."""
    directory = tmp_path_factory.mktemp("data")
    values = {"double": 6, "triple": 9, "square": 9, "halve": 1, "negate": -3, "same": 3, "cube": 27}
    rows = [
        {
            "task_id": f"HumanEval/{place}",
            "prompt": f'def {name}(n):\n    """Give {name} of n."""\n',
            "entry_point": name,
            "canonical_solution": "",
            "test": f"def check(candidate):\n    assert candidate(3) == {value}\n",
        }
        for place, (name, value) in enumerate(values.items())
    ]
    (directory / "HumanEval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


@pytest.fixture
def server(tiny_pair, monkeypatch: pytest.MonkeyPatch) -> Iterator[TextServer]:
    monkeypatch.setattr("text_server.TextServer", Author)
    with serving(tiny_pair.teacher) as running:
        yield running


@pytest.fixture
def options(server: TextServer, data: Path, tmp_path: Path) -> PasskOptions:
    return PasskOptions(
        model="tiny",
        base_url=server.url,
        tasks=("humaneval",),
        data=data,
        cpu_seconds=1.0,
        workers=1,
        batch_size=4,
        out=tmp_path,
    )


def measured(options: PasskOptions) -> records.Record:
    assert passk.run(options) == 0
    return records.read(records.record_path("passk", options), verb="passk")


def test_every_fate_of_a_program(options: PasskOptions, capsys: pytest.CaptureFixture[str]) -> None:
    record = measured(options)
    rows = {row["problem"]: row for row in record.rows}
    for place, (_, isolated, official) in enumerate(SAID.values()):
        row = rows[f"HumanEval/{place}"]
        assert (row["outcome"], row.get("other", {}).get("outcome")) == (isolated, official), row
        assert row["correct"] == (isolated == "pass")
    assert rows["HumanEval/3"]["again"], "a timeout is run once more, alone"
    assert rows["HumanEval/6"]["detail"].startswith("torch")
    assert record.facts["sandbox"]["verdict"] == "isolated"
    said = capsys.readouterr().out
    assert re.search(r"^humaneval +14\.29 ", said, re.MULTILINE)
    assert re.search(r"official.*28\.57|28\.57.*official", said), (
        "the forged pass shows as a difference of the two modes"
    )


def test_stored_answers_are_graded_again_without_a_model(
    options: PasskOptions, server: TextServer, capsys: pytest.CaptureFixture[str]
) -> None:
    record = measured(options)
    asked = len(server.asked)
    again = RegradeOptions(record=record.path, verdict="official", cpu_seconds=1.0, workers=1, out=options.out)
    capsys.readouterr()
    assert regrade.run(again) == 0
    said = capsys.readouterr().out
    assert len(server.asked) == asked
    new = records.read(records.record_path("regrade", again), verb="regrade")
    assert {row["key"]: row["completion"] for row in new.rows} == {row["key"]: row["completion"] for row in record.rows}
    by_problem = {row["problem"]: row["outcome"] for row in new.rows}
    assert by_problem == {f"HumanEval/{place}": said[2] or "no-code" for place, said in enumerate(SAID.values())}
    assert "HumanEval/2" in said, "the answer whose verdict changed is named"
    before = new.path.read_bytes()
    assert regrade.run(again) == 0
    assert new.path.read_bytes() == before
    two = replace(again, limit=2)
    assert regrade.run(two) == 0
    part = records.read(records.record_path("regrade", two), verb="regrade")
    assert {row["problem"] for row in part.rows} == {"HumanEval/0", "HumanEval/1"}
    assert part.facts["tasks"]["humaneval"]["n"] == 2


def test_no_answer_is_paid_for_twice(options: PasskOptions, server: TextServer) -> None:
    """Other tasks, other limits, another record: what the store holds is not asked again."""
    measured(replace(options, limit=3))
    asked = len(server.asked)
    record = measured(options)
    assert len(server.asked) - asked == 4
    assert len(record.rows) == 7


def test_an_interrupted_run_waits_for_no_program(options: PasskOptions, server: TextServer) -> None:
    """The fourth answer never ends; two modes and their second runs would take four minutes."""
    sent: list[float] = []

    def interrupt() -> None:
        while len(server.asked) < 4:
            time.sleep(0.1)
        time.sleep(2)
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run behind nohup ignores it
    try:
        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            passk.run(replace(options, limit=4, cpu_seconds=60.0))
        assert time.monotonic() - sent[0] < 30
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(measured(replace(options, limit=3)).rows) == 3


def test_regrade_refuses_other_data(options: PasskOptions, tmp_path: Path) -> None:
    record = measured(replace(options, limit=1))
    other = tmp_path / "other"
    other.mkdir()
    text = (options.data / "HumanEval.jsonl").read_text()
    (other / "HumanEval.jsonl").write_text(text.replace("== 6", "== 7"))
    with pytest.raises(InputError, match="give the files of that time"):
        regrade.run(RegradeOptions(record=record.path, data=other, out=options.out))
    with pytest.raises(InputError, match="the record of train"):
        path = tmp_path / "train-x.jsonl"
        rewrite(path, record.path.read_text().replace('"verb":"passk"', '"verb":"train"'))
        regrade.run(RegradeOptions(record=path, out=options.out))
