"""The house stands: packages import along the arrows only, help is light, files and functions stay short."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from selectkd_eval.verbs import VERBS

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("selectkd_eval", "judges", "analysis")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
ALLOWED = {
    "selectkd_eval": {"selectkd_eval"},
    "judges": {"judges", "selectkd_eval"},
    "analysis": {"analysis", "selectkd_eval"},
}
FLOOR = {
    *("errors", "verbs", "lines", "records", "environment", "measures", "win_rates"),
    *("stats", "surfaces", "flatness", "bootstrap", "permutation", "linearised", "edges"),
    *("speeds", "speed_model", "speed_explained", "speed_links", "lossless", "theorem"),
}
MATHS = {
    *("objective", "divergences", "gradients", "verifiers", "token_stats", "selection", "loss"),
    *("heads", "blocks", "chunked", "responses"),
}
HEAVY = {"torch", "transformers", "pandas", "scipy", "matplotlib", "openai", "numpy", "lm_eval", "peft"}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    ours = {name.split(".")[0] for name in imports(path)} & set(PACKAGES)
    assert ours <= ALLOWED[package]


def test_the_floor_and_the_maths_do_not_look_up() -> None:
    for path in (ROOT / "selectkd_eval").glob("*.py"):
        below = FLOOR if path.stem in FLOOR else FLOOR | MATHS if path.stem in MATHS else None
        if below is None:
            continue
        used = {name.split(".")[1] for name in imports(path) if name.startswith("selectkd_eval.")}
        assert used - {"__version__"} <= below, f"{path.name} imports {used - below}"


@pytest.mark.parametrize("package", ["judges", "analysis"])
def test_no_torch_in_judging_and_reporting(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        assert not {name.split(".")[0] for name in imports(path)} & {"torch", "transformers"}, path


@pytest.mark.parametrize("words", [["--help"], *([verb, "--help"] for verb in VERBS)], ids=" ".join)
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys; from selectkd_eval.cli import main\n"
        f"try: main({words!r})\n"
        "except SystemExit as e: assert not e.code\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "selectkd-eval" in done.stdout
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 360
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 70, f"{path.name}: {node.name} is long"


def test_no_file_without_a_noun() -> None:
    assert not {path.stem for path in SOURCES} & {"utils", "util", "helpers", "helper", "common", "misc"}


def test_every_verb_has_a_function_and_every_module_a_docstring() -> None:
    for verb in VERBS.values():
        module, function = verb.function.split(":")
        tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    for path in SOURCES:
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"
