"""What is there to name? `selectkd-eval list recipes | prompts | models | records ...`, one name per line."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from selectkd_eval import records
from selectkd_eval.errors import InputError, choose
from selectkd_eval.verbs import ListOptions


def run(options: ListOptions) -> int:
    """Print the names, or one of them explained."""
    names = _LISTS[options.what](options)
    if options.explain:
        print(choose(options.explain, names, options.what.removesuffix("s")))
        return 0
    width = max(map(len, names), default=0)
    for name, text in names.items():
        print(f"{name:<{width}}  {text.splitlines()[0]}".rstrip())
    return 0


def _recipes(_: ListOptions) -> dict[str, str]:
    module = importlib.import_module("selectkd_eval.recipes")
    return {name: module.explain(name) for name in module.RECIPES}


def _divergences(_: ListOptions) -> dict[str, str]:
    table = importlib.import_module("selectkd_eval.divergences").DIVERGENCES
    return {name: (entry.function.__doc__ or "").strip() for name, entry in table.items()}


def _verifiers(_: ListOptions) -> dict[str, str]:
    table = importlib.import_module("selectkd_eval.verifiers").VERIFIERS
    return {name: (entry.function.__doc__ or "").strip() for name, entry in table.items()}


def _protocols(_: ListOptions) -> dict[str, str]:
    # judges is reached by its name: the measuring package imports neither of the other two.
    table = importlib.import_module("judges.protocols").PROTOCOLS
    return {name: protocol.explain() for name, protocol in table.items()}


def _prompts(_: ListOptions) -> dict[str, str]:
    prompts = importlib.import_module("selectkd_eval.prompts")
    sets = {name: prompts.load_prompts(name) for name in prompts.EMBEDDED_SETS if ":" in name}
    return {name: f"{len(found.prompts)} prompts, sha256 {found.sha256[:12]}" for name, found in sets.items()}


def _models(_: ListOptions) -> dict[str, str]:
    pair = importlib.import_module("selectkd_eval.pair")
    found = sorted(path.parent for path in pair.EMBEDDED.glob("*/config.json"))
    return {f"embedded:{path.name}": f"shipped with the package, {_size(path)}" for path in found}


def _records(options: ListOptions) -> dict[str, str]:
    if not options.records.is_dir():
        raise InputError(f"there is no directory {options.records}: give --records DIR")
    finished, unfinished = records.read_all(options.records)
    found = {str(r.path): f"{len(r.good)} rows" + (f", {len(r.failed)} failed" if r.failed else "") for r in finished}
    return found | {str(path): "unfinished: run its command again" for path in unfinished}


def _size(directory: Path) -> str:
    return f"{(directory / 'model.safetensors').stat().st_size / 1e6:.2f} MB"


_LISTS: dict[str, Callable[[ListOptions], dict[str, str]]] = {
    "recipes": _recipes,
    "divergences": _divergences,
    "verifiers": _verifiers,
    "protocols": _protocols,
    "prompts": _prompts,
    "models": _models,
    "records": _records,
}
