"""What is there to name? `selectkd-eval list recipes | prompts | models | records ...`, one name per line."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from selectkd_eval import records
from selectkd_eval.errors import InputError, choose
from selectkd_eval.verbs import ListOptions


class Entry(NamedTuple):
    """A name's line in the list and what `--explain` says about it."""

    line: str
    explanation: str


def run(options: ListOptions) -> int:
    """Print the names, or one of them explained."""
    names = _LISTS[options.what](options)
    if options.explain:
        print(choose(options.explain, names, options.what.removesuffix("s")).explanation)
        return 0
    width = max(map(len, names), default=0)
    for name, entry in names.items():
        print(f"{name:<{width}}  {entry.line}".rstrip())
    return 0


def _documented(function: Callable[..., object]) -> Entry:
    text = inspect.getdoc(function) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    # "Eq. 7" and "et al. 2016" do not end a sentence: a capital letter must follow.
    return Entry(re.split(r"\.\s(?=[A-Z])", paragraph, maxsplit=1)[0].removesuffix("."), text)


def _recipes(_: ListOptions) -> dict[str, Entry]:
    module = importlib.import_module("selectkd_eval.recipes")
    rows = {name: Entry(module.summary(name), module.explain(name)) for name in module.RECIPES}
    return rows | {name: Entry("no recipe: see --explain", module.explain(name)) for name in module.OUT}


def _divergences(_: ListOptions) -> dict[str, Entry]:
    table = importlib.import_module("selectkd_eval.divergences").DIVERGENCES
    return {name: _documented(entry.function) for name, entry in table.items()}


def _verifiers(_: ListOptions) -> dict[str, Entry]:
    table = importlib.import_module("selectkd_eval.verifiers").VERIFIERS
    return {name: _documented(entry.function) for name, entry in table.items()}


def _protocols(_: ListOptions) -> dict[str, Entry]:
    # judges is reached by its name: the measuring package imports neither of the other two.
    module = importlib.import_module("judges.protocols")
    return {
        name: Entry(f"{module.in_words(entry.facts())}, sha256 {entry.sha256[:12]}", module.explain(entry))
        for name, entry in module.PROTOCOLS.items()
    }


def _judges(options: ListOptions) -> dict[str, Entry]:
    presets = importlib.import_module("judges.presets")
    known = presets.all_judges(options.judge_file)
    return {name: Entry(presets.line(judge), presets.explained(judge)) for name, judge in known.items()}


def _prompts(_: ListOptions) -> dict[str, Entry]:
    prompts = importlib.import_module("selectkd_eval.prompts")
    sets = {name: prompts.load_prompts(name) for name in prompts.EMBEDDED_SETS if ":" in name}
    lines = {name: f"{len(found.prompts)} prompts, sha256 {found.sha256[:12]}" for name, found in sets.items()}
    embedded = {name: Entry(line, f"{line}\n\n{sets[name].prompts[0].text}") for name, line in lines.items()}
    # Sets that are not shipped are described and not looked for: a list needs no network.
    named = importlib.import_module("selectkd_eval.prompt_sets")
    return embedded | {name: Entry(named.facts_line(name), named.explanation(name)) for name in named.PROMPT_SETS}


def _tasks(_: ListOptions) -> dict[str, Entry]:
    table = importlib.import_module("selectkd_eval.tasks.table").TASKS
    return {name: Entry(_task_line(row), _task_explained(row)) for name, row in table.items()}


def _task_line(row: Any) -> str:
    return f"{row.problems:,} problems, grader {row.grader}: {row.about}"


def _task_explained(row: Any) -> str:
    """Where its problems come from, how it may be worded, what grades it."""
    accepted = importlib.import_module("selectkd_eval.tasks.files").accepted
    lines = [
        _task_line(row),
        f"version: {row.version or 'that of its file'}" + ("; another by NAME@VERSION" if row.versioned else ""),
        f"with --data DIR: {accepted(row.files)}" + (f"; for examples {accepted(row.train)}" if row.train else ""),
        f"without --data: {'shipped with the package' if row.embedded else row.hub or 'not available, give --data'}",
        f"answers: at most {row.max_new_tokens:,} tokens",
        "layouts:",
    ]
    for layout in row.layouts:
        suits = [word for word, own in (("chat models", row.chat), ("plain models", row.plain)) if own == layout.name]
        default = f", the default for {' and '.join(suits)}" if suits else ""
        shots = f"{layout.shots} solved example{'' if layout.shots == 1 else 's'}"
        lines.append(f"  {layout.name}: {shots}{default}" + (f"; {layout.source}" if layout.source else ""))
    return "\n".join(lines)


def _graders(_: ListOptions) -> dict[str, Entry]:
    table = importlib.import_module("selectkd_eval.grading.graders").GRADER_ROWS
    return {name: Entry(row.description, _grader_explained(row)) for name, row in table.items()}


def _grader_explained(row: Any) -> str:
    suits = {"number": "final numbers (GSM8K)", "symbolic": "LaTeX answers (MATH)"}
    lines = [row.description, f"suits: {', '.join(suits.get(word, word) for word in row.suits)}"]
    lines.append(f"measured: {row.measured}")
    return "\n".join([*lines, f"needs: {row.needs}"] if row.needs else lines)


def _models(_: ListOptions) -> dict[str, Entry]:
    pair = importlib.import_module("selectkd_eval.pair")
    found = sorted(path.parent for path in pair.EMBEDDED.glob("*/config.json"))
    lines = {f"embedded:{path.name}": f"shipped with the package, {_size(path)}" for path in found}
    return {name: Entry(line, line) for name, line in lines.items()}


def _records(options: ListOptions) -> dict[str, Entry]:
    if not options.records.is_dir():
        raise InputError(f"there is no directory {options.records}: give --records DIR")
    finished, unfinished, refused = records.read_each(options.records)
    lines = {str(r.path): f"{len(r.good)} rows" + (f", {len(r.failed)} failed" if r.failed else "") for r in finished}
    lines |= {str(path): f"unfinished: {records.unfinished(path)}" for path in unfinished}
    lines |= {str(path): f"refused: {why}" for path, why in refused.items()}
    return {name: Entry(line, line) for name, line in lines.items()}


def _size(directory: Path) -> str:
    return f"{(directory / 'model.safetensors').stat().st_size / 1e6:.2f} MB"


_LISTS: dict[str, Callable[[ListOptions], dict[str, Entry]]] = {
    "recipes": _recipes,
    "divergences": _divergences,
    "verifiers": _verifiers,
    "judges": _judges,
    "protocols": _protocols,
    "prompts": _prompts,
    "tasks": _tasks,
    "graders": _graders,
    "models": _models,
    "records": _records,
}
