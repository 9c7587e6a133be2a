"""Does a command line parse, where will its record lie, and is that record finished? Asked by `commands.sh`.

Reads one command per line on standard input, its words separated by the unit separator (0x1f), and answers each with
one line: `new PATH`, `done PATH`, or `error`; the reason of an error goes to standard error. The words go through the
command line's own parser and its own checks, so a dry run refuses what a real run would refuse. It starts no verb and
loads no model.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from selectkd_eval import records
from selectkd_eval.cli import parse
from selectkd_eval.errors import InputError
from selectkd_eval.ranges import check
from selectkd_eval.verbs import Run

SEPARATOR = "\x1f"


def answer(words: list[str]) -> str:
    """One reply. Raises InputError or SystemExit for a command that cannot run."""
    options: Any = parse(words)
    check(options)
    if words[0] == "train":
        from selectkd_eval.recipes import recipe

        changes = dict(word.split("=", 1) for word in options.set)
        recipe(options.recipe, options.variant, {name: float(value) for name, value in changes.items()})
    if not isinstance(options, Run):
        return "new -"
    path = records.record_path(words[0], options)
    return f"{'done' if finished(path, options) else 'new'} {path}"


def finished(path: Path, options: Any) -> bool:
    """A whole record without failed rows; a training also needs its student."""
    if not path.is_file() or not path.stat().st_size:
        return False
    record = records.read(path, unfinished_ok=True)
    student = getattr(options, "save", None)
    return record.finished and not record.failed and (student is None or (student / "selectkd.json").is_file())


def main() -> None:
    """Answer until the input ends."""
    for line in sys.stdin:
        words = line.rstrip("\n").split(SEPARATOR)
        try:
            reply = answer(words)
        except InputError as error:
            print(f"selectkd-eval {' '.join(words)}\n  {error}", file=sys.stderr)
            reply = "error"
        except SystemExit:  # the parser has said what is wrong
            print(f"  in: selectkd-eval {' '.join(words)}", file=sys.stderr)
            reply = "error"
        print(reply, flush=True)


if __name__ == "__main__":
    main()
