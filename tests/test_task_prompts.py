"""Prompts: byte for byte those of lm-eval's own tasks on the same problems, and EvalPlus's where it is asked for.

They differ on purpose in two places only: a problem with fewer than three MBPP tests shows them all (lm-eval would
fail), and a chat template that trims turns does not cost the line break after an opened fence.
"""

from __future__ import annotations

import ast
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
import pytest
import yaml
from conftest import tiny_tokenizer
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from selectkd_eval.backends.backend import Decoding
from selectkd_eval.tasks import layouts
from selectkd_eval.tasks.lm_task import lm_task, rendered
from selectkd_eval.tasks.sources import load_task
from selectkd_eval.tasks.table import TASKS
from selectkd_eval.tasks.task import Task

STOCK = Path(lm_eval.tasks.__file__).parent
PROBLEMS = 25  # lm-eval compiles its templates anew for every text


@pytest.fixture(autouse=True)
def caches_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def some(shared_data: Path, tmp_path: Path) -> Path:
    """The first problems of every task and GSM8K's whole training split, in the files' own form."""
    for name in ("gsm8k_test", "gsm8k_train", "math_test_5000", "math500_test", "HumanEval", "mbpp_full"):
        lines = gzip.decompress((shared_data / "tasks" / f"{name}.jsonl.gz").read_bytes()).decode().splitlines(True)
        kept = (
            lines if name == "gsm8k_train" else lines[10 : 10 + PROBLEMS] if name == "mbpp_full" else lines[:PROBLEMS]
        )
        (tmp_path / f"{name}.jsonl").write_text("".join(kept))
    return tmp_path


def load(name: str, data: Path | None, layout: str = "", shots: int | None = None) -> Task:
    return load_task(name, data, None, shots, layout, False, None)


def chat(history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
    text = "".join(f"[{turn['role']}]{turn['content']}[end]" for turn in history)
    return text + "[assistant]" if add_generation_prompt else text.removesuffix("[end]")


def prompts(task: ConfigurableTask, template: Callable[..., str] | None) -> list[str]:
    task.set_fewshot_seed(1234)
    task.build_all_requests(
        apply_chat_template=template is not None, fewshot_as_multiturn=template is not None, chat_template=template
    )
    return [request.args[0] for request in task.instances]


def stock(file: str, tmp_path: Path, **data: Path) -> ConfigurableTask:
    """lm-eval's own task over local files: everything but the address of the data is read from its YAML."""
    name = yaml.load((STOCK / file).read_text(), _Loader)["task"]
    lines = [
        f"include: {STOCK / file}",
        f"task: local_{name}",
        "dataset_path: json",
        "dataset_name: null",
        "training_split: null",
        *([] if "train" in data else ["fewshot_split: null"]),
        f"dataset_kwargs: {json.dumps({'data_files': {split: str(path) for split, path in data.items()}})}",
    ]
    (tmp_path / "yaml").mkdir()
    (tmp_path / "yaml" / f"local_{name}.yaml").write_text("\n".join(lines) + "\n")
    manager = TaskManager(include_defaults=False, include_path=str(tmp_path / "yaml"))
    return manager.load([f"local_{name}"])["tasks"][f"local_{name}"]


class _Loader(yaml.SafeLoader):
    """YAML whose functions stay unread: humaneval's and mbpp's modules run code from the hub when imported."""


_Loader.add_constructor("!function", lambda loader, node: f"!function {node.value}")


def stock_code(folder: str, *files: str, rows: list[dict[str, Any]]) -> ConfigurableTask:
    """lm-eval's humaneval or mbpp over given rows: wording and examples read from its files, its graders left out."""
    config: dict[str, Any] = {}
    for file in files:
        config |= yaml.load((STOCK / folder / file).read_text(), _Loader)
    wanted = ("doc_to_text", "doc_to_target", "target_delimiter", "gen_prefix", "generation_kwargs", "num_fewshot")
    taken = {key: config[key] for key in wanted if key in config}
    if "fewshot_config" in config:
        tree = ast.parse((STOCK / folder / "utils.py").read_text())
        made = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "list_fewshot_samples")
        samples = ast.literal_eval(next(n for n in made.body if isinstance(n, ast.Return)).value)
        taken["fewshot_config"] = {"sampler": config["fewshot_config"]["sampler"], "samples": samples}
    split = datasets.Dataset.from_list(rows)
    return ConfigurableTask(
        config={
            **taken,
            "task": folder,
            "custom_dataset": lambda **_: {"test": split},
            "test_split": "test",
            "output_type": "generate_until",
            "process_results": lambda doc, results: {"pass@1": 0.0},
            "metric_list": [{"metric": "pass@1", "aggregation": "mean", "higher_is_better": True}],
        }
    )


def same(ours: Task, theirs: ConfigurableTask) -> None:
    """Equal prompts, plain and as chat turns, and equal stop strings."""
    for template in (None, chat):
        asked = prompts(theirs, template)
        assert len(asked) == len(ours.problems)
        assert rendered(ours, template=template) == asked
    assert theirs.config.generation_kwargs["until"] == list(ours.layout.stops)
    assert theirs.config.num_fewshot in (ours.shots, None)


