"""The command line: `selectkd-eval VERB [options]`.

Parses with the standard library and tyro only. A verb's module is imported, by its string name, once its options
are read, so `--help` never waits for torch, and no package imports another against the arrows.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from selectkd_eval import __version__
from selectkd_eval.errors import InputError, SetupError
from selectkd_eval.ranges import check
from selectkd_eval.terminal import visible
from selectkd_eval.verbs import VERBS

SECONDS_BETWEEN_LINES = 10
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code (2 for a request that cannot be carried out as given)."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _run(argv)
        if sys.stdout is not None:  # closed by `>&-`
            sys.stdout.flush()
        return code
    except (InputError, SetupError) as error:
        # An error may quote a server, a model or a file.
        print(f"selectkd-eval: {visible(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("selectkd-eval: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe has gone (`| head`): nothing is wrong, and Python must not complain at exit.
        _drop_output()
        return 0
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        _drop_output()
        what = error.filename or "the output"
        print(f"selectkd-eval: no space left for {what}: free some and run the same command again", file=sys.stderr)
        return 2


def _run(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] in ("-V", "--version"):
        print(f"selectkd-eval {__version__}")
        return 0
    check_packages()
    _calm_progress()
    options = parse(argv)
    check(options)
    module, function = VERBS[argv[0]].function.split(":")
    return int(getattr(importlib.import_module(module), function)(options) or 0)


def _calm_progress() -> None:
    """In a file a progress bar is a line for each time that it is drawn: ten a second would fill megabytes overnight.

    tqdm reads this when it is imported, which is later. Whoever sets it has the last word.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", str(SECONDS_BETWEEN_LINES))


def _drop_output() -> None:
    """Let what stdout could not write go nowhere: at exit Python would try again and fail again."""
    with contextlib.suppress(OSError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def usage() -> str:
    """The first page of help."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {verb.help}" for name, verb in VERBS.items())
    return (
        "usage: selectkd-eval VERB [options]\n\n"
        "Train a student with selective token-weighted distillation, then prove what it is worth.\n\n"
        f"{verbs}\n\n"
        "  selectkd-eval VERB --help   the options of a verb\n"
        "  --like RECORD               start from the options of an earlier record of the same verb\n\n"
        "Running the same command again resumes its record."
    )


def check_packages() -> None:
    """`judges` and `analysis` must be ours: PyPI has an unrelated `judges`."""
    here = Path(__file__).resolve().parent.parent
    for name in ("judges", "analysis"):
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve().parent if spec and spec.origin else None
        if found != here / name:
            raise SetupError(
                f"the package {name!r} should lie beside selectkd_eval in {here}, but Python finds "
                f"{found or 'none'}: pip uninstall {name}, then install selectkd-eval again"
            )


def parse(argv: Sequence[str]) -> object:
    """The options of a command line without the program's name; exits with 2 and usage on an unknown flag."""
    import tyro

    name, (words, like) = argv[0], _take_like(list(argv[1:]))
    if name not in VERBS:
        near = difflib.get_close_matches(name, VERBS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"there is no verb {name!r}{hint} (selectkd-eval --help lists them)")
    verb, default = VERBS[name], tyro.MISSING_NONPROP
    if like is not None:
        from selectkd_eval.records import replay

        default = replay(like, name, verb.options)
    config = (tyro.conf.PositionalRequiredArgs,) if verb.positional else ()
    return tyro.cli(verb.options, args=words, default=default, prog=f"selectkd-eval {name}", config=config)


def _take_like(argv: list[str]) -> tuple[list[str], str | None]:
    for index, word in enumerate(argv):
        if word == "--like":
            if index + 1 == len(argv):
                raise InputError("--like needs a record: --like reports/records/VERB-....jsonl")
            return argv[:index] + argv[index + 2 :], argv[index + 1]
        if word.startswith("--like="):
            return argv[:index] + argv[index + 1 :], word.removeprefix("--like=")
    return argv, None
