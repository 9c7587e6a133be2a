"""The README names what is there: the two commands, every verb, every source file."""

from __future__ import annotations

from pathlib import Path

from selectkd_eval.verbs import VERBS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_two_commands_and_every_verb_are_named() -> None:
    for word in ("make demo", "make test", *(f"`{verb}`" for verb in VERBS)):
        assert word in README


def test_every_source_file_has_its_line_in_the_tree() -> None:
    tree = README.split("## Layout")[1].split("```")[1]
    for package in ("selectkd_eval", "judges", "analysis"):
        for path in (ROOT / package).rglob("*.py"):
            if not path.stem.startswith("__"):
                assert f" {path.name} " in tree, f"{path.relative_to(ROOT)} is missing from the README's tree"


def test_pictures_and_files_that_it_links_exist() -> None:
    for part in README.split("](")[1:]:
        target = part.split(")", maxsplit=1)[0]
        if not target.startswith(("http", "#")):
            assert (ROOT / target).exists(), target