@pytest.mark.parametrize(
    ("layout", "file"),
    [("qa", "gsm8k.yaml"), ("cot", "gsm8k-cot.yaml"), ("cot-zero", "gsm8k-cot-zeroshot.yaml")],
)
def test_gsm8k_is_asked_as_lm_eval_asks(some: Path, tmp_path: Path, layout: str, file: str) -> None:
    """The five examples too: drawn anew before each question, from the same seed in the same order."""
    train = {"train": some / "gsm8k_train.jsonl"} if layout == "qa" else {}
    same(load("gsm8k", some, layout), stock(f"gsm8k/{file}", tmp_path, test=some / "gsm8k_test.jsonl", **train))


@pytest.mark.parametrize(
    ("task", "layout", "file"),
    [
        ("math", "minerva", "minerva_math/minerva_math_algebra.yaml"),
        ("math", "hendrycks", "hendrycks_math/hendrycks_math_algebra.yaml"),
        ("math500", "minerva", "minerva_math/minerva_math500.yaml"),
    ],
)
def test_math_is_asked_as_lm_eval_asks(some: Path, tmp_path: Path, task: str, layout: str, file: str) -> None:
    data = some / ("math_test_5000.jsonl" if task == "math" else "math500_test.jsonl")
    same(load(task, some, layout), stock(file, tmp_path, test=data))


@pytest.mark.parametrize(
    ("layout", "files"),
    [("completion", ["humaneval.yaml"]), ("instruct", ["humaneval.yaml", "humaneval_instruct.yaml"])],
)
def test_humaneval_is_asked_as_lm_eval_asks(some: Path, layout: str, files: list[str]) -> None:
    rows = [json.loads(line) for line in (some / "HumanEval.jsonl").read_text().splitlines()]
    same(load("humaneval", some, layout), stock_code("humaneval", *files, rows=rows))


def test_mbpp_is_asked_as_lm_eval_asks(some: Path) -> None:
    rows = [json.loads(line) for line in (some / "mbpp_full.jsonl").read_text().splitlines()]
    same(load("mbpp", some, "begin-done"), stock_code("mbpp", "mbpp.yaml", rows=rows))
    instruct, theirs = load("mbpp", some, "instruct"), stock_code("mbpp", "mbpp_instruct.yaml", rows=rows)
    assert rendered(instruct) == prompts(theirs, None)
    assert rendered(instruct, template=chat) == prompts(theirs, chat)
    assert theirs.config.generation_kwargs["until"] == []
    assert instruct.layout.stops == ("```",), "where lm-eval cuts the finished answer"


def test_mbpp_plus_is_asked_as_lm_eval_asks_but_for_the_tests_shown(shared_data: Path) -> None:
    """lm-eval reads the hub's rows, with the sanitized set's question and tests; EvalPlus's file has tests of its own
    wording for 13 of the 378 problems and 18 questions without their web address."""
    task, other = load("mbpp-plus", shared_data / "tasks"), load("mbpp-sanitized", shared_data / "tasks")
    sanitized = {problem.id: problem.fields for problem in other.problems}
    rows = [
        {"prompt": sanitized[p.id]["text"], "test_list": sanitized[p.id]["test_list"]} for p in task.problems[:PROBLEMS]
    ]
    theirs = prompts(stock_code("mbpp", "mbpp.yaml", "mbpp_plus.yaml", rows=rows), None)
    alike = [
        (mine, stocks)
        for problem, mine, stocks in zip(task.problems, rendered(task), theirs, strict=False)
        if sanitized[problem.id]["test_list"][:3] == problem.fields["test_list"][:3]
    ]
    assert len(alike) > PROBLEMS // 2
    assert all(mine == stocks for mine, stocks in alike)


def test_of_more_than_three_tests_three_are_shown(shared_data: Path) -> None:
    task = load("mbpp-sanitized", shared_data / "tasks", shots=0)
    counts = set()
    for problem, prompt in zip(task.problems, rendered(task), strict=True):
        tests = problem.fields["test_list"]
        counts.add(min(len(tests), 4))
        assert prompt.endswith("these tests:\n\n" + "\n".join(tests[:3]) + "\n[BEGIN]\n")
    assert counts == {3, 4}


@pytest.mark.parametrize("layout", ["qa-first", "qa"])
def test_shots_are_the_first_solved_examples_or_drawn(tmp_path: Path, layout: str) -> None:
    rows = [{"question": f"Is it {n}?", "answer": f"#### {n}"} for n in range(60)]
    for split, part in (("test", rows[:4]), ("train", rows[10:])):
        (tmp_path / f"gsm8k_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    asked = rendered(load("gsm8k", tmp_path, layout, shots=2))
    first = "Question: Is it 10?\nAnswer: #### 10\n\nQuestion: Is it 11?\nAnswer: #### 11\n\n"
    assert [prompt.startswith(first) for prompt in asked] == [layout == "qa-first"] * 4
    assert [prompt.rpartition("\n\n")[2] for prompt in asked] == [f"Question: Is it {n}?\nAnswer:" for n in range(4)]
    assert len({prompt.rpartition("\n\n")[0] for prompt in asked}) == (1 if layout == "qa-first" else 4)


def test_the_embedded_prompt_is_what_the_demo_pair_was_trained_on() -> None:
    task = load_task("mini-gsm", None, 20, None, "", True, None)
    assert rendered(task) == [f"Question: {p.fields['question']}\nAnswer:" for p in task.problems]


# ---- EvalPlus

SPLITTER = "-[[]]-"
TRIMMING = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}<|eot|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
KEEPING = TRIMMING.replace(" | trim", "")


@pytest.mark.parametrize(
    ("name", "template"), [(n, t) for n in ("humaneval", "mbpp-plus") for t in (TRIMMING, KEEPING)]
)
def test_evalplus_chat_prompt(shared_data: Path, name: str, template: str) -> None:
    """EvalPlus renders a whole conversation and cuts it inside the answer's fence; so the line break stays."""
    tokenizer = tiny_tokenizer(["a b"])
    tokenizer.chat_template = template

    def through(history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return tokenizer.apply_chat_template(  # as lm-eval's HFLM does
            history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    task = load_task(name, shared_data / "tasks", PROBLEMS, None, "evalplus", True, None)
    for problem, prompt in zip(task.problems, rendered(task, template=through), strict=True):
        code = problem.fields["prompt"].strip()
        whole = tokenizer.apply_chat_template(
            [
                {
                    "role": "user",
                    "content": "Please provide a self-contained Python script that solves the following problem in a "
                    f"markdown code block:\n```\n{code}\n```\n",
                },
                {
                    "role": "assistant",
                    "content": "Below is a Python script with a self-contained function that solves the problem and "
                    f"passes corresponding tests:\n```python\n{SPLITTER}\n```\n",
                },
            ],
            tokenize=False,
        )
        assert prompt == whole.split(SPLITTER)[0]
        assert prompt.endswith("```python\n")


def test_evalplus_plain_prompt_is_continued(shared_data: Path) -> None:
    for name in ("humaneval-plus", "mbpp-plus"):
        task = load(name, shared_data / "tasks", "evalplus-completion")
        assert rendered(task) == [problem.program["prompt"].strip() + "\n" for problem in task.problems]


# ---- what lm-eval is told


def test_a_system_prompt_and_messages_for_a_server() -> None:
    task = load_task("mini-gsm", None, 2, 1, "", True, None)
    asked = rendered(task, system="Be brief.", template=lambda history, add_generation_prompt=True: json.dumps(history))
    turns = json.loads(asked[1])
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user"]
    assert turns[0]["content"] == "Be brief."
    assert turns[1]["content"] == f"Question: {task.examples[0]['question']}\nAnswer:"
    assert turns[2]["content"] == task.examples[0]["answer"]
    assert turns[3]["content"] == f"Question: {task.problems[1].fields['question']}\nAnswer:"
    assert rendered(task, template=chat)[1].count("[user]Question:") == 2


def test_decoding_and_score_reach_lm_eval() -> None:
    task = load_task("mini-gsm", None, 2, 0, "", False, str.strip)
    greedy = lm_task(task, Decoding(7, 0.0, 1.0, ("x",)), lambda row, text: float(text == row["gold"]))
    assert greedy.config.generation_kwargs == {
        "until": ["x"],
        "max_gen_toks": 7,
        "do_sample": False,
        "temperature": 0.0,
    }
    sampled = lm_task(task, Decoding(7, 0.8, 0.9, ())).config.generation_kwargs
    assert (sampled["do_sample"], sampled["temperature"], sampled["top_p"], sampled["until"]) == (True, 0.8, 0.9, [])
    first = greedy.eval_docs[0]
    assert first["id"] == task.problems[0].id
    assert greedy.process_results(first, [task.problems[0].gold]) == {"pass@1": 1.0}
    assert greedy.process_results(first, ["7"]) == {"pass@1": 0.0}
    assert lm_task(task).process_results(first, [task.problems[0].gold]) == {"pass@1": 0.0}


def test_boxed_layouts_ask_in_one_sentence_after_the_problem() -> None:
    for layout in (layouts.MATH_BOXED, layouts.QUESTION_BOXED):
        assert layout.text.endswith("}}\nPlease reason step by step, and put your final answer within \\boxed{}.")
    assert {row.layout("", True).name for row in TASKS.values()} == {"qa", "boxed", "evalplus"}


def test_a_problem_with_one_test_shows_it(tmp_path: Path) -> None:
    row = {"task_id": 11, "text": "Double.", "test_list": ["assert double(1) == 2"], "code": "def double(x): pass"}
    (tmp_path / "mbpp.jsonl").write_text(json.dumps(row))
    assert rendered(load("mbpp", tmp_path, shots=0))[0].endswith("tests:\n\nassert double(1) == 2\n[BEGIN]\n")
